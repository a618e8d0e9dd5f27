"""Files and folders that are never half-written: a temporary name, flushed, moved into place.

A reader, a crash or a full disk sees the old file or the new one, nothing between.
"""

import csv
import io
import json
import os
import shutil
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


def read_object(path: Path) -> dict:
    """Return the object that a JSON file holds; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def beside(path: Path, mark: str) -> Path:
    """Return this process's temporary name of `path`, in the same folder."""
    return path.with_name(f".{path.name}.{os.getpid()}.{mark}")


def put_folder(new: Path, path: Path) -> None:
    """Move a finished folder to `path`; what was there goes only once the new one is in place."""
    old = beside(path, "old")
    for each in (*new.rglob("*"), new):
        _flush(each)
    if path.exists():
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the system write a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
