"""Measure models: accuracy with its interval, format, thinking and answer proportions.

    python evaluate.py                                     # the base and the shipped adapter
    python evaluate.py --models base,weights/sft_lora      # two or more, on the same questions
    python evaluate.py --models base --samples 8           # pass@1, pass@8, majority of 8
    python evaluate.py --compare base sft_lora final_rlm_lora    # what changed, and how surely
    python evaluate.py --robustness                        # seen, unseen, changed, harder questions
    python evaluate.py --symbolic DIR                      # several draws of each template
    python evaluate.py --config configs/orchestrator.yaml  # graphs of agents, and what they add
    python evaluate.py --model-path grpo_model --output-file grpo.csv --config FILE.yaml

Greedy by default. One CSV a model with a row per question, one JSON with its summary. The three
other ways also write a card (.md) with what its metrics mean, the metrics (.json) and the answers
that they are made of (.csv). What they compute is in rlm/evaluation/comparison.py,
rlm/evaluation/robustness.py.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import config
import data
from rlm.errors import run_main
from training import tasks

logger = logging.getLogger("rlm")


def main(argv: list[str] | None = None) -> int:
    settings = config.load(config.EvaluateSettings, argv)
    from rlm.run.folder import start

    start(*(model for _, model, _ in settings.candidates()), **settings.process())
    metrics: Any
    if settings.compare:
        shown, metrics = compare(settings)
    elif settings.robustness:
        shown, metrics = robustness(settings)
    elif settings.symbolic:
        shown, metrics = symbolic(settings)
    else:
        metrics = evaluate(settings)
        shown = tasks.table(settings, metrics)
    print(json.dumps(metrics, indent=2) if settings.json_output else shown)
    return 0


def evaluate(settings) -> list[dict]:
    """Measure every model of the settings on the same questions; return their summaries."""
    examples = questions(settings)
    return [evaluation.summary for evaluation in measure_all(settings, examples)]


def questions(settings) -> list:
    """Return the questions of the settings, without those that are worked examples."""
    examples = data.examples_for(settings, settings.split, settings.eval_samples)
    return data.without(examples, worked_examples(settings))[0]


def worked_examples(settings) -> list:
    """Return the worked examples, the same for all models: the first adapter's, or drawn."""
    return data.worked_examples(settings, [adapter for _, _, adapter in settings.candidates()])


def measure_all(settings, examples, names: bool = True) -> list:
    """Measure every model on the examples, and return what was found.

    names: each one's rows and summary are written to a file with its name.
    """
    candidates, shots = settings.candidates(), worked_examples(settings)
    paths = [csv_path(settings, name, len(candidates)) if names else None
             for name, _, _ in candidates]  # fmt: skip
    return [
        measure_one(settings, examples, name, model, adapter, path, shots)
        for (name, model, adapter), path in zip(candidates, paths, strict=True)
    ]


def evaluate_one(settings, examples, name: str, model: str, adapter: str | None, path, shots=()):
    """Measure one model, write its rows and its summary, and return the summary, a dict."""
    return measure_one(settings, examples, name, model, adapter, path, shots).summary


def measure_one(
    settings, examples, name: str, model: str, adapter: str | None, path=None, shots=()
):
    """Return one model's `rlm.evaluation.measure.Evaluation`; its rows and summary go to `path`."""
    from rlm.engine.engine import Engine
    from rlm.evaluation.measure import save, told
    from rlm.models.policy import open_policy

    policy = open_policy(model, adapter, **settings.loading())
    logger.info("%s: %d questions are asked", name, len(examples))
    engine = Engine(policy.model, policy.tokenizer, **settings.engine_options())
    task = tasks.task_of(settings, policy, shots)
    tasks.check_shots(settings, task, settings.max_tokens, engine.context_tokens)
    evaluation = task.measure(
        engine,
        examples,
        name=name,
        max_tokens=settings.max_tokens,
        samples=settings.samples,
        temperature=settings.temperature,
        seed=settings.seed,
    )
    if path:
        save(evaluation, path)
        logger.info("%s: %s; rows in %s", name, told(evaluation.summary), path)
    else:
        logger.info("%s: %d questions answered", name, len(examples))
    return evaluation


