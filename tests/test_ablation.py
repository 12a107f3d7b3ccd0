"""Suppression and blurring: closed form against forward pass, changes of nothing, effects and controls by hand."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from aircraft_sae.devices import device
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.interventions import (
    PooledHead,
    Responses,
    Window,
    agreement,
    beyond_controls,
    beyond_random,
    blur,
    blur_effects,
    choose_scenes,
    class_verdicts,
    control_windows,
    edit_scenes,
    edited,
    effects,
    feature_lost,
    followed,
    frozen_list,
    matched_features,
    mediation,
    part_verdicts,
    pass_share,
    random_directions,
    suppress_all,
    suppress_hooked,
    without,
)
from aircraft_sae.pictures import test_transform


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


def test_random_directions_hardly_change_with_the_last_bit_of_a_covariance():
    covariance, like = torch.eye(16), torch.ones(5, 16)  # whose eigenvectors are any
    noise = 1e-6 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    near = random_directions(like, covariance + noise + noise.t())
    torch.testing.assert_close(near, random_directions(like, covariance), atol=1e-3, rtol=0)


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
        classifier, sae, data, index, picks, partners, torch.eye(sae.d_in), sigma=4, window=32,
        mixed_precision=False, progress=False,
    )  # fmt: skip
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


@pytest.fixture(scope="module")
def edits(smoke_study, scenes, tmp_path_factory):
    """What edit_scenes writes for a kind of edit, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            networks = {"trained": smoke_study.classifier()}
            options = dict(size=64, supersampling=1, progress=False)
            edit_scenes(networks, ("stage3", "stage4"), scenes, kind, made[kind], **options)
        return made[kind]

    return of


def test_an_edit_that_changes_nothing_has_no_effect(smoke_study, edits):
    got = Responses.of(smoke_study.sae(), edits("nothing"))
    assert len(got.edits) and (got.edits["changed"] == 0).all() and got.before.max() > 0
    assert (got.after == got.before[got.edits["scene"]]).all()
    logits = np.load(edits("nothing") / "trained" / "logits.npy")
    assert (logits[len(got.before) :] == logits[got.edits["scene"]]).all()
    assert np.nanmax(np.abs(got.response())) == 0


def test_removals_are_those_of_pictures_without_the_part(smoke_study, scenes, edits):
    classifier, sae = smoke_study.classifier(), smoke_study.sae()
    got = Responses.of(sae, edits("remove"))
    shown = pd.read_parquet(edits("remove") / "scenes.parquet")
    for part in PARTS[2:]:  # every part that a scene shows is edited, and no other
        wanted = np.flatnonzero(shown[f"shown_{part}"] >= 30 * (64 / 224) ** 2)
        assert got.edits.query("part == @part")["scene"].tolist() == wanted.tolist()
    e = int(got.edits["changed"].to_numpy().argmax())
    s, part = got.edits.loc[e, ["scene", "part"]]
    transform = test_transform(classifier.image_size, classifier.mean, classifier.std)
    picture = without(scenes[s], part, 64, 1)
    with torch.inference_mode():
        acts = classifier.model.forward_features(transform.normalise(transform(picture)[None]).to(device())).cpu()
        dense = sae.encode(acts.permute(0, 2, 3, 1).flatten(0, 2)).dense()
    wanted, near = dense.amax(0).numpy(), 0.05 * max(1, dense.max().item())  # bfloat16
    sure = np.logical_and(*(np.abs(values - sae.threshold.item()) > near for values in (wanted, got.after[e])))
    assert sure.mean() > 0.8  # the others may be on either side of the threshold
    np.testing.assert_allclose(got.after[e][sure], wanted[sure], atol=near)
    whole, edit = (render(each, 64, 1) for each in (_plain(scenes[s]), _plain(scenes[s]).remove(part)))
    assert got.edits["changed"][e] == (edit.image != whole.image).any(2).sum() > 0
    rows, columns = np.nonzero(whole.mask == PARTS.index(part))
    middle = (rows.mean() + 0.5) / 64, (columns.mean() + 0.5) / 64
    np.testing.assert_allclose(got.edits.loc[e, ["row", "column"]].astype(float), middle)
    assert got.edits[["row_after", "column_after"]].isna().all().all()  # it is gone
    assert got.response(np.array([0, 5])).shape == (12, 2)


