"""Runs the tools of a file in processes that may hang, raise or die, without anybody waiting.

    pool = ToolWorkers("my_tools.py", seconds=5.0)
    job = pool.submit("weather", {"city": "Paris"})
    pool.poll()                      # at once; or pool.wait(0.02)
    job.outcome                      # None until it is there

A call has a deadline by the clock, from when a process has it; a process that misses it is ended
and replaced. No signal and no thread is used on this side.
"""

import atexit
import json
import os
import selectors
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlm.errors import RunError
from rlm.line_process import LineProcess

WORKER = Path(__file__).with_name("worker.py")
MOST_WORKERS = 8  # tools mostly wait for something
START_SECONDS = 60.0  # to run the file for the first time
CHARACTERS = 20_000  # of a result that a process hands over


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call came to. failure: one of `rlm.tools.tool.REASONS`, None for a result."""

    text: str
    failure: str | None = None


@dataclass(eq=False, slots=True)
class Job:
    """A call that runs. dropped: nobody wants to know any more."""

    name: str = ""
    arguments: dict | None = None
    outcome: Outcome | None = None
    dropped: bool = False

    def drop(self) -> None:
        self.dropped = True


class Worker(LineProcess):
    """A process of rlm/tools/worker.py. deadline: of its start, or of the call that it has."""

    def __init__(self, file: str):
        self.ready = False
        self.job: Job | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self._heard = b""
        super().__init__(WORKER, file, str(CHARACTERS))
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)

    def give(self, job: Job, seconds: float) -> None:
        """Hand it a call."""
        self.job, self.deadline = job, time.monotonic() + seconds
        self.send({"name": job.name, "arguments": job.arguments})

    def line(self) -> dict | None:
        """Return the line that has arrived, {} for none yet, None if the process has ended."""
        assert self.process.stdout
        with suppress(BlockingIOError):
            while part := os.read(self.process.stdout.fileno(), 1 << 16):
                self._heard += part
                if self._heard.endswith(b"\n"):
                    break
            else:
                return None
        whole, mark, self._heard = self._heard.rpartition(b"\n")
        return json.loads(whole) if mark else {}


class ToolWorkers:
    """Runs calls in up to `most` processes, which start at the first call.

    seconds: deadline of a call. replaced: processes that hung or died in a call so far.
    """

    def __init__(self, file: str, *, seconds: float, most: int = 0):
        self.file, self.seconds = file, seconds
        self.most = most or min(MOST_WORKERS, 2 * (os.cpu_count() or 1))
        self.replaced = 0
        self._workers: list[Worker] = []
        self._waiting: deque[Job] = deque()
        self._broken = ""  # why the file could not be run
        atexit.register(self.close)

    def submit(self, name: str, arguments: dict) -> Job:
        """Return a call that has begun, or begins when a process is free."""
        job = Job(name, arguments)
        self._waiting.append(job)
        self.poll()
        return job

    def poll(self) -> None:
        """Take what has arrived, end what is late, hand out what waits. RunError without workers.

        A file that a process cannot run was run before, when its tools were looked at.
        """
        now = time.monotonic()
        for worker in list(self._workers):
            line = worker.line()
            if line is None or (not line and worker.deadline <= now and self._busy(worker)):
                self._replace(worker, "died" if line is None else "timeout")
            elif "broken" in line:
                self._broken = line["broken"]
                self._replace(worker, "died")
            elif "ready" in line:
                worker.ready = True
            elif line and worker.job is not None:
                failed = "error" in line
                outcome = Outcome(line["error" if failed else "text"], "error" if failed else None)
                worker.job.outcome, worker.job = outcome, None
        if self._broken:
            raise RunError(f"{self.file}: a process of its own cannot run it ({self._broken})")
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._waiting[0].dropped:
            self._waiting.popleft()
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self.most and starting < len(self._waiting):
            self._workers.append(Worker(self.file))
            starting += 1
        for worker in self._workers:
            if worker.ready and worker.job is None and self._waiting:
                worker.give(self._waiting.popleft(), self.seconds)

    def _busy(self, worker: Worker) -> bool:
        return worker.job is not None or not worker.ready

    def _replace(self, worker: Worker, failure: str) -> None:
        self._workers.remove(worker)
        worker.end()
        if worker.job is None:
            if not worker.ready and not self._broken:
                self._broken = "it does not come up"
            return
        self.replaced += 1
        words = {"timeout": f"no result within {self.seconds:g} seconds", "died": "it ended"}
        worker.job.outcome = Outcome(words[failure], failure)

    def wait(self, seconds: float) -> None:
        """Wait until something arrives, but no longer than so many seconds; then `poll`."""
        busy = [worker for worker in self._workers if self._busy(worker)]
        if busy:
            now = time.monotonic()
            least = min(worker.deadline for worker in busy) - now
            with selectors.DefaultSelector() as selector:
                for worker in busy:
                    assert worker.process.stdout
                    selector.register(worker.process.stdout, selectors.EVENT_READ)
                selector.select(max(0.0, min(seconds, least)))
        self.poll()

    def close(self) -> None:
        """End the processes; a second time nothing is left to do."""
        atexit.unregister(self.close)
        self._waiting.clear()
        while self._workers:
            self._workers.pop().end()