def compare(settings) -> tuple[str, dict]:
    """Compare the models on the same questions; return what is printed, and the metrics."""
    from rlm.evaluation import comparison

    examples = questions(settings)
    evaluations = measure_all(settings, examples)
    metrics = comparison.compare(evaluations, examples, seed=settings.seed)
    facts = asked(settings) | {
        "items": f"{len(examples)} of the {settings.split} split, seed {settings.seed}, "
        f"fingerprint {data.fingerprint(examples)}"
    }
    card = comparison.card(metrics, facts)
    found, rows = {"asked": facts} | metrics, comparison.items(evaluations, examples)
    place = write(settings, "comparison", card, rows, found)
    summaries = tasks.table(settings, [evaluation.summary for evaluation in evaluations])
    return f"{summaries}\n\n{comparison.brief(metrics)}\n\n{place}", found


def robustness(settings) -> tuple[str, dict]:
    """Ask the models what the adapter was trained on, seen, changed and made harder."""
    from rlm.evaluation import robustness as how
    from rlm.models.adapters import read_manifest

    manifests = {name: read_manifest(a) for name, _, a in settings.candidates() if a}
    known = {n: m for n, m in manifests.items() if m.get("task") == settings.task}
    name, manifest = next(iter(known.items()), ("", {}))
    training, seen, note = data.trained_on(settings, manifest)
    before = manifest.get("settings") or {}
    limits = {"digits": settings.digits, "steps": settings.problem_steps}
    unseen = data.examples_for(settings, "test", settings.eval_samples)
    sets = how.question_sets(
        settings.task, training, seen, unseen, n=settings.eval_samples, seed=settings.seed,
        train_seed=before.get("seed", settings.seed), **limits,
    )  # fmt: skip
    examples = [example for made in sets for example in made.examples]
    evaluations = measure_all(settings, examples, names=False)
    metrics = how.robustness_metrics(sets, evaluations, seed=settings.seed)
    overlap = how.overlap(sets, training)
    facts = asked(settings) | {
        "trained on": f"{len(training)} questions, {len(seen)} of them drawn: {note}",
        "seen": f"what {name} was trained on" if name else "nothing for sure",
    }
    for other, its in known.items():
        if its.get("data") != manifest.get("data"):
            start = (its.get("settings") or {}).get("adapter") or "the base"
            facts[other] = f"went on from {start}, with other questions than {name}'s"
    found = {"asked": facts, "sets": metrics, "overlap": overlap}
    place = write(settings, "robustness", how.robustness_card(metrics, overlap, facts),
                  how.robustness_rows(sets, evaluations), found)  # fmt: skip
    return f"{how.robustness_table(metrics)}\n\n{place}", found


def symbolic(settings) -> tuple[str, dict]:
    """Ask the models several questions of each template in the user's files."""
    from rlm.evaluation import robustness as how

    draws = how.read_draws(settings.symbolic)
    evaluations = measure_all(settings, draws.examples, names=False)
    metrics = [how.symbolic_metrics(draws, evaluation) for evaluation in evaluations]
    facts = asked(settings) | {"task": "questions by template", "data": settings.symbolic}
    found = {"asked": facts, "models": metrics}
    place = write(settings, "symbolic", how.symbolic_card(metrics, facts),
                  how.symbolic_rows(draws, evaluations), found)  # fmt: skip
    return f"{how.symbolic_table(metrics)}\n\n{place}", found


def asked(settings) -> dict:
    """Return what every card says of how the models were asked."""
    way = "greedy" if settings.temperature == 0 else f"temperature {settings.temperature:g}"
    several = f", {settings.samples} samples and their majority" if settings.samples > 1 else ""
    facts = {"task": settings.task} | ({"data": settings.data} if settings.data else {})
    shots = f", {settings.shots} worked examples before the question" if settings.shots else ""
    where = {"system": "", "user": " behind the question", "both": " in both places"}[settings.role]
    return facts | {
        "prompt": f"question and instruction{where} the same for all, format "
        f"{settings.format}{shots}",
        "sampling": f"{way}{several}, at most {settings.max_tokens} tokens",
    }


def write(settings, name: str, card: str, rows: list[dict], metrics: dict) -> str:
    """Write the card, the rows and the metrics; return where they are, in words."""
    from rlm import files

    path = Path(settings.output_file or settings.run_dir / f"{name}.csv")
    files.write_csv(path, rows)
    files.write_json(path.with_suffix(".json"), metrics)
    files.write_text(path.with_suffix(".md"), card)
    return f"{path.with_suffix('.md')}: the card; .json the figures, .csv the answers"


def csv_path(settings, name: str, count: int) -> Path:
    """Return where a model's rows go; the file's name has the model's where there are several."""
    path = Path(settings.output_file or settings.run_dir / "evaluation.csv")
    if count == 1 and settings.output_file:
        return path
    return path.with_name(f"{path.stem}-{Path(name).name}{path.suffix}")


if __name__ == "__main__":
    sys.exit(run_main(main))
