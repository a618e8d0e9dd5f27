"""The tables of docs/models.md, from benchmarks/results/families*.json; see tables.py."""

import json
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "families.json"
SPEED = {
    "windows": "windows of 128 tokens (mistral)",
    "delta": "Gated DeltaNet in 3 of 4 layers (qwen3_5_text)",
    "kimi": "Kimi's delta attention in 3 of 4 layers (kimi_linear)",
    "mamba2": "Mamba-2 in 3 of 4 layers (granitemoehybrid)",
    "convolutions": "short convolutions in 3 of 4 layers (lfm2)",
}


def families() -> str:
    """Return a line a family: how it runs and what was seen."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))["families"]
    head = ["family", "engine", "learner", "tokens", "log-probabilities", "gradients"]
    lines = [head]
    for seen in found:
        if seen["verdict"] == "not made":
            lines.append([seen["family"], "not made", *[""] * 4])
            continue
        equal = "equal" if seen["greedy_equal"] else "differ"
        gaps = [f"{seen[name]:.0e}" for name in ("logprob_gap", "gradient_gap")]
        lines.append([seen["family"], seen["engine"], seen["learner"], equal, *gaps])
    return markdown_table(lines)


def speed() -> str:
    """Return the seconds of models with windows and states over those of full attention."""
    found = json.loads((RESULTS / "families_speed.json").read_text(encoding="utf-8"))
    lines = [["", "10⁶ weights", "rollout", "learning"]]
    weights = {name: f"{count / 1e6:.1f}" for name, count in found["weights"].items()}
    lines.append(["full attention alone (qwen3)", weights["full"], "1", "1"])
    for name, title in SPEED.items():
        ratios = (_spread(found["ratios"][name][stage]) for stage in ("rollout", "learning"))
        lines.append([title, weights[name], *ratios])
    return markdown_table(lines)


def beside_trl() -> str:
    """Return the seconds of a step by `--engine transformers` over those of TRL's trainer."""
    found = json.loads((RESULTS / "families_speed.json").read_text(encoding="utf-8"))
    phases = {"rollout": "generate", "learn": "learn", "step": "the step"}
    ratios = [_spread(found["transformers_over_trl"][phase]) for phase in phases]
    return markdown_table([phases.values(), ratios])


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})"


def sizes() -> str:
    """Return the memory that each stage of well-known checkpoints needs, in GB."""
    found = json.loads((RESULTS / "model_sizes.json").read_text(encoding="utf-8"))
    head = [
        "checkpoint", "10⁹ weights", "LoRA, 10⁶", "cache, KB a token", "state, MB a row",
        "SFT", "GRPO", "serving", "numbers from",
    ]  # fmt: skip
    lines = [head]
    for one in found["checkpoints"]:
        lines.append([
            one["name"], f"{one['weights'] / 1e9:.2f}", f"{one['lora'] / 1e6:.1f}",
            f"{one['token_bytes'] / 1e3:.0f}", f"{one['state_bytes'] / 1e6:.1f}",
            *(f"{one[f'{stage}_bytes'] / 1e9:.1f}" for stage in ("sft", "grpo", "serving")),
            one["source"],
        ])  # fmt: skip
    return markdown_table(lines)


def size_sources() -> str:
    """Return where the numbers of the configurations are from."""
    found = json.loads((RESULTS / "model_sizes.json").read_text(encoding="utf-8"))
    return "\n".join(f"- {name}: {text}." for name, text in found["sources"].items())
