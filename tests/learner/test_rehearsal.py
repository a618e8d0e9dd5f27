"""The pass before the first step: its shape by hand, that it leaves no trace, what does not fit."""

import copy
import random

import numpy
import pytest
import torch

from rlm.learner import rehearsal
from rlm.learner.optimizer import Optimizer
from rlm.learner.rehearsal import fullest, learn, rehearse, size, untouched
from rlm.learner.token_budget import Activations
from tests.support.tiny_models import SIZE, tiny_lora, tiny_model

GROUPS = [([5] * 9, [[1, 2, 3], [4], [5, 6]]), ([7] * 20, [[8, 9], [10, 11], [12]])]
SHAPE = {"max_tokens": 10, "most_groups": 2}
OPTIONS = {"temperature": 1.0, "vocab_size": SIZE}


def made(**settings):
    """A model with dropout, an optimiser that has made a step, and gradients that are there."""
    model = tiny_lora(tiny_model(attention_dropout=0.1, **settings)).train()
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-2
    learn(GROUPS, model, **OPTIONS)
    optimizer.step()
    model.eval()
    return model, optimizer


def state(model, optimizer) -> dict:
    """Everything that a later step depends on, as copies."""
    found = {f"tensor {n}": t.clone() for n, t in model.state_dict().items()}
    found |= {f"buffer {n}": t.clone() for n, t in model.named_buffers()}
    found |= {f"gradient {n}": copy.deepcopy(p.grad) for n, p in model.named_parameters()}
    found |= {f"training {n}": m.training for n, m in model.named_modules()}
    for index, kept in enumerate(optimizer.rule.state.values()):
        found |= {f"adamw {index} {n}": t.clone() for n, t in kept.items()}
    found["scaler"] = optimizer.scaler.state_dict()
    found["python"], found["torch"] = random.getstate(), torch.get_rng_state()
    found["numpy"] = numpy.random.get_state()[1].copy()
    return found


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(numpy.all(one == other)) if isinstance(one, numpy.ndarray) else one == other


def assert_same(before: dict, after: dict):
    assert before.keys() == after.keys()
    assert [n for n in before if not same(before[n], after[n])] == []


def test_it_leaves_no_trace():
    model, optimizer = made()
    before = state(model, optimizer)
    assert sum(name.startswith("adamw") for name in before) > 10
    found = rehearse(model, GROUPS, 300, **SHAPE, **OPTIONS)
    assert found.fits and found.seconds > 0
    assert_same(before, state(model, optimizer))


def test_gradients_that_are_there_and_flags_come_back():
    model, optimizer = made()
    learn(GROUPS, model, **OPTIONS)
    model.base_model.eval()  # some modules train, some do not
    before = state(model, optimizer)
    assert any(k.startswith("gradient") and v is not None for k, v in before.items())
    with untouched(model):
        random.random(), numpy.random.random(), torch.rand(1)
        learn(GROUPS, model, **OPTIONS)
        assert any(p.grad is not None for p in model.parameters())
    assert_same(before, state(model, optimizer))


def test_it_leaves_no_trace_when_it_is_broken_off():
    model, optimizer = made()
    before = state(model, optimizer)
    with pytest.raises(KeyboardInterrupt), untouched(model):
        torch.rand(1)
        learn(GROUPS, model, **OPTIONS)
        raise KeyboardInterrupt
    assert_same(before, state(model, optimizer))


def test_the_next_step_is_the_same_with_and_without_it():
    def step(rehearsed: bool):
        model, optimizer = made()
        torch.manual_seed(5)
        if rehearsed:
            rehearse(model, GROUPS, 300, **SHAPE, **OPTIONS)
        learn(GROUPS, model, **OPTIONS)
        optimizer.step()
        return state(model, optimizer)

    assert_same(step(False), step(True))


