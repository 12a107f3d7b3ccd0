"""Sets of pictures behind one interface, `base`: `folders` on disk, rendered `scenes` with one thing changed, and
synthetic `curves`; `loading` makes batches of them."""

from aircraft_sae.pictures.base import Pictures, decode, note_pictures
from aircraft_sae.pictures.folders import FGVCLayout, ImageFolder, download, open_source
from aircraft_sae.pictures.loading import Loader, PictureDataset, loader, test_transform, train_transform
