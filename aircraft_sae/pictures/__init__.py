"""Data sets in FGVC-Aircraft layout: one path for the hangar, FGVC-Aircraft itself and any folder of that layout.

`annotations` reads and checks the text files, `aircraft` is the data set, `loading` feeds a network.
"""

from aircraft_sae.pictures.aircraft import SPLITS, AircraftData, download, find_folder, open_source
from aircraft_sae.pictures.loading import Loader, Pictures, loader, pixel_config, test_transform, train_transform

__all__ = [
    "SPLITS", "AircraftData", "Loader", "Pictures", "download", "find_folder", "loader", "open_source", "pixel_config",
    "test_transform", "train_transform",
]  # fmt: skip
