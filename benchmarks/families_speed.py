"""How much longer a model with windows or states takes than one with full attention alone.

    python benchmarks/families_speed.py      # writes benchmarks/results/families_speed.json

Random models of about one size, in float32: a rollout (one prompt shared by its group) and a pass
of the learner, forward and backward. All take turns in one process; each figure is the median of
the rounds' ratios of processor time to the model of full attention in the same round.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch

from rlm import files
from rlm.engine.engine import Engine, Sampling
from rlm.learner.logprobs import pack, token_logprobs, use
from rlm.models.loading import add_lora
from rlm.records import Prompt
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import byte_tokenizer

OUTPUT = Path(__file__).parent / "results" / "families_speed.json"
SIZES = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "head_dim": 32,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
STATES = {
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
    "linear_num_value_heads": 8, "linear_num_key_heads": 4,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
MODELS = {  # the first is what the others are compared with
    "full": ("qwen3", {}),
    "windows": ("mistral", {"sliding_window": 128}),
    "states": ("qwen3_5_text", STATES),
}
PROMPT, GROUP, NEW, ROUNDS = 200, 16, 100, 5


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
        "full_seconds": {stage: statistics.median(times) for stage, times in first.items()},
        "ratios": {
            name: {s: round(ratio(times, first[s]), 2) for s, times in stages.items()}
            for name, stages in found.items()
        },
    }  # fmt: skip
    files.write_json(OUTPUT, report)
    print(report)
    return 0


def ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


class Work:
    """A model with a LoRA, its engine, and the completions that it learns from."""

    def __init__(self, family: str, settings: dict, prompt: Prompt):
        model = tiny_family(family, spread=0.02, **SIZES | settings)
        model.generation_config.eos_token_id = None
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
