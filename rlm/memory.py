"""How much memory is free, and how many tokens of cache or of a micro-batch fit into it.

It does not know what is sampled or learned.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from rlm.learner import pack, token_logprobs

logger = logging.getLogger("rlm")

SHARE = 0.5  # of what is free: a cache that grows stands there twice, a backward has temporaries
LEAST = 256  # tokens of a micro-batch below which halving it again will not help
# Larger micro-batches gain nothing from here on; on a CPU they leave its caches and get slower.
MOST = {"cpu": 1024, "cuda": 32_768}


def free_bytes(device) -> int:
    """Return the bytes that can still be taken on the device; of a CPU those of this container."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit = (Path("/sys/fs/cgroup") / "memory.max").read_text(encoding="ascii")
        used = (Path("/sys/fs/cgroup") / "memory.current").read_text(encoding="ascii")
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such limit
        return free


def cache_tokens(network) -> int:
    """Return how many tokens of keys and values fit into half of what is free, 1 at least."""
    config = network.config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    weight = network.get_input_embeddings().weight
    size = 2 * config.num_hidden_layers * kept * width * weight.element_size()  # keys and values
    return max(1, int(SHARE * free_bytes(weight.device) / size))


def activation_bytes(model, vocab_size: int) -> float:
    """Return the bytes per token that a forward keeps for its backward, weights not counted.

    Measured on a group of 96 tokens, by what autograd saves.
    """
    device = next(model.parameters()).device
    ids = [i % vocab_size for i in range(32)]
    packed = pack([(ids, [ids + ids[:1]] * 2)], device=device)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
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
    return sum(kept.values()) / len(packed.ids)


class TokenBudget:
    """Tokens of a micro-batch, found for a model; running out of memory halves it.

    tokens: a number of one's own, or 0 for as many as half of the free memory holds.
    """

    def __init__(self, model, vocab_size: int, tokens: int = 0):
        self.tokens = tokens
        if not tokens:
            device = next(model.parameters()).device
            fitting = SHARE * free_bytes(device) / activation_bytes(model, vocab_size)
            self.tokens = int(max(LEAST, min(MOST.get(device.type, 4096), fitting)))

    def attempt(self, work: Callable, undo: Callable):
        """Return work(token_budget=tokens); out of memory, undo it, halve the tokens, go on.

        The error itself, with what to do, when there is nothing left to halve.
        """
        while True:
            try:
                return work(token_budget=self.tokens)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.tokens <= LEAST:
                    raise RuntimeError(
                        f"out of memory with micro-batches of {self.tokens} tokens; use a "
                        "smaller --group-size or --max-tokens, or --quantize 4bit"
                    ) from error
            # Outside the handler: the error's frames hold the tensors that have to go.
            undo()
            self.tokens = max(LEAST, self.tokens // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory: going on with --token-budget %d", self.tokens)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error is that of an allocation that failed."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
