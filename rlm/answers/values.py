r"""The exact value of a short text that states one number: text -> fraction, or a reason why not.

Words, units, currency and LaTeX may stand around the number. Nothing is calculated: a second
number, an operator, a comparison, a scale word or a choice of words makes the text unreadable.
Everything is read in ASCII digits, without float and without eval; a text is at most MAX_LENGTH
characters, so that nothing here can be slow. It knows nothing of tags, formats and rewards.

    >>> read_value("about $1{,}234.50 per day").canonical
    '1234.5'
    >>> read_value(r"3\frac{1}{2} \text{ cm}^2").canonical
    '3.5'
    >>> read_value("6 * 7").reason
    'several_values'
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 400  # characters of a value, so digits too: int() stays far from its 4,300 limit
MAX_EXPONENT = 400  # Fraction("1e9999999") takes 13 s


@dataclass(frozen=True, slots=True)
class Answer:
    """A number that was stated, or the reason why there is none.

    value: the number as written, 50 for "50%"; None if none could be read.
    percent: whether a percent sign or word stood behind it.
    reason: one of `rlm.answers.reading.REASONS` where value is None, else None.
    """

    value: Fraction | None = None
    percent: bool = False
    reason: str | None = None

    @property
    def canonical(self) -> str | None:
        """The shortest exact spelling: "1234.5", "-10/9", "50%"; None without a value."""
        if self.value is None:
            return None
        return _spell(self.value) + ("%" if self.percent else "")


def read_value(text: str) -> Answer:
    """The one number that the text states. Never raises on a string."""
    text = text.strip()
    if not text:
        return Answer(reason="empty")
    if len(text) > MAX_LENGTH:
        return Answer(reason="too_long")
    text = _simplify(text) or ""
    found = _NUMBER.search(text)
    if found is None:
        return Answer(reason="unparsable")
    left, right = text[: found.start()], text[found.end() :]
    if _DIGIT.search(right):  # the first digit of a text is always inside its first number
        return Answer(reason="several_values")
    if _NO_SINGLE_VALUE.search(text):
        return Answer(reason="unparsable")
    value = _number(found)
    left, sign = _take_sign(left)
    percent = _PERCENT.match(right)
    if percent:
        right = right[percent.end() :]
    if value is None or sign == 0 or not (_plain_left(left) and _plain_right(right)):
        return Answer(reason="unparsable")
    if found.group().endswith(".") and right[:1].isalpha():  # 42.txt
        return Answer(reason="unparsable")
    return Answer(sign * value, percent is not None)


# The number itself. A group of three digits behind each comma; `+` and `-` are read apart.
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
_NUMBER = re.compile(
    rf"(?P<whole>{_INTEGER})[ \t]+(?P<part>[0-9]++)/(?P<of>[0-9]++)"
    rf"|(?P<top>{_INTEGER})[ \t]*/[ \t]*(?P<bottom>[+-]?{_INTEGER})"
    rf"|(?P<decimal>{_INTEGER}(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE](?P<exponent>[+-]?[0-9]++))?"
)
_DIGIT = re.compile(r"[0-9]")
_PERCENT = re.compile(r"[ \t]*(?:%|(?:percent|per cent|pct)(?![A-Za-z]))", re.IGNORECASE)


def _number(found: re.Match[str]) -> Fraction | None:
    """The unsigned value of a match of _NUMBER; None for x/0 and for huge exponents."""
    parts = {name: text.replace(",", "") for name, text in found.groupdict().items() if text}
    if "whole" in parts:
        whole, part, of = int(parts["whole"]), int(parts["part"]), int(parts["of"])
        return Fraction(whole * of + part, of) if part < of else None  # 41 42/40: two numbers
    if "top" in parts:
        top, bottom = int(parts["top"]), int(parts["bottom"])
        return Fraction(top, bottom) if bottom else None
    digits, _, decimals = parts["decimal"].partition(".")
    exponent = int(parts.get("exponent", "0"))
    if abs(exponent) > MAX_EXPONENT:
        return None
    power = exponent - len(decimals)
    unscaled = int(digits + decimals)
    return Fraction(unscaled * 10**power) if power >= 0 else Fraction(unscaled, 10**-power)


# What may stand around it.


def _take_sign(left: str) -> tuple[str, int]:
    """What stands left of the sign, and the sign: 1, -1, or 0 where it may be an operator.

    A sign belongs to the number at the start, behind an opening or "=", or where it follows
    a space and touches the number: "-5", "= - 5", "is -5"; but not "10 - 5", "x-5", "is - 5".
    """
    trimmed = left.rstrip(" \t")
    if trimmed[-1:] not in ("+", "-"):
        return left, 1
    before = trimmed[:-1]
    touches = trimmed == left and before[-1:].isspace()
    if before.strip() and before.rstrip()[-1] not in "([=:\"'" and not touches:
        return before, 0
    return before, -1 if trimmed[-1] == "-" else 1


# Signs that compare, calculate or hedge, and whatever LaTeX or markup was not understood.
_ODD = re.compile(r"[<>~^*+|&\\%\u2030±·×÷√∞≈π\u2260-\u226b\u22c5]")
_CHANGED_FROM_LEFT = re.compile(
    r"[-/\u2013\u2014]\Z"  # a dash or an operator right before the number
    r"|[-/\u2013][\s(\[\"']*\Z"  # -(42), x / 42
    r"|(?:\A|[\s(])-[A-Za-z]"  # -USD 42
    r"|\w\([^()]*\Z"  # f(42)
    r"|!\s*=|=.*="
    r"|(?<![A-Za-z])(?:plus|minus|negative|times|x|than|at least|at most|up to|over|under"
    r"|divided by|multiplied by)[\s(]*\Z",
    re.IGNORECASE | re.DOTALL,
)
_CHANGED_FROM_RIGHT = re.compile(
    r"\s*[=!\u2013]"  # 5! is not 5
    r"|\s+-|-(?![A-Za-z]{2})"  # 10 - x, 10-x; but an 18-inch pizza
    r"|\s*/(?!\s*[A-Za-z])"  # but 60 km/h, $5/hour
    r"|_|\.\.|\.?\u2026"  # 0.333... is not 0.333
    r"|\s*at (?:least|most)\b"
    r"|\s*(?:[xXkKMBT]|(?i:[bmt]n|mil|mln|pi|plus|minus|squared|cubed|factorial))(?![A-Za-z])"
    r"|(?![gmshlLcpdtACFVWNJ])[A-Za-z](?![A-Za-z])"  # 2y, 3i, 0b; but 5m
    r"|[xX][A-Fa-f]+(?![A-Za-z])"  # 0xAB
)


def _plain_left(left: str) -> bool:
    """Whether nothing left of the number (its sign taken off) changes or hides its value."""
    last = left[-1:]
    if last.isalnum() or last in ("_", ".", "\u2026"):  # a42, v1.2; "" is in no tuple here
        return False
    stem = left.rstrip(" \t\n\r([\"'")
    if "=" in left and not stem.endswith("="):
        return False
    return not (_ODD.search(left) or _CHANGED_FROM_LEFT.search(left))


def _plain_right(right: str) -> bool:
    """Whether nothing right of the number (its percent sign taken off) changes its value."""
    if unicodedata.category(right[:1] or " ")[0] == "M":  # a mark drawn over the last digit
        return False
    return not ("=" in right or _ODD.search(right) or _CHANGED_FROM_RIGHT.match(right))


_NO_SINGLE_VALUE = re.compile(
    r"(?<![A-Za-z])(?:or|and|not|but|between|either|neither|nor|except|cannot|never|instead"
    r"|hundred|thousand|[mbtr]+illion|dozen|lakh|crore|half|halve|tenth|hundredth|thousandth"
    r"|infinity)s?(?![A-Za-z])|n['\u2019]t(?![A-Za-z])",
    re.IGNORECASE,
)

# Spelling: one plain notation for everything that means the same.

_SPACES_AND_MINUS = {0x2212: "-", **dict.fromkeys([0xA0, *range(0x2000, 0x200B)], " ")}
_SPACES_AND_MINUS |= dict.fromkeys([0x202F, 0x205F, 0x3000], " ")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_UNIT_POWER = re.compile(
    r"(?<![A-Za-z])([A-Za-z]{2,}|[msg])(?:\^(?:\{-?[0-9]\}|-?[0-9])|[\u00b2\u00b3])(?![0-9])"
)
_NAME = re.compile(r"\s*[A-Za-z][A-Za-z0-9_]*+(?:\{[A-Za-z0-9]*+\})?\s*=(?!=)", re.ASCII)
_EMPHASIS = re.compile(r"(?<![\w*)])\*([^*\s](?:[^*\n]*[^*\s])?)\*(?![\w*(])")
_SIGNED_MONEY = re.compile(r"([+-])[ \t]*[$€£¥][ \t]*(?=[0-9.])")
_MARKS = str.maketrans("$€£¥`{}", "       ")


def _simplify(text: str) -> str | None:
    """The text in plain notation; None if it holds characters that no honest number needs.

    Never folds Unicode (NFKC turns 4² into 42), and never joins digits: what is taken out
    between two digits leaves a space.
    """
    if not text.isascii():
        text = text.translate(_SPACES_AND_MINUS)
    if "\\" in text or "{" in text or "^" in text:
        text = _without_latex(_GROUPS.sub(",", text))
    if "=" in text and (name := _NAME.match(text)):
        text = text[name.end() :]
    text = _UNIT_POWER.sub(r"\1", text)
    if _CONTROL.search(text) or not (text.isascii() or all(map(_allowed, text))):
        return None
    if "*" in text:
        if re.search(r"[0-9.]\s*\*\*\s*[-+0-9.(]", text):  # a power, not bold type
            return None
        text = _EMPHASIS.sub(r" \1 ", text.replace("**", " ")).removeprefix("* ")
    return _SIGNED_MONEY.sub(r"\1", text).translate(_MARKS)


def _allowed(character: str) -> bool:
    """Whether a character may stand in a value: no foreign digit, nothing invisible."""
    if character.isascii():
        return True
    return not character.isnumeric() and unicodedata.category(character)[0] != "C"


_GROUPS = re.compile(r"(?<=[0-9])(?:,\s*\\!|,?\{,\}|,?\\,)\s*(?=[0-9]{3}(?![0-9]))")
_WRAPPER = re.compile(
    r"\\(text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|boxed)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(
    r"\\[dtc]?frac\s*(?:\{\s*([+-]?[0-9,]+)\s*\}|([0-9]))\s*(?:\{\s*([+-]?[0-9,]+)\s*\}|([0-9]))"
)
_POWER_OF_TEN = re.compile(
    r"(?<=[0-9.])\s*(?:x|×|·|\\times|\\cdot)\s*10\s*\^\s*"
    r"(?:\{\s*([+-]?[0-9]+)\s*\}|([+-]?[0-9]+))"
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\circ(?![A-Za-z])|\\degree(?![A-Za-z])")
_SPACING = re.compile(r"\\(?:(?:left|right|displaystyle|q?quad)(?![A-Za-z])|[()\[\] ,;:!\\])")


def _without_latex(text: str) -> str:
    """The text with the LaTeX that a number may wear turned into plain notation."""
    text = re.sub(r"\\([$%#&])", r"\1", text)
    for _ in range(8):  # from the inside out; deeper nesting stays, and is then refused
        before = text
        text = _WRAPPER.sub(_unwrapped, text)
        text = _FRACTION.sub(_as_quotient, text)
        if text == before:
            break
    text = _POWER_OF_TEN.sub(lambda found: f"e{found[1] or found[2]} ", text)
    text = re.sub(r"(?<=[A-Za-z0-9}])~", " ", text)  # a tie; elsewhere it means "about"
    return _SPACING.sub(" ", _DEGREES.sub("°", text))


def _unwrapped(found: re.Match[str]) -> str:
    """The content of a wrapper, kept apart from digits next to it; a box stands alone."""
    content, text = found[2], found.string
    before, after = text[: found.start()][-1:], text[found.end() :][:1]
    alone = found[1] == "boxed"
    left = " " if alone or (before in "0123456789}" and content[:1].isdigit()) else ""
    right = " " if alone or (content[-1:] + after).isdigit() else ""
    return left + content + right


def _as_quotient(found: re.Match[str]) -> str:
    """``a/b`` for a match of _FRACTION; behind a digit it is the fraction of a mixed number."""
    top, bottom = found[1] or found[2], found[3] or found[4]
    space = " " if found.string[: found.start()][-1:].isdigit() else ""
    return f"{space}{top}/{bottom} "


def _spell(value: Fraction) -> str:
    """A decimal where it ends, else numerator/denominator."""
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    fives = 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
