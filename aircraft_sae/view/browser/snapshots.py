"""What the browser and the bench show, as figures and tables that need no kernel: for notebooks as they are read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.features import check_features
from aircraft_sae.view.browser.bench import Bench, Subject
from aircraft_sae.view.browser.catalogue import HOWS, Catalogue
from aircraft_sae.view.plots import heat, picture_grid

TITLES = {"top": "strongest", "interval": "whole range", "random": "any"}
KINDS = {
    "before": "as it is",
    "after": "features changed",
    "random": "random directions",
    "reconstruction": "reconstruction only",
}


def gallery_figure(catalogue: Catalogue, feature_id: int, n: int = 6) -> Figure:
    """A feature's gallery: n tiles of each choice of pictures, heat on the feature's one scale."""
    check_features([feature_id], len(catalogue.table))
    pictures, captions, top = [], [], float(np.nan_to_num(catalogue.table.at[feature_id, "max"]))
    for how in HOWS:
        view, maps = catalogue.feature(feature_id, how, n)
        names = [catalogue.index.images["image"].iloc[tile["picture"]] for tile in view["gallery"]]
        pictures.append([
            heat(catalogue.data.picture(name), each, top, tuple(tile["cell"]))
            for name, each, tile in zip(names, maps, view["gallery"], strict=True)
        ])  # fmt: skip
        captions.append([f"{tile['value'] / top:.0%} · {tile['label']}" for tile in view["gallery"]])
    return picture_grid(pictures, captions, [TITLES[how] for how in HOWS], empty="a dead feature: never active")


def bench_figure(bench: Bench, subject: Subject, blurred: Subject, feature_id: int) -> Figure:
    """The bench's picture, a feature's heat on it, and the same with cells blurred."""
    check_features([feature_id], bench.sae.d_sae)
    top = float(np.nan_to_num(bench.catalogue.table.at[feature_id, "max"]))
    size = (subject.x.shape[1],) * 2
    plain = subject.picture.resize(size, Image.Resampling.BICUBIC)
    hot = [heat(each.picture.resize(size, Image.Resampling.BICUBIC), each.codes[..., feature_id].numpy(), top)
           for each in (subject, blurred)]  # fmt: skip
    classes = bench.classifier.classes
    told = [f"predicted: {classes[int(each.logits.argmax())]}" for each in (subject, blurred)]
    return picture_grid([[plain, *hot]], [[told[0], f"feature {feature_id}", f"cells blurred, {told[1]}"]])


def bench_table(bench: Bench, subject: Subject, multipliers: Mapping[int, float], n: int = 5) -> pd.DataFrame:
    """Logits of the n likeliest classes as they are, with features multiplied, and of the two controls."""
    made = bench.change(subject, multipliers)
    best = made["before"].topk(min(n, len(made["before"]))).indices.tolist()
    best += [i for i in made["after"].topk(1).indices.tolist() if i not in best]
    columns = {title: made[kind][best].numpy() for kind, title in KINDS.items()}
    return pd.DataFrame(columns, [bench.classifier.classes[i] for i in best]).rename_axis("logit of")
