"""Intervals and votes against values worked out by hand."""

from fractions import Fraction

import pytest

from rlm.statistics import majority, pass_at_k, wilson


def test_wilson_by_hand():
    # z = 2, 1 of 2: centre (0.5 + 4/4) / (1 + 4/2) = 1.5 / 3 = 0.5;
    # half = 2 * sqrt(0.25/2 + 4/16) / 3 = 2 * sqrt(0.375) / 3 = 0.408248
    low, high = wilson(1, 2, z=2.0)
    assert low == pytest.approx(0.0917517, abs=1e-6)
    assert high == pytest.approx(0.9082483, abs=1e-6)


def test_wilson_at_the_ends_is_not_empty():
    assert wilson(0, 10)[0] == pytest.approx(0.0, abs=1e-12) and wilson(0, 10)[1] > 0.2
    assert wilson(10, 10)[1] == pytest.approx(1.0) and wilson(10, 10)[0] < 0.8


@pytest.mark.parametrize("successes, trials", [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, trials)


def test_pass_at_k_by_hand():
    # 5 samples, 2 right, k 2: 1 - C(3,2)/C(5,2) = 1 - 3/10
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    with pytest.raises(ValueError, match="k"):
        pass_at_k(4, 1, 5)


def test_majority_counts_exact_values_and_lets_the_unread_abstain():
    half = Fraction(1, 2)
    assert majority([None, Fraction(3), half, Fraction(2, 4)]) == 2
    assert majority([4, 5]) == 0
    assert majority([None, None]) is None
