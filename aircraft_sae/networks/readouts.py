"""Read-outs: functions from what was seen to a score per image, and the closed form of those that end in a mean.

Where a network goes on from a site by pointwise-linear steps, a mean over cells, (a LayerNorm) and one linear layer,
its logits are a function of the mean p of the site's acts alone. With h = A p + c, tildes centred over the D channels
of h, v their variance and W' the layer's weight times LayerNorm's gain, taking r d out of p gives

    logits = (W' h~ - r W' (A d)~) / sqrt(v_h - 2 r h~.(A d)~ / D + r^2 v_Ad + eps) + bias

That is exact arithmetic about the end of the network, no evidence of what comes before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from aircraft_sae.networks.network import Seen

Readout = "Callable[[Seen], torch.Tensor]"
"""From what was seen to scores, the images first: (n, …)."""


def logits(seen: Seen) -> torch.Tensor:
    """(n, classes)."""
    return seen.logits


def unit(site: str, channel: int) -> Callable[[Seen], torch.Tensor]:
    """The largest activation of one channel of a site that is looked at, as a read-out (n, 1)."""
    return lambda seen: seen.acts[site][..., channel].amax((1, 2))[:, None]


@dataclass(frozen=True)
class PooledReadout:
    """Logits from pooled acts (n, d_in) in closed form.

    weight: (classes, d) with LayerNorm's gain in it; bias: (classes,); eps: LayerNorm's, None without one; A: (d, d_in)
    and c: (d,) of the linear steps before the mean, None where there are none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float | None = None
    A: torch.Tensor | None = None
    c: torch.Tensor | None = None

    def hidden(self, pooled: torch.Tensor) -> torch.Tensor:
        """h (n, d) of pooled acts (n, d_in)."""
        return pooled if self.A is None else pooled @ self.A.t() + self.c

    def turn(self, directions: torch.Tensor) -> torch.Tensor:
        """(n, d) of directions (n, d_in): how h moves along them."""
        return directions if self.A is None else directions @ self.A.t()

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """(n, classes) from pooled acts (n, d_in)."""
        h = self.hidden(pooled)
        if self.eps is None:
            return h @ self.weight.t() + self.bias
        h = h - h.mean(1, keepdim=True)
        return h @ self.weight.t() / (h.square().mean(1, keepdim=True) + self.eps).sqrt() + self.bias

    def edited(self, pooled: torch.Tensor, removed: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(n, d, classes) logits of pooled - removed[:, j] directions[j], for every j: one edit at a time.

        pooled: (n, d_in); removed: (n, d); directions: (d, d_in).
        """
        h, d = self.hidden(pooled), self.turn(directions)
        if self.eps is not None:
            h, d = h - h.mean(1, keepdim=True), d - d.mean(1, keepdim=True)
        top = (h @ self.weight.t())[:, None] - removed[:, :, None] * (d @ self.weight.t())
        if self.eps is None:
            return top + self.bias
        variance = h.square().mean(1)[:, None] - 2 * removed * (h @ d.t()) / h.shape[1]
        variance = variance + removed.square() * d.square().mean(1)
        return top / (variance.clamp(min=0) + self.eps).sqrt()[:, :, None] + self.bias
