"""Answers that are words, and answers that are one of several choices: how they are read.

Two texts are the same answer if they are equal after Unicode NFC, upper and lower case, white
space, articles and punctuation. What changes a meaning stays: the sign and the decimal point of a
number, and signs such as + % # & that are part of a name. A choice is a letter from A to J, in the
forms in which models write it, or the text of one of the choices. Pure functions in linear time
that never raise; it knows nothing of formats and rewards.

    >>> normal_form("The  Café, au lait!") == normal_form("cafe\\u0301 au lait")
    True
    >>> read_choice("**(B)** because of the rest").value
    'B'
    >>> read_choice("A or B").reason
    'several_values'
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rlm.answers.values import MAX_LENGTH

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Stated:
    """What was stated, or the reason why nothing was (`rlm.answers.reading.REASONS`).

    value: what is compared and counted in votes; None if nothing could be read.
    canonical: the same as it is shown.
    """

    value: str | None = None
    canonical: str | None = None
    reason: str | None = None


# Texts.

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_GROUP_COMMA = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_KEPT = "%#&@"  # punctuation to Unicode, part of a name to a reader
_JOINED = "'\u2019\u02bc`."  # it's, U.S.: taken out without a space
_MINUS = "-\u2212"


def normal_form(text: str) -> str:
    """Return what of a text counts. Of a text that is nothing but articles and marks: all of it.

    >>> normal_form("The U.S.A."), normal_form("-5.50 %"), normal_form("well-known")
    ('usa', '-5.50 %', 'well known')
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    folded = _GROUP_COMMA.sub("", folded)
    out = []
    for i, character in enumerate(folded):
        before, after = folded[i - 1 : i], folded[i + 1 : i + 2]
        if character in _MINUS and after.isdigit() and not before.isalnum():
            out.append("-")
        elif character == "." and after.isdigit():
            out.append(".")
        elif character in _JOINED:
            continue
        elif unicodedata.category(character)[0] == "P" and character not in _KEPT:
            out.append(" ")
        else:
            out.append(character)
    plain = " ".join(_ARTICLES.sub(" ", "".join(out)).split())
    return plain or " ".join(folded.split())


_EMPHASIS = re.compile(r"\*\*|__|`")
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")


def without_markup(text: str) -> str:
    """Return the text without bold type and the LaTeX that words are wrapped in."""
    text = _EMPHASIS.sub("", text).replace("$", " ")
    for _ in range(4):
        bare = _WRAPPED.sub(r" \1 ", text)
        if bare == text:
            break
        text = bare
    return text.strip()


def read_text(text: str) -> Stated:
    """Return the text that is stated: the whole of it, at most MAX_LENGTH characters."""
    text = text.strip()
    if not text:
        return Stated(reason="empty")
    if len(text) > MAX_LENGTH:
        return Stated(reason="too_long")
    bare = without_markup(text)
    if not bare or not any(map(str.isprintable, bare)):
        return Stated(reason="unparsable")
    return Stated(normal_form(bare), " ".join(bare.split()))


# Choices.

_WHOLE = re.compile(r"[(\[]?\s*([A-Ja-j])\s*[)\].:]*")
_NAMED = r"(?:options?|choices?|answers?|letters?)"
# A letter that is a choice wherever it stands, in this order: (B); option B; B) at a line's start.
_MARKED = re.compile(
    rf"(?<![A-Za-z0-9])[(\[]\s*([A-J])\s*[)\]]"
    rf"|(?i:\b{_NAMED})\s*(?:(?:is|are)\b)?\s*[:=]?\s*[(\[]?([A-J])(?![A-Za-z0-9'\u2019])"
    rf"|(?:^|\n)[ \t]*([A-J])\s*(?:[.):\]]|-+|\u2013|\u2014)(?=\s|$)"
)
# Any other capital that stands alone; A and I are words as well.
_ALONE = re.compile(r"(?<![A-Za-z0-9'\u2019.])([A-J])(?![A-Za-z0-9'\u2019])")
_ARTICLE = re.compile(r"[ \t]+(?!(?i:or|and|nor|is|are|was|but|because|since|as|if|not)\b)[a-z]")
_PRONOUN = re.compile(r"[ \t]+(?!(?i:or|and|nor|is)\b)[a-z]")
_HEDGED = re.compile(
    r"(?<![A-Za-z])(?:or|and|not|nor|neither|either|except|cannot|never|wrong|incorrect|false|both"
    r"|all|none|instead|unless|between)(?![A-Za-z])|n['\u2019]t(?![A-Za-z])|[/&+]|\u00ac",
    re.IGNORECASE,
)

