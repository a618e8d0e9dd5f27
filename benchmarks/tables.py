"""Puts the measured tables into README.md and docs/, and draws the learning curve.

    python benchmarks/tables.py            # rewrites what stands between the markers
    python benchmarks/tables.py --check    # exits with 1 and names what it would write otherwise

Every figure comes from benchmarks/results/; none is typed by hand. `PLACES` says which document
has which table. The tables of docs/scale.md are made by benchmarks/scale_tables.py.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import ablation_tables  # noqa: E402
import gpu_tables  # noqa: E402
import model_tables  # noqa: E402
import orchestrator_starts  # noqa: E402
import real_tables  # noqa: E402
import sharpening  # noqa: E402
import tool_tables  # noqa: E402
from learning_curve import draw, keep_curves  # noqa: E402
from markdown_table import markdown_table  # noqa: E402

STAGES = {
    "base": "the base",
    "sft": "after SFT, mixed demonstrations",
    "grpo": "after GRPO",
    "control": "control: SFT, clean demonstrations",
}


def read(part: str) -> list[dict]:
    path = RESULTS / f"learning_{part}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"]


def read_named(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def interval(summary: dict) -> str:
    """Return an accuracy with its 95 % interval, in percent."""
    low, high = percent(summary["accuracy_low"]), percent(summary["accuracy_high"])
    return f"{percent(summary['accuracy'])} [{low}, {high}]"


def learning_table(part: str) -> str:
    """Return accuracy of every seed with its interval, and the shares, mean over seeds.

    lenient: right by the last number, whatever the format.
    """
    results = read(part)
    seeds = [f"seed {run['seed']}" for run in results]
    head = ["", *seeds, "lenient", "format", "step by step", "tokens"]
    lines = [head]
    for stage, title in STAGES.items():
        found = [run[stage] for run in results if stage in run]
        if not found:
            continue
        cells = [interval(run[stage]) if stage in run else "" for run in results]

        def mean(name, found=found):
            return sum(s[name] for s in found) / len(found)

        shares = [percent(mean(x)) for x in ("last_number", "format_rate", "step_by_step")]
        lines.append([title, *cells, *shares, f"{mean('mean_tokens'):.0f}"])
    return markdown_table(lines)


def samples_table() -> str:
    """Return accuracy against the number of clean demonstrations, a column a seed."""
    results = read("samples")
    seeds = [f"seed {run['seed']}" for run in results]
    head = ["demonstrations", *seeds, "lenient, mean", "format, mean"]
    lines = [head]
    for size in results[0]["samples"]:
        found = [run["samples"][size] for run in results]
        shares = [sum(s[x] for s in found) / len(found) for x in ("last_number", "format_rate")]
        lines.append([size, *(percent(s["accuracy"]) for s in found), *map(percent, shares)])
    return markdown_table(lines)


def speed_table() -> str:
    """Return the ratios to TRL, a row for each size, precision and device that was measured."""
    head = ["", "step", "completion tokens", "rollout", "learning", "whole step",
            "padded tokens", "learning adds, MB", "times the floor"]  # fmt: skip
    lines = [head]
    machines: dict[str, None] = {}
    for path in sorted(RESULTS.glob("grpo_vs_trl_*.json"), key=_order):
        found = json.loads(path.read_text(encoding="utf-8"))
        where = "GPU" if found["machine"]["gpu"] else "CPU"
        pairs = {
            phase: " / ".join(
                _ratio(found["ratios"][name][phase]) for name in ("default", "fastest")
            )
            for phase in ("rollout", "learn", "step")
        }
        memory = " / ".join(
            f"{found['learning_peak_mb'][name]:.0f}" for name in ("ours", "default", "fastest")
        )
        padded = found.get("padded_over_true_tokens")
        padded = _ratio(padded) if padded else "not measured"
        floors, load, machine = found["times_the_floor"], found["load"], found["machine"]
        name = machine["gpu"] or f"{machine['processor']}, {machine['threads']} thread"
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        machines[f"{name}; {versions}"] = None
        lines.append([
            f"{found['size']}, {found['dtype']}, {where}",
            f"{load['prompts']} × {load['group']}, {found['repeats']} turns",
            f"{found['mean_completion_tokens']['ours']:.0f} of {load['max_tokens']}",
            *pairs.values(), padded, memory, f"{floors['rollout']} / {floors['learn']}",
        ])  # fmt: skip
    table = markdown_table(lines)
    return table + "\n\nMeasured on " + "; and on ".join(machines) + "."


def sft_table() -> str:
    """Return a step's seconds by our learner, the ratios of TRL's to it, and what each adds."""
    paths = sorted(RESULTS.glob("sft_vs_trl_*.json"), key=_by_seconds)
    if not paths:
        return "Not measured yet: `python benchmarks/sft_vs_trl.py --keep`."
    head = ["", "prompt + completion tokens", "own, s", "TRL", "TRL, one by one",
            "tokens padded / packed", "adds, MB"]  # fmt: skip
    lines = [head]
    machines: dict[str, None] = {}
    for path in paths:
        found = json.loads(path.read_text(encoding="utf-8"))
        load, machine = found["load"], found["machine"]
        versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
        processor = f"{machine['processor']}, {machine['threads']} thread"
        machines[f"{processor}; {versions}"] = None
        lines.append([
            f"{found['size']}, {found['dtype']}, {found['repeats']} turns",
            f"{load['prompt_tokens']:.0f} + {load['completion_tokens']:.0f}",
            f"{found['seconds']['own']['median']:.2f}",
            *(_ratio(found["ratios"][name], 2) for name in ("trl", "trl, one by one")),
            f"{load['padded_over_true_tokens']} / {load['packed_over_true_tokens']}",
            " / ".join(f"{mb:.0f}" for mb in found["peak_mb"].values()),
        ])  # fmt: skip
    table = markdown_table(lines)
    return table + "\n\nMeasured on " + "; and on ".join(machines) + "."


def robustness_table() -> str:
    """Return the shares of right answers in each set of questions, a row a task's adapter.

    By the strict reading / by the last number.
    """
    found = {task: read_named(f"robustness_{task}") for task in ("addition", "word_problems")}
    sets = [s["set"] for s in found["word_problems"]["sets"]]  # it has all of them
    lines = [["", *sets]]
    for task, each in found.items():
        by_set = {s["set"]: s for s in each["sets"]}
        cells = []
        for name in sets:
            trained = list(by_set[name]["models"].values())[-1] if name in by_set else None
            both = [percent(trained[x]["share"]) for x in ("strict", "lenient")] if trained else []
            cells.append(" / ".join(both) or "–")
        lines.append([task.replace("_", " "), *cells])
    return markdown_table(lines)


def scaling_table() -> str:
    """Return what a step costs at both ends of each axis, and the exponent at the large end."""
    found = json.loads((RESULTS / "scaling_cpu.json").read_text(encoding="utf-8"))
    head = ["", "from, to", "sampling, s", "learning, s", "learning adds, MB", "exponents"]
    lines = [head]
    for axis, points in found["axes"].items():
        first, last = points[0], points[-1]
        seconds = {
            name: f"{first[name]['median']:.2f}, {last[name]['median']:.2f}"
            for name in ("rollout", "learn")
        }
        growth = found["slopes"][axis]
        lines.append([
            axis.replace("_", " "), f"{first['x']:,}, {last['x']:,}", *seconds.values(),
            f"{first['learn_mb']:.0f}, {last['learn_mb']:.0f}",
            f"{growth['rollout']} / {growth['learn']}",
        ])  # fmt: skip
    return markdown_table(lines)


def serve_table() -> str:
    """Return tokens per second of the server's processor time, by server and clients."""
    found = json.loads((RESULTS / "serve_load.json").read_text(encoding="utf-8"))
    cells: dict[str, dict[str, str]] = {}
    for size, part in found.items():
        for entry in part["summary"]:
            speed = entry["tokens_per_cpu_second"]
            column = f"{size}, {entry['clients']} client{'s' * (entry['clients'] > 1)}"
            text = f"{speed['median']:.0f} ({speed['min']:.0f}–{speed['max']:.0f})"
            cells.setdefault(entry["server"], {})[column] = text
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    lines = [["", *columns]]
    lines += [[name, *(row.get(c, "") for c in columns)] for name, row in cells.items()]
    return markdown_table(lines)


