"""Scene edits: remove one part from a rendered scene, or add one, and leave every other pixel as it was."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.sparse import csc_array
from tqdm import tqdm

from aircraft_sae.activations import site_folder
from aircraft_sae.features import cell_labels, encoded
from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.dataset import worker_map
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.metrics import Estimate, ratio
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures, coverage
from aircraft_sae.pictures.scenes import LEAST_PIXELS
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


def plain(scene: str) -> Scene:
    """A scene from its JSON, without shadows: a removed part would take its shadow with it."""
    return replace(Scene.from_json(scene), shadows=False)


def without(scene: str, part: str | None, size: int, supersampling: int) -> Image.Image:
    """The picture of a scene (JSON), without shadows and, unless `part` is None, without that part."""
    whole = plain(scene)
    return _saved(render(whole.edit("remove", part) if part else whole, size, supersampling).image, whole)


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


def edit_scenes(
    folder: Path, *, networks: Mapping[str, Network], sites: Sequence[str], scenes: Sequence[str], kind: str,
    parts: Sequence[str], most: int, size: int, supersampling: int,
) -> None:  # fmt: skip
    """Render each scene (JSON), then one edit of each part that it shows, and run the networks on all pictures.

    kind: "remove" or "add"; parts: names of regions; most: at most this many edits per part.
    scenes.parquet: scene (JSON), shown_<part> (pixels); edits.parquet: scene (row), part, changed (pixels)
    masks.npy: of the scenes, i + 1 where parts[i] is visible, else 0
    <network>/<site>.npy, <network>/logits.npy: for the scenes, then the edits
    Raises: ValueError for an unknown site, and without scenes.
    """
    if not scenes:
        raise ValueError("edit_scenes needs at least one scene")
    views, ids = [plain(scene) for scene in scenes], [PARTS.index(part) for part in parts]
    for network, site in product(networks.values(), sites):
        network.check_site(site)
    # rendering ends before the networks start: their threads would wait for each other
    with worker_map(len(views) * (1 + len(parts))) as mapped:
        rendered = partial(mapped, partial(render, size=size, supersampling=supersampling))
        whole = list(tqdm(rendered(views), "render scenes", len(views), leave=False))
        shown = np.stack([np.bincount(picture.mask.ravel(), minlength=len(PARTS))[ids] for picture in whole])
        numbers = np.zeros(len(PARTS), np.uint8)
        numbers[ids] = np.arange(len(ids)) + 1
        np.save(folder / "masks.npy", np.stack([numbers[picture.mask] for picture in whole]))
        enough = shown >= LEAST_PIXELS * size**2
        jobs, rows = np.argwhere(enough & (enough.cumsum(0) <= most)).tolist(), []
        images = [_saved(picture.image, view) for picture, view in zip(whole, views, strict=True)]
        edits = rendered([views[s].edit(kind, parts[p]) for s, p in jobs])
        for (s, p), picture in zip(jobs, tqdm(edits, f"render: {kind}", len(jobs), leave=False), strict=True):
            changed = (picture.image != whole[s].image).any(2).sum()
            rows.append((s, parts[p], changed))
            images.append(_saved(picture.image, views[s]))
    for name, network in networks.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        x = (torch.stack([network.as_input(image) for image in batch]) for batch in batches)
        seen = tqdm(network.stream(x, sites, mixed=True), f"see: {kind}, {name} network", len(batches), leave=False)
        found = [{site: each.acts[site].half() for site in sites} | {"logits": each.logits} for each in seen]
        for key in found[0]:
            np.save(folder / name / f"{site_folder(key)}.npy", torch.cat([each[key] for each in found]).numpy())
    table = pd.DataFrame(shown, columns=[f"shown_{part}" for part in parts])
    table.insert(0, "scene", [view.to_json() for view in views])
    write_parquet(table, folder / "scenes.parquet")
    write_parquet(pd.DataFrame(rows, columns=["scene", "part", "changed"]), folder / "edits.parquet")


def _saved(image: np.ndarray, scene: Scene) -> Image.Image:
    """The picture after a round trip through JPEG, as the data set's pictures are."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=scene.finish.quality)
    return Image.open(file).convert("RGB")


