"""What there is to show of a study, as plain values: widgets ask for these, the atlas writes them, tests call them."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.activations import effective_radius, gradient_maps
from aircraft_sae.features import PARTS, FeatureIndex, cell_covariance, check_features, neighbours, random_directions
from aircraft_sae.interventions import Trial, Verdicts, tell_apart
from aircraft_sae.metrics import with_interval
from aircraft_sae.pictures import Pictures
from aircraft_sae.store import digest
from aircraft_sae.studies.manipulation import CellHead
from aircraft_sae.study import Study
from aircraft_sae.view import visualise

BICUBIC, TILE = Image.Resampling.BICUBIC, 160  # pixels of a thumbnail
HOWS = {"top": "strongest", "interval": "whole range", "random": "any"}  # as in `FeatureIndex.patches`, and titles
LISTED = ("feature_id", "density_cell", "density_image", "mean", "max", "placed", "part", "part_ap")


@lru_cache(maxsize=2)
def catalogue_of(study: Study, like: str = "main") -> "Catalogue":
    """`Catalogue.of`, made once in a kernel: its pictures and vectors are shared by all widgets."""
    return Catalogue.of(study, like)


@dataclass(eq=False)
class Catalogue:
    """A study's features and pictures.

    trial: the test pictures; table: one row a feature, with the columns of `LISTED`, as far as they are known, and
    <level>/class, <level>/auroc, <level>/z; parts: one row a feature and part; rows: the test pictures, as rows of the
    index; images: their table, with label (the class) and predicted, which is the label where nothing is known; head:
    names the part that a cell shows, None for pictures without parts.
    """

    name: str
    folder: Path
    trial: Trial
    index: FeatureIndex
    table: pd.DataFrame
    parts: pd.DataFrame | None
    rows: np.ndarray
    images: pd.DataFrame
    like: str = "main"
    head: CellHead | None = None

    @classmethod
    def of(cls, study: Study, like: str = "main") -> "Catalogue":
        """Of a study's "main" or "local" autoencoder, made if need be; with verdicts where there are any."""
        index, pictures, network, sae = study.features(like), study.pictures(), study.network(), study.sae(like)
        trial = Trial.of(network, sae, pictures, study.activations(sae.cfg.site), index)
        rows, level = index.rows("test"), network.level or next(iter(pictures.levels), None)
        images = index.images.iloc[rows].reset_index(drop=True)
        images["label"] = images["predicted"] = images[level].astype(str) if level else ""
        if network.level and network.predictions is not None:
            known = network.predictions.set_index("image")["predicted"]
            images["predicted"] = known.reindex(images["image"]).to_numpy()
        table = index.table.rename(columns={f"{name}/auroc_z": f"{name}/z" for name in pictures.levels})
        shown = [f"{name}/{what}" for name in pictures.levels for what in ("class", "auroc", "z")]
        table["placed"] = table.get("placed", "none")
        table = table[[name for name in (*LISTED, *shown) if name in table]]
        parts = pd.read_parquet(index.folder / PARTS) if pictures.region_names else None
        if folder := study.finished(f"experiments/verdicts-{like}", index=index):
            verdicts = Verdicts.open(folder)
            table = table.merge(verdicts.features, "left", "feature_id", validate="1:1")
            if parts is not None and verdicts.responses is not None:
                parts = parts.merge(verdicts.responses, "left", ["feature_id", "part"], validate="1:1")
            if parts is not None and verdicts.parts is not None:
                tiers = verdicts.parts.groupby(["feature_id", "part"], as_index=False)["tier"].max()
                parts = parts.merge(tiers, "left", ["feature_id", "part"], validate="1:1")
        head = CellHead.open(study.segmentation(like)) if pictures.region_names else None
        return cls(study.config.name, study.folder, trial, index, table, parts, rows, images, like, head)

    def __post_init__(self):
        self.network, self.levels = self.trial.network, self.trial.pictures.levels
        # that of the network's classes, else the finest; None where pictures have no classes
        self.level = self.network.level or next(iter(self.levels), None)

    def label(self, row: int) -> str:
        """The class of a picture of the index, "" where it has none."""
        return str(self.index.images[self.level].iloc[row]) if self.level else ""

    @property
    def key(self) -> str:
        """Of the autoencoder: what a person says of its features holds for no other."""
        return self.trial.sae.fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """Known by what it shows."""
        return digest([self.name, self.index, self.trial, self.table, self.parts, self.images, self.head])

    def made_for(self, feature_id: int) -> tuple[np.ndarray, tuple[float, float]]:
        """(size, size, 3) uint8: the picture that a feature answers to most; what it and a random direction's reach.

        As multiples of the largest in test pictures. ValueError for a feature that is active in none.
        """
        trial, found = self.trial, []
        if not self.index.maps(feature_id, self.rows).any():
            raise ValueError(f"feature {feature_id} is active in no test picture: there is nothing to compare with")
        random, mean = trial.random[feature_id], trial.acts.moments(trial.rows)[0].float()
        for read in (visualise.feature(trial.sae, feature_id), visualise.middle(random, -float(mean @ random))):
            cells = (block.flatten(0, 2)[:, None, None] for block in trial.acts.blocks(trial.rows))
            top = max(float(read(each).max()) for each in cells)
            pictures, reached = visualise.maximise(trial.network, trial.acts.site, read, n=1)
            found.append((pictures[0], float(reached[0]) / top))
        return found[0][0], (found[0][1], found[1][1])

    def overview(self) -> dict[str, Any]:
        """All that a front end needs once: the table by columns, names of classes and parts, colours of heat."""
        columns = {name: [_plain(value) for value in column.tolist()] for name, column in self.table.items()}
        colours = (255 * colormaps["inferno"](np.arange(256))[:, :3]).round().astype(int)
        return {
            "name": self.name, "n_features": len(self.table), "grid": list(self.index.grid), "levels": self.levels,
            "classes": {level: self.trial.pictures.classes(level) for level in self.levels}, "columns": columns,
            "level": self.network.level, "colours": colours.ravel().tolist(), "tile": TILE,
            "has_parts": self.parts is not None, "has_verdicts": "verdict" in self.table, "radius": self.radius,
            "image_size": self.network.size, "n_pictures": len(self.images), "hows": list(HOWS), "key": self.key[:8],
            "like": self.like, "parts": self._parts_by_feature(), "has_regions": self.head is not None,
        }  # fmt: skip

    def _parts_by_feature(self) -> dict[str, dict[str, list]]:
        """{part: {ap, response, tier, as far as they are known: a value each feature, None where it is not}}."""
        if self.parts is None:
            return {}
        known = self.parts.set_index(["part", "feature_id"]).filter(["ap", "response", "tier"]).astype(float).round(3)
        wide, parts = known.unstack("part").reindex(range(len(self.table))), self.trial.pictures.region_names
        return {part: {name: [*map(_plain, wide[name, part])] for name in known} for part in parts}

    def on_bench(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """What a list of pictures to choose from says of these, in order of their classes."""
        shown = self.images.set_index(self.rows).loc[rows].sort_values("label", kind="stable")
        right = shown["predicted"] == shown["label"]
        names = {"picture": shown.index, "name": shown["image"], "label": shown["label"], "right": right}
        return pd.DataFrame(names).to_dict("records")

    def feature(
        self, feature_id: int, how: str = "top", n: int = 24, level: str = "", name: str = "", wrong: bool = False
    ) -> tuple[dict[str, Any], np.ndarray]:
        """(what is known of a feature with its gallery, maps (tiles, rows, columns) of the gallery's pictures).

        how: as in `FeatureIndex.patches`; level, name: only pictures of that class; wrong: only misclassified ones.
        Raises: ValueError for a feature, word or class that is not there.
        """
        kept = self.images
        if name:
            level = level or self.levels[0]
            if name not in self.trial.pictures.classes(level):
                raise ValueError(f"{name!r} is no {level} of this study")
            kept = kept[kept[level] == name]
        if wrong:
            kept = kept[kept["predicted"] != kept["label"]]
        picks = self.index.patches(feature_id, how, n, self.rows[kept.index])
        maps = self.index.maps(feature_id, picks["image_row"].to_numpy())
        shown = picks.join(self.images[["label", "predicted"]].set_axis(self.rows), on="image_row")
        shown = shown.assign(picture=shown["image_row"], cell=shown[["row", "column"]].to_numpy().tolist())
        gallery = shown[["picture", "cell", "value", "label", "predicted"]].to_dict("records")
        return {"feature_id": int(feature_id), "how": how, "gallery": gallery} | self.about(feature_id), maps

    @lru_cache(maxsize=64)  # noqa: B019 a catalogue lives as long as its kernel
    def about(self, feature_id: int) -> dict[str, Any]:
        """Histogram, selectivity, parts, companions of a feature: what its gallery does not change."""
        maxima = self.index.maps(feature_id, self.rows).reshape(len(self.rows), -1)
        active = maxima[maxima > 0]
        counts, edges = np.histogram(active, 30, (0, float(active.max(initial=1e-9))))
        row, best = self.table.loc[feature_id], maxima.max(1)
        selectivity, bars = [], {}
        for level in self.levels:
            z, area = row[f"{level}/z"], row[f"{level}/auroc"]
            null = abs(1.96 * (area - 0.5) / z) if z else np.nan
            said = {"level": level, "class": row[f"{level}/class"], "auroc": area, "z": z, "null": null}
            selectivity.append({name: _plain(value) for name, value in said.items()})
            number, names = self._numbered[level]
            means = np.bincount(number, best) / np.bincount(number)
            order = np.argsort(-means, kind="stable")[:5]
            bars[level] = [[str(names[i]), float(means[i])] for i in order if means[i] > 0]
        parts = []
        if self.parts is not None:
            own = self.parts[self.parts["feature_id"] == feature_id].sort_values("ap", ascending=False)
            parts = _records(own[[name for name in ("part", "ap", "prevalence", "response") if name in own]])
        return {
            "histogram": {"counts": counts.tolist(), "top": float(edges[-1]), "n_cells": int(maxima.size)},
            "selectivity": selectivity, "classes": bars, "parts": parts, "pushes": self._pushes(feature_id),
            "neighbours": _records(neighbours(self.trial.sae.W_dec, feature_id)),
            "coactive": _records(self.index.coactive(feature_id, 8)),
        }  # fmt: skip

    @cached_property
    def _numbered(self) -> dict[str, tuple[np.ndarray, pd.Index]]:
        """{level: (number of each test picture's class, names of the classes that they have)}."""
        return {level: pd.factorize(self.images[level], sort=True) for level in self.levels}

    def _pushes(self, feature_id: int, n_random: int = 20) -> dict[str, Any] | None:
        """What a feature adds to each class's logit over the mean of all, in pictures in which it is active.

        In at most 200. up, down: the three classes with most and least; band: 95 % of random directions of equal length
        add no more to any class. None without a closed form, or where it is never active.
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

    def effect(self, feature_id: int, one: str, two: str, n: int = 6) -> dict[str, Any]:
        """What suppressing a feature does to the margin between two classes in all their test pictures.

        effect: mean change of the true class's logit less the other's, {value, low, high, n}; random: of as much of a
        random direction; pictures: the n in which it changes most. Raises: ValueError for what is not there.
        """
        own, pair = self._of_pair(one, two)
        rival = torch.where(own.labels == pair[0], pair[1], pair[0])
        found = {"random": own.suppress([feature_id], directions=own.random[[feature_id]], rival=rival)["margin"][:, 0]}
        found["effect"] = change = own.suppress([feature_id], rival=rival)["margin"][:, 0]
        told = {name: with_interval(each, np.ones(len(each))) for name, each in found.items()}
        rows, most = self.rows[np.isin(self.trial.labels, pair)], np.argsort(-np.abs(change), kind="stable")[:n]
        said = ({"picture": int(rows[i]), "label": self.label(rows[i]), "change": float(change[i])} for i in most)
        return told | {"pictures": [each for each in said if each["change"]]}

    def _of_pair(self, one: str, two: str) -> tuple[Trial, tuple[int, int]]:
        """(the test pictures of two classes, their numbers). ValueError where they are not two of the network's."""
        classes = self.network.classes
        if one not in classes or two not in classes or one == two:
            raise ValueError(f"a pair is two different classes of {self.network.level}, got {one!r} and {two!r}")
        pair = classes.index(one), classes.index(two)
        if not (own := np.isin(self.trial.labels, pair)).any():
            raise ValueError(f"{one} and {two} have no test pictures")
        return self.trial[own], pair

    def pair(self, one: str, two: str, n: int = 20) -> list[dict[str, Any]]:
        """The features that move the margin between two classes most, by `tell_apart`; ValueError for no such two."""
        own, pair = self._of_pair(one, two)
        if not own.in_b.any() or own.in_b.all():
            raise ValueError(f"{one} and {two} have too few test pictures for two halves")
        return _records(tell_apart(self.trial, pair, n))

    @cached_property
    def radius(self) -> float | None:
        """Pixels around a cell that hold half of a feature's gradient, in a picture of the network's size."""
        alive = np.flatnonzero(self.index.table["density_cell"] > 0)
        radii, network, pictures = [], self.network, self.trial.pictures
        for feature_id in np.random.default_rng(0).permutation(alive)[:8].tolist():
            for pick in self.index.patches(feature_id, "top", 1, self.rows).itertuples():
                x, cell = network.as_input(pictures.picture(pick.image)), (pick.row, pick.column)
                gradient = gradient_maps(network, self.trial.sae, x, feature_id, cell)[1]
                radii.append(effective_radius(gradient, cell, self.index.grid))
        return float(np.mean(radii)) if radii else None

    @lru_cache(maxsize=4096)  # noqa: B019 a catalogue lives as long as its kernel; each takes about 6 kB
    def thumbnail(self, row: int) -> bytes:
        """A picture as JPEG, TILE pixels square, as the network sees it. ValueError for a row that is not there."""
        return as_jpeg(self.picture(row), TILE)

    def picture(self, row: int) -> Image.Image:
        """The picture of a row of the index; ValueError for one that is not there."""
        if not isinstance(row, int | np.integer) or not 0 <= row < len(self.index.images):
            raise ValueError(f"picture {row} is not one of 0 .. {len(self.index.images) - 1}")
        return self.trial.pictures.picture(self.index.images["image"].iloc[row])


def gallery_figure(index: FeatureIndex, pictures: Pictures, feature_id: int, rows: np.ndarray | None = None) -> Figure:
    """A feature's gallery: 6 pictures of each choice (of these rows of the index), heat on the feature's one scale."""
    from aircraft_sae.view.plots import heat, picture_grid  # which set matplotlib's style; a widget leaves it

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
    """For each title and feature a row of its n strongest patches, one a picture of these rows, as crops."""
    picks = {title: index.patches(feature_id, "top", n, rows) for title, feature_id in features.items()}
    return crops_figure(picks, pictures, index.grid)


def crops_figure(picks: Mapping[str, pd.DataFrame], pictures: Pictures, grid: tuple[int, int]) -> Figure:
    """A row for each title: crops around cells (image, row, column) of a grid, of 72 pixels of a picture of 224.

    Where no image is named, white stands in its place.
    """
    from aircraft_sae.view.plots import picture_grid  # as above

    blank, shown = Image.new("RGB", (72, 72), "white"), []
    for own in picks.values():
        shown.append([blank if pd.isna(pick.image) else crop(pick, pictures, grid) for pick in own.itertuples()])
    return picture_grid(shown, names=list(picks), empty="never active in these pictures")


def crop(pick: Any, pictures: Pictures, grid: tuple[int, int], share: float = 72 / 224) -> Image.Image:
    """72 pixels square around a cell (image, row, column) of a grid: this share of the picture's sides."""
    picture = pictures.picture(pick.image)
    sides = np.array(picture.size)
    middle = np.divide([pick.column + 0.5, pick.row + 0.5], grid[::-1]) * sides
    start = np.clip(middle - sides * share / 2, 0, sides * (1 - share))
    return picture.crop([*start.round(), *(start + sides * share).round()]).resize((72, 72), BICUBIC)


def as_jpeg(picture: Image.Image, size: int) -> bytes:
    """A picture, made `size` pixels square, as the bytes of a JPEG file."""
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
