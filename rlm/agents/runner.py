"""Runs graphs of agents on a frozen model: all graphs of a step together, level by level.

    runner = Runner(engine, max_tokens=24)
    runs = runner.run([(question, graph), ...], seed=0)
    rollouts = runner.ask(questions, samples=2, max_tokens=48, temperature=0.7, seed=0)  # no graph

The agents' model never changes, so what it said to a prompt with a seed is kept and not asked
again. It knows nothing of gold answers.
"""

from collections import OrderedDict
from dataclasses import dataclass

from rlm.agents.graph import Agent, Graph
from rlm.answers.formats import get_format
from rlm.engine.engine import Engine, Sampling
from rlm.models.prompts import chat_prompt, make_prompt
from rlm.models.templates import chat_text
from rlm.records import Prompt, Rollout
from rlm.seeds import derive

KEPT = 50_000  # answers of agents that are kept
MARK = "0451"  # to see whether a chat template writes a system turn at all


@dataclass(frozen=True)
class Words:
    """What one agent was and said. tokens: of its output, whether or not it was kept."""

    agent: Agent
    output: str
    tokens: int


@dataclass(frozen=True)
class Run:
    """What a graph did: the words of its agents as listed in the graph, the final one's output.

    reason: "agent_prompt_too_long" where an agent's prompt did not fit its model, else None.
    finish: of the final agent, as in `rlm.records.Rollout`.
    """

    words: list[Words]
    text: str
    reason: str | None = None
    finish: str = "stop"

    @property
    def tokens(self) -> int:
        """The tokens that all its agents wrote."""
        return sum(words.tokens for words in self.words)

    def records(self) -> list[dict]:
        """Return the agents for rollouts.jsonl: id, prompt, output, reads."""
        return [
            {"id": w.agent.id, "prompt": w.agent.prompt, "output": w.output, "reads": w.agent.reads}
            for w in self.words
        ]


