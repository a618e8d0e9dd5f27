"""A run's figures, one row a step: log.csv always, Weights & Biases too when a project is named.

It knows neither what the figures mean nor which script they come from.
"""

import csv
import importlib.util
import math
from pathlib import Path
from typing import TextIO

from rlm import files
from rlm.errors import InputError


class Tracker:
    """Writes rows of figures. A row stands in log.csv when `log` returns.

    path: the CSV file; rows that are there already are kept and gone on from.
    wandb_project: also logs there, through accelerate's tracker (WANDB_MODE=offline works); what
    wandb keeps on disk goes beside the CSV. InputError if wandb is not installed.
    settings: plain values that W&B shows with the run.
    """

    def __init__(self, path: str | Path, wandb_project: str | None = None, settings=None):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._wandb = _open_wandb(wandb_project, self.path.parent) if wandb_project else None
        if self._wandb and settings:
            self._wandb.store_init_configuration(settings)
        self._columns = self._rows_there()[0]
        self._file: TextIO | None = None

    def log(self, row: dict) -> None:
        """Write a row; `row["step"]`, where there is one, numbers it for W&B.

        A column that was not there before is added to the whole file, empty in earlier rows.
        """
        if set(row) - set(self._columns):
            self._rewrite(row)
        else:
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)
            self._file.flush()
        if self._wandb:
            # W&B draws numbers; what is not finite is named in the CSV and left out of the plot.
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            finite = {k: v for k, v in numbers.items() if math.isfinite(v)}
            self._wandb.log(finite, step=row.get("step"))

    def close(self) -> None:
        """Close the file and end the W&B run; a second call does nothing."""
        if self._file:
            self._file.close()
            self._file = None
        if self._wandb:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _rows_there(self) -> tuple[list[str], list[dict]]:
        if not self.path.exists():
            return [], []
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)

    def _rewrite(self, row: dict) -> None:
        """Write the file anew with the columns of `row`; a crash leaves the old or the new one."""
        if self._file:
            self._file.close()
            self._file = None
        _, rows = self._rows_there()
        files.write_csv(self.path, [*rows, row])
        self._columns = self._rows_there()[0]


def _open_wandb(project: str, folder: Path):
    """accelerate's W&B tracker, started. `folder`: wandb would otherwise leave its files in the
    working folder, under a name that hides the library itself."""
    if importlib.util.find_spec("wandb") is None:
        raise InputError(
            f"--wandb-project {project}: wandb is not installed; "
            "`pip install wandb`, or leave it out with --no-wandb"
        )
    from accelerate import PartialState
    from accelerate.tracking import WandBTracker

    PartialState()  # accelerate's trackers log, and its loggers want to know their process
    tracker = WandBTracker(project, dir=str(folder))
    tracker.start()
    return tracker
