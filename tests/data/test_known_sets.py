"""Known data sets as tasks: small files in each one's own layout, and where the hub has them."""

import json
from pathlib import Path

import pytest

import data
from rlm.answers.kinds import judge
from rlm.data import sources
from rlm.data.hub_sets import HUB_SETS
from rlm.data.layouts import Reading
from rlm.errors import InputError

needs_math = pytest.mark.usefixtures("math_verify")


@pytest.fixture
def math_verify():
    pytest.importorskip("math_verify")


def write(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def math_row(number: int) -> dict:
    """As MATH has it: the answer is in the solution's box alone."""
    box = rf"$\boxed{{\frac{{{number}}}{{2}}}}$"
    return {"problem": f"What is ${number}$ halves?", "level": "Level 2", "type": "Prealgebra",
            "solution": f"There are ${number}$ of them, so it is {box}."}  # fmt: skip


def right(example, answer: str) -> bool | None:
    return judge(example, f"<think>So.</think>{answer}", "think").right


def test_math_has_latex_golds_and_its_own_test(tmp_path):
    write(tmp_path, "train.jsonl", [math_row(n) for n in range(1, 81, 2)])
    place = write(tmp_path, "test.jsonl", [math_row(n) for n in range(3, 13, 2)])
    train, _, test = (data.load_examples("math", split, data=place) for split in data.SPLITS)
    assert [e.gold for e in test] == [rf"\frac{{{n}}}{{2}}" for n in range(3, 13, 2)]
    assert {e.kind for e in (*train, *test)} == {"math"}
    assert test[0].solution == r"There are $3$ of them, so it is $\frac{3}{2}$."
    assert not {e.question for e in train} & {e.question for e in test}
    assert right(test[0], r"\boxed{1.5}") and not right(test[0], r"\boxed{2/3}")


@needs_math
def test_math_golds_that_cannot_be_judged_are_bad_rows(tmp_path):
    rows = [{"problem": "1?", "solution": r"\boxed{x^2 + 1}"},
            {"problem": "2?", "solution": r"\boxed{\frac{1}{}"},
            {"problem": "3?", "solution": "no box"}]  # fmt: skip
    place = write(tmp_path, "test.jsonl", rows)
    with pytest.raises(InputError, match=r"2 bad rows: .*test\.jsonl:2: .*; 3: field 'solution'"):
        data.load_examples("math", "test", data=place)
    options = {"data": place, "reading": Reading(skip_bad_rows=True)}
    (found,) = data.load_examples("math", "test", **options)
    assert found.gold == "x^2 + 1" and right(found, r"\boxed{1 + x^2}")


@pytest.mark.parametrize(
    "task, row, gold, kind",
    [
        ("math500", {"problem": "What is half?", "solution": r"It is $\boxed{\frac{1}{2}}$.",
                     "answer": r"\frac{1}{2}", "subject": "Algebra", "level": 2,
                     "unique_id": "test/algebra/1.json"}, r"\frac{1}{2}", "math"),
        ("aime", {"id": 60, "problem": "Find the number.", "answer": "025", "year": "2024",
                  "solution": r"It is $\boxed{025}$.", "url": "x"}, "025", "number"),
    ],
)  # fmt: skip
def test_what_is_for_evaluation_is_test_whatever_its_file_is_called(
    tmp_path, task, row, gold, kind
):
    place = write(tmp_path, "train-00000-of-00001.jsonl", [row])
    (found,) = data.load_examples(task, "test", data=place)
    assert (found.question, found.gold, found.kind) == (row["problem"], gold, kind)
    assert right(found, {"025": "25"}.get(gold, gold))
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=f"the {split} split is empty"):
            data.load_examples(task, split, data=place)


def test_multiple_choice_of_three_files(tmp_path):
    def row(number: int) -> dict:  # as MMLU has it
        return {"question": f"What is {number} + 1?", "subject": "arithmetic",
                "choices": [str(number), str(number + 1), "0", "none"], "answer": 1}  # fmt: skip

    for name, start in (("auxiliary_train", 10), ("validation", 60), ("test", 80)):
        write(tmp_path, f"{name}-00000-of-00001.jsonl", [row(n) for n in range(start, start + 20)])
    sets = [data.load_examples("choice", split, data=str(tmp_path)) for split in data.SPLITS]
    assert [len(found) for found in sets] == [20, 20, 20]
    first = sets[0][0]
    assert first.question == "What is 10 + 1?\nA. 10\nB. 11\nC. 0\nD. none"
    assert (first.gold, first.kind) == ("B", "choice")
    assert right(first, "(B)") and not right(first, "A")


