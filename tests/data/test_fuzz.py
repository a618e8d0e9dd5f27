"""Arbitrary texts and files: answers, formats and data files never raise what they do not promise.

tests/cli/test_fuzz.py has the settings, tests/learner/test_fuzz_tensors.py packing, attention and
advantages.
"""

import datetime
import decimal
import re
import time
from functools import partial

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from data import load_examples
from rlm.answers.formats import FORMATS, TRAINABLE, get_format, parse, render, turn_of
from rlm.answers.reading import REASONS, read_answer
from rlm.data.openmath import VERSIONS, Wanted, plain_reasoning, take
from rlm.data.rows import gsm8k_example, own_example
from rlm.data.sources import read_rows
from rlm.errors import InputError
from rlm.records import Example
from rlm.server.splitter import Splitter
from tests.support.fuzzing import VALUES, cases

TAGS = sorted({tag for form in FORMATS.values() for tag in form.tags})
# Whatever the readers look for, whole and cut in two.
PIECES = st.sampled_from(
    [*TAGS, *(tag[: len(tag) // 2] for tag in TAGS), *(tag[len(tag) // 2 :] for tag in TAGS),
     "<", ">", "</", " ", "\n", "\t", "\u2028", "\x1c", "\x00", "\ud800", "\u200b", "ſ", "4", "42",
     "1,234", "-", "+", "%", "$", "\\boxed{", "\\frac{", "\\text{", "{", "}", "\\", "####", "## ",
     "answer is ", "Answer:", "**", "=", "e9", ".", ". ", "or"]
)  # fmt: skip
TEXTS = st.text(max_size=80) | st.lists(PIECES, max_size=20).map("".join)


# --- answers and formats -----------------------------------------------------------------------


@cases(300)
@given(TEXTS, st.sampled_from(sorted(FORMATS)))
def test_what_is_read_agrees_with_what_is_parsed(text, name):
    """A value comes from the part that `parse` calls the answer, whatever stands around it."""
    answer, parsed = read_answer(text, name), parse(text, get_format(name))
    assert (answer.value is None) == (answer.reason in REASONS)
    if answer.value is not None:
        assert parsed.answer is not None, "a value without an answer to read it from"
        assert read_answer(parsed.answer, "plain").value == answer.value or "<answer>" in text


def holds_no_tag_of(form):
    def clean(text: str) -> bool:
        return text == text.strip() != "" and not any(tag in text for tag in form.tags)

    return clean


@st.composite
def turns(draw):
    """A format, and a reasoning and an answer that it can carry; other formats' tags may be in."""
    form = get_format(draw(st.sampled_from(TRAINABLE)))
    parts = TEXTS.map(str.strip).filter(holds_no_tag_of(form))
    return form, draw(parts), draw(parts)


def in_pieces(text: str, sizes: list[int]) -> list[str]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    return [*pieces, text[at:]]


def deltas(form, pieces: list[str]) -> list[tuple[str, str]]:
    splitter = Splitter(form)
    return [delta for piece in pieces for delta in splitter.feed(piece)] + splitter.finish()


def split(form, pieces: list[str]) -> tuple[str, str]:
    found = deltas(form, pieces)
    return tuple("".join(t for c, t in found if c == name) for name in ("reasoning", "answer"))


@cases(250)
@given(turns(), st.lists(st.integers(0, 9), max_size=40))
def test_a_rendered_turn_is_read_back_at_once_and_as_a_stream(turn, sizes):
    form, reasoning, answer = turn
    text = render(form, reasoning, answer)
    parsed = parse(text, form)
    assert (parsed.reasoning, parsed.answer, parsed.strict) == (reasoning, answer, True)
    assert split(form, in_pieces(text, sizes)) == (reasoning, answer)


@cases(150)
@given(turns(), st.integers(-(10**9), 10**9))
@example((get_format("think"), "6 * 7", "42"), 42)
def test_a_rendered_number_is_the_value_whatever_the_reasoning(turn, number):
    """But for a token that ends the turn: what stands after it is never read."""
    form, reasoning, _ = turn
    assume(turn_of(reasoning) == reasoning)
    assert read_answer(render(form, reasoning, str(number)), form.name).value == number


@cases(200)
@given(TEXTS, st.lists(st.integers(0, 9), max_size=40), st.sampled_from(sorted(FORMATS)))
@example("<ans<answer>wer>", [], "xml")  # what is left of it joins to a tag
@example("<start_working_out><SOLUTION>", [], "solution")
def test_a_stream_of_any_text_shows_it_however_it_is_cut(text, sizes, name):
    form = get_format(name)
    whole = split(form, [text])
    assert split(form, in_pieces(text, sizes)) == whole
    assert all(part == part.strip() for part in whole)
    # In the reasoning the answer's tags are text like any other, as they are for `parse`.
    shown = [text for name, text in deltas(form, in_pieces(text, sizes)) if name == "answer"]
    assert not any(tag in delta for delta in shown for tag in form.tags[2:])


# --- no slow case ------------------------------------------------------------------------------

SIZE, TIMES = 4_000, 8  # characters, and how many times as many


def stream(form, text: str) -> None:
    splitter = Splitter(form)
    for start in range(0, len(text), 4):  # a token has some 4 characters
        splitter.feed(text[start : start + 4])
    splitter.finish()


def split_whole(form, text: str) -> None:
    split(form, [text])


def processor_seconds(work, text: str) -> float:
    start = time.thread_time()
    work(text)
    return time.thread_time() - start


def grows_like_its_size(work, text: str) -> bool:
    """Whether 8 times the text takes less than 24 times as long: 8 is linear, 64 quadratic.

    Both are measured in turn, the thread's own processor time and not the clock's; a slow moment
    of the machine would have to fall on the long text at every one of the tries.
    """
    short = (text * (SIZE // len(text) + 1))[:SIZE]
    long = (text * (TIMES * SIZE // len(text) + 1))[: TIMES * SIZE]
    for _ in range(6):
        before = max(processor_seconds(work, short), 2e-4)
        if processor_seconds(work, long) < 24 * before:
            return True
    return False


WORK = {
    **{f"answer {name}": partial(read_answer, format_name=name) for name in FORMATS},
    **{f"parse {name}": partial(parse, fmt=form) for name, form in FORMATS.items()},
    **{f"stream {name}": partial(stream, form) for name, form in FORMATS.items()},
    **{f"split {name}": partial(split_whole, form) for name, form in FORMATS.items()},
    "openmath": plain_reasoning,
}
UNITS = st.lists(PIECES | st.sampled_from(["<llm-code>", "</llm-code>", "<llm-code-output>"]),
                 min_size=1, max_size=4).map("".join)  # fmt: skip


@cases(40)
@given(UNITS, UNITS, st.sampled_from(sorted(WORK)))
@example(" ", " ", "stream think")
@example("<think>\n", "\n", "stream think")
@example("<", "<", "stream xml")
@example("<answer>", "<answer>", "split xml")
@example("</llm-code>", "<llm-code>", "openmath")
@example("</llm-code-output>", "<llm-code-output>", "openmath")
def test_repetition_costs_in_proportion_to_its_length(first, unit, name):
    work = WORK[name]
    assert grows_like_its_size(work, unit)
    # The same behind as much of something else.
    assert grows_like_its_size(lambda text: work(first * (len(text) // len(first)) + text), unit)


# --- data files --------------------------------------------------------------------------------


def read_all(path, convert) -> None:
    """Read a file, or be refused with the place in it; AssertionError for any other refusal."""
    try:
        for where, row in read_rows(path):
            convert(row, where)
    except InputError as error:
        line = r":\d+: " if path.suffix == ".jsonl" else r"(:\d+: |: not )"
        assert re.match(re.escape(str(path)) + line, str(error))
        assert str(error).isprintable()


def into_gsm8k(row: dict, where: str) -> None:
    assert isinstance(gsm8k_example(row, where, "id"), Example)


def into_own(row: dict, where: str) -> None:
    assert isinstance(own_example(row, where, "id"), Example)


def into_openmath(row: dict, where: str) -> None:
    assert isinstance(take(row, where, Wanted(VERSIONS["openmath"], "train")), str)


CONVERTERS = st.sampled_from([into_gsm8k, into_own, into_openmath])
NAMES = ["question", "answer", "solution", "generated_solution", "expected_answer", "is_correct"]
GOOD = {
    "question": "How many is 6 * 7?",
    "answer": "6 * 7 = <<6*7=42>>42\n#### 42",
    "generated_solution": "There are 6 rows of 7 pens, that is 6 * 7 = \\boxed{42} pens in all.",
    "expected_answer": "42",
    "is_correct": True,
}
FIELDS = st.dictionaries(st.sampled_from(NAMES), VALUES | TEXTS, max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@cases(300)
@given(st.lists(FIELDS, max_size=3), CONVERTERS)
def test_any_row_is_an_example_or_an_input_error(fields, convert):
    for index, more in enumerate(fields, 1):
        where = f"file.jsonl:{index}"
        try:
            convert(GOOD | more, where)
        except InputError as error:
            assert str(error).startswith(f"{where}: ") and str(error).isprintable()


# A good file with a few bytes changed, which reaches far deeper than bytes from nowhere.
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), min_size=1, max_size=3)
JSONL = b"\n".join(
    b'{"question": "How many is %d * 7?", "answer": %d, "is_correct": true}' % (n, n * 7)
    for n in range(3)
)


def changed(content: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    for at, new in changes:
        at %= len(content) + 1
        content = content[:at] + new + content[at + 1 :]
    return content


@cases(200)
@given(CHANGES, CONVERTERS)
@example([(0, b"\xef\xbb\xbf\xef\xbb\xbf")], into_own)
@example([(0, b"[" * 100_000)], into_own)
@example([(0, b'{"question":' * 50_000)], into_own)
def test_a_damaged_jsonl_file_is_read_or_refused_by_line(folder, changes, convert):
    path = folder / "damaged.jsonl"
    path.write_bytes(changed(JSONL, changes))
    read_all(path, convert)


def parquet_bytes(table: pyarrow.Table, **options) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


ROWS = [GOOD | {"question": f"How many is {n} * 7?"} for n in range(20)]
PARQUET = [
    parquet_bytes(pyarrow.Table.from_pylist(ROWS)),
    parquet_bytes(pyarrow.Table.from_pylist(ROWS), compression="none", use_dictionary=False),
]


@cases(250)
@given(st.sampled_from(PARQUET), CHANGES, CONVERTERS)
def test_a_damaged_parquet_file_is_read_or_refused(folder, content, changes, convert):
    path = folder / "damaged.parquet"
    path.write_bytes(changed(content, changes))
    read_all(path, convert)


UTC = datetime.UTC
COLUMNS = [
    pyarrow.array([b"\xff\xfe\xfa"]).view(pyarrow.binary()),
    pyarrow.array([2**40], pyarrow.timestamp("s")),
    pyarrow.array([-(2**62)], pyarrow.timestamp("ns", "UTC")),
    pyarrow.array([1], pyarrow.timestamp("s", "No/Where")),
    pyarrow.array([2**31 - 1], pyarrow.int32()).view(pyarrow.date32()),
    pyarrow.array([1], pyarrow.duration("ns")),
    pyarrow.array([decimal.Decimal("42.0")]),
    pyarrow.array([{"a": [1, None]}]),
    pyarrow.array([["a"]]),
    pyarrow.array(["6 * 7 #### 42"]).dictionary_encode(),
    pyarrow.array(["6 * 7 #### 42"], pyarrow.large_string()),
    pyarrow.array([42], pyarrow.uint64()),
    pyarrow.array([float("nan")]),
    pyarrow.array([None]),
    pyarrow.array([datetime.datetime(2026, 1, 1, tzinfo=UTC)]),
    pyarrow.Array.from_buffers(  # a string column that holds no UTF-8
        pyarrow.string(),
        1,
        [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")],
    ),
]


@pytest.mark.parametrize("index", range(len(COLUMNS)))
@pytest.mark.parametrize("name", ["question", "answer", "is_correct", "expected_answer"])
def test_a_parquet_column_of_any_type_is_read_or_refused(folder, index, name):
    good = {key: pyarrow.array([value]) for key, value in GOOD.items()}
    path = folder / "types.parquet"
    table = pyarrow.table(good | {name: COLUMNS[index]})
    path.write_bytes(parquet_bytes(table))
    for convert in (into_gsm8k, into_own, into_openmath):
        read_all(path, convert)


@pytest.mark.parametrize("task", ["jsonl", "gsm8k", "openmath"])
@pytest.mark.parametrize("place", ["~nobody-of-that-name/x.jsonl", "x" * 5000, "a\0b", "", "."])
def test_a_place_that_no_file_can_have_is_refused(task, place, folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as caught:
        load_examples(task, "train", data=place or "no such folder")
    assert str(caught.value).isprintable()
