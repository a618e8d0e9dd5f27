"""The header of a GGUF file, read without torch: is this file whole, and what does it hold?

    header = check("weights/smollm2/model.gguf", "--model weights/smollm2")
    sha256(path)

How weights and tokenizer come out of it is in rlm/models/gguf_file.py.
"""

import hashlib
import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlm.errors import InputError

SUFFIX = ".gguf"

# The value types of the metadata, as struct has them; 8 is a string, 9 an array.
# https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
TYPES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """metadata: by its names; an array is its number of entries. tensors: their names."""

    metadata: dict[str, Any]
    tensors: tuple[str, ...]


def check(path: Path, given: str) -> Header:
    """Return the header; InputError in one line if the file cannot be a model. Needs no torch.

    given: what the user wrote. What is asked for: the package gguf, a header that can be read, all
    of the weights that it tells of.
    """
    if find_spec("gguf") is None:
        raise InputError(
            f"{given}: a GGUF file, which the package gguf reads; it is not installed: "
            "pip install -e '.[gguf]'"
        )
    try:
        header, size = _read(path)
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, KeyError) as error:
        raise InputError(
            f"{given}: {path.name} is broken or cut off in its header; fetch it again"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{given}: {path.name} cannot be read ({error})") from error
    there = path.stat().st_size
    if there < size:
        raise InputError(
            f"{given}: {path.name} is cut off, it has {there:,} of {size:,} bytes; fetch it again"
        )
    parts = header.metadata.get("split.count", 1)
    if parts > 1:
        raise InputError(
            f"{given}: {path.name} is one of {parts} parts of a model; join them first, by "
            "llama.cpp's llama-gguf-split --merge"
        )
    if not header.tensors or not header.metadata.get("general.architecture"):
        raise InputError(f"{given}: {path.name} holds no model; give a GGUF file with weights")
    return header


def _read(path: Path) -> tuple[Header, int]:
    """Return (header, bytes that the file must have at least)."""
    from gguf import GGML_QUANT_SIZES

    sizes = {int(kind): pair for kind, pair in GGML_QUANT_SIZES.items()}
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF; fetch it again")
        blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with blob:
        reader = _Reader(blob)
        version = reader.number("I")
        if version not in (2, 3):
            raise ValueError(f"it is of GGUF version {version}; 2 and 3 can be read")
        tensors, facts = reader.number("Q"), reader.number("Q")
        metadata = {reader.text(): reader.value(reader.number("I")) for _ in range(facts)}
        names, end = [], 0
        for _ in range(tensors):
            names.append(reader.text())
            dimensions = [reader.number("Q") for _ in range(reader.number("I"))]
            kind, offset = reader.number("I"), reader.number("Q")
            block, size = sizes[kind]
            end = max(end, offset + math.prod(dimensions) // block * size)
        alignment = metadata.get("general.alignment", 32)
        start = -(-reader.place // alignment) * alignment
    return Header(metadata, tuple(names)), start + end


class _Reader:
    """Reads one value after the other; struct.error or IndexError where the file has ended."""

    def __init__(self, blob):
        self.blob, self.place = blob, 4

    def number(self, kind: str):
        (value,) = struct.unpack_from(f"<{kind}", self.blob, self.place)
        self.place += struct.calcsize(f"<{kind}")
        return value

    def text(self) -> str:
        start = self._skip(self.number("Q"))
        return self.blob[start : self.place].decode("utf-8")

    def value(self, kind: int):
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(TYPES[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner != STRING:
            self._skip(count * struct.calcsize(f"<{TYPES[inner]}"))
            return count
        for _ in range(count):
            self._skip(self.number("Q"))
        return count

    def _skip(self, size: int) -> int:
        """Pass over so many bytes; return where they begin."""
        start, self.place = self.place, self.place + size
        if self.place > len(self.blob):
            raise IndexError(f"{size} bytes from {start} on")
        return start


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; computed once in a process for a file that stays."""
    place = path.stat()
    return _sha256(path, place.st_size, place.st_mtime_ns)


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
