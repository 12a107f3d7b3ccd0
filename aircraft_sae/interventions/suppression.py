"""Suppression in feature space: take a feature's part out of the activations, and see what the classifier makes of it.

An edit replaces acts x by x - (f - c) d in every cell: f the feature's activation, d its decoder row, c what is put in
its place. What the autoencoder does not explain stays as it is, so that changing nothing changes nothing.

At the last stage only the mean over cells reaches the head (mean -> LayerNorm -> linear), so the effect of each feature
on each picture follows from the pooled vector in closed form. That is exact arithmetic about the head, no evidence of
what the network before it does. With p the pooled acts, r the mean over cells of f - c, tildes centred over
channels, W' the head's weight times LayerNorm's gain, v the variance over D channels:

    logits' = (W' p~ - r W' d~) / sqrt(v_p - 2 r p~.d~ / D + r^2 v_d + eps) + bias
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from aircraft_sae.features import check_features
from aircraft_sae.networks import Classifier
from aircraft_sae.sae import SparseAutoencoder

BLOCK = 64
"""Images at a time: 64 x 6,144 features x 100 classes of logits are 157 MB, and a few such arrays live at once."""
EFFECTS = ("logit", "margin", "confidence", "specificity")


@dataclass(frozen=True)
class PooledHead:
    """The classifier's head on pooled acts: weight (classes, d_in) with LayerNorm's gain in it, bias (classes,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    @classmethod
    def of(cls, classifier: Classifier) -> PooledHead:
        """Of a timm ConvNeXt; ValueError where its head is not mean -> LayerNorm -> linear."""
        head, before = classifier.model.head, classifier.model.norm_pre
        plain = isinstance(before, nn.Identity) and isinstance(head.pre_logits, nn.Identity)
        if not plain or not isinstance(head.fc, nn.Linear):
            raise ValueError("the closed form needs a head of mean, LayerNorm and one linear layer: this has more")
        with torch.no_grad():
            gain, shift = head.norm.weight.cpu(), head.norm.bias.cpu()
            weight, bias = head.fc.weight.cpu(), head.fc.bias.cpu()
            return cls(weight * gain, bias + weight @ shift, head.norm.eps)

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """(n, classes) from pooled acts (n, d_in)."""
        centred = pooled - pooled.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + self.eps).sqrt()
        return centred @ self.weight.t() / scale + self.bias

    def edited(self, pooled: torch.Tensor, removed: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        """(n, d, classes) logits of pooled - removed[:, j] directions[j], for every j: one edit at a time.

        pooled: (n, d_in); removed: (n, d); directions: (d, d_in).
        """
        p = pooled - pooled.mean(1, keepdim=True)
        d = directions - directions.mean(1, keepdim=True)
        variance = p.square().mean(1)[:, None] - 2 * removed * (p @ d.t()) / p.shape[1]
        variance = variance + removed.square() * d.square().mean(1)
        top = (p @ self.weight.t())[:, None] - removed[:, :, None] * (d @ self.weight.t())
        return top / (variance.clamp(min=0) + self.eps).sqrt()[:, :, None] + self.bias


def effects(
    before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, rival: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """What an edit changes: (n, …) each, after less before.

    before: (n, classes) logits; after: (n, …, classes); labels: (n,) true classes; rival: (n,) the class that the
    margin is to, by default the most probable other one before the edit.
    logit: of the true class; margin: true class's logit less the rival's; confidence: true class's probability;
    specificity: logit less the mean change of all other classes' logits.
    """
    shape = (len(labels),) + (1,) * (after.ndim - 1)
    if rival is None:
        rival = before.scatter(1, labels[:, None], -torch.inf).argmax(1)

    def of(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return logits.gather(-1, classes.view(shape).expand(*logits.shape[:-1], 1))[..., 0]

    wide = before.view(len(before), *(1,) * (after.ndim - 2), -1).expand_as(after)
    change = after - wide
    logit = of(change, labels)
    others = (change.sum(-1) - logit) / (change.shape[-1] - 1)
    return {
        "logit": logit,
        "margin": logit - of(change, rival),
        "confidence": of(after.softmax(-1), labels) - before.softmax(-1).gather(1, labels[:, None]).view(shape)[..., 0],
        "specificity": logit - others,
    }


@torch.no_grad()
def suppress_all(
    head: PooledHead, pooled: torch.Tensor, removed: torch.Tensor, directions: torch.Tensor, labels: torch.Tensor
) -> dict[str, np.ndarray]:
    """Effects (n, d) of taking out each feature by itself, in closed form: those of `effects`, float32.

    pooled: (n, d_in) acts averaged over cells; removed: (n, d) what is taken out of each feature's pooled activation
    (all of it to suppress, minus it to double); directions: (d, d_in); labels: (n,).
    """
    parts = []
    for start in range(0, len(pooled), BLOCK):
        rows = slice(start, start + BLOCK)
        after = head.edited(pooled[rows], removed[rows], directions)
        parts.append(effects(head.logits(pooled[rows]), after, labels[rows]))
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in EFFECTS}


@torch.no_grad()
def suppress_hooked(
    classifier: Classifier,
    sae: SparseAutoencoder,
    acts: torch.Tensor,
    features: Sequence[int],
    labels: torch.Tensor,
    factor: float = 0.0,
    directions: torch.Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Effects (n, len(features)) of multiplying each feature by `factor` at the autoencoder's site, by forward passes.

    acts: (n, rows, columns, d_in); directions: (len(features), d_in) to take out in place of the decoder's rows, as
    much of them as of the feature. Pictures in which a feature is silent have effect 0 and cost nothing.
    Raises: ValueError for a feature that is not there, and what `encode` raises.
    """
    check_features(features, sae.d_sae)
    n, rows, columns, _ = acts.shape
    acts_of = sae.encode(acts.flatten(0, 2)).dense().view(n, rows, columns, -1)[..., list(features)]
    directions = sae.W_dec[list(features)] if directions is None else directions
    before = classifier.logits_from(sae.cfg.site, acts.permute(0, 3, 1, 2)).float().cpu()
    found = {name: np.zeros((n, len(features)), np.float32) for name in EFFECTS}
    for j, direction in enumerate(directions):
        active = acts_of[..., j].amax((1, 2)).nonzero()[:, 0]
        for some in active.split(BLOCK) if len(active) else ():
            changed = acts[some] - (1 - factor) * acts_of[some][..., j, None] * direction
            after = classifier.logits_from(sae.cfg.site, changed.permute(0, 3, 1, 2)).float().cpu()
            for name, effect in effects(before[some], after, labels[some]).items():
                found[name][some.numpy(), j] = effect.numpy()
    return found


def matched_features(table: pd.DataFrame, strength: np.ndarray, within: float = 0.25, seed: int = 0) -> np.ndarray:
    """(d,) for each feature another one, drawn at random among those of like density and like strength; -1 for none.

    table: features.parquet (density_cell); strength: (d,) such as mean activation times decoder norm; like: within this
    share of its own.
    """
    density, rng = table["density_cell"].to_numpy(), np.random.default_rng(seed)
    partner = np.full(len(density), -1)
    for j in np.flatnonzero(density > 0):
        like = np.abs(density / density[j] - 1) <= within
        like &= np.abs(strength / max(strength[j], 1e-12) - 1) <= within
        like[j] = False
        if like.any():
            partner[j] = rng.choice(np.flatnonzero(like))
    return partner


@torch.no_grad()
def beyond_random(
    head: PooledHead,
    pooled: torch.Tensor,
    removed: torch.Tensor,
    directions: torch.Tensor,
    covariance: torch.Tensor,
    labels: torch.Tensor,
    features: Sequence[int],
    n_random: int = 99,
    seed: int = 0,
) -> pd.DataFrame:
    """Is a feature's effect beyond that of as much of random directions of its length? One row a feature.

    pooled: (n, d_in); removed: (n, d_sae) features' mean activations; directions: (d_sae, d_in); labels: (n,). effect:
    mean absolute specificity over the pictures in which the feature is active; random: the median of its random
    directions; beyond: whether it is above 95 % of these; n: pictures. Features that are active in none are left out.
    Raises: ValueError for a feature that is not there.
    """
    check_features(features, len(directions))
    table = []
    for j in features:
        own = removed[:, j] > 0
        if not own.any():
            continue
        both = torch.cat([
            directions[j][None], random_directions(directions[j].expand(n_random, -1), covariance, (seed, j))
        ])  # fmt: skip
        effect = suppress_all(head, pooled[own], removed[own, j, None].expand(-1, len(both)), both, labels[own])
        ours, null = np.split(np.abs(effect["specificity"]).mean(0), [1])
        facts = {"feature_id": j, "effect": ours[0], "random": np.median(null), "n": int(own.sum())}
        table.append(facts | {"beyond": bool((null >= ours[0]).sum() + 1 <= 0.05 * (n_random + 1))})
    return pd.DataFrame(table)


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
