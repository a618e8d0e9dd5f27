"""The tables of docs/results.md, from benchmarks/results/real_prompts_*.json and real_models.json.

benchmarks/tables.py puts them into the document.
"""

import json
from pathlib import Path

from markdown_table import markdown_table

RESULTS = Path(__file__).parent / "results"
PLAIN = "plain"
READINGS = ("accuracy", "accuracy_lenient")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def cell(summary: dict, reading: str) -> str:
    """Return an accuracy with its 95 % interval, in per cent."""
    low, high = percent(summary[f"{reading}_low"]), percent(summary[f"{reading}_high"])
    return f"{percent(summary[reading])} [{low}, {high}]"


def prompts(task: str) -> str:
    """Return how well each way to ask was followed, a row a way, a block a model."""
    found = json.loads((RESULTS / f"real_prompts_{task}.json").read_text(encoding="utf-8"))
    head = ["model", "format", "wording", "place", "examples", "in format", "strict", "lenient",
            "tokens", "cut off"]  # fmt: skip
    rows = [
        [name, r["format"], r["wording"], r["place"], str(r["shots"]), percent(r["format_rate"]),
         percent(r["accuracy"]), percent(r["last_number"]), f"{r['mean_tokens']:.0f}",
         percent(r["cut_off"])]
        for name, asked in found["models"].items() for r in asked
    ]  # fmt: skip
    return markdown_table([head, *rows])


def results(part: str) -> str:
    """Return what each row of a part reached, with the commands that made it."""
    found = json.loads((RESULTS / "real_models.json").read_text(encoding="utf-8"))
    mine = {name: row for name, row in found["rows"].items() if name.startswith(f"{part}/")}
    head = ["", "strict", "lenient", "in format", "tokens", "cut off", "training, min"]
    rows, machines = [], {}
    for row in mine.values():
        test = row["test"]
        minutes = f"{row['seconds'][0] / 60:.1f}" if len(row["seconds"]) > 1 else ""
        many = (row.get("demonstrations") or {}).get("count")
        title = row["title"] + (f" ({many})" if many else "")
        rows.append([title, *(cell(test, r) for r in READINGS), percent(test["format_rate"]),
                     f"{test['mean_tokens']:.0f}", percent(test["cut_off"]), minutes])  # fmt: skip
        machine = row["machine"]
        machines[f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"] = 1
    questions = max(row["test"]["questions"] for row in mine.values())
    # One command of train.py makes several rows.
    every = dict.fromkeys(command for row in mine.values() for command in row["commands"])
    commands = "\n".join(every)
    whole = [row["seconds"][0] / 60 for row in mine.values() if len(row["seconds"]) == 1
             and row["commands"][0].startswith("python train.py")]  # fmt: skip
    took = "".join(f"train.py took {minutes:.0f} min with its evaluations. " for minutes in whole)
    return (
        f"{markdown_table([head, *rows])}\n\n"
        f"Per cent of {questions} questions, with 95 % intervals. "
        f"{took}{'; '.join(machines)}; other programs ran beside some rows.\n\n"
        f"<details><summary>Commands</summary>\n\n```\n{commands}\n```\n</details>"
    )


def changes(part: str) -> str:
    """Return what each training changed, format and reasoning apart."""
    found = json.loads((RESULTS / "real_models.json").read_text(encoding="utf-8"))
    head = ["", "strict", "lenient", "format gained", "reasoning gained", "format lost",
            "reasoning lost"]  # fmt: skip

    def points(change: dict) -> str:
        low, high = 100 * change["low"], 100 * change["high"]
        return f"{100 * change['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"

    rows = []
    for name, each in found["differences"].items():
        before, _, after = name.partition(" > ")
        if not after.startswith(f"{part}/"):
            continue
        titles = (found["rows"][row]["title"] for row in (before, after))
        parts = each["parts"]
        rows.append([" → ".join(titles), points(each["strict"]), points(each["lenient"]),
                     *(str(parts[k]) for k in ("format_gain", "reasoning_gain", "format_loss",
                                               "reasoning_loss"))])  # fmt: skip
    return markdown_table([head, *rows])
