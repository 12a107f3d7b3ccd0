"""Tuning curves, pure: which angles do units answer to, what does a family cover, which neurons split?

A unit's *radial tuning curve* is the mean of its positive responses over radii, contrasts and shifts, by angle, divided
by its own peak.
Sources: Cammarata et al. 2020, "Curve Detectors" (tuning curves); Gorton 2024, arXiv 2406.03662 (the claim).
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter

WIDEST, ECHO, BEYOND_LINE, QUANTILE = 70.0, 0.3, 1.3, 0.95
"""A curve detector's tuning curve is no wider at half height (degrees), and no higher at +180 degrees; its response to
the best curve is so many times that to the line there, and above so much of its activations on real pictures; and no
corner excites it more."""
PUBLISHED = (22.5, 66.5, 91.5, 110.0, 145.0, 181.0, 243.0, 268.5, 290.0, 358.0)
"""Peaks of mixed3b's ten curve neurons in degrees, from the data of Cammarata et al. 2020; coverage at least 0.307."""
LARGEST = 24  # units of the largest family whose coverage is asked for
APART, SECOND, CARRIED, NEAR = 60.0, 0.5, 0.1, 30.0
"""Modes of a tuning curve: degrees between them, height of a further one; share of variance that a feature carries, and
degrees between its peak and the neuron's mode."""


@dataclass
class Tuning:
    """How d units answer to curves. angles: (a,); curves: (d, a) of largest value 1, 0 for a unit that is silent.

    strongest: (d,) largest response to a curve; beyond_line: (d,) that of the best radius at the peak, by that to the
    line there; corner: (d,) largest response to a corner, by `strongest`.
    """

    angles: np.ndarray
    curves: np.ndarray
    strongest: np.ndarray
    beyond_line: np.ndarray
    corner: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, table: pd.DataFrame) -> "Tuning":
        """values: (pictures, d) responses to the pictures of `Curves`' table."""
        values = pd.DataFrame(np.maximum(values, 0))
        most = values.groupby(table["kind"].to_numpy()).max()
        means = values.groupby([table[name].to_numpy() for name in ("kind", "angle", "radius")]).mean()
        by_angle = means.loc["curve"].groupby(level=0).mean()
        top = by_angle.max().to_numpy()
        curves = (by_angle / np.where(top > 0, top, 1)).to_numpy().T
        best, line = (np.take_along_axis(each.to_numpy(), curves.argmax(1)[None], 0)[0] for each in (
            means.loc["curve"].groupby(level=0).max(), means.loc["line"].groupby(level=0).mean()))  # fmt: skip
        strongest, corner = (most.loc[kind].to_numpy() for kind in ("curve", "corner"))
        ratios = best / np.maximum(line, 1e-9), corner / np.maximum(strongest, 1e-9)
        return cls(by_angle.index.to_numpy(float), curves, strongest, *ratios)

    @property
    def peak(self) -> np.ndarray:
        """(d,) the angle of each unit's largest response."""
        return self.angles[self.curves.argmax(1)]

    @property
    def width(self) -> np.ndarray:
        """(d,) degrees around the peak in which the curve stays above half, its ends found by straight lines."""
        step, n = 360 / len(self.angles), len(self.angles)
        turned = np.stack([np.roll(curve, -curve.argmax()) for curve in self.curves])
        ends = []
        for side in (turned, np.roll(turned[:, ::-1], 1, 1)):
            below = side < 0.5
            first = np.where(below.any(1), below.argmax(1), n)
            after, before = (np.take_along_axis(side, (first % n - k)[:, None], 1)[:, 0] for k in (0, 1))
            share = (before - 0.5) / np.maximum(before - after, 1e-9)
            ends.append(np.where(first < n, (first - 1 + np.clip(share, 0, 1)) * step, 180))
        return np.minimum(ends[0] + ends[1], 360)

    @property
    def echo(self) -> np.ndarray:
        """(d,) the response half a turn from the peak."""
        half = (self.curves.argmax(1) + len(self.angles) // 2) % len(self.angles)
        return np.take_along_axis(self.curves, half[:, None], 1)[:, 0]

    def detects(self, usual: np.ndarray) -> np.ndarray:
        """(d,) whether a unit is a curve detector; usual: (d,) QUANTILE of its activations on real pictures."""
        narrow = (self.width <= WIDEST) & (self.echo <= ECHO) & (self.curves.max(1) > 0)
        return narrow & (self.beyond_line >= BEYOND_LINE) & (self.corner <= 1) & (self.strongest > usual)


def coverage(curves: np.ndarray) -> dict[str, float]:
    """Of a family (m, angles): minimum and below_half (share of angles) of the largest curve; gap between peaks, °."""
    if not len(curves):
        return {"minimum": 0.0, "below_half": 1.0, "gap": 360.0}
    most, step = curves.max(0), 360 / curves.shape[1]
    peaks = np.sort(curves.argmax(1)) * step
    gap = np.diff(np.append(peaks, peaks[0] + 360)).max()
    return {"minimum": float(most.min()), "below_half": float((most < 0.5).mean()), "gap": float(gap)}


def family(curves: np.ndarray, m: int) -> np.ndarray:
    """Indices of m of the curves (d, angles), each raising minimum coverage most, or where none does, the mean."""
    chosen, most = [], np.zeros(curves.shape[1])
    for _ in range(min(m, len(curves))):
        after = np.maximum(curves, most)
        after[chosen] = -1
        gain = after.min(1) + 1e-3 * after.mean(1)
        chosen.append(int(gain.argmax()))
        most = after[chosen[-1]]
    return np.array(chosen, int)


def equal_choice(curves: np.ndarray, n: int, n_draws: int = 100, seed: int = 0) -> dict[str, float]:
    """Least coverage of the `family` of LARGEST among n curves, drawn from (d, angles): mean, and 95 % of the draws."""
    rng = np.random.default_rng(seed)
    drawn = [curves[rng.permutation(len(curves))[:n]] for _ in range(n_draws if len(curves) > n else 1)]
    minima = [coverage(each[family(each, LARGEST)])["minimum"] for each in drawn]
    low, high = np.quantile(minima, [0.025, 0.975])
    return {"candidates": min(n, len(curves)), "minimum": np.mean(minima), "low": low, "high": high}


def modes(curve: np.ndarray) -> np.ndarray:
    """Peaks of one tuning curve as indices, the highest first: SECOND of that at least, and APART from each other."""
    smooth = np.convolve(np.concatenate([curve[-1:], curve, curve[:1]]), [0.25, 0.5, 0.25], "valid")
    peaks = np.flatnonzero((smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1)))
    found, n = [], len(curve)
    for i in peaks[np.argsort(-smooth[peaks], kind="stable")]:
        apart = all(min(abs(i - j), n - abs(i - j)) * 360 / n >= APART for j in found)
        if apart and smooth[i] >= SECOND * smooth.max() > 0:
            found.append(int(i))
    return np.array(found, int)


