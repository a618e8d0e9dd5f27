"""Graphs that were tried: SFT is shown a right one of a question where chance found it."""

import pytest

from config import SFTSettings
from rlm.errors import InputError
from rlm.models.policy import open_policy
from rlm.records import Example, Rollout
from tests.support.running import ROOT
from training.tasks import task_of

STORY = (
    "Lisa collects 12 balls a day for 4 days. She buys 2 more balls. How many balls are there now?"
)
ROLES = ["Add.", "Subtract.", "Multiply.", "Divide."]
RIGHT, WRONG = Example("right", STORY, "50"), Example("wrong", STORY, "51")


@pytest.fixture(scope="module")
def policy():
    return open_policy(str(ROOT / "weights/tiny_json_base"), None, device="cpu")


def opened(policy, tries: int):
    settings = SFTSettings(
        task="orchestrator", questions="word_problems", roles=ROLES, graph_tries=tries,
        model=str(ROOT / "weights/tiny_json_base"), agent_tokens=24, agent_temperature=0.0,
        agent_model=str(ROOT / "weights/tiny_agents_lora"), threads=1,
    )  # fmt: skip
    return task_of(settings, policy)


def graph(task, example) -> str:
    """Return the text of the example's demonstration, whose last token is the end."""
    ids = task.demonstration(example)["completion_ids"]
    return task.tokenizer.decode(ids[:-1])


def test_a_question_is_shown_the_graph_that_answered_it(policy):
    # 12 * 4 + 2 = 50: of the 16 pairs of roles only one is right. No graph is tried twice.
    task, told = opened(policy, 40), list[str]()
    assert len(task._graphs(RIGHT, 40)) == 16
    found = {"kind": "graphs", "graph_tries": 40, "right_graphs": 1}
    assert task.prepare([RIGHT, WRONG], told.append) == found
    assert told == ["2 of 2 questions tried with 40 random graphs each: 50% have a right one"]
    shown = graph(task, RIGHT)
    assert shown.index("Multiply.") < shown.index("Add.") and '"reads":["a"]' in shown
    (scores,) = task.score([RIGHT], [[Rollout([], [], shown, "stop")]], seed=0)
    assert scores[0].total == 1


def test_where_none_is_right_a_random_one_is_shown_as_without_trying(policy):
    tried, untried = opened(policy, 8), opened(policy, 0)
    tried.prepare([WRONG], lambda line: None)
    assert untried.prepare([WRONG], lambda line: None) == {"kind": "graphs"}
    assert graph(tried, WRONG) == graph(untried, WRONG)


def test_answers_that_are_no_numbers_are_told_before_anything_is_run(policy):
    choice = Example("letter", "Which is even?", "B", kind="choice", choices=("3", "4"))
    with pytest.raises(InputError, match="a question whose answer is of kind choice"):
        opened(policy, 2).prepare([RIGHT, choice], lambda line: None)
