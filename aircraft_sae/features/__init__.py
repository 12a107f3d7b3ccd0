"""What features are: the index of every cell's codes, class selectivity, and the parts of the aircraft they follow."""

from aircraft_sae.features.index import FeatureIndex, build_index, describe, neighbours
from aircraft_sae.features.parts import cell_labels, part_scores
from aircraft_sae.features.selectivity import halves, selectivity

__all__ = [
    "FeatureIndex",
    "build_index",
    "cell_labels",
    "describe",
    "halves",
    "neighbours",
    "part_scores",
    "selectivity",
]
