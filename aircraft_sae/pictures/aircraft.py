"""A data set in FGVC-Aircraft layout: its table of images, its classes and its pictures; FGVC-Aircraft's download."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.datasets import FGVCAircraft
from tqdm import tqdm

from aircraft_sae.config import SPLITS, DatasetConfig
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.pictures.annotations import check_occupied, first_five, read_annotations, refuse
from aircraft_sae.pictures.loading import Pictures
from aircraft_sae.store import fingerprint

SKIP = 'Replace them, or leave them out with on_bad_image="skip".'
DOWNLOAD_BYTES = 6 * 2**30
"""FGVC-Aircraft's archive and its pictures, for a moment side by side."""


class AircraftData:
    """A folder in FGVC-Aircraft layout.

    folder: the data/ folder; levels: those there are, finest first; masks: whether there are part masks.
    table: one row per image: image (file name without .jpg), split (train, val or test), one column per level, and
    the box xmin, ymin, xmax, ymax in pixels (from 0, ends exclusive, nan where there is none).
    skipped: image and reason of those left out.
    """

    def __init__(self, folder: Path, banner: int = 0):
        self.folder, self.banner = folder, banner
        self.table, self._classes = read_annotations(folder)
        self.levels = tuple(self._classes)
        self.masks = (folder / "masks").is_dir()
        self.skipped = pd.DataFrame(columns=["image", "reason"], dtype=str)

    @classmethod
    def open(cls, root: str | Path, *, banner: int = 0, on_bad_image: str = "raise") -> AircraftData:
        """Open and check the data set in `root`, which is or holds fgvc-aircraft-2013b, or is its data/ folder.

        banner: rows to cut off the bottom of every picture. on_bad_image: "raise" stops where a listed image is
        missing and leaves reading them to `check_images`; "skip" reads them all and leaves out those it cannot use.
        Raises: FileNotFoundError for an absent folder, annotation file or image; ValueError for annotations that
        contradict themselves, or name an unknown label, and for an empty split.
        """
        if on_bad_image not in ("raise", "skip"):
            raise ValueError(f"on_bad_image must be raise or skip, got {on_bad_image!r}")
        data = cls(find_folder(root), banner)
        present = {entry.name for entry in os.scandir(data.folder / "images")}
        absent = data.table["image"][~(data.table["image"] + ".jpg").isin(present)]
        if on_bad_image == "raise":
            what = f"of {len(data.table)} listed images are not in {data.folder / 'images'}"
            refuse(absent + ".jpg", what, SKIP, FileNotFoundError)
        else:
            data._skip(dict.fromkeys(absent, "the file is missing"))
            data._skip(data._find_bad())
        return data

    def __repr__(self) -> str:
        n_images = ", ".join(f"{n} {split}" for split, n in self.table["split"].value_counts(sort=False).items())
        n_classes = ", ".join(f"{len(names)} {level}" for level, names in self._classes.items())
        return f"AircraftData({str(self.folder)!r}, images: {n_images}, classes: {n_classes})"

    def classes(self, level: str) -> list[str]:
        """Names of the classes in file order; a label is an index into them. ValueError for a level there is not."""
        if level not in self._classes:
            raise ValueError(f"{self.folder} has no level {level!r}: it has {', '.join(self.levels)}")
        return self._classes[level]

    def parents(self, fine: str, coarse: str) -> dict[str, str]:
        """The `coarse` class of each `fine` class; ValueError where images of one fine class are in several."""
        fine_classes, _ = self.classes(fine), self.classes(coarse)
        pairs = self.table[[fine, coarse]].drop_duplicates()
        remedy = f"Give all images of a {fine} the same {coarse} in images_{coarse}_*.txt."
        refuse(pairs[fine][pairs[fine].duplicated()], f"{fine} classes of {self.folder} in several {coarse}s", remedy)
        return pairs.set_index(fine)[coarse].loc[fine_classes].to_dict()

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of `table` in one split, numbered from 0; trainval is train, then val."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return self.table[self.table["split"].isin(["train", "val"] if split == "trainval" else [split])].reset_index(
            drop=True
        )

    def picture(self, image: str) -> Image.Image:
        """The RGB picture without its banner; ValueError where it cannot be used.

        It is never turned by its EXIF orientation: boxes and masks refer to the pixels as stored.
        """
        return _decode(self._path(image), self.banner)

    def mask(self, image: str) -> np.ndarray:
        """(height, width) uint8 part ids, without the banner.

        Raises: FileNotFoundError where there is no mask, ValueError where it is no picture.
        """
        path = self.folder / "masks" / f"{image}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: only rendered data sets have part masks")
        try:
            mask = np.array(Image.open(path), np.uint8)
        except Exception as problem:  # as for pictures
            raise ValueError(f"{path} cannot be read: {problem}. Replace it, or remove the folder masks") from problem
        return mask[: len(mask) - self.banner]

    def coverage(self, image: str, rows: int, columns: int) -> np.ndarray:
        """(parts, rows, columns) share of each cell's pixels that show the part, in the order of `PARTS`."""
        mask = self.mask(image)
        down, across = _averaging(mask.shape[0], rows), _averaging(mask.shape[1], columns)
        return np.stack([down @ (mask == part) @ across.T for part in range(len(PARTS))])

    def foreground(self, images: Sequence[str], rows: int, columns: int, least: float = 0.25) -> np.ndarray:
        """(images, rows, columns) whether at least this share of a cell shows the aircraft."""
        masks = [self.mask(image) >= 2 for image in images]
        return np.stack([_averaging(len(m), rows) @ m @ _averaging(m.shape[1], columns).T >= least for m in masks])

    def every(self, n: int) -> AircraftData:
        """The same data with every n-th image of its table alone."""
        fewer = copy(self)
        fewer.__dict__.pop("fingerprint", None)
        fewer.table = self.table.iloc[::n].reset_index(drop=True)
        return fewer

    def torch(self, split: str, level: str, transform: Callable) -> Pictures:
        """A torch data set of (transformed picture, label, row in `rows(split)`)."""
        rows = self.rows(split)
        labels = pd.Categorical(rows[level], self.classes(level)).codes.astype(np.int64)
        return Pictures(self.picture, rows["image"].tolist(), labels, transform)

    def check_images(self, progress: bool = True) -> None:
        """Read every picture once; ValueError names the first five that cannot be used and how many there are."""
        bad = self._find_bad(progress)
        if bad:
            what = f"{len(bad)} of {len(self.table)} pictures in {self.folder / 'images'} cannot be used"
            raise ValueError(f"{what}: {first_five([f'{k}.jpg {v}' for k, v in bad.items()], '; ')}. {SKIP}")

    @cached_property
    def fingerprint(self) -> str:
        """Known by content: table, classes, banner, images left out, and the bytes of all others; not by place."""
        digests = self._map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), "read pictures", True)
        contents = hashlib.sha256("".join([self.table.to_csv(), *digests]).encode()).hexdigest()
        return fingerprint(contents, self._classes, self.banner, sorted(self.skipped["image"]))

    def _path(self, image: str) -> Path:
        return self.folder / "images" / f"{image}.jpg"

    def _map(self, function: Callable, title: str, progress: bool) -> list:
        """function(path) of every picture, in threads (reading and decoding let go of Python's lock)."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(function, map(self._path, self.table["image"]))
            bar = tqdm(results, title, len(self.table), unit=" pictures", disable=not progress, leave=False, delay=1)
            return list(bar)

    def _find_bad(self, progress: bool = True) -> dict[str, str]:
        problems = self._map(lambda path: _problem(path, self.banner), "check pictures", progress)
        return {image: problem for image, problem in zip(self.table["image"], problems, strict=True) if problem}

    def _skip(self, reasons: dict[str, str]) -> None:
        skipped = pd.DataFrame({"image": list(reasons), "reason": list(reasons.values())}, dtype=str)
        self.skipped = pd.concat([self.skipped, skipped], ignore_index=True)
        self.table = self.table[~self.table["image"].isin(list(reasons))].reset_index(drop=True)
        check_occupied(self.table, self._classes, f"{self.folder}, with {len(self.skipped)} bad images left out,")


@cache
def _averaging(n_pixels: int, n_cells: int) -> np.ndarray:
    """(n_cells, n_pixels) weights that average pixels over equal cells; a pixel on an edge counts in parts."""
    edges = np.arange(n_cells + 1)[:, None] * n_pixels / n_cells
    covered = np.clip(edges - np.arange(n_pixels), 0, 1)  # of each pixel, the share that lies before each edge
    return (np.diff(covered, axis=0) * n_cells / n_pixels).astype(np.float32)


def find_folder(root: str | Path) -> Path:
    """The data/ folder at or under `root`; FileNotFoundError says what was looked for."""
    root = Path(root).expanduser()
    for folder in (root / "fgvc-aircraft-2013b" / "data", root / "data", root):
        if (folder / "images").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root} {'holds no fgvc-aircraft-2013b/data/images' if root.is_dir() else 'does not exist'}. Name the folder "
        "that holds fgvc-aircraft-2013b, with data/images/*.jpg, data/variants.txt, data/images_variant_train.txt, …"
    )


def download(root: str | Path) -> None:
    """Fetch FGVC-Aircraft (2.75 GB) into root/fgvc-aircraft-2013b: whole, or nothing is left.

    Raises: OSError that names the other ways where it cannot be had.
    """
    root = Path(root).expanduser().absolute()
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(root).free) < DOWNLOAD_BYTES:
            raise OSError(f"{free / 2**30:.1f} GiB of disk are free, {DOWNLOAD_BYTES / 2**30:.0f} are needed")
        # torchvision takes any archive and any folder that is there for whole: fetch beside, then rename
        with tempfile.TemporaryDirectory(prefix="download-", dir=root) as beside:
            FGVCAircraft(beside, download=True)
            os.rename(Path(beside) / "fgvc-aircraft-2013b", root / "fgvc-aircraft-2013b")
    except Exception as problem:
        for folder in created:
            if folder.is_dir():
                folder.rmdir()
        raise OSError(
            f"FGVC-Aircraft could not be downloaded into {root}: {problem}. Try again with internet access; or unpack "
            f"{FGVCAircraft._URL} there by hand, so that {root / 'fgvc-aircraft-2013b' / 'data'} exists; or name a "
            "folder that has it (data root); or use the hangar preset, which needs no download."
        ) from problem


def open_source(config: DatasetConfig, hangar_folder: Path | None, downloads: Path | None = None) -> AircraftData:
    """The data set that `config` names: the hangar, FGVC-Aircraft (found, or else downloaded), or any folder.

    FGVC-Aircraft is looked for, and put, in config.root, or in `downloads` where that is None.
    Raises: ValueError where no folder is named, and what `download` and `AircraftData.open` raise.
    """
    root = {"hangar": hangar_folder, "fgvc": config.root or downloads, "folder": config.root}[config.source]
    if root is None:
        raise ValueError(f"data source {config.source!r} needs a folder: name it in dataset.root (--data-root)")
    if config.source == "fgvc":
        try:
            find_folder(root)
        except FileNotFoundError:
            download(root)
    return AircraftData.open(root, banner=config.banner, on_bad_image=config.on_bad_image)


def _decode(path: Path, banner: int, draft: bool = False) -> Image.Image:
    """The RGB picture less its banner; ValueError where it cannot be read or used.

    draft only looks for faults: it decodes a JPEG at an eighth of its size, which reads every byte all the same.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if height <= banner:
                raise ValueError(f"it is {height} pixels high, no more than the banner of {banner}")
            if draft:
                picture.draft(None, (1, 1))
                return _to_rgb(picture)
            return _to_rgb(picture).crop((0, 0, width, height - banner))
    except Exception as problem:  # each format's reader has errors of its own: OSError, SyntaxError, struct.error, …
        raise ValueError(f"{path} cannot be used: {problem}") from problem


def _problem(path: Path, banner: int) -> str | None:
    try:
        _decode(path, banner, draft=True)
    except ValueError as problem:
        return f"({problem.__cause__})"
    return None


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
