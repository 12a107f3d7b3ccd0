"""Tuning curves as pure functions: which angles do units respond to, what does a family cover, which neurons split?

A unit's *radial tuning curve* is its mean positive response at each angle, over radii, contrasts and shifts, divided by
its peak.
Sources: Cammarata et al. 2020, "Curve Detectors" (tuning curves); Gorton 2024, arXiv 2406.03662 (the claim).
"""

import numpy as np
import pandas as pd

WIDEST, ECHO, BEYOND_LINE, QUANTILE = 70.0, 0.3, 1.3, 0.95
"""Limits of a curve detector: the largest width of its tuning curve at half height (degrees); its largest response at
+180 degrees; the least ratio of its best curve to its line response, at the peak; the quantile of its positive
activations on real pictures that its best response exceeds. No corner may excite it more than curves do."""
PUBLISHED = (22.5, 66.5, 91.5, 110.0, 145.0, 181.0, 243.0, 268.5, 290.0, 358.0)
"""Peaks of mixed3b's ten curve neurons in degrees, from the data of Cammarata et al. 2020; minimum coverage 0.307."""
LARGEST = 24  # units in the largest family
APART, SECOND, CARRIED, NEAR = 60.0, 0.5, 0.1, 30.0
"""Modes of a tuning curve are at least APART degrees apart and SECOND times as high as the highest. A carrier is a
feature with at least CARRIED of a neuron's variance; its peak is at most NEAR degrees from the neuron's mode."""


def tuned(values: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, pd.DataFrame]:
    """Tuning curves (d, angles), of maximum 1 or all 0, and a table that describes each unit.

    values: (pictures, d) responses to the pictures in the table of `Curves`. Columns:
    peak: the angle of the largest response; width: degrees around it over which the curve stays above half;
    echo: the curve's value half a turn from the peak;
    beyond_line: response at the peak, for the best radius, divided by the response to the line there;
    strongest: largest response to a curve; corner: largest response to a corner, divided by strongest.
    """
    values = pd.DataFrame(np.maximum(values, 0))
    most = values.groupby(table["kind"].to_numpy()).max()
    means = values.groupby([table[name].to_numpy() for name in ("kind", "angle", "radius")]).mean()
    by_angle = means.loc["curve"].groupby(level=0).mean()
    top = by_angle.max().to_numpy()
    curves = (by_angle / np.where(top > 0, top, 1)).to_numpy().T
    at_peak = curves.argmax(1), np.arange(len(curves))
    best = means.loc["curve"].groupby(level=0).max().to_numpy()[at_peak]
    line = means.loc["line"].groupby(level=0).mean().to_numpy()[at_peak]
    strongest, corner = (most.loc[kind].to_numpy() for kind in ("curve", "corner"))
    return curves, pd.DataFrame({
        "peak": by_angle.index.to_numpy(float)[at_peak[0]],
        "width": width(curves),
        "echo": turned(curves)[:, curves.shape[1] // 2],
        "beyond_line": best / np.maximum(line, 1e-9),
        "corner": corner / np.maximum(strongest, 1e-9),
        "strongest": strongest,
    })  # fmt: skip


def turned(curves: np.ndarray) -> np.ndarray:
    """Tuning curves (m, angles), each turned to put its peak at 0."""
    return np.stack([np.roll(curve, -curve.argmax()) for curve in curves])


def width(curves: np.ndarray) -> np.ndarray:
    """(d,) degrees around the peak over which each curve (d, angles) stays above half, interpolated linearly."""
    after, step, ends = turned(curves), 360 / curves.shape[1], []
    for side in (after, np.roll(after[:, ::-1], 1, 1)):
        below = side < 0.5
        first, rows = below.argmax(1), np.arange(len(side))
        above, under = side[rows, first - 1], side[rows, first]
        share = np.clip((above - 0.5) / np.maximum(above - under, 1e-9), 0, 1)
        ends.append(np.where(below.any(1), (first - 1 + share) * step, 180))
    return np.minimum(ends[0] + ends[1], 360)


def detects(units: pd.DataFrame, usual: np.ndarray) -> np.ndarray:
    """(d,) whether each of the `tuned` units detects curves; usual: (d,) QUANTILE of its activations on pictures."""
    narrow = (units["width"] <= WIDEST) & (units["echo"] <= ECHO) & (units["strongest"] > usual)
    return (narrow & (units["beyond_line"] >= BEYOND_LINE) & (units["corner"] <= 1)).to_numpy()


def coverage(curves: np.ndarray) -> dict[str, float]:
    """How a family (m, angles) covers the circle, by its largest curve at each angle.

    minimum: the least coverage; below_half: share of angles covered less than half; gap: widest between peaks, degrees.
    """
    if not len(curves):
        return {"minimum": 0.0, "below_half": 1.0, "gap": 360.0}
    most, step = curves.max(0), 360 / curves.shape[1]
    peaks = np.sort(curves.argmax(1)) * step
    gap = np.diff(np.append(peaks, peaks[0] + 360)).max()
    return {"minimum": float(most.min()), "below_half": float((most < 0.5).mean()), "gap": float(gap)}


def family(curves: np.ndarray, m: int) -> np.ndarray:
    """Choose m of the curves (d, angles) greedily: each raises the minimum coverage most, or failing that, the mean."""
    chosen, most = [], np.zeros(curves.shape[1])
    for _ in range(min(m, len(curves))):
        after = np.maximum(curves, most)
        after[chosen] = -1
        gain = after.min(1) + 1e-3 * after.mean(1)
        chosen.append(int(gain.argmax()))
        most = after[chosen[-1]]
    return np.array(chosen, int)


def equal_choice(curves: np.ndarray, n: int) -> dict[str, float]:
    """Minimum coverage of a `family` of LARGEST chosen among n random curves: the mean of 100 draws."""
    rng = np.random.default_rng(0)
    drawn = [curves[rng.permutation(len(curves))[:n]] for _ in range(100 if len(curves) > n else 1)]
    minima = [coverage(each[family(each, LARGEST)])["minimum"] for each in drawn]
    return {"candidates": min(n, len(curves)), "minimum": np.mean(minima)}


def modes(curve: np.ndarray) -> np.ndarray:
    """Indices of a tuning curve's peaks, highest first, that are high enough (SECOND) and APART."""
    smooth = np.convolve(np.concatenate([curve[-1:], curve, curve[:1]]), [0.25, 0.5, 0.25], "valid")
    peaks = np.flatnonzero((smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1)))
    found, n = [], len(curve)
    for i in peaks[np.argsort(-smooth[peaks], kind="stable")]:
        apart = all(min(abs(i - j), n - abs(i - j)) * 360 / n >= APART for j in found)
        if apart and smooth[i] >= SECOND * smooth.max() > 0:
            found.append(int(i))
    return np.array(found, int)


