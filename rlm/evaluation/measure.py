"""What a model does with questions: each answer read and judged, and the metrics of them all.

It does not know how a model was trained, and no gold answer is read before the model has
answered. Greedy unless a temperature is given.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from rlm import files
from rlm.answers import formats, reading
from rlm.evaluation import markdown, statistics
from rlm.models.prompts import make_prompt

NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")  # 1,234.5 is one


@dataclass(frozen=True)
class Evaluation:
    """rows: one dictionary per question, in the order of the examples. summary: the metrics."""

    name: str
    rows: list[dict]
    summary: dict


def measure(
    engine,
    tokenizer,
    examples,
    format_name,
    *,
    name,
    max_tokens,
    samples=1,
    temperature=0.0,
    seed=0,
) -> Evaluation:
    """Return what the engine's model does with `examples`; greedy when temperature is 0.

    With several samples the row shows the majority's answer: the first sample that gave it.
    """
    from rlm.engine.engine import Sampling

    prompts = [make_prompt(e.question, tokenizer, format_name) for e in examples]
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    start = time.perf_counter()
    groups = engine.generate(prompts, samples, sampling, seed=seed)
    seconds = time.perf_counter() - start
    judged = [
        [judge(e, rollout, format_name) for rollout in group]
        for e, group in zip(examples, groups, strict=True)
    ]
    rows = []
    for example, group in zip(examples, judged, strict=True):
        winner = statistics.majority([sample["value"] for sample in group])
        chosen = group[winner or 0]
        row = {"id": example.id, "template": example.template, "prompt": example.question}
        row |= {k: v for k, v in chosen.items() if k not in ("value", "strict")}
        row |= {"gold": example.gold, "right_samples": sum(s["right"] for s in group)}
        rows.append(row)
    return Evaluation(name, rows, summarise(name, rows, judged, samples) | {"seconds": seconds})


def judge(example, rollout, format_name: str) -> dict:
    """Return the reading of one completion: verdict, reason, and the facts for the shares."""
    parsed = formats.parse(rollout.text, formats.get_format(format_name))
    answer = reading.read_answer(rollout.text, format_name)
    gold = reading.read_gold(example.gold)
    right = reading.equal(answer, gold)
    numbers = NUMBER.findall(rollout.text[-2000:])
    return {
        "reasoning": parsed.reasoning or "",
        "answer": answer.canonical or "",
        "verdict": "right" if right else "unreadable" if answer.value is None else "wrong",
        "reason": answer.reason or "",
        "tokens": len(rollout.ids),
        "finish": rollout.finish,
        "right": right,
        "steps": numbered_steps(rollout.text),
        "text": rollout.text,
        "value": answer.value,
        "strict": parsed.strict,
        "last_number": bool(numbers) and reading.equal(reading.read_gold(numbers[-1]), gold),
    }


def numbered_steps(text: str) -> int:
    """Return how many of the steps "1.", "2.", ... open a line, counted without a gap.

    >>> numbered_steps("1. 2 + 3 = 5\\n2. 5 + 4 = 9")
    2
    """
    found = {int(n) for n in re.findall(r"^\s{0,8}(\d{1,3})[.)]\s", text, re.MULTILINE)}
    count = 0
    while count + 1 in found:
        count += 1
    return count


def summarise(name: str, rows: list[dict], judged: list[list[dict]], samples: int) -> dict:
    """Return the metrics of one model. Every share is of all completions but the accuracy.

    accuracy: share of questions whose (majority) answer is right, with its 95 % Wilson interval.
    thinking_proportion: completions with a reasoning that is not blank.
    answer_proportion: completions whose answer can be read.
    step_by_step: completions with at least two numbered steps.
    last_number: completions whose last number is the gold one, whatever their format.
    """
    flat = [sample for group in judged for sample in group]

    def share(holds) -> float:
        return sum(bool(holds(sample)) for sample in flat) / len(flat)

    right = sum(row["right"] for row in rows)
    low, high = statistics.wilson(right, len(rows))
    metrics = {
        "model": name,
        "questions": len(rows),
        "samples": samples,
        "accuracy": right / len(rows),
        "accuracy_low": low,
        "accuracy_high": high,
        "format_rate": share(lambda s: s["strict"]),
        "thinking_proportion": share(lambda s: s["reasoning"].strip()),
        "answer_proportion": share(lambda s: s["value"] is not None),
        "step_by_step": share(lambda s: s["steps"] >= 2),
        "last_number": share(lambda s: s["last_number"]),
        "cut_off": share(lambda s: s["finish"] == "length"),
        "mean_tokens": sum(s["tokens"] for s in flat) / len(flat),
    }
    if samples > 1:
        per_question = [sum(s["right"] for s in group) for group in judged]
        for k in (1, samples):
            passed = [statistics.pass_at_k(samples, r, k) for r in per_question]
            metrics[f"pass@{k}"] = sum(passed) / len(passed)
        metrics["majority"] = metrics["accuracy"]
    return metrics


def table(summaries: list[dict]) -> str:
    """Return the summaries as a Markdown table that is also readable in a terminal."""
    head = [
        "model",
        "accuracy [95 %]",
        "format",
        "thinking",
        "answer",
        "steps",
        "tokens",
        "seconds",
    ]
    extra = [k for k in summaries[0] if k.startswith("pass@")]
    lines = [head[:2] + extra + head[2:]]
    for s in summaries:
        interval = f"[{100 * s['accuracy_low']:.1f}, {100 * s['accuracy_high']:.1f}]"
        shares = ("format_rate", "thinking_proportion", "answer_proportion", "step_by_step")
        lines.append(
            [s["model"], f"{100 * s['accuracy']:5.1f} % {interval}"]
            + [f"{100 * s[k]:.1f} %" for k in extra]
            + [f"{100 * s[k]:.1f} %" for k in shares]
            + [f"{s['mean_tokens']:.1f}", f"{s['seconds']:.1f}"]
        )
    return markdown.table(lines[0], lines[1:])


def save(evaluation: Evaluation, csv_path: str | Path) -> None:
    """Write the rows to `csv_path` and the summary beside it as .json."""
    files.write_csv(csv_path, evaluation.rows)
    files.write_json(Path(csv_path).with_suffix(".json"), evaluation.summary)
