"""Kinds of answers: tables of completions with their verdicts, golds, votes, what is cut off."""

import doctest
import importlib.util
import json
import time
from pathlib import Path

import pytest

from rewards import correctness, score
from rlm.answers import expressions, formats, kinds, math_pool, texts
from rlm.answers.formats import CALLED, FORMATS, turn_of
from rlm.answers.kinds import (
    KINDS,
    check_gold,
    check_golds,
    is_right_leniently,
    judge,
    judge_all,
    stated,
    votes,
)
from rlm.answers.math_pool import BYTES, MathPool
from rlm.errors import InputError
from rlm.records import Example, Rollout

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROOT_2 = r"\sqrt{2}"


def table(kind: str) -> list[dict]:
    with (FIXTURES / f"answers_{kind}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def asked(case: dict, kind: str) -> Example:
    first, *others = case["golds"]
    choices = tuple(case.get("choices", ()))
    return Example(case["id"], "", first, kind=kind, accepted=tuple(others), choices=choices)


def differing(kind: str, cases: list[dict], pool: MathPool | None = None) -> list[str]:
    """The cases that are not judged as the table says."""
    found = []
    for name in FORMATS:
        rows = [case for case in cases if case["format"] == name]
        given = [row["completion"] for row in rows]
        verdicts = judge_all([asked(row, kind) for row in rows], given, name, pool=pool)
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict.right != {1: True, 0: False, None: None}[row["expected_reward"]]:
                found.append(f"{row['id']}: {row['why']}, but {verdict}")
    return found


@pytest.mark.parametrize("kind", ["choice", "text", "math"])
def test_the_tables_are_large_and_hostile(kind):
    cases = table(kind)
    assert len(cases) >= 150 and sum(case["group"] == "hostile" for case in cases) >= 40
    assert len({case["id"] for case in cases}) == len(cases)
    assert {case["expected_reward"] for case in cases} >= {0, 1}


@pytest.mark.parametrize("kind", ["choice", "text"])
def test_conformance_table(kind):
    assert differing(kind, table(kind)) == []


def test_conformance_table_of_mathematics():
    cases = [case for case in table("math") if case["group"] != "hanging"]
    assert differing("math", cases) == []


def test_a_process_with_much_memory_keeps_its_workers():
    """A child's getrusage begins with its parent's peak: a model in memory is not the worker's."""
    much = b"1" * (BYTES // 2 + (64 << 20))
    with MathPool(1) as pool:
        pool.judge([("1", "1")])
        (worker,) = pool._workers
        assert [f.equal for f in pool.judge([(ROOT_2, "2^{1/2}"), ("2", "3")])] == [True, False]
        assert pool._workers == [worker] and pool.replaced == 0
    assert len(much) > BYTES // 2


@pytest.mark.slow
def test_what_hangs_is_unjudged_and_its_worker_replaced():
    cases = [case for case in table("math") if case["group"] == "hanging"]
    with MathPool(1, seconds=0.5) as pool:
        assert len(cases) == 3 and differing("math", cases, pool) == []
        assert pool.replaced == 3
        assert [f.equal for f in pool.judge([(ROOT_2, "2^{1/2}")])] == [True]


@pytest.mark.slow
def test_what_eats_memory_is_unjudged_and_its_worker_replaced():
    eater = r"\frac{10^{10^{10}}}{2^{10^{10}}}x"
    with MathPool(1, seconds=20.0, most_bytes=160 << 20) as pool:  # a worker alone takes 64 MiB
        assert [f.equal for f in pool.judge([("5x", eater)])] == [None] and pool.replaced == 1
        assert [f.equal for f in pool.judge([(ROOT_2, "2^{1/2}")])] == [True]


@pytest.mark.slow
def test_two_hundred_verdicts_of_mathematics_a_second_on_two_cores():
    import resource

    def used() -> float:
        """Processor seconds of ended children."""
        mine = resource.getrusage(resource.RUSAGE_CHILDREN)
        return mine.ru_utime + mine.ru_stime

    golds = [(a, b) for a in range(2, 42) for b in range(2, 12)]
    root, other = r"\frac{\sqrt{%d}}{%d}", r"\frac{%d}{%d\sqrt{%d}}"
    pairs = [(root % (a, b), other % (a, b, a)) for a, b in golds]
    pairs += [(rf"x^2+{a}x+{b}", rf"{b}+{a}x+x^2") for a, b in golds]
    pairs += [(rf"[{a},{a + b})", rf"[{a},{a + b}]") for a, b in golds]
    pairs += [(rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a + 1}\pi}}{{{b}}}") for a, b in golds]
    before = used()
    with MathPool(1) as pool:
        pool.judge([("1", "1")])
    start = used() - before
    with MathPool(1) as pool:
        found = pool.judge(pairs)
    seconds = used() - before - 2 * start
    assert [f.equal for f in found].count(True) == 800 and pool.replaced == 0
    assert 2 * len(pairs) / seconds >= 200


@pytest.mark.parametrize("module", [kinds, expressions, texts, formats], ids=lambda m: m.__name__)
def test_examples_in_the_docstrings(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted >= 3 and outcome.failed == 0


@pytest.mark.parametrize("kind", ["choice", "text"])
@pytest.mark.parametrize(
    "unit",
    ["B", "(B) ", "a ", "**", "\\text{", "$", "<|", "<|x|>", "</s>", "answer is B. ",
     "\\boxed{B} ", "#### B\n", "' ", "-1,000.5 "],
)  # fmt: skip
def test_a_megabyte_of_anything_takes_at_most_50_ms(kind, unit):
    body = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    example = Example("1", "", "B", kind=kind)
    for name, before in (("think", "<think></think>"), ("plain", ""), ("xml", "<answer>")):
        took = []
        for _ in range(5):
            start = time.thread_time()
            judge(example, before + body, name)
            took.append(time.thread_time() - start)
            if took[-1] < 0.02:
                break
        assert min(took) <= 0.05, name


# Golds.


@pytest.mark.parametrize(
    ("kind", "gold", "choices", "kept"),
    [
        ("number", " 42", (), "42"),
        ("choice", "(b)", (), "B"),
        ("choice", "blue", ("red", "Blue"), "B"),
        ("text", " The cat ", (), "The cat"),
        ("math", "x\n#### \\frac{\\sqrt{2}}{2}", (), "\\frac{\\sqrt{2}}{2}"),
        ("math", "\\frac12", (), "\\frac12"),
    ],
)
def test_golds_that_can_be_read(kind, gold, choices, kept):
    assert check_gold(kind, gold, choices) == kept


@pytest.mark.parametrize(
    ("kind", "gold", "choices", "message"),
    [
        ("number", "blue", (), "gold answer 'blue' cannot be read"),
        ("choice", "A or B", (), "cannot be read as choice .several_values.*one letter from A"),
        ("choice", "E", ("red", "blue"), "cannot be read as choice .unparsable"),
        ("text", "", (), "cannot be read as text .empty"),
        ("text", 5, (), "of type int instead of text"),
        ("math", "\\frac{1}{", (), "cannot be read as math .unparsable"),
        ("math", "\\notacommand{2}", (), "cannot be read as math"),
        ("maths", "5", (), "unknown kind of answers 'maths': known are number, math, choice, text"),
    ],
)
def test_golds_that_cannot_be_read_are_named(kind, gold, choices, message):
    with pytest.raises(ValueError, match=message):
        check_gold(kind, gold, choices)


def test_many_golds_are_checked_together():
    found = check_golds("math", [ROOT_2, "\\sqrt{", "5"])
    assert found[0] == ROOT_2 and found[2] == "5" and isinstance(found[1], ValueError)


def test_numbers_are_never_asked_of_math_verify(monkeypatch):
    def ask(*arguments, **options):
        raise AssertionError("asked")

    monkeypatch.setattr(math_pool, "shared_pool", ask)
    example = Example("1", "", "\\frac{1}{2}", kind="math")
    assert judge(example, "<think></think>0.5", "think").right is True
    assert judge(example, "<think></think>$x = 0.25$", "think").right is False
    assert check_gold("math", "1{,}234") == "1{,}234"


def test_the_deadline_holds_from_the_next_verdict_on(monkeypatch):
    monkeypatch.setattr(math_pool, "_shared", {})
    monkeypatch.setattr(math_pool, "_seconds", math_pool.SECONDS)
    first = math_pool.shared_pool()  # no worker before it is asked
    assert (first.seconds, math_pool.shared_pool()) == (2.0, first)
    math_pool.set_deadline(0.25)
    assert math_pool.shared_pool().seconds == 0.25
    math_pool.set_deadline(2.0)
    assert math_pool.shared_pool() is first


def test_math_verify_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(
        math_pool, "find_spec", lambda name: None if name == "math_verify" else importlib.util
    )
    with pytest.raises(
        InputError, match=r"math_verify is not installed; .*pip install -e \.\[math\]"
    ):
        MathPool()


# What is cut off, control tokens, votes.


def test_what_was_cut_off_states_nothing():
    text = "<think>\n21 * 20 = 420\n</think>\n42"
    example = Example("1", "", "42")
    assert judge(example, text, "think").right
    cut = judge(example, text, "think", finish="length")
    assert (cut.right, cut.reason, cut.word, cut.value) == (False, "cut_off", "unreadable", None)
    assert judge(example, "<think>\n21", "think", finish="length").reason == "no_close"
    assert stated(text, "think", finish="length") == (None, "cut_off")
    weights = {"correctness": 1.0, "format_soft": 0.5, "length": 1.0, "integer": 0.0}
    earned = score(example, Rollout([1], [0.0], text, "length"), "think", weights)
    assert earned.total <= 0 and earned.reason == "cut_off"
    nothing = dict.fromkeys(("correctness", "format_soft", "length", "integer"), 0.0)
    assert earned.parts == nothing


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<eos>", "<pad>",
            "<|im_end|>\n<|im_start|>user\n7?", "<\uff5cend\u2581of\u2581sentence\uff5c>43"],
)  # fmt: skip
def test_control_tokens_are_no_text(end):
    text = "<think>\n21*2=42\n</think>\n42" + end
    assert correctness(text, "42", "think") == 1.0
    assert score(Example("1", "", "42"), Rollout([1], [0.0], text, "stop"), "think",
                 {"format_strict": 1.0}).total == (1.0 if end != "<pad>" else 0.0)  # fmt: skip


