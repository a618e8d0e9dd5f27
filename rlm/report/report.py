"""The report of a run: one file, report.html, that opens anywhere and loads nothing.

    python -m rlm.report runs/demo          # writes runs/demo/report.html, of both stages
    python -m rlm.report runs/demo/grpo
    python -m rlm.report watch runs/demo    # serves it while the run goes on: rlm/report/watch.py

`write` only reads the run's files, so it works for a run that was interrupted, or is running.
The page is rlm/report/report.html with the style, rlm/report/report.js with the rollout browser.
Its policy allows that one script and that one style by their hashes, and nothing else: whatever a
model wrote stays text.

Slot for a graph of agents: a record of rollouts.jsonl may hold
    "agents": [{"id": "solver", "prompt": "...", "output": "...", "reads": ["planner"]}, ...]
    "graph": the graph's name
`reads` names the agents whose output this one was given. They are drawn as boxes by level, with
each prompt and output folded below.
"""

import base64
import hashlib
import json
import math
import re
import sys
from datetime import datetime
from html import escape
from pathlib import Path

from rlm import files
from rlm.errors import InputError
from rlm.evaluation import sharpening
from rlm.evaluation.markdown import percent, points
from rlm.report import charts, plots
from rlm.report.curves import curves
from rlm.report.rollout_sample import BUDGET_BYTES, sample
from rlm.report.run_data import RunData, read, stages

HERE = Path(__file__).parent
USAGE = """\
usage: python -m rlm.report RUN_FOLDER...          writes report.html and plots there
       python -m rlm.report watch RUN_FOLDER       serves it while the run goes on; --help"""
TABLE_STEPS = 12  # of the metrics shown as numbers
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_lenient": "by the last number",
    "format_rate": "format",
    "thinking_proportion": "thinking",
    "answer_proportion": "answer read",
    "step_by_step": "step by step",
    "cut_off": "cut off",
}


def write(folder: str | Path, budget: int = BUDGET_BYTES, *, running: bool = False) -> Path:
    """Write report.html and, with matplotlib, the plots into a run's folder; return its path.

    Of a train.py run also those of its stages, which know its evaluations only now. budget:
    bytes of rollouts.jsonl that the page holds at most. running: more steps will come; the page
    says so, and there are no plots yet.
    """
    folder = Path(folder)
    parts = stages(folder)
    for part in parts:
        if part != folder:
            write(part, budget)
    if parts == [folder] and not running:
        data = read(folder)
        plots.write(curves(data.rows, _questions(data)), folder)
    page = render(folder, budget=budget, running=running)
    return files.write_text(folder / "report.html", page)


def render(
    folder: Path,
    *,
    budget: int = BUDGET_BYTES,
    end: float = math.inf,
    running: bool = False,
    watched: str = "",
) -> str:
    """Return the page of a run's folder; nothing is written.

    budget, end: bytes of rollouts.jsonl that the page holds at most, and that are looked at.
    watched: what stands above a page that renews itself, as HTML; that one may ask its server.
    """
    parts = stages(folder)
    whole = read(folder, running=running)
    shown = [read(part, running=running and part == parts[-1]) for part in parts]
    scripts = ["report.js", "watch.js"] if watched else ["report.js"]
    return fill(
        {
            "TITLE": escape(f"Run {whole.name}"),
            "BODY": _body(whole, shown, running),
            "TAIL": "".join(_settings(data, len(shown) > 1) for data in shown or [whole]),
            "DATA": _json(sample(rollouts_of(folder), budget, end)),
            "SCRIPT": "".join((HERE / name).read_text(encoding="utf-8") for name in scripts),
            "WATCHED": watched,
            "CONNECT": "; connect-src 'self'" if watched else "",
        }
    )


def rollouts_of(folder: Path) -> Path:
    """Return the rollouts.jsonl that a report shows: the run's, or that of its last stage."""
    found = [part / "rollouts.jsonl" for part in reversed(stages(folder))]
    return next((path for path in found if path.exists()), folder / "rollouts.jsonl")


