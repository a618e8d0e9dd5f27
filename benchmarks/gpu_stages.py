"""The stages of gpu.py: each takes its `Bench` and keeps figures."""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "vllm")


# --- the pieces


def cudnn(on: bool) -> None:
    """Let SDPA take cuDNN's kernels, or not."""
    torch.backends.cuda.enable_cudnn_sdp(on)


def lora_model(bench, name: str, r: int = 16):
    """Return a model of a published shape in bfloat16, random, with a LoRA that is not zero."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from rlm.models.loading import add_lora

    shapes = {
        "0.5B": (Qwen2Config, Qwen2ForCausalLM, (896, 4864, 24, 14, 2, 64, 151936, True)),
        "7B": (Qwen2Config, Qwen2ForCausalLM, (3584, 18944, 28, 28, 4, 128, 152064, False)),
        "Qwen3-0.6B": (Qwen3Config, Qwen3ForCausalLM, (1024, 3072, 28, 16, 8, 128, 151936, True)),
    }
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "tie_word_embeddings",
    )  # fmt: skip
    config_class, model_class, sizes = shapes[name]
    sizes = (64, 128, 2, 4, 2, 16, 4096, True) if bench.small else sizes
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
    config = config_class(
        **dict(zip(names, sizes, strict=True)), max_position_embeddings=32768, **ends
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(bench.device):
        model = model_class(config).eval()
    torch.set_default_dtype(torch.float32)
    model = add_lora(model, r=r, alpha=2 * r, seed=0)
    not_zero(model, 0.01)
    return model


def not_zero(model, spread: float) -> None:
    """Give the B of a LoRA random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, spread)


class Words:
    """A tokenizer as far as the engine asks for one."""

    eos_token_id = None

    def __init__(self, size: int):
        self.size = size

    def __len__(self):
        return self.size

    def decode(self, ids, **options):
        return " ".join(map(str, ids))


def random_prompts(vocabulary: int, count: int) -> list:
    from rlm.records import Prompt

    return [Prompt(torch.randint(5, vocabulary, (100 + i,)).tolist()) for i in range(count)]


@contextlib.contextmanager
def masks():
    """Inside the block the learner attends under masks, as on a GPU without flash kernels."""
    from rlm.learner import flash

    before, flash.serves = flash.serves, lambda *layer: False
    try:
        yield
    finally:
        flash.serves = before


# --- the stages


def facts(bench) -> None:
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    gpu = None if bench.small else torch.cuda.get_device_name()
    made = {"versions": found, "gpu": gpu, "cuda": torch.version.cuda}
    bench.keep(stage="facts", **made, cudnn=torch.backends.cudnn.version())
    if bench.small:
        return

    def rand(*sizes):
        return torch.randn(*sizes, device="cuda", dtype=torch.bfloat16)

    cache = rand(256, 2, 416, 64)
    bias = torch.zeros(256, 1, 1, 416, device="cuda", dtype=torch.bfloat16)
    for on in (False, True):
        cudnn(on)
        what = {"stage": "facts", "cudnn": on}
        with bench.tried(**what, what="decode attention of a new width"):
            first: list[float] = []
            again: list[float] = []
            for width in (301, 302, 303, 304):
                query = rand(256, 2, 7, 64)
                keys = cache[:, :, :width]
                for store in (first, again):
                    bench.sync()
                    began = time.perf_counter()
                    F.scaled_dot_product_attention(query, keys, keys, bias[..., :width])
                    bench.sync()
                    store.append(round((time.perf_counter() - began) * 1e3, 2))
            bench.keep(**what, what="decode attention of a new width, ms", first=first, again=again)
        with bench.tried(**what, what="gradients that are not finite"):
            # Keys % 128 is 64 and scores are low: github.com/pytorch/pytorch/issues/196678.
            q, k, v = rand(1, 1, 256, 64) * 0.1, rand(1, 1, 320, 64) * 0.1, rand(1, 1, 320, 64)
            q[..., 0], k[..., 0] = 1.0, -120 * 64**0.5
            for x in (q, k, v):
                x.requires_grad_()
            mask = torch.ones(256, 320, device="cuda", dtype=torch.bool).tril(64)
            F.scaled_dot_product_attention(q, k, v, mask).backward(rand(1, 1, 256, 64))
            bad = [int((~torch.isfinite(x.grad)).sum()) for x in (q, k, v)]
            bench.keep(**what, what="gradients that are not finite, of q, k, v", found=bad)


