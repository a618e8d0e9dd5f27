"""A run's metrics, one row a step: log.csv, and trackers (W&B, trackio, TensorBoard) beside it.

What tells of the machine and not of the learning goes to times.csv beside it, so log.csv is the
same for every run of the same seed and settings on one kind of machine. Trackers are opened by
accelerate's classes:

    trackers = Trackers(["trackio"], "runs/grpo", project="demo", settings={"seed": 0})
    trackers.log({"step": 1, "reward_mean": 0.5})
    trackers.table("samples", [{"question": "1 + 2?", "text": "3"}], step=1)
    trackers.close()

Nothing reaches the network unless the user has asked for it: W&B runs offline if WANDB_MODE is
not set and nobody is logged in, trackio is local only. Their files go into the run's folder:
wandb/, trackio/, tensorboard/. Neither what the metrics mean nor which script they come from is
known here.
"""

import contextlib
import csv
import importlib.util
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import TextIO

from rlm import files
from rlm.errors import InputError

# Columns of times.csv; it has the step, too.
TIMES = ("generate_seconds", "learn_seconds", "tokens_per_second", "seconds", "peak_memory_mb")


class CsvLog:
    """Writes rows of metrics. A row stands in log.csv when `log` returns.

    path: the CSV file; rows that are there already are kept and gone on from.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._times = Rows(self.path), Rows(self.path.with_name("times.csv"))

    def log(self, row: dict) -> None:
        """Write a row. A column that is new is added to the whole file, empty in earlier rows."""
        times = {name: row[name] for name in TIMES if name in row}
        self._log.add({name: value for name, value in row.items() if name not in times})
        if times:
            self._times.add({name: row[name] for name in ("step",) if name in row} | times)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._log.close()
        self._times.close()

    def state(self) -> dict:
        """Return how many rows and which columns there are, for a checkpoint."""
        return {"log": self._log.state(), "times": self._times.state()}

    def restore(self, state: dict) -> None:
        """Take back the rows that were written after `state` was taken."""
        self._log.restore(state["log"])
        self._times.restore(state["times"])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Rows:
    """A CSV file that grows by rows; a new column is added to all of it, empty in earlier rows."""

    def __init__(self, path: Path):
        self.path = path
        self._columns, rows = self._there()
        self._count = len(rows)
        self._file: TextIO | None = None

    def add(self, row: dict) -> None:
        """Write a row; it stands in the file when this returns."""
        if set(row) - set(self._columns):
            self._rewrite([*self._there()[1], row])
        else:
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)
            self._file.flush()
        self._count += 1

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def state(self) -> dict:
        return {"count": self._count, "columns": self._columns}

    def restore(self, state: dict) -> None:
        """Keep the first rows and the columns that there were; a torn last line goes with them."""
        self._rewrite(self._there()[1][: state["count"]], state["columns"])
        self._count = state["count"]

    def _there(self) -> tuple[list[str], list[dict]]:
        if not self.path.exists():
            return [], []
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)

    def _rewrite(self, rows: list[dict], columns: list[str] | None = None) -> None:
        """Write the file anew; a crash leaves the old or the new one."""
        self.close()
        if columns is not None:
            rows = [{name: row.get(name) for name in columns} for row in rows]
        if rows:
            files.write_csv(self.path, rows)
        else:
            self.path.unlink(missing_ok=True)
        self._columns = self._there()[0]


# --- trackers

TRACKERS = ("wandb", "trackio", "tensorboard")
PROJECT = "reasoning-toolkit"


def check_trackers(names: list[str], given: str) -> None:
    """InputError, with what to type, for the first tracker whose package is not installed.

    given: how the trackers were given, to open the message: ``--tracker wandb``.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            without = " with --no-wandb" if "wandb-project" in given else ""
            raise InputError(
                f"{given}: {name} is not installed; `pip install {name}`, or leave it out{without}"
            )


