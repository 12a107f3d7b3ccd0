"""Figures: each function returns a matplotlib Figure and touches no global state; `in_words` is a result as prose.

Sizes are chosen so that a figure of a notebook's width is still readable at half of it.
"""

from aircraft_sae.plots.classifier import accuracy_by_level, confusion_matrix, learning_curves, reliability
from aircraft_sae.plots.pictures import contact_sheet, part_masks, part_shares, picture_grid
from aircraft_sae.plots.style import PART_COLOURS, in_words

__all__ = [
    "PART_COLOURS", "accuracy_by_level", "confusion_matrix", "contact_sheet", "in_words", "learning_curves",
    "part_masks", "part_shares", "picture_grid", "reliability",
]  # fmt: skip
