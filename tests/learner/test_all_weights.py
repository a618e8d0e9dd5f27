"""All weights learn: gradients of every one, float32 masters of half precision, the reference."""

from types import SimpleNamespace

import pytest
import torch

from rlm.errors import InputError
from rlm.learner.logprobs import ReferencePolicy, pack, token_logprobs, use
from rlm.learner.optimizer import Optimizer
from rlm.learner.rehearsal import untouched
from rlm.learner.token_budget import checkpoint
from rlm.models.whole import learn_all
from tests.support.tiny_families import tiny_family
from tests.support.tiny_models import SIZE, tiny_model
from training.stage import Stage

# Two groups: completions of several lengths, one of a single token.
GROUPS = [
    ([1, 2, 3, 4, 5] * 3, [[7, 8, 9] * 5, [10, 11], [12]]),
    ([20, 21], [[30, 31, 32, 33], [34]]),
]
MODELS = {
    "untied head, biases": lambda: tiny_model("qwen2"),
    "tied head": lambda: tiny_model("llama", tie_word_embeddings=True),
    "norms of queries and keys": lambda: tiny_model("qwen3"),
    "experts": lambda: tiny_family("qwen3_moe"),
}


def plain_loss(model) -> torch.Tensor:
    """The sum of the completions' log-probabilities, each by a plain forward of its own."""
    total = torch.zeros(())
    for prompt, completions in GROUPS:
        for completion in completions:
            ids = torch.tensor([prompt + completion])
            table = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total = total + table[torch.arange(len(completion)), torch.tensor(completion)].sum()
    return total


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gradient_of_every_weight_is_that_of_the_plain_forward(name, again):
    model = learn_all(MODELS[name]())
    plain_loss(model).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    model.train()
    checkpoint(model, on=again)
    with use(model):
        token_logprobs(model, pack(GROUPS), chunk=5, vocab_size=SIZE)[0].sum().backward()
    for n, p in model.named_parameters():
        router = n.endswith("mlp.gate.weight")
        assert (p.grad is None) == router == (expected[n] is None), n
        if not router:
            assert p.grad.any() and torch.isfinite(p.grad).all(), n
            scale = max(1.0, float(expected[n].abs().max()))
            torch.testing.assert_close(p.grad / scale, expected[n] / scale, atol=2e-5, rtol=0)


def pair(dtype) -> tuple[torch.nn.Parameter, torch.nn.Module]:
    model = torch.nn.Linear(4, 1, bias=False).to(dtype)
    torch.nn.init.ones_(model.weight)
    return model.weight, model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up_in_the_masters_and_are_lost_without(dtype):
    weight, model = pair(dtype)
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 1e-4  # below 1 the numbers are 2 ** -8 or 2 ** -11 apart: too small
    for _ in range(100):
        optimizer.backward(model(torch.ones(1, 4, dtype=dtype)).sum())
        optimizer.step()
    ((_, master),) = optimizer.copies
    assert master.dtype == torch.float32
    torch.testing.assert_close(master, torch.full((1, 4), 0.99), atol=1e-4, rtol=0)
    assert torch.equal(weight, master.to(dtype)) and (weight < 1).all()
    assert weight.grad is None and master.grad is None

    weight, model = pair(dtype)
    without = torch.optim.AdamW([weight], lr=1e-4, eps=1e-4, weight_decay=0.0)
    for _ in range(100):
        model(torch.ones(1, 4, dtype=dtype)).sum().backward()
        without.step()
        without.zero_grad()
    assert (weight == 1).all()


def test_gradients_add_up_in_float32():
    weight, model = pair(torch.bfloat16)
    optimizer = Optimizer(model, max_grad_norm=1e9)
    for _ in range(300):  # in bfloat16 256 + 1 is 256
        optimizer.backward(model(torch.ones(1, 4, dtype=torch.bfloat16)).sum())
    assert optimizer.weights[0].grad.tolist() == [[300.0] * 4] and weight.grad is None
    assert optimizer.step() == 600.0  # sqrt(4 * 300 ** 2)
    # What a trial does with the weights is none of the optimiser's business.
    with untouched(model):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        assert weight.grad is not None
    assert weight.grad is None and optimizer.weights[0].grad is None
    optimizer.backward(model(torch.ones(1, 4, dtype=torch.bfloat16)).sum())
    optimizer.clear()
    assert optimizer.weights[0].grad is None and optimizer.step() == 0.0


