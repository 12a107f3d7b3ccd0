"""Folders in FGVC-Aircraft layout, which the hangar renders too, and FGVC-Aircraft's download."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
from PIL import Image
from torchvision.datasets import FGVCAircraft
from torchvision.datasets.folder import IMG_EXTENSIONS

from aircraft_sae.config import LEVELS, DatasetConfig
from aircraft_sae.hangar import PARTS
from aircraft_sae.pictures.annotations import read_annotations
from aircraft_sae.pictures.base import PictureFiles
from aircraft_sae.pictures.image_folder import ImageFolder

DOWNLOAD_BYTES = 6 * 2**30  # the archive and its pictures, for a moment side by side


class FGVCLayout(PictureFiles):
    """A data/ folder in FGVC-Aircraft layout. masks/ and scenes.parquet may be beside images/, as the hangar has them.

    masks/<image>.png hold 0 and 1 for what is behind the aircraft, then the number in `PARTS`. scenes.parquet has a row
    an image: its scene as JSON, pixels_<part>, and further columns, which become known factors in the table.
    """

    def __init__(self, *of_files: Any):
        super().__init__(*of_files)
        if (self.folder / "masks").is_dir():
            self.region_names = PARTS[2:]
        if (path := self.folder / "scenes.parquet").is_file():
            try:
                listed = pd.read_parquet(path).set_index("image")
                of_scenes = ["scene", *listed.columns[listed.columns.str.startswith("pixels_")]]
                scenes = self.table[["image"]].join(listed[of_scenes], on="image", how="inner", validate="1:1")
                factors = listed.drop(columns=[*of_scenes, "split", *LEVELS], errors="ignore")
                self.scenes, self.table = scenes.reset_index(drop=True), self.table.join(factors, on="image")
            except Exception as problem:  # Arrow's and pandas' own
                raise ValueError(f"{path} cannot be used: {problem}. Replace or remove it") from problem

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """Of `root`, which is or holds fgvc-aircraft-2013b, or is its data/ folder: see `PictureFiles`."""
        folder = _find_folder(root)
        table, classes = read_annotations(folder)
        files = [path for path in sorted((folder / "images").iterdir()) if path.suffix.lower() in IMG_EXTENSIONS]
        found = {normalize("NFC", path.stem): path for path in reversed(files)}  # .jpg before .png
        paths = {image: found.get(image, folder / "images" / f"{image}.jpg") for image in table["image"]}
        return folder, paths, table, classes

    def mask(self, image: str) -> np.ndarray:
        """See `Pictures`, without the banner. FileNotFoundError for no mask, ValueError for no picture of parts."""
        path = self.folder / "masks" / f"{image}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: only rendered data sets have part masks")
        try:
            mask = np.array(Image.open(path), np.uint8)
            if mask.max() >= len(PARTS):
                raise ValueError(f"it holds {mask.max()}, parts end with {len(PARTS) - 1}")
        except Exception as problem:  # as for pictures
            raise ValueError(f"{path} cannot be read: {problem}. Replace it, or remove the folder masks") from problem
        return np.maximum(mask, 1)[: len(mask) - self.banner] - 1

    def files(self, image: str) -> list[Path]:
        """The picture, and its mask where there is one."""
        mask = self.folder / "masks" / f"{image}.png"
        return [self.paths[image], *[mask] * mask.is_file()]


def _find_folder(root: Path) -> Path:
    """The data/ folder at or under `root`; FileNotFoundError says what was looked for."""
    for folder in (root / "fgvc-aircraft-2013b" / "data", root / "data", root):
        if (folder / "images").is_dir():
            return folder
    raise FileNotFoundError(
        f"{root} {'holds no fgvc-aircraft-2013b/data/images' if root.is_dir() else 'does not exist'}. Name the folder "
        "that holds fgvc-aircraft-2013b, with data/images/*.jpg, data/variants.txt, data/images_variant_train.txt, …"
    )


def download(root: str | Path) -> None:
    """Fetch FGVC-Aircraft (2.75 GB) into root/fgvc-aircraft-2013b, whole; OSError that names the other ways."""
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
        for folder in filter(Path.is_dir, created):
            folder.rmdir()
        raise OSError(
            f"FGVC-Aircraft could not be downloaded into {root}: {problem}. Try again with internet access; or unpack "
            f"{FGVCAircraft._URL} there by hand, so that {root / 'fgvc-aircraft-2013b' / 'data'} exists; or name a "
            "folder that has it (data root); or use the hangar preset, which needs no download."
        ) from problem


def open_source(config: DatasetConfig, hangar_folder: Path | None, downloads: Path | None = None) -> PictureFiles:
    """The pictures that `config` names: the hangar's, a folder's, or FGVC-Aircraft, found or else downloaded.

    FGVC-Aircraft is looked for, and put, in config.root, or in `downloads` where that is None.
    """
    root = {"hangar": hangar_folder, "fgvc": config.root or downloads}.get(config.source, config.root)
    if root is None:
        raise ValueError(f"data source {config.source!r} needs a folder: name it in dataset.root (--data-root)")
    root = Path(root).expanduser()
    if config.source == "fgvc":
        try:
            _find_folder(root)
        except FileNotFoundError:
            download(root)
    layout = ImageFolder if config.source == "images" else FGVCLayout
    return layout.open(root, banner=config.banner, on_bad_image=config.on_bad_image)
