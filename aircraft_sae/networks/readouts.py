"""The closed form of logits for networks that end in a mean.

Where only a mean over cells, an optional LayerNorm and one linear layer follow a site, the logits depend on its acts
through their mean p alone. Let p~ be p centred over its D channels, v_p its variance (likewise for d), and W' the
layer's weight times LayerNorm's gain. Removing r times a direction d from p then gives

    logits = (W' p~ - r W' d~) / sqrt(v_p - 2 r p~.d~ / D + r^2 v_d + eps) + bias

This is exact arithmetic about the end of the network, not evidence about what precedes it.
"""

from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import nn

same = partial(torch.allclose, rtol=1e-3, atol=1e-4)


@dataclass(frozen=True)
class PooledReadout:
    """Logits from pooled acts: weight (classes, d_in) includes LayerNorm's gain; eps is LayerNorm's, if any."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float | None = None

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """(n, classes) from pooled acts (n, d_in)."""
        if self.eps is None:
            return pooled @ self.weight.t() + self.bias
        h = pooled - pooled.mean(1, keepdim=True)
        return h @ self.weight.t() / (h.square().mean(1, keepdim=True) + self.eps).sqrt() + self.bias

    def edited(self, pooled: torch.Tensor, removed: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(n, d, classes) logits of pooled (n, d_in) minus removed (n, d) times directions (d, d_in), one at a time."""
        h, d = pooled, directions
        if self.eps is not None:
            h, d = h - h.mean(1, keepdim=True), d - d.mean(1, keepdim=True)
        top = (h @ self.weight.t())[:, None] - removed[:, :, None] * (d @ self.weight.t())
        if self.eps is None:
            return top + self.bias
        variance = h.square().mean(1)[:, None] - 2 * removed * (h @ d.t()) / h.shape[1]
        variance = variance + removed.square() * d.square().mean(1)
        return top / (variance.clamp(min=0) + self.eps).sqrt()[:, :, None] + self.bias


def find_readout(network, site: str) -> PooledReadout | None:
    """The closed form from the mean over a site's cells, if forward passes of random acts agree with it; else None."""
    # 10: large, so that neither eps nor a bias hides a difference
    acts = 10 * torch.randn(4, *network.shape(site), generator=torch.Generator().manual_seed(0))
    x, mean = torch.zeros(4, 3, network.size, network.size), acts.mean((1, 2))
    logits, others = (network.see(each, given={site: acts}).logits for each in (x, x + 1))
    if not same(others, logits):  # the picture matters too, through another branch
        return None
    modules, d_in = list(network.model.modules()), mean.shape[1]
    linears = [each for each in modules if isinstance(each, nn.Linear) and each.weight.shape == (logits.shape[1], d_in)]
    norms = [each for each in modules if isinstance(each, nn.LayerNorm) and each.normalized_shape == (d_in,)]
    found = (_pooled(*pair) for pair in reversed([*product(linears, [None, *norms])]))  # the last of each first
    return next((made for made in found if same(made.logits(mean) - made.bias, logits - made.bias)), None)


def _pooled(linear: nn.Linear, norm: nn.LayerNorm | None) -> PooledReadout:
    def numbers(tensor: torch.Tensor | None, default: torch.Tensor) -> torch.Tensor:
        return default if tensor is None else tensor.detach().float().cpu()

    weight = linear.weight.detach().float().cpu()
    bias = numbers(linear.bias, torch.zeros(len(weight)))
    if norm is None:
        return PooledReadout(weight, bias)
    bias = bias + weight @ numbers(norm.bias, torch.zeros(weight.shape[1]))
    return PooledReadout(weight * numbers(norm.weight, torch.ones(())), bias, norm.eps)