def right(bench) -> None:
    """Numbers that must agree, on the shipped base with a LoRA that is not zero."""
    from rlm.engine.engine import Engine, Sampling
    from rlm.models.loading import add_lora, load_base
    from rlm.records import Prompt

    model, tokenizer = load_base(str(ROOT / "weights/tiny_base"), device="cpu", dtype="float32")
    model = add_lora(model, r=8, alpha=16, seed=0)
    not_zero(model, 0.02)
    words = [f"Calculate {7 * i + 3} + {i + 11} + {90 - i}" for i in range(6)]
    prompts = [Prompt(tokenizer(text)["input_ids"]) for text in words]
    count, size = (12 if bench.small else 40), len(tokenizer)
    lengths = (30, 17, 9, 1)
    groups = [
        (p.ids, [list(range(5 + g, 5 + g + n)) for g, n in enumerate(lengths)]) for p in prompts
    ]
    greedy, drawn = Sampling(count, temperature=0.0), Sampling(count, temperature=0.9)
    want = gradients(model, groups, size)
    expected = Engine(model, tokenizer, cache_tokens=8192).generate(prompts, 1, greedy, seed=0)
    model.to(bench.device)
    for dtype in ("float32", "bfloat16", "float16"):
        with bench.tried(stage="right", dtype=dtype):
            for name, weight in model.named_parameters():
                if "lora_" not in name:
                    weight.data = weight.data.to(getattr(torch, dtype))
            got = gradients(model, groups, size)
            found: dict[str, Any] = {
                "gradient_gap": gap(got, want),
                "logprob_gap": far(got[0], want[0]),
            }
            with masks():
                masked = gradients(model, groups, size)
            found |= {"flash_gradient_gap": gap(got, masked)}
            found |= {"masked_gradient_gap": gap(masked, want)}
            model.eval()
            plain = Engine(model, tokenizer, cache_tokens=8192, cuda_graphs=False)
            graphs = Engine(model, tokenizer, cache_tokens=8192, cuda_graphs=not bench.small)
            one, two, three = (
                e.generate(prompts, 4, drawn, seed=3) for e in (plain, graphs, graphs)
            )
            found["graphs_same_tokens"] = [same(one, two), same(one, three)]
            found["of"] = len(prompts) * 4
            found["graphs"] = graphs_of(graphs)
            found["sampler_gap"] = sampler_gap(model, prompts, one, size)
            here = plain.generate(prompts, 1, greedy, seed=0)
            found["greedy_as_on_a_cpu"] = same(here, expected)
            ids = torch.tensor([prompts[0].ids], device=bench.device)
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count,
                    do_sample=False, pad_token_id=0,
                )[0, ids.shape[1] :].tolist()  # fmt: skip
            found["greedy_as_transformers"] = out[: len(here[0][0].ids)] == here[0][0].ids
            bench.keep(stage="right", dtype=dtype, **found)


def gradients(model, groups, size: int) -> list[torch.Tensor]:
    """Return the log-probabilities and the gradients of a micro-batch, on the CPU."""
    from rlm.learner.rehearsal import learn

    model.zero_grad()
    logprobs = learn(groups, model, vocab_size=size)
    learned = [p.grad for _, p in sorted(model.named_parameters()) if p.grad is not None]
    return [x.detach().float().cpu() for x in (logprobs, *learned)]


def gap(got: list, want: list) -> float:
    """Return how far gradients are off, as a share of their norm."""
    a, b = (torch.cat([x.flatten() for x in each[1:]]) for each in (got, want))
    return float((a - b).norm() / b.norm())


def far(one, other) -> float:
    return float((one - other).abs().max())


def same(one, other) -> int:
    """Return how many rollouts have the same tokens."""
    pairs = zip(one, other, strict=True)
    return sum(x.ids == y.ids for g, h in pairs for x, y in zip(g, h, strict=True))


def graphs_of(engine) -> dict:
    """Return what an engine has captured."""
    graphs = engine._runner.graphs
    return {"captured": len(graphs._graphs), "broken": graphs.broken} if graphs else {}


