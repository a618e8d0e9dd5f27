"""What a GRPO run needs of a machine, by arithmetic: bytes, operations, seconds.

Pure functions of a model's shape, a step's load and a machine; what is assumed is in `Rates`. No
GPU was at hand: every figure of a GPU is computed, none is measured. benchmarks/scale_tables.py
makes the tables of docs/scale.md of it, benchmarks/scale_check.py holds it against a CPU.
"""

import math
from dataclasses import dataclass

from qwen2_shape import Qwen2Shape

HALF, SINGLE = 2, 4  # bytes of a bfloat16 or float16 number, and of a float32 one
FOUR_BIT = 0.5 + 4 / 64  # NF4, a float32 factor per 64 weights (arXiv:2305.14314 section 3)
LOGITS = {"cpu": 2**23, "cuda": 2**27}  # of a chunk, rlm.learner.lm_head.LOGITS
MICRO_TOKENS = 32_768  # rlm.learner.token_budget.MOST["cuda"]
SHARE = 0.5  # of the free memory that a micro-batch or the cache may take, rlm.models.memory.SHARE
ROWS = 256  # sequences that the engine runs at once, rlm.models.memory.ROWS
RESERVED = 1.5e9  # bytes: the CUDA context and what an allocator cannot use


@dataclass(frozen=True)
class Machine:
    """gpus of one kind. flops: dense half-precision peak of one, operations a second; bandwidth
    of its memory and link to the next GPU, one way, bytes a second; memory in bytes."""

    name: str
    gpus: int
    memory: float
    flops: float
    bandwidth: float
    link: float


# Peaks of NVIDIA's data sheets (T4 2019; Ada GPU architecture 1.1; A100 80 GB SXM; H100 SXM; H200
# SXM), without sparsity. link: PCIe x16, or NVLink; between nodes one 400 Gb/s port a GPU.
MACHINES = (
    Machine("T4", 1, 16e9, 65e12, 0.32e12, 16e9),
    Machine("RTX 4090", 1, 24e9, 165e12, 1.008e12, 32e9),
    Machine("A100 80 GB", 1, 80e9, 312e12, 2.039e12, 300e9),
    Machine("H100", 1, 80e9, 989e12, 3.35e12, 450e9),
    Machine("H200", 1, 141e9, 989e12, 4.8e12, 450e9),
    Machine("8 × H100", 8, 80e9, 989e12, 3.35e12, 450e9),
    Machine("64 × H100", 64, 80e9, 989e12, 3.35e12, 50e9),
)


@dataclass(frozen=True)
class Load:
    """A step: questions with `group` samples each. prompt, completion: mean tokens; longest:
    of a completion. learned: share of the groups that are live, the others are not learned."""

    questions: int = 32
    group: int = 8
    prompt: float = 128
    completion: float = 256
    longest: int = 512
    learned: float = 1.0

    @property
    def completion_tokens(self) -> float:
        return self.questions * self.group * self.completion

    @property
    def prompt_tokens(self) -> float:
        """Of the prompts as they are packed and prefilled: once a group."""
        return self.questions * self.prompt


@dataclass(frozen=True)
class Rates:
    """Shares of the peaks that are reached: an assumption on a GPU, fitted once on a CPU.

    learning, sampling: of the operations. reading: of the bandwidth. token_seconds: what each
    decode step costs beside that (kernels that are launched one by one).
    """

    learning: float = 0.40
    sampling: float = 0.40
    reading: float = 0.60
    token_seconds: float = 0.0


GPU = Rates()
LAUNCHES = 5e-4  # seconds a layer and decode step without CUDA graphs: Python, launches; assumed


# --- numbers of weights


def all_weights(m: Qwen2Shape) -> int:
    """Return every parameter: linear layers, biases of q, k, v, norms, embedding and head."""
    small = m.layers * (m.hidden + 2 * m.kv + 2 * m.hidden) + m.hidden
    return m.body_weights + small + m.head_weights * (1 if m.tied else 2)


