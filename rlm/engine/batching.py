"""Continuous batching: requests wait in a queue, join the running rows, and leave when they end.

A step is one forward: a token for each running row, and the prompts that join. A prompt is
prefilled once for all its samples. Each request has its own random numbers, so it gets the
same tokens whatever runs beside it (but for the rounding of matrix products).
"""

import math
from collections import deque
from itertools import chain

import torch

from rlm.engine.inference_model import context_tokens, stop_ids
from rlm.engine.kv_cache import Prefix
from rlm.engine.requests import Event, Group, Row, uniforms
from rlm.engine.sampling import Draws, Mix, Sampling
from rlm.engine.support import open_runner
from rlm.engine.tool_calls import Calls
from rlm.engine.tool_rows import WAIT_SECONDS, ToolRows
from rlm.errors import InputError, RunError
from rlm.models.adapters import network_of
from rlm.models.memory import cache_tokens as fitting_tokens
from rlm.models.memory import most_rows
from rlm.models.text_stream import TextStream
from rlm.records import Choice, Prompt


class ContinuousBatch(ToolRows):
    """The engine step by step; see rlm.engine.engine for what the arguments mean.

    prefill_tokens: prompt tokens of one step; a longer prompt goes alone, in one piece.
    admissions: requests that may join in one step, None for all that fit.
    max_rows: None for as many as the device serves (rlm.models.memory.most_rows).
    cuda_graphs: decode by rlm.engine.cuda_graphs where the model is on CUDA.
    transformers: sample by the model's own generate, as where nothing else serves the model
        (rlm.engine.support); the learner then pads, too.
    """

    def __init__(
        self,
        model,
        tokenizer,
        *,
        max_rows: int | None = None,
        cache_tokens: int | None = None,
        prefill_tokens: int = 4096,
        admissions: int | None = None,
        cuda_graphs: bool = True,
        transformers: bool = False,
    ):
        if max_rows is not None and max_rows < 1:
            raise InputError(f"max_rows {max_rows}: at least 1 row is needed")
        network = network_of(model)
        max_rows = max_rows or most_rows(network)
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.prefill_tokens, self.admissions = prefill_tokens, admissions or max_rows
        self._dtype = str(network.dtype).removeprefix("torch.")
        self.cache_tokens = cache_tokens or fitting_tokens(network)
        self.context_tokens = context_tokens(network)
        self.stop_ids = stop_ids(network, tokenizer)
        self._vocabulary = min(len(tokenizer), network.get_input_embeddings().num_embeddings)
        limits = {"max_rows": max_rows, "cache_tokens": self.cache_tokens}
        self._runner = open_runner(
            model, transformers=transformers, cuda_graphs=cuda_graphs, **limits
        )
        self._queue: deque[Group] = deque()
        self._rows: list[Row] = []
        self._parked: list[tuple[Row, Prefix | None]] = []
        self._mix: Mix | None = None  # of the rows as they stand
        self._kept: list[Event] = []
        self._replays = False  # whether rows have all their tokens put in
        self._last_id = 0

    @property
    def network(self):
        """The network whose modules run."""
        return self._runner.network

    @property
    def idle(self) -> bool:
        return not self._rows and not self._queue and not self._parked

    @property
    def running(self) -> list[int]:
        """The ids of the requests that have a row, or wait for a tool with theirs."""
        return [row.id for row in (*self._rows, *(row for row, _ in self._parked))]

    @property
    def waiting(self) -> list[int]:
        """The ids of the requests in the queue."""
        return [row.id for group in self._queue for row in group.waiting]

    def sync(self) -> None:
        """Take over the model's weights as they are now; RuntimeError while requests run."""
        if self._rows or self._parked:
            raise RuntimeError("sync() while requests are running: their cache would be stale")
        for group in self._queue:
            group.forget()
        self._runner.sync()

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling,
        seeds: list[int],
        *,
        stream: bool = False,
        watch: bool = False,
    ) -> list[int]:
        """Queue one request per seed, all with the same prompt; return their ids.

        stream: its events carry text. watch: there is an event for each token (so with stream).
        InputError for a prompt that is empty, too long, or not of this model.
        """
        self._check(prompt, sampling)
        group = Group(prompt)
        for seed in seeds:
            self._last_id += 1
            followed = stream or sampling.stop or sampling.closing or sampling.tools
            text = TextStream(self.tokenizer, sampling.stop) if followed else None
            tools, watched = sampling.tools, stream or watch
            calls = Calls(tools.bound(self.tokenizer), len(prompt.prefill)) if tools else None
            row = Row(self._last_id, group, sampling, uniforms(seed), watched, text, calls=calls)
            group.waiting.append(row)
        if group.waiting:
            self._queue.append(group)
            self._runner.expect(group.waiting[0].most)
        return [row.id for row in group.waiting]

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Admit what fits, sample a token for each row, retire what has ended.

        Return the events of watched requests and of those that ended, none if all is idle. Rows
        that wait for a tool are left out until it has answered.
        After an exception its rows are gone (as by `reset`); waiting requests stay. RunError for
        logits that are not finite.
        """
        try:
            answered = self._rejoin() if self._parked else []
            old = list(self._rows)
            admitted = self._admit()
            if not self._rows:
                if self._parked and not answered:
                    self._toolboxes()[0].wait(WAIT_SECONDS)
                return answered
            draws, new = self._draws(), self._rows[len(old) :]
            drawn = self._runner.sample(old, admitted, new, self._queued, draws)
            drawn = drawn.cpu()  # the one time that the host waits for the device
            tokens, logprobs = drawn[0].int().tolist(), drawn[1].tolist()
            self._check_finite(logprobs, draws.due)
            return answered + self._record(tokens, logprobs, drawn[2:])
        except BaseException:
            self.reset()
            raise

    def _draws(self) -> Draws:
        """Return what the rows draw with in this step."""
        if self._mix is None:
            self._mix = Mix([row.sampling for row in self._rows])
        due = {}
        if self._mix.closes or self._replays:
            due = {index: row.forced[0] for index, row in enumerate(self._rows) if row.forced}
        numbers = list(map(next, [row.uniforms for row in self._rows]))
        return Draws(numbers, self._mix, self._vocabulary, due)

    @property
    def _queued(self) -> int:
        """How many requests have no row yet."""
        return sum(len(group.waiting) for group in self._queue)

    @torch.inference_mode()
    def cancel(self, id: int) -> Event | None:
        """End a request now; return its last event with what it has so far, None if unknown."""
        for index, row in enumerate(self._rows):
            if row.id == id:
                self._retire([index])
                return row.end("cancelled", self.tokenizer)
        for place, (row, _) in enumerate(self._parked):
            if row.id == id:
                del self._parked[place]
                return row.end("cancelled", self.tokenizer)
        for group in self._queue:
            for row in group.waiting:
                if row.id == id:
                    group.waiting.remove(row)
                    if not group.waiting:
                        self._queue.remove(group)
                    return row.end("cancelled", self.tokenizer)
        return None

    def reset(self) -> None:
        """Drop all running rows and the cache's memory; waiting requests stay.

        With CUDA graphs the cache stays unless it takes much of the card: they would have to be
        captured again for another one. See `close`.
        """
        self._drop_rows()
        self._runner.clear()

    def _drop_rows(self) -> None:
        for row, _ in self._parked:
            assert row.calls is not None
            row.calls.drop()
        self._rows, self._parked, self._mix = [], [], None

    def close(self) -> None:
        """Drop all requests, the cache and what was made of the weights; nothing runs any more.

        In bfloat16 and float16 the engine's layers hold the model's own tensors: as long as they
        live, moving the model away from a GPU frees nothing there.
        """
        self._drop_rows()
        self._queue.clear()
        self._kept = []
        if runner := self.__dict__.pop("_runner", None):
            runner.release()

    def _check(self, prompt: Prompt, sampling: Sampling) -> None:
        more = sampling.tools.bound(self.tokenizer).room if sampling.tools else 0
        tokens, most = len(prompt.ids), len(prompt.ids) + sampling.max_tokens + more
        if not tokens:
            raise InputError("the prompt is empty; it needs at least one token")
        if not all(0 <= id < self._vocabulary for id in prompt.ids):
            raise InputError(
                f"the prompt has ids up to {max(prompt.ids)}, the model knows 0 to "
                f"{self._vocabulary - 1}; use the model's own tokenizer"
            )
        for limit, name in ((self.context_tokens, "context"), (self.cache_tokens, "cache")):
            if limit and most > limit:
                room = limit - tokens - more
                advice = f"use max_tokens {room} or less" if room > 0 else "shorten the prompt"
                results = f", with {more} for the results of tools," if more else ""
                raise InputError(
                    f"a prompt of {tokens} tokens and max_tokens {sampling.max_tokens}{results} "
                    f"are more than the {name} of {limit} tokens; {advice}"
                    + (", or fewer calls, or shorter results" if more else "")
                )

    def _admit(self) -> list[tuple[Group, int]]:
        """Give rows to waiting requests, in order; return the groups and how many of each."""
        admitted: list[tuple[Group, int]] = []
        held = len(self._parked)  # they come back
        if not self._queue or len(self._rows) + held >= self.max_rows:
            return admitted
        budget, tokens = self.admissions, 0
        rows = chain(self._rows, (row for row, _ in self._parked))
        most = max((row.most for row in rows), default=0)
        while self._queue and budget:
            group = self._queue[0]
            if group.prefix is None:
                tokens += len(group.prompt.ids)
                if admitted and tokens > self.prefill_tokens:
                    break
            most = max(most, group.waiting[0].most)
            room = self.max_rows
            if self.cache_tokens:
                room = min(room, max(1, self.cache_tokens // self._runner.room(most)))
            free = room - len(self._rows) - held
            count = min(free, len(group.waiting), budget)
            if count <= 0 or not self._runner.joins(group, self._rows, free, self._queued):
                break
            admitted.append((group, count))
            budget -= count
            for _ in range(count):
                row = group.waiting.popleft()
                row.cached = len(group.prompt.ids)
                self._rows.append(row)
            self._mix = None
            if not group.waiting:
                self._queue.popleft()
        return admitted

    def _check_finite(self, logprobs: list[float], due: dict[int, int]) -> None:
        """RunError if a row's logits were NaN or infinite: its log-probability is not finite then.

        due: rows whose token was put in; one that a model rules out has minus infinity.
        """
        if math.isfinite(sum(logprobs)):
            return
        wrong = [
            index
            for index, logprob in enumerate(logprobs)
            if not math.isfinite(logprob) and (index not in due or math.isnan(logprob))
        ]
        if not wrong:
            return
        row = self._rows[wrong[0]]
        others = "bfloat16 or float32" if self._dtype == "float16" else "float32"
        dtype = "" if self._dtype == "float32" else f"use --dtype {others}; "
        raise RunError(
            f"request {row.id}: the logits of its token {len(row.ids) + 1} are not finite in "
            f"{self._dtype} ({len(wrong)} of {len(self._rows)} rows of this step), so no token can "
            f"be drawn; {dtype}if an adapter was trained, train it with a lower --learning-rate"
        )

    def _record(
        self, tokens: list[int], logprobs: list[float], chosen_from: torch.Tensor
    ) -> list[Event]:
        """Give each row its token; return the events and retire the rows that have ended.

        chosen_from: of `rlm.engine.sampling.chosen_from`; no rows where nobody asks for it.
        """
        events: list[Event] = []
        ended, called, stop_ids = [], [], self.stop_ids
        choices = self._choices(chosen_from) if len(chosen_from) else [None] * len(tokens)
        taken = zip(self._rows, tokens, logprobs, strict=True)
        for index, (row, token, logprob) in enumerate(taken):
            # As `take` does it for most tokens, of which there are some hundred in a step.
            if row.quiet and token not in stop_ids and len(row.ids) < row.last:
                row.ids.append(token)
                row.logprobs.append(logprob)
                continue
            event = row.take(token, logprob, self.tokenizer, stop_ids, choices[index])
            if event is not None:
                events.append(event)
                if event.rollout is not None:
                    ended.append(index)
            if row.calls is not None and row.calls.job is not None:
                called.append(index)
        left = self._answer(called, events) if called else []
        if ended or left:
            self._retire(sorted(ended + left))
        return events

    def _choices(self, chosen_from: torch.Tensor) -> list[Choice | None]:
        """Return what each row's token was chosen from, None for a row that does not ask."""
        logprobs, count = chosen_from[0].tolist(), len(chosen_from) // 2
        ids, values = chosen_from[1 : 1 + count].int().T.tolist(), chosen_from[1 + count :].T
        found: list[Choice | None] = []
        for row, logprob, names, own in zip(
            self._rows, logprobs, ids, values.tolist(), strict=True
        ):
            k = row.sampling.top_logprobs
            told = k is not None
            found.append(Choice(logprob, list(zip(names, own, strict=True))[:k]) if told else None)
        return found

    def _retire(self, indices: list[int]) -> None:
        """Take rows out: the last ones move into the holes."""
        gone = set(indices)
        left = len(self._rows) - len(gone)
        holes = [index for index in indices if index < left]
        movers = [index for index in range(left, len(self._rows)) if index not in gone]
        self._runner.retire([self._rows[index] for index in indices])
        if holes:
            width = max(self._rows[index].cached for index in movers)
            self._runner.move(movers, holes, width)
            for hole, mover in zip(holes, movers, strict=True):
                self._rows[hole] = self._rows[mover]
        del self._rows[left:]
        self._mix = None
