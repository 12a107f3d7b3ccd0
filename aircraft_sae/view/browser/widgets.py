"""The browser and the bench as widgets: a front end (app.js) and the kernel that answers what it asks."""

from __future__ import annotations

import traceback
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anywidget
import numpy as np
import traitlets
from PIL import Image

from aircraft_sae.features import check_features
from aircraft_sae.study import Study
from aircraft_sae.view.browser.bench import Bench, Subject
from aircraft_sae.view.browser.catalogue import Catalogue, as_jpeg
from aircraft_sae.view.browser.labels import Labels

HERE = Path(__file__).parent
BENCH_PICTURE = 448
"""Pixels of the picture on the bench."""
SOURCE = """
export default { render({ model, el }) {
  let last = 0;
  const waiting = new Map();
  model.on("msg:custom", (message, buffers) => {
    const reply = waiting.get(message.id);
    if (!reply) return;
    waiting.delete(message.id);
    message.error ? reply.fail(new Error(message.error)) : reply.done([message.result, buffers || []]);
  });
  const page = Math.random().toString(36).slice(2);
  const ask = (call, given = {}, buffers = []) => new Promise((done, fail) => {
    const id = `${page}/${++last}`;
    waiting.set(id, { done, fail });
    model.send({ id, call, given }, undefined, buffers);
  });
  const bytes = (view) => view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const bitmap = (view) => createImageBitmap(new Blob([bytes(view)], { type: "image/jpeg" }));
  const bitmaps = (rows, files) => Promise.all(rows.map(async (row, i) => [row, await bitmap(files[i])]));
  const subject = async ([result, [picture]]) => ({ ...result, bitmap: await bitmap(picture) });
  const small = async (file) => { // JupyterLab's connection breaks at a message of 10 MB
    if (file.size < 4e6) return file.arrayBuffer();
    const fail = () => { throw new Error(`${file.name} is no picture that can be used`); };
    const whole = await createImageBitmap(file).catch(fail);
    const share = Math.min(1, 2048 / Math.max(whole.width, whole.height));
    const [width, height] = [whole.width, whole.height].map((size) => Math.ceil(share * size));
    const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(whole, 0, 0, width, height);
    return (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 })).arrayBuffer();
  };
  const source = {
    byClass: true, prefetch: true,
    overview: async () => ({ ...(await ask("overview"))[0], feature: model.get("feature_id") }),
    feature: async (wanted, known) => {
      const [view, [maps, ...files]] = await ask("feature", { ...wanted, known });
      return { ...view, maps: new Float32Array(bytes(maps)), fresh: await bitmaps(view.fresh, files) };
    },
    pictures: async (rows) => bitmaps(rows, (await ask("pictures", { rows }))[1]),
    open: async (row) => subject(await ask("open", { row })),
    upload: async (file) => subject(await ask("upload", { name: file.name }, [await small(file)])),
    change: async (given) => (await ask("change", given))[0],
    blur: async (given) => subject(await ask("blur", given)),
    flip: async () => (await ask("flip"))[0],
    pair: async (given) => (await ask("pair", given))[0],
    label: async (given) => (await ask("label", given))[0],
    heard: async (given) => (await ask("heard", given))[0],
    chosen: (id) => { model.set("feature_id", id); model.save_changes(); },
  };
  const app = AircraftApp.mount(el, source, model.get("mode"));
  const follow = () => { if (model.get("feature_id") !== app.state.feature) app.show(model.get("feature_id")); };
  model.on("change:feature_id", follow);
  return () => { model.off("change:feature_id", follow); app.close(); };
} };
"""
_catalogues: WeakKeyDictionary[Study, Catalogue] = WeakKeyDictionary()


@cache
def front_end() -> tuple[str, str]:
    """(the application's JavaScript, its style sheet)."""
    return (HERE / "app.js").read_text(encoding="utf-8"), (HERE / "app.css").read_text(encoding="utf-8")


