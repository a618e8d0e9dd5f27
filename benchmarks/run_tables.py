"""The CSV tables that a run leaves, as the benchmarks read them."""

import csv
from pathlib import Path


def rows_of(path: Path) -> list[dict]:
    """Return the rows of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
