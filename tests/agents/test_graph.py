"""Graphs of agents as JSON: what is one and what is not, repairs, random graphs, leaks."""

import itertools
import json
import random
import re

import pytest

from rlm.agents.graph import (
    MAX_CHARACTERS,
    REASONS,
    REPAIRS,
    Limits,
    check_graph,
    instruction,
    leaks,
    random_graph,
    read_graph,
)

TWO = Limits()
FEW = Limits(low=1, high=4, reads=2, prompt_characters=40)


def agent(name="a", prompt="You add.", reads=()):
    return {"id": name, "prompt": prompt, "reads": list(reads)}


def graph(*agents) -> str:
    return json.dumps({"agents": agents})


CHAIN = graph(agent("a"), agent("b", reads=["a"]))


@pytest.mark.parametrize(
    "text",
    [CHAIN, f"\n {CHAIN}\n", f"```json\n{CHAIN}\n```", f"```\n{CHAIN}```", CHAIN.replace(" ", "")],
)
def test_bare_json_or_one_fenced_block_is_a_graph(text):
    reading = read_graph(text, TWO)
    assert reading.valid and reading.repairs == () and reading.reason is None
    assert [a.id for a in reading.graph.agents] == ["a", "b"]
    assert reading.graph.final.id == "b"
    assert read_graph(reading.graph.text(), TWO).graph == reading.graph


@pytest.mark.parametrize(
    "text, repairs",
    [
        (f"Here it is: {CHAIN}", ("text_around",)),
        (f"```json\n{CHAIN}", ("text_around",)),
        (f"{CHAIN} I hope it helps.", ("text_around",)),
        (CHAIN.replace("]}]}", "]},]}"), ("trailing_comma",)),
        (CHAIN.replace('"a"]', '"a" , ]'), ("trailing_comma",)),
        (CHAIN[:-2], ("unclosed",)),
        (f"So:\n{CHAIN[:-1]},", ("text_around", "unclosed")),
    ],
)
def test_what_had_to_be_repaired_is_named_and_is_not_valid(text, repairs):
    reading = read_graph(text, TWO)
    assert reading.graph is not None and not reading.valid
    assert reading.repairs == repairs and set(repairs) <= set(REPAIRS)


def test_a_comma_inside_a_prompt_is_not_repaired_away():
    text = graph(agent("a", "Lists such as [1, ]"), agent("b", reads=["a"]))
    assert read_graph(f"{text} ", TWO).graph.agents[0].prompt == "Lists such as [1, ]"
    assert read_graph(f"So {text}", TWO).graph.agents[0].prompt == "Lists such as [1, ]"
    quoted = graph(agent("a", 'Say "[1, ]"'), agent("b", reads=["a"])).replace('"a"]', '"a",]')
    reading = read_graph(quoted, TWO)
    assert reading.repairs == ("trailing_comma",)
    assert reading.graph.agents[0].prompt == 'Say "[1, ]"'


@pytest.mark.parametrize(
    "text, reason",
    [
        ("x" * (MAX_CHARACTERS + 1), "too_long"),
        ("", "no_json"),
        ("The answer is 46.", "no_json"),
        ("[1]", "no_json"),
        ("{oops}", "not_json"),
        ('{"agents": NaN}', "not_json"),
        ('{"agents":' + "[" * 5000, "not_json"),
        ('{"agents":' + "[" * 100 + "]" * 100 + "}", "not_json"),  # one deeper than is read
        ('{"agents":' + "[" * 99 + "]" * 99 + "}", "schema"),
        (CHAIN[:-1] + ', "agents": []}', "not_json"),  # a key twice
        (f"{CHAIN} {CHAIN}", "not_json"),
        ('{"agents": {}}', "schema"),
        (CHAIN[:-1] + ', "more": 1}', "schema"),
        (CHAIN.replace('"You add."', "46"), "schema"),
        (CHAIN.replace('["a"]', '"a"'), "schema"),
        (CHAIN.replace('"reads": []', '"reads": null'), "schema"),
        (CHAIN.replace(', "reads": []', ""), "schema"),
        (graph(), "agents"),
        (graph(agent("a")), "agents"),
        (graph(agent("a"), agent("b", reads="a"), agent("c", reads="b")), "agents"),
        (graph(agent("a"), agent("a", reads=["a"])), "id"),
        (graph(agent("A"), agent("b", reads=["A"])), "id"),
        (graph(agent(""), agent("b", reads=[""])), "id"),
        (graph(agent("a\n"), agent("b", reads=["a\n"])), "id"),
        (graph(agent("a", "  "), agent("b", reads=["a"])), "prompt"),
        (graph(agent("a", "x" * 301), agent("b", reads=["a"])), "prompt"),
        (graph(agent("a", "x\0"), agent("b", reads=["a"])), "prompt"),
        (graph(agent("a", "\ud800"), agent("b", reads=["a"])), "prompt"),
        (graph(agent("a"), agent("b", reads=["b"])), "reads"),
        (graph(agent("a"), agent("b", reads=["c"])), "reads"),
        (graph(agent("a"), agent("b", reads=["a", "a"])), "reads"),
        (graph(agent("a", reads=["b"]), agent("b", reads=["a"])), "cycle"),
        (graph(agent("a"), agent("b")), "final"),
    ],
)
def test_what_is_no_graph_says_why(text, reason):
    reading = read_graph(text, TWO)
    assert reading.graph is None and reading.reason == reason and reason in REASONS