def catalogue_of(study: Study) -> Catalogue:
    """The study's catalogue, made once in a kernel: its pictures and vectors are shared by all widgets."""
    if study not in _catalogues:
        _catalogues[study] = Catalogue.of(study)
    return _catalogues[study]


class Answers:
    """What a front end may ask, without one: each method gives (JSON values, buffers)."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.bench = catalogue, Bench(catalogue)
        self.labels = Labels(catalogue.folder, catalogue.key)
        self.subject: Subject | None = None

    def overview(self) -> tuple[dict, list]:
        """The table, the names, the labels, and the pictures that the bench can open: the test pictures."""
        catalogue = self.catalogue
        right = catalogue.images["predicted"] == catalogue.images[catalogue.level]
        columns = catalogue.rows, catalogue.images["image"], catalogue.images[catalogue.level], right
        pictures = [
            {"picture": int(row), "name": name, "label": label, "right": bool(ok)}
            for row, name, label, ok in zip(*columns, strict=True)
        ]
        pictures.sort(key=lambda each: each["label"])
        return {"facts": catalogue.overview() | {"bench_pictures": pictures}} | self.heard()[0], []

    def feature(self, feature_id: int, known: list[int] | None = None, **which: Any) -> tuple[dict, list]:
        """One feature with its gallery, and the gallery's maps (float32).

        known: pictures that need not be sent; the others' thumbnails follow the maps, those of `fresh` in the view.
        """
        view, maps = self.catalogue.feature(feature_id, **which)
        shown = dict.fromkeys(tile["picture"] for tile in view["gallery"])
        fresh = [] if known is None else [row for row in shown if row not in set(known)]
        thumbnails = [self.catalogue.thumbnail(row) for row in fresh]
        return view | {"fresh": fresh}, [np.ascontiguousarray(maps, np.float32).tobytes(), *thumbnails]

    def pictures(self, rows: list[int]) -> tuple[dict, list]:
        """Thumbnails, as JPEG."""
        return {}, [self.catalogue.thumbnail(row) for row in rows]

    def open(self, row: int) -> tuple[dict, list]:
        """A picture of the study, on the bench."""
        self.subject = self.bench.of_row(row)
        return self._told(self.subject, row)

    def upload(self, name: str, content: bytes) -> tuple[dict, list]:
        """A picture that a person gives, on the bench."""
        self.subject = self.bench.of_file(content, name)
        return self._told(self.subject, None)

    def change(self, multipliers: dict[str, float]) -> tuple[dict, list]:
        """Logits with features multiplied, and with random directions in their place."""
        made = self.bench.change(self._opened(), {int(j): float(m) for j, m in multipliers.items()})
        return {name: made[name].tolist() for name in ("after", "random")}, []

    def blur(self, cells: list[list[int]], sigma: float) -> tuple[dict, list]:
        """The picture with cells blurred: its logits, its cells' features, and itself."""
        blurred = self.bench.blurred(self._opened(), [tuple(cell) for cell in cells], sigma)
        return {"logits": blurred.logits.tolist(), "cells": in_cells(blurred)}, [_large(blurred)]

    def flip(self) -> tuple[dict, list]:
        """The smallest set of features found that changes the prediction."""
        return self.bench.flip(self._opened()), []

    def pair(self, one: str, two: str) -> tuple[list, list]:
        """The features that tell two classes apart."""
        return self.catalogue.pair(one, two), []

    def label(self, feature_id: int, **said: Any) -> tuple[dict, list]:
        """Save what a person says of a feature; all labels, with those that others wrote meanwhile."""
        self.labels.set(feature_id, **said)
        return self.heard()

    def heard(self, stamp: str | None = None) -> tuple[dict, list]:
        """All labels, and the stamp of their file; no labels where the file still has this stamp."""
        now = self.labels.stamp()  # before they are read: what comes between is then read again
        return {"labels": None if stamp == now else self.labels.all(), "stamp": now}, []

    def _opened(self) -> Subject:
        if self.subject is None:
            raise ValueError("open a picture on the bench first")
        return self.subject

    def _told(self, subject: Subject, row: int | None) -> tuple[dict, list]:
        return told(self.catalogue, self.bench, subject, row), [_large(subject)]


