"""Muon: momentum whose matrix updates are made orthogonal, here in float32 and batched by shape.

Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the step is scaled as in
arXiv 2502.16982, eq. 4 (the size of an AdamW step). Differs from `torch.optim.Muon` in precision
(that one multiplies in bfloat16, slow on a CPU without it) and in taking matrices of one shape
together: a quarter of the time on a small model.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return U V' of each [K, M, N] matrix's U S V', nearly: singular values of 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """For the matrices of hidden layers only; embeddings, biases and norms want AdamW."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95):
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})
        for group in self.param_groups:
            if any(p.ndim != 2 for p in group["params"]):
                raise ValueError("Muon takes matrices only; give other parameters to AdamW")

    @torch.no_grad()
    def step(self, closure=None):
        """One update. A parameter without gradient stays as it is."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, same in shapes.items():
                self._step(same, 0.2 * max(shape) ** 0.5 * group["lr"], group["momentum"])

    def _step(self, parameters: list, scale: float, momentum: float) -> None:
        ahead = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - momentum)
            ahead.append(p.grad.lerp(state["momentum"], momentum))  # Nesterov
        for p, update in zip(parameters, orthogonalised(torch.stack(ahead)), strict=True):
            p.sub_(scale * update)
