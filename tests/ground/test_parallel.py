"""Several processes are one: what they share out, what they join, what they do when one is gone."""

import math
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from rlm import parallel
from rlm.errors import RunError
from rlm.learner.metrics import Metrics
from rlm.parallel import World, balanced
from rlm.run.log import TIMES
from tests.support import forking
from tests.support.running import ROOT

START = ROOT / "weights/final_rlm_lora"
GRPO = (
    "train_grpo.py", "--adapter", START, "--questions-per-step", 6, "--group-size", 4,
    "--max-steps", 3, "--eval-samples", 9, "--eval-every", 2, "--save-every", 1, "--probe", 3,
    "--temperature", 1.3,
)  # fmt: skip
SFT = (
    "train_sft.py", "--num-samples", 24, "--batch-size", 4, "--epochs", 1, "--eval-samples", 5,
    "--learning-rate", 3e-4, "--save-every", 0,
)  # fmt: skip


def in_processes(count: int, folder, script: str, *arguments, start=()):
    """Start a script in so many processes, or by another launcher; return the launcher's Popen."""
    folder.mkdir(exist_ok=True)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "--"]
    words = [sys.executable, "-m", *(start or launcher)] if count > 1 else [sys.executable]
    words += [str(ROOT / script), *map(str, arguments), "--threads", "1"]
    return subprocess.Popen(
        [*words, "--run", "r", "--output", "out"], cwd=folder, text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def finished(process, code: int = 0) -> str:
    try:
        said = process.communicate(timeout=300)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode == 0) == (code == 0), said
    return said


