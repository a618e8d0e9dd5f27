"""How large a vLLM engine is to be: its context, its rows, its LoRA rank, its memory.

Pure arithmetic on numbers that were measured elsewhere (rlm/learner/rehearsal.py,
rlm/models/memory.py).
"""

from math import floor

from rlm.errors import InputError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM has kernels for
MOST_ROWS = 256
GIB = 2**30
CPU_SHARE = 0.25  # of the free memory of a CPU: the learner's steps and the system need the rest
CPU_MOST = 32 * GIB
SPARE = 0.05  # of a GPU's memory that nobody is given: fragments, and what libraries take late


def lora_rank(rank: int) -> int:
    """Return the smallest rank that vLLM can be opened for and that holds an adapter of `rank`.

    >>> lora_rank(16), lora_rank(24)
    (16, 32)
    """
    if rank > RANKS[-1]:
        raise InputError(
            f"a LoRA of rank {rank}: vLLM takes up to {RANKS[-1]}; use a smaller --lora-r, or "
            "--engine own"
        )
    return next(each for each in RANKS if each >= rank)


def context(prompts: list[int], max_tokens: int, text: int, limit: int | None) -> int:
    """Return the tokens that one sequence may have: a prompt half as long again as the longest.

    prompts: tokens of the longest prompts that are known. text: of the canary's.
    limit: the model's own context, None for none.

    >>> context([80, 100], 160, 90, 1024), context([80, 100], 160, 90, 200)
    (310, 200)
    """
    wanted = max(max(prompts, default=0) * 3 // 2, text) + max_tokens
    return min(wanted, limit) if limit else wanted


def rows(completions: int) -> int:
    """Return how many sequences run at once: those of a step, at most 256.

    >>> rows(128), rows(4), rows(4096)
    (128, 16, 256)
    """
    return max(16, min(MOST_ROWS, completions))


def cpu_cache_bytes(free: int, token_bytes: int, rows: int, context: int) -> int:
    """Return the bytes of a CPU engine's cache, all of which it takes at its start.

    What all rows need at their longest, but no more than a quarter of the free memory and 32 GiB.
    free: bytes that are free now. InputError if not even one sequence fits.

    >>> cpu_cache_bytes(8 * GIB, 2048, 64, 512) // 2**20  # 64 * 512 * 2 KiB
    64
    >>> cpu_cache_bytes(8 * GIB, 2**20, 256, 1024) / GIB  # 256 GiB would be needed
    2.0
    """
    most = min(int(CPU_SHARE * free), CPU_MOST)
    if context * token_bytes > most:
        raise InputError(
            f"{free / GIB:.1f} GiB of memory are free, too few for vLLM beside the learner; use "
            "a smaller --max-tokens, --engine own, or a server elsewhere by --vllm-url"
        )
    return min(rows * context * token_bytes, most)


def gpu_share(free: int, total: int, pending: int, weights: int, one: int) -> float:
    """Return vLLM's gpu_memory_utilization, its share of all memory, rounded down to a hundredth.

    free: bytes of the GPU that nobody has, measured after a step of the learner at its full size,
    whose memory the learner still holds. total: of the GPU. pending: bytes that the learner will
    yet take (Adam's state). weights: of the base, which vLLM loads once more. one: of the cache
    of one sequence. InputError if it cannot hold weights, a sequence and a tenth to work in.

    >>> gpu_share(60 * GIB, 80 * GIB, 1 * GIB, 14 * GIB, GIB)  # (60 - 1 - 4) / 80
    0.68
    """
    room = free - pending - int(SPARE * total)
    if room < 1.1 * (weights + one):
        raise InputError(
            f"{max(0, room) / GIB:.1f} GiB of the GPU are left after a step of the learner, vLLM "
            f"needs {1.1 * (weights + one) / GIB:.1f}; use a smaller --token-budget, --engine "
            "own, or a server on another GPU by --vllm-url"
        )
    return floor(100 * room / total) / 100
