"""Columns of other names, nested ones, conversations, choices: which is which, and what is said."""

import json

import pytest

import data
from rlm.data.layouts import Reading, layout_of
from rlm.data.rows import row_example
from rlm.errors import InputError
from rlm.records import Example


def read(*rows: dict, reading: Reading | None = None) -> list[Example]:
    layout = layout_of(list(rows), "mine.jsonl:1", reading or Reading())
    return [row_example(row, f"mine.jsonl:{i}", str(i), layout, reading and reading.kind)
            for i, row in enumerate(rows, 1)]  # fmt: skip


ASKED = {"role": "user", "content": "6 * 7?"}
SAID = {"role": "assistant", "content": "<think>\n6 * 7 is 42.\n</think>\n42"}
BOXED = r"We get 6 * 7 = \boxed{42}."
UNBOXED = "We get 6 * 7 = 42."


@pytest.mark.parametrize(
    "row, solution, words",
    [
        # MATH: the gold stands in the solution's box.
        ({"problem": "6 * 7?", "level": "Level 1", "type": "Algebra", "solution": BOXED}, UNBOXED,
         "question from 'problem', answer from what 'solution' states, solution from 'solution'"),
        # MATH-500.
        ({"problem": "6 * 7?", "solution": BOXED, "answer": "42", "subject": "x", "level": 1},
         UNBOXED, "question from 'problem', answer from 'answer', solution from 'solution'"),
        # AIME in capitals.
        ({"ID": "2024-I-1", "Problem": "6 * 7?", "Solution": BOXED, "Answer": 42}, UNBOXED,
         "question from 'Problem', answer from 'Answer', solution from 'Solution'"),
        # OpenMathInstruct-2.
        ({"problem": "6 * 7?", "generated_solution": BOXED, "expected_answer": "42",
          "problem_source": "math"}, UNBOXED,
         "question from 'problem', answer from 'expected_answer', solution from "
         "'generated_solution'"),
        # Chats.
        ({"messages": [{"role": "system", "content": "Think."}, ASKED, SAID]}, "6 * 7 is 42.",
         "question from 'messages', answer from what 'messages' states"),
        ({"messages": [ASKED, SAID], "answer": 42}, "6 * 7 is 42.", "answer from 'answer'"),
        ({"messages": [ASKED, SAID | {"content": [{"type": "text", "text": "The answer is 42."}]}]},
         "The answer is 42.", "question from 'messages'"),
        # ShareGPT.
        ({"conversations": [{"from": "human", "value": "6 * 7?"},
                            {"from": "gpt", "value": "6 * 7 #### 42"}]}, "6 * 7",
         "question from 'conversations'"),
        # TRL: texts, or messages.
        ({"prompt": "6 * 7?", "completion": BOXED}, UNBOXED,
         "question from 'prompt', answer from what 'completion' states, solution from "),
        ({"prompt": [ASKED], "completion": [SAID]}, "6 * 7 is 42.", "question from 'prompt'"),
        ({"prompt": [ASKED], "ground_truth": "42"}, None, "answer from 'ground_truth'"),
        # verl.
        ({"data_source": "x", "prompt": [ASKED], "reward_model": {"ground_truth": "42"}}, None,
         "answer from 'reward_model.ground_truth'"),
        # Alpaca.
        ({"instruction": "6 * 7?", "input": "", "output": "It is 42. #### 42"}, "It is 42.",
         "question from 'instruction' and 'input', answer"),
        ({"query": "6 * 7?", "response": "It is 42. The answer is: **42**."},
         "It is 42. The answer is: **42**.", "question from 'query'"),
        ({"Question ": "6 * 7?", "Final-Answer": "$42$", "Rationale": "It is."}, "It is.",
         "question from 'Question ', answer from 'Final-Answer', solution from 'Rationale'"),
    ],
)  # fmt: skip
def test_a_known_layout_is_read_and_said(row, solution, words):
    (found,) = read(row)
    assert (found.question, found.gold.strip("$"), found.solution) == ("6 * 7?", "42", solution)
    assert words in layout_of([row], "x:1", Reading()).in_words()


