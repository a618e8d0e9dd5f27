"""The draws against known distributions.

Over an even grid of numbers instead of random ones, a draw is exact: each token comes within
one grid point a boundary of its share, with no chance of a false alarm.
"""

import pytest
import torch

from rlm.engine import sampling
from rlm.engine.requests import uniforms
from rlm.engine.sampling import (
    Draws,
    Mix,
    Sampling,
    draw_fused,
    draw_plainly,
    drawing,
    invert,
    invert_blocks,
    sample,
)
from rlm.errors import InputError
from rlm.seeds import derive

POINTS = 20_000
GRID = (torch.arange(POINTS) + 0.5) / POINTS


def shares(logits, setting: Sampling, size: int):
    """Return how often each token is drawn over the grid, [V]."""
    rows = logits.expand(POINTS, -1)
    tokens, logprobs = sample(rows, GRID, [setting] * POINTS, size)
    full = (logits[:size] / (setting.temperature or 1.0)).log_softmax(-1)
    torch.testing.assert_close(logprobs, full[tokens], atol=2e-6, rtol=0)
    return torch.bincount(tokens, minlength=len(logits)) / POINTS


def test_known_logits_give_known_shares():
    # Odds 1 : 2 : 3 : 4, and a fifth id past the tokenizer that is likelier than all.
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0, 90.0]).log()
    close = dict(atol=2 / POINTS, rtol=0)
    expected = {
        Sampling(1): [0.1, 0.2, 0.3, 0.4, 0],
        # Odds squared: 1 : 4 : 9 : 16 of 30.
        Sampling(1, temperature=0.5): [1 / 30, 4 / 30, 9 / 30, 16 / 30, 0],
        Sampling(1, temperature=0.0): [0, 0, 0, 1, 0],
        Sampling(1, top_k=2): [0, 0, 3 / 7, 4 / 7, 0],
        Sampling(1, top_k=9): [0.1, 0.2, 0.3, 0.4, 0],
        # 0.4 is short of 0.45, 0.4 + 0.3 reaches it.
        Sampling(1, top_p=0.45): [0, 0, 3 / 7, 4 / 7, 0],
        Sampling(1, top_p=0.01): [0, 0, 0, 1, 0],
        # Of the three best, 4/9 + 3/9 reach 0.75.
        Sampling(1, top_k=3, top_p=0.75): [0, 0, 3 / 7, 4 / 7, 0],
        Sampling(1, top_k=3, top_p=0.8): [0, 2 / 9, 3 / 9, 4 / 9, 0],
    }
    for setting, want in expected.items():
        got = shares(logits, setting, size=4)
        want = torch.tensor(want, dtype=torch.float32)
        torch.testing.assert_close(got, want, msg=f"{setting} {got}", **close)


def test_top_p_looks_further_where_the_likeliest_are_not_enough(monkeypatch):
    logits = torch.arange(1.0, 41.0).log()  # odds 1 to 40
    want = shares(logits, Sampling(1, top_p=0.9), size=40)
    monkeypatch.setattr(sampling, "CANDIDATES", 4)
    torch.testing.assert_close(shares(logits, Sampling(1, top_p=0.9), size=40), want)
    # 1 to 12 are 78 of 820, under a tenth; with 13 it is over.
    assert (want > 0).tolist() == [False] * 12 + [True] * 28


@pytest.mark.parametrize("size", [256, 1000, 2048, 5003])
def test_two_levels_equal_the_plain_inverse(size):
    # In float64 rounding moves a boundary by 1e-16: none of 1,000 numbers lies that near.
    generator = torch.Generator().manual_seed(size)
    weights = torch.randn(1000, size, generator=generator, dtype=torch.float64).mul(3).exp()
    numbers = torch.rand(1000, generator=generator, dtype=torch.float64)
    assert torch.equal(invert_blocks(weights, numbers), invert(weights, numbers))


@pytest.mark.parametrize("draw", [invert, invert_blocks])
def test_no_weight_is_never_drawn_even_at_the_ends(draw):
    weights = torch.zeros(4, 3000)
    weights[0, 7] = weights[1, 2999] = 1e-30
    weights[2, 300:500] = 0.1  # its sum rounds differently in blocks
    weights[3, :2500] = 1.0
    for number in (0.0, 0.5, 1 - 2**-24, 1.0):  # 1.0: where rounding could lift the target to
        drawn = draw(weights, torch.full((4,), number))
        assert (weights.gather(1, drawn[:, None]) > 0).all(), (number, drawn)


def test_a_large_vocabulary_draws_by_its_probabilities():
    # Pearson's statistic over 9 groups of tokens; were the seeds random, it would exceed 41.6
    # (8 degrees of freedom) once in 600,000 times. The seeds are fixed, so it never does.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6000, generator=generator) * 2
    numbers = [next(uniforms(derive("test", i))) for i in range(4000)]
    tokens, _ = sample(logits.expand(4000, -1), torch.tensor(numbers), [Sampling(1)] * 4000, 6000)
    group = torch.arange(6000) % 9
    probability = torch.zeros(9).index_add_(0, group, logits.softmax(0))
    count = torch.bincount(group[tokens], minlength=9)
    statistic = ((count - 4000 * probability) ** 2 / (4000 * probability)).sum()
    assert statistic < 41.6


def test_a_row_gets_the_same_token_beside_any_other():
    generator = torch.Generator().manual_seed(1)
    settings = [
        Sampling(1, 0.0),
        Sampling(1),
        Sampling(1, 0.3),
        Sampling(1, 1.7, top_k=50),
        Sampling(1, 1.0, top_p=0.8),
        Sampling(1, 0.9, 700, 0.95),
    ] * 20
    logits = torch.randn(len(settings), 5000, generator=generator) * 3
    numbers = torch.rand(len(settings), generator=generator)
    tokens, logprobs = sample(logits, numbers, settings, 4990)
    alone = [
        sample(logits[i : i + 1], numbers[i : i + 1], [setting], 4990)
        for i, setting in enumerate(settings)
    ]
    assert tokens.tolist() == [int(token) for token, _ in alone]
    torch.testing.assert_close(logprobs, torch.cat([logprob for _, logprob in alone]))


