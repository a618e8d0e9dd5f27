"""Final answers: read exactly, compared exactly, in linear time, and never with an exception.

`data/answers_own.jsonl` is a table of completions with their verdicts. A larger one may lie in
../shared/conformance beside the repository; it is read from there when it does.
"""

import doctest
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards import correctness
from rlm.answers import formats, reading, values
from rlm.answers.formats import FORMATS
from rlm.answers.reading import (
    REASONS,
    Answer,
    equal,
    is_correct,
    read_answer,
    read_gold,
    read_value,
)

ROOT = Path(__file__).resolve().parents[2]
TABLES = (
    ROOT / "tests/fixtures/answers_own.jsonl",
    ROOT / "../shared/conformance/answers_own.jsonl",
    ROOT / "../shared/conformance/answers_real.jsonl",
)


def read_table(path: Path) -> list[dict]:
    if not path.exists():
        pytest.skip(f"{path} is not here: it is checked only beside the shared folder")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def exact(canonical: str | None) -> tuple[Fraction, bool] | None:
    return canonical and (Fraction(canonical.rstrip("%")), canonical.endswith("%"))


@pytest.mark.parametrize("path", TABLES, ids=("own", "shared own", "shared real"))
def test_conformance_table(path):
    for case in read_table(path):
        completion, name = case["completion"], case["format"]
        said = f"{case['id']}: {case['why']}"
        assert correctness(completion, case["gold"], name) == case["expected_reward"], said
        if case["group"] != "hostile":
            canonical = read_answer(completion, name).canonical
            assert exact(canonical) == exact(case["expected_answer"]), said


@pytest.mark.parametrize("module", [reading, formats, values], ids=lambda module: module.__name__)
def test_examples_in_the_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted >= 3 and outcome.failed == 0


# Extraction: format, completion, canonical spelling or reason.
EXTRACTIONS = [
    ("think", "<think>6 * 7</think>42", "42"),
    ("think", "6 * 7</think>42", "42"),
    ("think", "<think>6 * 7", "no_close"),
    ("think", "42", "no_close"),
    ("think", "<think>a</think>42</think>42", "repeated"),
    ("think", "<think>a</think>42<think>", "repeated"),
    ("think", "<think>42</think> \n", "empty"),
    ("think", "<think>a</think>\n<answer>42</answer> bye 7", "42"),
    ("think", "<think>a</think>\n<answer>42", "no_tag"),
    ("think", "<think>a</think>42</answer>", "no_tag"),
    ("think", '<think>a</think><answer value="42">41</answer>', "no_tag"),
    ("xml", "<reasoning>a</reasoning><answer>42</answer>", "42"),
    ("xml", "<answer>42</answer>", "42"),
    ("xml", "a</reasoning><answer>42</answer>", "42"),
    ("xml", "<reasoning>a<answer>42</answer>", "no_close"),
    ("xml", "<reasoning>a</reasoning><answer>42</answer><reasoning>b", "no_close"),
    ("xml", "<reasoning>a</reasoning></reasoning><answer>42</answer>", "repeated"),
    ("xml", "<reasoning>a</reasoning>42", "no_tag"),
    ("xml", "<reasoning>a</reasoning></answer>42<answer>", "no_tag"),
    ("xml", "<reasoning>a</reasoning><answer>42</answer><answer>42</answer>", "repeated"),
    ("xml", "<reasoning>a</reasoning><answer>42<b></answer>", "unparsable"),
    ("xml", "<reasoning>a</reasoning><answer>41 < 42</answer>", "unparsable"),
    ("xml", "<reasoning>a</reasoning><answer>41</answer> or rather 42", "41"),
    ("xml", "<reasoning>a</reasoning><answer>41</answer> #### 42", "several_values"),
    ("xml", r"<reasoning>a</reasoning><answer>41</answer> \boxed{42}", "several_values"),
    ("xml", r"<reasoning>a</reasoning>\boxed{41}<answer>42</answer>", "several_values"),
    ("xml", "<reasoning>#### 41</reasoning><answer>42</answer>", "42"),
    ("solution", "<start_working_out>a<end_working_out><SOLUTION>42</SOLUTION>", "42"),
    ("solution", "<start_working_out><SOLUTION>42</SOLUTION><end_working_out>", "no_tag"),
    ("solution", "<start_working_out>a<end_working_out><SOLUTION></SOLUTION>", "empty"),
    ("plain", "#### 42\nNot 43.", "42"),
    ("plain", "#### 41\n#### 42", "several_values"),
    ("plain", "#### 42.0\n#### 42", "42"),
    ("plain", "#### \n42", "empty"),
    ("plain", r"The answer is 7. \boxed{41} #### 42", "42"),  # the first kind decides
    ("plain", r"The answer is 7. \boxed{42} See page 3.", "42"),
    ("plain", r"\boxed{\boxed{42}}", "42"),
    ("plain", r"\boxed{\frac{84}{\text{2}}}", "42"),
    ("plain", r"\boxed{42} or \boxed{43}", "several_values"),
    ("plain", r"\boxed{42} and \boxed{43", "empty"),  # a box that is not closed states nothing
    ("plain", "The answer is 42. I had 6 * 7.", "42"),
    ("plain", "FINAL ANSWER: 42", "42"),
    ("plain", "**Answer:** 42", "42"),
    ("plain", "The answer is:\n42\nWe had 6 * 7.", "42"),
    ("plain", "answer = $1,234.50.", "1234.5"),
    ("plain", "The answer is 41. No, the answer is 42.", "several_values"),
    ("plain", "answer is 42. answer is 42.5", "several_values"),
    ("plain", "answer: 42\nANSWER: 43", "several_values"),
    ("plain", "#### 42\n#### 42.5", "several_values"),
    ("plain", "#### 42 ####", "42"),
    ("plain", r"\boxed{42} \boxed{7 \boxed{42}}", "several_values"),
    ("plain", r"\boxed{42} \boxed{\boxed{42}}", "42"),
    ("plain", "#### 42\n#### 42.0 #### 42\n", "several_values"),
    ("plain", "answer is 42. answer is not answer is 42. ", "unparsable"),
    ("plain", "The answer is unknown. There are 42.", "unparsable"),
    ("plain", "The answer isn't 42.", "unparsable"),
    ("plain", "She has 42 eggs.", "42"),
    ("plain", "6 * 7 = 42", "several_values"),
    ("plain", "word " * 100 + "42", "too_long"),
]


