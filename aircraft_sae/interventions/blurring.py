"""Blurring in input space: the patch under a feature's peak, and windows of equal area and equal change beside it.

For a picture x and its blurred copy g, an edit takes g inside one square window and x outside it. Its controls on the
same picture, two of these drawn at random, are windows whose squared change |x - g|^2 is within a fifth of the
target's: on the aircraft, anywhere, on the aircraft where the feature is lowest; and the peak of another feature of
like density, matched or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, spearmanr
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from aircraft_sae.activations import captured
from aircraft_sae.devices import has_bfloat16, side_by_side
from aircraft_sae.features import FeatureIndex, check_features
from aircraft_sae.interventions.suppression import PooledHead, effects, random_directions
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import Classifier
from aircraft_sae.networks.inference import BATCH
from aircraft_sae.pictures import AircraftData, test_transform
from aircraft_sae.sae import SparseAutoencoder

STEP = 8
"""Pixels between windows that are tried as controls."""
TOLERANCE = 0.2
"""Relative difference in squared change at which a control is matched."""
ON_AIRCRAFT = 0.25
N_CONTROLS = 2
"""Controls of one picture, at most, drawn from those that it has: each kind gets its share of pictures."""
N_REDRAWN = 500


@dataclass(frozen=True)
class Window:
    """A square of a picture, in pixels: rows top to top + size, columns left to left + size."""

    top: int
    left: int
    size: int

    @classmethod
    def around(cls, row: int, column: int, grid: tuple[int, int], image_size: int, size: int) -> Window:
        """Centred on a cell, moved inwards where it would leave the picture."""
        centres = [(at + 0.5) * image_size / n for at, n in zip((row, column), grid, strict=True)]
        top, left = (int(np.clip(round(c - size / 2), 0, image_size - size)) for c in centres)
        return cls(top, left, size)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.size), slice(self.left, self.left + self.size)

    def shared(self, other: Window) -> float:
        """Share of this window's area that the other covers."""
        down, across = (
            max(0, min(a, b) + self.size - max(a, b)) for a, b in ((self.top, other.top), (self.left, other.left))
        )
        return down * across / self.size**2


