r"""The mathematical answer that a text states, as a number, as words, or as LaTeX for Math-Verify.

What `rlm.answers.values` reads as a number is compared as one, exactly. Words ("even", "no
solution") are compared as texts. All else becomes LaTeX in one notation: `2*sqrt(3)`, `2√3` and
`$2\sqrt{3}$` are the same. Nothing is calculated here, and nothing is handed to eval. Linear time
in a text of at most MAX_LENGTH characters; it never raises and knows nothing of formats.

    >>> read_expression("$x = 3$").number.canonical
    '3'
    >>> read_expression("The result is \\(2*sqrt(3)\\).").latex
    '2\\cdot \\sqrt{3}'
    >>> read_expression(r"\text{No solution.}").words
    'no solution'
"""

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from rlm.answers.texts import normal_form, without_markup
from rlm.answers.values import MAX_LENGTH, Answer, read_value


@dataclass(frozen=True, slots=True)
class Expression:
    """One of number, words and latex, or the reason why nothing could be read."""

    number: Answer | None = None
    words: str | None = None
    latex: str | None = None
    reason: str | None = None

    @property
    def value(self) -> str | None:
        """What tells it from others; None if nothing could be read. Two may still be equal."""
        return self.canonical

    @property
    def canonical(self) -> str | None:
        return self.number.canonical if self.number else self.words or self.latex

    @property
    def as_latex(self) -> str:
        """What Math-Verify is given of it."""
        if self.number and self.number.value is not None:
            sign = r"\%" if self.number.percent else ""
            value = self.number.value
            return f"{_quotient(value.numerator, value.denominator)}{sign}"
        return rf"\text{{{self.words}}}" if self.words else self.latex or ""


def _quotient(top: int, bottom: int) -> str:
    if bottom == 1:
        return str(top)
    return rf"{'-' if top < 0 else ''}\frac{{{abs(top)}}}{{{bottom}}}"


def read_expression(text: str) -> Expression:
    """Return what the text states; never raises on a string."""
    text = text.strip()
    if not text:
        return Expression(reason="empty")
    if len(text) > MAX_LENGTH:
        return Expression(reason="too_long")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") and c not in "\n\t\r" for c in text):
        return Expression(reason="unparsable")
    inside, reason = _mathematics(_unboxed(text))
    if reason:
        return Expression(reason=reason)
    if number := _number(inside):
        return Expression(number=number)
    if words := _words(inside):
        return Expression(words=words)
    latex = to_latex(_UNIT.sub("", inside))
    if not latex or _prose(latex) or _unbalanced(latex):
        return Expression(reason="unparsable")
    return Expression(latex=latex)


# A unit behind a value. Math-Verify's own list of units takes the t of 3t for tons.
_UNIT = re.compile(
    r"(?<=[0-9}\)a-z])\s*(?:\\[ ,;])*\\(?:text|textrm|mathrm|mbox)\s*\{\s*[A-Za-z][A-Za-z ./]*\}"
    r"(?:\^\{?-?[0-9]\}?)?\s*\Z"
)

# Which part of the text is mathematics.

_BOX = re.compile(r"\\boxed\s*\{(.*)\}\Z", re.DOTALL)
_PIECES = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|\$(?P<b>(?:\\\$|[^$])+)\$|\\\((?P<c>(?:(?!\\\)).)+)\\\)"
    r"|\\\[(?P<d>(?:(?!\\\]).)+)\\\]",
    re.DOTALL,
)
_LIST = re.compile(r"\s*(?:,|;|,?\s*(?:and|or)|)\s*", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"(?<![A-Za-z])(?:not|but|nor|neither|either|except|cannot|never|instead|about|around|roughly"
    r"|approximately|maybe|perhaps|or|than|least|most|between)(?![A-Za-z])|n['\u2019]t(?![A-Za-z])",
    re.IGNORECASE,
)


def _unboxed(text: str) -> str:
    """Return the content of a box that is the whole text, without the point behind it."""
    bare = text.removesuffix(".").strip().strip("$").strip()
    found = _BOX.match(bare)
    return found[1].strip() if found and not _unbalanced(found[1]) else text


