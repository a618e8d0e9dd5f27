"""Packed groups against separate, unpacked forwards, and what must not change the result."""

import copy
import doctest

import pytest
import torch

from rlm.learner import logprobs as logprobs_module
from rlm.learner import packed_groups
from rlm.learner.lm_head import LMHead
from rlm.learner.logprobs import ReferencePolicy, micro_batches, pack, token_logprobs, use
from rlm.learner.losses import LOSSES, policy_loss
from rlm.models import attention
from rlm.models.lora_linear import fused, plain_lora
from tests.support.tiny_models import SIZE, byte_tokenizer, tiny_lora, tiny_model


def random_groups(shape, *, seed=0, size=SIZE):
    """Return groups of random ids; shape: (prompt tokens, [tokens of each completion])."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(size, (n,), generator=draw).tolist()

    return [(ids(prompt), [ids(n) for n in lengths]) for prompt, lengths in shape]


# Uneven on purpose: prompts of 1 token, completions of 1 token, a group with nothing but those,
# lengths far apart (several buckets), twins.
SHAPE = [(5, [7, 1, 20]), (1, [3, 3, 2]), (12, [1, 1, 1]), (3, [40, 2, 9]), (1, [1, 6, 5])]


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, gradient in theirs.items():
        distance = (ours[name] - gradient).norm() / gradient.norm()
        assert distance < tolerance, f"{name}: relative distance {distance:.1e}"


def separately(model, groups, *, temperature=1.0, size=None):
    """The plain way: one full forward of prompt and completion at a time."""
    logprobs, entropies = [], []
    for prompt, completions in groups:
        for completion in completions:
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            every = (logits[:, :size] / temperature).log_softmax(-1)  # [C, V]
            logprobs.append(every[range(len(completion)), completion])
            entropies.append(-(every.exp() * every).sum(-1))
    return torch.cat(logprobs), torch.cat(entropies).detach()


def weights_like(x):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))


def learned_both_ways(model, groups, *, chunk=None, size=None):
    """Return (log-probabilities, gradients) of the packed groups, and those of the plain way."""
    found = []
    for packed in (True, False):
        model.zero_grad()
        if packed:
            row = pack(groups, once=True)
            logprobs, _ = token_logprobs(model, row, chunk=chunk, vocab_size=size)
        else:
            logprobs, _ = separately(model, groups, size=size)
        (logprobs * weights_like(logprobs)).sum().backward()
        found.append((logprobs, gradients(model)))
    return found


def test_the_docstrings_examples():
    result = doctest.testmod(logprobs_module)
    assert result.attempted >= 1 and result.failed == 0


def test_what_is_packed():
    packed = pack([([10, 11], [[1, 2, 3], [4]]), ([20], [[5, 6]])])
    # Prompts, then the completions without their last token, the longest first.
    assert packed.ids.tolist() == [10, 11, 20, 1, 2, 5]
    assert packed.positions.tolist() == [0, 1, 0, 2, 3, 1]
    assert packed.targets.tolist() == [1, 2, 3, 4, 5, 6]
    assert packed.sequence.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.lengths == (3, 1, 2)
    # 11 predicts 1 and 4; 1 predicts 2; 2 predicts 3; 20 predicts 5; 5 predicts 6.
    source = packed.rows[packed.row_of]
    pairs = zip(source.tolist(), packed.targets[packed.by_row].tolist(), strict=True)
    assert sorted(pairs) == [(1, 1), (1, 4), (2, 5), (3, 2), (4, 3), (5, 6)]
    assert packed.per_token(torch.tensor([0.1, 0.2, 0.3])).tolist() == pytest.approx(
        [0.1, 0.1, 0.1, 0.2, 0.3, 0.3]
    )


def test_what_a_group_has_twice_is_packed_once():
    packed = pack([([10], [[1, 2, 3], [1, 2, 4], [1, 2, 3], [7]]), ([10], [[1, 2, 3]])], once=True)
    # 1 and 2 for the first three completions, and again for the other group; 7 is no input.
    assert packed.ids.tolist() == [10, 10, 1, 2, 1, 2]
    assert packed.positions.tolist() == [0, 0, 1, 2, 1, 2]
    assert packed.targets.tolist() == [1, 2, 3, 1, 2, 4, 1, 2, 3, 7, 1, 2, 3]
    assert packed.lengths == (3, 3, 3, 1, 3)
    source = [0] * len(packed.targets)
    for target, row in zip(packed.by_row.tolist(), packed.row_of.tolist(), strict=True):
        source[target] = packed.rows.tolist()[row]
    assert source == [0, 2, 3, 0, 2, 3, 0, 2, 3, 0, 1, 4, 5]
    # Without it, as where memory is measured, each stands for itself.
    apart = pack([([10], [[1, 2, 3], [1, 2, 3]])])
    assert apart.ids.tolist() == [10, 1, 2, 1, 2]


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_what_is_packed_once_has_the_gradient_of_all_its_copies(kind):
    model = tiny_lora(tiny_model(kind))
    (prompt, (long, short, end)), (other, rest) = random_groups([(5, [9, 4, 1]), (3, [6])])
    groups = [(prompt, [long, short, long, end, long, short, end]), (other, [*rest, long, *rest])]
    (logprobs, ours), (expected, plain) = learned_both_ways(model, groups, chunk=4)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    assert_same_gradients(ours, plain, 1e-5)
    assert len(pack(groups, once=True).ids) == 5 + 8 + 3 + 3 + 5 + 8
    assert len(pack(groups).ids) == 5 + 3 * 8 + 2 * 3 + 3 + 2 * 5 + 8


@pytest.mark.parametrize("kind", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_equals_separate_forwards_value_and_gradient(kind, tied):
    model = tiny_lora(tiny_model(kind, tie_word_embeddings=tied))
    groups = random_groups(SHAPE)
    logprobs, entropy = token_logprobs(model, pack(groups), chunk=7, statistics=True)
    weights = weights_like(logprobs)
    (logprobs * weights).sum().backward()
    ours = gradients(model)
    model.zero_grad()
    expected, expected_entropy = separately(model, groups)
    (expected * weights).sum().backward()
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=0)
    assert not entropy.requires_grad
    assert_same_gradients(ours, gradients(model), 1e-5)
    assert all("lora" in name for name in ours)


def test_a_plain_model_learns_too():
    model = tiny_model("llama", tie_word_embeddings=True)
    (_, ours), (_, plain) = learned_both_ways(model, random_groups(SHAPE[:3]), chunk=4)
    # Tied embeddings: one tensor gets gradient from below and from the chunked head.
    assert_same_gradients(ours, plain, 1e-5)


def test_repeated_key_heads_are_the_same(monkeypatch):
    model, packed = tiny_lora(tiny_model()), pack(random_groups(SHAPE))
    with torch.no_grad():
        grouped, _ = token_logprobs(model, packed)
        monkeypatch.setattr(attention, "takes_fewer_keys", lambda query, masked: False)
        repeated, _ = token_logprobs(model, packed)
    torch.testing.assert_close(grouped, repeated, atol=1e-5, rtol=0)


def test_temperature_and_vocabulary():
    model = tiny_lora(tiny_model())
    groups = random_groups(SHAPE, size=200)
    options = dict(temperature=0.7, vocab_size=200)
    with torch.no_grad():
        logprobs, entropy = token_logprobs(model, pack(groups), statistics=True, **options)
        expected, expected_entropy = separately(model, groups, temperature=0.7, size=200)
        unmasked, _ = token_logprobs(model, pack(groups), temperature=0.7)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-5, rtol=0)
    assert (logprobs > unmasked).all()  # 58 impossible tokens give their share to the others


def learn(model, groups, advantages, budget, chunk, **options):
    """Return loss and gradients of one step over micro-batches of at most `budget` tokens."""
    model.zero_grad()
    tokens = sum(len(c) for _, completions in groups for c in completions)
    total = 0.0
    for part in micro_batches(groups, budget):
        packed = pack([(groups[i][0], groups[i][1][rows]) for i, rows in part])
        logprobs, _ = token_logprobs(model, packed, chunk=chunk, statistics=True)
        each_token = packed.per_token(torch.cat([advantages[i, rows] for i, rows in part]))
        loss, _ = policy_loss(
            logprobs, logprobs.detach() - 0.1 * each_token.sign(), each_token, packed.sequence,
            tokens=tokens, sequences=advantages.numel(), max_tokens=40, **options,
        )  # fmt: skip
        loss.backward()
        total += loss.item()
    return total, gradients(model)


@pytest.mark.parametrize("loss_type", [loss for loss in LOSSES if loss != "bnpo"])
def test_chunks_and_micro_batches_change_nothing(loss_type):
    model, groups = tiny_lora(tiny_model()), random_groups(SHAPE)
    advantages = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    loss, expected = learn(model, groups, advantages, 10_000, 512, loss_type=loss_type)
    for budget, chunk in [(10_000, 1), (10_000, 13), (1, 512), (40, 5)]:
        other, ours = learn(model, groups, advantages, budget, chunk, loss_type=loss_type)
        assert other == pytest.approx(loss, abs=1e-6)
        assert_same_gradients(ours, expected, 1e-5)


def test_groups_do_not_see_each_other():
    model, groups = tiny_lora(tiny_model()), random_groups(SHAPE)
    with torch.no_grad():
        whole, _ = token_logprobs(model, pack(groups))
        first = sum(SHAPE[0][1])
        alone, _ = token_logprobs(model, pack(groups[:1]))
        torch.testing.assert_close(whole[:first], alone, atol=1e-5, rtol=0)
        # Another completion of the group changes: its neighbours do not.
        groups[0][1][2][4] = (groups[0][1][2][4] + 1) % SIZE
        changed, _ = token_logprobs(model, pack(groups))
    torch.testing.assert_close(changed[:8], whole[:8], atol=1e-5, rtol=0)
    assert (changed[8:first] - whole[8:first]).abs().max() > 1e-3


def test_completions_of_like_length_share_padding():
    # The longest of a bucket is at most twice its shortest: 20 and 10; 9 and 5; 4; 1.
    buckets = packed_groups.like_lengths([20, 10, 9, 5, 4, 1])
    assert buckets == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 6)]
    assert packed_groups.like_lengths([]) == []


def test_micro_batches_hold_every_completion_once_within_the_budget():
    groups = random_groups(SHAPE * 4)
    everything = [(i, row) for i, (_, completions) in enumerate(groups) for row in range(3)]
    for budget in (1, 30, 60, 200, 10_000):
        parts = micro_batches(groups, budget)
        found = [(i, row) for part in parts for i, rows in part for row in range(3)[rows]]
        assert sorted(found) == everything
        for part in parts:
            packed = pack([(groups[i][0], groups[i][1][rows]) for i, rows in part])
            assert len(packed.ids) <= budget or len(packed.lengths) == 1
    assert len(micro_batches(groups, 10_000)) == 1
    with pytest.raises(ValueError, match="token budget 0"):
        micro_batches(groups, 0)


def test_a_group_is_cut_only_where_it_is_larger_than_the_budget():
    group = ([1] * 10, [[1] * 5] * 4)  # 10 + 4 * 4 tokens
    assert micro_batches([group], 26) == [[(0, slice(0, 4))]]
    assert micro_batches([group], 25) == [[(0, slice(3, 4))], [(0, slice(0, 3))]]
    assert len(micro_batches([group], 1)) == 4


@pytest.mark.parametrize("trained_head", [False, True])
def test_logits_never_exist_for_more_than_a_chunk(monkeypatch, trained_head):
    model, packed = tiny_lora(tiny_model()), pack(random_groups(SHAPE))
    model.get_base_model().get_output_embeddings().weight.requires_grad_(trained_head)
    seen, scaled = [], LMHead.scaled
    monkeypatch.setattr(LMHead, "scaled", lambda head, x: seen.append(len(x)) or scaled(head, x))
    logprobs, _ = token_logprobs(model, packed, chunk=16)
    forward = len(seen)
    logprobs.sum().backward()
    # Rows that predict: 5 prompt ends, and the completions' inputs.
    assert len(packed.rows) == 5 + sum(n - 1 for _, lengths in SHAPE for n in lengths)
    assert max(seen) == 16 and sum(seen[:forward]) == len(packed.rows)
    # Only a head that learns makes its logits again in the backward.
    assert len(seen) == (2 * forward if trained_head else forward)


def test_a_head_that_learns_gives_the_same_values_and_gradients():
    groups = random_groups(SHAPE)
    found = []
    for trained_head in (False, True):
        model = tiny_lora(tiny_model())
        model.get_base_model().config.final_logit_softcapping = 3.0
        model.get_base_model().get_output_embeddings().weight.requires_grad_(trained_head)
        options = dict(temperature=0.7, vocab_size=SIZE - 20, statistics=True)
        groups_in = [(p, [[t % (SIZE - 20) for t in c] for c in cs]) for p, cs in groups]
        packed = pack(groups_in)
        logprobs, entropies = token_logprobs(model, packed, **options)
        (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
        lora = {n: p.grad for n, p in model.named_parameters() if "lora" in n}
        found.append((logprobs.detach(), entropies, lora))
    (frozen, entropy, grads), (trained, other, others) = found
    torch.testing.assert_close(frozen, trained, atol=2e-6, rtol=0)
    torch.testing.assert_close(entropy, other, atol=2e-5, rtol=0)
    assert any(bool(g.any()) for g in grads.values())
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, others[name], atol=2e-5, rtol=1e-5)


def test_a_fused_lora_layer_is_pefts_own_value_and_gradient():
    model = tiny_lora(tiny_model())
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])

    def run():
        model.zero_grad()
        out = model(ids).logits
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        return out.detach(), gradients(model)

    with fused(model):
        passes = [m for m in model.modules() if plain_lora(m) and "forward" in m.__dict__]
        mine, my_gradients = run()
    assert len(passes) == 3 * 7 and not any("forward" in m.__dict__ for m in passes)
    theirs, their_gradients = run()
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(my_gradients[name], gradient, atol=1e-4, rtol=1e-5)
    with fused(model), model.disable_adapter(), torch.no_grad():
        off = model(ids).logits
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(off, model(ids).logits, atol=1e-5, rtol=1e-5)


def saved_tensors(model, packed, chunk, **options):
    """Return the sizes of all tensors that the forward keeps for the backward."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(model, packed, chunk=chunk, statistics=True, **options)
    return sizes


