"""A run's folder: what was set, what was logged, what was sampled, what was measured.

runs/<name>/settings.json, log.csv, rollouts.jsonl, console.log, evaluations as CSV and JSON.
An earlier run of the same name is kept beside it as <name>.1, <name>.2 and so on.
"""

import json
import logging
import os
import warnings
from pathlib import Path

from rlm import files
from rlm.models import find
from rlm.tracking import Tracker

logger = logging.getLogger("rlm")

# What a console line of a step shows, if the step has it; log.csv has everything.
SHOWN = (
    "loss", "reward_mean", "mixed_fraction", "step_by_step_fraction", "truncated_fraction",
    "graph_valid_fraction", "leak_fraction", "validation_accuracy", "tokens_per_second", "seconds",
)  # fmt: skip


def start(*models: str, log_level: str, threads: int, seed: int) -> None:
    """Set up what is global to a process: what is printed, CPU threads, torch's own seed.

    models: their names are looked up first: InputError before anything heavy is imported.
    """
    for name in models:
        find(name)
    import torch
    import transformers

    # Loading a model takes less time than reading its progress bar; problems are still told.
    transformers.logging.disable_progress_bar()
    if log_level != "debug":
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logger.setLevel(log_level.upper())
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)


class Run:
    """The folder of one run. `settings` is a plain dictionary, written as it is.

    wandb_project: the figures of `log` also go there; None or False: not.
    rows: what was logged by this process, a dictionary a step.
    """

    def __init__(self, path: str | Path, settings: dict, wandb_project=None):
        self.path = Path(path)
        keep_earlier(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_json(self.path / "settings.json", settings)
        self.rows: list[dict] = []
        self._tracker = Tracker(self.path / "log.csv", wandb_project or None, settings)

    def log(self, row: dict) -> None:
        """Log the figures of a step to log.csv, and the main ones as a line to the console."""
        self._tracker.log(row)
        self.rows.append(row)
        shown = [f"{name} {row[name]:.4g}" for name in SHOWN if name in row]
        self.say(f"step {row['step']}: " + ", ".join(shown))

    def trainer_callback(self):
        """Return a callback that logs what a transformers Trainer logs."""
        from transformers import TrainerCallback

        run, names = self, {"grad_norm": "gradient_norm", "mean_token_accuracy": "token_accuracy"}

        class Log(TrainerCallback):
            def on_log(self, arguments, state, control, logs=None, **kwargs):
                if logs and "loss" in logs:
                    numbers = {names.get(k, k): float(v) for k, v in logs.items()}
                    run.log({"step": state.global_step, **numbers})

        return Log()

    def close(self) -> None:
        """End the logs. A run that was not closed has lost nothing: rows are written at once."""
        self._tracker.close()

    def say(self, text: str) -> None:
        """Log to the console and to the run's console.log."""
        logger.info(text)
        with open(self.path / "console.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write_evaluation(self, name: str, evaluation) -> None:
        """Write the rows of an `rlm.evaluation.Evaluation` as CSV, its summary as JSON."""
        files.write_csv(self.path / f"{name}.csv", evaluation.rows)
        files.write_json(self.path / f"{name}.json", evaluation.summary)

    def write_rollouts(self, records: list[dict]) -> None:
        """Append records to rollouts.jsonl, all of them in one write, a line each."""
        lines = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records)
        with open(self.path / "rollouts.jsonl", "a", encoding="ascii") as file:
            file.write(lines)


def keep_earlier(path: Path) -> None:
    """Rename an existing folder of the same run, so that nothing of it is lost."""
    if not (path / "settings.json").exists():
        return
    number = 1
    while (earlier := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.rename(path, earlier)
    logger.info("an earlier run of this name is kept as %s", earlier)
