"""A batch's figures, its replaced groups and its records; all by hand."""

import pytest
import torch

from rlm.records import Example, Prompt, Rollout, Score
from rlm.rollouts.batch import ALL, Batch, describe, records


def rollout(tokens: int, finish: str = "stop", text: str = "<think>\n</think>\n1") -> Rollout:
    return Rollout(list(range(tokens)), [-0.5] * tokens, text, finish)


def scored(*values: float) -> list[Score]:
    return [
        Score(v, {"correctness": v}, None if v else "no_close" if i % 2 else "empty")
        for i, v in enumerate(values)
    ]


def batch(*groups: tuple[float, ...]) -> Batch:
    """Groups of these rewards; the completions of a group have 1, 2, 3, ... tokens."""
    examples = [Example(f"q{b}", f"question {b}", "1") for b in range(len(groups))]
    prompts = [Prompt([b, b + 1]) for b in range(len(groups))]
    rollouts = [[rollout(i + 1) for i in range(len(group))] for group in groups]
    return Batch(examples, prompts, rollouts, [scored(*group) for group in groups])


def test_figures_by_hand():
    metrics = describe(batch((1, 0), (0, 0), (1, 1), (0, 1)), "think")
    assert metrics["reward_mean"] == 0.5
    assert metrics["reward_spread"] == 0.5  # four ones, four zeros; divided by n
    assert metrics["live_fraction"] == 0.5
    assert metrics["all_right_fraction"] == 0.25
    assert metrics["all_wrong_fraction"] == 0.25
    assert metrics["mixed_fraction"] == 0.5
    assert metrics["completion_tokens"] == 1.5
    # wrong completions: (.,0)->index 1, (0,0)->0 and 1, (0,.)->0: two "empty", two "no_close"
    assert metrics["unreadable_empty"] == 0.25
    assert metrics["unreadable_no_close"] == 0.25
    assert metrics["unreadable_fraction"] == 0.5


def test_truncated_completions_leave_the_count_only_if_asked():
    made = batch((1, 0))
    made.groups[0][1] = rollout(5, "length")
    assert made.loss_tokens(True) == 6 and made.loss_tokens(False) == 1
    assert made.loss_mask([(0, ALL)], True).tolist() == [1, 1]
    assert made.loss_mask([(0, ALL)], False).tolist() == [1, 0]
    assert describe(made, "think")["truncated_fraction"] == 0.5


def test_dead_groups_are_replaced_and_still_counted():
    first, fresh = batch((1, 1), (1, 0), (0, 0)), batch((0, 0), (0, 1))
    done = first.with_dead_replaced(fresh)
    assert done.rewards().tolist() == [[0, 1], [1, 0], [0, 0]]
    assert [e.id for e in done.examples] == ["q1", "q1", "q2"]
    # five groups were sampled: 1, 1, 1, 0, 0, 0, 0, 0, 0, 1 in all
    assert describe(done, "think")["reward_mean"] == pytest.approx(0.4)
    assert describe(done, "think")["live_fraction"] == pytest.approx(0.4)
    assert not done.all_live()
    assert first.rewards().tolist() == [[1, 1], [1, 0], [0, 0]], "the old batch is not changed"


def test_records_are_one_per_completion():
    found = records(3, batch((1, 0)), torch.tensor([[1.0, -1.0]]))
    assert [(r["step"], r["reward"], r["advantage"]) for r in found] == [(3, 1, 1.0), (3, 0, -1.0)]


def test_signs_of_hacking_are_counted_in_discarded_groups_too():
    empty = rollout(1)  # its reasoning holds nothing
    listed = rollout(1, text="<think>\n1 + 1 = 2\n</think>\n1 or 2")
    copied = rollout(1, text="<think>\nEasy.\n</think>\n7")
    first, fresh = batch((0, 0), (1, 0)), batch((1, 0), (1, 1))
    first.groups[0][:] = [empty, copied]
    first.examples[0] = Example("q0", "What is 7 - 6?", "1")
    first.groups[1][:] = [listed, listed]
    fresh.groups[0][:] = [listed, empty]
    fresh.groups[1][:] = [empty, empty]
    # The first group is dead and replaced; the second of the fresh ones is not needed.
    metrics = describe(first.with_dead_replaced(fresh), "think")
    assert metrics["several_answers_fraction"] == 3 / 8
    assert metrics["empty_reasoning_fraction"] == 4 / 8
    assert metrics["copied_numbers_fraction"] == 1 / 8
    assert metrics["repeated_tags_fraction"] == 0


class Digits:
    """A tokenizer whose token n is the text "n"."""

    def decode(self, ids, **options):
        return "".join(map(str, ids))


def test_records_have_the_tokens_lengths_and_log_probabilities():
    made = batch((1, 0))
    made.groups[0][0] = Rollout([7, 10, 2], [-0.004, -1.239, -0.5], "<think>\n710", "stop")
    made.prompts[0] = Prompt([0, 1], prefill="<think>\n")
    found = records(3, made, torch.tensor([[1.0, -1.0]]), Digits())
    assert found[0]["token_lengths"] == [1, 2, 0], "neither prefill nor end"
    assert str(found[0]["logprobs"]) == "[0, -1.24, -0.5]"
    assert "logprobs" not in records(3, made, torch.tensor([[1.0, -1.0]]))[0]


def test_facts_are_averaged_and_the_trace_goes_into_the_record():
    made = batch((1, 0), (0, 0))
    scores = [
        [Score(1.0, {}, None, {"agent_tokens": 4.0}, {"graph": {"agents": []}}),
         Score(0.0, {}, None, {"agent_tokens": 2.0})],
        [Score(0.0, {}, None, {"agent_tokens": 0.0})] * 2,
    ]  # fmt: skip
    made = Batch(made.examples, made.prompts, made.groups, scores)
    assert describe(made, "think")["agent_tokens"] == 1.5
    first, second, *_ = records(1, made, torch.zeros(2, 2))
    assert first["graph"] == {"agents": []} and "graph" not in second
    assert first["reward"] == 1.0
