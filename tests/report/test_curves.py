"""Which curves a log has, and how they are drawn: by hand, and for any log."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.evaluation.statistics import wilson
from rlm.report.charts import chart, split_bar, ticks
from rlm.report.curves import Curve, Line, curves, thinned
from rlm.report.plots import write

ROWS = [
    {"step": 0, "validation_accuracy": 0.25},
    {"step": 1, "reward_mean": 0.5, "reward_correctness": 0.25, "reward_integer": 0.5,
     "mixed_fraction": 0.5, "live_fraction": 1.0, "kl": 0.1},
    {"step": 2, "reward_mean": 0.75, "reward_correctness": 0.5, "reward_integer": 0.5,
     "mixed_fraction": 1.0, "live_fraction": 1.0, "kl": float("nan"),
     "validation_accuracy": 0.5, "validation_accuracy_low": 0.3, "validation_accuracy_high": 0.7,
     "validation_accuracy_lenient": 0.75},
]  # fmt: skip


def test_curves_by_hand():
    found = {curve.title: curve for curve in curves(ROWS, questions=4)}
    assert list(found) == ["Reward", "Validation", "Groups", "KL to the start, nats"]
    assert [(x.label, x.values) for x in found["Reward"].lines] == [
        ("total", [0.5, 0.75]),
        ("correctness", [0.25, 0.5]),
        ("integer", [0.5, 0.5]),
    ]
    accuracy, lenient = found["Validation"].lines
    assert lenient == Line("by the last number", [2], [0.75])
    assert accuracy.steps == [0, 2] and accuracy.values == [0.25, 0.5]
    # The first row has no interval: that of 1 of 4 right; the second has its own.
    assert (accuracy.low[0], accuracy.high[0]) == wilson(1, 4)
    assert (accuracy.low[1], accuracy.high[1]) == (0.3, 0.7)
    assert found["KL to the start, nats"].lines == [Line("KL", [1], [0.1])]
    assert [x.label for x in found["Groups"].lines] == ["mixed", "live"]


def test_what_would_be_drawn_twice_is_drawn_once():
    rows = [{"step": 1, "reward_mean": 0.5, "reward_correctness": 0.5,
             "live_fraction": 0.5, "mixed_fraction": 0.5}]  # fmt: skip
    found = {curve.title: [x.label for x in curve.lines] for curve in curves(rows)}
    assert found == {"Reward": ["total"], "Groups": ["mixed (live)"]}


def test_a_long_line_is_averaged_and_keeps_its_mean():
    points = [(float(i), float(i % 7)) for i in range(700)]
    short = thinned(points, 100)
    assert len(short) == 100 and short[0] == (3.0, 3.0)
    assert sum(v for _, v in short) / 100 == pytest.approx(3.0)


def test_a_chart_has_its_points_interval_and_names_escaped():
    line = Line("a < b", [0, 10], [0.0, 1.0], [0.0, 0.5], [0.5, 1.0])
    drawn = chart(Curve("<script>", [line], share=True), 0, 10)
    ElementTree.fromstring(drawn)
    assert "<script>" not in drawn and "a &lt; b" in drawn and " style=" not in drawn
    # From 42 to 350 across, from 174 (0) up to 10 (1); the interval's ends are half-way.
    assert 'd="M42.0 174.0L350.0 10.0"' in drawn
    assert "M42.0 174.0V92.0" in drawn and "M350.0 92.0V10.0" in drawn


def test_lines_can_be_told_apart_without_colour():
    lines = [Line(str(i), [1, 2], [0.1 * i, 0.2 * i]) for i in range(5)]
    drawn = chart(Curve("x", lines), 1, 2)
    dashes = {re.search(r'stroke-dasharray="([^"]+)"', part)[1] if "dasharray" in part else ""
              for part in re.findall(r'<path class="line[^>]+>', drawn)}  # fmt: skip
    assert len(dashes) == 5
    shapes = {d.split(" ", 2)[-1] for d in re.findall(r'class="mark[^"]*" d="M[^"]+"', drawn)}
    assert len({re.sub(r"[-\d.]+", "", shape) for shape in shapes}) >= 4


numbers = st.floats(-1e12, 1e12).map(lambda x: round(x, 6))


@given(numbers, numbers)
def test_ticks_hold_the_range_and_are_few(one, other):
    low, high = min(one, other), max(one, other)
    found = ticks(low, high)
    room = (high - low) / 50
    assert 2 <= len(found) <= 7 and found == sorted(found)
    assert found[0] <= low + room and found[-1] >= high - room


@given(st.dictionaries(st.sampled_from(["loss", "kl", "reward_mean", "validation_accuracy"]),
                       st.lists(st.floats(width=32), min_size=3, max_size=3)))  # fmt: skip
def test_any_log_can_be_drawn(columns):
    rows = [{"step": float(i), **{n: v[i] for n, v in columns.items()}} for i in range(3)]
    for curve in curves(rows, questions=10):
        drawn = chart(curve, 0, 2)
        ElementTree.fromstring(drawn)
        assert "nan" not in drawn and "inf" not in drawn


def test_the_split_of_time_is_in_proportion():
    drawn = split_bar({"generate": 1.0, "learn": 3.0})
    assert 'x="0.0" width="250.0"' in drawn and 'x="250.0" width="750.0"' in drawn
    assert 'aria-label="generate 25%, learn 75%"' in drawn


def test_plots_are_written_as_png_and_svg(tmp_path):
    pytest.importorskip("matplotlib")
    paths = write(curves(ROWS, 4), tmp_path)
    assert [p.name for p in paths] == ["learning_curves.png", "learning_curves.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    drawn = paths[1].read_text()
    ElementTree.fromstring(drawn)
    assert ">Validation<" in drawn and "stroke-dasharray" in drawn
    assert sorted(p.name for p in tmp_path.iterdir()) == [p.name for p in paths]
    write(curves(ROWS, 4), tmp_path)
    assert paths[1].read_text() == drawn, "the same run gives the same file"


def test_without_matplotlib_there_are_no_plots(tmp_path, monkeypatch):
    monkeypatch.setattr("rlm.report.plots.importlib.util.find_spec", lambda name: None)
    assert write(curves(ROWS), tmp_path) == [] and not list(tmp_path.iterdir())
