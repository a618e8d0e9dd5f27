"""A training with the real vLLM in it, and what every such training has to have written."""

import csv
import json

import pytest

from tests.support.real_vllm import needs_vllm
from tests.support.running import ROOT, succeed

pytestmark = needs_vllm
TINY, SHIPPED = ROOT / "weights/tiny_base", ROOT / "weights/final_rlm_lora"
TOLERANCE = 1e-3  # nats, in float32; the largest gap that was measured is 7e-5

SMALL = ["--questions-per-step", 4, "--group-size", 4, "--max-steps", 2, "--eval-samples", 4,
         "--probe", 2, "--max-tokens", 96, "--learning-rate", 0.001, "--run", "r",
         "--rewards", "correctness=1,tag_count=0.5"]  # fmt: skip


def check_run(folder) -> None:
    """What both trainings have to have written."""
    with open(folder / "runs/r/log.csv", encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    assert [row["step"] for row in log] == ["0", "1", "2"]
    steps = [row for row in log[1:] if row["importance_mean"]]  # where a group was live
    assert steps
    for row in steps:
        assert 0.99 < float(row["importance_mean"]) < 1.01
        assert float(row["importance_max"]) < 1.01 and float(row["sampler_gap"]) < TOLERANCE
        assert float(row["importance_capped_fraction"]) == 0.0
    records = (folder / "runs/r/rollouts.jsonl").read_text().splitlines()
    versions = {(r["step"], r["adapter_version"]) for r in map(json.loads, records)}
    assert versions == {(1, 0), (2, 1)}
    assert not list((folder / "runs/r").glob("adapters-*")), "what travelled is gone"


@pytest.mark.ci
def test_a_training_with_vllm_in_it(tmp_path):
    words = ["--engine", "vllm", "--model", TINY, "--adapter", SHIPPED, "--output", "out"]
    succeed("train_grpo.py", *words, *SMALL, cwd=tmp_path, timeout=1700, forked=False)
    check_run(tmp_path)
