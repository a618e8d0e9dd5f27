"""The workers of the tiny orchestrator: what they are taught, and what the shipped ones can do."""

import json
import random

import pytest

from rlm.data.problems import Sum
from rlm.data.splits import split_of
from rlm.tiny.agents import REFUSAL, ROLES, Task, document, draw, possible, reply
from tests.support.running import ROOT, succeed

SHIPPED = ROOT / "weights/tiny_agents_lora"


def test_the_second_sum_takes_the_first_ones_result_where_it_stood():
    more = Task("?", Sum(31, "+", 15, ()), Sum(46, "-", 6, ()))
    assert more.follow(46, "-") == Sum(46, "-", 6, ()) and more.follow(16, "*").left == 16
    # A coat costs 46: 46 - 31, the first result on the right.
    rest = Task("?", Sum(16, "+", 15, ()), Sum(46, "-", 31, ()))
    assert rest.follow(20, "-") == Sum(46, "-", 20, ())


@pytest.mark.parametrize(
    "sum_, can",
    [
        (Sum(999, "+", 999, ()), True),
        (Sum(5, "-", 4, ()), True),
        (Sum(4, "-", 4, ()), False),
        (Sum(20, "*", 10, ()), True),
        (Sum(201, "*", 1, ()), False),
        (Sum(12, "/", 4, ()), True),
        (Sum(13, "/", 4, ()), False),
    ],
)
def test_what_a_worker_refuses(sum_, can):
    assert possible(sum_) is can and (reply(sum_) == REFUSAL) is not can


def test_every_demonstration_does_the_sum_of_its_role():
    rng, kinds = random.Random(0), {"direct": 0, "first": 0, "second": 0, "refused": 0}
    for _ in range(2000):
        turn, words = document(rng)
        role = turn.split("\n\n")[0]
        if role not in ROLES:
            kinds["direct"] += 1
            assert words.startswith("The answer is ") and split_of(turn) == "train"
            continue
        question = turn.split("\n\n")[1]
        assert split_of(question) == "train"
        kinds["second" if turn.count("\n\n") == 2 else "first"] += 1
        if words == REFUSAL:
            kinds["refused"] += 1
            continue
        left, sign, right, _, result, *_ = words.split()
        assert sign == ROLES[role]
        assert Sum(int(left), sign, int(right), ()).result == int(result)
        assert words.endswith(f"The answer is {result}.")
        if turn.count("\n\n") == 2:
            heard = turn.rsplit(" ", 1)[1].strip(".")
            assert heard in (left, right), "it goes on from what it heard"
    assert all(count > 100 for count in kinds.values()), kinds


def test_questions_keep_to_their_split():
    rng = random.Random(1)
    assert {split_of(draw(rng, "validation").question) for _ in range(20)} == {"validation"}


@pytest.mark.slow
@pytest.mark.ci
def test_the_shipped_workers_compose_and_do_not_solve():
    from rlm.models.policy import open_policy
    from rlm.tiny.agents import scores

    manifest = json.loads((SHIPPED / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["format"] == "plain" and manifest["base"] == "weights/tiny_base"
    assert (SHIPPED / "adapter_model.safetensors").stat().st_size < 1_000_000
    opened = open_policy(None, str(SHIPPED))
    found = scores(opened.model, opened.tokenizer, manifest["settings"]["seed"])
    assert found["compose"] == pytest.approx(manifest["scores"]["compose"], abs=0.03)
    assert found["compose"] > 0.8 and found["direct"] < 0.3


@pytest.mark.slow
def test_the_recipe_runs(tmp_path):
    words = ["--steps", 3, "--lora-r", 4, "--output", tmp_path / "out"]
    succeed("-m", "rlm.tiny.agents", *words, "--base", ROOT / "weights/tiny_base")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["steps"] == 3 and manifest["task"] == "tiny_agents"
