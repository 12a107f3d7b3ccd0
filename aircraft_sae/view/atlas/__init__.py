"""The atlas: a folder of static HTML that shows a study's features without a kernel or a network.

It is the browser's front end on files. Where logits have a closed form in the mean over cells, sliders work: JavaScript
computes them. Elsewhere features can be switched off one at a time, with logits from stored forward passes.
"""

import base64
import json
import os
import shutil
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from aircraft_sae.store import write_text
from aircraft_sae.study import Study
from aircraft_sae.view.browser.bench import Bench
from aircraft_sae.view.browser.catalogue import HOWS, Catalogue, as_jpeg, catalogue_of
from aircraft_sae.view.browser.widgets import BENCH_PICTURE, SCRIPT, STYLE, Labels

HERE = Path(__file__).parent
CHUNK = 20  # features in one file


def export_atlas(study: Study, like: str = "main") -> Path:
    """Make the stage `atlas` and atlas.zip beside it, with the current labels; returns its index.html.

    like: the config's "main" or "local" autoencoder. The bench has two test pictures per class, but at most 60 in all,
    or one per class if that is more.
    """
    catalogue = catalogue_of(study, like)
    settings = {"n_pictures": max(n_classes := catalogue.images["label"].nunique(), min(2 * n_classes, 60))}
    pages = {name: (HERE / name).read_text("utf-8") for name in ("index.html", "atlas.js")}
    pages |= {"app.js": SCRIPT, "app.css": STYLE}
    folder = study.stage("atlas", write_atlas, settings, {"catalogue": catalogue, "pages": pages})
    text = f"ATLAS.labels = {_json(Labels(catalogue.folder, catalogue.key).all())};\n"
    if not (path := folder / "labels.js").is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    if not (packed := folder.with_suffix(".zip")).is_file() or packed.stat().st_mtime < path.stat().st_mtime:
        with suppress(OSError):  # a read-only disk: the folder is enough
            os.replace(shutil.make_archive(f"{folder}.partial", "zip", folder.parent, folder.name), packed)
    return folder / "index.html"


def write_atlas(folder: Path, *, catalogue: Catalogue, pages: dict[str, str], n_pictures: int) -> None:
    """Write all files of the atlas; pages: the front end's files, by name."""
    for name in ("features", "pictures", "bench", "classes"):
        (folder / name).mkdir(exist_ok=True)
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    shown = _features(catalogue, folder)
    for row in tqdm(sorted(shown), "atlas: pictures", leave=False):
        (folder / "pictures" / f"{row:05d}.jpg").write_bytes(catalogue.thumbnail(row))
    pictures = _bench(catalogue, _chosen(catalogue, shown, n_pictures), folder)
    facts = catalogue.overview() | {"bench_pictures": pictures, "switches": catalogue.trial.readout is None}
    (folder / "data.js").write_text(f"window.ATLAS = {_json({'facts': facts, 'chunk': CHUNK})};\n", encoding="utf-8")


def _features(catalogue: Catalogue, folder: Path) -> dict[int, set[int]]:
    """Write the features' pages; returns {row of a picture shown: the features with it among their top pictures}."""
    shown: dict[int, set[int]] = defaultdict(set)
    for first in tqdm(range(0, len(catalogue.table), CHUNK), "atlas: features", leave=False):
        pages = []
        for feature_id in range(first, min(first + CHUNK, len(catalogue.table))):
            galleries = {}
            top = float(np.nan_to_num(catalogue.table.at[feature_id, "max"])) or 1.0
            for how in HOWS:
                view, maps = catalogue.feature(feature_id, how)
                shares = (255 * np.clip(maps / top, 0, 1)).round().astype(np.uint8)
                galleries[how] = {"tiles": view["gallery"], "maps": _text(shares)}
                for tile in view["gallery"]:
                    shown[tile["picture"]] |= {feature_id} if how == "top" else set()
                    tile["value"] = float(f"{tile['value']:.5g}")  # this makes the atlas a sixth smaller
                    if tile["predicted"] == tile["label"]:
                        del tile["predicted"]
            pages.append({"about": catalogue.about(feature_id), "galleries": galleries})
        _script(folder, f"features/{first:05d}.js", pages)
    return shown


def _chosen(catalogue: Catalogue, shown: dict[int, set[int]], n: int) -> list[int]:
    """n rows for the bench, each class in turn, so that most features have a top picture among them."""
    images = catalogue.images.set_index(catalogue.rows)
    wrong = images["predicted"] != images["label"]
    left = {name: own.index.tolist() for name, own in images.groupby("label")}
    chosen, seen = [], set()
    while len(chosen) < n and any(left.values()):
        for name in [name for name in left if left[name]][: n - len(chosen)]:
            mistakes = [row for row in left[name] if wrong[row] and len(chosen) % 4 == 3]  # every fourth
            best = max(mistakes or left[name], key=lambda row: len(shown.get(row, set()) - seen))
            left[name].remove(best)
            chosen.append(best)
            seen |= shown.get(best, set())
    return chosen


def _bench(catalogue: Catalogue, chosen: list[int], folder: Path) -> list[dict[str, Any]]:
    """Write the bench's pictures and the arrays that its arithmetic needs; returns the list of its pictures."""
    bench, trial, readout = Bench(catalogue), catalogue.trial, catalogue.trial.readout
    used = set(trial.strength.any(0).nonzero()[:, 0].tolist())
    for row in tqdm(sorted(chosen), "atlas: bench", leave=False):
        subject = bench.of_row(row)
        page = bench.page(subject, row)
        if readout is None:  # store forward passes for each switch
            page["active"] = [each for each in page["active"] if each["effect"] is not None]
            some = [each["feature_id"] for each in page["active"]]
            page["after"] = bench.without(subject, some, torch.eye(len(some))).tolist()
            page["random"] = bench.without(subject, some, torch.eye(len(some)), trial.random).tolist()
        else:
            used |= {each["feature_id"] for each in page["active"]}
            page["hidden"] = _text(subject.acts.mean((0, 1)).numpy())
        _script(folder, f"bench/{row:05d}.js", page)
        (folder / "bench" / f"{row:05d}.jpg").write_bytes(as_jpeg(subject.picture, BENCH_PICTURE))
    if readout is not None:
        features, classes = sorted(used), catalogue.network.classes
        decoder, random = (rows[features] for rows in (bench.W_dec, trial.random))
        arrays = {"weight": readout.weight, "bias": readout.bias, "decoder": decoder, "random": random}
        packed = {name: _text(each.numpy().astype("<f4")) for name, each in arrays.items()}
        _script(folder, "bench/head.js", packed | {"eps": readout.eps, "features": features, "classes": classes})
        for k in range(len(classes) if catalogue.network.level else 0):  # for effects on all pictures of a class
            own = trial.labels == k
            strength, hidden = (each[own].numpy() for each in (trial.strength, trial.pooled))
            features = strength.nonzero()[1].astype(np.min_scalar_type(strength.shape[1]))
            arrays = {"features": features, "strength": strength[strength > 0], "hidden": hidden}
            page = {"rows": catalogue.rows[own].tolist(), "counts": (strength > 0).sum(1).tolist()}
            _script(folder, f"classes/{k:05d}.js", page | {name: _text(each) for name, each in arrays.items()})
    return catalogue.on_bench(np.array(sorted(chosen)))


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _json(value: Any) -> str:
    """JSON that is safe inside a script: no class name can close it."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _script(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(f"ATLAS.got({json.dumps(name)}, {_json(value)});\n", encoding="utf-8")
