"""The text files of FGVC-Aircraft layout: read into tables, and refused where they contradict themselves."""

from pathlib import Path
from unicodedata import normalize

import pandas as pd

from aircraft_sae.config import LEVELS

NAMES_FILES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
DISJOINT_SPLITS = ("train", "val", "test")


def read_annotations(folder: Path) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """(table with columns image, split and one per level; class names by level in file order).

    A level may be absent with all its files.
    Raises: FileNotFoundError for a missing file, ValueError for files that contradict themselves or each other.
    """
    needed = {
        level: [NAMES_FILES[level], *(f"images_{level}_{split}.txt" for split in DISJOINT_SPLITS)] for level in LEVELS
    }
    levels = [level for level in LEVELS if any((folder / name).is_file() for name in needed[level])] or ["variant"]
    if missing := [name for level in levels for name in needed[level] if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks the annotation files {', '.join(missing)}: copy them there.")
    classes, table = {}, None
    for level in levels:
        names = _lines(folder / NAMES_FILES[level])
        refuse(names[names.duplicated()], f"classes twice in {folder / NAMES_FILES[level]}")
        labels = pd.concat([_read_labels(folder, level, split) for split in DISJOINT_SPLITS], ignore_index=True)
        where = f"in {folder / f'images_{level}_*.txt'}"
        refuse(labels[level][~labels[level].isin(names)], f"labels {where} that {NAMES_FILES[level]} does not name")
        refuse(labels["image"][labels["image"].duplicated()], f"images listed twice {where}")
        classes[level] = names.tolist()
        table = labels[["image", "split"]] if table is None else table
        both = table.merge(labels, "outer", ["image", "split"], indicator="listed")
        refuse(both["image"][both["listed"] != "both"], f"images {where} not listed as in {levels[0]}")
        table = table.merge(labels, on=["image", "split"])
    refuse(table["image"][table["image"].str.contains(r"[/\\]|^\.")], f"image names in {folder} that are no file names")
    check_occupied(table, classes, str(folder))
    return table, classes


def check_occupied(table: pd.DataFrame, classes: dict[str, list[str]], where: str) -> None:
    """ValueError where a split or a class has no image, or the finest level is too little to learn and to test."""
    if empty := [split for split in DISJOINT_SPLITS if split not in set(table["split"])]:
        raise ValueError(f"the {' and '.join(empty)} split of {where} is empty: list at least one image there.")
    for level, names in classes.items():
        names = pd.Series(names, dtype=str)
        refuse(names[~names.isin(table[level])], f"{level} classes of {where} without an image")
    for level, names in list(classes.items())[:1]:
        if len(names) < 2:
            raise ValueError(f"{where} has pictures of one {level}, {names[0]}: there must be two or more.")
        if table[level][table["split"] == "test"].value_counts().max() < 2:
            remedy = "list two or more of most classes there, or six in all where splits are drawn."
            raise ValueError(f"no {level} of {where} has two test pictures, one for each half: {remedy}")


def refuse(names: pd.Series, what: str, remedy: str = "Correct these files.", error: type = ValueError) -> None:
    """Raise `error` with the number and the first five of `names`, if there are any."""
    if n := len(names := names.drop_duplicates()):
        raise error(f"{n} {what}: {', '.join([*names[:5], *['…'] * (n > 5)])}. {remedy}")


def _read_labels(folder: Path, level: str, split: str) -> pd.DataFrame:
    path = folder / f"images_{level}_{split}.txt"
    lines = _lines(path)
    parts = lines.str.extract(r"^(\S+) +(.+)$")  # the first space ends the image, the label may hold more
    refuse(lines[parts[0].isna()], f'lines of {path} that are not "image label"')
    image = parts[0].str.replace(r"\.(jpe?g|png)$", "", case=False, regex=True)  # some lists name files
    return pd.DataFrame({"image": image, "split": split, level: parts[1]})


def _lines(path: Path) -> pd.Series:
    """Stripped lines of a UTF-8 text file, less empty ones; any line ends, with or without a byte-order mark."""
    try:
        lines = [line.strip() for line in normalize("NFC", path.read_text("utf-8-sig")).split("\n")]
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is not UTF-8 text ({problem}): save it as UTF-8.") from problem
    return pd.Series(filter(None, lines), dtype=str)
