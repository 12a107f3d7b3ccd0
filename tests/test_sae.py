"""The autoencoder and its training: dense reference, planted dictionary, kills, round trips, bad input."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from aircraft_sae.config import SAEConfig
from aircraft_sae.sae import Codes, SparseAutoencoder
from aircraft_sae.sae import training as sae_training
from aircraft_sae.sae.model import largest
from aircraft_sae.sae.training import Run, backward, choose, train_sae
from aircraft_sae.store.checkpoint import CHECKPOINT

VARIANTS = "topk", "batchtopk"


class Planted:
    """Cells that sum `per_cell` known directions, plus noise, with the interface that training needs."""

    def __init__(self, n_cells, d_in, n_true, per_cell, seed=12345):  # not the seed of any autoencoder
        generator = torch.Generator().manual_seed(seed)
        self.d_in, self.directions = d_in, normalize(torch.randn(n_true, d_in, generator=generator))
        ids = torch.rand(n_cells, n_true, generator=generator).topk(per_cell).indices
        strengths = 0.5 + torch.rand(n_cells, per_cell, generator=generator)
        clean = (self.directions[ids] * strengths[:, :, None]).sum(1)
        noise = 0.05 * clean.square().mean().sqrt() * torch.randn(n_cells, d_in, generator=generator)
        self.cells = 3 + clean + noise  # off the origin

    def moments(self, rows):
        cells = self.cells.double()
        return cells.mean(0), cells.var(0, correction=0)

    def batches(self, rows, batch_size, seed, start=0):
        per_epoch = len(self.cells) // batch_size
        while True:
            epoch, i = divmod(start, per_epoch)
            order = np.random.default_rng((seed, epoch)).permutation(len(self.cells))
            yield self.cells[order[i * batch_size : (i + 1) * batch_size]].half()
            start += 1


@pytest.fixture(scope="module")
def planted():
    return Planted(20_000, 32, 64, 3)


def small(variant="topk", **values):
    given = {"k": 6, "n_cells": 40_000, "batch_size": 1000, "dead_after": 10_000, "aux_k": 16}
    return SAEConfig(variant=variant, **given | values)


def made(cfg, d_in=48):
    """An autoencoder with nonzero biases and rows of other lengths than 1."""
    sae = SparseAutoencoder(cfg, d_in)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (sae.b_dec, sae.b_enc):
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        sae.W_dec.mul_(1.3)
        if not cfg.tied:
            sae.W_enc_rows.add_(0.05 * torch.randn(sae.W_dec.shape, generator=generator))
    return sae


def reference(sae, acts, dead=()):
    """(loss, gradients by name) from the formulas: dense products, float64, autograd."""
    cfg, n = sae.cfg, len(acts)
    weights = {name: value.detach().double().requires_grad_() for name, value in sae.named_parameters()}
    W_dec, W_enc_rows = weights["W_dec"], weights["W_dec" if cfg.tied else "W_enc_rows"]
    acts = acts.double()
    pre_acts = (acts - weights["b_dec"]) @ W_enc_rows.t() + weights["b_enc"]
    positive = pre_acts.relu()
    if cfg.variant == "topk":
        chosen = torch.zeros_like(positive).scatter_(1, pre_acts.topk(cfg.k).indices, 1)
    else:
        chosen = positive >= positive.flatten().topk(cfg.k * n).values.min()
    features = positive * chosen
    loss = (features @ W_dec + weights["b_dec"] - acts).square().sum() / (n * sae.d_in)
    if len(dead):
        m = slice(None, None, 4)  # each fourth cell
        left_over = (acts - features @ W_dec - weights["b_dec"])[m].detach()
        pre_dead = ((acts - weights["b_dec"]) @ W_enc_rows.t() + weights["b_enc"])[m][:, dead]
        keep = torch.zeros_like(pre_dead).scatter_(1, pre_dead.topk(min(cfg.aux_k, len(dead))).indices, 1)
        recon = (pre_dead.relu() * keep) @ W_dec[dead]
        loss = loss + cfg.aux_coefficient * (recon - left_over).square().sum() / left_over.square().sum()
    loss.backward()
    return loss.item(), {name: value.grad for name, value in weights.items()}


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("with_dead", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradients_equal_the_dense_reference(variant, tied, with_dead, rough):
    sae = made(small(variant, tied=tied))
    acts = torch.randn(700, 48, generator=torch.Generator().manual_seed(2))  # more than one block
    dead = torch.tensor([3, 50, 51, 200, *range(300, 330)]) if with_dead else None
    codes, _ = choose(sae, (acts - sae.b_dec).detach(), 0.0, rough)
    found, _ = backward(sae, (acts - sae.b_dec).detach(), codes, dead)
    loss, gradients = reference(sae, acts, () if dead is None else dead)
    assert found == pytest.approx(loss, rel=1e-5)
    for name, parameter in sae.named_parameters():
        assert (parameter.grad - gradients[name]).norm() < 1e-5 * gradients[name].norm(), name


@pytest.mark.parametrize("floor", [0.0, 0.5, 100.0])
def test_batchtopk_selects_the_largest_of_the_batch_from_any_floor(floor):
    sae = made(small("batchtopk"))
    centred = torch.randn(700, 48, generator=torch.Generator().manual_seed(3))
    codes, least = choose(sae, centred, floor)
    pre_acts = centred @ sae.W_enc + sae.b_enc
    wanted = pre_acts.flatten().topk(6 * 700).values
    assert least == pytest.approx(wanted.min().item(), rel=1e-5)
    torch.testing.assert_close(codes.values.sort(descending=True).values, wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_planted_dictionary_is_found(planted, tmp_path, variant):
    cfg = small(variant, k=3, n_cells=600_000, batch_size=500, learning_rate=3e-3, expansion=4)
    train_sae(tmp_path, cfg, planted, [0])
    sae = SparseAutoencoder.load(tmp_path)
    start = SparseAutoencoder(cfg, planted.d_in)
    found, by_chance = ((normalize(s.W_dec.detach()) @ planted.directions.t()).amax(0) > 0.9 for s in (sae, start))
    assert found.float().mean() >= 0.95 and by_chance.float().mean() < 0.05
    recon, codes = sae.reconstruct(planted.cells)
    fvu = (recon - planted.cells).square().sum() / (planted.cells - planted.cells.mean(0)).square().sum()
    assert fvu < 0.1  # in the units of the cells, 3 off the origin
    assert len(codes.where(codes.values > 0).values) / len(codes) < 3.3
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["n_cells"].iloc[-1] == 600_000 and history["fvu"].iloc[-1] == pytest.approx(fvu.item(), abs=0.02)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_ends_with_the_same_bits(planted, tmp_path, monkeypatch, variant):
    cfg = small(variant, n_cells=105_000, batch_size=500)  # a row of the history every second step
    train_sae(tmp_path / "whole", cfg, planted, [0])
    monkeypatch.setattr(sae_training, "CHECKPOINT_SECONDS", 0.0)
    step, save, calls = Run.train_step, Run.save, []

    def killed(run, cells):
        calls.append(1)
        if len(calls) in (8, 15):
            raise KeyboardInterrupt
        return step(run, cells)

    monkeypatch.setattr(Run, "train_step", killed)
    monkeypatch.setattr(Run, "save", lambda run: save(run) if run.step % 5 == 0 else None)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train_sae(tmp_path / "cut", cfg, planted, [0])
    train_sae(tmp_path / "cut", cfg, planted, [0])
    assert len(calls) == 210 + 2 + 2 + 1  # the kills, and steps 5 to 7 and 10 to 11 done again
    for name in ("sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "cut" / CHECKPOINT).exists()
    columns = ["n_cells", "fvu", "l0", "loss", "dead_share"]
    cut, whole = (pd.read_csv(tmp_path / name / "history.csv")[columns] for name in ("cut", "whole"))
    pd.testing.assert_frame_equal(cut, whole)


def test_a_diverging_run_says_so_and_another_runs_checkpoint_is_refused(tmp_path):
    planted = Planted(2_000, 32, 64, 3)
    planted.batches = lambda rows, n, seed, start=0: iter([planted.cells[:1000], planted.cells[:1000] * torch.inf] * 99)
    with pytest.raises(ValueError, match=r"the loss is nan at step 1, learning rate .*; there is no checkpoint yet"):
        train_sae(tmp_path, small(), planted, [0])
    Run(tmp_path, small(), planted, [0]).save()
    with pytest.raises(ValueError, match="another config or other activations"):
        train_sae(tmp_path, small(seed=1), planted, [0])


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"standardise": "channels"}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_scaling_is_folded_into_the_weights_and_survives_saving(tmp_path, variant, changes):
    generator = torch.Generator().manual_seed(4)
    acts = torch.randn(50, 48, generator=generator) * torch.linspace(0.5, 3, 50)[:, None] + 2
    mean, scale, near = torch.randn(48, generator=generator), 2.5, {}
    if "standardise" in changes:
        scale, near = torch.rand(48, generator=generator) + 0.5, {"rtol": 1e-3, "atol": 1e-3}
    sae = made(small(variant, **changes))
    sae.threshold.fill_(0.7)
    recon, codes = sae.reconstruct((acts - mean) * scale)
    sae.fold_scaling(mean, scale).save(tmp_path)
    again, own = SparseAutoencoder.load(tmp_path).reconstruct(acts)
    torch.testing.assert_close(again, recon / scale + mean, **near)
    torch.testing.assert_close(own.dense(), codes.dense() / (1 if "standardise" in changes else scale), **near)
    facts = json.loads((tmp_path / "cfg.json").read_text())
    assert facts["architecture"] == {"topk": "topk", "batchtopk": "jumprelu"}[variant]
    assert (facts["d_in"], facts["d_sae"]) == (48, 384)


@pytest.mark.parametrize("standardise", ["nothing", "channels"])
def test_standardising_keeps_one_large_channel_from_hiding_the_others(tmp_path, standardise):
    planted = Planted(20_000, 48, 96, 4)
    planted.cells[:, 0] *= 1000
    train_sae(tmp_path, small(standardise=standardise, k=4, n_cells=100_000), planted, [0])
    recon = SparseAutoencoder.load(tmp_path).reconstruct(planted.cells[:2000])[0]
    missing = (recon - planted.cells[:2000])[:, 1:].square().sum() / planted.cells[:2000, 1:].var(0).sum() / 2000
    assert missing > 0.8 if standardise == "nothing" else missing < 0.5


def test_a_fingerprint_is_of_config_and_weights(tmp_path):
    sae, other = made(small()), made(small(learning_rate=1e-3))
    sae.save(tmp_path)
    assert len(sae.fingerprint) == 16 and sae.fingerprint == SparseAutoencoder.load(tmp_path).fingerprint
    with torch.no_grad():
        known, sae.W_dec[3, 5] = sae.fingerprint, 0.5
    assert len({known, sae.fingerprint, other.fingerprint}) == 3


def test_files_open_in_saelens(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    acts = torch.randn(50, 48, generator=torch.Generator().manual_seed(4))
    for variant in VARIANTS:
        sae = made(small(variant))
        sae.threshold.fill_(0.7)
        sae.save(tmp_path / variant)
        theirs = sae_lens.SAE.load_from_disk(str(tmp_path / variant))
        recon, codes = sae.reconstruct(acts)
        torch.testing.assert_close(theirs.encode(acts).detach(), codes.dense(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(acts).detach(), recon, rtol=1e-5, atol=1e-5)
        if variant != "topk":  # whose rows are not of length 1 here
            theirs.fold_W_dec_norm()
            torch.testing.assert_close(theirs(acts).detach(), recon, rtol=1e-5, atol=1e-5)


REFUSED = {
    "variant must be 'topk' or 'batchtopk'": {"variant": "jumprelu"},
    "would untie it": {"tied": True, "standardise": "channels"},
    "nothing but biases": {"tied": True, "frozen_decoder": True},
    "dead_after=100000 is not below n_cells=10000: .*lower it": {"n_cells": 10_000},
    "k=100000 exceeds the 384 features .*lower sae.k": {"k": 100_000},
}


@pytest.mark.parametrize("words", REFUSED)
def test_contradictory_configs_are_refused(words):
    with pytest.raises(ValueError, match=words):
        SparseAutoencoder(SAEConfig(**REFUSED[words]), 48)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("d_sae", "k"), [(64, 4), (60, 3), (7, 7), (6144, 32)])
def test_largest_equals_topk(n, d_sae, k):
    rows = torch.randn(n, d_sae, generator=torch.Generator().manual_seed(0))
    values, places = largest(rows, k)
    assert torch.equal(values.sort(1).values, rows.topk(k).values.sort(1).values)
    assert torch.equal(rows.gather(1, places), values)


def test_acts_of_another_shape_are_refused():
    for wrong in (torch.zeros(2, 3, 48), torch.zeros(48), torch.zeros(5, 7), np.zeros((5, 48), np.float32)):
        with pytest.raises(ValueError, match=r"acts must be a tensor \(n, 48\), got"):
            made(small()).encode(wrong)


def test_decoder_rows_keep_unit_length_or_stay_frozen(planted, tmp_path):
    for frozen in (False, True):
        train_sae(tmp_path / str(frozen), small(frozen_decoder=frozen), planted, [0])
        sae = SparseAutoencoder.load(tmp_path / str(frozen))
        assert torch.equal(sae.W_dec, SparseAutoencoder(sae.cfg, 32).W_dec) == frozen
        torch.testing.assert_close(sae.W_dec.detach().norm(dim=1), torch.ones(256))


def test_codes_by_hand():
    codes = Codes(torch.tensor([2.0, 3.0, 5.0]), torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 3]), 2)
    table = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    assert codes.dense().tolist() == [[0, 2], [0, 0], [3, 5]]
    assert codes.decode(table).tolist() == [[0, 20], [0, 0], [3, 50]]
    assert codes.cells.tolist() == [0, 2, 2]
    assert codes.dot(table, torch.tensor([[1.0, 2], [3, 4], [5, 6]])).tolist() == [20, 5, 60]
    turned, order = codes.by_feature()
    assert turned.dense().tolist() == codes.dense().t().tolist() and order.tolist() == [1, 0, 2]
    assert codes.where(codes.features == 1).dense().tolist() == [[0, 2], [0, 0], [0, 5]]
