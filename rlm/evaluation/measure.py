"""What a model does with questions: each answer read and judged, and the metrics of them all.

It does not know how a model was trained, and no gold answer is read before the model has
answered. Greedy unless a temperature is given.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

from rlm import files
from rlm.answers import formats, kinds
from rlm.answers.formats import turn_of
from rlm.evaluation import markdown, statistics
from rlm.models.prompts import make_prompt
from rlm.tools.metrics import call_metrics

UNSHOWN = ("value", "strict", "last_value")  # what a row has no column for


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
    asking=None,
) -> Evaluation:
    """Return what the engine's model does with `examples`; greedy when temperature is 0.

    asking: more of how it is asked, for `rlm.models.prompts.make_prompt`; its tools may be called.

    With several samples a row shows the majority's answer (`row_of`).
    """
    from rlm.engine.engine import Sampling

    asking = asking or {}
    prompts = [
        make_prompt(e.question, tokenizer, format_name, **asking, **e.asks) for e in examples
    ]
    tools = asking.get("tools")
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, tools=tools)
    start = time.perf_counter()
    groups = engine.generate(prompts, samples, sampling, seed=seed)
    seconds = time.perf_counter() - start
    judged = judge_groups(examples, groups, format_name)
    rows = [row_of(e, group) for e, group in zip(examples, judged, strict=True)]
    summary = summarise(name, rows, judged, samples)
    if tools:
        flat = [rollout for group in groups for rollout in group]
        right = [float(sample["right"]) for group in judged for sample in group]
        summary |= call_metrics(flat, right)
    return Evaluation(name, rows, summary | {"seconds": seconds})


def row_of(example, group: list[dict]) -> dict:
    """Return the row of a question: its majority's answer, the first sample that gave it.

    group: its judged samples. last_number: whether the majority of their last numbers is right.
    """
    winner, last = (
        statistics.majority([sample[name] for sample in group]) for name in ("value", "last_value")
    )
    row = {"id": example.id, "template": example.template, "prompt": example.question}
    row |= {k: v for k, v in group[winner or 0].items() if k not in UNSHOWN}
    row["last_number"] = group[last or 0]["last_number"]
    return row | {"gold": example.gold, "right_samples": sum(s["right"] for s in group)}


def judge_groups(examples, groups, format_name: str) -> list[list[dict]]:
    """Return [B][G] readings of completions: verdict, reason, and the facts for the shares."""
    flat = [(e, r) for e, group in zip(examples, groups, strict=True) for r in group]
    verdicts = iter(
        kinds.judge_all(
            [e for e, _ in flat],
            [r.own_text for _, r in flat],
            format_name,
            finishes=[r.finish for _, r in flat],
        )
    )
    lasts = iter(
        kinds.last_statements([e for e, _ in flat], [turn_of(r.own_text) for _, r in flat])
    )
    found = []
    for group in groups:
        own = [next(verdicts) for _ in group]
        labels = kinds.votes(own)
        found.append(
            [
                facts(rollout, format_name, verdict, next(lasts)) | {"value": label}
                for rollout, verdict, label in zip(group, own, labels, strict=True)
            ]
        )
    return found


def judge(example, rollout, format_name: str) -> dict:
    """Return the reading of one completion, as `judge_groups` does."""
    return judge_groups([example], [[rollout]], format_name)[0][0]


def facts(rollout, format_name: str, verdict: kinds.Verdict, last: kinds.Verdict | None) -> dict:
    """Return what is known of one completion; value is added by who counts the votes."""
    text = turn_of(rollout.own_text)  # a tool's result is no answer of the model's
    parsed = formats.parse(text, formats.get_format(format_name))
    return {
        "reasoning": parsed.reasoning or "",
        "answer": verdict.canonical or "",
        "verdict": verdict.word,
        "reason": verdict.reason or "",
        "tokens": rollout.length,
        "finish": rollout.finish,
        "right": bool(verdict.right),
        "steps": numbered_steps(text),
        "text": rollout.text,
        "strict": parsed.strict,
        "last_number": bool(last and last.right),
        "last_value": last.value if last else None,
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
    accuracy_lenient: the same of the answers' last numbers, whatever their format.
    thinking_proportion: completions with a reasoning that is not blank.
    answer_proportion: completions whose answer can be read.
    step_by_step: completions with at least two numbered steps.
    last_number: completions whose last number is the gold one, whatever their format.
    pass@k, with several samples, for the k of `statistics.pass_sizes`: the chance that one of k is
    right, with a 95 % Wilson interval over the questions. For k below the samples it is too wide
    rather than too narrow: a question's chance varies less than right or wrong does.
    unjudged: completions whose answer could not be judged (kind math only); they count as not
    right, so where there are many, accuracy is a lower bound.
    """
    flat = [sample for group in judged for sample in group]

    def share(holds) -> float:
        return sum(bool(holds(sample)) for sample in flat) / len(flat)

    right, lenient = (sum(row[name] for row in rows) for name in ("right", "last_number"))
    low, high = statistics.wilson(right, len(rows))
    lenient_low, lenient_high = statistics.wilson(lenient, len(rows))
    metrics = {
        "model": name,
        "questions": len(rows),
        "samples": samples,
        "accuracy": right / len(rows),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_lenient": lenient / len(rows),
        "accuracy_lenient_low": lenient_low,
        "accuracy_lenient_high": lenient_high,
        "format_rate": share(lambda s: s["strict"]),
        "thinking_proportion": share(lambda s: s["reasoning"].strip()),
        "answer_proportion": share(lambda s: s["value"] is not None),
        "step_by_step": share(lambda s: s["steps"] >= 2),
        "last_number": share(lambda s: s["last_number"]),
        "unjudged": share(lambda s: s["verdict"] == kinds.UNJUDGED),
        "cut_off": share(lambda s: s["finish"] == "length"),
        "mean_tokens": sum(s["tokens"] for s in flat) / len(flat),
    }
    if samples > 1:
        per_question = [sum(s["right"] for s in group) for group in judged]
        for k in statistics.pass_sizes(samples):
            passed = [statistics.pass_at_k(samples, r, k) for r in per_question]
            metrics[f"pass@{k}"] = sum(passed) / len(passed)
            bounds = statistics.wilson(min(sum(passed), len(passed)), len(passed))
            metrics[f"pass@{k}_low"], metrics[f"pass@{k}_high"] = bounds
        metrics["majority"] = metrics["accuracy"]
    return metrics