def backends_table() -> str:
    """Return what each backend reached from the same SFT adapter, and what it took."""
    if not (RESULTS / "backends.json").exists():
        return "Not measured yet: `python benchmarks/backends.py`."
    found = read_named("backends")
    head = ["", "seed", "after SFT", "after GRPO", "lenient", "training, s", "a step, s",
            "peak memory, MB"]  # fmt: skip
    lines = [head]
    for run in found["results"]:
        for name in run["order"]:
            each = run[name]
            lines.append([
                name, str(run["seed"]), interval(run["sft"]), interval(each["test"]),
                percent(each["test"]["last_number"]), f"{each['seconds']:.0f}",
                f"{each['step_seconds']:.2f}", f"{each['peak_memory_mb']:.0f}",
            ])  # fmt: skip
    return markdown_table(lines)


def orchestrator_table() -> str:
    """Return what each seed of the orchestrator reaches, beside its controls, and one answer."""
    found = read_named("orchestrator")
    pairs = list(zip(found["results"], found["fixed"], strict=True))
    lines = [["", *(f"seed {run['seed']}" for run, _ in pairs)]]
    rows: dict[str, Callable[[dict, dict], str]] = {
        "after SFT on tried graphs": lambda run, _: interval(run["sft"]),
        "after GRPO": lambda run, _: interval(run["grpo"]),
        "the best graph that is the same for all": lambda _, fixed: (
            f"{percent(fixed['best_accuracy'])} ({fixed['best']})"
        ),
        "the best graph of each question": lambda _, fixed: percent(fixed["best_of_each_question"]),
        "control: the frozen model asked directly, by votes": lambda run, _: " / ".join(
            percent(run["grpo"][f"direct{way}_accuracy"]) for way in ("", "_votes")
        ),
        "invalid graphs: greedy, sampled in the last 10 steps": lambda run, _: " / ".join(
            (percent(1 - run["grpo"]["graph_valid_fraction"]), percent(invalid(run["log"][-10:])))
        ),
        "graphs that leak the answer": lambda run, _: percent(run["grpo"]["leak_fraction"]),
        "processor seconds of all that": lambda run, _: f"{run['processor_seconds']:.0f}",
    }
    lines += [[title, *(cell(*pair) for pair in pairs)] for title, cell in rows.items()]
    shown = found["results"][0]["solved"]
    table = markdown_table(lines)
    words = "\n\n".join(shown[part] for part in ("question", "graph", "agents"))
    title = "A question, the graph written for it, and its agents' words:"
    return f"{table}\n\n{title}\n\n```\n{words}\n```"