def _plain(scene):
    return replace(scene, shadows=False)


def test_moved_parts_have_moved(smoke_study, edits):
    moved = Responses.of(smoke_study.sae(), edits("move"))
    shift = moved.edits["row_after"] - moved.edits["row"]
    assert shift.abs().max() > 0.02
    part = moved.edits["part"][shift.abs().idxmax()]
    often = int((moved.before > 0).sum(0).argmax())
    assert np.isfinite(moved.moves(part, often)).all(axis=None) and len(moved.moves(part, often))


def test_a_move_is_the_shift_of_part_and_feature():
    edits = {"scene": [1, 1], "part": ["fin", "wing"], "changed": 9, "row": 0.2, "column": 0.5}
    edits |= {"row_after": [0.3, 0.9], "column_after": [0.4, 0.9]}
    centres = np.array([[[0.9, 0.9]], [[0.1, 0.6]]]), np.array([[[0.25, 0.5]], [[np.nan, np.nan]]])
    made = Responses(pd.DataFrame(edits), np.ones((2, 1)), np.ones((2, 1)), *centres)
    moves = made.moves("fin", 0)
    shifts = ["part_down", "part_across", "feature_down", "feature_across"]
    np.testing.assert_allclose(moves[shifts], [[0.1, -0.1, 0.15, -0.1]])
    assert moves["scene"].tolist() == [1]
    assert not len(made.moves("wing", 0))  # the feature is silent afterwards


def test_a_feature_that_goes_half_the_way_is_told_from_one_that_stays():
    rng = np.random.default_rng(0)
    moves = pd.DataFrame({"scene": np.repeat(np.arange(40), 2), "part_down": rng.normal(0, 0.1, 80)})
    moves["feature_down"] = 0.5 * moves["part_down"] + rng.normal(0, 0.02, 80)
    half = followed(moves, "down")
    assert half["low"] < 0.5 < half["high"] < 0.7 and half["low"] > 0.3 and half["n"] == 40
    other = moves.assign(feature_down=rng.normal(0, 0.02, 80))
    stays, beyond = followed(other, "down"), followed(moves, "down", other)
    assert stays["low"] < 0 < stays["high"] and beyond["low"] > 0.3
    assert beyond["value"] == pytest.approx(half["value"] - stays["value"])
    assert half["value"] == pytest.approx(
        (moves["part_down"] * moves["feature_down"]).sum() / (moves["part_down"] ** 2).sum()
    )


def test_centres_are_those_of_the_activation(smoke_study, edits):
    got, sae = Responses.of(smoke_study.sae(), edits("nothing")), smoke_study.sae()
    acts = torch.from_numpy(np.load(edits("nothing") / "trained" / "stage4.npy")[:1]).float()
    dense = sae.encode(acts.flatten(0, 2)).dense().view(2, 2, -1)
    often = int(dense.sum((0, 1)).argmax())
    weights = dense[..., often] / dense[..., often].sum()
    middle = (
        float(weights[0].sum() * 0.25 + weights[1].sum() * 0.75),
        float(weights[:, 0].sum() * 0.25 + weights[:, 1].sum() * 0.75),
    )
    np.testing.assert_allclose(got.centres[0, often], middle, rtol=1e-5)


def test_edits_stop_where_a_part_has_enough_of_them(smoke_study, scenes, tmp_path):
    options = dict(most=2, size=64, supersampling=1, progress=False)
    edit_scenes({"trained": smoke_study.classifier()}, ("stage4",), scenes, "recolour", tmp_path, **options)
    table = pd.read_parquet(tmp_path / "edits.parquet")
    assert table["part"].value_counts().max() == 2 and (table["changed"] > 0).any()
    with pytest.raises(ValueError, match="got 'paint'"):
        edit_scenes({}, (), scenes, "paint", tmp_path)
    with pytest.raises(ValueError, match="at least one scene"):
        edit_scenes({}, (), [], "remove", tmp_path)


