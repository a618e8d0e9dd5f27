"""The tables and the picture of docs/what_helps.md, from benchmarks/results/ablations.json.

A change and what it is compared with are pairs by their seed: the same start, the same questions.
"""

import json
from math import sqrt
from pathlib import Path

from ablations import CHANGES, SEEDS, Change, changes_of
from markdown_table import markdown_table

PATH = Path(__file__).parent / "results" / "ablations.json"
# Two-sided 95 % points of Student's t by degrees of freedom (number of seeds - 1).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def area(curve: list[list[float]], until: float) -> float:
    """Return the mean accuracy over the sampled completions from 0 to `until`, 0 to 1.

    Between validations the curve is a straight line; a run that sampled fewer keeps its last value.

    >>> area([[0, 0.0], [10, 1.0], [20, 1.0]], 20)
    0.75
    >>> area([[0, 0.0], [10, 1.0]], 20), area([[0, 0.0], [20, 1.0]], 10)
    (0.75, 0.25)
    """
    total = 0.0
    for (x, y), (right, after) in zip(curve, [*curve[1:], [until, curve[-1][1]]], strict=True):
        end = min(right, until)
        if end > x:
            at_end = y + (after - y) * (end - x) / (right - x)
            total += (end - x) * (y + at_end) / 2
    return total / until


def paired(differences: list[float]) -> tuple[float, float]:
    """Return the mean and half of its 95 % interval by Student's t; one pair has no interval.

    >>> [round(x, 3) for x in paired([0.1, 0.2, 0.3])]
    [0.2, 0.248]
    """
    n = len(differences)
    mean = sum(differences) / n
    if n < 2:
        return mean, float("inf")
    spread = sqrt(sum((x - mean) ** 2 for x in differences) / (n - 1))
    return mean, STUDENT[n - 1] * spread / sqrt(n)


def verdict(mean: float, half: float) -> str:
    """Return what an interval says: better, worse, within noise; or that no seed differs at all."""
    if mean == half == 0:
        return "the same"
    if abs(mean) <= half:
        return "within noise"
    return "better" if mean > 0 else "worse"


def measured(runs: dict, name: str, change: Change) -> dict | None:
    """Return the means of a change and its paired differences; None where nothing is there."""
    found, other = runs.get(name, {}), runs.get(change.against, {})
    seeds = sorted(set(found) & set(other), key=int)
    if not seeds:
        return None
    sampled = min(run["curve"][-1][0] for run in runs["default"].values())
    areas = {s: (area(found[s]["curve"], sampled), area(other[s]["curve"], sampled))
             for s in seeds}  # fmt: skip
    return {
        "seeds": len(seeds),
        "start": sum(found[s]["curve"][0][1] for s in seeds) / len(seeds),
        "end": sum(found[s]["accuracy"] for s in seeds) / len(seeds),
        "lowest": min(found[s]["accuracy"] for s in seeds),
        "area": sum(mine for mine, _ in areas.values()) / len(seeds),
        "end_change": paired([found[s]["accuracy"] - other[s]["accuracy"] for s in seeds]),
        "area_change": paired([mine - its for mine, its in areas.values()]),
        "tokens": sum(found[s]["mean_tokens"] for s in seeds) / len(seeds),
    }


def points(change: tuple[float, float]) -> str:
    """Return a difference with its interval, in points."""
    mean, half = (100 * x for x in change)
    reach = f" ± {half:.1f}" if half < 1000 else ""
    return f"{mean:+.1f}{reach}"


def read() -> dict:
    """Return the runs by task, change and seed; none before anything was measured."""
    return json.loads(PATH.read_text(encoding="utf-8"))["runs"] if PATH.exists() else {}


def table(task: str) -> str:
    """Return a row for each change that was measured on the task."""
    runs = read().get(task, {})
    if "default" not in runs:
        return f"Not measured yet: `python benchmarks/ablations.py --task {task}`."
    head = ["", "change", "start", "end", "worst seed", "area", "end, points", "area, points",
            "says the area", "seeds"]  # fmt: skip
    lines, group = [head], ""
    for name, change in CHANGES.items():
        found = measured(runs, name, change)
        if not found:
            continue
        shown = [f"{100 * found[k]:.1f}" for k in ("start", "end", "lowest", "area")]
        rest = ["", "", ""] if name == "default" else [
            points(found["end_change"]), points(found["area_change"]),
            verdict(*found["area_change"])]  # fmt: skip
        lines.append([change.group if change.group != group else "", change.title, *shown, *rest,
                      str(found["seeds"])])  # fmt: skip
        group = change.group
    whole = sum(len(runs.get(name, {})) for name in CHANGES)
    table = markdown_table(lines)
    return f"{table}\n\n{whole} of {len(changes_of(task)) * len(SEEDS)} runs were measured."


def rows_drawn(runs: dict) -> list[tuple[str, tuple[float, float]]]:
    """Return (label, change of the area with half its interval) of what has an interval."""
    found = [(f"{c.group}: {c.title}", measured(runs, name, c))
             for name, c in CHANGES.items() if name != "default"]  # fmt: skip
    return [(label, each["area_change"]) for label, each in found if each and each["seeds"] > 1]


def picture() -> str:
    """Return the line that shows what `draw` draws, where it draws anything."""
    if not any(rows_drawn(runs) for runs in read().values()):
        return "The picture is drawn when there is more than one seed."
    return "![Change of the area of each change with its interval](what_helps.png)"


def draw(path: Path) -> None:
    """Draw the change of the area of each change with its interval, a panel a task.

    Filled: the interval leaves out 0. So it can be read in black and white.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {task: drawn for task, runs in read().items() if (drawn := rows_drawn(runs))}
    if not rows:
        return
    height = 1.2 + 0.24 * max(map(len, rows.values()))
    figure, axes = plt.subplots(1, len(rows), figsize=(7.5 * len(rows), height),
                                squeeze=False, constrained_layout=True)  # fmt: skip
    for axis, (task, drawn) in zip(axes[0], rows.items(), strict=True):
        for place, (_, (mean, half)) in enumerate(reversed(drawn)):
            face = "black" if verdict(mean, half) in ("better", "worse") else "white"
            axis.errorbar(100 * mean, place, xerr=100 * half, fmt="o", color="black",
                          markerfacecolor=face, markersize=5, capsize=2, linewidth=1)  # fmt: skip
        axis.set_yticks(range(len(drawn)), [label for label, _ in reversed(drawn)])
        axis.axvline(0, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=task.replace("_", " "), xlabel="change of the area under the curve, points")
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Software": None}, dpi=110)
    plt.close(figure)