def _mathematics(text: str) -> tuple[str, str | None]:
    r"""Return what stands between $ and $ or \( and \), else the whole text; and why not.

    Several such pieces are one list if nothing but commas, "and" or "or" stands between them.
    """
    pieces = list(_PIECES.finditer(text))
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    if not pieces or text.count("$") % 2:  # a single $ is money
        return text.rstrip("." if not text.endswith("..") else "").strip(), None
    outside = _PIECES.sub(" ", text)
    found = [next(filter(None, piece.groups())).strip() for piece in pieces]
    if len(pieces) == 1:
        if re.search(r"[0-9=<>+^\\]", outside) or _TAKEN_BACK.search(outside):
            # "$5$ cm^2", "$2$ or 3", "not $5$": the number reader knows units; else nothing.
            return (text, None) if read_value(text).value is not None else ("", "several_values")
        return found[0], None
    between = [text[left.end() : right.start()] for left, right in pairwise(pieces)]
    if all(map(_LIST.fullmatch, between)) and not re.search(r"[0-9=]", outside):
        return ", ".join(found), None
    if len(set(found)) == 1:
        return found[0], None
    return "", "several_values"


# Numbers.

# What makes a number a part of something else, in mathematics: brackets, lists, letters, functions.
_MORE = re.compile(
    r"[\[\]();|!']|(?<![0-9]),|,(?![0-9]|\\!|\})|\\[{}]|\\cup|\\cap|\\in\b|\\pm|\\mp"
    r"|(?<![A-Za-z\\])(?:oo|inf|infty|infinity|sqrt|root|pi|tau|ln|log|exp|sin|cos|tan|cot|sec|csc"
    r"|abs|mod|max|min|gcd|lcm|det|base)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])(?!\s*=[^=]*\Z)"
)
_PARENTHESES = re.compile(r"(?:\\left)?\(([^()]*?)(?:\\right)?\)")


def _number(text: str) -> Answer | None:
    """Return the number, if that is all there is; a variable may be said to equal it."""
    if whole := _PARENTHESES.fullmatch(text):
        if "," in whole[1]:  # (1,234) is a pair
            return None
        text = whole[1].strip()
    plain = re.sub(r"(?<=[0-9])\{,\}(?=[0-9]{3})", ",", text)
    plain = re.sub(r"^(?:so|thus|hence|therefore|a|an)\b", "", plain, flags=re.IGNORECASE)
    if _MORE.search(plain):
        return None
    answer = read_value(plain)
    return answer if answer.value is not None else None


# Words.

_NAMES = {
    "sqrt": "\\sqrt", "pi": "\\pi", "oo": "\\infty", "inf": "\\infty", "infty": "\\infty",
    "infinity": "\\infty", "theta": "\\theta", "alpha": "\\alpha", "beta": "\\beta",
    "gamma": "\\gamma", "lambda": "\\lambda", "phi": "\\phi", "sin": "\\sin", "cos": "\\cos",
    "tan": "\\tan", "cot": "\\cot", "sec": "\\sec", "csc": "\\csc", "arcsin": "\\arcsin",
    "arccos": "\\arccos", "arctan": "\\arctan", "log": "\\log", "ln": "\\ln", "exp": "\\exp",
    "cup": "\\cup", "and": ",", "or": ",",
}  # fmt: skip
_ONLY_WORDS = re.compile(r"[^\W\d_][^\d+*/^=<>\\{}()\[\]|_&]*")
_TEXT = re.compile(
    r"\s*\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}\\]*)\}[\s.]*\Z"
)


def _words(text: str) -> str | None:
    r"""Return the words that are all of the text, in normal form: "even", "\text{A}"; else None."""
    wrapped = _TEXT.match(text)
    bare = wrapped[1] if wrapped else without_markup(text) if "\\text" in text else text
    if not _ONLY_WORDS.fullmatch(bare.strip()):
        return None
    runs = re.findall(r"[^\W\d_]+", bare)
    if not wrapped and (max(map(len, runs)) < 4 or any(run.lower() in _NAMES for run in runs)):
        return None  # xy, or pi: not words
    return normal_form(bare)


def _prose(latex: str) -> bool:
    """Return whether there are words in a LaTeX that are no part of mathematics."""
    bare = _WRAPPERS.sub(" ", latex)
    bare = re.sub(r"\\[A-Za-z]+", " ", bare)
    return len(re.findall(r"[A-Za-z]{3,}", bare)) > 1 or bool(re.search(r"[A-Za-z]{5,}", bare))