def forked(count: int, folder, script: str, *arguments, code: int = 0) -> str:
    """Run a script in so many processes that have torch already, without a launcher, to its end.

    They find each other by the variables that a launcher would set. Returns what they printed.
    """
    if not forking.POSSIBLE:
        return finished(in_processes(count, folder, script, *arguments), code)
    folder.mkdir(exist_ok=True)
    words = [ROOT / script, *arguments, "--threads", "1", "--run", "r", "--output", "out"]
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    every = {"HF_HUB_OFFLINE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    every |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    processes = []
    with open(folder / "said", "w+") as said, open(os.devnull) as nothing:
        pipes = [nothing.fileno(), said.fileno(), said.fileno()]
        for rank in map(str, range(count)):
            env = os.environ | every | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(forking.Forked(words, cwd=folder, env=env, pipes=pipes))
        try:
            codes = [process.wait(300) for process in processes]
        finally:
            for process in processes:
                process.kill()
        said.seek(0)
        text = said.read()
    assert codes == [code] * count, text
    return text


def by_one_and_by_two(path, *words, two=forked):
    """Return the folders of the same run by one process and by two."""
    forked(1, path / "one", *words)
    two(2, path / "two", *words)
    return path / "one", path / "two"


def adapter(folder):
    return load_file(folder / "out/adapter_model.safetensors")


def last(folder):
    """Return the weights after the last step; what is saved may be the best of earlier ones."""
    path = sorted((folder / "runs/r/checkpoints").glob("step-*"))[-1]
    state = load_file(path / "tensors.safetensors")
    return {name: x for name, x in state.items() if name.startswith("/policy/")}


def far(first: dict, second: dict) -> float:
    assert first and first.keys() == second.keys()
    return max(float((first[n] - second[n]).abs().max()) for n in first)


def log(folder) -> list[dict]:
    import csv

    with open(folder / "runs/r/log.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# Shares, by hand and by property.


def test_one_process_does_everything_alone():
    world = World()
    assert world.shard([1, 2, 3]) == [1, 2, 3] == world.unshard([1, 2, 3], "x")
    assert world.all_gather(5, "x") == [5] and world.broadcast(7, "x") == 7 and world.first
    tensor = torch.ones(2)
    world.all_reduce([tensor], "x")
    assert tensor.tolist() == [1, 1]


@given(st.lists(st.integers()), st.integers(1, 9))
def test_what_is_shared_out_is_joined_in_order(work, size):
    shares = [World(rank, size).shard(work) for rank in range(size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in range(size):
        world = World(rank, size)
        world.all_gather = lambda value, stage: shares
        assert world.unshard(shares[rank], "x") == work


@given(st.lists(st.integers(1, 1000)), st.integers(1, 8))
def test_balanced_shares_hold_all_and_none_is_much_heavier(weights, size):
    shares = balanced(weights, size)
    assert sorted(i for share in shares for i in share) == list(range(len(weights)))
    sums = [sum(weights[i] for i in share) for share in shares]
    assert max(sums) - min(sums) <= max(weights, default=0)
    assert all(share == sorted(share) for share in shares)


def test_drift_is_told_and_rounding_and_nan_are_not():
    world = World(0, 2)
    for pair, fine in (((1.0, 1.0005), True), ((1.0, 1.1), False), ((1.0, float("nan")), True)):
        world.all_gather = lambda value, stage, pair=pair: list(pair)
        if fine:
            world.check_same(pair[0], "x")
        else:
            with pytest.raises(RunError, match=r"drifted apart, from 1 to 1\.1"):
                world.check_same(pair[0], "x")


def test_figures_of_parts_are_those_of_the_whole(monkeypatch):
    one, two = Metrics(), Metrics()
    one.add(loss=1.0)
    one.add(loss=0.5)
    one.max(gap=0.2)
    one.mean(kl=torch.tensor([1.0, 2.0]))
    two.add(loss=2.5)
    two.max(gap=0.1)
    two.mean(kl=torch.tensor([6.0]))
    monkeypatch.setattr(World, "all_gather", lambda self, value, stage: [value, two, Metrics()])
    # Sums are those of two updates; the mean is that of all three tokens.
    assert one.all_reduce("x").values(2) == {"loss": 2.0, "gap": 0.2, "kl": 3.0}
    one.max(gap=float("nan"))
    for found in (one.plus(two), two.plus(one)):
        assert math.isnan(found.values()["gap"])


# Real processes.


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_learn_the_adapter_of_one(tmp_path):
    one, two = by_one_and_by_two(tmp_path, *GRPO, two=lambda *run: finished(in_processes(*run)))
    first = load_file(one / "runs/r/checkpoints/step-000002/tensors.safetensors")
    assert far(last(one), {name: first[name] for name in last(one)}) > 1e-4  # it learns something
    assert far(last(one), last(two)) <= 1e-5
    assert len(log(one)) == len(log(two)) == 4
    for first, second in zip(log(one), log(two), strict=True):
        assert first.keys() == second.keys()
        for name in first.keys() - set(TIMES):
            if first[name]:
                assert float(first[name]) == pytest.approx(float(second[name]), abs=1e-4), name
    texts = [(each / "runs/r/rollouts.jsonl").read_text().count("\n") for each in (one, two)]
    assert texts == [3 * 6 * 4] * 2


@pytest.mark.slow
def test_shares_may_be_uneven_and_empty(tmp_path):
    # One question for two processes: one of them has nothing to sample nor to learn.
    few = ("--questions-per-step", 1, "--eval-samples", 1, "--probe", 1, "--updates-per-batch", 2)
    one, two = by_one_and_by_two(tmp_path, *GRPO, *few)
    assert far(last(one), last(two)) <= 1e-5


@pytest.mark.slow
def test_two_processes_of_sft_learn_the_adapter_of_one(tmp_path):
    one, two = by_one_and_by_two(tmp_path, *SFT)
    # AdamW divides by a gradient's own size: where that is rounding, a rate's share of it is
    # seen. At the tiny base's rate of 3e-3, one weight of 180,224 differs by 3e-5.
    assert max(float(x.abs().max()) for n, x in adapter(one).items() if "lora_B" in n) > 1e-4
    assert far(adapter(one), adapter(two)) <= 1e-5
    assert len(log(one)) == len(log(two)) == 7
    said = forked(2, tmp_path / "odd", *SFT, "--batch-size", 5, code=2)
    assert "--batch-size 5: 2 processes share it evenly; use a multiple of 2" in said


@pytest.mark.slow
def test_two_processes_of_sft_by_our_own_learner_may_share_unevenly(tmp_path):
    # Batches of 5, 5, 5, 5 and 4: what a process has is about as many tokens, not as many rows.
    one, two = by_one_and_by_two(tmp_path, *SFT, "--backend", "own", "--batch-size", 5)
    assert max(float(x.abs().max()) for n, x in adapter(one).items() if "lora_B" in n) > 1e-4
    assert far(adapter(one), adapter(two)) <= 1e-5
    assert len(log(one)) == len(log(two)) == 6
    for first, second in zip(log(one), log(two), strict=True):
        for name in first:
            assert float(first[name] or 0) == pytest.approx(float(second[name] or 0), abs=1e-4)


@pytest.mark.slow
def test_a_stop_is_agreed_and_gone_on_from(tmp_path):
    few = ("--eval-every", 0, "--probe", 0)
    process = in_processes(2, tmp_path / "a", *GRPO, *few, "--max-steps", 40)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step 1:"):
            os.killpg(process.pid, signal.SIGTERM)
            break
    said = "".join(seen) + finished(process, code=143)
    assert "of 40, all of it saved in runs/r" in said
    assert "torchrun --standalone --nproc_per_node 2 -- " in said
    steps = len(log(tmp_path / "a")) - 1
    said = forked(2, tmp_path / "a", *GRPO, *few, "--max-steps", steps + 1)
    assert f"goes on after step {steps}" in said and len(log(tmp_path / "a")) == steps + 2
    forked(2, tmp_path / "b", *GRPO, *few, "--max-steps", steps + 1)
    assert far(last(tmp_path / "a"), last(tmp_path / "b")) == 0


LATE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from rlm import errors, parallel

def main():
    world = parallel.join(timeout=3)
    world.barrier("the start")
    if world.rank == 1:
        time.sleep(60)
    world.barrier("the gradients")
    return 0

sys.exit(errors.run_main(main))
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_process_that_does_not_come_is_named_by_the_stage(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    began = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         str(tmp_path / "late.py"), str(ROOT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode != 0 and time.monotonic() - began < 50
    assert "process 0 of 2: the others did not come to 'the gradients' within 3 s" in process.stderr


def test_a_backend_that_waits_for_ever_is_ended_from_outside(tmp_path):
    code = (
        "import time; from rlm import parallel; parallel.GRACE = 0.1; "
        "parallel.World(0, 2, 0.1)._meet('the gradients', lambda: time.sleep(60))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "did not come to 'the gradients'" in done.stdout


def test_a_run_without_a_launcher_has_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert parallel.join().size == 1 and parallel.world().first


def test_other_scripts_run_in_one_process():
    from tests.support.running import start

    done = start("evaluate.py", WORLD_SIZE="2", timeout=60)
    assert done.returncode == 2 and "2 processes were started" in done.stderr
