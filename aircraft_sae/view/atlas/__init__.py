"""The atlas: a folder of static HTML that shows a study's features without a kernel or a network.

It is the browser's front end over files. Sliders work: the head's arithmetic on pooled vectors is done in JavaScript.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from aircraft_sae.store import META, PROGRESS, fingerprint, make_stage
from aircraft_sae.study import Study, say
from aircraft_sae.view.browser.bench import Bench
from aircraft_sae.view.browser.catalogue import HOWS, Catalogue, as_jpeg
from aircraft_sae.view.browser.labels import Labels
from aircraft_sae.view.browser.widgets import BENCH_PICTURE, catalogue_of, front_end, told

HERE = Path(__file__).parent
CHUNK = 20
"""Features in one file."""
N_ACTIVE = 40
"""Features with a slider, in a picture."""
N_PICTURES, EVERY = 60, 4
"""Pictures on the bench by default, where they are one or two a class; every so many of them is a misclassified one."""
OWN = {"index.html", "atlas.js", "app.js", "app.css", "data.js", "features", "pictures", "bench", META, PROGRESS}
"""What may lie in an atlas that is written anew."""
VERSION = 4


def export_atlas(study: Study, folder: str | Path | None = None, n_pictures: int | None = None) -> Path:
    """Write the atlas into `folder`, by default the study's own `atlas`, and give its index.html.

    n_pictures: test pictures on the bench, in turn of each class; by default two a class up to 60, or one a class if
    that is more. An atlas that is up to date stays. Raises: ValueError for a folder with other things in it, or no
    picture.
    """
    catalogue = catalogue_of(study)
    n_classes = len(catalogue.classifier.classes)
    n_pictures = max(n_classes, min(2 * n_classes, N_PICTURES)) if n_pictures is None else n_pictures
    if not isinstance(n_pictures, int) or n_pictures < 1:
        raise ValueError(f"n_pictures must be at least 1, got {n_pictures!r}: give a whole number")
    folder = study.folder / "atlas" if folder is None else Path(folder).expanduser().resolve()
    for end, signs in {"": {"atlas.js"}, ".partial": {META, PROGRESS}, ".old": {"atlas.js"}}.items():  # must be ours
        path = folder.with_name(folder.name + end)  # making a stage takes the place of all three
        there = {each.name for each in path.iterdir()} if path.is_dir() else {""} if path.exists() else set()
        if there and (not there & signs or {name for name in there - OWN if not name.endswith(".tmp")}):
            raise ValueError(f"{path} holds other things than an atlas: name a new folder")
    labels = Labels(catalogue.folder, catalogue.key).all()
    table = catalogue.table.to_json(double_precision=6)
    inputs = {"autoencoder": catalogue.key, "known": fingerprint(table, labels, list(front_end()))}
    config = {"n_pictures": n_pictures, "version": VERSION}
    make_stage(folder, config, inputs, lambda work: _write(catalogue, labels, n_pictures, work), say=say)
    return folder / "index.html"


def _write(catalogue: Catalogue, labels: dict, n_pictures: int, folder: Path) -> None:
    for name in ("features", "pictures", "bench"):
        (folder / name).mkdir(exist_ok=True)
    shutil.copy(HERE / "index.html", folder)
    shutil.copy(HERE / "atlas.js", folder)
    for name, text in zip(("app.js", "app.css"), front_end(), strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    shown = _features(catalogue, folder)
    for row in tqdm(sorted(shown), "atlas: pictures", leave=False):
        (folder / "pictures" / f"{row:05d}.jpg").write_bytes(catalogue.thumbnail(row))
    pictures = _bench(catalogue, _chosen(catalogue, shown, n_pictures), folder)
    words = (
        f"{len(catalogue.table):,} features of the study {catalogue.name}, on {len(catalogue.images):,} test pictures. "
    )
    words += f"{len(labels)} are labelled. Sliders on the bench work, for {len(pictures)} pictures; blurring, pictures "
    words += "of your own and the comparison of two classes need the notebook."
    facts = catalogue.overview() | {"bench_pictures": pictures}
    data = {"facts": facts, "labels": labels, "chunk": CHUNK, "told": words}
    (folder / "data.js").write_text(f"window.ATLAS = {_json(data)};\n", encoding="utf-8")


def _features(catalogue: Catalogue, folder: Path) -> dict[int, set[int]]:
    """Write all features' pages, and give the rows of the pictures that they show, and who shows it among its top."""
    shown: dict[int, set[int]] = defaultdict(set)
    for first in tqdm(range(0, len(catalogue.table), CHUNK), "atlas: features", leave=False):
        pages = []
        for feature_id in range(first, min(first + CHUNK, len(catalogue.table))):
            galleries = {}
            top = float(np.nan_to_num(catalogue.table.at[feature_id, "max"])) or 1.0
            for how in HOWS:
                view, maps = catalogue.feature(feature_id, how)
                shares = (255 * np.clip(maps / top, 0, 1)).round().astype(np.uint8)
                galleries[how] = {"tiles": [_short(tile) for tile in view["gallery"]], "maps": _text(shares)}
                for tile in view["gallery"]:
                    shown[tile["picture"]] |= {feature_id} if how == "top" else set()
            pages.append({"about": catalogue.about(feature_id), "galleries": galleries})
        _script(folder, f"features/{first:05d}.js", pages)
    return shown


