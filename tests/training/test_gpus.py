"""Several GPUs in sight of one process: refused before anything is loaded, wherever TRL trains."""

import pytest
import torch

import train
import train_grpo
import train_sft
from rlm.errors import InputError, run_main
from rlm.models import loading
from rlm.parallel import check_one_gpu


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(loading, "pick_device", lambda name="auto": torch.device("cuda"))
    monkeypatch.setattr("sys.argv", ["train_sft.py", "--run", "my run"])


@pytest.mark.parametrize(
    ("script", "flags", "launcher"),
    [
        (train_sft, [], True),
        (train_sft, ["--backend", "own"], True),
        (train_grpo, ["--backend", "trl"], False),
        (train, [], False),
    ],
)
def test_they_are_refused_in_one_line(four_gpus, capsys, tmp_path, monkeypatch, script, flags,
                                      launcher):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_main(lambda: script.main(flags)) == 2
    told = "4 GPUs are visible and a process trains on one: set CUDA_VISIBLE_DEVICES=0"
    more = (
        ", or start a process for each: torchrun --standalone --nproc_per_node 4 -- "
        "train_sft.py --run 'my run'"
    )
    assert capsys.readouterr().err == f"error: {told}{more if launcher else ''}\n"
    assert not list(tmp_path.iterdir())


def test_a_launcher_or_one_gpu_or_a_cpu_is_fine(four_gpus, monkeypatch):
    check_one_gpu("cpu", shared=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_one_gpu("cuda", shared=True)
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(InputError):
        check_one_gpu("cuda", shared=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_one_gpu("cuda", shared=True)
