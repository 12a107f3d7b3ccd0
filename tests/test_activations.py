"""Extraction: what hooks see, kills, bad values, full disks; and cells read back, shuffled."""

import math
import shutil
from itertools import count
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from aircraft_sae import activations
from aircraft_sae.activations import VIEWS, Activations, extract, replay, see_features, some_cells
from aircraft_sae.config import ClassifierConfig
from aircraft_sae.devices import MOST_AT_ONCE
from aircraft_sae.networks import network
from aircraft_sae.pictures import loader, test_transform

SITES, VIEWED = ("stage3", "stage4"), {"augmentation": ClassifierConfig(), "n_views": 2}


@pytest.fixture(scope="module")
def made(smoke_study, tmp_path_factory):
    """(network, pictures, folder with their activations at both sites)."""
    folder = tmp_path_factory.mktemp("activations")
    trained, data = smoke_study.network(), smoke_study.pictures()
    extract(folder, trained, data, SITES, **VIEWED)
    return trained, data, folder


def assert_same_acts(one, other):
    np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=0, atol=4e-3)


def test_replaying_stored_acts_gives_the_networks_own_logits(made):
    trained, data, folder = made
    pictures = data.torch("test", "variant", test_transform(trained.size, trained.mean, trained.std))
    with torch.inference_mode():
        logits = torch.cat([trained.see(batch).logits for batch, _, _ in loader(pictures, 8, workers=0)])
    for site in SITES:
        acts = Activations.open(folder, site)
        assert acts.acts[:1].dtype == np.float16
        assert acts.images["image"].tolist()[: len(data.table)] == data.table["image"].tolist()
        test = acts.rows("test")
        again = replay(trained, data, acts, test)
        torch.testing.assert_close(again, logits, rtol=0, atol=2e-3)
        edited = replay(trained, data, acts, test, torch.zeros_like)
        assert (edited - logits).abs().max() > 0.01


@pytest.mark.parametrize("by_norm", [False, True])
def test_some_cells_of_each_picture_are_kept(made, tmp_path, by_norm):
    trained, data, folder = made
    for name in ("one", "two"):
        extract(tmp_path / name, trained, data, ["stage3"], n_cells=6, by_norm=by_norm)
    some, again = (Activations.open(tmp_path / name, "stage3") for name in ("one", "two"))
    whole = Activations.open(folder, "stage3")
    assert some.grid == (6, 1) and np.array_equal(some.acts[:], again.acts[:]) and len(some.images) == len(data.table)
    each = whole.acts[: len(data.table)].reshape(len(data.table), 1, -1, whole.d_in)
    assert (np.abs(np.float32(some.acts[:]) - each).max(3).min(2) <= 4e-3).all(), "each is a cell of its picture"
    acts = torch.zeros(400, 2, 2, 3)
    acts[:, 0, 0], acts[:, 1, 1] = 1.0, 3.0
    drawn = some_cells(acts, 10, by_norm, range(400))[..., 0].flatten().numpy()
    share = {value: (drawn == value).mean() for value in (0.0, 1.0, 3.0)}
    wanted = {0.0: 0.0, 1.0: 0.25, 3.0: 0.75} if by_norm else {0.0: 0.5, 1.0: 0.25, 3.0: 0.25}
    assert share == pytest.approx(wanted, abs=0.03)
    acts = torch.rand(6, 5, 5, 3)
    in_two = some_cells(acts[4:], 9, by_norm, [4, 5])
    assert torch.equal(some_cells(acts, 9, by_norm, range(6))[4:], in_two), "batches do not matter"


def test_features_seen_in_pictures_are_those_of_stored_acts(made, smoke_study):
    trained, data, folder = made
    sae, acts = smoke_study.sae(), Activations.open(folder, "stage4")
    x = torch.stack([trained.as_input(data.picture(image)) for image in data.table["image"][:4]])
    with torch.no_grad():
        seen, codes = see_features(trained, sae, x)
    own = sae.encode(seen.acts["stage4"].flatten(0, 2)).dense()
    assert codes.shape == (4, *acts.grid, sae.d_sae) and torch.equal(codes.flatten(0, 2), own) and codes.sum() > 0
    assert_same_acts(seen.acts["stage4"], acts.acts[:4])


