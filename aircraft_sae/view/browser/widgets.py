"""The browser and the bench as widgets: a front end, the kernel's answers to it, and what a person says of features."""

import base64
import io
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any
from unicodedata import category

import anywidget
import numpy as np
import pandas as pd
import traitlets
from filelock import FileLock
from PIL import Image

from aircraft_sae.features import check_features
from aircraft_sae.store import LABELS, digest, write_text
from aircraft_sae.study import Study
from aircraft_sae.view.browser.bench import Bench, Subject, in_cells
from aircraft_sae.view.browser.catalogue import Catalogue, as_jpeg, catalogue_of, gallery_figure

HERE = Path(__file__).parent
_PARTS = "draw", "filters", "list", "feature", "naming", "levers", "regions", "bench", "app"
_JOINED = "".join((HERE / f"{name}.js").read_text("utf-8") for name in _PARTS)
SCRIPT = f"const AircraftApp = (() => {{\n{_JOINED}return {{ mount, softmax, headLogits }};\n}})();\n"
STYLE = (HERE / "app.css").read_text("utf-8")
COLUMNS = {"autoencoder": str, "feature_id": int, "label": str, "note": str, "rating": int, "changed": str}
MOST = {"label": 200, "note": 5000}  # characters
NOTHING = {"label": "", "note": "", "rating": 0}
BENCH_PICTURE, MOST_SUBJECTS = 448, 32  # pixels of the picture on the bench; pictures kept, 2 MB each