@pytest.mark.parametrize("size", [300, 4990])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_and_plain_rows_drawn_together_are_the_same(size, dtype):
    generator = torch.Generator().manual_seed(2)
    settings = [Sampling(1, t) for t in (0.0, 1e-7, 0.3, 1.0, 1.7)] * 20
    logits = (torch.randn(len(settings), 5000, generator=generator) * 3).to(dtype)
    numbers = torch.rand(len(settings), generator=generator)
    draws, told = Draws(numbers.tolist(), Mix(settings), size), Mix(settings).temperatures
    assert draws.plain and told[:5] == [0.0, 0.0, 0.3, 1.0, 1.7]
    found = draw_plainly(logits, numbers, torch.tensor(told), size)
    tokens, logprobs = draws.take(logits)
    assert torch.equal(found[0], tokens)
    torch.testing.assert_close(found[1], logprobs)
    assert not Draws([0.5], Mix([Sampling(1, top_k=3)]), size).plain
    assert not Draws([0.5], Mix([Sampling(1)]), size, {0: 7}).plain


@pytest.mark.parametrize("size", [200, 300, 4990])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_drawn_in_fewer_passes_are_the_same(size, dtype):
    generator = torch.Generator().manual_seed(4)
    logits = (torch.randn(1000, 5000, generator=generator) * 3).to(dtype)
    logits[:, 256:700] = float("-inf")  # a whole block that is never drawn
    numbers = torch.rand(1000, generator=generator)
    temperatures = torch.tensor([0.0, 0.3, 1.0, 1.7, 2e-6] * 200)
    tokens, logprobs = draw_fused(logits, numbers, temperatures, size)
    same = tokens == draw_plainly(logits, numbers, temperatures, size)[0]
    assert same.sum() >= 999 and same[temperatures == 0].all()
    divisor = torch.where(temperatures == 0, 1.0, temperatures).double()
    true = (logits[:, :size].double() / divisor[:, None]).log_softmax(1)
    true = true.gather(1, tokens.long()[:, None])[:, 0].float()
    torch.testing.assert_close(logprobs, true, atol=1e-5, rtol=0)


def test_a_draw_that_is_wrong_on_a_device_is_not_used(monkeypatch, caplog):
    def fails(*given):
        raise RuntimeError("no promotion\nhere")

    real = sampling.draw_fused
    assert sampling.fused_problem("cpu", torch.bfloat16) == ""
    for draw, problem in ((lambda *x: real(*x) + 1, "other tokens"), (fails, "no promotion")):
        monkeypatch.setattr(sampling, "draw_fused", draw)
        assert problem in sampling.fused_problem("cpu", torch.float32)
        monkeypatch.setattr(sampling, "fused_problem", lambda *_, told=problem: told)
        assert drawing.__wrapped__(torch.device("cuda"), torch.float32) is draw_plainly
        monkeypatch.setattr(sampling, "fused_problem", lambda *_: "")
        assert drawing.__wrapped__(torch.device("cuda"), torch.float32) is draw
        monkeypatch.undo()
    assert "no promotion" in caplog.text
    assert drawing(torch.device("cpu"), torch.float32) is draw_plainly


@pytest.mark.parametrize("size", [300, 4990])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_draw_within_the_range_and_tell(size, wrong):
    generator = torch.Generator().manual_seed(3)
    settings = [Sampling(1, 0.0), Sampling(1), Sampling(1, 0.7, 20, 0.9)] * 2
    logits = torch.randn(6, 5000, generator=generator)
    logits[3:, 7] = wrong  # one of many
    logits[4] = wrong
    numbers = torch.full((6,), 1 - 2**-24)
    tokens, logprobs = Draws(numbers.tolist(), Mix(settings), size).take(logits)
    assert tokens.min() >= 0 and tokens.max() < size
    assert logprobs.isfinite().tolist() == [True] * 3 + [False] * 3
    for draw in (draw_plainly, draw_fused):
        plain = draw(logits, numbers, torch.tensor([0.0, 1.0, 0.7] * 2), size)
        assert plain[0].min() >= 0 and plain[0].max() < size
        assert plain[1].isfinite().tolist() == [True] * 3 + [False] * 3


def test_a_request_has_numbers_of_its_own():
    ones, twos = uniforms(derive(1, 0, 0)), uniforms(derive(1, 0, 1))
    first = [next(ones) for _ in range(600)]
    again = uniforms(derive(1, 0, 0))
    assert first == [next(again) for _ in range(600)]
    assert len(set(first) & {next(twos) for _ in range(600)}) < 3
    assert all(0.0 <= number < 1.0 for number in first)
    # The mean of 600 is 0.5 with a deviation of 0.0118; 6 of them once in 500 million.
    assert abs(sum(first) / 600 - 0.5) < 0.071


@pytest.mark.parametrize(
    "bad",
    [
        dict(max_tokens=0),
        dict(max_tokens=1, temperature=-1.0),
        dict(max_tokens=1, temperature=float("nan")),
        dict(max_tokens=1, top_k=-1),
        dict(max_tokens=1, top_p=0.0),
        dict(max_tokens=1, top_p=1.1),
        dict(max_tokens=1, stop=("",)),
        dict(max_tokens=1, stop="###"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad):
    with pytest.raises(InputError):
        Sampling(**bad)
