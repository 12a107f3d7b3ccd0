"""Pictures in folders: FGVC-Aircraft's layout, which the hangar writes too, and folders of splits and classes."""

import os
import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.datasets import FGVCAircraft
from torchvision.datasets.folder import IMG_EXTENSIONS

from aircraft_sae.config import LEVELS, NAMES_FILES, DatasetConfig
from aircraft_sae.hangar import PARTS
from aircraft_sae.pictures.base import DISJOINT_SPLITS, PictureFiles, check_occupied, refuse
from aircraft_sae.store import check_room

ENDINGS = (*IMG_EXTENSIONS, ".jfif", ".avif")
MOVE = "Move or rename them."
DOWNLOAD_BYTES = 6 * 2**30  # the archive and its pictures, side by side for a moment


class FGVCLayout(PictureFiles):
    """FGVC-Aircraft's data/ folder, where the hangar also writes masks/ and scenes.parquet.

    masks/<image>.png: indices into `PARTS`, where 0 and 1 are the background.
    scenes.parquet: a row per image with its scene (JSON), pixels_<part>, and columns that the table adopts as factors.
    """

    def __init__(self, *of_files: Any):
        super().__init__(*of_files)
        if (self.folder / "masks").is_dir():
            self.region_names = PARTS[2:]
        self._scenes = self.folder / "scenes.parquet"
        if self._scenes.is_file():
            try:
                listed = pd.read_parquet(self._scenes).set_index("image").drop(columns="scene")
                factors = listed.drop(columns=["split", *LEVELS, *listed.filter(like="pixels_")], errors="ignore")
                self.table = self.table.join(factors, on="image", validate="1:1")
            except Exception as problem:  # Arrow and pandas raise errors of many types
                raise ValueError(f"{self._scenes} cannot be used: {problem}. Replace or remove it") from problem

    @cached_property
    def scenes(self) -> pd.DataFrame | None:
        """See `Pictures`; read on demand, as a scene takes 2 kB."""
        if not self._scenes.is_file():
            return None
        listed = pd.read_parquet(self._scenes)
        return self.table[["image"]].merge(listed[["image", "scene", *listed.filter(like="pixels_")]], on="image")

    def contents(self) -> list[str]:
        """The banner and the checksums of pictures, masks and scenes."""
        masks = [self.folder / "masks" / f"{image}.png" for image in self.table["image"]]
        return super().contents(*filter(Path.is_file, [*masks, self._scenes]))

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """See `PictureFiles`; root holds fgvc-aircraft-2013b, or is that folder or its data/."""
        folder = _find_folder(root)
        table, classes = _read_annotations(folder)
        files = sorted((folder / "images").iterdir(), key=lambda path: (path.suffix.lower() in (".jpg", ".jpeg"), path))
        found = {normalize("NFC", path.stem): path for path in files if path.suffix.lower() in ENDINGS}  # .jpg wins
        paths = {image: found.get(image, folder / "images" / f"{image}.jpg") for image in table["image"]}
        return folder, paths, table, classes

    def mask(self, image: str) -> np.ndarray:
        """See `Pictures`. FileNotFoundError for a missing mask, ValueError for an unusable one."""
        path = self.folder / "masks" / f"{image}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: only rendered data sets have part masks")
        try:
            mask = np.array(Image.open(path), np.uint8)
            if mask.max() >= len(PARTS):
                raise ValueError(f"it holds {mask.max()}, parts end with {len(PARTS) - 1}")
        except Exception as problem:  # as in `decode`
            raise ValueError(f"{path} cannot be read: {problem}. Replace it, or remove the folder masks") from problem
        return np.maximum(mask, 1)[: len(mask) - self.banner] - 1