class Answers:
    """What a front end may ask, without one: each method gives (JSON values, buffers)."""

    def __init__(self, catalogue: Catalogue, study: Study | None = None, told: Callable[[float], None] | None = None):
        self.catalogue, self.bench, self.study, self.told = catalogue, Bench(catalogue), study, told
        self.labels = Labels(catalogue.folder, catalogue.key)
        self.subjects: dict[int | str, Subject] = {}  # the last MOST_SUBJECTS, whichever view opened them

    def overview(self) -> tuple[dict, list]:
        """The table, the names, the labels, and the pictures that the bench can open: the test pictures."""
        pictures = self.catalogue.on_bench(self.catalogue.rows)
        return {"facts": self.catalogue.overview() | {"bench_pictures": pictures}} | self.heard()[0], []

    def feature(self, feature_id: int, known: Sequence[int] = (), **which: Any) -> tuple[dict, list]:
        """One feature with its gallery, the maps of that (float32), and thumbnails of pictures that are not `known`."""
        view, maps = self.catalogue.feature(feature_id, **which)
        fresh = [tile["picture"] for tile in view["gallery"] if tile["picture"] not in known]
        return view | {"fresh": fresh}, [maps.tobytes(), *map(self.catalogue.thumbnail, fresh)]

    def made(self, feature_id: int) -> tuple[dict, list]:
        """The picture that a feature answers to most, and what it reaches, beside a random direction's."""
        picture, (reached, random) = self.catalogue.made_for(feature_id)
        return {"reached": reached, "random": random}, [as_jpeg(Image.fromarray(picture), BENCH_PICTURE // 2)]

    def pictures(self, rows: list[int]) -> tuple[dict, list]:
        """Thumbnails, as JPEG."""
        return {}, [self.catalogue.thumbnail(row) for row in rows]

    def open(self, row: int) -> tuple[dict, list]:
        """A picture of the study, on the bench."""
        subject = self._subject(row)
        return self.bench.told(subject, row) | {"key": row}, [as_jpeg(subject.picture, BENCH_PICTURE)]

    def upload(self, name: str, content: bytes) -> tuple[dict, list]:
        """A picture that a person gives, on the bench."""
        key = digest(np.frombuffer(content, np.uint8))
        subject = self._subject(key, self.bench.of_file(content, name))
        return self.bench.told(subject) | {"key": key}, [as_jpeg(subject.picture, BENCH_PICTURE)]

    def change(
        self, key: int | str, multipliers: dict[str, float], cells: list[list[int]] | None = None
    ) -> tuple[dict, list]:
        """Logits with features multiplied, in some cells or all, and with random directions in their place.

        key: as `open` told it.
        """
        made = self.bench.change(self._subject(key), {int(j): float(m) for j, m in multipliers.items()}, cells)
        return {name: made[name].tolist() for name in ("after", "random")}, []

    def blur(self, key: int | str, cells: list[list[int]], sigma: float) -> tuple[dict, list]:
        """The picture with cells blurred: its logits, its cells' features, and itself; logits with others blurred."""
        subject = self._subject(key)
        seen = self.bench.blurred(subject, [tuple(cell) for cell in cells], sigma)
        others = self.bench.elsewhere(subject, cells, sigma).tolist()
        elsewhere = self.bench.blurred(subject, others, sigma).logits.tolist() if others else None
        told = {"logits": seen.logits.tolist(), "elsewhere": elsewhere}
        told |= {"cells": in_cells(seen), "regions": self.bench.regions(seen)}
        return told, [as_jpeg(seen.picture, BENCH_PICTURE)]

    def regions(self) -> tuple[dict, list]:
        """Names of regions, and as float32 what a unit of each feature, and of its random direction, adds to them."""
        return {"names": self.catalogue.head.names}, [each.tobytes() for each in self.bench.pushes()]

    def against(self, key: int | str, name: str) -> tuple[dict, list]:
        """Effects on the margin against another class, as `open` tells them."""
        told = self.bench.told(self._subject(key), key if isinstance(key, int) else None, name)
        return {each: told[each] for each in ("active", "own", "other")}, []

    def effect(self, feature_id: int, one: str, two: str) -> tuple[dict, list]:
        """What suppressing a feature does in all test pictures of two classes."""
        return self.catalogue.effect(feature_id, one, two), []

    def flip(self, key: int | str) -> tuple[dict, list]:
        """The smallest set of features found that changes the prediction."""
        return self.bench.flip(self._subject(key)), []

    def pair(self, one: str, two: str) -> tuple[list, list]:
        """The features that tell two classes apart."""
        return self.catalogue.pair(one, two), []

    def export(self) -> tuple[dict, list]:
        """Write the atlas; `told` hears how far that is."""
        from aircraft_sae.view.atlas import export_atlas  # which has this module's front end

        return {"path": str(export_atlas(self.study, self.catalogue.like, self.told).parent)}, []

    def label(self, feature_id: int, **said: Any) -> tuple[dict, list]:
        """Save what a person says of a feature; all labels, with those that others wrote meanwhile."""
        self.labels.set(feature_id, **said)
        return self.heard()

    def heard(self, stamp: str | None = None) -> tuple[dict, list]:
        """All labels, and the stamp of their file; no labels where the file still has this stamp."""
        now = self.labels.stamp()  # before they are read: what comes between is then read again
        return {"labels": None if stamp == now else self.labels.all(), "stamp": now}, []

    def _subject(self, key: int | str, subject: Subject | None = None) -> Subject:
        """What this picture is, whichever other pictures the views of the widget have open."""
        if subject is None and key not in self.subjects and isinstance(key, str):
            raise ValueError("this picture is no longer on the bench: give its file again")
        kept = subject or self.subjects.pop(key, None) or self.bench.of_row(key)
        self.subjects = dict([*self.subjects.items(), (key, kept)][-MOST_SUBJECTS:])
        return kept


class Labels:
    """Labels, notes and ratings (1 to 5, 0: none) of one autoencoder's features; others' rows stay in the file."""

    def __init__(self, folder: str | Path, autoencoder: str):
        self.path, self.autoencoder = Path(folder) / LABELS, autoencoder

    def all(self) -> dict[int, dict[str, str | int]]:
        """{feature_id: {label, note, rating}} as on disk now. ValueError where the file is no such table."""
        table = self._read()
        return table[table["autoencoder"] == self.autoencoder].set_index("feature_id")[[*NOTHING]].to_dict("index")

    def stamp(self) -> str:
        """Differs once the file holds something else."""
        return digest(self.path if self.path.is_file() else None)

    def set(self, feature_id: int, **said: str | int) -> dict[str, str | int]:
        """Change some of label, note and rating on disk, others' changes kept; ValueError for a wrong word or value."""
        if not _whole(feature_id) or feature_id < 0:
            raise ValueError(f"a feature is a whole number from 0, got {feature_id!r}")
        said = {name: _checked(name, value) for name, value in said.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            table = self._read()
            own = (table["autoencoder"] == self.autoencoder) & (table["feature_id"] == feature_id)
            now = self.all().get(feature_id, NOTHING) | said
            table = table[~own]
            if any(now.values()):
                changed = datetime.now(UTC).isoformat(timespec="seconds")
                row = [self.autoencoder, int(feature_id), *now.values(), changed]
                table = pd.concat([table, pd.DataFrame([row], columns=[*COLUMNS])])
            write_text(self.path, table.to_csv(index=False))
        return now

    def _read(self) -> pd.DataFrame:
        if not self.path.is_file():
            return pd.DataFrame(columns=[*COLUMNS])
        try:
            return pd.read_csv(self.path, dtype=COLUMNS, keep_default_na=False)[[*COLUMNS]]
        except (KeyError, ValueError) as error:  # of a column, of text that is no UTF-8
            raise ValueError(f"{self.path} is no table of labels ({error}): mend it, or move it away") from error


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _checked(name: str, value: str | int) -> str | int:
    if name not in NOTHING:
        raise ValueError(f"a feature has a label, a note and a rating, no {name!r}")
    if name == "rating":
        if not _whole(value) or not 0 <= value <= 5:
            raise ValueError(f"rating must be a whole number from 0 (none) to 5, got {value!r}")
        return int(value)
    if not isinstance(value, str) or len(value) > MOST[name]:
        raise ValueError(f"{name} must be a text of at most {MOST[name]} characters, got {str(value)[:40]!r} …")
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a lone carriage return would make a table of no use
    if odd := [c for c in value if category(c) in ("Cc", "Cs") and c not in "\n\t"]:
        raise ValueError(f"{name} holds the control character {odd[0]!r}: take it out")
    return value


class Application(anywidget.AnyWidget):
    """The front end in one widget. errors: tracebacks of what went wrong; the last line is shown in the panel too."""

    _esm = SCRIPT + (HERE / "kernel.js").read_text(encoding="utf-8")
    _css = STYLE
    feature_id = traitlets.Int(0).tag(sync=True)
    at = traitlets.Unicode("").tag(sync=True)
    mode = traitlets.Unicode("browser").tag(sync=True)

    def __init__(self, study: Study, like: str = "main", **traits: Any):
        self.answers = Answers(catalogue_of(study, like), study, lambda done: self.send({"done": done}))
        self.errors = []
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

    like: the study's "local" autoencoder or its "main" one; at: where to begin, from "Copy link".
    Keys: left and right, r, h, s, 0, / and ? for help. `feature_id` is the one shown, and can be set.
    Raises: ValueError for a feature that is not there.
    """

    def __init__(self, study: Study, feature_id: int | None = None, like: str = "main", at: str = ""):
        table, level = catalogue_of(study, like).table, catalogue_of(study, like).level
        if feature_id is None:
            by = next(name for name in ("part_ap", f"{level}/z", "density_image") if name in table)
            feature_id = int(table[by].fillna(-np.inf).to_numpy().argmax())
        check_features([feature_id], len(table))
        super().__init__(study, like, feature_id=feature_id, at=at.rpartition("#")[2])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        """The widget; on a page without a kernel, this run's gallery of the feature stands for it."""
        (data, metadata), own, file = super()._repr_mimebundle_(**kwargs), self.answers.catalogue, io.BytesIO()
        gallery = gallery_figure(own.index, own.trial.pictures, self.feature_id, own.rows)
        gallery.savefig(file, format="jpeg", bbox_inches="tight")
        return data | {"image/jpeg": base64.b64encode(file.getvalue()).decode()}, metadata


class InterventionBench(Application):
    """The bench alone: one picture's features with sliders, a blur brush, and the smallest set that flips it."""

    mode = traitlets.Unicode("bench").tag(sync=True)
