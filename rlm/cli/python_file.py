"""A Python file of the user, given by a flag: it is run, and its public functions are taken."""

import importlib.util
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

from rlm.errors import InputError


def public_functions(flag: str, path: str, kind: str) -> dict[str, Callable[..., Any]]:
    """Return the public functions that a file defines, by name.

    The file is run, with all that it does; one that did not change is run once. flag: how it was
    given, for error messages. kind: what is in it, for the name of its module. InputError if it is
    not there or fails.
    """
    place = os.path.expanduser(path)
    if not os.path.isfile(place):
        raise InputError(f"{flag} {path}: no such file; check the path")
    return dict(_run(f"{flag} {path}", os.path.realpath(place), os.stat(place).st_mtime_ns, kind))


@lru_cache(maxsize=8)
def _run(given: str, real: str, changed: int, kind: str) -> dict[str, Callable[..., Any]]:
    place = Path(real)
    name = f"{kind}_file_{place.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    if spec is None or spec.loader is None:
        raise InputError(f"{given}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(place.parent))  # last: what it imports beside itself
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{given}: {error_told(error)}{_line_of(error, place)}") from error
    finally:
        sys.path.remove(str(place.parent))
    return {
        name: function
        for name, function in vars(module).items()
        if not name.startswith("_")
        and isinstance(function, FunctionType)
        and function.__module__ == module.__name__
    }


def error_told(error: BaseException) -> str:
    """Return an exception in one line of 300 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _line_of(error: Exception, place: Path) -> str:
    """Return where in the file an error came up, "" if that is not known."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})"
    lines, trace = [], error.__traceback__
    while trace:
        if Path(trace.tb_frame.f_code.co_filename).name == place.name:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" (line {lines[-1]})" if lines else ""
