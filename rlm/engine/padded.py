"""The model's own generate, for models that the layout attention does not serve.

transformers prepares everything that a family needs (its cache, masks, positions) and would then
sample by itself; `custom_generate` puts our steps in that place, as a Python generator that hands
out logits and takes tokens. So the sampling, its seeds, stops and streams are the engine's.

The prompts that join in one step are one call of generate, padded on the left where the family
can be padded; a prompt is read once for its group where the family's cache can be copied. What a
family can do is tried out by rlm.engine.support, which knows that nobody can list it.
"""

from collections.abc import Generator
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from rlm.engine.inference_model import evaluating
from rlm.engine.requests import Group, Row
from rlm.models.adapters import network_of
from rlm.models.lora_linear import fused


class PaddedRunner:
    """Makes the logits of running rows by one or several calls of generate.

    support: `rlm.engine.support.Support` of the model. max_rows: bound of the rows.
    """

    graphs = None  # there are none
    goes_on = False  # a row that has a result begins again, with a longer prompt

    def __init__(self, model, support, *, max_rows: int):
        self.network = network_of(model)
        self.support, self.max_rows = support, max_rows
        self._calls: list[Call] = []

    def sync(self) -> None:
        """Nothing: the weights that learn are those that run."""

    def clear(self) -> None:
        """End all calls and give their caches back."""
        self._calls = []

    def release(self) -> None:
        """The same: nothing else is held."""
        self.clear()

    def expect(self, tokens: int) -> None:
        """Nothing: a call's cache grows with its rows."""

    def room(self, tokens: int) -> int:
        """Return the tokens that a row takes in the cache which may have so many."""
        return tokens

    def joins(self, group: Group, rows: list[Row], free: int, waiting: int) -> bool:
        """Return whether a group may join now.

        A new call of generate is worth it for many rows, or where none is waiting behind them. A
        family whose cache cannot be copied has one call at a time, of prompts of one length.
        """
        fresh = not self._calls
        if not self.support.copies:
            length = len(group.prompt.ids)
            return fresh and all(len(row.group.prompt.ids) == length for row in rows)
        return fresh or free >= min(waiting, self.max_rows // 2)

    def sample(self, old, admitted, new, waiting: int, draws) -> torch.Tensor:
        """Return [2, n] float32, as `rlm.engine.sampling.Draws.take`, of all rows."""
        return draws.take(self.logits(old, admitted, new, waiting))

    def logits(
        self, old: list[Row], admitted: list[tuple[Group, int]], new: list[Row], waiting: int
    ) -> torch.Tensor:
        """Return the logits [n, V] behind all rows, the admitted ones last, as the rows are given.

        admitted: groups, and how many of their rows are in `new`, in order.
        """
        parts, rows = [], []
        with evaluating(self.network), fused(self.network):
            for call in self._calls:
                parts.append(call.step())
                rows += call.rows
            for members in self._batches(admitted, new):
                call = Call(self.network, members, self.support)
                self._calls.append(call)
                parts.append(call.start())
                rows += call.rows
        places = {row.id: place for place, row in enumerate(rows)}
        order = torch.tensor([places[row.id] for row in [*old, *new]])
        for row in old:
            row.cached += 1
        return torch.cat(parts).index_select(0, order.to(parts[0].device))

    def save(self, place: int, tokens: int) -> None:
        """Keep nothing of a row that leaves for a while."""

    def restore(self, rows: list[Row], row: Row, kept, waiting: int) -> None:
        raise AssertionError("a row of which nothing was kept begins again")

    def retire(self, rows: list[Row]) -> None:
        """Let rows go; a call whose rows have all gone ends."""
        gone = {row.id for row in rows}
        for call in self._calls:
            call.gone |= gone
        self._calls = [call for call in self._calls if call.left]

    def move(self, sources: list[int], targets: list[int], width: int) -> None:
        """Nothing: a call knows its rows by their ids."""

    def _batches(self, admitted, new: list[Row]) -> list[list[list[Row]]]:
        """Return the rows of each new call, by their prompts; of one length if nothing pads."""
        batches: dict[int, list[list[Row]]] = {}
        start = 0
        for group, count in admitted:
            length = 0 if self.support.pads else len(group.prompt.ids)
            batches.setdefault(length, []).append(new[start : start + count])
            start += count
        return list(batches.values())


class Call:
    """One call of generate: rows that began together. members: its rows, a list for each prompt.

    rows: those that it still runs, in the order of its logits. gone: ids of those that ended.
    """

    def __init__(self, network, members: list[list[Row]], support):
        self.network, self.support = network, support
        self.rows = [row for prompt in members for row in prompt]
        self.gone: set[int] = set()
        # What is read: each prompt once, or once for each row if the cache cannot be copied.
        heads = [prompt[0] for prompt in members] if support.copies else self.rows
        counts = [len(prompt) for prompt in members]
        self._spread = torch.arange(len(heads))
        if support.copies:
            self._spread = self._spread.repeat_interleave(torch.tensor(counts))
        most = max(row.sampling.max_tokens for row in self.rows)
        self._steps = begin(network, [row.group.prompt.ids for row in heads], most, support)

    @property
    def left(self) -> bool:
        """Whether a row has not ended."""
        return any(row.id not in self.gone for row in self.rows)

    def start(self) -> torch.Tensor:
        """Return the logits [n, V] behind the prompts, one for each row."""
        logits = next(self._steps)
        return logits.index_select(0, self._spread.to(logits.device))

    def step(self) -> torch.Tensor:
        """Return the logits [n, V] behind each row's last token; rows that ended are left out."""
        keep = self._spread if self._spread is not None and self.support.copies else None
        ended = [index for index, row in enumerate(self.rows) if row.id in self.gone]
        # To leave rows out is a copy of the cache: worth it for some of them only.
        if self.support.copies and 8 * len(ended) >= len(self.rows):
            places = [i for i, row in enumerate(self.rows) if row.id not in self.gone]
            self.rows = [self.rows[i] for i in places]
            kept = torch.tensor(places)
            keep = kept if keep is None else keep[kept]
        self._spread = None
        return self._steps.send((keep, [row.ids[-1] for row in self.rows]))


def begin(
    network, prompts: list[list[int]], max_tokens: int, support
) -> Generator[torch.Tensor, Any, None]:
    """Return the steps of a call of generate on prompts, which are padded on the left.

    The first step gives the logits [prompts, V] behind them; `send((keep, tokens))` gives those
    behind the tokens, one for each of the rows `keep` (a tensor of indices, None for all).
    """
    device = network.get_input_embeddings().weight.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        use_cache=support.caches,
        pad_token_id=0,
    )
    if getattr(network.generation_config, "cache_implementation", None):
        settings.cache_implementation = "dynamic"
    return network.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=settings,
        custom_generate=_steps,
    )


