"""How many tokens a micro-batch of the learner may have, by the memory that is free.

It does not know what is learned.
"""

import logging
from collections.abc import Callable

import torch

from rlm.errors import RunError
from rlm.learner import padded
from rlm.learner.logprobs import pack, packs, token_logprobs
from rlm.learner.sharding import sharded
from rlm.models.memory import SHARE, free_bytes, out_of_memory

logger = logging.getLogger("rlm")

LEAST = 256  # tokens of a micro-batch below which halving it again will not help
# Larger micro-batches gain nothing from here on; on a CPU they leave its caches and get slower.
MOST = {"cpu": 1024, "cuda": 32_768}
SHARDED = 4096  # of a base that is spread over processes, whose memory is not measured
CPU_BYTES = 2**29  # what the activations of a micro-batch may take on a CPU, to be a small guest


def activation_bytes(model, vocab_size: int) -> float:
    """Return the bytes per token that a forward keeps for its backward, weights not counted.

    Measured on a group of 128 tokens, by what autograd saves; of 192 where the learner pads.
    """
    device = next(model.parameters()).device
    ids = [i % vocab_size for i in range(64)]
    packed = pack([(ids, [ids[:33]] * 2)], device=device)
    tokens = len(packed.ids) if packs(model) else padded.tokens(packed.groups)
    # What rlm.learner.sharding has spread is in no place of its own.
    whole = [p for p in model.parameters() if not hasattr(p, "to_local")]
    weights = {p.untyped_storage().data_ptr() for p in whole}
    kept: dict[int, int] = {}

    def count(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept_alive = token_logprobs(model, packed, vocab_size=vocab_size)  # addresses stay unique
    del kept_alive
    model.train(training)
    return sum(kept.values()) / tokens


class TokenBudget:
    """Tokens of a micro-batch, found for a model; running out of memory halves it.

    tokens: a number of one's own, or 0 for as many as half of the free memory holds. On a CPU a
    number of one's own is kept below that too: the system would swap, or kill the process.
    cpu_bytes: what the activations may take on a CPU where no number is given.
    """

    def __init__(self, model, vocab_size: int, tokens: int = 0, *, cpu_bytes: int = CPU_BYTES):
        self.tokens = tokens or (SHARDED if sharded(model) else 0)
        self._fixed = sharded(model)  # the others wait in the middle of its layers
        device = next(model.parameters()).device
        kind = device.type
        if self._fixed or (self.tokens and (kind != "cpu" or self.tokens <= LEAST)):
            return
        room, each = SHARE * free_bytes(device), activation_bytes(model, vocab_size)
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

    def state(self) -> dict:
        return {"tokens": self.tokens}

    def restore(self, state: dict) -> None:
        """Go on with the same micro-batches: other ones would round otherwise."""
        self.tokens = state["tokens"]

    def attempt(self, work: Callable, undo: Callable):
        """Return work(token_budget=tokens); out of memory, undo it, halve the tokens, go on.

        The error itself, with what to do, when there is nothing left to halve.
        """
        while True:
            try:
                return work(token_budget=self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error) or self._fixed:
                    raise
                if self.tokens <= LEAST:
                    raise RunError(
                        f"out of memory with micro-batches of {self.tokens} tokens; use a "
                        "smaller --max-tokens, or --quantize 4bit"
                    ) from error
            # Outside the handler: the error's frames hold the tensors that have to go.
            undo()
            self.tokens = max(LEAST, self.tokens // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory: going on with --token-budget %d", self.tokens)
