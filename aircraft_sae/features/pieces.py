"""An index larger than memory: encoded in pieces of some pictures each, then merged, some features at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csc_array, csr_array

from aircraft_sae.store import write_array

ARRAYS, KINDS = ("data", "indices", "indptr"), ("<f4", "<i4")
MERGED, MOST_PIECES = 2**21, 256  # entries sorted by feature at once, unless all of them need more passes than this


class Piece:
    """The codes (n_cells, d_sae) of some pictures, by feature, in three files."""

    def __init__(self, folder: Path, number: int, n_cells: int, d_sae: int):
        self.files = [folder / f"{number:05}_{array}.npy" for array in ARRAYS]
        self.n_cells, self.d_sae = n_cells, d_sae

    @property
    def there(self) -> bool:
        return all(file.is_file() for file in self.files)

    def write(self, by_cell: csr_array) -> None:
        """Keep these codes."""
        codes = by_cell.tocsc()
        for file, array in zip(self.files, ARRAYS, strict=True):
            write_array(file, getattr(codes, array))

    def read(self) -> csc_array:
        """The codes, mapped into memory for as long as they are held."""
        return csc_array(tuple(np.load(file, mmap_mode="r") for file in self.files), (self.n_cells, self.d_sae))


def merge(pieces: Sequence[Piece], folder: Path, cells_per_image: int) -> pd.DataFrame:
    """Write by_cell and by_feature from pieces in order; by feature: its n, sum and max, and images where active."""
    firsts = np.cumsum([0, *(piece.n_cells for piece in pieces)])
    of_cell, of_feature = np.zeros(firsts[-1] + 1, np.int64), np.zeros(pieces[0].d_sae + 1, np.int64)
    for piece, (first, end) in zip(pieces, pairwise(firsts), strict=True):
        codes = piece.read()
        of_feature[1:] += np.diff(codes.indptr)
        of_cell[first + 1 : end + 1] = np.bincount(codes.indices, minlength=piece.n_cells)
    by_cell = (piece.read().tocsr() for piece in pieces)
    _write(folder, "by_cell", of_cell.cumsum(), ((codes.data, codes.indices) for codes in by_cell))
    offsets, tables = of_feature.cumsum(), []
    merged = max(MERGED, offsets[-1] // MOST_PIECES)

    def some_features() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        bounds = np.flatnonzero(np.diff(offsets[:-1] // merged, prepend=-1, append=-1))
        for start, end in pairwise(bounds):
            found = []
            for piece, first in zip(pieces, firsts, strict=False):
                codes = piece.read()
                own = slice(codes.indptr[start], codes.indptr[end])
                features = np.repeat(np.arange(start, end), np.diff(codes.indptr[start : end + 1]))
                found.append((features, codes.data[own], codes.indices[own] + first))
            features, values, cells = map(np.concatenate, zip(*found, strict=True))
            order = features.argsort(kind="stable")
            entries = {"feature": features, "value": np.float64(values), "image": cells // cells_per_image}
            columns = {"n": ("value", "size"), "sum": ("value", "sum"), "max": ("value", "max")}
            tables.append(pd.DataFrame(entries).groupby("feature").agg(**columns, images=("image", "nunique")))
            yield values[order], cells[order]

    _write(folder, "by_feature", offsets, some_features())
    return pd.concat(tables).reindex(range(pieces[0].d_sae))


def _write(folder: Path, name: str, offsets: np.ndarray, pieces: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
    """A compressed matrix, its (data, indices) a piece at a time."""
    np.save(folder / f"{name}_indptr.npy", offsets.astype(np.int32 if offsets[-1] < 2**31 else np.int64))
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}_{array}.npy", "wb")) for array in ARRAYS[:2]]
        for file, kind in zip(files, KINDS, strict=True):
            header = {"descr": kind, "fortran_order": False, "shape": (int(offsets[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            for file, own, kind in zip(files, piece, KINDS, strict=True):
                own.astype(kind).tofile(file)
