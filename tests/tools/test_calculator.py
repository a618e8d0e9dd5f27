"""Exact arithmetic: values worked out by hand, and against Python's fractions."""

import random
from fractions import Fraction

import pytest

from rlm.tools.calculator import DEEPEST, DIGITS, LONGEST, CalculatorError, calculate, value_of

VALUES = {
    "12*7": "84", "48/2": "24", "1 - 0.9": "0.1", ".5 + 5.": "5.5", "10/4": "2.5", "2/3": "2/3",
    "1,234 * 2": "2468", "15% * 80": "12", "2^3^2": "512", "-2^2": "-4", "2^-1": "0.5",
    "(1/3 + 0.25)^2": "49/144", "--5": "5", "3 - -2": "5", "0^0": "1", "6 × 7 ÷ 2": "21",
    "7 − 9": "-2", "2**5": "32", "(-1)^99999999999999999": "-1", "1/1024": "0.0009765625",
    "0.1 + 0.2": "0.3", "10^20 + 1": "100000000000000000001", "8/4/2": "1", "(((5)))": "5",
    "0.000000000001": "0.000000000001", "1/8192": "1/8192",
}  # fmt: skip


@pytest.mark.parametrize("expression, value", VALUES.items())
def test_values(expression, value):
    assert calculate(expression) == value


WRONG = {
    "": "at the end", "1 +": "at the end", "* 3": r"before '\*'", "1 / 0": "division by zero",
    "0^-1": "division by zero", "(1": "not closed", "1)": "one too many", "2 3": "one too many",
    "1,23": "','", "x + 1": "'x'", "__import__('os')": "'_'", "2^0.5": "whole number",
    "9" * (LONGEST + 1): "characters", "9^9^9": "digits", "10^401": "digits", "²": "'²'",
    "٣": "'٣'", "(" * (DEEPEST + 1) + "1": "inside one another", "1e9": "'e'", "nan": "'n'",
}  # fmt: skip


@pytest.mark.parametrize("expression, why", WRONG.items())
def test_what_has_no_value_is_told(expression, why):
    with pytest.raises(CalculatorError, match=why):
        calculate(expression)


def expression(rng: random.Random, depth: int) -> tuple[str, Fraction]:
    """Return a random expression and its value, made together; ZeroDivisionError may come."""
    if depth == 0 or rng.random() < 0.2:
        digits = f"{rng.randrange(1000)}{rng.choice(['', '', '.', '.25', '.5'])}"
        return digits, Fraction(digits.rstrip("."))
    kind = rng.choice("+-*/^m(")
    left, one = expression(rng, depth - 1)
    if kind == "m":
        return f"-({left})", -one
    if kind == "(":
        return f"( {left} )", one
    if kind == "^":
        power = rng.randrange(4)
        return f"({left})^{power}", one**power
    right, other = expression(rng, depth - 1)
    value = {"+": lambda: one + other, "-": lambda: one - other, "*": lambda: one * other,
             "/": lambda: one / other}[kind]()  # fmt: skip
    return f"({left}) {kind} ({right})", value


def test_random_expressions_have_their_values():
    rng, right = random.Random(0), 0
    for _ in range(2000):
        try:
            text, value = expression(rng, 4)
        except ZeroDivisionError:
            continue
        if len(text) <= LONGEST and max(abs(value.numerator), value.denominator) < 10**60:
            assert value_of(text) == value, text
            right += 1
    assert right > 1000


def test_noise_raises_nothing_else():
    rng = random.Random(1)
    for _ in range(5000):
        text = "".join(rng.choice("0123456789.,+-*/^()% x\n٣") for _ in range(rng.randrange(40)))
        try:
            assert len(calculate(text)) <= 2 * DIGITS + 2
        except CalculatorError as error:
            assert 0 < len(str(error)) < 200
