"""What every set of pictures offers, and what sets of picture files have in common."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache, cached_property
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from aircraft_sae.config import SPLITS
from aircraft_sae.pictures.loading import Views
from aircraft_sae.store import digest, sha256, write_parquet

DISJOINT_SPLITS = ("train", "val", "test")
SHOWN = {"unit": " pictures", "leave": False, "delay": 1}
BAR = {**SHOWN, "max_workers": cpu_count()}  # decoding lets go of the lock
REPLACE = "Replace them, or take them out of folders and lists."


def refuse(names: pd.Series, what: str, remedy: str = "Correct these files.", error: type = ValueError) -> None:
    """Raise `error` with the number and the first five of `names`, if there are any."""
    if n := len(names := names.drop_duplicates()):
        raise error(f"{n} {what}: {', '.join([*names[:5], *['…'] * (n > 5)])}. {remedy}")


def check_occupied(table: pd.DataFrame, classes: dict[str, list[str]], where: str) -> None:
    """ValueError where a split or a class has no image, or the finest level is too little to learn and to test."""
    if empty := [split for split in DISJOINT_SPLITS if split not in set(table["split"])]:
        raise ValueError(f"the {' and '.join(empty)} split of {where} is empty: list at least one image there.")
    for level, names in classes.items():
        names = pd.Series(names, dtype=str)
        refuse(names[~names.isin(table[level])], f"{level} classes of {where} without an image")
    for level, names in list(classes.items())[:1]:
        if len(names) < 2:
            raise ValueError(f"{where} has pictures of one {level}, {names[0]}: there must be two or more.")
        if table[level][table["split"] == "test"].value_counts().max() < 2:
            remedy = "list two or more of most classes there, or six in all where splits are drawn."
            raise ValueError(f"no {level} of {where} has two test pictures, one for each half: {remedy}")


class Pictures:
    """A set of pictures.

    A subclass gives picture(image), in RGB, contents(), a text for each picture that says what it is made of, and
    mask(image) where regions are known. name: "all", or what `subset` was told. table: one row an image: image (its
    unique name), split (train, val or test), a column a level, known factors. levels: its class columns, finest first.
    region_names: what masks show, () for none. scenes: image, scene (JSON) and pixels_<region> of pictures that can be
    rendered again, else None.
    """

    name = "all"
    region_names: tuple[str, ...] = ()
    banner = 0  # rows cut off the bottom of a file's picture
    scenes: pd.DataFrame | None = None

    def __init__(self, table: pd.DataFrame, classes: dict[str, list[str]]):
        self.table, self._classes, self.levels = table, classes, tuple(classes)

    def classes(self, level: str | None = None) -> list[str]:
        """Names of a level's classes (None: the finest): labels are indices into them. ValueError for another level."""
        if level is None:
            return next(iter(self._classes.values()), [])
        if level not in self._classes:
            raise ValueError(f"these pictures have no level {level!r}: they have {', '.join(self.levels) or 'none'}")
        return self._classes[level]

    def parents(self, fine: str, coarse: str) -> dict[str, str]:
        """The `coarse` class of each `fine` class; ValueError where images of one fine class are in several."""
        self.classes(coarse)  # refuses what is no level
        pairs = self.table[[fine, coarse]].drop_duplicates().set_index(fine)[coarse]
        twice = pairs.index[pairs.index.duplicated()]
        refuse(twice, f"{fine} classes in several {coarse}s", f"Give all images of a {fine} the same {coarse}.")
        return pairs.loc[self.classes(fine)].to_dict()

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of `table` in one split, numbered from 0; trainval is train, then val."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        wanted = ["train", "val"] if split == "trainval" else [split]
        return self.table[self.table["split"].isin(wanted)].reset_index(drop=True)

    def mask(self, image: str) -> np.ndarray:
        """(height, width) uint8: 0 outside every region, i + 1 for region_names[i]."""
        raise FileNotFoundError(f"no regions are known of these pictures, so {image} has no mask")

    def regions(self, image: str, grid: tuple[int, int]) -> np.ndarray:
        """(rows, columns, n_regions) float32 share of each cell's pixels that show the region."""
        return coverage(self.mask(image), len(self.region_names), grid)

    def foreground(self, images: Sequence[str], grid: tuple[int, int], least: float = 0.25) -> np.ndarray:
        """(n, rows, columns) whether at least this share of a cell shows any region."""
        return np.stack([_shares(self.mask(image) > 0, grid) >= least for image in images])

    def subset(self, keep: Sequence[bool] | Sequence[int], name: str) -> "Pictures":
        """These rows of the table (a bool for each, or their numbers), under another name."""
        fewer = copy(self)
        for known in ("fingerprint", "scenes"):
            fewer.__dict__.pop(known, None)
        fewer.name, fewer.table = name, self.table.iloc[np.asarray(keep)].reset_index(drop=True)
        return fewer

    def every(self, n: int) -> "Pictures":
        """Every n-th image of the table, as `every<n>`."""
        return self.subset(np.arange(0, len(self.table), n), f"every{n}")

    def torch(self, split: str, level: str, transform: Callable) -> Views:
        """A torch data set of (transformed picture, label, row in `rows(split)`)."""
        rows = self.rows(split)
        labels = pd.Categorical(rows[level], self.classes(level)).codes.astype(np.int64)
        return Views(self.picture, rows["image"].tolist(), labels, transform)

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.table, self._classes, self.region_names, self.contents()])


