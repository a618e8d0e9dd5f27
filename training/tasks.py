"""What a task asks of the policy: its prompt, its demonstrations, its rewards, its evaluation.

    task = task_of(settings, policy)
    prompt = task.prompt("Calculate 23 + 15 + 8")
    scores = task.score(examples, groups, seed=0)     # all completions of a step together

Two kinds: the policy answers the question itself (all tasks but one), or it writes a graph of
agents that do (--task orchestrator). The training loop is the same for both.
"""

from random import Random

import data
from rlm import parallel
from rlm.agents.graph import Graph, Limits, instruction, random_graph
from rlm.errors import InputError
from rlm.records import Prompt, Rollout, Score
from rlm.rollouts import scoring
from rlm.seeds import derive

CHUNK = 256  # questions whose graphs are run together


def task_of(settings, policy, shots=()):
    """Return the task of the settings; the orchestrator's opens the agents' frozen model.

    shots: worked examples that stand before every question.
    """
    if settings.task == "orchestrator":
        return Orchestration(settings, policy)
    return Answering(settings, policy.tokenizer, policy.model.generation_config, shots)


def check_shots(settings, task, max_tokens: int, context_tokens: int | None) -> None:
    """InputError if the worked examples leave no room for a completion of max_tokens."""
    if not task.shots or not context_tokens:
        return
    tokens = len(task.prompt("?").ids)
    room = context_tokens - tokens
    if room < max_tokens:
        less = f", or --max-tokens below {room}" if room > 1 else ""
        raise InputError(
            f"{settings.given('shots')}: with the instruction they take {tokens} tokens, and with "
            f"--max-tokens {max_tokens} more than the model's context of {context_tokens}; use "
            f"fewer{less}"
        )


def table(settings, summaries: list[dict]) -> str:
    """Return the summaries of evaluations as a Markdown table, as the task shows them."""
    if settings.task == "orchestrator":
        from rlm.agents.evaluation import table as of_graphs

        return of_graphs(summaries)
    from rlm.evaluation.measure import table as of_answers

    return of_answers(summaries)


class Answering:
    """The policy reasons and answers, in a format."""

    def __init__(self, settings, tokenizer, generation_config=None, shots=()):
        self.settings, self.tokenizer = settings, tokenizer
        self.engines: tuple = ()  # that run what is scored
        self.generation_config, self.shots = generation_config, tuple(shots)
        self.toolbox = settings.toolbox()
        self.asking = {"shots": self.shots, "role": settings.role}
        self.asking |= {"tools": self.toolbox} if self.toolbox else {}
        self._rewards: dict = {}

    def prompt(self, question: str, kind: str = "number") -> Prompt:
        """Return what the policy is shown. kind: of the answer that is asked for."""
        asking = self.asking if kind == "number" else self.asking | {"kind": kind}
        return data.make_prompt(question, self.tokenizer, self.settings.format, **asking)

    def prepare(self, examples, tell) -> dict:
        """Do what comes before all demonstrations; return facts for the manifest, if there are any.

        tell: called with lines for the console.
        """
        return {}

    def demonstration(self, example) -> dict:
        """Return prompt_ids, completion_ids and end_ids of the example's solution.

        With tools also `learned`; --call-fraction of them show calls, chosen by their ids.
        """
        options: dict = {"generation_config": self.generation_config} | self.asking
        if self.toolbox:
            drawn = Random(derive("calls", self.settings.seed, example.id)).random()
            options["calls"] = drawn < self.settings.call_fraction
        return data.sft_tokens(example, self.tokenizer, self.settings.format, **options)

    def score(self, examples, groups, *, seed: int) -> list[list[Score]]:
        """Return what each of the [B][G] completions earned."""
        settings = self.settings
        self._rewards = self._rewards or settings.reward_functions()
        asked = [e for e, group in zip(examples, groups, strict=True) for _ in group]
        scores = iter(
            scoring.score_all(
                asked,
                [rollout for group in groups for rollout in group],
                settings.format,
                settings.rewards,
                self._rewards,
                scoring.Limits(settings.max_tokens, settings.overlong_tokens),
            )
        )
        return [[next(scores) for _ in group] for group in groups]

    def measure(self, engine, examples, **options):
        """Return the `rlm.evaluation.measure.Evaluation` of the engine's model."""
        from rlm.evaluation.measure import measure

        options |= {"asking": self.asking}
        return measure(engine, self.tokenizer, examples, self.settings.format, **options)


