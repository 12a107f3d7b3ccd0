"""Where in a picture a feature is, finer than its cells: stitched maps, gradients; and how well they find a part.

A cell of the last stage stands for 32 x 32 pixels but sees far more. Three maps of one feature in one picture: the
plain map of its cells; a stitched one from pictures shifted by a quarter of a cell, interleaved (shift-and-stitch, Long
et al. 2015, arXiv 1411.4038, section 3.2); and gradient x input of the feature at its peak, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch.nn.functional import pad

from aircraft_sae.activations import captured
from aircraft_sae.devices import side_by_side
from aircraft_sae.networks import Classifier
from aircraft_sae.sae import SparseAutoencoder

SHIFTS = 4
"""Shifts along each side of a cell: 4 x 4 pictures make a map 4 times as fine."""
TOLERANCE = 15 / 224
"""A peak so near to a part counts as on it, as a share of the picture's width."""


@torch.no_grad()
def stitched_maps(
    classifier: Classifier, sae: SparseAutoencoder, picture: torch.Tensor, features: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """((len(features), 4 rows, 4 columns) stitched maps, (len(features), rows, columns) plain ones) of a picture.

    picture: (3, size, size), normalised. Shifted pictures are filled by reflection.
    """
    where = next(classifier.model.parameters()).device
    with captured(classifier, [sae.cfg.site]) as acts:
        classifier.model(picture[None].to(where))
    plain = _encoded(sae, acts[sae.cfg.site], features)[0]
    rows, columns = plain.shape[:2]
    size, cell = picture.shape[1], picture.shape[1] // rows
    half, step = cell // 2, cell // SHIFTS
    wide = pad(picture[None], (half,) * 4, mode="reflect")[0]
    # a picture shifted by s has under its cell i what is s - half further down: the fine cell that is centred there
    starts = [round((i + 0.5) * step) for i in range(SHIFTS)]
    batch = torch.stack([wide[:, top : top + size, left : left + size] for top in starts for left in starts])
    with captured(classifier, [sae.cfg.site]) as acts:
        classifier.model(batch.to(where))
    maps = _encoded(sae, acts[sae.cfg.site], features).view(SHIFTS, SHIFTS, rows, columns, -1)
    fine = maps.permute(4, 2, 0, 3, 1).reshape(len(features), rows * SHIFTS, columns * SHIFTS)
    return fine.numpy(), plain.permute(2, 0, 1).numpy()


def _encoded(sae: SparseAutoencoder, acts: torch.Tensor, features: Sequence[int]) -> torch.Tensor:
    cells = acts.float().cpu().permute(0, 2, 3, 1)
    return sae.encode(cells.flatten(0, 2)).dense().view(*cells.shape[:3], -1)[..., list(features)]


def gradient_maps(
    classifier: Classifier, sae: SparseAutoencoder, picture: torch.Tensor, feature_id: int, cell: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """((size, size) gradient x input, (size, size) absolute gradient) of a feature's pre-activation in one cell.

    Both are summed over colours, the first where positive. picture: (3, size, size), normalised.
    """
    x = picture[None].clone().to(next(classifier.model.parameters()).device).requires_grad_()
    with captured(classifier, [sae.cfg.site]) as acts:
        classifier.model(x)
    value = acts[sae.cfg.site][0, :, cell[0], cell[1]].cpu() @ sae.W_enc_rows[feature_id].detach()
    (gradient,) = torch.autograd.grad(value, x)
    product, gradient = (gradient * x.detach())[0].sum(0).relu(), gradient[0].abs().sum(0)
    return product.cpu().numpy(), gradient.cpu().numpy()


def effective_radius(gradient: np.ndarray, cell: tuple[int, int], grid: tuple[int, int], share: float = 0.5) -> float:
    """Radius in pixels of the disc around a cell's centre that holds `share` of an absolute gradient (size, size).

    Source: Luo et al. 2016, "Understanding the effective receptive field", with the radius as its summary.
    """
    centre = [(at + 0.5) * size / n - 0.5 for at, size, n in zip(cell, gradient.shape, grid, strict=True)]
    down, across = (np.arange(size) - c for size, c in zip(gradient.shape, centre, strict=True))
    distance = np.hypot(down[:, None], across[None])
    order = np.argsort(distance, axis=None)
    within = gradient.reshape(-1)[order].cumsum() >= share * gradient.sum()
    return float(distance.reshape(-1)[order][within.argmax()])


def localisation(values: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """How well a map (rows, columns) finds a part's mask (size, size) bool; nan for a map that is 0 everywhere.

    pointing: 1 where its peak is within 15 pixels (of 224) of the part, less the share of the picture that is; energy:
    share of the map on the part; lift: that by the part's share of the picture; iou_of_oracle: intersection over union
    at the map's best threshold, as a share of what the cells' true coverage reaches at its own best one.
    """
    if not values.max() > 0 or not mask.any():
        return dict.fromkeys(("pointing", "energy", "lift", "iou_of_oracle"), np.nan)
    size = len(mask)
    rows, columns = (np.minimum(np.arange(size) * n // size, n - 1) for n in values.shape)
    spread, radius = values[np.ix_(rows, columns)], max(1, round(TOLERANCE * size))
    near = distance_transform_edt(~mask) <= radius
    peak = np.argwhere(spread == spread.max()).mean(0).round().astype(int)
    energy = spread[mask].sum() / spread.sum()
    covered = mask.reshape(values.shape[0], size // values.shape[0], values.shape[1], -1).mean((1, 3))
    oracle = _best_iou(covered[np.ix_(rows, columns)], mask)
    return {
        "pointing": near[tuple(peak)] - near.mean(), "energy": energy, "lift": energy / mask.mean(),
        "iou_of_oracle": _best_iou(spread, mask) / oracle,
    }  # fmt: skip


def _best_iou(values: np.ndarray, mask: np.ndarray, n_levels: int = 64) -> float:
    levels = np.unique(np.quantile(values[values > 0], np.linspace(0, 1, n_levels)))
    return max(((values >= level) & mask).sum() / ((values >= level) | mask).sum() for level in levels)


def localise(
    classifier: Classifier, sae: SparseAutoencoder, pictures: Sequence[torch.Tensor], masks, picks: pd.DataFrame
) -> pd.DataFrame:
    """One row for each pick and kind of map ("cells", "stitched", "gradient"): the scores of `localisation`.

    pictures: normalised (3, size, size), masks: (size, size) bool of the part, both in the order of picks, which names
    feature_id, row, column (the peak's cell). The gradient is smoothed by 4 pixels. radius: `effective_radius`, in
    pixels, of the gradient's row.
    """

    def of_pick(picked) -> list[dict[str, object]]:
        picture, mask, pick = picked
        fine, plain = stitched_maps(classifier, sae, picture, [pick.feature_id])
        cell = int(pick.row), int(pick.column)
        product, gradient = gradient_maps(classifier, sae, picture, pick.feature_id, cell)
        radius = {"gradient": effective_radius(gradient, cell, plain.shape[1:])}
        maps = {"cells": plain[0], "stitched": fine[0], "gradient": gaussian_filter(product, 4)}
        facts = {"feature_id": pick.feature_id, "image_row": pick.image_row}
        return [
            facts | {"kind": kind} | localisation(values, mask) | {"radius": radius.get(kind, np.nan)}
            for kind, values in maps.items()
        ]

    found = side_by_side(of_pick, zip(pictures, masks, picks.itertuples(), strict=True))
    return pd.DataFrame(list(chain.from_iterable(found)))
