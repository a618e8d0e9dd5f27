"""Both stages and their evaluations in one go: base, SFT, GRPO, and a table of the three.

    python train.py --config configs/tiny_demo.yaml
    python train.py --mode sft --num-samples 500 --sft-epochs 3
    python train.py --mode grpo --sft-checkpoint weights/sft_lora --grpo-samples 50

It only calls train_sft.py, train_grpo.py and evaluate.py in order, in one process. With `samples`
above 1 in the file's `evaluate:` section it also tells what became of pass@k.
"""

import logging
import sys
import time
from functools import partial
from pathlib import Path

import config
import data
import evaluate
import train_grpo
import train_sft
from rlm.errors import run_main
from training import tasks

logger = logging.getLogger("rlm")


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.TrainSettings, argv)
    rows = train(settings)
    print(f"\n{tasks.table(settings, rows)}\n")
    return 0


def train(settings) -> list[dict]:
    """Measure the base, then run each stage and measure it; return the summaries in order.

    Stopped and started again, it goes on where it was.
    """
    from rlm import files, parallel
    from rlm.evaluation import sharpening
    from rlm.models.loading import pick_device
    from rlm.report import report
    from rlm.run.done import Done
    from rlm.run.folder import start

    began = time.monotonic()
    start(settings.model, **settings.process())
    if settings.mode != "grpo":  # SFT would refuse it after the base has been measured
        parallel.check_one_gpu(pick_device(settings.device).type, shared=False)
    if doubt := settings.doubt():
        logger.warning("%s", doubt)
    measured = settings.evaluate()
    examples = data.examples_for(measured, measured.split, measured.eval_samples)
    begins = settings.adapter if settings.mode == "grpo" else None
    shots = data.worked_examples(settings, [begins])  # the same in all stages
    examples, _ = data.without(examples, shots)
    work = partial(measure, measured, examples, shots, settings.run_dir)
    stages = {"sft": (train_sft, settings.sft), "grpo": (train_grpo, settings.grpo)}
    names = ["sft", "grpo"] if settings.mode == "full" else [settings.mode]
    parts = {"train": settings} | {name: stages[name][1]() for name in names}
    facts = {name: part.lasting() for name, part in parts.items()}
    defaults = {name: part.defaults() for name, part in parts.items()}
    go_on = settings.resume != "never"
    done = Done(settings.run_dir / "done.json", facts, go_on=go_on, defaults=defaults)
    rows = [done.once("base", partial(work, "base"))]
    for place, name in enumerate(names):
        script, stage_settings = stages[name]
        stage = within(stage_settings(), settings, began, rows, stages=len(names) - place)
        done.once(f"train {name}", partial(run_stage, script, stage))
        rows.append(done.once(name, partial(work, name, stage.output)))
    files.write_json(settings.run_dir / "summary.json", rows)
    found = pass_at_k(settings.run_dir, ["base", *names], measured)
    done.clear()
    report.write(settings.run_dir)
    show_one(settings.run_dir / f"test-{names[-1]}.csv")
    if found:
        print(f"\n{sharpening.brief(found)}")
    return rows


def run_stage(script, settings) -> None:
    """Run a stage; what it returns is in its run's folder."""
    script.train(settings)


def within(stage, settings, began: float, rows: list[dict], stages: int):
    """Return the stage's settings with its part of the time that is left.

    The last stage gets all but the seconds of the measurement after it, an earlier one half.
    """
    if settings.seconds() is None:
        return stage
    measuring = stages * 1.25 * max(row["seconds"] for row in rows)
    left = settings.seconds() - (time.monotonic() - began) - measuring
    return stage.model_copy(update={"budget": f"{max(1.0, left / stages):.1f}s"})


def measure(settings, examples, shots, folder: Path, name: str, adapter: str | None = None) -> dict:
    """Return the summary of the base, or of an adapter on it, over the held-out examples.

    shots: worked examples that stand before each.
    """
    path = folder / f"test-{name}.csv"
    return evaluate.evaluate_one(settings, examples, name, settings.model, adapter, path, shots)


def pass_at_k(folder: Path, names: list[str], settings) -> dict | None:
    """Return pass@k of the measured models and its changes, which go to pass_at_k.json, too.

    None where the evaluations had one sample of each question.
    """
    from rlm import files
    from rlm.evaluation.sharpening import Sampled, pass_at_k_metrics

    path = folder / "pass_at_k.json"
    if settings.samples < 2:
        path.unlink(missing_ok=True)  # of an earlier run in this folder
        return None
    models = [
        Sampled(name, [int(row["right_samples"]) for row in rows_of(folder / f"test-{name}.csv")],
                settings.samples)
        for name in names
    ]  # fmt: skip
    found = pass_at_k_metrics(models, seed=settings.seed)
    files.write_json(path, {"pass_at_k": found})
    return found


def rows_of(path: Path) -> list[dict]:
    """Return the rows of an evaluation."""
    import csv

    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def show_one(path: Path) -> None:
    """Print the first question of an evaluation with the reasoning of the trained model."""
    row = rows_of(path)[0]
    print(f"\nQuestion: {row['prompt']}\n\nReasoning\n{row['reasoning']}\n")
    print(f"Answer: {row['answer']} ({row['verdict']}; known answer {row['gold']})")


if __name__ == "__main__":
    sys.exit(run_main(main))
