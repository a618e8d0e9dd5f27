"""Where rows come from: the files of a folder, by split, and the hub.

Knows names of files and the hub; knows no task and no column. How a file is read is in
rlm/data/readers.py, what its name says in rlm/data/split_names.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from rlm.data import hub
from rlm.data.readers import READERS, Row, read_rows
from rlm.data.split_names import said, splits_of
from rlm.errors import InputError

__all__ = ["Row", "find_files", "hub_rows", "read_rows", "split_files"]

# Files that tell about a data set or a model, where they stand beside the data.
NO_ROWS = {
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json",
    "config.json", "package.json", "manifest.json", "settings.json",
}  # fmt: skip
DEEPEST = 6  # folders below the one that is given
ENDS = ", ".join(suffix.removeprefix(".") for suffix in READERS)


def find_files(path: str) -> list[Path]:
    """Return the file, or all data files of the folder, sorted by name.

    Of the folders inside those are looked into that are named `data` or after a split.
    """
    # os.path answers False for a name that no file can have, where pathlib raises.
    place = Path(os.path.expanduser(path))
    if os.path.isfile(place):
        return [place]
    if not os.path.isdir(place):
        raise InputError(
            f"--data {path}: no such file or folder; give a file ({ENDS}) or a folder of them"
        )
    files = _files_below(place, DEEPEST)
    if not files:
        inside = [p.name for p in sorted(place.iterdir()) if p.is_dir() and _files_below(p, 1)]
        which = f"give one of the folders in it: {', '.join(inside[:5])}" if inside else (
            "give one that has some"
        )  # fmt: skip
        raise InputError(f"--data {path}: no data files ({ENDS}) in this folder; {which}")
    return files


def _files_below(folder: Path, depth: int, everything: bool = False) -> list[Path]:
    """Return the data files of a folder and of those in it that may hold parts of its data."""
    found: list[Path] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    for entry in (e for e in entries if not e.name.startswith(".")):
        if entry.is_file():
            if entry.suffix.lower() in READERS and entry.name.lower() not in NO_ROWS:
                found.append(entry)
        elif entry.is_dir() and depth:
            split = said(entry.name) is not None
            if everything or split or entry.name.lower() == "data":
                found += _files_below(entry, depth - 1, everything or split)
    return found


def split_files(path: str) -> dict[Path, str | None]:
    """Return the files of a place and the split that each one's name says, None if it says none."""
    files = find_files(path)
    place = Path(os.path.expanduser(path))
    return splits_of(files, place if place.is_dir() else place.parent)


def hub_rows(
    name: str, split: str, *, config: str | None = None, streaming: bool = False
) -> Iterator[Row]:
    """Yield the rows of a data set on the hub, or of its copy in the local cache if that fails.

    streaming: rows come over the network one by one, in a fixed order; nothing is stored.
    InputError if the hub forbids, is not there (known after 2 s) or does not have it.
    """
    switch = hub.offline_switch()
    if switch or not hub.reachable():
        if not hub.cached_dataset(name):
            why = f"{switch} is set" if switch else f"{hub.endpoint()} does not answer"
            raise InputError(
                f"{name}: {why} and there is no copy in the local cache; "
                "give the data by --data FILE or FOLDER (.jsonl or .parquet), or get online"
            )
        return _cached_rows(name, split, config)
    return _remote_rows(name, split, config, streaming)


def _cached_rows(name: str, split: str, config: str | None) -> Iterator[Row]:
    # The cache's own reader: load_dataset would ask the network first.
    from datasets.packaged_modules.cache.cache import Cache

    try:
        names = {"repo_id": name, "dataset_name": name.split("/")[-1], "config_name": config}
        rows = Cache(**names, version="auto", hash="auto").as_dataset(split=split)
        for number, row in enumerate(rows, 1):
            yield f"{name} {split} row {number}", row
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_no_data(name, split, error)) from None


def _remote_rows(name: str, split: str, config: str | None, streaming: bool) -> Iterator[Row]:
    import httpx
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=streaming)
        for number, row in enumerate(rows, 1):
            yield f"{name} {split} row {number}", row
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise InputError(_no_data(name, split, error)) from None


def _no_data(name: str, split: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{name} {split}: cannot be loaded ({reason}); give the data by --data FILE or FOLDER"
