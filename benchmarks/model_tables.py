"""The table of docs/models.md, from benchmarks/results/families.json; see benchmarks/tables.py."""

import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "families.json"


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