def test_limits_bound_agents_and_reads():
    names = "abcde"
    wide = Limits(low=1, high=5, reads=4)
    star = graph(*[agent(n) for n in names[:4]], agent("e", reads=names[:4]))
    assert read_graph(star, wide).valid
    assert read_graph(star, Limits(low=1, high=5, reads=3)).reason == "reads"
    assert read_graph(star, Limits(low=1, high=4)).reason == "agents"
    assert read_graph(graph(agent("a")), wide).valid


def test_levels_follow_the_edges_and_not_the_list():
    # c reads nobody; a and d read c; b reads a and d.
    text = graph(agent("a", reads="c"), agent("b", reads="ad"), agent("c"), agent("d", reads="c"))
    found = read_graph(text, FEW).graph
    assert [[a.id for a in level] for level in found.levels()] == [["c"], ["a", "d"], ["b"]]
    assert found.final.id == "b"


def test_random_graphs_are_valid_and_uniform():
    rng, roles = random.Random(0), ["one", "two", "three", "four"]
    made = [random_graph(rng, roles, TWO) for _ in range(1600)]
    assert all(read_graph(g.text(), TWO).valid for g in made)
    # 4 x 4 prompts, and b reads a: 16 graphs, 100 each. A count outside 60 to 145 has odds of
    # less than 1 in 10,000 each (4 standard deviations of 9.7 and more).
    counts = [sum(g == kind for g in made) for kind in {g.text(): g for g in made}.values()]
    assert len(counts) == 16 and min(counts) > 60 and max(counts) < 145
    some = [random_graph(rng, roles, FEW) for _ in range(300)]
    assert {len(g.agents) for g in some} == {1, 2, 3, 4}
    assert all(check_graph(g, FEW) is None for g in some)
    for g in some:
        ids = [agent.id for agent in g.agents]
        assert all(set(agent.reads) <= set(ids[:i]) for i, agent in enumerate(g.agents))
    # Of three agents in a row the last is the final one, and a and b must each be read:
    # b reads a or not, c reads b, and a is read by b or c: 3 ways, of which none is left out.
    three = {random_graph(rng, ["x"], Limits(3, 3)).text() for _ in range(60)}
    assert len(three) == 3


@pytest.mark.parametrize(
    "prompt, leaked",
    [
        ("Say 46.", True),
        ("The sum is 46.0, check it", True),
        ("It is $1,046 or 46!", True),
        ("12-46", True),
        ("92/2 or 23/46", True),
        ("Add 23 and 15.", False),
        ("Say 460 or 4.6 or 146.", False),
        ("You add.", False),
    ],
)
def test_a_leak_is_the_gold_value_in_a_prompt(prompt, leaked):
    found = read_graph(graph(agent("a", prompt), agent("b", reads="a")), TWO).graph
    assert leaks(found, "Calculate 23 + 15 + 8", "46") is leaked
    assert not leaks(found, "Calculate 46 + 0 + 0", "46"), "the question has it already"


def test_a_leak_is_found_in_an_id_too():
    found = read_graph(graph(agent("a46"), agent("b", reads=["a46"])), TWO).graph
    assert leaks(found, "Calculate 23 + 15 + 8", "46")
    assert leaks(found, "Calculate 1 - 47", "-46")


def test_the_instruction_shows_a_graph_that_is_one():
    shown = re.search(r"\{.*\}", instruction(TWO))[0]
    assert read_graph(shown, TWO).valid
    assert "team of 2 agents" in instruction(TWO)
    assert "1 to 4 agents" in instruction(FEW)


# The fuzz: mutations of graphs, judged a second time by a naive reader of the same rules.


