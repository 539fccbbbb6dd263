"""
train.py with Muon in place of AdamW for the matrices inside layers. It takes train.py's arguments.

Muon (https://kellerjordan.github.io/posts/muon/) makes all singular values of a matrix's momentum about 1,
and moves along that. The factor 0.2 sqrt(larger side) gives the update the size of Adam's, so that Adam's
rates and weight decay hold (arXiv 2502.16982). Embedding, head and norms keep AdamW. Each slab is taken for a
matrix of its own: growing by depth leaves matrices whole, growing by width does not.
"""

import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../.."))
import model
import train

MOMENTUM = 0.95
ADAMW_OPTIMIZER = model.Llama.optimizer


def orthogonal(m: torch.Tensor) -> torch.Tensor:
    """Return matrices (n, a, b) with about the same singular vectors, and singular values of 0.7 to 1.2.

    The coefficients of the five Newton-Schulz steps are Keller Jordan's."""
    x = m.mT if m.shape[1] > m.shape[2] else m
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if m.shape[1] > m.shape[2] else x


class Muon(torch.optim.AdamW):
    """AdamW, but for the matrices `inside`. Their momentum is kept as exp_avg, where checkpoints and growths
    find it. exp_avg_sq is Adam's, for train.py's log alone: what it says that they move, Adam would."""

    inside: set

    @torch.no_grad()
    def step(self) -> None:
        by_kind = {}  # matrices of one shape, rate and weight decay take their step together
        for group in self.param_groups:
            for p in group["params"]:
                if p in self.inside and p.grad is not None:
                    kind = p.flatten(0, -2).shape, group["lr"], group["weight_decay"]
                    by_kind.setdefault(kind, []).append((p, p.grad))
                    p.grad = None  # AdamW leaves it
        super().step()

        for ((a, b), lr, weight_decay), pairs in by_kind.items():
            ahead = []
            for p, gradient in pairs:
                p.grad = gradient
                if p not in self.state:
                    moments = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
                    self.state[p] = moments | {"step": torch.zeros((), device=p.device)}
                state = self.state[p]
                state["step"] += 1
                state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
                state["exp_avg_sq"].lerp_(gradient.square(), 1 - self.defaults["betas"][1])
                nesterov = gradient.lerp(state["exp_avg"], MOMENTUM)
                ahead.append(nesterov.flatten(0, -2))  # (heads, ..., n_embd) -> (rows, n_embd)
            updates = orthogonal(torch.stack(ahead)) * 0.2 * max(a, b) ** 0.5
            for (p, _), update in zip(pairs, updates):
                p.mul_(1 - lr * weight_decay).sub_(update.view_as(p), alpha=lr)


def optimizer(self: model.Llama, *settings) -> Muon:
    """Return what Llama.optimizer returns, with Muon for the matrices inside layers."""
    adamw = ADAMW_OPTIMIZER(self, *settings)
    muon = Muon(adamw.param_groups, **{key: adamw.defaults[key] for key in ("lr", "betas", "eps", "fused")})
    muon.inside = {p for p in self.layers.parameters() if p.ndim > 1}
    return muon


if __name__ == "__main__":
    model.Llama.optimizer = optimizer
    try:
        train.main()
    except (ValueError, OSError) as e:
        sys.exit(f"train_muon.py: {e}")