def fill(values: dict[str, str]) -> str:
    """Return the page with each @@NAME@@ of the template filled in, at once."""
    template = (HERE / "report.html").read_text(encoding="utf-8")
    style = template.split("<style>")[1].split("</style>")[0]
    values = values | {"SCRIPT_HASH": _hash(values["SCRIPT"]), "STYLE_HASH": _hash(style)}
    return re.sub(r"@@([A-Z_]+)@@", lambda found: values[found[1]], template)


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(value) -> str:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _body(whole: RunData, shown: list[RunData], running: bool) -> str:
    first = shown[0] if shown else whole
    settings = whole.settings or first.settings
    facts = [str(settings[n]) for n in ("model", "task", "format") if settings.get(n)]
    parts = [f"<h1>Run {escape(whole.name)}</h1>"]
    parts.append(f'<p class="facts">{escape(", ".join(facts))}</p>')
    if running:
        parts.append(f'<p class="facts">{escape(_progress(shown))}</p>')
    several = len(shown) > 1
    told = [
        f"{data.path.name}: {text}" if several else text
        for data in (shown or [whole])
        for text in data.warnings
    ]
    if told:
        items = "".join(f"<li>{escape(text)}</li>" for text in told)
        parts.append(
            f'<div class="warnings" role="note"><strong>Warnings</strong><ul>{items}</ul></div>'
        )
    if whole.evaluations:
        parts += ["<h2>Evaluations</h2>", _evaluations(whole.evaluations)]
    if whole.pass_at_k:
        parts += ["<h2>Learned, or only sharpened</h2>", *map(_pass_at_k, whole.pass_at_k)]
    for data in shown:
        parts.append(f"<h2>Training{escape(': ' + data.path.name) if several else ''}</h2>")
        parts.append(_training(data))
    return "\n".join(parts)


def _progress(shown: list[RunData]) -> str:
    """Return how far a run that goes on has come, and when that was written."""
    last = shown[-1] if shown else None
    if last is None or not last.rows:
        return "It runs: no step has been logged yet."
    step, wanted = int(last.rows[-1]["step"]), last.settings.get("max_steps") or 0
    done = f"step {step} of {wanted}" if wanted >= step else f"step {step}"
    stage = f"{last.path.name}: " if len(shown) > 1 else ""
    return f"It runs, or was stopped: {stage}{done}, logged {_clock(last.path / 'log.csv')}."


def _clock(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M:%S")


def _evaluations(found: list[tuple[str, dict]]) -> str:
    columns = {n: t for n, t in COLUMNS.items() if any(n in summary for _, summary in found)}
    head = "".join(f'<th class="n" scope="col">{text}</th>' for text in columns.values())
    rows = []
    for name, summary in found:
        cells = [f'<td class="n">{_percent(summary.get(column))}</td>' for column in columns]
        low, high = summary["accuracy_low"], summary["accuracy_high"]
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{_bar(summary)}</td>{cells[0]}'
            f'<td class="n">{_percent(low)} to {_percent(high)}</td>{"".join(cells[1:])}'
            f'<td class="n">{_figure(summary.get("mean_tokens"))}</td>'
            f'<td class="n">{int(summary["questions"])}</td></tr>'
        )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">model</th><th></th>'
        + head.replace("</th>", '</th><th class="n" scope="col">95 % interval</th>', 1)
        + '<th class="n" scope="col">tokens</th><th class="n" scope="col">questions</th></tr>'
        + f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pass_at_k(found: dict) -> str:
    """Return pass@k of a comparison, a line a pair and a k, with what each pair's changes say."""
    rows, told = [], []
    for each in found["differences"]:
        pair = escape(f"{each['before']} → {each['after']}")
        for before, after, change in sharpening.changes_of(found, each):
            cells = (percent(before), percent(after), points(change))
            rows.append(
                f'<tr><th scope="row">{pair}</th><td>pass@{int(change["k"])}</td>'
                + "".join(f'<td class="n">{cell}</td>' for cell in cells)
                + "</tr>"
            )
        told.append(f"<li>{pair}: {escape(each['finding'])}</li>")
    head = "".join(f'<th class="n" scope="col">{name}</th>' for name in ("before", "after"))
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">from → to</th><th></th>'
        f'{head}<th class="n" scope="col">points</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div><ul>{''.join(told)}</ul>"
        '<p class="small">Per cent of '
        f"{int(found['questions'])} questions, by the unbiased estimator of arXiv:2107.03374, with "
        "95 % intervals: Wilson's before and after, of the points a bootstrap over the same "
        "questions.</p>"
    )


