"""Rewards of one's own, for docs/data.md: every public function here is one, by its name.

python train_grpo.py --reward-file examples/my_rewards.py --rewards correctness=1,works=0.2
"""

from rlm.answers.formats import get_format, parse


def works(example, text: str, format_name: str) -> float:
    """1.0 for a reasoning of three lines or more."""
    reasoning = parse(text, get_format(format_name)).reasoning or ""
    return float(len(reasoning.splitlines()) >= 3)
