"""Spatial activations of any sites of any network: kept on disk, read back as shuffled cells."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.devices import side_by_side
from aircraft_sae.networks import BATCH, Edit, Network, Seen, n_workers
from aircraft_sae.pictures import Pictures, Views, loader, test_transform, train_transform
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import META, check_room, digest, read_json, write_json, write_parquet, write_whole

ACTS, IMAGES, DONE = "acts.npy", "images.parquet", "done.json"
VIEWS = "views"  # the split of random crops and flips of training and validation pictures
SAVE_EVERY = 512  # images between two notes of how far an extraction has come
ROOM = "make room, or point AIRCRAFT_SAE_DATA_DIR at a larger disk"
GROUP_BYTES = 2**25  # of images shuffled together, read whole and in order: a disk never seeks for single cells


def site_folder(site: str) -> str:
    """A site's name as that of a folder."""
    return site.replace(":", "_")


def extract(
    folder: str | Path, network: Network, pictures: Pictures, sites: Sequence[str],
    augmentation: ClassifierConfig | None = None, n_views: int = 0, n_cells: int | None = None, by_norm: bool = False,
) -> None:  # fmt: skip
    """Write folder/<site>/acts.npy (image, row, column, channel; float16) and images.parquet, for each site.

    Every picture goes through the network once, in float32 and in the order of the table; then n_views random crops and
    flips (`augmentation`) of each training and validation picture, as split "views" and in mixed precision. A killed
    run goes on where it was. n_cells: keep so many cells of each picture, as one column of a map, drawn anew for each
    place with equal probability, or by the length of their vectors (early maps have thousands).
    Raises: OSError where the disk has no room, ValueError for acts beyond float16 and for a folder of other pictures.
    """
    folder = Path(folder)
    seen = pictures.table[pictures.table["split"].isin(("train", "val"))].assign(split=VIEWS)
    table = pd.concat([pictures.table, *[seen] * n_views], ignore_index=True)
    images, labels = table["image"].tolist(), np.zeros(len(table), np.int64)
    pixels = network.size, network.mean, network.std
    passes = [(len(pictures.table), test_transform(*pixels), False)]
    if n_views:
        passes.append((len(table), train_transform(*pixels, replace(augmentation, colour_jitter=0.0)), True))
    grids = {site: network.shape(site) for site in sites}
    grids = {site: (n_cells, 1, d) if n_cells else (rows, columns, d) for site, (rows, columns, d) in grids.items()}
    shapes = {folder / site_folder(site) / ACTS: (len(table), *grid) for site, grid in grids.items()}
    absent = [path for path in shapes if not path.is_file()]
    check_room(folder, sum(2 * math.prod(shapes[path]) for path in absent), ROOM)
    files = dict(zip(sites, (_open(path, shape) for path, shape in shapes.items()), strict=True))
    n_done = saved = 0 if absent else read_json(folder / DONE).get("n_images", 0)
    with tqdm(total=len(table), initial=n_done, desc="activations", unit="img") as bar:
        for end, transform, mixed in passes:
            views = Views(pictures.picture, images[:end], labels[:end], transform)
            batches = loader(views, BATCH, workers=n_workers(max(0, end - n_done)), first=min(n_done, end))
            for got in network.stream((batch for batch, _, _ in batches), sites, mixed, logits=False):
                size = len(got.logits)
                for site, acts in got.acts.items():
                    cells = (some_cells(acts, n_cells, by_norm, n_done) if n_cells else acts).half()
                    if not (finite := cells.isfinite().flatten(1).all(1).numpy()).all():
                        odd = f"the {site} activations of image {images[n_done + finite.argmin()]} are not finite"
                        remedy = "look at that picture, whether the network's training diverged, or choose another site"
                        raise ValueError(f"{odd} in float16, which ends at 65,504: {remedy}")
                    files[site][n_done : n_done + size] = cells.numpy()
                n_done += size
                bar.update(size)
                if n_done - saved >= SAVE_EVERY or n_done == end:
                    for file in files.values():
                        file.flush()
                    write_json(folder / DONE, {"n_images": n_done})
                    saved = n_done
    for site in sites:
        write_parquet(table, folder / site_folder(site) / IMAGES)


