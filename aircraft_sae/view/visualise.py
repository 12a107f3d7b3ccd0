"""Feature visualisation: the picture that drives a unit most, by gradient ascent. Show it only beside patches.

Pictures are parametrised by their decorrelated Fourier spectrum, and are shifted, scaled and rotated at random.
Source: Olah et al. 2017, "Feature Visualization", with the colour correlation of its code (lucid).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, normalize

from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder

_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOURS = _ROOT / _ROOT.norm(dim=0).max()
"""From decorrelated channels to the red, green and blue of photographs; the longest column has length 1."""


def middle(direction: Tensor, bias: float = 0.0) -> Callable[[Tensor], Tensor]:
    """What a neuron or feature reads: x . direction + bias in the middle cell of acts (n, rows, columns, d)."""
    return lambda acts: acts[:, acts.shape[1] // 2, acts.shape[2] // 2] @ direction + bias


def feature(sae: SparseAutoencoder, j: int) -> Callable[[Tensor], Tensor]:
    """Feature j's pre-activation in the middle cell."""
    row = sae.W_enc_rows[j].detach()
    return middle(row, float((sae.b_enc[j] - sae.b_dec @ row).detach()))


def maximise(
    network: Network, site: str, read: Callable[[Tensor], Tensor], *, n: int = 2, size: int = 96, steps: int = 128,
    diversity: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """((n, size, size, 3) uint8 pictures, (n,) what `read` gives for them, untransformed), by Adam from random spectra.

    The best n of 2n, since a picture that starts where a ReLU silences the unit gets no gradient and stays there.
    read: from the site's acts (n, rows, columns, d) to (n,). diversity: weight of a penalty on the mean cosine between
    the pictures' acts.
    """
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    scale = size / frequencies.clamp(min=1 / size)
    spectrum = 0.3 * torch.randn(2 * n, 3, *frequencies.shape, 2, generator=generator)
    spectrum = spectrum.to(network.device).requires_grad_()
    optimizer = torch.optim.Adam([spectrum], 0.05)
    mean, std = (torch.tensor(each, device=network.device).view(3, 1, 1) for each in (network.mean, network.std))

    def drawn() -> Tensor:
        pixels = torch.fft.irfft2(torch.view_as_complex(spectrum) * scale.to(spectrum.device), s=(size, size)) / 4
        return torch.sigmoid(torch.einsum("rc,ncij->nrij", COLOURS.to(spectrum.device), pixels))

    def moved(x: Tensor) -> Tensor:
        angle, zoom, across, down = 2 * torch.rand(4, 2 * n, generator=generator) - 1
        angle, zoom = math.radians(10) * angle, 1 + 0.1 * zoom
        rows = [torch.stack([zoom * angle.cos(), -zoom * angle.sin(), across * 4 / size], 1),
                torch.stack([zoom * angle.sin(), zoom * angle.cos(), down * 4 / size], 1)]  # fmt: skip
        grid = affine_grid(torch.stack(rows, 1).to(x.device), list(x.shape), align_corners=False)
        return grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    with torch.enable_grad():
        for _ in range(steps):
            acts = network.see((moved(drawn()) - mean) / std, [site]).acts[site]
            alike = normalize(acts.mean((1, 2)))
            spread = (alike @ alike.t()).triu(1).sum() / (n * (2 * n - 1))
            value = read(acts)
            loss = diversity * value.detach().abs().mean() * spread - value.mean()
            (spectrum.grad,) = torch.autograd.grad(loss, spectrum)  # and none for the network's weights
            optimizer.step()
    with torch.no_grad():
        x = drawn()
        reached, best = read(network.see((x - mean) / std, [site]).acts[site]).sort(descending=True)
    return (255 * x[best[:n]]).round().byte().permute(0, 2, 3, 1).cpu().numpy(), reached[:n].cpu().numpy()
