"""What the tiny base learns, measured: SFT and GRPO on both generated tasks, over several seeds.

    python benchmarks/learning.py --part addition       # base, SFT, GRPO; and the control run
    python benchmarks/learning.py --part word_problems
    python benchmarks/learning.py --part tools          # with a calculator; the control: without
    python benchmarks/learning.py --part samples        # demonstrations against accuracy; last
    python benchmarks/tables.py                         # puts the results into the documents

It runs the scripts of the repository as a user would, in processes of their own, and keeps what
they measured on held-out test questions in benchmarks/results/learning_<part>.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT))
RECIPES = {
    "addition": "configs/tiny_demo.yaml",
    "word_problems": "configs/tiny_word_problems.yaml",
    "tools": "configs/tiny_tools.yaml",
}
SIZES, ALL = (100, 500, 1000), "2000"


def call(script: str, *arguments) -> float:
    """Run a script of the repository and return its seconds; its output goes to the console."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return round(time.perf_counter() - began, 1)


def read(path) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def whole(task: str, seed: int) -> dict:
    """Return base, SFT on mixed and GRPO of one seed, and what there is of a control run.

    Of additions that is SFT on clean demonstrations only; with tools, SFT and GRPO without them.
    """
    stages, seconds = staged(task, seed, f"benchmark/{task}-{seed}")
    if task == "addition":
        stages |= {"control": clean(task, seed, None)}
    if task == "tools":
        without, more = staged(task, seed, f"benchmark/no-{task}-{seed}", "--tools", "none")
        stages |= {f"control_{stage}": without[stage] for stage in ("sft", "grpo")}
        stages |= {"control_seconds": more}
    log = f"runs/benchmark/{task}-{seed}/grpo/log.csv"
    return {"seed": seed, **stages, "seconds": seconds, "log": log}


def staged(task: str, seed: int, name: str, *more) -> tuple[dict, float]:
    """Return the test summaries of the base and of both stages, and the seconds of all that."""
    common = ["--config", RECIPES[task], "--seed", seed, "--overwrite"]
    places = ["--run", name, "--output-dir", f"weights/{name}"]
    seconds = call("train.py", *common, *places, *more)
    base, sft, grpo = read(f"runs/{name}/summary.json")
    return {"base": base, "sft": sft, "grpo": grpo}, seconds


def clean(task: str, seed: int, samples: int | None) -> dict:
    """Return the test summary after SFT on demonstrations that all show their working."""
    name = f"benchmark/{task}-clean-{samples or 'all'}-{seed}"
    common = ["--config", RECIPES[task], "--seed", seed]
    words = ["--terse-fraction", 0, "--overwrite", "--run", name, "--output", f"weights/{name}"]
    call("train_sft.py", *common, *words, *(["--num-samples", samples] if samples else []))
    models = ["--models", f"weights/{name}", "--run", name, "--output-file"]
    call("evaluate.py", *common, *models, f"runs/{name}/test.csv")
    return read(f"runs/{name}/test.json")


def measure(part: str, seed: int) -> dict:
    """Return the results of a part for one seed."""
    if part != "samples":
        return whole(part, seed)
    # The recipe's own number of demonstrations was measured as the control run.
    kept = read(RESULTS / "learning_addition.json")["results"]
    control = next(run["control"] for run in kept if run["seed"] == seed)
    samples = {str(n): clean("addition", seed, n) for n in SIZES} | {ALL: control}
    return {"seed": seed, "samples": samples}


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=[*RECIPES, "samples"], required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    import torch

    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path = RESULTS / f"learning_{options.part}.json"
    results: list[dict] = []
    for seed in options.seeds:
        results.append(measure(options.part, seed))
        files.write_json(path, {"part": options.part, "machine": machine, "results": results})
        print(f"written: {path}, seed {seed}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
