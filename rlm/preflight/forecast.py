"""How long a GRPO run will take, from what a probe has measured. Pure functions on plain numbers.

How they are measured is in rlm/learner/rehearsal.py, what follows from them in
rlm/preflight/verdict.py.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What a probe of Q questions with G samples each has measured. Shares are 0 to 1.

    reward, truncated, unreadable: of all completions; reasons: unreadable by its reason.
    unreadable_ended: of the completions that ended by themselves, 0.0 if none did.
    right, mixed, wrong, live: of the groups, as in `rlm.rollouts.batch.describe`.
    p50_tokens, p95_tokens: completion lengths, those that were cut off among them.
    room_tokens: the longest completion that the model's context allows, None for any.
    prompt_tokens: of all questions, each once; completion_tokens: of all completions.
    sample_seconds, sample_peak_bytes: of the sampling; how much of the memory it takes the engine
    decides by what is free.
    correct, lenient: completions that are right by the strict reading, and by the last number,
    whatever their format; None where that is not known.
    busy: that others took the processor meanwhile, in words; "" if they did not.
    """

    questions: int
    group_size: int
    max_tokens: int
    room_tokens: int | None
    reward: float
    truncated: float
    unreadable: float
    unreadable_ended: float
    reasons: dict[str, float]
    right: float
    mixed: float
    wrong: float
    live: float
    p50_tokens: int
    p95_tokens: int
    prompt_tokens: int
    completion_tokens: int
    sample_seconds: float
    sample_peak_bytes: int
    correct: float | None = None
    lenient: float | None = None
    busy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What one forward and backward of the largest micro-batch has measured.

    tokens: prompts and completions of that micro-batch. asked_tokens: of a micro-batch by the
    settings; budget_tokens: less, if that did not fit. fits: False if nothing did.
    halves: running out of memory halves the micro-batches; on a CPU it is the end.
    seconds: 0.0 where nothing fitted. peak_bytes: the most that the process took, or would have
    taken, where fits is False. total_bytes: what it can have.
    """

    tokens: int
    asked_tokens: int
    budget_tokens: int
    seconds: float
    fits: bool
    halves: bool
    peak_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The run that is asked for.

    steps: at most. budget_seconds: what all of it may take, None for any time. eval_every: steps
    between validations, 0 for only those of the start and of the last step. with_kl: the loss has
    a KL term. can_quantize: --quantize 4bit is still to be had. with_entropy: the loss has an
    entropy bonus. ahead: the next step's answers are sampled while a step is learned.
    """

    questions_per_step: int
    steps: int
    budget_seconds: float | None
    eval_every: int
    validation_questions: int
    updates_per_batch: int
    replace_dead_groups: int
    with_kl: bool
    can_quantize: bool
    with_entropy: bool = False
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of a step, of a validation, of the run; and the steps and validations of the run.

    Neither loading nor saving is in it.
    """

    step_seconds: float
    validation_seconds: float
    run_seconds: float
    steps: int
    validations: int


def quantile(values: list[int], share: float) -> int:
    """Return the smallest of the values that `share` of them do not exceed (nearest rank).

    >>> quantile([4, 1, 3, 2], 0.5), quantile([4, 1, 3, 2], 0.95)
    (2, 4)
    """
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


BUSY = 1.5  # a time, or a load, that many times what this process explains


def busy(wall_seconds: float, processor_seconds: float, load: float, cores: int) -> str:
    """Return that the machine is busy, in words; "" if it is not.

    wall_seconds, processor_seconds: of what was timed on the CPU; it keeps one thread working all
    the time, so on a quiet machine the second is at least the first. load: the mean number of
    programs that want a core, this one among them.

    >>> busy(10.0, 3.0, 9.1, 2)[:64]
    'the machine is busy (30% of one core for this process, load 9.1 '
    >>> busy(10.0, 19.0, 2.0, 2), busy(10.0, 9.5, 2.9, 2)
    ('', '')
    """
    if wall_seconds <= BUSY * processor_seconds and load <= BUSY * cores:
        return ""
    got = processor_seconds / wall_seconds
    return (
        f"the machine is busy ({got:.0%} of one core for this process, load {load:.1f} on {cores} "
        "cores): the forecast is for one as busy as now"
    )


def forecast(probe: Probe, learning: Learning, plan: Plan) -> Forecast:
    """Return the seconds that the run will take, as far as it goes on as the probe began.

    Sampling is scaled by the number of questions: a GPU that a probe does not fill is faster than
    that. Groups without a lesson are not learned from unless there is a KL term or an entropy
    bonus; the reference takes a third of a forward and backward. A validation is counted by its
    tokens.
    """
    rounds = 1 + _replacements(probe.live, plan.replace_dead_groups)
    learned = 1.0 if plan.with_kl or plan.with_entropy else min(1.0, probe.live * rounds)
    group = (probe.prompt_tokens + probe.completion_tokens) / probe.questions
    groups = plan.questions_per_step * learned
    referenced = groups if plan.with_kl else min(1.0, groups)  # one to know the KL by
    learned_tokens = (groups * plan.updates_per_batch + referenced / 3) * group
    rate = learning.tokens / learning.seconds if learning.seconds else float("inf")
    per_question = probe.sample_seconds / probe.questions
    turns = plan.questions_per_step * rounds * per_question, learned_tokens / rate
    step = max(turns) if plan.ahead else sum(turns)
    answer = (probe.prompt_tokens + probe.completion_tokens / probe.group_size) / probe.questions
    validation = plan.validation_questions * per_question * answer / group

    def run(steps: int) -> float:
        return steps * step + validations(steps, plan.eval_every) * validation

    steps = plan.steps
    if plan.budget_seconds is not None:
        # The first number of steps that takes too long, less one.
        steps = bisect_right(range(1, steps + 1), plan.budget_seconds, key=run)
    return Forecast(step, validation, run(steps), steps, validations(steps, plan.eval_every))


def validations(steps: int, eval_every: int) -> int:
    """Return how often a run of so many steps is validated: at its start, between, at its end.

    >>> validations(16, 8), validations(17, 8), validations(17, 0)
    (3, 4, 2)
    """
    between = (steps - 1) // eval_every if eval_every else 0
    return 2 + between if steps else 1


def _replacements(live: float, tries: int) -> int:
    """Return how often a step samples again until its dead groups are replaced, on average."""
    return min(tries, ceil((1 - live) / live)) if live else tries


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(0.84), duration(75), duration(600), duration(7_500)
    ('0.8 s', '75 s', '10 min', '2 h 5 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
