"""Rendered scenes of which one thing is changed, as a set of pictures: what a feature responds to, seen by itself."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.dataset import draw, mapper
from aircraft_sae.hangar.scene import FACTORS, Scene
from aircraft_sae.pictures.base import PictureFiles
from aircraft_sae.store import write_parquet

LEAST_PIXELS = 30 / 224**2  # of a part that a scene must show, as a share of the picture
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)
EDITS = ("part", "paint")  # of single parts: taken away, and painted red or blue


def vary_scenes(
    folder: Path, *, scenes: Sequence[str], parts: Sequence[str], most: int, size: int, supersampling: int
) -> None:
    """Render each scene (JSON, without shadows) as it is, with each of FACTORS changed, and with parts edited.

    parts: of each, up to `most` scenes in which it fills 30 of 224 x 224 pixels are rendered without it and in another
    paint. images/ and masks/ are as the hangar has them. table.parquet has a row a picture: image, split ("test"),
    number (of its scene), factor ("" for the scene as it is), part ("" for no single one).
    """
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    views = [replace(Scene.from_json(scene), shadows=False) for scene in scenes]
    jobs = [(n, factor, "", view.varied(factor) if factor else view)
            for n, view in enumerate(views) for factor in ("", *FACTORS)]  # fmt: skip
    count = partial(_draw, folder=folder, size=size, supersampling=supersampling)
    with mapper(2 * len(jobs)) as mapped:
        pixels = list(tqdm(mapped(count, jobs), "vary scenes", len(jobs), leave=False))
        shown = np.stack([n for n, job in zip(pixels, jobs, strict=True) if not job[1]])
        for part in parts:
            enough = np.flatnonzero(shown[:, PARTS.index(part)] >= LEAST_PIXELS * size**2)[:most]
            jobs += [(n, "part", part, views[n].edit("remove", part)) for n in enough]
            jobs += [(n, "paint", part, views[n].edit("recolour", part, RED if n % 2 else BLUE)) for n in enough]
        rest = jobs[len(pixels) :]
        list(tqdm(mapped(count, rest), "edit parts", len(rest), leave=False))
    table = pd.DataFrame([job[:3] for job in jobs], columns=["number", "factor", "part"])
    table.insert(0, "image", list(map(_named, jobs)))
    write_parquet(table.assign(split="test"), folder / "table.parquet")


def _named(job: tuple[int, str, str, Scene]) -> str:
    return "-".join([f"{job[0]:03d}", *job[1:3]]).rstrip("-")


def _draw(job: tuple[int, str, str, Scene], folder: Path, size: int, supersampling: int) -> np.ndarray:
    """Render one scene into the folder; the pixels of each part in it."""
    return np.bincount(draw(job[3], folder, _named(job), size, supersampling).ravel(), minlength=len(PARTS))


class VariedScenes(PictureFiles):
    """What `vary_scenes` rendered. table: image, split, number, factor, part."""

    name = "varied"

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """FileNotFoundError where nothing was rendered."""
        table = pd.read_parquet(root / "table.parquet")
        return root, {image: root / "images" / f"{image}.jpg" for image in table["image"]}, table, {}
