"""Intervals, tests and votes against values worked out by hand, and against scipy, statsmodels."""

import doctest
import random
import statistics as standard
from fractions import Fraction

import numpy
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.proportion import proportion_confint

from rlm.evaluation import statistics
from rlm.evaluation.statistics import (
    bootstrap,
    majority,
    mcnemar,
    mean_and_spread,
    pass_at_k,
    pass_sizes,
    wilson,
)

COUNTS = st.integers(0, 400)
close = pytest.approx


def test_doctests():
    outcome = doctest.testmod(statistics)
    assert outcome.attempted >= 6 and outcome.failed == 0


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


def test_the_sizes_are_powers_of_8_and_the_number_of_samples():
    assert pass_sizes(1) == [1] and pass_sizes(7) == [1, 7] and pass_sizes(8) == [1, 8]
    assert pass_sizes(9) == [1, 8, 9] and pass_sizes(512) == [1, 8, 64, 512]


def test_majority_counts_exact_values_and_lets_the_unread_abstain():
    half = Fraction(1, 2)
    assert majority([None, Fraction(3), half, Fraction(2, 4)]) == 2
    assert majority([4, 5]) == 0
    assert majority([None, None]) is None


# --- paired comparison -------------------------------------------------------------------------


@given(successes=COUNTS, failures=COUNTS)
def test_wilson_agrees_with_statsmodels(successes, failures):
    trials = successes + failures + 1
    expected = proportion_confint(successes, trials, 0.05, method="wilson")
    assert wilson(successes, trials) == close(expected, abs=1e-9)


def test_mcnemar_by_hand():
    # 1 against 3: 2 * (C(4,0) + C(4,1)) / 2^4 = 10/16
    assert mcnemar(1, 3) == mcnemar(3, 1) == 0.625
    # 0 against 6: 2 / 64
    assert mcnemar(6, 0) == 0.03125
    # as many on both sides: both tails overlap, 1 and not more
    assert mcnemar(2, 2) == mcnemar(0, 0) == 1.0
    with pytest.raises(ValueError, match="0 or more"):
        mcnemar(-1, 2)


@given(gained=COUNTS, lost=COUNTS)
def test_mcnemar_agrees_with_scipy_and_statsmodels(gained, lost):
    p = mcnemar(gained, lost)
    if gained + lost:
        assert p == close(scipy.stats.binomtest(gained, gained + lost).pvalue, rel=1e-9, abs=1e-9)
        table = [[7, lost], [gained, 5]]
        assert p == close(statsmodels_mcnemar(table, exact=True).pvalue, rel=1e-9, abs=1e-9)


def test_mcnemar_of_very_many():
    assert 0 < mcnemar(9000, 11000) < 1e-40
    assert mcnemar(5000, 0) == 0.0  # 2 / 2^5000 is below the smallest float


# 5,000 values are drawn in several goes: the goes have to join to the same random numbers.
@pytest.mark.parametrize("n, resamples", [(1, 50), (7, 999), (40, 2000), (5000, 2000)])
def test_bootstrap_agrees_with_scipy(n, resamples):
    rng = random.Random(n)
    values = [rng.choice([-1, 0, 0, 1, 1]) for _ in range(n)]
    expected = scipy.stats.bootstrap(
        (numpy.array(values, float),), numpy.mean, n_resamples=resamples, batch=500,
        method="percentile", rng=numpy.random.default_rng(3),
    ).confidence_interval if n > 1 else (values[0], values[0])  # fmt: skip
    assert bootstrap(values, resamples, seed=3) == close(tuple(expected), abs=1e-9)
    assert (bootstrap(values, resamples, 4) != bootstrap(values, resamples, 3)) == (n > 7)


def test_bootstrap_is_near_the_exact_interval():
    # 30 of 100 items gained, 10 lost: sd of the mean sqrt((0.4 - 0.04) / 100) = 0.06. The normal
    # interval is 0.2 -+ 0.1176; steps of 0.01 and 10,000 resamples leave less than 0.015.
    low, high = bootstrap([1] * 30 + [-1] * 10 + [0] * 60, 10_000, seed=0)
    assert low == close(0.0824, abs=0.015) and high == close(0.3176, abs=0.015)


def test_bootstrap_of_nothing_is_refused():
    for values, resamples in (([], 10), ([1.0], 0)):
        with pytest.raises(ValueError, match="1 or more"):
            bootstrap(values, resamples, seed=0)


@given(st.lists(st.floats(0, 1), min_size=2))
def test_the_spread_is_that_of_a_sample(values):
    mean, deviation = mean_and_spread(values)
    assert mean == close(standard.fmean(values), abs=1e-12)
    assert deviation == close(standard.stdev(values), abs=1e-9)
    assert mean_and_spread([0.5]) == (0.5, 0.0)