def alike(curves: np.ndarray) -> float:
    """Mean correlation of the pairs of tuning curves (m, angles), each turned so that its peak is at 0."""
    turned = np.stack([np.roll(curve, -curve.argmax()) for curve in curves])
    return float(np.corrcoef(turned)[np.triu_indices(len(turned), 1)].mean()) if len(turned) > 1 else np.nan


def by_kind(values: np.ndarray, table: pd.DataFrame) -> pd.Series:
    """By kind of stimulus the largest response of each unit, as a share of that to curves; mean over units.

    values: (pictures, units) of the pictures of `Curves`' table.
    """
    largest = pd.DataFrame(np.maximum(values, 0)).groupby(table["kind"].to_numpy()).max()
    return (largest / largest.loc["curve"].clip(lower=1e-12)).mean(axis=1)


def split(
    neurons: np.ndarray, codes: np.ndarray, W_dec: np.ndarray, table: pd.DataFrame, seed: int = 0
) -> pd.DataFrame:
    """Which neurons of several modes are sums of features with one: a row a neuron.

    neurons: (pictures, d_in) acts; codes: (pictures, d_sae); W_dec: (d_sae, d_in). Columns: neuron, n_modes, carriers
    (features that carry CARRIED of its variance over curves, most first), shares (of it), splits (two or more of these,
    each of one mode, of which one is within NEAR of each of the neuron's), and chance, the same of as many features
    drawn at random among those that respond to curves.
    """
    own = (table["kind"] == "curve").to_numpy()
    of_neurons, of_features = (Tuning.of(values, table).curves for values in (neurons, codes))
    x, f = (values[own] - values[own].mean(0) for values in (neurons, codes))
    single, live = np.array([len(modes(curve)) == 1 for curve in of_features]), np.flatnonzero(codes[own].any(0))
    rng, rows, n, peaks = np.random.default_rng(seed), [], of_neurons.shape[1], of_features.argmax(1)
    for i, curve in enumerate(of_neurons):
        if len(own_modes := modes(curve)) < 2:
            continue

        def made_of(some: np.ndarray, own_modes: np.ndarray = own_modes) -> bool:
            away = np.abs((peaks[some] - own_modes[:, None] + n // 2) % n - n // 2).min(1) * 360 / n
            return bool(single[some].all() and (away <= NEAR).all())

        share = (f * x[:, [i]]).mean(0) * W_dec[:, i] / max(x[:, i].var(), 1e-12)
        carriers = np.argsort(-share, kind="stable")[: (share >= CARRIED).sum()]
        several = len(carriers) > 1
        drawn = [made_of(rng.choice(live, len(carriers), replace=False)) for _ in range(200 * several)] or [False]
        splits = several and made_of(carriers)
        rows.append((i, len(own_modes), carriers.tolist(), share[carriers].tolist(), splits, np.mean(drawn)))
    return pd.DataFrame(rows, columns=["neuron", "n_modes", "carriers", "shares", "splits", "chance"])


def contour_angles(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(rows, columns) angle in degrees of the outline's normal, inwards, in each cell; nan where no outline passes.

    mask: (height, width) bool, the silhouette. As the angles of `Curves`: a convex outline curves about what is inside.
    """
    soft = gaussian_filter(mask.astype(float), min(mask.shape) / grid[0] / 4)
    down, across = np.gradient(soft)
    rows, columns = (np.arange(n) * size // n + size // (2 * n) for n, size in zip(grid, mask.shape, strict=True))
    down, across = (each[np.ix_(rows, columns)] for each in (down, across))
    strength = np.hypot(down, across)
    return np.where(strength > 0.25 * strength.max(), np.degrees(np.arctan2(-down, across)) % 360, np.nan)


def contour_agreement(curves: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((d,) correlation of a tuning curve with activation by contour angle, (d,) p: share of turns that fit as well).

    curves: (d, angles); seen: (d, bins) mean activation where the contour has that angle, nan where none has.
    """
    n_bins = seen.shape[1]
    coarse = curves[:, :: curves.shape[1] // n_bins]  # bins are about these angles

    def correlation(a: np.ndarray, b: np.ndarray) -> float:
        known = np.isfinite(b)
        return np.corrcoef(a[known], b[known])[0, 1] if known.sum() > 2 and a.std() and b[known].std() else np.nan

    pairs = zip(coarse, seen, strict=True)
    turns = np.array([[correlation(np.roll(a, k), b) for k in range(n_bins)] for a, b in pairs])
    return turns[:, 0], (turns >= turns[:, :1]).mean(1)
