"""pass@k of two models worked out by hand, and the sentence for every way it can go."""

import doctest
from itertools import product

import numpy
import pytest
import scipy.stats

from rlm.evaluation import sharpening
from rlm.evaluation.sharpening import (
    FELL,
    FINDINGS,
    ROSE,
    SAME,
    Sampled,
    brief,
    card,
    direction,
    finding,
    pass_at_k_metrics,
)
from rlm.seeds import derive


def change(k: int, low: float, high: float, changed: int = 50) -> dict:
    middle = (low + high) / 2
    return {"k": k, "difference": middle, "low": low, "high": high, "changed": changed}


CHANGES = {ROSE: (0.01, 0.1), FELL: (-0.1, -0.01), SAME: (-0.05, 0.15)}


def test_by_hand():
    # Of 4 samples 3, 1 and 0 are right before, 4, 1 and 2 after.
    found = pass_at_k_metrics(
        [Sampled("a", [3, 1, 0], 4), Sampled("b", [4, 1, 2], 4)], resamples=50
    )
    before, after = found["models"]
    assert [each["k"] for each in before["pass_at_k"]] == [1, 4]
    assert [each["share"] for each in before["pass_at_k"]] == pytest.approx([4 / 12, 2 / 3])
    assert [each["share"] for each in after["pass_at_k"]] == pytest.approx([7 / 12, 1])
    assert after["pass_at_k"][1]["high"] == 1 and after["pass_at_k"][1]["low"] < 0.5
    one, all_four = found["differences"][0]["changes"]
    assert one["difference"] == pytest.approx(1 / 4) and one["changed"] == 2
    assert all_four["difference"] == pytest.approx(1 / 3) and all_four["changed"] == 1


def test_only_the_k_that_are_possible():
    ks = {
        n: [e["k"] for e in made["models"][0]["pass_at_k"]]
        for n in (2, 8, 10, 64)
        if (made := pass_at_k_metrics([Sampled("a", [1], n), Sampled("b", [1], n)], resamples=2))
    }
    assert ks == {2: [1, 2], 8: [1, 8], 10: [1, 8, 10], 64: [1, 8, 64]}
    assert pass_at_k_metrics([Sampled("a", [1], 1), Sampled("b", [1], 1)]) is None
    # The fewest samples decide: of 8 samples 4 right, pass@2 is 1 - (4/8)(3/7) = 11/14.
    found = pass_at_k_metrics([Sampled("a", [1], 2), Sampled("b", [4], 8)], resamples=2)
    assert found and [e["share"] for e in found["models"][1]["pass_at_k"]] == pytest.approx(
        [1 / 2, 11 / 14]
    )


def test_the_interval_is_of_the_differences_of_the_same_questions():
    right = numpy.random.default_rng(3).integers(0, 9, (2, 40))
    models = [Sampled(name, row.tolist(), 8) for name, row in zip("ab", right, strict=True)]
    found = pass_at_k_metrics(models, seed=5, resamples=300)["differences"][0]["changes"][0]
    expected = scipy.stats.bootstrap(
        (right[0] / 8, right[1] / 8),
        lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis),
        paired=True, vectorized=True, n_resamples=300, method="percentile",
        rng=numpy.random.default_rng(derive("bootstrap", 5, "a", "b", "pass@1")),
    ).confidence_interval  # fmt: skip
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=1e-9)
    # Each question one sample better: the questions differ widely, the change does not.
    shifted = [Sampled("a", list(range(8)), 8), Sampled("b", list(range(1, 9)), 8)]
    same = pass_at_k_metrics(shifted, resamples=50)["differences"][0]["changes"][0]
    assert same["low"] == same["high"] == pytest.approx(1 / 8) and direction(same) == ROSE


@pytest.mark.parametrize(("way", "bounds"), CHANGES.items())
def test_the_interval_decides_and_not_the_difference(way, bounds):
    assert direction(change(1, *bounds)) == way
    assert direction(change(1, *bounds, changed=5)) == SAME, "five may change by chance alone"
    assert direction(change(1, 0.0, 0.2)) == SAME, "an interval that touches zero"


@pytest.mark.parametrize("ways", list(product(CHANGES, CHANGES)))
def test_every_way_has_its_sentence(ways):
    told = finding(change(1, *CHANGES[ways[0]]), change(64, *CHANGES[ways[1]]), 20.0, 200)
    assert told == f"pass@1 {ways[0]}, pass@64 {ways[1]}: {FINDINGS[ways]}."
    assert ("something new" in told) == (ways[1] == ROSE)
    assert ("sharpening" in told) == (ways[0] == ROSE and ways[1] != ROSE)


def test_no_room_to_rise_is_told():
    surer, same = change(1, 0.5, 0.7), change(64, 0.0, 0.02)
    told = finding(surer, same, 2.0, 200)
    assert told.endswith("Questions left to gain: 2 of 200, too few for pass@64 to be seen "
                             "to rise.")  # fmt: skip
    assert "left to gain" not in finding(surer, same, 6.0, 200)
    assert "left to gain" not in finding(surer, change(64, -0.3, -0.1), 0.0, 200)


def test_sharpening_and_learning_are_told_apart_from_counts():
    questions = 20
    # pass@8 is 1 for every question with a right sample: 50 % before.
    start = Sampled("start", [2] * 10 + [0] * 10, 8)
    sharper = Sampled("end", [8] * 10 + [0] * 10, 8)
    wiser = Sampled("end", [2] * 10 + [1] * 10, 8)
    same = Sampled("end", [0] * 10 + [2] * 10, 8)  # ten gained, ten lost
    for end, said in (
        (sharper, "pass@1 rose, pass@8 stayed within noise: sharpening"),
        (wiser, "pass@1 rose, pass@8 rose: it learned something new"),
        (same, "pass@1 stayed within noise, pass@8 stayed within noise: no difference is shown"),
    ):
        found = pass_at_k_metrics([start, end])
        assert found and found["questions"] == questions
        assert found["differences"][0]["finding"].startswith(said)
        shown = card(found)
        assert f"- start → end: {said}" in shown and f"\n  {said}" in brief(found)
        assert "| start → end | pass@8 | 50.0 [29.9, 70.1] |" in shown
    # Wilson's interval of 10 of 20 and of 20 of 20; all that changed became right.
    assert "  pass@8  50.0 [29.9, 70.1] -> 100.0 [83.9, 100.0]  +50.0 [" in brief(
        pass_at_k_metrics([start, wiser])
    )


def test_other_questions_are_refused():
    one = Sampled("a", [1, 2], 8)
    for models in ([one], [one, Sampled("b", [1], 8)], [Sampled("a", [], 8)] * 2):
        with pytest.raises(ValueError, match="asked the same questions"):
            pass_at_k_metrics(models)


def test_doctests():
    outcome = doctest.testmod(sharpening)
    assert outcome.attempted and not outcome.failed
