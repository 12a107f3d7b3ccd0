"""Scene edits: one part of the airframe taken away, moved or recoloured, every other pixel as it was.

R_jp, the response of feature j to removing part p, is the share of its image maximum that goes:

    R_jp = E[max over cells f_j(x) - max over cells f_j(x without p)] / E[max over cells f_j(x)]

over scenes that show at least 30 pixels of p. S_jp, its selectivity, is R_jp less the largest R_jq of the other parts
q whose edits change about as many pixels, or fewer: a larger edit says little against p. Adding a part is removing it,
read backwards.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from aircraft_sae.activations import captured
from aircraft_sae.devices import has_bfloat16, side_by_side
from aircraft_sae.hangar.dataset import renderer
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.metrics import bootstrap_counts, interval
from aircraft_sae.networks import Classifier
from aircraft_sae.networks.inference import BATCH
from aircraft_sae.pictures import test_transform
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

FIRST = 2
"""PARTS before it are background."""
N_DRAWS = 2000
VISIBLE = 30
"""Least pixels of a part that a scene must show at 224 pixels' width."""
MOVES = ((0.0, 0.0, 0.12), (0.12, 0.0, 0.0), (0.0, 0.0, -0.12), (-0.12, 0.0, 0.0))
"""Up, forward, down, back, in units of the longer of length and span: a scene's seed says which."""
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)
SIZE_RATIO = 2.0
"""Parts whose edits change more than so many times a part's pixels are no match for it."""
SCENES, EDITS = "scenes.parquet", "edits.parquet"


def edited(scene: Scene, kind: str, part: str) -> Scene:
    """The scene with one edit; "nothing" leaves it as it is. ValueError for another kind."""
    if kind == "nothing":
        return scene
    if kind == "remove":
        return scene.remove(part)
    if kind == "move":
        return scene.move(part, MOVES[scene.seed % len(MOVES)])
    if kind == "recolour":
        return scene.recolour(part, RED if scene.seed % 2 else BLUE)
    raise ValueError(f'kind must be "remove", "move", "recolour" or "nothing", got {kind!r}')


def without(scene: Scene, part: str | None, size: int, supersampling: int) -> Image.Image:
    """The picture of a scene, rendered without shadows and without one part, or with all of them."""
    plain = replace(scene, shadows=False)
    shown = edited(plain, "remove", part) if part else plain
    return Image.fromarray(_saved(render(shown, size, supersampling).image, plain))


def choose_scenes(table: pd.DataFrame, most: int, size: int = 224, seed: int = 0) -> list[Scene]:
    """Scenes, in random order, of which each is needed to have `most` with each part, as far as there are so many.

    table: rows of the hangar's scenes.parquet (scene, and pixels_<part> of its pictures of `size` pixels).
    """
    table, needed = table.sample(frac=1, random_state=seed), dict.fromkeys(PARTS[FIRST:], most)
    chosen = []
    for row in table.to_dict("records"):
        useful = [part for part, n in needed.items() if n and row[f"pixels_{part}"] >= VISIBLE * (size / 224) ** 2]
        if useful:
            chosen.append(Scene.from_json(row["scene"]))
            needed |= {part: needed[part] - 1 for part in useful}
    return chosen