@dataclass
class Responses:
    """What edits do to features, for scenes s, edits e, parts p and features j.

    edits: edits.parquet; before: (s, j) image maxima; after: (e, j); shows: (s, rows, columns, p) bool, the cells that
    show a part; codes: (cells of scenes then edits, j).
    """

    parts: list[str]
    edits: pd.DataFrame
    before: np.ndarray
    after: np.ndarray
    shows: np.ndarray
    codes: csc_array

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SparseAutoencoder, folder: str | Path, network: str = "trained") -> "Responses":
        """Encode what `edit_scenes` wrote; FileNotFoundError for a network or site that it did not run."""
        folder = Path(folder)
        path = folder / network / f"{site_folder(sae.cfg.site)}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: run edit_scenes with this network and site first")
        edits = pd.read_parquet(folder / "edits.parquet")
        shown = pd.read_parquet(folder / "scenes.parquet").filter(like="shown_").columns
        acts = torch.from_numpy(np.load(path)).float()
        codes = encoded(sae, acts.split(BATCH))
        own = np.arange(codes.shape[0]).reshape(len(acts), -1)  # each picture's cells
        maxima = np.stack([codes[cells].max(axis=0).toarray() for cells in own])
        parts, s = [name.removeprefix("shown_") for name in shown], len(maxima) - len(edits)
        cells = [coverage(mask, len(parts), acts.shape[1:3]) for mask in np.load(folder / "masks.npy")]
        return cls(parts, edits, maxima[:s], maxima[s:], cell_labels(np.stack(cells)), codes.tocsc())

    def of_part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(e,) the edits of a part, and (e,) their scenes."""
        own = np.flatnonzero(self.edits["part"] == part)
        return own, self.edits["scene"].to_numpy()[own]

    def table(self) -> pd.DataFrame:
        """feature_id, part, response: share of the feature's image maxima lost to a part's edits; nan without edits."""
        R = {}
        for part in self.parts:
            own, scenes = self.of_part(part)
            whole, left = self.before[scenes].sum(0), self.after[own].sum(0)
            unknown = np.full_like(whole, 0 if len(own) else np.nan)
            R[part] = np.divide(whole - left, whole, out=unknown, where=whole > 0)
        table = pd.DataFrame(R, dtype=float).rename_axis("feature_id").reset_index()
        return table.melt("feature_id", var_name="part", value_name="response")

    def at_part(self, part: str, feature_id: int) -> tuple[Estimate, Estimate]:
        """R at the part's own cells: for removing the part, and for removing others that are at most twice as large.

        R: the fall of the largest activation in these cells, as a share of the largest anywhere before the edit, over
        scenes that show the part and activate the feature. Size: the median number of pixels that a removal changes.
        """
        n_scenes, rows, columns, _ = self.shows.shape
        maps = self.codes[:, [feature_id]].toarray().reshape(-1, rows, columns)
        place, changed = self.shows[..., self.parts.index(part)], self.edits.groupby("part")["changed"].median()
        changed = changed.reindex(self.parts)
        own = self.of_part(part)[1]
        own = own[self.before[own, feature_id] > 0]
        like = [each for each in changed.index if each != part and changed[each] <= 2 * changed[part]]
        found = []
        for removed in ([part], like):
            edits = np.flatnonzero(self.edits["part"].isin(removed) & self.edits["scene"].isin(own))
            scenes = self.edits["scene"].to_numpy()[edits]
            peaks = [np.where(place[scenes], maps[at], 0).max((1, 2), initial=0) for at in (scenes, n_scenes + edits)]
            sums = pd.DataFrame({"lost": peaks[0] - peaks[1], "whole": self.before[scenes, feature_id]})
            sums = sums.groupby(scenes).sum()
            found.append(ratio(sums["lost"], sums["whole"]))
        return found[0], found[1]
