"""The interface of every set of pictures, and what sets of picture files share."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.contrib.concurrent import thread_map

from aircraft_sae.config import SPLITS
from aircraft_sae.pictures.loading import PictureDataset
from aircraft_sae.store import digest, sha256, write_parquet

DISJOINT_SPLITS = ("train", "val", "test")
THREADS = {"max_workers": cpu_count(), "unit": " pictures", "leave": False, "delay": 1}  # decoding releases the GIL
REPLACE = "Replace them, or take them out of folders and lists."


def refuse(names: pd.Series, what: str, remedy: str = "Correct these files.", error: type = ValueError) -> None:
    """Raise `error` if there are any `names`, with their number and the first five."""
    if n := len(names := names.drop_duplicates()):
        raise error(f"{n} {what}: {', '.join([*names[:5], *['…'] * (n > 5)])}. {remedy}")


def check_occupied(table: pd.DataFrame, classes: dict[str, list[str]], where: str) -> None:
    """ValueError for an empty split or class, or too few pictures at the finest level to train and test on."""
    if empty := [split for split in DISJOINT_SPLITS if split not in set(table["split"])]:
        raise ValueError(f"the {' and '.join(empty)} split of {where} is empty: give it at least one picture.")
    for level, names in classes.items():
        names = pd.Series(names, dtype=str)
        refuse(names[~names.isin(table[level])], f"{level} classes of {where} without an image")
    for level, names in list(classes.items())[:1]:  # the finest
        if len(names) < 2 or table[level][table["split"] == "test"].value_counts().max() < 2:
            remedy = "list more, or six pictures per class where splits are random."
            raise ValueError(f"{where} needs two classes ({level}), and two test pictures of one of them: {remedy}")


class Pictures:
    """A set of pictures.

    A subclass defines picture(image), an RGB picture; contents(), strings that determine all pictures; and mask(image)
    where regions are known.
    name: "all", or the name given to `subset`.
    table: one row per image, with its unique name (image), its split (train, val or test), one column per level and any
      known factors.
    levels: the table's class columns, finest first; region_names: what masks show, () if there are none.
    scenes: a table of image, scene (JSON) and pixels_<region> for pictures that can be rendered again; else None.
    """

    name = "all"
    region_names: tuple[str, ...] = ()
    banner = 0  # rows cropped off the bottom of each file's picture
    scenes: pd.DataFrame | None = None

    def __init__(self, table: pd.DataFrame, classes: dict[str, list[str]]):
        self.table, self._classes, self.levels = table, classes, tuple(classes)

    def classes(self, level: str | None = None) -> list[str]:
        """Class names of a level (None: the finest); labels are indices into them. ValueError for an unknown level."""
        if level is None:
            return next(iter(self._classes.values()), [])
        if level not in self._classes:
            raise ValueError(f"these pictures have no level {level!r}: they have {', '.join(self.levels) or 'none'}")
        return self._classes[level]

    def parents(self, fine: str, coarse: str) -> dict[str, str]:
        """Map each `fine` class to its `coarse` one; ValueError if a fine class has several."""
        self.classes(coarse)  # checks the level
        pairs = self.table[[fine, coarse]].drop_duplicates().set_index(fine)[coarse]
        twice = pairs.index[pairs.index.duplicated()]
        refuse(twice, f"{fine} classes in several {coarse}s", f"Give all images of a {fine} the same {coarse}.")
        return pairs.loc[self.classes(fine)].to_dict()

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of `table` in a split, renumbered from 0; ValueError for an unknown split."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        wanted = ["train", "val"] if split == "trainval" else [split]
        return self.table[self.table["split"].isin(wanted)].reset_index(drop=True)

    def mask(self, image: str) -> np.ndarray:
        """(height, width) uint8: 0 outside all regions, i + 1 for region_names[i]."""
        raise FileNotFoundError(f"no regions are known of these pictures, so {image} has no mask")

    def regions(self, image: str, grid: tuple[int, int]) -> np.ndarray:
        """(rows, columns, n_regions) float32: the share of each cell's pixels that shows each region."""
        mask = self.mask(image)
        down, across = map(_averaging, mask.shape, grid)
        return np.stack([down @ (mask == i + 1) @ across.T for i in range(len(self.region_names))], axis=2)

    def foreground(self, images: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
        """(n, rows, columns) bool: cells in which regions fill at least a quarter of the pixels."""
        return np.stack([self.regions(image, grid).sum(2) >= 0.25 for image in images])

    def subset(self, keep: Sequence[bool] | Sequence[int], name: str) -> "Pictures":
        """Some rows of the table (a mask or row numbers), under a new name."""
        fewer = copy(self)
        for known in ("fingerprint", "scenes"):
            fewer.__dict__.pop(known, None)
        fewer.name, fewer.table = name, self.table.iloc[np.asarray(keep)].reset_index(drop=True)
        return fewer

    def every(self, n: int) -> "Pictures":
        """Every n-th image, named `every<n>`."""
        return self.subset(np.arange(0, len(self.table), n), f"every{n}")

    def torch(self, split: str, level: str, transform: Callable) -> PictureDataset:
        """A torch data set of (transformed picture, label, row of `rows(split)`)."""
        rows = self.rows(split)
        labels = pd.Categorical(rows[level], self.classes(level)).codes.astype(np.int64)
        return PictureDataset(self.picture, rows["image"].tolist(), labels, transform)

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.table, self._classes, self.region_names, self.contents()])