def test_a_context_is_part_of_the_question():
    row = {"instruction": "Add these.", "input": "1 and 2", "output": "#### 3"}
    found = read(row, row | {"input": ""})
    assert [e.question for e in found] == ["Add these.\n\n1 and 2", "Add these."]
    assert "from 'instruction' and 'input'" in layout_of([row], "x:1", Reading()).in_words()


def test_a_solution_that_only_later_rows_have_is_read():
    rows = [{"question": "1?", "answer": 1}, {"question": "2?", "answer": 2, "solution": "So."}]
    layout = layout_of(rows[:1], "x:1", Reading())
    assert row_example(rows[1], "x:2", "2", layout).solution == "So."


def test_columns_are_named_with_dotted_paths():
    row = {"meta": {"q": "6 * 7?", "gold": {"value": 42}}, "steps": ["a", "b"], "answer": 5}
    reading = Reading(question="meta.q", answer="meta.gold.value", solution="steps.1")
    (found,) = read(row, reading=reading)
    assert (found.question, found.gold, found.solution) == ("6 * 7?", "42", "b")
    (found,) = read({"a.b": "6 * 7?", "answer": 42}, reading=Reading(question="a.b"))
    assert found.question == "6 * 7?"
    (found,) = read({"frage": "6 * 7?", "gold": 42}, reading=Reading(question="frage"))
    assert (found.question, found.gold) == ("6 * 7?", "42")


@pytest.mark.parametrize(
    "row, reading, message",
    [
        ({"frage": "1?", "antwort": {"zahl": 1}}, Reading(),
         "x:1: field 'question' is missing; there are: 'frage', 'antwort.zahl'; name the column "
         "by --question-field"),
        ({"question": "1?", "wahl": 1}, Reading(),
         "x:1: field 'answer' is missing; there are: 'question', 'wahl'; name the column by "
         "--answer-field"),
        ({"prompt": "1?", "chosen": "1", "rejected": "2"}, Reading(), "field 'answer' is missing"),
        ({"question": "1?", "answer": 1}, Reading(answer="gold.value"),
         "--answer-field gold.value: x:1 has no such column; there are: 'question', 'answer'"),
        ({}, Reading(), "field 'question' is missing; there are: none"),
    ],
)  # fmt: skip
def test_a_column_that_is_not_there_is_told_with_those_that_are(row, reading, message):
    with pytest.raises(InputError) as caught:
        layout_of([row], "x:1", reading)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": [ASKED, SAID, ASKED, SAID]},
         "'messages' is no conversation of one question and one answer (user, assistant, user"),
        ({"messages": [ASKED]}, "no conversation of one question and one answer (user)"),
        ({"messages": [SAID]}, "no conversation"),
        ({"messages": []}, "(no turns)"),
        ({"messages": ["6 * 7?", "42"]}, "conversation of one question and one answer (str, str"),
        ({"messages": [ASKED, SAID, {"role": "tool", "content": "x"}]}, "no conversation"),
        ({"messages": [ASKED | {"content": None}, SAID]}, "field 'messages' is empty"),
        ({"prompt": "6 * 7?", "completion": "I do not know"},
         "'completion' states no final answer"),
        ({"problem": "6 * 7?", "solution": r"It is \boxed{42"}, "states no final answer"),
        ({"problem": "6 * 7?", "generated_solution": "It is 42", "expected_answer": "42",
          "is_correct": False}, "its 'is_correct' is false"),
        ({"question": "6 * 7?", "answer": "42", "kind": "numbr"},
         "'numbr' is no kind of answers; use number, math, choice, text"),
    ],
)  # fmt: skip
def test_a_row_that_does_not_fit_is_refused_in_one_line(row, message):
    with pytest.raises(InputError) as caught:
        read(row)
    assert str(caught.value).startswith("mine.jsonl:1: ") and message in str(caught.value)