def test_a_step_that_is_not_finite_changes_no_master():
    weight, model = pair(torch.bfloat16)
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.1
    optimizer.backward(model(torch.full((1, 4), float("inf"), dtype=torch.bfloat16)).sum())
    assert optimizer.step() == float("inf")
    assert (weight == 1).all() and (optimizer.weights[0] == 1).all()


def steps(model, optimizer, numbers) -> None:
    for number in numbers:
        optimizer.backward(model(torch.full((1, 4), number, dtype=model.weight.dtype)).sum())
        optimizer.step()


def test_what_is_restored_goes_on_bit_for_bit():
    ended = []
    for stop in (None, 2):
        weight, model = pair(torch.bfloat16)
        optimizer = Optimizer(model, max_grad_norm=9.0)
        optimizer.learning_rate = 1e-3
        numbers = [0.5, -1.0, 2.0, 0.25, 1.0]
        steps(model, optimizer, numbers[:stop])
        if stop:
            # As rlm.run.steps.Trained keeps the weights themselves.
            state, kept = optimizer.state(), weight.detach().clone()
            state = {**state, "masters": [master.clone() for master in state["masters"]]}
            weight, model = pair(torch.bfloat16)
            weight.data.copy_(kept)
            optimizer = Optimizer(model, max_grad_norm=9.0)
            optimizer.learning_rate = 1e-3
            optimizer.restore(state)
            steps(model, optimizer, numbers[stop:])
        ended.append((weight, optimizer.weights[0]))
    (one, master), (two, other) = ended
    assert torch.equal(one, two) and torch.equal(master, other)
    assert not torch.equal(master, one.float()), "masters hold more than the weights"


def test_what_a_weight_takes_is_told():
    model = learn_all(tiny_model())
    count = sum(p.numel() for p in model.parameters())
    told = Optimizer(model, max_grad_norm=1.0).told()
    assert f"{count:,} numbers learn, 16 bytes each (the weight 4, its gradient 4," in told
    half = Optimizer(learn_all(tiny_model().bfloat16()), max_grad_norm=1.0)
    assert "18 bytes each (the weight 2" in half.told() and "master 4)" in half.told()
    assert half.pending_bytes() == 12 * count  # a float32 gradient, two moments
    assert f"{18 * count / 1e9:.2f} GB before" in half.told()


def test_eight_bits_are_refused_without_cuda():
    with pytest.raises(InputError, match="--optimizer adamw8bit: needs a CUDA device, this is cpu"):
        Optimizer(tiny_model(), max_grad_norm=1.0, kind="adamw8bit")


def test_the_reference_is_a_copy_where_a_kl_needs_it_and_nothing_else():
    model = learn_all(tiny_model())
    packed = pack(GROUPS)
    with torch.no_grad():
        before = token_logprobs(model, packed, vocab_size=SIZE)[0]

    def stage(kl_weight: float) -> Stage:
        settings, policy = SimpleNamespace(kl_weight=kl_weight), SimpleNamespace
        return Stage(settings, policy(model=model, full=True), None, None, None)

    assert stage(0.0).reference() is None
    reference = stage(0.1).reference()
    assert isinstance(reference, ReferencePolicy) and not reference.adapter_off
    optimizer = Optimizer(model, max_grad_norm=1.0)
    optimizer.learning_rate = 0.01
    optimizer.backward(-token_logprobs(model, packed, vocab_size=SIZE)[0].sum())
    optimizer.step()
    assert torch.equal(reference.logprobs(packed, vocab_size=SIZE), before)
    with torch.no_grad():
        assert not torch.allclose(token_logprobs(model, packed, vocab_size=SIZE)[0], before)
