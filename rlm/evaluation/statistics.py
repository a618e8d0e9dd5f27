"""Statistics of an evaluation: intervals, paired tests, pass@k, majority.

Pure functions on plain numbers; they know nothing of models or questions.
"""

from collections.abc import Hashable, Sequence
from math import comb, sqrt


def wilson(successes: float, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a share; z 1.96 is 95 %.

    It stays inside 0 to 1 and is not empty at 0 or at `trials` successes, where the plain
    normal interval is. Source: E. B. Wilson, JASA 22 (1927), 209-212.
    successes: also a sum of shares between 0 and 1, which vary less than right or wrong does.
    ValueError unless 0 <= successes <= trials and trials > 0.

    >>> [round(x, 4) for x in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    if not 0 <= successes <= trials or trials <= 0:
        raise ValueError(
            f"wilson({successes}, {trials}): need 0 <= successes <= trials, trials > 0"
        )
    share = successes / trials
    denominator = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / denominator
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def standard_error(share: float, trials: int) -> float:
    """Return the standard error sqrt(p (1 - p) / n) of a share p of n trials; 0 at p 0 or 1.

    >>> standard_error(0.5, 100)
    0.05
    """
    return sqrt(share * (1 - share) / trials)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the unbiased chance that at least one of k draws is right, of `samples` drawn.

    1 - C(samples - right, k) / C(samples, k): arXiv:2107.03374, equation 1.
    ValueError unless 1 <= k <= samples and 0 <= right <= samples.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (1 <= k <= samples and 0 <= right <= samples):
        raise ValueError(
            f"pass_at_k({samples}, {right}, {k}): need 1 <= k <= samples >= right >= 0"
        )
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def pass_sizes(samples: int) -> list[int]:
    """Return the k that pass@k is told of: 1, each power of 8 below the samples, the samples.

    >>> pass_sizes(64), pass_sizes(100), pass_sizes(3)
    ([1, 8, 64], [1, 8, 64, 100], [1, 3])
    """
    powers = [8**n for n in range(samples.bit_length())]
    return [*(k for k in powers if k < samples), samples]


def majority(votes: Sequence[Hashable | None]) -> int | None:
    """Return the index of the first vote for the most frequent value; None abstains.

    Ties go to the value that came first; None if nobody voted. arXiv:2203.11171.

    >>> majority([None, 7, 5, 7])
    1
    """
    counts: dict[Hashable, list[int]] = {}
    for index, vote in enumerate(votes):
        if vote is not None:
            counts.setdefault(vote, []).append(index)
    return max(counts.values(), key=len)[0] if counts else None


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p value of McNemar's exact test on paired outcomes.

    gained: items wrong before and right now. lost: items right before and wrong now. Under the
    null hypothesis each of these is as likely as the other: twice the smaller binomial tail at
    1/2, at most 1. Items that did not change say nothing. Source: Q. McNemar, Psychometrika 12
    (1947), 153-157, with the exact binomial in place of the chi-square.
    ValueError for negative counts.

    >>> mcnemar(5, 0)
    0.0625
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"mcnemar({gained}, {lost}): need two counts of 0 or more")
    changed = gained + lost
    tail, ways = 0, 1  # ways: changed over k
    for k in range(min(gained, lost) + 1):
        tail, ways = tail + ways, ways * (changed - k) // (k + 1)
    return min(1.0, 2 * tail / 2**changed)  # whole numbers: the division rounds only once


def bootstrap(values: Sequence[float], resamples: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval (low, high) of the mean of `values`.

    For paired outcomes `values` are the differences per item, so that an item is drawn with both
    its outcomes. Equal values give an interval of no width: the bootstrap knows no other value.
    Source: B. Efron, Annals of Statistics 7 (1979), 1-26; percentiles interpolate linearly.
    ValueError for no values or no resamples.

    >>> bootstrap([1.0, 1.0, 1.0], 100, seed=0)
    (1.0, 1.0)
    """
    import numpy

    if not len(values) or resamples < 1:
        raise ValueError(
            f"bootstrap of {len(values)} values, {resamples} resamples: need 1 or more"
        )
    given = numpy.asarray(values, dtype=float)
    generator, means = numpy.random.default_rng(seed), []
    rows = max(1, 2**22 // len(given))  # at a time: 32 MB of places
    for done in range(0, resamples, rows):
        shape = (min(rows, resamples - done), len(given))
        means.append(given[generator.integers(0, len(given), shape)].mean(axis=1))
    low, high = numpy.percentile(numpy.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n - 1 below the root; 0 for one value).

    >>> mean_and_spread([0.5, 1.0, 0.75])
    (0.75, 0.25)
    """
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, sqrt(squares / (len(values) - 1)) if len(values) > 1 else 0.0
