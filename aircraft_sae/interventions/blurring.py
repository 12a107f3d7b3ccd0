"""Blurring in input space: the patch under a feature's peak, and matched windows elsewhere in the picture.

An edit shows the blurred picture g inside a square window, and the picture x outside it. A control window is *matched*
if its squared change |x - g|^2 is within a fifth of the target's. Kinds of control: on the foreground (wherever a
region is shown), anywhere, on the foreground where the feature is lowest, and under the peak of another feature of like
density. Two kinds, drawn at random, are blurred for each feature and picture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata, spearmanr
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from aircraft_sae.activations import see_features
from aircraft_sae.devices import run_parallel
from aircraft_sae.features import FeatureIndex, check_features
from aircraft_sae.interventions.suppression import Trial, effects, logits_from, matched_features
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import BATCH
from aircraft_sae.store import write_parquet

STEP = 8  # pixels between candidate windows
LIKE_CHANGE = 0.2  # largest relative difference in squared change of a matched control
MOST_SHARED = 0.25  # share of the target that a control may cover
PAIR = ["feature_id", "image_row"]


@dataclass(frozen=True)
class Window:
    """A square of a picture, in pixels: its top row, its left column, and its side."""

    top: int
    left: int
    size: int

    @classmethod
    def around(cls, row: int, column: int, grid: tuple[int, int], image_size: int, size: int) -> "Window":
        """Centre a window on a cell, moved inwards if it would leave the picture."""
        centres = [(at + 0.5) * image_size / n for at, n in zip((row, column), grid, strict=True)]
        top, left = (int(np.clip(round(c - size / 2), 0, image_size - size)) for c in centres)
        return cls(top, left, size)

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.size), slice(self.left, self.left + self.size)


def blur(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur a picture (3, height, width) by a Gaussian of `sigma` pixels, cut off at 3 sigma, with mirrored edges."""
    size = 2 * min(round(3 * sigma), min(picture.shape[1:]) - 1) + 1
    # one axis at a time: torchvision convolves with the whole square
    return gaussian_blur(gaussian_blur(picture, [size, 1], [sigma, sigma]), [1, size], [sigma, sigma])


def patched(x: torch.Tensor, other: torch.Tensor, window: Window) -> torch.Tensor:
    """x (3, height, width), with `other` inside the window."""
    made = x.clone()
    made[:, *window.slices] = other[:, *window.slices]
    return made


def control_windows(
    target: Window, change: np.ndarray, foreground: np.ndarray | None, feature_map, other: Window | None, rng
) -> dict[str, tuple[Window, bool]]:
    """{control: (window, whether it is matched)} of one picture; a kind without a window is left out.

    change: (size, size) squared change of each pixel; foreground: bool, of any size, None where no regions are known
    ("foreground" is then left out, and "lowest" takes any window); feature_map: (rows, columns) activations.
    """
    size, own, covered = target.size, max(change[target.slices].sum(), 1e-12), np.zeros_like(change)
    covered[target.slices] = 1

    def totals(of: np.ndarray) -> np.ndarray:
        """Sums over every candidate window, of a picture or of a map enlarged to its size."""
        pixels = interpolate(torch.tensor(of)[None, None].double(), len(change), mode="nearest-exact")
        return avg_pool2d(pixels, size, STEP, divisor_override=1)[0, 0].numpy()

    ratio, level = np.maximum(totals(change), 1e-12) / own, totals(feature_map)
    free = totals(covered) < MOST_SHARED * size**2
    shown = free if foreground is None else free & (totals(foreground) >= 0.25 * size**2)
    pools = {} if foreground is None else {"foreground": shown}
    distance, found = np.where(np.abs(ratio - 1) <= LIKE_CHANGE, 0, np.abs(np.log(ratio))), {}
    for name, allowed in (pools | {"anywhere": free, "lowest": shown}).items():
        if not allowed.any():
            continue
        nearest = distance[allowed].min()  # 0 if any is matched
        pool = allowed & (distance <= nearest + 1e-9)
        if name == "lowest":
            pool &= level <= level[pool].min() + 1e-9
        row, column = rng.choice(np.argwhere(pool))
        found[name] = Window(STEP * int(row), STEP * int(column), size), bool(nearest == 0)
    if other is not None and covered[other.slices].sum() < MOST_SHARED * size**2:
        found["other"] = other, bool(abs(change[other.slices].sum() / own - 1) <= LIKE_CHANGE)
    return found