class Trackers:
    """Logs to every tracker of `names`, all of NAMES or none; InputError for one that is missing.

    folder: the run's; its name is the run's name. project: W&B's and trackio's, None: PROJECT.
    settings: plain values, shown with the run.
    """

    def __init__(self, names, folder: str | Path, *, project: str | None = None, settings=None):
        check_trackers(list(names), "--tracker " + ",".join(names))
        folder, project = Path(folder), project or PROJECT
        # The stages of train.py are demo/sft and demo/grpo: the name says which demo.
        parts = folder.parts[folder.parts.index("runs") + 1 :] if "runs" in folder.parts else ()
        run = "-".join(parts) or folder.name
        opens = {"wandb": _open_wandb, "trackio": _open_trackio, "tensorboard": _open_tensorboard}
        self._open = {name: opens[name](folder, project, run, settings or {}) for name in names}

    def log(self, row: dict) -> None:
        """Log the numbers of a row; `row["step"]`, where there is one, is their step.

        What is not finite is named in log.csv and left out here: it cannot be drawn.
        """
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        finite = {k: v for k, v in numbers.items() if math.isfinite(v)}
        for tracker in self._open.values():
            tracker.log(finite, step=row.get("step"))

    def table(self, name: str, rows: list[dict], step: int) -> None:
        """Log rows of equal keys as a table; TensorBoard, which has none, gets Markdown."""
        if not rows:
            return
        columns = list(rows[0])
        data = [[_cell(row[column]) for column in columns] for row in rows]
        for kind, tracker in self._open.items():
            if kind == "wandb":
                tracker.log_table(name, columns=columns, data=data, step=step)
            elif kind == "trackio":
                made = sys.modules["trackio"].Table(columns=columns, data=data)
                tracker.log({name: made}, step=step)
            else:
                tracker.log({name: _markdown(columns, data)}, step=step)

    def close(self) -> None:
        """Write what is not yet written and end the runs; a second call does nothing."""
        for kind, tracker in self._open.items():
            with contextlib.redirect_stdout(io.StringIO()):
                if kind == "trackio":
                    # Its own finish, or it would finish the same run again when Python ends.
                    sys.modules["trackio"].finish()
                else:
                    tracker.finish()
        self._open = {}


def _open_wandb(folder: Path, project: str, run: str, settings: dict):
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):  # else in the user's home
        os.environ[name] = os.environ.get(name) or str(folder.absolute() / "wandb")
    import wandb

    # Only what was logged: no copy of the console, of the code or of the machine's load.
    quiet = wandb.Settings(
        console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
    )
    # Without `dir` wandb leaves its files in the working folder, where they hide the library.
    place = {"dir": str(folder), "name": run, "settings": quiet}
    if not _wandb_is_known():
        place["mode"] = "offline"
    tracker = _accelerate("WandBTracker")(project, **place)
    tracker.start()
    tracker.store_init_configuration(settings)
    return tracker


def _wandb_is_known() -> bool:
    """Return whether the user has said how W&B is to be used, by a mode, a key or a login."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    from requests.utils import get_netrc_auth

    return bool(get_netrc_auth(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")))


def _open_trackio(folder: Path, project: str, run: str, settings: dict):
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID"):
        os.environ.pop(name, None)
    os.environ["TRACKIO_DIR"] = str(folder.absolute() / "trackio")
    # It reads TRACKIO_DIR when it is imported: a second run of this process imports it anew.
    for name in [n for n in sys.modules if n.partition(".")[0] == "trackio"]:
        del sys.modules[name]
    options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    tracker = _accelerate("TrackioTracker")(project, name=run, config=settings, **options)
    with contextlib.redirect_stdout(io.StringIO()):
        tracker.start()
    return tracker


def _open_tensorboard(folder: Path, project: str, run: str, settings: dict):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    tracker = _accelerate("TensorBoardTracker")("tensorboard", str(folder))
    tracker.start()
    tracker.store_init_configuration({name: _cell(value) for name, value in settings.items()})
    return tracker


def _accelerate(name: str):
    from accelerate import PartialState, tracking

    PartialState()  # accelerate's trackers log, and its loggers want to know their process
    return getattr(tracking, name)


def _cell(value):
    """Return a value that every tracker takes: a text or a finite number."""
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return json.dumps(value)


def _markdown(columns: list[str], data: list[list]) -> str:
    """Return a Markdown table; a cell's text is shown as it is, whatever characters it has."""
    lines = [columns, ["---"] * len(columns), *data]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(value) -> str:
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "&#124;").replace("\n", "<br>")
