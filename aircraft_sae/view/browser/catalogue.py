"""What there is to show of a study, as plain values: the list of features, one feature, a class, a pair of classes.

The browser asks for these through a widget, the atlas writes them down, and tests call them: one way for all three.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from PIL import Image

from aircraft_sae.activations import Activations
from aircraft_sae.features import FeatureIndex, halves, neighbours
from aircraft_sae.interventions import PooledHead, effects, random_directions
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import Classifier
from aircraft_sae.pictures import AircraftData
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.study import Study

N_TILES, TILE, QUALITY = 24, 160, 85
"""Patches of a gallery, and the size (pixels) and JPEG quality of one."""
N_BINS, N_LINKS, N_PAIR = 30, 8, 20
HOWS = ("top", "interval", "random")
KEPT = 4096
"""Thumbnails kept in memory, at about 6 kB each."""


@dataclass(eq=False)
class Catalogue:
    """A study's features and pictures. table: one row a feature; rows: the test pictures, as rows of the index.

    table's columns: those of `LISTED`, as far as the study has them, and <level>/class, <level>/auroc, <level>/z.
    """

    name: str
    data: AircraftData
    index: FeatureIndex
    acts: Activations
    sae: SparseAutoencoder
    classifier: Classifier
    table: pd.DataFrame
    rows: np.ndarray
    images: pd.DataFrame
    parts: pd.DataFrame | None
    responses: pd.DataFrame | None
    radius: float | None
    """Pixels around a cell that hold half of a feature's gradient, in a picture of the classifier's size."""
    key: str
    """Of the autoencoder: what a person says of its features holds for no other."""
    folder: Path
    """The study's."""

    @classmethod
    def of(cls, study: Study) -> Catalogue:
        """Of a study, whose stages up to `features` are loaded or made; what later notebooks found is added if there.

        Raises: ValueError for an autoencoder of another site than stage4, whose effects have no closed form.
        """
        if study.config.sae.site != "stage4":
            raise ValueError(f"the browser needs an autoencoder of stage4, this study's is of {study.config.sae.site}")
        index, data = study.features(), study.dataset()
        rows, scores = index.rows("test"), study.folder / "features" / "main" / "parts.parquet"
        images = index.images.iloc[rows].reset_index(drop=True)
        predictions = study.classifier().predictions.set_index("image")
        images["predicted"] = predictions["predicted"].reindex(images["image"]).to_numpy()
        table, responses, verdicts = _listed(index.table, data.levels), None, study.folder / "ablation" / "verdicts"
        about = verdicts / "about.json"  # not there, or of other features: then nothing is known of them
        if about.is_file() and json.loads(about.read_text())["features"] == study.stages["features/main"].fingerprint:
            table = table.join(pd.read_parquet(verdicts / "features.parquet").set_index("feature_id"))
            table = table.join(_verdicts(verdicts))
            if (verdicts / "responses.parquet").is_file():
                responses = pd.read_parquet(verdicts / "responses.parquet")
        try:
            radius = study.results("04_inspect_features").get("effective_radius_px", {}).get("value")
        except FileNotFoundError:
            radius = None
        return cls(
            study.config.name, data, index, study.activations(), study.sae(), study.classifier(), table, rows, images,
            pd.read_parquet(scores) if data.masks else None, responses, radius,
            study.stages["sae/main"].fingerprint, study.folder,
        )  # fmt: skip

    @property
    def level(self) -> str:
        """The finest level: the classifier's classes."""
        return self.data.levels[0]

    def overview(self) -> dict[str, Any]:
        """All that a front end needs once: the table by columns, names of classes and parts, colours of heat."""
        columns = {name: _plain(column) for name, column in self.table.items()}
        colours = (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(int)
        classes = {level: self.data.classes(level) for level in self.data.levels}
        return {
            "name": self.name, "n_features": len(self.table), "grid": list(self.index.grid), "levels": self.data.levels,
            "classes": classes, "columns": columns, "colours": colours.ravel().tolist(), "tile": TILE,
            "has_parts": self.parts is not None, "has_verdicts": "verdict" in self.table, "radius": self.radius,
            "image_size": self.classifier.image_size, "n_pictures": len(self.images), "hows": list(HOWS),
        }  # fmt: skip

    def feature(
        self,
        feature_id: int,
        how: str = "top",
        n: int = N_TILES,
        level: str | None = None,
        name: str | None = None,
        wrong: bool = False,
    ) -> tuple[dict[str, Any], np.ndarray]:
        """(what is known of a feature with its gallery, maps (tiles, rows, columns) of the gallery's pictures).

        how: as in `FeatureIndex.patches`; level, name: only pictures of that class; wrong: only misclassified ones.
        Raises: ValueError for a feature, word or class that is not there.
        """
        allowed = np.ones(len(self.images), bool)
        if name is not None:
            if name not in self.data.classes(level or self.level):
                close = get_close_matches(str(name), self.data.classes(level or self.level), cutoff=0.4)
                meant = f": did you mean {', '.join(close)}?" if close else ""
                raise ValueError(f"{name!r} is no {level or self.level} of this study{meant}")
            allowed &= (self.images[level or self.level] == name).to_numpy()
        if wrong:
            allowed &= (self.images["predicted"] != self.images[self.level]).to_numpy()
        picks = self.index.patches(feature_id, how, n, self.rows[allowed])
        maps = self.index.maps(feature_id, picks["image_row"].to_numpy())
        facts = self.images.set_index(self.rows).loc[picks["image_row"]]
        gallery = [
            {"picture": int(i), "cell": [int(r), int(c)], "value": float(v), "label": label, "predicted": predicted}
            for i, r, c, v, label, predicted in zip(
                picks["image_row"], picks["row"], picks["column"], picks["value"], facts[self.level],
                facts["predicted"], strict=True,
            )
        ]  # fmt: skip
        return {"feature_id": int(feature_id), "how": how, "gallery": gallery} | self.about(feature_id), maps

    @lru_cache(maxsize=64)  # noqa: B019 a catalogue lives as long as its kernel
    def about(self, feature_id: int) -> dict[str, Any]:
        """Histogram, selectivity, parts, companions of a feature: what its gallery does not change."""
        maxima = self.index.maps(feature_id, self.rows).reshape(len(self.rows), -1)
        active = maxima[maxima > 0]
        counts, edges = np.histogram(active, N_BINS, (0, float(active.max(initial=1e-9))))
        row, best = self.table.loc[feature_id], pd.Series(maxima.max(1))
        selectivity, bars = [], {}
        for level in self.data.levels:
            z, area = row[f"{level}/z"], row[f"{level}/auroc"]
            spread = (area - 0.5) / z if np.isfinite(z) and z != 0 else np.nan
            selectivity.append({
                "level": level, "class": row[f"{level}/class"], "auroc": _number(area), "z": _number(z),
                "null": _number(1.96 * abs(spread)),
            })  # fmt: skip
            means = best.groupby(self.images[level].to_numpy()).mean().nlargest(5)
            bars[level] = [[str(name), float(value)] for name, value in means.items() if value > 0]
        return {
            "histogram": {"counts": counts.tolist(), "top": float(edges[-1]), "n_cells": int(maxima.size)},
            "selectivity": selectivity, "classes": bars, "parts": self._parts(feature_id),
            "neighbours": _records(neighbours(self.sae.W_dec, feature_id, N_LINKS)),
            "coactive": _records(self.index.coactive(feature_id, N_LINKS)),
        }  # fmt: skip

    def _parts(self, feature_id: int) -> list[dict[str, Any]]:
        if self.parts is None:
            return []
        own = self.parts[self.parts["feature_id"] == feature_id]
        table = own[["part", "ap", "excess", "prevalence"]].reset_index(drop=True)
        if self.responses is not None:
            responses = self.responses.query("feature_id == @feature_id").set_index("part")["response"]
            table["response"] = responses.reindex(table["part"]).to_numpy()
        return _records(table.sort_values("ap", ascending=False))

    def pair(self, one: str, two: str, n: int = N_PAIR) -> list[dict[str, Any]]:
        """The features whose suppression moves the margin between two classes most, chosen on half A, told on half B.

        feature_id; value, low, high, n: mean change of the true class's logit less the other's, over pictures of both;
        random: that of as much of a random direction. Raises: ValueError for classes that are not two of the study's.
        """
        classes = self.classifier.classes
        if one not in classes or two not in classes or one == two:
            raise ValueError(f"a pair is two different classes of {self.level}, got {one!r} and {two!r}")
        in_b = halves(self.images[self.level])
        own = self.images[self.level].isin([one, two]).to_numpy()
        labels = torch.tensor([classes.index(name) for name in self.images[self.level][own]])
        rival = torch.where(labels == classes.index(one), classes.index(two), classes.index(one))
        pooled, removed = self.pooled(self.rows[own]), self.strength(self.rows[own])
        margins = {}
        for kind, directions in (("feature", self.sae.W_dec.detach()), ("random", self.random)):
            after = self.head.edited(pooled, removed, directions)
            margins[kind] = effects(self.head.logits(pooled), after, labels, rival)["margin"].numpy()
        a, b = ~in_b[own], in_b[own]
        if not a.any() or not b.any():
            raise ValueError(f"{one} and {two} have too few test pictures for two halves")
        strongest = margins["feature"][a].mean(0).argsort()[:n]
        return [
            {"feature_id": int(j), "random": float(margins["random"][b, j].mean())}
            | with_interval(margins["feature"][b, j], np.ones(b.sum()))
            for j in strongest
        ]

    @cached_property
    def head(self) -> PooledHead:
        return PooledHead.of(self.classifier)

    @cached_property
    def random(self) -> torch.Tensor:
        """(d_sae, d_in) a random direction for each feature, as long as its decoder row: the control of suppression."""
        cells = torch.cat([block.flatten(0, 2) for block in self.acts.blocks(self.acts.rows("val"))])
        return random_directions(self.sae.W_dec.detach(), torch.cov(cells.t()))

    def pooled(self, rows: np.ndarray) -> torch.Tensor:
        """(n, d_in) acts of these pictures, averaged over cells."""
        return torch.cat([block.mean((1, 2)) for block in self.acts.blocks(rows)])

    def strength(self, rows: np.ndarray) -> torch.Tensor:
        """(n, d_sae) features' activations in these pictures, averaged over cells."""
        return torch.from_numpy(np.stack([self.index.image(int(row)).mean((0, 1)) for row in rows]))

    def label(self, row: int) -> str:
        """A picture's class."""
        return str(self.index.images[self.level].iloc[row])

    @lru_cache(maxsize=KEPT)  # noqa: B019 a catalogue lives as long as its kernel
    def thumbnail(self, row: int, size: int = TILE) -> bytes:
        """A picture as JPEG, `size` pixels square, as the network sees it. ValueError for a row that is not there."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self.index.images):
            raise ValueError(f"picture {row} is not one of 0 .. {len(self.index.images) - 1}")
        picture = self.data.picture(self.index.images["image"].iloc[row])
        return as_jpeg(picture.resize((size, size), Image.Resampling.BICUBIC))


def as_jpeg(picture: Image.Image | np.ndarray) -> bytes:
    """A picture (h, w, 3) as the bytes of a JPEG file."""
    file = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _listed(table: pd.DataFrame, levels: list[str]) -> pd.DataFrame:
    """The columns of features.parquet that lists are sorted and filtered by."""
    made = table[["feature_id", "density_cell", "density_image", "mean", "max", "placed"]].copy()
    for level in levels:
        made[f"{level}/class"], made[f"{level}/auroc"] = table[f"{level}/class"], table[f"{level}/auroc"]
        made[f"{level}/z"] = table[f"{level}/auroc_z"]
    if "part" in table:
        made[["part", "part_ap", "part_excess"]] = table[["part", "part_ap", "part_excess"]]
    return made


def _verdicts(folder: Path) -> pd.DataFrame:
    """verdict and why of the features that were tested: as a part's detector, else as a class's."""
    found = []
    for path in (folder / "parts-features.parquet", folder / "classes.parquet"):
        if path.is_file():
            found.append(pd.read_parquet(path)[["feature_id", "passes", "verdict", "why"]])
    both = pd.concat(found).sort_values("passes", ascending=False, kind="stable")
    return both.drop_duplicates("feature_id").set_index("feature_id")[["verdict", "why"]]


def _plain(column: pd.Series) -> list:
    """A column as JSON values: six significant digits, None where missing."""
    if pd.api.types.is_float_dtype(column):
        return [_number(value) for value in column]
    return [None if pd.isna(value) else value for value in column.tolist()]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {name: _plain(column) for name, column in table.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
