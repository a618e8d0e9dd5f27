"""How many tokens a micro-batch of the learner may have, by the memory that is free.

It does not know what is learned.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlm.errors import InputError, RunError
from rlm.learner import padded
from rlm.learner.logprobs import pack, packs, token_logprobs
from rlm.learner.sharding import sharded
from rlm.models.adapters import network_of
from rlm.models.memory import SHARE, free_bytes, out_of_memory

logger = logging.getLogger("rlm")

LEAST = 256  # tokens of a micro-batch below which halving it again will not help
# Larger micro-batches gain nothing from here on; on a CPU they leave its caches and get slower.
MOST = {"cpu": 1024, "cuda": 32_768}
SHARDED = 4096  # of a base that is spread over processes, whose memory is not measured
CPU_BYTES = 2**29  # what the activations of a micro-batch may take on a CPU, to be a small guest


@dataclass(frozen=True)
class Activations:
    """The bytes that a forward keeps for its backward, weights not counted.

    token: of each token. pair: of each pair of a query and a key that a mask has.
    """

    token: float
    pair: float = 0.0

    def each(self, longest: int) -> float:
        """Return the bytes of a token in sequences of that many tokens."""
        return self.token + self.pair * longest

    def checkpointed(self, network) -> "Activations":
        """Return what is kept where layers run again in the backward: their inputs, and one layer.

        That one stands twice, with its gradients. Computed, not measured.
        """
        config = network.config.get_text_config()
        layers, size = config.num_hidden_layers, network.dtype.itemsize
        inputs = layers * config.hidden_size * size
        return Activations(inputs + 2 * self.token / layers, 2 * self.pair / layers)


# Two groups of dissimilar length: (prompt, completions) in tokens.
SHORT, LONG = (64, (33, 33)), (64, (193,))


def activations(model, vocab_size: int) -> Activations:
    """Return the model's `Activations`, from what autograd saves of two small groups.

    Of a model whose layers run again in the backward, `Activations.checkpointed`.
    """
    network = network_of(model)
    if getattr(network, "is_gradient_checkpointing", False):
        checkpoint(model, on=False)
        found = activations(model, vocab_size).checkpointed(network)
        checkpoint(model, on=True)
        return found
    if not packs(model):  # no masks
        kept, tokens, _ = _kept(model, vocab_size, *SHORT)
        return Activations(kept / tokens)
    (kept, tokens, pairs), (more, longer, all_pairs) = (
        _kept(model, vocab_size, *shape) for shape in (SHORT, LONG)
    )
    ratio = longer / tokens
    pair = max(0.0, (more - ratio * kept) / (all_pairs - ratio * pairs))
    return Activations((kept - pair * pairs) / tokens, pair)


def _kept(model, vocab_size: int, prompt: int, lengths: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (bytes kept, tokens, pairs under masks) of one group; tokens as the learner packs."""
    device = next(model.parameters()).device
    ids = [i % vocab_size for i in range(max(prompt, *lengths))]
    packed = pack([(ids[:prompt], [ids[:n] for n in lengths])], device=device)
    tokens = len(packed.ids) if packs(model) else padded.tokens(packed.groups)
    # What rlm.learner.sharding has spread is in no place of its own.
    whole = [p for p in model.parameters() if not hasattr(p, "to_local")]
    weights = {p.untyped_storage()._cdata for p in whole}  # also where there are no bytes (meta)
    kept: dict[int, int] = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept_alive = token_logprobs(model, packed, vocab_size=vocab_size)  # addresses stay unique
    del kept_alive
    model.train(training)
    pairs = sum((n - 1) * (prompt + n - 1) for n in lengths)
    return sum(kept.values()), tokens, pairs


