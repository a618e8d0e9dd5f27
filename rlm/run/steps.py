"""The steps of a training: from where a checkpoint ended, to a last one, a signal or a time.

    steps = Steps(run, {"optimizer": optimizer, ...}, facts, last=32, save_every=10)
    for step in steps:
        ...                    # the step; whatever it changes is one of the parts

Each part has `state()`, nested dictionaries and lists of plain values and tensors, and
`restore(state)`, after which it is what it was. It knows nothing of what a step does.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rlm.errors import Stopped, command
from rlm.parallel import world
from rlm.preflight.forecast import duration
from rlm.run import checkpoint
from rlm.run.stopping import StopSignal
from rlm.run.time_budget import TimeBudget

logger = logging.getLogger("rlm")


class RunState:
    """How far a run has come, and what it takes to go on from there.

    run: the folder of the run. parts: what changes from step to step. facts: what may not change
    between a stop and its resumption. last: the last step. found: the checkpoint to go on from.
    best: returns the step whose checkpoint is kept whatever its age.
    """

    def __init__(
        self,
        run: Path,
        parts: dict,
        facts: dict,
        *,
        last: int,
        found: checkpoint.Checkpoint | None = None,
        best: Callable[[], int] = lambda: 0,
    ):
        self.run, self.facts, self.last, self._best = run, facts, last, best
        self.parts = {"random": RandomState(), **parts}
        self.found, self.step = found, 0  # the step: the last one that is done

    @property
    def fresh(self) -> bool:
        """True before the first step of a run that goes on from nothing."""
        return self.step == 0

    def restore(self) -> None:
        """Put the state of the checkpoint, if there is one, into the parts.

        The first process reads it; the others need not see its disk.
        """
        if self.found:
            state = self.found.load() if world().first else None
            state = world().broadcast(state, "the state of the checkpoint")
            for name, part in self.parts.items():
                part.restore(state[name])
            self.step = self.found.step

    def save(self, **texts: str) -> None:
        """Write a checkpoint of what the parts are now; texts: more files, name -> content.

        The first process writes it.
        """
        if not world().first:
            return
        state = {name: part.state() for name, part in self.parts.items()}
        best = self._best()
        checkpoint.save(self.run, self.step, state, self.facts, best=best, texts=texts)

    def stopped(self, code: int) -> Stopped:
        """Return the error that ends a script after a signal, with what goes on from here."""
        return Stopped(
            code,
            f"stopped after step {self.step} of {self.last}, all of it saved in {self.run}; "
            f"go on with: {command(sys.argv)}",
        )


class Steps(RunState):
    """Yields the number of each step, counted from 1; goes on from the checkpoint at once.

    save_every: steps between checkpoints; 0 for none but where it is stopped. reserve: returns
    the seconds that are needed after the last step. With a budget `last` becomes the last step
    that fits, and may fall and rise.
    """

    def __init__(
        self,
        *arguments,
        save_every: int = 0,
        budget: TimeBudget | None = None,
        reserve: Callable[[], float] = lambda: 0.0,
        **options,
    ):
        super().__init__(*arguments, **options)
        self._limit, self._save_every = self.last, save_every
        self._budget, self._reserve = budget, reserve
        self.parts["end"] = self._end = End()
        self.restore()
        if self._end.reached:
            self.last = self.step

    def __iter__(self) -> Iterator[int]:
        """Yield each step; Stopped after the one in which a signal came, its state saved."""
        with StopSignal() as stopper:
            began = time.monotonic()
            while self.step < self.last:
                yield self.step + 1
                self.step += 1
                requested = stopper.anywhere()
                due = self._save_every and self.step % self._save_every == 0
                if due or requested or (self._save_every and self.step == self.last):
                    self.save()
                if requested:
                    world().barrier("the checkpoint of a stopped run")
                    raise self.stopped(requested)
                began, taken = time.monotonic(), time.monotonic() - began
                if self._budget and self.step < self.last:
                    self._fit(self._budget, taken)

    def end(self) -> None:
        """Make the step that is being taken the last one."""
        self.last, self._end.reached = self.step + 1, True

    def _fit(self, budget: TimeBudget, seconds: float) -> None:
        """Set the last step to the last one that fits; to this one if no other does."""
        before, more = self.last, budget.after_step(seconds, self._reserve())
        self.last = min(self._limit, self.step + world().broadcast(more, "the time that is left"))
        if self.last != before:
            left = duration(max(0.0, budget.left()))
            logger.info("time left %s: %d of %d steps done", left, self.step, self.last)


class End:
    """Whether a run was ended before its last step."""

    def __init__(self):
        self.reached = False

    def state(self) -> dict:
        return {"reached": self.reached}

    def restore(self, state: dict) -> None:
        self.reached = state["reached"]


class RandomState:
    """torch's own generators, which dropout and new weights draw from."""

    def state(self) -> dict:
        import torch

        return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}

    def restore(self, state: dict) -> None:
        import torch

        torch.set_rng_state(state["cpu"])
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])


class Trained:
    """The weights of a model that learn, by name."""

    def __init__(self, model):
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def state(self) -> dict:
        return {name: weight.detach() for name, weight in self.weights.items()}

    def restore(self, state: dict) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[name])
