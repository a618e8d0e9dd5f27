"""Data of one's own: bad rows told at once, contradictions, and what `check` prints."""

import json
from pathlib import Path

import pytest

import config
import data
from rlm.data import check
from rlm.data.layouts import Reading
from rlm.errors import InputError
from tests.support.running import ROOT, start, succeed

GOLDS = ("7", "about 5 or 6", "9", "n/a", "")


def write(folder: Path, *rows, name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n"
                            for row in rows))  # fmt: skip
    return str(path)


def questions(*golds, start: int = 0) -> list[dict]:
    return [{"question": f"What is question {i}?", "answer": gold}
            for i, gold in enumerate(golds, start)]  # fmt: skip


def load(path: str, split: str = "train", **reading) -> list:
    return data.load_examples("jsonl", split, data=path, reading=Reading(**reading))


# ---- bad rows ----------------------------------------------------------------------------------


def test_all_bad_rows_stand_in_one_message(tmp_path):
    path = write(tmp_path, *questions(*GOLDS), "{not json", "[]")
    with pytest.raises(InputError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"5 bad rows: {path}:2: gold answer 'about 5 or 6' cannot be read")
    assert "; 4: gold answer 'n/a' cannot be read" in text
    assert "; 5: field 'answer' is empty; 6: not JSON" in text and "; 7: a list, not an obj" in text
    assert text.endswith("correct them, or go on without by --skip-bad-rows")
    assert text.count(path) == 1 and "\n" not in text


def test_of_many_bad_rows_ten_are_shown_and_the_rest_counted(tmp_path):
    folder = tmp_path / ("a_long_name_" * 12)  # no shortening by the message's length
    folder.mkdir()
    path = write(folder, *questions(*["none at all, neither one nor the other"] * 40))
    with pytest.raises(InputError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith("40 bad rows: ") and "; and 30 more; correct them" in text
    assert text.count("cannot be read") == 10 and "; 10: gold" in text and "; 11: " not in text


def test_bad_rows_of_all_files_are_told_together(tmp_path):
    first = write(tmp_path, *questions("1", "x"), name="train.jsonl")
    other = write(tmp_path, *questions("y", "2", start=5), name="test.jsonl")
    with pytest.raises(InputError) as caught:
        load(str(tmp_path))
    assert f"{first}:2: " in str(caught.value) and f"{other}:1: " in str(caught.value)


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path, caplog):
    path = write(tmp_path, *questions(*GOLDS, *range(40)), "{")
    found = [e for split in data.SPLITS for e in load(path, split, skip_bad_rows=True)]
    assert len(found) == 42 and {"7", "9"} <= {e.gold for e in found}
    assert f"4 bad rows left out: {path}:2: gold answer" in caplog.text
    assert "; and 1 more" in caplog.text


def test_nothing_but_bad_rows_is_an_error_even_when_they_are_skipped(tmp_path):
    with pytest.raises(InputError, match=r"2 bad rows: .*; no row is left"):
        load(write(tmp_path, *questions("x", "y")), skip_bad_rows=True)


def test_bad_rows_of_openmath_are_told_at_once(tmp_path, caplog):
    row = {"question": "How many is 6 times 7?", "expected_answer": "42", "is_correct": True}
    good = row | {"generated_solution": "There are 6 rows of 7 pens, that is 6 * 7 = 42 pens."}
    path = write(tmp_path, {"question": "?"}, good, row | {"question": 5})
    with pytest.raises(InputError, match=r"2 bad rows: .*:1: field 'is_correct'.*; 3: field 'ques"):
        data.load_examples("openmath", "train", data=path)
    options = {"data": path, "reading": Reading(skip_bad_rows=True), "may_be_empty": True}
    found = [e for split in data.SPLITS for e in data.load_examples("openmath", split, **options)]
    assert [e.gold for e in found] == ["42"] and "openmath: 2 bad rows left out" in caplog.text


# ---- contradictions ----------------------------------------------------------------------------


def test_one_question_with_two_golds_is_named_with_both_places(tmp_path, caplog):
    rows = questions(*range(30))
    again = [rows[3] | {"answer": "3.0"}, rows[5] | {"question": "what is  QUESTION 5"},
             rows[7] | {"answer": "8"}]  # fmt: skip
    path = write(tmp_path, *rows, *again)
    load(path)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "the same question with golds that differ, 1 times" in warning
    assert f"{path}:8 has '7', {path}:33 '8'" in warning


def test_contradictions_are_seen_across_files(tmp_path, caplog):
    write(tmp_path, *questions(*range(30)), name="train.jsonl")
    write(tmp_path, *questions("5", start=20), name="test.jsonl")
    load(str(tmp_path))
    assert "test.jsonl:1" in caplog.text and "train.jsonl:21" in caplog.text