def _chosen(catalogue: Catalogue, shown: dict[int, set[int]], n: int) -> list[int]:
    """Rows for the bench, in turn of each class: so that most features have one of them among their top pictures."""
    level, images = catalogue.level, catalogue.images.set_index(catalogue.rows)
    wrong = images["predicted"] != images[level]
    left = {name: own.index.tolist() for name, own in images.groupby(level)}
    chosen: list[int] = []
    seen: set[int] = set()
    while len(chosen) < n and any(left.values()):
        for name in [name for name in left if left[name]][: n - len(chosen)]:
            mistakes = [row for row in left[name] if wrong[row]] if len(chosen) % EVERY == EVERY - 1 else []
            best = max(mistakes or left[name], key=lambda row: len(shown.get(row, set()) - seen))
            left[name].remove(best)
            chosen.append(best)
            seen |= shown.get(best, set())
    return chosen


def _bench(catalogue: Catalogue, chosen: list[int], folder: Path) -> list[dict[str, Any]]:
    """Write the pictures of the bench and the head, and give the list of pictures."""
    bench, level, images = Bench(catalogue), catalogue.level, catalogue.images.set_index(catalogue.rows)
    used: set[int] = set()
    listed = []
    for row in tqdm(sorted(chosen), "atlas: bench", leave=False):
        facts = images.loc[row]
        subject = bench.of_row(row)
        page = told(catalogue, bench, subject, row)
        page["flip"] = bench.flip(subject)
        active = page["active"]
        page["active"] = active[:N_ACTIVE] + [
            each for each in active[N_ACTIVE:] if each["feature_id"] in page["flip"]["features"]
        ]
        used |= {each["feature_id"] for each in page["active"]}
        page["pooled"] = _text(subject.pooled.numpy().astype("<f4"))
        _script(folder, f"bench/{row:05d}.js", page)
        picture = subject.picture.resize((BENCH_PICTURE, BENCH_PICTURE))
        (folder / "bench" / f"{row:05d}.jpg").write_bytes(as_jpeg(picture))
        right = facts["predicted"] == facts[level]
        listed.append({"picture": row, "name": facts["image"], "label": facts[level], "right": bool(right)})
    features, head = sorted(used), catalogue.head
    arrays = {
        "weight": head.weight,
        "bias": head.bias,
        "decoder": bench.W_dec[features],
        "random": catalogue.random[features],
    }
    packed = {name: _text(values.numpy().astype("<f4")) for name, values in arrays.items()}
    _script(folder, "bench/head.js", packed | {"eps": head.eps, "features": features})
    return sorted(listed, key=lambda each: each["label"])


def _short(tile: dict[str, Any]) -> dict[str, Any]:
    """A tile without what takes a sixth of the atlas: right predictions, and digits that nobody sees."""
    short = tile | {"value": float(f"{tile['value']:.5g}")}
    if short["predicted"] == short["label"]:
        del short["predicted"]
    return short


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _json(value: Any) -> str:
    """JSON that may stand in a script: no name of a class can end it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _script(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(f"ATLAS.got({json.dumps(name)}, {_json(value)});\n", encoding="utf-8")
