"""What a network is made of, found by trying: whether it is a plain sequence, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from aircraft_sae.networks.readouts import PooledReadout

if TYPE_CHECKING:
    from aircraft_sae.networks.network import Network

CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""How near two ways to the same numbers must come to be taken for the same."""
N_PROBES = 16
"""Directions whose way through linear steps is found at a time."""


def sequence(module: nn.Module, path: str, x: torch.Tensor) -> tuple[list[tuple[set[str], nn.Module]], torch.Tensor]:
    """(steps of a module, its output): its children's, where running them one after the other gives the same."""
    out = module(x.clone())
    steps, value = [], x
    try:
        for name, child in module.named_children():
            inner, value = sequence(child, f"{path}.{name}".lstrip("."), value)
            steps += inner
        if steps and value.shape == out.shape and torch.allclose(value, out, **CLOSE):
            steps[-1][0].add(path)
            return steps, out
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        pass
    return [({path}, module)], out


def find_readout(network: Network, site: str) -> PooledReadout | None:
    """Logits from the mean over a site's cells: found by the last layers, accepted by forward passes of random acts."""
    (rows, columns, d), generator = network.shape(site), torch.Generator().manual_seed(0)
    last = [m for m in network.model.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
    kept: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def through(acts: torch.Tensor) -> torch.Tensor:
        given = {} if not network.can_start(site) else {site: acts}
        edits = {} if given else {site: lambda _: acts}
        return network.see(
            None if given else torch.zeros(len(acts), 3, network.size, network.size), edits=edits, given=given
        ).logits

    def keep(module, given, out):
        kept[module] = given[0].flatten(1).cpu() if given[0].shape[-1] == 1 else given[0].cpu(), out.flatten(1).cpu()

    hooks = [module.register_forward_hook(keep) for module in last]
    try:
        acts = torch.randn(4, rows, columns, d, generator=generator)
        logits = through(acts)
        ends = [m for m, (_, out) in kept.items() if isinstance(m, nn.Linear) and out.shape == logits.shape
                and torch.allclose(out, logits, **CLOSE)]  # fmt: skip
        if not ends:
            return None
        linear, top = ends[-1], kept[ends[-1]][0]
        norms = [m for m, (_, out) in kept.items() if isinstance(m, nn.LayerNorm) and out.shape == top.shape
                 and torch.allclose(out, top, **CLOSE)]  # fmt: skip
        norm = norms[-1] if norms else None

        def hidden(acts: torch.Tensor) -> torch.Tensor:
            through(acts)
            return kept[norm or linear][0].float()

        A = c = None
        if d != hidden(acts).shape[1] or not torch.allclose(hidden(acts), acts.mean((1, 2)), **CLOSE):
            c = hidden(torch.zeros(1, rows, columns, d))[0]
            linear_in_mean = hidden(acts.mean((1, 2), keepdim=True).expand_as(acts)) - c
            doubled = hidden(-2 * acts) - c
            if not (torch.allclose(hidden(acts) - c, linear_in_mean, **CLOSE)
                    and torch.allclose(doubled, -2 * linear_in_mean, **CLOSE)):  # fmt: skip
                return None
            basis = torch.eye(d)[:, None, None].expand(d, rows, columns, d)
            A = torch.cat([hidden(part) for part in basis.split(N_PROBES)]).sub(c).t()
    finally:
        for hook in hooks:
            hook.remove()
    weight = linear.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().float().cpu()
    if norm is None:
        return PooledReadout(weight, bias, None, A, c)
    if norm.bias is not None:
        bias = bias + weight @ norm.bias.detach().float().cpu()
    gain = 1 if norm.weight is None else norm.weight.detach().float().cpu()
    made = PooledReadout(weight * gain, bias, norm.eps, A, c)
    return made if torch.allclose(made.logits(acts.mean((1, 2))), logits, **CLOSE) else None
