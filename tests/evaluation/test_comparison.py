"""A comparison worked out by hand, its parts as a property, and its card."""

import doctest

import numpy
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from rlm.evaluation import comparison, markdown
from rlm.evaluation.comparison import brief, card, compare, items, largest_number, parts
from rlm.evaluation.measure import Evaluation
from rlm.records import Example
from rlm.seeds import derive

VERDICTS = st.sampled_from(["right", "wrong", "unreadable"])


def row(verdict: str, last_number: bool = False, reason="", finish="stop", id="") -> dict:
    reason = reason or ("no_close" if verdict == "unreadable" else "")
    made = {"id": id, "verdict": verdict, "reason": reason, "finish": finish}
    made["answer"] = "" if verdict == "unreadable" else "7"
    made["right_samples"] = int(verdict == "right")
    return made | {"last_number": last_number or verdict == "right"}


def evaluation(name: str, *rows: dict) -> Evaluation:
    return Evaluation(name, [each | {"id": str(i)} for i, each in enumerate(rows)],
                      {"samples": 1})  # fmt: skip


def examples(n: int) -> list[Example]:
    return [Example(str(i), f"Calculate {10**i} + 1", "2", None, "", 2 + i % 2) for i in range(n)]


BASE = evaluation(
    "base",
    row("unreadable", True), row("unreadable"), row("wrong"), row("right"),
    row("right"), row("unreadable", reason="no_tag", finish="length"),
)  # fmt: skip
TUNED = evaluation(
    "tuned",
    row("right"), row("right"), row("right"), row("wrong"),
    row("unreadable", True, reason="several_values"), row("wrong", finish="length"),
)  # fmt: skip
LAST = evaluation("last", *(row("right") for _ in range(6)))


def test_by_hand():
    found = compare([BASE, TUNED, LAST], examples(6), resamples=100)
    base, tuned, _ = found["models"]
    assert base["strict"]["count"] == 2 and tuned["strict"]["share"] == 0.5
    # base: the unreadable with the right number counts leniently
    assert base["lenient"]["count"] == 3 and tuned["lenient"]["count"] == 4
    assert base["unreadable"]["count"] == 3 and base["wrong"]["count"] == 1
    assert {k: v["count"] for k, v in base["reasons"].items()} == {"no_close": 2, "no_tag": 1}
    assert tuned["truncated"]["count"] == 1 and tuned["reasons"]["several_values"]["share"] == 1 / 6
    change = found["differences"][0]
    assert change["parts"] == {"format_gain": 2, "reasoning_gain": 1, "format_loss": 1,
                               "reasoning_loss": 1, "number_was_right": 1}  # fmt: skip
    assert (change["strict"]["gained"], change["strict"]["lost"]) == (3, 2)
    assert change["strict"]["difference"] == pytest.approx(1 / 6)
    assert change["strict"]["p"] == 1.0  # 3 against 2
    # leniently: gained 1 (item 1), 1 (item 2); lost item 3
    assert (change["lenient"]["gained"], change["lenient"]["lost"]) == (2, 1)


def test_each_is_compared_with_the_first_and_with_the_one_before():
    found = compare([BASE, TUNED, LAST], examples(6), resamples=10)
    pairs = [(each["before"], each["after"]) for each in found["differences"]]
    assert pairs == [("base", "tuned"), ("base", "last"), ("tuned", "last")]


def test_strata_hold_every_question_once():
    found = compare([BASE, TUNED], examples(6), resamples=10)
    # items 0, 2, 4 take 2 steps: base is right in item 4, tuned in 0 and 2
    two, three = found["by_steps"]
    assert (two["label"], two["questions"], three["label"], three["questions"]) == (2, 3, 3, 3)
    assert two["models"]["base"]["strict"]["count"] == 1
    assert two["models"]["tuned"]["strict"]["count"] == 2
    # 1, 10, 100, ... have 1 to 6 digits
    assert [each["label"] for each in found["by_digits"]] == [1, 2, 3, 4, 5, 6]


@given(st.lists(st.tuples(VERDICTS, VERDICTS, st.booleans(), st.booleans()), min_size=1))
def test_the_parts_add_up_to_the_difference(outcomes):
    before = evaluation("a", *(row(v, lenient) for v, _, lenient, _ in outcomes))
    after = evaluation("b", *(row(v, lenient) for _, v, _, lenient in outcomes))
    questions = [Example(str(i), "1", "1") for i in range(len(outcomes))]
    found = compare([before, after], questions, resamples=5)
    one, other = (model["strict"]["count"] for model in found["models"])
    change = found["differences"][0]
    kinds = change["parts"]
    gain = kinds["format_gain"] + kinds["reasoning_gain"]
    loss = kinds["format_loss"] + kinds["reasoning_loss"]
    assert gain - loss == other - one
    assert (gain, loss) == (change["strict"]["gained"], change["strict"]["lost"])
    assert change["strict"]["difference"] == (other - one) / len(outcomes)
    assert 0 <= kinds["number_was_right"] <= kinds["format_gain"]
    back = parts(list(zip(after.rows, before.rows, strict=True)))
    assert back["format_loss"] == kinds["format_gain"]
    assert back["reasoning_loss"] == kinds["reasoning_gain"]
    for model in found["models"]:
        assert sum(r["count"] for r in model["reasons"].values()) == model["unreadable"]["count"]
        whole = model["strict"]["count"] + model["wrong"]["count"] + model["unreadable"]["count"]
        assert whole == len(outcomes)


