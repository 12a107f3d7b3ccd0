"""The feature index: the codes of every cell on disk, by cell and by feature, and what they say about each feature."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array, csr_array, vstack
from torch.nn.functional import normalize
from tqdm import tqdm

from aircraft_sae import ranks
from aircraft_sae.activations import Activations, OnPictures
from aircraft_sae.devices import device
from aircraft_sae.features.pieces import ARRAYS, MOST_PIECES, Piece, merge
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import META, digest, read_json, write_json, write_parquet

IMAGES, TABLE, FACTS = "images.parquet", "features.parquet", "facts.json"
PIECE = 2**15  # cells encoded before they are written, or 1/256 of all: 8 MB of 32 features each


def build_index(
    sae: SparseAutoencoder, acts: Activations, folder: str | Path, rows: np.ndarray
) -> "FeatureIndex | None":
    """Encode every cell of these images once, in order, and write the index into `folder`, in bounded memory.

    Its table has a row per feature. density_cell, density_image: share of cells, of pictures, in which it is active;
    mean, max: of its activation where active, nan where it never is; norm: length of its decoder row.
    Of several ranks each encodes its share; the first puts the pieces together, and the others get None.
    """
    folder, n_cells = Path(folder), acts.cells_per_image
    some = np.array_split(rows, max(1, min(len(rows) * n_cells // PIECE, len(rows), MOST_PIECES)))
    place = folder / f"pieces-{digest([sae, acts, rows, len(some)])}"
    pieces = [Piece(place, i, len(own) * n_cells, sae.d_sae) for i, own in enumerate(some)]
    for i in tqdm(ranks.mine([not piece.there for piece in pieces]), "index", leave=False):
        pieces[i].write(encoded(sae, acts.blocks(some[i])))
    ranks.wait()  # all pieces are there
    if ranks.rank():
        return None
    found = merge(pieces, folder, n_cells)
    table = pd.DataFrame({
        "feature_id": np.arange(sae.d_sae),
        "density_cell": found["n"].fillna(0) / (len(rows) * n_cells),
        "density_image": found["images"].fillna(0) / len(rows),
        "mean": found["sum"] / found["n"],
        "max": found["max"],
        "norm": sae.W_dec.detach().norm(dim=1).numpy(),
    })  # fmt: skip
    write_parquet(acts.images.iloc[rows].reset_index(drop=True), folder / IMAGES)
    write_parquet(table, folder / TABLE)
    write_json(folder / FACTS, {"grid": acts.grid, "d_sae": sae.d_sae})
    shutil.rmtree(place)
    return FeatureIndex.open(folder)


def encoded(sae: SparseAutoencoder, blocks: Iterable[torch.Tensor]) -> csr_array:
    """(cells, d_sae) feature activations of blocks (n, rows, columns, d_in) of acts."""
    where, found = device(), []
    sae.to(where)
    for block in blocks:
        codes = sae.encode(block.flatten(0, 2).to(where))
        arrays = (array.cpu().numpy() for array in (codes.values, codes.features.int(), codes.offsets.int()))
        found.append(csr_array(tuple(arrays), (len(codes), sae.d_sae)))
    sae.cpu()
    by_cell = vstack(found, "csr")
    by_cell.eliminate_zeros()
    return by_cell


@dataclass(repr=False)
class FeatureIndex(OnPictures):
    """What `build_index` wrote.

    by_cell, by_feature: feature activations (cells, d_sae), the same in two orders, memory-mapped; cell = (image x rows
    + row) x columns + column. table: one row per feature, with the columns joined to it later.
    """

    by_cell: csr_array
    by_feature: csc_array
    images: pd.DataFrame
    grid: tuple[int, int]
    table: pd.DataFrame
    folder: Path = Path()
    stage: str = ""

    @classmethod
    def of(cls, sae: SparseAutoencoder, acts: Activations, rows: np.ndarray) -> "FeatureIndex":
        """Of every cell of these images, encoded once, in order: kept nowhere, and without a table."""
        by_cell = encoded(sae, tqdm(acts.blocks(rows), "index", -(-len(rows) // 64), leave=False))
        images = acts.images.iloc[rows].reset_index(drop=True)
        return cls(by_cell, by_cell.tocsc(), images, tuple(acts.grid), pd.DataFrame())

    @classmethod
    def open(cls, folder: str | Path) -> "FeatureIndex":
        """What is in `folder`; FileNotFoundError where nothing was built."""
        folder = Path(folder)
        if not (folder / FACTS).is_file():
            raise FileNotFoundError(f"{folder / FACTS} is not there: build the feature index first, as Study.features")
        facts, (images, table) = read_json(folder / FACTS), (pd.read_parquet(folder / name) for name in (IMAGES, TABLE))
        (rows, columns), matrices = facts["grid"], []
        for name, kind in {"by_cell": csr_array, "by_feature": csc_array}.items():
            arrays = (np.load(folder / f"{name}_{array}.npy", mmap_mode="r") for array in ARRAYS)
            # plain arrays over the maps: slices of a map itself are slow
            matrices.append(kind(tuple(arrays), (len(images) * rows * columns, facts["d_sae"])))
        return cls(*matrices, images, (rows, columns), table, folder, read_json(folder / META).get("fingerprint", ""))

    def _content(self) -> list:
        return [self.images, *(getattr(self.by_cell, array) for array in ARRAYS)]

    @property
    def d_sae(self) -> int:
        return self.by_cell.shape[1]

    def firings(self, feature_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(cells, values) of a feature, cells rising; ValueError for a feature that is not there."""
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
        """(n, d_sae) sum over cells of each feature's activation in each of these pictures."""
        return self._by_image(rows).toarray()

    def _by_image(self, rows: np.ndarray) -> csr_array:
        """(n, d_sae) with an entry for each cell: scipy adds up those of the same place where it is asked to."""
        cells, shape = self.by_cell, (len(self.images), self.d_sae)
        return csr_array((cells.data, cells.indices, cells.indptr[:: self.cells_per_image]), shape)[rows]

    def patches(self, feature_id: int, how: str = "top", n: int = 24, rows: np.ndarray | None = None) -> pd.DataFrame:
        """At most n patches where a feature is active, one a picture: image_row, image, row, column, value.

        how: "top" (the pictures' maxima, largest first), "interval" (as many from each tenth of the range up to its
        maximum, strongest first) or "random" (any active cell). rows: only these pictures.
        Raises: ValueError for another word, or a feature that is not there.
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
        if how == "interval":  # of cells in random order one of each tenth in turn
            tenth = (10 * table["value"] / table["value"].max()).clip(upper=9).astype(int)
            turn = tenth.groupby(tenth).cumcount()
            table = table.iloc[np.lexsort((-tenth, turn))].drop_duplicates("image_row").head(n).sort_values(**strongest)
        return table.drop_duplicates("image_row").head(n).reset_index(drop=True)

    def coactive(self, feature_id: int, n: int) -> pd.DataFrame:
        """The n features most often active in this one's cells, above chance: feature_id, share, lift."""
        cells, _ = self.firings(feature_id)
        cells = cells[:: max(1, -(-len(cells) // 4096))]
        share = np.bincount(self.by_cell[cells].indices, minlength=self.d_sae) / max(1, len(cells))
        density = self.table["density_cell"].to_numpy()
        share[feature_id] = 0
        best = np.argsort(density - share, kind="stable")[:n]
        best = best[share[best] > density[best]]
        return pd.DataFrame({"feature_id": best, "share": share[best], "lift": share[best] / density[best]})


def check_features(features: Sequence[int], d_sae: int) -> None:
    """ValueError for an id that is no whole number from 0 to d_sae - 1."""
    for feature_id in features:
        whole = isinstance(feature_id, int | np.integer) and not isinstance(feature_id, bool)
        if not whole or not 0 <= feature_id < d_sae:
            raise ValueError(f"feature {feature_id} is not one of 0 .. {d_sae - 1}")


def neighbours(W_dec: torch.Tensor, feature_id: int, n: int = 8) -> pd.DataFrame:
    """The n features of nearest decoder rows W_dec (d_sae, d_in): feature_id, cosine. ValueError for no feature."""
    check_features([feature_id], len(W_dec))
    cosines = normalize(W_dec.detach()) @ normalize(W_dec[feature_id].detach(), dim=0)
    cosines[feature_id] = -2
    best = cosines.topk(min(n, len(cosines) - 1))
    return pd.DataFrame({"feature_id": best.indices.numpy(), "cosine": best.values.numpy()})