def blur(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """The picture (3, height, width) under a Gaussian of `sigma` pixels, cut off at 3 sigma; edges are mirrored."""
    size = 2 * min(round(3 * sigma), min(picture.shape[1:]) - 1) + 1
    # one axis at a time: torchvision convolves with the whole square
    return gaussian_blur(gaussian_blur(picture, [size, 1], [sigma, sigma]), [1, size], [sigma, sigma])


def enlarged(small: np.ndarray, size: int) -> np.ndarray:
    """(size, size) from (rows, columns): each pixel takes the value of the cell that holds its centre."""
    down, across = ((np.arange(size) + 0.5) * n // size for n in small.shape)
    return small[np.ix_(down.astype(int), across.astype(int))]


def control_windows(
    target: Window,
    change: np.ndarray,
    aircraft: np.ndarray | None,
    feature_map: np.ndarray,
    other: Window | None,
    rng: np.random.Generator,
) -> dict[str, tuple[Window, bool]]:
    """{control: (window, whether its squared change is matched)} of one picture; those that cannot be are left out.

    change: (size, size) squared change of each pixel; aircraft: bool of the same shape, None where there are no masks
    ("aircraft" is then left out, and "lowest" is of all windows); feature_map: (rows, columns) activations.
    """
    size = target.size
    starts = np.arange(0, len(change) - size + 1, STEP)

    def totals(of: np.ndarray) -> np.ndarray:
        sums = np.pad(of.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        rows = sums[starts + size] - sums[starts]
        return rows[:, starts + size] - rows[:, starts]

    energy = totals(change)
    own = change[target.slices].sum()
    shared = [np.clip(size - np.abs(starts - at), 0, None) for at in (target.top, target.left)]
    free = np.outer(*shared) < 0.25 * size**2
    on = np.ones_like(free) if aircraft is None else totals(aircraft.astype(float)) >= ON_AIRCRAFT * size**2
    level = totals(enlarged(feature_map, len(change)))
    near = np.abs(energy / max(own, 1e-12) - 1) <= TOLERANCE
    found = {}
    pools = {"aircraft": free & on, "anywhere": free, "lowest": free & on}
    if aircraft is None:
        del pools["aircraft"]
    for name, allowed in pools.items():
        if not allowed.any():
            continue
        matched = allowed & near
        pool = matched if matched.any() else allowed & _closest(energy, own, allowed)
        if name == "lowest":
            pool = pool & (level <= level[pool].min() + 1e-9)
        row, column = rng.choice(np.argwhere(pool))
        found[name] = Window(int(starts[row]), int(starts[column]), size), bool(matched.any())
    if other is not None and target.shared(other) < 0.25:
        found["other"] = other, bool(abs(change[other.slices].sum() / max(own, 1e-12) - 1) <= TOLERANCE)
    return found


def _closest(energy: np.ndarray, own: float, allowed: np.ndarray) -> np.ndarray:
    distance = np.where(allowed, np.abs(np.log(np.maximum(energy, 1e-12) / max(own, 1e-12))), np.inf)
    return distance <= distance.min() + 1e-9


@torch.no_grad()
def blur_effects(
    classifier: Classifier,
    sae: SparseAutoencoder,
    data: AircraftData,
    index: FeatureIndex,
    picks: pd.DataFrame,
    partners: np.ndarray,
    covariance: torch.Tensor,
    sigma: float = 8.0,
    window: int = 64,
    seed: int = 0,
    mixed_precision: bool = True,
    progress: bool = True,
) -> pd.DataFrame:
    """Blur under each picked peak and under its controls: one row for each pick and window.

    picks: feature_id, image_row, row, column (the peak's cell), as `FeatureIndex.patches` gives; partners: (d_sae,) the
    feature of like density for control "other", -1 for none; covariance: (d_in, d_in) of the site's cells.
    Columns: where ("target" or a control), matched, change (mean squared change of a pixel in the window), before (the
    feature's largest activation), feature (its change), pooled (change of its mean over cells), then logit, margin,
    confidence, specificity as in `effects`; restored_… : the same with the feature put back into the blurred acts, and
    random_… : with as much of a random direction of equal length put back.
    Raises: ValueError for an autoencoder of another site than stage4, whose restoring has a closed form; for picks that
    are not there, and a window larger than the picture.
    """
    if sae.cfg.site != "stage4":
        raise ValueError(f"blur_effects restores features at stage4, this autoencoder is of {sae.cfg.site}")
    if not 1 <= window <= classifier.image_size:
        raise ValueError(f"window must be 1 to {classifier.image_size} pixels, the picture's size, got {window}")
    if lacking := {"feature_id", "image_row", "row", "column"} - set(picks):
        raise ValueError(f"picks lack {', '.join(sorted(lacking))}: give rows of FeatureIndex.patches")
    if not len(picks):
        raise ValueError("blur_effects needs at least one pick, got none")
    check_features(picks["feature_id"], sae.d_sae)
    head, where = PooledHead.of(classifier), next(classifier.model.parameters()).device
    mixed = mixed_precision and has_bfloat16(where)
    random = random_directions(sae.W_dec, covariance, seed)
    classes = data.classes(classifier.cfg.level)
    with captured(classifier, ["stage4"]) as acts:

        @torch.no_grad()
        def of_picture(picked: tuple[int, pd.DataFrame]) -> pd.DataFrame:
            row, group = picked
            picture, jobs = _jobs(classifier, data, index, int(row), group, partners, sigma, window, seed)
            label = torch.tensor([classes.index(index.images[classifier.cfg.level].iloc[int(row)])])
            seen = []
            for batch in _batches(picture, jobs):
                with torch.autocast(where.type, torch.bfloat16, mixed):
                    classifier.model(batch.to(where))
                cells = acts["stage4"].float().cpu().permute(0, 2, 3, 1)
                dense = sae.encode(cells.flatten(0, 2)).dense().view(len(cells), -1, sae.d_sae)
                seen.append((cells.mean((1, 2)), dense))
            pooled, dense = map(torch.cat, zip(*seen, strict=True))
            clean, blurred = (pooled[:1], dense[:1]), (pooled[1:], dense[1:])
            return _rows(head, sae.W_dec, random, label, jobs, clean, blurred).assign(image_row=int(row))

        groups = picks.groupby("image_row", sort=True)
        bar = dict(desc=f"blur {sigma:g} px", total=len(groups), disable=not progress, leave=False)
        return pd.concat(list(tqdm(side_by_side(of_picture, groups), **bar)), ignore_index=True)


def _jobs(classifier, data, index, row, group, partners, sigma, window, seed):
    """((picture, its blurred copy), one dict for each window to blur)."""
    image = index.images["image"].iloc[row]
    size = classifier.image_size
    transform = test_transform(size, classifier.mean, classifier.std)
    x = transform.normalise(transform(data.picture(image))[None])[0]
    g = blur(x, sigma)
    std = torch.tensor(classifier.std)[:, None, None]
    change = ((x - g) * std).square().mean(0).double().numpy()
    aircraft = None
    if data.masks:
        mask = data.mask(image) > 0
        aircraft = enlarged(mask, size)
    jobs = []
    for pick in group.itertuples():
        target = Window.around(pick.row, pick.column, index.grid, size, window)
        own_map, other = index.maps(pick.feature_id, np.array([row]))[0], None
        if (partner := partners[pick.feature_id]) >= 0:
            its_map = index.maps(partner, np.array([row]))[0]
            if its_map.max() > 0:
                at = np.unravel_index(its_map.argmax(), its_map.shape)
                other = Window.around(*at, index.grid, size, window)
        rng = np.random.default_rng((seed, int(pick.feature_id), row))
        controls = control_windows(target, change, aircraft, own_map, other, rng)
        kept = sorted(rng.permutation(len(controls))[:N_CONTROLS])
        windows = {"target": (target, True)} | {name: controls[name] for name in np.array(list(controls))[kept]}
        for name, (place, matched) in windows.items():
            facts = {"feature_id": int(pick.feature_id), "where": name, "matched": matched}
            jobs.append(facts | {"window": place, "change": change[place.slices].mean()})
    return (x, g), jobs


def _batches(picture: tuple[torch.Tensor, torch.Tensor], jobs: list[dict]) -> Iterator[torch.Tensor]:
    """The picture as it is, then with each window blurred, at most BATCH at a time."""
    x, g = picture
    for start in range(0, len(jobs) + 1, BATCH):
        batch = x.repeat(min(BATCH, len(jobs) + 1 - start), 1, 1, 1)
        for edited, job in zip(batch[1 if start == 0 else 0 :], jobs[max(0, start - 1) :], strict=False):
            edited[:, *job["window"].slices] = g[:, *job["window"].slices]
        yield batch.contiguous(memory_format=torch.channels_last)


def _rows(head, W_dec, random, label, jobs, clean, blurred) -> pd.DataFrame:
    features = torch.tensor([job["feature_id"] for job in jobs])
    labels, before = label.expand(len(jobs)), head.logits(clean[0].repeat(len(jobs), 1))
    own = blurred[1].gather(2, features.view(-1, 1, 1).expand(-1, blurred[1].shape[1], 1))[..., 0]
    whole = clean[1][0].t()[features]  # (jobs, cells)
    lost = (whole - own).mean(1)
    found = {name: [job[name] for job in jobs] for name in jobs[0] if name != "window"}
    found |= {"before": whole.amax(1), "feature": own.amax(1) - whole.amax(1), "pooled": -lost}
    edits = {"": 0 * W_dec[features], "restored_": W_dec[features], "random_": random[features]}
    for prefix, direction in edits.items():
        after = head.logits(blurred[0] + lost[:, None] * direction)
        found |= {prefix + name: effect for name, effect in effects(before, after, labels).items()}
    return pd.DataFrame({k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in found.items()})


def beyond_controls(blur: pd.DataFrame, kinds: Sequence[str]) -> dict[str, float | None]:
    """Mean change of the logit under the peak, less that of matched controls of these kinds on the same picture.

    Over pairs of a feature and a picture; pictures are the units of the interval.
    """
    pair = ["feature_id", "image_row"]
    target = blur[blur["where"] == "target"].set_index(pair)["logit"]
    controls = blur[blur["where"].isin(kinds) & blur["matched"]].groupby(pair)["logit"].mean()
    pairs = (target - controls).dropna().groupby("image_row").agg(["sum", "count"])
    return _over_pictures(pairs["sum"], pairs["count"])


def feature_lost(blur: pd.DataFrame, where: str) -> dict[str, float | None]:
    """Share of the features' maxima that blurring takes: under the peak ("target"), or in matched controls of a kind.

    Ratio of sums over pairs; pictures are the units of the interval.
    """
    own = blur[(blur["where"] == where) & blur["matched"]].groupby("image_row")[["feature", "before"]].sum()
    return _over_pictures(-own["feature"], own["before"])


def _over_pictures(numerator: pd.Series, denominator: pd.Series) -> dict[str, float | None]:
    """`with_interval`, and nan for no picture."""
    if not len(numerator) or not denominator.sum():
        return {"value": np.nan, "low": None, "high": None, "n": 0}
    return with_interval(numerator, denominator)


def mediation(blur: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """What share of the logit's loss comes back with the feature, and with as much of a random direction.

    Over targets whose blurring lowers the logit; pictures are the units.
    """
    harmed = blur[(blur["where"] == "target") & (blur["logit"] < 0)]
    found = {}
    for name, prefix in (("the feature", "restored_"), ("a random direction", "random_")):
        back = harmed.assign(back=harmed["logit"] - harmed[f"{prefix}logit"])
        sums = back.groupby("image_row")[["back", "logit"]].sum()
        found[name] = _over_pictures(sums["back"], sums["logit"])
    return found


def agreement(blur: pd.DataFrame, suppressed: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """Do blurring under a feature's peak and suppressing it change the logit alike? One row a feature.

    suppressed: (n, d_sae) change of the logit in the pictures `rows` (n,), rising. spearman: rank correlation over the
    feature's n pictures, nan below 4 or without spread, with its 95 % interval by redrawing these; same_sign: share of
    them of like sign; suppressed, blurred: means.
    """
    table, rng = [], np.random.default_rng(0)
    for feature_id, each in blur[blur["where"] == "target"].groupby("feature_id"):
        mine, other = suppressed[np.searchsorted(rows, each["image_row"]), feature_id], each["logit"].to_numpy()
        enough, low, high = len(each) >= 4 and np.ptp(mine) > 0 and np.ptp(other) > 0, np.nan, np.nan
        if enough:
            drawn = rng.integers(len(each), size=(N_REDRAWN, len(each)))
            ranks = [rankdata(values[drawn], axis=1) for values in (mine, other)]
            centred = [each_ - each_.mean(1, keepdims=True) for each_ in ranks]
            with np.errstate(invalid="ignore"):
                norms = np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
                low, high = np.nanquantile((centred[0] * centred[1]).sum(1) / norms, [0.025, 0.975])
        table.append({
            "feature_id": feature_id, "spearman": spearmanr(mine, other).statistic if enough else np.nan, "low": low,
            "high": high, "same_sign": (np.sign(mine) == np.sign(other)).mean(), "suppressed": mine.mean(),
            "blurred": other.mean(), "n": len(each),
        })  # fmt: skip
    return pd.DataFrame(table)
