"""Sets of pictures behind one interface: tables, pictures, and where they are known regions, scenes and factors.

`base` says what every set offers, `fgvc` (the hangar too) and `image_folder` are folders on disk, `annotations` checks
the first one's text files, `loading` feeds a network.
"""

from aircraft_sae.pictures.base import Pictures, decode, note_pictures
from aircraft_sae.pictures.fgvc import FGVCLayout, download, open_source
from aircraft_sae.pictures.image_folder import ImageFolder
from aircraft_sae.pictures.loading import Loader, Views, loader, test_transform, train_transform
