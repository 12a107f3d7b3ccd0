"""Read-outs: functions from what was `Seen` to scores (n, …), and the closed form of networks that end in a mean.

Where only a mean over cells, (a LayerNorm) and one linear layer follow a site, the logits are a function of the mean p
of its acts. With tildes centred over the D channels, v their variance and W' the layer's weight times LayerNorm's gain,
taking r d out of p gives

    logits = (W' p~ - r W' d~) / sqrt(v_p - 2 r p~.d~ / D + r^2 v_d + eps) + bias

That is exact arithmetic about the end of the network, no evidence of what comes before it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

same = partial(torch.allclose, rtol=1e-3, atol=1e-4)  # whether two ways led to the same numbers


def logits(seen) -> torch.Tensor:
    """(n, classes)."""
    return seen.logits


def unit(site: str, channel: int) -> Callable[..., torch.Tensor]:
    """The largest activation of one channel of a site that is looked at, as a read-out (n, 1)."""
    return lambda seen: seen.acts[site][..., channel].amax((1, 2))[:, None]


@dataclass(frozen=True)
class PooledReadout:
    """Logits from pooled acts: weight (classes, d_in), LayerNorm's gain in it; bias (classes,); its eps, or None."""

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
        """(n, d, classes) logits of pooled (n, d_in) less removed (n, d) of directions (d, d_in), one at a time."""
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
    """Logits from the mean over a site's cells: found by the last layers, accepted by a forward pass of random acts."""
    kept: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}  # what went into and came out of them at last

    def keep(module, given, out):
        kept[module] = given[0].flatten(1).cpu(), out.flatten(1).cpu()

    def through(acts: torch.Tensor, light: float = 0.0) -> torch.Tensor:
        last = [module for module in network.model.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
        hooks = [module.register_forward_hook(keep) for module in last]
        try:
            x = torch.full((len(acts), 3, network.size, network.size), light)
            return network.see(x, given={site: acts}).logits
        finally:
            for hook in hooks:
                hook.remove()

    def gives(kind: type[nn.Module], wanted: torch.Tensor) -> nn.Module | None:
        found = [m for m, (_, out) in kept.items() if isinstance(m, kind) and out.shape == wanted.shape]
        return next((module for module in reversed(found) if same(kept[module][1], wanted)), None)

    acts = torch.randn(4, *network.shape(site), generator=torch.Generator().manual_seed(0))  # refuses what is no site
    logits = through(acts)
    if not same(through(acts, 1.0), logits):  # what else the picture adds, beside a branch, say
        return None
    linear = gives(nn.Linear, logits)
    if linear is None:
        return None
    norm = gives(nn.LayerNorm, kept[linear][0])
    reached, mean = kept[norm or linear][0], acts.mean((1, 2))
    if reached.shape != mean.shape or not same(reached, mean):
        return None
    weight = linear.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu()
    if norm is None:
        return PooledReadout(weight, bias)
    if norm.bias is not None:
        bias = bias + weight @ norm.bias.detach().float().cpu()
    gain = 1 if norm.weight is None else norm.weight.detach().float().cpu()
    made = PooledReadout(weight * gain, bias, norm.eps)
    return made if same(made.logits(mean), logits) else None
