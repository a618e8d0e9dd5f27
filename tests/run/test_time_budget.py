"""Times as they are written, and how many steps fit into them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import InputError
from rlm.run.time_budget import TimeBudget, fitting_steps, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), (" 2D ", 172_800)],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "m", "90 m", "0s", "-5m", "1h30", "soon", "5x"])
def test_what_is_no_time(text):
    with pytest.raises(InputError, match="90m, 1h30m or 45s"):
        seconds_of(text)


durations = st.floats(0.01, 100)


@given(st.floats(0, 1000), st.floats(0, 100), st.lists(durations, min_size=1, max_size=8))
def test_what_fits_ends_in_time(left, reserve, steps):
    count = fitting_steps(left, reserve, steps)
    mean, longest = sum(steps) / len(steps), max(steps)
    if count:
        assert (count - 1) * mean + longest + reserve <= left + 1e-6
    else:
        assert longest + reserve > left
    # One more would not fit.
    assert count * mean + longest + reserve > left - 1e-6


def test_a_run_that_slows_down_still_ends_in_time():
    now = [100.0]
    budget = TimeBudget(60.0, 100.0, clock=lambda: now[0])
    done, last = 0, 99
    while done < last:
        taken = 2.0 if done < 6 else 5.0
        now[0] += taken
        done += 1
        last = done + budget.after_step(taken, reserve=8.0)
    assert budget.left() >= 8.0 and done >= 9
