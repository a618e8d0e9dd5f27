"""Rows of data files and of the hub, each with its place: (where, row) pairs, row a dict.

Knows JSONL, Parquet and the hub; knows no task. `where` is "path:line" (Parquet: "path:row",
the hub: "name split row"), for error messages. Whatever a file holds, an InputError says where
it is wrong; nothing else is raised.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlm.data import hub
from rlm.errors import InputError

Row = tuple[str, dict]

LINE_BYTES = 1 << 20  # a question with its solution has some kilobytes
SUFFIXES = (".jsonl", ".parquet")
# A file's split, by how its name begins: test.jsonl, train-00000-of-00001.parquet
NAMES = {"train": "train", "test": "test", "val": "validation", "dev": "validation"}


class Number(str):
    """A number of a JSON text as it is written there: no float, no limit of digits."""


def find_files(path: str) -> list[Path]:
    """Return the file, or all JSONL and Parquet files of the folder, sorted by name."""
    # os.path answers False for a name that no file can have, where pathlib raises.
    place = Path(os.path.expanduser(path))
    if os.path.isfile(place):
        return [place]
    if not os.path.isdir(place):
        raise InputError(
            f"--data {path}: no such file or folder; give a .jsonl or .parquet file, "
            "or a folder of them"
        )
    files = sorted(p for p in place.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise InputError(
            f"--data {path}: no *.jsonl and no *.parquet in this folder; give one that has some"
        )
    return files


def named_split(path: Path) -> str | None:
    """Return the split that a file's name begins with, None if it names none.

    >>> named_split(Path("test-00000-of-00001.parquet")), named_split(Path("testament.jsonl"))
    ('test', None)
    """
    match = re.match(r"(train|test|val|dev)(?:id|idation|ing)?(?![a-z])", path.name.lower())
    return NAMES[match[1]] if match else None


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of one file; a name that does not end in .parquet is read as JSONL."""
    return read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path)


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield ("path:line", object) of each line that is not blank; InputError at a broken one.

    A byte order mark and CRLF are accepted. Numbers come as `Number`, a string.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > LINE_BYTES:
                    raise InputError(f"{where}: longer than 1 MiB; one JSON object a line")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield where, parse_line(line, where)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_line(line: bytes, where: str) -> dict:
    """Return the JSON object that stands on a line; InputError naming `where` if there is none."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(f"{where}: holds a NUL character; save the file as plain UTF-8 text")
    try:
        value = json.loads(
            text, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise InputError(f"{where}: nested too deeply; one flat JSON object a line") from None
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        raise InputError(f"{where}: not JSON ({reason}); one JSON object a line") from None
    if not isinstance(value, dict):
        kind = "a number" if isinstance(value, Number) else f"a {type(value).__name__}"
        raise InputError(f'{where}: {kind}, not an object; write {{"question": ..., ...}}')
    return value


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield ("path:row", row) of a Parquet file, row numbers from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    # ValueError, OverflowError: a text that is not UTF-8, a date that Python has no name for.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        which = f"readable from row {number + 1} on" if number else "a readable Parquet file"
        raise InputError(f"{path}: not {which} ({reason})") from None


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