@pytest.mark.parametrize(("name", "completion", "outcome"), EXTRACTIONS)
def test_extraction(name, completion, outcome):
    answer = read_answer(completion, name)
    assert (answer.canonical or answer.reason) == outcome
    assert answer.reason is None or answer.reason in REASONS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("completion", [None, b"42", 42, ["42"], "", " \n\t\u00a0"])
def test_what_is_no_text_states_nothing(completion, name):
    assert read_answer(completion, name) == Answer(reason="empty")
    assert correctness(completion, "0", name) == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("50%", "50%", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", "5", False),
        ("0.5", "50%", True),
        ("50", "50%", True),
        ("5", "50%", False),
        ("5000", "50%", False),
        ("5%", "50%", False),
        ("1/3", "0.3333333333333333", False),  # no tolerance
        ("10000000000000001", "10000000000000000", False),  # equal as floats
        ("0.1", "1/10", True),
        ("nothing", "nothing", False),  # no answer equals nothing, not even no answer
    ],
)
def test_equality(prediction, gold, expected):
    assert equal(read_value(prediction), read_value(gold)) is expected


NUMBERS = st.builds(Answer, st.fractions(max_denominator=10**9), st.booleans())


@given(NUMBERS, NUMBERS)
@example(Answer(Fraction(50), True), Answer(Fraction(1, 2)))
@example(Answer(Fraction(50), True), Answer(Fraction(50)))
def test_equality_is_reflexive_and_symmetric(one, other):
    assert equal(one, one)
    assert not equal(one, Answer(reason="empty")) and not equal(Answer(reason="empty"), one)
    assert equal(one, other) == equal(other, one)
    if one.percent == other.percent:
        assert equal(one, other) == (one.value == other.value)
    elif one.percent:
        assert equal(one, Answer(one.value)) and equal(one, Answer(one.value / 100))


PIECES = st.sampled_from(
    ["42", "1,234", "0", "7", ".", ",", "-", "+", "$", "%", "\\", "\\frac", "\\boxed", "\\text",
     "{", "}", "(", ")", "*", "**", "^", "=", "/", "e9", "x 10^", " ", "\n", "####",
     "answer is ", "or", "<", "<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>",
     "</answer>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>", "\ud800", "\u202e", "²", "½",
     "−", "\x00"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))
FRAMES = [
    ("think", "<think></think>", ""),
    ("think", "<think>", "</think>42"),
    ("think", "<think></think>\\boxed{", "}"),
    ("xml", "<reasoning></reasoning><answer>", "</answer>"),
    ("xml", "<reasoning>", "</reasoning><answer>42</answer>"),
    ("solution", "<start_working_out><end_working_out><SOLUTION>", "</SOLUTION>"),
    ("plain", "", ""),
    ("plain", "answer is ", "\n42"),
    ("plain", "\\boxed{" * 3, "}" * 3),
]


@given(TEXTS, st.sampled_from(FRAMES))
@example("1/0", FRAMES[0])
@example("1e9999999", FRAMES[0])
@example("\\frac{1}{0}", FRAMES[2])
def test_any_completion_gets_a_value_or_a_reason(text, frame):
    name, before, after = frame
    completion = before + text + after
    answer = read_answer(completion, name)
    assert (answer.value is None) == (answer.reason in REASONS)
    assert (answer.value is None) == (answer.canonical is None)
    assert correctness(completion, "42", name) in (0.0, 1.0)


def test_gold_is_what_follows_the_last_marker():
    assert read_gold("5 + 5 = <<5+5=10>>10\n#### 1,450").canonical == "1450"
    assert read_gold("#### 1\n#### 2").canonical == "2"
    assert read_gold("-3/4").canonical == "-0.75"


@pytest.mark.parametrize(
    "gold", ["", "forty-two", "42 or 43", "#### ", "1/0", "x\n####\n", 42, None]
)
def test_unreadable_gold_is_an_error_that_shows_it(gold):
    with pytest.raises(ValueError, match=r"gold answer .*number, such as"):
        read_gold(gold)
    with pytest.raises(ValueError, match="gold answer"):
        is_correct("42", gold, "plain")


def test_unknown_format_is_an_error():
    with pytest.raises(ValueError, match="known are think, xml, solution, plain"):
        read_answer("42", "markdown")
