"""A base that does not fit one GPU: its layers are sharded over the processes (FSDP2).

Each process keeps its part of every decoder layer's frozen weights; a layer is gathered when it
is its turn, forward and backward, and dropped again (torch's fully_shard; arXiv:2304.11277).
The adapter, the embeddings and the head stay whole in each: they are small beside the layers.

A layer is gathered by all processes together, so all have to run the same number of forwards and
backwards: who has fewer micro-batches runs along with a short one that counts for nothing.
"""

from collections.abc import Callable

from rlm.errors import InputError
from rlm.models.adapters import FINGERPRINT, fingerprint, network_of
from rlm.parallel import world

KEY = "_rlm_sharded"


def shard(model, device) -> None:
    """Spread the decoder layers of a model, which lies on the CPU, over the processes' devices.

    InputError for a model whose decoder layers cannot be found.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network = network_of(model)
    layers = getattr(network.get_decoder(), "layers", None)
    if not layers:
        raise InputError(
            f"{type(network).__name__}: its decoder layers are not where they are looked for, so "
            "it cannot be sharded; use configs/accelerate/one_machine.yaml"
        )
    setattr(network, FINGERPRINT, fingerprint(model))  # its weights are not whole any more
    trained = {p for p in model.parameters() if p.requires_grad}
    mesh = init_device_mesh(str(device).split(":")[0], (world().size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    model.to(device)
    setattr(model, KEY, True)


def sharded(model) -> bool:
    """Return whether `shard` was called on the model."""
    return getattr(model, KEY, False)


def missing_turns(model, turns: int) -> int:
    """Return how many passes this process has to run along with the one that has the most.

    turns: the passes of its own that it is about to run. All processes have to ask, before the
    first of them. 0 without a sharded base: then none waits for another inside a pass.
    """
    if not sharded(model):
        return 0
    return max(world().all_gather(turns, "the micro-batches")) - turns


def run_along(model, turns: int, backward: Callable | None = None) -> None:
    """Run so many passes that count for nothing; backward: takes the loss of each, if any."""
    import torch

    from rlm.learner.logprobs import pack, token_logprobs

    short = [([0], [[0, 0]])]
    for _ in range(turns):
        with torch.set_grad_enabled(backward is not None):
            packed = pack(short, device=next(model.parameters()).device)
            logprobs, _ = token_logprobs(model, packed)
        if backward:
            backward(0.0 * logprobs.sum())


def loading(options: dict) -> dict:
    """Return where and how a base is loaded that will be sharded: on the CPU, as it will run.

    options: device, dtype, quantize, as of `rlm.models.policy.open_policy`. InputError for a
    quantised one.
    """
    from rlm.models.loading import dtype_of, pick_device

    if options["quantize"] != "none":
        raise InputError(f"--quantize {options['quantize']}: cannot be sharded; use one of the two")
    device = pick_device(options["device"])
    dtype = str(dtype_of(options["dtype"], device)).removeprefix("torch.")
    return options | {"device": "cpu", "dtype": dtype}
