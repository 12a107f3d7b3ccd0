"""What the browser and the bench show, as figures and tables that need no kernel: for notebooks as they are read."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from aircraft_sae.features import FeatureIndex, check_features
from aircraft_sae.pictures import Pictures
from aircraft_sae.view.browser.bench import Bench, Subject
from aircraft_sae.view.browser.catalogue import HOWS
from aircraft_sae.view.plots import heat, picture_grid


def gallery_figure(index: FeatureIndex, pictures: Pictures, feature_id: int, rows: np.ndarray | None = None) -> Figure:
    """A feature's gallery: 6 pictures of each choice (of these rows of the index), heat on the feature's one scale."""
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


def bench_figure(bench: Bench, subject: Subject, blurred: Subject, feature_id: int) -> Figure:
    """The bench's picture, a feature's heat on it, and the same with cells blurred."""
    check_features([feature_id], bench.sae.d_sae)
    top = float(np.nan_to_num(bench.catalogue.table.at[feature_id, "max"]))
    both, size = (subject, blurred), (subject.x.shape[1],) * 2
    pictures = [each.picture.resize(size, Image.Resampling.BICUBIC) for each in both]
    hot = [heat(pictures[i], each.codes[..., feature_id].numpy(), top) for i, each in enumerate(both)]
    told = [f"predicted: {bench.network.classes[int(each.logits.argmax())]}" for each in both]
    return picture_grid([[pictures[0], *hot]], [[told[0], f"feature {feature_id}", f"cells blurred, {told[1]}"]])


def bench_table(bench: Bench, subject: Subject, multipliers: Mapping[int, float]) -> pd.DataFrame:
    """Logits of the 5 likeliest classes as they are, with features multiplied, and of the two controls."""
    made = bench.change(subject, multipliers)
    best = subject.logits.topk(min(5, len(subject.logits))).indices.tolist()
    best = list(dict.fromkeys([*best, int(made["after"].argmax())]))
    columns = {
        "as it is": subject.logits, "features changed": made["after"], "random directions": made["random"],
        "reconstruction only": bench.reconstruction(subject),
    }  # fmt: skip
    names = pd.Index([bench.network.classes[i] for i in best], name="logit of")
    return pd.DataFrame({title: logits[best].numpy() for title, logits in columns.items()}, names)
