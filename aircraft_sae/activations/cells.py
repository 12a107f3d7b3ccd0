"""Spatial activations of any site of any network on any pictures, read as pictures or as shuffled cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aircraft_sae import ranks
from aircraft_sae.activations.kept import IMAGES, INDEX, VIEWS, Lazy, Live, Shards, Source, site_folder
from aircraft_sae.devices import side_by_side
from aircraft_sae.networks import BATCH, Edit, Network, Seen
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import META, digest, read_json

GROUP_BYTES, RUNS = 2**25, 64  # of cells shuffled together: 64 runs of images, each read in order and whole
MOST_MEASURED = 16384  # images from which a mean is known well enough


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
    """One site's activations. acts: (image, row, column, channel), `Lazy` or an array; stage: of that and the site."""

    acts: np.ndarray | Lazy
    images: pd.DataFrame
    site: str = ""
    stage: str = ""

    @classmethod
    def open(cls, folder: str | Path, site: str) -> "Activations":
        """What `extract` wrote into `folder` for one site; FileNotFoundError where it has not."""
        own = Path(folder) / site_folder(site)
        if not ((own / IMAGES).is_file() and (own / INDEX).is_file()):
            raise FileNotFoundError(f"{own / IMAGES} is not there: extract the activations of {site} first")
        known, index = read_json(Path(folder) / META).get("fingerprint"), read_json(own / INDEX)
        stage = digest([known, site]) if known else ""
        return cls(Shards(own, index["shape"], index["starts"]), pd.read_parquet(own / IMAGES), site, stage)

    @classmethod
    def live(cls, source: Source, site: str) -> "Activations":
        """Of a site, kept nowhere: what is read again is seen again."""
        return cls(Live(source, site), source.images, site, digest([source, site]))

    def _content(self) -> list:
        return [np.asarray(self.acts), self.images, self.site]

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
        """(mean, variance) of each channel, (d_in,) float64, over the cells of up to 16,384 of these images."""
        rows = rows[:: 1 + (len(rows) - 1) // MOST_MEASURED]
        sums = torch.zeros(2, self.d_in, dtype=torch.float64)
        for block in self.blocks(rows[ranks.share(len(rows))]):
            block = block.flatten(0, 2).double()
            sums += torch.stack([block.sum(0), block.square().sum(0)])
        ranks.add(sums)
        mean, squares = sums / (len(rows) * self.cells_per_image)
        return mean, squares - mean.square()

    def per_epoch(self, rows: np.ndarray, batch_size: int) -> int:
        """Batches of an epoch; ValueError where the images have fewer cells than one."""
        if batch_size > (n_cells := len(rows) * self.cells_per_image):
            few = f"the {n_cells} cells of {len(rows)} images"
            raise ValueError(f"batch_size {batch_size} is more than {few}: lower sae.batch_size")
        return n_cells // batch_size

    def batches(self, rows: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Endless shuffled cells (batch_size, d_in) as stored, from batch `start`; a function of (seed, batch) alone.

        Runs of images (512 kB) are drawn anew each epoch, and cells shuffled in groups of 64 runs. The last cells of an
        epoch that fill no batch are left out. Raises: ValueError as `per_epoch`.
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
                    held, cells = (epoch, group), None  # let go of the old ones before reading
                    runs = np.random.default_rng((seed, epoch)).permutation(-(-len(rows) // run))
                    order = (runs[:, None] * run + np.arange(run)).ravel()
                    order = order[order < len(rows)][group * n_images : (group + 1) * n_images]
                    own = rows[np.sort(order)]
                    # each rank reads its share, and all have the whole group
                    read = torch.from_numpy(self.acts[own[ranks.share(len(own))]])
                    cells = ranks.gather(read).numpy().reshape(-1, self.d_in)
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
