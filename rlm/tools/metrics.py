"""What completions did with tools, in numbers. Pure: rollouts in, shares out."""

from collections import Counter
from collections.abc import Sequence

from rlm.records import Rollout, ToolCall  # noqa: F401  ToolCall is in the example


def call_metrics(rollouts: Sequence[Rollout], right: Sequence[float | None]) -> dict[str, float]:
    """Return the metrics of calls. right: of each completion 1.0 if its answer is right.

    calls_mean: calls a completion. call_fraction: completions with one. tool_tokens: tokens that
    tools wrote, a completion. failed_call_fraction: of the calls those that failed, and by reason
    as failed_call_REASON; without a call there is none of them. right_with_call,
    right_without_call: shares of right answers among completions with and without a call, where
    there are such, and all are known to be right or not.

    >>> call = ToolCall("calculator", "{}", "84", None, 1, 2, 0, 5, 7)
    >>> called = Rollout([5, 6, 7], [-0.1, 0.0, 0.0], "...", "stop", calls=(call,))
    >>> call_metrics([called, Rollout([5], [-0.1], "", "stop")], [1.0, 0.0])  # doctest: +ELLIPSIS
    {'calls_mean': 0.5, 'call_fraction': 0.5, 'tool_tokens': 1.0, 'failed_call_fraction': 0.0, ...
    """
    count = max(1, len(rollouts))
    calls = [call for rollout in rollouts for call in rollout.calls]
    metrics = {
        "calls_mean": len(calls) / count,
        "call_fraction": sum(bool(rollout.calls) for rollout in rollouts) / count,
        "tool_tokens": sum(rollout.tool_tokens for rollout in rollouts) / count,
    }
    if calls:
        metrics["failed_call_fraction"] = sum(bool(call.failure) for call in calls) / len(calls)
    reasons = Counter(call.failure for call in calls if call.failure)
    metrics |= {f"failed_call_{name}": n / len(calls) for name, n in sorted(reasons.items())}
    if all(value is not None for value in right):
        for name, wanted in (("right_with_call", True), ("right_without_call", False)):
            own = [v for r, v in zip(rollouts, right, strict=True) if bool(r.calls) == wanted]
            metrics |= {name: sum(map(float, own)) / len(own)} if own else {}  # type: ignore[arg-type]
    return metrics