@pytest.mark.parametrize(
    "budget, pieces, tokens",
    [
        # The longest prompt has 20 tokens; a completion of 10 tokens adds 9.
        (1, [1], 29),  # a single completion may be larger than the budget
        (37, [1], 29),
        (46, [2], 38),
        (47, [3], 47),
        (76, [3, 1], 76),
        (999, [3, 3], 94),  # no more than two groups
    ],
)
def test_the_largest_micro_batch_by_hand(budget, pieces, tokens):
    one = [[1, 2, 3] * 3 + [1], [4] * 10, [5, 6] * 5]
    found = fullest(GROUPS, budget=budget, **SHAPE)
    assert found == [([7] * 20, one[:n]) for n in pieces]
    assert size(found) == tokens


def test_sizes_by_hand():
    assert size(GROUPS) == 9 + 2 + 0 + 1 + 20 + 1 + 1 + 0
    one_token = fullest(GROUPS, max_tokens=1, most_groups=2, budget=43)
    assert one_token == [([7] * 20, [[1], [4], [5]])] * 2


def test_what_was_measured_is_of_that_micro_batch():
    model, _ = made()
    found = rehearse(model, GROUPS, 80, **SHAPE, **OPTIONS)
    assert (found.tokens, found.asked_tokens, found.budget_tokens) == (76, 80, 80)
    assert found.fits and not found.halves and found.seconds > 0
    assert 0 < found.peak_bytes < found.total_bytes


@pytest.mark.parametrize(
    "limit, budget, tokens, fits", [(94, 94, 94, True), (60, 47, 47, True), (9, 20, 29, False)]
)
def test_what_does_not_fit_is_halved_and_told(monkeypatch, limit, budget, tokens, fits):
    model, optimizer = made()
    before = state(model, optimizer)

    def scarce(groups, model, **options):
        learn(groups, model, **options)
        if size(groups) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rehearsal, "learn", scarce)
    monkeypatch.setattr(rehearsal, "LEAST", 20)
    found = rehearse(model, GROUPS, 94, **SHAPE, **OPTIONS)
    assert (found.asked_tokens, found.budget_tokens, found.tokens) == (94, budget, tokens)
    assert found.fits is fits and bool(found.seconds) is fits
    assert_same(before, state(model, optimizer))


def test_on_a_cpu_nothing_is_tried_that_cannot_fit(monkeypatch):
    model, _ = made()
    tried = []
    monkeypatch.setattr(rehearsal, "used_bytes", lambda device: 1000)
    monkeypatch.setattr(rehearsal, "free_bytes", lambda device: 9000)
    monkeypatch.setattr(rehearsal, "activations", lambda *of: Activations(100.0))
    monkeypatch.setattr(rehearsal, "ADAM_BYTES", 0)
    monkeypatch.setattr(rehearsal, "LEAST", 20)
    monkeypatch.setattr(rehearsal, "learn", lambda groups, *_, **__: tried.append(size(groups)))
    # 1000 + 94 * 100 are more than 0.9 * 10,000; 1000 + 47 * 100 are not.
    found = rehearse(model, GROUPS, 94, **SHAPE, **OPTIONS)
    assert found.fits and found.budget_tokens == found.tokens == tried[-1] == 47
    assert max(tried) == 47
    monkeypatch.setattr(rehearsal, "activations", lambda *of: Activations(300.0))
    tried.clear()
    found = rehearse(model, GROUPS, 94, **SHAPE, **OPTIONS)
    assert not found.fits and not tried and found.seconds == 0
    assert (found.peak_bytes, found.total_bytes) == (1000 + 29 * 300, 10_000)


def test_only_a_short_pass_is_repeated(monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: clock[0])
    for seconds in ([0.1, 0.4, 0.2, 0.3, 0.1], [1.5, 0.7], [9.0]):
        left = [0.0, *seconds]  # the first one warms up

        def timed(*_, left=left, **__):
            clock[0] += left.pop(0)

        monkeypatch.setattr(rehearsal, "learn", timed)
        shown.append(rehearse(tiny_lora(tiny_model()), GROUPS, 94, **SHAPE, **OPTIONS).seconds)
        assert not left
    assert shown == pytest.approx([0.2, 1.1, 9.0])


def test_another_error_is_not_taken_for_that(monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(rehearsal, "learn", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rehearse(tiny_lora(tiny_model()), GROUPS, 94, **SHAPE, **OPTIONS)