def lora_weights(m: Qwen2Shape, rank: int = 16) -> int:
    """Return those of a LoRA on all linear layers but the head: rank * (in + out) of each."""
    return m.layers * rank * (9 * m.hidden + 2 * m.kv + 3 * m.mlp)


# --- bytes


def weight_bytes(m: Qwen2Shape, size: float = HALF) -> float:
    """Return the base's bytes. size: bytes of a weight; FOUR_BIT leaves all but linear in half."""
    rest = all_weights(m) - m.body_weights
    return m.body_weights * size + rest * max(size, HALF)


def lora_bytes(m: Qwen2Shape, rank: int = 16, *, reference: bool = False) -> float:
    """Return what learning keeps of the LoRA, float32: itself, gradient, two moments of AdamW, the
    best so far; with a KL term the reference, too; and the engine's copy in half precision."""
    return lora_weights(m, rank) * (SINGLE * (5 + reference) + HALF)


def cache_bytes(m: Qwen2Shape, size: float = HALF) -> float:
    """Return the bytes of keys and values of a token."""
    return 2 * m.layers * m.kv * size


def activation_bytes(m: Qwen2Shape, size: float = HALF, *, on_cpu: bool = False) -> float:
    """Return what a forward keeps for its backward, a token, without gradient checkpointing.

    Per layer: both residuals and both norms' outputs, q and the attention's output (6 hidden), k
    and v, and of the feed-forward part gate, up, the gate's activation and their product (4 mlp);
    in half precision the norms keep their input in float32 besides, and on a CPU the attention
    keeps what it has in float32, its output in both.
    """
    kept = size * (6 * m.hidden + 2 * m.kv + 4 * m.mlp)
    if size < SINGLE:
        kept += 2 * SINGLE * m.hidden
        if on_cpu:
            kept += (SINGLE - size) * (2 * m.hidden + 2 * m.kv) + size * m.hidden
    return m.layers * kept


def checkpointed_bytes(m: Qwen2Shape, size: float = HALF) -> float:
    """Return the same where layers run again in the backward: their inputs, and one layer twice.

    As `rlm.learner.token_budget.Activations.checkpointed`.
    """
    return size * m.layers * m.hidden + 2 * activation_bytes(m, size) / m.layers