def sampler_gap(model, prompts, groups, size: int) -> float:
    """Return the largest difference of a token's log-probability, engine and learner."""
    from rlm.learner.logprobs import pack, token_logprobs

    batch = [(p.ids, [r.ids for r in group]) for p, group in zip(prompts, groups, strict=True)]
    packed = pack(batch, device=model.device)
    with torch.no_grad():
        said = token_logprobs(model, packed, temperature=0.9, vocab_size=size)[0].cpu()
    heard = torch.tensor([x for group in groups for r in group for x in r.logprobs])
    return far(said, heard)


def learner(bench) -> None:
    from rlm.learner import lm_head
    from rlm.learner.optimizer import Optimizer
    from rlm.learner.rehearsal import learn
    from rlm.learner.token_budget import checkpoint

    tokens = 256 if bench.small else 16384
    model = lora_model(bench, "Qwen3-0.6B")
    size = model.config.vocab_size
    ids = torch.randint(5, size, (tokens + 1,)).tolist()
    loads = {
        "one row": [(ids[:1], [ids[1:]])],
        "groups": [(ids[:128], [ids[i : i + 257] for i in range(0, 256, 32)])]
        * (1 if bench.small else 7),
    }
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-6

    def variant(name: str, *, again: bool, masked: bool = False, small_chunks: bool = False):
        checkpoint(model, on=again)
        before = lm_head.LOGITS
        lm_head.LOGITS = before | {"cuda": 2**23} if small_chunks else before
        for load, groups in loads.items():
            count = sum(len(p) + sum(len(c) - 1 for c in cs) for p, cs in groups)

            def work(groups=groups):
                learn(groups, model, vocab_size=size)
                optimizer.step()

            what = {"stage": "learner", "variant": name, "load": load, "tokens": count}
            with bench.tried(**what), masks() if masked else contextlib.nullcontext():
                found = bench.timed(work)
                bench.keep(**what, tokens_per_second=round(count / found["seconds"]), **found)
        lm_head.LOGITS = before

    variant("flash, checkpointing", again=True)
    variant("flash", again=False)
    variant("flash, small chunks of logits", again=False, small_chunks=True)
    variant("masks, checkpointing", again=True, masked=True)
    variant("masks", again=False, masked=True)


def decode(bench) -> None:
    from rlm.engine.engine import Engine, Sampling

    model = lora_model(bench, "0.5B")
    size = model.config.vocab_size
    count, groups, each = (8, 2, 2) if bench.small else (128, 32, 8)
    prompts, rows = random_prompts(size, groups), groups * each
    sampling = Sampling(count)

    def engine(name: str, *, graphs: bool, repeats: int):
        what = {"stage": "decode", "variant": name, "rows": rows}
        with bench.tried(**what):
            made = Engine(model, Words(size), cuda_graphs=graphs)
            found = bench.timed(lambda: made.generate(prompts, each, sampling, seed=1), repeats)
            rate = round(rows * count / found["seconds"])
            step = round(found["seconds"] / count * 1e3, 2)
            bench.keep(
                **what, tokens_per_second=rate, ms_a_step=step, **found, graphs=graphs_of(made)
            )

    engine("graphs", graphs=not bench.small, repeats=3)
    engine("no graphs", graphs=False, repeats=1)
    what = {"stage": "decode", "variant": "transformers generate", "rows": rows}
    with bench.tried(**what):
        longest = max(len(p.ids) for p in prompts)
        ids = torch.zeros(rows, longest, dtype=torch.long, device=bench.device)
        mask = torch.zeros_like(ids)
        for row in range(rows):
            own = prompts[row // each].ids
            ids[row, longest - len(own) :] = torch.tensor(own)
            mask[row, longest - len(own) :] = 1

        def work():
            with torch.no_grad():
                model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=count,
                    min_new_tokens=count, do_sample=True, top_k=0, temperature=1.0, pad_token_id=0,
                )  # fmt: skip

        found = bench.timed(work, repeats=1)
        rate, step = rows * count / found["seconds"], found["seconds"] / count * 1e3
        bench.keep(**what, tokens_per_second=round(rate), ms_a_step=round(step, 2), **found)