def test_scenes_are_chosen_while_a_part_needs_them(smoke_study):
    table = pd.read_parquet(smoke_study.dataset().folder / "scenes.parquet")
    chosen = choose_scenes(table, 3, 64)
    seen = table[table["scene"].isin([scene.to_json() for scene in chosen])]
    least = 30 * (64 / 224) ** 2
    for part in PARTS[2:]:
        there = (table[f"pixels_{part}"] >= least).sum()
        assert (seen[f"pixels_{part}"] >= least).sum() >= min(3, there)
    assert len(chosen) < len(table) and len(chosen) == len(seen)


def responding(before, after, edits):
    return Responses(pd.DataFrame(edits), np.asarray(before, float), np.asarray(after, float), None, None)


def test_responses_by_hand():
    before = [[2.0, 1.0, 0.0], [4.0, 0.0, 0.0], [6.0, 1.0, 0.0]]
    edits = {"scene": [0, 1, 2], "part": ["fuselage", "fuselage", "wing"], "changed": [10, 30, 30]}
    got = responding(before, [[0, 1, 0], [1, 0, 0], [6, 0, 0]], edits)
    R = got.response()
    np.testing.assert_allclose(R[:3], [[5 / 6, 0, 0], [0, 1, 0], [np.nan] * 3])
    drawn = got.response(counts=np.array([[1, 1, 1], [2, 0, 1]]))
    np.testing.assert_allclose(drawn[:, 0, 0], [5 / 6, 1])
    assert got.matches()[0, 1] and got.matches()[1, 0] and not got.matches()[0, 0] and not got.matches()[0, 2]
    np.testing.assert_allclose(got.selectivity(R)[:2], [[5 / 6, -1, 0], [-5 / 6, 1, 0]])
    larger = responding(before, got.after, edits | {"changed": [10, 10, 30]})
    assert not larger.matches()[0, 1] and larger.matches()[1, 0]  # thrice the pixels: no match for the small one
    np.testing.assert_allclose(larger.selectivity(R)[0], [5 / 6, 0, 0])


def test_edits_of_every_kind(scenes):
    for kind in ("remove", "move", "recolour"):
        assert [(e.kind, e.part) for e in edited(scenes[0], kind, "wing").edits] == [(kind, "wing")]
    assert edited(scenes[0], "nothing", "wing") is scenes[0]


@pytest.mark.parametrize("site", ["stage3", "stage4"])
def test_hooked_suppression_is_the_edit_by_hand(smoke_study, site):
    sae = smoke_study.sae("hooked", site=site)
    acts = smoke_study.activations(site)
    block = next(acts.blocks(acts.rows("test")))[:5]
    labels, classifier = torch.zeros(5, dtype=torch.int64), smoke_study.classifier()
    dense = sae.encode(block.flatten(0, 2)).dense().view(*block.shape[:3], -1)
    often = dense.amax((1, 2)).sum(0).topk(2).indices.tolist()
    got = suppress_hooked(classifier, sae, block, often, labels, factor=0.5)
    with torch.inference_mode():
        before = classifier.logits_from(site, block.permute(0, 3, 1, 2)).cpu()
        for i, j in enumerate(often):
            changed = block - 0.5 * dense[..., j, None] * sae.W_dec[j]
            after = classifier.logits_from(site, changed.permute(0, 3, 1, 2)).cpu()
            for name, effect in effects(before, after, labels).items():
                np.testing.assert_allclose(got[name][:, i], effect, atol=1e-5)
    assert max(np.abs(each).max() for each in got.values()) > 1e-4
    silent = int((dense.amax((0, 1, 2)) == 0).nonzero()[0, 0])
    nothing = suppress_hooked(classifier, sae, block, [often[0], silent], labels, factor=1.0)
    assert all((each == 0).all() for each in nothing.values())


