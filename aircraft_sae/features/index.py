"""The feature index: every cell's codes on disk, by cell and by feature, and what they say about each feature."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch.nn.functional import normalize
from tqdm import tqdm

from aircraft_sae.activations import Activations, OnPictures
from aircraft_sae.devices import device
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import META, read_json, write_array, write_json, write_parquet

IMAGES, TABLE, FACTS = "images.parquet", "features.parquet", "facts.json"
ARRAYS = ("data", "indices", "indptr")


def build_index(sae: SparseAutoencoder, acts: Activations, folder: str | Path, rows: np.ndarray) -> "FeatureIndex":
    """Encode every cell of these images, in order, and write the index into `folder`.

    features.parquet has one row per feature:
        density_cell, density_image: share of cells, and of pictures, in which the feature is active
        mean, max: of its activation where it is active; nan if it never is; norm: length of its decoder row
    """
    folder, made = Path(folder), FeatureIndex.of(sae, acts, rows)
    for name, matrix in {"by_cell": made.by_cell, "by_feature": made.by_feature}.items():
        for array in ARRAYS:
            write_array(folder / f"{name}_{array}.npy", getattr(matrix, array))
    n_active, maxima = np.diff(made.by_feature.indptr), made.maxima(np.arange(len(rows)))
    n_known = np.where(n_active > 0, n_active, np.nan)
    table = pd.DataFrame({
        "feature_id": np.arange(sae.d_sae),
        "density_cell": n_active / (len(rows) * acts.cells_per_image),
        "density_image": (maxima > 0).mean(0),
        "mean": np.bincount(made.by_cell.indices, made.by_cell.data, sae.d_sae) / n_known,
        "max": np.where(n_active > 0, maxima.max(0), np.nan).astype(np.float64),
        "norm": sae.W_dec.detach().norm(dim=1).numpy(),
    })  # fmt: skip
    write_parquet(made.images, folder / IMAGES)
    write_parquet(table, folder / TABLE)
    write_json(folder / FACTS, {"grid": acts.grid, "d_sae": sae.d_sae})
    return FeatureIndex.open(folder)


def encoded(sae: SparseAutoencoder, blocks: Iterable[torch.Tensor]) -> csr_array:
    """(cells, d_sae) feature activations of blocks of acts (n, rows, columns, d_in)."""
    where, found = device(), []
    sae.to(where)
    for block in blocks:
        codes = sae.encode(block.flatten(0, 2).to(where))
        arrays = (array.cpu().numpy() for array in (codes.values, codes.features.int(), codes.offsets.int()))
        found.append(csr_array(tuple(arrays), (len(codes), sae.d_sae)))
    sae.cpu()
    by_cell = vstack(found, "csr")
    by_cell.eliminate_zeros()
    by_cell.sort_indices()
    return by_cell


@dataclass(repr=False)
class FeatureIndex(OnPictures):
    """What `build_index` wrote.

    by_cell, by_feature: the same feature activations (cells, d_sae) in two orders, memory-mapped;
        cell = (image x rows + row) x columns + column
    table: one row per feature, with the columns that `build_features` adds
    """

    by_cell: csr_array
    by_feature: csc_array
    images: pd.DataFrame
    grid: tuple[int, int]
    table: pd.DataFrame
    folder: Path = Path()
    fingerprint: str | None = None

    @classmethod
    def of(cls, sae: SparseAutoencoder, acts: Activations, rows: np.ndarray) -> "FeatureIndex":
        """An index in memory, without a table."""
        by_cell = encoded(sae, tqdm(acts.blocks(rows), "index", -(-len(rows) // 64), leave=False))
        images = acts.images.iloc[rows].reset_index(drop=True)
        return cls(by_cell, by_cell.tocsc(), images, tuple(acts.grid), pd.DataFrame())

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureIndex":
        """Open the index in `folder`; FileNotFoundError if there is none."""
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(f"{folder / FACTS} is not there: build the feature index first (Study.features)")
        facts, images = read_json(folder / FACTS), pd.read_parquet(folder / IMAGES)
        grid, table = tuple(facts["grid"]), pd.read_parquet(folder / TABLE)
        shape = len(images) * grid[0] * grid[1], facts["d_sae"]
        # plain arrays over memory maps: slices of a map itself are slow
        parts = ([np.load(folder / f"{name}_{array}.npy", mmap_mode="r") for array in ARRAYS]
                 for name in ("by_cell", "by_feature"))  # fmt: skip
        matrices = [kind(tuple(each), shape) for kind, each in zip((csr_array, csc_array), parts, strict=True)]
        return cls(*matrices, images, grid, table, folder, read_json(folder / META).get("fingerprint"))

    @property
    def d_sae(self) -> int:
        return self.by_cell.shape[1]

    def firings(self, feature_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(cells, values) where a feature is active, in order of cells; ValueError for an unknown feature."""
        check_features([feature_id], self.d_sae)
        own = slice(*self.by_feature.indptr[feature_id : feature_id + 2])
        return self.by_feature.indices[own], self.by_feature.data[own]

    def maps(self, feature_id: int, rows: np.ndarray) -> np.ndarray:
        """(n, rows, columns) activations of one feature in these pictures."""
        cells, values = self.firings(feature_id)
        dense = np.zeros((len(self.images), *self.grid), np.float32)
        dense.reshape(-1)[cells] = values
        return dense[rows]

    def maxima(self, rows: np.ndarray) -> np.ndarray:
        """(n, d_sae) largest activation of each feature in each of these pictures."""
        entries = self._by_image(rows).tocoo()
        dense = np.zeros(entries.shape, np.float32)
        np.maximum.at(dense, entries.coords, entries.data)
        return dense

    def sums(self, rows: np.ndarray) -> np.ndarray:
        """(n, d_sae) each feature's activation in each of these pictures, summed over cells."""
        return self._by_image(rows).toarray()

    def _by_image(self, rows: np.ndarray) -> csr_array:
        """(n, d_sae) with an entry for each active cell; toarray() adds up duplicates."""
        cells, shape = self.by_cell, (len(self.images), self.d_sae)
        return csr_array((cells.data, cells.indices, cells.indptr[:: self.cells_per_image]), shape)[rows]

    def patches(self, feature_id: int, how: str = "top", n: int = 24, rows: np.ndarray | None = None) -> pd.DataFrame:
        """At most n patches where a feature is active, one per picture: image_row, image, row, column, value.

        how: "top" (largest picture maxima first), "interval" (spread over the tenths of its range, strongest first) or
        "random" (any active cell). rows: only these pictures.
        """
        if how not in ("top", "interval", "random"):
            raise ValueError(f'how must be "top", "interval" or "random", got {how!r}')
        cells, values = self.firings(feature_id)
        image, row, column = np.unravel_index(cells, (len(self.images), *self.grid))
        names = self.images["image"].to_numpy()[image]
        table = pd.DataFrame({"image_row": image, "image": names, "row": row, "column": column, "value": values})
        table = table if rows is None else table[table["image_row"].isin(rows)]
        strongest = {"by": "value", "ascending": False, "kind": "stable"}
        if how == "top":
            table = table.sort_values(**strongest)
        else:
            table = table.iloc[np.random.default_rng((0, feature_id)).permutation(len(table))]
        if how == "interval":  # one cell from each tenth in turn, in random order
            tenth = (10 * table["value"] / table["value"].max()).clip(upper=9).astype(int)
            turn = tenth.groupby(tenth).cumcount()
            table = table.iloc[np.lexsort((-tenth, turn))].drop_duplicates("image_row").head(n).sort_values(**strongest)
        return table.drop_duplicates("image_row").head(n).reset_index(drop=True)


def check_features(features: Sequence[int], d_sae: int) -> None:
    """ValueError unless all are whole numbers from 0 to d_sae - 1."""
    for feature_id in features:
        whole = isinstance(feature_id, int | np.integer) and not isinstance(feature_id, bool)
        if not whole or not 0 <= feature_id < d_sae:
            raise ValueError(f"feature {feature_id} is not one of 0 .. {d_sae - 1}")


def neighbours(W_dec: torch.Tensor, feature_id: int, n: int = 8) -> pd.DataFrame:
    """The n features whose rows of W_dec (d_sae, d_in) are most similar: feature_id, cosine."""
    check_features([feature_id], len(W_dec))
    cosines = normalize(W_dec.detach()) @ normalize(W_dec[feature_id].detach(), dim=0)
    cosines[feature_id] = -2
    best = cosines.topk(min(n, len(cosines) - 1))
    return pd.DataFrame({"feature_id": best.indices.numpy(), "cosine": best.values.numpy()})
