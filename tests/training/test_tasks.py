"""What a task asks of the policy: prompts, demonstrations and scores of both kinds of task."""

import pytest

import config
import data
from rlm.agents.graph import Limits, read_graph
from rlm.errors import InputError
from rlm.models.policy import open_policy
from rlm.records import Rollout
from tests.support.running import ROOT
from training import tasks

TINY = str(ROOT / "weights/tiny_base")
ROLES = ["Add.", "Subtract."]


@pytest.fixture(scope="module")
def policy():
    return open_policy(TINY, None, lora={"r": 4, "alpha": 8, "seed": 0})


def settings(**given):
    return config.GRPOSettings(model=TINY, adapter="none", **given)


def orchestrator(policy, **given):
    given = {"task": "orchestrator", "roles": ROLES, "agent_tokens": 8} | given
    return tasks.task_of(settings(**given), policy)


def test_a_plain_task_is_asked_and_scored_as_before(policy):
    task = tasks.task_of(settings(), policy)
    (example,) = data.load_examples("addition", "train", n=1)
    assert task.prompt(example.question) == data.make_prompt(
        example.question, policy.tokenizer, "think"
    )
    right = Rollout([1], [0.0], f"<think>\nso\n</think>\n{example.gold}", "stop")
    ((score,),) = task.score([example], [[right]], seed=0)
    assert score.total == 1.0 and score.facts == {"lenient_fraction": 1.0} and score.trace == {}
    demonstration = task.demonstration(example)
    assert policy.tokenizer.decode(demonstration["completion_ids"]).startswith("<think>\n")


def test_demonstrations_of_the_orchestrator_are_valid_graphs_that_know_nothing(policy):
    task, examples = orchestrator(policy), data.load_examples("mixed", "train", n=200)
    texts = []
    for example in examples:
        tokens = task.demonstration(example)
        assert tokens["completion_ids"][-1] == policy.tokenizer.eos_token_id
        assert tokens["prompt_ids"] == task.prompt(example.question).ids
        texts.append(policy.tokenizer.decode(tokens["completion_ids"][:-1]))
    found = [read_graph(text, Limits()) for text in texts]
    assert all(reading.valid for reading in found)
    # 2 x 2 roles, and b reads a. All 4 come: the odds that one is missing are 4 * (3/4)**200.
    assert len(set(texts)) == 4
    again = [
        policy.tokenizer.decode(task.demonstration(e)["completion_ids"][:-1]) for e in examples
    ]
    assert again == texts, "the same at every call"


def test_a_group_of_graphs_is_scored_together(policy):
    task = orchestrator(policy)
    (example,) = data.load_examples("addition", "train", n=1)
    graph = task.demonstration(example)["completion_ids"][:-1]
    texts = [policy.tokenizer.decode(graph), "oops"]
    group = [Rollout([1], [0.0], text, "stop") for text in texts]
    (scores,) = task.score([example], [group], seed=0)
    assert [s.facts["graph_valid_fraction"] for s in scores] == [1.0, 0.0]
    assert [len(s.trace["agents"]) for s in scores] == [2, 0]
    assert scores[0].facts["agent_tokens"] > 0 and scores[1].reason == "graph_no_json"


def test_mixed_questions_take_turns():
    found = data.load_examples("mixed", "test", n=5, seed=3)
    assert [e.id.split("-")[0] for e in found] == [
        "addition", "word_problems", "addition", "word_problems", "addition",
    ]  # fmt: skip
    assert len(data.load_examples("mixed", "test", n=1)) == 1


@pytest.mark.parametrize(
    "given, said",
    [
        (["--agents", "0"], "--agents 0: not a range; use 1 to 8"),
        (["--agents", "3-2"], "--agents 3-2: not a range"),
        (["--agent-tokens", "0"], "--agent-tokens 0: out of range"),
        (["--agent-model", "weights"], "--agent-model weights: the folder has no config.json"),
        (["--agent-model", "./no"], "--agent-model ./no: no folder ./no"),
        (["--rewards", "integer=1"], "--rewards integer=1: task orchestrator rewards the right"),
        (["--roles", " "], "none, or one that is blank"),
        (["--data", "weights"], "--data weights: task mixed makes its own questions"),
        (["--questions", "jsonl"], "--task jsonl: needs the file"),
        (["--questions", "sums"], "--questions sums: unknown; use mixed | addition"),
    ],
)
def test_bad_input_is_one_line(given, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        config.load(config.GRPOSettings, ["--task", "orchestrator", *given])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1 and said in told, told


def test_what_only_the_orchestrator_needs_is_not_checked_elsewhere():
    found = config.load(config.GRPOSettings, ["--agent-model", "./no", "--rewards", "integer=1"])
    assert found.source == "addition"
    with pytest.raises(InputError, match="--rewards"):
        settings(task="orchestrator", rewards="integer=1").check_values()
