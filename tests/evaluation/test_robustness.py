"""The sets around what was trained on, their figures by hand, and their card."""

import re

import pytest

import data
from rlm.data.problems import additions, word_problems
from rlm.data.splits import split_of
from rlm.evaluation import robustness
from rlm.evaluation.measure import Evaluation
from rlm.evaluation.robustness import (
    QuestionSet,
    overlap,
    question_sets,
    robustness_card,
    robustness_metrics,
    robustness_table,
)
from rlm.records import Example


def sets_of(task: str, n: int = 20, **more) -> dict[str, QuestionSet]:
    training = data.load_examples(task, "train", n=60, seed=5)
    unseen = data.load_examples(task, "test", n=n, seed=5)
    made = question_sets(task, training, training[:30], unseen, n=n, seed=0, train_seed=5, **more)
    return {each.name: each for each in made}


def test_sets_of_additions():
    sets = sets_of("addition")
    assert list(sets) == ["seen", "unseen", "numbers", "larger", "longer"]
    assert {len(each.examples) for each in sets.values()} == {20}
    assert [each.paired for each in sets.values()] == [False, False, True, True, True]
    made = {e.question for name, each in sets.items() if name != "seen" for e in each.examples}
    assert all(split_of(question) == "test" for question in made)
    assert all(split_of(e.question) == "train" for e in sets["seen"].examples)
    # with 9 digits there is nothing larger, so that set is not there
    assert "larger" not in sets_of("addition", digits=(1, 9))


def test_sets_of_word_problems():
    sets = sets_of("word_problems")
    assert list(sets) == ["seen", "unseen", "names", "numbers", "both", "larger", "longer"]
    assert not sets["longer"].paired and {e.steps for e in sets["longer"].examples} == {5}
    assert sets["longer"].meaning == "5 steps, one more than trained on"
    assert all(split_of(e.question) == "test" for e in sets["longer"].examples)


def test_only_drawn_questions_are_the_seen_ones():
    training = additions(0, 10)
    made = question_sets("addition", training, training[:4], training[9:], n=0, seed=0)
    assert made[0].examples == training[:4] and len(made[2].examples) == 4


def test_questions_out_of_files_are_only_told_apart():
    training = [Example(str(i), f"How many are {i} pens?", str(i)) for i in range(9)]
    made = question_sets("gsm8k", training[:6], training[:6], training[6:], n=4, seed=0)
    assert [(each.name, len(each.examples)) for each in made] == [("seen", 4), ("unseen", 3)]


def row(right: bool, last: bool = False) -> dict:
    verdict = "right" if right else "wrong"
    return {"verdict": verdict, "last_number": right or last, "reason": "", "finish": "stop"}


SEEN = [Example(str(i), f"Add {i}", str(i)) for i in range(4)]
SETS = [
    QuestionSet("seen", "trained on", SEEN),
    QuestionSet("unseen", "not", [Example("u", "Add 9", "9")]),
    # question 1 has no variant, and the order is another one
    QuestionSet("numbers", "swapped", [Example(f"{i}~numbers", "q", "1") for i in (3, 0, 2)], True),
]
FOUR, ONE = [row(True), row(False), row(True), row(False)], [row(True)]
ANSWERS = Evaluation("m", [*FOUR, *ONE, row(True), row(False, True), row(False)], {})


def test_figures_by_hand():
    seen, unseen, numbers = robustness_metrics(SETS, [ANSWERS], resamples=50)
    assert seen["models"]["m"]["strict"]["count"] == 2 and seen["models"]["m"]["change"] is None
    assert unseen["models"]["m"]["strict"]["share"] == 1.0
    found = numbers["models"]["m"]
    assert numbers["questions"] == 3 and found["strict"]["count"] == 1
    assert found["lenient"]["count"] == 2
    # 3: wrong -> right; 0: right -> wrong; 2: right -> wrong
    assert (found["change"]["gained"], found["change"]["lost"]) == (1, 2)
    assert found["change"]["difference"] == pytest.approx(-1 / 3)


