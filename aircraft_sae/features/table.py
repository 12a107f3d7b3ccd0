"""The whole `features` stage: the index, and one tidy table with all that is measured about each feature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aircraft_sae.activations import Activations
from aircraft_sae.features.index import TABLE, FeatureIndex, build_index
from aircraft_sae.features.parts import cell_labels, part_scores
from aircraft_sae.features.selectivity import N_PERMUTATIONS, halves, selectivity
from aircraft_sae.pictures import AircraftData
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

PARTS_TABLE = "parts.parquet"


def build_features(
    sae: SparseAutoencoder,
    acts: Activations,
    data: AircraftData,
    folder: str | Path,
    n_permutations: int = N_PERMUTATIONS,
    progress: bool = True,
    splits: Sequence[str] = ("train", "val", "test"),
) -> None:
    """The index of all pictures (of these splits), and in features.parquet what the test pictures say of each feature.

    Columns: those of `describe`, of `selectivity` on each level (not with n_permutations=0) and, where there are masks,
    part (largest excess on half A) with its scores of `part_scores` on half B, as part_ap, part_auroc, …; parts.parquet
    has all features and parts.
    """
    folder = Path(folder)
    build_index(sae, acts, folder, progress, acts.rows(*splits))
    index = FeatureIndex.open(folder)
    test = index.rows("test")
    images = index.images.iloc[test]
    in_b = halves(images[data.levels[0]])
    labels = {
        level: (pd.Categorical(images[level], data.classes(level)).codes, data.classes(level)) for level in data.levels
    }
    table = index.table
    if n_permutations:
        table = table.join(selectivity(index.maxima(test), labels, in_b, n_permutations))
    if data.masks:
        classes = labels[data.levels[0]][0]
        scores = part_scores(index, *cell_labels(data, images["image"], index.grid), test, in_b, classes)
        write_parquet(scores, folder / PARTS_TABLE)
        table = table.join(best_parts(scores).drop(columns="feature_id"))
    write_parquet(table, folder / TABLE)


def best_parts(scores: pd.DataFrame) -> pd.DataFrame:
    """Each feature's part, that of its largest excess on half A: feature_id, part, part_ap, …; in the features' order.

    Not the largest average precision, which is nearly always that of the part most often seen.
    """
    n_parts = scores["part"].nunique()
    best = scores["excess_a"].fillna(-1).to_numpy().reshape(-1, n_parts).argmax(1)
    chosen = scores.iloc[np.arange(len(best)) * n_parts + best].reset_index(drop=True)
    return chosen.rename(columns={c: f"part_{c}" for c in chosen if c not in ("feature_id", "part")})
