"""Demonstrations in TRL's order and at its rates; packed with what they share, equal to apart."""

import doctest
from itertools import chain, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm.learner import demonstrations as module
from rlm.learner.demonstrations import backward, batch, linear_rate, micro_batches, packed
from rlm.learner.logprobs import token_statistics
from rlm.learner.optimizer import Optimizer
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import tiny_lora, tiny_model

# They begin alike; one prompt is only that; completions of one token; two are the same.
SHARED = [9, 8, 7, 6, 5, 4]
DEMONSTRATIONS = [
    (SHARED, [1, 2, 3]),
    ([*SHARED, 10, 11], [4]),
    ([*SHARED, 10, 12, 13], [5, 6, 7, 8, 9, 20, 21, 22]),
    ([*SHARED, 14], [23, 24]),
    ([*SHARED, 14], [23, 24]),
]
APART = [([30 + i, *prompt], completion) for i, (prompt, completion) in enumerate(DEMONSTRATIONS)]


def test_the_docstrings_examples():
    result = doctest.testmod(module)
    assert result.attempted >= 4 and result.failed == 0


def test_passes_are_in_the_order_of_accelerates_sampler():
    from accelerate.data_loader import SeedableRandomSampler

    sampler = SeedableRandomSampler(range(10), data_seed=7)
    theirs = [list(sampler) for _ in range(3)]
    ours = [batch(step, list(range(10)), 4, seed=7) for step in range(1, 10)]
    assert [len(each) for each in ours] == [4, 4, 2] * 3
    assert [list(chain(*ours[i : i + 3])) for i in (0, 3, 6)] == theirs
    assert theirs[0] != theirs[1] and sorted(theirs[0]) == list(range(10))


@pytest.mark.parametrize(("steps", "fraction"), [(12, 0.05), (7, 0.5), (5, 0.0), (2, 0.99)])
def test_rates_are_those_of_transformers(steps, fraction):
    from transformers import TrainingArguments, get_linear_schedule_with_warmup

    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    warmup = TrainingArguments(use_cpu=True, warmup_steps=fraction).get_warmup_steps(steps)
    schedule = get_linear_schedule_with_warmup(adamw, warmup, steps)
    for step in range(1, steps + 1):
        assert linear_rate(step, steps, fraction) == schedule.get_last_lr()[0]
        adamw.step()
        schedule.step()
    assert linear_rate(1, 1, 0.5) == 1.0  # a single step learns


LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 5), st.integers(1, 40))
def test_micro_batches_hold_each_once_and_keep_the_budget(lengths, shared, budget):
    start = [99] * shared
    demonstrations = [
        (start + [i] * prompt, [0] * more) for i, (prompt, more) in enumerate(lengths)
    ]
    parts = micro_batches(demonstrations, budget)
    assert sorted(d[:2] for part in parts for d in part) == sorted(demonstrations)
    assert all(len(part) == 1 or len(packed(part).ids) <= budget for part in parts)
    # As many as fit: the next one would not have.
    for part, following in pairwise(parts):
        assert len(packed([*part, following[0]]).ids) > budget


def test_where_the_learner_pads_what_is_shared_counts_for_each():
    demonstrations = [(SHARED, [1]), (SHARED, [2])]
    assert len(micro_batches(demonstrations, 6)) == 1
    assert len(micro_batches(demonstrations, 6, shared=False)) == 2


# A family whose completions are padded, and one that makes its logits itself.
@pytest.mark.parametrize("family", ["qwen2", "stablelm", "recurrent_gemma"])
@pytest.mark.parametrize("demonstrations", [DEMONSTRATIONS, APART], ids=["shared", "apart"])
def test_packed_equals_separate_forwards_value_and_gradient(demonstrations, family):
    model = tiny_lora(tiny_model() if family == "qwen2" else tiny_family(family))
    row = packed(demonstrations)
    inputs = sum(len(p) + len(c) - 1 for p, c in demonstrations)
    saved = 4 * len(SHARED) if demonstrations is DEMONSTRATIONS else 0
    assert len(row.ids) == inputs - saved
    assert row.targets.tolist() == [
        token for _, completion in demonstrations for token in completion
    ]
    assert row.lengths == (3, 1, 8, 2, 2)
    logprobs, entropy, likeliest = token_statistics(model, row, chunk=5)
    weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(1))
    (logprobs * weights).sum().backward()
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    parts = []
    for prompt, completion in demonstrations:
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        every = logits.log_softmax(-1)
        parts.append((every[range(len(completion)), completion], every.detach()))
    expected, every = (torch.cat(part) for part in zip(*parts, strict=True))
    (expected * weights).sum().backward()
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1), atol=1e-5, rtol=0)
    assert likeliest.tolist() == (every.argmax(-1) == row.targets).float().tolist()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            distance = (ours[name] - parameter.grad).norm() / parameter.grad.norm()
            assert distance < 1e-5, name


def test_what_is_likeliest_is_seen_by_both_heads():
    row = packed([([1], list(range(2, 60)))])
    for head_learns in (False, True):
        model = tiny_model()
        if not head_learns:
            model.requires_grad_(False)
        with torch.no_grad():
            logits = model(torch.tensor([list(range(1, 60))])).logits[0, :-1]
            row.targets[::2] = logits.argmax(-1)[::2]
            _, _, likeliest = token_statistics(model, row, chunk=16)
        assert likeliest.tolist() == (logits.argmax(-1) == row.targets).float().tolist()
        assert 0.4 < float(likeliest.mean()) < 0.6


def test_the_loss_is_the_mean_over_the_tokens_however_it_is_cut():
    model, found = tiny_lora(tiny_model()), []
    optimizer = Optimizer(model, max_grad_norm=1.0)
    for budget in (1, 20, 1000):
        metrics = backward(model, optimizer, DEMONSTRATIONS, tokens=16, token_budget=budget)
        gradient = torch.cat([w.grad.flatten() for w in optimizer.weights])
        found.append((metrics.values(), gradient))
        optimizer.clear()
    for metrics, gradient in found[1:]:
        assert metrics == pytest.approx(found[0][0], abs=1e-5)
        assert (gradient - found[0][1]).norm() < 1e-5 * gradient.norm()
    with torch.no_grad():
        logprobs, *_ = token_statistics(model, packed(DEMONSTRATIONS))
    assert found[0][0]["loss"] == pytest.approx(-float(logprobs.mean()), abs=1e-5)
