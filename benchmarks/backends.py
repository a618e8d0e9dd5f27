"""GRPO by our own loop and by TRL's GRPOTrainer: the tiny demo's stage from one SFT adapter.

    python benchmarks/backends.py                   # one seed; --seeds 0 1 2 for more
    python benchmarks/tables.py                     # puts the results into the documents

Each seed: SFT as configs/tiny_demo.yaml has it, then its GRPO stage (32 steps of 32 questions with
8 samples, additions) by train_grpo.py with --backend own, trl, and trl in larger micro-batches (64
completions, its fastest here); which of them goes first changes with the seed. One thread, one
process at a time. Accuracies are greedy, of 500 held-out test questions, with the 95 % Wilson
interval. Seconds are of processor time, which other programs hardly change: of a step its
sampling, rewards and learning; of the training the whole script, with start, validations and
proof. Memory: the highest resident size of the script's process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from run_tables import rows_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT))
RECIPE = "configs/tiny_demo.yaml"
BACKENDS = {
    "own": ["--backend", "own"],
    "trl": ["--backend", "trl"],
    "trl, fastest": [
        "--backend", "trl", "--trl-options", '{"per_device_train_batch_size": 64}',
    ],
}  # fmt: skip


# The scripts' own clock becomes that of the processor: times.csv has its seconds.
CLOCK = (
    "import runpy, sys, time; time.perf_counter = time.process_time; del sys.argv[0]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def call(script: str, *words) -> dict[str, float]:
    """Run a script of the repository; return its seconds, by both clocks, and peak memory in MB."""
    command = [sys.executable, "-c", CLOCK, str(ROOT / script), *map(str, words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{script} ended with {process.returncode}")
    return {
        "seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - began, 1),
        "peak_memory_mb": round(usage.ru_maxrss / 1024, 1),
    }


def read(path) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def tested(name: str, seed: int, adapter: str, questions: int) -> dict:
    """Return the summary of an adapter over held-out test questions."""
    words = ["--config", RECIPE, "--seed", seed, "--models", adapter, "--run", f"{name}-test"]
    output = f"runs/{name}-test/test.csv"
    call("evaluate.py", *words, "--eval-samples", questions, "--output-file", output)
    return read(Path(output).with_suffix(".json"))


def trained(name: str, seed: int, start: str, words: list, questions: int) -> dict:
    """Return what a backend's GRPO stage reached and took, from the adapter `start`."""
    place = f"weights/{name}"
    common = ["--config", RECIPE, "--seed", seed, "--adapter", start, "--run", name]
    common += ["--probe", 0, "--save-every", 0]  # TRL's has neither trial nor checkpoints
    took = call("train_grpo.py", *common, "--output", place, "--overwrite", *words)
    steps = [row for row in rows_of(ROOT / f"runs/{name}/times.csv") if row["generate_seconds"]]
    times = [float(row["generate_seconds"]) + float(row["learn_seconds"]) for row in steps]
    return {
        "test": tested(name, seed, place, questions),
        "best_step": read(f"{place}/manifest.json")["step"],
        **took,
        "steps": len(times),
        "step_seconds": round(statistics.median(times), 3),
        "step_seconds_low": round(min(times), 3),
        "step_seconds_high": round(max(times), 3),
    }


def measure(seed: int, questions: int, words: list, keep) -> None:
    """Hand the results of a seed to `keep` as they come: SFT once, then the backends in turn."""
    name = f"benchmark/backends-{seed}"
    start = f"weights/{name}/sft"
    common = ["--config", RECIPE, "--seed", seed, "--run", f"{name}/sft", "--overwrite"]
    call("train_sft.py", *common, "--output", start)
    order = list(BACKENDS)
    order = order[seed % 3 :] + order[: seed % 3]
    found: dict = {"seed": seed, "order": [], "sft": tested(name, seed, start, questions)}
    for each in order:
        own_name = f"{name}/{each.replace(', ', '-')}"
        found[each] = trained(own_name, seed, start, [*BACKENDS[each], *words], questions)
        found["order"].append(each)
        keep(found)


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--questions", type=int, default=500, help="of a test, default 500")
    parser.add_argument("--output", default=str(RESULTS / "backends.json"))
    options, words = parser.parse_known_args()  # what is left goes to train_grpo.py
    import torch
    from shapes import machine

    torch.set_num_threads(1)
    results: dict[int, dict] = {}
    head = {"machine": machine("cpu"), "questions": options.questions}

    def keep(found: dict) -> None:
        results[found["seed"]] = found
        files.write_json(Path(options.output), head | {"results": list(results.values())})

    for seed in options.seeds:
        measure(seed, options.questions, words, keep)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
