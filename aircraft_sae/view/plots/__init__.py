"""Figures: each function returns a matplotlib Figure and touches no global state; `in_words` is a result as prose.

Sizes are chosen so that a figure of a notebook's width is still readable at half of it.
"""

from aircraft_sae.view.plots.activations import (
    channel_sparsity,
    component_picture,
    cumulative_variance,
    differences,
    energy_shares,
    heat_maps,
)
from aircraft_sae.view.plots.classifier import accuracy_by_level, confusion_matrix, learning_curves, reliability
from aircraft_sae.view.plots.features import against_null, agreement, curves, heat, matrix, scores_by_part
from aircraft_sae.view.plots.pictures import contact_sheet, part_masks, part_shares, picture_grid
from aircraft_sae.view.plots.sae import density_histogram, dots, sae_curves, sparsity_tradeoff
from aircraft_sae.view.plots.style import PART_COLOURS, in_words

__all__ = [
    "PART_COLOURS", "accuracy_by_level", "against_null", "agreement", "channel_sparsity", "component_picture",
    "confusion_matrix", "contact_sheet", "cumulative_variance", "curves", "density_histogram", "differences",
    "dots", "energy_shares", "heat", "heat_maps", "in_words", "learning_curves", "matrix", "part_masks",
    "part_shares", "picture_grid", "reliability", "sae_curves", "scores_by_part", "sparsity_tradeoff",
]  # fmt: skip
