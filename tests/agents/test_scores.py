"""What graphs earn, and the control arm: by agents whose words are known."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from rlm import parallel
from rlm.agents.evaluation import control, fixed_graphs, headline, measure, table
from rlm.agents.graph import Graph, Limits
from rlm.agents.runner import Runner
from rlm.agents.scores import outcomes, score
from rlm.parallel import World
from rlm.records import Example, Prompt, Rollout
from tests.support.agent_stub import StubEngine
from tests.support.tiny_models import byte_tokenizer
from training import tasks

LIMITS = Limits()
EXAMPLE = Example("e", "Calculate 23 + 15 + 8", "46")


def say(prompt: str) -> str:
    """The words of agents that say what they are told, and guess where they are told nothing."""
    lines = prompt.splitlines()
    return lines[0].removeprefix("Say ") if lines[0].startswith("Say") else "#### 7"


def runner(**options) -> Runner:
    return Runner(StubEngine(byte_tokenizer(), say), **{"max_tokens": 8} | options)


def graph(*prompts) -> str:
    agents = [{"id": "a", "prompt": prompts[0], "reads": []},
              {"id": "b", "prompt": prompts[1], "reads": ["a"]}]  # fmt: skip
    return json.dumps({"agents": agents})


def rollout(text: str) -> Rollout:
    return Rollout([1, 2, 3], [0.0] * 3, text, "stop")


def one(text, example=EXAMPLE, **options):
    (((found,),),) = [outcomes(runner(), [example], [[rollout(text)]], LIMITS, seed=0, **options)]
    return found, score(found)


@pytest.mark.parametrize(
    "text, total, reason, valid, leak",
    [
        # What the final agent says is read in the plain format: "####" or a number alone.
        (graph("Say it", "Say #### 45"), 0.0, None, 1.0, 0.0),
        (graph("Say it", "Say I do not know"), 0.0, "unparsable", 1.0, 0.0),
        (graph("Say it", "Say #### 46"), 0.0, "leak", 1.0, 1.0),
        (f"Sure: {graph('Say it', 'Say #### 45')}", 0.0, "graph_repaired", 0.0, 0.0),
        (graph("Say it", "Say #### 45").replace('["a"]', '["b"]'), 0.0, "graph_reads", 0.0, 0.0),
        ("46", 0.0, "graph_no_json", 0.0, 0.0),
    ],
)
def test_what_earns_nothing_says_why(text, total, reason, valid, leak):
    _, earned = one(text)
    assert (earned.total, earned.reason) == (total, reason)
    assert earned.facts["graph_valid_fraction"] == valid
    assert earned.facts["leak_fraction"] == leak


def test_a_right_graph_earns_1_and_shows_its_agents():
    # The question has the number itself, so that naming it is no leak.
    example = Example("e", "What is 46?", "46")
    found, earned = one(graph("Say it", "Say #### 46"), example)
    assert earned.total == 1.0 and earned.parts == {"correctness": 1.0} and earned.reason is None
    # "it" and "#### 46": 2 + 7 bytes.
    assert earned.facts == {
        "graph_valid_fraction": 1.0,
        "graph_repaired_fraction": 0.0,
        "agent_tokens": 9.0,
        "leak_fraction": 0.0,
    }
    assert earned.trace["graph"]["agents"][1]["reads"] == ["a"]
    assert earned.trace["agents"] == [
        {"id": "a", "prompt": "Say it", "output": "it", "reads": []},
        {"id": "b", "prompt": "Say #### 46", "output": "#### 46", "reads": ["a"]},
    ]
    assert found.transcript().startswith("a, reads the question: Say it\nit\n\nb, reads a: Say")


def test_a_leak_earns_only_where_leaks_are_kept():
    text = graph("Say it", "Say #### 46")
    assert one(text)[1].total == 0.0
    kept = one(text, keep_leaks=True)[1]
    assert kept.total == 1.0 and kept.facts["leak_fraction"] == 1.0, "it is counted all the same"


def test_a_repaired_graph_is_not_run_and_is_counted():
    running = runner()
    text = f"Sure: {graph('Say it', 'Say #### 46')}"
    ((found,),) = outcomes(running, [EXAMPLE], [[rollout(text)]], LIMITS, seed=0, keep_leaks=True)
    assert running.calls == 0 and found.run is None and not found.right
    earned = score(found)
    assert earned.facts["graph_repaired_fraction"] == 1.0 and earned.trace["agents"] == []


def test_all_graphs_of_a_step_are_run_together():
    running = runner()
    texts = [[graph("Say 1", "Say 2"), "oops"], [graph("Say 3", "Say 4"), graph("Say 1", "Say 5")]]
    groups = [[rollout(text) for text in row] for row in texts]
    found = outcomes(running, [EXAMPLE] * 2, groups, LIMITS, seed=0)
    assert [[o.run is not None for o in row] for row in found] == [[True, False], [True, True]]
    assert found[1][1].run.text == "5" and len(running.engine.batches) == 2


def test_the_control_has_as_many_tokens_as_the_graph():
    running = runner(max_tokens=10)
    examples = [EXAMPLE, Example("f", "What is it?", "7"), Example("g", "And now?", "7")]
    direct, votes = control(running, examples, [2, 2, 3], seed=0)
    assert direct == [False, True, True] == votes
    # Two questions with one long answer of 20 tokens and 2 votes of 10; one with 30 and 3 of 10.
    assert sorted(running.engine.limits) == [10] * 7 + [20] * 2 + [30]
    assert len(set(running.engine.seeds)) > 3


class Writer:
    """An engine whose policy writes these texts."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, samples, sampling, *, seed):
        return [[rollout(text)] * samples for text in self.texts]


