"""Why do so few features follow parts? Average precision of each part's best feature: other autoencoders, other inputs.

    python tests/benchmarks/part_trials.py            # all trials, 25 minutes on 2 cores
    python tests/benchmarks/part_trials.py sizes      # one group: settings, inside, residual, sizes

On the default study (its stages are made where they are not there). For each trial: mean over parts of the average
precision on half B of the feature that is best on half A, the same for a probe, and the parts at 0.3 or more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from aircraft_sae.activations import Activations, extract
from aircraft_sae.features import Regions, best_matches, build_index, part_scores, probe_scores
from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import train_sae
from aircraft_sae.study import Study

SHORT = 1_000_000
"""Cells that an autoencoder is trained on."""


def scored(study: Study, acts: Activations, **changes) -> str:
    """Train an autoencoder of these acts and say how well its features, and a probe, find parts."""
    cfg = replace(study.config.sae, n_cells=SHORT, **changes)
    with tempfile.TemporaryDirectory() as folder:
        train_sae(folder=Path(folder), cfg=cfg, acts=acts, rows=acts.rows("train", "val"))
        rows = acts.rows("train", "val", "test")
        index = build_index(SparseAutoencoder.load(folder), acts, folder, rows)
        regions = Regions.of(index, study.pictures())
        best = best_matches(part_scores(index, regions))["ap"]
        probe = probe_scores(acts.acts[acts.rows("test")], regions)["ap"].mean()
    return f"mean AP {best.mean():.3f}, {(best >= 0.3).sum()} parts at 0.3 or more; probe {probe:.3f}"


def seen(study: Study, network: Network, sites: Sequence[str]) -> Iterator[Activations]:
    """Acts of all pictures at these sites."""
    with tempfile.TemporaryDirectory() as folder:
        extract(Path(folder), network, study.pictures(), sites)
        for site in sites:
            yield Activations.open(folder, site)


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
    network = study.network()
    if "inside" in groups:
        n_blocks = len(network.model.stages[3].blocks)
        inside = {"stages.3.downsample": "before its blocks"}
        inside |= {f"stages.3.blocks.{i}": f"after block {i + 1}" for i in range(n_blocks)}
        for made in seen(study, network, list(inside)):
            yield f"inside stage 4, {inside[made.site]}", made, {}
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
            larger = Network(network.model, network.classes, size, network.mean, network.std)
            for made in seen(study, larger, ["stage4"]):
                yield f"pictures of {size} pixels", made, {}


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["settings", "inside", "residual", "sizes"]
    if unknown := set(chosen) - {"settings", "inside", "residual", "sizes"}:
        sys.exit(f"no group of trials {', '.join(sorted(unknown))}: name some of settings, inside, residual, sizes")
    default = Study.open("hangar")
    for what, its_acts, its_changes in trials(default, chosen):
        print(f"{what:32} {scored(default, its_acts, **its_changes)}", flush=True)
