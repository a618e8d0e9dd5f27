"""The generation engine: rollouts, evaluation, inference and the server all use it.

    engine = Engine(model, tokenizer)
    engine.sync()                                  # after each update of the adapter
    groups = engine.generate(prompts, 8, Sampling(max_tokens=256), seed=0)   # (B, G) rollouts
    for piece in engine.stream(prompt, Sampling(max_tokens=256, temperature=0.0), seed=0): ...

A server drives it itself: `submit`, then `step` again and again, `cancel` when a client goes
(rlm.engine.batching, where the work is done). It does not know what a prompt means, and it is not
for several threads at once.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from rlm.engine.batching import ContinuousBatch
from rlm.engine.requests import Event
from rlm.engine.sampling import Sampling
from rlm.records import Prompt, Rollout
from rlm.seeds import derive

__all__ = ["Engine", "Event", "Sampling"]


class Engine(ContinuousBatch):
    """Samples from a transformers or PEFT model, whose own state it never changes.

    max_rows: sequences that run at once; others wait. cache_tokens: bound on rows times the
    longest possible sequence in the cache, None for what half of the free memory holds.
    version: of the weights it has, see `sync`. InputError for a model whose attention cannot be
    replaced.
    """

    version = 0

    def sync(self, version: int | None = None) -> None:
        """Take over the weights as they are now; version: their number from now on, if given."""
        super().sync()
        self.version = self.version if version is None else version

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
        """Return (B, G) rollouts: `samples` for each prompt, in order.

        Sample g of prompt b has the random numbers of derive(seed, number, g); the number is
        b itself unless `numbers` has another for each prompt: its place in a longer list.
        on_token: called with (b, g, token) for each token when it is sampled.
        InputError if a prompt and max_tokens are more than the model's context.
        """
        places: dict[int, tuple[int, int]] = {}
        rollouts: list[list] = [[None] * samples for _ in prompts]
        try:
            for b, prompt in enumerate(prompts):
                number = b if numbers is None else numbers[b]
                seeds = [derive(seed, number, g) for g in range(samples)]
                ids = self.submit(prompt, sampling, seeds, watch=on_token is not None)
                places |= {id: (b, g) for g, id in enumerate(ids)}
            for event in self._follow(places):
                b, g = places[event.id]
                if on_token and event.token is not None:
                    on_token(b, g, event.token)
                if event.rollout:
                    rollouts[b][g] = replace(event.rollout, version=self.version)
            return rollouts
        finally:
            self._abandon(places)

    def replay(self, prompt: Prompt, completions: list[list[int]]) -> None:
        """Run completions of a prompt again, token by token as they were sampled.

        For who watches the modules of `network`: CUDA graphs, which run none, are left out.
        """
        most = max(map(len, completions))
        graphs, self._runner.graphs = self._runner.graphs, None
        ids = self.submit(prompt, Sampling(most), [0] * len(completions), watch=True)
        self._replays = True
        try:
            for row, completion in zip(self._queue[-1].waiting, completions, strict=True):
                row.forced.extend(completion)
            for _ in self._follow(ids):
                pass
        finally:
            self._replays, self._runner.graphs = False, graphs
            self._abandon(ids)

    def stream(
        self, prompt: Prompt, sampling: Sampling, *, seed: int
    ) -> Generator[str, None, Rollout | None]:
        """Yield pieces that join to the text of generate([prompt], 1, sampling, seed=seed).

        The first is the prompt's prefill. Closing the iterator cancels the request; what it
        returns at its end is the rollout.
        """
        done: Rollout | None = None
        if prompt.prefill:
            yield prompt.prefill
        with closing(self.events(prompt, sampling, seed=seed)) as events:
            for event in events:
                done = event.rollout or done
                if event.text:
                    yield event.text
        return done

    def events(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Generator[Event]:
        """Yield the events of what `stream` yields the text of, calls of tools among them.

        The last one has the rollout. Closing the iterator cancels the request.
        """
        ids = self.submit(prompt, sampling, [derive(seed, 0, 0)], stream=True)
        try:
            yield from self._follow(ids)
        finally:
            self._abandon(ids)

    def _follow(self, ids: Iterable[int]) -> Iterator[Event]:
        """Step until these requests have ended and yield their events; keep those of others."""
        ids = set(ids)
        while ids:
            mine = [event for event in self._kept if event.id in ids]
            if mine:
                self._kept = [event for event in self._kept if event.id not in ids]
            elif not self.idle:
                self._kept += self.step()
            else:
                raise RuntimeError("the requests are gone: reset() was called while they ran")
            for event in mine:
                if event.rollout:
                    ids.discard(event.id)
                yield event

    def _abandon(self, ids: Iterable[int]) -> None:
        """Cancel what is left of these requests; free the cache if nothing else needs it."""
        ids = set(ids)
        for id in ids:
            self.cancel(id)
        self._kept = [event for event in self._kept if event.id not in ids]
        if self.idle:
            self.reset()