def test_the_added_value_is_the_accuracy_less_the_better_control():
    examples = [Example("e", "46 or 7?", "46"), Example("f", "46 or 7?", "7"),
                Example("g", "46 or 7?", "46"), Example("h", "46 or 7?", "46")]  # fmt: skip
    right = graph("Say it", "Say #### 46")
    texts = [right, right, right, "oops"]
    found = measure(
        Writer(texts), runner(), examples, [Prompt([1])] * 4, LIMITS, name="mine", max_tokens=9
    )
    s = found.summary
    # Right: e and g. Asked directly "#### 7": right on f alone.
    assert s["accuracy"] == 0.5 and s["direct_accuracy"] == s["direct_votes_accuracy"] == 0.25
    assert s["added_value"] == 0.25
    # Differences 1, -1, 1, 0: variance 11/16, half-width 1.96 * sqrt(2.75) / 4 = 0.8126.
    assert round(s["added_value_high"] - 0.25, 4) == 0.8126 == round(0.25 - s["added_value_low"], 4)
    assert s["graph_valid_fraction"] == s["format_rate"] == 0.75
    assert s["agent_tokens"] == 3 * 9 / 4 and s["leak_fraction"] == 0.0
    assert [row["verdict"] for row in found.rows] == ["right", "wrong", "right", "graph_no_json"]
    assert [row["direct_right"] for row in found.rows] == [False, True, False, False]
    assert "mine: the graphs add +25.0 points [-56.3, +106.3]" in headline(s)
    shown = table([s])
    assert shown.splitlines()[0].startswith("| model | accuracy [95 %]") and headline(s) in shown
    assert tasks.table(SimpleNamespace(task="orchestrator"), [s]) == shown


class Voter(Runner):
    """Asked directly it says 7 in one answer, and 46 in each of several."""

    def ask(self, questions, *, samples, **options):
        return [[rollout("#### 7" if samples == 1 else "#### 46")] * samples for _ in questions]


def test_the_graphs_are_compared_with_the_better_control():
    examples = [EXAMPLE, Example("f", "What is it?", "46"), Example("g", "And now?", "7")]
    voter = Voter(StubEngine(byte_tokenizer(), say), max_tokens=8)
    s = measure(Writer(["oops"] * 3), voter, examples, [Prompt([1])] * 3, LIMITS, name="mine",
                max_tokens=9).summary  # fmt: skip
    assert [round(s[k], 4) for k in ("direct_accuracy", "direct_votes_accuracy")] == [
        0.3333,
        0.6667,
    ]
    assert round(s["added_value"], 4) == -0.6667


def test_fixed_graphs_are_judged_one_by_one():
    graphs = [Graph.model_validate_json(graph("Say it", f"Say #### {n}")) for n in (46, 7)]
    examples = [EXAMPLE, Example("f", "What is it?", "7")]
    assert fixed_graphs(runner(), examples, graphs) == [[True, False], [False, True]]


class Meeting:
    """Threads in place of processes: what each brings to a meeting, all of them get."""

    def __init__(self, size):
        self.size, self.rank = size, threading.local()
        self.parts, self.gate = [None] * size, threading.Barrier(size, timeout=60)

    def world(self):
        world = World(self.rank.value, self.size)
        world.all_gather = self.all_gather
        return world

    def all_gather(self, value, stage):
        self.parts[self.rank.value] = value
        self.gate.wait()
        found = list(self.parts)
        self.gate.wait()  # nobody brings the next thing before all have this one
        return found

    def each(self, work):
        """Return work() of every process."""

        def begin(rank):
            self.rank.value = rank
            return work()

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(begin, range(self.size)))


@pytest.mark.parametrize("size", [2, 4])
def test_processes_share_out_the_agents_and_find_what_one_would(monkeypatch, size):
    golds = ["46", "7", "46"]
    examples = [Example(str(i), f"{i}: 46 or 7?", gold) for i, gold in enumerate(golds)]
    texts = [graph("Say it", "Say #### 46"), "oops", graph("Say it", "Say #### 7")]

    def measured():
        own = runner(temperature=0.7)
        found = measure(
            Writer(texts), own, examples, [Prompt([1])] * 3, LIMITS, name="m", max_tokens=9
        )
        found.summary.pop("seconds")
        return found, own.calls

    alone, calls = measured()
    meeting = Meeting(size)
    monkeypatch.setattr(parallel, "world", meeting.world)
    shared = meeting.each(measured)
    assert all(found == alone for found, _ in shared)
    # A question's agents and control: 2 + 3 calls, without a graph 3. The fourth has none.
    assert calls == 13 and [its for _, its in shared] == {2: [10, 3], 4: [5, 3, 5, 0]}[size]
