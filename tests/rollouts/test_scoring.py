"""Rewards of one's own: how they are found, called, checked, and added up."""

import re
import sys
import textwrap

import pytest

import config
from rewards import PENALTIES, functions, known
from rlm.errors import InputError
from rlm.records import Example, Rollout
from rlm.rollouts.scoring import Limits, load_file, load_named, score_all, takes_all

EXAMPLES = [Example("a", "1 + 1", "2"), Example("b", "Which?", "B", kind="choice")]
RIGHT = ["<think>x</think>2", "<think>x</think>B"]


def rollout(text: str, tokens: int = 1, finish: str = "stop") -> Rollout:
    return Rollout([0] * tokens, [0.0] * tokens, text, finish)


def own(tmp_path, text: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def scored(weights: dict, named: dict, texts=RIGHT, **more):
    made = [rollout(text, **more) for text in texts]
    return score_all(EXAMPLES, made, "think", weights, named, Limits(100))


def test_one_run_rewards_rows_of_several_kinds():
    def only_choices(example, text, format_name):
        return None if example.kind != "choice" else 0.5

    weights = {"correctness": 1.0, "only_choices": 2.0}
    first, second = scored(weights, functions({"correctness": 1}) | {"only_choices": only_choices})
    assert (first.total, first.parts) == (1.0, {"correctness": 1.0})
    assert (second.total, second.parts) == (2.0, {"correctness": 1.0, "only_choices": 0.5})


def test_a_function_of_all_completions_is_known_by_its_signature():
    def distinct(examples, texts, format_name):
        assert [e.id for e in examples] == ["a", "b"]
        return [1.0 / len(set(texts))] * len(texts)

    assert takes_all("distinct", distinct)
    assert [s.total for s in scored({"distinct": 1.0}, {"distinct": distinct})] == [0.5, 0.5]


def test_what_a_function_asks_for_by_name_it_gets():
    def each(example, text, format_name, *, verdict, rollout, max_tokens):
        return verdict.right * 100 + len(rollout.ids) * 10 + max_tokens / 100

    def together(examples, texts, format_name, *, verdicts, rollouts):
        return [v.right + len(r.ids) for v, r in zip(verdicts, rollouts, strict=True)]

    assert [s.total for s in scored({"each": 1}, {"each": each}, tokens=3)] == [131.0, 131.0]
    found = scored({"together": 1}, {"together": together}, [RIGHT[0], "<think></think>C"])
    assert [s.total for s in found] == [2.0, 1.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (float("nan"), "reward bad returned nan on example a"),
        (float("inf"), "returned inf on example a"),
        ("1.0", "returned '1.0' on example a; return a finite number, or None"),
        ([1], "returned .1. on example a"),
    ],
)
def test_what_is_no_finite_number_names_reward_and_example(returned, message):
    with pytest.raises(RuntimeError, match=message):
        scored({"bad": 1}, {"bad": lambda example, text, format_name: returned})


def test_errors_of_functions_name_them_and_an_example():
    def broken(example, text, format_name):
        return 1 / (example.id != "b")

    def broken_all(examples, texts, format_name):
        raise KeyError("x")

    def short(examples, texts, format_name):
        return [1.0]

    with pytest.raises(RuntimeError, match="reward broken failed on example b: ZeroDivisionError"):
        scored({"broken": 1}, {"broken": broken})
    with pytest.raises(RuntimeError, match=r"broken_all failed on .* examples a, b: KeyError"):
        scored({"broken_all": 1}, {"broken_all": broken_all})
    with pytest.raises(RuntimeError, match=r"short returned 1 values for 2 completions.* a, b"):
        scored({"short": 1}, {"short": short})


def test_what_is_cut_off_earns_nothing_and_pays():
    def bonus(example, text, format_name):
        return 1.0

    weights = {"correctness": 1.0, "bonus": 1.0, "length": 0.5, "repetition": -1.0}
    named = functions({"correctness": 1, "length": 1, "repetition": 1}) | {"bonus": bonus}
    loop = "<think>a b c d e a b c d e</think>2"
    (first, _) = scored(weights, named, [loop, loop], tokens=100, finish="length")
    assert first.parts == {"correctness": 0.0, "bonus": 0.0, "length": -1.0, "repetition": 0.0}
    assert first.total == -0.5 and first.reason == "cut_off"


