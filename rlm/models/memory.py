"""How much memory is free and taken, and how many tokens of the engine's cache fit into it."""

import re
from contextlib import suppress
from pathlib import Path

import torch

STATES = ("linear_attention", "conv", "mamba", "mlp", "moe")  # kinds of layers without keys
SHARE = 0.5  # of what is free: a cache that grows stands there twice, a backward has temporaries
ROWS, ROWS_ON_CUDA = 256, 1024  # that are sampled at once
PROCESS = Path("/proc/self")
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


def used_bytes(device) -> int:
    """Return the bytes that are taken: by tensors on the device; of a CPU by this process."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    import psutil

    return psutil.Process().memory_info().rss


def wait(device) -> None:
    """Return when what was queued on the device is done: a time that is taken then is a step's."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def forget_peak(device) -> None:
    """Let `peak_bytes` count from here on, where the system can (CUDA, and a CPU under Linux)."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu":
        with suppress(OSError):
            (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # see proc(5)


def peak_bytes(device) -> int:
    """Return the most that `used_bytes` has been; what is taken now where nothing counts that."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu":
        with suppress(OSError):
            status = (PROCESS / "status").read_text(encoding="ascii", errors="replace")
            if found := re.search(r"VmHWM:\s*(\d+) kB", status):
                # The system counts the one in steps, the other exactly.
                return max(int(found[1]) * 1024, used_bytes(device))
    return used_bytes(device)


# What allocations say that fail as another RuntimeError than torch.OutOfMemoryError.
TOLD = (
    "CUDA error: out of memory", "HIP error: out of memory", "MPS backend out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSPARSE and cuSOLVER, of their workspaces
    "can't allocate memory", "not enough memory",  # torch's allocators on a CPU
)  # fmt: skip


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether the error is that of an allocation that failed, on a device or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in TOLD)


def token_bytes(network) -> int:
    """Return the bytes of one token's keys and values in all layers.

    Layers may have sizes of their own, take another layer's keys, or keep a state, which does not
    grow with the tokens. For a model with nothing but states it is an estimate from above.
    """
    config = network.config.get_text_config()
    layers = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    layers = list(layers)[: len(layers) - (getattr(config, "num_kv_shared_layers", None) or 0)]
    kinds = getattr(config, "layer_types", None) or []
    if any(kind not in STATES for kind in kinds):
        layers = [each for each, kind in zip(layers, kinds, strict=False) if kind not in STATES]
    weight = network.get_input_embeddings().weight
    return 2 * weight.element_size() * sum(_kept_width(layer, config) for layer in layers)


def _kept_width(layer, config) -> int:
    """Return the numbers that a layer keeps as keys of a token, and as many as values."""
    heads = getattr(config, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) else 1  # some have a list, by layer
    width = getattr(layer, "head_dim", None) or config.hidden_size // heads
    kept = getattr(layer, "num_key_value_heads", None)
    return width * (kept if isinstance(kept, int) else heads)


def cache_tokens(network) -> int:
    """Return how many tokens of keys and values fit into half of what is free, 1 at least."""
    device = network.get_input_embeddings().weight.device
    return max(1, int(SHARE * free_bytes(device) / token_bytes(network)))


def most_rows(network) -> int:
    """Return how many rows are sampled at once: the cache's bound counts beside it.

    On a GPU decoding is bound by reading the weights, so many rows cost little more than few; their
    logits and a float32 copy of them get an eighth of what is free.
    """
    weight = network.get_input_embeddings().weight
    if weight.device.type != "cuda":
        return ROWS
    row = weight.shape[0] * (weight.element_size() + 4)
    return max(1, min(ROWS_ON_CUDA, int(free_bytes(weight.device) / 8 / row)))
