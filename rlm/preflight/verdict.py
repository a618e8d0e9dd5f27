"""Whether a GRPO run is worth its time: GO or NO-GO, decided on what a probe has measured.

Pure functions on plain numbers. How they are measured is in rlm/learner/rehearsal.py; this knows
neither models nor settings.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil, log

from rlm.preflight.forecast import Forecast, Learning, Plan, Probe, duration, forecast

MOST_CUT = 0.3  # share of cut-off completions above which most groups lose their best answers
MUCH_CUT = 0.2
MOST_UNREADABLE = 0.5  # of the completions that ended by themselves
FEW_LIVE = 0.25  # share of the groups below which most of the sampling is for nothing
MOST_MEMORY, MUCH_MEMORY = 0.95, 0.8  # of what can be had
FEW_COMPLETIONS = 16  # so few say little
FORM = 0.1  # more right answers by the last number than by the format: the format is missing
LONGER = 4  # --max-tokens is raised by so much at once, then measured again


@dataclass(frozen=True, slots=True)
class Verdict:
    """reasons: why not, each with what to change; none is GO. cautions: what is worth knowing."""

    reasons: list[str]
    cautions: list[str]

    @property
    def go(self) -> bool:
        return not self.reasons


def needed_tokens(max_tokens: int, truncated: float, room_tokens: int | None) -> int:
    """Return the --max-tokens that 95 % of the completions are expected to need.

    An estimate: as if each token were as likely as the last one to be the end, so that the share
    `truncated` of completions longer than max_tokens falls to 0.05. At most four times
    max_tokens, in whole multiples of 32, and no more than the context has room for.

    >>> needed_tokens(160, 0.36, None)  # 160 * ln 0.05 / ln 0.36 = 469.2
    480
    """
    factor = min(LONGER, log(0.05) / log(truncated)) if truncated < 1 else LONGER
    wanted = ceil(max_tokens * factor / 32) * 32
    return min(wanted, room_tokens) if room_tokens else wanted


def decide(probe: Probe, learning: Learning, plan: Plan) -> Verdict:
    """Return GO or NO-GO with the flags to change. A reason is what would waste the whole run."""
    found = (
        _memory(probe, learning, plan),
        _time(forecast(probe, learning, plan)),
        _length(probe),
        _reading(probe),
        _groups(probe, plan),
    )
    reasons = [text for must, text in filter(None, found) if must]
    cautions = [text for must, text in filter(None, found) if not must]
    completions = probe.questions * probe.group_size
    if completions < FEW_COMPLETIONS:
        cautions.append(f"{completions} completions say little; try more questions with --probe")
    return Verdict(reasons, cautions)


Finding = tuple[bool, str] | None  # whether it is a reason for NO-GO, and the text


def _memory(probe: Probe, learning: Learning, plan: Plan) -> Finding:
    need, total = learning.peak_bytes, learning.total_bytes
    takes = f"learning {learning.tokens} tokens at once takes {gigabytes(need)} of "
    takes += f"{gigabytes(total)} that can be had"
    if not learning.fits:
        quantised = ", or --quantize 4bit" if plan.can_quantize else ""
        return True, (
            f"{takes}; use a smaller --max-tokens ({probe.max_tokens}) or model{quantised}"
        )
    if learning.budget_tokens < learning.asked_tokens:
        return not learning.halves, (
            f"micro-batches of {learning.asked_tokens} tokens do not fit into the memory; "
            f"use --token-budget {learning.budget_tokens}"
        )
    half = learning.budget_tokens // 2
    if need > MOST_MEMORY * total:
        return True, f"{takes}; use --token-budget {half}"
    if need > MUCH_MEMORY * total:
        return False, f"{takes}; should it get less, use --token-budget {half}"
    return None


def _time(told: Forecast) -> Finding:
    if told.steps:
        return None
    one = duration(told.step_seconds + 2 * told.validation_seconds)
    return True, (
        f"one step and two validations take {one}, which is more than --budget gives; give more "
        "time, or use a smaller --questions-per-step or --eval-samples"
    )


def _length(probe: Probe) -> Finding:
    if probe.truncated <= MUCH_CUT:
        return None
    must = probe.truncated > MOST_CUT
    cut = f"{probe.truncated:.0%} of the completions are cut off and score 0 whatever they reason"
    tokens = needed_tokens(probe.max_tokens, probe.truncated, probe.room_tokens)
    if probe.unreadable_ended > MOST_UNREADABLE or probe.truncated == 1:
        return must, f"{cut}; run train_sft.py first, so that the model learns to come to an end"
    if tokens <= probe.max_tokens:
        return must, f"{cut}, and the context has no more room; run train_sft.py on short answers"
    return must, f"{cut}; use --max-tokens {tokens}"


def _reading(probe: Probe) -> Finding:
    if probe.unreadable_ended <= MOST_UNREADABLE:
        return None
    # Where enough groups still differ, GRPO learns the format by itself.
    must = probe.live < FEW_LIVE
    return must, (
        f"no answer can be read in {probe.unreadable_ended:.0%} of the completions that came to an "
        "end; run train_sft.py first and give its adapter with --adapter, or the --format that "
        f"the model knows{_only_form(probe)}"
    )


def _only_form(probe: Probe) -> str:
    """Return that the model can reason and lacks the format, in words; "" if that is not seen."""
    if probe.lenient is None or probe.lenient < (probe.correct or 0.0) + FORM:
        return ""
    return (
        f"; by the last number {probe.lenient:.0%} are right, so the format is what is missing: "
        "train_sft.py --demonstrations own teaches it in the model's own words"
    )


def _groups(probe: Probe, plan: Plan) -> Finding:
    if probe.truncated > MOST_CUT:  # what the groups will be with longer completions is not known
        return None
    others = "" if plan.replace_dead_groups else ", or try --replace-dead-groups 4"
    if probe.live == 0:
        if probe.wrong == 1:
            what = "every answer is wrong; run train_sft.py first, or take easier data"
            what += _only_form(probe) if not _reading(probe) else ""
        elif probe.right == 1:
            what = f"every answer is right; take harder data (--task, --digits){others}"
        else:
            what = f"raise --group-size or --temperature, or take other data{others}"
        return True, f"no group's rewards differ, so there is nothing to learn: {what}"
    if probe.wrong == 1:
        return False, "no answer is right, only the other rewards teach; run train_sft.py first"
    if probe.live < FEW_LIVE:
        side = "easier" if probe.wrong > probe.right else "harder"
        return False, f"only {probe.live:.0%} of the groups teach; take {side} data{others}"
    return None


def report(probe: Probe, learning: Learning, plan: Plan, now: datetime) -> list[str]:
    """Return the whole report, a line each; the last lines are the verdict."""
    told, verdict = forecast(probe, learning, plan), decide(probe, learning, plan)
    return [
        f"probe    {probe.questions} questions x {probe.group_size} samples, "
        f"reward {probe.reward:.3f}",
        f"lengths  p50 {probe.p50_tokens}, p95 {probe.p95_tokens} of at most {probe.max_tokens} "
        f"tokens; cut off {probe.truncated:.0%}",
        f"reading  {_unreadable(probe)}",
        f"groups   {_shares(probe)}",
        f"speed    {_speed(probe, learning)}",
        f"memory   {_memory_line(probe, learning)}, {learning.tokens} tokens learned at once",
        f"time     step {duration(told.step_seconds)}, validation "
        f"{duration(told.validation_seconds)}, run of {told.steps} steps and {told.validations} "
        f"validations {duration(told.run_seconds)}: until {_end(now, told)}{_busy(probe)}",
        *(f"warning: {text}" for text in verdict.cautions),
        "GO" if verdict.go else "NO-GO",
        *(f"  {text}" for text in verdict.reasons),
    ]


def brief(probe: Probe, learning: Learning, plan: Plan, now: datetime) -> list[str]:
    """Return the report in three lines, and a warning for each reason and caution."""
    told, verdict = forecast(probe, learning, plan), decide(probe, learning, plan)
    return [
        f"probe: reward {probe.reward:.3f}, groups {_shares(probe)}; {_unreadable(probe)}",
        f"probe: cut off {probe.truncated:.0%}, p50 {probe.p50_tokens}, p95 {probe.p95_tokens} of "
        f"{probe.max_tokens} tokens; {_speed(probe, learning)}; "
        f"memory {_memory_line(probe, learning)}",
        f"probe: a step takes about {duration(told.step_seconds)}, the run "
        f"{duration(told.run_seconds)}: until {_end(now, told)}{_busy(probe)}",
        *(f"warning: {text}" for text in verdict.reasons + verdict.cautions),
    ]


def _shares(probe: Probe) -> str:
    return f"all right {probe.right:.0%}, mixed {probe.mixed:.0%}, all wrong {probe.wrong:.0%}"


def _unreadable(probe: Probe) -> str:
    reasons = ", ".join(f"{name} {share:.0%}" for name, share in sorted(probe.reasons.items()))
    right = "" if probe.correct is None else f"; right {probe.correct:.0%}"
    last = "" if probe.lenient is None else f"{',' if right else ';'} by the last number "
    last += "" if probe.lenient is None else f"{probe.lenient:.0%}"
    return (
        f"unreadable {probe.unreadable:.0%}" + (f" ({reasons})" if reasons else "") + right + last
    )


def _speed(probe: Probe, learning: Learning) -> str:
    sampling = f"sampling {probe.completion_tokens / probe.sample_seconds:,.0f} tokens/s"
    if not learning.seconds:
        return f"{sampling}, learning not measured"
    return f"{sampling}, learning {learning.tokens / learning.seconds:,.0f} tokens/s"


def _memory_line(probe: Probe, learning: Learning) -> str:
    taken = [gigabytes(x) for x in (probe.sample_peak_bytes, learning.peak_bytes)]
    return f"sampling {taken[0]}, learning {taken[1]} of {gigabytes(learning.total_bytes)}"


def _busy(probe: Probe) -> str:
    return f"; {probe.busy}" if probe.busy else ""


def _end(now: datetime, told: Forecast) -> str:
    return (now + timedelta(seconds=told.run_seconds)).strftime("%Y-%m-%d %H:%M")


def gigabytes(number: float) -> str:
    """Return bytes as GB.

    >>> gigabytes(1_250_000_000)
    '1.25 GB'
    """
    return f"{number / 1e9:.2f} GB"
