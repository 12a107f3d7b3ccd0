"""Figures: each function returns a matplotlib Figure and touches no global state; `in_words` is a result as prose.

Sizes are chosen so that a figure of a notebook's width is still readable at half of it.
"""

# ruff: noqa: I001
from aircraft_sae.view.plots.charts import (
    accuracy_by_level, against_null, agreement, channel_sparsity, confusion_matrix, cumulative_variance, curves,
    density_histogram, differences, dots, energy_shares, learning_curves, matrix, reliability, sae_curves,
    scores_by_part, sparsity_tradeoff,
)  # fmt: skip
from aircraft_sae.view.plots.pictures import (
    component_picture, contact_sheet, heat, heat_maps, part_masks, part_shares, picture_grid,
)  # fmt: skip
from aircraft_sae.view.plots.style import in_words