def blurred(**columns):
    """Targets and matched controls of two features in four pictures."""
    table = pd.DataFrame({"feature_id": [0] * 8 + [1] * 8, "image_row": [3, 3, 5, 5, 6, 6, 9, 9] * 2})
    table["where"], table["matched"] = ["target", "aircraft"] * 8, True
    return table.assign(**columns)


def test_what_blurring_does_beyond_matched_controls():
    table = blurred(logit=[-3, -1, -2, -1, -2, -2, -1, -1] * 2, feature=[-2.0, -1] * 8, before=4.0)
    assert (
        beyond_controls(table, ["aircraft"])["value"] == -0.75 and beyond_controls(table, ["aircraft"])["n"] == 4
    )  # pictures, not pairs
    table.loc[1, "matched"] = False  # then one pair has no control
    assert beyond_controls(table, ["aircraft"])["value"] == pytest.approx((-1 - 2 + -1 - 0 - 0 - 0 - 0) / 7)
    assert feature_lost(table, "target")["value"] == 0.5 and feature_lost(table, "aircraft")["value"] == 0.25
    sky = table.assign(where=table["where"].replace("aircraft", "anywhere"))
    assert beyond_controls(sky, ["anywhere"])["n"] == 4 and not beyond_controls(sky, ["aircraft"])["n"]


def test_mediation_is_the_share_of_the_loss_that_comes_back():
    table = blurred(logit=[-2.0, -1] * 8, restored_logit=[-1.5, -1] * 8, random_logit=[-2.0, -1] * 8)
    table.loc[[0, 8], ["logit", "restored_logit"]] = 1.0  # blurring helped there: nothing to bring back
    got = mediation(table)
    assert got["the feature"]["value"] == pytest.approx(0.25) and got["the feature"]["n"] == 3
    assert got["a random direction"]["value"] == 0


def test_blurring_and_suppression_agree_where_they_do():
    suppressed = np.zeros((5, 2))
    suppressed[[0, 2, 3, 4], 0], suppressed[[0, 2, 3, 4], 1] = [-4, -3, -2, 1], [1, 2, 3, 4]
    table = blurred(logit=[-8.0, 0, -6, 0, -4, 0, 1, 0] + [-1, 0, -2, 0, -3, 0, -4, 0])
    got = agreement(table, suppressed, np.array([3, 4, 5, 6, 9]))
    assert got["spearman"].tolist() == pytest.approx([1, -1]) and got["same_sign"].tolist() == [1, 0]
    assert got["low"].tolist() == pytest.approx([1, -1]) and got["high"].tolist() == pytest.approx([1, -1])
    assert got["suppressed"].tolist() == [-2, 2.5] and got["blurred"].tolist() == [-4.25, -2.5]
    assert got["n"].tolist() == [4, 4]
    flat = agreement(table, 0 * suppressed, np.array([3, 4, 5, 6, 9]))
    assert flat["spearman"].isna().all()


@pytest.fixture(scope="module")
def planted():
    """Claims about features with planted truth, what the tests of place give them, and responses of 90 scenes."""
    rng = np.random.default_rng(0)
    kinds = {"reader": (0.9, 0.0), "outline": (0.6, 0.7), "weak": (0.2, 0.0), "blind": (0.0, 0.0)}
    n, edits, before, after = 90, [], rng.gamma(5, 1, (90, 4)), []
    for part, column in (("fin", 0), ("engine", 1)):
        for scene in range(n):
            edits.append({"scene": scene, "part": part, "changed": 100})
            after.append(
                [before[scene, j] * (1 - kind[column] + rng.normal(0, 0.1)) for j, kind in enumerate(kinds.values())]
            )
    claims = pd.DataFrame({"feature_id": range(4), "chosen": "part", "part": "fin"})
    excess = claims[["feature_id", "part"]].assign(
        excess=[0.2, 0.1, 0.1, 0.0], excess_low=[0.1, 0.05, 0.05, -0.1], excess_high=[0.3, 0.15, 0.15, 0.1],
        excess_p=[1e-6, 1e-4, 1e-4, 0.5], n=200,
    )  # fmt: skip
    return claims, excess, responding(before, after, pd.DataFrame(edits))