class Runner:
    """engine: of the frozen model; nobody else may use it meanwhile.

    max_tokens, temperature: of each agent. format_name: how the final answer is to be written;
    the final agent is told so after its own prompt.
    """

    def __init__(
        self, engine: Engine, *, max_tokens: int, temperature: float = 0.0, format_name="plain"
    ):
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.max_tokens, self.temperature = max_tokens, temperature
        self.format_name = format_name
        self.calls = 0  # prompts that the model was really asked
        self._kept: OrderedDict[tuple, Rollout] = OrderedDict()
        added = self.tokenizer.added_tokens_decoder.values()
        self._marks = [token.content for token in added if token.special]
        self._hears_system = not self.tokenizer.chat_template or MARK in chat_text(
            self.tokenizer, MARK, [{"role": "user", "content": "?"}]
        )

    def run(self, jobs: list[tuple[str, Graph]], *, seed: int) -> list[Run]:
        """Return what each graph makes of its question, in order.

        Agents with the same prompt say the same, whichever graph they are in.
        """
        sampling = Sampling(max_tokens=self.max_tokens, temperature=self.temperature)
        levels = [graph.levels() for _, graph in jobs]
        said: list[dict[str, Rollout | None]] = [{} for _ in jobs]
        for depth in range(max(map(len, levels), default=0)):
            places, prompts = [], []
            for job, ((question, graph), own) in enumerate(zip(jobs, levels, strict=True)):
                for agent in own[depth] if depth < len(own) else ():
                    places.append((job, agent.id))
                    prompts.append(self.prompt(agent, question, said[job], agent is graph.final))
            rollouts = self._answers(prompts, sampling, seed)
            for (job, name), rollout in zip(places, rollouts, strict=True):
                said[job][name] = rollout
        return [_run(graph, own) for (_, graph), own in zip(jobs, said, strict=True)]

    def ask(
        self, questions: list[str], *, samples: int, max_tokens: int, temperature: float, seed: int
    ) -> list[list[Rollout | None]]:
        """Return [B][samples] rollouts of the model asked directly; None where it does not fit."""
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
        prompts = [make_prompt(q, self.tokenizer, self.format_name) for q in questions]
        columns = [
            self._answers(prompts, sampling, derive(seed, "direct", g)) for g in range(samples)
        ]
        return [list(row) for row in zip(*columns, strict=True)]

    def prompt(self, agent: Agent, question: str, said: dict, final: bool) -> Prompt:
        """Return an agent's prompt: its own as system turn; the question and what it reads.

        Where the chat template leaves system turns out, its own stands above the question.
        """
        read = "".join(f"\n\n{name}: {self._plain(_text(said[name]))}" for name in agent.reads)
        role, user = self._plain(agent.prompt), f"{question}{read}"
        if not self._hears_system:
            turns = [{"role": "user", "content": f"{role}\n\n{user}"}]
            return chat_prompt(turns, self.tokenizer, self.format_name)
        told = f"{role}\n\n{get_format(self.format_name).instruction}" if final else role
        turns = [{"role": "system", "content": told}, {"role": "user", "content": user}]
        return chat_prompt(turns, self.tokenizer, self.format_name)

    def _plain(self, text: str) -> str:
        """Return a model's text without marks that would end a turn or begin another."""
        for mark in self._marks:
            text = text.replace(mark, " ")  # by nothing, two halves could make another one
        return text

    def _answers(self, prompts: list[Prompt], sampling: Sampling, seed: int) -> list:
        """Return the rollout of each prompt, None where it does not fit the model."""
        seed = 0 if sampling.way == "greedy" else seed
        keys = [(tuple(p.ids), sampling, seed) for p in prompts]
        limits = [n for n in (self.engine.context_tokens, self.engine.cache_tokens) if n]
        room = min(limits, default=None)
        fits = [room is None or len(p.ids) + sampling.max_tokens <= room for p in prompts]
        new = {
            key: prompt
            for key, prompt, fit in zip(keys, prompts, fits, strict=True)
            if fit and key not in self._kept
        }
        self._ask_model(new)
        found = [self._kept[key] if fit else None for key, fit in zip(keys, fits, strict=True)]
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    def _ask_model(self, new: dict[tuple, Prompt]) -> None:
        """Sample what is new, all at once; each prompt has random numbers of its own."""
        self.calls += len(new)
        open_ones: dict[int, tuple] = {}
        try:
            for key, prompt in new.items():
                ids, sampling, seed = key
                own = derive("agent", seed, *ids)
                open_ones[self.engine.submit(prompt, sampling, [own])[0]] = key
            while open_ones:
                for event in self.engine.step():
                    if event.rollout:
                        self._kept[open_ones.pop(event.id)] = event.rollout
        finally:
            for id in open_ones:
                self.engine.cancel(id)
            if self.engine.idle:
                self.engine.reset()


def _text(rollout: Rollout | None) -> str:
    return rollout.text.strip() if rollout else ""


def _tokens(rollout: Rollout | None) -> int:
    return len(rollout.ids) if rollout else 0


def _run(graph: Graph, said: dict[str, Rollout | None]) -> Run:
    words = [Words(agent, _text(said[agent.id]), _tokens(said[agent.id])) for agent in graph.agents]
    missing = any(rollout is None for rollout in said.values())
    final = said[graph.final.id]
    reason = "agent_prompt_too_long" if missing else None
    if final is None:
        return Run(words, "", reason)
    return Run(words, final.text, reason, final.finish)


def open_runner(
    policy, agent_model: str | None, *, loading: dict, engine: dict, **limits
) -> Runner:
    """Return a runner of the policy's own base with its LoRA off, or of another frozen model.

    agent_model: None for the base; else an adapter's folder, a model's folder, or a name on the
    hub, loaded apart. loading, engine: for `open_policy` and `Engine`. The format of the answers
    is that of the adapter, else "plain".
    """
    from contextlib import nullcontext

    from rlm.models.lookup import folder_of, is_trained
    from rlm.models.policy import open_policy

    if agent_model is None:
        off = getattr(policy.model, "disable_adapter", nullcontext)
        with off():  # the engine takes over the weights once, here: the base's own
            return Runner(Engine(policy.model, policy.tokenizer, **engine), **limits)
    place = str(folder_of(agent_model) or agent_model)
    model, adapter = (None, place) if is_trained(place) else (place, None)
    opened = open_policy(model, adapter, **loading)
    form = opened.manifest.get("format", "plain")
    return Runner(Engine(opened.model, opened.tokenizer, **engine), format_name=form, **limits)
