"""CUDA tensors on a machine without a GPU: they say `cuda:0` and are computed on the CPU.

An operation raises `Mixed` where CUDA would refuse a CPU tensor beside one of its own, and is
counted: kernels, copies to the device, and waits of the host for it. What attention would run as
on a card is told by the rules of torch's own choice (`sdp_utils.cpp`).

Autograd has to know of the device before its first backward, so a test's work is a function that
`in_child` runs in a process of its own:

    def work():
        from tests.support.pretended_tensors import pretend, to_cuda

        with pretend() as counts:
            model = to_cuda(tiny_model())
            ...
            assert not counts.syncs

    @pytest.mark.slow
    def test_on_pretended_cuda():
        in_child(work)

torch is imported after the guard is loaded, so this file does it in functions alone.
"""

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("guard.cpp")
SECONDS = 540  # a test's work may take


def in_child(work: Callable[[], None], *arguments: str) -> str:
    """Run a module's function in a process that knows the pretended device; return what it prints.

    The test is skipped where nothing builds the guard, and fails with what the process says.
    """
    import pytest

    if not shutil.which("g++"):
        pytest.skip("no g++ to build the pretended CUDA device's guard")
    place = f"{work.__module__}:{work.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pretended_cuda", place, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return done.stdout


def load_guard() -> None:
    """Build the guard, once for each torch, and load it; it has to be before torch is imported."""
    assert "torch" not in sys.modules, "the guard comes too late: torch is imported"
    found = find_spec("torch")
    assert found is not None and found.origin is not None
    torch = Path(found.origin).parent
    key = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = ROOT / ".pytest_cache" / "guard" / f"{key}.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_suffix(f".{os.getpid()}")
        include = torch / "include"
        command = ["g++", "-shared", "-fPIC", "-O0", "-std=c++20", f"-I{include}"]
        command += [f"-I{include}/torch/csrc/api/include", str(SOURCE), f"-L{torch}/lib"]
        command += ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True)
        os.replace(made, library)
    ctypes.CDLL(str(library))


class Mixed(RuntimeError):
    """A CPU tensor beside a CUDA one."""


class Counts:
    """What a GPU would have had to do, by name and by the line of ours (or a library's) that asked.

    kernels: by the operation's name. copies: to the device. syncs: where the host waits. attention:
    (kind of kernel, "mask", "causal" or "full", whether its bias is padded at each call).
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.kernels, self.copies, self.syncs, self.attention = (Counter() for _ in range(4))

    @property
    def launches(self) -> int:
        return self.kernels.total()


OURS = ("/rlm/", "/training/", "/train_grpo.py", "/train_sft.py")
LIBRARIES = ("/transformers/", "/peft/", "/torch/optim/")


def where() -> str:
    """Return the nearest line of ours that runs, else one of a library."""
    for parts in (OURS, LIBRARIES):
        frame = sys._getframe(1)
        while frame:
            name = frame.f_code.co_filename
            if any(part in name for part in parts) and "/tests/" not in name:
                return f"{'/'.join(name.split('/')[-2:])}:{frame.f_lineno}"
            frame = frame.f_back
    return "?"


def main(argv: list[str]) -> None:
    load_guard()
    module, _, name = argv[0].partition(":")
    getattr(importlib.import_module(module), name)(*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