class PictureFiles(Pictures):
    """Pictures in files, less a banner. A subclass gives read(root): folder, path by image, table, classes by level."""

    def __init__(self, folder: Path, paths: dict[str, Path], table: pd.DataFrame, classes: dict, banner: int):
        super().__init__(table, classes)
        self.folder, self.paths, self.banner = folder, paths, banner
        self._digests: dict[str, str] = {}  # by path; subsets share it

    @classmethod
    def open(cls, root: str | Path, *, banner: int = 0) -> Self:
        """The pictures in a folder. FileNotFoundError for what is absent, ValueError for what contradicts itself."""
        data = cls(*cls.read(Path(root).expanduser()), banner)
        absent = data.table["image"][[not data.paths[image].is_file() for image in data.table["image"]]]
        refuse(absent, f"of {len(data.table)} listed images are not in {data.folder}", REPLACE, FileNotFoundError)
        return data

    def picture(self, image: str) -> Image.Image:
        """The RGB picture without its banner; ValueError where it is no use."""
        if image not in self.paths:
            raise ValueError(f"no image {image!r} is listed in {self.folder}")
        return decode(self.paths[image], self.banner)

    def files(self, image: str) -> list[Path]:
        """All files that say something about an image."""
        return [self.paths[image]]

    def contents(self) -> list[str]:
        """Checksums of the files, and the banner."""
        files = [file for image in self.table["image"] for file in self.files(image)]
        new = [file for file in files if str(file) not in self._digests]
        with ThreadPoolExecutor(BAR["max_workers"]) as pool, tqdm(total=len(new), desc="read pictures", **SHOWN) as bar:
            for first in range(0, len(new), 1000):  # what waits in a pool takes more memory than its result
                some = new[first : first + 1000]
                self._digests.update(zip(map(str, some), pool.map(sha256, some), strict=True))
                bar.update(len(some))
        return [str(self.banner), *(self._digests[str(file)] for file in files)]

    def twins(self) -> list[str]:
        """Pictures with the same bytes in several splits, as "a (train) = b (test)"."""
        self.contents()
        known = self.table.assign(digest=[self._digests[str(self.paths[image])] for image in self.table["image"]])
        same = (own for _, own in known.groupby("digest", sort=False) if own["split"].nunique() > 1)
        return [" = ".join(own["image"] + " (" + own["split"] + ")") for own in same]

    def check_images(self) -> None:
        """Read every picture once; ValueError names the first five that cannot be used and how many there are."""

        def problem_of(image: str) -> str | None:
            try:
                decode(self.paths[image], self.banner, least=1)  # a JPEG in small is read to the last byte all the same
            except ValueError as problem:
                return f"{self.paths[image].relative_to(self.folder)} ({problem.__cause__})"

        problems = thread_map(problem_of, self.table["image"], desc="check pictures", **BAR)
        bad = pd.Series(list(filter(None, problems)), dtype=str)
        refuse(bad, f"of {len(self.table)} pictures in {self.folder} cannot be used", REPLACE)


def decode(file: Path | BinaryIO, banner: int = 0, *, name: str = "", least: int = 0, most: int = 0) -> Image.Image:
    """The RGB picture in a file, upright as its EXIF says, less a banner at the bottom; ValueError where it cannot be.

    name: for errors; least: a JPEG may come smaller, if its sides keep so many pixels; most: more pixels are refused.
    """
    try:
        with Image.open(file) as picture:
            if most and picture.width * picture.height > most:
                raise ValueError(f"{picture.width} x {picture.height} pixels are too many")
            lies = picture.getexif().get(ExifTags.Base.Orientation, 1) > 4
            height = picture.width if lies else picture.height
            if height <= banner:
                raise ValueError(f"it is {height} pixels high, no more than the banner of {banner}")
            if least:
                picture.draft(None, (least, least))
            ImageOps.exif_transpose(picture, in_place=True)
            picture = _to_rgb(picture)
            return picture.crop((0, 0, picture.width, picture.height * (height - banner) // height))
    except Exception as problem:  # each format's reader has errors of its own: OSError, SyntaxError, struct.error, …
        reason = "cannot identify image file" if isinstance(problem, UnidentifiedImageError) else problem
        raise ValueError(f"{name or file} cannot be used: {reason}") from problem


def _to_rgb(picture: Image.Image) -> Image.Image:
    """RGB from any mode: 16 bits scaled to 8, transparency laid on white."""
    if picture.mode == "F":
        raise ValueError("it holds fractions of no known range, not 8 or 16 bits")
    if picture.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"it holds values from {values.min()} to {values.max()}, not 8 or 16 bits")
        picture = Image.fromarray((values // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def coverage(mask: np.ndarray, n_regions: int, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns, n_regions) float32 share of each cell's pixels that show the region; mask: as `Pictures.mask`."""
    return np.stack([_shares(mask == i + 1, grid) for i in range(n_regions)], axis=2)


def _shares(shown: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) share of each cell's pixels in a bool picture."""
    return _averaging(shown.shape[0], grid[0]) @ shown @ _averaging(shown.shape[1], grid[1]).T


@cache
def _averaging(n_pixels: int, n_cells: int) -> np.ndarray:
    """(n_cells, n_pixels) weights that average pixels over equal cells; a pixel on an edge counts in parts."""
    edges = np.arange(n_cells + 1)[:, None] * n_pixels / n_cells
    covered = np.clip(edges - np.arange(n_pixels), 0, 1)  # of each pixel, the share that lies before each edge
    return (np.diff(covered, axis=0) * n_cells / n_pixels).astype(np.float32)


def note_pictures(folder: Path, *, pictures: Pictures) -> None:
    """Write down which pictures there are."""
    write_parquet(pictures.table, folder / "table.parquet")
