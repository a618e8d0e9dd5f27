"""Statistics of an evaluation: intervals, pass@k, majority. Pure functions on plain numbers."""

from collections.abc import Hashable, Sequence
from math import comb, sqrt


def wilson(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the Wilson score interval (low, high) of a share; z 1.96 is 95 %.

    It stays inside 0 to 1 and is not empty at 0 or at `trials` successes, where the plain
    normal interval is. Source: E. B. Wilson, JASA 22 (1927), 209-212.
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
