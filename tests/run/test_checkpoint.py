"""Checkpoints: whole or not there, the newest whole one is found, what changed is named."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlm.errors import InputError
from rlm.run import checkpoint
from rlm.run.done import Done

STATE = {"weights": [torch.tensor([1.0, 2.0]), torch.tensor(3)], "step": {"drawn": 7, "name": None}}


def saved(run, step, **options):
    return checkpoint.save(run, step, STATE | {"at": step}, {"settings": {"seed": 0}}, **options)


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_was_saved_comes_back(tmp_path):
    saved(tmp_path, 3)
    found = checkpoint.newest(tmp_path)
    state = found.load()
    assert (found.step, found.run, state["at"]) == (3, tmp_path, 3)
    assert state["step"] == STATE["step"] and len(state["weights"]) == 2
    assert torch.equal(state["weights"][0], STATE["weights"][0])
    assert torch.equal(state["weights"][1], torch.tensor(3))


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(torch.tensor),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text("abc/", min_size=1, max_size=3), inner, max_size=3),
)  # fmt: skip


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@given(nested)
def test_any_nesting_comes_back(state):
    tensors: dict = {}
    plain = json.loads(json.dumps(checkpoint._split(state, "", tensors)))
    assert same(state, checkpoint._join(plain, tensors))


def test_the_last_two_and_the_best_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        saved(tmp_path, step, best=4)
    assert names(tmp_path) == ["step-000004", "step-000006", "step-000008"]
    assert checkpoint.newest(tmp_path).step == 8


def test_a_step_is_saved_again_over_itself(tmp_path):
    saved(tmp_path, 2)
    checkpoint.save(tmp_path, 2, {"at": "new"}, {})
    assert checkpoint.newest(tmp_path).load()["at"] == "new"


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_serves(tmp_path, caplog, name, damage):
    saved(tmp_path, 2)
    file = saved(tmp_path, 4) / name
    content = file.read_bytes()
    half = len(content) // 2
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(content[:half])
    elif name == "tensors.safetensors":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        file.write_bytes(content.replace(b'"sha256": "', b'"sha256": "0'))
    assert checkpoint.newest(tmp_path).step == 2
    assert len(caplog.messages) == 1 and "step-000004" in caplog.messages[0]


def test_a_save_that_fails_leaves_the_older_one(tmp_path, monkeypatch):
    saved(tmp_path, 2)
    done = 0

    def full(handle):
        nonlocal done
        done += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, 4)
    assert done == 1 and names(tmp_path) == ["step-000002"]
    assert checkpoint.newest(tmp_path).step == 2


def test_what_a_kill_left_is_cleared_away(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "checkpoints/.step-000004.99.new").mkdir()
    assert checkpoint.newest(tmp_path).step == 2
    saved(tmp_path, 4)
    assert names(tmp_path) == ["step-000002", "step-000004"]


def test_which_checkpoint_a_run_goes_on_from(tmp_path):
    run, other = tmp_path / "a", tmp_path / "b"
    assert checkpoint.find("auto", run) is None
    saved(run, 2)
    saved(run, 4)
    saved(other, 9)
    assert checkpoint.find("auto", run).step == 4
    assert checkpoint.find("never", run) is None
    assert checkpoint.find(str(run), run).step == 4
    assert checkpoint.find(str(run / "checkpoints/step-000002"), run).step == 2
    with pytest.raises(InputError, match="use --run b"):
        checkpoint.find(str(other), run)
    with pytest.raises(InputError, match="no checkpoint is there"):
        checkpoint.find(str(tmp_path / "c"), run)
    checkpoint.finish(run)
    assert checkpoint.find("auto", run) is None
    assert checkpoint.find(str(run), run).step == 4
    saved(run, 6)  # gone on with, it has not ended any more
    assert checkpoint.find("auto", run).step == 6


def test_what_changed_is_named(tmp_path):
    saved(tmp_path, 2)
    found = checkpoint.newest(tmp_path)
    checkpoint.check_same(found, {"settings": {"seed": 0}})
    with pytest.raises(InputError, match=r"step 2 .*--seed was 0, now 1\).*--resume never"):
        checkpoint.check_same(found, {"settings": {"seed": 1}})
    # A setting that came after the checkpoint: as long as nobody gives it, the run is the same.
    newer = {"settings": {"seed": 0, "tries": 0}}
    defaults = {"settings": {"seed": 5, "tries": 0}}
    checkpoint.check_same(found, newer, defaults)
    with pytest.raises(InputError, match=r"--tries was 0, now 8\)"):
        checkpoint.check_same(found, {"settings": {"seed": 0, "tries": 8}}, defaults)
    with pytest.raises(InputError, match=r"--seed was 0, now 5\)"):  # one that it did know
        checkpoint.check_same(found, {"settings": {"seed": 5, "tries": 0}}, defaults)
    assert checkpoint.differences({"mark": "a"}, {"mark": "b"}) == "mark was a, now b"
    assert checkpoint.differences({"s": {"digits": [1, 3]}}, {"s": {"digits": (1, 3)}}) == ""


def test_a_command_of_parts_goes_on_with_a_setting_that_came_later(tmp_path):
    Done(tmp_path / "done.json", {"sft": {"seed": 0}}).once("base", lambda: 1)
    defaults = {"sft": {"seed": 5, "tries": 0}}
    same = {"sft": {"seed": 0, "tries": 0}}
    assert Done(tmp_path / "done.json", same, defaults=defaults).values == {"base": 1}
    given = {"sft": {"seed": 0, "tries": 8}}
    with pytest.raises(InputError, match=r"--tries was 0, now 8\)"):
        Done(tmp_path / "done.json", given, defaults=defaults)
