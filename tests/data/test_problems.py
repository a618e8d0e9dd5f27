"""Generated questions: right on every step, distinct, and the same for the same seed."""

import random
import re
from itertools import pairwise

import pytest

from rlm.data import stories
from rlm.data.problems import (
    ADDITION_QUESTIONS,
    LARGEST,
    addition_question,
    additions,
    tell,
    word_problems,
)
from rlm.data.solutions import bare, note_parts
from rlm.data.splits import split_of
from rlm.errors import InputError

SUM = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
RESULT = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}
TASKS = pytest.mark.parametrize("generate", [additions, word_problems])


def test_an_addition_is_worked_as_the_demonstrations_say():
    for e in additions(3, 300):
        a, b, c = (int(x) for x in re.findall(r"\d+", e.question))
        assert e.gold == str(a + b + c)
        assert e.solution.splitlines() == [
            f"I need to calculate the sum of {a}, {b}, and {c}.",
            f"1. Adding the first two: {a} + {b} = {a + b}",
            f"2. Adding the third: {a + b} + {c} = {a + b + c}",
            f"3. Verification: {a} + {b} + {c} is indeed {a + b + c}.",
        ]
        assert e.template == "worked" and e.steps == 2


def test_a_terse_addition_names_only_the_sum():
    for e in additions(3, 20, terse_fraction=1.0):
        a, b, c = (int(x) for x in re.findall(r"\d+", e.question))
        assert e.solution == f"The answer is {a + b + c}."
        assert e.template == "terse"


def test_digits_keep_to_their_range_and_every_count_is_as_likely():
    for digits in ((1, 1), (2, 2), (1, 3), (3, 4)):
        counts = [
            len(x) for e in additions(0, 500, digits=digits) for x in re.findall(r"\d+", e.question)
        ]
        assert set(counts) == set(range(digits[0], digits[1] + 1))
    # Of 1,500 numbers of 3 or 4 digits half are short: 750, standard deviation 19; 5 of them.
    assert abs(counts.count(3) - 750) < 97


def test_half_of_the_additions_are_asked_in_the_first_wording():
    asked = [e.question for e in additions(0, 1000)]
    # 500 expected, standard deviation 16; 5 of them.
    assert abs(sum(bool(re.fullmatch(r"Calculate \d+ \+ \d+ \+ \d+", q)) for q in asked) - 500) < 80
    patterns = [re.sub(r"\d+", "0", q) for q in asked]
    assert set(patterns) == {q.format(a=0, b=0, c=0) for q in ADDITION_QUESTIONS}
    assert addition_question(23, 15, 8) == addition_question(23, 15, 8)


