"""One attention function for every model, and the layouts it serves.

The transformers model's own forward runs; only its attention is replaced, through
`transformers.AttentionInterface`. Inputs are flat, `input_ids` [1, N] with `position_ids`
[1, N]: no padding goes through the linear layers. A `layout` object travels through the
forward's keyword arguments and knows which of the N tokens see which keys.

It does not know about sampling, losses or adapters.
"""

from contextlib import contextmanager

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "rlm"


def layout_attention(
    module, query, key, value, attention_mask, scaling=None, dropout=0.0, layout=None, **kwargs
):
    """Return (attention output [1, N, H, D], None) as the layout computes it.

    query [1, H, N, D], key and value [1, KV, N, D], after the rotary embedding.
    """
    if layout is None:
        raise ValueError("the 'rlm' attention needs a layout= keyword in the forward call")
    return layout.attend(module.layer_idx, query[0], key[0], value[0], scaling), None


AttentionInterface.register(NAME, layout_attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@contextmanager
def use(model):
    """Run `model` with the layout attention inside the block, with its own before and after."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
