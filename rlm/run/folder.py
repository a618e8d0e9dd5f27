"""A run's folder: what was set, what was logged, what was sampled, what was measured.

runs/<name>/settings.json, log.csv, rollouts.jsonl, console.log, evaluations as CSV and JSON,
report.html. An earlier run of the same name is kept beside it as <name>.1, <name>.2 and so on.
"""

import atexit
import json
import logging
import os
import warnings
from pathlib import Path

from rlm import files, parallel
from rlm.answers import math_pool
from rlm.models.loading import find
from rlm.report import report
from rlm.run import checkpoint
from rlm.run.log import CsvLog, Trackers
from rlm.run.progress import AboveBar, ProgressBar

logger = logging.getLogger("rlm")

TABLE_ROWS = 16  # of samples that go to a tracker at a time

# What a console line of a step shows, if the step has it; log.csv has everything.
SHOWN = (
    "loss", "reward_mean", "mixed_fraction", "step_by_step_fraction", "truncated_fraction",
    "graph_valid_fraction", "leak_fraction", "validation_accuracy", "validation_accuracy_lenient",
    "tokens_per_second", "seconds",
)  # fmt: skip


def start(
    *models: str,
    log_level: str,
    threads: int,
    seed: int,
    timeout: float = 0,
    math_seconds: float = math_pool.SECONDS,
) -> None:
    """Set up what is global to a process: what is printed, CPU threads, torch's own seed.

    models: their names are looked up first: InputError before anything heavy is imported.
    timeout: seconds that it waits for the other processes of its run, 0 for the usual.
    math_seconds: deadline of a verdict of kind math.
    """
    for name in models:
        find(name)
    math_pool.set_deadline(math_seconds)
    import torch
    import transformers

    # Loading a model takes less time than reading its progress bar; problems are still told.
    transformers.logging.disable_progress_bar()
    if log_level != "debug":
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[AboveBar()])
    logger.setLevel(log_level.upper())
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    parallel.join(timeout or parallel.TIMEOUT)


