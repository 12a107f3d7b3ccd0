"""The feature index: the codes of every cell on disk, by cell and by feature, and what they say about each feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cosine_similarity, normalize
from tqdm import tqdm

from aircraft_sae.activations import VIEWS, Activations, split_rows
from aircraft_sae.devices import device
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_json, write_parquet

BY_CELL, BY_FEATURE = ("values", "features", "offsets"), ("feature_values", "feature_cells", "feature_offsets")
IMAGES, TABLE, FACTS = "images.parquet", "features.parquet", "facts.json"
QUANTILES = (0.5, 0.9, 0.99)
N_COACTIVE = 4096
"""Cells of a feature, at most, in which its companions are counted."""


def build_index(
    sae: SparseAutoencoder, acts: Activations, folder: str | Path, progress: bool = True, rows: np.ndarray | None = None
) -> None:
    """Encode every cell of every picture (or of these rows) once, in order, and write the index into `folder`.

    values (float32), features, offsets: the codes of cell i are entries offsets[i] to offsets[i + 1]. feature_values,
    feature_cells, feature_offsets: the same entries by feature, cells rising. features.parquet: `describe`'s table.
    Raises: ValueError for acts of another width.
    """
    if acts.d_in != sae.d_in:
        raise ValueError(f"the autoencoder is for acts of width {sae.d_in}, these have {acts.d_in}")
    folder = Path(folder)
    rows = np.flatnonzero(acts.images["split"] != VIEWS) if rows is None else rows
    where, found = device(), {"values": [], "features": [], "counts": []}
    small = np.min_scalar_type(sae.d_sae - 1)
    sae = sae.to(where)
    for block in tqdm(acts.blocks(rows), "index", -(-len(rows) // 64), disable=not progress, leave=False):
        codes = sae.encode(block.flatten(0, 2).to(where))
        codes = codes.where(codes.values > 0)
        found["values"].append(codes.values.cpu().numpy())
        found["features"].append(codes.features.cpu().numpy().astype(small))
        found["counts"].append(codes.offsets.diff().cpu().numpy())
    sae.cpu()
    values, features, counts = (np.concatenate(found.pop(name)) for name in ("values", "features", "counts"))
    offsets = np.concatenate([[0], counts.cumsum()])
    order = np.argsort(features, kind="stable")  # a radix sort: cells stay in order within a feature
    cells = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)[order]
    feature_offsets = np.concatenate([[0], np.bincount(features, minlength=sae.d_sae).cumsum()])
    arrays = (values, features, offsets, values[order], cells, feature_offsets)
    for name, array in zip((*BY_CELL, *BY_FEATURE), arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
    del arrays, array, values, features, order, cells  # from here on they are read from disk
    write_parquet(acts.images.iloc[rows].reset_index(drop=True), folder / IMAGES)
    write_json(folder / FACTS, {"grid": list(acts.acts.shape[1:3]), "d_sae": sae.d_sae})
    index = FeatureIndex.open(folder, with_table=False)
    write_parquet(describe(index, sae), folder / TABLE)


@dataclass
class FeatureIndex:
    """What `build_index` wrote, memory-mapped. images: the pictures' table; grid: (rows, columns) of a picture's cells.

    table: one row per feature, as `describe` gives it, and the columns that were joined to it later.
    """

    arrays: dict[str, np.ndarray]
    images: pd.DataFrame
    grid: tuple[int, int]
    d_sae: int
    table: pd.DataFrame

    def __repr__(self) -> str:
        rows, columns = self.grid
        return f"FeatureIndex({self.d_sae} features, {len(self.images)} pictures of {rows} x {columns} cells)"

    @classmethod
    def open(cls, folder: str | Path, with_table: bool = True) -> FeatureIndex:
        """What is in `folder`; FileNotFoundError where nothing was built."""
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(f"{folder / FACTS} is not there: build the feature index first, as Study.features")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*BY_CELL, *BY_FEATURE)}
        facts = pd.read_json(folder / FACTS, typ="series")
        table = pd.read_parquet(folder / TABLE) if with_table else pd.DataFrame(index=range(facts["d_sae"]))
        return cls(arrays, pd.read_parquet(folder / IMAGES), tuple(facts["grid"]), int(facts["d_sae"]), table)

    @property
    def cells_per_image(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def n_cells(self) -> int:
        return len(self.images) * self.cells_per_image

    def rows(self, *splits: str) -> np.ndarray:
        """Indices of the images of these splits, rising; ValueError for a word that is none."""
        return split_rows(self.images, splits)

    def firings(self, feature_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(cells, values) of a feature, cells rising: cell = (image x rows + row) x columns + column."""
        check_features([feature_id], self.d_sae)
        start, end = self.arrays["feature_offsets"][feature_id : feature_id + 2]
        return np.asarray(self.arrays["feature_cells"][start:end]), np.asarray(self.arrays["feature_values"][start:end])

    def image(self, row: int) -> np.ndarray:
        """(rows, columns, d_sae) feature activations of one picture, dense; ValueError for one that is not there."""
        if not 0 <= row < len(self.images):
            raise ValueError(f"picture {row} is not one of 0 .. {len(self.images) - 1}")
        first = row * self.cells_per_image
        bounds = np.asarray(self.arrays["offsets"][first : first + self.cells_per_image + 1])
        dense = np.zeros((self.cells_per_image, self.d_sae), np.float32)
        features = self.arrays["features"][bounds[0] : bounds[-1]]
        dense[np.repeat(np.arange(self.cells_per_image), np.diff(bounds)), features] = self.arrays["values"][
            bounds[0] : bounds[-1]
        ]
        return dense.reshape(*self.grid, self.d_sae)

    def maps(self, feature_id: int, rows: np.ndarray) -> np.ndarray:
        """(n, rows, columns) activations of one feature in these pictures."""
        cells, values = self.firings(feature_id)
        dense = np.zeros((len(self.images), self.cells_per_image), np.float32)
        dense.reshape(-1)[cells] = values
        return dense[rows].reshape(-1, *self.grid)

    def maxima(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n_images, d_sae) largest activation of each feature in each picture, or in these."""
        dense = np.zeros((len(self.images), self.d_sae), np.float32)
        features, starts, largest = self._image_maxima()
        dense[self.arrays["feature_cells"][starts] // self.cells_per_image, features] = largest
        return dense if rows is None else dense[rows]

    def sums(self, rows: np.ndarray | None = None) -> np.ndarray:
        """(n_images, d_sae) sum over cells of each feature's activation in each picture, or in these."""
        offsets = self.arrays["offsets"][:: self.cells_per_image]
        dense = np.zeros((len(self.images), self.d_sae), np.float32)
        image = np.repeat(np.arange(len(self.images)), np.diff(offsets))
        np.add.at(dense, (image, self.arrays["features"]), self.arrays["values"])
        return dense if rows is None else dense[rows]

    def patches(self, feature_id: int, how: str = "top", n: int = 24, rows=None, seed: int = 0) -> pd.DataFrame:
        """At most n patches where a feature is active, one a picture: image_row, image, row, column, value.

        how: "top" (the pictures' maxima, largest first), "interval" (as many from each tenth of the range up to its
        maximum, strongest first) or "random" (any active cell of any picture with one). rows: only these pictures.
        Raises: ValueError for another word, or a feature that is not there.
        """
        if how not in ("top", "interval", "random"):
            raise ValueError(f'how must be "top", "interval" or "random", got {how!r}')
        cells, values = self.firings(feature_id)
        if rows is not None:
            kept = np.isin(cells // self.cells_per_image, rows)
            cells, values = cells[kept], values[kept]
        shuffled = np.random.default_rng((seed, feature_id)).permutation(len(cells))
        if how == "top":
            order = np.argsort(-values, kind="stable")
        elif how == "random":
            order = shuffled
        else:  # the cells of each tenth in random order, then one of each tenth in turn
            tenth = np.minimum((10 * values[shuffled] / values.max(initial=1e-30)).astype(int), 9)
            turn = np.empty(len(cells), int)
            for t in np.unique(tenth):
                turn[tenth == t] = np.arange((tenth == t).sum())
            order = shuffled[np.lexsort((-tenth, turn))]
        _, first = np.unique(cells[order] // self.cells_per_image, return_index=True)
        order = order[np.sort(first)[:n]]
        if how == "interval":
            order = order[np.argsort(-values[order], kind="stable")]
        image, cell = np.divmod(cells[order].astype(np.int64), self.cells_per_image)
        row, column = np.divmod(cell, self.grid[1])
        names = self.images["image"].to_numpy()[image]
        return pd.DataFrame({"image_row": image, "image": names, "row": row, "column": column, "value": values[order]})

    def coactive(self, feature_id: int, n: int = 8) -> pd.DataFrame:
        """The n features most often active in the same cell, beyond chance: feature_id, share, lift.

        share: of this feature's cells (of up to 4,096 of them, evenly spaced); lift: share / the other's density.
        Order: by share - density.
        """
        cells, _ = self.firings(feature_id)
        cells = cells[:: max(1, -(-len(cells) // N_COACTIVE))]
        offsets = self.arrays["offsets"]
        spans = [self.arrays["features"][offsets[c] : offsets[c + 1]] for c in cells]
        counts = np.bincount(np.concatenate(spans), minlength=self.d_sae) if spans else np.zeros(self.d_sae)
        share, density = counts / max(1, len(cells)), np.diff(self.arrays["feature_offsets"]) / self.n_cells
        share[feature_id] = 0
        best = np.argsort(density - share, kind="stable")[:n]
        best = best[share[best] > density[best]]
        return pd.DataFrame({"feature_id": best, "share": share[best], "lift": share[best] / density[best]})

    def _image_maxima(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(feature, index of the first entry, maximum) of each pair of a feature and a picture it is active in."""
        bounds = self.arrays["feature_offsets"]
        features = np.repeat(np.arange(self.d_sae), np.diff(bounds))
        image = np.asarray(self.arrays["feature_cells"]) // self.cells_per_image
        starts = np.flatnonzero(np.diff(features, prepend=-1) | np.diff(image.astype(np.int64), prepend=-1))
        if not len(starts):
            return features, starts, np.zeros(0, np.float32)
        return features[starts], starts, np.maximum.reduceat(self.arrays["feature_values"], starts)


def check_features(features: Sequence[int], d_sae: int) -> None:
    """ValueError for an id that is no whole number from 0 to d_sae - 1."""
    for feature_id in features:
        whole = isinstance(feature_id, int | np.integer) and not isinstance(feature_id, bool)
        if not whole or not 0 <= feature_id < d_sae:
            raise ValueError(f"feature {feature_id} is not one of 0 .. {d_sae - 1}")


def describe(index: FeatureIndex, sae: SparseAutoencoder) -> pd.DataFrame:
    """One row per feature, over all indexed pictures.

    density_cell, density_image: share of cells, of pictures, in which it is active; mean, q50, q90, q99, max: of its
    activation where active; row, column: centre of activation, in cells from the top left, weighted by activation;
    spread: root mean squared distance from there, in cells; norm: length of its decoder row; enc_dec_cosine: between
    its encoder column and decoder row. Features that never fire have nan there.
    """
    bounds = np.asarray(index.arrays["feature_offsets"])
    counts, values = np.diff(bounds), np.asarray(index.arrays["feature_values"], np.float64)
    features = np.repeat(np.arange(index.d_sae), counts)
    ordered = values[np.lexsort((values, features))]
    with np.errstate(invalid="ignore", divide="ignore"):
        sums = np.bincount(features, values, index.d_sae)
        table = {
            "feature_id": np.arange(index.d_sae),
            "density_cell": counts / index.n_cells,
            "density_image": np.bincount(index._image_maxima()[0], minlength=index.d_sae) / len(index.images),
            "mean": sums / counts,
        }
        for q in (*QUANTILES, 1.0):
            at = bounds[:-1] + np.maximum(0, np.ceil(q * counts) - 1).astype(int)
            column = np.full(index.d_sae, np.nan)
            column[counts > 0] = ordered[at[counts > 0]]
            table["max" if q == 1 else f"q{100 * q:.0f}"] = column
        cell = np.asarray(index.arrays["feature_cells"]).astype(np.int64) % index.cells_per_image
        places = np.divmod(cell, index.grid[1])
        centres = [np.bincount(features, values * place, index.d_sae) / sums for place in places]
        squares = sum((place - centre[features]) ** 2 for place, centre in zip(places, centres, strict=True))
        table |= {"row": centres[0], "column": centres[1]}
        table["spread"] = np.sqrt(np.bincount(features, values * squares, index.d_sae) / sums)
    W_dec, rows_enc = sae.W_dec.detach(), sae.W_enc_rows.detach()
    table |= {"norm": W_dec.norm(dim=1).numpy(), "enc_dec_cosine": cosine_similarity(W_dec, rows_enc).numpy()}
    return pd.DataFrame(table)


def neighbours(W_dec: torch.Tensor, feature_id: int, n: int = 8) -> pd.DataFrame:
    """The n features whose decoder rows are nearest in cosine: feature_id, cosine. W_dec: (d_sae, d_in).

    Raises: ValueError for a feature that is not there.
    """
    check_features([feature_id], len(W_dec))
    cosines = normalize(W_dec.detach()) @ normalize(W_dec[feature_id].detach(), dim=0)
    cosines[feature_id] = -2
    best = cosines.topk(min(n, len(cosines) - 1))
    return pd.DataFrame({"feature_id": best.indices.numpy(), "cosine": best.values.numpy()})