def test_nothing_of_the_size_of_the_vocabulary_is_kept_for_the_backward():
    model = tiny_lora(tiny_model(vocabulary=5_000))
    packed = pack(random_groups(SHAPE, size=5_000))
    weight = 5_000 * 32
    assert all(n <= weight for n in saved_tensors(model, packed, chunk=64))
    assert weight < 64 * 5_000  # a chunk of logits would have been noticed


def test_the_learner_and_the_sampler_are_the_same_policy():
    from rlm.engine.engine import Engine, Sampling
    from rlm.records import Prompt

    model, prompts = tiny_lora(tiny_model()), [[1, 2, 3], [5] * 9]
    engine = Engine(model, byte_tokenizer())
    rollouts = engine.generate(
        [Prompt(ids) for ids in prompts], 6, Sampling(max_tokens=20, temperature=0.9), seed=1
    )
    groups = [(p, [r.ids for r in group]) for p, group in zip(prompts, rollouts, strict=True)]
    sampled = torch.tensor([x for group in rollouts for r in group for x in r.logprobs])
    with torch.no_grad():
        logprobs, _ = token_logprobs(model, pack(groups), temperature=0.9)
    torch.testing.assert_close(logprobs, sampled, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)])
def test_in_half_precision_learner_and_sampler_are_one_policy_and_lora_is_float32(dtype, bound):
    from rlm.engine.engine import Engine, Sampling
    from rlm.records import Prompt

    model, whole = tiny_lora(tiny_model().to(dtype)), tiny_lora(tiny_model())
    prompts = [[1, 2, 3], [5] * 9]
    groups = Engine(model, byte_tokenizer()).generate(
        [Prompt(ids) for ids in prompts], 6, Sampling(max_tokens=20), seed=1
    )
    packed = pack([(p, [r.ids for r in g]) for p, g in zip(prompts, groups, strict=True)])
    sampled = torch.tensor([x for group in groups for r in group for x in r.logprobs])
    logprobs, _ = token_logprobs(model, packed)
    exact, _ = token_logprobs(whole, packed)
    assert logprobs.dtype == torch.float32
    # The mantissa has 8 or 11 bits, the logits are some 10; the same products round alike.
    assert (logprobs - sampled).abs().max() < bound and (
        logprobs - sampled
    ).abs().mean() < bound / 8
    for found in (logprobs, exact):
        (found * weights_like(found)).sum().backward()
    for name, gradient in gradients(whole).items():
        mine = model.get_parameter(name).grad
        assert mine.dtype == torch.float32
        assert (mine - gradient).norm() / gradient.norm() < bound / 2, name


