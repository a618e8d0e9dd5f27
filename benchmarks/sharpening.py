"""Does GRPO teach the tiny base something new, or does it only sharpen? pass@k of start and end.

    python benchmarks/sharpening.py                                   # all parts
    python benchmarks/sharpening.py --tasks addition --seeds 0        # one of them
    python benchmarks/tables.py                                       # docs/training.md

A part is a task with a seed: SFT and GRPO as the task's recipe has them (SFT by our own learner),
then evaluate.py --compare of the SFT adapter (the start) and the GRPO adapter (the end): 200
held-out questions, 64 samples each at temperature 1, in processes of their own with one thread. An
adapter that is there is not trained again, and a part that is in benchmarks/results/sharpening.json
is not measured again, so it goes on where it was stopped. Other numbers of questions or samples go
to another file, by --output.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from itertools import product
from pathlib import Path

from machine import processor_name
from markdown_table import markdown_table

ROOT = Path(__file__).resolve().parent.parent
PATH = Path(__file__).parent / "results" / "sharpening.json"
sys.path.insert(0, str(ROOT))
RECIPES = {
    "addition": "configs/tiny_demo.yaml",
    "word_problems": "configs/tiny_word_problems.yaml",
}
START, END = "sft_lora", "final_rlm_lora"


def commands(task: str, seed: int, questions: int, samples: int) -> dict[str, str]:
    """Return the commands of a part, as one would type them, by what each makes."""
    name = f"sharpening/{task}-{seed}"
    common = f"--config {RECIPES[task]} --seed {seed}"
    start, end = (f"weights/{name}/{adapter}" for adapter in (START, END))
    return {
        START: f"python train_sft.py {common} --backend own --run {name}/sft --output {start}",
        END: f"python train_grpo.py {common} --adapter {start} --run {name}/grpo --output {end}",
        "compared": f"python evaluate.py {common} --weights weights/{name} --compare {START} {END} "
        f"--samples {samples} --temperature 1 --eval-samples {questions} --run {name}/compared",
    }


def measure(task: str, seed: int, questions: int, samples: int) -> dict:
    """Return pass@k of start and end of a part; its adapters are trained if they are missing.

    With a new start the end is trained anew, too.
    """
    from rlm import files

    words = commands(task, seed, questions, samples)
    place = ROOT / "weights" / f"sharpening/{task}-{seed}"
    there = True
    for name in (START, END):
        there = there and (place / name / "manifest.json").exists()
        if not there:
            once(words[name])
    seconds = once(words["compared"])
    found = files.read_object(ROOT / f"runs/sharpening/{task}-{seed}/compared/comparison.json")
    return {
        "task": task,
        "seed": seed,
        "commands": list(words.values()),
        "processor_seconds": seconds,
        "asked": found["asked"],
        "pass_at_k": found["pass_at_k"],
        "machine": machine(),
    }


def once(command: str) -> float:
    """Run a command with one thread; return its seconds of processor time."""
    _, *rest = shlex.split(command)
    before = sum(os.times()[2:4])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *rest], cwd=ROOT, check=True, env=environment)
    return round(sum(os.times()[2:4]) - before, 1)


def machine() -> dict:
    """Return what it was measured on."""
    return {
        "processor": processor_name(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def table(path: Path = PATH) -> str:
    """Return pass@k of start and end of each part with the paired difference, and what it says."""
    from rlm import files
    from rlm.evaluation.markdown import points
    from rlm.evaluation.sharpening import changes_of

    kept = files.read_object(path)
    if not kept:
        return "Not measured yet: `python benchmarks/sharpening.py`."
    rows, told, machines = [], [], dict[str, None]()
    for part in kept["results"]:
        (each,) = part["pass_at_k"]["differences"]
        name = f"{part['task'].replace('_', ' ')}, seed {part['seed']}"
        changes = changes_of(part["pass_at_k"], each)
        head = ["", *(f"pass@{change['k']}" for _, _, change in changes)]
        rows.append([name, *(
            f"{100 * before['share']:.1f} → {100 * after['share']:.1f}: {points(change)}"
            for before, after, change in changes
        )])  # fmt: skip
        told.append(f"- {name}: {each['finding']}")
        found = part["machine"]
        machines[f"{found['processor']}, {found['threads']} thread, torch {found['torch']}"] = None
    made = markdown_table([head, *rows])
    return "\n\n".join((made, "\n".join(told), f"Measured on {'; and on '.join(machines)}."))


def main(argv: list[str] | None = None) -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--output", type=Path, default=PATH, help="JSON file of the results")
    options = parser.parse_args(argv)
    numbers = {"questions": options.questions, "samples": options.samples}
    kept = files.read_object(options.output)
    if kept and {name: kept[name] for name in numbers} != numbers:
        parser.error(f"--output {options.output}: has {kept['questions']} questions with "
                     f"{kept['samples']} samples; give another file for other numbers")  # fmt: skip
    for task, seed in product(options.tasks, options.seeds):
        kept = files.read_object(options.output)  # anew: another part may have been measured
        results = kept.get("results", [])
        if any((each["task"], each["seed"]) == (task, seed) for each in results):
            continue
        results.append(measure(task, seed, **numbers))
        results.sort(key=lambda each: (list(RECIPES).index(each["task"]), each["seed"]))
        files.write_json(options.output, numbers | {"results": results})
        print(f"{task}, seed {seed}: written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
