"""What a graph of agents that the policy wrote is worth: read, run, judged against the gold.

The reward is 1 for the right final answer of a valid graph, else 0. A graph that had to be
repaired is not run and earns nothing; nor does one that states the answer itself (a leak),
unless leaks are kept.
"""

from dataclasses import dataclass

from rlm.agents.graph import Limits, Reading, leaks, read_graph
from rlm.agents.runner import Run, Runner
from rlm.answers.kinds import Verdict, judge
from rlm.records import Example, Rollout, Score


@dataclass(frozen=True)
class Outcome:
    """What became of one completion. run: None where it is no valid graph.

    answer: of the final agent. leak: the gold stands in a prompt, and not in the question.
    reason: why it earns nothing although nothing was wrong with the answer, or why there is none.
    """

    reading: Reading
    run: Run | None
    answer: Verdict
    leak: bool
    right: bool
    reason: str | None

    def transcript(self) -> str:
        """Return the agents' prompts and words as text, a paragraph each."""
        told = self.run.words if self.run else []
        return "\n\n".join(
            f"{w.agent.id}, {_reads(w.agent.reads)}: {w.agent.prompt}\n{w.output}" for w in told
        )


def _reads(names: list[str]) -> str:
    return f"reads {' and '.join(names)}" if names else "reads the question"


def outcomes(
    runner: Runner,
    examples: list[Example],
    groups: list[list[Rollout]],
    limits: Limits,
    *,
    keep_leaks: bool = False,
    seed: int,
) -> list[list[Outcome]]:
    """Return [B][G] outcomes: the valid graphs of all completions are run together."""
    readings = [[read_graph(rollout.text, limits) for rollout in group] for group in groups]
    jobs = [
        (example.question, reading.graph)
        for example, row in zip(examples, readings, strict=True)
        for reading in row
        if reading.valid and reading.graph
    ]
    runs = iter(runner.run(jobs, seed=seed))
    return [
        [_outcome(e, r, next(runs) if r.valid else None, runner, keep_leaks) for r in row]
        for e, row in zip(examples, readings, strict=True)
    ]


def _outcome(example, reading: Reading, run: Run | None, runner: Runner, keep_leaks) -> Outcome:
    if run is None or reading.graph is None:
        reason = f"graph_{reading.reason or 'repaired'}"
        return Outcome(reading, None, Verdict(False, reason=reason), False, False, reason)
    leak = leaks(reading.graph, example.question, example.gold)
    answer = judge(example, run.text, runner.format_name, finish=run.finish)
    failed: str | None = run.reason or ("leak" if leak and not keep_leaks else answer.reason)
    return Outcome(reading, run, answer, leak, bool(answer.right) and failed is None, failed)


def score(outcome: Outcome) -> Score:
    """Return the reward of a completion, its metrics, and its graph for rollouts.jsonl.

    facts, each to be averaged over all completions: graph_valid_fraction (a graph as it stands),
    graph_repaired_fraction (one only after repairs), agent_tokens (what its agents wrote),
    leak_fraction.
    """
    right, graph, run = float(outcome.right), outcome.reading.graph, outcome.run
    facts = {
        "graph_valid_fraction": float(outcome.reading.valid),
        "graph_repaired_fraction": float(graph is not None and not outcome.reading.valid),
        "agent_tokens": float(run.tokens if run else 0),
        "leak_fraction": float(outcome.leak),
    }
    trace = {"graph": graph.model_dump() if graph else None, "agents": run.records() if run else []}
    return Score(right, {"correctness": right}, outcome.reason, facts, trace)
