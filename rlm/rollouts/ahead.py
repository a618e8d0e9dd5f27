"""The vLLM engine, one step ahead: the next step's answers are sampled while this one is learned.

    engine.generate_ahead(prompts, 8, sampling, seed=s)      # returns at once; a thread waits
    ...                                                      # the step is learned meanwhile
    engine.sync(version=step)                                # waits, then hands the adapter on
    groups = engine.generate(prompts, 8, sampling, seed=s)   # those answers, by their seed

So an adapter is only exchanged, and the canary only asked, while nothing is being sampled. What
was sampled ahead is one step older than what learns from it: `sampler` are the weights that made
it, to which the learner's ratio is. It does not know what is asked, nor what it earns.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

import torch

from rlm.engine.sampling import Sampling
from rlm.learner.logprobs import ReferencePolicy
from rlm.parallel import world
from rlm.records import Prompt, Rollout
from rlm.rollouts.vllm_engine import VllmEngine


@dataclass
class Ahead:
    """What was asked for ahead. seed: of the request. sampler: the weights that answer it.

    groups: the answers of all processes' prompts, as soon as they are there.
    """

    seed: int
    sampler: ReferencePolicy
    answers: Future | None = None
    groups: list[list[Rollout]] | None = None


class AheadEngine(VllmEngine):
    """Arguments as `VllmEngine`.

    sampler: the weights that sampled the last answers of `generate`, None where they are those of
    the learner as it is now.
    """

    sampler: ReferencePolicy | None = None
    _ahead: Ahead | None = None

    def generate_ahead(
        self,
        prompts: list[Prompt],
        samples: int,
        sampling: Sampling,
        *,
        seed: int,
        numbers: Sequence[int] | None = None,
    ) -> None:
        """Have `generate` with the same arguments find its answers there, from these weights."""
        assert self._ahead is None, "one request ahead at a time"
        self._ahead = Ahead(seed, ReferencePolicy(self._model))
        options: dict = {"seed": seed, "numbers": numbers}
        self._ahead.answers = in_thread(
            lambda: super(AheadEngine, self).generate(prompts, samples, sampling, **options)
        )

    def generate(
        self,
        prompts: list[Prompt],
        samples: int,
        sampling: Sampling,
        *,
        seed: int,
        numbers: Sequence[int] | None = None,
        on_token: Callable[[int, int, int], None] | None = None,
    ) -> list[list[Rollout]]:
        """Return (B, G) rollouts as `VllmEngine.generate`; those asked for ahead, by their seed."""
        self.wait()
        ahead = self._ahead
        if ahead is None or ahead.seed != seed:
            self.sampler = None
            options: dict = {"seed": seed, "numbers": numbers, "on_token": on_token}
            return super().generate(prompts, samples, sampling, **options)
        self.sampler, self._ahead = ahead.sampler, None
        assert ahead.groups is not None
        found = world().shard(ahead.groups)
        assert [len(group) for group in found] == [samples] * len(prompts)
        return found

    def sync(self, version: int | None = None) -> None:
        """Take over the adapter as it is now, after what is being sampled has been."""
        self.wait()
        super().sync(version)

    def wait(self) -> None:
        """Return when nothing is being sampled; raises what the sampling raised."""
        ahead = self._ahead
        if ahead is None or ahead.answers is None:
            return
        answers, ahead.answers = ahead.answers, None
        try:
            mine = answers.result()
        except BaseException:
            self._ahead = None
            raise
        ahead.groups = world().unshard(mine, "what was sampled ahead")

    def state(self) -> dict:
        """Return what was sampled ahead and not yet learned from, for a checkpoint.

        After `wait`: one process alone asks for it.
        """
        ahead = self._ahead
        if ahead is None:
            return {"ahead": None}
        assert ahead.groups is not None, "wait for the answers first"
        groups, sampler = [written(group) for group in ahead.groups], ahead.sampler.state()
        return {"ahead": {"seed": ahead.seed, "groups": groups, "sampler": sampler}}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned."""
        found = state["ahead"]
        if found is None:
            self._ahead = None
            return
        sampler = ReferencePolicy(self._model)
        sampler.restore(found["sampler"])
        groups = [read(group) for group in found["groups"]]
        self._ahead = Ahead(found["seed"], sampler, groups=groups)


def in_thread(work: Callable) -> Future:
    """Return the future result of `work`, in a thread that does not keep the program alive."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, it is raised where the result is asked for
            future.set_exception(error)

    Thread(target=run, name="sampling ahead", daemon=True).start()
    return future


def written(group: list[Rollout]) -> dict:
    """Return a group of rollouts as tensors and plain values."""
    return {
        "ids": [torch.tensor(rollout.ids) for rollout in group],
        "logprobs": [torch.tensor(r.logprobs, dtype=torch.float64) for r in group],
        "told": [[r.text, r.finish, r.version] for r in group],
    }


def read(found: dict) -> list[Rollout]:
    """Return the rollouts of what `written` returned."""
    parts = zip(found["ids"], found["logprobs"], found["told"], strict=True)
    return [Rollout(ids.tolist(), logprobs.tolist(), *told) for ids, logprobs, told in parts]