def step(bench) -> None:
    from contenders import Ours, Theirs, Work
    from shapes import WORKLOADS

    shape = WORKLOADS["cpu"]["small"] if bench.small else WORKLOADS["cuda"]["q05"]
    if bench.small:
        shape = replace(
            shape, prompts=2, group=2, max_tokens=8, hidden=64, layers=2, vocabulary=512,
            heads=4, mlp=128,
        )  # fmt: skip
    dtype = torch.float32 if bench.small else torch.bfloat16
    work = Work("small" if bench.small else "q05", shape, dtype, bench.device)

    def turn(name: str, side, number: int) -> None:
        found = side.step(number)
        found.pop("detail", None)
        bench.keep(
            stage="step", side=name, turn=number, **{k: round(v, 3) for k, v in found.items()}
        )

    ours: Any = None
    with bench.tried(stage="step", side="ours"):
        ours = Ours(work, 0.0)
        for number in range(-2, 3):  # the first ones capture graphs
            turn("ours", ours, number)
    for name, fastest in (("TRL, fastest", True), ("TRL, defaults", False)):
        with bench.tried(stage="step", side=name):
            theirs = Theirs(work, 0.0, fastest=fastest)
            for number in (-1, 0, 1):
                turn(name, theirs, number)
                if ours:
                    turn("ours", ours, 10 + number)
            del theirs
            torch.cuda.empty_cache()


def run(bench) -> None:
    """The users' own command; what it logs is the proof."""
    words = [
        "train.py", "--config", "configs/tiny_demo.yaml", "--run", "gpu", "--device", bench.device,
        "--weights", str(bench.out / "weights"), "--resume", "never", "--overwrite",
    ]  # fmt: skip
    few = ["--grpo-max-steps", "2", "--sft-max-steps", "4", "--eval-samples", "8"]
    words += [*few, "--num-samples", "64"] if bench.small else []
    began = time.time()
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    print(done.stdout[-4000:], done.stderr[-3000:])
    seconds = round(time.time() - began)
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    bench.keep(stage="run", code=done.returncode, seconds=seconds, table=table)
    for stage in ("sft", "grpo"):
        path = ROOT / "runs" / "gpu" / stage / "log.csv"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=False))
            bench.keep(stage="run", log=stage, last=json.dumps(last)[:1500])


def seven(bench) -> None:
    from rlm.engine.engine import Engine, Sampling
    from rlm.learner.rehearsal import learn
    from rlm.learner.token_budget import checkpoint

    model = lora_model(bench, "7B")
    size = model.config.vocab_size
    count, groups, each = (8, 2, 2) if bench.small else (48, 32, 8)
    prompts = random_prompts(size, groups)
    with bench.tried(stage="seven", what="decode"):
        engine = Engine(model, Words(size), cuda_graphs=not bench.small)
        sampling = Sampling(count)
        found = bench.timed(lambda: engine.generate(prompts, each, sampling, seed=1), repeats=2)
        rate = round(groups * each * count / found["seconds"])
        bench.keep(
            stage="seven", what="decode", rows=groups * each, tokens_per_second=rate,
            ms_a_step=round(found["seconds"] / count * 1e3, 2), **found, graphs=graphs_of(engine),
        )  # fmt: skip
        engine.close() if hasattr(engine, "close") else engine.reset()
        if bench.device == "cuda":
            torch.cuda.empty_cache()
    ids = torch.randint(5, size, (9000,)).tolist()
    many, few = (1, 1) if bench.small else (4, 1)
    group = (ids[:128], [ids[i : i + 512] for i in range(0, 256, 32)])
    long = (ids[:128], [ids[: 256 if bench.small else 8192]])
    for name, groups_, again in (
        ("4 x 8 x 512, checkpointing", [group] * many, True),
        ("1 x 8 x 512", [group] * few, False),
        ("a completion of 8,192, checkpointing", [long], True),
    ):
        with bench.tried(stage="seven", what=name):
            checkpoint(model, on=again)
            tokens = sum(len(p) + sum(len(c) - 1 for c in cs) for p, cs in groups_)
            found = bench.timed(lambda g=groups_: learn(g, model, vocab_size=size), repeats=2)
            rate = round(tokens / found["seconds"])
            bench.keep(stage="seven", what=name, tokens=tokens, tokens_per_second=rate, **found)


STAGES = {
    "facts": facts, "right": right, "learner": learner, "decode": decode, "step": step,
    "run": run, "seven": seven,
}  # fmt: skip