class PictureFiles(Pictures):
    """Pictures in files. A subclass defines read(root): folder, path of each image, table, classes of each level."""

    def __init__(self, folder: Path, paths: dict[str, Path], table: pd.DataFrame, classes: dict, banner: int):
        super().__init__(table, classes)
        self.folder, self.paths, self.banner = folder, paths, banner

    @classmethod
    def open(cls, root: str | Path, *, banner: int = 0) -> Self:
        """The pictures in a folder. FileNotFoundError for missing files, ValueError for inconsistent lists."""
        data = cls(*cls.read(Path(root).expanduser()), banner)
        absent = data.table["image"][[not data.paths[image].is_file() for image in data.table["image"]]]
        refuse(absent, f"of {len(data.table)} listed images are not in {data.folder}", REPLACE, FileNotFoundError)
        return data

    def picture(self, image: str) -> Image.Image:
        """The RGB picture without its banner; ValueError if it is not listed or unreadable."""
        if image not in self.paths:
            raise ValueError(f"no image {image!r} is listed in {self.folder}")
        return decode(self.paths[image], self.banner)

    def contents(self, *others: Path) -> list[str]:
        """The banner, then the checksum of each picture and of `others`."""
        files = [*map(self.paths.get, self.table["image"]), *others]
        return [str(self.banner), *thread_map(sha256, files, desc="read pictures", **THREADS)]

    def twins(self) -> list[str]:
        """Identical pictures in several splits, as "a (train) = b (test)"."""
        checksums = self.contents()[1 : len(self.table) + 1]
        same = (own for _, own in self.table.groupby(checksums, sort=False) if own["split"].nunique() > 1)
        return [" = ".join(own["image"] + " (" + own["split"] + ")") for own in same]

    def check_images(self) -> None:
        """Read every picture once; ValueError counts the unreadable ones and names the first five."""

        def problem_of(image: str) -> str | None:
            try:
                self.picture(image)
            except ValueError as problem:
                return f"{self.paths[image].relative_to(self.folder)} ({problem.__cause__})"

        problems = thread_map(problem_of, self.table["image"], desc="check pictures", **THREADS)
        bad = pd.Series(list(filter(None, problems)), dtype=str)
        refuse(bad, f"of {len(self.table)} pictures in {self.folder} cannot be used", REPLACE)


def decode(file: Path | BinaryIO, banner: int = 0, *, name: str = "", most: int = 0) -> Image.Image:
    """The RGB picture in a file, turned upright by its EXIF tag, without its banner.

    name: for errors, in place of the path; most: the number of pixels allowed (0: any).
    Raises: ValueError if the file holds no usable picture.
    """
    try:
        with Image.open(file) as picture:
            if most and picture.width * picture.height > most:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.height <= banner:
                raise ValueError(f"it is {picture.height} pixels high, no more than the banner of {banner}")
            return _to_rgb(picture).crop((0, 0, picture.width, picture.height - banner))
    except Exception as problem:  # each format has its own errors: OSError, SyntaxError, struct.error, …
        reason = "cannot identify image file" if isinstance(problem, UnidentifiedImageError) else problem
        raise ValueError(f"{name or file} cannot be used: {reason}") from problem


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any mode to RGB: scale 16 bits to 8, lay transparent pictures on white."""
    if picture.mode[0] in "IF":
        values = np.asarray(picture)  # Pillow would clip 16-bit values at 255
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"it holds values from {values.min()} to {values.max()}, not 8 or 16 bits")
        picture = Image.fromarray((values // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


@cache
def _averaging(n_pixels: int, n_cells: int) -> np.ndarray:
    """(n_cells, n_pixels) weights that average pixels over equal cells; a pixel on a border is shared."""
    edges = np.arange(n_cells + 1)[:, None] * n_pixels / n_cells
    covered = np.clip(edges - np.arange(n_pixels), 0, 1)  # the share of each pixel before each edge
    return (np.diff(covered, axis=0) * n_cells / n_pixels).astype(np.float32)


def note_pictures(folder: Path, *, pictures: Pictures) -> None:
    """Write the table of pictures."""
    write_parquet(pictures.table, folder / "table.parquet")
