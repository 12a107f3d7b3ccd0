"""Why do so few features follow parts? Average precision of each part's best feature: other autoencoders, other inputs.

    python tests/benchmarks/part_trials.py            # all trials, 25 minutes on 2 cores
    python tests/benchmarks/part_trials.py sizes      # one group: settings, inside, residual, sizes

On the default study (its stages are made where they are not there). For each trial: mean over parts of the average
precision on half B of the feature that is best on half A, the same for a probe, and the parts at 0.3 or more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aircraft_sae.activations import Activations, captured
from aircraft_sae.features import FeatureIndex, build_index, cell_labels, halves, part_scores, probe_scores
from aircraft_sae.pictures import Views, loader, test_transform
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import train_sae
from aircraft_sae.study import Study

SHORT = 1_000_000
"""Cells that an autoencoder is trained on."""


def scored(study: Study, acts: Activations, **changes) -> str:
    """Train an autoencoder of these acts and say how well its features, and a probe, find parts."""
    cfg, data = replace(study.config.sae, n_cells=SHORT, **changes), study.dataset()
    with tempfile.TemporaryDirectory() as folder:
        train_sae(cfg, acts, acts.rows("train", "val"), Path(folder), progress=False)
        build_index(SparseAutoencoder.load(folder), acts, folder, progress=False)
        index = FeatureIndex.open(folder)
        test = index.rows("test")
        images, level = index.images.iloc[test], data.levels[0]
        in_b, classes = halves(images[level]), pd.Categorical(images[level]).codes
        labels, aircraft = cell_labels(data, images["image"], index.grid)
        scores = part_scores(index, labels, aircraft, test, in_b, classes)
        probe = probe_scores(acts.acts[acts.rows("test")], labels, in_b)["ap"].mean()
    best = scores.sort_values("ap_a", ascending=False, kind="stable").drop_duplicates("part")["ap"]
    return f"mean AP {best.mean():.3f}, {(best >= 0.3).sum()} parts at 0.3 or more; probe {probe:.3f}"


def seen(study: Study, size: int, names: dict[str, torch.nn.Module] | None = None) -> dict[str, Activations]:
    """Acts of all pictures at another size, at stage 4 or after other modules."""
    classifier, data = study.classifier(), study.dataset()
    transform, found = test_transform(size, classifier.mean, classifier.std), {}
    table = data.table.reset_index(drop=True)
    pictures = Views(data.picture, table["image"].tolist(), np.zeros(len(table), int), transform)
    kept = {name: [] for name in names or ["stage4"]}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: found.__setitem__(name, out))
        for name, module in (names or {}).items()
    ]
    try:
        for batch, _, _ in loader(pictures, 32, workers=1):
            with torch.inference_mode(), captured(classifier, ["stage4"]) as at:
                classifier.model(batch)
            for name in kept:
                kept[name].append((found if names else at)[name].permute(0, 2, 3, 1).half().numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Activations(np.concatenate(blocks), table) for name, blocks in kept.items()}


def trials(study: Study, groups: list[str]) -> Iterator[tuple[str, Activations, dict]]:
    """(what was tried, acts, changes of the autoencoder's config)."""
    acts = study.activations()
    if "settings" in groups:
        for expansion in (1, 2, 4, 8):
            yield f"{expansion} times d_in", acts, {"expansion": expansion}
        for k in (8, 16):
            yield f"k {k}", acts, {"k": k}
        yield "Matryoshka", acts, {"variant": "matryoshka", "prefixes": (0.125, 0.25, 0.5, 1.0)}
        yield "stage 3", study.activations("stage3"), {"site": "stage3"}
    if "inside" in groups:
        stage = study.classifier().site("stage4")
        modules = {"before its blocks": stage.downsample}
        modules |= {f"after block {i + 1}": block for i, block in enumerate(stage.blocks)}
        for name, made in seen(study, study.classifier().image_size, modules).items():
            yield f"inside stage 4, {name}", made, {}
    if "residual" in groups:
        rows = np.flatnonzero(acts.images["split"] != "views")
        images = acts.images.iloc[rows].reset_index(drop=True)
        less = np.float32(acts.acts[rows])
        less -= less.mean((1, 2), keepdims=True)
        yield "less each picture's mean", Activations(less.astype(np.float16), images), {}
        less -= less[(images["split"] != "test").to_numpy()].mean(0)
        yield "less each place's mean too", Activations(less.astype(np.float16), images), {}
    if "sizes" in groups:
        for size in (320, 448):
            yield f"pictures of {size} pixels", seen(study, size)["stage4"], {}


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["settings", "inside", "residual", "sizes"]
    if unknown := set(chosen) - {"settings", "inside", "residual", "sizes"}:
        sys.exit(f"no group of trials {', '.join(sorted(unknown))}: name some of settings, inside, residual, sizes")
    default = Study.open("hangar")
    for what, its_acts, its_changes in trials(default, chosen):
        print(f"{what:32} {scored(default, its_acts, **its_changes)}", flush=True)
