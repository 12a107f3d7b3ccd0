"""Dictionaries in which no feature learned from the network: what a claim about features has to beat."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig, change
from aircraft_sae.features.reconstruction import PLAIN, both_signs, cell_covariance, dictionary, pca, random_directions
from aircraft_sae.sae import SparseAutoencoder


class Null(NamedTuple):
    """A dictionary, and the names of the network and of the pictures that `Study` is to index it on."""

    sae: SparseAutoencoder
    network: str = "trained"
    pictures: str = "all"


def short_training(cfg: SAEConfig) -> dict[str, int]:
    """Changes to a config for a training on an eighth of its cells, in half of its batches."""
    return {"n_cells": cfg.n_cells // 8, "dead_after": cfg.dead_after // 8, "batch_size": cfg.batch_size // 2}


def null_dictionaries(
    sae: SparseAutoencoder, acts: Activations, train: Callable[..., SparseAutoencoder]
) -> dict[str, Null]:
    """The nulls of an autoencoder, by name: the same ones each time, as wide and sparse as it is.

    acts: of its site; train: `study.sae`, which trains the last two (short, as "frozen-decoder" and "permuted") or
    loads them. "channels", "PCA": both signs; "random directions": spread as the cells of validation pictures;
    "untrained": as training would start; "frozen decoder"; "permuted network": of the network with permuted weights.
    """
    (mean, variance), few = acts.moments(acts.rows("train", "val")), short_training(sae.cfg)
    basis, spread = pca(acts, acts.rows("train"), acts.d_in).basis, cell_covariance(acts)
    directions = {
        "channels": both_signs(torch.eye(acts.d_in)),
        "PCA": both_signs(basis),
        "random directions": random_directions(torch.ones(sae.d_sae, acts.d_in), spread),
    }
    nulls = {name: Null(dictionary(sae, mean.float(), rows)) for name, rows in directions.items()}
    untrained = SparseAutoencoder(change(sae.cfg, variant="topk", **PLAIN), acts.d_in)
    nulls["untrained"] = Null(untrained.in_units_of(mean.float(), (acts.d_in / variance) ** 0.5))
    nulls["frozen decoder"] = Null(train("frozen-decoder", frozen_decoder=True, **few))
    of = {"network": "permuted", "pictures": "every3"}
    return nulls | {"permuted network": Null(train("permuted", **of, **few), **of)}
