"""What a feature claims to show, and a probe fitted to labels, and how well they do on half B, picture by picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import precision_recall_curve

from aircraft_sae.activations import Activations
from aircraft_sae.devices import side_by_side
from aircraft_sae.features.index import FeatureIndex, encoded
from aircraft_sae.features.reconstruction import readers
from aircraft_sae.features.regions import Regions, ap_of, average_precisions, guesses
from aircraft_sae.metrics import FEWEST, Estimate, stratified_auroc
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

N_BARS = 20  # null dictionaries whose best features a claim has to beat: 95 % of them


def claim_bars(folder: Path, *, acts: Activations, nulls: Sequence[SparseAutoencoder], pictures: Pictures) -> None:
    """What it takes to claim a part, in bars.parquet: part, bar (95th percentile of nulls' largest ap_a, on half A)."""
    regions = Regions.of(acts, pictures)
    rows, labels = regions.rows[~regions.in_b], regions.labels[~regions.in_b].reshape(-1, len(regions.names))

    def best(null: SparseAutoencoder) -> np.ndarray:
        return np.nan_to_num(average_precisions(encoded(null, acts.blocks(rows)), labels)).max(0)

    bars = np.quantile(list(side_by_side(best, nulls)), 0.95, axis=0)
    write_parquet(pd.DataFrame({"part": regions.names, "bar": bars}), folder / "bars.parquet")


def claims_of(scores: pd.DataFrame, bars: pd.DataFrame) -> pd.Series:
    """The part, or None, that each feature claims: where ap_a of `part_scores` is furthest above the bar, if it is."""
    over = scores["ap_a"] - scores["part"].map(bars.set_index("part")["bar"])
    claimed = scores.assign(over=over)[over > 0].sort_values(["over", "part"], ascending=[False, True])
    parts = claimed.drop_duplicates("feature_id").set_index("feature_id")["part"]
    return parts.reindex(scores["feature_id"].unique()).astype(object).where(lambda part: part.notna(), None)


def average_precision(
    index: FeatureIndex, regions: Regions, feature_id: int, part: str, swap: bool = False
) -> Estimate:
    """Of a feature for a part's cells; swap: with the masks of another picture of the same class."""
    member = regions.labels[_another(regions) if swap else regions.in_b][..., regions.names.index(part)]
    ap, influence = ap_of(index.maps(feature_id, regions.rows[regions.in_b]), member)
    return _estimate(index, regions, member, ap, influence)


def best_estimates(index: FeatureIndex, regions: Regions, matches: pd.DataFrame) -> dict[str, Estimate]:
    """{part: `average_precision` of its best feature}, of `best_matches`."""
    return {part: average_precision(index, regions, int(j), part) for part, j in matches["feature_id"].items()}


def auroc_in_strata(index: FeatureIndex, regions: Regions, feature_id: int, part: str) -> Estimate:
    """AUROC for a part among half B's aircraft cells, in strata of family and cell: 0.5 for who knows these alone."""
    return _in_strata(index, regions, part, index.maps(feature_id, regions.rows[regions.in_b]))


def guessed_in_strata(index: FeatureIndex, regions: Regions, part: str) -> float:
    """The largest such AUROC of `guesses`, who know the true outline and class."""
    known = guesses(regions, regions.in_b).values()
    found = [_in_strata(index, regions, part, score[..., regions.names.index(part)]).value for score in known]
    return float(np.fmax.reduce(found))


def _in_strata(index: FeatureIndex, regions: Regions, part: str, values: np.ndarray) -> Estimate:
    in_b, (rows, columns) = regions.in_b, index.grid
    within, member = regions.within[in_b], regions.labels[in_b][..., regions.names.index(part)]
    picture, row, column = np.nonzero(within)
    strata = (regions.families[in_b][picture] * rows + row) * columns + column
    return _estimate(index, regions, member, *stratified_auroc(values[within], member[within], strata, picture))


def _estimate(index: FeatureIndex, regions: Regions, member: np.ndarray, value: float, influence) -> Estimate:
    """Of half B's pictures; without an interval where fewer than FEWEST have a cell in member (n, rows, columns)."""
    padded = np.full(len(member), np.nan if member.any((1, 2)).sum() < FEWEST else 0.0)
    padded[: len(influence)] += influence  # the last pictures may show no aircraft
    return Estimate(value, pd.Series(padded, pd.Index(index.images["image"].iloc[regions.rows[regions.in_b]])))


def _another(regions: Regions) -> np.ndarray:
    """For each picture of half B the one before it in its class, as a row of `regions`."""
    own = pd.Series(np.flatnonzero(regions.in_b))
    of_class = own.groupby(regions.classes[own])
    return of_class.shift().fillna(of_class.transform("last")).to_numpy(int)


def fit_probes(acts: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """(directions (parts, d_in), biases (parts,)): a cell is said to show part i where acts . direction + bias >= 0.

    acts: (n, rows, columns, d_in) of the regions' pictures. Fitted on half A: ridge regression, channels standardised,
    penalty 0.001 times the cells; biases of best F1. No direction where all or no cells show the part: zeros.
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
    """The probes as features 0, 1, … of a dictionary that reads what `sae` reads of its site's acts."""
    return readers(sae, *map(torch.from_numpy, fit_probes(acts.acts[acts.rows("test")], regions)))


def probe_scores(acts: np.ndarray, regions: Regions) -> pd.Series:
    """Average precision on half B, by part, of probes fitted on half A: a ceiling, for no feature has seen labels."""
    directions, biases = fit_probes(acts, regions)
    scores, labels = np.float64(acts[regions.in_b]) @ directions.T + biases, regions.labels[regions.in_b]
    found = [ap_of(scores[..., i], labels[..., i])[0] for i in range(len(regions.names))]
    return pd.Series(found, regions.names).where(directions.any(1))