def test_overlap_by_hand():
    training = [*SEEN, Example("t", "Tom has 3 red pens and buys 5 more of them.", "8")]
    test = [
        Example("a", "add 2", "2"),
        Example("b", "Add 77", "2"),
        Example("c", "Then Tom has 3 red pens and buys 5", "2"),
        Example("d", "Lisa sings", "2"),
    ]
    (found,) = overlap([QuestionSet("s", "", test)], training)
    assert (found["same"]["count"], found["kept"]["count"], found["normalised"]["count"]) == (
        1, 2, 3)  # fmt: skip


def test_rows_name_their_set():
    made = robustness.robustness_rows(SETS, [ANSWERS])
    assert [r["set"] for r in made] == ["seen"] * 4 + ["unseen"] + ["numbers"] * 3
    assert made[0]["model"] == "m" and made[0]["verdict"] == "right"


def test_the_card_shows_every_set_and_lines_up():
    found = robustness_metrics(SETS, [ANSWERS], resamples=50)
    text = robustness_card(found, overlap(SETS, SEEN), {"task": "addition"})
    squeezed = re.sub(" +", " ", text)
    assert "| numbers | swapped | 3 | 33.3 [6.1, 79.2] | -33.3 [-100.0, " in squeezed
    assert "] | 1.000 | 66.7 |" in squeezed  # McNemar's p of 1 against 2, and the lenient share
    assert "- task: addition" in text and "8 words, numbers alike" in text
    lines = robustness_table(found).split("\n")
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5


# --- what was trained on (data.trained_on) ------------------------------------------------------


class Settings:
    task, data, seed = "addition", None, 0

    def task_options(self):
        return {"digits": (1, 3), "terse_fraction": 0.0}


def manifest(step=0, **changed) -> dict:
    settings = {"task": "addition", "seed": 5, "num_samples": 40, "terse_fraction": 0.6} | changed
    made = data.load_examples("addition", "train", n=40, seed=5, terse_fraction=0.6)
    return {"settings": settings, "data": data.fingerprint(made), "step": step}


def test_training_questions_are_made_again_and_proved_by_their_fingerprint():
    training, seen, note = data.trained_on(Settings(), manifest())
    assert len(training) == 40 and seen == training
    assert note.endswith("with the fingerprint that the manifest has")
    _, _, note = data.trained_on(Settings(), manifest(num_samples=39))
    assert "another one" in note


def test_of_grpo_the_drawn_questions_were_seen():
    training, seen, _ = data.trained_on(Settings(), manifest(step=3, questions_per_step=4))
    batches = data.Batches(training, 4, seed=5)
    assert {e.id for e in seen} == {e.id for _ in range(3) for e in next(batches)}
    assert len(seen) == 12
    assert len(data.trained_on(Settings(), manifest(step=0, questions_per_step=4))[1]) == 40


def test_another_task_or_no_manifest_is_said():
    for given in ({}, manifest(task="word_problems")):
        training, seen, note = data.trained_on(Settings(), given)
        assert "no model here is known" in note and len(seen) == len(training) == 2000


def test_the_shipped_adapter_knows_what_it_was_trained_on():
    from rlm.models.adapters import read_manifest

    training, seen, note = data.trained_on(Settings(), read_manifest("weights/final_rlm_lora"))
    assert "fingerprint that the manifest has" in note
    assert len(training) == 2000 and 0 < len(seen) < 2000


def test_stories_told_again_are_those_of_the_training_set():
    training = word_problems(7, 30, split="train", keep=lambda q: split_of(q) == "train")
    made = question_sets("word_problems", training, training, training, n=0, seed=0, train_seed=7)
    names = next(each for each in made if each.name == "names")
    assert len(names.examples) > 20
    assert all(re.search(r"~names$", e.id) for e in names.examples)
