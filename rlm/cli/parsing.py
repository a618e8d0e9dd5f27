"""The texts of flags, files and variables as values: ranges, weights, lists of names."""

import math
import re


def words_of(value) -> list[str]:
    """`"base,mine"` or `["base", "mine"]` -> ["base", "mine"]; [] for None."""
    words = value if isinstance(value, list) else [] if value is None else [value]
    return [name for word in words for name in str(word).split(",") if name]


def parse_range(value, low: int, high: int) -> tuple[int, int]:
    """`"1-3"`, `3` or `[1, 3]` -> (1, 3), (3, 3), (1, 3); ValueError outside low to high."""
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not low <= first <= last <= high:
        raise ValueError(f"not a range; use {low} to {high}, as in {low} or {low}-{high}")
    return first, last


def parse_rewards(value) -> dict:
    """`"correctness=2,integer=0.5"` or a mapping -> {"correctness": 2.0, "integer": 0.5}."""
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.replace(" ", "").split(",") if pair]
        value = {name: weight if equals else 1 for name, equals, weight in pairs}
    try:
        weights = {str(name): float(weight) for name, weight in dict(value).items()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError("use NAME=WEIGHT,NAME=WEIGHT as in correctness=2,integer=0.5") from None
    if not any(weights.values()) or not all(map(math.isfinite, weights.values())):
        raise ValueError("all weights are 0 or not finite; give one reward a weight of 1")
    return weights
