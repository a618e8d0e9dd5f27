"""The three output formats: written, read back, and read when broken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm.answers.formats import FORMATS, TRAINABLE, get_format, opened_by, parse, render

ANY_FORMAT = st.sampled_from(sorted(FORMATS))
TAGS = sorted({tag for form in FORMATS.values() for tag in form.tags})


def part_of_turn(text: str) -> bool:
    return text == text.strip() != "" and not any(tag in text for tag in TAGS)


PARTS = st.text(max_size=60).map(str.strip).filter(part_of_turn)
# Texts in which tags are frequent, so that broken shapes of every kind come up.
PIECES = st.sampled_from([*TAGS, "\n", " ", "42", "text", "<", ">", "\ud800", "\x00"])
BROKEN = st.lists(PIECES, max_size=14).map("".join)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("think", "<think>\n6 * 7 is 42.\n</think>\n42"),
        ("xml", "<reasoning>\n6 * 7 is 42.\n</reasoning>\n<answer>\n42\n</answer>"),
        (
            "solution",
            "<start_working_out>\n6 * 7 is 42.\n<end_working_out>\n<SOLUTION>42</SOLUTION>",
        ),
    ],
)
def test_render_writes_the_known_shape(name, written):
    assert render(get_format(name), "6 * 7 is 42.", "42") == written


@given(st.sampled_from(TRAINABLE), PARTS, PARTS)
def test_parse_gives_back_what_was_rendered(name, reasoning, answer):
    form = get_format(name)
    parsed = parse(render(form, reasoning, answer), form)
    assert (parsed.reasoning, parsed.answer) == (reasoning, answer)
    assert parsed.strict and parsed.soft


@given(ANY_FORMAT, st.one_of(BROKEN, st.text()))
def test_parse_takes_any_text(name, text):
    form = get_format(name)
    parsed = parse(text, form)
    assert parsed.soft or not parsed.strict  # strict includes soft
    if form.tags:
        places = [text.find(tag) for tag in form.tags]
        once = all(text.count(tag) == 1 for tag in form.tags)
        assert parsed.soft == (once and places == sorted(places))
    for part in (parsed.reasoning, parsed.answer):
        assert part is None or (part == part.strip() != "" and part in text)


@pytest.mark.parametrize(
    ("name", "text", "reasoning", "answer", "strict", "soft"),
    [
        ("think", "<think>a</think>42", "a", "42", True, True),  # newlines may be missing
        ("think", "\n<think>\n\na\n</think>\n\n42\n", "a", "42", True, True),  # or be more
        ("think", "<think> a</think>42", "a", "42", False, True),  # but a space is not a newline
        ("think", "So: <think>a</think>42", "a", "42", False, True),
        ("think", "a</think>42", "a", "42", False, False),  # the opener stood in the prompt
        ("think", "<think>a", "a", None, False, False),  # cut off
        ("think", "<think>a</think>", "a", None, False, True),
        ("think", "42", None, None, False, False),
        ("think", "</think><think>42", None, "<think>42", False, False),
        ("think", "<think>a</think>4<think>b</think>5", "a", "4<think>b</think>5", False, False),
        ("xml", "<reasoning>a</reasoning><answer>42</answer>", "a", "42", True, True),
        ("xml", "<reasoning>a</reasoning><answer>42</answer>!", "a", "42", False, True),
        ("xml", "<reasoning>a</reasoning>so <answer>42</answer>", "a", "42", False, True),
        ("xml", "<reasoning>a</reasoning><answer>42", "a", None, False, False),
        ("xml", "<answer>42</answer>", None, "42", False, False),
        ("xml", "<answer>42</answer><reasoning>a</reasoning>", "a", None, False, False),
        ("xml", "<reasoning>a</reasoning><answer></answer>", "a", None, False, True),
        ("solution", "<start_working_out>a<SOLUTION>42</SOLUTION>", "a<SOLUTION>42</SOLUTION>",
         None, False, False),
        ("plain", " 42 ", None, "42", True, True),
        ("plain", " ", None, None, False, False),
    ],
)  # fmt: skip
def test_parse_of_other_shapes(name, text, reasoning, answer, strict, soft):
    parsed = parse(text, get_format(name))
    assert (parsed.reasoning, parsed.answer) == (reasoning, answer)
    assert (parsed.strict, parsed.soft) == (strict, soft)


def test_opened_by_finds_only_an_open_reasoning_at_the_end():
    think = get_format("think")
    assert opened_by("<|im_start|>assistant\n<think>\n", think) == "<think>\n"
    assert opened_by("<|im_start|>assistant\n<think>", think) == "<think>"
    assert opened_by("<|im_start|>assistant\n", think) == ""
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n", think) == ""
    assert opened_by("Use <think> first.<|im_start|>assistant\n", think) == ""
    assert opened_by("<|im_start|>assistant\n<think>\n", get_format("xml")) == ""
    assert opened_by("anything", get_format("plain")) == ""


def test_every_instruction_shows_its_shape_and_asks_for_one_number():
    for name in TRAINABLE:
        form = get_format(name)
        assert render(form, "your reasoning", "your answer") in form.instruction
        assert "a single number" in form.instruction


def test_unknown_format_lists_the_known_ones():
    with pytest.raises(ValueError, match="'markdown': known are think, xml, solution, plain"):
        get_format("markdown")


def test_plain_is_not_written():
    with pytest.raises(ValueError, match="think, xml, solution"):
        render(get_format("plain"), "a", "42")
