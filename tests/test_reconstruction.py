"""Reconstruction, sparsity and splicing by hand on small arrays; guarantees of baselines and nulls."""

# ruff: noqa: I001
from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig
from aircraft_sae.features.reconstruction import (
    SEED_STEP, as_batchtopk, both_signs, dictionary, k_means, measure, mixtures, nearest, null_dictionaries, partners,
    pca, project, pursue, seed_agreement, seed_match, splice,
)  # fmt: skip
from aircraft_sae.networks import Network
from aircraft_sae.sae import SparseAutoencoder


@pytest.fixture(scope="module")
def acts():
    """70 images of 2 x 3 cells with 5 channels of unequal variance, 2 off the origin."""
    cells = np.random.default_rng(0).normal(size=(70, 2, 3, 5)) * [4, 2, 1, 0.5, 0.25] + 2
    images = pd.DataFrame({"image": [f"{i}" for i in range(70)], "split": ["train"] * 40 + ["test"] * 30})
    return Activations(np.float16(cells), images)


@pytest.fixture(scope="module")
def mean(acts):
    return acts.moments(acts.rows("train"))[0].float()


def flat(acts, split):
    return np.float64(acts.acts[acts.rows(split)]).reshape(-1, 5)


def test_fvu_is_squared_error_over_squared_distance_from_the_training_mean(acts, mean):
    rows = acts.rows("test")
    alone = measure(partial(project, mean, torch.zeros(0, 5)), acts, rows, mean).results
    assert alone["fvu"]["value"] == pytest.approx(1) and alone["pooled_fvu"]["value"] == pytest.approx(1)
    kept = measure(partial(project, mean, torch.eye(5)[:2]), acts, rows, mean).results["fvu"]
    centred = flat(acts, "test") - flat(acts, "train").mean(0)
    assert kept["value"] == pytest.approx((centred[:, 2:] ** 2).sum() / (centred**2).sum(), rel=1e-4)
    assert kept["low"] < kept["value"] < kept["high"] and kept["n"] == 30


def test_pca_is_the_best_linear_reconstruction(acts, mean):
    centre, basis = pca(acts, acts.rows("train"), 2)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(2))
    rows, centred = acts.rows("train"), flat(acts, "train") - flat(acts, "train").mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    fvu = measure(partial(project, centre, basis), acts, rows, mean).results["fvu"]["value"]
    assert fvu == pytest.approx(variances[2:].sum() / variances.sum(), rel=1e-4)


def test_sparsity_counts_by_hand(acts, mean):
    sae = SparseAutoencoder(SAEConfig(k=2, expansion=2), 5)
    basis = dictionary(sae, mean, 1.0, both_signs(torch.eye(5)))
    measured = measure(basis.reconstruct, acts, acts.rows("test"), mean)
    centred = (flat(acts, "test") - mean.double().numpy()).reshape(30, 6, 5)
    largest = np.argsort(-np.abs(centred), axis=2)[:, :, :2]
    features = largest + 5 * (np.take_along_axis(centred, largest, 2) < 0)  # -channels come after the channels
    assert measured.fired.tolist() == np.bincount(features.ravel(), minlength=10).tolist()
    assert measured.results["l0"]["value"] == 2
    distinct = [len(np.unique(image)) for image in features]
    assert measured.results["distinct_features_per_image"]["value"] == pytest.approx(np.mean(distinct))
    left = np.sort(centred**2, axis=2)[:, :, :3].sum() / (centred**2).sum()
    assert measured.results["fvu"]["value"] == pytest.approx(left, rel=1e-3)
    assert measured.results["dead_share"]["value"] == (measured.fired == 0).mean()
    assert measured.results["dense_share"]["value"] == (measured.fired > 18).mean()  # of 180 cells


def test_k_means_and_pursuit_reconstruct(acts, mean):
    rows = acts.rows("test")
    near = measure(partial(nearest, k_means(acts, acts.rows("train"), 60)), acts, rows, mean).results
    assert near["l0"]["value"] == 1 and near["fvu"]["value"] < 0.3
    directions = normalize(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    fvus = [measure(partial(pursue, mean, directions, k), acts, rows, mean).results["fvu"]["value"] for k in (1, 3, 5)]
    assert fvus[0] > fvus[1] > fvus[2] and fvus[2] < 1e-6, "five of twelve directions span everything"


def pooled():
    """Pictures to acts (2, 3, 5), whose mean over cells is read out linearly."""
    torch.manual_seed(1)
    layers = {"grid": nn.AdaptiveAvgPool2d((2, 3)), "body": nn.Conv2d(3, 5, 1), "pool": nn.AdaptiveAvgPool2d(1)}
    return nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "head": nn.Linear(5, 3, bias=False)}))


