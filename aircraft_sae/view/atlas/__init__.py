"""The atlas: a folder of static HTML that shows a study's features without a kernel or a network.

It is the browser's front end over files. Sliders work where the logits follow from the mean over cells: JavaScript does
that arithmetic. Elsewhere some features of each picture can be switched off one at a time: what then comes out is
stored, from forward passes.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aircraft_sae.study import Study
from aircraft_sae.view.browser.bench import Bench
from aircraft_sae.view.browser.catalogue import HOWS, Catalogue, as_jpeg, catalogue_of
from aircraft_sae.view.browser.labels import Labels
from aircraft_sae.view.browser.widgets import BENCH_PICTURE, front_end

HERE = Path(__file__).parent
CHUNK = 20
"""Features in one file."""
N_ACTIVE = 40
"""Features with a slider, in a picture."""
N_PICTURES, EVERY = 60, 4
"""Pictures on the bench by default, where they are one or two a class; every so many of them is a misclassified one."""
SLIDERS = "Sliders on the bench work"
SWITCHES = (
    "This network's logits are no function of the mean over cells, so that the atlas has no sliders: on the bench one "
    "feature at a time can be switched off, and what then comes out was worked out by forward passes"
)


def export_atlas(study: Study, n_pictures: int | None = None) -> Path:
    """Make the study's stage `atlas`, and give its index.html: the folder can be copied, and opens from any disk.

    n_pictures: test pictures on the bench, in turn of each class; by default two a class up to 60, or one a class if
    that is more. An atlas that is up to date stays. Raises: ValueError for no picture.
    """
    catalogue = catalogue_of(study)
    n_classes = catalogue.images["label"].nunique()
    n_pictures = max(n_classes, min(2 * n_classes, N_PICTURES)) if n_pictures is None else n_pictures
    if not isinstance(n_pictures, int) or n_pictures < 1:
        raise ValueError(f"n_pictures must be at least 1, got {n_pictures!r}: give a whole number")
    labels = Labels(catalogue.folder, catalogue.key).all()
    pages = {name: (HERE / name).read_text(encoding="utf-8") for name in ("index.html", "atlas.js")}
    pages |= dict(zip(("app.js", "app.css"), front_end(), strict=True))
    inputs = {"catalogue": catalogue, "labels": labels, "pages": pages}
    return study.stage("atlas", write_atlas, {"n_pictures": n_pictures}, inputs) / "index.html"


def write_atlas(folder: Path, *, catalogue: Catalogue, labels: dict, pages: dict[str, str], n_pictures: int) -> None:
    """All files of the atlas; pages: the front end, by name."""
    for name in ("features", "pictures", "bench"):
        (folder / name).mkdir(exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    shown = _features(catalogue, folder)
    for row in tqdm(sorted(shown), "atlas: pictures", leave=False):
        (folder / "pictures" / f"{row:05d}.jpg").write_bytes(catalogue.thumbnail(row))
    pictures = _bench(catalogue, _chosen(catalogue, shown, n_pictures), folder)
    works = SWITCHES if catalogue.trial.readout is None else SLIDERS
    words = (
        f"{len(catalogue.table):,} features of the study {catalogue.name}, on {len(catalogue.images):,} test pictures. "
        f"{len(labels)} are labelled. {works}, for {len(pictures)} pictures; blurring, pictures of your own and the "
        "comparison of two classes need the notebook."
    )
    facts = catalogue.overview() | {"bench_pictures": pictures, "switches": catalogue.trial.readout is None}
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
    images = catalogue.images.set_index(catalogue.rows)
    wrong = images["predicted"] != images["label"]
    left = {name: own.index.tolist() for name, own in images.groupby("label")}
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
    """Write the pictures of the bench and what its arithmetic needs, and give the list of pictures."""
    bench, readout, used = Bench(catalogue), catalogue.trial.readout, set()
    for row in tqdm(sorted(chosen), "atlas: bench", leave=False):
        subject = bench.of_row(row)
        page = bench.told(subject, row)
        if readout is None:  # what a switch gives was worked out here
            page["active"] = [each for each in page["active"] if each["effect"] is not None]
            some = [each["feature_id"] for each in page["active"]]
            page["after"] = bench.each(subject, some, []).tolist()
            page["random"] = bench.without(subject, some, torch.eye(len(some)), catalogue.random).tolist()
        else:
            page["flip"] = bench.flip(subject)
            first, others = page["active"][:N_ACTIVE], page["active"][N_ACTIVE:]
            page["active"] = first + [each for each in others if each["feature_id"] in page["flip"]["features"]]
            page["hidden"] = _text(subject.pooled[None].numpy())
            used |= {each["feature_id"] for each in page["active"]}
        _script(folder, f"bench/{row:05d}.js", page)
        (folder / "bench" / f"{row:05d}.jpg").write_bytes(as_jpeg(subject.picture, BENCH_PICTURE))
    if readout is not None:
        features = sorted(used)
        arrays = {
            "weight": readout.weight, "bias": readout.bias, "decoder": bench.W_dec[features],
            "random": catalogue.random[features],
        }  # fmt: skip
        packed = {name: _text(each.numpy().astype("<f4")) for name, each in arrays.items()}
        _script(folder, "bench/head.js", packed | {"eps": readout.eps, "features": features})
    return catalogue.on_bench(np.array(sorted(chosen)))


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