@pytest.mark.parametrize("how", ["one after the other", "side by side"])
def test_a_killed_extraction_resumes_and_ends_the_same(made, tmp_path, monkeypatch, how):
    trained, data, folder = made
    monkeypatch.setattr(activations, "BATCH", 5)
    monkeypatch.setattr(activations, "SHARD", 10)
    if how == "one after the other":
        monkeypatch.setattr(network, "run_parallel", map)
    seen, forward, numbers = [], trained.model.forward, count(1)

    def killed(pictures):
        seen.append(len(pictures))
        if next(numbers) in (4, 14):  # among the pictures, and among the views
            raise KeyboardInterrupt
        return forward(pictures)

    monkeypatch.setattr(trained.model, "forward", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path, trained, data, SITES, **VIEWED)
    extract(tmp_path, trained, data, SITES, **VIEWED)
    again = sum(seen) - len(data.table) - 2 * len(data.rows("trainval"))
    most = 2 if how == "one after the other" else 2 + 2 * MOST_AT_ONCE  # batches of a shard, and under way
    assert 2 * 5 <= again <= 2 * 5 * most
    for site in SITES:
        whole, cut = (Activations.open(where, site) for where in (folder, tmp_path))
        assert_same_acts(cut.acts[:], whole.acts[:])
        pd.testing.assert_frame_equal(cut.images, whole.images)


def test_each_view_is_another_crop_of_a_picture_that_autoencoders_learn_from(made):
    acts = Activations.open(made[2], "stage4")
    own, views = acts.rows("train", "val"), acts.rows(VIEWS)
    assert acts.images["image"][views].tolist() == 2 * acts.images["image"][own].tolist()
    first, second = np.float32(acts.acts[views]).reshape(2, len(own), -1)
    plain = np.float32(acts.acts[own]).reshape(len(own), -1)
    for one, other in ((first, second), (first, plain)):
        assert (np.abs(one - other).max(1) > 1e-2).all()
    # they are nearer to their own picture than to another
    assert np.linalg.norm(first - plain, axis=1).mean() < np.linalg.norm(first - plain[::-1], axis=1).mean()


def test_shards_are_read_as_one_array(made, tmp_path, monkeypatch):
    trained, data, folder = made
    whole = Activations.open(folder, "stage4")
    monkeypatch.setattr(activations, "BATCH", 4)
    monkeypatch.setattr(activations, "SHARD", 8)
    extract(tmp_path, trained, data, SITES[:1], **VIEWED)
    extract(tmp_path, trained, data, SITES, **VIEWED)  # adds the missing site
    cut = Activations.open(tmp_path, "stage4")
    n, n_pictures = len(whole.images), len(data.table)
    assert len(list(tmp_path.glob("stage4/*.npy"))) == math.ceil(n_pictures / 8) + math.ceil((n - n_pictures) / 8)
    assert_same_acts(cut.acts[:], whole.acts[:])
    everything = cut.acts[:]
    backwards, mask = np.arange(n)[::-1], np.arange(n) % 3 == 0
    for rows in (3, -1, slice(5, 40, 7), [7, 8, 8, 2], backwards, mask, np.array([[1, 9], [n - 1, 0]]), slice(0, 0)):
        np.testing.assert_array_equal(cut.acts[rows], everything[rows])
    assert (len(cut.acts), cut.acts.nbytes) == (n, everything.nbytes)
    file = tmp_path / "stage4" / "acts-00001.npy"
    np.testing.assert_array_equal(np.load(file), everything[8:16])
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"acts-00001\.npy has the wrong size for \(8, 2, 2, \d+\)"):
        cut.acts[9]