def openmath_row(task: str, question: str, answer: str, solution: str) -> dict:
    if task == "openmath2":
        return {"problem": question, "generated_solution": solution, "expected_answer": answer,
                "problem_source": "augmented_math"}  # fmt: skip
    return {"question": question, "generated_solution": solution, "expected_answer": answer,
            "is_correct": True, "dataset": "math", "error_message": ""}  # fmt: skip


HALF = r"Of 2 parts we take 1 part, and each of the parts is alike. That is $\boxed{\frac{x}{2}}$."
TEXT = r"Of 2 parts we take 1 part, and each of the parts is alike. That is $\frac{x}{2}$."


@needs_math
@pytest.mark.parametrize("task", ["openmath", "openmath2"])
def test_openmath_keeps_all_answers_or_numbers_alone(tmp_path, task, caplog):
    caplog.set_level("INFO", "rlm.data")
    rows = [openmath_row(task, f"What is half of x, for the {n}th time?", r"\frac{x}{2}", HALF)
            for n in range(30)]  # fmt: skip
    pens = "There are 6 rows of 7 pens, that is 6 * 7 = {} pens."
    six = "How many is 6 times 7 in all?"
    rows.append(openmath_row(task, six, "42", pens.format(r"\boxed{42}")))
    first = rows[0].get("problem") or rows[0]["question"]
    rows.append(openmath_row(task, first, r"\frac{x}{2}", HALF.replace("alike", "the same")))
    place = write(tmp_path, "data.jsonl", rows)

    def load(**more) -> list:
        found = [data.load_examples(task, split, data=place, may_be_empty=True, **more)
                 for split in data.SPLITS]  # fmt: skip
        data.check_no_overlap(*found)
        return [e for part in found for e in part]

    examples = load()
    assert len(examples) == 31
    (number,) = [e for e in examples if e.kind == "number"]
    assert (number.gold, number.solution) == ("42", pens.format("42"))
    half = next(e for e in examples if e.kind == "math")
    assert half.solution.replace("the same", "alike") == TEXT and right(half, r"\boxed{0.5x}")
    assert len(load(per_question=2)) == 32
    assert [e.gold for e in load(reading=Reading(kind="number"))] == ["42"]
    assert "with an answer that is no number" in caplog.text


def test_openmath_never_trains_on_a_file_that_is_held_out_by_name(tmp_path):
    def rows(*numbers: int) -> list[dict]:
        return [openmath_row("openmath2", f"How many is {n} times 7 in all?", str(n * 7),
                             f"There are {n} rows of 7 pens, that is {n} * 7 = {n * 7} pens.")
                for n in numbers]  # fmt: skip

    write(tmp_path, "train.jsonl", rows(*range(10, 50)))
    place = write(tmp_path, "my_test.jsonl", rows(*range(45, 60)))
    train, validation, test = (
        data.load_examples("openmath2", split, data=place) for split in data.SPLITS
    )
    assert {e.gold for e in test} == {str(n * 7) for n in range(45, 60)}
    assert len(train) + len(validation) == 35 and validation
    data.check_no_overlap(train, validation, test)


@pytest.mark.parametrize("task", sorted(HUB_SETS))
def test_without_files_the_hub_is_asked_for_what_the_set_is_called(task, monkeypatch):
    asked = []

    def hub_rows(name, split, *, config=None, streaming=False):
        asked.append((name, config, split))
        return iter(())

    monkeypatch.setattr(sources, "hub_rows", hub_rows)
    assert data.load_examples(task, "test", may_be_empty=True) == []
    known = HUB_SETS[task]
    assert asked == [(known.name, known.config, known.splits["test"])]
    with pytest.raises(InputError, match=f"--task {task} --data of the hub: the test split is emp"):
        data.load_examples(task, "test")


def test_aime_is_asked_several_times():
    import config

    settings = config.EvaluateSettings(task="aime")
    assert (settings.samples, settings.temperature) == (8, 1.0)
    assert config.EvaluateSettings(task="math500").samples == 1
