"""Models compared on the same questions: what changed, how surely, and of what kind the change is.

Pure numbers out of the rows of `rlm.evaluation.measure`; it asks no model. A question's answer is
right, wrong (it was read and is not the gold one) or unreadable. So every gain is one of two kinds:

    format gain      unreadable before, right now
    reasoning gain   read before and wrong, right now

Losses are counted alike, and the four parts add up to the difference exactly. A format gain can
hold some reasoning: `number_was_right` says how many of them already ended on the right number.
The strict reading takes the answer where the format has it; the lenient one takes the last number
of the text, whatever its format. Below them is the card: the same metrics in Markdown, with what
they mean beside them.
"""

import re
from collections import Counter

from rlm.answers.kinds import UNJUDGED
from rlm.answers.reading import REASONS
from rlm.data.splits import question_key
from rlm.evaluation import sharpening
from rlm.evaluation.markdown import WIDTH, p_value, percent, points, table
from rlm.evaluation.measure import Evaluation
from rlm.evaluation.sharpening import RESAMPLES, Sampled, pairs_of
from rlm.evaluation.statistics import bootstrap, mcnemar, wilson
from rlm.records import Example
from rlm.seeds import derive


def compare(
    evaluations: list[Evaluation],
    examples: list[Example],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict:
    """Return the metrics of models that answered the same questions.

    models: each model's own metrics. differences: of each to the first and to the one before.
    by_steps, by_digits: right answers by the known solution's steps (0: not known) and by the
    digits of the largest number in question or answer. pass_at_k: with several samples of each
    question, `rlm.evaluation.sharpening.pass_at_k_metrics`; else None. ValueError unless every
    evaluation has a row of every example, in order, and there are two or more.
    """
    ids = [example.id for example in examples]
    if len(evaluations) < 2 or any([row["id"] for row in e.rows] != ids for e in evaluations):
        raise ValueError("a comparison needs two or more evaluations of the same examples")
    digits = [largest_number(example) for example in examples]
    return {
        "questions": len(examples),
        "resamples": resamples,
        "models": [one_model(evaluation) for evaluation in evaluations],
        "differences": [
            difference(before, after, seed=seed, resamples=resamples)
            for before, after in pairs_of(evaluations)
        ],
        "pass_at_k": sharpening.pass_at_k_metrics(
            [sampled(evaluation) for evaluation in evaluations], seed=seed, resamples=resamples
        ),
        "by_steps": strata(evaluations, [example.steps for example in examples]),
        "by_digits": strata(evaluations, digits),
    }


def sampled(evaluation: Evaluation) -> Sampled:
    """Return the right samples of each question."""
    right = [row["right_samples"] for row in evaluation.rows]
    return Sampled(evaluation.name, right, evaluation.summary["samples"])


def proportion(count: int, total: int) -> dict:
    """Return a count with its share of the total and the share's 95 % Wilson interval."""
    low, high = wilson(count, total)
    return {"count": count, "share": count / total, "low": low, "high": high}


def one_model(evaluation: Evaluation) -> dict:
    """Return a model's right answers by both readings, and why the others were not read.

    unjudged: could not be judged. unreadable: all of them; reasons: each reason's, they add up to
    it. truncated: completions cut off at the maximum of tokens. Every share is of all questions.
    """
    rows, total = evaluation.rows, len(evaluation.rows)
    reasons = Counter(row["reason"] for row in rows if row["verdict"] == "unreadable")
    return {
        "model": evaluation.name,
        "strict": proportion(sum(strict(row) for row in rows), total),
        "lenient": proportion(sum(lenient(row) for row in rows), total),
        "wrong": proportion(sum(row["verdict"] == "wrong" for row in rows), total),
        "unreadable": proportion(sum(row["verdict"] == "unreadable" for row in rows), total),
        "unjudged": proportion(sum(row["verdict"] == UNJUDGED for row in rows), total),
        "truncated": proportion(sum(row["finish"] == "length" for row in rows), total),
        "reasons": {name: proportion(reasons[name], total) for name in REASONS if reasons[name]},
    }


def strict(row: dict) -> bool:
    """Return whether the answer that stands where the format has it is right."""
    return row["verdict"] == "right"


def lenient(row: dict) -> bool:
    """Return whether the last number of the text is right, wherever it stands."""
    return bool(row["last_number"])


def difference(before: Evaluation, after: Evaluation, *, seed: int, resamples: int) -> dict:
    """Return what changed from one model to another, by both readings, and the parts of it."""
    pairs = list(zip(before.rows, after.rows, strict=True))
    name = ("bootstrap", seed, before.name, after.name)
    return {
        "before": before.name,
        "after": after.name,
        "strict": paired([(strict(a), strict(b)) for a, b in pairs],
                         seed=derive(*name, "strict"), resamples=resamples),
        "lenient": paired([(lenient(a), lenient(b)) for a, b in pairs],
                          seed=derive(*name, "lenient"), resamples=resamples),
        "parts": parts(pairs),
    }  # fmt: skip


def paired(outcomes: list[tuple[bool, bool]], *, seed: int, resamples: int) -> dict:
    """Return the difference of two shares of right answers to the same questions.

    outcomes: (right before, right after) of each question. low, high: the 95 % percentile
    interval of `resamples` paired bootstrap samples. p: McNemar's exact test, two-sided.
    """
    gained = sum(after and not before for before, after in outcomes)
    lost = sum(before and not after for before, after in outcomes)
    changes = [int(after) - int(before) for before, after in outcomes]
    low, high = bootstrap(changes, resamples, seed)
    return {
        "gained": gained,
        "lost": lost,
        "difference": (gained - lost) / len(outcomes),
        "low": low,
        "high": high,
        "p": mcnemar(gained, lost),
    }


def parts(pairs: list[tuple[dict, dict]]) -> dict:
    """Return the questions behind a difference, by kind; the counts add up to it:

    right now - right before = format_gain + reasoning_gain - format_loss - reasoning_loss.
    number_was_right: of format_gain, those whose last number was right before.
    """
    kinds = Counter((before["verdict"], after["verdict"]) for before, after in pairs)
    format_gains = [b for b, a in pairs if (b["verdict"], a["verdict"]) == ("unreadable", "right")]
    return {
        "format_gain": kinds["unreadable", "right"],
        "reasoning_gain": kinds["wrong", "right"],
        "format_loss": kinds["right", "unreadable"],
        "reasoning_loss": kinds["right", "wrong"],
        "number_was_right": sum(map(lenient, format_gains)),
    }


def largest_number(example: Example) -> int:
    """Return the digits before the point of the largest number in question or answer; 0: none.

    >>> largest_number(Example("1", "Calculate 1,230 + 5", "1235"))
    4
    """
    found = re.findall(r"\d+", re.sub(r"\.\d+", "", question_key(example.question)))
    found += re.findall(r"\d+", example.gold.replace(",", "").partition(".")[0])
    return max((len(number.lstrip("0")) or 1 for number in found), default=0)


def strata(evaluations: list[Evaluation], labels: list[int]) -> list[dict]:
    """Return for each label its questions and, by model, the right answers of both readings."""
    found = []
    for label in sorted(set(labels)):
        places = [i for i, each in enumerate(labels) if each == label]
        right = {
            e.name: {
                "strict": proportion(sum(strict(e.rows[i]) for i in places), len(places)),
                "lenient": proportion(sum(lenient(e.rows[i]) for i in places), len(places)),
            }
            for e in evaluations
        }
        found.append({"label": label, "questions": len(places), "models": right})
    return found


def items(evaluations: list[Evaluation], examples: list[Example]) -> list[dict]:
    """Return a row per question with every model's verdict: all that the metrics are made of."""
    rows = []
    for i, example in enumerate(examples):
        row = {"id": example.id, "template": example.template, "steps": example.steps}
        row |= {"digits": largest_number(example), "prompt": example.question}
        row["gold"] = example.gold
        for e in evaluations:
            for name in ("answer", "verdict", "reason", "finish"):
                row[f"{e.name}: {name}"] = e.rows[i][name]
            row[f"{e.name}: last number right"] = int(lenient(e.rows[i]))
            if e.summary["samples"] > 1:
                row[f"{e.name}: right samples"] = e.rows[i]["right_samples"]
        rows.append(row)
    return rows


# --- the card


READINGS = ("strict", "lenient")


def card(metrics: dict, facts: dict[str, object]) -> str:
    """Return the card. facts: what was asked and how, a line each (`task`, `seed`, ...)."""
    names = [model["model"] for model in metrics["models"]]
    parts = [
        f"# {', '.join(names)} on the same {metrics['questions']} questions",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        _accuracy(metrics),
        _differences(metrics),
        _parts(metrics),
        sharpening.card(metrics["pass_at_k"]) if metrics["pass_at_k"] else "",
        _reasons(metrics),
        _strata(metrics, "by_steps", "steps", "the known solution's steps"),
        _strata(metrics, "by_digits", "digits", "the digits of the largest number"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def brief(metrics: dict) -> str:
    """Return the differences for the console, a few lines each."""
    lines = []
    for each in metrics["differences"]:
        lines.append(f"{each['before']} -> {each['after']}")
        for reading in READINGS:
            change = each[reading]
            lines.append(f"  {reading:7}  {points(change)} points, p {p_value(change['p'])}, "
                         f"{change['gained']} gained, {change['lost']} lost")  # fmt: skip
        kinds = each["parts"]
        net = {kind: kinds[f"{kind}_gain"] - kinds[f"{kind}_loss"] for kind in
               ("format", "reasoning")}  # fmt: skip
        lines.append(f"  of {each['strict']['gained'] - each['strict']['lost']:+d} questions: "
                     f"format {net['format']:+d}, reasoning {net['reasoning']:+d}")  # fmt: skip
    if metrics["pass_at_k"]:
        lines += ["", sharpening.brief(metrics["pass_at_k"])]
    return "\n".join(lines)


def _accuracy(metrics: dict) -> str:
    columns = ["strict", "lenient", "wrong", "unreadable", "truncated"]
    names = ["strict", "lenient", "wrong", "unreadable", "cut off"]
    more = ""
    if any(m["unjudged"]["count"] for m in metrics["models"]):
        columns, names = [*columns, "unjudged"], [*names, "unjudged"]
        more = " *Unjudged*: the comparison of the answer took too long; it counts as not right."
    rows = [[m["model"], *(percent(m[name]) for name in columns)] for m in metrics["models"]]
    return "\n\n".join((
        "## Accuracy",
        table(["model", *names], rows),
        "Per cent of the questions, with 95 % Wilson intervals. *Strict*: the answer is right that "
        "stands where the format has it. *Lenient*: the last number of the text is right, whatever "
        "its format. *Wrong*: an answer was read and is not the known one. *Cut off*: at the "
        "maximum of tokens." + more,
    ))  # fmt: skip


def _differences(metrics: dict) -> str:
    rows = [
        [f"{each['before']} → {each['after']}", reading, points(each[reading]),
         each[reading]["gained"], each[reading]["lost"], p_value(each[reading]["p"])]
        for each in metrics["differences"] for reading in READINGS
    ]  # fmt: skip
    return "\n\n".join((
        "## Differences",
        table(["from → to", "reading", "points", "gained", "lost", "p"], rows),
        f"Percentage points, with the 95 % interval of {metrics['resamples']:,} paired bootstrap "
        f"resamples of the questions (percentiles). {WIDTH} *Gained*, *lost*: "
        "questions that became right, became not right. *p*: McNemar's exact test, two-sided, not "
        "corrected for the number of comparisons.",
    ))  # fmt: skip


def _parts(metrics: dict) -> str:
    rows, total = [], metrics["questions"]
    for each in metrics["differences"]:
        kinds, change = each["parts"], each["strict"]
        cells = [f"{sign}{kinds[name]} ({100 * kinds[name] / total:.1f})"
                 for name, sign in (("format_gain", "+"), ("reasoning_gain", "+"),
                                    ("format_loss", "-"), ("reasoning_loss", "-"))]  # fmt: skip
        net = change["gained"] - change["lost"]
        rows.append([f"{each['before']} → {each['after']}", f"{net:+d} ({100 * net / total:+.1f})",
                     *cells, kinds["number_was_right"]])  # fmt: skip
    return "\n\n".join((
        "## What the difference is made of",
        table(["from → to", "strict difference", "format gain", "reasoning gain", "format loss",
               "reasoning loss", "number was right"], rows),
        "Questions (percentage points); the four parts add up to the difference. *Format gain*: "
        "unreadable before, right now. *Reasoning gain*: read before and wrong, right now. Losses "
        "alike. *Number was right*: of the format gain, the questions whose last number was "
        "right before, so that only the form was missing.",
    ))  # fmt: skip


def _reasons(metrics: dict) -> str:
    models = metrics["models"]
    names = list(dict.fromkeys(name for model in models for name in model["reasons"]))
    if not names:
        return "## Why answers were not read\n\nEvery answer was read."
    none = {"count": 0, "share": 0.0}
    rows = []
    for model in models:
        found = [model["unreadable"], *(model["reasons"].get(name, none) for name in names)]
        rows.append([model["model"], *(f"{x['count']} ({100 * x['share']:.1f})" for x in found)])
    return "\n\n".join((
        "## Why answers were not read",
        table(["model", "unreadable", *names], rows),
        "Questions (per cent of all). The reasons are explained in rlm/answers/reading.py.",
    ))  # fmt: skip


def _strata(metrics: dict, name: str, column: str, meaning: str) -> str:
    found = metrics[name]
    if {each["label"] for each in found} == {0}:
        return ""
    names = [model["model"] for model in metrics["models"]]
    head = [column, "questions", *(f"{m} ({r})" for m in names for r in READINGS)]
    rows = [
        [each["label"] or "unknown", each["questions"],
         *(percent(each["models"][m][r]) for m in names for r in READINGS)]
        for each in found
    ]  # fmt: skip
    return f"## By {meaning}\n\n{table(head, rows)}"
