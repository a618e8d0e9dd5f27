"""Runs the scripts as a user does: in a subprocess, from the root, with nothing to download."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forking

ROOT = Path(__file__).resolve().parents[2]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
QWEN = ROOT.parent / "shared" / "data" / "qwen2_0.5b_shape"
needs_real_data = pytest.mark.skipif(
    not (GSM8K.is_dir() and QWEN.is_dir()), reason=f"the data in {GSM8K.parent.name}/ is not here"
)


def start(
    script: str, *arguments, cwd=ROOT, stdin: str = "", timeout=600, forked=False, **environment
):
    """Return the finished process; `cwd` is where runs/ and relative paths are.

    script: a path from the root, or -m with a module as the first argument.
    forked: it takes torch over from a process that has it, see tests/support/forking.py.
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("RLM_")}
    variables |= {"HF_HUB_OFFLINE": "1"} | environment
    words = [script if script == "-m" else str(ROOT / script), *map(str, arguments)]
    if forked and forking.POSSIBLE:
        return forking.run(words, cwd=cwd, env=variables, stdin=stdin, timeout=timeout)
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=variables,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(script: str, *arguments, forked=True, **options):
    """Return the finished process of a script that has to exit with 0."""
    done = start(script, *arguments, forked=forked, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, as log.csv."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
