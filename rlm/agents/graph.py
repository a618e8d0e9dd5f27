"""A graph of agents as JSON: its schema, a strict reader, random graphs, and the leak check.

    {"agents": [{"id": "a", "prompt": "You add.", "reads": []},
                {"id": "b", "prompt": "You subtract.", "reads": ["a"]}]}

Each agent has a system prompt and reads the outputs of others; the one that nobody reads is the
final one. It does not know how agents are run (rlm.agents.runner) or what a graph is worth.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from random import Random

from pydantic import BaseModel, ConfigDict, ValidationError

from rlm.answers.reading import read_gold, read_value

MAX_CHARACTERS = 20_000  # of a text that is looked at; bounds the work
MAX_DEPTH = 100  # brackets in brackets; a graph needs 4, and Pythons differ in how many they read
ID = re.compile(r"[a-z][a-z0-9_]{0,15}")
FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+")
FRACTION = re.compile(r"\d+/\d+")

# Why a text is no graph; each is counted.
REASONS = (
    "too_long",  # more than MAX_CHARACTERS
    "no_json",  # no object in the text
    "not_json",  # not JSON, or a key stands twice
    "schema",  # other fields, or other types
    "agents",  # too few or too many
    "id",  # not ID, or twice
    "prompt",  # blank, too long, or with characters that are no text
    "reads",  # unknown, itself, twice, or too many
    "cycle",  # an agent would wait for itself
    "final",  # not exactly one that nobody reads
)
# What the prompts of random graphs are drawn from, for a model that can follow instructions.
ROLES = (
    "Make a short plan: which quantities are known, and in which order to calculate.",
    "Solve the problem step by step. Write down every calculation.",
    "Solve the problem in another way than the text you are given, then compare.",
    "Check each calculation in the text you are given and correct what is wrong.",
    "Read the text you are given and state the final answer of the problem.",
)


class Agent(BaseModel):
    """One agent: its name, its system prompt, the names of those whose outputs it reads."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    id: str
    prompt: str
    reads: list[str]


