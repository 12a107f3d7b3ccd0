"""Sets of pictures behind one interface: tables, pictures, and where they are known regions, scenes and factors.

`base` says what every set offers, `folders` are those on disk (the hangar's too), `loading` feeds a network.
"""

from aircraft_sae.pictures.base import Pictures, coverage, decode, note_pictures
from aircraft_sae.pictures.folders import FGVCLayout, ImageFolder, download, open_source
from aircraft_sae.pictures.loading import Loader, Views, loader, test_transform, train_transform
