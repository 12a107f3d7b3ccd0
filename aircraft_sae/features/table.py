"""The whole `features` stage: the index, and one tidy table with all that is measured about each feature."""

from pathlib import Path

import pandas as pd

from aircraft_sae.activations import Activations
from aircraft_sae.features.index import TABLE, build_index
from aircraft_sae.features.regions import Regions, best_parts, part_scores
from aircraft_sae.features.selectivity import halves
from aircraft_sae.features.selectivity import selectivity as class_selectivity
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

PARTS = "parts.parquet"


def build_features(
    folder: Path, sae: SparseAutoencoder, acts: Activations, pictures: Pictures, splits: list[str], selectivity: bool
) -> None:
    """The index of the pictures of these splits, and in features.parquet what the test pictures say of each feature.

    Columns: those of `build_index`; of `selectivity`, if asked for, on each level that the pictures have; where they
    have regions, those of `best_parts`, as part, part_ap, part_auroc, …; parts.parquet has all features and parts.
    """
    index = build_index(sae, acts, folder, acts.rows(*splits))
    test, levels = index.rows("test"), pictures.levels
    table, images = index.table, index.images.iloc[test]
    if len(images) > 1 and levels and selectivity:
        names = {level: pictures.classes(level) for level in levels}
        labels = {level: (pd.Categorical(images[level], names[level]).codes, names[level]) for level in levels}
        table = table.join(class_selectivity(index.maxima(test), labels, halves(images[levels[0]])))
    if len(images) > 1 and pictures.region_names:
        scores = part_scores(index, Regions.of(index, pictures))
        write_parquet(scores, folder / PARTS)
        table = table.join(best_parts(scores).drop(columns="feature_id"))
    write_parquet(table, folder / TABLE)
