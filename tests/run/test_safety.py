"""During training: what is not finite is left out, falling validations end it, time is kept."""

import json
import math
import time

import pytest
import torch

import rlm.learner.losses
import train_grpo
import train_sft
from rlm.errors import RunError
from rlm.evaluation.measure import Evaluation
from rlm.learner.optimizer import Optimizer
from rlm.run.best import BestAdapter
from rlm.run.steps import Steps
from tests.support.running import ROOT

START = ROOT / "weights/final_rlm_lora"
SMALL = ["--adapter", str(START), "--questions-per-step", "4", "--group-size", "4",
         "--eval-samples", "8", "--probe", "0", "--output", "out",
         "--temperature", "1.5"]  # fmt: skip


def log(folder) -> list[dict]:
    import csv

    with open(folder / "log.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["step"] != "0"]  # 0: the start


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def poison(monkeypatch, steps: set[int]):
    """Make the loss NaN in these steps; a step is a call of `train_grpo.take_step`."""
    plain, take, now = rlm.learner.losses.policy_loss, train_grpo.take_step, []

    def counted(*arguments, **options):
        now.append(1)
        return take(*arguments, **options)

    def poisoned(*arguments, **options):
        loss, metrics = plain(*arguments, **options)
        return loss * (math.nan if len(now) in steps else 1.0), metrics

    monkeypatch.setattr(train_grpo, "take_step", counted)
    monkeypatch.setattr(rlm.learner.losses, "policy_loss", poisoned)


def test_a_step_that_is_not_finite_is_left_out_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    poison(monkeypatch, {2})
    train_grpo.main([*SMALL, "--max-steps", "3", "--eval-every", "0"])
    rows = log(tmp_path / "runs/grpo")
    assert [row["skipped_steps"] for row in rows] == ["0", "1", "1"]
    assert [math.isfinite(float(row["loss"])) for row in rows] == [True, False, True]
    kept = json.loads((tmp_path / "runs/grpo/skipped/step-000002.json").read_text())
    assert "loss" in kept["not_finite"] and len(kept["batch"]) == 16 and kept["batch"][0]["text"]
    assert all(bool(t.isfinite().all()) for t in weights(tmp_path / "out").values())


def test_five_in_a_row_end_the_run_with_the_best_adapter_in_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    poison(monkeypatch, set(range(1, 99)))
    with pytest.raises(RunError, match="5 steps in a row"):
        train_grpo.main([*SMALL, "--max-steps", "9"])
    assert len(log(tmp_path / "runs/grpo")) == 5
    start, saved = weights(START), weights(tmp_path / "out")
    assert all(torch.equal(start[name], saved[name]) for name in start)


def test_an_update_with_a_gradient_that_is_not_finite_changes_nothing():
    layer = torch.nn.Linear(2, 1)
    optimizer = Optimizer(layer, max_grad_norm=1.0)
    optimizer.learning_rate = 0.1
    optimizer.backward(layer(torch.ones(1, 2)).sum())
    optimizer.step()
    before = [p.detach().clone() for p in layer.parameters()]
    moments = [{k: v.clone() for k, v in s.items()} for s in optimizer.rule.state.values()]
    optimizer.backward(layer(torch.full((1, 2), math.inf)).sum())
    assert not math.isfinite(optimizer.step())
    assert all(map(torch.equal, before, layer.parameters()))
    for was, now in zip(moments, optimizer.rule.state.values(), strict=True):
        assert all(torch.equal(was[k], now[k]) for k in was)


def test_sft_leaves_out_a_batch_that_is_not_finite(tmp_path, monkeypatch):
    from rlm.trl.sft import SFTTrainer

    monkeypatch.chdir(tmp_path)
    plain = SFTTrainer.compute_loss

    def poisoned(trainer, *arguments, **options):
        found = plain(trainer, *arguments, **options)
        return found * math.nan if trainer.state.global_step == 1 else found

    monkeypatch.setattr(SFTTrainer, "compute_loss", poisoned)
    train_sft.main(["--num-samples", "16", "--batch-size", "4", "--max-steps", "3",
                    "--eval-samples", "4", "--output", "out"])  # fmt: skip
    kept = json.loads((tmp_path / "runs/sft/skipped/step-000002.json").read_text())
    assert len(kept["batch"]["input_ids"]) == 4
    assert all(bool(t.isfinite().all()) for t in weights(tmp_path / "out").values())


def test_sft_by_our_own_learner_leaves_it_out_too(tmp_path, monkeypatch):
    from rlm.learner import demonstrations

    monkeypatch.chdir(tmp_path)
    plain, calls = demonstrations.token_statistics, []

    def poisoned(*arguments, **options):
        calls.append(1)
        logprobs, *statistics = plain(*arguments, **options)
        return logprobs * math.nan if len(calls) == 2 else logprobs, *statistics

    monkeypatch.setattr(demonstrations, "token_statistics", poisoned)
    train_sft.main(["--num-samples", "16", "--batch-size", "4", "--max-steps", "3",
                    "--eval-samples", "4", "--output", "out", "--backend", "own"])  # fmt: skip
    kept = json.loads((tmp_path / "runs/sft/skipped/step-000002.json").read_text())
    assert len(kept["batch"]) == 4 and len(calls) == 3
    assert all(bool(t.isfinite().all()) for t in weights(tmp_path / "out").values())
    rows = log(tmp_path / "runs/sft")[:3]
    # The rate rises to its peak of 3e-3 and falls, a step left out or not.
    assert [float(row["learning_rate"]) for row in rows] == [0.0, 3e-3, 1.5e-3]
    assert [math.isfinite(float(row["loss"])) for row in rows] == [True, False, True]


def evaluation(accuracy: float, questions: int = 100) -> Evaluation:
    return Evaluation("x", [], {"accuracy": accuracy, "questions": questions})


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.2, 0.6, 0.6], 2),  # a tie: the later one has learned from more
        # sqrt(0.56 * 0.44 / 100) = 0.0496: 0.56 is within one of 0.6, and 0.54, whose own is
        # 0.0498, is not; the bound is that of the highest, not of what was kept last.
        ([0.6, 0.56], 1),
        ([0.6, 0.56, 0.54], 1),
        ([0.2, 0.6, 0.4, 0.55], 1),
        ([0.2, 0.6, 0.4, 0.56], 3),
        ([1.0, 0.99], 0),  # sqrt(0.99 * 0.01 / 100) = 0.00995
        ([0.0, 0.0], 1),
    ],
)
def test_the_latest_is_kept_unless_it_fell_beyond_noise(accuracies, kept):
    model, values = torch.nn.Linear(1, 1), iter(accuracies)
    best = BestAdapter(model, lambda: evaluation(next(values)))
    for step in range(len(accuracies)):
        with torch.no_grad():
            model.weight.fill_(float(step))
        best.offer(step)
        # A run that is stopped and goes on keeps the same.
        best_again = BestAdapter(model, best.measure)
        best_again.restore(best.state())
        best = best_again
    best.put_back()
    assert best.step == kept and model.weight.item() == kept
    assert best.evaluation.summary["accuracy"] == accuracies[kept]


