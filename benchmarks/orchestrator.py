"""What the orchestrator learns on the tiny base, measured over several seeds.

    python benchmarks/orchestrator.py               # SFT on tried graphs, GRPO, tests; 5 seeds
    python benchmarks/orchestrator.py --seeds 0

It runs train.py with configs/orchestrator.yaml as a user would, and beside it every graph of two
roles on the same held-out questions: the best one that is fixed, and the best one of each question.
All of it goes to benchmarks/results/orchestrator.json.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

from run_tables import rows_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT))
RECIPE = "configs/orchestrator.yaml"


def trained(seed: int, words: list[str]) -> dict:
    """Return the test summaries before SFT, after it and after GRPO, and GRPO's log."""
    name = f"benchmark/orchestrator-{seed}"
    common = ["--config", RECIPE, "--seed", str(seed), "--run", name, *words]
    command = [sys.executable, str(ROOT / "train.py"), *common, "--output-dir", f"weights/{name}"]
    began, before = time.perf_counter(), children_seconds()
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    seconds = round(time.perf_counter() - began, 1)
    processor_seconds = round(children_seconds() - before, 1)
    folder = ROOT / "runs" / name
    base, sft, grpo = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    log, times = (rows_of(folder / "grpo" / name) for name in ("log.csv", "times.csv"))
    kept = ("step", "reward_mean", "graph_valid_fraction", "leak_fraction", "validation_accuracy")
    return {
        "seed": seed, "base": base, "sft": sft, "grpo": grpo, "seconds": seconds,
        "processor_seconds": processor_seconds, "solved": solved(folder / "test-grpo.csv"),
        "grpo_seconds": sum(float(r[k]) for r in times for k in r if k.endswith("_seconds")),
        "log": [{k: float(row[k]) for k in kept if row[k]} for row in log],
    }  # fmt: skip


def children_seconds() -> float:
    """Return the processor time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def solved(path: Path) -> dict:
    """Return the first question of an evaluation that was answered right, with its graph."""
    row = next(row for row in rows_of(path) if row["verdict"] == "right")
    return {"question": row["prompt"], "graph": row["text"], "agents": row["reasoning"],
            "answer": row["answer"], "gold": row["gold"]}  # fmt: skip


def fixed(seed: int) -> dict:
    """Return the accuracy of every graph of two roles, and of the best one of each question."""
    import config
    import data
    from rlm.agents.evaluation import fixed_graphs
    from rlm.agents.graph import Agent, Graph
    from rlm.models.policy import open_policy
    from training import tasks

    arguments = ["--config", str(ROOT / RECIPE), "--models", "base", "--seed", str(seed)]
    settings = config.load(config.EvaluateSettings, arguments)
    policy = open_policy(settings.model, None, **settings.loading())
    task = tasks.task_of(settings, policy)
    examples = data.examples_for(settings, settings.split, settings.eval_samples)
    pairs = list(itertools.product(settings.roles, repeat=2))
    graphs = [
        Graph(agents=[Agent(id="a", prompt=one, reads=[]), Agent(id="b", prompt=two, reads=["a"])])
        for one, two in pairs
    ]
    right = fixed_graphs(task.runner, examples, graphs)
    count = len(examples)
    shares = {f"{a} {b}": sum(r) / count for (a, b), r in zip(pairs, right, strict=True)}
    best = max(shares, key=lambda pair: shares[pair])
    return {
        "seed": seed, "questions": count, "accuracy": shares, "best": best,
        "best_accuracy": shares[best],
        "best_of_each_question": sum(map(any, zip(*right, strict=True))) / count,
    }  # fmt: skip


def main() -> int:
    from rlm import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 32, 33, 34])
    parser.add_argument("--output", default=str(RESULTS / "orchestrator.json"))
    options, words = parser.parse_known_args()  # what is left goes to train.py
    import torch

    machine = {
        "cores": os.cpu_count(), "processor": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(), "torch": torch.__version__,
    }  # fmt: skip
    found: dict = {"machine": machine, "fixed": [], "results": []}
    for seed in options.seeds:
        found["fixed"].append(fixed(seed))
        found["results"].append(trained(seed, words))
        files.write_json(options.output, found)
    print(f"written: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
