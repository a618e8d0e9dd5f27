"""The table of docs/speed.md that gpu.py's figures make: benchmarks/results/gpu_*.jsonl."""

import json
import statistics
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).parent / "results"


def table(name: str = "gpu_h100") -> str:
    """Return what was measured on a card, a row each."""
    found = figures(name)
    facts = next(f for f in found if f["stage"] == "facts" and "versions" in f)
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    lines = [[f"on one {facts['gpu']}", "tokens/s", "seconds", "GB"]]
    lines += [line for make in (learner, decode, step, seven) for line in make(found)]
    return markdown_table(lines) + f"\n\nMeasured with CUDA {facts['cuda']}, {versions}."


def figures(name: str) -> list[dict]:
    text = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def row(title: str, found: dict) -> list[str]:
    return [title, f"{found['tokens_per_second']:,}", f"{found['seconds']:.2f}",
            f"{found['peak_gb']:.1f}"]  # fmt: skip


def of(found: list[dict], stage: str) -> list[dict]:
    return [f for f in found if f["stage"] == stage and "tokens_per_second" in f]


def learner(found: list[dict]) -> list[list[str]]:
    loads = {"one row": "one row of 16,384 tokens", "groups": "7 groups of 8 × 256 tokens"}
    return [
        row(f"learner, Qwen3-0.6B, {loads[f['load']]}; {f['variant']}", f)
        for f in of(found, "learner")
    ]


def decode(found: list[dict]) -> list[list[str]]:
    return [
        row(f"decoding, Qwen2.5-0.5B, {f['rows']} rows of 128 tokens; {f['variant']}", f)
        for f in of(found, "decode")
    ]


def step(found: list[dict]) -> list[list[str]]:
    """Return the medians of the turns after the warm-up, of ours and of TRL's."""
    sides: dict[str, list[dict]] = {}
    for each in found:
        if each["stage"] == "step" and each.get("turn", -1) >= 0:
            sides.setdefault(each["side"], []).append(each)
    lines = []
    for side, turns in sides.items():
        seconds = statistics.median(turn["step"] for turn in turns)
        rate = statistics.median(turn["tokens"] / turn["step"] for turn in turns)
        most = max(max(turn["rollout_mb"], turn["learn_mb"]) for turn in turns) / 1024
        title = f"a GRPO step, 0.5B, 32 × 8 × up to 256 tokens; {side}"
        lines.append([title, f"{rate:,.0f}", f"{seconds:.2f}", f"{most:.1f}"])
    return lines


def seven(found: list[dict]) -> list[list[str]]:
    lines = []
    for each in of(found, "seven"):
        rows = f", {each['rows']} rows of 48 tokens" if each["what"] == "decode" else ""
        lines.append(row(f"Qwen2.5-7B: {each['what']}{rows}", each))
    return lines
