"""The API key: where it comes from, and whether a client has it. Only its digest is kept.

key = find_or_make_key(settings.api_key_file, needed=public, default_path=Path("runs/api_key"))
if key and not matches(key, given): ...
"""

import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from rlm.errors import InputError

VARIABLE = "RLM_API_KEY"
SHORTEST = 16  # characters
MOST = 4096  # bytes of a key file; anything longer is some other file


@dataclass(frozen=True, slots=True)
class Key:
    """digest: SHA-256 of the key. fresh: the key itself, only if it was just made; for the
    terminal, once. place: where it came from, in words.
    """

    digest: bytes = field(repr=False)
    fresh: str | None = field(repr=False)
    place: str


def find_or_make_key(key_file: str | None, *, needed: bool, default_path: Path) -> Key | None:
    """Return the key that clients must send, None if no key was given and none is needed.

    RLM_API_KEY comes first, then `key_file`. A key file that is not there yet is made, with a
    key in it, since whoever names one wants a key; without one a needed key is read from
    `default_path` or made there. InputError for a key that is empty, shorter than 16
    characters, not sendable in a header, or in a file that others can read.
    """
    if VARIABLE in os.environ:
        return Key(_digest(_checked(os.environ[VARIABLE], VARIABLE)), None, VARIABLE)
    if key_file is None and not needed:
        return None
    path = Path(key_file) if key_file is not None else Path(default_path)
    try:
        return Key(_digest(_checked(_read(path), str(path))), None, str(path))
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{path}: the API key cannot be read ({why}); give a file that holds it, "
                         f"or the key itself as {VARIABLE}") from None  # fmt: skip
    fresh = secrets.token_urlsafe(32)
    try:
        _write(path, fresh)
    except OSError as error:
        raise InputError(f"{path}: the new API key cannot be stored there ({error.strerror}); give "
                         f"another --api-key-file, or a key as {VARIABLE}") from None  # fmt: skip
    return Key(_digest(fresh), fresh, str(path))


def matches(key: Key, given: str) -> bool:
    """Return whether `given` is the key, in a time that tells nothing about it."""
    return secrets.compare_digest(_digest(given), key.digest)


def _digest(text: str) -> bytes:
    # surrogatepass: whatever a client sends has a digest of its own, and none raises.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _checked(text: str, place: str) -> str:
    key = text.strip()
    if not key:
        raise InputError(f"{place}: the API key is empty; put one of at least {SHORTEST} "
                         "characters there, or leave it out")  # fmt: skip
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"{place}: the API key has spaces or characters beyond ASCII, which no "
                         "header can carry; use letters, digits and punctuation")  # fmt: skip
    if len(key) < SHORTEST:
        raise InputError(f"{place}: the API key has {len(key)} characters; use at least "
                         f"{SHORTEST}, as python -c 'import secrets; "
                         "print(secrets.token_urlsafe(32))' makes them")  # fmt: skip
    return key


def _read(path: Path) -> str:
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        # Windows has no such bits: its files belong to the user by their folder.
        if os.name == "posix" and stat.S_ISREG(mode) and mode & 0o077:
            raise InputError(f"{path}: others can read this API key (mode "
                             f"{stat.S_IMODE(mode):04o}); run: chmod 600 {path}")  # fmt: skip
        return file.read(MOST).decode("ascii")


def _write(path: Path, key: str) -> None:
    """Write the key at once, readable by its owner alone from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
            file.write(key + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
