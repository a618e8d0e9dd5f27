"""What helps GRPO, and what does not: one change at a time from a default recipe, over seeds.

    python benchmarks/ablations.py --task addition                  # goes on where it was stopped
    python benchmarks/ablations.py --task addition --only loss-grpo kl-0.1 --seeds 0 1
    python benchmarks/ablations.py --list
    python benchmarks/tables.py                                     # docs/what_helps.md

A run takes GRPO from an SFT adapter that all changes of a seed share (those of the LoRA's shape and
of the demonstrations have their own), validates every few steps and asks the kept adapter held-out
test questions. The questions hang on the seed alone, so that a change and the default of a seed are
pairs. A run has a process of its own and takes about a minute; one that is stopped begins anew, one
that is finished is not measured again. One run is measured at a time: a second call says so.
The results go to benchmarks/results/ablations.json.
"""

import argparse
import fcntl
import importlib
import multiprocessing
import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import processor_name

ROOT = Path(__file__).resolve().parent.parent
PATH = Path(__file__).parent / "results" / "ablations.json"
sys.path.insert(0, str(ROOT))
SEEDS = (0, 1, 2, 3, 4)
# What every run imports; imported once, before the runs get processes of their own.
SHARED = ("evaluate", "train_sft", "train_grpo", "peft", "rlm.rollouts.choice", "rlm.report.report",
          "rlm.learner.logprobs", "rlm.export.save", "rlm.models.policy")  # fmt: skip
TEST = "--eval-samples 200"


@dataclass(frozen=True)
class Task:
    """config: the recipe. sft, grpo: what the runs here have besides, so that many fit in a day.

    Fewer completions, so that a change has something to be faster at: with the recipes' own numbers
    the first steps bring additions to 96 % whatever is changed. The warm-up is named, so that
    a recipe may drop it, as it was found here to cost samples.
    """

    config: str
    sft: str
    grpo: str = (
        "--questions-per-step 4 --max-steps 12 --eval-every 2 --eval-samples 60 --probe 0 "
        "--warmup-steps 3"
    )


FEWER = "--backend own --eval-samples 50 --num-samples 1000"
TASKS = {
    "addition": Task("configs/tiny_demo.yaml", f"{FEWER} --terse-fraction 0.8"),
    "word_problems": Task("configs/tiny_word_problems.yaml", f"{FEWER} --terse-fraction 0.8"),
    "tools": Task("configs/tiny_tools.yaml", FEWER),
}


@dataclass(frozen=True)
class Change:
    """One change: words of train_grpo.py, and where the start differs too, of train_sft.py.

    against: what it is compared with, where that is not the default.
    """

    group: str
    title: str
    grpo: str = ""
    sft: str = ""
    against: str = "default"


