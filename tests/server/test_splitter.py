"""The stream splits the same however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.answers.formats import get_format, render
from rlm.server.splitter import Splitter


def joined(pieces, fmt):
    splitter = Splitter(fmt)
    deltas = [d for piece in pieces for d in splitter.feed(piece)] + splitter.finish()
    return tuple(
        "".join(t for c, t in deltas if c == channel) for channel in ("reasoning", "answer")
    )


@pytest.mark.parametrize("name", ["think", "xml", "solution"])
def test_one_character_at_a_time(name):
    fmt = get_format(name)
    text = render(fmt, "1. 2 < 3\n\n2. <b> 5", "46")
    assert joined(text, fmt) == ("1. 2 < 3\n\n2. <b> 5", "46")


def test_without_an_opener_all_is_answer():
    assert joined(["<thi", "s is it> 46"], get_format("think")) == ("", "<this is it> 46")


def test_reasoning_is_shown_before_it_ends():
    splitter = Splitter(get_format("think"))
    assert splitter.feed("<think>\nFirst, 2 + 3") == [("reasoning", "First, 2 + 3")]
    assert splitter.feed(" = 5</thi") == [("reasoning", " = 5")]
    assert splitter.feed("nk>\n5") == [("answer", "5")]


tagged = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<answer>", "</answer>", "<", "/think>", " ", "\n", "4"]
    ),
    max_size=12,
)


@given(
    tagged, st.lists(st.integers(1, 7), min_size=1, max_size=30), st.sampled_from(["think", "xml"])
)
def test_any_cut_gives_the_same(parts, sizes, name):
    text, fmt = "".join(parts), get_format(name)
    pieces, at = [], 0
    for size in sizes * (len(text) // len(sizes) + 1):
        pieces.append(text[at : at + size])
        at += size
    assert joined(pieces, fmt) == joined([text], fmt)