def test_length_is_dapos_equation_13():
    # L_max 100, L_cache 20: nothing up to 80, then (80 - n) / 20, -1 from 100 on.
    found = [
        scored({"length": 1.0}, functions({"length": 1}), tokens=n)[0].total
        for n in (1, 80, 85, 90, 100)
    ]
    assert found == [0.0, 0.0, -0.25, -0.5, -1.0]


def test_repetition_counts_runs_of_four_words():
    repetition = PENALTIES["repetition"]
    # "a b c d e a b c d": 6 runs, abcd twice.
    assert repetition(EXAMPLES[0], "a b c d e a b c d", "think") == pytest.approx(5 / 6 - 1)
    assert repetition(EXAMPLES[0], "a b c", "think") == 0.0
    assert repetition(EXAMPLES[0], "a " * 100, "think") == pytest.approx(1 / 97 - 1)


def test_rewards_of_a_file(tmp_path):
    path = own(
        tmp_path,
        """
        from math import sqrt          # not defined here: no reward

        def brevity(example, text, format_name):
            return _half(text)

        def several(examples, texts, format_name) -> list[float]:
            return [0.0 for _ in texts]

        def helper(value):             # of another shape
            return value

        def _half(text):
            return 0.5
        """,
    )
    assert set(load_file(path)) == {"brevity", "several"}
    assert {"brevity", "correctness", "length"} <= set(known(path))
    named = functions({"correctness": 1, "brevity": 0.1}, path)
    assert scored({"correctness": 1, "brevity": 0.1}, named)[0].total == pytest.approx(1.05)
    with pytest.raises(InputError, match=r"none of its rewards is weighed; add one .*,brevity=0.1"):
        functions({"correctness": 1}, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no reward in it; write a function"),
        ("def helper(x): return x", "no reward in it; helper are of another shape"),
        ("def a(:", "SyntaxError: .*line 1"),
        ("import not_there_at_all", "ModuleNotFoundError: .*not_there_at_all.*line 1"),
        ("\n1 / 0", "ZeroDivisionError: division by zero .line 2"),
        ("def length(example, text, format_name): return 0", "length is a reward of rewards.py"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, text, message):
    path = own(tmp_path, text)
    with pytest.raises(InputError, match=f"--reward-file .*mine.py: {message}"):
        functions({"correctness": 1}, path)


def test_a_file_that_is_not_there_and_one_that_is_no_python(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_file(str(tmp_path / "none.py"))
    with pytest.raises(InputError, match=r"its name must end in .py"):
        load_file(own(tmp_path, "x", "mine.txt"))


def test_a_function_of_a_package(tmp_path, monkeypatch):
    own(tmp_path, "def half(example, text, format_name): return 0.5\nnumber = 5", "rewards_here.py")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    named = functions({"rewards_here:half": 1})
    assert scored({"rewards_here:half": 1.0}, named)[0].total == 0.5 and sys.path == before
    with pytest.raises(InputError, match="no function nothing in rewards_here; it has half"):
        load_named("rewards_here:nothing")
    with pytest.raises(InputError, match="no function number"):
        load_named("rewards_here:number")
    with pytest.raises(InputError, match="cannot import not_there"):
        load_named("not_there:x")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda text: 0, "takes .text.; write .example, text, format_name"),
        (lambda a, b, c, d: 0, "takes .a, b, c, d."),
        (lambda a, b, c, *, rolouts: 0, "asks for 'rolouts'; known are verdict, rollout"),
    ],
)
def test_functions_of_another_shape(function, message):
    with pytest.raises(InputError, match=f"reward mine: {message}"):
        takes_all("mine", function)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rewards", "lenght=1"], "no reward lenght; did you mean length"),
        (["--rewards", "correctness=1,no.such:f=1"], "cannot import no.such"),
        (["--reward-file", "none.py"], "--reward-file none.py: no such file"),
        (["--overlong-tokens", "200"], "--overlong-tokens 200: must be less than --max-tokens 160"),
        (["--answers", "maths"], "number.*math.*choice.*text"),
        (["--answers", "math"], "the answers of task addition are numbers; leave --answers out"),
    ],
)
def test_wrong_settings_are_named_in_a_line(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        config.load(config.GRPOSettings, ["--adapter", "none", *argv])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and told.count("\n") == 1
    assert re.search(message, told)