def test_the_best_of_an_older_release_is_the_highest():
    best = BestAdapter(torch.nn.Linear(1, 1), lambda: evaluation(0.6))
    best.offer(0)
    older = {name: value for name, value in best.state().items() if name != "highest"}
    best.restore(older)
    assert best.highest == 0.6


def test_two_standard_errors_below_the_best_is_a_fall():
    values = iter([evaluation(0.6), evaluation(0.51), evaluation(0.49)])
    best = BestAdapter(torch.nn.Linear(1, 1), lambda: next(values))
    best.offer(0)
    # sqrt(0.51 * 0.49 / 100) = 0.04999: 0.6 - 2 * 0.04999 = 0.5000 and 0.51 is above that.
    assert not best.fell(best.offer(1))
    assert best.fell(best.offer(2))


def test_early_stop_ends_at_the_fall(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    falling = iter([1.0, 0.9, 0.2, 0.1])
    offer = BestAdapter.offer

    def fallen(best, step):
        measured = best.measure
        value = next(falling)

        def measure():
            found = measured()
            found.summary["accuracy"] = value
            return found

        best.measure = measure
        try:
            return offer(best, step)
        finally:
            best.measure = measured

    monkeypatch.setattr(BestAdapter, "offer", fallen)
    train_grpo.main([*SMALL, "--max-steps", "9", "--eval-every", "1", "--early-stop"])
    assert [row["step"] for row in log(tmp_path / "runs/grpo")] == ["1", "2"]


def test_steps_can_be_ended_and_stay_so(tmp_path):
    steps, seen = Steps(tmp_path, {}, {}, last=9, save_every=1), []
    for step in steps:
        seen.append(step)
        if step == 3:
            steps.end()
    assert seen == [1, 2, 3]
    from rlm.run import checkpoint

    found = checkpoint.newest(tmp_path)
    assert list(Steps(tmp_path, {}, {}, last=9, found=found)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [pytest.param(20, marks=pytest.mark.ci), 45])
def test_a_budget_is_kept(tmp_path, monkeypatch, seconds):
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    train_grpo.main([*SMALL, "--budget", f"{seconds}s"])
    taken = time.monotonic() - began
    assert 0.4 * seconds < taken < seconds
    assert weights(tmp_path / "out")