def _bar(summary: dict) -> str:
    value, low, high = (100 * summary[n] for n in ("accuracy", "accuracy_low", "accuracy_high"))
    return (
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" y="1.5" width="100" height="7"/>'
        f'<rect class="value" y="1.5" width="{value:.1f}" height="7"/>'
        f'<path class="interval" d="M{low:.1f} 5H{high:.1f}M{low:.1f} 2v6M{high:.1f} 2v6"/></svg>'
    )


def _training(data: RunData) -> str:
    found = curves(data.rows, _questions(data))
    steps = (data.rows[0]["step"], data.rows[-1]["step"]) if found else ()
    parts = ['<div class="charts">', *(charts.chart(curve, *steps) for curve in found), "</div>"]
    seconds = data.seconds()
    if seconds:
        total = sum(seconds.values()) or 1.0
        keys = "".join(
            f'<tr><th scope="row"><svg class="swatch" viewBox="0 0 1 1" aria-hidden="true">'
            f'<rect class="c{i % 5}" width="1" height="1"/></svg>{escape(name)}</th>'
            f'<td class="n">{_figure(value)} s</td>'
            f'<td class="n">{_percent(value / total)}</td></tr>'
            for i, (name, value) in enumerate(seconds.items())
        )
        parts += ["<h3>Where the time of the steps went</h3>", charts.split_bar(seconds)]
        parts.append(f"<table><tbody>{keys}</tbody></table>")
    parts.append(_numbers(data.rows))
    return "\n".join(parts)


def _numbers(rows: list[dict]) -> str:
    """Return some steps of log.csv as a table that is folded."""
    if not rows:
        return ""
    places = sorted({round(i * (len(rows) - 1) / (TABLE_STEPS - 1)) for i in range(TABLE_STEPS)})
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    head = "".join(f'<th class="n" scope="col">{int(rows[i]["step"])}</th>' for i in places)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{_figure(rows[i].get(name))}</td>' for i in places)
        + "</tr>"
        for name in columns
    )
    return (
        f"<details><summary>Figures of {len(places)} of {len(rows)} steps; log.csv has all"
        f'</summary><div class="scroll"><table><thead><tr><th scope="col">step</th>{head}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div></details>"
    )


def _settings(data: RunData, several: bool) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>'
        f'<td class="wrap">{escape(_told(value))}</td></tr>'
        for name, value in data.settings.items()
    )
    name = f" of {escape(data.path.name)}" if several else ""
    return (
        f"<details><summary>Settings{name}</summary><table><tbody>{rows}</tbody></table></details>"
    )


def _told(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _questions(data: RunData) -> int:
    """Return how many questions a validation has; 0 if that is not known."""
    measured = dict(data.evaluations).get("validation", {}).get("questions")
    return int(measured or data.settings.get("eval_samples") or 0)


def _percent(value) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _figure(value) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def main(argv: list[str] | None = None) -> int:
    """Write the report of each folder that is named and print where it is; or watch one."""
    names = sys.argv[1:] if argv is None else argv
    if names[:1] == ["watch"]:
        from rlm.report import watch

        return watch.main(names[1:])
    if not names or "--help" in names or "-h" in names:
        print(USAGE)
        return 0 if names else 2
    for name in names:
        folder = Path(name)
        if not folder.is_dir():
            raise InputError(f"{name}: no such folder; give a run's, such as runs/grpo")
        if not (stages(folder) or read(folder).evaluations):
            raise InputError(f"{name}: holds no log.csv and no evaluation; give a run's folder")
        print(write(folder))
    return 0
