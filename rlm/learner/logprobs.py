"""Log-probabilities of sampled completions, with gradients, in bounded memory.

Groups are packed: each prompt stands once in a flat row, its completions after it, no padding
(`rlm.learner.packed_groups`); what a group has several times can stand there once, too. Logits
exist at completion positions only, a chunk at a time (`rlm.learner.lm_head`), so memory does not
grow with tokens * vocabulary.
It does not know about rewards or losses. Any transformers causal LM, with or without PEFT.
"""

from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import compress, pairwise

import torch

from rlm.engine import support
from rlm.engine.inference_model import obstacle
from rlm.learner import padded
from rlm.learner.lm_head import GRADIENT, NOTHING, VALUES, LMHead, OwnLogits
from rlm.learner.packed_groups import PackedGroups
from rlm.models import attention, rms_norm, states
from rlm.models.adapters import network_of
from rlm.models.lora_linear import fused

Group = tuple[list[int], list[list[int]]]  # a prompt's ids, its completions' ids
Flags = Sequence[Sequence[bool]]  # of each completion which of its tokens are targets


@dataclass(frozen=True)
class Packed:
    """Groups as one flat row of T tokens, with the N completion tokens to be predicted.

    ids, positions: [T], the prompts, then every (distinct) completion but its last token.
    targets: [N] the completion tokens; order: groups, then samples, then tokens.
    sequence: [N] each target's completion, counted from 0; lengths: targets of each completion.
    rows: [U] the distinct places of the row that predict something: the last one of a prompt
        predicts the first token of all its completions.
    by_row: [N] the targets in the order of the rows that predict them; row_of: [N], beside it,
        indices into `rows`, ascending, kept on the CPU.
    groups, learned: what was packed, for a model that is padded (rlm.learner.padded).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    sequence: torch.Tensor
    lengths: tuple[int, ...]
    rows: torch.Tensor
    by_row: torch.Tensor
    row_of: torch.Tensor
    layout: PackedGroups
    groups: list[Group]
    learned: Flags | None = None

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """Return [N] from one value per completion, e.g. its advantage."""
        return values.to(self.targets.device)[self.sequence]


def pack(groups: list[Group], *, learned: Flags | None = None, once=False, device="cpu") -> Packed:
    """Return the groups as one flat row. ValueError for an empty prompt or completion.

    A completion's last token is a target but no input: nothing follows from it.
    learned: the targets, one at least of each; the others are seen alone, as what a tool wrote.
    once: what a group has several times stands there once; else each time, as budgets count it.
    """
    for index, (prompt, completions) in enumerate(groups):
        if not prompt or not completions or not all(completions):
            raise ValueError(
                f"group {index}: {len(prompt)} prompt tokens, completions of "
                f"{[len(c) for c in completions]} tokens; each needs at least 1"
            )
    prompts = [prompt for prompt, _ in groups]
    ids = [token for prompt in prompts for token in prompt]
    positions = [place for prompt in prompts for place in range(len(prompt))]
    ends = torch.tensor([len(prompt) for prompt in prompts]).cumsum(0).sub(1).tolist()
    lengths = [len(completion) for _, completions in groups for completion in completions]
    owners = [index for index, (_, completions) in enumerate(groups) for _ in completions]
    targets = [token for _, completions in groups for c in completions for token in c]
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    # The longest completions stand first: the attention pads those of like length together.
    sources, inputs = [0] * len(targets), []
    begins: dict[tuple, int] = {}  # where the inputs of a completion stand already
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        owner, more = owners[row], lengths[row] - 1
        first, length = starts[row], len(prompts[owner])
        own = targets[first : first + more]
        begin = begins.setdefault((owner, *own), len(ids)) if once else len(ids)
        sources[first : first + more + 1] = [ends[owner], *range(begin, begin + more)]
        if more and begin == len(ids):
            ids += own
            positions += range(length, length + more)
            inputs.append((owner, more))
    if learned is not None:
        kept = [flag for flags, _ in zip(learned, lengths, strict=True) for flag in flags]
        sources, targets = list(compress(sources, kept)), list(compress(targets, kept))
        lengths = [sum(flags) for flags in learned]
    rows, row_of = torch.tensor(sources).unique(return_inverse=True)
    row_of, by_row = row_of.sort(stable=True)
    place = {"device": device, "dtype": torch.long}
    return Packed(
        ids=torch.tensor(ids, **place),
        positions=torch.tensor(positions, **place),
        targets=torch.tensor(targets, **place),
        sequence=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(device),
        lengths=tuple(lengths),
        rows=rows.to(device),
        by_row=by_row.to(device),
        row_of=row_of,
        layout=PackedGroups([len(p) for p in prompts], inputs, device),
        groups=groups,
        learned=learned,
    )


def micro_batches(
    groups: list[Group], token_budget: int, *, shared: bool = True
) -> list[list[tuple[int, slice]]]:
    """Return parts that each pack into at most `token_budget` tokens.

    shared: a prompt counts once for its completions, as where groups are packed (`packs`).
    A part's pieces are (index of a group, slice of its completions). A group larger than the
    budget is cut, its prompt standing in each piece; only what has a single completion may be
    larger. Pieces of like length share a part, since attention pads inside it. ValueError for a
    budget below 1.

    >>> micro_batches([([1] * 6, [[1] * 5]), ([1], [[1, 1]]), ([1] * 4, [[1]])], 6)
    [[(2, slice(0, 1, None)), (1, slice(0, 1, None))], [(0, slice(0, 1, None))]]
    >>> micro_batches([([1] * 4, [[1] * 3] * 5)], 8)  # 4 + 2 * 2 tokens
    [[(0, slice(4, 5, None))], [(0, slice(0, 2, None))], [(0, slice(2, 4, None))]]
    """
    if token_budget < 1:
        raise ValueError(f"token budget {token_budget}: must be at least 1 token")
    # Longest completion, tokens, index of the group, its completions.
    pieces: list[tuple[int, int, int, slice]] = []
    for index, (prompt, completions) in enumerate(groups):
        each = 0 if shared else len(prompt)
        once, costs = len(prompt) - each, [each + len(c) for c in completions]
        for cut in _pieces(once, costs, token_budget):
            lengths = [len(c) for c in completions[cut]]
            tokens = once + sum(costs[cut]) - len(lengths)
            pieces.append((max(lengths), tokens, index, cut))
    parts: list[list[tuple[int, slice]]] = []
    room = 0
    for _, tokens, index, cut in sorted(pieces, key=lambda piece: piece[:2]):
        if not parts or tokens > room:
            parts.append([])
            room = token_budget
        parts[-1].append((index, cut))
        room -= tokens
    return parts


def _pieces(prompt: int, lengths: list[int], budget: int) -> list[slice]:
    """Return the fewest slices of the completions that fit into the budget with their prompt."""
    cuts, start, used = [], 0, prompt
    for place, length in enumerate(lengths):
        if place > start and used + length - 1 > budget:
            cuts.append(slice(start, place))
            start, used = place, prompt
        used += length - 1
    return [*cuts, slice(start, len(lengths))]


USED = "_rlm_used"  # set on a model inside `use`


@contextmanager
def use(model):
    """Run `model` as the learner does: the layout's attention where it serves, fused layers.

    A backward that runs layers again, by gradient checkpointing, has to be inside too.
    """
    base = network_of(model)
    with _prepared(base, way_of(base)):
        before, base.__dict__[USED] = base.__dict__.get(USED, False), True
        try:
            yield model
        finally:
            base.__dict__[USED] = before


@contextmanager
def _prepared(base, way: str):
    """The same for one of the ways of `way_of`; inside `use` nothing is left to do."""
    with ExitStack() as stack:
        if not base.__dict__.get(USED):
            if way == PACKED:
                stack.enter_context(attention.use(base))
                stack.enter_context(states.use(base))
            stack.enter_context(fused(base))
            stack.enter_context(rms_norm.use(base))
        yield


def token_logprobs(
    model,
    packed: Packed,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    statistics: bool = False,
    entropy_gradient: bool = False,
    vocab_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (log-probabilities [N] of `packed.targets`, entropies [N] or None), nats.

    In float32, of softmax(logits / temperature) before any top-k or top-p; with gradient unless
    under torch.no_grad(). Entropies only with `statistics`, detached, or with `entropy_gradient`.
    chunk: rows of logits held at once, None for as many as are good here
    (`rlm.learner.lm_head`). vocab_size: tokens the tokenizer knows; rows of the head from there on
    count as impossible, as in the engine, or ratios would not be 1.
    With gradient checkpointing in the model, forward and backward must both run inside
    `rlm.learner.logprobs.use(model)`: the backward runs the attention again. ValueError otherwise.
    """
    wanted = GRADIENT if entropy_gradient else VALUES if statistics else NOTHING
    more: dict = {"temperature": temperature, "chunk": chunk, "vocab_size": vocab_size}
    logprobs, found = _logprobs(model, packed, wanted=wanted, **more)
    return logprobs, None if found is None else found[0]