def choose_picks(index: FeatureIndex, features: Sequence[int], rows: np.ndarray, n: int) -> pd.DataFrame:
    """Up to n patches of each feature in `rows`, with feature_id and how: half the "top" ones, half "random" others."""
    picks = []
    for j in features:
        peaks = index.patches(int(j), "top", len(rows), rows)
        top, others = peaks.head(n // 2), peaks.iloc[n // 2 :]
        others = others.sample(min(len(others), n - len(top)), random_state=int(j))
        picks.append(pd.concat([top.assign(how="top"), others.assign(how="random")]).assign(feature_id=int(j)))
    return pd.concat(picks, ignore_index=True)


def beyond_controls(blur: pd.DataFrame, kinds: Sequence[str]) -> dict[str, float | None]:
    """Mean logit change from blurring the peak, minus that from the picture's matched controls of these kinds."""
    target = blur[blur["where"] == "target"].set_index(PAIR)["logit"]
    controls = blur[blur["where"].isin(kinds) & blur["matched"]].groupby(PAIR)["logit"].mean()
    pairs = (target - controls).dropna().reset_index()
    return _over_pictures(pairs.assign(pairs=1), "logit", "pairs")


def feature_lost(blur: pd.DataFrame, where: str) -> dict[str, float | None]:
    """Share of the features' maxima that blurring removes, under the peak ("target") or in matched controls."""
    own = blur[(blur["where"] == where) & blur["matched"]]
    return _over_pictures(own.assign(lost=-own["feature"]), "lost", "before")


def mediation(blur: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Share of the logit lost to blurring that returns with the feature, or an equally long random direction."""
    harmed = blur[(blur["where"] == "target") & (blur["logit"] < 0)]
    after = {"the feature": harmed["restored_logit"], "a random direction": harmed["random_logit"]}
    return {k: _over_pictures(harmed.assign(back=harmed["logit"] - v), "back", "logit") for k, v in after.items()}


def _over_pictures(rows: pd.DataFrame, numerator: str, denominator: str) -> dict[str, float | None]:
    """Ratio of sums over pairs of feature and picture, with an interval over pictures; nan if there are none."""
    sums = rows.groupby("image_row")[[numerator, denominator]].sum()
    if not sums[denominator].sum():
        return {"value": np.nan, "low": None, "high": None, "n": 0}
    return with_interval(sums[numerator], sums[denominator])


def agreement(blur: pd.DataFrame, suppressed: pd.DataFrame) -> pd.DataFrame:
    """Does blurring under a feature's peak change the logit as suppressing it does? One row per feature_id.

    suppressed: feature_id, image_row, suppressed (change of the logit).
    spearman, low, high: rank correlation over its pictures, with bootstrap interval; nan if fewer than 4 or all equal
    same_sign: share of pictures in which both have the same sign
    """
    both = blur[blur["where"] == "target"].merge(suppressed, on=PAIR, validate="1:1")
    table, rng = [], np.random.default_rng(0)
    for feature_id, each in both.groupby("feature_id"):
        mine, other = each["suppressed"].to_numpy(), each["logit"].to_numpy()
        spearman = low = high = np.nan
        if len(each) >= 4 and np.ptp(mine) > 0 and np.ptp(other) > 0:
            spearman, drawn = spearmanr(mine, other).statistic, rng.integers(len(each), size=(500, len(each)))
            ranks = [rankdata(values[drawn], axis=1) - (len(each) + 1) / 2 for values in (mine, other)]
            with np.errstate(invalid="ignore"):
                norms = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
                low, high = np.nanquantile((ranks[0] * ranks[1]).sum(1) / norms, [0.025, 0.975])
        table.append((feature_id, spearman, low, high, (np.sign(mine) == np.sign(other)).mean()))
    return pd.DataFrame(table, columns=["feature_id", "spearman", "low", "high", "same_sign"])


def blur_peaks(
    folder: Path, *, trial: Trial, index: FeatureIndex, picks: pd.DataFrame, sigma: float, window: int
) -> None:
    """Blur under each picked peak and at its controls; separately, suppress the feature.

    picks: from `choose_picks`; sigma, window: in pixels of the network's input.
    blur.parquet: feature_id, image_row, how, where ("target" or a kind of control), matched
        before, feature: the feature's maximum, and its change
        logit, margin, confidence, specificity: as in `effects`
        restored_logit, random_logit: like logit, with the feature or its random direction put back after blurring
    suppressed.parquet: feature_id, image_row, suppressed (change of the true class's logit)
    Raises: ValueError for an unknown feature, and for a window larger than the picture.
    """
    network, sae, pictures, site = trial.network, trial.sae, trial.pictures, trial.acts.site
    if not 1 <= window <= network.size:
        raise ValueError(f"window must be 1 to {network.size} pixels, the picture's size, got {window}")
    check_features(picks["feature_id"], sae.d_sae)
    partners = matched_features(index.table)

    @torch.no_grad()
    def of_picture(picked: tuple[int, pd.DataFrame]) -> pd.DataFrame:
        row, group = picked
        facts = index.images.iloc[row]
        x = network.as_input(pictures.picture(facts["image"]))
        soft = blur(x, sigma)
        change = ((x - soft) * torch.tensor(network.std)[:, None, None]).square().mean(0).double().numpy()
        foreground = pictures.mask(facts["image"]) > 0 if pictures.region_names else None
        jobs = pd.DataFrame(_jobs(index, int(row), group, partners, change, foreground, window))
        x = torch.stack([x, *(patched(x, soft, each) for each in jobs.pop("window"))])
        features = torch.tensor(jobs["feature_id"].to_numpy())
        seen = [see_features(network, sae, batch, mixed=True) for batch in x.split(BATCH)]
        acts = torch.cat([each.acts[site] for each, _ in seen])  # (1 + jobs, rows, columns, d_in)
        maps = torch.cat([codes[..., features] for _, codes in seen])  # (1 + jobs, rows, columns, jobs)
        own, whole = maps[1:].diagonal(dim1=0, dim2=3).movedim(2, 0), maps[0].movedim(2, 0)  # (jobs, rows, columns)
        lost, changed, x = whole - own, acts[1:], x[1:]
        before = logits_from(network, site, acts[:1].expand_as(changed), x)
        label = network.classes.index(facts[network.level]) if network.level else int(before[0].argmax())
        labels = torch.full((len(jobs),), label)
        peak = whole.amax((1, 2))
        found = {"before": peak, "feature": own.amax((1, 2)) - peak}
        found |= effects(before, logits_from(network, site, changed, x), labels)
        for name, directions in {"restored_logit": sae.W_dec.detach(), "random_logit": trial.random}.items():
            back = lost[..., None] * directions[features][:, None, None]
            found[name] = effects(before, logits_from(network, site, changed + back, x), labels)["logit"]
        return jobs.assign(**{name: values.numpy() for name, values in found.items()}, image_row=int(row))

    groups = picks.groupby("image_row", sort=True)
    made = tqdm(run_parallel(of_picture, groups), f"blur {sigma:g} px", len(groups), leave=False)
    table = pd.concat(list(made), ignore_index=True).merge(picks[[*PAIR, "how"]], on=PAIR, validate="m:1")
    write_parquet(table, folder / "blur.parquet")
    found = []
    for feature_id, own in picks.groupby("feature_id"):
        some = trial[np.searchsorted(index.rows("test"), own["image_row"])]
        found.append(own[PAIR].assign(suppressed=some.suppress([feature_id])["logit"][:, 0]))
    write_parquet(pd.concat(found, ignore_index=True), folder / "suppressed.parquet")


def _jobs(index, row, group, partners, change, foreground, size) -> Iterator[dict[str, object]]:
    """What to blur in one picture."""
    for pick in group.itertuples():
        target, other = Window.around(pick.row, pick.column, index.grid, len(change), size), None
        if (partner := partners[pick.feature_id]) >= 0:
            its_map = index.maps(partner, np.array([row]))[0]
            if its_map.max() > 0:
                at = np.unravel_index(its_map.argmax(), index.grid)
                other = Window.around(*at, index.grid, len(change), size)
        rng = np.random.default_rng((0, int(pick.feature_id), row))
        own_map = index.maps(pick.feature_id, np.array([row]))[0]
        controls = control_windows(target, change, foreground, own_map, other, rng)
        two = sorted(rng.permutation(len(controls))[:2])  # each kind gets its share of pictures
        for where, (place, matched) in [("target", (target, True)), *(list(controls.items())[i] for i in two)]:
            yield {"feature_id": int(pick.feature_id), "where": where, "matched": matched, "window": place}