def _steps(
    model, input_ids, logits_processor, stopping_criteria, generation_config, **given
):  # fmt: skip
    """Yield logits as `begin` has them; in the place of transformers' own loop (`_sample`)."""
    outputs = model._prefill(input_ids, generation_config, given)
    while True:
        given = model._update_model_kwargs_for_generation(outputs, given)
        logits = outputs.logits[:, -1].clone()
        del outputs  # of a prompt they may be large
        keep, tokens = yield logits
        if keep is not None:
            keep = keep.to(input_ids.device)
            rows, input_ids = len(input_ids), input_ids.index_select(0, keep)
            given = {name: _select(value, keep, rows) for name, value in given.items()}
        more = torch.tensor(tokens, device=input_ids.device)[:, None]
        input_ids = torch.cat([input_ids, more], dim=1)
        length = 1 if given["use_cache"] else None
        inputs = model.prepare_inputs_for_generation(
            input_ids, next_sequence_length=length, **given
        )
        outputs = model(**inputs, return_dict=True)


def _select(value, keep: torch.Tensor, rows: int):
    """Return the rows `keep` of what generate carries along: a cache (in place), or a tensor."""
    if isinstance(value, Cache):
        value.reorder_cache(keep)
    elif isinstance(value, torch.Tensor) and value.dim() and len(value) == rows:
        return value.index_select(0, keep)
    return value
