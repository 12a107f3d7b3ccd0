"""How well features, probes and guesses find parts on half B, with intervals over pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import precision_recall_curve

from aircraft_sae.activations import Activations
from aircraft_sae.devices import run_parallel
from aircraft_sae.features.index import FeatureIndex, encoded
from aircraft_sae.features.regions import Regions, average_precision_and_influence, average_precisions, guess_maps
from aircraft_sae.metrics import MIN_PICTURES, Estimate, stratified_auroc
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


def claim_bars(folder: Path, *, acts: Activations, nulls: Sequence[SparseAutoencoder], pictures: Pictures) -> None:
    """Write bars.parquet: part, bar (95th percentile, over nulls, of the best average precision on half A)."""
    regions = Regions.of(acts, pictures)
    rows, labels = regions.rows[~regions.in_b], regions.labels[~regions.in_b].reshape(-1, len(regions.names))

    def best(null: SparseAutoencoder) -> np.ndarray:
        return np.nan_to_num(average_precisions(encoded(null, acts.blocks(rows)), labels)).max(0)

    bars = np.quantile(list(run_parallel(best, nulls)), 0.95, axis=0)
    write_parquet(pd.DataFrame({"part": regions.names, "bar": bars}), folder / "bars.parquet")


def claims_of(scores: pd.DataFrame, bars: pd.DataFrame) -> pd.Series:
    """The part that each feature claims: the one whose ap_a (`part_scores`) is furthest above its bar; else None."""
    over = scores["ap_a"] - scores["part"].map(bars.set_index("part")["bar"])
    claimed = scores.assign(over=over)[over > 0].sort_values(["over", "part"], ascending=[False, True])
    parts = claimed.drop_duplicates("feature_id").set_index("feature_id")["part"]
    return parts.reindex(scores["feature_id"].unique()).astype(object).where(lambda part: part.notna(), None)


def average_precision(
    index: FeatureIndex, regions: Regions, feature_id: int, part: str, swap: bool = False
) -> Estimate:
    """A feature's average precision for a part on half B; swap: with the masks of another picture of the same class."""
    member = regions.labels[_another(regions) if swap else regions.in_b][..., regions.names.index(part)]
    found = average_precision_and_influence(index.maps(feature_id, regions.rows[regions.in_b]), member)
    return _estimate(index, regions, member, *found)


def best_estimates(index: FeatureIndex, regions: Regions, matches: pd.DataFrame) -> dict[str, Estimate]:
    """{part: `average_precision` of the part's best feature}; matches: from `best_matches`."""
    return {part: average_precision(index, regions, int(j), part) for part, j in matches["feature_id"].items()}


def auroc_in_strata(index: FeatureIndex, regions: Regions, feature_id: int, part: str) -> Estimate:
    """AUROC for a part among half B's aircraft cells, within strata of family and cell, which alone would give 0.5."""
    return _in_strata(index, regions, part, index.maps(feature_id, regions.rows[regions.in_b]))


def guessed_in_strata(index: FeatureIndex, regions: Regions, part: str) -> float:
    """The largest `auroc_in_strata` among the `guess_maps`, which know the true outline and class."""
    known = guess_maps(regions, regions.in_b).values()
    found = [_in_strata(index, regions, part, score[..., regions.names.index(part)]).value for score in known]
    return float(np.fmax.reduce(found))


def _in_strata(index: FeatureIndex, regions: Regions, part: str, values: np.ndarray) -> Estimate:
    in_b, (rows, columns) = regions.in_b, index.grid
    within, member = regions.within[in_b], regions.labels[in_b][..., regions.names.index(part)]
    picture, row, column = np.nonzero(within)
    strata = (regions.families[in_b][picture] * rows + row) * columns + column
    return _estimate(index, regions, member, *stratified_auroc(values[within], member[within], strata, picture))


def _estimate(index: FeatureIndex, regions: Regions, member: np.ndarray, value: float, influence) -> Estimate:
    """An estimate over half B's pictures; without an interval if fewer than MIN_PICTURES show the part."""
    padded = np.full(len(member), np.nan if member.any((1, 2)).sum() < MIN_PICTURES else 0.0)
    padded[: len(influence)] += influence  # shorter if the last pictures show no aircraft
    return Estimate(value, pd.Series(padded, pd.Index(index.images["image"].iloc[regions.rows[regions.in_b]])))


def _another(regions: Regions) -> np.ndarray:
    """For each picture of half B, the row in `regions` of the one before it in its class; for the first, the last."""
    own = pd.Series(np.flatnonzero(regions.in_b))
    of_class = own.groupby(regions.classes[own])
    return of_class.shift().fillna(of_class.transform("last")).to_numpy(int)


def fit_probes(acts: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a probe finds its part where acts . direction + bias >= 0.

    acts: (n, rows, columns, d_in) of the regions' pictures. Ridge regression on half A, on standardised channels, with
    a penalty of 0.001 per cell. Biases maximise F1. A direction is 0 if its part is shown by no cell or by all.
    """
    x = np.float64(acts[~regions.in_b]).reshape(-1, acts.shape[-1])
    mean, spread = x.mean(0), x.std(0) + 1e-9
    x, own = (x - mean) / spread, regions.labels[~regions.in_b].reshape(len(x), -1)
    weights = Ridge(1e-3 * len(x)).fit(x, own).coef_
    bias, scores = np.zeros(len(weights)), x @ weights.T
    for i in np.flatnonzero(own.any(0)):
        precision, recall, thresholds = precision_recall_curve(own[:, i], scores[:, i])
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        bias[i] = -thresholds[f1[:-1].argmax()]
    weights = np.where((own.any(0) & ~own.all(0))[:, None], weights, 0) / spread
    return weights, bias - weights @ mean


def probe_dictionary(sae: SparseAutoencoder, acts: Activations, regions: Regions) -> SparseAutoencoder:
    """An autoencoder of d_in features for sae's site: the probes, then silent ones; not for reconstruction."""
    made = SparseAutoencoder(replace(sae.cfg, variant="batchtopk", k=1, expansion=1, tied=False), sae.d_in)
    fitted = fit_probes(acts.acts[acts.rows("test")], regions)
    with torch.no_grad():
        for values, own in zip((made.W_enc_rows, made.b_enc), fitted, strict=True):
            values.zero_()[: len(own)] = torch.from_numpy(own)
    return made


def probe_scores(acts: np.ndarray, regions: Regions) -> pd.Series:
    """Average precision on half B, by part, of probes fitted on half A: a ceiling for features, which saw no labels."""
    directions, biases = fit_probes(acts, regions)
    scores, labels = np.float64(acts[regions.in_b]) @ directions.T + biases, regions.labels[regions.in_b]
    found = [average_precision_and_influence(scores[..., i], labels[..., i])[0] for i in range(len(regions.names))]
    return pd.Series(found, regions.names).where(directions.any(1))
