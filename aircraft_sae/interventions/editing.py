"""Scene edits: one region of a rendered picture taken away, moved or recoloured, every other pixel as it was.

R_jp, the response of feature j to removing part p, is the share of its image maximum that goes:

    R_jp = E[max over cells f_j(x) - max over cells f_j(x without p)] / E[max over cells f_j(x)]

over scenes that show at least 30 pixels of p. S_jp, its selectivity, is R_jp less the largest R_jq of the other parts
q whose edits change about as many pixels, or fewer: a larger edit says little against p.
"""

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
from scipy.ndimage import center_of_mass
from scipy.sparse import csc_array, vstack
from tqdm import tqdm

from aircraft_sae.activations import as_stored, site_folder
from aircraft_sae.features.index import encoded
from aircraft_sae.features.regions import shows
from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.dataset import mapper
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.metrics import Estimate, bootstrap_counts, ratio, with_draws
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.base import coverage
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

LEAST_PIXELS = 30 / 224**2  # of a part that a scene must show, as a share of the picture
MOVES = ((0.0, 0.0, 0.12), (0.12, 0.0, 0.0), (0.0, 0.0, -0.12), (-0.12, 0.0, 0.0))
"""Up, forward, down, back, in units of the longer of length and span: a scene's seed says which."""
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)
PLACES = ["row", "column", "row_after", "column_after"]


def edited(scene: Scene, kind: str, part: str) -> Scene:
    """The scene with one edit; "nothing" leaves it as it is. ValueError for another kind."""
    if kind == "nothing":
        return scene
    if kind == "remove":
        return scene.edit("remove", part)
    if kind == "move":
        return scene.edit("move", part, MOVES[scene.seed % len(MOVES)])
    if kind == "recolour":
        return scene.edit("recolour", part, RED if scene.seed % 2 else BLUE)
    raise ValueError(f'kind must be "remove", "move", "recolour" or "nothing", got {kind!r}')


def plain(scene: str) -> Scene:
    """A scene from its JSON, without shadows: a part's shadow would go with the part."""
    return replace(Scene.from_json(scene), shadows=False)


def without(scene: str, part: str | None, size: int, supersampling: int) -> Image.Image:
    """The picture of a scene (JSON), rendered without shadows and without one part, or with all of them."""
    whole = plain(scene)
    return _saved(render(whole.edit("remove", part) if part else whole, size, supersampling).image, whole)


def choose_scenes(pictures: Pictures, images: Sequence[str], most: int, size: int) -> list[str]:
    """Scenes (JSON) of these images, size pixels wide, in random order: those needed to have `most` of each region."""
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
    """Render each scene (JSON), then with each part that it shows edited, and write what the networks make of them.

    parts: names of regions; most: edits of one part, at most; scenes come in their order.
    Into `folder`: scenes.parquet (scene as JSON, shown_<part> pixels), masks.npy (of the scenes: 0, or i + 1 where
    parts[i] is seen), edits.parquet (scene, part, changed pixels, row,
    column, row_after, column_after: the middle of the part's pixels as shares of the picture, nan for none) and, for
    each network, <network>/<site>.npy (scenes then edits) and <network>/logits.npy.
    Raises: ValueError for another kind of edit, another site, or no scenes.
    """
    if not scenes:
        raise ValueError("edit_scenes needs at least one scene")
    views, ids = [plain(scene) for scene in scenes], [PARTS.index(part) for part in parts]
    edited(views[0], kind, parts[0])  # refuses another kind before any work
    for network, site in product(networks.values(), sites):
        network.check_site(site)  # and another site
    # all is rendered before the networks see any of it: beside each other, their threads would wait
    with mapper(len(views) * (1 + len(parts))) as mapped:
        rendered = partial(mapped, partial(render, size=size, supersampling=supersampling))
        whole = list(tqdm(rendered(views), "render scenes", len(views), leave=False))
        shown = np.stack([np.bincount(picture.mask.ravel(), minlength=len(PARTS))[ids] for picture in whole])
        numbers = np.zeros(len(PARTS), np.uint8)
        numbers[ids] = np.arange(len(ids)) + 1
        np.save(folder / "masks.npy", np.stack([numbers[picture.mask] for picture in whole]))
        enough = shown >= LEAST_PIXELS * size**2
        jobs, rows = np.argwhere(enough & (enough.cumsum(0) <= most)).tolist(), []
        images = [_saved(picture.image, view) for picture, view in zip(whole, views, strict=True)]
        edits = rendered([edited(views[s], kind, parts[p]) for s, p in jobs])
        for (s, p), picture in zip(jobs, tqdm(edits, f"render: {kind}", len(jobs), leave=False), strict=True):
            changed = (picture.image != whole[s].image).any(2).sum()
            rows.append((s, parts[p], changed, *_centre(whole[s].mask == ids[p]), *_centre(picture.mask == ids[p])))
            images.append(_saved(picture.image, views[s]))
    for name, network in networks.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        x = (torch.stack([network.as_input(image) for image in batch]) for batch in batches)
        seen = tqdm(network.stream(x, sites, mixed=True), f"see: {kind}, {name} network", len(batches), leave=False)
        found = [{site: as_stored(each.acts[site]) for site in sites} | {"logits": each.logits} for each in seen]
        for key in found[0]:
            np.save(folder / name / f"{site_folder(key)}.npy", torch.cat([each[key] for each in found]).numpy())
    table = pd.DataFrame(shown, columns=[f"shown_{part}" for part in parts])
    table.insert(0, "scene", [view.to_json() for view in views])
    write_parquet(table, folder / "scenes.parquet")
    write_parquet(pd.DataFrame(rows, columns=["scene", "part", "changed", *PLACES]), folder / "edits.parquet")


