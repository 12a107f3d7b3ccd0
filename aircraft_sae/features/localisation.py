"""What of a picture a feature looks at: its gradient in the pixels, and how far that reaches."""

import numpy as np
import torch

from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder


def gradient_maps(
    network: Network, sae: SparseAutoencoder, x: torch.Tensor, feature_id: int, cell: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """((size, size) gradient x input, (size, size) absolute gradient) of a feature's pre-activation in one cell.

    Both are summed over colours, the first where positive. x: (3, size, size).
    """
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        acts = network.see(x[None], [sae.cfg.site]).acts[sae.cfg.site]
        (gradient,) = torch.autograd.grad(acts[0, cell[0], cell[1]] @ sae.W_enc_rows[feature_id].detach(), x)
    return (gradient * x.detach()).sum(0).relu().numpy(), gradient.abs().sum(0).numpy()


def effective_radius(gradient: np.ndarray, cell: tuple[int, int], grid: tuple[int, int]) -> float:
    """Radius in pixels of the disc around a cell's centre that holds half of an absolute gradient (size, size).

    Source: Luo et al. 2016, "Understanding the effective receptive field", with the radius as its summary.
    """
    centre = [(at + 0.5) * size / n - 0.5 for at, size, n in zip(cell, gradient.shape, grid, strict=True)]
    down, across = (np.arange(size) - c for size, c in zip(gradient.shape, centre, strict=True))
    distance = np.hypot(down[:, None], across[None])
    order = np.argsort(distance, axis=None)
    within = gradient.reshape(-1)[order].cumsum() >= 0.5 * gradient.sum()
    return float(distance.reshape(-1)[order][within.argmax()])