def told(catalogue: Catalogue, bench: Bench, subject: Subject, row: int | None) -> dict[str, Any]:
    """What the bench shows of a picture: logits, features by effect on the margin of the prediction, cells."""
    logits = bench.change(subject, {})
    strength, classes = subject.strength, catalogue.classifier.classes
    winner, rival = logits["before"].topk(2).indices.tolist()
    after = catalogue.head.edited(subject.pooled[None], strength[None], bench.W_dec)[0]
    effect = after[:, winner] - after[:, rival] - (logits["before"][winner] - logits["before"][rival])
    peaks = subject.codes.amax((0, 1))
    active = strength.nonzero()[:, 0]
    order = active[effect[active].abs().argsort(descending=True, stable=True)].tolist()
    return {
        "picture": row, "label": None if row is None else catalogue.label(row), "predicted": classes[winner],
        "n_active": len(active), "classes": classes, "before": logits["before"].tolist(),
        "reconstruction": logits["reconstruction"].tolist(),
        "active": [
            {"feature_id": j, "strength": float(strength[j]), "peak": float(peaks[j]), "effect": float(effect[j])}
            for j in order
        ],
        "cells": in_cells(subject),
    }  # fmt: skip


def in_cells(subject: Subject) -> list[list[list[float]]]:
    """For each cell, row by row, [feature, activation] of those active there, the strongest first."""
    values, features = subject.codes.flatten(0, 1).sort(descending=True, stable=True)
    counts = (values > 0).sum(1).tolist()
    return [
        [[j, round(v, 5)] for j, v in zip(features[i, :n].tolist(), values[i, :n].tolist(), strict=True)]
        for i, n in enumerate(counts)
    ]


def _large(subject: Subject) -> bytes:
    return as_jpeg(subject.picture.resize((BENCH_PICTURE, BENCH_PICTURE), Image.Resampling.BICUBIC))


class Application(anywidget.AnyWidget):
    """The front end in one widget. errors: tracebacks of what went wrong; the last line is shown in the panel too."""

    _esm = front_end()[0] + SOURCE
    _css = front_end()[1]
    feature_id = traitlets.Int(0).tag(sync=True)
    mode = traitlets.Unicode("browser").tag(sync=True)

    def __init__(self, study: Study, **traits: Any):
        self.answers, self.errors = Answers(catalogue_of(study)), []
        super().__init__(**traits)
        self.on_msg(self._answer)

    def _answer(self, _widget, message: dict, buffers: list) -> None:
        try:
            given = message.get("given", {})
            if message.get("call") == "upload":
                given = given | {"content": bytes(buffers[0])}
            if message.get("call", "_").startswith("_") or not hasattr(Answers, message["call"]):
                raise ValueError(f"{message.get('call')!r} is nothing that can be asked")
            result, files = getattr(self.answers, message["call"])(**given)
            self.send({"id": message.get("id"), "result": result}, files)
        except Exception as error:  # whatever it is, the person at the screen must see it
            self.errors.append(traceback.format_exc())
            words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self.send({"id": message.get("id"), "error": words})


class FeatureBrowser(Application):
    """Browse a study's features: by feature, by picture, by class; label them; change them on the bench.

    Keys: left and right, r, h, s, 0, / and ? for help. `feature_id` is the one shown, and can be set.
    Raises: ValueError for a study whose autoencoder is not of stage4, or a feature that is not there.
    """

    def __init__(self, study: Study, feature_id: int | None = None):
        table = catalogue_of(study).table
        if feature_id is None:
            by = "part_ap" if "part_ap" in table else f"{catalogue_of(study).level}/z"
            feature_id = int(table[by].fillna(-np.inf).to_numpy().argmax())
        check_features([feature_id], len(table))
        super().__init__(study, feature_id=feature_id, mode="browser")


class InterventionBench(Application):
    """The bench alone: one picture's features with sliders, a blur brush, and the smallest set that flips it."""

    def __init__(self, study: Study):
        super().__init__(study, mode="bench")
