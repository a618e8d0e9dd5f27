"""A process of its own that runs the tools of a file, one call at a time.

    python -P rlm/tools/worker.py FILE CHARACTERS

It is started by `rlm.tools.workers`. First it runs the file and writes a line {"ready": true}, or
{"broken": why}. Then for each line {"name": function, "arguments": {...}} that it reads it writes
{"text": ...}, or {"error": ...} for a function that raised. Texts are cut at CHARACTERS. It
imports nothing of this project. What a tool prints goes to nobody.
"""

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path


def loaded(file: str):
    """Return the module of a file, which may import what lies beside it."""
    place = Path(file)
    spec = spec_from_file_location(f"tool_file_{place.stem}", place)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(str(place.parent))
    spec.loader.exec_module(module)
    return module


def told(error: BaseException, most: int) -> str:
    """Return an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:most]


def main() -> None:
    file, most = sys.argv[1], int(sys.argv[2])
    lines, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # what a tool reads and prints is not of this conversation
        os.dup2(nowhere, number)

    def say(**line) -> None:
        answers.write(json.dumps(line).encode("ascii") + b"\n")
        answers.flush()

    try:
        module = loaded(file)
    except BaseException as error:
        say(broken=told(error, most))
        return
    say(ready=True)
    for line in lines:
        asked = json.loads(line)
        try:
            say(text=str(getattr(module, asked["name"])(**asked["arguments"]))[:most])
        except Exception as error:
            say(error=told(error, most))


if __name__ == "__main__":
    main()
