"""What features are: the index of every cell's codes, class selectivity, the parts they follow, and where they look."""

from aircraft_sae.features.index import FeatureIndex, build_index, check_features, describe, neighbours
from aircraft_sae.features.localisation import localise
from aircraft_sae.features.parts import FIRST, LEAST, ap_draws, cell_labels, excess_tests, guess_scores, part_scores
from aircraft_sae.features.probes import absorption, fit_probes, matching_pursuit, probe_scores
from aircraft_sae.features.selectivity import halves, selectivity
from aircraft_sae.features.table import best_parts, build_features

__all__ = [
    "FIRST",
    "LEAST",
    "FeatureIndex",
    "absorption",
    "ap_draws",
    "best_parts",
    "build_features",
    "build_index",
    "cell_labels",
    "check_features",
    "describe",
    "excess_tests",
    "fit_probes",
    "guess_scores",
    "halves",
    "localise",
    "matching_pursuit",
    "neighbours",
    "part_scores",
    "probe_scores",
    "selectivity",
]
