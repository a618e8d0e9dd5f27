"""The optimiser of the trainable weights: AdamW, gradients cut to a norm, losses scaled in float16.

Weights that learn are float32, and so is AdamW's state. Where the model computes in float16, whose
smallest numbers are too large for many gradients, the loss is multiplied by a factor that finds
itself (arXiv:1710.03740 section 3.2); a step whose gradients are not finite is left out.
"""

import math

import torch

from rlm.parallel import world


class Optimizer:
    """model: its parameters that require a gradient learn."""

    def __init__(self, model, *, max_grad_norm: float, betas=(0.9, 0.95)):
        self.learning_rate = 0.0  # set it before each step
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.max_grad_norm = max_grad_norm
        self.adamw = torch.optim.AdamW(self.weights, betas=betas, weight_decay=0.0)
        # What does not learn has the format that the products are made in.
        half = any(p.dtype == torch.float16 for p in model.parameters())
        device = self.weights[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=half)
        self.scaler.scale(torch.zeros((), device=device))  # its factor is there from now on

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the loss to those that are there."""
        self.scaler.scale(loss).backward()

    def clear(self) -> None:
        """Drop the gradients that are there."""
        self.adamw.zero_grad()

    def step(self) -> float:
        """Update the weights and drop the gradients; return their norm before it was cut.

        The gradients of all processes are added up first. The norm is not finite where the step
        was left out, and 0 where no process has a gradient.
        """
        if not self._gathered():
            return 0.0
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate
        self.scaler.unscale_(self.adamw)
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights, self.max_grad_norm))
        world().check_same(norm, "the norm of the gradients")
        if math.isfinite(norm):
            self.scaler.step(self.adamw)
        self.scaler.update()
        self.clear()
        return norm

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

    def state(self) -> dict:
        """Return AdamW's moments of each weight, in order, and the factor of the loss."""
        moments = [self.adamw.state.get(weight, {}) for weight in self.weights]
        return {"moments": moments, "scaler": self.scaler.state_dict()}

    def restore(self, state: dict) -> None:
        """Go on from what `state` returned."""
        for weight, moments in zip(self.weights, state["moments"], strict=True):
            # AdamW counts its steps on the CPU.
            kept = {n: x if n == "step" else x.to(weight.device) for n, x in moments.items()}
            if kept:
                self.adamw.state[weight] = kept
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
