"""A base spread over two processes learns what the whole base learns."""

import os
import subprocess
import sys

import pytest
import yaml

from rlm import parallel
from rlm.errors import InputError
from rlm.learner import sharding
from tests.support.running import ROOT

SHARED = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import config, train_grpo
from rlm import parallel
from rlm.learner import sharding
from rlm.models import adapters
from rlm.learner.losses import advantages
from rlm.learner.logprobs import ReferencePolicy
from rlm.learner.optimizer import Optimizer
from rlm.models.policy import open_policy
from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import Batch
from rlm.learner.token_budget import TokenBudget

root = sys.argv[1]
world = parallel.join(timeout=60)
settings = config.load(config.GRPOSettings, [
    "--adapter", "none", "--updates-per-batch", "2", "--kl-weight", "0.1", "--model",
    root + "/weights/tiny_base"])
draw = torch.Generator().manual_seed(0)
lengths = [[40, 9, 12], [6, 15, 3], [8, 1, 4]]  # the first process has more than the other
groups = [
    [Rollout(torch.randint(100, (n,), generator=draw).tolist(), [-5.0] * n, "", "stop")
     for n in row] for row in lengths
]
scores = [[Score(1.0), Score(0.0), Score(0.5)]] * 3
prompts = [Prompt([5] * 9), Prompt([7] * 30), Prompt([1, 2])]
batch = Batch([Example(str(i), "", "0") for i in range(3)], prompts, groups, scores)


def learned(sharded: bool):
    policy = open_policy(root + "/weights/tiny_base", root + "/weights/final_rlm_lora",
                         device="cpu", lora={"r": 16, "alpha": 32, "seed": 0})
    before = adapters.fingerprint(policy.model)
    if sharded:
        sharding.shard(policy.model, "cpu")
    assert adapters.fingerprint(policy.model) == before
    optimizer = Optimizer(policy.model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-3
    budget = TokenBudget(policy.model, len(policy.tokenizer), 40)
    metrics = train_grpo.update(policy, optimizer, batch, advantages(batch.rewards()), settings,
                                ReferencePolicy(policy.model), budget)
    weights = [p.detach() for p in policy.model.parameters() if p.requires_grad]
    parts = sum(p.to_local().numel() for p in policy.model.parameters() if hasattr(p, "to_local"))
    whole = sum(p.numel() for n, p in policy.model.named_parameters()
                if ".layers." in n and "lora_" not in n)
    return metrics, weights, parts / whole


(metrics, weights, none), (others, parts, part) = learned(False), learned(True)
assert none == 0 and 0.45 < part < 0.55, (none, part)
gap = max(float((a - b).abs().max()) for a, b in zip(weights, parts, strict=True))
assert gap <= 1e-6 and metrics == others, (gap, metrics, others)
# One write: the two processes share the output.
print(f"held {world.rank}\\n", end="")
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_spread_base_learns_what_a_whole_one_does(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
         "--", str(tmp_path / "shared.py"), str(ROOT)],
        capture_output=True, text=True, timeout=200, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "held 0" in done.stdout and "held 1" in done.stdout


@pytest.mark.parametrize("name", ["one_machine", "several_machines", "fsdp2"])
def test_accelerate_reads_the_configs(name, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = ROOT / f"configs/accelerate/{name}.yaml"
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train_grpo.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    assert arguments.multi_gpu != arguments.use_fsdp
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)
    assert parallel.sharding_asked() == (name == "fsdp2")
    if name == "fsdp2":
        assert os.environ["FSDP_VERSION"] == "2"


def test_what_cannot_be_spread_is_refused():
    options = {"device": "cpu", "dtype": "auto", "quantize": "none"}
    assert sharding.loading(options) == options | {"dtype": "float32"}
    with pytest.raises(InputError, match="cannot be sharded"):
        sharding.loading(options | {"quantize": "4bit"})
