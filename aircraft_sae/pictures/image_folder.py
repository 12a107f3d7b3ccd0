"""Folders of pictures whose folders name split and class."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd
from torchvision.datasets.folder import IMG_EXTENSIONS

from aircraft_sae.pictures.annotations import DISJOINT_SPLITS, check_occupied, refuse
from aircraft_sae.pictures.base import PictureFiles

MOVE = "Move or rename them."


class ImageFolder(PictureFiles):
    """Pictures at root/split/class/…, or root/class/… with a split that is drawn; without class folders, no levels."""

    @classmethod
    def read(cls, root: Path) -> tuple[Path, dict[str, Path], pd.DataFrame, dict[str, list[str]]]:
        """See `PictureFiles`. An image's name is its path below `root`, "-" for "/", without extension."""
        found = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
        below = [path.relative_to(root) for path in found]
        paths = [path for path in below if not any(name.startswith(".") for name in path.parts)]  # a system's own
        parts = [tuple(normalize("NFC", name) for name in path.with_suffix("").parts) for path in paths]
        if not paths:
            raise FileNotFoundError(f"{root} holds no pictures: it must have <split>/<class>/*.jpg or <class>/*.jpg")
        table = pd.DataFrame({"image": map("-".join, parts), "split": [names[0] for names in parts]})
        refuse(table["image"][table["image"].duplicated()], f"images of {root} that would have the same name", MOVE)
        named = table["split"].isin(DISJOINT_SPLITS)
        if named.any():
            refuse(table["image"][~named], f"pictures of {root} outside its folders {', '.join(DISJOINT_SPLITS)}", MOVE)
            parts = [names[1:] for names in parts]
        table["class"] = [names[0] if len(names) > 1 else "" for names in parts]
        if not named.any():
            table["split"] = _draw(table["class"])
        classes = {"class": sorted(set(table["class"]))}
        if classes["class"] == [""]:
            table, classes = table.drop(columns="class"), {}
        else:
            refuse(table["image"][table["class"] == ""], f"pictures of {root} outside its class folders", MOVE)
            trained = table["class"][table["split"] == "train"]
            refuse(table["class"][~table["class"].isin(trained)], f"classes of {root} without a training picture", MOVE)
        check_occupied(table, classes, str(root))
        return root, {image: root / path for image, path in zip(table["image"], paths, strict=True)}, table, classes


def _draw(classes: pd.Series) -> list[str]:
    """A split for each image: of each class 57, 10 and 33 %, as in the hangar, drawn."""
    draws = pd.Series(np.random.default_rng(0).random(len(classes))).groupby(classes)
    place = (draws.rank() - 0.5) / draws.transform("size")  # among the own class, in (0, 1)
    return pd.cut(place, [0, 0.57, 0.57 + 0.10, 1], labels=DISJOINT_SPLITS).tolist()