# ---- kinds and choices -------------------------------------------------------------------------


def test_a_row_may_have_a_kind_and_further_golds():
    row = {"question": "The capital?", "answer": ["Paris", "City of Paris"], "kind": "text"}
    (found,) = read(row)
    assert (found.kind, found.golds) == ("text", ("Paris", "City of Paris"))
    (found,) = read({"question": "The capital?", "answer": "Paris"}, reading=Reading(kind="text"))
    assert found.kind == "text"
    (found,) = read({"question": "1?", "answer": 1, "kind": ""})
    assert found.kind == "number"


SUM = {"question": "6 * 7?"}


@pytest.mark.parametrize(
    "row",
    [
        # MMLU: a place from 0.
        SUM | {"choices": ["41", "42", "43"], "answer": 1},
        # ARC, with labels that are letters or numbers.
        SUM | {"choices": {"text": ["41", "42", "43"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        SUM | {"choices": {"text": ["41", "42", "43"], "label": ["1", "2", "3"]}, "answerKey": "2"},
        # MMLU-Pro, AQuA, OpenBookQA.
        SUM | {"options": ["41", "42", "43"], "answer": "B", "answer_index": 1},
        SUM | {"options": ["A)41", "B)42", "C)43"], "correct": "B"},
        {"question_stem": "6 * 7?", "choices": {"text": ["41", "42", "43"],
                                                "label": ["A", "B", "C"]}, "answerKey": "B"},
        # A column a choice; a list in a text, as in CSV; the choice's own text; other spellings.
        SUM | {"A": "41", "B": "42", "C": "43", "answer": "B"},
        SUM | {"option_1": "41", "option_2": "42", "option_3": "43", "option_4": "",
               "answer": "(b)"},
        SUM | {"choices": '["41", "42", "43"]', "answer": "B."},
        SUM | {"choices": [41, 42, 43], "answer": "42"},
        SUM | {"choices": [{"label": "A", "text": "41"}, {"text": "42"}, {"text": "43"}],
               "answer": "B"},
    ],
)  # fmt: skip
def test_multiple_choice_of_any_layout(row):
    (found,) = read(row)
    assert found.question == "6 * 7?\nA. 41\nB. 42\nC. 43"
    assert (found.kind, found.gold, found.choices) == ("choice", "B", ("41", "42", "43"))


@pytest.mark.parametrize(
    "more, message",
    [
        ({"choices": ["1", "2"], "answer": 2}, "the answer 2 is no place among 2 choices"),
        ({"choices": ["1", "2"], "answer": -1}, "the answer -1 is no place among 2 choices"),
        ({"choices": ["1", "2"], "answer": "C"}, "'C' is neither a letter A to B nor the text"),
        ({"choices": ["1", "2"], "answer": True}, "a bool is neither a letter"),
        ({"choices": ["same", "same"], "answer": 0}, "two of its choices are the same"),
        ({"choices": ["1"], "answer": 0}, "1 choices, of which 0 are blank"),
        ({"choices": ["1", " "], "answer": 0}, "2 choices, of which 1 are blank"),
        ({"choices": list("abcdefghijk"), "answer": 0}, "11 choices"),
        ({"choices": "1, 2", "answer": "A"}, "field 'choices' is no list of choices"),
    ],
)
def test_choices_that_cannot_be_read_are_refused(more, message):
    with pytest.raises(InputError) as caught:
        read(SUM | more)
    assert message in str(caught.value)


# ---- files ------------------------------------------------------------------------------------

ROWS = [{"q": f"What is {i} + 1?", "a": i + 1} for i in range(12)]


def csv_text(delimiter: str) -> str:
    lines = [delimiter.join(("", "q", "a"))]
    lines += [delimiter.join((str(i), f'"What is\n{i} + 1?"', str(i + 1))) for i in range(12)]
    return "\ufeff" + "\r\n".join(lines) + "\r\n"


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.json", json.dumps(ROWS)),
        ("x.json", json.dumps({"version": 1, "data": ROWS}, indent=2)),
        ("x.json", "\n".join(map(json.dumps, ROWS))),
        ("x.ndjson", "\n".join(map(json.dumps, ROWS))),
        ("x.csv", csv_text(",")),
        ("x.csv", csv_text(";")),
        ("x.csv", csv_text("\t")),
        ("x.TSV", csv_text("\t")),
    ],
)
def test_files_of_other_kinds_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, newline="")
    reading = Reading(question="q", answer="a")
    options = {"data": str(tmp_path), "reading": reading}
    found = [e for split in data.SPLITS for e in data.load_examples("jsonl", split, **options)]
    wanted = {(row["q"], str(row["a"])) for row in ROWS}
    assert {(" ".join(e.question.split()), e.gold) for e in found} == wanted and len(found) == 12


