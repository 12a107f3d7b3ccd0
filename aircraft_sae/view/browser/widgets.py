"""The browser and the bench as widgets: a front end, the kernel's answers to it, and the labels that people write."""

import base64
import io
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import category

import anywidget
import numpy as np
import pandas as pd
import traitlets
from filelock import FileLock

from aircraft_sae.features import check_features
from aircraft_sae.store import digest, write_text
from aircraft_sae.study import Study
from aircraft_sae.view.browser.bench import Bench, Subject, active_by_cell
from aircraft_sae.view.browser.catalogue import Catalogue, as_jpeg, catalogue_of, gallery_figure

HERE = Path(__file__).parent
_SCRIPTS = "draw", "filters", "list", "feature", "naming", "levers", "bench", "app", "kernel"
COLUMNS = {"autoencoder": str, "feature_id": int, "label": str, "note": str, "rating": int, "changed": str}
MOST = {"label": 200, "note": 5000}  # characters
NOTHING = {"label": "", "note": "", "rating": 0}
BENCH_PICTURE, MOST_SUBJECTS = 448, 32  # pixels of the picture on the bench; pictures kept, 2 MB each


class Answers:
    """Everything the front end may ask of the kernel. A method returns JSON values, or (JSON values, buffers)."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.bench = catalogue, Bench(catalogue)
        self.labels = Labels(catalogue.folder, catalogue.key)
        self.overview, self.pair = catalogue.overview, catalogue.pair
        self.heard, self._of_row = self.labels.all, lru_cache(MOST_SUBJECTS)(self.bench.of_row)
        self._uploads: dict[str, Subject] = {}

    def feature(self, feature_id: int, known: Sequence[int] = (), **choice: Any) -> tuple[dict, list]:
        """A feature and its gallery: the maps (float32), and thumbnails of the pictures that are not yet `known`."""
        view, maps = self.catalogue.feature(feature_id, **choice)
        fresh = [tile["picture"] for tile in view["gallery"] if tile["picture"] not in known]
        return view | {"fresh": fresh}, [maps.tobytes(), *map(self.catalogue.thumbnail, fresh)]

    def pictures(self, rows: list[int]) -> tuple[dict, list]:
        """Thumbnails, as JPEG."""
        return {}, [self.catalogue.thumbnail(row) for row in rows]

    def open(self, key: int | str, against: str = "") -> tuple[dict, list]:
        """A picture on the bench: a row of the index, or the key of an upload; `against`: see `Bench.page`."""
        subject = self._subject(key)
        found = self.bench.page(subject, key if isinstance(key, int) else None, against)
        return found | {"key": key}, [as_jpeg(subject.picture, BENCH_PICTURE)]

    def upload(self, name: str, content: bytes) -> tuple[dict, list]:
        """Put the user's own picture on the bench."""
        key = digest(np.frombuffer(content, np.uint8))
        self._uploads = dict([*self._uploads.items(), (key, self.bench.of_file(content, name))][-MOST_SUBJECTS:])
        return self.open(key)

    def change(self, key: int | str, multipliers: dict[str, float], cells: Sequence = ()) -> dict[str, Any]:
        """Logits with features multiplied, and with random directions in their place."""
        made = self.bench.change(self._subject(key), {int(j): float(m) for j, m in multipliers.items()}, cells)
        return {name: made[name].tolist() for name in ("after", "random")}

    def blur(self, key: int | str, cells: list[list[int]], sigma: float) -> tuple[dict, list]:
        """The picture with these cells blurred, and the logits if other cells, changed about as much, are blurred."""
        subject = self._subject(key)
        seen = self.bench.blurred(subject, cells, sigma)
        others = self.bench.control_cells(subject, cells, sigma).tolist()
        elsewhere = self.bench.blurred(subject, others, sigma).logits.tolist() if others else None
        found = {"logits": seen.logits.tolist(), "elsewhere": elsewhere, "cells": active_by_cell(seen)}
        return found, [as_jpeg(seen.picture, BENCH_PICTURE)]

    def label(self, feature_id: int, **said: Any) -> dict[int, dict]:
        """Save a feature's label, note or rating; return all labels, including those that others wrote meanwhile."""
        self.labels.set(feature_id, **said)
        return self.labels.all()

    def _subject(self, key: int | str) -> Subject:
        return self._uploads[key] if key in self._uploads else self._of_row(key)