# The reference


def test_the_reference_of_a_fresh_lora_is_the_base_without_a_copy():
    from rlm.models.loading import add_lora

    model = add_lora(tiny_model(), r=4, alpha=8, seed=0)
    packed = pack(random_groups(SHAPE))
    with torch.no_grad():
        expected, _ = token_logprobs(model, packed)
    reference = ReferencePolicy(model)
    assert reference.adapter_off and not reference.frozen
    shake(model)
    assert torch.equal(reference.logprobs(packed), expected)


def shake(model):
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("adapter", [True, False])
def test_the_reference_stays_and_the_policy_comes_back_bit_equal(adapter):
    model = tiny_lora(tiny_model()) if adapter else tiny_model()
    packed = pack(random_groups(SHAPE))
    with torch.no_grad():
        at_start, _ = token_logprobs(model, packed)
    reference = ReferencePolicy(model)
    assert not reference.adapter_off
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):
        token_logprobs(model, packed)[0].sum().backward()
        optimizer.step()
        before = copy.deepcopy(model.state_dict())
        places = [p.data_ptr() for p in model.parameters()]
        assert torch.equal(reference.logprobs(packed), at_start)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        assert [p.data_ptr() for p in model.parameters()] == places
    with torch.no_grad():
        assert (token_logprobs(model, packed)[0] - at_start).abs().max() > 1e-3


