"""A run that was killed, stopped or short of disk goes on, and ends as if nothing had been."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from rlm import errors
from rlm.errors import InputError
from rlm.run import checkpoint
from rlm.run.done import Done
from tests.support import forking
from tests.support.running import ROOT

START = ROOT / "weights/final_rlm_lora"
GRPO = (
    "train_grpo.py", "--adapter", START, "--questions-per-step", 4, "--group-size", 4,
    "--max-steps", 5, "--eval-samples", 8, "--eval-every", 2, "--save-every", 2, "--probe", 2,
)  # fmt: skip
SFT = (
    "train_sft.py", "--num-samples", 40, "--batch-size", 4, "--epochs", 1.5,
    "--eval-samples", 8, "--save-every", 4,
)  # fmt: skip
OWN = (*SFT, "--backend", "own")
FULL = (
    "train_grpo.py", "--train", "full", "--dtype", "bfloat16", "--kl-weight", 0.01, *GRPO[3:],
    "--rewards", "length=1", "--overlong-tokens", 44, "--max-tokens", 48, "--adapter", "none",
)  # fmt: skip
SAME = ("log.csv", "rollouts.jsonl", "validation.csv", "validation.json", "adapter", "model")


def command(script, *arguments, before=(), output=("--output", "out")):
    words = [*before, str(ROOT / script), *map(str, arguments)]
    return [sys.executable, *words, "--threads", "1", "--run", "r", *output]


def environment():
    return os.environ | {"HF_HUB_OFFLINE": "1"}


def go(folder, what, *more, before=(), output=("--output", "out"), forked=True, **options):
    """Run to the end, or until it is killed; return (exit code, what it printed)."""
    folder.mkdir(exist_ok=True)
    words = command(*what, *more, before=before, output=output)
    place = {"cwd": folder, "env": environment(), "timeout": 300}
    if forked and forking.POSSIBLE:
        done = forking.run(words[1:], **place)
    else:
        pipes = {"capture_output": True, "text": True, "check": False}
        done = subprocess.run(words, **place, **pipes, **options)
    return done.returncode, done.stdout + done.stderr


def until(folder, what, line: str, number, wait: float = 0.0, **place):
    """Send the signal once a line has been printed and some seconds are over."""
    folder.mkdir(exist_ok=True)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words, place = command(*what, **place), {"cwd": folder, "env": environment()}
    if forking.POSSIBLE:
        process = forking.popen(words[1:], merged=True, **place)
    else:
        process = subprocess.Popen(words, **pipe, **place)
    seen = []
    for text in process.stdout:
        seen.append(text)
        if line in text:
            break
    time.sleep(wait)
    process.send_signal(number)
    rest = process.stdout.read()
    return process.wait(300), "".join(seen) + rest


def contents(folder) -> dict[str, bytes]:
    """Return the bytes of everything that must not depend on stops; manifests are left out."""
    found = {}
    for name in SAME:
        place = folder / "runs/r" / name
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        found |= {f"{name}/{f.name}": f.read_bytes() for f in files if f.exists()}
    (weights,) = (folder / "out").glob("*.safetensors")
    found["out"] = weights.read_bytes()
    return found


def assert_same(one, other):
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return a function: stage -> the folder of a run of it that nothing has stopped.

    Python is started for it, so that its seed of hashes is not that of the runs beside it.
    """
    made: dict = {}

    def run(what):
        if what not in made:
            folder = made[what] = tmp_path_factory.mktemp("unbroken") / "work"
            code, text = go(folder, what, forked=False)
            assert code == 0, text
        return made[what]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "what", [pytest.param(GRPO, marks=pytest.mark.ci), SFT], ids=["grpo", "sft"]
)
def test_stopped_killed_and_gone_on_with_it_ends_the_same(tmp_path, unbroken, what):
    stopped_killed_and_gone_on_with(tmp_path / "work", unbroken, what)


