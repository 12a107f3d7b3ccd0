"""Suppression, blurring, scene edits, verdicts: closed form beside forward passes, identity edits, planted effects."""

# ruff: noqa: I001
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_array
from test_networks import Plain
from torch import nn

from aircraft_sae.activations import Activations, extract
from aircraft_sae.config import SAEConfig
from aircraft_sae.features import FeatureIndex, build_index
from aircraft_sae.features.reconstruction import cell_covariance, random_directions
from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene
from aircraft_sae.interventions import (
    Responses, Trial, Window, agreement, beyond_controls, blur, blur_peaks, choose_picks, effects, feature_lost,
    features_to_test, logits_from, mean_over_active, mediation, pass_share, suppress_features, suppress_sample,
    tell_apart, verdict_tables, verdicts,
)  # fmt: skip
from aircraft_sae.interventions.blurring import control_windows
from aircraft_sae.interventions.suppression import beyond_random, matched_features
from aircraft_sae.interventions.verdicts import Claimant, Measured, class_verdicts, compared, judge_parts, tiered
from aircraft_sae.metrics import Estimate
from aircraft_sae.networks import Network, PooledReadout
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import LEAST_PIXELS, VariedScenes, choose_scenes, vary_scenes
from aircraft_sae.sae import SparseAutoencoder

SIZE, N = 32, 12


def sequence():
    """Like Plain, but a plain sequence with a LayerNorm, which can start at "0" and "2"."""
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(3, 6, 5, 8, 2), nn.Tanh(), nn.Conv2d(6, 8, 1), *head)


