"""What features are: the index of every cell's codes, class selectivity, the parts they follow, and where they look."""

# ruff: noqa: I001
from aircraft_sae.features.claims import (
    auroc_in_strata, average_precision, best_estimates, claim_bars, claims_of, ways_to_count,
)  # fmt: skip
from aircraft_sae.features.index import FeatureIndex, build_index, check_features, neighbours
from aircraft_sae.features.localisation import localise, part_picks
from aircraft_sae.features.probes import (
    fit_probes, probe_dictionary, probe_scores, read_cells,
)  # fmt: skip
from aircraft_sae.features.regions import (
    PARTS, Regions, ap_of, best_matches, build_features, guess_scores, part_scores,
)  # fmt: skip
from aircraft_sae.features.selectivity import best_aurocs, halves, selectivity