@given(st.lists(st.tuples(VERDICTS, VERDICTS), min_size=2, max_size=60), st.integers(0, 9))
def test_an_independent_computation_agrees(outcomes, seed):
    before = evaluation("a", *(row(v) for v, _ in outcomes))
    after = evaluation("b", *(row(v) for _, v in outcomes))
    questions = [Example(str(i), "1", "1") for i in range(len(outcomes))]
    found = compare([before, after], questions, seed=seed, resamples=200)
    change, model = found["differences"][0]["strict"], found["models"][0]["strict"]
    x, y = (numpy.array([o[k] == "right" for o in outcomes], float) for k in (0, 1))
    low, high = proportion_confint(x.sum(), len(x), 0.05, method="wilson")
    assert (model["low"], model["high"]) == pytest.approx((low, high), abs=1e-9)
    table = [[((x == i) & (y == j)).sum() for j in (1, 0)] for i in (1, 0)]
    assert change["p"] == pytest.approx(mcnemar(table, exact=True).pvalue, abs=1e-9)
    expected = scipy.stats.bootstrap(
        (x, y), lambda x, y, axis: y.mean(axis=axis) - x.mean(axis=axis), paired=True,
        vectorized=True, n_resamples=200, method="percentile",
        rng=numpy.random.default_rng(derive("bootstrap", seed, "a", "b", "strict")),
    ).confidence_interval  # fmt: skip
    assert (change["low"], change["high"]) == pytest.approx(tuple(expected), abs=1e-9)


def test_only_the_same_questions_are_compared():
    shuffled = Evaluation("b", BASE.rows[::-1], BASE.summary)
    for evaluations in (
        [BASE],
        [BASE, shuffled],
        [BASE, Evaluation("c", BASE.rows[:5], BASE.summary)],
    ):
        with pytest.raises(ValueError, match="same examples"):
            compare(evaluations, examples(6))


@pytest.mark.parametrize(
    "question, gold, digits",
    [
        ("Calculate 1 + 2", "3", 1),
        ("Calculate 99 + 2", "101", 3),  # the answer counts
        ("He has $1,250.75.", "5", 4),  # the cents do not
        ("Pi is 3.14159", "3.14159", 1),
        ("A half of 007?", "3.5", 1),
        ("How many?", "12", 2),
        ("How many?", "1/2", 1),
    ],
)
def test_the_largest_number(question, gold, digits):
    assert largest_number(Example("1", question, gold)) == digits


def test_the_card_has_every_part_and_lines_up():
    metrics = compare([BASE, TUNED], examples(6), resamples=100)
    text = card(metrics, {"task": "addition", "seed": 0})
    for line in (
        "# base, tuned on the same 6 questions",
        "- task: addition",
        "| base  | 33.3 [9.7, 70.0]  | 50.0 [18.8, 81.2] |",
        "| base → tuned | strict  | +16.7 [",
        "| base → tuned | +1 (+16.7)        | +2 (33.3)   | +1 (16.7)      | -1 (16.7)   |",
        "| model | unreadable | no_close | no_tag   | several_values |",
        "| base  | 3 (50.0)   | 2 (33.3) | 1 (16.7) | 0 (0.0)        |",
        "## By the known solution's steps",
        "## By the digits of the largest number",
    ):
        assert line in text, line
    told = brief(metrics)
    assert "of +1 questions: format +1, reasoning +0" in told and "3 gained, 2 lost" in told


def test_several_samples_add_pass_at_k_and_the_counts_it_is_made_of():
    questions = examples(6)
    assert compare([BASE, TUNED], questions, resamples=9)["pass_at_k"] is None
    assert "base: right samples" not in items([BASE, TUNED], questions)[0]
    several = [
        Evaluation(e.name, [r | {"right_samples": 4 * r["right_samples"]} for r in e.rows],
                   {"samples": 8})
        for e in (BASE, TUNED)
    ]  # fmt: skip
    metrics = compare(several, questions, resamples=9)
    base, tuned = metrics["pass_at_k"]["models"]
    # Of 6 questions 2 and 3 have 4 of 8 samples right, the others none.
    assert [each["share"] for each in base["pass_at_k"]] == pytest.approx([1 / 6, 1 / 3])
    assert [each["share"] for each in tuned["pass_at_k"]] == pytest.approx([1 / 4, 1 / 2])
    assert [r["base: right samples"] for r in items(several, questions)] == [0, 0, 0, 4, 4, 0]
    assert "| base → tuned | pass@8 | 33.3 [" in card(metrics, {})
    assert "pass@1 stayed within noise" in brief(metrics)


def test_steps_that_are_not_known_have_no_table():
    questions = [Example(str(i), "?", "1") for i in range(6)]
    text = card(compare([BASE, TUNED], questions, resamples=9), {})
    assert "solution's steps" not in text and "largest number" in text


def test_items_hold_what_the_figures_are_made_of():
    table = items([BASE, TUNED], examples(6))
    assert len(table) == 6 and table[0]["steps"] == 2 and table[3]["digits"] == 4
    assert table[0]["base: verdict"] == "unreadable" and table[0]["base: last number right"] == 1
    assert [r["tuned: verdict"] for r in table] == [r["verdict"] for r in TUNED.rows]


def test_doctests():
    for module in (comparison, markdown):
        outcome = doctest.testmod(module)
        assert outcome.attempted and not outcome.failed