def test_a_part_reader_passes_and_others_do_not(planted):
    claims, excess, responses = planted
    got = part_verdicts(claims, excess, responses, np.array([0.9, 0.9, 0.9, 0.9]))
    assert got["passes"].tolist() == [True, False, False, False]
    assert got["verdict"].tolist() == ["detector of fin", "not shown", "not shown", "not shown"]
    assert got["why"].tolist() == ["", "other parts", "removal", "guesses; removal; other parts"]
    reader = got.iloc[0]
    assert reader["R_low"] < 0.9 < reader["R_high"] and reader["S"] == pytest.approx(0.9, abs=0.05)
    assert got["n_scenes"].tolist() == [90] * 4
    unstable = part_verdicts(claims, excess, responses, np.full(4, 0.5))
    assert not unstable["passes"].any() and unstable["shown"].tolist() == [True, False, False, False]
    excused = part_verdicts(claims, excess, responses)
    assert excused["shown"].tolist() == [True, False, False, False] and not excused["passes"].any()
    assert excused["verdict"][0] == "shown, seeds not asked"
    few = part_verdicts(claims, excess.assign(n=20), responses)
    assert few["verdict"].tolist()[1:] == ["underpowered"] * 3
    lucky = part_verdicts(claims, excess.assign(excess=-0.1), responses)
    assert not lucky["passes"].any() and "guesses" in lucky["why"][0]


def test_features_that_no_removal_matters_to_pass_at_no_more_than_the_nominal_rate():
    rng = np.random.default_rng(1)
    before = rng.gamma(5, 1, (80, 200))
    edits = pd.DataFrame({"scene": np.tile(np.arange(80), 2), "part": np.repeat(["fin", "engine"], 80), "changed": 50})
    after = np.concatenate([before, before]) * rng.normal(1, 0.3, (160, 200))
    claims = pd.DataFrame({"feature_id": range(200), "chosen": "random", "part": "fin"})
    excess = claims[["feature_id", "part"]].assign(excess=1.0, excess_low=1, excess_high=1, excess_p=1e-9, n=100)
    got = part_verdicts(claims, excess, responding(before, after, edits))
    covered = ((got["R_low"] <= 0) & (got["R_high"] >= 0)).mean()
    assert 0.90 <= covered <= 0.99, covered  # nominal: 0.95
    assert (got["S_p"] < 0.05).mean() < 0.1
    for n, shown in ((20, False), (40, True)):  # all of the feature goes with the fin alone, in so many scenes
        some = before * (np.arange(80) < n)[:, None]
        got = part_verdicts(claims, excess, responding(some, np.concatenate([0 * some, some]), edits))
        assert (got["R"] == 1).all() and (got["shown"] == shown).all()
        assert (got["verdict"] == ("shown, seeds not asked" if shown else "underpowered")).all()


