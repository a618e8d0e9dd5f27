"""Attention of packed groups, the learner's batch: completions that share one prompt.

A layout of `rlm.models.attention`: it travels through the model's forward as `layout=`. Two ways
to the same numbers: flash kernels (rlm.learner.flash) where they serve, else fused attention
under masks, with padding in buckets of like length. It does not know about losses.
"""

from functools import cached_property

import torch
import torch.nn.functional as F

from rlm.learner import flash
from rlm.models.attention import PLAIN, Rules, causal_mask, softmax_attention
from rlm.models.states import State, joined


class PackedGroups:
    """Attention where completions share one prompt: [prompt ; own tokens so far] for each.

    The flat row holds the prompts, one after the other, then the completions' inputs. Prompt
    tokens see their own prompt causally; a completion's see its prompt and themselves causally.
    prompts: tokens of each prompt. completions: (index of its prompt, tokens) of each completion
    in the order of the row, 1 token at least, the longest first.

    Under masks padding exists inside the attention only, in buckets of completions of like length.
    """

    def __init__(self, prompts: list[int], completions: list[tuple[int, int]], device="cpu"):
        self._prompts, self._completions, self._device = prompts, completions, device
        self.prompt_tokens = sum(prompts)
        self._masks: dict[int | None, list] = {}  # by window: of the prompts, then of each bucket
        self.windows: dict[int, int | None] = {}  # of each layer, as its attention was called

    @cached_property
    def plan(self) -> flash.Plan:
        return flash.Plan(self._prompts, self._completions, self._device)

    @cached_property
    def slots(self) -> torch.Tensor:
        """The filled places of the padded prompts."""
        return _filled(torch.tensor(self._prompts), max(self._prompts)).to(self._device)

    @cached_property
    def buckets(self) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
        """(tokens, longest, prompt of each row, filled places) of completions of like length."""
        found = []
        for rows in like_lengths([tokens for _, tokens in self._completions]):
            owners = torch.tensor([owner for owner, _ in self._completions[rows]])
            inputs = torch.tensor([tokens for _, tokens in self._completions[rows]])
            longest = int(inputs[0])
            place = [x.to(self._device) for x in (owners, _filled(inputs, longest))]
            found.append((int(inputs.sum()), longest, *place))
        return found

    def attend(self, layer, query, key, value, scaling, rules: Rules = PLAIN):
        """Return [1, N, H, D]. query [H, N, D], key and value [KV, N, D]."""
        self.windows[layer] = rules.window
        way = self.by_flash if flash.serves(query, key, value, rules) else self.by_masks
        return way(query, key, value, scaling, rules)[None]

    def by_flash(self, query, key, value, scaling, rules: Rules) -> torch.Tensor:
        """Return [N, H, D] by flash kernels."""
        return flash.attend(self.plan, query, key, value, scaling, rules.window)

    def by_masks(self, query, key, value, scaling, rules: Rules) -> torch.Tensor:
        """Return [N, H, D] by fused attention under masks."""
        # On a CPU the backward in bfloat16 takes up to three times as long as in float32.
        kind = query.dtype
        kind = torch.promote_types(kind, torch.float32) if query.device.type == "cpu" else kind
        flat = [x.transpose(0, 1).to(kind) for x in (query, key, value)]  # [N, heads, D]
        n, shape = self.prompt_tokens, (len(self._prompts), max(self._prompts))
        prompt = [_pad(x[:n], self.slots, *shape) for x in flat]
        # Prompts are padded on the right: what is causal never sees the padding.
        first, *masks = self._near(rules.window)
        out = softmax_attention(prompt[0], prompt[1], prompt[2], first, scaling, rules)
        outs = [_unpad(out, self.slots)]
        for (tokens, longest, owners, slots), mask in zip(self.buckets, masks, strict=True):
            q, k, v = (_pad(x[n : n + tokens], slots, len(owners), longest) for x in flat)
            k = torch.cat([prompt[1].index_select(0, owners), k], dim=2)  # [rows, KV, P + C, D]
            v = torch.cat([prompt[2].index_select(0, owners), v], dim=2)
            out = softmax_attention(q, k, v, mask, scaling, rules)
            outs.append(_unpad(out, slots))
            n += tokens
        return torch.cat(outs).to(query.dtype)

    def mix(self, layer, run, hidden):
        """Return the output [N, H] of a layer with states; see rlm.models.states.

        A prompt's state is made once; its completions begin from it, and the gradient of theirs
        goes through it into the prompt.
        """
        outs, found, start = [], [], 0
        for length in self._prompts:
            found.append(State())
            outs.append(run(hidden[None, start : start + length], found[-1])[0])
            start += length
        prompts = joined(found)
        for tokens, longest, owners, slots in self.buckets:
            flat = hidden[start : start + tokens]
            rows = flat.new_zeros(len(owners) * longest, flat.shape[1]).index_copy(0, slots, flat)
            rows = rows.view(len(owners), longest, -1)
            # A single token would be taken for a step of decoding, which writes in place.
            rows = F.pad(rows, (0, 0, 0, 1)) if longest == 1 else rows
            out = run(rows, prompts.select(owners))[:, :longest]
            outs.append(out.flatten(0, 1).index_select(0, slots))
            start += tokens
        return torch.cat(outs)

    def _near(self, window: int | None) -> list:
        """Return the masks of the prompts (None: causal) and of each bucket under a window.

        A bucket's is [rows, 1, C, P + C]: keys right of the prompt's end are padding, own keys
        causal. Made once for all layers of a window.
        """
        longest, device = max(self._prompts), self._device
        if window is not None and window >= longest + max((b[1] for b in self.buckets), default=0):
            window = None
        if window not in self._masks:
            near = None if window is None or window >= longest else window
            masks = [None if near is None else causal_mask(longest, device, near)]
            for _, own, owners, _ in self.buckets:
                begin = torch.tensor(self._prompts, device=device)[owners][:, None]  # [rows, 1]
                prompt = torch.arange(longest, device=device).expand(len(owners), -1)
                steps = torch.arange(own, device=device)
                seen = (prompt < begin)[:, None].expand(-1, own, -1)  # [rows, C, P]
                causal = causal_mask(own, device).expand(len(owners), -1, -1)
                mask = torch.cat([seen, causal], dim=2)
                if window is not None:
                    keys = torch.cat([prompt, begin + steps], dim=1)  # positions [rows, P + C]
                    mask &= (begin + steps)[:, :, None] - keys[:, None] < window
                masks.append(mask[:, None])
            self._masks[window] = masks
        return self._masks[window]


def like_lengths(lengths: list[int]) -> list[slice]:
    """Return slices of descending lengths: the longest of each at most twice its shortest."""
    buckets, start = [], 0
    for index, length in enumerate(lengths):
        if 2 * length < lengths[start]:
            buckets.append(slice(start, index))
            start = index
    return [*buckets, slice(start, len(lengths))] if lengths else []


def _filled(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """Return the indices of the filled places of a padded [len(lengths), longest], flattened."""
    return (torch.arange(longest) < lengths[:, None]).reshape(-1).nonzero()[:, 0]


def _pad(x: torch.Tensor, slots: torch.Tensor, rows: int, longest: int) -> torch.Tensor:
    """Return [rows, heads, longest, D], zero where nothing stands; x [tokens, heads, D]."""
    padded = x.new_zeros(rows * longest, *x.shape[1:]).index_copy(0, slots, x)
    return padded.view(rows, longest, *x.shape[1:]).transpose(1, 2)


def _unpad(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return [tokens, heads, D]; x [rows, heads, longest, D]."""
    return x.transpose(1, 2).flatten(0, 1).index_select(0, slots)