class Noise(Pictures):
    """Pictures of coloured noise in three classes."""

    def __init__(self):
        rng, classes = np.random.default_rng(0), ["a", "b", "c"]
        self.pixels = rng.integers(0, 256, (N, SIZE, SIZE, 3), np.uint8)
        table = pd.DataFrame({"image": [f"{i}" for i in range(N)], "split": "val", "class": classes * (N // 3)})
        super().__init__(table, {"class": classes})

    def picture(self, image):
        return Image.fromarray(self.pixels[int(image)])

    def contents(self):
        return [self.pixels.tobytes().hex()]


@pytest.fixture(scope="module", params=["Plain:first", "Plain:second", "sequence:0", "sequence:2"])
def trial(request):
    """With and without a closed form, with and without a start in the middle."""
    kind, _, site = request.param.partition(":")
    torch.manual_seed(0)
    pictures, model = Noise(), {"Plain": Plain, "sequence": sequence}[kind]()
    network = Network(model.requires_grad_(False), ["a", "b", "c"], SIZE, level="class")
    x = torch.stack([network.as_input(pictures.picture(image)) for image in pictures.table["image"]])
    acts = Activations(network.see(x, [site]).acts[site].half().numpy(), pictures.table, site)
    sae = SparseAutoencoder(SAEConfig(site=site, variant="topk", k=4, expansion=3), acts.d_in)
    sae.b_dec.data[:] = torch.from_numpy(acts.acts.mean((0, 1, 2), dtype=np.float32))
    labels, in_b = torch.arange(N) % 3, np.arange(N) % 2 == 1
    return Trial(network, sae, pictures, acts, np.arange(N), labels, in_b, codes_of(sae, acts.acts).mean((1, 2)))


@torch.no_grad()
def codes_of(sae, acts):
    """(n, rows, columns, d_sae)."""
    cells = torch.from_numpy(acts).float()
    return sae.encode(cells.flatten(0, 2)).dense().view(*cells.shape[:3], -1)


@torch.no_grad()
def by_hand(trial, j, direction):
    """Effects of one edit, by a forward pass with the site's output replaced."""
    network, site = trial.network, trial.acts.site
    images = trial.acts.images["image"].iloc[trial.rows]
    x = torch.stack([network.as_input(trial.pictures.picture(image)) for image in images])
    block = torch.from_numpy(trial.acts.acts[trial.rows]).float()
    f = codes_of(trial.sae, trial.acts.acts[trial.rows])[..., j, None]
    both = block, block - f * direction
    before, after = (network.see(x, edits={site: lambda _, given=given: given}).logits for given in both)
    return effects(before, after, trial.labels)


def by_passes(trial):
    """The same trial with forward passes in place of the closed form."""
    network = replace(trial.network)
    network.readout = lambda site: None
    return replace(trial, network=network)


def test_closed_form_and_forward_passes_are_the_edit_by_hand(trial):
    features, directions = [1, 7, 7], torch.randn(3, trial.sae.d_in)
    directions[:2] = trial.sae.W_dec.detach()[features[:2]]
    for way in (trial, by_passes(trial)):
        got = way.suppress(features, directions=directions)
        for i, (j, direction) in enumerate(zip(features, directions, strict=True)):
            for name, effect in by_hand(trial, j, direction).items():
                np.testing.assert_allclose(got[name][:, i], effect, atol=2e-6, err_msg=name)
        assert np.abs(got["logit"]).max() > 1e-3
        np.testing.assert_allclose(way.suppress(features[:2])["margin"], got["margin"][:, :2], atol=1e-6)
    assert (trial.readout is None) == (trial.acts.site in ("first", "0"))


@torch.no_grad()
def test_edits_of_nothing_a_subset_and_the_logits_from_a_site(trial):
    nothing = trial.suppress([1], directions=torch.zeros(1, trial.sae.d_in))
    assert all((effect == 0).all() for effect in nothing.values())
    x = torch.stack([trial.network.as_input(trial.pictures.picture(image)) for image in trial.acts.images["image"]])
    seen = trial.network.see(x, [trial.acts.site])
    torch.testing.assert_close(logits_from(trial.network, trial.acts.site, seen.acts[trial.acts.site], x), seen.logits)
    whole, kept = trial.suppress([1, 2])["logit"], np.arange(N) % 3 == 1
    np.testing.assert_allclose(trial[kept].suppress([1, 2])["logit"], whole[kept], atol=1e-6)
    assert trial[kept].fingerprint != trial.fingerprint == replace(trial).fingerprint


def test_features_that_tell_two_classes_apart_lower_their_margin(trial):
    table = tell_apart(trial, (0, 2), n=4)
    own = trial[np.isin(trial.labels, (0, 2))]
    rival = torch.where(own.labels == 0, 2, 0)
    margin = own.suppress(range(trial.sae.d_sae), rival=rival)["margin"]
    assert table["feature_id"].tolist() == margin[~own.in_b].mean(0).argsort()[:4].tolist()
    np.testing.assert_allclose(table["value"], margin[own.in_b].mean(0)[table["feature_id"]], atol=1e-6)
    margin = own.suppress(range(trial.sae.d_sae), directions=trial.random, rival=rival)["margin"]
    np.testing.assert_allclose(table["random"], margin[own.in_b].mean(0)[table["feature_id"]], atol=1e-6)
    strength = torch.zeros(trial.sae.d_sae)
    strength[[3, 5]] = torch.tensor([0.1, 2.0])
    assert trial.strongest(strength).tolist() == [5, 3]


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


def test_matched_features_and_random_directions_are_like_the_features_they_control_for():
    rng = np.random.default_rng(0)
    density, strength = rng.uniform(0.001, 0.2, 300), rng.uniform(1, 3, 300)
    density[:3], strength[3] = [0, 0.9, 0.1], 1000
    table = pd.DataFrame({"feature_id": range(300), "density_cell": density, "mean": strength, "norm": 1.0})
    partner = matched_features(table)
    assert partner[0] == partner[1] == partner[3] == -1  # dead, too dense, too strong
    has = partner >= 0
    assert has.mean() > 0.9 and (partner != np.arange(300)).all()
    for values in (density, strength):
        assert (np.abs(values[partner[has]] / values[has] - 1) <= 0.25).all()
    like = torch.full((4000, 3), 2.0)
    drawn = random_directions(like, torch.diag(torch.tensor([4.0, 1.0, 0.0])))
    torch.testing.assert_close(drawn.norm(dim=1), like.norm(dim=1))
    assert drawn[:, 2].abs().max() < 1e-6 and drawn[:, 0].square().mean() > 1.5 * drawn[:, 1].square().mean()
    covariance, like = torch.eye(16), torch.ones(5, 16)  # any vectors are its eigenvectors, and rounding picks some
    noise = 1e-6 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    near = random_directions(like, covariance + noise + noise.t())
    torch.testing.assert_close(near, random_directions(like, covariance), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def picked(trial, tmp_path_factory):
    """(index, places at which to blur)."""
    folder = tmp_path_factory.mktemp("index")
    build_index(trial.sae, trial.acts, folder, np.arange(N))
    index = FeatureIndex.open(folder)
    return index, choose_picks(index, index.table["density_cell"].nlargest(2).index, np.arange(N), 6)


def test_windows_stay_inside_the_picture_and_controls_are_those_of_brute_force():
    """Over all windows: matched, apart from the target, on the foreground, lowest where they should be."""
    assert Window.around(0, 6, (7, 7), 224, 64) == Window(0, 160, 64)
    assert Window.around(3, 3, (7, 7), 224, 64) == Window(80, 80, 64)
    rng = np.random.default_rng(0)
    change = rng.random((128, 128)) * np.repeat(np.linspace(0.5, 1.5, 128)[:, None], 128, 1)
    foreground, feature_map, target = np.zeros((128, 128), bool), rng.random((4, 4)), Window(64, 64, 32)
    foreground[40:120, 20:70] = True
    own, level, covered = change[target.slices].sum(), np.kron(feature_map, np.ones((32, 32))), np.zeros((128, 128))
    covered[target.slices] = 1
    windows = [Window(top, left, 32) for top in range(0, 97, 8) for left in range(0, 97, 8)]
    windows = [w for w in windows if covered[w.slices].mean() < 0.25 and abs(change[w.slices].sum() / own - 1) <= 0.2]
    shown = [w for w in windows if foreground[w.slices].mean() >= 0.25]
    least = min(level[w.slices].sum() for w in shown)

    def controls(foreground=foreground, other=None, seed=0):
        return control_windows(target, change, foreground, feature_map, other, np.random.default_rng(seed))

    seen = {"foreground": set(), "anywhere": set(), "lowest": set()}
    for seed in range(30):
        for name, (window, matched) in controls(seed=seed).items():
            assert matched and window in (windows if name == "anywhere" else shown)
            seen[name].add(window)
    assert len(seen["foreground"]) > 5 and seen["anywhere"] - seen["foreground"]
    assert all(level[w.slices].sum() == pytest.approx(least) for w in seen["lowest"])
    assert "foreground" not in controls(None)
    change[:32] *= 100
    change[target.slices] *= 10  # no foreground changes as much: the nearest is taken, unmatched
    unmatched = controls(other=Window(0, 0, 32))
    assert not unmatched["foreground"][1] and unmatched["other"][0] == Window(0, 0, 32)
    assert "other" not in controls(other=target)


@torch.no_grad()
def test_blur_effects_are_those_of_the_edited_picture_and_0_without_an_edit(trial, picked, tmp_path):
    network, sae, site = replace(trial.network, mixed_precision=False), trial.sae, trial.acts.site
    index, picks = picked
    for j, own in picks.groupby("feature_id"):  # half of them are the strongest
        peaks = index.maps(j, np.arange(N)).max((1, 2))
        assert own["how"].tolist() == ["top"] * 3 + ["random"] * 3 and own["image_row"].is_unique
        assert own["image_row"].tolist()[:3] == np.argsort(-peaks, kind="stable")[:3].tolist()
        np.testing.assert_allclose(own["value"], peaks[own["image_row"]])

    def blurred_by(sigma, own):
        blur_peaks(tmp_path, trial=own, index=index, picks=picks, sigma=sigma, window=16)
        return pd.read_parquet(tmp_path / "blur.parquet")

    table, measured = blurred_by(1e-3, trial), ["feature", "logit", "margin", "confidence", "specificity"]
    assert (table[[*measured, "restored_logit", "random_logit"]] == 0).all(axis=None) and len(table) > len(picks)
    table = blurred_by(4, replace(trial, network=network))
    targets = table[table["where"] == "target"].set_index(["feature_id", "image_row"])
    assert len(targets) == len(picks) and {"anywhere", "target"} <= set(table["where"])
    assert "foreground" not in set(table["where"])  # noise has no regions
    for pick in picks.itertuples():
        x = network.as_input(trial.pictures.picture(pick.image))
        changed, window = x.clone(), Window.around(pick.row, pick.column, index.grid, SIZE, 16)
        changed[:, *window.slices] = blur(x, 4)[:, *window.slices]
        whole, after = (network.see(each[None], [site]) for each in (x, changed))
        codes = [sae.encode(seen.acts[site].flatten(0, 2)).dense()[:, pick.feature_id] for seen in (whole, after)]
        row = targets.loc[(pick.feature_id, pick.image_row)]
        assert row["before"] == pytest.approx(codes[0].max().item(), abs=1e-4)
        assert row["feature"] == pytest.approx((codes[1].max() - codes[0].max()).item(), abs=1e-4)
        label = int(trial.labels[pick.image_row])
        assert row["logit"] == pytest.approx((after.logits - whole.logits)[0, label].item(), abs=1e-4)
        lost = (codes[0] - codes[1]).view(*after.acts[site].shape[:3], 1)
        back = after.acts[site] + lost * sae.W_dec[pick.feature_id]
        restored = network.see(changed[None], edits={site: lambda _, back=back: back}).logits - whole.logits
        assert row["restored_logit"] == pytest.approx(restored[0, label].item(), abs=1e-4)
    assert targets["logit"].abs().max() > 1e-3


def blurred(**columns):
    """Targets and matched controls of two features in four pictures."""
    table = pd.DataFrame({"feature_id": [0] * 8 + [1] * 8, "image_row": [3, 3, 5, 5, 6, 6, 9, 9] * 2})
    table["where"], table["matched"] = ["target", "foreground"] * 8, True
    return table.assign(**columns)


def test_blurring_beside_matched_controls_and_the_share_of_the_loss_that_returns():
    table = blurred(logit=[-3, -1, -2, -1, -2, -2, -1, -1] * 2, feature=[-2.0, -1] * 8, before=4.0)
    got = beyond_controls(table, ["foreground"])
    assert got["value"] == -0.75 and got["n"] == 4  # pictures, not pairs
    table.loc[1, "matched"] = False  # then one pair has no control
    assert beyond_controls(table, ["foreground"])["value"] == pytest.approx(-4 / 7)
    assert feature_lost(table, "target")["value"] == 0.5 and feature_lost(table, "foreground")["value"] == 0.25
    sky = table.assign(where=table["where"].replace("foreground", "anywhere"))
    assert beyond_controls(sky, ["anywhere"])["n"] == 4 and not beyond_controls(sky, ["foreground"])["n"]
    table = blurred(logit=[-2.0, -1] * 8, restored_logit=[-1.5, -1] * 8, random_logit=[-2.0, -1] * 8)
    table.loc[[0, 8], ["logit", "restored_logit"]] = 1.0  # blurring helped there, so nothing was lost
    got = mediation(table)
    assert got["the feature"]["value"] == pytest.approx(0.25) and got["the feature"]["n"] == 3
    assert got["a random direction"]["value"] == 0


def test_agreement_of_blurring_and_suppression():
    pairs = {"feature_id": [1] * 4 + [0] * 4, "image_row": [3, 5, 6, 9] * 2}  # in another order
    suppressed = pd.DataFrame(pairs | {"suppressed": [1, 2, 3, 4, -4, -3, -2, 1]})
    table = blurred(logit=[-8.0, 0, -6, 0, -4, 0, 1, 0] + [-1, 0, -2, 0, -3, 0, -4, 0])
    got = agreement(table, suppressed)
    assert got["spearman"].tolist() == pytest.approx([1, -1]) and got["same_sign"].tolist() == [1, 0]
    assert got["low"].tolist() == pytest.approx([1, -1]) and got["high"].tolist() == pytest.approx([1, -1])
    assert agreement(table, suppressed.assign(suppressed=0))["spearman"].isna().all()


def test_experiments_report_the_trials_own_effects(trial, picked, tmp_path):
    index, picks = picked
    half_b, features = trial[trial.in_b], picks["feature_id"].unique().tolist()
    suppress_sample(tmp_path, trial=trial, features=features, n_images=N)
    table, size = pd.read_parquet(tmp_path / "features.parquet"), np.abs(half_b.suppress(features)["specificity"])
    np.testing.assert_allclose(table["feature"], mean_over_active(size, size > 0), atol=1e-6)
    index = replace(index, images=index.images.assign(split="test"))
    blur_peaks(tmp_path, trial=trial, index=index, picks=picks, sigma=2.0, window=16)
    table = pd.read_parquet(tmp_path / "suppressed.parquet")
    assert len(table) == len(picks) and table["image_row"].nunique() > 3
    by_hand = trial.suppress(features)["logit"][table["image_row"], table["feature_id"].map(features.index)]
    np.testing.assert_allclose(table["suppressed"], by_hand, atol=1e-6)


def without_parts(study, folder, most):
    """Five scenes as they are and with each part removed, and their activations."""
    hangar, scenes = study.config.dataset.hangar, study.pictures().scenes["scene"].tolist()[:5]
    how = {"most": most, "size": hangar.size, "supersampling": hangar.supersampling}
    vary_scenes(folder, scenes=scenes, factors=(), edits=["part"], parts=PARTS[2:], **how)
    made = VariedScenes.open(folder)
    extract(folder / "acts", study.network(), made, ["stage4"])
    return made, Activations.open(folder / "acts", "stage4")


@pytest.fixture(scope="module")
def removals(smoke_study, tmp_path_factory):
    return without_parts(smoke_study, tmp_path_factory.mktemp("removals"), 99)


def test_an_edit_of_nothing_has_no_effect(smoke_study, tmp_path, monkeypatch):
    monkeypatch.setattr(Scene, "edit", lambda scene, *_: scene)
    same, acts = without_parts(smoke_study, tmp_path, 2)
    got = Responses.of(smoke_study.sae(), acts, same)
    assert len(got.edits) and (got.edits["changed"] == 0).all() and got.maxima.max() > 0
    assert (got.maxima[got.edits.index] == got.maxima[got.edits["number"]]).all()
    assert got.table()["response"].abs().max() == 0
    assert got.edits["part"].value_counts().max() == 2, "no more of a part than asked for"


def test_removals_are_seen_as_pictures_without_the_part(smoke_study, removals):
    """Files, masks and changes by a rendering of each scene, and image maxima by a forward pass."""
    made, acts = removals
    config, scenes = smoke_study.config.dataset.hangar, made.scenes["scene"].map(Scene.from_json)
    got, whole = Responses.of(smoke_study.sae(), acts, made), made.table.query("part == ''")
    assert whole.index.tolist() == whole["number"].tolist() == list(range(5)) and len(got.edits) > 10
    for part in made.region_names:  # each scene has an edit of each part that it shows
        shown = made.scenes[f"pixels_{part}"][:5] >= LEAST_PIXELS * config.size**2
        assert got.edits.query("part == @part")["number"].tolist() == np.flatnonzero(shown).tolist()
    drawn = [render(scene, config.size, config.supersampling) for scene in scenes]
    for row, picture in zip(made.table.itertuples(), drawn, strict=True):
        assert scenes[row.Index] == (scenes[row.number].edit("remove", row.part) if row.part else scenes[row.number])
        assert (np.maximum(picture.mask, 1) - 1 == made.mask(row.image)).all() and not scenes[row.Index].shadows
        assert made.scenes["pixels_fin"][row.Index] == (picture.mask == PARTS.index("fin")).sum()
        assert row.changed == (picture.image != drawn[row.number].image).any(2).sum()
        assert np.abs(np.asarray(made.picture(row.image), int) - picture.image).mean() < 8  # as a JPEG
    assert (got.edits["changed"] > 0).all()
    cells = made.regions(whole["image"][3], acts.grid)
    assert (got.shows[3][cells >= 0.25]).all() and not got.shows[3][cells == 0].any()
    network, sae, e = smoke_study.network(), smoke_study.sae(), int(got.edits["changed"].idxmax())
    with torch.inference_mode():
        x = network.as_input(made.picture(made.table["image"][e]))[None]
        wanted = codes_of(sae, network.see(x, ["stage4"]).acts["stage4"].half().numpy()).amax((0, 1, 2))
    np.testing.assert_allclose(got.maxima[e], wanted, atol=1e-3)


def test_scenes_are_chosen_until_each_part_has_enough(smoke_study):
    pictures = smoke_study.pictures()
    table, least = pictures.scenes, 30 * (64 / 224) ** 2
    chosen = choose_scenes(pictures, table["image"], 3, 64)
    seen = table[table["scene"].isin(chosen)]
    for part in pictures.region_names:
        there, own = ((each[f"pixels_{part}"] >= least).sum() for each in (table, seen))
        assert own >= min(3, there)
    assert len(seen) == len(chosen) < len(table)
    with pytest.raises(ValueError, match="at least one scene"):
        smoke_study.vary("none", [], edits=["part"], most=1)


def test_responses_by_hand():
    edits = pd.DataFrame({"number": [0, 1, 2], "part": ["fuselage", "fuselage", "wing"]}, index=[3, 4, 5])
    maxima = np.array([[2.0, 1, 0], [4, 0, 0], [6, 1, 0], [0, 1, 0], [1, 0, 0], [6, 0, 0]])
    R = Responses(["fuselage", "wing", "fin"], edits, maxima, None, None).table()
    assert R["part"].tolist() == ["fuselage"] * 3 + ["wing"] * 3 + ["fin"] * 3
    np.testing.assert_allclose(R["response"], [5 / 6, 0, 0, 0, 1, 0, *[np.nan] * 3])


def linear(directions, codes):
    """A trial of features with these directions and mean activations: 120 pictures, 40 of each of three classes."""
    generator = torch.Generator().manual_seed(2)
    weight, pooled = torch.randn(3, 24, generator=generator), torch.randn(120, 24, generator=generator)
    directions = weight if directions is None else directions
    network = SimpleNamespace(readout=lambda site: PooledReadout(weight, torch.zeros(3), 1e-6))
    acts = Activations(pooled.view(120, 1, 1, 24).numpy(), pd.DataFrame({"split": ["val"] * 120}), "last")
    sae = SimpleNamespace(W_dec=directions, d_sae=len(directions))
    labels = torch.arange(3).repeat_interleave(40)
    return Trial(network, sae, None, acts, np.arange(120), labels, np.ones(120, bool), codes), weight


LABELS = pd.DataFrame({"variant": np.repeat(["a", "b", "c"], 40)})


def facts(n, **columns):
    """What half A chose for n features: class "a", and its AUROC."""
    table = pd.DataFrame({"feature_id": range(n), "level": "variant", "variant/class": "a"})
    return table.assign(**{f"variant/{name}": each for name, each in columns.items()})


def test_class_verdicts_need_selectivity_suppression_and_seeds():
    weight = linear(None, None)[1]
    directions = weight[:1].repeat(4, 1)  # speaks for the first class
    directions[3] = -directions[3]  # speaks against it
    trial, _ = linear(directions, torch.where(torch.arange(120) < 40, 0.5, 0.0)[:, None].repeat(1, 4))
    table = facts(4, auroc=[0.99, 0.6, 0.99, 0.99], auroc_q=[1e-4, 0.5, 1e-4, 1e-4])
    match, null = np.array([0.9, 0.9, 0.2, 0.9]), pd.Series({("variant", "a"): 0.95, ("variant", "b"): 0.5})
    got = class_verdicts(range(4), table[::-1], trial, LABELS, match, null)  # in whatever order
    assert got["verdict"].tolist() == ["detector of a", *["not shown"] * 3]
    assert got["why"].tolist() == ["", "AUROC", "other seeds", "suppression"]
    assert got["n"].tolist() == [40] * 4 and got["shown"].tolist() == [True, False, True, False]
    assert got["p"][0] == pytest.approx(1e-3) and got["control"].abs().max() < -got["specificity"][0]
    few = pd.DataFrame({"variant": np.where(np.arange(120) < 8, "a", "b")})
    few = class_verdicts(range(4), table, trial, few, match, null)
    assert few["verdict"].tolist()[1:] == ["underpowered"] * 3
    better = class_verdicts(range(4), table, trial, LABELS, match, null + 0.045)  # above every feature
    assert better["why"].tolist() == ["AUROC", "AUROC", "AUROC; other seeds", "AUROC; suppression"]
    turned = class_verdicts(range(4), table, trial, LABELS, match, null, directions=-directions)
    assert not turned["passes"][:3].any() and "suppression" in turned["why"][0]


def test_tests_of_random_directions_are_calibrated(monkeypatch):
    monkeypatch.setitem(verdicts.N_RANDOM, True, 199)
    every, covariance = list(range(1000)), cell_covariance(linear(None, None)[0].acts)
    directions = random_directions(torch.ones(1000, 24), covariance, 11)
    trial = linear(directions, torch.full((120, 1000), 0.3))[0]
    null = pd.Series({("variant", "a"): 0.5})
    got = class_verdicts(every, facts(1000, auroc=1.0, auroc_q=0.0), trial, LABELS, np.ones(1000), null)
    assert 0.03 <= (got["p"] < 0.05).mean() <= 0.07
    none = {"value": 0, "low": 0, "high": pytest.approx(1 - 0.025 ** (1 / 1000)), "n": 1000}
    assert pass_share(got["passes"]) == none, "a share of none has an upper bound"
    own = beyond_random(trial, every)
    assert 0.03 <= own["beyond"].mean() <= 0.07 and len(own) == 1000
    trial = linear(None, torch.full((120, 3), 0.3))[0]
    assert beyond_random(trial, [0, 1, 2])["beyond"].tolist() == [True] * 3
    assert not len(beyond_random(replace(trial, strength=torch.zeros(120, 3)), [0]))


def test_the_frozen_list_is_drawn_by_density_and_by_part():
    density = np.concatenate([np.zeros(20), np.geomspace(1e-4, 0.5, 200)])
    table = pd.DataFrame({"feature_id": range(220), "density_cell": density})
    scores = pd.DataFrame({"feature_id": np.repeat(np.arange(220), 2), "part": ["wing", "fin"] * 220})
    scores["ap_a"] = np.random.default_rng(0).random(440)
    bars = pd.DataFrame({"part": ["wing", "fin"], "bar": [0.9, 0.95]})
    got = features_to_test(table, scores, bars, 30)
    drawn, matched = got[got["chosen"] == "random"], got[got["chosen"] == "part"]
    assert len(drawn) == 100 and drawn["feature_id"].min() >= 20 and drawn["feature_id"].is_unique
    assert np.bincount((drawn["feature_id"].to_numpy() - 20) // 40).tolist() == [20] * 5  # fifths of the living
    assert matched["part"].value_counts().tolist() == [15, 15]
    best = scores[scores["part"] == "fin"].nlargest(15, "ap_a")["feature_id"]
    assert set(matched[matched["part"] == "fin"]["feature_id"]) == set(best)
    assert got.equals(features_to_test(table, scores, bars, 30))
    assert set(features_to_test(table, None, None)["chosen"]) == {"random"}
    over = scores.assign(over=scores["ap_a"] - scores["part"].map({"wing": 0.9, "fin": 0.95})).query("over > 0")
    wanted = over.sort_values("over").groupby("feature_id")["part"].last()
    claimed = drawn.set_index("feature_id")["part"]
    assert claimed.dropna().to_dict() == wanted[wanted.index.isin(claimed.index)].to_dict() and claimed.isna().any()


def test_experiments_from_suppression_to_verdicts(smoke_study, removals, tmp_path):
    network, sae, pictures = smoke_study.network(), smoke_study.sae(), smoke_study.pictures()
    index, acts = smoke_study.features(), smoke_study.activations()
    trial = Trial.of(network, sae, pictures, acts, index)
    test = pictures.rows("test")
    assert [network.classes[label] for label in trial.labels] == test[network.level].tolist()
    np.testing.assert_allclose(trial.strength, codes_of(sae, acts.acts[trial.rows]).mean((1, 2)), atol=1e-4)
    scores = pd.read_parquet(index.folder / "parts.parquet")
    claims = features_to_test(index.table, scores, scores[["part"]].drop_duplicates().assign(bar=0.05), 4)
    claims = pd.concat([claims.head(6), claims.tail(4)], ignore_index=True)
    claims.loc[:1, "part"] = None, claims["part"].iloc[-1]
    for name in ("forward", "tiers", "photographs"):
        (tmp_path / name).mkdir()
    suppress_features(tmp_path, trial=trial, index=index, claims=claims)
    suppressed = pd.read_parquet(tmp_path / "features.parquet")
    assert len(suppressed) == sae.d_sae and (suppressed.loc[suppressed["n"] == 0, "feature"] == 0).all()
    often, half_b = int(suppressed["n"].idxmax()), trial[trial.in_b]
    own = half_b.suppress([often])["specificity"][(half_b.strength[:, often] > 0).numpy()]
    assert suppressed["feature"][often] == pytest.approx(np.abs(own).mean(), rel=1e-4)
    suppress_features(tmp_path / "forward", trial=by_passes(half_b), index=index, claims=claims)
    both = suppressed.merge(pd.read_parquet(tmp_path / "forward" / "features.parquet"), on="feature_id")
    assert set(both["feature_id"]) == set(claims["feature_id"])
    np.testing.assert_allclose(both["feature_x"], both["feature_y"], atol=1e-5)
    given = dict(trial=trial, index=index, claims=claims, suppressed=suppressed, others=[sae], nulls=[index])
    claimants = {"main": Claimant(sae, index, claims, pictures, removals[1])}
    judge_parts(tmp_path / "tiers", claimants=claimants, nulls=claimants, removals=removals[0])
    judged = pd.read_parquet(tmp_path / "tiers" / "tiers.parquet")
    assert len(judged) == claims["part"].notna().sum() and not judged["tier"].any()  # none is above itself
    assert np.nan_to_num(judged[judged["best"]]["gain"]).max() == 0
    assert (judged["n_random"] == 6).all()
    verdict_tables(tmp_path, **given, tiers=tmp_path / "tiers", removed=removals[1], removals=removals[0])
    names = "features", "responses", "parts", "classes"
    by_feature, responses, of_parts, classes = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in names)
    assert by_feature["feature_id"].tolist() == list(range(sae.d_sae)) and by_feature["verdict"].notna().any()
    assert len(responses) == 12 * sae.d_sae and len(of_parts) == len(judged) and len(classes) == 6
    pd.testing.assert_frame_equal(responses, Responses.of(sae, *removals[::-1]).table())
    assert (tmp_path / "null_classes.parquet").is_file()
    verdict_tables(tmp_path / "photographs", **given | {"nulls": []})  # nothing to be compared with
    found = {path.stem: pd.read_parquet(path) for path in (tmp_path / "photographs").glob("*.parquet")}
    assert set(found) == {"features", "classes", "null_classes"} and found["features"]["verdict"].notna().sum() == 6


def estimate(value, spread=0.05, n=100, shared=None):
    """An estimate whose pictures' influences add up to an error of `spread`."""
    drawn = np.random.default_rng(int(1e3 * np.nan_to_num(value)) + n).normal(size=n) if shared is None else shared
    return Estimate(value, pd.Series(drawn - drawn.mean(), [f"i{i}" for i in range(n)]) * spread / n**0.5)


def test_each_tier_has_its_own_tests_of_paired_differences():
    shared, other = np.random.default_rng(9).normal(size=(2, 100))
    one, two = (estimate(value, 0.1, shared=shared) for value in (0.5, 0.45))
    apart = estimate(0.45, 0.1, shared=other)
    assert (one - two).error < 1e-9 and (one - two).p == 0 and (two - one).p == 1  # the same in every picture
    assert (one - apart).error == pytest.approx(0.1 * 2**0.5, rel=0.2) and (one - apart).p > 0.2
    null = Measured(estimate(0.1), estimate(0.1), estimate(0.6, shared=shared), estimate(0.6), estimate(0.0))

    def tier(ap=0.6, swapped=0.2, auroc=0.9, R=0.6, others=0.0, **spread):
        named = [estimate(value, 0.03) for value in (ap, swapped, auroc)]
        row = compared(Measured(*named, estimate(R, **spread), estimate(others)), [null, null])
        return int(tiered(pd.DataFrame([{"chosen": "part", "best": True} | row]))["tier"][0]), row

    assert tier()[0] == 3 and tier()[1]["null_R"] == 0.6 and tier()[1]["gain"] == pytest.approx(0.3)
    assert tier(ap=0.15)[0] == 0 and tier(swapped=0.58)[0] == 0  # no more than nulls, or than its class
    assert tier(auroc=0.62)[0] == 1 and tier(auroc=0.5)[0] == 1  # no more than nulls within family and place
    assert tier(R=0.2)[0] == 2 and tier(others=0.55)[0] == 2  # too little, or no more than by other parts
    assert tier(R=0.6, spread=0.5)[0] == 2 and tier(R=0.6, spread=0.5)[1]["imprecise"]
    assert tier(others=np.nan)[0] == 3 and tier(R=0.31, others=np.nan, spread=0.5)[0] == 2  # no like part: above 0
    rare = tier(auroc=np.nan)[1]
    assert not np.isnan(rare["ap_p"]) and np.isnan(rare["auroc_p"])
    few = Measured(estimate(0.6), estimate(0.2), estimate(0.9), estimate(0.6, 0.01, 9), estimate(0.0, 0.01, 9))
    assert np.isnan(compared(few, [null])["R_p"])  # nine scenes say nothing, however alike they are
    none = tier(R=np.nan, others=np.nan)[1]
    assert none["imprecise"] and none["auroc_p"] < 0.05


def test_tier_4_needs_tier_3_in_two_other_seeds(monkeypatch, tmp_path):
    tiers_of = {"main": {"fin": 3, "wing": 3, "engine": 2}, "one": {"fin": 3, "wing": 3}, "two": {"fin": 3, "wing": 2}}
    monkeypatch.setattr(verdicts, "measured", lambda claimant, claims, removals: [claimant.removed] * len(claims))
    monkeypatch.setattr(verdicts, "compared", lambda own, nulls: {"name": own})
    monkeypatch.setattr(verdicts, "guessed_in_strata", lambda index, regions, part: 0.5)
    monkeypatch.setattr(verdicts.Regions, "of", lambda index, pictures: None)

    def planted_tiers(table):
        found = [tiers_of[name].get(part, 0) for name, part in zip(table["name"], table["part"], strict=True)]
        return table.assign(tier=found)

    monkeypatch.setattr(verdicts, "tiered", planted_tiers)
    claims = pd.DataFrame({"feature_id": [0, 1, 2, 7], "chosen": "part", "part": ["fin", "wing", "engine", "fin"]})
    claimants = {name: Claimant(None, None, claims, None, name, [*tiers_of.keys() - {name}]) for name in tiers_of}
    judge_parts(tmp_path, claimants=claimants, nulls={}, removals=None)
    got = pd.read_parquet(tmp_path / "tiers.parquet")
    main = got[got["claimant"] == "main"]
    assert main["tier"].tolist() == [4, 3, 2, 4]  # one seed alone has the wing; any claim of the fin is replicated
    assert main["best"].tolist() == [True, True, True, False]
    assert got.query("claimant == 'two' and best")["tier"].tolist() == [4, 2, 0]


def test_a_feature_with_two_peaks_is_judged_at_the_removed_part():
    n, grid = 40, (4, 4)
    maps, shows = np.zeros((3 * n, *grid, 2)), np.zeros((n, *grid, 2), bool)
    shows[:, 0, 0, 0] = shows[:, 3, 3, 1] = True  # a fin, and an engine
    maps[:, 0, 0, 0], maps[:, 3, 3, 0] = 1.0, 2.0  # two peaks: at the fin and, higher, at the engine
    maps[:, 2, 2, 1] = 1.0  # at neither
    maps[n : 2 * n, 0, 0, 0] = maps[2 * n :, 3, 3, 0] = 0.0  # first without fins, then without engines
    edits = pd.DataFrame({"number": np.tile(np.arange(n), 2), "part": np.repeat(["fin", "engine"], n), "changed": 10})
    edits.index += n
    by_cell, images = csr_array(maps.reshape(-1, 2)), pd.DataFrame(index=range(3 * n))
    index = FeatureIndex(by_cell, by_cell.tocsc(), images, grid, pd.DataFrame())
    got = Responses(["fin", "engine"], edits, maps.max((1, 2)), shows, index)
    assert got.table()["response"][0] == 0  # anywhere: the other peak hides it
    own, others = got.at_part("fin", 0)
    assert own.value == 0.5 and others.value == 0 and len(own.influence) == n and own.p < 1e-9
    assert got.at_part("engine", 0)[0].value == 1 and got.at_part("fin", 1)[0].value == 0
    silent = replace(got, maxima=0 * got.maxima).at_part("fin", 0)
    assert np.isnan(silent[0].value) and not len(silent[0].influence)
    large = replace(got, edits=edits.assign(changed=np.repeat([10, 30], n)))
    assert np.isnan(large.at_part("fin", 0)[1].value)  # no other edit is of like size
    rare = replace(got, parts=["fin", "engine", "gear"], shows=np.pad(shows, [(0, 0)] * 3 + [(0, 1)]))
    assert np.isnan([each.value for each in rare.at_part("gear", 0)]).all()  # a part without edits
