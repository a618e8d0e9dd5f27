"""The figures of an evaluation, worked out by hand on a sampler that says what it is told."""

import re
import time

import pytest

from rlm.answers.reading import is_correct_leniently, last_number
from rlm.evaluation.measure import judge, measure, numbered_steps, table, told
from rlm.records import Example, Rollout

RIGHT = "<think>\n1. 2 + 3 = 5\n2. 5 + 1 = 6\n</think>\n6"
SHORT = "<think>\n2 + 3 + 1 is 6.\n</think>\n6"
WRONG = "<think>\n1. 2 + 3 = 5\n2. 5 + 1 = 7\n</think>\n7"
UNREAD = "It is 6"


class Told:
    """Stands in for the engine: returns the given texts, a token per character."""

    def __init__(self, groups):
        self.groups = groups

    def generate(self, prompts, samples, sampling, *, seed):
        assert len(prompts) == len(self.groups)
        finish = {UNREAD: "length"}
        return [
            [Rollout([0] * len(t), [0.0] * len(t), t, finish.get(t, "stop")) for t in texts]
            for texts in self.groups
        ]


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(
        "rlm.evaluation.measure.make_prompt", lambda question, tokenizer, name: question
    )
    example = Example("a", "2 + 3 + 1?", "6")

    def run(*groups):
        options = {"name": "m", "max_tokens": 9, "samples": len(groups[0])}
        return measure(Told(groups), None, [example] * len(groups), "think", **options)

    return run


def test_greedy_figures(measured):
    made = measured([RIGHT], [SHORT], [WRONG], [UNREAD])
    summary = made.summary
    assert summary["accuracy"] == 0.5
    assert summary["format_rate"] == 0.75
    assert summary["thinking_proportion"] == 0.75
    assert summary["answer_proportion"] == 0.75
    assert summary["step_by_step"] == 0.5
    assert summary["last_number"] == summary["accuracy_lenient"] == 0.75
    # Wilson's interval of 3 of 4.
    assert summary["accuracy_lenient_low"] == pytest.approx(0.3006, abs=1e-4)
    assert summary["accuracy_lenient_high"] == pytest.approx(0.9544, abs=1e-4)
    assert summary["cut_off"] == 0.25
    assert summary["mean_tokens"] == sum(map(len, (RIGHT, SHORT, WRONG, UNREAD))) / 4
    assert [row["verdict"] for row in made.rows] == ["right", "right", "wrong", "unreadable"]
    assert [row["last_number"] for row in made.rows] == [True, True, False, True]
    assert made.rows[3]["reason"] == "no_close" and made.rows[0]["gold"] == "6"
    assert made.rows[0]["reasoning"].strip() == "1. 2 + 3 = 5\n2. 5 + 1 = 6"


def test_several_samples(measured):
    # question 1: the majority of those that can be read is 7; question 2: 6
    made = measured([WRONG, RIGHT, WRONG], [UNREAD, UNREAD, WRONG])
    summary = made.summary
    assert summary["accuracy"] == summary["majority"] == 0.0
    # Of question 2 the last numbers are 6, 6 and 7, the only answer that can be read is 7.
    assert summary["accuracy_lenient"] == 0.5 and summary["last_number"] == 3 / 6
    assert [row["last_number"] for row in made.rows] == [False, True]
    assert [row["answer"] for row in made.rows] == ["7", "7"]
    summary = measured([WRONG, RIGHT, WRONG], [UNREAD, UNREAD, RIGHT]).summary
    assert summary["accuracy"] == summary["majority"] == 0.5
    assert summary["pass@1"] == pytest.approx(1 / 3)
    assert summary["pass@3"] == 1.0
    # Wilson's intervals of 2/3 of 2 and of 2 of 2, in the table too.
    assert summary["pass@1_low"] == pytest.approx(0.0452, abs=1e-4)
    assert summary["pass@1_high"] == pytest.approx(0.8406, abs=1e-4)
    assert summary["pass@3_low"] == pytest.approx(0.3424, abs=1e-4) and summary["pass@3_high"] == 1
    shown = table([summary])
    assert "| pass@1 [95 %] " in shown and "| pass@3 [95 %] " in shown
    assert "33.3 % [4.5, 84.1]" in shown and "100.0 % [34.2, 100.0]" in shown


def test_pass_at_k_has_the_powers_of_8_below_the_samples(measured):
    summary = measured([RIGHT, RIGHT, *[WRONG] * 8]).summary
    assert [name for name in summary if re.fullmatch(r"pass@\d+", name)] == [
        "pass@1", "pass@8", "pass@10",
    ]  # fmt: skip
    # 2 of 10 are right: one of 8 draws is, unless both are the 2 left over, 1 of 45 pairs.
    assert summary["pass@8"] == pytest.approx(44 / 45) and summary["pass@10"] == 1.0


def test_steps_are_counted_without_a_gap():
    assert numbered_steps("1. a\n2) b\n4. c") == 2
    assert numbered_steps("2. a") == 0
    assert numbered_steps("It is 1. 2") == 0


def test_the_last_number_may_have_thousands_and_cents():
    example = Example("a", "?", "1234.5")
    for text, right in (
        ("It is $1,234.50 now", True),
        ("It is 1,234.5.", True),
        ("-1,234.5", False),
        ("1234.5 pens, 2 pencils", False),
        ("1, 234.5", False),
    ):
        rollout = Rollout([0], [0.0], text, "stop")
        assert judge(example, rollout, "think")["last_number"] == right, text


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("<reasoning>so 25 % it is", "25%", True),
        ("It is 25% of them", "0.25", True),
        ("that makes 3/4", "0.75", True),
        ("that makes 3/4", "4", False),
        ("3/0", "3", False),
        ("no number", "0", False),
        ("", "0", False),
        ("1" * 3000, "1", False),  # more digits than a value may have: no answer, no error
        ("42 " + "x" * 1990, "42", True),
        ("42 " + "x" * 2000, "42", False),  # only the end is looked at
    ],
)
def test_the_lenient_reading(text, gold, right):
    assert is_correct_leniently(text, gold) == right
    rollout = Rollout([0], [0.0], text, "stop")
    assert judge(Example("a", "?", gold), rollout, "xml")["last_number"] == right


def test_the_last_number_is_found_in_linear_time():
    began = time.perf_counter()
    assert last_number("1,234" * 200_000 + "1" * 200_000).value is None
    assert time.perf_counter() - began < 1


def test_the_table_lines_up(measured):
    summary = measured([RIGHT], [UNREAD]).summary
    lines = table([summary]).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert "| accuracy [95 %]     | lenient [95 %] " in lines[0]
    assert " |  50.0 % [9.5, 90.5] | 100.0 % [34.2, 100.0] |" in lines[2]
    assert told(summary) == "accuracy 0.500, by the last number 1.000"