def split_neurons(neurons: np.ndarray, codes: np.ndarray, W_dec: np.ndarray, table: pd.DataFrame) -> pd.DataFrame:
    """Find neurons with several modes that are sums of features with one mode each: a row per neuron with several.

    neurons: (pictures, d_in) acts; codes: (pictures, d_sae); W_dec: (d_sae, d_in). Columns: neuron, n_modes;
    carriers: the features that carry at least CARRIED of its variance over curves, largest first; shares: of variance;
    splits: it has two or more carriers, all with one mode, and each mode of the neuron has one of them NEAR;
    chance: how often this holds for as many random features that respond to curves.
    """
    own = (table["kind"] == "curve").to_numpy()
    of_neurons, of_features = (tuned(values, table)[0] for values in (neurons, codes))
    x, f = (values[own] - values[own].mean(0) for values in (neurons, codes))
    single, live = np.array([len(modes(curve)) == 1 for curve in of_features]), np.flatnonzero(codes[own].any(0))
    rng, rows, n, peaks = np.random.default_rng(0), [], of_neurons.shape[1], of_features.argmax(1)

    def made_of(some: np.ndarray, wanted: np.ndarray) -> bool:
        away = np.abs((peaks[some] - wanted[:, None] + n // 2) % n - n // 2).min(1) * 360 / n
        return bool(single[some].all() and (away <= NEAR).all())

    for i, curve in enumerate(of_neurons):
        if len(wanted := modes(curve)) < 2:
            continue
        share = (f * x[:, [i]]).mean(0) * W_dec[:, i] / max(x[:, i].var(), 1e-12)
        carriers = np.argsort(-share, kind="stable")[: (share >= CARRIED).sum()]
        splits, chance = False, 0.0
        if (m := len(carriers)) > 1:
            splits = made_of(carriers, wanted)
            chance = np.mean([made_of(rng.choice(live, m, replace=False), wanted) for _ in range(200)])
        rows.append((i, len(wanted), carriers.tolist(), share[carriers].tolist(), splits, chance))
    return pd.DataFrame(rows, columns=["neuron", "n_modes", "carriers", "shares", "splits", "chance"])