def table(summaries: list[dict]) -> str:
    """Return the summaries as a Markdown table that is also readable in a terminal.

    accuracy: by the strict reading, of the answer that stands where the format has it; lenient:
    by the last number. unjudged: where there are such. Where tools were there: calls a completion,
    the share of calls that failed, and of right answers with and without a call.
    """
    head = ["format", "thinking", "answer", "steps", "tokens", "seconds"]
    unjudged = any(s.get("unjudged") for s in summaries)
    head = ["unjudged", *head] if unjudged else head
    called = any("calls_mean" in s for s in summaries)
    head = ["calls", "failed", "right with / without", *head] if called else head
    extra = [k for k in summaries[0] if k.startswith("pass@") and f"{k}_low" in summaries[0]]
    lines = []
    for s in summaries:
        shares = ("format_rate", "thinking_proportion", "answer_proportion", "step_by_step")
        lines.append(
            [s["model"], accuracy_cell(s, "accuracy"), accuracy_cell(s, "accuracy_lenient")]
            + [accuracy_cell(s, k) for k in extra]
            + ([f"{100 * s['unjudged']:.1f} %"] if unjudged else [])
            + (call_cells(s) if called else [])
            + [f"{100 * s[k]:.1f} %" for k in shares]
            + [f"{s['mean_tokens']:.1f}", f"{s['seconds']:.1f}"]
        )
    passes = [f"{name} [95 %]" for name in extra]
    return markdown.table(["model", "accuracy [95 %]", "lenient [95 %]", *passes, *head], lines)


def call_cells(summary: dict) -> list[str]:
    """Return what a table says of a summary's calls, as cells; – where there is nothing to say.

    >>> call_cells({"calls_mean": 2.0, "failed_call_fraction": 0.25, "right_with_call": 0.5})
    ['2.0', '25.0 %', '50.0 % / –']
    """
    if "calls_mean" not in summary:
        return ["–"] * 3
    names = ("failed_call_fraction", "right_with_call", "right_without_call")
    failed, with_call, without = (
        f"{100 * summary[name]:.1f} %" if name in summary else "–" for name in names
    )
    return [f"{summary['calls_mean']:.1f}", failed, f"{with_call} / {without}"]


def accuracy_cell(summary: dict, name: str) -> str:
    """Return an accuracy of a summary with its interval, as a cell: ` 50.0 % [9.5, 90.5]`."""
    low, high = 100 * summary[f"{name}_low"], 100 * summary[f"{name}_high"]
    return f"{100 * summary[name]:5.1f} % [{low:.1f}, {high:.1f}]"


def told(summary: dict) -> str:
    """Return both accuracies of a summary in words; an old one may have no lenient one.

    >>> told({"accuracy": 0.25, "accuracy_lenient": 0.5})
    'accuracy 0.250, by the last number 0.500'
    """
    lenient = summary.get("accuracy_lenient")
    last = "" if lenient is None else f", by the last number {lenient:.3f}"
    return f"accuracy {summary['accuracy']:.3f}{last}"


def save(evaluation: Evaluation, csv_path: str | Path) -> None:
    """Write the rows to `csv_path` and the summary beside it as .json."""
    files.write_csv(csv_path, evaluation.rows)
    files.write_json(Path(csv_path).with_suffix(".json"), evaluation.summary)
