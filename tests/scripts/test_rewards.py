"""The reward functions on turns whose worth is worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import REWARDS, check_weights, correctness, score
from rlm.answers.formats import FORMATS
from rlm.errors import RunError
from rlm.records import Example, Rollout

APPLES = Example("apples-1", "Calculate 23 + 15 + 8", "46")
WORKED = (
    "<think>\n1. 23 + 15 is 38.\n2. 38 + 8 is 46.\n"
    "3. Verification: 23 + 15 + 8 is indeed 46.\n</think>\n46"
)
XML = "<reasoning>\n6 * 7 = 42\n</reasoning>\n<answer>\n42\n</answer>"


def reward(name: str, text: str, format_name: str) -> float:
    return REWARDS[name](APPLES, text, format_name)


def test_a_worked_turn_earns_everything():
    assert {name: reward(name, WORKED, "think") for name in REWARDS} == dict.fromkeys(REWARDS, 1.0)


@pytest.mark.parametrize(
    ("completion", "gold", "name", "expected"),
    [
        ("<think>a</think>42", "42", "think", 1.0),
        ("<think>a</think>42.0", "x\n#### 42", "think", 1.0),
        ("<think>a</think>420", "42", "think", 0.0),
        ("<think>a</think>42 or 43", "42", "think", 0.0),
        ("<think>42", "42", "think", 0.0),
        (None, "42", "think", 0.0),
        (XML, "42", "xml", 1.0),
    ],
)
def test_correctness(completion, gold, name, expected):
    assert correctness(completion, gold, name) == expected


def test_correctness_with_unreadable_gold_is_an_error():
    with pytest.raises(ValueError, match="gold answer 'many'"):
        correctness(XML, "many", "xml")


@pytest.mark.parametrize(
    ("text", "strict", "soft"),
    [
        (XML, 1.0, 1.0),
        (XML + "\n", 1.0, 1.0),
        (XML + " bye", 0.0, 1.0),
        (XML.replace("</answer>", ""), 0.0, 0.0),
        (XML + XML, 0.0, 0.0),
    ],
)
def test_format_rewards(text, strict, soft):
    assert reward("format_strict", text, "xml") == strict
    assert reward("format_soft", text, "xml") == soft


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (XML, "xml", 1.0),
        (XML.replace("<reasoning>", ""), "xml", 0.75),  # 3 of 4 tags
        (XML.replace("</answer>", ""), "xml", 0.75),
        ("<answer>" + XML, "xml", 0.75),  # one tag stands twice
        (XML + "\nBye", "xml", 0.997),  # 3 characters after the end
        (XML + "a" * 2000, "xml", 0.0),  # never below zero
        ("42", "xml", 0.0),
        ("<think>a</think>42", "think", 1.0),
        ("<think>a</think>\n42\nBye now", "think", 0.993),  # 7 characters after the first line
        ("a</think>42", "think", 0.5),
        ("42", "plain", 0.0),
    ],
)
def test_tag_count(text, name, expected):
    assert reward("tag_count", text, name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("42", 1.0), ("-1,000", 1.0), ("42.0", 1.0), ("4.2", 0.0), ("42%", 0.0), ("many", 0.0)],
)
def test_integer(answer, expected):
    assert reward("integer", f"<think>a</think>{answer}", "think") == expected


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("1. a\n2. b\n3. c", 1.0),
        ("Step 1: a\nstep 2: b\n  3) c", 1.0),
        ("1. a\n2. b", 2 / 3),
        ("1. a\n1. b\n4. c", 1 / 3),
        ("1.5 + 2.5 is 4.", 0.0),  # a decimal is no step
        ("We have 1. and 2. and 3. here", 0.0),  # not at the start of a line
    ],
)
def test_steps(reasoning, expected):
    assert reward("steps", f"<think>{reasoning}</think>4", "think") == pytest.approx(expected)
    assert reward("steps", f"<think>a</think>{reasoning}", "think") == 0.0  # not the answer's


@pytest.mark.parametrize(
    ("reasoning", "expected"),
    [
        ("3. Verification: 23 + 15 + 8 is indeed 46.", 1.0),
        ("Let me check. 23 + 15 + 8 = 46, as it should be.", 1.0),
        ("I verify it:\n46 - 8 is 38.\n23 + 15 + 8 gives 46.", 1.0),
        ("Verification: 23 + 15 + 8 is indeed 45.", 0.0),  # another result
        ("23 + 15 + 8 is 46.", 0.0),  # no word of checking
        ("23 + 15 + 8 is 46. I have checked it.", 0.0),  # states nothing after it
        ("Check: 46", 0.0),  # no statement
        ("He paid by cheque: 46 - 0 = 46.", 0.0),
    ],
)
def test_verification(reasoning, expected):
    assert reward("verification", f"<think>{reasoning}</think>46", "think") == expected


def test_verification_needs_an_answer_to_verify():
    assert reward("verification", "<think>Verification: it is 46.", "think") == 0.0


@given(st.text(), st.sampled_from(sorted(FORMATS)), st.sampled_from(sorted(REWARDS)))
def test_every_reward_takes_any_text(text, format_name, name):
    assert 0.0 <= reward(name, text, format_name) <= 1.0


def rollout(text: str) -> Rollout:
    return Rollout([1], [0.0], text, "stop")


def test_score_is_the_weighted_sum():
    weights = {"correctness": 2.0, "steps": 0.5, "integer": 0.0}
    scored = score(APPLES, rollout("<think>1. a</think>46"), "think", weights)
    assert scored.parts == {"correctness": 1.0, "steps": 1 / 3, "integer": 1.0}
    assert scored.total == pytest.approx(2.0 + 0.5 / 3)
    assert scored.reason is None


def test_score_counts_the_unreadable_apart():
    scored = score(APPLES, rollout("<think>46"), "think", {"correctness": 1.0})
    assert (scored.total, scored.reason) == (0.0, "no_close")


def test_a_reward_that_breaks_names_itself_and_the_example(monkeypatch):
    def broken(example, text, format_name):
        return 1 / 0

    monkeypatch.setitem(rewards.REWARDS, "steps", broken)
    with pytest.raises(RuntimeError, match=r"reward steps .*apples-1.*zero") as caught:
        score(APPLES, rollout(WORKED), "think", {"steps": 1.0})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.setitem(rewards.REWARDS, "steps", lambda *_: float("nan"))
    with pytest.raises(RunError, match="reward steps returned nan on example apples-1"):
        score(APPLES, rollout(WORKED), "think", {"steps": 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"corectness": 1.0}, "'corectness': known are correctness, format_strict"),
        ({"correctness": float("nan")}, "weight nan of reward correctness: it must be finite"),
        ({"correctness": float("inf")}, "finite"),
        ({"correctness": "1"}, "weight '1' of reward correctness: give it as a number"),
        ({"correctness": True}, "give it as a number"),
        ({"correctness": 0.0, "steps": 0}, "at least one must differ from 0"),
        ({}, "at least one must differ from 0"),
    ],
)
def test_bad_weights_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        check_weights(weights)
    with pytest.raises(ValueError, match=message):
        score(APPLES, rollout(WORKED), "think", weights)


def test_good_weights_pass():
    check_weights({"correctness": 1.0, "steps": 0, "tag_count": -0.5})
