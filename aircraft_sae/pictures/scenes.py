"""Rendered scenes with one thing changed, as a set of pictures."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, compress, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.dataset import draw, worker_map
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.pictures.base import Pictures
from aircraft_sae.pictures.folders import FGVCLayout
from aircraft_sae.store import write_parquet

LEAST_PIXELS = 30 / 224**2  # the share of a picture that a part must fill to be edited
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)
EDITS = ("part", "paint")  # of one part: removed, or painted red or blue
KINDS = {"part": "remove", "paint": "recolour", "add": "add"}  # for `Scene.edit`


def choose_scenes(pictures: Pictures, images: Sequence[str], most: int, size: int) -> list[str]:
    """Scenes (JSON) of these images, in random order, until `most` show each region in pictures of `size` pixels."""
    table = pictures.scenes.set_index("image").loc[list(images)].sample(frac=1, random_state=0)
    needed, chosen = dict.fromkeys(pictures.region_names, most), []
    for row in table.to_dict("records"):
        useful = [part for part, n in needed.items() if n and row[f"pixels_{part}"] >= LEAST_PIXELS * size**2]
        if useful:
            chosen.append(row["scene"])
            needed |= {part: needed[part] - 1 for part in useful}
    return chosen


def vary_scenes(
    folder: Path, *, scenes: Sequence[str], factors: Sequence[str], edits: Sequence[str], parts: Sequence[str],
    most: int, size: int, supersampling: int,
) -> None:  # fmt: skip
    """Render each scene (JSON) without shadows: as it is, with each of `factors` changed, and with parts edited.

    factors: of `Scene.varied`; edits: of KINDS. Each part has each edit in up to `most` scenes in which it fills at
    least 30 of 224 x 224 pixels. images/ and masks/ are as in the hangar. scenes.parquet has a row per picture, first
    for the scenes as they are:
    image, split ("test"), scene (JSON), pixels_<part>
    number: the row of its scene as it is; changed: pixels that differ from this one
    factor: the factor or edit that was applied, "" for none; part: the one edited, "" for none
    Raises: ValueError without scenes.
    """
    if not scenes:
        raise ValueError("vary_scenes needs at least one scene")
    views = [replace(Scene.from_json(scene), shadows=False) for scene in scenes]
    jobs = {f"{n:03d}": (n, "", "", view) for n, view in enumerate(views)}
    drawn, varied, rows = partial(draw, folder=folder, size=size, supersampling=supersampling), {}, []
    with worker_map(len(views) * (1 + len(factors) + len(edits) * len(parts))) as mapped:
        whole = list(tqdm(mapped(drawn, views, jobs), "render scenes", len(jobs), leave=False))
        enough = np.stack([_pixels(picture.mask) for picture in whole]) >= LEAST_PIXELS * size**2
        edited = (enough & (enough.cumsum(0) <= most))[:, [PARTS.index(part) for part in parts]]
        for name, (n, _, _, view) in jobs.items():
            varied |= {f"{name}-{factor}": (n, factor, "", view.varied(factor)) for factor in factors}
            colour = {"paint": RED if n % 2 else BLUE}
            for part, edit in product(compress(parts, edited[n]), edits):
                changed = view.edit(KINDS[edit], part, colour.get(edit, ()))
                varied[f"{name}-{edit}-{part}"] = n, edit, part, changed
        rendered = mapped(drawn, [job[3] for job in varied.values()], varied)
        rendered = chain(whole, tqdm(rendered, "vary scenes", len(varied), leave=False))
        for (name, (n, factor, part, scene)), picture in zip((jobs | varied).items(), rendered, strict=True):
            row = {"image": name, "split": "test", "number": n, "factor": factor, "part": part}
            row |= {"changed": (picture.image != whole[n].image).any(2).sum(), "scene": scene.to_json()}
            rows.append(row | dict(zip((f"pixels_{part}" for part in PARTS), _pixels(picture.mask), strict=True)))
    write_parquet(pd.DataFrame(rows), folder / "scenes.parquet")


def _pixels(mask: np.ndarray) -> np.ndarray:
    return np.bincount(mask.ravel(), minlength=len(PARTS))


class VariedScenes(FGVCLayout):
    """The pictures, masks and scenes that `vary_scenes` wrote, named as their folder."""

    def __init__(self, *of_files: Any):
        super().__init__(*of_files)
        self.name = self.folder.name

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """See `PictureFiles`."""
        table = pd.read_parquet(root / "scenes.parquet", columns=["image", "split"])
        return root, {image: root / "images" / f"{image}.jpg" for image in table["image"]}, table, {}
