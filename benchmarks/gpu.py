"""What one GPU proves in ten minutes: right numbers, tokens a second, memory.

    python benchmarks/gpu.py                      # all stages; each figure is kept at once
    python benchmarks/gpu.py right learner        # some of them
    python benchmarks/gpu.py --small --out DIR    # tiny, on a CPU: to try the benchmark itself

    facts     the card; which attention kernels SDPA takes; what cuDNN's cost and get wrong
    right     gradients beside a CPU's; flash beside masks; graphs beside none; engine, learner
    learner   tokens a second and GB: Qwen3-0.6B, LoRA r 16, one row of 16,384, and groups
    decode    tokens a second: Qwen2.5-0.5B, 256 rows; graphs, none, transformers' generate
    step      a whole step beside TRL's by turns: 0.5B, 32 x 8 x up to 256 tokens
    run       the users' own commands: SFT and GRPO of the shipped base
    seven     Qwen2.5-7B: a decode step, a micro-batch, a completion of 8,192 tokens

Each stage is a process of its own with a time limit: one that dies or hangs costs its own figures
only. Models have random weights, but for `right` and `run`. `--out` has figures.jsonl, and what
each stage printed. `benchmarks/tables.py` makes docs/speed.md's table from results/gpu_*.jsonl.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
# Stage: the seconds it may take.
STAGES = {
    "facts": 60, "right": 90, "learner": 90, "decode": 90, "step": 120, "run": 120, "seven": 90,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="folder")
    parser.add_argument("--seconds", type=float, default=570, help="for all stages together")
    parser.add_argument("--small", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    for name in given.stages:
        if name not in STAGES:
            parser.error(f"no stage {name!r}; use {' | '.join(STAGES)}")
    bench = Bench(given.out, small=given.small)
    if not given.small:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no GPU here; --small tries the benchmark itself on a CPU")
    if given.stage:
        import gpu_stages

        gpu_stages.STAGES[given.stage](bench)
        return 0
    return run_all(bench, given.stages or list(STAGES), given.seconds)


class Bench:
    """Where figures go, and on what they are measured."""

    def __init__(self, out: Path, *, small: bool):
        self.out, self.small = out, small
        self.device = "cpu" if small else "cuda"

    def keep(self, **figures) -> None:
        """Print a line of figures and put it on the disk, so that it is there whatever comes."""
        self.out.mkdir(parents=True, exist_ok=True)
        line = json.dumps(figures, default=str)
        print(line, flush=True)
        with open(self.out / "figures.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def tried(self, **what):
        """A figure that fails is one, too: which, and why."""
        import traceback

        import torch

        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.keep(**what, failed=f"{type(error).__name__}: {str(error)[:300]}")
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def timed(self, work: Callable, repeats: int = 3, warm: int = 1) -> dict:
        """Return the seconds of work(), median, lowest and highest, and the peak GB of it all."""
        import torch

        from rlm.models.memory import wait

        for _ in range(warm):
            work()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        taken = []
        for _ in range(repeats):
            wait(self.device)
            began = time.perf_counter()
            work()
            wait(self.device)
            taken.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else 0.0
        return {
            "seconds": round(statistics.median(taken), 4), "low": round(min(taken), 4),
            "high": round(max(taken), 4), "peak_gb": round(peak, 2),
        }  # fmt: skip


def run_all(bench: Bench, stages: list[str], seconds: float) -> int:
    """Run each stage in a process of its own; return 1 if one of them failed."""
    began, failed = time.time(), False
    for name in stages:
        left = seconds - (time.time() - began)
        if left < 20:
            bench.keep(stage=name, skipped="no time left")
            continue
        words = [sys.executable, __file__, "--stage", name, "--out", str(bench.out)]
        words += ["--small"] if bench.small else []
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        bench.out.mkdir(parents=True, exist_ok=True)
        with open(bench.out / f"{name}.log", "w", encoding="utf-8") as log:
            work = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
            ended: int | str
            try:
                ended = work.wait(timeout=min(left, STAGES[name]))
            except subprocess.TimeoutExpired:
                os.killpg(work.pid, signal.SIGKILL)  # what it started itself, too
                work.wait()
                ended = "timeout"
        text = (bench.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        print("\n".join(x for x in text.splitlines() if x.startswith("{")), flush=True)
        if ended != 0:
            print(text[-1500:], flush=True)
        failed |= ended != 0 or '"failed"' in text
        bench.keep(stage=name, ended=ended, at=round(time.time() - began))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
