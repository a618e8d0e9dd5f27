"""`train_sft.py --backend own` learns what TRL's SFTTrainer learns, on the same demonstrations.

TRL pads a batch and scores every position; ours is packed, in several micro-batches. Both begin
with a LoRA that changes the base, so that A and B have gradients. Ten demonstrations in batches of
four: the last batch of a pass is smaller, and the fourth step begins the second pass. In float64:
in float32 the rounding of either is over 1e-5 on some processors.
"""

import copy
from types import SimpleNamespace

import pytest
import torch

import config
import data
import train_sft
from rlm.learner.demonstrations import backward, batch, linear_rate
from rlm.learner.optimizer import Optimizer
from rlm.models.policy import open_policy
from training import sft
from training.stage import Stage
from training.tasks import task_of

STEPS = 4
FLAGS = ("--num-samples", "10", "--batch-size", "4", "--max-steps", str(STEPS), "--seed", "5",
         "--warmup-fraction", "0.25")  # fmt: skip


@pytest.fixture(scope="module")
def start():
    """(settings, policy, records)"""
    settings = config.load(config.SFTSettings, FLAGS)
    policy = open_policy(settings.model, None, lora={"r": 16, "alpha": 32, "seed": 0})
    policy.model.double()
    draw = torch.Generator().manual_seed(0)
    for name, weight in trained(policy.model).items():
        if "lora_B" in name:
            weight.data = 0.02 * torch.randn(weight.shape, generator=draw).double()
    examples, _ = data.training_sets(settings)
    return settings, policy, train_sft.token_records(examples, task_of(settings, policy), settings)


@pytest.fixture(scope="module")
def theirs(start, tmp_path_factory):
    """Return what TRL logs of each step, its gradients before they are cut, its last weights."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    gradients, logged = [], []

    class Log(TrainerCallback):
        def on_log(self, arguments, state, control, logs, **kwargs):
            logged.append(dict(logs))

    class Watched(SFTTrainer):
        def _clip_grad_norm(self, model):
            gradients.append({n: p.grad.clone() for n, p in trained(model).items()})
            return super()._clip_grad_norm(model)

    settings, policy, records = start
    folder = tmp_path_factory.mktemp("trl")
    run = SimpleNamespace(path=folder)
    stage = Stage(settings, policy, engine=None, run=run, task=None)
    arguments, steps = train_sft.trainer_arguments(stage, len(records))
    assert steps == STEPS
    model = copy.deepcopy(policy.model)
    Watched(
        model=model, args=arguments, train_dataset=Dataset.from_list(records),
        processing_class=policy.tokenizer, callbacks=[Log()],
    ).train()  # fmt: skip
    return [logs for logs in logged if "loss" in logs], gradients, kept(model)


def trained(model) -> dict:
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def kept(model) -> dict:
    return {n: p.detach().clone() for n, p in trained(model).items()}


def far(ours: dict, theirs: dict) -> float:
    """Return the largest relative distance of a tensor."""
    assert ours.keys() == theirs.keys() and len(ours) > 50
    return max(float((ours[n] - x).norm() / x.norm()) for n, x in theirs.items())


def test_the_gradient_of_a_batch_is_trls(start, theirs):
    settings, policy, records = start
    model = copy.deepcopy(policy.model)
    chosen = batch(1, [sft.split(r) for r in records], settings.batch_size, settings.seed)
    tokens = sum(len(completion) for _, completion, *_ in chosen)
    optimizer = Optimizer(model, max_grad_norm=1.0)
    backward(model, optimizer, chosen, tokens=tokens, token_budget=200)
    found = {n: p.grad for n, p in trained(model).items()}
    assert far(found, theirs[1][0]) < 1e-5


def test_steps_end_at_trls_weights_and_log_its_metrics(start, theirs):
    settings, policy, records = start
    model = copy.deepcopy(policy.model)
    before = kept(model)
    optimizer = Optimizer(model, **sft.ADAMW)
    demonstrations, seen = [sft.split(record) for record in records], sft.Seen()
    for step, logs in enumerate(theirs[0], 1):
        optimizer.learning_rate = settings.learning_rate * linear_rate(step, STEPS, 0.25)
        chosen = batch(step, demonstrations, settings.batch_size, settings.seed)
        row = sft.update(model, optimizer, chosen, Whole())
        row |= seen.add(chosen) | {"epoch": sft.passes(step, len(records), settings)}
        names = {"grad_norm": "gradient_norm", "mean_token_accuracy": "token_accuracy"}
        wanted = {names.get(n, n): float(x) for n, x in logs.items()}
        assert list(row) == list(wanted)
        assert row == pytest.approx(wanted, rel=1e-4), step
        assert row["learning_rate"] == wanted["learning_rate"]
    found = kept(model)
    assert far(before, theirs[2]) > 1e-2  # it learns something
    assert far(found, theirs[2]) < 1e-5


class Whole:
    """A token budget that holds every batch."""

    def attempt(self, work, undo):
        return work(token_budget=10**6)
