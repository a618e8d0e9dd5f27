"""Exact arithmetic on fractions and decimals, by a small parser of our own: no eval, no float.

    calculate("12 * 7")          # "84"
    calculate("(1/3 + 0.25)^2")  # "49/144"

Time is bounded by the length of the text and by the digits of every number on the way.
"""

import re
from fractions import Fraction

LONGEST = 400  # characters of an expression
DIGITS = 400  # of a numerator or denominator on the way
DEEPEST = 40  # parentheses and powers inside one another
DECIMALS = 12  # of a result; one with more is written as a fraction
SIGNS = {"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "**": "^"}
TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+|[-+*/^()%]", re.ASCII)


class CalculatorError(ValueError):
    """What is wrong with an expression, in words for the model."""


def calculate(expression: str) -> str:
    """Return the value of an arithmetic expression: + - * / ^ % and parentheses, exactly.

    A whole number, a decimal of up to DECIMALS places, or else a fraction. % behind a number is a
    hundredth of it. CalculatorError, in words, for whatever has no value here.

    >>> calculate("48/2"), calculate("1 - 0.9"), calculate("10/4/3"), calculate("15% * 80")
    ('24', '0.1', '5/6', '12')
    """
    return written(value_of(expression))


def value_of(expression: str) -> Fraction:
    """Return the exact value of an expression; CalculatorError as `calculate`."""
    if len(expression) > LONGEST:
        raise CalculatorError(f"an expression has at most {LONGEST} characters")
    for sign, plain in SIGNS.items():
        expression = expression.replace(sign, plain)
    parser = _Parser(_tokens(expression))
    value = parser.sum(0)
    if parser.next:
        raise CalculatorError(f"{parser.next!r} is one too many")
    return value


def written(value: Fraction) -> str:
    """Return a number as text: whole, as a decimal, or as a fraction.

    >>> written(Fraction(7, 4)), written(Fraction(-2, 3)), written(Fraction(12, 1))
    ('1.75', '-2/3', '12')
    """
    if value.denominator == 1:
        return str(value.numerator)
    scaled = value * 10**DECIMALS
    if scaled.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(scaled.numerator)).rjust(DECIMALS + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-DECIMALS]}.{digits[-DECIMALS:].rstrip('0')}"


def _tokens(text: str) -> list[str]:
    """Return numbers and signs, blanks left out; CalculatorError for anything else."""
    found, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = TOKEN.match(text, at)
        if not match:
            raise CalculatorError(f"{text[at]!r} cannot be calculated; use numbers, + - * / ^ ( )")
        found.append(match[0])
        at = match.end()
    return found


class _Parser:
    """Recursive descent over tokens: each method returns the value of what it reads.

    depth: how many parentheses and powers it is inside of.
    """

    def __init__(self, tokens: list[str]):
        self._tokens, self._at = tokens, 0

    @property
    def next(self) -> str:
        """The token to be read, "" at the end."""
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def take(self) -> str:
        token = self.next
        self._at += 1
        return token

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.next in ("+", "-"):
            sign = self.take()
            more = self.product(depth)
            value = _bounded(value + more if sign == "+" else value - more)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while self.next in ("*", "/"):
            sign = self.take()
            more = self.signed(depth)
            if sign == "/" and not more:
                raise CalculatorError("division by zero")
            value = _bounded(value * more if sign == "*" else value / more)
        return value

    def signed(self, depth: int) -> Fraction:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(depth)
        return -value if negative else value

    def power(self, depth: int) -> Fraction:
        value = self.percentage(depth)
        if self.next != "^":
            return value
        self.take()
        return _raised(value, self.signed(_deeper(depth)))  # 2^3^2 is 2^9, 2^-1 a half

    def percentage(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.next == "%":
            self.take()
            value = _bounded(value / 100)
        return value

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.sum(_deeper(depth))
            if self.take() != ")":
                raise CalculatorError("a parenthesis is not closed")
            return value
        if not token:
            raise CalculatorError("a number is missing at the end")
        if not (token[0].isdigit() or token[0] == "."):
            raise CalculatorError(f"a number is missing before {token!r}")
        return _bounded(Fraction(token.replace(",", "").rstrip(".")))


def _deeper(depth: int) -> int:
    if depth == DEEPEST:
        raise CalculatorError(f"more than {DEEPEST} parentheses or powers inside one another")
    return depth + 1


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**DIGITS:
        raise CalculatorError(f"a number of more than {DIGITS} digits")
    return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    """Return the power; its size is looked at before it is computed."""
    if exponent.denominator != 1:
        raise CalculatorError("an exponent has to be a whole number")
    if exponent < 0 and not base:
        raise CalculatorError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
    if bits * abs(exponent.numerator) > 4 * DIGITS:
        raise CalculatorError(f"a number of more than {DIGITS} digits")
    return _bounded(base**exponent.numerator)
