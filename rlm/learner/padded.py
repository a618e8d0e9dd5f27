"""Hidden states of completions by plain forwards: each stands with its prompt, padded on the right.

For models whose attention the packed layout does not serve. What is causal never sees what stands
to its right, so no mask is needed and no family can get the padding wrong.
"""

import torch

from rlm.learner.packed_groups import like_lengths


def states(base, packed, *, logits: bool = False) -> torch.Tensor:
    """Return what predicts each target, [N, H], in the order of `packed.targets`.

    packed: `rlm.learner.logprobs.Packed`. logits: those of the model itself, [N, V].
    """
    rows = [prompt + c[:-1] for prompt, completions in packed.groups for c in completions]
    counts = [len(c) for _, completions in packed.groups for c in completions]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    parts: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for cut in like_lengths([len(rows[row]) for row in order]):
        members = order[cut]
        longest = len(rows[members[0]])
        ids = [rows[row] + [0] * (longest - len(rows[row])) for row in members]
        ids = torch.tensor(ids, device=packed.ids.device)  # [rows, T]
        found = (base if logits else base.get_decoder())(input_ids=ids, use_cache=False)
        found = found.logits if logits else found.last_hidden_state
        for row, own in zip(members, found, strict=True):
            length = len(rows[row])
            own = own[length - counts[row] : length]
            parts[row] = own if packed.learned is None else own[torch.tensor(packed.learned[row])]
    return torch.cat(parts)


def tokens(groups) -> int:
    """Return the tokens that the forwards of `states` go through, padding not counted."""
    return sum(len(prompt) + len(c) - 1 for prompt, cs in groups for c in cs)