class Orchestration:
    """The policy writes a graph of agents, which a frozen model runs."""

    shots, toolbox = (), None

    def __init__(self, settings, policy):
        from rlm.agents.runner import open_runner

        self.settings, self.tokenizer = settings, policy.tokenizer
        self.generation_config = policy.model.generation_config
        self.limits = Limits(**settings.limits())
        self.runner = open_runner(
            policy,
            settings.agent_model,
            loading=settings.loading(),
            engine=settings.engine_options(),
            max_tokens=settings.agent_tokens,
            temperature=settings.agent_temperature,
        )
        self.engines = (self.runner.engine,)
        self._right: dict[str, Graph] = {}  # what `prepare` found for a question, by its id

    def prompt(self, question: str, kind: str = "number") -> Prompt:
        """Return what the orchestrator is shown: how to write a graph, and the question.

        InputError for an answer that is no number: whether a graph leaks it could not be told.
        """
        if kind != "number":
            raise InputError(f"task orchestrator: a question whose answer is of kind {kind}; its "
                             "questions need numbers as answers")  # fmt: skip
        from rlm.models.prompts import chat_prompt

        told = {"role": "system", "content": instruction(self.limits)}
        turns = [told, {"role": "user", "content": question}]
        return chat_prompt(turns, self.tokenizer, "plain")

    def prepare(self, examples, tell) -> dict:
        """Run --graph-tries random graphs for each question; return how many one of them answers.

        Processes share the questions. What is right is told as GRPO tells it, so the first that
        is right is a demonstration that nobody wrote (rejection sampling, arXiv:2308.01825).
        InputError as of `prompt`.
        """
        tries, world = self.settings.graph_tries, parallel.world()
        if not tries:
            return {"kind": "graphs"}
        for kind in sorted({example.kind for example in examples}):
            self.prompt("?", kind)  # told before anything is run
        mine = world.shard(examples)
        found: list[Graph | None] = []
        for start in range(0, len(mine), CHUNK):
            found += self._tried(mine[start : start + CHUNK], tries)
            done = min(len(examples), world.size * len(found))
            right = sum(map(bool, found)) / len(found)
            each = f"{tries} random graph{'s' * (tries > 1)} each"
            tell(f"{done:,} of {len(examples):,} questions tried with {each}: {right:.0%} have a "
                 "right one")  # fmt: skip
        graphs = world.unshard(found, "the graphs that were tried")
        pairs = zip(examples, graphs, strict=True)
        self._right = {example.id: graph for example, graph in pairs if graph}
        return {"kind": "graphs", "graph_tries": tries, "right_graphs": len(self._right)}

    def _tried(self, examples, tries: int) -> list[Graph | None]:
        """Return the first of each question's random graphs that is right, None for none.

        A question has no graph twice, and no more of them once one was right.
        """
        drawn = [self._graphs(example, tries) for example in examples]
        found: list[Graph | None] = [None] * len(examples)
        for number in range(tries):
            left = [i for i, texts in enumerate(drawn) if not found[i] and number < len(texts)]
            if not left:
                break
            groups = [[Rollout([], [], drawn[i][number], "stop")] for i in left]
            seed = derive("tries", self.settings.seed, number)
            outcomes = self._outcomes([examples[i] for i in left], groups, seed=seed)
            for i, (outcome,) in zip(left, outcomes, strict=True):
                found[i] = outcome.reading.graph if outcome.right else None
        return found

    def _graphs(self, example, tries: int) -> list[str]:
        """Return different random graphs, fewer than `tries` where there are hardly so many."""
        rng = Random(derive("tries", self.settings.seed, example.id))
        drawn: dict[str, None] = {}  # in the order in which they were drawn
        for _ in range(20 * tries):
            drawn[random_graph(rng, self.settings.roles, self.limits).text()] = None
            if len(drawn) == tries:
                break
        return list(drawn)

    def demonstration(self, example) -> dict:
        """Return the tokens of a valid graph: the one that `prepare` found right, or a random one.

        Random ones teach JSON, and not which roles are right.
        """
        from rlm.models.prompts import token_ids

        rng = Random(derive("demonstration", self.settings.seed, example.id))
        graph = self._right.get(example.id) or random_graph(rng, self.settings.roles, self.limits)
        ends = data.end_ids(self.tokenizer, self.generation_config)
        completion = [*token_ids(self.tokenizer, graph.text()), ends[0]]
        prompt = self.prompt(example.question, **example.asks).ids
        return {"prompt_ids": prompt, "completion_ids": completion, "end_ids": ends}

    def score(self, examples, groups, *, seed: int) -> list[list[Score]]:
        """Return what each of the [B][G] graphs earned; all of them are run together."""
        from rlm.agents.scores import score

        found = self._outcomes(examples, groups, seed=seed)
        return [[score(outcome) for outcome in row] for row in found]

    def _outcomes(self, examples, groups, *, seed: int) -> list[list]:
        from rlm.agents.scores import outcomes

        keep = self.settings.keep_leaks
        return outcomes(self.runner, examples, groups, self.limits, keep_leaks=keep, seed=seed)

    def measure(self, engine, examples, **options):
        """Return the evaluation of the graphs, with the control arm beside it."""
        from rlm.agents.evaluation import measure

        prompts = [self.prompt(e.question, **e.asks) for e in examples]
        options |= {"keep_leaks": self.settings.keep_leaks}
        return measure(engine, self.runner, examples, prompts, self.limits, **options)
