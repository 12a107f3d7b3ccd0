"""What features are: the index of every cell's codes, and the classes and parts that features follow."""

# ruff: noqa: I001
from aircraft_sae.features.claims import (
    auroc_in_strata, average_precision, best_estimates, claim_bars, claims_of, probe_dictionary, probe_scores,
)  # fmt: skip
from aircraft_sae.features.index import FeatureIndex, build_index, check_features, neighbours
from aircraft_sae.features.reconstruction import cell_covariance, random_directions, seed_match
from aircraft_sae.features.regions import (
    PARTS, Regions, best_aurocs, best_matches, build_features, cell_labels, guess_scores, halves, part_scores,
    selectivity,
)  # fmt: skip