def some_cells(acts: torch.Tensor, n: int, by_norm: bool, first: int) -> torch.Tensor:
    """(pictures, n, 1, d) cells of each picture of acts (pictures, rows, columns, d); `first` numbers the pictures.

    Source for by_norm: Bozoukov 2025, arXiv 2504.11489, whose code draws positions by the length of their vectors.
    """
    flat = acts.flatten(1, 2)
    weights = flat.norm(dim=2).clamp(min=1e-8) if by_norm else torch.ones(flat.shape[:2])
    drawn = [each.multinomial(n, replacement=True, generator=torch.Generator().manual_seed(first + i))
             for i, each in enumerate(weights)]  # fmt: skip
    return torch.stack([cells[own] for cells, own in zip(flat, drawn, strict=True)])[:, :, None]


class OnPictures:
    """What is known of pictures' cells: images (a table), grid (rows, columns), stage (its fingerprint, or "")."""

    @cached_property
    def fingerprint(self) -> str:
        """The stage's own where there is one, else a digest of the content."""
        return self.stage or digest(self._content())

    @property
    def cells_per_image(self) -> int:
        return self.grid[0] * self.grid[1]

    def rows(self, *splits: str) -> np.ndarray:
        """Indices of the images of these splits, rising; ValueError for none, or an unknown one."""
        unknown = [split for split in splits if split not in ("train", "val", "test", VIEWS)]
        if unknown or not splits:
            raise ValueError(f"splits must be some of train, val, test, {VIEWS}, got {', '.join(unknown) or 'none'}")
        return np.flatnonzero(self.images["split"].isin(splits))