class TokenBudget:
    """Tokens of a micro-batch, found for a model; running out of memory halves it.

    tokens: a number of one's own, or 0 for as many as half of the free memory holds. On a CPU a
    number of one's own is kept below that too: the system would swap, or kill the process.
    longest: tokens of the longest prompt with its completion, as far as that is known.
    checkpointing: whether the layers run again in the backward and keep their inputs alone
    (arXiv:1604.06174): "on", "off", or "auto": where half of the free memory does not hold the
    longest sequence. pending: bytes of what is free that gradients and optimiser will take.
    cpu_bytes: what the activations may take on a CPU where no number is given.
    """

    def __init__(
        self,
        model,
        vocab_size: int,
        tokens: int = 0,
        *,
        longest: int = 0,
        checkpointing: str = "off",
        pending: int = 0,
        cpu_bytes: int = CPU_BYTES,
    ):
        self.tokens = tokens or (SHARDED if sharded(model) else 0)
        self._fixed = sharded(model)  # the others wait in the middle of its layers
        self._model, self._longest = model, longest
        self.checkpointing = False
        self._may = checkpointing == "auto" and can_checkpoint(model) and not self._fixed
        checkpoint(model, on=False)
        device = next(model.parameters()).device
        kind = device.type
        known = self._fixed or (self.tokens and (kind != "cpu" or self.tokens <= LEAST))
        if known and not self._may:
            self._checkpoint(checkpointing == "on")
            return
        room, found = SHARE * max(0, free_bytes(device) - pending), activations(model, vocab_size)
        too_long = self._may and longest * found.each(longest) > room
        if too_long or checkpointing == "on":
            self._checkpoint(True)
            found = found.checkpointed(network_of(model))
        if too_long:
            logger.info(
                "gradient checkpointing: half of the free memory does not hold a sequence of %d "
                "tokens without; --checkpointing off turns it off", longest,
            )  # fmt: skip
        if known:
            return
        each = found.each(longest)
        fitting = max(LEAST, int(room / each))
        if not tokens:
            room = min(room, cpu_bytes) if kind == "cpu" else room
            self.tokens = int(max(LEAST, min(MOST.get(kind, 4096), room / each)))
        elif tokens > fitting:
            logger.warning(
                "--token-budget %d: half of the free memory holds %d tokens of a micro-batch; "
                "going on with those, the result is the same", tokens, fitting,
            )  # fmt: skip
            self.tokens = fitting

    def _checkpoint(self, on: bool) -> None:
        self.checkpointing = on
        checkpoint(self._model, on=on)

    def state(self) -> dict:
        return {"tokens": self.tokens, "checkpointing": self.checkpointing}

    def restore(self, state: dict) -> None:
        """Go on with the same micro-batches: other ones would round otherwise."""
        self.tokens = state["tokens"]
        self._checkpoint(state.get("checkpointing", False))

    def attempt(self, work: Callable, undo: Callable):
        """Return work(token_budget=tokens); out of memory, undo it, halve the tokens, go on.

        Where a single sequence is too much, its layers are checkpointed, if that is left to us.
        The error itself, with what to do, when there is nothing left to halve.
        """
        while True:
            try:
                return work(token_budget=self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self._fixed:
                    raise
                alone = self.tokens <= max(LEAST, self._longest)  # of one sequence
                again = alone and self._may and not self.checkpointing
                if self.tokens <= LEAST and not again:
                    raise RunError(
                        f"out of memory with micro-batches of {self.tokens} tokens; use a "
                        "smaller --max-tokens, or --train lora with --quantize 4bit"
                    ) from error
            # Outside the handler: the error's frames hold the tensors that have to go.
            undo()
            if again:
                self._checkpoint(True)
                going_on = "--checkpointing on"
            else:
                self.tokens = max(LEAST, self.tokens // 2)
                going_on = f"--token-budget {self.tokens}"
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory: going on with %s", going_on)


def can_checkpoint(model) -> bool:
    """Return whether a model's layers can run again in the backward.

    Layers that take another layer's keys would find none the second time.
    """
    network = network_of(model)
    shared = getattr(network.config.get_text_config(), "num_kv_shared_layers", None)
    return bool(getattr(network, "supports_gradient_checkpointing", False)) and not shared


def checkpoint(model, *, on: bool) -> None:
    """Let the layers run again in the backward, or not. InputError if they cannot.

    Forward and backward have to run inside `rlm.learner.logprobs.use`.
    """
    network = network_of(model)
    if not on:
        if getattr(network, "is_gradient_checkpointing", False):
            network.gradient_checkpointing_disable()
        return
    if not can_checkpoint(model):
        raise InputError(
            f"--checkpointing on: {type(network).__name__} cannot run its layers again in the "
            "backward; leave it out, and use a smaller --max-tokens or --token-budget"
        )
    # Dropout falls as in the forward: the generators' states are kept by default.
    network.gradient_checkpointing_enable({"use_reentrant": False})
