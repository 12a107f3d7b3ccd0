"""Activations of any network at any site on any pictures: stored on disk, and read as cells."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.devices import run_parallel
from aircraft_sae.networks import BATCH, Edit, Network, Seen
from aircraft_sae.pictures import PictureDataset, Pictures, loader, test_transform, train_transform
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import META, REPLACED, check_room, digest, read_json, write_array, write_json, write_parquet

IMAGES, INDEX = "images.parquet", "shards.json"
VIEWS = "views"  # the split that holds random crops and flips of training and validation pictures
SHARD, SHARD_BYTES = 512, 2**26  # the most images, and bytes over all sites, in a shard: what a kill can cost
UNIT = 64  # the number of images in a shard is a multiple of this: whole batches on any machine
HEADER = 128  # bytes of an .npy file before its numbers
GROUP_BYTES, RUNS = 2**25, 64  # cells shuffled together: their bytes, and the runs of images they come from
MOST_MEASURED = 16384  # this many images determine a mean well enough


def site_folder(site: str) -> str:
    """A site's name as a folder name."""
    return site.replace(":", "_")


def extract(
    folder: str | Path, network: Network, pictures: Pictures, sites: Sequence[str],
    augmentation: ClassifierConfig | None = None, n_views: int = 0, n_cells: int | None = None, by_norm: bool = False,
) -> None:  # fmt: skip
    """Write acts-00000.npy, … (float16 shards), shards.json and images.parquet to each folder/<site>/, in one pass.

    First come the pictures in table order, from float32 passes; then n_views random crops and flips
    (`augmentation`) of each training and validation picture, as split "views", in mixed precision.
    n_cells: keep only `some_cells` of each picture (early maps have thousands), as a map of one column.
    Each shard is written whole, and a rerun makes only the missing ones.
    Raises: OSError if the disk lacks room; ValueError for activations that are not finite.
    """
    folder, table, n_pictures = Path(folder), pictures.table, len(pictures.table)
    viewed = table[table["split"].isin(("train", "val"))].assign(split=VIEWS)
    images, shapes = pd.concat([table, *[viewed] * n_views], ignore_index=True), {}
    for site in sites:
        *grid, d = network.shape(site)
        shapes[site] = len(images), *((n_cells, 1) if n_cells else grid), d
    n_bytes = 2 * sum(math.prod(shape[1:]) for shape in shapes.values())  # of an image
    size = min(SHARD, max(1, SHARD_BYTES // n_bytes // UNIT) * UNIT)
    starts = [*range(0, n_pictures, size), *range(n_pictures, len(images), size)]
    sizes = np.diff([*starts, len(images)])
    files = [{site: folder / site_folder(site) / f"acts-{i:05}.npy" for site in sites} for i in range(len(starts))]
    missing = [i for i, shard in enumerate(files) if not all(file.is_file() for file in shard.values())]
    remedy = "make room, or point AIRCRAFT_SAE_DATA_DIR at a larger disk"
    check_room(folder, n_bytes * int(sizes[missing].sum()), remedy)
    rows = np.concatenate([starts[i] + np.arange(sizes[i]) for i in missing] or [[]]).astype(int)
    pixels = network.size, network.mean, network.std
    passes = [(rows[rows < n_pictures], test_transform(*pixels), False)]
    if n_views:
        transform = train_transform(*pixels, replace(augmentation, colour_jitter=0.0))
        passes.append((rows[rows >= n_pictures], transform, True))

    def seen() -> Iterator[dict[str, np.ndarray]]:
        names, labels = images["image"], np.zeros(len(images), np.int64)
        for own, transform, mixed in passes:
            views = PictureDataset(pictures.picture, names.tolist(), labels, transform)
            batches = loader(views, BATCH, rows=own.tolist())
            found = network.stream((batch for batch, _, _ in batches), sites, mixed, logits=False)
            for start, each in zip(count(0, BATCH), found, strict=False):
                part = own[start : start + BATCH]
                cells = {site: some_cells(acts, n_cells, by_norm, part) if n_cells else acts
                         for site, acts in each.acts.items()}  # fmt: skip
                yield {site: _stored(site, acts, names.iloc[part]) for site, acts in cells.items()}

    n_batches = -(-sizes // BATCH)
    batches = iter(tqdm(seen(), "activations", int(n_batches[missing].sum()), unit="img", unit_scale=BATCH))
    for i in missing:
        shard = list(islice(batches, int(n_batches[i])))
        for site, file in files[i].items():
            write_array(file, np.concatenate([acts[site] for acts in shard]))
    for site, shape in shapes.items():
        write_json(folder / site_folder(site) / INDEX, {"shape": shape, "starts": starts})
        write_parquet(images, folder / site_folder(site) / IMAGES)


def _stored(site: str, acts: torch.Tensor, images: pd.Series) -> np.ndarray:
    """Acts in float16; ValueError names the first image whose acts are not finite."""
    acts = acts.half()
    if not (finite := acts.isfinite().flatten(1).all(1).numpy()).all():
        image = images.iloc[finite.argmin()]
        remedy = "look at that picture, check that the network's training converged, or choose another site"
        raise ValueError(f"the {site} activations of image {image} are not finite in float16: {remedy}")
    return acts.numpy()


def some_cells(acts: torch.Tensor, n: int, by_norm: bool, numbers: Sequence[int]) -> torch.Tensor:
    """(pictures, n, 1, d) cells drawn from each picture of acts (pictures, rows, columns, d); numbers seed the draws.

    They are drawn with replacement, uniformly or, with by_norm, in proportion to the length of their vectors.
    Source for by_norm: Bozoukov 2025, arXiv 2504.11489, whose code draws cells in proportion to their vectors' length.
    """
    flat = acts.flatten(1, 2)
    weights = flat.norm(dim=2).clamp(min=1e-8) if by_norm else torch.ones(flat.shape[:2])
    drawn = [each.multinomial(n, replacement=True, generator=torch.Generator().manual_seed(int(number)))
             for number, each in zip(numbers, weights, strict=True)]  # fmt: skip
    return torch.stack([cells[own] for cells, own in zip(flat, drawn, strict=True)])[:, :, None]


class Shards:
    """An array (image, row, column, channel) of float16 on disk, of which only the images asked for are read.

    Each file is mapped for a single read, so that its pages do not count as this process's memory.
    """

    def __init__(self, folder: Path):
        self.folder, index = folder, read_json(folder / INDEX)
        self.shape, self.bounds = tuple(index["shape"]), [*index["starts"], index["shape"][0]]
        self.opened = self._version()

    def _version(self) -> tuple[int, int]:
        index = (self.folder / INDEX).stat()
        return index.st_ino, index.st_mtime_ns

    def __getitem__(self, rows) -> np.ndarray:
        picked = np.arange(self.shape[0])[rows]
        unique, places = np.unique(picked, return_inverse=True)
        read = self._read(unique)
        return read if np.array_equal(unique, picked) else read[places.reshape(picked.shape)]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return 2 * math.prod(self.shape)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Acts of sorted rows; ValueError if the folder has been replaced since it was opened, or a file cut short."""
        if self._version() != self.opened:
            raise ValueError(f"{self.folder} {REPLACED}")
        acts = np.empty((len(rows), *self.shape[1:]), np.float16)
        for i, (first, end) in enumerate(pairwise(np.searchsorted(rows, self.bounds))):
            if end > first:
                file, size = self.folder / f"acts-{i:05}.npy", (self.bounds[i + 1] - self.bounds[i], *self.shape[1:])
                if file.stat().st_size != HEADER + 2 * math.prod(size):
                    raise ValueError(f"{file} has the wrong size for {size} in float16: extract its activations again")
                # np.load would parse the header, which only one thread can do at a time
                shard = np.memmap(file, np.float16, "r", HEADER, size)
                acts[first:end] = shard[rows[first:end] - self.bounds[i]]
        return acts


class OnPictures:
    """Cells of pictures: images (a table), grid (rows, columns), and the fingerprint of the stage that made them."""

    @property
    def cells_per_image(self) -> int:
        return self.grid[0] * self.grid[1]

    def rows(self, *splits: str) -> np.ndarray:
        """Sorted rows of the images in these splits; ValueError for an unknown split, or if none is given."""
        unknown = [split for split in splits if split not in ("train", "val", "test", VIEWS)]
        if unknown or not splits:
            raise ValueError(f"splits must be some of train, val, test, {VIEWS}, got {', '.join(unknown) or 'none'}")
        return np.flatnonzero(self.images["split"].isin(splits))


@dataclass(eq=False)
class Activations(OnPictures):
    """One site's activations. acts: (image, row, column, channel), `Shards` or an array."""

    acts: np.ndarray | Shards
    images: pd.DataFrame
    site: str = ""
    fingerprint: str | None = None

    @classmethod
    def open(cls, folder: str | Path, site: str) -> "Activations":
        """Open what `extract` wrote into `folder` for one site; FileNotFoundError if there is nothing."""
        own = Path(folder) / site_folder(site)
        if not (own / IMAGES).is_file():
            raise FileNotFoundError(f"{own / IMAGES} is not there: extract the activations of {site} first")
        known = read_json(Path(folder) / META).get("fingerprint", own)
        return cls(Shards(own), pd.read_parquet(own / IMAGES), site, digest([known, site]))

    @property
    def d_in(self) -> int:
        return self.acts.shape[3]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a picture's cells."""
        return self.acts.shape[1:3]

    def blocks(self, rows: np.ndarray, n_images: int = 64) -> Iterator[torch.Tensor]:
        """Acts of these images in order, at most (n_images, rows, columns, d_in) float32 at a time."""
        for start in range(0, len(rows), n_images):
            yield torch.from_numpy(self.acts[rows[start : start + n_images]]).float()

    def moments(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, variance) of each channel, (d_in,) float64, over the cells of up to 16,384 of these images."""
        rows = rows[:: 1 + (len(rows) - 1) // MOST_MEASURED]
        sums = torch.zeros(2, self.d_in, dtype=torch.float64)
        for block in self.blocks(rows):
            block = block.flatten(0, 2).double()
            sums += torch.stack([block.sum(0), block.square().sum(0)])
        mean, squares = sums / (len(rows) * self.cells_per_image)
        return mean, squares - mean.square()

    def per_epoch(self, rows: np.ndarray, batch_size: int) -> int:
        """Batches per epoch; ValueError if the images have fewer cells than one batch."""
        if batch_size > (n_cells := len(rows) * self.cells_per_image):
            few = f"the {n_cells} cells of {len(rows)} images"
            raise ValueError(f"batch_size {batch_size} is more than {few}: lower sae.batch_size")
        return n_cells // batch_size

    def batches(self, rows: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Endless batches of shuffled cells (batch_size, d_in), as stored; each depends on (seed, its number) alone.

        Each epoch shuffles runs of images (512 kB), and then the cells within each group of 64 runs. Cells that do not
        fill a last batch are left out of the epoch. start: the first batch's number. Raises: as `per_epoch`.
        """
        per_epoch = self.per_epoch(rows, batch_size)
        n_images = max(1, GROUP_BYTES // (self.acts.nbytes // len(self.acts)))
        run = max(1, n_images // RUNS)
        held, cells = None, None
        for batch in count(start):
            epoch, i = divmod(batch, per_epoch)
            parts, at, end = [], i * batch_size, (i + 1) * batch_size
            while at < end:
                group, first = divmod(at, n_images * self.cells_per_image)
                if held != (epoch, group):
                    held, cells = (epoch, group), None  # free the last group before reading the next
                    runs = np.random.default_rng((seed, epoch)).permutation(-(-len(rows) // run))
                    order = (runs[:, None] * run + np.arange(run)).ravel()
                    order = order[order < len(rows)][group * n_images : (group + 1) * n_images]
                    cells = self.acts[rows[np.sort(order)]].reshape(-1, self.d_in)
                    np.random.default_rng((seed, epoch, group)).shuffle(cells)
                parts.append(cells[first : first + end - at])
                at += len(parts[-1])
            yield torch.from_numpy(np.concatenate(parts))


def see_features(
    network: Network, sae: SparseAutoencoder, x: torch.Tensor, mixed: bool = False
) -> tuple[Seen, torch.Tensor]:
    """(`Seen` at the autoencoder's site, dense codes (n, rows, columns, d_sae)) of a batch of pictures."""
    seen = network.see(x, [sae.cfg.site], mixed=mixed)
    acts = seen.acts[sae.cfg.site]
    with torch.no_grad():
        return seen, sae.encode(acts.flatten(0, 2)).dense().view(*acts.shape[:3], -1)


def replay(
    network: Network, pictures: Pictures, acts: Activations, rows: np.ndarray, edit: Edit | None = None
) -> torch.Tensor:
    """(n, classes) logits of continuing from these rows' stored acts after `edit`, with the pictures if needed."""
    starts, images = network.can_start(acts.site), acts.images["image"].to_numpy()

    @torch.no_grad()
    def of(some: np.ndarray) -> torch.Tensor:
        block = torch.from_numpy(acts.acts[some]).float()
        x = None if starts else torch.stack([network.as_input(pictures.picture(image)) for image in images[some]])
        return network.see(x, given={acts.site: block if edit is None else edit(block)}).logits

    return torch.cat(list(run_parallel(of, [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)])))
