"""How long a run takes, by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.preflight.forecast import duration, forecast, quantile, validations
from tests.preflight.test_verdict import LEARNING, PLAN, PROBE

# 8 questions, 8 samples, 400 prompt and 5120 completion tokens in 2 s: a group has 690 tokens.
# Learning makes 2600 tokens/s; 16 questions a step.


@pytest.mark.parametrize(
    "change, plan, sampling, tokens",
    [
        # All groups are live: 16 * 690, and a third of 690 for the KL that is only measured.
        ({"live": 1.0}, {}, 4.0, 16 * 690 + 230),
        ({"live": 0.25}, {}, 4.0, 4 * 690 + 230),
        ({"live": 0.0}, {}, 4.0, 0),
        ({"live": 0.0}, {"replace_dead_groups": 3}, 16.0, 0),
        # Half dead: one more round replaces them all.
        ({"live": 0.5}, {"replace_dead_groups": 9}, 8.0, 16 * 690 + 230),
        # A quarter live: three more rounds, of which two are allowed.
        ({"live": 0.25}, {"replace_dead_groups": 2}, 12.0, 12 * 690 + 230),
        ({"live": 0.25}, {"with_kl": True}, 4.0, 16 * 690 + 16 * 230),
        ({"live": 0.25}, {"with_entropy": True}, 4.0, 16 * 690 + 230),
        ({"live": 1.0}, {"updates_per_batch": 3}, 4.0, 48 * 690 + 230),
        # What takes less time runs beside the other.
        ({"live": 1.0}, {"ahead": True}, 0.0, 16 * 690 + 230),
        ({"live": 0.0}, {"ahead": True}, 4.0, 0),
    ],
)
def test_a_step_by_hand(change, plan, sampling, tokens):
    found = forecast(replace(PROBE, **change), LEARNING, replace(PLAN, **plan))
    assert found.step_seconds == pytest.approx(sampling + tokens / 2600)


def test_a_run_is_its_steps_and_validations():
    plan = replace(PLAN, validation_questions=69, steps=10)  # validated at 0, 8 and 10
    found = forecast(replace(PROBE, live=0.0), LEARNING, plan)
    # One sample of a question has 50 + 80 of the group's 690 tokens: 69 * 0.25 s * 130 / 690.
    assert found.validation_seconds == pytest.approx(3.25)
    assert found.run_seconds == pytest.approx(3 * 3.25 + 10 * 4.0)
    assert (found.steps, found.validations) == (10, 3)


@pytest.mark.parametrize(
    "budget, steps",
    [(10.4, 0), (10.5, 1), (38.5, 8), (45.7, 8), (45.75, 9), (49.7, 9), (49.75, 10), (1e9, 10)],
)
def test_a_budget_decides_the_steps(budget, steps):
    # A step takes 4 s, a validation 3.25 s: 8 steps with two of them 38.5 s, then a third comes.
    plan = replace(PLAN, validation_questions=69, steps=10, budget_seconds=budget)
    assert forecast(replace(PROBE, live=0.0), LEARNING, plan).steps == steps


@pytest.mark.parametrize(
    "steps, every, made", [(1, 8, 2), (8, 8, 2), (9, 8, 3), (32, 8, 5), (32, 0, 2), (3, 1, 4)]
)
def test_validations_are_counted_as_a_training_makes_them(steps, every, made):
    due = [s for s in range(1, steps + 1) if s == steps or (every and s % every == 0)]
    assert validations(steps, every) == made == 1 + len(due)


def test_what_was_not_measured_takes_no_time():
    found = forecast(PROBE, replace(LEARNING, seconds=0.0), PLAN)
    assert found.step_seconds == 4.0


@given(st.lists(st.integers(0, 9), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_the_smallest_value_that_is_enough(values, share):
    found = quantile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert found in values
    assert sum(value < found for value in values) < share * len(values) + 1e-9


def test_times_for_people():
    assert [duration(s) for s in (9.94, 119.4, 120, 7_199, 7_200, 100_000)] == [
        "9.9 s", "119 s", "2 min", "2 h 0 min", "2 h 0 min", "27 h 47 min",
    ]  # fmt: skip