@dataclass(eq=False)
class Activations(OnPictures):
    """One site's activations. acts: memory map (image, row, column, channel); stage: of that and the site."""

    acts: np.ndarray
    images: pd.DataFrame
    site: str = ""
    stage: str = ""

    @classmethod
    def open(cls, folder: str | Path, site: str) -> "Activations":
        """What `extract` wrote into `folder` for one site; FileNotFoundError where it has not."""
        own = Path(folder) / site_folder(site)
        if not (own / IMAGES).is_file():
            raise FileNotFoundError(f"{own / IMAGES} is not there: extract the activations of {site} first")
        known = read_json(Path(folder) / META).get("fingerprint")
        stage = digest([known, site]) if known else ""
        return cls(np.load(own / ACTS, mmap_mode="r"), pd.read_parquet(own / IMAGES), site, stage)

    def _content(self) -> list:
        return [self.acts, self.images, self.site]

    @property
    def d_in(self) -> int:
        return self.acts.shape[3]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of a picture's cells."""
        return self.acts.shape[1:3]

    def blocks(self, rows: np.ndarray, n_images: int = 64) -> Iterator[torch.Tensor]:
        """Acts of these images in order, (at most n_images, rows, columns, d_in) float32 at a time."""
        for start in range(0, len(rows), n_images):
            yield torch.from_numpy(self.acts[rows[start : start + n_images]]).float()

    def moments(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean, variance) of each channel, (d_in,) float64, over all cells of these images."""
        sums = torch.zeros(2, self.d_in, dtype=torch.float64)
        for block in self.blocks(rows):
            block = block.flatten(0, 2).double()
            sums += torch.stack([block.sum(0), block.square().sum(0)])
        mean, squares = sums / (len(rows) * self.cells_per_image)
        return mean, squares - mean.square()

    def batches(self, rows: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Endless shuffled cells (batch_size, d_in) as stored, from batch `start`; a function of (seed, batch) alone.

        Images are drawn anew each epoch, and cells shuffled in groups of images of 32 MB. The last cells of an epoch
        that fill no batch are left out. Raises: ValueError where the images have fewer cells than a batch.
        """
        n_cells = len(rows) * self.cells_per_image
        per_epoch = n_cells // batch_size
        if not per_epoch:
            few = f"the {n_cells} cells of {len(rows)} images"
            raise ValueError(f"batch_size {batch_size} is more than {few}: lower sae.batch_size")
        n_images = max(1, GROUP_BYTES // self.acts[0].nbytes)
        held, cells = None, None
        for batch in count(start):
            epoch, i = divmod(batch, per_epoch)
            parts, at, end = [], i * batch_size, (i + 1) * batch_size
            while at < end:
                group, first = divmod(at, n_images * self.cells_per_image)
                if held != (epoch, group):
                    held, cells = (epoch, group), None  # let go of the old ones before reading
                    order = np.random.default_rng((seed, epoch)).permutation(rows)
                    own = np.sort(order[group * n_images : (group + 1) * n_images])
                    cells = self.acts[own].reshape(-1, self.d_in)
                    np.random.default_rng((seed, epoch, group)).shuffle(cells)
                parts.append(cells[first : first + end - at])
                at += len(parts[-1])
            yield torch.from_numpy(np.concatenate(parts))


def see_features(
    network: Network, sae: SparseAutoencoder, x: torch.Tensor, mixed: bool = False
) -> tuple[Seen, torch.Tensor]:
    """(what a batch of pictures shows at the autoencoder's site, codes (n, rows, columns, d_sae) of it, dense)."""
    seen = network.see(x, [sae.cfg.site], mixed=mixed)
    acts = seen.acts[sae.cfg.site]
    with torch.no_grad():
        return seen, sae.encode(acts.flatten(0, 2)).dense().view(*acts.shape[:3], -1)


def gradient_maps(
    network: Network, sae: SparseAutoencoder, x: torch.Tensor, feature_id: int, cell: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(positive gradient x input, absolute gradient) of a feature's pre-activation in one cell of x (3, size, size).

    Each (size, size), summed over colours.
    """
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        acts = network.see(x[None], [sae.cfg.site]).acts[sae.cfg.site]
        (gradient,) = torch.autograd.grad(acts[0, cell[0], cell[1]] @ sae.W_enc_rows[feature_id].detach(), x)
    return (gradient * x.detach()).sum(0).relu().numpy(), gradient.abs().sum(0).numpy()


def effective_radius(gradient: np.ndarray, cell: tuple[int, int], grid: tuple[int, int]) -> float:
    """Pixels around a cell that hold half of an absolute gradient (size, size): Luo et al. 2016, arXiv 1701.04128."""
    centre = [(at + 0.5) * size / n - 0.5 for at, size, n in zip(cell, gradient.shape, grid, strict=True)]
    down, across = (np.arange(size) - c for size, c in zip(gradient.shape, centre, strict=True))
    distance = np.hypot(down[:, None], across[None])
    order = np.argsort(distance, axis=None)
    within = gradient.reshape(-1)[order].cumsum() >= 0.5 * gradient.sum()
    return float(distance.reshape(-1)[order][within.argmax()])


def replay(
    network: Network, pictures: Pictures, acts: Activations, rows: np.ndarray,
    edit: Edit | None = None, sites: Sequence[str] = (),
) -> Iterator[Seen]:  # fmt: skip
    """What the network makes of stored acts of these rows, in order, after `edit`: from the site, or from pictures."""
    starts, images = network.can_start(acts.site), acts.images["image"].to_numpy()

    @torch.no_grad()
    def of(some: np.ndarray) -> Seen:
        block = torch.from_numpy(acts.acts[some]).float()
        x = None if starts else torch.stack([network.as_input(pictures.picture(image)) for image in images[some]])
        return network.see(x, sites, given={acts.site: block if edit is None else edit(block)})

    return side_by_side(of, [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)])


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """An extraction's array, or a new one whose room on disk is taken at once: OSError now, not in some later write."""

    def write(temporary: Path) -> None:
        np.lib.format.open_memmap(temporary, "w+", np.float16, shape).flush()
        if hasattr(os, "posix_fallocate"):
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)

    if not path.is_file():
        write_whole(path, write)
    file = np.lib.format.open_memmap(path, "r+")
    if file.shape != shape:
        raise ValueError(f"{path} is of shape {file.shape}, these pictures need {shape}: name another folder")
    return file
