"""Acts of a network on pictures: seen a batch at a time, kept in shards on disk, or seen again when they are read."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae import ranks
from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import BATCH, Network, n_workers
from aircraft_sae.pictures import Pictures, Views, loader, test_transform, train_transform
from aircraft_sae.store import REPLACED, check_room, digest, read_json, write_array, write_json, write_parquet

IMAGES, INDEX = "images.parquet", "shards.json"
VIEWS = "views"  # the split of random crops and flips of training and validation pictures
SHARD, SHARD_BYTES = 512, 2**26  # most images, and bytes of all sites, that a kill can cost
UNIT = 64  # images of a shard are a multiple: of whole batches on any machine
HEADER = 128  # bytes of an .npy file before its numbers
ROOM = "make room, or point AIRCRAFT_SAE_DATA_DIR at a larger disk"


def site_folder(site: str) -> str:
    """A site's name as that of a folder."""
    return site.replace(":", "_")


@dataclass(eq=False)
class Source:
    """What acts are made of: pictures in the order of their table, in float32, then n_views random crops and flips
    (`augmentation`) of each training and validation picture, as split "views" and in mixed precision.

    n_cells: so many cells of each picture alone, as one column of a map, drawn anew for each place with equal
    probability, or by the length of their vectors (early maps have thousands).
    """

    network: Network
    pictures: Pictures
    augmentation: ClassifierConfig | None = None
    n_views: int = 0
    n_cells: int | None = None
    by_norm: bool = False

    @cached_property
    def images(self) -> pd.DataFrame:
        """A row an image: those of the pictures' table, then the views."""
        seen = self.pictures.table[self.pictures.table["split"].isin(("train", "val"))].assign(split=VIEWS)
        return pd.concat([self.pictures.table, *[seen] * self.n_views], ignore_index=True)

    @property
    def fingerprint(self) -> str:
        return digest([getattr(self, each.name) for each in fields(self)])

    def shape(self, site: str) -> tuple[int, int, int, int]:
        """(images, rows, columns, channels) of a site's acts."""
        rows, columns, d = self.network.shape(site)
        return len(self.images), *((self.n_cells, 1) if self.n_cells else (rows, columns)), d

    def stream(self, sites: Sequence[str], rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Acts of rising rows by site, a batch (n, rows, columns, channels) float16 at a time; ValueError beyond it."""
        pixels, first = (self.network.size, self.network.mean, self.network.std), len(self.pictures.table)
        passes = [(rows[rows < first], test_transform(*pixels), False)]
        if self.n_views:
            views = train_transform(*pixels, replace(self.augmentation, colour_jitter=0.0))
            passes.append((rows[rows >= first], views, True))
        images, labels = self.images["image"].tolist(), np.zeros(len(self.images), np.int64)
        for own, transform, mixed in passes:
            views = Views(self.pictures.picture, images, labels, transform)
            batches = loader(views, BATCH, workers=n_workers(len(own)), rows=own.tolist())
            done = 0
            for got in self.network.stream((batch for batch, _, _ in batches), sites, mixed, logits=False):
                part = own[done : done + BATCH]
                yield {site: self._kept(site, acts, part) for site, acts in got.acts.items()}
                done += BATCH

    def _kept(self, site: str, acts: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        cells = (some_cells(acts, self.n_cells, self.by_norm, rows) if self.n_cells else acts).half()
        if not (finite := cells.isfinite().flatten(1).all(1).numpy()).all():
            odd = f"the {site} activations of image {self.images['image'][rows[finite.argmin()]]} are not finite"
            remedy = "look at that picture, whether the network's training diverged, or choose another site"
            raise ValueError(f"{odd} in float16, which ends at 65,504: {remedy}")
        return cells.numpy()


@ranks.together
def extract(folder: str | Path, network: Network, pictures: Pictures, sites: Sequence[str], **how) -> None:
    """Write folder/<site>/ acts-00000.npy, … (float16), shards.json and images.parquet for each site, in one pass.

    A shard has some hundreds of images, and is written whole by one rank; a killed run, of as many ranks or of others,
    makes what is missing. how: what else a `Source` takes.
    Raises: OSError where the disk has no room, ValueError for acts beyond float16 and a folder of other acts.
    """
    folder, source, n_pictures = Path(folder), Source(network, pictures, **how), len(pictures.table)
    shapes = {site: source.shape(site) for site in sites}
    n_bytes = 2 * sum(math.prod(shape[1:]) for shape in shapes.values())
    size = min(SHARD, max(1, SHARD_BYTES // n_bytes // UNIT) * UNIT)
    starts = [*range(0, n_pictures, size), *range(n_pictures, len(source.images), size)]
    whole = {site: Shards(folder / site_folder(site), shape, starts) for site, shape in shapes.items()}
    for site, shards in whole.items():
        index = {"shape": list(shards.shape), "starts": starts, "made_from": source.fingerprint}
        if (there := read_json(shards.folder / INDEX)) and there != index:
            raise ValueError(f"{shards.folder} holds other activations of {site}: remove it, or name another folder")
        if ranks.rank() == 0:
            write_json(shards.folder / INDEX, index)
    missing = [not all(shards.file(i).is_file() for shards in whole.values()) for i in range(len(starts))]
    sizes = np.diff([*starts, len(source.images)])
    check_room(folder, n_bytes * int(sizes[missing].sum()), ROOM)
    mine = ranks.mine(missing)
    rows = np.concatenate([starts[i] + np.arange(sizes[i]) for i in mine] or [[]]).astype(int)
    batches = source.stream(sites, rows)
    with tqdm(total=len(rows), desc="activations", unit="img") as bar:
        for i in mine:
            seen = []
            for acts in islice(batches, -(-int(sizes[i]) // BATCH)):
                seen.append(acts)
                bar.update(len(acts[sites[0]]))
            for site, shards in whole.items():
                write_array(shards.file(i), np.concatenate([acts[site] for acts in seen]))
    if ranks.rank() == 0:
        for shards in whole.values():
            write_parquet(source.images, shards.folder / IMAGES)


def some_cells(acts: torch.Tensor, n: int, by_norm: bool, numbers: Sequence[int]) -> torch.Tensor:
    """(pictures, n, 1, d) cells of each picture of acts (pictures, rows, columns, d), drawn by the pictures' numbers.

    Source for by_norm: Bozoukov 2025, arXiv 2504.11489, whose code draws positions by the length of their vectors.
    """
    flat = acts.flatten(1, 2)
    weights = flat.norm(dim=2).clamp(min=1e-8) if by_norm else torch.ones(flat.shape[:2])
    drawn = [each.multinomial(n, replacement=True, generator=torch.Generator().manual_seed(int(number)))
             for number, each in zip(numbers, weights, strict=True)]  # fmt: skip
    return torch.stack([cells[own] for cells, own in zip(flat, drawn, strict=True)])[:, :, None]


class Lazy:
    """An array (image, row, column, channel) float16, of which only the images asked for are read."""

    shape: tuple[int, int, int, int]
    dtype = np.dtype(np.float16)

    def __getitem__(self, rows) -> np.ndarray:
        picked = np.arange(self.shape[0])[rows]
        unique, places = np.unique(picked, return_inverse=True)
        read = self.read(unique)
        return read if np.array_equal(unique, picked) else read[places.reshape(picked.shape)]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shards(Lazy):
    """Kept on disk, shard i from image starts[i] on. A file is opened to be read and closed again, so that its pages
    do not stay this process's."""

    def __init__(self, folder: Path, shape: Sequence[int], starts: Sequence[int]):
        self.folder, self.shape, self.starts = folder, tuple(shape), list(starts)
        self.opened = self._index()

    def _index(self) -> tuple[int, int] | None:
        try:
            index = (self.folder / INDEX).stat()
            return index.st_ino, index.st_mtime_ns
        except OSError:
            return None

    def file(self, i: int) -> Path:
        """Of shard i."""
        return self.folder / f"acts-{i:05}.npy"

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Acts of rising rows; ValueError where the folder is not the one that was opened any more."""
        if self.opened is None or self._index() != self.opened:
            raise ValueError(f"{self.folder} {REPLACED}")
        acts, bounds = np.empty((len(rows), *self.shape[1:]), np.float16), [*self.starts, len(self)]
        for i, (first, end) in enumerate(pairwise(np.searchsorted(rows, bounds))):
            if end > first:
                size = bounds[i + 1] - bounds[i], *self.shape[1:]
                # np.load would parse the header, which threads do one by one
                if self.file(i).stat().st_size != HEADER + 2 * math.prod(size):
                    raise ValueError(
                        f"{self.file(i)} has the wrong size for {size} in float16: extract these activations again"
                    )
                acts[first:end] = np.memmap(self.file(i), np.float16, "r", HEADER, size)[rows[first:end] - bounds[i]]
        return acts


class Live(Lazy):
    """Kept nowhere: the pictures go through the network whenever they are asked for."""

    def __init__(self, source: Source, site: str):
        self.source, self.site, self.shape = source, site, source.shape(site)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Acts of rising rows."""
        seen = self.source.stream([self.site], rows)
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *(acts[self.site] for acts in seen)])
