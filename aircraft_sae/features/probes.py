"""What one direction could know of parts, and how parts are split among features: probes, pursuit, absorption."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, f1_score

from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.features.parts import FIRST, ranking_scores
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.sae import SparseAutoencoder


def fit_probes(acts: np.ndarray, labels: np.ndarray, ridge: float = 1e-3) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a cell is said to show part i where acts . direction + bias >= 0.

    acts: (n, rows, columns, d_in) of labelled pictures. Linear regression of the labels on standardised channels, with
    `ridge` times the cells as penalty; the bias has the best F1 on these pictures. No direction where all or no cells
    show the part: zeros.
    """
    x = np.float64(acts).reshape(-1, acts.shape[-1])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, own = (x - mean) / spread, labels.reshape(len(x), -1)
    weights = np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ (own - own.mean(0)))
    bias, scores = np.zeros(own.shape[1]), x @ weights
    for i in range(own.shape[1]):
        least = scores[:, i].min() - 1  # ranking_scores takes what is active, and so positive
        bias[i] = -least - ranking_scores(scores[:, i] - least, own[:, [i]], own[:, [i]].sum(0), len(x))["threshold"][0]
    weights = np.where(own.any(0) & ~own.all(0), weights, 0) / spread[:, None]
    return weights.T, bias - mean @ weights


def probe_scores(acts: np.ndarray, labels: np.ndarray, in_b: np.ndarray) -> pd.DataFrame:
    """What one direction of the activations could do for each part: part, ap, f1 on half B, fitted on half A.

    acts: (n, rows, columns, d_in) of the labelled pictures. Trained with labels, as no feature was: a ceiling.
    """
    directions, biases = fit_probes(acts[~in_b], labels[~in_b])
    scores = np.float64(acts[in_b]) @ directions.T + biases
    table = []
    for i, part in enumerate(PARTS[FIRST : FIRST + len(biases)]):
        own, score = labels[in_b][..., i].ravel(), scores[..., i].ravel()
        ap, f1 = np.nan, np.nan
        if own.any() and directions[i].any():
            ap, f1 = average_precision_score(own, score), f1_score(own, score >= -1e-9)
        table.append({"part": part, "ap": ap, "f1": f1})
    return pd.DataFrame(table)


def matching_pursuit(
    index: FeatureIndex, scores: pd.DataFrame, labels: np.ndarray, rows: np.ndarray, in_b: np.ndarray, most: int = 3
) -> pd.DataFrame:
    """Several features for a part: part, features (ids), f1 on half B of "any of them above its threshold".

    On half A, of the 40 features with the largest ap_a the one whose firings have the best F_0.5 for the part's cells
    not yet found is added, until `most` or until F1 grows no more; thresholds are those of `part_scores`.
    Source: feature-based matching pursuit, arXiv 2606.24716.
    """
    table = []
    for i, part in enumerate(PARTS[FIRST:]):
        own_a, own_b = (labels[kept][..., i].reshape(-1) for kept in (~in_b, in_b))
        if not own_a.any() or not own_b.any():
            table.append({"part": part, "features": [], "f1": np.nan})
            continue
        candidates = scores[scores["part"] == part].nlargest(40, "ap_a")
        maps = [index.maps(int(j), rows) >= t for j, t in candidates[["feature_id", "threshold"]].to_numpy()]
        firing = np.stack([m[~in_b].reshape(-1) for m in maps])
        chosen, any_a, best = [], np.zeros(len(own_a), bool), 0.0
        while len(chosen) < most:
            left = own_a & ~any_a
            hits, wrong = (firing & left).sum(1), (firing & ~own_a & ~any_a).sum(1)
            j = int((1.25 * hits / np.maximum(1.25 * hits + 0.25 * (left.sum() - hits) + wrong, 1e-9)).argmax())
            together = any_a | firing[j]
            f1 = 2 * (together & own_a).sum() / (together.sum() + own_a.sum())
            if f1 <= best:
                break
            chosen, any_a, best = [*chosen, j], together, f1
        any_b = np.any([maps[j][in_b].reshape(-1) for j in chosen] or [np.zeros(len(own_b), bool)], axis=0)
        f1 = 2 * (any_b & own_b).sum() / (any_b.sum() + own_b.sum())
        table.append({"part": part, "features": candidates["feature_id"].iloc[chosen].tolist(), "f1": f1})
    return pd.DataFrame(table)


def absorption(
    index: FeatureIndex,
    sae: SparseAutoencoder,
    acts: np.ndarray,
    labels: np.ndarray,
    pursuit: pd.DataFrame,
    directions: np.ndarray,
    biases: np.ndarray,
    rows: np.ndarray,
) -> pd.DataFrame:
    """How often another feature speaks where a part's own are silent: part, n, silent, absorbed, supplied.

    acts: (n, rows, columns, d_in) and labels of pictures of half B, whose rows in the index are `rows`; pursuit: of
    `matching_pursuit`; directions, biases: of `fit_probes` on half A. Of the n cells that show the part and that the
    probe finds: the share in which all the part's own features are silent, and that in which, besides, one other
    feature with cosine 0.025 or more to the probe supplies 0.4 or more of what lies along it. supplied, to compare
    with: where the own features speak, the share in which one of them supplies as much.
    Source: Chanin et al. 2024, arXiv 2409.14507, as SAEBench computes it.
    """
    table, W_dec, b_dec = [], sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    for i, (part, own, _) in enumerate(pursuit[["part", "features", "f1"]].itertuples(index=False)):
        found = labels[..., i] & (acts @ directions[i] + biases[i] >= 0)
        if not own or not found.any():
            table.append(
                {"part": part, "n": int(found.sum())} | dict.fromkeys(("silent", "absorbed", "supplied"), np.nan)
            )
            continue
        codes = np.concatenate([index.image(row)[cells] for row, cells in zip(rows, found, strict=True) if cells.any()])
        probe = directions[i] / np.linalg.norm(directions[i])
        along = W_dec @ probe
        able = along / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12) >= 0.025
        able[own] = False
        supplied = (codes[:, able] * along[able]).max(1, initial=0)
        total = (np.float32(acts[found]) - b_dec) @ probe
        silent = (codes[:, own] == 0).all(1)
        absorbed = silent & (total > 0) & (supplied >= 0.4 * total)
        by_own = (codes[:, own] * along[own]).max(1) >= 0.4 * total
        table.append({
            "part": part, "n": len(codes), "silent": silent.mean(), "absorbed": absorbed.mean(),
            "supplied": (by_own & (total > 0))[~silent].mean() if (~silent).any() else np.nan,
        })  # fmt: skip
    return pd.DataFrame(table)