def test_a_folder_of_files_with_one_object_each_is_read(tmp_path):
    """As the original MATH has it: MATH/train/algebra/1.json."""
    for split, number in (("train", 1), ("train", 2), ("test", 3)):
        place = tmp_path / split / "algebra" / f"{number}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        row = {"problem": f"{number} + 1?", "level": "1", "solution": rf"\boxed{{{number + 1}}}"}
        place.write_text(json.dumps(row))
    (only,) = data.load_examples("jsonl", "test", data=str(tmp_path))
    assert (only.question, only.gold) == ("3 + 1?", "4")


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "x.json",
            b'[{"question": "1?", "answer": 1},\n{"question": "2?" "answer"',
            ":2: not JSON",
        ),
        ("x.json", b"42", "neither an array nor an object"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
        ("x.json", b'[{"question": "1?", "answer": 1}, 2]', ":2: a number, not an object"),
        ("x.json", b'[\n{"question": "\xff"}]', ":2: not UTF-8 (byte 0xff)"),
        ("x.csv", b"question,answer\n1?,1\n2?,2,3\n", ":3: 3 cells, but the first line names 2"),
        ("x.csv", b'question,answer\n"1?,1\n', "not CSV"),
        ("x.csv", b"question,question\n1?,1\n", "two columns are named 'question'"),
        ("x.csv", b"question,answer\n1?,\n", ":2: field 'answer' is empty"),
        ("x.csv", b"question,answer\n1\xff?,\n", ":2: not UTF-8"),
        ("x.csv", b"a,b\n1,2\n", "field 'question' is missing; there are: 'a', 'b'"),
    ],
)
def test_a_broken_file_is_told_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.load_examples("jsonl", "train", data=str(path))
    text = str(caught.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def test_the_layout_is_said_once_a_training(tmp_path, caplog):
    import config

    caplog.set_level("INFO", "rlm.data")
    path = tmp_path / "mine.csv"
    lines = ["problem,final answer", *(f"What is {i} + 1?,{i + 1}" for i in range(40))]
    path.write_text("\n".join(lines))
    settings = config.GRPOSettings(task="jsonl", data=str(path), num_samples=0)
    train, validation = data.training_sets(settings)
    assert train and validation
    line = f"{path}: question from 'problem', answer from 'final answer'"
    assert [r.getMessage() for r in caplog.records].count(line) == 1


def test_a_parquet_file_with_nested_columns_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": [ASKED], "reward_model": {"style": "rule", "ground_truth": "42"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    (found,) = data.load_examples("jsonl", "train", data=str(tmp_path))
    assert (found.question, found.gold) == ("6 * 7?", "42")


def test_the_columns_that_data_sets_have_are_all_told_apart():
    """No name stands for two things: else the order of the lists would decide."""
    from rlm.data import layouts

    names = [*layouts.QUESTION, *layouts.ANSWER, *layouts.SOLUTION, *layouts.CHOICES]
    assert len(names) == len(set(names))