def logits_bytes(m: Qwen2Shape, *, on_cpu: bool = False) -> float:
    """Return the head's chunk: logits and their shares in float32, and as they came."""
    most, logits = (512, LOGITS["cpu"]) if on_cpu else (4096, LOGITS["cuda"])
    rows = max(16, min(most, logits // m.vocabulary))
    return 3 * SINGLE * rows * m.vocabulary


def sync_bytes(m: Qwen2Shape, rank: int = 16) -> int:
    """Return what travels to another engine after an update: the adapter in float32."""
    return SINGLE * lora_weights(m, rank)


def all_reduce_bytes(m: Qwen2Shape, ranks: int, rank: int = 16) -> float:
    """Return what each process sends for the sum of the LoRA's gradients: 2 (n - 1) / n of it."""
    return 2 * (ranks - 1) / ranks * SINGLE * lora_weights(m, rank)


# --- operations


def attention_flops(m: Qwen2Shape, tokens: float, context: float) -> float:
    """Return those of q k and of the weighted sum of v, for tokens that see `context` others."""
    return 4 * m.layers * m.hidden * context * tokens


def sampling_flops(m: Qwen2Shape, load: Load) -> float:
    """Return those of a step's sampling: two a weight and token, the head on completions only."""
    tokens = load.prompt_tokens + load.completion_tokens
    seen = attention_flops(m, load.completion_tokens, load.prompt + load.completion / 2)
    return 2 * m.body_weights * tokens + 2 * m.head_weights * load.completion_tokens + seen


def learning_flops(
    m: Qwen2Shape, load: Load, *, updates: int = 1, reference: bool = False, again: bool = False
) -> float:
    """Return those of a step's learning: forward, and backward without the base's gradients.

    That is twice a forward; a reference adds one, and layers that run again in the backward one an
    update. Groups that are not live are left out.
    """
    passes = (2 + again) * updates + reference
    return sampling_flops(m, load) * load.learned * passes


def decode_bytes(m: Qwen2Shape, load: Load, rows: int = ROWS, size: float = HALF) -> float:
    """Return what decoding reads: all weights each step, each token's keys and values so far."""
    context = load.prompt + load.completion / 2
    read = weight_bytes(m, size) - (0 if m.tied else m.head_weights * HALF)  # no whole embedding
    cached = load.completion_tokens * context * cache_bytes(m, max(size, HALF))
    return decode_steps(load, rows) * read + cached


def decode_steps(load: Load, rows: int = ROWS) -> float:
    """Return the forwards of a step's decoding: the longest completion's, or more if rows wait."""
    return max(load.longest, load.completion_tokens / rows)


# --- seconds


def sampling_seconds(m: Qwen2Shape, load: Load, machine: Machine, rates=GPU, size=HALF) -> float:
    """Return those of sampling on one GPU: operations or bytes, whichever take longer."""
    compute = sampling_flops(m, load) / (machine.flops * rates.sampling)
    reading = decode_bytes(m, load, size=size) / (machine.bandwidth * rates.reading)
    return max(compute, reading) + decode_steps(load) * rates.token_seconds


def learning_seconds(m: Qwen2Shape, load: Load, machine: Machine, rates=GPU, **options) -> float:
    return learning_flops(m, load, **options) / (machine.flops * rates.learning)


def shard_seconds(m: Qwen2Shape, load: Load, machine: Machine) -> float:
    """Return what FSDP adds: the base's weights gathered twice a micro-batch, not hidden."""
    tokens = load.prompt_tokens + load.completion_tokens
    passes = 2 * math.ceil(tokens / max(1, micro_tokens(m, machine, shards=machine.gpus)))
    return passes * weight_bytes(m) / machine.link


# --- what fits


def fixed_bytes(m: Qwen2Shape, size: float = HALF, shards: int = 1) -> float:
    """Return what is there all the time on each GPU; FSDP cuts the base into `shards`."""
    gathered = weight_bytes(m) / m.layers if shards > 1 else 0  # a layer at a time is whole
    return weight_bytes(m, size) / shards + gathered + lora_bytes(m) + RESERVED


def micro_tokens(
    m: Qwen2Shape, machine: Machine, size: float = HALF, shards: int = 1, *, again: bool = False
) -> int:
    """Return the tokens of a micro-batch that fit into half of what is free, 0 if nothing is.

    again: with gradient checkpointing, which a base that is cut has not.
    """
    free = machine.memory - fixed_bytes(m, size, shards) - logits_bytes(m)
    each = checkpointed_bytes(m) if again else activation_bytes(m)
    return max(0, min(MICRO_TOKENS, int(SHARE * free / each)))


def cached_rows(m: Qwen2Shape, load: Load, machine: Machine, size: float = HALF) -> int:
    """Return the completions whose keys and values fit into half of what is free, 256 at most."""
    free = machine.memory - fixed_bytes(m, size)
    row = (load.prompt + load.longest) * cache_bytes(m)
    return max(0, min(ROWS, int(SHARE * free / row)))


def fits(m: Qwen2Shape, load: Load, machine: Machine, size: float = HALF) -> bool:
    """Return whether one GPU learns from one completion and samples one group."""
    learns = micro_tokens(m, machine, size, again=True) >= load.prompt + load.longest
    return learns and cached_rows(m, load, machine, size) >= load.group


def needed_bytes(m: Qwen2Shape, load: Load, size: float = HALF) -> float:
    """Return the least memory of a GPU that `fits`: weights, LoRA and the larger of the two."""
    learning = (load.prompt + load.longest) * checkpointed_bytes(m) / SHARE + logits_bytes(m)
    sampling = load.group * (load.prompt + load.longest) * cache_bytes(m) / SHARE
    return fixed_bytes(m, size) + max(learning, sampling)
