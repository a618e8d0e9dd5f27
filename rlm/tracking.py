"""A run's figures, one row a step, in log.csv; rlm/trackers.py sends them elsewhere too.

It knows neither what the figures mean nor which script they come from.
"""

import csv
from pathlib import Path

from rlm import files


class Tracker:
    """Writes rows of figures. A row stands in log.csv when `log` returns.

    path: the CSV file; rows that are there already are kept and gone on from.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._columns = self._rows_there()[0]
        self._file = None

    def log(self, row: dict) -> None:
        """Write a row. A column that is new is added to the whole file, empty in earlier rows."""
        if set(row) - set(self._columns):
            self._rewrite(row)
        else:
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8", newline="")  # noqa: SIM115
            csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)
            self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file:
            self._file.close()
            self._file = None

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
