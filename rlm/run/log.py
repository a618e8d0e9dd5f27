"""A run's figures, one row a step, in log.csv; rlm/run/trackers.py sends them elsewhere too.

What tells of the machine and not of the learning goes to times.csv beside it, so log.csv is the
same for every run of the same seed and settings on one kind of machine.
It knows neither what the figures mean nor which script they come from.
"""

import csv
from pathlib import Path
from typing import TextIO

from rlm import files

# Columns of times.csv; it has the step, too.
TIMES = ("generate_seconds", "learn_seconds", "tokens_per_second", "seconds", "peak_memory_mb")


class Tracker:
    """Writes rows of figures. A row stands in log.csv when `log` returns.

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
