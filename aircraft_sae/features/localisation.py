"""Where in a picture a feature is, finer than its cells: gradient x input; and how well that finds a part."""

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter

from aircraft_sae.activations import see_features
from aircraft_sae.devices import side_by_side
from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.features.regions import Regions
from aircraft_sae.networks import Network
from aircraft_sae.pictures import Pictures
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


def pointing(values: np.ndarray, mask: np.ndarray) -> float:
    """1 where a map (rows, columns) peaks within 15 pixels of 224 of mask (size, size), less the share of such pixels.

    nan for a map that is 0 everywhere, or an empty mask.
    """
    if not values.max() > 0 or not mask.any():
        return np.nan
    spread = values[np.ix_(*(np.arange(len(mask)) * n // len(mask) for n in values.shape))]
    near = distance_transform_edt(~mask) <= max(1, round(15 / 224 * len(mask)))
    return float(near[tuple(np.argwhere(spread == spread.max()).mean(0).round().astype(int))] - near.mean())


def part_picks(index: FeatureIndex, regions: Regions, matches: pd.DataFrame, n: int) -> pd.DataFrame:
    """For each part the n pictures of half B that show it and in which its feature is strongest.

    matches: of `best_matches`. Rows of `FeatureIndex.patches`, with feature_id and part.
    """
    picks, shows = [], regions.labels.any((1, 2)) & regions.in_b[:, None]
    for part, feature_id in matches["feature_id"].astype(int).items():
        found = index.patches(feature_id, "top", n, regions.rows[shows[:, regions.names.index(part)]])
        picks.append(found.assign(feature_id=feature_id, part=part))
    return pd.concat(picks, ignore_index=True)


def localise(network: Network, sae: SparseAutoencoder, pictures: Pictures, picks: pd.DataFrame) -> pd.DataFrame:
    """One row for each of `part_picks` and kind of map ("cells", "gradient"), with its `pointing`.

    The gradient is smoothed by 4 pixels; its row has the `effective_radius` in pixels as radius.
    """

    def of_pick(pick) -> list[dict[str, object]]:
        x, cell = network.as_input(pictures.picture(pick.image)), (int(pick.row), int(pick.column))
        mask = pictures.mask(pick.image) == pictures.region_names.index(pick.part) + 1
        mask = mask[np.ix_(*(np.arange(network.size) * n // network.size for n in mask.shape))]  # the nearest pixels
        with torch.no_grad():
            plain = see_features(network, sae, x[None])[1][0, ..., pick.feature_id].numpy()
        product, gradient = gradient_maps(network, sae, x, pick.feature_id, cell)
        facts = {"feature_id": pick.feature_id, "part": pick.part, "image_row": pick.image_row}
        maps = {"cells": plain, "gradient": gaussian_filter(product, 4)}
        rows = [facts | {"kind": kind, "pointing": pointing(values, mask)} for kind, values in maps.items()]
        rows[-1]["radius"] = effective_radius(gradient, cell, plain.shape)
        return rows

    return pd.DataFrame([row for rows in side_by_side(of_pick, picks.itertuples()) for row in rows])
