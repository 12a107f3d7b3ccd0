"""Dictionaries in which no feature learned from the network: what a claim about features has to beat."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig, change
from aircraft_sae.features.reconstruction import PLAIN, both_signs, dictionary, pca
from aircraft_sae.sae import SparseAutoencoder


class Null(NamedTuple):
    """A dictionary, and the names of the network and of the pictures that `Study` is to index it on."""

    sae: SparseAutoencoder
    network: str = "trained"
    pictures: str = "all"


def short_training(cfg: SAEConfig) -> dict[str, int]:
    """Changes to a config for a training on an eighth of its cells, in half of its batches."""
    return {"n_cells": cfg.n_cells // 8, "dead_after": cfg.dead_after // 8, "batch_size": cfg.batch_size // 2}


def null_dictionaries(sae: SparseAutoencoder, acts: Activations, train: Callable[..., Any]) -> dict[str, Null]:
    """The nulls of an autoencoder, by name: the same ones each time, with nothing written beside what `train` writes.

    sae: the autoencoder, as wide and sparse as the others are made; acts: of its site; train: `study.sae` of the same
    study, which trains the last two (short, as "frozen-decoder" and "permuted") or loads them.
    "channels", "PCA": both signs of each; "random directions": spread as the cells of validation pictures; "untrained":
    as its training would start; "frozen decoder"; "permuted network": of the network with permuted weights.
    """
    (mean, variance), few = acts.moments(acts.rows("train", "val")), short_training(sae.cfg)
    directions = {
        "channels": both_signs(torch.eye(acts.d_in)),
        "PCA": both_signs(pca(acts, acts.rows("train"), acts.d_in).basis),
        "random directions": random_directions(torch.ones(sae.d_sae, acts.d_in), cell_covariance(acts)),
    }
    nulls = {name: Null(dictionary(sae, mean.float(), rows)) for name, rows in directions.items()}
    untrained = SparseAutoencoder(change(sae.cfg, variant="topk", **PLAIN), acts.d_in)
    nulls["untrained"] = Null(untrained.in_units_of(mean.float(), (acts.d_in / variance) ** 0.5))
    nulls["frozen decoder"] = Null(train("frozen-decoder", frozen_decoder=True, **few))
    of = {"network": "permuted", "pictures": "every3"}
    return nulls | {"permuted network": Null(train("permuted", **of, **few), **of)}


def cell_covariance(acts: Activations, every: int = 1) -> torch.Tensor:
    """(d_in, d_in) of the cells of validation pictures, or of every so many of these."""
    return torch.cov(torch.cat([block.flatten(0, 2)[::every] for block in acts.blocks(acts.rows("val"))]).t())


def random_directions(like: torch.Tensor, covariance: torch.Tensor, seed: int | tuple[int, ...] = 0) -> torch.Tensor:
    """(d, d_in) directions drawn from N(0, covariance), each as long as the row of `like` (d, d_in) in its place."""
    root = _root(covariance)
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(like.shape, np.float32)) @ root.t()
    return drawn * (like.norm(dim=1) / drawn.norm(dim=1).clamp(min=1e-12))[:, None]


@lru_cache(maxsize=2)
def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a covariance; the last ones are kept, since many directions are drawn from one.

    Symmetric, because eigenvectors by themselves may change sign with the last bit of what they are computed from.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
    return (eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.t()).float()
