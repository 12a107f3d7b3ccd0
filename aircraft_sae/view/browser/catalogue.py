"""What a study has to show, as plain values: the widgets ask for it, and tests call it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.features import PARTS, FeatureIndex, cell_covariance, check_features, neighbours, random_directions
from aircraft_sae.interventions import Trial, tell_apart
from aircraft_sae.pictures import Pictures
from aircraft_sae.study import Study

BICUBIC, TILE = Image.Resampling.BICUBIC, 160  # pixels of a thumbnail
HOWS = {"top": "strongest", "interval": "whole range", "random": "any"}  # {how of `FeatureIndex.patches`: title}
LISTED = ("feature_id", "density_cell", "density_image", "mean", "max", "placed", "part", "part_ap")


@lru_cache(maxsize=2)
def catalogue_of(study: Study, like: str = "main") -> "Catalogue":
    """`Catalogue.of`, made once per kernel: all widgets share its pictures and vectors."""
    return Catalogue.of(study, like)


@dataclass(eq=False)
class Catalogue:
    """A study's features and pictures.

    trial: the test pictures; rows: their rows in the index.
    table: one row per feature: known columns of `LISTED`, <level>/class, <level>/auroc, <level>/z, verdicts.
    images: the test pictures' table, by row, with label (the class) and predicted (the label where that is unknown).
    parts: one row per feature and part; None for pictures without parts.
    """

    folder: Path
    trial: Trial
    index: FeatureIndex
    table: pd.DataFrame
    parts: pd.DataFrame | None
    rows: np.ndarray
    images: pd.DataFrame
    like: str = "main"

    @classmethod
    def of(cls, study: Study, like: str = "main") -> "Catalogue":
        """The catalogue of a study's "main" or "local" autoencoder, with verdicts if notebook 05 has run."""
        index, pictures, network, sae = study.features(like), study.pictures(), study.network(), study.sae(like)
        trial = Trial.of(network, sae, pictures, study.activations(sae.cfg.site), index)
        rows, level = index.rows("test"), network.level or next(iter(pictures.levels), None)
        images = index.images.iloc[rows].copy()
        images["label"] = images["predicted"] = images[level].astype(str) if level else ""
        if network.level and network.predictions is not None:
            known = network.predictions.set_index("image")["predicted"]
            images["predicted"] = known.reindex(images["image"]).to_numpy()
        table = index.table.rename(columns={f"{name}/auroc_z": f"{name}/z" for name in pictures.levels})
        shown = [f"{name}/{what}" for name in pictures.levels for what in ("class", "auroc", "z")]
        table = table.assign(placed=table.get("placed", "none")).filter([*LISTED, *shown])
        parts = pd.read_parquet(index.folder / PARTS) if pictures.region_names else None
        if folder := study.find_stage(f"experiments/verdicts-{like}", index=index):
            table = table.merge(pd.read_parquet(folder / "features.parquet"), "left", "feature_id", validate="1:1")
            if parts is not None and (folder / "parts.parquet").is_file():
                responses, tiers = (pd.read_parquet(folder / f"{name}.parquet") for name in ("responses", "parts"))
                pair = ["feature_id", "part"]
                for known in (responses, tiers.groupby(pair, as_index=False)["tier"].max()):
                    parts = parts.merge(known, "left", pair, validate="1:1")
        return cls(study.folder, trial, index, table, parts, rows, images, like)

    def __post_init__(self):
        self.network, self.levels = self.trial.network, self.trial.pictures.levels
        # the level of the network's classes, else the finest; None for pictures without classes
        self.level = self.network.level or next(iter(self.levels), None)
        self.key = self.trial.sae.fingerprint  # labels hold for the features of this autoencoder only

    def label(self, row: int) -> str:
        """The class of a picture of the index, "" if it has none."""
        return str(self.index.images[self.level].iloc[row]) if self.level else ""

    def overview(self) -> dict[str, Any]:
        """All that a front end needs once: the table by columns, names of classes and parts, the heat's colours."""
        columns = {name: [*map(_plain, column.tolist())] for name, column in self.table.items()}
        colours = (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(int)
        parts = {}
        if self.parts is not None:  # {part: {ap, response and tier, if known: one value per feature}}
            scores = self.parts.set_index(["part", "feature_id"]).filter(["ap", "response", "tier"]).astype(float)
            wide, names = scores.round(3).unstack("part").reindex(range(len(self.table))), scores.columns
            for part in self.trial.pictures.region_names:
                parts[part] = {name: [*map(_plain, wide[name, part])] for name in names}
        return {
            "n_features": len(self.table), "grid": list(self.index.grid), "levels": self.levels,
            "classes": {level: self.trial.pictures.classes(level) for level in self.levels}, "columns": columns,
            "level": self.network.level, "colours": colours.ravel().tolist(), "tile": TILE, "parts": parts,
            "has_parts": self.parts is not None, "has_verdicts": "verdict" in self.table, "hows": list(HOWS),
            "key": self.key[:8], "like": self.like, "bench_pictures": self._on_bench(),
        }  # fmt: skip

    def _on_bench(self) -> list[dict[str, Any]]:
        """The bench's list of pictures, sorted by class."""
        shown = self.images.sort_values("label", kind="stable")
        shown = shown.assign(picture=shown.index, name=shown["image"], right=shown["predicted"] == shown["label"])
        return shown[["picture", "name", "label", "right"]].to_dict("records")

    def feature(
        self, feature_id: int, how: str = "top", n: int = 24, level: str = "", name: str = "", wrong: bool = False
    ) -> tuple[dict[str, Any], np.ndarray]:
        """(a feature's page with its gallery, the gallery's maps (tiles, rows, columns)).

        how: as in `FeatureIndex.patches`; level, name: pictures of this class only; wrong: misclassified ones only.
        Raises: ValueError for an unknown feature, choice or class.
        """
        kept = self.images
        if name:
            level = level or self.levels[0]
            if name not in self.trial.pictures.classes(level):
                raise ValueError(f"{name!r} is no {level} of this study")
            kept = kept[kept[level] == name]
        if wrong:
            kept = kept[kept["predicted"] != kept["label"]]
        picks = self.index.patches(feature_id, how, n, kept.index).rename(columns={"image_row": "picture"})
        maps = self.index.maps(feature_id, picks["picture"].to_numpy())
        shown = picks.join(self.images[["label", "predicted"]], on="picture")
        shown["cell"] = shown[["row", "column"]].to_numpy().tolist()
        gallery = shown[["picture", "cell", "value", "label", "predicted"]].to_dict("records")
        return {"feature_id": int(feature_id), "how": how, "gallery": gallery} | self.about(feature_id), maps

    @lru_cache(maxsize=64)  # noqa: B019 a catalogue lives as long as its kernel
    def about(self, feature_id: int) -> dict[str, Any]:
        """A feature's page without its gallery: histogram, selectivity, parts, neighbours."""
        maxima = self.index.maps(feature_id, self.rows).reshape(len(self.rows), -1)
        active = maxima[maxima > 0]
        counts, edges = np.histogram(active, 30, (0, float(active.max(initial=1e-9))))
        row, selectivity, bars = self.table.loc[feature_id], [], {}
        best = pd.Series(maxima.max(1), self.images.index)
        for level in self.levels:
            z, auroc = row[f"{level}/z"], row[f"{level}/auroc"]
            null = abs(1.96 * (auroc - 0.5) / z) if z else np.nan
            tested = {"level": level, "class": row[f"{level}/class"], "auroc": auroc, "z": z, "null": null}
            selectivity.append({name: _plain(value) for name, value in tested.items()})
            means = best.groupby(self.images[level]).mean().nlargest(5)
            bars[level] = [[str(name), float(mean)] for name, mean in means.items() if mean > 0]
        parts = []
        if self.parts is not None:
            own = self.parts[self.parts["feature_id"] == feature_id].sort_values("ap", ascending=False)
            parts = _records(own.filter(["part", "ap", "prevalence", "response"]))
        return {
            "histogram": {"counts": counts.tolist(), "top": float(edges[-1]), "n_cells": int(maxima.size)},
            "selectivity": selectivity, "classes": bars, "parts": parts,
            "pushes": self._pushes(feature_id), "neighbours": _records(neighbours(self.trial.sae.W_dec, feature_id)),
        }  # fmt: skip

    def _pushes(self, feature_id: int, n_random: int = 20) -> dict[str, Any] | None:
        """What a feature adds to logits, less the mean over classes, in up to 200 pictures where it is active.

        up, down: the three classes that gain most and least; band: 95 % of random directions of the same length move no
        class further. None without a closed form, or if the feature is never active.
        """
        active = np.random.default_rng(0).permutation(np.flatnonzero(self.trial.strength[:, feature_id] > 0))[:200]
        if (readout := self.trial.readout) is None or not len(active):
            return None
        own, taken = self.trial.sae.W_dec.detach()[[feature_id]], self.trial.strength[active][:, [feature_id]]
        random = random_directions(own.expand(n_random, -1), cell_covariance(self.trial.acts), (0, feature_id))
        pooled = self.trial.pooled[active]
        after = readout.edited(pooled, taken.expand(-1, 1 + n_random), torch.cat([own, random]))
        added = (readout.logits(pooled)[:, None] - after).mean(0)
        added = (added - added.mean(1, keepdim=True)).numpy()
        order, names = added[0].argsort(kind="stable"), self.network.classes
        up, down = ([[names[i], float(added[0, i])] for i in each] for each in (order[::-1][:3], order[:3]))
        return {"up": up, "down": down, "band": float(np.quantile(np.abs(added[1:]).max(1), 0.95)), "n": len(active)}

    def pair(self, one: str, two: str, n: int = 20) -> list[dict[str, Any]]:
        """The features that move the margin between two classes most; ValueError for unknown classes."""
        classes = self.network.classes
        if one not in classes or two not in classes or one == two:
            raise ValueError(f"a pair is two different classes of {self.network.level}, got {one!r} and {two!r}")
        pair = classes.index(one), classes.index(two)
        in_b = self.trial.in_b[np.isin(self.trial.labels, pair)]
        if in_b.all() or not in_b.any():
            raise ValueError(f"{one} and {two} have too few test pictures for two halves")
        return _records(tell_apart(self.trial, pair, n))

    @lru_cache(maxsize=4096)  # noqa: B019 a catalogue lives as long as its kernel; each takes about 6 kB
    def thumbnail(self, row: int) -> bytes:
        """A picture as JPEG, TILE pixels square, as the network sees it; ValueError for an unknown row."""
        return as_jpeg(self.picture(row), TILE)

    def picture(self, row: int) -> Image.Image:
        """The picture of a row of the index; ValueError for an unknown row."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self.index.images):
            raise ValueError(f"picture {row} is not one of 0 .. {len(self.index.images) - 1}")
        return self.trial.pictures.picture(self.index.images["image"].iloc[row])


def gallery_figure(index: FeatureIndex, pictures: Pictures, feature_id: int, rows: np.ndarray | None = None) -> Figure:
    """A feature's gallery: six pictures for each of HOWS, with one scale for heat."""
    from aircraft_sae.view.plots import heat, picture_grid  # importing it sets matplotlib's style, which widgets leave

    check_features([feature_id], index.d_sae)
    top, level = float(index.table.at[feature_id, "max"]), next(iter(pictures.levels), None)
    shown, captions = [], []
    for how in HOWS:
        picks = index.patches(feature_id, how, 6, rows)
        maps = index.maps(feature_id, picks["image_row"].to_numpy())
        cells = zip(picks["image"], maps, picks["row"], picks["column"], strict=True)
        shown.append([heat(pictures.picture(image), each, top, (r, c)) for image, each, r, c in cells])
        names = index.images[level].iloc[picks["image_row"]] if level else picks["image"]
        captions.append([f"{value / top:.0%} · {name}" for value, name in zip(picks["value"], names, strict=True)])
    return picture_grid(shown, captions, list(HOWS.values()), empty="never active in these pictures")


def patches_figure(index: FeatureIndex, pictures: Pictures, features: Mapping, rows: np.ndarray, n: int = 9) -> Figure:
    """One row per feature {title: feature_id}: crops of its n strongest patches, at most one from each picture."""
    picks = {title: index.patches(feature_id, "top", n, rows) for title, feature_id in features.items()}
    return crops_figure(picks, pictures, index.grid)


def crops_figure(picks: Mapping[str, pd.DataFrame], pictures: Pictures, grid: tuple[int, int]) -> Figure:
    """One row per title: crops around cells (image, row, column) of a grid; white where image is missing."""
    from aircraft_sae.view.plots import picture_grid  # as above

    blank, shown = Image.new("RGB", (72, 72), "white"), []
    for own in picks.values():
        shown.append([blank if pd.isna(pick.image) else _crop(pick, pictures, grid) for pick in own.itertuples()])
    return picture_grid(shown, names=list(picks), empty="never active in these pictures")


def _crop(pick: Any, pictures: Pictures, grid: tuple[int, int]) -> Image.Image:
    """The square around a cell (image, row, column), with about a third of the picture's sides, at 72 pixels."""
    picture, share = pictures.picture(pick.image), 72 / 224
    sides = np.array(picture.size)
    middle = np.divide([pick.column + 0.5, pick.row + 0.5], grid[::-1]) * sides
    start = np.clip(middle - sides * share / 2, 0, sides * (1 - share))
    return picture.crop([*start.round(), *(start + sides * share).round()]).resize((72, 72), BICUBIC)


def as_jpeg(picture: Image.Image, size: int) -> bytes:
    """A JPEG file of the picture, `size` pixels square."""
    file = io.BytesIO()
    picture.resize((size, size), BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def _plain(value: Any) -> Any:
    """A value for JSON: six significant digits, None where missing."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return None if pd.isna(value) else value


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]
