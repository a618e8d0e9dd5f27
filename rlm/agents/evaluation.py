"""What an orchestrator does with questions, beside the same frozen model asked directly.

The control has the tokens that the graph's agents may write: once in one long answer, once as
votes, one for each agent. What the graph adds is its accuracy less the better control's.
"""

import time
from math import sqrt

from rlm import parallel
from rlm.agents.graph import Limits
from rlm.agents.runner import Runner
from rlm.agents.scores import Outcome, outcomes
from rlm.answers import reading
from rlm.answers.kinds import judge
from rlm.evaluation import markdown, statistics
from rlm.evaluation.measure import Evaluation, accuracy_cell, row_of, summarise
from rlm.records import Rollout

VOTE_TEMPERATURE = 0.7  # of the votes where agents are greedy: greedy votes are all the same


def measure(
    engine,
    runner: Runner,
    examples,
    prompts,
    limits: Limits,
    *,
    name: str,
    max_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    keep_leaks: bool = False,
) -> Evaluation:
    """Return what the graphs written by the engine's model make of `examples`, and the control.

    prompts: the examples' for the orchestrator. The other arguments are those of
    `rlm.evaluation.measure.measure`; the summary has its metrics, where format_rate is the share of
    valid graphs, and those of `_added`. Of several processes each runs the agents of its share
    of the examples, those of the control too, and gets the others' from them.
    """
    from rlm.engine.engine import Sampling

    sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
    start = time.perf_counter()
    groups = engine.generate(prompts, samples, sampling, seed=seed)
    world = parallel.world()
    share = world.shard(examples), world.shard(groups)
    own = outcomes(runner, *share, limits, keep_leaks=keep_leaks, seed=seed)
    found = world.unshard(own, "the agents' answers")
    seconds = time.perf_counter() - start
    judged = [
        [_judged(e.gold, outcome, rollout) for outcome, rollout in zip(row, group, strict=True)]
        for e, row, group in zip(examples, found, groups, strict=True)
    ]
    rows, agents = [], []
    for example, group, row in zip(examples, judged, found, strict=True):
        winner = statistics.majority([sample["value"] for sample in group]) or 0
        graph = row[winner].reading.graph
        agents.append(len(graph.agents) if graph else limits.high)
        rows.append(row_of(example, group))
    direct = zip(*control(runner, world.shard(examples), world.shard(agents), seed), strict=True)
    for shown, (one, votes) in zip(
        rows, world.unshard(direct, "the control's answers"), strict=True
    ):
        shown |= {"direct_right": one, "direct_votes_right": votes}
    flat = [outcome for row in found for outcome in row]
    summary = summarise(name, rows, judged, samples) | {"seconds": seconds}
    return Evaluation(name, rows, summary | _of_graphs(flat) | _added(rows))


def _judged(gold: str, outcome: Outcome, rollout) -> dict:
    """Return the reading of one completion in the terms of `rlm.evaluation.measure.judge_groups`.

    The last number is the final agent's; only its form is let pass, not a graph that leaks or
    could not be run.
    """
    formal = outcome.run is not None and outcome.reason in (None, outcome.answer.reason)
    last = reading.last_number(outcome.run.text if outcome.run and formal else "")
    verdict = "right" if outcome.right else "wrong" if outcome.reason is None else outcome.reason
    return {
        "reasoning": outcome.transcript(),
        "answer": outcome.answer.canonical or "",
        "verdict": verdict,
        "reason": outcome.reason or "",
        "tokens": len(rollout.ids),
        "finish": rollout.finish,
        "right": outcome.right,
        "steps": 0,
        "text": rollout.text,
        "value": outcome.answer.value,
        "strict": outcome.reading.valid,
        "last_number": reading.equal(last, reading.read_gold(gold)),
        "last_value": last.value,
        "leak": outcome.leak,
        "agent_tokens": outcome.run.tokens if outcome.run else 0,
    }


def control(runner: Runner, examples, agents: list[int], seed: int) -> tuple[list, list]:
    """Return ([B] right in one long answer, [B] right by votes) of the model asked directly.

    agents: for each example the number of its graph's agents, n. The long answer may take n times
    an agent's tokens, each of n votes as many as an agent.
    """
    direct, votes = [False] * len(examples), [False] * len(examples)
    for count in sorted(set(agents)):
        places = [i for i, n in enumerate(agents) if n == count]
        questions = [examples[i].question for i in places]
        one = {"samples": 1, "max_tokens": count * runner.max_tokens}
        many = {"samples": count, "max_tokens": runner.max_tokens}
        hot = runner.temperature or VOTE_TEMPERATURE
        long = runner.ask(questions, **one, temperature=runner.temperature, seed=seed)
        short = runner.ask(questions, **many, temperature=hot, seed=seed)
        for found, rollouts in ((direct, long), (votes, short)):
            for i, row in zip(places, rollouts, strict=True):
                found[i] = _voted(row, examples[i], runner.format_name)
    return direct, votes


