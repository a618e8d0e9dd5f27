"""Hidden states of completions by plain forwards: each stands with its prompt, padded on the right.

For models whose attention the packed layout does not serve. What is causal never sees what stands
to its right, so no mask is needed and no family can get the padding wrong.
"""

import torch

from rlm.models.attention import like_lengths


def states(base, groups, device, *, logits: bool = False) -> torch.Tensor:
    """Return what predicts each completion token, [N, H]: groups, then samples, then tokens.

    groups: (a prompt's ids, its completions' ids) each. logits: those of the model, [N, V].
    """
    rows = [(prompt + c[:-1], len(c)) for prompt, completions in groups for c in completions]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][0]))
    parts: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for cut in like_lengths([len(rows[row][0]) for row in order]):
        members = order[cut]
        longest = len(rows[members[0]][0])
        ids = [rows[row][0] + [0] * (longest - len(rows[row][0])) for row in members]
        network = base if logits else base.get_decoder()
        found = network(input_ids=torch.tensor(ids, device=device), use_cache=False)
        found = found.logits if logits else found.last_hidden_state  # [rows, T, H]
        for row, own in zip(members, found, strict=True):
            sequence, count = rows[row]
            parts[row] = own[len(sequence) - count : len(sequence)]
    return torch.cat(parts)


def tokens(groups) -> int:
    """Return the tokens that the forwards of `states` go through, padding not counted."""
    return sum(len(prompt) + len(c) - 1 for prompt, cs in groups for c in cs)
