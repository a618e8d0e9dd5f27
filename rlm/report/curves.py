"""Which curves tell how a training went: titles, lines, intervals. Drawn by charts and plots."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from rlm.evaluation.statistics import wilson

POINTS = 300  # of a line at most; more are averaged in equal stretches
PARTS = {"reward_mean", "reward_spread"}


@dataclass(frozen=True)
class Line:
    """steps and values of equal length, all finite; low and high: of an interval, or None."""

    label: str
    steps: list[float]
    values: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


@dataclass(frozen=True)
class Curve:
    """One picture. share: its values are shares of 1."""

    title: str
    lines: list[Line]
    share: bool = False


# title, whether they are shares, column -> label
WANTED = (
    ("Groups", True, {"all_right_fraction": "all right", "mixed_fraction": "mixed",
                      "all_wrong_fraction": "all wrong", "live_fraction": "live"}),
    ("Completions", True, {"step_by_step_fraction": "step by step",
                           "truncated_fraction": "cut off", "unreadable_fraction": "unreadable"}),
    ("Length, tokens", False, {"completion_tokens": "mean"}),
    ("KL to the start, nats", False, {"kl": "KL"}),
    ("Entropy, nats", False, {"entropy": "entropy"}),
    ("Loss", False, {"loss": "loss"}),
    ("Token accuracy", True, {"token_accuracy": "training", "mean_token_accuracy": "training"}),
    ("Gradient norm", False, {"gradient_norm": "before the cut"}),
    ("Learning rate", False, {"learning_rate": "rate"}),
    ("Tokens per second", False, {"tokens_per_second": "sampled and learned"}),
)  # fmt: skip


def curves(rows: list[dict], questions: int = 0) -> list[Curve]:
    """Return the curves that the rows have metrics for.

    questions: of a validation, for its interval where the rows have none.
    """
    parts = [n for n in _columns(rows) if n.startswith("reward_") and n not in PARTS]
    named = {"reward_mean": "total"} | {name: name.removeprefix("reward_") for name in parts}
    if len(parts) == 1 and _series(rows, parts[0]) == _series(rows, "reward_mean"):
        named = {"reward_mean": "total"}
    wanted = [("Reward", False, named), *WANTED]
    made = [Curve(t, [_line(rows, n, label) for n, label in names.items()], share)
            for t, share, names in wanted]  # fmt: skip
    made.insert(1, Curve("Validation", _validation(rows, questions), True))
    if _series(rows, "live_fraction") == _series(rows, "mixed_fraction"):
        made = [_without_twin(curve) for curve in made]
    kept = [Curve(c.title, [x for x in c.lines if x.steps], c.share) for c in made]
    return [curve for curve in kept if curve.lines]


def _without_twin(curve: Curve) -> Curve:
    """Return the curve without the line "live", which "mixed" is the same as."""
    lines = [line for line in curve.lines if line.label != "live"]
    named = [replace(x, label="mixed (live)") if x.label == "mixed" else x for x in lines]
    return replace(curve, lines=named)


def _columns(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _series(rows: list[dict], name: str) -> list[tuple[float, float]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [point for point in found if math.isfinite(point[1])]


def _line(rows: list[dict], name: str, label: str) -> Line:
    points = thinned(_series(rows, name))
    return Line(label, [step for step, _ in points], [value for _, value in points])


def thinned(points: list[tuple[float, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points: means over equal stretches, if there are more.

    >>> thinned([(1, 0.0), (2, 2.0), (3, 4.0), (4, 6.0)], 2)
    [(1.5, 1.0), (3.5, 5.0)]
    """
    if len(points) <= most:
        return points
    cuts = [round(i * len(points) / most) for i in range(most + 1)]
    parts = [points[a:b] for a, b in pairwise(cuts)]
    return [tuple(sum(column) / len(part) for column in zip(*part, strict=True)) for part in parts]


def _validation(rows: list[dict], questions: int) -> list[Line]:
    """Return accuracy with its interval, the lenient one, and format.

    They are few and stay as they are.
    """
    steps, values, lows, highs = list[float](), list[float](), list[float](), list[float]()
    for row in rows:
        value = row.get("validation_accuracy", math.nan)
        if not 0 <= value <= 1:
            continue
        low, high = row.get("validation_accuracy_low"), row.get("validation_accuracy_high")
        if low is None or high is None:
            low, high = wilson(round(value * questions), questions) if questions else (value, value)
        steps.append(row["step"])
        values.append(value)
        lows.append(low)
        highs.append(high)
    accuracy = Line("accuracy, 95 %", steps, values, lows, highs)
    others = {
        "validation_accuracy_lenient": "by the last number",
        "validation_format_rate": "format",
    }
    series = {label: _series(rows, name) for name, label in others.items()}
    made = [Line(x, [s for s, _ in points], [v for _, v in points]) for x, points in series.items()]
    return [accuracy, *made]