@pytest.mark.slow
def test_sft_by_our_own_learner_ends_the_same_too(tmp_path, unbroken):
    stopped_killed_and_gone_on_with(tmp_path / "work", unbroken, OWN)
    header = (tmp_path / "work/runs/r/log.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (unbroken(SFT) / "runs/r/log.csv").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.slow
def test_a_lora_that_learns_by_muon_too(tmp_path, unbroken):
    stopped_killed_and_gone_on_with(tmp_path / "work", unbroken, (*GRPO, "--optimizer", "muon"))


@pytest.mark.slow
def test_all_weights_in_half_precision_with_their_masters_too(tmp_path, unbroken):
    stopped_killed_and_gone_on_with(tmp_path / "work", unbroken, FULL)


def stopped_killed_and_gone_on_with(folder, unbroken, what):
    """Stop a run, kill the one that goes on, let a third end: its bytes are those of one run."""
    code, text = until(folder, what, "step 2:", signal.SIGTERM)
    assert code == 143 and "go on with: python" in text, text
    stopped = checkpoint.newest(folder / "runs/r").step
    code, text = until(folder, what, "goes on after", signal.SIGKILL, wait=0.3)
    assert code == -signal.SIGKILL, text
    code, text = go(folder, what)
    assert code == 0 and f"goes on after step {stopped}" in text, text
    assert_same(folder, unbroken(what))


@pytest.mark.slow
@pytest.mark.ci
def test_ctrl_c_ends_the_step_and_saves(tmp_path):
    code, text = until(tmp_path / "work", GRPO, "step 1:", signal.SIGINT)
    step = checkpoint.newest(tmp_path / "work/runs/r").step
    assert code == 130 and f"stopped after step {step} of 5" in text and step < 5, text


@pytest.mark.slow
@pytest.mark.parametrize("what", [GRPO, SFT], ids=["grpo", "sft"])
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, unbroken, what):
    """Ten inside a write, at a random one of them; ten at a random time."""
    folder, draw = tmp_path / "work", random.Random(7)
    survived = 0
    for turn in range(20):
        if turn % 2:
            killed = ("tests/support/dying.py", draw.randrange(40))
            code, text = go(folder, what, before=(str(ROOT / killed[0]), str(killed[1])))
            assert code in (0, 137), text
        else:
            folder.mkdir(exist_ok=True)
            pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = subprocess.Popen(command(*what), cwd=folder, env=environment(), **pipe)
            try:
                process.wait(timeout=2 + 5 * draw.random())
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            code = process.returncode
        survived += code != 0
        if code == 0:  # it came to its end: begin anew
            assert_same(folder, unbroken(what))
            folder = tmp_path / f"work{turn}"
    code, text = go(folder, what)
    assert code == 0, text
    assert_same(folder, unbroken(what))
    print(f"{survived} kills survived")
    assert survived >= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, moment",
    [
        pytest.param(GRPO, 2, marks=pytest.mark.ci),
        (GRPO, 17),
        pytest.param(SFT, 50),
    ],
)
def test_a_kill_inside_a_write_changes_nothing(tmp_path, unbroken, what, moment):
    """The last one comes after the checkpoint of the last step, before the adapter is saved."""
    folder = tmp_path / "work"
    code, text = go(folder, what, before=(str(ROOT / "tests/support/dying.py"), str(moment)))
    assert code == 137, text
    code, text = go(folder, what)
    assert code == 0, text
    assert_same(folder, unbroken(what))


@pytest.mark.slow
def test_other_settings_are_refused_and_never_begins_anew(tmp_path):
    folder = tmp_path / "work"
    code, text = until(folder, GRPO, "step 1:", signal.SIGTERM)
    assert code == 143, text
    code, text = go(folder, GRPO, "--group-size", 5)
    assert code == 2 and "--group-size was 4, now 5" in text and "--resume never" in text
    code, text = go(folder, GRPO, "--max-steps", 4, "--resume", "runs/r")
    assert code == 0 and "goes on after step" in text, text
    # That run has ended: the next one of the name begins anew, and keeps it.
    code, text = go(folder, GRPO, "--max-steps", 1)
    assert code == 0 and "goes on" not in text and (folder / "runs/r.1/checkpoints").is_dir(), text


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_the_older_checkpoint_serves(tmp_path, unbroken):
    folder = tmp_path / "work"
    folder.mkdir()
    # A checkpoint's tensors are over 2 MB, all else is smaller.
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    code, text = go(folder, GRPO, forked=False, preexec_fn=limit)
    assert code == 1 and "Traceback" not in text, text
    assert "File too large" in text.splitlines()[-1] and "go on with" in text.splitlines()[-1]
    assert checkpoint.newest(folder / "runs/r") is None
    code, text = go(folder, GRPO)
    assert code == 0, text
    assert_same(folder, unbroken(GRPO))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; run as another user")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    code, text = go(tmp_path, SFT, "--max-steps", 1)
    assert code == 1 and "Traceback" not in text, text
    assert "Permission denied" in text.splitlines()[-1]


@pytest.mark.slow
def test_train_goes_on_where_it_was_killed(tmp_path):
    what = ("train.py", "--num-samples", 40, "--eval-samples", 8, "--sft-epochs", 1,
            "--grpo-max-steps", 3, "--weights", "out")  # fmt: skip
    code, text = until(tmp_path / "work", what, "step 1: loss", signal.SIGTERM, output=())
    assert code == 143 and "go on with" in text, text
    code, text = go(tmp_path / "work", what, output=())
    assert code == 0 and "base: done before the stop" in text and "goes on after" in text, text
    code, text = go(tmp_path / "plain", what, output=())
    assert code == 0 and "done before" not in text, text
    for name in ("out/final_rlm_lora/adapter_model.safetensors", "runs/r/test-grpo.csv",
                 "runs/r/grpo/log.csv", "runs/r/sft/log.csv"):  # fmt: skip
        assert (tmp_path / "work" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EACCES", "EFBIG"])
def test_a_disk_that_refuses_is_told_in_one_line(capsys, number):
    def main():
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code), "runs/r/log.csv")

    assert errors.run_main(main) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("error: runs/r/log.csv: ")
    assert "what was saved before is whole" in told and "go on with: python" in told


def test_other_errors_of_the_system_are_bugs():
    def main():
        raise OSError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        errors.run_main(main)


def test_done_remembers_and_does_the_rest(tmp_path):
    path, calls = tmp_path / "done.json", []

    def work():
        calls.append(1)
        return {"accuracy": 0.5}

    done = Done(path, {"train": {"seed": 0}})
    assert done.once("base", work) == {"accuracy": 0.5}
    again = Done(path, {"train": {"seed": 0}})
    assert again.once("base", work) == {"accuracy": 0.5} and len(calls) == 1
    assert again.once("sft", lambda: None) is None
    with pytest.raises(InputError, match="--seed was 0, now 1"):
        Done(path, {"train": {"seed": 1}})
    assert Done(path, {"train": {"seed": 1}}, go_on=False).values == {}
    again.clear()
    assert not path.exists() and Done(path, {"train": {"seed": 1}}).values == {}
