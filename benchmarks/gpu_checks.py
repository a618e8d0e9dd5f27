"""The stages of gpu.py whose figures have to be right: the card's own, and ours beside a CPU's."""

import contextlib
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from gpu_pieces import ROOT, cudnn, masks, not_zero

from rlm.models.memory import wait

VERSIONS = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "vllm")


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
                    wait(bench.device)
                    began = time.perf_counter()
                    F.scaled_dot_product_attention(query, keys, keys, bias[..., :width])
                    wait(bench.device)
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
