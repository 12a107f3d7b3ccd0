"""Blurring in input space: the patch under a feature's peak, where any direction's own maximum falls too.

For a picture x and its blurred copy g, the edit takes g inside one square window and x outside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from aircraft_sae.activations import see_features
from aircraft_sae.devices import side_by_side
from aircraft_sae.features import FeatureIndex, check_features
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


@dataclass(frozen=True)
class Window:
    """A square of a picture, in pixels: rows top to top + size, columns left to left + size."""

    top: int
    left: int
    size: int

    @classmethod
    def around(cls, row: int, column: int, grid: tuple[int, int], image_size: int, size: int) -> "Window":
        """Centred on a cell, moved inwards where it would leave the picture."""
        centres = [(at + 0.5) * image_size / n for at, n in zip((row, column), grid, strict=True)]
        top, left = (int(np.clip(round(c - size / 2), 0, image_size - size)) for c in centres)
        return cls(top, left, size)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.size), slice(self.left, self.left + self.size)


def blur(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """The picture (3, height, width) under a Gaussian of `sigma` pixels, cut off at 3 sigma; edges are mirrored."""
    size = 2 * min(round(3 * sigma), min(picture.shape[1:]) - 1) + 1
    # one axis at a time: torchvision convolves with the whole square
    return gaussian_blur(gaussian_blur(picture, [size, 1], [sigma, sigma]), [1, size], [sigma, sigma])


def patched(x: torch.Tensor, other: torch.Tensor, window: Window) -> torch.Tensor:
    """x (3, height, width) with what `other` shows inside the window."""
    made = x.clone()
    made[:, *window.slices] = other[:, *window.slices]
    return made


def choose_picks(index: FeatureIndex, features: Sequence[int], rows: np.ndarray, n: int) -> pd.DataFrame:
    """Up to n pictures of each feature among `rows`, as `FeatureIndex.patches`, with feature_id and how.

    how: "top" for the half in which it is strongest, "random" for others in which it is active.
    """
    picks = []
    for j in features:
        peaks = index.patches(int(j), "top", len(rows), rows)
        top, others = peaks.head(n // 2), peaks.iloc[n // 2 :]
        others = others.sample(min(len(others), n - len(top)), random_state=int(j))
        picks.append(pd.concat([top.assign(how="top"), others.assign(how="random")]).assign(feature_id=int(j)))
    return pd.concat(picks, ignore_index=True)


def blur_peaks(
    folder: Path, *, network: Network, sae: SparseAutoencoder, pictures: Pictures, index: FeatureIndex,
    picks: pd.DataFrame, sigma: float, window: int,
) -> None:  # fmt: skip
    """Blur under each picked peak, as blur.parquet: feature_id, image_row, how, and the maximum before and after.

    picks: of `choose_picks`; sigma, window: in pixels of the network's input.
    Raises: ValueError for a feature that is not there, and a window larger than the picture.
    """
    if not 1 <= window <= network.size:
        raise ValueError(f"window must be 1 to {network.size} pixels, the picture's size, got {window}")
    check_features(picks["feature_id"], sae.d_sae)

    @torch.no_grad()
    def of_picture(picked: tuple[str, pd.DataFrame]) -> pd.DataFrame:
        image, own = picked
        x = network.as_input(pictures.picture(image))
        soft = blur(x, sigma)
        places = [Window.around(pick.row, pick.column, index.grid, network.size, window) for pick in own.itertuples()]
        versions = torch.stack([x, *(patched(x, soft, place) for place in places)])
        codes = torch.cat([see_features(network, sae, some, mixed=True)[1] for some in versions.split(BATCH)])
        maxima = codes[..., torch.tensor(own["feature_id"].to_list())].amax((1, 2))  # (1 + picks, picks)
        facts = own[["feature_id", "image_row", "how"]]
        return facts.assign(before=maxima[0].numpy(), after=maxima[1:].diagonal().numpy())

    groups = picks.groupby("image", sort=True)
    made = tqdm(side_by_side(of_picture, groups), f"blur {sigma:g} px", len(groups), leave=False)
    write_parquet(pd.concat(list(made), ignore_index=True), folder / "blur.parquet")


def feature_lost(blurred: pd.DataFrame) -> dict[str, float | None]:
    """Share of the features' maxima that blurring takes, as a result; pictures are the units of the interval."""
    sums = blurred.assign(lost=blurred["before"] - blurred["after"]).groupby("image_row")[["lost", "before"]].sum()
    if not sums["before"].sum():
        return {"value": np.nan, "low": None, "high": None, "n": 0}
    return with_interval(sums["lost"], sums["before"])
