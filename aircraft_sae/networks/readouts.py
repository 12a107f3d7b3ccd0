"""The closed form of logits for networks that end in a mean.

Where only a mean over cells, an optional LayerNorm and one linear layer follow a site, the logits depend on its acts
through their mean p alone. Let p~ be p centred over its D channels, v_p its variance (likewise for d), and W' the
layer's weight times LayerNorm's gain. Removing r times a direction d from p then gives

    logits = (W' p~ - r W' d~) / sqrt(v_p - 2 r p~.d~ / D + r^2 v_d + eps) + bias

This is exact arithmetic about the end of the network, not evidence about what precedes it.
"""

from dataclasses import dataclass
from functools import partial

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
    acts = torch.randn(4, *network.shape(site), generator=torch.Generator().manual_seed(0))
    passed: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # each layer's last input and output

    def keep(layer, given, out):
        passed[layer] = given[0].flatten(1).cpu(), out.flatten(1).cpu()

    layers = [module for module in network.model.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        x = torch.zeros(4, 3, network.size, network.size)
        logits, others = (network.see(each, given={site: acts}).logits for each in (x, x + 1))
    finally:
        for hook in hooks:
            hook.remove()

    def last(kind: type[nn.Module], wanted: torch.Tensor) -> nn.Module | None:
        found = [(layer, out) for layer, (_, out) in passed.items() if isinstance(layer, kind)]
        return next((layer for layer, out in reversed(found) if out.shape == wanted.shape and same(out, wanted)), None)

    linear = last(nn.Linear, logits)
    if linear is None or not same(others, logits):  # the picture matters too, through another branch
        return None
    norm, mean = last(nn.LayerNorm, passed[linear][0]), acts.mean((1, 2))
    reached = passed[norm or linear][0]
    if reached.shape != mean.shape or not same(reached, mean):
        return None

    def numbers(tensor: torch.Tensor | None, default: torch.Tensor) -> torch.Tensor:
        return default if tensor is None else tensor.detach().float().cpu()

    weight = linear.weight.detach().float().cpu()
    bias = numbers(linear.bias, torch.zeros(len(weight)))
    if norm is None:
        return PooledReadout(weight, bias)
    bias = bias + weight @ numbers(norm.bias, torch.zeros(len(mean[0])))
    made = PooledReadout(weight * numbers(norm.weight, torch.ones(())), bias, norm.eps)
    return made if same(made.logits(mean), logits) else None
