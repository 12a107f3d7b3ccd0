"""Spatial activations of any sites of any network: kept on disk, or seen when needed, and read back as cells."""

# ruff: noqa: I001
from aircraft_sae.activations.cells import (
    Activations, OnPictures, effective_radius, gradient_maps, replay, see_features,
)  # fmt: skip
from aircraft_sae.activations.kept import VIEWS, Source, extract, site_folder