_REFUSED = re.compile(
    r"\W*(?:is|are|was|it|that|this)?\W*(?:wrong|incorrect|false|not|no\b|or\b|and\b|nor\b|can)",
    re.IGNORECASE,
)


def read_choice(text: str, choices: Sequence[str] = ()) -> Stated:
    """Return the letter that is stated, as `B`, `(b)`, `B. because`, `option B`, or by its text.

    choices: the texts of A, B, ..., if they are known: then one of these alone, where it is
    unique, states its letter, and a letter without a choice states nothing. Two letters, or a
    letter with another choice's text, state nothing.
    """
    text = text.strip()
    if not text:
        return Stated(reason="empty")
    if len(text) > MAX_LENGTH:
        return Stated(reason="too_long")
    bare = without_markup(text)
    forms = [normal_form(without_markup(choice)) for choice in choices]
    if whole := _WHOLE.fullmatch(bare.rstrip(" .!")):
        return _allowed(whole[1].upper(), len(choices))
    said, written = normal_form(bare), [" ".join(c.casefold().split()) for c in choices]
    # "A blue" may be choice A or an article: only what is written so is the text itself.
    lettered = re.match(r"[(\[]?[A-J](?![A-Za-z0-9'\u2019])", bare)
    if said in forms and (not lettered or " ".join(bare.casefold().split()) in written):
        same = [LETTERS[i] for i, form in enumerate(forms) if form == said]
        return Stated(same[0], same[0]) if len(same) == 1 else Stated(reason="several_values")
    return _from_sentence(bare, forms)


def _from_sentence(bare: str, forms: list[str]) -> Stated:
    """Return the one letter that a sentence names."""
    marked = [next(filter(None, groups)) for groups in _MARKED.findall(bare)]
    head = re.match(r"[(\[]?([A-J])(?:\s*(?:[.):\]]+|-+|\u2013|\u2014)\s*|\s+)", bare)
    marked_head = head and not head[0][1:].isspace()
    if head and forms:  # the letter with the text of its choice, or of another one
        tail = normal_form(bare[head.end() :])
        if tail in forms:
            own = LETTERS.index(head[1])
            fits = own < len(forms) and forms[own] == tail
            return Stated(head[1], head[1]) if fits else Stated(reason="several_values")
    alone = [
        found[1]
        for found in _ALONE.finditer(bare)
        if not (found[1] == "A" and _ARTICLE.match(bare, found.end()))
        and not (found[1] == "I" and _PRONOUN.match(bare, found.end()))
    ]
    letters = set(marked) | set(alone)
    if not letters:
        return Stated(reason="unparsable")
    if len(letters) > 1:
        return Stated(reason="several_values")
    (letter,) = letters
    # "B. Neither of the two": behind the letter at the start comes the choice's own text.
    if head and marked_head and head[1] == letter:
        refused = _REFUSED.match(bare, head.end())
    else:
        refused = _HEDGED.search(bare)
    if refused:
        return Stated(reason="unparsable")
    return _allowed(letter, len(forms))


def _allowed(letter: str, count: int) -> Stated:
    """Return the letter, if there is such a choice. count: of the choices, 0 if not known."""
    if count and LETTERS.index(letter) >= count:
        return Stated(reason="unparsable")
    return Stated(letter, letter)
