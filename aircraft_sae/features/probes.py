"""What one direction could know of parts, and how parts are split among features: probes, pursuit, absorption.

acts: (n, rows, columns, d_in) of the pictures of `regions`, in their order.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score

from aircraft_sae.activations import Activations
from aircraft_sae.features.index import FeatureIndex
from aircraft_sae.features.reconstruction import readers
from aircraft_sae.features.regions import Regions, ap_of, ranking_scores
from aircraft_sae.sae import SparseAutoencoder


def fit_probes(acts: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a cell is said to show part i where acts . direction + bias >= 0.

    Fitted on half A: ridge regression of the labels on standardised channels, with 0.001 times the cells as penalty;
    the bias has the best F1 there. No direction where all or no cells show the part: zeros.
    """
    x = np.float64(acts[~regions.in_b]).reshape(-1, acts.shape[-1])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, own = (x - mean) / spread, regions.labels[~regions.in_b].reshape(len(x), -1)
    weights = Ridge(1e-3 * len(x)).fit(x, own).coef_
    bias, scores = np.zeros(len(weights)), x @ weights.T
    for i in range(len(bias)):
        least = scores[:, i].min() - 1  # all positive, as ranking_scores takes what is active alone
        found = ranking_scores(scores[:, i] - least, own[:, [i]], own[:, [i]].sum(0), len(own))
        bias[i] = -least - found["threshold"][0]
    weights = np.where((own.any(0) & ~own.all(0))[:, None], weights, 0) / spread
    return weights, bias - weights @ mean


def probe_dictionary(sae: SparseAutoencoder, acts: Activations, regions: Regions) -> SparseAutoencoder:
    """The probes as features 0, 1, … of a dictionary that reads what `sae` reads of its site's acts."""
    return readers(sae, *map(torch.from_numpy, fit_probes(read_cells(sae, acts), regions)))


def read_cells(sae: SparseAutoencoder, acts: Activations) -> np.ndarray:
    """(n, rows, columns, d_in) of the test pictures, standardised cell by cell where `sae` does so."""
    acts = acts.standardised if sae.cfg.cellwise else acts
    return torch.cat(list(acts.blocks(acts.rows("test")))).numpy()


def probe_scores(acts: np.ndarray, regions: Regions) -> pd.DataFrame:
    """What one direction of the activations could do for each part: part, ap, f1 on half B, fitted on half A.

    Trained with labels, as no feature was: a ceiling.
    """
    directions, biases = fit_probes(acts, regions)
    scores, labels, table = np.float64(acts[regions.in_b]) @ directions.T + biases, regions.labels[regions.in_b], []
    for i, part in enumerate(regions.names):
        own, score, ap, f1 = labels[..., i].ravel(), scores[..., i].ravel(), np.nan, np.nan
        if own.any() and directions[i].any():
            ap, f1 = ap_of(score, own)[0], f1_score(own, score >= -1e-9)
        table.append({"part": part, "ap": ap, "f1": f1})
    return pd.DataFrame(table)


def matching_pursuit(index: FeatureIndex, scores: pd.DataFrame, regions: Regions) -> pd.DataFrame:
    """Several features for a part: part, features (ids), f1 on half B of "any of them above its threshold".

    On half A, of the 40 features with the largest ap_a the one whose firings have the best F_0.5 for the part's cells
    not yet found is added, until there are three or until F1 grows no more. scores: of `part_scores`.
    Source: feature-based matching pursuit, arXiv 2606.24716.
    """
    table = []
    for i, part in enumerate(regions.names):
        own_a, own_b = (regions.labels[half][..., i].reshape(-1) for half in (~regions.in_b, regions.in_b))
        if not own_a.any() or not own_b.any():
            table.append({"part": part, "features": [], "f1": np.nan})
            continue
        candidates = scores[scores["part"] == part].sort_values("feature_id").nlargest(40, "ap_a")
        pairs = candidates[["feature_id", "threshold"]].to_numpy()
        maps = np.stack([index.maps(int(j), regions.rows) >= threshold for j, threshold in pairs])
        firing, firing_b = (maps[:, half].reshape(len(maps), -1) for half in (~regions.in_b, regions.in_b))
        chosen, any_a, best = [], np.zeros(len(own_a), bool), 0.0
        while len(chosen) < 3:
            left = own_a & ~any_a
            hits, wrong = (firing & left).sum(1), (firing & ~own_a & ~any_a).sum(1)
            j = int((1.25 * hits / np.maximum(1.25 * hits + 0.25 * (left.sum() - hits) + wrong, 1e-9)).argmax())
            f1 = f1_score(own_a, any_a | firing[j])
            if f1 <= best:
                break
            chosen, any_a, best = [*chosen, j], any_a | firing[j], f1
        found = candidates["feature_id"].iloc[chosen].tolist()
        table.append({"part": part, "features": found, "f1": f1_score(own_b, firing_b[chosen].any(0))})
    return pd.DataFrame(table)


def absorption(
    index: FeatureIndex, sae: SparseAutoencoder, acts, regions: Regions, pursuit: pd.DataFrame, directions, biases
) -> pd.DataFrame:
    """How often another feature speaks where a part's own are silent: part, n, silent, absorbed, supplied.

    pursuit: of `matching_pursuit`; directions, biases: of `fit_probes`. Of the n cells of half B that show the part and
    that the probe finds: the share in which all the part's own features are silent, and that in which, besides, one
    other feature with cosine 0.025 or more to the probe supplies 0.4 or more of what lies along it. supplied, to
    compare with: where the own features speak, the share in which one of them supplies as much.
    Source: Chanin et al. 2024, arXiv 2409.14507, as SAEBench computes it.
    """
    table, W_dec, b_dec = [], sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy()
    acts, labels, rows = (each[regions.in_b] for each in (acts, regions.labels, regions.rows))
    cells = (rows[:, None] * index.cells_per_image + np.arange(index.cells_per_image)).reshape(labels.shape[:3])
    for i, (part, own) in enumerate(zip(pursuit["part"], pursuit["features"], strict=True)):
        found = labels[..., i] & (acts @ directions[i] + biases[i] >= 0)
        facts = {"part": part, "n": int(found.sum())}
        if not own or not found.any():
            table.append(facts | dict.fromkeys(("silent", "absorbed", "supplied"), np.nan))
            continue
        codes = index.by_cell[cells[found]].toarray()
        probe = directions[i] / np.linalg.norm(directions[i])
        along = W_dec @ probe
        able = along / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12) >= 0.025
        able[own] = False
        total = (np.float32(acts[found]) - b_dec) @ probe
        by_others, by_own = ((codes[:, some] * along[some]).max(1, initial=0) >= 0.4 * total for some in (able, own))
        silent = (codes[:, own] == 0).all(1)
        table.append(facts | {
            "silent": silent.mean(), "absorbed": (silent & (total > 0) & by_others).mean(),
            "supplied": (by_own & (total > 0))[~silent].mean() if (~silent).any() else np.nan,
        })  # fmt: skip
    return pd.DataFrame(table)