def test_every_step_of_a_word_problem_is_right_and_leads_to_the_gold():
    for e in word_problems(1, 1000):
        lines = e.solution.splitlines()
        assert 2 <= len(lines) <= 4 and e.steps == len(lines)
        known = {int(x) for x in re.findall(r"\d+", e.question)}
        for i, line in enumerate(lines, 1):
            assert line.startswith(f"{i}. ")
            a, sign, b, c = SUM.search(line).groups()
            assert RESULT[sign](int(a), int(b)) == int(c), e
            assert int(a) in known, e
            # A half, a double, a third and a percentage name their number in words.
            implied = {2, 3} | {100 // x for x in known if x in (10, 20, 25)}
            assert int(b) in known | implied, e
            known.add(int(c))
        assert lines[-1].endswith(f" = {e.gold}")


def test_word_problems_read_as_stories_of_many_kinds():
    examples = word_problems(2, 1500)
    kinds = {kind for e in examples for kind in e.template.split("+")}
    tables = (*stories.STARTS, *stories.EVENTS, *stories.ENDINGS)
    assert kinds == {event.kind for event in tables} and len(kinds) >= 12
    for e in examples:
        assert e.question.count("?") == 1 and e.question.endswith("?")
        assert "{" not in e.question + e.solution and "  " not in e.question
        assert 0 < int(e.gold) < 1000


def test_the_tables_word_each_of_their_sums():
    for event in (*stories.STARTS, *stories.EVENTS, *stories.ENDINGS):
        assert len(event.labels) == len(event.work), event.kind
        assert len(event.sentences) >= 2, event.kind
        assert all(len(wordings) >= 2 for wordings in event.labels), event.kind


def test_a_terse_word_problem_states_the_answer():
    for e in word_problems(0, 20, terse_fraction=1.0):
        assert e.solution == f"The answer is {e.gold}." and e.steps >= 2


def test_a_story_takes_as_many_sums_as_asked():
    rng = random.Random(0)
    for steps in (1, 2, 5, 8):
        assert {len(tell(rng, steps).sums) for _ in range(30)} == {steps}


@TASKS
def test_the_same_seed_gives_the_same_and_a_longer_list_begins_alike(generate):
    assert generate(5, 50) == generate(5, 50)
    assert generate(5, 50) == generate(5, 80)[:50]


@TASKS
def test_neighbouring_seeds_and_splits_share_almost_nothing(generate):
    def asked(seed, split="train"):
        return {e.question for e in generate(seed, 300, split=split)}

    # Out of tens of millions of questions; the easiest come twice now and then.
    assert len(asked(0) & asked(1)) <= 3
    assert len(asked(0) & asked(0, "test")) <= 3


@TASKS
def test_questions_and_ids_are_distinct(generate):
    examples = generate(0, 2000)
    assert len({e.question for e in examples}) == len({e.id for e in examples}) == 2000


@TASKS
def test_the_terse_share_is_as_asked_and_leaves_the_questions_alone(generate):
    plain, mixed = generate(0, 1000), generate(0, 1000, terse_fraction=0.6)
    assert [e.question for e in plain] == [e.question for e in mixed]
    terse = sum(a.solution != b.solution for a, b in zip(plain, mixed, strict=True))
    assert abs(terse - 600) < 78  # standard deviation 15.5; 5 of them


@TASKS
def test_only_kept_and_not_excluded_questions_come(generate):
    some = frozenset(e.question for e in generate(0, 50))
    for e in generate(0, 100, exclude=some, keep=lambda q: split_of(q) == "train"):
        assert e.question not in some and split_of(e.question) == "train"


@TASKS
def test_the_global_random_numbers_are_left_alone(generate):
    state = random.getstate()
    generate(0, 20)
    assert random.getstate() == state


def test_a_space_that_is_too_small_is_told_not_searched_for_ever():
    with pytest.raises(ValueError, match=r"730 questions of addition.* only \d+ different"):
        additions(0, 730, digits=(1, 1))
    assert len(additions(0, 700, digits=(1, 1))) == 700


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: additions(0, 5, digits=(3, 1)), "digits 3 to 1"),
        (lambda: additions(0, 5, digits=(0, 1)), "digits 0 to 1"),
        (lambda: additions(0, 0), "0 questions"),
        (lambda: additions(0, 5, terse_fraction=1.5), "terse fraction 1.5"),
        (lambda: word_problems(0, 5, steps=(4, 2)), "4 to 2 steps"),
        (lambda: word_problems(0, 5, steps=(1, 2)), "1 to 2 steps"),
    ],
)
def test_impossible_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@TASKS
def test_notes_hold_the_sums_and_change_nothing_else(generate):
    plain, noted = generate(3, 50), generate(3, 50, notes=True)
    for one, other in zip(plain, noted, strict=True):
        assert one.question == other.question and one.solution == bare(other.solution)
        parts = note_parts(other.solution)
        assert len(parts) == 1 + one.steps
        for (before, expression, result), (after, *_) in pairwise(parts):
            assert before.endswith(f"{expression} = ") and after.startswith(result)
            assert SUM.fullmatch(f"{expression} = {result}")


def test_larger_stories_are_right_and_larger():
    plain = word_problems(3, 200)
    assert plain == word_problems(3, 200, scale=(1, 1))
    for e in word_problems(3, 200, scale=(5, 9)):
        sums = SUM.findall(e.solution)
        assert len(sums) == e.steps and sums[-1] and e.gold == e.solution.split()[-1]
        for left, sign, right, result in ((int(a), s, int(b), int(c)) for a, s, b, c in sums):
            assert RESULT[sign](left, right) == result and 0 < result <= 9 * LARGEST
            assert sign != "/" or left % right == 0
        assert max(int(result) for *_, result in sums) > LARGEST
    with pytest.raises(InputError, match="use 1 to 50"):
        word_problems(0, 1, scale=(0, 3))
