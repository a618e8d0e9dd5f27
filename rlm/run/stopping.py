"""Ctrl-C and SIGTERM in a long loop: the first one asks it to end, the second ends it at once."""

import logging
import signal
import threading

from rlm.parallel import world

logger = logging.getLogger("rlm")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """A context inside which the first signal is only noted.

    requested: the exit code that the signal asks for (130 for Ctrl-C, 143 for SIGTERM), or 0.
    Outside the main thread signals cannot be caught and are left alone.
    """

    def __init__(self):
        self.requested = 0
        self._before: dict = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def anywhere(self) -> int:
        """Return `requested` of the process that a signal has come to, the same in all of them."""
        return max(world().all_gather(self.requested, "the end of the step"))

    def _note(self, number: int, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.requested = 128 + number
        logger.warning("stopping after this step; once more to stop at once and lose the step")
