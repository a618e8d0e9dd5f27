"""How much memory is free, and how many tokens of the engine's cache fit into it."""

from pathlib import Path

import torch

SHARE = 0.5  # of what is free: a cache that grows stands there twice, a backward has temporaries
CGROUP = Path("/sys/fs/cgroup")  # what a container may have


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
        limit = (CGROUP / "memory.max").read_text(encoding="ascii")
        used = (CGROUP / "memory.current").read_text(encoding="ascii")
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