def twice(pairs):
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def naive(text: str, limits: Limits) -> bool:
    """Whether the text is a valid graph, by the rules one after the other."""
    body = text.strip()
    if body.startswith("```"):
        head, _, rest = body.partition("\n")
        if head.rstrip(" \t") not in ("```", "```json") or not rest.endswith("```"):
            return False
        body = rest[:-3]
    try:
        value = json.loads(body, object_pairs_hook=twice, parse_constant=lambda _: 1 / 0)
    except (ValueError, AssertionError, ZeroDivisionError, RecursionError):
        return False
    if type(value) is not dict or list(value) != ["agents"] or type(value["agents"]) is not list:
        return False
    agents = value["agents"]
    if not limits.low <= len(agents) <= limits.high or len(text) > MAX_CHARACTERS:
        return False
    for one in agents:
        if type(one) is not dict or sorted(one) != ["id", "prompt", "reads"]:
            return False
        if type(one["id"]) is not str or type(one["prompt"]) is not str:
            return False
        if type(one["reads"]) is not list or any(type(name) is not str for name in one["reads"]):
            return False
        letters = "abcdefghijklmnopqrstuvwxyz"
        if not 1 <= len(one["id"]) <= 16 or one["id"][0] not in letters:
            return False
        if set(one["id"]) - set(letters + "0123456789_"):
            return False
        prompt = one["prompt"]
        if not prompt.strip() or len(prompt) > limits.prompt_characters:
            return False
        if any(c != "\n" and c != "\t" and not printable(c) for c in prompt):
            return False
    names = [one["id"] for one in agents]
    if len(set(names)) != len(names):
        return False
    for one in agents:
        if len(one["reads"]) != len(set(one["reads"])) or len(one["reads"]) > limits.reads:
            return False
        if any(name not in names for name in one["reads"]):
            return False
    reads = {one["id"]: one["reads"] for one in agents}
    ordered = any(
        all(set(reads[name]) <= set(order[:i]) for i, name in enumerate(order))
        for order in itertools.permutations(names)
    )
    return ordered and sum(not any(n in r for r in reads.values()) for n in names) == 1


def printable(character: str) -> bool:
    try:
        return bool(character.encode("utf-8")) and not re.match(r"[\0-\x1f\x7f-\x9f]", character)
    except UnicodeEncodeError:
        return False


JUNK = [
    "{",
    "}",
    "[",
    "]",
    '"',
    ",",
    ":",
    "\\",
    "\n",
    " ",
    "a",
    "b",
    "z",
    "0",
    "1e9",
    "null",
    "```",
]
JUNK += ["```json\n", "\\u0000", "\\ud83d", "é", "\ud800", "\x7f", "NaN", "agents", "reads", "id"]
VALUES = [None, 0, "", " ", "a", "b", "c", "A", [], ["a"], ["b"], ["a", "b"], {}, True, "x" * 41]


def mutate(rng: random.Random, text: str) -> str:
    """Change the text itself: cut, copy, swap, put junk in."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        i, j = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        j = min(j, i + rng.choice((1, 1, 2, 10, 60)))
        text = rng.choice((
            text[:i] + text[j:],
            text[:i] + rng.choice(JUNK) + text[i:],
            text[:i] + rng.choice(JUNK) + text[j:],
            text[:j] + text[i:],
            rng.choice(("Sure! ", "```json\n", "```\n", " \n")) + text,
            text + rng.choice(("```", "\n```", "}", "\n", " Done.")),
        ))  # fmt: skip
    return text


def bend(rng: random.Random, value: dict) -> dict:
    """Change what the graph says: one field of an agent, an agent more, one less."""
    agents = value["agents"]
    kind = rng.randrange(6)
    if kind < 3 and agents:
        rng.choice(agents)[rng.choice(("id", "prompt", "reads"))] = rng.choice(VALUES)
    elif kind == 3:
        agents.append({"id": rng.choice("abcdef"), "prompt": "x", "reads": rng.choice(([], ["a"]))})
    elif kind == 4 and agents:
        agents.pop(rng.randrange(len(agents)))
    elif agents:
        rng.choice(agents)["reads"] = rng.sample("abcd", rng.randrange(4))
    return value


def test_ten_thousand_fuzzed_texts_are_read_as_the_naive_reader_reads_them():
    rng, accepted, repaired = random.Random(7), 0, 0
    for _ in range(10_000):
        value = random_graph(rng, ["You add.", 'Say "so".', "Zähl \\ [1,]"], FEW).model_dump()
        for _ in range(rng.choice((0, 0, 1, 2))):
            value = bend(rng, value)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 1)))
        text = mutate(rng, text if rng.random() < 0.8 else f"```json\n{text}\n```")
        reading = read_graph(text, FEW)
        assert reading.valid is naive(text, FEW), text
        assert (reading.graph is None) == (reading.reason is not None)
        if reading.graph is not None:
            assert naive(reading.graph.text(), FEW), text
        accepted += reading.valid
        repaired += reading.graph is not None and not reading.valid
    assert accepted > 1000 and repaired > 300 and accepted + repaired < 7000
