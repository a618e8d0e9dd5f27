"""The optimiser of the trainable weights: gradients cut to a norm, AdamW or Muon, float16's scale.

What AdamW works on is float32: a LoRA's weights are, and of weights in half precision a float32
copy is kept, their master (arXiv:1710.03740 section 3.1). A step changes the master and rounds it
into the weight: added to the weight itself, a small step would be rounded away. Where the model
computes in float16, whose smallest numbers are too large for many gradients, the loss is multiplied
by a factor that finds itself (section 3.2 there); a step whose gradients are not finite is left
out.
"""

import math

import torch

from rlm.errors import InputError
from rlm.learner.muon import Muon
from rlm.parallel import world

MOMENTS = {"adamw": 8, "adamw8bit": 2, "muon": 4}  # bytes of what is kept of a weight
HALF = (torch.float16, torch.bfloat16)


class Optimizer:
    """model: its parameters that require a gradient learn. kind: of MOMENTS.

    adamw8bit keeps the moments in 8 bits (arXiv:2110.02861), by bitsandbytes on CUDA; InputError
    where that is not there. muon goes as far in each direction of a matrix as in the others
    (`rlm.learner.muon`); InputError where not all that learns is matrices. fused: AdamW in one
    kernel on CUDA, for many weights.
    """

    def __init__(
        self,
        model,
        *,
        max_grad_norm: float,
        betas=(0.9, 0.95),
        kind: str = "adamw",
        fused: bool = False,
    ):
        self.learning_rate = 0.0  # set it before each step
        trained = [p for p in model.parameters() if p.requires_grad]
        self.kind, self.max_grad_norm = kind, max_grad_norm
        # What AdamW works on: (weight, its master) where that is a copy, else the weight alone.
        masters = {id(p): p.detach().float() for p in trained if p.dtype in HALF}
        self.copies = [(p, masters[id(p)]) for p in trained if id(p) in masters]
        self.weights = [masters.get(id(p), p) for p in trained]
        self._learning = False
        for weight, master in self.copies:
            weight.register_post_accumulate_grad_hook(self._handing_on(master))
        # What does not learn has the format that the products are made in.
        half = any(p.dtype == torch.float16 for p in model.parameters())
        device = self.weights[0].device.type
        self.rule = rule(kind, self.weights, betas=betas, fused=fused)
        self.scaler = torch.amp.GradScaler(device, enabled=half)
        self.scaler.scale(torch.zeros((), device=device))  # its factor is there from now on

    def _handing_on(self, master: torch.Tensor):
        """Return a hook that adds a weight's gradient to its master's, in float32, and drops it.

        Gradients of another backward than that of this optimiser stay where they are.
        """

        def hand_on(weight: torch.Tensor) -> None:
            if not self._learning or weight.grad is None:
                return
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

        return hand_on

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the loss to those that are there."""
        self._learning = True
        try:
            self.scaler.scale(loss).backward()
        finally:
            self._learning = False

    def clear(self) -> None:
        """Drop the gradients that are there."""
        self.rule.zero_grad()
        for weight, _ in self.copies:  # of a backward that ran out of memory
            weight.grad = None

    def step(self) -> float:
        """Update the weights and drop the gradients; return their norm before it was cut.

        The gradients of all processes are added up first. The norm is not finite where the step
        was left out, and 0 where no process has a gradient.
        """
        if not self._gathered():
            return 0.0
        for group in self.rule.param_groups:
            group["lr"] = self.learning_rate
        self.scaler.unscale_(self.rule)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm))
        world().check_same(norm, "the norm of the gradients")
        if math.isfinite(norm):
            self.scaler.step(self.rule)
            self._round()
        self.scaler.update()
        self.clear()
        return norm

    @torch.no_grad()
    def _round(self) -> None:
        """Round the masters into the weights."""
        for weight, master in self.copies:
            weight.copy_(master)

    def _gathered(self) -> bool:
        """Add up the gradients of all processes; return whether there is any."""
        here = any(weight.grad is not None for weight in self.weights)
        if not any(world().all_gather(here, "the gradients")):
            return False
        if world().size > 1:
            for weight in self.weights:
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
            world().all_reduce([weight.grad for weight in self.weights], "the gradients")
        return True

    @property
    def scaling(self) -> bool:
        """True while the loss is scaled up: then a step left out may be the factor's fault."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    @property
    def count(self) -> int:
        """How many numbers learn."""
        return sum(weight.numel() for weight in self.weights)

    def pending_bytes(self) -> int:
        """Return the bytes that a first step takes beside the activations: gradients, moments."""
        return 0 if self.rule.state else (4 + MOMENTS[self.kind]) * self.count

    def told(self) -> str:
        """Return in a line what a weight takes while it learns."""
        halves = {id(master) for _, master in self.copies}
        size = sum((2 if id(w) in halves else 4) * w.numel() for w in self.weights) / self.count
        parts = {"the weight": size, "its gradient": 4, "AdamW's moments": MOMENTS[self.kind]}
        parts |= {"its float32 master": 4} if self.copies else {}
        each = sum(parts.values())
        told = ", ".join(f"{name} {number:g}" for name, number in parts.items())
        return (
            f"{self.count:,} numbers learn, {each:g} bytes each ({told}): "
            f"{each * self.count / 1e9:.2f} GB before activations"
        )

    def state(self) -> dict:
        """Return the moments of each weight, in order, the masters, the factor of the loss."""
        moments = [self.rule.state.get(weight, {}) for weight in self.weights]
        masters = [master for _, master in self.copies]
        return {"moments": moments, "masters": masters, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned."""
        for (_, master), kept in zip(self.copies, state["masters"], strict=True):
            master.copy_(kept)
        fused = any(group.get("fused") for group in self.rule.param_groups)
        for weight, moments in zip(self.weights, state["moments"], strict=True):
            # AdamW counts its steps on the CPU, but for the fused one.
            kept = {
                name: x if name == "step" and not fused else _moved(x, weight.device)
                for name, x in moments.items()
            }
            if kept:
                self.rule.state[weight] = kept
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value


def rule(kind: str, weights: list[torch.Tensor], *, betas, fused: bool):
    """Return torch's optimiser of a kind for float32 weights; InputError where it cannot be."""
    if kind == "muon":
        return _muon(weights)
    options = {"betas": betas, "weight_decay": 0.0}
    cuda = all(weight.is_cuda for weight in weights)
    if kind == "adamw":
        return torch.optim.AdamW(weights, fused=(fused and cuda) or None, **options)
    if not cuda:
        raise InputError(f"--optimizer {kind}: needs a CUDA device, this is "
                         f"{weights[0].device.type}; use --optimizer adamw")  # fmt: skip
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise InputError(
            f"--optimizer {kind}: bitsandbytes is not installed; `pip install -e .[quantize]`, or "
            "use --optimizer adamw"
        ) from None
    return AdamW8bit(weights, **options)


def _muon(weights: list[torch.Tensor]) -> Muon:
    other = next((weight for weight in weights if weight.ndim != 2), None)
    if other is not None:
        raise InputError(f"--optimizer muon: learns matrices alone, and a weight here has shape "
                         f"{tuple(other.shape)}; use --optimizer adamw")  # fmt: skip
    return Muon(weights, lr=0.0)
