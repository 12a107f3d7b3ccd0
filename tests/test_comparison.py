"""Networks compared: responses of planted features to scenes that differ in one factor."""

import numpy as np
import pandas as pd
import pytest
import timm
from PIL import Image

from aircraft_sae.activations import Activations
from aircraft_sae.hangar import PARTS
from aircraft_sae.hangar.scene import FACTORS, sample
from aircraft_sae.networks import pretrained
from aircraft_sae.pictures.scenes import EDITS, VariedScenes, vary_scenes
from aircraft_sae.studies import comparison
from aircraft_sae.studies.comparison import ALL, Sensitivity, about, accuracy, probed, sites_at
from aircraft_sae.view.browser.catalogue import crops_figure
from aircraft_sae.view.plots import profiles

OWN = ("fin", "wing", "engine")


@pytest.fixture(scope="module")
def varied(tmp_path_factory) -> VariedScenes:
    """48 scenes of airliners from the side, with every factor varied."""
    scenes, number = [], 0
    while len(scenes) < 48:
        scene, number = sample("210-100", 5, number), number + 1
        if abs(abs(scene.camera.azimuth) - np.pi / 2) < 0.7:
            scenes.append(scene.to_json())
    folder = tmp_path_factory.mktemp("varied")
    vary_scenes(folder, scenes=scenes, factors=FACTORS, edits=EDITS, parts=OWN, most=48, size=96, supersampling=1)
    return VariedScenes.open(folder)


@pytest.fixture(scope="module")
def planted(varied) -> dict[str, np.ndarray]:
    """Image maxima of features that read one factor each, and of random directions in pixel space."""
    scenes = dict(varied.table.query("factor == ''")[["number", "image"]].to_numpy())
    assert len(scenes) == 48
    pixels = np.stack([np.float32(varied.picture(image)) for image in varied.table["image"]]) / 255
    masks = np.stack([np.asarray(Image.open(varied.folder / "masks" / f"{n}.png")) for n in varied.table["image"]])
    small = pixels.reshape(len(pixels), 12, 8, 12, 8, 3).mean((2, 4)).reshape(len(pixels), -1)
    rng = np.random.default_rng(0)
    random = np.maximum((small - small.mean(0)) @ rng.standard_normal((small.shape[1], 600)), 0)
    columns = np.arange(96) * np.ones((96, 96))
    place = [columns[mask >= 2].mean() / 96 if (mask >= 2).any() else 0 for mask in masks]
    return {
        "part": (masks == PARTS.index("fin")).sum((1, 2)), "place": np.array(place),
        "paint": np.maximum(pixels[..., 0] - pixels[..., 1:].max(-1), 0).reshape(len(pixels), -1).max(1),
        "random": random,
    }  # fmt: skip


def sensitivity(varied, maxima: np.ndarray) -> Sensitivity:
    return Sensitivity.of(maxima, varied.table, maxima.max(0), OWN)


@pytest.mark.parametrize("factor", ["part", "paint", "place"])
def test_a_planted_feature_is_about_what_it_reads(varied, planted, factor):
    random = sensitivity(varied, planted["random"][:, :400]).response
    found = sensitivity(varied, planted[factor][:, None].astype(float))
    assert about(found.response, random).tolist() == [factor], found.response


def test_random_directions_are_about_nothing(varied, planted):
    """Further ones surpass the first no more often than by chance, and have the same profile."""
    first, second = (sensitivity(varied, planted["random"][:, own]) for own in (slice(400), slice(400, 600)))
    assert (about(second.response, first.response) != "").mean() < 0.12
    usual = first.draws(np.ones(400))
    flat = second.profile(np.ones(200), usual)
    assert flat["times"].between(0.8, 1.25).all(), flat
    assert ((flat["times_low"] < flat["times"]) & (flat["times"] < flat["times_high"])).all()
    tenth = {factor: 0 * drawn + 0.1 for factor, drawn in usual.items()}
    np.testing.assert_allclose(second.profile(np.ones(200), tenth)["times"], 10 * flat["value"])


