"""The tables of docs/models.md, from benchmarks/results/families*.json; see tables.py."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "families.json"
SPEED = {
    "windows": "windows of 128 tokens (mistral)",
    "states": "states in 6 of 8 layers (qwen3_5_text)",
}


def families() -> str:
    """Return a line a family: how it runs and what was seen."""
    found = json.loads(RESULT.read_text(encoding="utf-8"))["families"]
    head = ["family", "engine", "learner", "tokens", "log-probabilities", "gradients"]
    lines = [head, ["---"] * len(head)]
    for seen in found:
        if seen["verdict"] == "not made":
            lines.append([seen["family"], "not made", *[""] * 4])
            continue
        equal = "equal" if seen["greedy_equal"] else "differ"
        gaps = [f"{seen[name]:.0e}" for name in ("logprob_gap", "gradient_gap")]
        lines.append([seen["family"], seen["engine"], seen["learner"], equal, *gaps])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def speed() -> str:
    """Return the seconds of models with windows and states over those of full attention."""
    found = json.loads((RESULTS / "families_speed.json").read_text(encoding="utf-8"))["ratios"]
    lines = ["|  | rollout | learning |", "| --- | --- | --- |"]
    for name, title in SPEED.items():
        lines.append(f"| {title} | {found[name]['rollout']} | {found[name]['learning']} |")
    return "\n".join(lines)