@pytest.fixture(scope="module")
def linear():
    """(head, pooled, truth, covariance): 120 pictures of three classes, 40 of each."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 24, generator=generator)
    pooled = torch.randn(120, 24, generator=generator)
    return (
        PooledHead(weight, torch.zeros(3), 1e-6),
        pooled,
        torch.arange(3).repeat_interleave(40),
        torch.cov(pooled.t()),
    )


def test_class_verdicts_need_selectivity_suppression_and_seeds(linear):
    head, pooled, truth, covariance = linear
    directions = head.weight[:1].repeat(4, 1)  # which speaks for the first class
    directions[3] = -directions[3]  # and which speaks against it
    removed = torch.where(truth[:, None] == 0, 0.5, 0.0).repeat(1, 4)
    table = pd.DataFrame({"variant/class": "a", "variant/auroc": [0.99, 0.6, 0.99, 0.99], "level": "variant"})
    table["variant/auroc_q"] = [1e-4, 0.5, 1e-4, 1e-4]
    claims = pd.DataFrame({"feature_id": range(4), "chosen": "random", "part": "fin"})
    labels = {"variant": np.repeat(["a", "b", "c"], 40)}
    given = head, pooled, removed, directions, covariance, truth, labels, np.array([0.9, 0.9, 0.2, 0.9])
    got = class_verdicts(claims, table, *given)
    assert got["verdict"].tolist() == ["detector of a", *["not shown"] * 3]
    assert got["why"].tolist() == ["", "AUROC", "other seeds", "suppression"]
    assert got["n"].tolist() == [40] * 4 and got["shown"].tolist() == [True, False, True, False]
    assert got["p"][0] == pytest.approx(1e-3) and got["control"].abs().max() < -got["specificity"][0]
    few = class_verdicts(claims, table, *given[:6], {"variant": np.where(np.arange(120) < 8, "a", "b")}, given[7])
    assert few["verdict"].tolist()[1:] == ["underpowered"] * 3


def test_random_directions_pass_as_often_as_they_should(linear):
    head, pooled, truth, covariance = linear
    directions = random_directions(torch.ones(1000, 24), covariance, 11)
    removed, every = torch.full((120, 1000), 0.3), np.arange(1000)
    table = pd.DataFrame(
        {"variant/class": "a", "variant/auroc": 1.0, "variant/auroc_q": 0.0, "level": "variant"}, every
    )
    labels = {"variant": np.repeat(["a", "b", "c"], 40)}
    given = head, pooled, removed, directions, covariance, truth, labels, np.ones(1000)
    got = class_verdicts(pd.DataFrame({"feature_id": every}), table, *given, n_random=199)
    assert 0.03 <= (got["p"] < 0.05).mean() <= 0.07 and not got["passes"].any()
    own = beyond_random(head, pooled, removed, directions, covariance, truth, every.tolist())
    assert 0.03 <= own["beyond"].mean() <= 0.07 and (own["n"] == 120).all()
    speaks = beyond_random(head, pooled, removed, head.weight, covariance, truth, [0, 1, 2])
    assert speaks["beyond"].all() and (speaks["effect"] > speaks["random"]).all()
    assert not len(beyond_random(head, pooled, 0 * removed, directions, covariance, truth, [0]))


def test_the_frozen_list_is_drawn_by_density_and_by_part():
    density = np.concatenate([np.zeros(20), np.geomspace(1e-4, 0.5, 200)])
    table = pd.DataFrame({"density_cell": density, "part": "wing"})
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(
        {"feature_id": np.repeat(np.arange(220), 2), "part": ["wing", "fin"] * 220, "ap_a": rng.random(440)}
    )
    got = frozen_list(table, scores, 50, 30)
    drawn, matched = got[got["chosen"] == "random"], got[got["chosen"] == "part"]
    assert len(drawn) == 50 and drawn["feature_id"].min() >= 20 and drawn["feature_id"].is_unique
    assert np.bincount((drawn["feature_id"].to_numpy() - 20) // 40).tolist() == [10] * 5  # fifths of the living
    assert matched["part"].value_counts().tolist() == [15, 15]
    best = scores[scores["part"] == "fin"].nlargest(15, "ap_a")["feature_id"]
    assert set(matched[matched["part"] == "fin"]["feature_id"]) == set(best)
    assert got.equals(frozen_list(table, scores, 50, 30)) and not got.equals(frozen_list(table, scores, 50, 30, seed=1))
    assert set(frozen_list(table, None)["chosen"]) == {"random"}


def test_shares_that_pass_have_intervals_over_features():
    share, low, high, n = pass_share(np.repeat([True, False], [20, 80])).values()
    assert (share, n) == (0.2, 100) and 0.1 < low < 0.15 and 0.25 < high < 0.3
    assert pass_share(np.zeros(100))["high"] == pytest.approx(0.036, abs=1e-3)  # none of 100 is not surely none