@torch.no_grad()
def edit_scenes(
    networks: Mapping[str, Classifier],
    sites: Sequence[str],
    scenes: Sequence[Scene],
    kind: str,
    folder: str | Path,
    most: int | None = None,
    size: int = 224,
    supersampling: int = 2,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Render each scene, then with each part that it shows edited, and write what the networks make of them.

    No shadows, since a part's shadow would go with it. most: edits of one part, at most; scenes come in their order.
    Into `folder`: scenes.parquet (scene as JSON, shown_<part> pixels), edits.parquet (scene, part, changed pixels, row,
    column, row_after, column_after: the middle of the part's pixels as shares of the picture) and, for each network,
    <network>/<site>.npy (float16, scenes then edits) and <network>/logits.npy.
    Raises: ValueError for another kind of edit, another site, or no scenes.
    """
    if not scenes:
        raise ValueError("edit_scenes needs at least one scene")
    plain = [replace(scene, shadows=False) for scene in scenes]
    edited(plain[0], kind, PARTS[FIRST])  # refuses another kind before any work
    for classifier, site in product(networks.values(), sites):
        classifier.site(site)  # and another site
    folder, least = Path(folder), VISIBLE * (size / 224) ** 2
    # all is rendered before the networks see any of it: beside each other, their threads would wait
    with renderer(len(plain) * (1 + len(PARTS) - FIRST), size, supersampling, workers) as rendered:
        whole = list(tqdm(rendered(plain), "render scenes", len(plain), disable=not progress, leave=False))
        shown = np.stack([np.bincount(picture.mask.ravel(), minlength=len(PARTS))[FIRST:] for picture in whole])
        allowed = shown >= least
        if most is not None:
            allowed &= allowed.cumsum(0) <= most
        jobs, rows = np.argwhere(allowed), []
        pictures = [_saved(picture.image, scene) for picture, scene in zip(whole, plain, strict=True)]
        edits = rendered([edited(plain[s], kind, PARTS[FIRST + p]) for s, p in jobs])
        edits = tqdm(edits, f"render: {kind}", len(jobs), disable=not progress, leave=False)
        for (s, p), picture in zip(jobs, edits, strict=True):
            places = [_centre(each.mask == FIRST + p) for each in (whole[s], picture)]
            facts = {"scene": s, "part": PARTS[FIRST + p], "changed": (picture.image != whole[s].image).any(2).sum()}
            rows.append(facts | dict(zip(("row", "column", "row_after", "column_after"), chain(*places), strict=True)))
            pictures.append(_saved(picture.image, plain[s]))
    found: dict[Path, list[np.ndarray]] = {}
    for name, classifier in networks.items():
        bar = tqdm(pictures, f"see: {kind}, {name} network", disable=not progress, leave=False)
        for got in _seen(classifier, sites, bar):
            for key, values in got.items():
                found.setdefault(folder / name / f"{key}.npy", []).append(values)
    for path, parts in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.concatenate(parts))
    texts = pd.DataFrame({"scene": [scene.to_json() for scene in plain]})
    write_parquet(texts.join(pd.DataFrame(shown, columns=[f"shown_{p}" for p in PARTS[FIRST:]])), folder / SCENES)
    write_parquet(pd.DataFrame(rows), folder / EDITS)


def _seen(
    classifier: Classifier, sites: Sequence[str], images: Iterable[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Logits, and each site's acts, of pictures (size, size, 3), a batch at a time."""
    transform = test_transform(classifier.image_size, classifier.mean, classifier.std)
    where, images = next(classifier.model.parameters()).device, iter(images)
    mixed = classifier.cfg.mixed_precision and has_bfloat16(where)
    with captured(classifier, sites) as acts:

        @torch.inference_mode()
        def see(chunk: list[np.ndarray]) -> dict[str, np.ndarray]:
            batch = transform.normalise(torch.stack([transform(Image.fromarray(image)) for image in chunk]))
            with torch.autocast(where.type, torch.bfloat16, mixed):
                logits = classifier.model(batch.to(where))
            cells = {site: out.permute(0, 2, 3, 1).to("cpu", torch.float16).numpy() for site, out in acts.items()}
            return cells | {"logits": logits.float().cpu().numpy()}

        yield from side_by_side(see, iter(lambda: list(islice(images, BATCH)), []))


def _saved(image: np.ndarray, scene: Scene) -> np.ndarray:
    """What is left of a picture once it is saved as JPEG, as the data set's pictures are."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=scene.finish.quality)
    return np.asarray(Image.open(file))


def _centre(mask: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of a mask, as shares of the picture; nan where it is empty."""
    if not mask.any():
        return np.nan, np.nan
    return tuple((at.mean() + 0.5) / n for at, n in zip(np.nonzero(mask), mask.shape, strict=True))


@dataclass
class Responses:
    """What edits do to features. Axes: scenes s, edits e, features j.

    edits: scene, part, changed, … as `edit_scenes` writes; before: (s, j) image maxima; after: (e, j); centres: (s, j,
    2), centres_after: (e, j, 2) row and column of the activation's centre as shares of the picture, nan where silent.
    """

    edits: pd.DataFrame
    before: np.ndarray
    after: np.ndarray
    centres: np.ndarray
    centres_after: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SparseAutoencoder, folder: str | Path, network: str = "trained") -> Responses:
        """Of an autoencoder's features, from what `edit_scenes` wrote; FileNotFoundError where it has not."""
        for path in (Path(folder) / EDITS, Path(folder) / network / f"{sae.cfg.site}.npy"):
            if not path.is_file():
                raise FileNotFoundError(f"{path} is not there: run edit_scenes with this network and site first")
        edits, acts = pd.read_parquet(Path(folder) / EDITS), np.load(Path(folder) / network / f"{sae.cfg.site}.npy")
        n, rows, columns, _ = acts.shape
        maxima, centres = np.zeros((n, sae.d_sae), np.float32), np.zeros((n, sae.d_sae, 2), np.float32)
        steps = [(torch.arange(m) + 0.5) / m for m in (rows, columns)]
        for start in range(0, n, BATCH):
            block = torch.from_numpy(acts[start : start + BATCH]).float()
            dense = sae.encode(block.flatten(0, 2)).dense().view(len(block), rows, columns, -1)
            total = dense.sum((1, 2))
            maxima[start : start + BATCH] = dense.amax((1, 2)).numpy()
            sums = torch.einsum("nrcj,r->nj", dense, steps[0]), torch.einsum("nrcj,c->nj", dense, steps[1])
            centres[start : start + BATCH] = (torch.stack(sums, 2) / total[..., None]).numpy()
        s = n - len(edits)
        return cls(edits, maxima[:s], maxima[s:], centres[:s], centres[s:])

    def of_part(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """(indices of the edits of a part, their scenes); ValueError for what is no part."""
        if part not in PARTS[FIRST:]:
            raise ValueError(f"no part {part!r}: choose one of {', '.join(PARTS[FIRST:])}")
        own = np.flatnonzero(self.edits["part"] == part)
        return own, self.edits["scene"].to_numpy()[own]

    def response(self, features: np.ndarray | None = None, counts: np.ndarray | None = None) -> np.ndarray:
        """(12, j) R of these features (or all), or (draws, 12, j) for counts (draws, s); 0 where all is silent.

        nan for a part that no scene shows.
        """
        features = np.arange(self.before.shape[1]) if features is None else features
        weights = np.ones((1, len(self.before))) if counts is None else np.asarray(counts, float)
        result = np.full((len(weights), len(PARTS) - FIRST, len(features)), np.nan)
        for p, part in enumerate(PARTS[FIRST:]):
            own, scenes = self.of_part(part)
            if len(own):
                before = self.before[np.ix_(scenes, features)]
                lost = weights[:, scenes] @ (before - self.after[np.ix_(own, features)])
                whole = weights[:, scenes] @ before
                result[:, p] = np.divide(lost, whole, out=np.zeros_like(whole), where=whole > 0)
        return result[0] if counts is None else result

    def off_rate(self, part: str, feature_id: int) -> float:
        """Share of the scenes in which the feature is active that leave it silent without the part; nan for none."""
        own, scenes = self.of_part(part)
        active = self.before[scenes, feature_id] > 0
        return float((self.after[own, feature_id] == 0)[active].mean()) if active.any() else np.nan

    def matches(self) -> np.ndarray:
        """(12, 12) whether part q is a match for part p: its edits change at most 2 times as many pixels (medians)."""
        changed = self.edits.groupby("part")["changed"].median().reindex(PARTS[FIRST:]).to_numpy()
        with np.errstate(invalid="ignore"):
            return (changed[None] <= SIZE_RATIO * changed[:, None]) & ~np.eye(len(changed), dtype=bool)

    def selectivity(self, response: np.ndarray) -> np.ndarray:
        """S of each part and feature, in the shape of `response` (…, 12, j)."""
        result = np.full_like(response, np.nan)
        for p, others in enumerate(self.matches()):
            rivals = np.where(others[:, None], np.nan_to_num(response, nan=-np.inf), -np.inf).max(-2)
            result[..., p, :] = response[..., p, :] - np.maximum(rivals, 0)  # no rival: none may be needed more than 0
        return result

    def moves(self, part: str, feature_id: int) -> pd.DataFrame:
        """One row an edit of the part in which both are seen before and after, all as shares of the picture.

        scene; part_down, part_across: shift of the middle of the part's pixels; feature_down, feature_across: shift of
        the feature's centre.
        """
        own, scenes = self.of_part(part)
        edits = self.edits.iloc[own]
        there = edits[["row_after", "column_after"]].to_numpy() - edits[["row", "column"]].to_numpy()
        here = self.centres_after[own, feature_id] - self.centres[scenes, feature_id]
        names = ["part_down", "part_across", "feature_down", "feature_across"]
        return pd.DataFrame(np.hstack([there, here]), columns=names).assign(scene=scenes).dropna()


def followed(moves: pd.DataFrame, way: str, beside: pd.DataFrame | None = None) -> dict[str, float | None]:
    """The share of a part's shift ("down" or "across") that a feature's centre makes too: 1 follows, 0 stays.

    moves: rows of `Responses.moves`; beside: other ones, whose share is taken off. Least squares through the origin;
    scenes are the units of the interval. Raises: ValueError for another way.
    """
    if way not in ("down", "across"):
        raise ValueError(f'way must be "down" or "across", got {way!r}')
    scenes = np.unique(np.concatenate([each["scene"] for each in (moves, beside) if each is not None]))
    counts = np.concatenate([np.ones((1, len(scenes))), bootstrap_counts(len(scenes), N_DRAWS)])
    shares = np.zeros(len(counts))
    for each, sign in ((moves, 1), (beside, -1)):
        if each is not None:
            part, feature, at = each[f"part_{way}"], each[f"feature_{way}"], np.searchsorted(scenes, each["scene"])
            both, whole = (np.bincount(at, values, len(scenes)) for values in (part * feature, part**2))
            shares += sign * (counts @ both) / np.maximum(counts @ whole, 1e-12)
    low, high = interval(shares[1:])
    return {"value": float(shares[0]), "low": low, "high": high, "n": len(scenes)}
