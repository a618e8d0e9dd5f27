"""How much longer a model with windows or states takes than one with full attention alone, and
what `--engine transformers` takes beside TRL's GRPOTrainer at its defaults.

    python benchmarks/families_speed.py      # writes benchmarks/results/families_speed.json

Random models of about one size, in float32: a rollout (one prompt shared by its group) and a pass
of the learner, forward and backward. All take turns in one process, on one thread; each figure is
the median of the rounds' ratios of processor time to the model of full attention in the same round,
with the lowest and the highest. The step beside TRL's is that of grpo_vs_trl.py on the shipped tiny
base, a Llama, by generate and padded forwards.
"""

import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from contenders import Ours, Theirs  # noqa: E402
from grpo_vs_trl import work_of  # noqa: E402

from rlm import files  # noqa: E402
from rlm.engine.engine import Engine, Sampling  # noqa: E402
from rlm.learner.logprobs import pack, token_logprobs, use  # noqa: E402
from rlm.models.loading import add_lora  # noqa: E402
from rlm.records import Prompt  # noqa: E402
from tests.support.tiny_families import tiny_family  # noqa: E402
from tests.support.tiny_models import byte_tokenizer  # noqa: E402

OUTPUT = Path(__file__).parent / "results" / "families_speed.json"
SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 32,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
MIXED = ["linear_attention"] * 3 + ["full_attention"]
DELTA = {
    "layer_types": MIXED, "linear_num_value_heads": 8, "linear_num_key_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
MAMBA = {
    "layer_types": MIXED, "shared_intermediate_size": 768, "num_local_experts": 0,
    "mamba_expand": 1, "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 64,
    "mamba_chunk_size": 256,
}  # fmt: skip
CONVOLUTIONS = {
    "layer_types": ["conv" if kind == "linear_attention" else kind for kind in MIXED],
    "block_auto_adjust_ff_dim": False,
}
KIMI = {
    "layer_types": MIXED, "linear_head_dim": 32, "linear_num_heads": 8, "first_k_dense_replace": 4,
    "kv_lora_rank": 64, "q_lora_rank": None, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32,
    "v_head_dim": 32, "num_key_value_heads": 8,
}  # fmt: skip
MODELS: dict[str, tuple[str, dict]] = {  # the first is what the others are compared with
    "full": ("qwen3", {}),
    "windows": ("mistral", {"sliding_window": 128}),
    "delta": ("qwen3_5_text", DELTA),
    "kimi": ("kimi_linear", KIMI),
    "mamba2": ("granitemoehybrid", MAMBA),
    "convolutions": ("lfm2", CONVOLUTIONS),
}
PROMPT, GROUP, NEW, ROUNDS, STEPS = 200, 16, 100, 5, 3


def main() -> int:
    torch.set_num_threads(1)
    prompt = Prompt([(31 * i * i + 17 * i + 5) % 250 for i in range(PROMPT)])
    works = {name: Work(*MODELS[name], prompt) for name in MODELS}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in MODELS}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            for stage in ("rollout", "learning"):
                began = time.process_time()
                getattr(work, stage)()
                if turn:  # the first is for what is made once
                    found[name].setdefault(stage, []).append(time.process_time() - began)
    first = found.pop("full")
    report = {
        "prompt_tokens": PROMPT, "group": GROUP, "completion_tokens": NEW, "rounds": ROUNDS,
        "weights": {name: work.weights for name, work in works.items()},
        "full_seconds": {stage: round(statistics.median(x), 2) for stage, x in first.items()},
        "ratios": {
            name: {s: ratio(times, first[s]) for s, times in stages.items()}
            for name, stages in found.items()
        },
        "transformers_over_trl": beside_trl(),
    }  # fmt: skip
    files.write_json(OUTPUT, report)
    print(report)
    return 0


def ratio(times: list[float], others: list[float]) -> dict[str, float]:
    """Return the median of the rounds' ratios, the lowest and the highest."""
    found = [a / b for a, b in zip(times, others, strict=True)]
    named = {"median": statistics.median(found), "low": min(found), "high": max(found)}
    return {name: round(value, 2) for name, value in named.items()}


def beside_trl() -> dict:
    """Return the seconds a token of a GRPO step by `--engine transformers` over those of TRL."""
    work = work_of("tiny", "float32", "cpu", {})
    sides: dict[str, Ours | Theirs] = {
        "ours": Ours(work, 0.0, transformers=True),
        "trl": Theirs(work, 0.0, fastest=False),
    }
    turns: dict[str, list[dict]] = {name: [] for name in sides}
    for turn in range(STEPS + 1):
        for name, side in sides.items():
            took = side.step(turn)
            if turn:
                turns[name].append(took)

    def each(name: str, phase: str) -> list[float]:
        return [took[phase] / took["tokens"] for took in turns[name]]

    phases = ("rollout", "learn", "step")
    return {phase: ratio(each("ours", phase), each("trl", phase)) for phase in phases} | {
        "load": work.load(), "rounds": STEPS, "weights": "weights/tiny_base"
    }  # fmt: skip


class Work:
    """A model with a LoRA, its engine, and the completions that it learns from."""

    def __init__(self, family: str, settings: dict, prompt: Prompt):
        model = tiny_family(family, spread=0.02, **SIZES | settings)
        model.generation_config.eos_token_id = None
        self.weights = sum(p.numel() for p in model.parameters())
        self.model = add_lora(model, r=8, alpha=16, seed=0)
        tokenizer = byte_tokenizer()
        self.engine, self.prompt = Engine(self.model, tokenizer), prompt
        self.engine.stop_ids = frozenset()  # every completion has its full length
        self.ids = [[(7 * i + g) % 250 for i in range(NEW)] for g in range(GROUP)]

    def rollout(self) -> None:
        self.engine.generate([self.prompt], GROUP, Sampling(NEW), seed=0)

    def learning(self) -> None:
        with use(self.model):
            logprobs, _ = token_logprobs(self.model, pack([(self.prompt.ids, self.ids)]))
            logprobs.sum().backward()
        self.model.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
