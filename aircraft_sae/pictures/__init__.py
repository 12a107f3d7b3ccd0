"""Sets of pictures behind one interface: `base` is what all offer, `folders` those on disk, `scenes` scenes with
one thing changed; `loading` feeds them."""

from aircraft_sae.pictures.base import Pictures, coverage, decode, note_pictures
from aircraft_sae.pictures.folders import FGVCLayout, ImageFolder, download, open_source
from aircraft_sae.pictures.loading import Loader, PictureDataset, loader, test_transform, train_transform
