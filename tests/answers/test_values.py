"""The value parser: a short text states exactly one number, or none."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.answers.values import Answer, read_value

# One line a case: text | canonical spelling, "-" where it must be unreadable.
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
42 at most | -
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


NUMBERS = st.builds(Answer, st.fractions(max_denominator=10**9), st.booleans())


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


PIECES = st.sampled_from([*"0147.,-+$%(){}*^=/_ \n", "\\frac", "\\text{", "e9", "or", "²", "½"])


@given(st.lists(PIECES, max_size=30).map("".join))
def test_a_text_with_a_second_number_states_none(text):
    assert read_value(f"{text} 17 ; 23").value is None
