"""A model all of whose weights learn, and whether any of them did.

    network = learn_all(network)      # every weight gets a gradient, routers excepted
    ...                               # some steps
    unchanged(network)                # True if no weight is another than at the start

What comes out is a whole model: a folder with config.json and weights that stands where an adapter
may stand, on no base (rlm.models.lookup.is_whole). How it is trained or saved is not known here.
"""

import torch

from rlm.models.adapters import FINGERPRINT, ModelError, fingerprint
from rlm.models.lora_targets import ROUTER

LEARNING = (torch.float32, torch.bfloat16, torch.float16)
START = "_rlm_start"  # set on a model by `learn_all`


def learn_all(network):
    """Return the network with every weight learning but those of routers, as with a LoRA.

    What it was at the start is remembered in short: its fingerprint, and a sum for each weight.
    ModelError for weights that cannot learn, such as quantised ones.
    """
    for name, weight in network.named_parameters():
        if weight.dtype not in LEARNING:
            raise ModelError(
                f"--train full: {name} is quantised ({weight.dtype}) and cannot learn; give a "
                "model in float32, bfloat16 or float16, or use --train lora"
            )
        weight.requires_grad_(not ROUTER.search(name.rpartition(".")[0]))
    setattr(network, FINGERPRINT, fingerprint(network))  # of the start, whatever is learned
    setattr(network, START, sums(network))
    return network


def unchanged(network) -> bool | None:
    """Return whether no weight is another than at `learn_all`; None without that."""
    start = getattr(network, START, None)
    return None if start is None else start == sums(network)


@torch.no_grad()
def sums(network) -> list[int]:
    """Return the sum of each learning weight's bits, taken as whole numbers.

    It is another one if a single bit is; that changes of many bits cancel out in every weight is
    out of the question.
    """
    sizes = {2: torch.int16, 4: torch.int32}
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    return [int(w.view(sizes[w.element_size()]).sum(dtype=torch.int64)) for w in trained]
