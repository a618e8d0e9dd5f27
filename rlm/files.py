"""Files that are never half-written: to a temporary name, flushed to the disk, moved into place.

A reader, a crash or a full disk sees the old file or the new one, nothing between.
"""

import csv
import io
import json
import os
from pathlib import Path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path` at once and return the path; OSError if it cannot be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # newline="": csv rows bring their own line ends.
        with open(temporary, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value) -> Path:
    """Write `value` as indented JSON; NaN and infinity are refused with a ValueError."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: list[dict]) -> Path:
    """Write dictionaries as CSV; the columns are the keys in order of their first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, out.getvalue())
