"""Line charts as SVG text, with nothing but what stands in it: no script, no style attribute.

Lines differ by dashes and markers as well as by colour, which the page's style gives to the
classes c0 to c4. Everything that is not a number is escaped.
"""

import math
from html import escape

from rlm.report.curves import Curve, Line

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 26
DASHES = ("", "6 3", "2 2.5", "9 3 2 3", "1 4")
MARKERS = 8  # of a line, about


def chart(curve: Curve, first: float, last: float) -> str:
    """Return a figure: a heading, a legend unless the heading says it all, the SVG.

    first, last: steps that the axis goes from and to.
    """
    values = [v for x in curve.lines for v in (*x.values, *(x.low or ()), *(x.high or ()))]
    low, high = (0.0, 1.0) if curve.share else (min(values), max(values))
    ys = ticks(low, high)
    xs = [x for x in ticks(first, last) if x == int(x) and first <= x <= last]
    place = _Place(first, last, min(ys[0], low), max(ys[-1], high))
    percent = curve.share
    grid = [
        f'<path class="grid" d="M{LEFT} {place.y(y)}H{WIDTH - RIGHT}"/><text x="{LEFT - 5}" '
        f'y="{place.y(y)}" dy="3.5" text-anchor="end">{_label(y, percent)}</text>'
        for y in ys
    ]
    grid += [
        f'<text x="{place.x(x)}" y="{HEIGHT - 9}" text-anchor="middle">{_label(x)}</text>'
        for x in xs
    ]
    lines = [_draw(line, i % len(DASHES), place) for i, line in enumerate(curve.lines)]
    told = "; ".join(_told(line, percent) for line in curve.lines)
    named = enumerate(curve.lines if len(curve.lines) > 1 or curve.share else [])
    legend = "".join(_key(line.label, i) for i, line in named)
    return (
        f'<figure><figcaption>{escape(curve.title)}<span class="keys">{legend}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(curve.title)} by step. {escape(told)}">'
        + "".join(grid + lines)
        + "</svg></figure>"
    )


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers from at most `low` to at least `high`, about `count` steps apart.

    >>> ticks(0, 1)
    [0.0, 0.25, 0.5, 0.75, 1.0]
    >>> ticks(3, 3)
    [0.0, 3.0, 6.0]
    """
    if high <= low:
        room = abs(low) or 1.0
        return [low - room, float(low), low + room]
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first, last = math.floor(low / step + 0.01), math.ceil(high / step - 0.01)
    return [round(i * step, 12) for i in range(first, last + 1)]


def split_bar(seconds: dict[str, float]) -> str:
    """Return one bar that is split by time, with the shares in its label."""
    total, at, parts = sum(seconds.values()) or 1.0, 0.0, []
    for i, value in enumerate(seconds.values()):
        width = 1000 * value / total
        parts.append(f'<rect class="c{i % 5}" x="{at:.1f}" width="{width:.1f}" height="28"/>')
        at += width
    told = ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items())
    return (
        '<svg class="split" viewBox="0 0 1000 28" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(told)}">{"".join(parts)}</svg>'
    )


class _Place:
    """Where a step and a value stand in the picture."""

    def __init__(self, first: float, last: float, low: float, high: float):
        self.first, self.low = first, low
        self.across = (WIDTH - LEFT - RIGHT) / (last - first or 1)
        self.up = (HEIGHT - TOP - BOTTOM) / (high - low or 1)
        self.middle = last == first

    def x(self, step: float) -> float:
        shift = (WIDTH - LEFT - RIGHT) / 2 if self.middle else 0
        return round(LEFT + (step - self.first) * self.across + shift, 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - self.low) * self.up, 1)


def _draw(line: Line, index: int, place: _Place) -> str:
    points = [(place.x(s), place.y(v)) for s, v in zip(line.steps, line.values, strict=True)]
    out = []
    if line.low and line.high:
        ends = [
            f"M{place.x(s)} {place.y(a)}V{place.y(b)}m-3 0h6M{place.x(s) - 3} {place.y(a)}h6"
            for s, a, b in zip(line.steps, line.low, line.high, strict=True)
        ]
        out.append(f'<path class="interval c{index}" d="{"".join(ends)}"/>')
    dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
    path = "M" + "L".join(f"{x} {y}" for x, y in points)
    out.append(f'<path class="line c{index}"{dash} d="{path}"/>')
    every = max(1, len(points) // MARKERS)
    # Each line's markers stand elsewhere, so that lines that run together can be told apart.
    for i in range((index * every // 3) % every if every > 1 else 0, len(points), every):
        text = f"step {_label(line.steps[i])}: {line.label} {_short(line.values[i])}"
        out.append(_marker(index, *points[i], escape(text)))
    return "".join(out)


def _marker(index: int, x: float, y: float, title: str = "") -> str:
    shapes = (
        f"M{x - 2.6} {y}a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0 -5.2 0z",
        f"M{x - 2.4:.1f} {y - 2.4:.1f}h4.8v4.8h-4.8z",
        f"M{x} {y - 3:.1f}l3 5.2h-6z",
        f"M{x} {y - 3.2:.1f}l3.2 3.2l-3.2 3.2l-3.2 -3.2z",
        f"M{x - 2.5:.1f} {y - 2.5:.1f}l5 5m0 -5l-5 5",
    )
    inner = f"<title>{title}</title>" if title else ""
    return f'<path class="mark c{index}" d="{shapes[index]}">{inner}</path>'


def _key(label: str, index: int) -> str:
    index %= len(DASHES)
    dash = f' stroke-dasharray="{DASHES[index]}"' if DASHES[index] else ""
    return (
        '<span><svg class="key" viewBox="0 0 28 10" aria-hidden="true">'
        f'<path class="line c{index}"{dash} d="M1 5H27"/>{_marker(index, 14, 5)}</svg>'
        f"{escape(label)}</span>"
    )


def _told(line: Line, percent: bool) -> str:
    first, last = (_label(v, percent) if percent else _short(v)
                   for v in (line.values[0], line.values[-1]))  # fmt: skip
    return f"{line.label}: from {first} to {last}"


def _label(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.3g} %"
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.6g}"


def _short(value: float) -> str:
    return f"{value:.4g}"