def token_statistics(
    model, packed: Packed, **options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (log-probabilities, entropies, likeliest), each [N], the last two detached.

    options: of `token_logprobs`. likeliest is 1 where the target is the likeliest token, else 0.
    """
    logprobs, found = _logprobs(model, packed, wanted=VALUES, **options)
    assert found is not None
    return logprobs, found[0], found[1]


def _logprobs(
    model, packed: Packed, *, temperature: float = 1.0, **options
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (log-probabilities [N], statistics [2, N] as `LMHead.logprobs` makes them or None)."""
    if temperature <= 0:
        raise ValueError(f"temperature {temperature}: must be above 0 (greedy has no gradient)")
    base = network_of(model)
    return _by_way(way_of(base), base, packed, temperature=temperature, **options)


def packs(model) -> bool:
    """Return whether groups of a model are packed; else each completion stands with its prompt."""
    base = network_of(model)
    return way_of(base) == PACKED


def _by_way(
    way: str, base, packed, *, temperature=1.0, chunk=None, wanted=NOTHING, vocab_size=None
):
    """The same as `_logprobs`, in one of the ways of `way_of`."""
    _check(base)
    with _prepared(base, way):
        if way == PACKED:
            states.holder_of(base).layout = packed.layout
            hidden = base.get_decoder()(
                input_ids=packed.ids[None],
                position_ids=packed.positions[None],
                use_cache=False,
                layout=packed.layout,
            ).last_hidden_state[0]
        else:
            hidden = padded.states(base, packed, logits=way == LOGITS)
    if way == PACKED:
        hidden = hidden.index_select(0, packed.rows)  # [U, H]
        by_row, row_of = packed.by_row, packed.row_of
    else:
        by_row = torch.arange(len(hidden), device=packed.ids.device)
        row_of = torch.arange(len(hidden))
    if way == LOGITS:
        head: LMHead = OwnLogits(temperature, vocab_size or hidden.shape[-1])
    else:
        head = LMHead(base, temperature, vocab_size)
    chunk = chunk or head.chunk
    starts = list(range(0, len(hidden), chunk))
    places = row_of.tolist()
    cuts = [bisect_left(places, start) for start in (*starts, len(hidden))]
    row_of, targets = row_of.to(hidden.device), packed.targets[by_row]
    made = []
    # A slice's backward would make zeros of the whole for each chunk: split has one for all.
    pieces = hidden.split(chunk)
    for own, start, (first, last) in zip(pieces, starts, pairwise(cuts), strict=True):
        part = own, targets[first:last], row_of[first:last] - start
        made.append(head.logprobs(*part, wanted))
    order = by_row.argsort()
    logprobs, found = zip(*made, strict=True)
    logprobs = torch.cat(logprobs).index_select(0, order)
    return logprobs, None if wanted == NOTHING else torch.cat(found, 1).index_select(1, order)


# --- how a model is learned

PACKED, PADDED, LOGITS = "packed", "padded", "logits"
_WAYS: dict[tuple, str] = {}  # by `rlm.engine.support.architecture`


def way_of(base) -> str:
    """Return how a model's log-probabilities are made, tried out once for each architecture.

    PACKED where the layout serves its attention. PADDED: each completion with its prompt, padded
    on the right. LOGITS: as that, with the model's own logits, for a head that does more than
    `rlm.learner.lm_head` knows. The first that agrees with the plain forward; the last is it. What
    the engine could not run over its own cache is not packed either.
    """
    key = (*support.architecture(base), support.forced(base))
    if key not in _WAYS:
        closed = support.forced(base) or support.by_generate(base) or bool(obstacle(base))
        tried = [PADDED] if closed else [PACKED, PADDED]
        _WAYS[key] = next((way for way in tried if _agrees(base, way)), LOGITS)
    return _WAYS[key]


def _agrees(base, way: str) -> bool:
    """Return whether a way gives the log-probabilities of the model's plain forward."""
    ids = support.text(base)
    start = len(ids) - support.STEPS
    packed = pack([(ids[:start], [ids[start:], ids[start:-3]])], device=base.device)

    def attempt() -> bool:
        table = support.plain_logits(base, ids).float().log_softmax(-1)
        true = table[start - 1 : -1].gather(1, packed.targets[: support.STEPS, None])[:, 0]
        with support.evaluating(base), torch.no_grad():
            found, _ = _by_way(way, base, packed)
        return support.agree(found, torch.cat([true, true[:-3]]), base.dtype)

    problem = support.problem_of(attempt)
    return not problem and not (
        way == PACKED and support.untold_window(base, packed.layout.windows)
    )


class ReferencePolicy:
    """The policy as it is when this is made, kept as the reference for a KL term.

    A frozen copy of the trainable tensors, or, while LoRA's B are all zero, not even that: then the
    adapter is turned off, the same policy and faster. Where all weights learn: a second model.
    """

    def __init__(self, model):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        plain = bool(trained) and all("lora_A" in n or "lora_B" in n for n in trained)
        zero = not any(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)
        self.model = model
        self.adapter_off = plain and zero
        self.frozen = [] if self.adapter_off else [(p, p.data.clone()) for p in trained.values()]

    @contextmanager
    def active(self):
        """Inside the block the model is the reference, without dropout; after it, bit-equal.

        No backward of an earlier forward may run inside.
        """
        modes = [(module, module.training) for module in self.model.modules() if module.training]
        now = [parameter.data for parameter, _ in self.frozen]
        try:
            self.model.eval()
            for parameter, copy in self.frozen:
                parameter.data = copy
            with self.model.disable_adapter() if self.adapter_off else nullcontext():
                yield self.model
        finally:
            for (parameter, _), data in zip(self.frozen, now, strict=True):
                parameter.data = data
            for module, mode in modes:
                module.training = mode

    def state(self) -> dict:
        """Return the reference's own tensors, for a checkpoint."""
        return {"adapter_off": self.adapter_off, "frozen": [copy for _, copy in self.frozen]}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned, whatever the model's weights were meanwhile."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.adapter_off, copies = state["adapter_off"], state["frozen"]
        pairs = zip(weights, copies, strict=True) if copies else []
        self.frozen = [(p, copy.to(p.device)) for p, copy in pairs]

    def reset(self) -> None:
        """Let the reference be the policy as it is now (ProRL, arXiv:2505.24864 section 2.3)."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.adapter_off, self.frozen = False, [(p, p.data.clone()) for p in weights]

    def logprobs(self, packed: Packed, **options) -> torch.Tensor:
        """Return the reference's [N] log-probabilities; options as of `token_logprobs`."""
        with self.active(), torch.no_grad():
            return token_logprobs(self.model, packed, **options)[0]


def _check(base) -> None:
    """ValueError where the backward would run other layers than the forward."""
    again = getattr(base, "is_gradient_checkpointing", False) and base.training
    if again and torch.is_grad_enabled() and not base.__dict__.get(USED):
        raise ValueError(
            "the model has gradient checkpointing on: run forward and backward inside "
            "`with rlm.learner.logprobs.use(model):`, or turn it off"
        )
