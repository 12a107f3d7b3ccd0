"""Spatial activations: hooked out of the classifier, kept as float16 on disk, read back as shuffled cells."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae.devices import has_bfloat16, side_by_side
from aircraft_sae.networks.inference import BATCH, Classifier, n_workers
from aircraft_sae.pictures import AircraftData, Pictures, loader, test_transform, train_transform
from aircraft_sae.store import read_json, write_json, write_parquet, write_whole

ACTS, IMAGES, DONE = "acts.npy", "images.parquet", "done.json"
VIEWS = "views"
"""The split of random crops and flips of training and validation pictures."""
SAVE_EVERY = 512
"""Images between two notes of how far an extraction has come."""
GROUP_BYTES = 2**25
"""Images that are shuffled together: read whole and in order, so that a disk never seeks for single cells."""

_HOOKING = threading.Lock()
"""torch counts hooks without one: two threads could get the same number, and one of them lose its hook."""


@contextmanager
def captured(classifier: Classifier, sites: Sequence[str]) -> Iterator[Mapping[str, torch.Tensor]]:
    """{site: acts (n, d_in, rows, columns)} of this thread's last forward pass; the hooks go at the end."""
    acts = _OfThread()
    modules = {name: classifier.site(name) for name in sites}  # refuses unknown names before any hook is there
    with _HOOKING:
        hooks = [
            module.register_forward_hook(lambda _module, _given, out, name=name: acts.given.update({name: out}))
            for name, module in modules.items()
        ]
    try:
        yield acts
    finally:
        with _HOOKING:
            for hook in hooks:
                hook.remove()


class _OfThread(threading.local, Mapping):
    """A mapping of which each thread has its own."""

    def __init__(self):
        self.given: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.given[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.given)

    def __len__(self) -> int:
        return len(self.given)


def extract(
    classifier: Classifier,
    data: AircraftData,
    sites: Sequence[str],
    folder: str | Path,
    n_views: int = 0,
    progress: bool = True,
) -> None:
    """Write folder/<site>/acts.npy (float16: image, row, column, channel) and images.parquet, for each site.

    Every picture of `data` goes through the network once, in float32 and in the order of its table; then n_views random
    crops and flips of each training and validation picture, as split "views" and in mixed precision: more cells for
    autoencoders to learn from. A killed run goes on where it was.
    Raises: OSError where the disk has no room, ValueError for acts that are not finite in float16 (with the image) and
    for a folder that holds those of other pictures.
    """
    folder, n = Path(folder), len(data.table)
    table = _with_views(data.table, n_views)
    images, labels = table["image"].tolist(), np.zeros(len(table), np.int64)
    pixels = classifier.image_size, classifier.mean, classifier.std
    plain, varied = test_transform(*pixels), train_transform(*pixels, replace(classifier.cfg, colour_jitter=0.0))
    where = next(classifier.model.parameters()).device
    mixed = classifier.cfg.mixed_precision and has_bfloat16(where)
    with captured(classifier, sites) as acts:

        def see(batch: torch.Tensor, cast: bool) -> dict[str, torch.Tensor]:
            with torch.inference_mode(), torch.autocast(where.type, torch.bfloat16, cast):
                classifier.model(batch.to(where, non_blocking=True))
            return {site: out.permute(0, 2, 3, 1).to("cpu", torch.float16) for site, out in acts.items()}

        one = see(torch.zeros(1, 3, classifier.image_size, classifier.image_size), False)
        shapes = {site: (len(table), *cells.shape[1:]) for site, cells in one.items()}
        _check_room(folder, shapes)
        whole = all((folder / site / ACTS).is_file() for site in sites)
        files = {site: _open(folder / site / ACTS, shape) for site, shape in shapes.items()}
        n_done = saved = read_json(folder / DONE).get("n_images", 0) if whole else 0
        with tqdm(total=len(table), initial=n_done, desc="activations", unit="img", disable=not progress) as bar:
            for end, transform, cast in ((n, plain, False), (len(table), varied, mixed)):
                pictures = Pictures(data.picture, images[:end], labels[:end], transform)
                rest = max(0, end - n_done)
                batches = loader(pictures, BATCH, workers=n_workers(rest), first=min(n_done, end))
                for got in side_by_side(partial(see, cast=cast), (batch for batch, _, _ in batches)):
                    for site, cells in got.items():
                        if not bool((finite := cells.isfinite().flatten(1).all(1)).all()):
                            image = images[n_done + int(finite.logical_not().nonzero()[0])]
                            raise ValueError(
                                f"the {site} activations of image {image} are not finite in float16: look at the "
                                f"picture {data.folder / 'images' / image}.jpg, or whether the classifier's training "
                                "diverged"
                            )
                        files[site][n_done : n_done + len(cells)] = cells.numpy()
                    n_done += len(cells)
                    bar.update(len(cells))
                    if n_done - saved >= SAVE_EVERY or n_done == end:
                        for file in files.values():
                            file.flush()
                        write_json(folder / DONE, {"n_images": n_done})
                        saved = n_done
    for site in sites:
        write_parquet(table, folder / site / IMAGES)