def orchestrator_untried_table() -> str:
    """Return what seeds of the orchestrator reached whose SFT had random graphs alone."""
    runs = read_named("orchestrator_untried")["results"]
    return markdown_table([
        ["without tried graphs", *(f"seed {run['seed']}" for run in runs)],
        *([f"after {stage.upper()}", *(interval(run[stage]) for run in runs)]
          for stage in ("sft", "grpo")),
    ])  # fmt: skip


def invalid(log: list[dict]) -> float:
    return 1 - sum(row["graph_valid_fraction"] for row in log) / len(log)


def _ratio(found: dict, places: int = 1) -> str:
    return "{:.{p}f} ({:.{p}f}–{:.{p}f})".format(
        *(found[name] for name in ("median", "low", "high")), p=places
    )


def _by_seconds(path: Path) -> float:
    return json.loads(path.read_text(encoding="utf-8"))["seconds"]["own"]["median"]


def _order(path: Path) -> tuple:
    sizes = ("tiny", "small", "q05", "q7b")
    return path.stem.rsplit("_", 1)[1], sizes.index(path.stem.split("_")[3]), "bfloat" in path.stem


# Document -> its tables, each between `<!-- table NAME -->` and `<!-- end -->`.
PLACES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"addition": partial(learning_table, "addition")},
    "docs/training.md": {
        "word_problems": partial(learning_table, "word_problems"),
        "sharpening": sharpening.table,
        "samples": samples_table,
    },
    "docs/models.md": {
        "families": model_tables.families,
        "families_speed": model_tables.speed,
        "families_trl": model_tables.beside_trl,
        "model_sizes": model_tables.sizes,
        "model_size_sources": model_tables.size_sources,
    },
    "docs/what_helps.md": {
        "ablations_addition": partial(ablation_tables.table, "addition"),
        "ablations_word_problems": partial(ablation_tables.table, "word_problems"),
        "ablations_tools": partial(ablation_tables.table, "tools"),
        "ablations_picture": ablation_tables.picture,
    },
    "docs/evaluation.md": {"robustness": robustness_table},
    "docs/serving.md": {"serve": serve_table},
    "docs/agents.md": {
        "orchestrator": orchestrator_table,
        "orchestrator_untried": orchestrator_untried_table,
        "orchestrator_starts": orchestrator_starts.table,
    },
    "docs/tools.md": {"tools": tool_tables.learning},
    "docs/results.md": {
        "prompts_gsm8k": partial(real_tables.prompts, "gsm8k"),
        "prompts_addition": partial(real_tables.prompts, "addition"),
        "qwen": partial(real_tables.results, "qwen"),
        "qwen_changes": partial(real_tables.changes, "qwen"),
        "smollm2": partial(real_tables.results, "smollm2"),
        "smollm2_changes": partial(real_tables.changes, "smollm2"),
        "rates": partial(real_tables.results, "rates"),
    },
    "docs/speed.md": {
        "speed": speed_table,
        "sft": sft_table,
        "gpu": gpu_tables.table,
        "scaling": scaling_table,
        "backends": backends_table,
    },
}


