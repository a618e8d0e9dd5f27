"""The cost of a verdict: many a second, and little for any megabyte."""

import json
import time
from pathlib import Path

import pytest

from rewards import correctness
from rlm.answers.reading import read_answer

TABLE = Path(__file__).parents[1] / "fixtures" / "answers_own.jsonl"


def seconds(work, tries: int = 5) -> float:
    """Processor seconds of the fastest try: what the work itself costs on a busy machine."""
    times = []
    for _ in range(tries):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
        if times[-1] < 0.02:
            break
    return min(times)


def test_ten_thousand_verdicts_a_second():
    with TABLE.open(encoding="utf-8") as lines:
        cases = [json.loads(line) for line in lines]

    def judge():
        for case in cases:
            correctness(case["completion"], case["gold"], case["format"])

    assert len(cases) / seconds(judge, tries=10) >= 10_000


MEGABYTE = 1_000_000
UNITS = [
    "{", "}", "{}", "{,}", "1{,}", "(", "[", "\\", "\\boxed", "\\boxed{", "\\boxed{42}",
    "\\boxed{}", "\\boxed{{42}}", "\\boxed{{}{}{}{{{", "\\boxed ", "\\frac", "\\frac{1}{",
    "\\text{", "\\left(", "#", "#### ", "####\n", "#### 42\n", "answer", "answer is ", "answer: ",
    "answer is 42. ", "answer is 42\n", "answer * ", "answer is ....a", "Answer is=:*", "a", "A",
    "7", "7 ", "0", "1e9", "1,", "1,234,", ",", ".", ".a", "-", "+", "*", "**", "/", "%", "$",
    "=", "<", "^", "_", "`", " ", "\n", "\r\n", "\t", "\u00a0", "\u2009", "\u2212", "²", "½",
    "\x00", "\ud800", "\u200b", "\U0001f600", "<think>", "</think>", "<answer>", "</answer>",
    "<answer>42</answer>", "<reasoning>", "</reasoning>", "<reasoning></reasoning>",
    "<start_working_out>", "<end_working_out>", "<SOLUTION>", "</SOLUTION>",
    "#### 42 \\boxed{42} answer is 42. ", "She had 6 bags of 7 apples. ",
]  # fmt: skip
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


@pytest.mark.parametrize("unit", UNITS)
def test_a_megabyte_of_anything_takes_at_most_50_ms(unit):
    body = (unit * (MEGABYTE // len(unit) + 1))[:MEGABYTE]
    for name, before, after in FRAMES:
        text = before + body + after
        assert seconds(lambda text=text, name=name: read_answer(text, name)) <= 0.05, name


@pytest.mark.parametrize(
    "pattern", ["#### {}\n", "\\boxed{{{}}} ", "answer is {}. ", "#### {}\n#### {} \n"]
)
@pytest.mark.parametrize("words", ["", "42 "])
def test_a_megabyte_of_differing_statements_takes_at_most_50_ms(pattern, words):
    # Numbers that differ; or one number in 66,000 wordings, spelled in letters.
    letters = str.maketrans("0123456789", "abcdefghij")
    endings = (str(number).translate(letters) if words else number for number in range(66_000))
    text = "".join(pattern.format(f"{words}{ending}", f"{ending}") for ending in endings)
    text = text[:MEGABYTE]
    assert seconds(lambda: read_answer(text, "plain")) <= 0.05
    assert read_answer(text, "plain").value is None


def test_100_more_statements_of_a_value_are_read_and_endless_repetition_of_one():
    lines = [f"#### {'0' * zeros}42" for zeros in range(102)]
    assert read_answer("\n".join(lines[:101]), "plain").canonical == "42"
    assert read_answer("\n".join(lines), "plain").reason == "repeated"
    assert read_answer("#### 42\n####  42\n" * 2001, "plain").reason == "repeated"
    assert read_answer("The answer is 42. " + "Answers. " * 200, "plain").canonical == "42"
    loop = "The answer is 42. So "
    assert read_answer(loop * 50_000 + "the answ", "plain").canonical == "42"
    assert read_answer(loop * 50_000 + "the answer is 43.", "plain").reason == "several_values"
    assert read_answer(r"\boxed{42} so " * 50_000 + r"\boxed{4", "plain").value is None