class Skipping(nn.Module):
    """The same with a connection past it, equal for all classes: it cannot start in the middle."""

    def __init__(self):
        super().__init__()
        self.inner = pooled()

    def forward(self, x):
        return self.inner(x) + x.mean((1, 2, 3))[:, None]


class Blank:
    """Empty pictures: stored acts take their place."""

    def picture(self, image):
        return Image.new("RGB", (3, 2))


@pytest.fixture(scope="module", params=[("body", pooled), ("inner.body", Skipping)], ids=["sequence", "skipping"])
def replayed(request, acts):
    """(a network, the acts as those of its site)."""
    site, kind = request.param
    network = Network(kind(), ["a", "b", "c"], 4)
    assert network.can_start(site) == (kind is pooled)
    return network, replace(acts, site=site)


def test_splicing_costs_nothing_when_exact_and_everything_at_the_mean(acts, mean, replayed):
    network, acts = replayed
    rows, (weight,) = acts.rows("test"), (p for p in network.model.parameters() if p.shape == (3, 5))
    own = torch.from_numpy(acts.acts[rows]).float().mean((1, 2)) @ weight.detach().t()
    labels = own.argmax(1).numpy()
    labels[:10] = (labels[:10] + 1) % 3  # ten mistakes
    exact = splice(partial(project, mean, torch.eye(5)), acts, rows, labels, network, Blank(), mean.double())
    assert exact["top1_change_points"]["value"] == 0 and exact["agreement"]["value"] == 1
    assert exact["kl_nats"]["value"] == pytest.approx(0, abs=1e-6)
    assert exact["ce_recovered_mean"]["value"] == pytest.approx(1)
    alone = splice(partial(project, mean, torch.zeros(0, 5)), acts, rows, labels, network, Blank(), mean)
    at_mean = (mean @ weight.detach().t()).log_softmax(0)
    p = own.softmax(1)
    assert alone["kl_nats"]["value"] == pytest.approx((p * (p.log() - at_mean)).sum(1).mean().item(), rel=1e-3)
    hits = (labels == at_mean.argmax().item()).mean()
    assert alone["top1_change_points"]["value"] == pytest.approx(100 * (hits - 20 / 30))
    assert alone["agreement"]["value"] == pytest.approx((own.argmax(1) == at_mean.argmax()).float().mean().item())
    assert alone["ce_recovered_mean"]["value"] == pytest.approx(0, abs=1e-6)


def test_seed_agreement_is_1_for_the_same_features_in_any_order_and_0_by_chance():
    generator = torch.Generator().manual_seed(0)
    first, other = (torch.randn(40, 8, generator=generator) for _ in range(2))
    shuffled = 3 * first[torch.randperm(40, generator=generator)]
    torch.testing.assert_close(partners(first, shuffled)[0], torch.ones(40))
    assert seed_agreement(first, shuffled)["agreement"] == pytest.approx(1)
    assert abs(seed_agreement(first, other)["agreement"]) < 0.1 < seed_agreement(first, other)["chance"]
    first, other = (torch.randn(300, 30, generator=generator) for _ in range(2))
    flat = torch.ones(30)
    flat[:5] = 4  # most of their length in few dimensions: alike without a reason
    found, round_ = seed_agreement(first * flat, other * flat), seed_agreement(first, other)
    assert abs(found["agreement"]) < 0.05 and found["chance"] > round_["chance"] + 0.1


def test_mixtures_have_the_same_covariance_and_no_direction_in_common():
    rows = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([4.0, 2, 1, 1])
    mixed = mixtures(rows, seed=1)
    torch.testing.assert_close(mixed.T.cov(), rows.T.cov(), rtol=0.1, atol=0.2)
    assert torch.equal(mixed, mixtures(rows, seed=1)) and not torch.equal(mixed, mixtures(rows, seed=2))
    assert cosine_similarity(mixed, rows).mean().abs() < 0.1


