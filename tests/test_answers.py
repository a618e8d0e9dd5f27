"""Final answers: read exactly, compared exactly, in linear time, and never with an exception.

`data/answers_own.jsonl` is a table of completions with their verdicts. A larger one may lie in
../shared/conformance beside the repository; it is read from there when it does.
"""

import json
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewards import correctness
from rlm.answers import REASONS, Answer, equal, is_correct, read_answer, read_gold, read_value
from rlm.formats import FORMATS

ROOT = Path(__file__).parent.parent
TABLES = (
    ROOT / "tests/data/answers_own.jsonl",
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


# Value parser. One line a case: text | canonical spelling, "-" where it must be unreadable.
VALUES = r"""
42 | 42
042 | 42
-0 | 0
+42 | 42
42. | 42
.5 | 0.5
-.5 | -0.5
1,234,567.89 | 1234567.89
1,23 | -
12,34,567 | -
1,2345 | -
1234,567 | -
1.234.567 | -
1 234 | -
1_000 | -
$1,234.50 | 1234.5
-$5 | -5
The change is -$5. | -5
$-5 | -5
18$ | 18
US$18 | 18
USD18 | -
¥1,000 | 1000
1/2 | 0.5
-10/9 | -10/9
1 / 2 | 0.5
3 1/2 | 3.5
-3 1/2 | -3.5
41 43/42 | -
1/2/3 | -
1/0 | -
1.5/2 | -
1e3 | 1000
3.0E+8 | 300000000
1e400/1 | -
1e401 | -
1e-401 | -
1e9999999 | -
1.5x10^3 | 1500
1.5 × 10^{-3} m | 0.0015
2 \cdot 10^{2} | 200
10^2 | -
50% | 50%
50 percent | 50%
50\% | 50%
12 1/2 pct | 12.5%
50%% | -
%50 | -
\frac12 | 0.5
\frac{1}{-2} | -0.5
3\frac{1}{2} | 3.5
\boxed{\frac{\text{1}}{2}} | 0.5
\frac{1}{2}3 | -
\frac123 | -
x\frac12 | -
\frac{1+\sqrt{5}}{2} | -
\sqrt{4} | -
2\pi | -
\binom{4}{2} | -
1{,}234 | 1234
1{,}23 | -
1\,234 | 1234
32,\! 349 | 32349
4\text{2} | -
\text{4}\text{2} | -
\boxed{4}\boxed{2} | -
42\text{ dollars} | 42
41 \text{ or } 42 | -
$\left( \frac{1}{3} \right)$ | 1/3
\(42\) | 42
45^\circ | 45
5 cm^2 | 5
5 \text{ cm}^{2} | 5
5m² | 5
4² | -
5x^2 | -
x = 42 | 42
x_1 = -5 | -5
Total cost = $42 | 42
42 = x | -
x != 42 | -
x \neq 42 | -
x > 42 | -
more than 42 | -
5600 more calories than her sister | 5600
at least 42 | -
not 42 | -
isn't 42 | -
anything but 42 | -
notebooks: 42 | 42
42 and 43 | -
41, 42 | -
40-45 | -
–5 | -
− 5 | -5
is -5 | -5
is - 5 | -
10 - x | -
10+John's age | -
John's age plus 10 | -
--5 | -
±5 | -
-(42) | -
-USD 42 | -
minus 42 | -
6*7 | -
2^3 | -
4**2 | -
5! | -
5 dollars! | 5
**42** | 42
*-42* | -42
`42` | 42
f(42) | -
(42) | 42
42 egg(s) | 42
a42 | -
42b | -
0x2A | -
0xAB | -
192.168.0.42 | -
2y | -
3i | -
5m | 5
35 cm | 35
18-inch | 18
60 km/h | 60
$5/hour | 5
5k | -
5 K | -
1.8 billion | -
3 hundred | -
2 dozen | -
0.333... | -
...42 | -
3.1\overline{3} | -
答案是 42 | 42
4½ | -
４２ | -
٤٢ | -
① | -
42元 | 42
inf | -
nan | -
... | -
"""
VALUE_CASES = [line.rsplit(" | ", 1) for line in VALUES.strip().splitlines()]


@pytest.mark.parametrize(("text", "canonical"), VALUE_CASES)
def test_value(text, canonical):
    assert (read_value(text).canonical or "-") == canonical


@pytest.mark.parametrize(
    "text",
    ["42\u200b", "4\u200b2", "\u202e42", "42\x00", "42\ud800", "\ufeff42", "42\ufe0f\u20e3",
     "4 2", "4\n2", "3\n1/2"],
)  # fmt: skip
def test_invisible_characters_and_split_digits_are_no_number(text):
    assert read_value(text).value is None


def test_length_limit_is_400_characters_after_stripping():
    assert read_value("  " + "7" * 400 + "\n").value == int("7" * 400)
    assert read_value("7" * 401).reason == "too_long"
    huge = read_value("9" * 395 + "e400")
    assert huge.value == int("9" * 395) * 10**400
    assert huge.canonical == "9" * 395 + "0" * 400
    assert read_value("1e-400").canonical == "0." + "0" * 399 + "1"


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
        ("50", "50%", False),
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
@example(Answer(Fraction(1, 2)), Answer(Fraction(50), True))
def test_equality_is_reflexive_and_symmetric_within_one_notation(one, other):
    assert equal(one, one)
    assert not equal(one, Answer(reason="empty")) and not equal(Answer(reason="empty"), one)
    if one.percent == other.percent:
        assert equal(one, other) == equal(other, one) == (one.value == other.value)
    elif one.percent and equal(other, one):
        assert equal(one, other)  # what 50% accepts as a gold, it equals as a prediction


@given(NUMBERS)
def test_canonical_spelling_reads_back_as_the_same_answer(answer):
    assert read_value(answer.canonical) == answer


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_decimals_are_read_exactly(number, places):
    digits = str(abs(number)).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    grouped = f"{int(digits[: len(digits) - places]):,}"
    text = f"{sign}${grouped}.{digits[len(digits) - places :]}"
    assert read_value(text).value == Fraction(number, 10**places)


@given(st.integers(0, 999), st.integers(0, 999), st.sampled_from([" ", ", ", "; ", " or ", "\n"]))
def test_two_numbers_are_never_one(one, other, between):
    assert read_value(f"{one}{between}{other}").value is None


PIECES = st.sampled_from(
    ["42", "1,234", ".", ",", "-", "+", "$", "%", "\\", "\\frac", "\\boxed", "\\text", "{", "}",
     "(", ")", "*", "**", "^", "=", "/", "e9", "x 10^", " ", "\n", "####", "answer is ", "or",
     "<", "<think>", "</think>", "<reasoning>", "</reasoning>", "<answer>", "</answer>",
     "<end_working_out>", "<SOLUTION>", "</SOLUTION>", "\ud800", "\u202e", "²", "½", "−", "\x00"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join), st.binary(), st.none())


@given(TEXTS, st.sampled_from(sorted(FORMATS)))
def test_any_completion_gets_a_value_or_a_reason(completion, name):
    answer = read_answer(completion, name)
    assert (answer.value is None) == (answer.reason in REASONS)
    assert (answer.value is None) == (answer.canonical is None)
    assert correctness(completion, "42", name) in (0.0, 1.0)


@given(st.lists(PIECES, max_size=30).map("".join))
def test_two_further_digits_in_a_tag_never_keep_its_value(text):
    # Whatever stands around it, a text with a second number states no number.
    assert read_value(f"{text} 17 ; 23").value is None


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
    cases = [case for path in TABLES if path.exists() for case in read_table(path)]

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
    "pattern",
    ["#### {}\n", "\\boxed{{{}}} ", "answer is {}. ", "#### 42 {}\n", "answer is 42 of a{}b\n"],
)
def test_a_megabyte_of_differing_statements_takes_at_most_50_ms(pattern):
    text = "".join(pattern.format(number) for number in range(MEGABYTE // 14))[:MEGABYTE]
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