def _right(example, run, format_name: str) -> bool:
    return bool(judge(example, run.text, format_name, finish=run.finish).right)


def _voted(row: list, example, format_name: str) -> bool:
    said = [r or Rollout([], [], "", "stop") for r in row]
    read = [judge(example, r.text, format_name, finish=r.finish) for r in said]
    winner = statistics.majority([answer.value for answer in read])
    return winner is not None and bool(read[winner].right)


def _of_graphs(flat: list[Outcome]) -> dict[str, float]:
    """Return shares of all completions: valid, repaired, leaking; agent_tokens is their mean."""
    count = len(flat)
    repaired = sum(o.reading.graph is not None and not o.reading.valid for o in flat)
    return {
        "graph_valid_fraction": sum(o.reading.valid for o in flat) / count,
        "graph_repaired_fraction": repaired / count,
        "leak_fraction": sum(o.leak for o in flat) / count,
        "agent_tokens": sum(o.run.tokens for o in flat if o.run) / count,
    }


def _added(rows: list[dict]) -> dict[str, float]:
    """Return the controls' accuracies and what the graphs add to the better one.

    added_value: difference of shares of the questions, -1 to 1, with a 95 % interval from the
    differences question by question (normal approximation).
    """
    count = len(rows)
    shares = {
        k: sum(row[k] for row in rows) / count for k in ("direct_right", "direct_votes_right")
    }
    better = max(shares, key=lambda name: shares[name])
    differences = [row["right"] - row[better] for row in rows]
    mean = sum(differences) / count
    half = 1.96 * sqrt(sum((d - mean) ** 2 for d in differences)) / count
    return {
        "direct_accuracy": shares["direct_right"],
        "direct_votes_accuracy": shares["direct_votes_right"],
        "added_value": mean,
        "added_value_low": mean - half,
        "added_value_high": mean + half,
    }


def headline(summary: dict) -> str:
    """Return what the graphs add, in one line."""
    s = {name: 100 * value for name, value in summary.items() if isinstance(value, float)}
    return (
        f"{summary['model']}: the graphs add {s['added_value']:+.1f} points "
        f"[{s['added_value_low']:+.1f}, {s['added_value_high']:+.1f}] to the same frozen model "
        f"asked directly: {s['accuracy']:.1f} % against {s['direct_accuracy']:.1f} % in one answer "
        f"and {s['direct_votes_accuracy']:.1f} % by votes"
    )


def table(summaries: list[dict]) -> str:
    """Return the summaries as a Markdown table, and a headline for each below it."""
    head = ["model", "accuracy [95 %]", "lenient [95 %]", "added value", "direct",
            "direct, votes", "valid graphs", "leaks", "agent tokens", "tokens",
            "seconds"]  # fmt: skip
    shares = ("direct_accuracy", "direct_votes_accuracy", "graph_valid_fraction", "leak_fraction")
    lines = [
        [s["model"], accuracy_cell(s, "accuracy"), accuracy_cell(s, "accuracy_lenient"),
         f"{100 * s['added_value']:+.1f}", *(f"{100 * s[k]:.1f} %" for k in shares),
         f"{s['agent_tokens']:.1f}", f"{s['mean_tokens']:.1f}", f"{s['seconds']:.1f}"]
        for s in summaries
    ]  # fmt: skip
    return "\n".join([markdown.table(head, lines), "", *map(headline, summaries)])


def fixed_graphs(runner: Runner, examples, graphs: list, *, seed: int = 0) -> list[list[bool]]:
    """Return [graphs][B]: whether each graph, the same for all questions, is right on each.

    What an orchestrator that does not look at the question could reach at best, and, taking the
    best graph of each question, what one that knew everything could.
    """
    jobs = [(e.question, graph) for graph in graphs for e in examples]
    runs = iter(runner.run(jobs, seed=seed))
    return [[_right(e, next(runs), runner.format_name) for e in examples] for _ in graphs]