@pytest.mark.parametrize("value", [math.inf, 70_000.0])
def test_acts_beyond_float16_name_the_image(made, tmp_path, value):
    trained, data, _ = made

    def spoil(_module, _given, out):
        if len(out) > 7:
            out[7, 0, 0, 0] = value
        return out

    hook = trained.model.stages[3].register_forward_hook(spoil)
    try:
        with pytest.raises(ValueError, match=f"stage4 activations of image {data.table['image'][7]} are not finite"):
            extract(tmp_path, trained, data, SITES)
    finally:
        hook.remove()
    with pytest.raises(FileNotFoundError, match="extract the activations of stage4 first"):
        Activations.open(tmp_path, "stage4")


def test_a_full_disk_is_reported_before_anything_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"needs 0\.\d+ GB, and 0\.00 GB of disk are free: make room"):
        extract(tmp_path, *made[:2], SITES)
    assert not list(tmp_path.rglob("*.npy"))


@pytest.fixture
def counted():
    """12 images of 2 x 3 cells with 4 channels; channel 0 is the image, channel 1 the cell."""
    acts = np.zeros((12, 2, 3, 4), np.float16)
    acts[..., 0] = np.arange(12)[:, None, None]
    acts[..., 1] = np.arange(6).reshape(2, 3)
    acts[..., 2] = 0.5
    return Activations(acts, pd.DataFrame({"split": ["train"] * 6 + ["val"] * 2 + ["test"] * 4}))


def pairs(batch):
    return [(int(image), int(cell)) for image, cell, *_ in batch]


@pytest.mark.parametrize("group_bytes", [1, 2 * 6 * 4 * 3, 2**25])
def test_an_epoch_holds_every_cell_once_in_any_groups(counted, monkeypatch, group_bytes):
    monkeypatch.setattr(activations, "GROUP_BYTES", group_bytes)
    rows = counted.rows("train", "val")
    batches = counted.batches(rows, 8, seed=0)
    epochs = [pairs(torch.cat([next(batches) for _ in range(6)])) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch) == [(image, cell) for image in range(8) for cell in range(6)] != epoch
    assert epochs[0] != epochs[1]
    late = next(counted.batches(rows, 8, seed=0, start=7))
    assert late.dtype == torch.float16 and pairs(late) == epochs[1][8:16]
    assert pairs(next(counted.batches(rows, 8, seed=1))) != epochs[0][:8]


def test_groups_are_of_whole_runs_drawn_anew_each_epoch(counted, monkeypatch):
    monkeypatch.setattr(activations, "GROUP_BYTES", 4 * 6 * 4 * 2)  # two groups of two runs of two images
    monkeypatch.setattr(activations, "RUNS", 2)
    batches, firsts = counted.batches(counted.rows("train", "val"), 24, seed=0), []
    for _ in range(3):
        halves = [{image for image, _ in pairs(next(batches))} for _ in range(2)]
        assert set.union(*halves) == set(range(8)) and all({image ^ 1 for image in half} == half for half in halves)
        firsts.append(frozenset(halves[0]))
    assert len(set(firsts)) > 1


def test_cells_that_fill_no_batch_are_left_out(counted):
    rows = counted.rows("train", "val")
    batches = counted.batches(rows, 20, seed=0)
    one, two, three, four = (set(pairs(next(batches))) for _ in range(4))
    assert not one & two and not three & four
    with pytest.raises(ValueError, match="batch_size 49 is more than the 48 cells of 8 images"):
        next(counted.batches(rows, 49, seed=0))


def test_moments_are_those_of_all_cells(counted, monkeypatch):
    rows = counted.rows("train", "test")
    own = np.float64(counted.acts[rows]).reshape(-1, 4)
    mean, variance = counted.moments(rows)
    np.testing.assert_allclose(mean.numpy(), own.mean(0))
    np.testing.assert_allclose(variance.numpy(), own.var(0), atol=1e-12)
    monkeypatch.setattr(activations, "MOST_MEASURED", 4)
    np.testing.assert_allclose(counted.moments(np.arange(8))[0], counted.acts[[0, 2, 4, 6]].mean((0, 1, 2)))


@pytest.mark.parametrize("splits", [("tets",), ()])
def test_an_unknown_split_is_refused(counted, splits):
    with pytest.raises(ValueError, match="splits must be some of train, val, test"):
        counted.rows(*splits)
