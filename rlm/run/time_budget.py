"""How many steps fit into a time that is given: `--budget 90m`.

Pure arithmetic on seconds, but for the clock that it is given.
"""

import re
import time
from statistics import fmean

from rlm.errors import InputError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
RECENT = 8  # steps that the seconds of a step are taken from
MARGIN = 1.25  # the end of a run may take this times what was measured of its kind


def seconds_of(text: str) -> float:
    """Return the seconds of "90m", "1h30m", "45s", "2d". InputError for anything else, and for 0.

    >>> seconds_of("1h30m")
    5400.0
    """
    given = str(text).strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", given)
    total = float(sum(float(number) * UNITS[unit] for number, unit in parts))
    if "".join(number + unit for number, unit in parts) != given or total <= 0:
        raise InputError(f"--budget {text}: no time with a unit; give one like 90m, 1h30m or 45s")
    return total


def fitting_steps(left: float, reserve: float, steps: list[float]) -> int:
    """Return how many more steps fit into `left` seconds with `reserve` kept for the end.

    steps: seconds of the latest ones. A step is taken to last as long as their mean, and the
    last one as long as the longest of them: it must not run over.

    >>> fitting_steps(100.0, 10.0, [9.0, 10.0, 20.0])  # 90 - 20 = 70: 5 of 13 s, and the last
    6
    >>> fitting_steps(25.0, 10.0, [9.0, 10.0, 20.0])
    0
    """
    room = left - reserve - max(steps)
    return 0 if room < 0 else 1 + int(room / fmean(steps))


class TimeBudget:
    """Watches the time of a run. began: seconds of `clock` when the time began to count."""

    def __init__(self, seconds: float, began: float, clock=time.monotonic):
        self._end, self._clock = began + seconds, clock
        self._taken: list[float] = []

    def left(self) -> float:
        """Return the seconds that are left; below 0 when the time is over."""
        return self._end - self._clock()

    def after_step(self, seconds: float, reserve: float) -> int:
        """Note what a step took; return how many more fit, `reserve` seconds kept for the end."""
        self._taken = [*self._taken[1 - RECENT :], seconds]
        return fitting_steps(self.left(), MARGIN * reserve, self._taken)