TWICE = "--updates-per-batch 2"
CHANGES = {
    "default": Change("", "the default recipe"),
    # Losses that differ where the policy is the one that sampled.
    "loss-grpo": Change("loss", "grpo: a mean over each completion", "--loss grpo"),
    "loss-dr_grpo": Change("loss", "dr_grpo: a sum over a constant", "--loss dr_grpo"),
    "loss-bnpo": Change("loss", "bnpo", "--loss bnpo"),
    "loss-luspo": Change("loss", "luspo: longer ones count more", "--loss luspo"),
    "loss-vespo": Change("loss", "vespo", "--loss vespo"),
    "scale-batch": Change("advantage", "by the batch's spread", "--advantage-scale batch"),
    "scale-none": Change("advantage", "not scaled", "--advantage-scale none"),
    # The same number of completions a step, otherwise shared out.
    "group-4": Change("groups", "8 questions x 4", "--questions-per-step 8 --group-size 4"),
    "group-16": Change("groups", "2 questions x 16", "--questions-per-step 2 --group-size 16"),
    "group-32": Change("groups", "1 question x 32", "--questions-per-step 1 --group-size 32"),
    "rate-3e-4": Change("rate", "3e-4", "--learning-rate 3e-4"),
    "rate-3e-3": Change("rate", "3e-3", "--learning-rate 3e-3"),
    "constant": Change("rate", "constant, not falling", "--lr-schedule constant"),
    "warmup-0": Change("rate", "no warm-up", "--warmup-steps 0"),
    "muon": Change("rate", "Muon, 5e-3", "--optimizer muon --learning-rate 5e-3"),
    "temperature-0.7": Change("temperature", "0.7", "--temperature 0.7"),
    "temperature-1.3": Change("temperature", "1.3", "--temperature 1.3"),
    "kl-0.01": Change("KL", "0.01", "--kl-weight 0.01"),
    "kl-0.1": Change("KL", "0.1", "--kl-weight 0.1"),
    "kl-0.1-reset": Change("KL", "0.1, the reference renewed every 4 steps",
                           "--kl-weight 0.1 --reference-every 4", against="kl-0.1"),
    "dynamic": Change("method", "dynamic sampling, 2 tries", "--dynamic-sampling 2"),
    "curriculum": Change("method", "curriculum", "--curriculum"),
    "entropy-share": Change("method", "a fifth of the tokens, by entropy", "--entropy-share 0.2"),
    "entropy-bonus": Change("method", "entropy bonus 0.01", "--entropy-bonus 0.01"),
    "length": Change("method", "a cost of overlong answers",
                     "--rewards correctness=1,length=0.5"),
    "masked": Change("method", "cut-off answers masked", "--truncated mask"),
    # Two updates of the same samples: only there do clips and ratios do anything.
    "twice": Change("two updates", "dapo, clipped to 0.8 to 1.28", TWICE),
    "twice-low": Change("two updates", "clipped to 0.8 to 1.2", f"{TWICE} --clip-high 0.2",
                        against="twice"),
    "twice-tight": Change("two updates", "clipped to 0.95 to 1.05",
                          f"{TWICE} --clip-low 0.05 --clip-high 0.05", against="twice"),
    "twice-cispo": Change("two updates", "cispo", f"{TWICE} --loss cispo", against="twice"),
    "twice-gspo": Change("two updates", "gspo", f"{TWICE} --loss gspo", against="twice"),
    "twice-sapo": Change("two updates", "sapo", f"{TWICE} --loss sapo", against="twice"),
    "trl": Change("backend", "TRL's GRPOTrainer", "--backend trl"),
    "rank-1": Change("LoRA", "rank 1", sft="--lora-r 1 --lora-alpha 2"),
    "rank-4": Change("LoRA", "rank 4", sft="--lora-r 4 --lora-alpha 8"),
    "rank-64": Change("LoRA", "rank 64", sft="--lora-r 64 --lora-alpha 128"),
    "attention": Change("LoRA", "on attention alone",
                        sft="--lora-targets q_proj,k_proj,v_proj,o_proj"),
    "mlp": Change("LoRA", "on the MLP alone", sft="--lora-targets gate_proj,up_proj,down_proj"),
    "terse-0.4": Change("demonstrations", "4 of 10 terse", sft="--terse-fraction 0.4"),
    "terse-0.95": Change("demonstrations", "19 of 20 terse", sft="--terse-fraction 0.95"),
}  # fmt: skip


def changes_of(task: str) -> dict[str, Change]:
    """Return the changes that a task has: `--backend trl` is refused with tools."""
    return {n: c for n, c in CHANGES.items() if (task, n) != ("tools", "trl")}


def commands(task: str, name: str, seed: int | str) -> list[str]:
    """Return the three commands of a run as one would type them: start, GRPO, test."""
    made, change = TASKS[task], CHANGES[name]
    common = f"--config {made.config} --seed {seed} --overwrite"
    start = f"ablations/{task}-{name if change.sft else 'start'}-{seed}"
    end = f"ablations/{task}-{name}-{seed}"
    return [" ".join(words.split()) for words in (
        f"train_sft.py {common} {made.sft} {change.sft} --run {start} --output weights/{start}",
        f"train_grpo.py {common} {made.grpo} {change.grpo} --adapter weights/{start} "
        f"--run {end}-grpo --output weights/{end} --resume never",
        f"evaluate.py --config {made.config} --seed {seed} {TEST} --models weights/{end} "
        f"--run {end}-grpo --output-file runs/{end}-grpo/test.csv",
    )]  # fmt: skip


