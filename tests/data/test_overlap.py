"""Shared runs of words, counted by hand."""

from rlm.data.overlap import runs, shared


def test_runs_by_hand():
    assert runs("Tom has 3 red pens.", 2) == {"tom has", "has 3", "3 red", "red pens"}
    assert runs("Tom has 3 red pens.", 2, keep_numbers=False) == {
        "tom has", "has #", "# red", "red pens"}  # fmt: skip
    assert runs("What is 1,200.5 + 7?", 3, keep_numbers=False) == {"what is #", "is # +", "# + #"}


def test_a_short_question_is_one_run():
    assert runs("Calculate 1 + 2", 8) == {"calculate 1 + 2"}
    assert runs("Calculate 1 + 2", 4) == {"calculate 1 + 2"}
    assert runs("Calculate 1 + 2", 3) == {"calculate 1 +", "1 + 2"}


def test_shared_with_numbers_kept_and_alike():
    training = ["Tom has 3 red pens and buys 4 more.", "Calculate 1 + 2"]
    test = [
        "Lisa says: Tom has 3 red pens and loses them",  # "tom has 3 red pens and" is 6 words
        "Tom has 5 red pens and sells 9 of them",  # the same with numbers alike
        "CALCULATE 1+2 ?",
        "Calculate 1 + 3",
        "Anna owns 3 red cars and buys 4 more",
    ]
    assert shared(test, training, 6) == [True, False, True, False, False]
    assert shared(test, training, 6, keep_numbers=False) == [True, True, True, True, False]
    assert shared(test, training, 7) == [False, False, True, False, False]
    assert shared(test, [], 6) == [False] * 5
