"""Every family of transformers' causal language models, tiny and random: how it runs here.

    python benchmarks/families.py                         # all; writes results/families.json
    python benchmarks/families.py gemma3_text qwen3_5_text    # some; writes nothing

For each: the engine's greedy tokens against model.generate, on prompts that are longer than the
windows of 16 tokens; the learner's log-probabilities against a plain forward; its gradients, of
all weights, against those of the plain forward. WRONG where a token or a number differs, and the
exit code is 1. `not made`: transformers' own forward or generate fails at this size.
"""

import argparse
import logging
import os
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch  # noqa: E402

from rlm import files  # noqa: E402
from rlm.engine.engine import Engine, Sampling  # noqa: E402
from rlm.engine.native import NativeRunner  # noqa: E402
from rlm.learner.logprobs import pack, token_logprobs, way_of  # noqa: E402
from rlm.records import Prompt  # noqa: E402
from tests.support.tiny_families import tiny_family  # noqa: E402
from tests.support.tiny_models import SIZE, byte_tokenizer  # noqa: E402

RESULT = Path(__file__).parent / "results" / "families.json"
FAMILIES = """llama qwen2 qwen3 qwen3_moe qwen3_next qwen3_5_text qwen3_5_moe_text mistral ministral
ministral3 mixtral gemma gemma2 gemma3_text gemma3n_text gemma4_text phi phi3 phimoe smollm3 olmo
olmo2 olmo3 olmo_hybrid olmoe flex_olmo granite granitemoe granitemoehybrid granite_swa falcon
falcon_h1 falcon_mamba gpt2 gpt_neox gpt_oss cohere cohere2 stablelm starcoder2 exaone4 glm glm4
glm4_moe deepseek_v2 deepseek_v3 deepseek_v4 minimax minimax_m2 ernie4_5 ernie4_5_moe
hunyuan_v1_dense seed_oss apertus lfm2 lfm2_moe mamba mamba2 jamba bamba zamba2 nemotron nemotron_h
recurrent_gemma helium arcee bitnet diffllama kimi_linear vaultgemma opt bloom gptj codegen mpt
persimmon rwkv xlstm dots1 doge longcat_flash jetmoe""".split()  # noqa: SIM905
TEXTS = ("Each hen lays two eggs; how many eggs do nine hens lay?", "2+2=")
EXACT = 1e-3  # nats of a log-probability, and share of the largest gradient


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help="of transformers' model_type; default: all")
    given = parser.parse_args(argv).families
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = []
    for name in given or FAMILIES:
        found.append(look(name))
        print(f"{name:20} {told(found[-1])}", flush=True)
    wrong = [each for each in found if each["verdict"] == "WRONG"]
    if not given:
        import transformers

        facts = {"transformers": transformers.__version__, "torch": torch.__version__}
        files.write_json(RESULT, {"versions": facts, "families": found})
    return 1 if wrong else 0


def look(name: str) -> dict:
    """Return what was seen of a family."""
    began = time.perf_counter()
    try:
        model = tiny_family(name)
        if name in ("gemma2", "vaultgemma"):  # as rlm.models.text_model loads them
            model.set_attn_implementation("eager")
        expected = [greedy(model, list(text.encode())) for text in TEXTS]
    except Exception as error:  # transformers' own
        said = (str(error).strip().splitlines() or [""])[0]
        return {"family": name, "verdict": "not made", "why": f"{type(error).__name__}: {said}"}
    prompts = [Prompt(list(text.encode())) for text in TEXTS]
    engine = Engine(model, byte_tokenizer())
    groups = engine.generate(prompts, 2, Sampling(30, temperature=0.0), seed=0)
    same = all(r.ids == ids for group, ids in zip(groups, expected, strict=True) for r in group)
    gap, gradient = learned(model, [(p.ids, [e]) for p, e in zip(prompts, expected, strict=True)])
    runner = engine._runner
    fine = same and gap < EXACT and gradient < EXACT
    return {
        "family": name,
        "verdict": "ok" if fine else "WRONG",
        "class": type(model).__name__,
        "engine": "native" if isinstance(runner, NativeRunner) else "transformers",
        "why": "" if isinstance(runner, NativeRunner) else runner.support.why,
        "learner": way_of(model),
        "greedy_equal": same,
        "logprob_gap": gap,
        "gradient_gap": gradient,
        "seconds": round(time.perf_counter() - began, 1),
    }


def told(seen: dict) -> str:
    if seen["verdict"] == "not made":
        return f"not made: {seen['why'][:100]}"
    return (
        f"{seen['verdict']}: engine {seen['engine']}, learner {seen['learner']}, greedy tokens "
        f"{'equal' if seen['greedy_equal'] else 'DIFFER'}, log-probabilities off by "
        f"{seen['logprob_gap']:.1e}, gradients by {seen['gradient_gap']:.1e}. {seen['why'][:60]}"
    )


def greedy(model, ids: list[int]) -> list[int]:
    """Return what transformers' own generate makes of a prompt."""
    row = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=30, do_sample=False,
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


def learned(model, groups) -> tuple[float, float]:
    """Return how far the learner's log-probabilities and gradients are from the plain forward's."""
    found, _ = token_logprobs(model, pack(groups), vocab_size=SIZE)
    found.sum().backward()
    ours = taken(model)
    rows = []
    for prompt, (ids,) in groups:
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0].float()
        own = logits[len(prompt) - 1 : -1, :SIZE].log_softmax(-1)
        rows.append(own.gather(1, torch.tensor(ids)[:, None])[:, 0])
    true = torch.cat(rows)
    true.sum().backward()
    theirs = taken(model)
    largest = max(float(g.abs().max()) for g in theirs.values())
    off = max(float((ours.get(n, 0 * g) - g).abs().max()) for n, g in theirs.items())
    return float((found - true).detach().abs().max()), off / largest


def taken(model) -> dict[str, torch.Tensor]:
    """Return the gradients of a model and leave it without."""
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