class Run:
    """The folder of one run. `settings` is a plain dictionary, written as it is.

    trackers: names out of `rlm.run.log.TRACKERS`, which get all that is logged; project: theirs.
    report_every: steps between reports while it runs, 0: one at the end alone.
    goes_on: the run is the one whose folder is there, stopped earlier.
    rows: what was logged by this process, a dictionary a step.
    """

    def __init__(
        self, path: str | Path, settings: dict, *, trackers=(), project=None, report_every=0,
        goes_on=False,
    ):  # fmt: skip
        self.path = Path(path)
        if not goes_on:
            keep_earlier(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        files.write_json(self.path / "settings.json", settings)
        self.step = 0  # of the last row
        self.rows: list[dict] = []
        self._csv = CsvLog(self.path / "log.csv")
        self._trackers = Trackers(trackers, self.path, project=project, settings=settings)
        self._progress = ProgressBar(settings.get("max_steps") or None)
        self._validation, self._validated = dict[str, float](), False
        self._report_every = report_every
        atexit.register(self.close)  # an interrupted run has its report too

    def log(self, row: dict, *, show: bool = True) -> None:
        """Log the metrics of a step to log.csv, and the main ones as a line to the console.

        Where a bar is shown, it has them, and the line is in console.log only.
        """
        self._validated = "validation_accuracy" in row
        row = row | (self._validation if self._validated else {})
        self.step = row["step"]
        self._csv.log(row)
        self.rows.append(row)
        self._trackers.log(row)
        self._progress.show(row)
        if self._report_every and row["step"] % self._report_every == 0:
            self._report(running=True)
        if not show:
            return
        shown = [f"{name} {row[name]:.4g}" for name in SHOWN if name in row]
        text = f"step {row['step']}: " + ", ".join(shown)
        self._keep(text) if self._progress.shown else self.info(text)

    def expect(self, steps: int) -> None:
        """Show from now on that there will be so many steps."""
        self._progress.expect(steps)

    def measured(self, summary: dict) -> None:
        """Keep the metrics of a validation for the row that has its accuracy."""
        lenient = "accuracy_lenient"
        names = ("accuracy_low", "accuracy_high", "format_rate",
                 lenient, f"{lenient}_low", f"{lenient}_high")  # fmt: skip
        self._validation = {f"validation_{name}": summary[name] for name in names}

    def trainer_callback(self, show_every: int = 1):
        """Return a callback that logs what a transformers Trainer logs, each step of it.

        show_every: steps between lines on the console.
        """
        from transformers import TrainerCallback

        run, names = self, {"grad_norm": "gradient_norm", "mean_token_accuracy": "token_accuracy"}

        class Log(TrainerCallback):
            def on_train_begin(self, arguments, state, control, **kwargs):
                run._progress.expect(state.max_steps)

            def on_log(self, arguments, state, control, logs=None, **kwargs):
                if logs and "loss" in logs:
                    numbers = {names.get(k, k): float(v) for k, v in logs.items()}
                    step = state.global_step
                    run.log({"step": step, **numbers}, show=step % show_every == 0)

        return Log()

    def close(self) -> None:
        """End the logs and write report.html. Rows are written at once: without it none is lost."""
        atexit.unregister(self.close)
        self._progress.close()
        self._csv.close()
        self._trackers.close()
        self._report()

    def _report(self, *, running: bool = False) -> None:
        try:
            report.write(self.path, running=running)
        except OSError as error:
            logger.warning("warning: no report.html: %s", error)

    def finish(self) -> None:
        """Close a run that has come to its end: it is not gone on with by itself."""
        self.close()
        checkpoint.finish(self.path)

    def state(self) -> dict:
        """Return how far the logs have come, for a checkpoint."""
        rollouts = self.path / "rollouts.jsonl"
        size = rollouts.stat().st_size if rollouts.exists() else 0
        return {"step": self.step, "rows": self._csv.state(), "rollout_bytes": size}

    def restore(self, state: dict) -> None:
        """Take back what was logged after `state` was taken."""
        self.step = state["step"]
        self._csv.restore(state["rows"])
        rollouts = self.path / "rollouts.jsonl"
        if rollouts.exists():
            os.truncate(rollouts, state["rollout_bytes"])

    def info(self, text: str) -> None:
        """Log to the console and to the run's console.log."""
        logger.info(text)
        self._keep(text)

    def _keep(self, text: str) -> None:
        with open(self.path / "console.log", "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write_evaluation(self, name: str, evaluation) -> None:
        """Write the rows of an `rlm.evaluation.measure.Evaluation` as CSV, its summary as JSON."""
        files.write_csv(self.path / f"{name}.csv", evaluation.rows)
        files.write_json(self.path / f"{name}.json", evaluation.summary)
        shown = ("prompt", "reasoning", "answer", "gold", "verdict", "reason", "last_number")
        rows = [{key: row[key] for key in shown} for row in evaluation.rows[:TABLE_ROWS]]
        self._trackers.table(name, rows, self.step)

    def write_rollouts(self, records: list[dict]) -> None:
        """Append records to rollouts.jsonl, all of them in one write, a line each.

        With a step that was validated the first of them go to the trackers, as a table.
        """
        lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        with open(self.path / "rollouts.jsonl", "a", encoding="ascii") as file:
            file.write(lines)
        if self._validated:
            shown = ("question", "gold", "text", "reward", "advantage", "reason", "finish")
            rows = [{key: record[key] for key in shown} for record in records[:TABLE_ROWS]]
            self._trackers.table("rollouts", rows, self.step)


class Silent:
    """Stands for the `Run` in the processes that write nothing. rows: as there."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.step, self.rows = 0, list[dict]()

    def log(self, row: dict, *, show: bool = True) -> None:
        self.step = row["step"]
        self.rows.append(row)

    def trainer_callback(self, show_every: int = 1):
        from transformers import TrainerCallback

        return TrainerCallback()

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        self.step = state["step"]

    def _nothing(self, *arguments, **options) -> None:
        """What only the first process does."""

    expect = measured = info = finish = close = write_evaluation = write_rollouts = _nothing


def keep_earlier(path: Path) -> None:
    """Rename an existing folder of the same run, so that nothing of it is lost."""
    if not (path / "settings.json").exists():
        return
    number = 1
    while (earlier := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    os.rename(path, earlier)
    logger.info("an earlier run of this name is kept as %s", earlier)
