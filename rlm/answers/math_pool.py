r"""Whether mathematical expressions are equal, asked of worker processes that may hang or die.

    with MathPool() as pool:
        pool.judge([(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")])   # [Found(equal=True, ...)]

Math-Verify and sympy can take minutes and gigabytes for one hostile expression, and cannot be
interrupted from within. So each verdict has a deadline, each worker a bound on its memory, and a
worker that misses either is replaced: its verdict is None, which is neither right nor wrong. No
signal and no thread is used on this side. Math-Verify is an extra: `available` says if it is there.
"""

import atexit
import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rlm.errors import InputError, RunError
from rlm.line_process import LineProcess

WORKER = Path(__file__).with_name("math_worker.py")
SECONDS = 2.0  # deadline of a verdict, in processor time: a busy machine changes no verdict
SLACK = 15.0  # times the deadline that a verdict may take by the clock, where others compute too
BYTES = 1 << 30  # of memory a worker may have
MOST_WORKERS = 4
START_SECONDS = 120.0  # to import sympy, on a machine that does other things as well
KEPT = 1 << 16  # verdicts that are remembered

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """equal: None where the worker hung or died. gold_read, answer_read: LaTeX that was read."""

    equal: bool | None
    gold_read: bool = False
    answer_read: bool = False


def available() -> None:
    """InputError unless Math-Verify is installed."""
    for name in ("math_verify", "latex2sympy2_extended"):
        if find_spec(name) is None:
            raise InputError(
                f"answers of kind math are compared by Math-Verify, and {name} is not installed; "
                "install it with: pip install -e .[math]"
            )


class Worker(LineProcess):
    """A process of rlm/answers/math_worker.py."""

    def __init__(self, seconds: float, most_bytes: int):
        self.seconds, self.ready, self.job = seconds, False, -1
        self.deadline = time.monotonic() + START_SECONDS
        # sympy needs no threads of numerical libraries, and they would count as its memory.
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        super().__init__(WORKER, str(seconds), str(most_bytes), env=env)

    def give(self, number: int, pair: Pair) -> None:
        """Hand it a pair."""
        self.job, self.deadline = number, time.monotonic() + SLACK * self.seconds
        self.send({"gold": pair[0], "answer": pair[1]})

    def line(self) -> dict | None:
        """Return the line that has arrived, None if the process has ended."""
        assert self.process.stdout
        text = self.process.stdout.readline()
        return json.loads(text) if text.endswith(b"\n") else None


class MathPool:
    """Judges pairs (gold, answer) of LaTeX in parallel; what was judged once is remembered.

    workers: processes, 0 for one a core, at most 4. They start at the first pair. Safe in threads:
    one call at a time. replaced: workers that hung or died so far.
    """

    def __init__(self, workers: int = 0, *, seconds: float = SECONDS, most_bytes: int = BYTES):
        available()
        self.size = workers or min(MOST_WORKERS, os.cpu_count() or 1)
        self.seconds, self.most_bytes, self.replaced = seconds, most_bytes, 0
        self._workers: list[Worker] = []
        self._known: dict[Pair, Found] = {}
        self._lock = threading.Lock()

    def judge(self, pairs: Sequence[Pair]) -> list[Found]:
        """Return what was found of each pair, in order."""
        with self._lock:
            if len(self._known) > KEPT:
                self._known.clear()
            new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
            try:
                self._known |= zip(new, self._ask(new), strict=True)
            except BaseException:  # an interrupt: who knows whose answer comes next
                self._end_workers()
                raise
            return [self._known[pair] for pair in pairs]

    def _ask(self, pairs: list[Pair]) -> list[Found]:
        found: list[Found | None] = [None] * len(pairs)
        waiting = list(range(len(pairs)))[::-1]
        failed_starts = 0
        while (open_ := sum(f is None for f in found)) > 0:
            while len(self._workers) < min(self.size, open_):
                self._workers.append(Worker(self.seconds, self.most_bytes))
            for worker in self._workers:
                if worker.ready and worker.job < 0 and waiting:
                    number = waiting.pop()
                    worker.give(number, pairs[number])
            for worker in self._heard_or_late():
                line = self._line_of(worker)
                if line is None or line.pop("last", False):
                    self._workers.remove(worker)
                    worker.end()
                if line is None:
                    failed_starts += not worker.ready
                    if failed_starts > self.size:
                        raise RunError(_no_start())
                    if worker.job >= 0:
                        self.replaced += 1
                        found[worker.job] = Found(None)
                elif "ready" in line:
                    worker.ready = True
                else:
                    found[worker.job] = Found(**line)
                    self.replaced += line["equal"] is None
                    worker.job = -1
        return [f for f in found if f is not None]

    def _line_of(self, worker: Worker) -> dict | None:
        """Return what a worker that was heard of, or is late, has written; None: replace it."""
        return worker.line() if worker.deadline > time.monotonic() else None

    def _heard_or_late(self) -> list[Worker]:
        """Wait for the first worker that writes, ends or misses its deadline; return all such."""
        busy = [w for w in self._workers if w.job >= 0 or not w.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            least = min(worker.deadline for worker in busy) - time.monotonic()
            heard = [key.data for key, _ in selector.select(max(0.0, least))]
        now = time.monotonic()
        return heard or [w for w in busy if w.deadline <= now]

    def _end_workers(self) -> None:
        while self._workers:
            self._workers.pop().end()

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._end_workers()

    def __enter__(self) -> "MathPool":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _no_start() -> str:
    return (
        f"the workers that compare mathematics end before they are ready; what they say: "
        f"echo | {Path(sys.executable).name} -P {WORKER.name} {SECONDS} {BYTES}"
    )


_shared: dict[float, MathPool] = {}
_seconds = SECONDS


def set_deadline(seconds: float) -> None:
    """Set the deadline of the process's own pool, from the next verdict on."""
    global _seconds
    _seconds = seconds


def shared_pool() -> MathPool:
    """Return the process's own pool, started at its first use and ended with the process."""
    if _seconds not in _shared:
        _shared[_seconds] = MathPool(seconds=_seconds)
        atexit.register(_shared[_seconds].close)
    return _shared[_seconds]
