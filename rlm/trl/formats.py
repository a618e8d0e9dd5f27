"""The number format of what learns, which TRL's trainers would change."""

from contextlib import contextmanager


@contextmanager
def kept_formats(model):
    """Inside the block TRL may make a trainer; after it what learns is in the format it was.

    On a base in 4 bits TRL rounds a LoRA to bfloat16. That takes away what small updates add up to,
    and on a GPU without bfloat16 the loss scaling of float16 has no kernel for it.
    """
    before = [(p, p.data) for p in model.parameters() if p.requires_grad]
    yield
    for parameter, data in before:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)
