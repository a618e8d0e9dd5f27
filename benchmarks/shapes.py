"""Random models, prompts and machines for the speed benchmarks: what is measured, and on what.

A random model with a bias on the end token ends a completion with the same probability after
every token: lengths are geometric, cut off at the maximum, with about half of it as their mean.
So two samplers that draw different tokens still do the same work.
"""

import gc
import math
import os
import platform
import random
import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from qwen2_shape import MODELS, SMALL, Qwen2Shape

PAD, EOS = 0, 1
END_RATE = 1.594  # of 1 / max_tokens: then the mean of the cut-off geometric law is max_tokens / 2


@dataclass(frozen=True)
class Workload(Qwen2Shape):
    """A model's shape and a step's load.

    prompts, group, max_tokens: a step. prompt_tokens: shortest and longest prompt. rows:
    completions of one of TRL's micro-batches at its fastest.
    """

    prompts: int = 8
    group: int = 8
    max_tokens: int = 128
    prompt_tokens: tuple[int, int] = (32, 96)
    rows: int = 16


def workload(shape: Qwen2Shape, **load: Any) -> Workload:
    """Return the work of a step on a model of that shape."""
    return Workload(**asdict(shape), **load)


# Qwen2.5-0.5B and 7B: on a CPU with few tokens, on a GPU with the load of a real step.
Q05, Q7B = MODELS[0], MODELS[2]
FEW: dict[str, Any] = dict(prompts=4, group=8, max_tokens=64, prompt_tokens=(32, 64), rows=8)
REAL: dict[str, Any] = dict(prompts=32, group=8, max_tokens=256, prompt_tokens=(64, 160), rows=32)
WORKLOADS = {
    "cpu": {"small": workload(SMALL), "q05": workload(Q05, **FEW)},
    "cuda": {
        "small": workload(SMALL),
        "q05": workload(Q05, **REAL),
        "q7b": workload(Q7B, **REAL),
    },
}


def random_model(shape: Workload, *, dtype=torch.float32, device="cpu", seed: int = 0):
    """Return a Qwen2 of that shape whose completions have the lengths that this file describes."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=4096,
        tie_word_embeddings=shape.tied, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        model = Qwen2ForCausalLM(config).eval()
    share = END_RATE / shape.max_tokens
    with torch.no_grad():
        ids = torch.randint(5, shape.vocabulary, (4, 16), device=device)
        logits = model(ids).logits[:, -1].float()
        total, end = logits.logsumexp(-1).mean().item(), logits[:, EOS].mean().item()
        bias = torch.zeros(shape.vocabulary, device=device)
        bias[PAD] = -30.0
        bias[EOS] = math.log(share / (1 - share)) + total - end
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    return model.to(dtype)


def word_tokenizer(size: int):
    """Return a tokenizer with one token per word w3, w4, ... and `size` tokens in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<eos>": EOS, "<unk>": 2} | {f"w{i}": i for i in range(3, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def word_prompts(shape: Workload, count: int, seed: int) -> list[str]:
    """Return prompts of random words, of the shape's lengths."""
    draw = random.Random(seed)
    lengths = [draw.randint(*shape.prompt_tokens) for _ in range(count)]
    return [" ".join(f"w{draw.randrange(3, shape.vocabulary)}" for _ in range(n)) for n in lengths]


# --- the machine


def clock(device) -> float:
    """Return seconds: of processor time on a CPU, which other programs hardly change; else wall."""
    if torch.device(device).type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device) -> dict:
    """Return what the figures depend on."""
    names = ("torch", "transformers", "trl", "peft")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.device(device).type == "cuda" else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        features = next(v for k, v in lines.items() if k.strip() == "flags").split()
        name = next(v for k, v in lines.items() if k.strip() == "model name").strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
    wide = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in features]
    return f"{name} ({', '.join(wide)})"


def rates(dtype, device) -> dict[str, float]:
    """Return the machine's measured matrix rate, GFLOP/s, and memory bandwidth, GB/s.

    The rate is the best of a few products, by the library that `rlm.models.matmul` takes; beside it
    that of torch's own choice. The bandwidth counts what is read.
    """
    from rlm.models.matmul import matmul

    size = 8192 if torch.device(device).type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    store = torch.ones(1 << 27, device=device)  # 512 MB: larger than any cache
    works = {"torch": lambda: a @ b, "matrix": lambda: matmul(a, b), "memory": store.sum}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(5):
        for name, work in works.items():
            began = clock(device)
            work()
            seconds[name].append(clock(device) - began)
    return {
        "torch_matrix_gflops": round(2 * size**3 / min(seconds["torch"]) / 1e9, 1),
        "matrix_gflops": round(2 * size**3 / min(seconds["matrix"]) / 1e9, 1),
        "memory_gbs": round(store.numel() * 4 / min(seconds["memory"]) / 1e9, 1),
    }


@contextmanager
def peak_memory(device):
    """Yield a list that gets one number at the end: MB that the block took at its highest."""
    gc.collect()
    found: list[float] = []
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    _give_back_memory()
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")  # the highest resident size starts anew
    except OSError:
        yield found
        return
    before = _status("VmRSS")
    yield found
    found.append((_status("VmHWM") - before) / 1024)


def _give_back_memory() -> None:
    """Let the C library give free memory back, or what is used anew would not be seen."""
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


def median_and_range(values: list[float]) -> dict[str, float]:
    """Return the median with the lowest and the highest value."""
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }
