"""The table of what the tiny base learns to do with a calculator, beside its control."""

import json
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).parent / "results"
ROWS = {
    "base": "the base",
    "sft": "after SFT: some demonstrations call",
    "grpo": "after GRPO",
    "control_sft": "control, no tools: after SFT",
    "control_grpo": "control, no tools: after GRPO",
}


def learning() -> str:
    """Return right answers of every seed with their interval, and what was called, over seeds.

    calls: a completion. failed: of the calls.
    """
    path = RESULTS / "learning_tools.json"
    if not path.exists():
        return "Not measured yet: `python benchmarks/learning.py --part tools`."
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    head = ["", *(f"seed {run['seed']}" for run in results), "calls", "failed, %", "tokens",
            "tokens by tools"]  # fmt: skip
    lines = [head]
    for stage, title in ROWS.items():
        found = [run[stage] for run in results]

        def mean(name, found=found):
            values = [summary.get(name, 0.0) for summary in found]
            return sum(values) / len(values)

        calls = [f"{mean('calls_mean'):.1f}", f"{100 * mean('failed_call_fraction'):.1f}"]
        tokens = [f"{mean(name):.0f}" for name in ("mean_tokens", "tool_tokens")]
        lines.append([title, *map(accuracy, found), *calls, *tokens])
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in results)
    table = markdown_table(lines)
    return f"{table}\n\nSeconds of both stages and their evaluations: {seconds}."


def accuracy(summary: dict) -> str:
    low, high, right = (
        f"{100 * summary[name]:.1f}" for name in ("accuracy_low", "accuracy_high", "accuracy")
    )
    return f"{right} [{low}, {high}]"