def _read_annotations(folder: Path) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """(table of image, split and a column per level; class names per level). A level without any files is left out."""
    needed = {level: [NAMES_FILES[level], *(f"images_{level}_{split}.txt" for split in DISJOINT_SPLITS)]
              for level in LEVELS}  # fmt: skip
    levels = [level for level in LEVELS if any((folder / name).is_file() for name in needed[level])] or ["variant"]
    if missing := [name for level in levels for name in needed[level] if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks the annotation files {', '.join(missing)}: copy them there.")
    classes, table = {}, None
    for level in levels:
        names = _lines(folder / NAMES_FILES[level])
        refuse(names[names.duplicated()], f"classes twice in {folder / NAMES_FILES[level]}")
        labels = pd.concat([_read_labels(folder, level, split) for split in DISJOINT_SPLITS], ignore_index=True)
        where = f"in {folder / f'images_{level}_*.txt'}"
        refuse(labels[level][~labels[level].isin(names)], f"labels {where} that {NAMES_FILES[level]} does not name")
        refuse(labels["image"][labels["image"].duplicated()], f"images listed twice {where}")
        classes[level] = names.tolist()
        table = labels[["image", "split"]] if table is None else table
        both = table.merge(labels, "outer", ["image", "split"], indicator="listed")
        refuse(both["image"][both["listed"] != "both"], f"images {where} not listed as in {levels[0]}")
        table = table.merge(labels, on=["image", "split"])
    odd = table["image"].str.contains(r"[/\\]|^\.")
    refuse(table["image"][odd], f"image names in {folder} that are not file names")
    check_occupied(table, classes, str(folder))
    return table, classes


def _read_labels(folder: Path, level: str, split: str) -> pd.DataFrame:
    path = folder / f"images_{level}_{split}.txt"
    lines = _lines(path)
    parts = lines.str.extract(r"^(\S+)\s+(.+)$")  # a label may hold spaces
    refuse(lines[parts[0].isna()], f'lines of {path} that are not "image label"')
    image = parts[0].str.replace(rf"({'|'.join(map(re.escape, ENDINGS))})$", "", case=False, regex=True)
    return pd.DataFrame({"image": image, "split": split, level: parts[1]})


def _lines(path: Path) -> pd.Series:
    """The non-empty lines of a UTF-8 text file, stripped; any line endings, with or without a byte-order mark."""
    try:
        lines = [line.strip() for line in normalize("NFC", path.read_text("utf-8-sig")).split("\n")]
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text ({problem}): save it as UTF-8.") from problem
    return pd.Series(filter(None, lines), dtype=str)


def _find_folder(root: Path) -> Path:
    """The data/ folder at or below `root`; FileNotFoundError lists the accepted layouts."""
    for folder in (root / "fgvc-aircraft-2013b" / "data", root / "data", root):
        if (folder / "images").is_dir():
            return folder
    problem = "holds no fgvc-aircraft-2013b/data/images" if root.is_dir() else "does not exist"
    layouts = "fgvc-aircraft-2013b, <split>/<class>/*.jpg or <class>/*.jpg"
    raise FileNotFoundError(f"{root} {problem}. Name the folder that holds {layouts}")


class ImageFolder(PictureFiles):
    """Pictures at root/split/class/…, or at root/class/… with random splits; without class folders, no levels."""

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """See `PictureFiles`. An image is named by its path below `root`, with "-" for "/" and no extension."""
        below = [path.relative_to(root) for path in sorted(root.rglob("*.*")) if path.is_file()]
        below = [path for path in below if not any(name.startswith(".") for name in path.parts)]
        paths = [path for path in below if path.suffix.lower() in ENDINGS]
        if not paths:
            raise FileNotFoundError(f"{root} holds no pictures: it must have <split>/<class>/*.jpg or <class>/*.jpg")
        parts = [tuple(normalize("NFC", name) for name in path.with_suffix("").parts) for path in paths]
        table = pd.DataFrame({"image": map("-".join, parts), "split": [names[0] for names in parts]})
        refuse(table["image"][table["image"].duplicated()], f"images of {root} that would have the same name", MOVE)
        named = table["split"].isin(DISJOINT_SPLITS)
        if named.any():
            refuse(table["image"][~named], f"pictures of {root} outside its folders {', '.join(DISJOINT_SPLITS)}", MOVE)
            parts = [names[1:] for names in parts]
        table["class"] = [names[0] if len(names) > 1 else "" for names in parts]
        if not named.any():
            table["split"] = _random_splits(table["class"])
        classes = {"class": sorted(set(table["class"]))}
        if classes["class"] == [""]:
            table, classes = table.drop(columns="class"), {}
        else:
            refuse(table["image"][table["class"] == ""], f"pictures of {root} outside its class folders", MOVE)
            trained = table["class"][table["split"] == "train"]
            refuse(table["class"][~table["class"].isin(trained)], f"classes of {root} without a training picture", MOVE)
        check_occupied(table, classes, str(root))
        return root, {image: root / path for image, path in zip(table["image"], paths, strict=True)}, table, classes


def _random_splits(classes: pd.Series) -> list[str]:
    """A random split for each image: 57, 10 and 33 % of each class, as in the hangar."""
    draws = pd.Series(np.random.default_rng(0).random(len(classes))).groupby(classes)
    place = (draws.rank() - 0.5) / draws.transform("size")  # within the class, in (0, 1)
    return pd.cut(place, [0, 0.57, 0.57 + 0.10, 1], labels=DISJOINT_SPLITS).tolist()


def download(root: str | Path) -> None:
    """Download FGVC-Aircraft (2.75 GB) into root/fgvc-aircraft-2013b, whole or not at all; OSError names other ways."""
    root = Path(root).expanduser().absolute()
    try:
        check_room(root, DOWNLOAD_BYTES, "make room")
        # torchvision takes any existing archive or folder to be complete
        with tempfile.TemporaryDirectory(prefix="download-", dir=root) as beside:
            FGVCAircraft(beside, download=True)
            os.rename(Path(beside) / "fgvc-aircraft-2013b", root / "fgvc-aircraft-2013b")
    except Exception as problem:
        raise OSError(
            f"FGVC-Aircraft could not be downloaded into {root}: {problem}. Unpack {FGVCAircraft._URL} there by hand, "
            "name a folder that has it (data root), or use the hangar preset, which needs no download."
        ) from problem


def open_source(config: DatasetConfig, hangar_folder: Path | None, downloads: Path | None = None) -> PictureFiles:
    """The pictures that `config` names; without a root, FGVC-Aircraft is downloaded into `downloads`."""
    root = {"hangar": hangar_folder, "fgvc": config.root or downloads}.get(config.source, config.root)
    root = Path(root).expanduser()
    try:
        _find_folder(root)
    except FileNotFoundError:
        if config.source == "fgvc" and not config.root:
            download(root)
        elif any(path.suffix.lower() in ENDINGS for path in root.rglob("*")):
            return ImageFolder.open(root, banner=config.banner)
    return FGVCLayout.open(root, banner=config.banner)