def filled(root: Path) -> dict[Path, str]:
    """Return the text of each document that is not as it should be, with its tables made anew."""
    found = {}
    for name, tables in PLACES.items():
        now = (root / name).read_text(encoding="utf-8")
        made = fill(now, {table: make() for table, make in tables.items()}, name)
        if made != now:
            found[root / name] = made
    return found


def fill(text: str, tables: dict[str, str], document: str = "the document") -> str:
    """Return the text with each table in its `<!-- table NAME -->` block, which has to be there."""
    for name, table in tables.items():
        block = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not block.search(text):
            raise SystemExit(f"{document}: no block <!-- table {name} --> ... <!-- end -->")
        # In a function of its own: in a plain replacement backslashes would be read.
        text = block.sub(partial(_filled, table), text)
    return text


def _filled(table: str, block: re.Match[str]) -> str:
    return block[1] + table + "\n" + block[2]


def main(argv: list[str] | None = None) -> int:
    from rlm import files

    if "--check" in (sys.argv[1:] if argv is None else argv):
        stale = sorted(filled(ROOT))
        for path in stale:
            print(f"{path.relative_to(ROOT)}: its tables are not those of benchmarks/results/; "
                  "run python benchmarks/tables.py", file=sys.stderr)  # fmt: skip
        return int(bool(stale))
    for part in ("addition", "word_problems"):
        keep_curves(part, read(part))
    for path, text in filled(ROOT).items():
        files.write_text(path, text)
    draw(ROOT / "docs" / "learning_curve.png")
    ablation_tables.draw(ROOT / "docs" / "what_helps.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