def test_foreground_and_background_are_measured_apart(acts, mean):
    rows, model = acts.rows("test"), partial(project, mean, torch.eye(5)[:2])
    shown = np.zeros((30, 2, 3), bool)
    shown[5:, 0] = True  # five images show nothing
    results = measure(model, acts, rows, mean, shown).results
    centred = (np.float64(acts.acts[rows]) - flat(acts, "train").mean(0))[shown]
    by_hand = (centred[:, 2:] ** 2).sum() / (centred**2).sum()
    assert results["fvu_foreground"]["value"] == pytest.approx(by_hand, rel=1e-4)
    assert results["fvu_foreground"]["n"] == 25 and results["fvu_background"]["n"] == 30
    assert "l0_foreground" not in results and "fvu_foreground" not in measure(model, acts, rows, mean).results
    centres = measure(partial(nearest, k_means(acts, acts.rows("train"), 4)), acts, rows, mean, shown).results
    assert centres["l0_foreground"]["value"] == centres["l0_background"]["value"] == 1
    nowhere = measure(model, acts, rows, mean, np.zeros((30, 2, 3), bool)).results
    assert "fvu_foreground" not in nowhere and nowhere["fvu_background"]["value"] == nowhere["fvu"]["value"]


def test_seed_match_is_the_lower_cosine_with_the_same_partner():
    sae, other = (SparseAutoencoder(SAEConfig(k=2, expansion=2, seed=seed), 8) for seed in (0, 1))
    order = torch.randperm(16)
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
        other.W_enc_rows.copy_(sae.W_enc_rows[order])
        assert seed_match(sae, [other]) == pytest.approx(np.ones(16), abs=1e-5)
        other.W_enc_rows[3].neg_()
    got = seed_match(sae, [sae, other])  # the lowest over all others
    assert got[order[3]] == pytest.approx(-1, abs=1e-5) and np.delete(got, order[3]) == pytest.approx(1, abs=1e-5)


def test_nulls_are_the_same_each_time_and_in_the_units_of_the_acts(acts):
    own = Activations(acts.acts, pd.DataFrame({"split": ["train"] * 40 + ["val"] * 10 + ["test"] * 20}))
    sae, asked = SparseAutoencoder(SAEConfig(k=2, expansion=2, batch_size=64), 5), []

    def nulls(seed):
        return null_dictionaries(sae, own, lambda *name, **how: asked.append((*name, how)) or sae, seed)

    first, again, other = nulls(0), nulls(0), nulls(1)
    everything = first, again, other
    known, same, others = ({name: null.sae.fingerprint for name, null in each.items()} for each in everything)
    assert known == same and len(set(known.values())) == len(known) - 1, "the stand-in for training comes twice"
    few = {"n_cells": 125_000, "dead_after": 12_500, "batch_size": 32}
    of = {"network": "permuted", "pictures": "every3"}
    for seed, calls in ((0, asked[:2]), (SEED_STEP, asked[4:])):
        short = few | {"seed": seed}
        assert calls == [("frozen-decoder", {"frozen_decoder": True} | short), ("permuted", of | short)]
    assert [name for name, null in first.items() if null[1:] != ("trained", "all")] == ["permuted network"]
    assert first["permuted network"]._asdict() == {"sae": sae} | of
    assert list(other) == [name for name in first if name not in ("channels", "PCA")]
    assert not {others["random directions"], others["untrained"]} & set(known.values())
    middle = own.moments(own.rows("train", "val"))[0].float()
    for name in ("channels", "PCA", "random directions", "untrained"):
        null = first[name].sae
        torch.testing.assert_close(null.b_dec.detach(), middle)
        torch.testing.assert_close(null.W_dec.detach().norm(dim=1), torch.ones(10))
        assert null.cfg.k == 2 and null.cfg.variant == "topk"
    along = first["random directions"].sae.W_dec.detach().abs().mean(0)
    assert along[0] > 2 * along[4], "they have the covariance of the cells"


def test_nulls_can_be_coded_like_a_trained_batchtopk(acts):
    """k are active in the mean of training cells, and more in some."""
    sae = SparseAutoencoder(SAEConfig(expansion=4, k=3, variant="topk"), acts.d_in)
    made = as_batchtopk(sae, acts)
    cells = torch.cat(list(acts.blocks(acts.rows("train")))).flatten(0, 2)
    codes, before = made.encode(cells).dense(), cells @ sae.W_enc.detach()
    counts = (codes > 0).sum(1).float()
    assert float(counts.mean()) == pytest.approx(3, rel=0.2) and counts.max() > 3
    torch.testing.assert_close(codes, torch.where(before > made.threshold, before, 0))
    assert sae.cfg.variant == "topk" and sae.threshold == 0