def _with_views(table: pd.DataFrame, n_views: int) -> pd.DataFrame:
    """The table of images, and below it n_views times its training and validation rows, their split "views"."""
    seen = table[table["split"].isin(("train", "val"))].assign(split=VIEWS)
    return pd.concat([table, *[seen] * n_views], ignore_index=True)


@dataclass
class Activations:
    """The activations of one site. acts: float16 memory map (image, row, column, channel); images: the data's table."""

    acts: np.ndarray
    images: pd.DataFrame

    @classmethod
    def open(cls, folder: str | Path) -> Activations:
        """What `extract` wrote for one site; FileNotFoundError where it has not."""
        folder = Path(folder)
        if not (folder / IMAGES).is_file():
            raise FileNotFoundError(f"{folder / IMAGES} is not there: extract the activations of {folder.name} first")
        return cls(np.load(folder / ACTS, mmap_mode="r"), pd.read_parquet(folder / IMAGES))

    @property
    def d_in(self) -> int:
        return self.acts.shape[3]

    @property
    def cells_per_image(self) -> int:
        return self.acts.shape[1] * self.acts.shape[2]

    def rows(self, *splits: str) -> np.ndarray:
        """Indices of the images of these splits, rising; ValueError for a word that is none."""
        return split_rows(self.images, splits)

    def blocks(self, rows: np.ndarray, n_images: int = 64) -> Iterator[torch.Tensor]:
        """Acts of these images in order, (at most n_images, rows, columns, d_in) float32 at a time."""
        for start in range(0, len(rows), n_images):
            yield torch.from_numpy(self.acts[rows[start : start + n_images]]).float()

    def moments(self, rows: np.ndarray) -> tuple[torch.Tensor, float]:
        """(mean (d_in,) float64, mean squared distance of a cell from it) over all cells of these images."""
        total, squares = torch.zeros(self.d_in, dtype=torch.float64), 0.0
        for block in self.blocks(rows):
            block = block.flatten(0, 2).double()
            total += block.sum(0)
            squares += block.square().sum().item()
        n_cells = len(rows) * self.cells_per_image
        mean = total / n_cells
        return mean, squares / n_cells - mean.square().sum().item()

    def batches(self, rows: np.ndarray, batch_size: int, seed: int, start: int = 0) -> Iterator[torch.Tensor]:
        """Endless shuffled cells (batch_size, d_in) float16, from batch `start` on; a function of (seed, batch) alone.

        Images are drawn anew each epoch, and cells shuffled in groups of images of 32 MB. The last cells of an epoch
        that fill no batch are left out. Raises: ValueError where the images have fewer cells than a batch.
        """
        n_cells = len(rows) * self.cells_per_image
        per_epoch = n_cells // batch_size
        if not per_epoch:
            raise ValueError(
                f"batch_size {batch_size} is more than the {n_cells} cells of {len(rows)} images: lower sae.batch_size"
            )
        group_images = max(1, GROUP_BYTES // (2 * self.cells_per_image * self.d_in))
        group_cells, held = group_images * self.cells_per_image, (None, None)
        for batch in _count(start):
            epoch, i = divmod(batch, per_epoch)
            parts, at, end = [], i * batch_size, (i + 1) * batch_size
            while at < end:
                group, first = divmod(at, group_cells)
                if held[0] != (epoch, group):
                    held = (None, None)  # let go of the old one before reading
                    held = ((epoch, group), self._group(rows, seed, epoch, group, group_images))
                parts.append(held[1][first : first + end - at])
                at += len(parts[-1])
            yield torch.cat(parts)

    def _group(self, rows: np.ndarray, seed: int, epoch: int, group: int, n_images: int) -> torch.Tensor:
        """The shuffled cells of one group of an epoch's images, which are read in the order of the file."""
        order = np.random.default_rng((seed, epoch)).permutation(rows)
        cells = self.acts[np.sort(order[group * n_images : (group + 1) * n_images])].reshape(-1, self.d_in)
        np.random.default_rng((seed, epoch, group)).shuffle(cells)
        return torch.from_numpy(cells)


def split_rows(images: pd.DataFrame, splits: Sequence[str]) -> np.ndarray:
    """Indices of the images of these splits; ValueError for none, or a word that is no split."""
    unknown = [split for split in splits if split not in ("train", "val", "test", VIEWS)]
    if unknown or not splits:
        raise ValueError(f"splits must be some of train, val, test, {VIEWS}, got {', '.join(unknown) or 'none'}")
    return np.flatnonzero(images["split"].isin(splits))


def _check_room(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """OSError where the disk has no room for the arrays that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(2 * int(np.prod(shape)) for site, shape in shapes.items() if not (folder / site / ACTS).is_file())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"the activations in {folder} need {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB of disk are free: make "
            "room, or point AIRCRAFT_SAE_DATA_DIR at a larger disk"
        )


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The array of an extraction under way, or a new one, whose room on disk is taken at once: OSError without it."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, partial(_reserve, shape=shape))
    file = np.lib.format.open_memmap(path, "r+")
    if file.shape != shape:
        raise ValueError(f"{path} is of shape {file.shape}, these pictures need {shape}: name another folder")
    return file


def _reserve(path: Path, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    if hasattr(os, "posix_fallocate"):  # a full disk would else end the process at some later write into the map
        with open(path, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1