def test_a_reset_reference_is_the_policy_of_then_and_is_kept_by_checkpoints():
    from rlm.models.loading import add_lora

    model = add_lora(tiny_model(), r=4, alpha=8, seed=0)
    packed, reference = pack(random_groups(SHAPE)), ReferencePolicy(model)
    shake(model)
    with torch.no_grad():
        then, _ = token_logprobs(model, packed)
    reference.reset()
    shake(model)
    assert torch.equal(reference.logprobs(packed), then)
    other = ReferencePolicy(model)
    other.restore(reference.state())
    shake(model)
    assert torch.equal(other.logprobs(packed), then)


def test_the_reference_comes_out_after_an_error_and_has_no_dropout():
    from rlm.models.loading import add_lora

    model = add_lora(tiny_model(), r=4, alpha=8, dropout=0.5, seed=0)
    shake(model)
    packed = pack(random_groups(SHAPE))
    with torch.no_grad():
        expected, _ = token_logprobs(model.eval(), packed)
    reference = ReferencePolicy(model)
    shake(model.train())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(reference.logprobs(packed), expected)
    with pytest.raises(RuntimeError, match="stop"), reference.active():
        assert not model.training
        raise RuntimeError("stop")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


# What is refused


def test_gradient_checkpointing_needs_the_attention_in_the_backward_too():
    model, packed = tiny_lora(tiny_model()).train(), pack(random_groups(SHAPE))
    weights = weights_like(packed.targets)
    (token_logprobs(model, packed)[0] * weights).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="gradient checkpointing"):
        token_logprobs(model, packed)
    with use(model.get_base_model()):
        (token_logprobs(model, packed)[0] * weights).sum().backward()
    assert_same_gradients(gradients(model), expected, 1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_the_models_own_attention_is_back_afterwards():
    model, packed = tiny_lora(tiny_model()), pack(random_groups(SHAPE))
    own = model(torch.tensor([[1, 2, 3]])).logits
    token_logprobs(model, packed)
    assert torch.equal(model(torch.tensor([[1, 2, 3]])).logits, own)


def test_capped_logits_are_capped():
    # No model of the test kinds caps its logits: a head that the setting reaches stands in.
    model = tiny_model()
    groups = random_groups(SHAPE[:2])
    model.config.final_logit_softcapping = 2.0
    with torch.no_grad():
        ours, _ = logprobs_module._by_way(logprobs_module.PACKED, model, pack(groups))
        told, _ = token_logprobs(model, pack(groups))
        logits = model(torch.tensor([groups[0][0] + groups[0][1][0]])).logits[0, 4:-1]
    expected = (2.0 * torch.tanh(logits / 2.0)).log_softmax(-1)[range(7), groups[0][1][0]]
    torch.testing.assert_close(ours[:7], expected, atol=1e-5, rtol=0)
    # The model itself does not cap, which is seen when it is first used: its own logits count.
    assert logprobs_module.way_of(model) == logprobs_module.LOGITS
    own = logits.log_softmax(-1)[range(7), groups[0][1][0]]
    torch.testing.assert_close(told[:7], own, atol=1e-5, rtol=0)


def test_what_would_come_out_wrong_is_refused():
    model, packed = tiny_model(), pack(random_groups(SHAPE))
    with pytest.raises(ValueError, match="temperature 0"):
        token_logprobs(model, packed, temperature=0)
    with pytest.raises(ValueError, match="group 1"):
        pack([([1], [[2]]), ([1], [[2], []])])
    with pytest.raises(ValueError, match="group 0"):
        pack([([], [[2]])])