# ---- check -------------------------------------------------------------------------------------


def printed(capsys, *words) -> tuple[int, str]:
    code = check.main(["check", *map(str, words)])
    return code, capsys.readouterr().out


def test_check_says_what_would_be_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "tokenizer_of", lambda model: lambda text: len(text.split()))
    rows = [{"problem": f"What is {i} + 1?", "solution": f"<think>It is {i + 1}.</think>{i + 1}",
             "answer": i + 1} for i in range(40)]  # fmt: skip
    choice = {"problem": "Which is 42?", "choices": ["6 * 7", "6 + 7"], "answer": "A"}
    write(tmp_path, *rows, choice, name="train.jsonl")
    write(tmp_path, *rows[:2], rows[2] | {"answer": 9}, name="my_eval.jsonl")
    code, out = printed(capsys, tmp_path, "--model", "any")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == str(tmp_path)
    assert "by their names train: train.jsonl; test: my_eval.jsonl" in out
    assert "question from 'problem', choices from 'choices', answer from 'answer'" in out
    assert "rows           44 usable, 0 bad" in lines
    assert "kinds          number 43, choice 1" in lines
    assert "solutions      43 of 44; SFT learns from these alone" in lines
    (splits,) = [line for line in lines if line.startswith("splits")]
    sizes = dict(part.split() for part in splits.removeprefix("splits").split(", "))
    assert sizes["test"] == "3" and int(sizes["train"]) + int(sizes["validation"]) == 38
    assert "held out       test by its files, validation by a hash of the question" in lines
    assert any(line.startswith("left out ") and "a later split has the" in line for line in lines)
    assert f"contradiction  {tmp_path}/train.jsonl:3 has '3', {tmp_path}/my_eval.jsonl:3 '9'" in out
    # "What is 3 + 1?" and "<think> It is 4. </think> 4" in words; the choice has more.
    assert "tokens         question: median 5, 95 % up to 5, longest 11" in out
    assert "think turn: median 6, 95 % up to 6, longest 6" in out


def test_check_ends_with_2_for_bad_rows_and_lists_them(tmp_path, capsys):
    path = write(tmp_path, *questions(*GOLDS))
    code, out = printed(capsys, path)
    assert code == 2 and "rows       2 usable, 3 bad" in out
    assert f"bad row    {path}:2: gold answer 'about 5 or 6' cannot be read" in out
    assert f"{path}:5: field 'answer' is empty\n" in out
    code, out = printed(capsys, path, "--skip-bad-rows")
    assert code == 0 and "3 bad" in out
    code, out = printed(capsys, write(tmp_path, *questions("x")), "--skip-bad-rows")
    assert code == 2


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "needs a file or folder"),
        (("none.jsonl",), "none.jsonl: no such file or folder"),
        (("mine.jsonl", "--answer-field", "gold"), "has no such column; there are: 'question', 'a"),
        (("mine.jsonl", "--task", "sums"), "invalid choice: 'sums'"),
        (("mine.jsonl", "--answers", "numbers"), "'numbers' is no kind of answers; use number, "),
    ],
)
def test_check_refuses_in_one_line(tmp_path, monkeypatch, words, message):
    write(tmp_path, *questions(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        if check.main(["check", *words]) == 2:
            raise InputError(message)  # told among the bad rows
    assert message in str(caught.value)


def test_check_as_a_command(tmp_path):
    path = write(tmp_path, *questions(1, 2))
    done = succeed("-m", "rlm.data", "check", path, "--model", ROOT / "weights/tiny_base")
    assert "2 usable" in done.stdout and done.stderr == ""
    assert "question: median 9, 95 % up to 9, longest 9" in done.stdout
    done = start("-m", "rlm.data", "check", path, "--model", "none/such", forked=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --model none/such: its tokenizer cannot be loaded (")


# ---- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--task", "addition", "--question-field", "q"], "--question-field q: task addition has"),
        (["--task", "gsm8k", "--answer-field", "a"], "--answer-field a: task gsm8k has its own"),
        (["--task", "addition", "--skip-bad-rows"], "task addition makes its own questions"),
        (
            ["--task", "addition", "--answers", "text"],
            "--answers text: the answers of task addition are",
        ),
        (["--task", "openmath", "--answers", "choice"], "of task openmath are number or math"),
        (["--task", "aime"], "--task aime: for evaluation alone, evaluate.py; train on another"),
        (["--task", "math500"], "--task math500: for evaluation alone"),
        (["--task", "jsonl", "--answers", "numbers", "--data", "x"], "number | math | choice"),
    ],
)
def test_settings_that_cannot_work_are_told(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        config.load(config.GRPOSettings, words)
    assert caught.value.code == 2 and message in capsys.readouterr().err
