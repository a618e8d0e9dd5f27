"""Scans of layers with states against transformers' reference functions: values and gradients."""

import doctest
from types import SimpleNamespace

import pytest
import torch
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

from rlm.models import scans, states
from tests.support.tiny_families import tiny_family

B, T, H, K, V = 2, 70, 4, 8, 6  # more tokens than a chunk has, and not a whole number of them


def random(*shapes):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in shapes]


def learned(function, inputs):
    """Return outputs, the last state, and the gradients of all inputs."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    found = function(*inputs)
    weights = random(*(x.shape for x in found))
    loss = sum((w * x).sum() for w, x in zip(weights, found, strict=True))
    return [*found, *torch.autograd.grad(loss, inputs)]


def assert_same(ours, reference, inputs, tolerance):
    names = ["outputs", "state", *range(len(inputs))]
    both = learned(ours, inputs), learned(reference, inputs)
    for name, found, true in zip(names, *both, strict=True):
        gap = ((found - true).norm() / true.norm()).item()
        assert gap < tolerance, f"{name}: {gap:.1e}"


def delta(decay: float, channels: tuple[int, ...] = ()):
    *inputs, gate, beta, state = random(
        (B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, *channels), (B, T, H), (B, H, K, V)
    )
    return [*inputs, -gate.abs() * decay, beta.sigmoid(), state]


def with_state(function):
    """A delta rule whose sixth input is the state before it."""

    def run(query, key, value, g, beta, state):
        return function(
            query, key, value, g=g, beta=beta, initial_state=state, output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip

    return run


# Of the second nothing is left after a few tokens; the logarithms' sums lose digits in both ways.
DECAYS = [(0.05, 1e-5), (20.0, 3e-4)]


@pytest.mark.parametrize(("decay", "tolerance"), DECAYS)
def test_the_gated_delta_rule_is_transformers(decay, tolerance):
    reference = with_state(qwen.torch_chunk_gated_delta_rule)
    assert_same(with_state(scans.gated_delta_rule), reference, delta(decay), tolerance)


@pytest.mark.parametrize(("decay", "tolerance"), DECAYS)
def test_kimis_delta_rule_is_transformers(decay, tolerance):
    reference = with_state(kimi.chunk_kimi_delta_attention)
    assert_same(with_state(scans.kimi_delta_rule), reference, delta(decay, (K,)), tolerance)


@pytest.mark.parametrize(("decay", "tolerance"), DECAYS)
def test_the_mamba_2_scan_is_transformers(decay, tolerance):
    values, dt, rates, keys, queries, skip, bias, state = random(
        (B, T, H, V), (B, T, H), (H,), (B, T, 2, K), (B, T, 2, K), (H,), (H,), (B, H, V, K)
    )

    def run(function):
        return lambda *given: function(
            *given[:5], chunk_size=16, D=given[5], dt_bias=given[6], initial_states=given[7],
            dt_softplus=True, return_final_states=True, dt_limit=(0.01, 2.0),
        )  # fmt: skip

    inputs = [values, dt, -rates.abs() * decay, keys, queries, skip, bias, state]
    assert_same(run(scans.mamba2_scan), run(granite.mamba2_chunk_scan), inputs, tolerance)


def test_without_a_state_before_it_and_without_the_lengths_made_one():
    query, key, value, g, beta, _ = delta(0.5)
    for ours, theirs in (
        (scans.gated_delta_rule, qwen.torch_chunk_gated_delta_rule),
        (scans.kimi_delta_rule, kimi.chunk_kimi_delta_attention),
    ):
        g = g if ours is scans.gated_delta_rule else g[..., None].expand(-1, -1, -1, K)
        given = dict(g=g, beta=beta, initial_state=None, output_final_state=False)
        found, state = ours(query, 0.3 * key, value, **given)
        expected, _ = theirs(query, 0.3 * key, value, **given)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert state is None


def test_chunks_fit_the_length():
    result = doctest.testmod(scans)
    assert result.attempted == 1 and result.failed == 0


def test_mixers_run_with_them_unless_kernels_or_offloading_are_there(monkeypatch):
    (mixer, *_) = states.mixers(tiny_family("qwen3_5_text"))
    plain = type(mixer).forward
    names = scans.forward_of(mixer).__globals__
    assert names["torch_chunk_gated_delta_rule"] is scans.gated_delta_rule
    assert names["causal_conv1d_fn"] is qwen.causal_conv1d_fn
    mixer.conv1d._hf_hook = SimpleNamespace()
    assert scans.forward_of(mixer) is plain
    del mixer.conv1d._hf_hook
    scans._with_ours.cache_clear()
    monkeypatch.setattr(scans, "find_spec", lambda package: package == "fla")
    assert scans.forward_of(mixer) is plain
    scans._with_ours.cache_clear()


def test_what_a_cpu_is_slow_at_is_zero_inside_and_only_inside():
    small = torch.tensor(2e-38)
    with states.use(tiny_family("lfm2")):
        assert (small / 16).item() == 0
    assert (small / 16).item() > 0