class Labels:
    """Labels, notes and ratings (1 to 5; 0: none) of one autoencoder's features, in a file shared with others.

    A person wrote them: no code can recreate this file.
    """

    def __init__(self, folder: str | Path, autoencoder: str):
        self.path, self.autoencoder = Path(folder) / "labels.csv", autoencoder

    def all(self) -> dict[int, dict[str, str | int]]:
        """{feature_id: {label, note, rating}} as on disk now; ValueError if the file is not a table of labels."""
        table = self._read()
        return table[table["autoencoder"] == self.autoencoder].set_index("feature_id")[[*NOTHING]].to_dict("index")

    def set(self, feature_id: int, **said: str | int) -> None:
        """Change a feature's label, note or rating on disk and leave the rest; ValueError for an invalid value."""
        if not isinstance(feature_id, int | np.integer) or feature_id < 0:
            raise ValueError(f"a feature is a whole number from 0, got {feature_id!r}")
        said = {name: _checked(name, value) for name, value in said.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            table = self._read()
            now = self.all().get(feature_id, NOTHING) | said
            table = table[(table["autoencoder"] != self.autoencoder) | (table["feature_id"] != feature_id)]
            if any(now.values()):
                changed = datetime.now(UTC).isoformat(timespec="seconds")
                row = [self.autoencoder, int(feature_id), *now.values(), changed]
                table = pd.concat([table, pd.DataFrame([row], columns=[*COLUMNS])])
            write_text(self.path, table.to_csv(index=False))

    def _read(self) -> pd.DataFrame:
        if not self.path.is_file():
            return pd.DataFrame(columns=[*COLUMNS])
        try:
            return pd.read_csv(self.path, dtype=COLUMNS, keep_default_na=False)[[*COLUMNS]]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{self.path} is not a table of labels ({error}): mend it, or move it away") from error


def _checked(name: str, value: str | int) -> str | int:
    if name == "rating":
        if value not in range(6):
            raise ValueError(f"rating must be a whole number from 0 (none) to 5, got {value!r}")
        return int(value)
    if not isinstance(value, str) or len(value) > MOST[name]:
        raise ValueError(f"{name} must be text of at most {MOST[name]} characters, got {str(value)[:40]!r} …")
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a lone carriage return would break the table
    if odd := [c for c in value if category(c) in ("Cc", "Cs") and c not in "\n\t"]:
        raise ValueError(f"{name} contains the control character {odd[0]!r}: take it out")
    return value


class Application(anywidget.AnyWidget):
    """The front end in one widget. errors: tracebacks; the panel shows the last line of each."""

    _esm = "".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPTS)
    _css = (HERE / "app.css").read_text(encoding="utf-8")
    feature_id = traitlets.Int(0).tag(sync=True)
    at = traitlets.Unicode("").tag(sync=True)
    mode = traitlets.Unicode("browser").tag(sync=True)

    def __init__(self, study: Study, like: str = "main", **traits: Any):
        self.answers = Answers(catalogue_of(study, like))
        self.errors = []
        super().__init__(**traits)
        self.on_msg(self._answer)

    def _answer(self, _widget, message: dict, buffers: list) -> None:
        try:
            call = message.get("call", "")
            given = message.get("given", {}) | ({"content": bytes(buffers[0])} if buffers else {})
            if call.startswith("_") or not callable(answer := getattr(self.answers, call, None)):
                raise ValueError(f"there is nothing called {call!r} to ask for")
            found = answer(**given)
            result, files = found if isinstance(found, tuple) else (found, [])
            self.send({"id": message.get("id"), "result": result}, files)
        except Exception as error:  # whatever it is, the user must see it
            self.errors.append(traceback.format_exc())
            words = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self.send({"id": message.get("id"), "error": words})


class FeatureBrowser(Application):
    """Browse a study's features by number, part, picture or class; label them; change them on the bench.

    like: the study's "local" or "main" autoencoder; at: where to start, as "Copy link" gives it.
    `feature_id` is the feature on show, and can be set. Keys: press ? for help.
    Raises: ValueError for an unknown feature.
    """

    def __init__(self, study: Study, feature_id: int | None = None, like: str = "main", at: str = ""):
        table, level = catalogue_of(study, like).table, catalogue_of(study, like).level
        if feature_id is None:
            by = next(name for name in ("part_ap", f"{level}/z", "density_image") if name in table)
            feature_id = int(table[by].fillna(-np.inf).to_numpy().argmax())
        check_features([feature_id], len(table))
        super().__init__(study, like, feature_id=feature_id, at=at)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget, and the feature's gallery as a picture for pages without a kernel."""
        (data, metadata), own, file = super()._repr_mimebundle_(**kwargs), self.answers.catalogue, io.BytesIO()
        gallery = gallery_figure(own.index, own.trial.pictures, self.feature_id, own.rows)
        gallery.savefig(file, format="jpeg", bbox_inches="tight")
        return data | {"image/jpeg": base64.b64encode(file.getvalue()).decode()}, metadata


class InterventionBench(Application):
    """The bench alone: sliders for one picture's features, and a blur brush."""

    mode = traitlets.Unicode("bench").tag(sync=True)
