"""Measure models: accuracy with its interval, format, thinking and answer proportions.

    python evaluate.py                                     # the base and the shipped adapter
    python evaluate.py --models base,weights/sft_lora      # two or more, on the same questions
    python evaluate.py --models base --samples 8           # pass@1, pass@8, majority of 8
    python evaluate.py --config configs/orchestrator.yaml  # graphs of agents, and what they add
    python evaluate.py --model-path grpo_model --output-file grpo.csv --config FILE.yaml

Greedy by default. One CSV a model with a row per question, one JSON with its summary.
"""

import json
import logging
import sys
from pathlib import Path

import config
import data
import tasks
from rlm.errors import run

logger = logging.getLogger("rlm")


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.EvaluateSettings, argv)
    from rlm.evaluation import table
    from rlm.runs import start

    start(*(model for _, model, _ in settings.candidates()), **settings.process())
    summaries = evaluate(settings)
    print(json.dumps(summaries, indent=2) if settings.json_output else table(summaries))
    return 0


def evaluate(settings) -> list[dict]:
    """Measure every model of the settings on the same questions; return their summaries."""
    examples = data.examples_for(settings, settings.split, settings.eval_samples)
    candidates = settings.candidates()
    return [
        evaluate_one(
            settings, examples, *candidate, csv_path(settings, candidate[0], len(candidates))
        )
        for candidate in candidates
    ]


def evaluate_one(settings, examples, name: str, model: str, adapter: str | None, path) -> dict:
    """Measure one model, write its rows and its summary, and return the summary."""
    from rlm.engine import Engine
    from rlm.evaluation import save
    from rlm.policy import open_policy

    policy = open_policy(model, adapter, **settings.loading())
    evaluation = tasks.task_of(settings, policy).measure(
        Engine(policy.model, policy.tokenizer, **settings.engine()),
        examples,
        name=name,
        max_tokens=settings.max_tokens,
        samples=settings.samples,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    save(evaluation, path)
    logger.info("%s: accuracy %.3f, rows in %s", name, evaluation.summary["accuracy"], path)
    return evaluation.summary


def csv_path(settings, name: str, count: int) -> Path:
    """Return where a model's rows go; the file's name has the model's where there are several."""
    path = Path(settings.output_file or settings.run_dir / "evaluation.csv")
    if count == 1 and settings.output_file:
        return path
    return path.with_name(f"{path.stem}-{Path(name).name}{path.suffix}")


if __name__ == "__main__":
    sys.exit(run(main))
