"""Wrong input is one line, whatever was given."""

import doctest

from rlm import errors
from rlm.errors import InputError


def test_the_docstrings_examples():
    result = doctest.testmod(errors)
    assert result.attempted == 2 and result.failed == 0


def test_what_does_not_print_is_spelled_out():
    assert str(InputError("a\r\nb\x1b[2J\u2028\ud800é 答")) == r"a\r\nb\x1b[2J\u2028\ud800é 答"


def test_a_long_text_keeps_its_ends():
    said = str(InputError("--task " + "x" * 10**6 + ": unknown; use addition"))
    assert len(said) == 1005 and said.startswith("--task xxx") and said.endswith("use addition")


def test_a_short_text_is_not_touched():
    text = "--group-size 1: a group needs at least 2 samples to have a mean to beat; use 2 or more"
    assert str(InputError(text)) == text