_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mathbb|mbox|operatorname|begin|end)"
    r"\s*\{[^{}]*\}"
)


def _unbalanced(latex: str) -> bool:
    """Return whether braces do not close what they open."""
    depth = 0
    for found in re.finditer(r"\\.|[{}]", latex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth < 0:
            return True
    return depth != 0


# One notation.

_SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "∙": "\\cdot ",
    "÷": "/", "π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "λ": "\\lambda ",
    "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup ", "∩": "\\cap ",
    "∅": "\\emptyset ", "∈": "\\in ", "±": "\\pm ", "°": "^{\\circ}", "²": "^{2}", "³": "^{3}",
    "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "ℝ": "\\mathbb{R}",
    "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u2061": " ", "\u2062": " ",
})  # fmt: skip
_SET_OF = re.compile(r"(?<![\\A-Za-z}^_])\{([^{}\\]*)\}")
_NAME = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?![A-Za-z])")


def to_latex(text: str) -> str:
    r"""Return the text in LaTeX: `2*sqrt(3)/x^(1/2)` -> `2\cdot \sqrt{3}/x^{1/2}`."""
    text = re.sub(r"√\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text).replace("√", "sqrt")
    text = text.translate(_SIGNS)
    text = re.sub(r"\\d?tfrac|\\dfrac|\\cfrac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right|big|Big|bigg|Bigg)(?![A-Za-z])[lr.]?\s*", "", text)
    text = re.sub(r"\\(?:displaystyle|quad|qquad|limits)(?![A-Za-z])|(?<!\\)\\[,;:! ]", " ", text)
    text = re.sub(r"\\(?:\(|\)|\[|\])", " ", text)
    text = text.replace("**", "^").replace("<=", "\\le ").replace(">=", "\\ge ")
    text = text.replace("!=", "\\ne ")
    plain = "\\" not in re.sub(r"\\(?:le|ge|ne|cdot|times|pi|infty|cup|pm) ", "", text)
    if plain and _SET_OF.search(text):
        text = _SET_OF.sub(r"\\{\1\\}", text)
    text = _NAME.sub(lambda found: _named(found[0]), text)
    text = _with_braces(text, "\\sqrt")
    text = _with_braces(text, "^")
    if plain:
        text = re.sub(r"\^\s*(-?[0-9]{2,}|-[0-9A-Za-z])(?![0-9.])", r"^{\1}", text)
    text = text.replace("*", "\\cdot ").replace("$", " ")
    return " ".join(text.split()).rstrip(".,; ").strip()


def _named(word: str) -> str:
    """Return a plain name such as pi in LaTeX; other words stay."""
    known = _NAMES.get(word if word in _NAMES else word.lower())
    return f"{known} " if known and known not in ("\\sqrt",) else known or word


def _with_braces(text: str, mark: str) -> str:
    """Return the text with `mark(...)` as `mark{...}`."""
    out, at = [], 0
    while (start := text.find(mark, at)) >= 0:
        opened = start + len(mark)
        while opened < len(text) and text[opened] == " ":
            opened += 1
        closed = _closing(text, opened) if text[opened : opened + 1] == "(" else -1
        if closed < 0:
            out.append(text[at : start + len(mark)])
            at = start + len(mark)
            continue
        out.append(f"{text[at:start]}{mark}{{{text[opened + 1 : closed]}}}")
        at = closed + 1
        # What stood in the parentheses may hold the mark again: once more, from its start.
        text = "".join(out) + text[at:]
        out, at = [], start + len(mark)
        out.append(text[:at])
    return "".join(out) + text[at:]


def _closing(text: str, opened: int) -> int:
    """Return where the parenthesis at `opened` closes, -1 if it does not."""
    depth = 0
    for i in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    return -1


_LAST = re.compile(
    r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}|\$([^$\n]+)\$"
    r"|\\\(((?:(?!\\\)).)+)\\\)"
)


def last_formula(text: str) -> str:
    """Return the last box or formula of a text, "" without any. The text has some lines only."""
    found = _LAST.findall(text)
    return next(filter(None, found[-1]), "") if found else ""
