"""Scene edits: one part of the airframe taken away, moved or recoloured, every other pixel as it was.

R_jp, the response of feature j to removing part p, is the share of its image maximum that goes:

    R_jp = E[max over cells f_j(x) - max over cells f_j(x without p)] / E[max over cells f_j(x)]

over scenes that show at least 30 pixels of p. S_jp = R_jp - max over q != p of R_jq.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from aircraft_sae.activations import captured
from aircraft_sae.classifier import Classifier
from aircraft_sae.data import test_transform
from aircraft_sae.hangar.dataset import render_scenes
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.sae import SparseAutoencoder

FIRST = 2
"""PARTS before it are background."""
BATCH = 32
VISIBLE = 30
"""Least pixels of a part that a scene must show at 224 pixels' width."""
MOVE = (0.0, 0.0, 0.12)
RED, BLUE = (0.85, 0.1, 0.1), (0.1, 0.2, 0.85)


@dataclass
class Responses:
    """What edits of some scenes do. Axes: scenes s, parts p (those of PARTS from the third), features j, classes c.

    before: (s, j) image maxima; after: (s, p, j), nan where the scene does not show the part; shown, changed: (s, p)
    pixels of the part, pixels that the edit changed; logits: (s, c), logits_after: (s, p, c); centres, centres_after:
    (s, j, 2) and (s, p, j, 2) row and column of the activation's centre in cells, nan where it is silent; part_centres,
    part_centres_after: (s, p, 2) those of the part's pixels, as shares of the picture.
    """

    kind: str
    before: np.ndarray
    after: np.ndarray
    shown: np.ndarray
    changed: np.ndarray
    logits: np.ndarray
    logits_after: np.ndarray
    centres: np.ndarray
    centres_after: np.ndarray
    part_centres: np.ndarray
    part_centres_after: np.ndarray

    def response(self, counts: np.ndarray | None = None) -> np.ndarray:
        """(parts, features) R, or (draws, parts, features) for counts (draws, scenes); nan where no scene shows it."""
        shown = ~np.isnan(self.after[..., 0])
        weights = np.ones((1, len(shown))) if counts is None else np.asarray(counts, float)
        result = np.full((len(weights), self.after.shape[1], self.after.shape[2]), np.nan)
        for p in range(self.after.shape[1]):
            rows = shown[:, p]
            if rows.any():
                lost = weights[:, rows] @ (self.before[rows] - self.after[rows, p])
                whole = weights[:, rows] @ self.before[rows]
                result[:, p] = np.divide(lost, whole, out=np.full_like(whole, np.nan), where=whole > 0)
        return result[0] if counts is None else result


def edited(scene: Scene, kind: str, part: str) -> Scene:
    """The scene with one edit; "nothing" leaves it as it is. ValueError for another kind."""
    if kind == "nothing":
        return scene
    if kind == "remove":
        return scene.remove(part)
    if kind == "move":
        return scene.move(part, MOVE)
    if kind == "recolour":
        return scene.recolour(part, RED if scene.seed % 2 else BLUE)
    raise ValueError(f'kind must be "remove", "move", "recolour" or "nothing", got {kind!r}')


@torch.no_grad()
def edit_responses(
    classifier: Classifier,
    sae: SparseAutoencoder,
    scenes: Sequence[Scene],
    kind: str = "remove",
    size: int = 224,
    supersampling: int = 2,
    workers: int | None = None,
    progress: bool = True,
) -> Responses:
    """Render each scene without shadows, then with each part that it shows edited, and encode what the site gives.

    Raises: ValueError for another kind of edit, or no scenes.
    """
    if not scenes:
        raise ValueError("edit_responses needs at least one scene")
    plain = [replace(scene, shadows=False) for scene in scenes]
    edited(plain[0], kind, PARTS[2])  # refuses another kind before any work
    render = dict(size=size, supersampling=supersampling, workers=workers)
    whole = list(tqdm(render_scenes(plain, **render), "render scenes", len(plain), disable=not progress, leave=False))
    parts = range(FIRST, len(PARTS))
    shown = np.stack([np.bincount(picture.mask.ravel(), minlength=len(PARTS))[FIRST:] for picture in whole])
    jobs = [tuple(job) for job in np.argwhere(shown >= VISIBLE * (size / 224) ** 2)]
    shape, d_sae = shown.shape, sae.d_sae
    seen = _encoded(classifier, sae, (picture.image for picture in whole))
    before, centres, logits = (np.stack(values) for values in zip(*seen, strict=True))
    after, centres_after = np.full((*shape, d_sae), np.nan, np.float32), np.full((*shape, d_sae, 2), np.nan, np.float32)
    logits_after = np.full((*shape, logits.shape[1]), np.nan, np.float32)
    changed, part_centres = np.full(shape, np.nan), np.full((2, *shape, 2), np.nan)
    part_centres[0] = [[_centre(picture.mask == p) for p in parts] for picture in whole]

    def pictures():
        edits = render_scenes([edited(plain[s], kind, PARTS[FIRST + p]) for s, p in jobs], **render)
        for (s, p), picture in zip(jobs, edits, strict=True):
            changed[s, p] = (picture.image != whole[s].image).any(2).sum()
            part_centres[1, s, p] = _centre(picture.mask == FIRST + p)
            yield picture.image

    results = tqdm(_encoded(classifier, sae, pictures()), f"{kind} parts", len(jobs), disable=not progress, leave=False)
    for job, (maxima, middle, new_logits) in zip(jobs, results, strict=True):
        after[job], centres_after[job], logits_after[job] = maxima, middle, new_logits
    return Responses(kind, before, after, shown, changed, logits, logits_after, centres, centres_after, *part_centres)


def _encoded(classifier: Classifier, sae: SparseAutoencoder, images: Iterable[np.ndarray]) -> Iterator[tuple]:
    """(maxima (d_sae,), centres (d_sae, 2), logits) of each picture (size, size, 3)."""
    transform = test_transform(classifier.image_size, classifier.mean, classifier.std)
    where, images = next(classifier.model.parameters()).device, iter(images)
    while chunk := [transform(Image.fromarray(image)) for image in islice(images, BATCH)]:
        with captured(classifier, [sae.cfg.site]) as acts:
            logits = classifier.model(transform.normalise(torch.stack(chunk)).to(where)).float().cpu()
        cells = acts[sae.cfg.site].cpu().permute(0, 2, 3, 1)
        n, rows, columns, _ = cells.shape
        dense = sae.encode(cells.flatten(0, 2)).dense().view(n, rows, columns, -1)
        total = dense.sum((1, 2))
        centres = [
            torch.einsum("nrcj,r->nj", dense, torch.arange(rows).float()) / total,
            torch.einsum("nrcj,c->nj", dense, torch.arange(columns).float()) / total,
        ]
        yield from zip(dense.amax((1, 2)).numpy(), torch.stack(centres, 2).numpy(), logits.numpy(), strict=True)


def _centre(mask: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of a mask, as shares of the picture; nan where it is empty."""
    if not mask.any():
        return np.nan, np.nan
    return tuple((at.mean() + 0.5) / n for at, n in zip(np.nonzero(mask), mask.shape, strict=True))