def _saved(image: np.ndarray, scene: Scene) -> Image.Image:
    """What is left of a picture once it is saved as JPEG, as the data set's pictures are."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=scene.finish.quality)
    return Image.open(file).convert("RGB")


def _centre(mask: np.ndarray) -> np.ndarray:
    """Row and column of the middle of a mask, as shares of the picture; nan where it is empty."""
    with np.errstate(invalid="ignore"):
        return np.add(center_of_mass(mask), 0.5) / mask.shape


@dataclass
class Responses:
    """What edits do to features. Axes: scenes s, edits e, parts p, features j.

    edits: as `edit_scenes` writes; before: (s, j) image maxima; after: (e, j); centres: (s, j, 2), centres_after:
    (e, j, 2) row and column of the activation's centre as shares of the picture, nan where silent; shows: (s, rows,
    columns, p) whether a cell shows a part; codes: (cells of scenes then edits, j).
    """

    parts: list[str]
    edits: pd.DataFrame
    before: np.ndarray
    after: np.ndarray
    centres: np.ndarray | None = None
    centres_after: np.ndarray | None = None
    shows: np.ndarray | None = None
    codes: csc_array | None = None

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SparseAutoencoder, folder: str | Path, network: str = "trained") -> "Responses":
        """Of an autoencoder's features, from what `edit_scenes` wrote; FileNotFoundError where it has not."""
        folder = Path(folder)
        path = folder / network / f"{site_folder(sae.cfg.site)}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: run edit_scenes with this network and site first")
        edits = pd.read_parquet(folder / "edits.parquet")
        shown = pd.read_parquet(folder / "scenes.parquet").filter(like="shown_").columns
        maxima, centres, codes = [], [], []
        for block in torch.from_numpy(np.load(path)).float().split(BATCH):
            codes.append(encoded(sae, [block]))
            dense = torch.from_numpy(codes[-1].toarray()).view(*block.shape[:3], -1)
            maxima.append(dense.amax((1, 2)))
            places = [(torch.arange(n) + 0.5) / n for n in block.shape[1:3]]
            sums = torch.einsum("nrcj,r->nj", dense, places[0]), torch.einsum("nrcj,c->nj", dense, places[1])
            centres.append(torch.stack(sums, 2) / dense.sum((1, 2))[..., None])
        maxima, centres = torch.cat(maxima).numpy(), torch.cat(centres).numpy()
        parts, s = [name.removeprefix("shown_") for name in shown], len(maxima) - len(edits)
        cells = [coverage(mask, len(parts), block.shape[1:3]) for mask in np.load(folder / "masks.npy")]
        codes = vstack(codes).tocsc()
        return cls(parts, edits, maxima[:s], maxima[s:], centres[:s], centres[s:], shows(np.stack(cells)), codes)

    def of_part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(indices of the edits of a part, their scenes)."""
        own = np.flatnonzero(self.edits["part"] == part)
        return own, self.edits["scene"].to_numpy()[own]

    def response(self, features: np.ndarray | None = None, counts: np.ndarray | None = None) -> np.ndarray:
        """(p, j) R of these features (or all), or (draws, p, j) for counts (draws, s); 0 where all is silent.

        nan for a part that no scene shows.
        """
        features = np.arange(self.before.shape[1]) if features is None else features
        weights = np.ones((1, len(self.before))) if counts is None else np.asarray(counts, float)
        result = np.full((len(weights), len(self.parts), len(features)), np.nan)
        for p, part in enumerate(self.parts):
            own, scenes = self.of_part(part)
            if len(own):
                before = self.before[np.ix_(scenes, features)]
                lost = weights[:, scenes] @ (before - self.after[np.ix_(own, features)])
                whole = weights[:, scenes] @ before
                result[:, p] = np.divide(lost, whole, out=np.zeros_like(whole), where=whole > 0)
        return result[0] if counts is None else result

    def at_part(self, part: str, feature_id: int) -> tuple[Estimate, Estimate]:
        """R_p at the part's own cells: (when it is removed, when other parts are whose edits are of no more pixels).

        Over scenes that show the part and in which the feature is active: what the largest activation in the part's
        cells loses, as a share of the largest anywhere before. No more pixels: at most twice, in the median.
        """
        n_scenes, rows, columns, _ = self.shows.shape
        maps = self.codes[:, [feature_id]].toarray().reshape(-1, rows, columns)
        place, changed = self.shows[..., self.parts.index(part)], self.edits.groupby("part")["changed"].median()
        own = self.of_part(part)[1]
        own = own[self.before[own, feature_id] > 0]
        like = [each for each in changed.index if each != part and changed[each] <= 2 * changed[part]]
        found = []
        for removed in ([part], like):
            edits = np.flatnonzero(self.edits["part"].isin(removed) & self.edits["scene"].isin(own))
            scenes = self.edits["scene"].to_numpy()[edits]
            there = np.where(place[scenes], maps[scenes], 0).max((1, 2), initial=0)
            there = there - np.where(place[scenes], maps[n_scenes + edits], 0).max((1, 2), initial=0)
            sums = pd.DataFrame({"lost": there, "whole": self.before[scenes, feature_id]}).groupby(scenes).sum()
            found.append(ratio(sums["lost"], sums["whole"]))
        return found[0], found[1]

    def table(self) -> pd.DataFrame:
        """R of every feature and part: feature_id, part, response."""
        R = pd.DataFrame(self.response().T, columns=self.parts).rename_axis("feature_id").reset_index()
        return R.melt("feature_id", var_name="part", value_name="response")

    def selectivity(self, response: np.ndarray) -> np.ndarray:
        """S of each part and feature, in the shape of `response` (…, p, j).

        No match for a part are those whose edits change more than twice its pixels (medians).
        """
        result, changed = np.full_like(response, np.nan), self.edits.groupby("part")["changed"].median()
        changed = changed.reindex(self.parts).to_numpy()
        for p in range(len(self.parts)):
            others = (changed <= 2 * changed[p]) & (np.arange(len(changed)) != p)
            rivals = np.where(others[:, None], np.nan_to_num(response, nan=-np.inf), -np.inf).max(-2)
            result[..., p, :] = response[..., p, :] - np.maximum(rivals, 0)  # no rival: none may be needed more than 0
        return result

    def moves(self, part: str, feature_id: int) -> pd.DataFrame:
        """One row an edit of the part in which both are seen before and after, all as shares of the picture.

        scene; part_down, part_across: shift of the middle of the part's pixels; feature_…: of the feature's centre.
        """
        own, scenes = self.of_part(part)
        before, after = np.split(self.edits[PLACES].to_numpy()[own], 2, axis=1)
        shifts = after - before, self.centres_after[own, feature_id] - self.centres[scenes, feature_id]
        names = ["part_down", "part_across", "feature_down", "feature_across"]
        return pd.DataFrame(np.hstack(shifts), columns=names).assign(scene=scenes).dropna()


def followed(moves: pd.DataFrame, way: str, beside: pd.DataFrame | None = None) -> dict[str, float | None]:
    """The share of a part's shift ("down" or "across") that a feature's centre makes too: 1 follows, 0 stays.

    moves: rows of `Responses.moves`; beside: other ones, whose share is taken off. Least squares through the origin;
    scenes are the units of the interval.
    """
    given = [(moves, 1)] if beside is None else [(moves, 1), (beside, -1)]
    scenes = np.unique(np.concatenate([each["scene"] for each, _ in given]))
    counts = np.concatenate([np.ones((1, len(scenes))), bootstrap_counts(len(scenes), 2000)])
    shares = np.zeros(len(counts))
    for each, sign in given:
        part, feature, at = each[f"part_{way}"], each[f"feature_{way}"], np.searchsorted(scenes, each["scene"])
        both, whole = (np.bincount(at, values, len(scenes)) for values in (part * feature, part**2))
        shares += sign * (counts @ both) / np.maximum(counts @ whole, 1e-12)
    return with_draws(shares[0], shares[1:], len(scenes))
