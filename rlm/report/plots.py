"""The learning curves as learning_curves.png and .svg, for papers; matplotlib draws them.

matplotlib is optional: without it there are no plots, and the report has its own drawings.
Colours are Okabe and Ito's, told apart by the colour-blind; dashes and markers do without colour.
"""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from rlm import files
from rlm.report.curves import Curve

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (1, 3)))
MARKERS = "os^DX"
SHOWN = 8  # curves at most: two rows of four
LABEL = 30  # characters of a name
# svg.hashsalt: the same run gives the same file. A $ in a name is a $.
LOOK = {"svg.fonttype": "none", "svg.hashsalt": "rlm", "font.size": 8, "text.parse_math": False}


def write(curves: list[Curve], folder: Path) -> list[Path]:
    """Write the plots of the first curves and return their paths; [] without matplotlib."""
    if not curves or importlib.util.find_spec("matplotlib") is None:
        return []
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = curves[:SHOWN]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    written = []
    with rc_context(LOOK):
        figure = Figure(figsize=(3.1 * columns, 2.3 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for curve, axis in zip(shown, axes, strict=False):
            _draw(curve, axis)
        for axis in list(axes)[len(shown) :]:
            axis.set_axis_off()
        for kind, options in (("png", {"dpi": 160}), ("svg", {"metadata": {"Date": None}})):
            path = folder / f"learning_curves.{kind}"
            temporary = files.beside(path, kind)
            figure.savefig(temporary, format=kind, **options)
            written.append(temporary.replace(path))
            figure.set_layout_engine(None)  # found once: it takes as long as to draw
    return written


def _draw(curve: Curve, axis) -> None:
    for i, line in enumerate(curve.lines):
        i %= len(COLORS)
        every = max(1, len(line.steps) // 8)
        look: dict[str, Any] = {"color": COLORS[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
        look |= {"markersize": 3.5, "linewidth": 1.3, "markevery": (i * every // 3, every)}
        axis.plot(line.steps, line.values, label=line.label[:LABEL], **look)
        if line.low and line.high:
            middle = zip(line.values, line.low, line.high, strict=True)
            ends = list(zip(*((max(0, v - a), max(0, b - v)) for v, a, b in middle), strict=True))
            bars = {"fmt": "none", "ecolor": COLORS[i], "elinewidth": 0.8, "capsize": 2}
            axis.errorbar(line.steps, line.values, yerr=ends, **bars)
    axis.set_title(curve.title, fontsize=9)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
    if curve.share:
        axis.set_ylim(-0.03, 1.03)
    if len(curve.lines) > 1:
        axis.legend(fontsize=7, framealpha=0.7)