class Graph(BaseModel):
    """A graph that `check_graph` has passed: no cycle, exactly one final agent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    agents: list[Agent]

    @property
    def final(self) -> Agent:
        """The agent that nobody reads: its answer is the graph's."""
        read = {name for agent in self.agents for name in agent.reads}
        return next(agent for agent in self.agents if agent.id not in read)

    def levels(self) -> list[list[Agent]]:
        """Return the agents level by level: each reads only agents of earlier levels."""
        done: set[str] = set()
        found, left = [], list(self.agents)
        while left:
            ready = [agent for agent in left if done.issuperset(agent.reads)]
            assert ready, "a graph has no cycle"
            found.append(ready)
            done |= {agent.id for agent in ready}
            left = [agent for agent in left if agent.id not in done]
        return found

    def text(self) -> str:
        """Return the graph as compact JSON, the way that demonstrations write it."""
        return json.dumps(self.model_dump(), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Limits:
    """What a graph may be: agents from low to high, characters of a prompt, reads of an agent."""

    low: int = 2
    high: int = 2
    prompt_characters: int = 300
    reads: int = 4


@dataclass(frozen=True)
class Reading:
    """What a text says. graph: None where it is none, for `reason` (one of REASONS).

    repairs: what had to be put right before the graph could be read (of REPAIRS). Such a graph
    can be shown, but it is not a valid one.
    """

    graph: Graph | None
    repairs: tuple[str, ...] = ()
    reason: str | None = None

    @property
    def valid(self) -> bool:
        """Whether the text is a graph as it stands: nothing had to be put right."""
        return self.graph is not None and not self.repairs


def read_graph(text: str, limits: Limits) -> Reading:
    """Return the graph that a text states; never raises on a string.

    Valid is one JSON object, bare or as the only fenced block, with nothing but white space
    around it. Otherwise the repairs are tried in the order of REPAIRS, and named.
    """
    if len(text) > MAX_CHARACTERS:
        return Reading(None, reason="too_long")
    body, repairs = text.strip(), []
    if fenced := FENCE.fullmatch(body):
        body = fenced[1]
    value = _load(body)
    if value is None:
        if "{" not in body:
            return Reading(None, reason="no_json")
        for name, repair in JSON_REPAIRS.items():
            mended = repair(body)
            if mended != body:
                body, value = mended, _load(mended)
                repairs.append(name)
            if value is not None:
                break
    if value is None:
        return Reading(None, tuple(repairs), "not_json")
    try:
        graph = Graph.model_validate(value)
    except ValidationError:
        return Reading(None, tuple(repairs), "schema")
    reason = check_graph(graph, limits)
    return Reading(None if reason else graph, tuple(repairs), reason)


def check_graph(graph: Graph, limits: Limits) -> str | None:
    """Return why the graph is not allowed, one of REASONS, or None if it is."""
    agents, ids = graph.agents, [agent.id for agent in graph.agents]
    if not limits.low <= len(agents) <= limits.high:
        return "agents"
    if len(set(ids)) < len(ids) or not all(map(ID.fullmatch, ids)):
        return "id"
    for agent in agents:
        if not agent.prompt.strip() or len(agent.prompt) > limits.prompt_characters:
            return "prompt"
        if any(c not in "\n\t" and _no_text(c) for c in agent.prompt):
            return "prompt"
        others = set(ids) - {agent.id}
        if len(agent.reads) > limits.reads or len(set(agent.reads)) < len(agent.reads):
            return "reads"
        if not others.issuperset(agent.reads):
            return "reads"
    if _has_cycle(graph):
        return "cycle"
    read = {name for agent in agents for name in agent.reads}
    return None if len(set(ids) - read) == 1 else "final"


def _no_text(character: str) -> bool:
    """Return whether it is a control character, or half of a pair that UTF-8 cannot write."""
    code = ord(character)
    return code < 32 or 127 <= code < 160 or 0xD800 <= code <= 0xDFFF


def _has_cycle(graph: Graph) -> bool:
    left = {agent.id: set(agent.reads) for agent in graph.agents}
    while ready := [name for name, waits in left.items() if not waits & left.keys()]:
        for name in ready:
            del left[name]
    return bool(left)


def _depth(text: str) -> int:
    """Return how many brackets are open at once, at most, outside the text's strings."""
    steps = ((c in "{[") - (c in "}]") for _, c in _marks(text))
    return max(accumulate(steps), default=0)


def _load(text: str) -> dict | None:
    """Return the JSON object that the text is; None if it is none, or a key stands twice."""
    if _depth(text) > MAX_DEPTH:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except ValueError:  # of digits without end, too
        return None
    return value if isinstance(value, dict) else None


def _object(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _refuse(name: str):
    raise ValueError(f"{name} is no JSON")


def random_graph(rng: Random, roles: Sequence[str], limits: Limits) -> Graph:
    """Return a graph with prompts out of `roles`: number, prompts and edges are all chance.

    Agents are named a, b, c, ... and listed in an order in which they can run: each may read those
    before it, so that nothing written later can make a cycle. The edges are uniform over those
    that have one final agent.
    """
    count = rng.randint(limits.low, limits.high)
    ids = [chr(ord("a") + i) for i in range(count)]
    while True:
        graph = Graph(
            agents=[
                Agent(
                    id=name,
                    prompt=rng.choice(roles),
                    reads=[other for other in ids[:i] if rng.random() < 0.5],
                )
                for i, name in enumerate(ids)
            ]
        )
        if check_graph(graph, limits) is None:
            return graph


def leaks(graph: Graph, question: str, gold: str) -> bool:
    """Return whether the gold answer stands in a prompt (or an id), and not in the question.

    Numbers are compared by value and without their sign: "46.0" leaks 46, and so does "-46".
    A number in words is not seen, nor a sum whose result it is.
    """
    wanted = abs(read_gold(gold).value or 0)
    written = " ".join(f"{agent.prompt} {agent.id}" for agent in graph.agents)
    return wanted in _values(written) - _values(question)


def _values(text: str) -> set:
    found = [*NUMBER.findall(text), *FRACTION.findall(text)]
    return {read_value(number).value for number in found} - {None}


def instruction(limits: Limits) -> str:
    """Return what the orchestrator is told: the system turn of its prompt."""
    low, high = limits.low, limits.high
    number = str(high) if low == high else f"{low} to {high}"
    return (
        f"You direct a team of {number} agents that solve the problem of the user. Do not solve "
        "it yourself and do not state its answer: write which agents there are. Every agent sees "
        "the problem, its own prompt, and the outputs of the agents that it reads. The agent "
        "that no other one reads gives the final answer; there must be exactly one of those.\n"
        'Write one JSON object and nothing else, in this shape:\n{"agents":[{"id":"a","prompt":'
        '"what agent a shall do","reads":[]},{"id":"b","prompt":"what agent b shall do",'
        '"reads":["a"]}]}\n'
        f"Use lower-case ids and prompts of at most {limits.prompt_characters} characters."
    )


# --- repairs

# What can be put right in a text that is nearly JSON. Strings are left alone.


def without_text_around(text: str) -> str:
    """Return the text from its first brace, which it must have, to its last closing bracket."""
    start = text.index("{")
    end = max(text.rfind("}"), text.rfind("]"))
    return text[start : end + 1] if end > start else text[start:]


def _marks(text: str):
    """Yield (place, character) of what stands outside the strings of a JSON text."""
    inside = escaped = False
    for place, character in enumerate(text):
        if inside:
            inside = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            inside = True
        else:
            yield place, character


def without_trailing_commas(text: str) -> str:
    """Return the text without the commas that only a closing bracket follows."""
    marks = [(place, c) for place, c in _marks(text) if not c.isspace()]
    pairs = pairwise(marks)
    drop = {
        place
        for (place, c), (after, follows) in pairs
        if c == "," and follows in "]}" and not text[place + 1 : after].strip()
    }
    return "".join(c for place, c in enumerate(text) if place not in drop)


def closed(text: str) -> str:
    """Return the text with the brackets that were left open closed; a string is not.

    >>> closed(without_trailing_commas('{"a": [1, 2, ], "b": {'))
    '{"a": [1, 2 ], "b": {}}'
    """
    open_ones = []
    for _, character in _marks(text):
        if character in "{[":
            open_ones.append("}" if character == "{" else "]")
        elif open_ones and character == open_ones[-1]:
            open_ones.pop()
    return text + "".join(reversed(open_ones))


JSON_REPAIRS = {
    "text_around": without_text_around,
    "trailing_comma": without_trailing_commas,
    "unclosed": closed,
}
REPAIRS = tuple(JSON_REPAIRS)  # what a lenient reader would put right
