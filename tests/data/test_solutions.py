"""Solutions with tags, boxes and answers of their own come out plain, the same for every format."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import data
from rlm.answers.formats import FORMATS, TRAINABLE, get_format, parse, render
from rlm.data.rows import own_example
from rlm.data.solutions import TAGS, boxed, stated_answer, take_apart
from rlm.errors import InputError
from tests.support.fuzzing import cases


def solution_of(text: str, **more) -> str | None:
    row = {"question": "6 * 7?", "answer": "42", "solution": text} | more
    return own_example(row, "mine.jsonl:1", "1").solution


@pytest.mark.parametrize(
    "text",
    [
        "<think>\n6 * 7 is 42.\n</think>\n42",
        "<think>6 * 7 is 42.</think>",
        "6 * 7 is 42.\n</think>\n\nThe answer is 42.",  # the prompt had the opening tag
        "<think>\n\n</think>\n\n6 * 7 is 42.",  # told not to think
        "<think>6 * 7 is 42.</think><answer>42</answer>",  # two formats in one
        "<reasoning>\n6 * 7 is 42.\n</reasoning>\n<answer>\n42\n</answer>",
        "<start_working_out>\n6 * 7 is 42.\n<end_working_out>\n<SOLUTION>42</SOLUTION>",
        "<|begin_of_thought|>\n6 * 7 is 42.\n<|end_of_thought|>\n<|begin_of_solution|>42"
        "<|end_of_solution|>",
        "<thinking>6 * 7 is 42.</thinking> 42",
        "6 * 7 is 42.\n<answer>42</answer>",
        "6 * 7 is 42.",
        "6 * 7 is <<6*7=42>>42.",
        "6 * 7 is 42.\n#### 42",
        "6 * 7 is \\boxed{42}.",
    ],
)
def test_tags_of_any_known_format_are_taken_off_once(text):
    assert solution_of(text) == "6 * 7 is 42."


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_a_format_writes_is_read_back_as_the_reasoning(name):
    assert solution_of(render(get_format(name), "6 * 7 is 42.", "42")) == "6 * 7 is 42."


@pytest.mark.parametrize(
    "text, message",
    [
        ("<think>6 * 7 is", "its reasoning is opened by <think> and never closed"),
        ("<reasoning>6 * 7</reasoning><answer>42", "its answer is opened by <answer> and never"),
        ("<think>6 <think>7</think></think>42", "its reasoning holds the tag <think> of a format"),
        ("<think>6 <reasoning>7</reasoning></think>42", "holds the tag <reasoning> of a format"),
    ],
)
def test_tags_that_nobody_can_take_off_make_a_bad_row(text, message):
    with pytest.raises(InputError) as caught:
        solution_of(text)
    assert str(caught.value).startswith("mine.jsonl:1: ") and message in str(caught.value)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_demonstration_has_the_tags_of_its_format_alone(tmp_path, name):
    text = "<think>\n{0} + 1 is so.\n</think>\nSo"
    rows = [{"question": f"{i} + 1?", "answer": i + 1, "solution": text.format(i)}
            for i in range(5)]  # fmt: skip
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    examples = data.load_examples("jsonl", "train", data=str(tmp_path))
    assert examples
    for example in examples:
        turn = render(get_format(name), example.solution, example.gold)
        assert parse(turn, get_format(name)).strict
        assert not any(tag in turn for form in FORMATS.values() for tag in form.tags
                       if tag not in get_format(name).tags)  # fmt: skip


def test_an_answer_with_tags_brings_its_reasoning():
    found = own_example(
        {"question": "6 * 7?", "answer": "<think>6 * 7 is 42.</think>\n42"}, "x:1", "1"
    )
    assert (found.gold, found.solution) == ("42", "6 * 7 is 42.")


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so #### 42", "42"),
        ("#### 41\n#### 42", "42"),
        (r"\boxed{41}, no: $\boxed{\frac{84}{2}}$.", r"\frac{84}{2}"),
        (r"\fbox{41} and \boxed {42}", "42"),
        ("The answer is 42. It was easy.", "42"),
        ("**Answer:** 42", "42"),
        ("The final answer is $3.50.", "$3.50"),
        ("Answer = x + 1", "x + 1"),
        ("answer is\n\n42", "42"),
        ("I have no answer", None),
        (r"\boxed{42", None),
        ("", None),
    ],
)
def test_the_answer_that_a_text_states(text, answer):
    assert stated_answer(text) == answer


def test_boxes_keep_their_braces_and_may_stand_in_one_another():
    assert boxed(r"\boxed{\frac{1}{2}} b \boxed{\boxed{3}}") == [r"\frac{1}{2}", r"\boxed{3}"]
    assert boxed(r"\boxed{1} \boxed{2") == ["1"]


PIECES = st.sampled_from([*TAGS, "42", " ", "\n", "so ", "####", r"\boxed{", "}", "answer is "])


@cases(300)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_any_text_is_taken_apart_or_refused(text):
    try:
        worked = take_apart(text)
    except ValueError as error:
        assert str(error).startswith("its ")
    else:
        assert not any(tag in worked.reasoning for tag in TAGS)
        assert worked.reasoning == worked.reasoning.strip()
