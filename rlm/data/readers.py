"""Rows of data files, each with its place: (where, row) pairs, row a dict.

Knows JSONL, JSON, CSV and Parquet; knows no column. `where` is "path:line", of JSON "path:item", of
Parquet "path:row", for error messages. Whatever a file holds, an InputError says where it is wrong;
nothing else is raised. What is wrong with one row goes to `bad`, which raises or goes on; what is
wrong with the file is raised.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rlm.errors import InputError

Row = tuple[str, dict]
Bad = Callable[[InputError], None]

LINE_BYTES = 1 << 20  # a question with its solution has some kilobytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DELIMITERS = ",;\t|"
# What a JSON file calls its list of rows, if it has more than the list.
LISTS = ("data", "rows", "examples", "items", "questions")


class Number(str):
    """A number of a JSON text as it is written there: no float, no limit of digits."""


def refuse(error: InputError) -> None:
    """Raise what is wrong with a row: the `bad` of whoever reads all rows or none."""
    raise error


def read_rows(path: Path, bad: Bad = refuse) -> Iterator[Row]:
    """Yield the rows of one file, by the end of its name; one without a known end is JSONL."""
    return READERS.get(path.suffix.lower(), read_jsonl)(path, bad)


def read_jsonl(path: Path, bad: Bad = refuse) -> Iterator[Row]:
    """Yield ("path:line", object) of each line that is not blank.

    A byte order mark and CRLF are accepted. Numbers come as `Number`, a string.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                try:
                    if len(line) > LINE_BYTES:
                        _skip_line(file, line)
                        raise InputError(f"{where}: longer than 1 MiB; one JSON object a line")
                    row = parse_line(line, where) if line.strip() else None
                except InputError as error:
                    bad(error)
                    continue
                if row is not None:
                    yield where, row
    except OSError as error:
        raise _unreadable(path, error) from None


def _skip_line(file, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(LINE_BYTES)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror or error})")


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
        value = _loads(text)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply; one flat JSON object a line") from None
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        raise InputError(f"{where}: not JSON ({reason}); one JSON object a line") from None
    return checked_object(value, where)


def checked_object(value, where: str) -> dict:
    """Return the value if it is an object, InputError naming `where` if it is not."""
    if not isinstance(value, dict):
        kind = "a number" if isinstance(value, Number) else f"a {type(value).__name__}"
        raise InputError(f'{where}: {kind}, not an object; write {{"question": ..., ...}}')
    return value


def _loads(text: str):
    return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=_refuse_constant)


def _refuse_constant(name: str):
    raise ValueError(f"{name} is no number")


def read_json(path: Path, bad: Bad = refuse) -> Iterator[Row]:
    """Yield ("path:item", object), items from 1, of a JSON array of objects, or of one object.

    An object with a list named as in LISTS stands for that list. A file of several objects, one a
    line, is read as JSONL.
    """
    text = _text_of(path)
    try:
        value = _loads(text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; an array of flat objects") from None
    except ValueError as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            yield from read_jsonl(path, bad)
            return
        line = getattr(error, "lineno", 1)
        reason = getattr(error, "msg", str(error))
        raise InputError(f"{path}:{line}: not JSON ({reason}); an array of objects") from None
    if isinstance(value, dict):
        lists = [value[name] for name in LISTS if isinstance(value.get(name), list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise InputError(f"{path}: neither an array nor an object; write an array of objects")
    for number, item in enumerate(value, 1):
        where = f"{path}:{number}"
        try:
            row = checked_object(item, where)
        except InputError as error:
            bad(error)
            continue
        yield where, row


def _text_of(path: Path) -> str:
    """Return the text of a file; InputError if it cannot be read or is not UTF-8."""
    try:
        content = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None


def read_csv(path: Path, bad: Bad = refuse) -> Iterator[Row]:
    """Yield ("path:line", row) of a CSV file whose first line names the columns; all are texts.

    Delimiter: a tab for .tsv, else which of DELIMITERS the first line has most of. A column
    without a name (an index that was saved along) is left out.
    """
    text = _text_of(path)
    head = text.lstrip().partition("\n")[0]
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=head.count)
    records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in records:
            where, line = f"{path}:{line}", records.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _column_names(cells, where)
            elif len(cells) != len(names):
                bad(InputError(f"{where}: {len(cells)} cells, but the first line names "
                               f"{len(names)} columns; put quotes around text with a "
                               f"{delimiter!r}"))  # fmt: skip
            else:
                yield where, {n: cell for n, cell in zip(names, cells, strict=True) if n}
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not CSV ({error}); check the quotes") from None


def _column_names(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice:
        raise InputError(f"{where}: two columns are named {twice!r}; rename one")
    return names


def read_parquet(path: Path, bad: Bad = refuse) -> Iterator[Row]:
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


READERS: dict[str, Callable[[Path, Bad], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