def test_no_digits_are_joined_and_other_signs_stay():
    assert correctness("<think></think>4<|fim_pad|>2", "42", "think") == 0.0
    assert correctness("<think></think><|im_end|>42", "42", "think") == 0.0
    for text in ("a <| b |> c", "1 < 2", "<s>42</s> 43", "x <y> z"):
        assert turn_of(text) == text


def test_equal_answers_are_one_vote():
    example = Example("1", "", ROOT_2, kind="math")
    said = ["\\frac{2}{\\sqrt{2}}", "\\sqrt{3}", "2^{1/2}", "3^{1/2}", "1", "nothing at all here"]
    verdicts = judge_all([example] * 6, [f"<think></think>{text}" for text in said], "think")
    labels = votes(verdicts)
    assert labels[0] == labels[2] and labels[1] == labels[3] and len({*labels[:5]}) == 3
    assert [v.right for v in verdicts] == [True, False, True, False, False, False]


@pytest.mark.parametrize(
    ("kind", "gold", "text", "right"),
    [
        ("number", "42", "So 41, no: 42 it is", True),
        ("choice", "B", "First A, then B.", True),
        ("choice", "A", "First A, then B.", False),
        ("text", "Paris", "I think\nit is Paris, of course.", True),
        ("text", "Paris", "Paris\nor London", False),
        ("math", ROOT_2, "so $2^{1/2}$ it is", True),
        ("math", "5", "so \\boxed{\\sqrt{25}}", True),
        ("math", "5", "that makes 5", True),
    ],
)
def test_the_lenient_reading(kind, gold, text, right):
    assert is_right_leniently(Example("1", "", gold, kind=kind), text) == right


def test_prompts_ask_for_the_kind():
    assert tuple(CALLED) == KINDS
    for form in FORMATS.values():
        assert form.instruction_for("number") == form.instruction
        asked = {form.instruction_for(kind) for kind in KINDS}
        assert len(asked) == len(KINDS), "each kind has words of its own"
