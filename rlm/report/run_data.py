"""What a run's folder holds, read for its report: metrics, settings, evaluations, warnings.

Only reads. A run that was interrupted, or a file cut off by a crash, is read as far as it goes:
a last line of a table without its end is left out, since its last number may be half of one.
"""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from rlm import files

LAST = 0.25  # share of the steps at the end that a warning looks at
ORDER = ("base", "sft", "grpo")


@dataclass(frozen=True)
class RunData:
    """One run's folder.

    rows: the metrics of each step, in order; only what is a number. evaluations: (name, summary)
    of each measured model, those of the run's parent (a train.py run) first. warnings: lines.
    pass_at_k: what `rlm.evaluation.sharpening.pass_at_k_metrics` found, of comparisons with several
    samples in the folder and in its parent.
    """

    path: Path
    settings: dict
    rows: list[dict]
    evaluations: list[tuple[str, dict]]
    warnings: list[str]
    pass_at_k: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the run's name, such as ``demo/grpo``."""
        return self.settings.get("run") or self.path.name

    def seconds(self) -> dict[str, float]:
        """Return what the steps took in all, by what they did: columns that end in _seconds."""
        totals: dict[str, float] = {}
        for row in self.rows:
            for name, value in row.items():
                if name.endswith("_seconds") and math.isfinite(value):
                    name = name.removesuffix("_seconds")
                    totals[name] = totals.get(name, 0.0) + value
        return totals


def read(folder: str | Path, *, running: bool = False) -> RunData:
    """Return what is known of the run in `folder`; of an empty folder that is nothing.

    running: its steps are still coming, so their number is nothing to warn of.
    """
    path = Path(folder)
    settings, rows = files.read_object(path / "settings.json"), read_rows(path)
    messages = _from_console(path / "console.log")
    if not running:
        messages += _how_it_ended(rows, settings)
    messages += _from_metrics(rows, settings)
    return RunData(path, settings, rows, _evaluations(path), messages, _pass_at_k(path))


def stages(folder: str | Path) -> list[Path]:
    """Return the folders whose steps a report shows: this one, or a train.py run's stages."""
    path = Path(folder)
    if (path / "log.csv").exists():
        return [path]
    return [path / name for name in ORDER if (path / name / "log.csv").exists()]


def read_rows(folder: Path) -> list[dict]:
    """Return log.csv with times.csv joined by step; what stands there twice becomes one row."""
    merged: dict[float, dict] = {}
    for name in ("log.csv", "times.csv"):
        for row in _csv_rows(folder / name):
            if math.isfinite(row.get("step", math.nan)):
                old = merged.setdefault(row["step"], {})
                merged[row["step"]] = old | row if name == "log.csv" else row | old
    return [merged[step] for step in sorted(merged)]


def _csv_rows(path: Path) -> list[dict]:
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            whole = (line.replace("\0", "") for line in file if line.endswith("\n"))
            return [_numbers(row) for row in csv.DictReader(whole)]
    except (OSError, csv.Error):
        return []


def _numbers(row: dict) -> dict[str, float]:
    found = {}
    for name, text in row.items():
        try:
            found[name] = float(text)
        except (TypeError, ValueError):
            continue  # empty, a text, or the end of a line that was cut off
    return found


def _evaluations(folder: Path) -> list[tuple[str, dict]]:
    """Return (name, summary) of every evaluation of the folder and of its parent run."""
    found: dict[str, dict] = {}
    for place in (folder.parent, folder):
        for summary in _summaries(place):
            found.setdefault(str(summary.get("model")), summary)
    rank = {name: i for i, name in enumerate(ORDER)}
    ordered = sorted(found.items(), key=lambda item: rank.get(item[0], len(rank)))
    own = files.read_object(folder / "validation.json")
    return ordered + ([("validation", own)] if _is_summary(own) else [])


def _summaries(folder: Path) -> list[dict]:
    try:
        made = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = []
    others = sorted(p for p in folder.glob("*.json") if p.name != "validation.json")
    both = [*(made if isinstance(made, list) else []), *map(files.read_object, others)]
    return [each for each in both if _is_summary(each)]


def _is_summary(value) -> bool:
    names = ("accuracy", "accuracy_low", "accuracy_high", "questions")
    return isinstance(value, dict) and all(isinstance(value.get(n), int | float) for n in names)


def _pass_at_k(folder: Path) -> list[dict]:
    """Return pass@k of the folder's comparisons and of its parent's, each once."""
    found: list[dict] = []
    for place in (folder.parent, folder):
        for path in sorted(place.glob("*.json")):
            made = files.read_object(path).get("pass_at_k")
            if not isinstance(made, dict) or made in found:
                continue
            if {"models", "differences"} <= made.keys():
                found.append(made)
    return found


def _from_console(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    told = [line.partition("warning: ")[2] or line for line in lines if "warning" in line.lower()]
    return list(dict.fromkeys(told))[:50]


def _how_it_ended(rows: list[dict], settings: dict) -> list[str]:
    if not rows:
        return ["no step was logged"]
    last, wanted = int(rows[-1]["step"]), settings.get("max_steps") or 0
    return [f"it ended at step {last} of {wanted}"] if last < wanted else []


def _from_metrics(rows: list[dict], settings: dict) -> list[str]:
    """Return what the metrics themselves warn of."""
    told = list[str]()
    broken: dict[str, list[int]] = {}
    for row in rows:
        for name in (name for name, value in row.items() if not math.isfinite(value)):
            broken.setdefault(name, []).append(int(row["step"]))
    for name, steps in sorted(broken.items()):
        more = f"{len(steps)} steps, first at " if len(steps) > 1 else "step "
        told.append(f"{name} is not finite at {more}{steps[0]}")
    end = rows[-max(1, round(LAST * len(rows))) :] if rows else []

    def mean(name: str) -> float:
        values = [row[name] for row in end if math.isfinite(row.get(name, math.nan))]
        return sum(values) / len(values) if values else math.nan

    if mean("truncated_fraction") > 0.2:
        share, limit = mean("truncated_fraction"), settings.get("max_tokens")
        told.append(f"at the end {share:.0%} of the completions were cut off at {limit} tokens")
    if mean("unreadable_fraction") > 0.2:
        told.append(f"at the end no answer could be read in {mean('unreadable_fraction'):.0%}")
    if mean("live_fraction") < 0.1:
        told.append(f"at the end only {mean('live_fraction'):.0%} of the groups taught anything")
    return told
