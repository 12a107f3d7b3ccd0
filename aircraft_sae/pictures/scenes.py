"""Rendered scenes with one thing changed, as a set of pictures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.dataset import draw, worker_map
from aircraft_sae.hangar.scene import FACTORS, Scene
from aircraft_sae.pictures.base import PictureFiles
from aircraft_sae.store import write_parquet

LEAST_PIXELS = 30 / 224**2  # the share of a picture that a part must fill to be edited
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)
EDITS = ("part", "paint")  # of one part: removed, or painted red or blue


def vary_scenes(
    folder: Path, *, scenes: Sequence[str], parts: Sequence[str], most: int, size: int, supersampling: int
) -> None:
    """Render each scene (JSON) without shadows: as it is, with each of FACTORS changed, and with parts edited.

    Each part is removed and repainted in up to `most` scenes in which it fills at least 30 of 224 x 224 pixels. images/
    and masks/ are as in the hangar. table.parquet has a row per picture:
    image, split ("test"), number: its scene's
    factor: the one of FACTORS or EDITS that was changed, "" for none; part: the one edited, "" for none
    """
    views = [replace(Scene.from_json(scene), shadows=False) for scene in scenes]
    jobs = [(n, factor, "", view.varied(factor) if factor else view)
            for n, view in enumerate(views) for factor in ("", *FACTORS)]  # fmt: skip
    count = partial(_draw, folder=folder, size=size, supersampling=supersampling)
    with worker_map(2 * len(jobs)) as mapped:
        pixels = list(tqdm(mapped(count, jobs), "vary scenes", len(jobs), leave=False))
        shown = np.stack([n for n, job in zip(pixels, jobs, strict=True) if not job[1]])
        for part in parts:
            enough = np.flatnonzero(shown[:, PARTS.index(part)] >= LEAST_PIXELS * size**2)[:most]
            jobs += [(n, "part", part, views[n].edit("remove", part)) for n in enough]
            jobs += [(n, "paint", part, views[n].edit("recolour", part, RED if n % 2 else BLUE)) for n in enough]
        edited = jobs[len(pixels) :]
        list(tqdm(mapped(count, edited), "edit parts", len(edited), leave=False))
    table = pd.DataFrame([job[:3] for job in jobs], columns=["number", "factor", "part"])
    table.insert(0, "image", list(map(_name, jobs)))
    write_parquet(table.assign(split="test"), folder / "table.parquet")


def _name(job: tuple[int, str, str, Scene]) -> str:
    return "-".join([f"{job[0]:03d}", *job[1:3]]).rstrip("-")


def _draw(job: tuple[int, str, str, Scene], folder: Path, size: int, supersampling: int) -> np.ndarray:
    """Render one scene into the folder; returns the pixel count of each part."""
    return np.bincount(draw(job[3], folder, _name(job), size, supersampling).ravel(), minlength=len(PARTS))


class VariedScenes(PictureFiles):
    """The pictures and the table that `vary_scenes` wrote."""

    name = "varied"

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """See `PictureFiles`."""
        table = pd.read_parquet(root / "table.parquet")
        return root, {image: root / "images" / f"{image}.jpg" for image in table["image"]}, table, {}
