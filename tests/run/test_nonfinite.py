"""Batches that are not finite: counted, kept, and after five in a row the end."""

import json

import pytest

from rlm.errors import RunError
from rlm.run.nonfinite import NonFiniteGuard

NAN = float("nan")


def test_a_batch_that_is_not_finite_is_kept(tmp_path, caplog):
    guard = NonFiniteGuard(tmp_path)
    assert guard.passed(1, {"loss": 0.5}, lambda: pytest.fail("not needed"))
    assert not guard.passed(2, {"loss": NAN, "gradient_norm": 3.0}, lambda: [{"text": "x"}])
    kept = json.loads((tmp_path / "skipped/step-000002.json").read_text())
    assert kept == {"step": 2, "not_finite": {"loss": "nan"}, "batch": [{"text": "x"}]}
    assert "step 2: loss nan" in caplog.text and (guard.skipped, guard.in_a_row) == (1, 1)
    assert guard.passed(3, {"loss": 0.1}, list) and (guard.skipped, guard.in_a_row) == (1, 0)


def test_five_in_a_row_end_the_run(tmp_path):
    guard = NonFiniteGuard(tmp_path)
    for step in (1, 2, 3, 4):
        guard.passed(step, {"loss": float("inf")}, list)
    guard.passed(5, {"loss": 0.0}, list)
    for step in (6, 7, 8, 9):
        guard.passed(step, {"gradient_norm": NAN}, list)
    assert guard.passed(9, {}, list)  # a step without anything to learn
    assert not guard.gave_up
    guard.check()
    guard.passed(10, {"loss": NAN}, list)
    assert guard.gave_up
    with pytest.raises(RunError, match=r"5 steps in a row .*--learning-rate"):
        guard.check()


def test_it_goes_on_counting_after_a_stop(tmp_path):
    guard = NonFiniteGuard(tmp_path)
    for step in (1, 2, 3, 4):
        guard.passed(step, {"loss": NAN}, list)
    again = NonFiniteGuard(tmp_path)
    again.restore(guard.state())
    again.passed(5, {"loss": NAN}, list)
    assert again.gave_up and again.skipped == 5


def test_the_files_have_a_bound(tmp_path):
    guard = NonFiniteGuard(tmp_path, limit=99)
    for step in range(40):
        guard.passed(step, {"loss": NAN}, list)
    assert len(list((tmp_path / "skipped").iterdir())) == 20
