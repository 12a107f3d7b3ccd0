"""Suppression and blurring: closed form against forward pass, changes of nothing, effects and controls by hand."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from aircraft_sae.ablation import (
    PooledHead,
    Responses,
    Window,
    blur,
    blur_effects,
    control_windows,
    edit_responses,
    edited,
    effects,
    matched_features,
    random_directions,
    suppress_all,
)
from aircraft_sae.data import test_transform
from aircraft_sae.devices import device
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.hangar.solids import PARTS


@pytest.fixture(scope="module")
def classifier(smoke_study):
    """The smoke study's, its head's LayerNorm no longer the identity."""
    made = copy.deepcopy(smoke_study.classifier())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.model.head.norm.weight.copy_(1 + 0.3 * torch.randn(made.model.num_features, generator=generator))
        made.model.head.norm.bias.copy_(0.3 * torch.randn(made.model.num_features, generator=generator))
    return made


@pytest.fixture(scope="module")
def edit(classifier):
    """acts (10, d_in, 2, 2), feature activations (10, 2, 2, 6), directions (6, d_in), labels."""
    generator = torch.Generator().manual_seed(1)
    d_in = classifier.model.num_features
    acts = 0.5 + torch.randn(10, d_in, 2, 2, generator=generator)
    features = torch.randn(10, 2, 2, 6, generator=generator).relu()
    labels = torch.arange(10) % len(classifier.classes)
    return acts, features, torch.randn(6, d_in, generator=generator), labels


@pytest.mark.parametrize("factor", [0.0, 0.5, 4.0])
def test_the_closed_form_is_the_forward_pass(classifier, edit, factor):
    acts, features, directions, labels = edit
    head = PooledHead.of(classifier)
    removed = (1 - factor) * features.mean((1, 2))
    with torch.inference_mode():
        before = classifier.logits_from("stage4", acts).cpu()
        torch.testing.assert_close(head.logits(acts.mean((2, 3))), before, rtol=1e-5, atol=1e-5)
        got = suppress_all(head, acts.mean((2, 3)), removed, directions, labels)
        for j, d in enumerate(directions):
            edited = acts - (1 - factor) * (features[..., j, None] * d).permute(0, 3, 1, 2)
            after = classifier.logits_from("stage4", edited).cpu()
            torch.testing.assert_close(
                head.edited(acts.mean((2, 3)), removed, directions)[:, j], after, rtol=1e-5, atol=1e-5
            )
            for name, effect in effects(before, after, labels).items():
                np.testing.assert_allclose(got[name][:, j], effect, atol=1e-5)
    assert max(np.abs(effect).max() for effect in got.values()) > 0.01


def test_suppressing_nothing_changes_nothing(classifier, edit):
    acts, features, directions, labels = edit
    head = PooledHead.of(classifier)
    for removed, d in ((torch.zeros(10, 6), directions), (features.mean((1, 2)), torch.zeros_like(directions))):
        got = suppress_all(head, acts.mean((2, 3)), removed, d, labels)
        assert all((effect == 0).all() for effect in got.values())


def test_effects_by_hand():
    before, labels = torch.tensor([[3.0, 1.0, 2.0], [0.0, 1.0, 0.5]]), torch.tensor([0, 0])
    after = torch.tensor([[1.0, 1.0, 3.0], [0.0, 0.0, 0.5]])
    got = effects(before, after, labels)
    assert got["logit"].tolist() == [-2, 0]
    assert got["margin"].tolist() == [-3, 1]  # the rival is class 2 for the first, class 1 for the second
    assert got["specificity"].tolist() == [-2.5, 0.5]
    wanted = [after[i].softmax(0)[0] - before[i].softmax(0)[0] for i in range(2)]
    torch.testing.assert_close(got["confidence"], torch.stack(wanted))
    wide = effects(before, torch.stack([after, before], 1), labels)
    assert wide["margin"].tolist() == [[-3, 0], [1, 0]]
    other = effects(before, after, labels, rival=torch.tensor([1, 2]))
    assert other["margin"].tolist() == [-2, 0]


def test_a_head_with_a_hidden_layer_is_refused(classifier):
    other = copy.deepcopy(classifier)
    other.model.head.pre_logits = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="this has more"):
        PooledHead.of(other)


def test_matched_features_are_alike_and_never_the_same():
    rng = np.random.default_rng(0)
    density, strength = rng.uniform(0.001, 0.2, 300), rng.uniform(1, 3, 300)
    density[:3], strength[3] = [0, 0.9, 0.1], 1000
    partner = matched_features(pd.DataFrame({"density_cell": density}), strength)
    assert partner[0] == partner[1] == partner[3] == -1  # dead, too dense, too strong
    has = partner >= 0
    assert has.mean() > 0.9 and (partner != np.arange(300)).all()
    for values in (density, strength):
        assert (np.abs(values[partner[has]] / values[has] - 1) <= 0.25).all()
    again = matched_features(pd.DataFrame({"density_cell": density}), strength)
    assert (again == partner).all()


def test_random_directions_have_the_given_lengths_and_spread():
    like = torch.full((4000, 3), 2.0)
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    drawn = random_directions(like, covariance)
    torch.testing.assert_close(drawn.norm(dim=1), like.norm(dim=1))
    assert drawn[:, 2].abs().max() < 1e-6 and drawn[:, 0].square().mean() > 1.5 * drawn[:, 1].square().mean()
    assert torch.equal(drawn, random_directions(like, covariance)) and not torch.equal(
        drawn, random_directions(like, covariance, seed=1)
    )


def test_windows_stay_inside_and_share_area():
    window = Window.around(0, 6, (7, 7), 224, 64)
    assert (window.top, window.left, window.size) == (0, 160, 64)
    assert Window.around(3, 3, (7, 7), 224, 64) == Window(80, 80, 64)
    assert window.shared(window) == 1 and window.shared(Window(32, 128, 64)) == 0.25
    assert window.shared(Window(100, 0, 64)) == 0


def test_controls_are_where_they_should_be():
    rng = np.random.default_rng(0)
    change = rng.random((128, 128)) * np.repeat(np.linspace(0.5, 1.5, 128)[:, None], 128, 1)
    aircraft = np.zeros((128, 128), bool)
    aircraft[40:120, 20:70] = True
    feature_map = rng.random((4, 4))
    target = Window(64, 64, 32)
    own = change[target.slices].sum()
    seen = {"aircraft": set(), "anywhere": set()}
    for seed in range(30):
        found = control_windows(target, change, aircraft, feature_map, None, np.random.default_rng(seed))
        assert set(found) == {"aircraft", "anywhere", "lowest"}
        for name, (window, matched) in found.items():
            assert matched and abs(change[window.slices].sum() / own - 1) <= 0.2 and target.shared(window) < 0.25
            assert name == "anywhere" or aircraft[window.slices].mean() >= 0.25
            if name in seen:
                seen[name].add(window)
    assert len(seen["aircraft"]) > 5 and seen["anywhere"] - seen["aircraft"]
    level = np.kron(feature_map, np.ones((32, 32)))
    lowest = level[found["lowest"][0].slices].sum()
    windows = [Window(top, left, 32) for top in range(0, 97, 8) for left in range(0, 97, 8)]
    allowed = [w for w in windows if target.shared(w) < 0.25 and aircraft[w.slices].mean() >= 0.25]
    allowed = [w for w in allowed if abs(change[w.slices].sum() / own - 1) <= 0.2]
    assert lowest == pytest.approx(min(level[w.slices].sum() for w in allowed))
    assert "aircraft" not in control_windows(target, change, None, feature_map, None, np.random.default_rng(0))
    change[:32] *= 100
    change[target.slices] *= 10  # nothing else changes as much on the aircraft: the nearest is taken, and says so
    unmatched = control_windows(target, change, aircraft, feature_map, Window(0, 0, 32), np.random.default_rng(0))
    assert not unmatched["aircraft"][1] and unmatched["other"][0] == Window(0, 0, 32)
    assert "other" not in control_windows(target, change, aircraft, feature_map, target, np.random.default_rng(0))


@pytest.fixture(scope="module")
def blurring(smoke_study):
    """(study's parts, picks of two features in a few test pictures, partners)."""
    classifier, data, sae, index = (
        smoke_study.classifier(), smoke_study.dataset(), smoke_study.sae(), smoke_study.features(),
    )  # fmt: skip
    often = index.table["density_cell"].nlargest(3).index.tolist()
    test = index.rows("test")
    picks = [index.patches(j, "top", 4, test).assign(feature_id=j) for j in often[:2]]
    partners = np.full(index.d_sae, -1)
    partners[often[0]] = often[2]
    return (classifier, sae, data, index), pd.concat(picks, ignore_index=True), partners


def test_blurring_nothing_changes_nothing(blurring):
    made, picks, partners = blurring
    table = blur_effects(*made, picks, partners, torch.eye(made[1].d_in), sigma=1e-3, window=32, progress=False)
    assert (table["change"] == 0).all() and len(table) > len(picks)
    for name in ("feature", "pooled", "logit", "margin", "confidence", "specificity", "restored_logit"):
        assert (table[name] == 0).all(), name


def test_blur_effects_are_those_of_the_edited_picture(blurring):
    (classifier, sae, data, index), picks, partners = blurring
    table = blur_effects(
        classifier, sae, data, index, picks, partners, torch.eye(sae.d_in), sigma=4, window=32, progress=False
    )
    targets = table[table["where"] == "target"].set_index(["feature_id", "image_row"])
    assert len(targets) == len(picks) and {"anywhere", "target"} <= set(table["where"])
    for pick in picks.itertuples():
        transform = test_transform(classifier.image_size, classifier.mean, classifier.std)
        x = transform.normalise(transform(data.picture(pick.image))[None])[0]
        edited, window = x.clone(), Window.around(pick.row, pick.column, index.grid, 64, 32)
        edited[:, *window.slices] = blur(x, 4)[:, *window.slices]
        with torch.inference_mode():
            stages = [classifier.model.forward_features(p[None].to(device())).cpu() for p in (x, edited)]
            logits = [classifier.logits_from("stage4", stage).cpu() for stage in stages]
            codes = [
                sae.encode(stage.permute(0, 2, 3, 1).flatten(0, 2)).dense()[:, pick.feature_id] for stage in stages
            ]
        row = targets.loc[(pick.feature_id, pick.image_row)]
        assert row["before"] == pytest.approx(codes[0].max().item(), abs=1e-4)
        assert row["feature"] == pytest.approx((codes[1].max() - codes[0].max()).item(), abs=1e-4)
        label = classifier.classes.index(index.images["variant"][pick.image_row])
        assert row["logit"] == pytest.approx((logits[1] - logits[0])[0, label].item(), abs=1e-4)
        lost = (codes[0] - codes[1]).mean()
        pooled = stages[1].mean((2, 3)) + lost * sae.W_dec[pick.feature_id].detach()
        restored = PooledHead.of(classifier).logits(pooled)[0, label] - logits[0][0, label]
        assert row["restored_logit"] == pytest.approx(restored.item(), abs=1e-4)
    assert targets["logit"].abs().max() > 1e-3


def test_blur_keeps_the_mean_and_flattens():
    picture = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    flat = blur(picture, 8)
    assert flat.shape == picture.shape and flat.var() < 0.05 * picture.var()
    torch.testing.assert_close(flat.mean((1, 2)), picture.mean((1, 2)), atol=0.05, rtol=0)
    torch.testing.assert_close(blur(torch.ones(3, 64, 64), 8), torch.ones(3, 64, 64))


@pytest.fixture(scope="module")
def scenes(smoke_study):
    table = pd.read_parquet(smoke_study.dataset().folder / "scenes.parquet")
    return [Scene.from_json(text) for text in table["scene"][:5]]


def test_an_edit_that_changes_nothing_has_no_effect(smoke_study, scenes):
    got = edit_responses(
        smoke_study.classifier(), smoke_study.sae(), scenes, "nothing", size=64, supersampling=1, progress=False
    )
    seen = ~np.isnan(got.after[..., 0])
    assert seen.any() and (seen == (got.shown >= 30 * (64 / 224) ** 2)).all()
    assert (got.changed[seen] == 0).all()
    for p in range(12):
        assert (got.after[seen[:, p], p] == got.before[seen[:, p]]).all()
        assert (got.logits_after[seen[:, p], p] == got.logits[seen[:, p]]).all()
    assert np.nanmax(np.abs(got.response())) == 0


def test_removals_are_those_of_pictures_without_the_part(smoke_study, scenes):
    classifier, sae = smoke_study.classifier(), smoke_study.sae()
    got = edit_responses(classifier, sae, scenes, "remove", size=64, supersampling=1, progress=False)
    transform = test_transform(classifier.image_size, classifier.mean, classifier.std)
    s, p = np.argwhere(got.shown >= 30)[-1]
    scene = replace(scenes[s], shadows=False).remove(PARTS[p + 2])
    picture = render(scene, 64, 1)
    with torch.inference_mode():
        x = transform.normalise(transform(Image.fromarray(picture.image))[None])
        acts = classifier.model.forward_features(x.to(device())).cpu()
        dense = sae.encode(acts.permute(0, 2, 3, 1).flatten(0, 2)).dense()
        logits = classifier.logits_from("stage4", acts)[0].cpu()
    np.testing.assert_allclose(got.after[s, p], dense.amax(0), atol=1e-4)
    np.testing.assert_allclose(got.logits_after[s, p], logits, atol=1e-4)
    whole = render(replace(scenes[s], shadows=False), 64, 1)
    assert got.changed[s, p] == (picture.image != whole.image).any(2).sum() > 0
    rows, columns = np.nonzero(whole.mask == p + 2)
    np.testing.assert_allclose(got.part_centres[s, p], [(rows.mean() + 0.5) / 64, (columns.mean() + 0.5) / 64])
    assert np.isnan(got.part_centres_after[s, p]).all()  # it is gone
    moved = edit_responses(classifier, sae, scenes, "move", size=64, supersampling=1, progress=False)
    shift = moved.part_centres_after - moved.part_centres
    assert np.nanmax(np.abs(shift)) > 0.02
    with pytest.raises(ValueError, match="got 'paint'"):
        edit_responses(classifier, sae, scenes, "paint")


def test_responses_by_hand():
    before = np.array([[2.0, 1.0, 0.0], [4.0, 0.0, 0.0], [6.0, 1.0, 0.0]])
    after = np.full((3, 2, 3), np.nan)
    after[0, 0], after[1, 0] = [0, 1, 0], [1, 0, 0]  # part 0 is shown in scenes 0 and 1, part 1 in none
    empty = np.zeros(0)
    got = Responses("remove", before, after, *[empty] * 8)
    np.testing.assert_allclose(got.response(), [[5 / 6, 0, np.nan], [np.nan] * 3])
    drawn = got.response(np.array([[1, 1, 1], [2, 0, 1]]))
    np.testing.assert_allclose(drawn[:, 0, 0], [5 / 6, 1])


def test_edits_of_every_kind(scenes):
    for kind in ("remove", "move", "recolour"):
        assert [(e.kind, e.part) for e in edited(scenes[0], kind, "wing").edits] == [(kind, "wing")]
    assert edited(scenes[0], "nothing", "wing") is scenes[0]
    with pytest.raises(ValueError, match="at least one scene"):
        edit_responses(None, None, [])