def sft(words: list[str]) -> None:
    import config
    import train_sft

    train_sft.train(config.load(config.SFTSettings, words))


def grpo_and_test(grpo: list[str], test: list[str]) -> dict:
    """Return what a run came to: its test summary, and its curve over the sampled completions."""
    import config
    import evaluate
    import train_grpo

    began = time.process_time()
    log = train_grpo.train(config.load(config.GRPOSettings, grpo))["log"]
    seconds = time.process_time() - began
    (summary,) = evaluate.evaluate(config.load(config.EvaluateSettings, test))
    return {
        "accuracy": summary["accuracy"],
        "questions": summary["questions"],
        "mean_tokens": summary["mean_tokens"],
        "curve": curve(log),
        "processor_seconds": round(seconds, 1),
    }


def curve(log: list[dict]) -> list[list[float]]:
    """Return [completions sampled so far, validation accuracy] of each validation.

    >>> curve([{"step": 0, "validation_accuracy": 0.1}, {"step": 1, "sampled_completions": 8},
    ...        {"step": 2, "sampled_completions": 8, "validation_accuracy": 0.5}])
    [[0, 0.1], [16, 0.5]]
    """
    points, sampled = [], 0
    for row in log:
        sampled += row.get("sampled_completions", 0)
        if "validation_accuracy" in row:
            points.append([sampled, row["validation_accuracy"]])
    return points


def apart(work, *arguments):
    """Return what `work` returns in a process of its own, which ends with it."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(work, *arguments).result()


def measure(task: str, name: str, seed: int) -> dict:
    """Return the results of one run; its start is trained first where it is not there yet."""
    start, grpo, test = (shlex.split(c) for c in commands(task, name, seed))
    adapter = ROOT / start[start.index("--output") + 1]
    if not (adapter / "manifest.json").exists():
        apart(sft, start[1:])
    return apart(grpo_and_test, grpo[1:], test[1:])


def read() -> dict:
    """Return what has been measured so far."""
    from rlm import files

    return files.read_object(PATH) or {"runs": {}}


def keep(task: str, name: str, seed: int, found: dict) -> None:
    """Put a run into the results; whoever reads them meanwhile sees whole ones."""
    import torch

    from rlm import files

    kept = read()
    runs = kept["runs"].setdefault(task, {}).setdefault(name, {})
    machine = f"{processor_name()}, torch {torch.__version__}"
    told = {"commands": [f"python {c}" for c in commands(task, name, seed)], "machine": machine}
    runs[str(seed)] = found | told
    files.write_json(PATH, kept)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, action="append", help="else all, one by one")
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="CHANGE", help="else all")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=1e9, help="no run begins after so many")
    parser.add_argument("--list", action="store_true", help="show the changes and end")
    options = parser.parse_args()
    if options.list:
        for name, change in CHANGES.items():
            print(f"{name:16} {change.group:14} {change.title}")
        return 0
    began = time.monotonic()
    (ROOT / "runs").mkdir(exist_ok=True)
    lock = open(ROOT / "runs" / "ablations.lock", "w")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another run of benchmarks/ablations.py measures; wait for it", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in SHARED:
        importlib.import_module(name)

    for task in options.task or TASKS:
        for name in changes_of(task):
            if options.only and name not in options.only:
                continue
            for seed in options.seeds:
                if str(seed) in read()["runs"].get(task, {}).get(name, {}):
                    continue
                if time.monotonic() - began > 60 * options.minutes:
                    return 0
                found = measure(task, name, seed)
                keep(task, name, seed, found)
                print(f"== {task} {name} seed {seed}: {found['accuracy']:.3f}, "
                      f"{found['processor_seconds']:.0f} s", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