def test_the_interval_of_a_profile_is_over_scenes(varied, planted):
    """It contains the value, and is twice as wide for a quarter of the scenes."""
    whole, mass = sensitivity(varied, planted["random"][:, :50]), np.ones(50)
    few = Sensitivity({name: change[: len(change) // 4] for name, change in whole.change.items()})
    wide, narrow = (
        each.profile(mass, each.draws(mass)).set_index("factor").loc[list(FACTORS)] for each in (few, whole)
    )
    assert ((narrow["low"] < narrow["value"]) & (narrow["value"] < narrow["high"])).all()
    assert 1.4 < ((wide["high"] - wide["low"]) / (narrow["high"] - narrow["low"])).median() < 2.8


def test_a_response_is_a_mean_over_scenes_in_which_the_feature_is_active():
    """By hand: silent scenes do not count, a change is a share of the range, and few scenes give no answer."""
    rows = [(n, factor, "") for n in range(12) for factor in ("", *FACTORS)]
    table = pd.DataFrame(rows, columns=["number", "factor", "part"])
    maxima = np.full((len(table), 2), 2.0)
    maxima[table["factor"] == "roll"] = 1.5, 0.0
    maxima[table["number"] == 0] = 0, 2
    maxima[(table["number"] > 2), 1] = 0
    found = Sensitivity.of(maxima, table, np.array([4.0, 4.0]), OWN).response
    roll = ALL.index("roll")
    assert found[0, roll] == pytest.approx(0.125) and np.isnan(found[1, roll])
    assert found[0, ALL.index("light")] == 0 and np.isnan(found[0, ALL.index("part")])


def test_a_sparse_probe_finds_the_planted_column():
    rng = np.random.default_rng(0)
    labels = pd.DataFrame({"variant": np.repeat(["a", "b", "c", "d"], 30), "family": np.repeat(["x", "y"], 60)})
    values = rng.standard_normal((120, 20))
    assert probed(values, labels)["probe_1"]["value"] < 0.7
    values[:, 7] += 3 * (labels["family"] == "x")
    found = probed(values, labels)
    assert found["probe_1"]["value"] > 0.95 and found["probe_5"]["n"] == 2


def test_a_profile_stands_beside_random_directions(smoke_study):
    width = smoke_study.network().shape("stage4")[2]
    folder = smoke_study.profile("trained", "stage4", smoke_study.seeds("trained", "stage4", 4 * width, 2))
    profile, scores, features = (pd.read_parquet(folder / f"{n}.parquet") for n in ("profile", "scores", "features"))
    names = {"seed 0", "seed 1", comparison.RANDOM}
    assert set(profile["dictionary"]) == names == set(features["dictionary"])
    assert set(profile["factor"]) == set(ALL) and profile["value"].between(0, 3).all()
    random, own = (profile[profile["dictionary"] == name].set_index("factor") for name in (comparison.RANDOM, "seed 0"))
    assert (random[["times", "times_low", "times_high"]] == 1).all(axis=None)  # on the same draws of scenes
    np.testing.assert_allclose(own["times"], own["value"] / random["value"])
    assert {"mean_ap", "n_parts", "probe_1", "probe_5", "dead", "seed_agreement"} < set(scores["measure"])
    assert {"channels", "PCA"} < set(scores["dictionary"])
    with pytest.raises(ValueError, match="multiple"):
        smoke_study.seeds("trained", "stage4", 1001)


def test_networks_by_name(smoke_study, monkeypatch):
    network = smoke_study.network("efficientnet_lite0")
    assert network.mean == (0.5, 0.5, 0.5) and smoke_study.network("efficientnet_lite0") is network
    assert "networks/efficientnet_lite0" not in smoke_study.stages
    assert [network.shape(site)[2] for site in sites_at(network, (16, 32)).values()] == [112, 320]
    assert sites_at(smoke_study.network(), (16, 32)) == {16: "stage3", 32: "stage4"}
    with pytest.raises(ValueError, match=r"no network 'resnet51'.*hangar_pretrained"):
        smoke_study.network("resnet51")
    monkeypatch.setattr(network.model, "feature_info", [])
    with pytest.raises(ValueError, match="stride 16"):
        sites_at(network, (16, 32))


@pytest.mark.parametrize("name", ["convnextv2_tiny.fcmae", "convnext_tiny.dinov3_lvd1689m"])
def test_a_name_of_timms_hub_makes_a_network(name, monkeypatch):
    """With random weights in place of the hub's, which cannot be reached here."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda arch, pretrained, **how: create(arch.partition(".")[0], **how))
    network = pretrained(name, 64)
    assert network.name == name and len(sites_at(network, (16, 32))) == 2
    assert network.shape("stages.2")[:2] == (4, 4)


def test_scenes_differ_in_one_factor(varied):
    table = varied.table
    assert table["image"].is_unique and (table["factor"].value_counts()[["", *FACTORS]] == 48).all()
    whole = np.asarray(varied.picture("000"), int)
    for image in table.query("number == 0 and factor != ''")["image"]:
        assert np.abs(np.asarray(varied.picture(image), int) - whole).max() > 8, image
    with pytest.raises(ValueError, match="no factor 'colour' to vary"):
        sample("210-100", 5, 0).varied("colour")


def test_accuracy_of_separable_classes_and_of_shuffled_labels():
    rng, shown = np.random.default_rng(0), np.array(["a", "b"])[np.arange(120) % 2]
    shown[80:] = np.repeat(["a", "b"], 20)
    acts = rng.standard_normal((120, 2, 2, 4)).astype(np.float16) + 8 * (shown == "a")[:, None, None, None]
    labels = np.where(np.arange(120) >= 116, "a", shown)  # a tenth of the test labels is wrong
    images = pd.DataFrame({"image": np.arange(120).astype(str), "split": ["train"] * 80 + ["test"] * 40})
    right, by_chance = (accuracy(Activations(acts, images.assign(variant=each)), "variant")
                        for each in (labels, rng.permutation(labels)))  # fmt: skip
    assert (right["value"], right["n"]) == (0.9, 40) and 0.25 < by_chance["value"] < 0.75


def test_the_figure_of_profiles_shows_every_network():
    """Also more networks than there are markers and colours."""
    names = [f"network {i}" for i in range(9)]
    rows = [(name, factor, i + j) for i, name in enumerate(names) for j, factor in enumerate("ab")]
    table = pd.DataFrame(rows, columns=["network", "factor", "value"])
    table = table.assign(low=table["value"] - 0.5, high=table["value"] + 0.5)
    figure = profiles({"one": table, "two": table}, "response", 1)
    for ax in figure.axes:
        shown = [line for line in ax.lines if line.get_label() in names]
        assert [list(line.get_xdata()) for line in shown] == [[i, i + 1] for i in range(9)]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_a_crop_stays_inside_its_picture_and_a_missing_one_is_white(smoke_study):
    pictures = smoke_study.pictures()
    picks = pd.DataFrame({"image": [pictures.table["image"][0], None], "row": [1, None], "column": [3, None]})
    shown = [np.asarray(ax.images[0].get_array()) for ax in crops_figure({"part": picks}, pictures, (4, 4)).axes]
    picture = pictures.picture(pictures.table["image"][0])
    width, height = picture.size
    box = [0.679 * width, 0.214 * height, width, 0.536 * height]  # 72 of 224 pixels: at the right, from 3/8 - 36/224
    wanted = np.asarray(picture.crop([*np.round(box)]).resize((72, 72), Image.Resampling.BICUBIC))
    assert np.array_equal(shown[0], wanted) and (shown[1] == 255).all()
