"""Configs: round trip, dotted changes, refusals, and who takes a data root."""

import json

import pytest

from aircraft_sae import config


@pytest.mark.parametrize("name", config.presets())
def test_every_preset_survives_json(name):
    preset = config.preset(name)
    assert preset.name == name
    assert config.from_json(config.to_json(preset)) == preset


def test_json_with_a_field_too_many_or_too_few_is_refused():
    values = json.loads(config.to_json(config.preset("smoke")))
    values["classifier"]["colour"] = values["classifier"].pop("seed")
    with pytest.raises(ValueError, match=r"ClassifierConfig: unknown fields \['colour'\], missing \['seed'\]"):
        config.from_dict(config.StudyConfig, values)


def test_fields_that_are_checked_against_each_other_change_together():
    changed = config.change(
        config.preset("hangar"), **{"classifier.sizes": (96,), "classifier.epochs": (2,), "name": "short"}
    )
    assert (changed.classifier.sizes, changed.classifier.epochs, changed.name) == ((96,), (2,), "short")
    with pytest.raises(ValueError, match="one entry per phase"):
        config.change(config.preset("hangar"), **{"classifier.sizes": (96,)})


def test_change_reaches_nested_fields_and_leaves_the_original():
    before = config.preset("smoke")
    after = config.change(before, **{"dataset.hangar.seed": 7, "name": "other"})
    assert (after.dataset.hangar.seed, after.name) == (7, "other")
    assert (before.dataset.hangar.seed, before.name) == (0, "smoke")
    with pytest.raises(ValueError, match="no field 'sead' in HangarConfig"):
        config.change(before, **{"dataset.hangar.sead": 7})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset.source", "elsewhere"),
        ("dataset.on_bad_image", "ignore"),
        ("dataset.banner", -1),
        ("dataset.hangar.taxonomy", "birds"),
        ("dataset.hangar.n_variants", 1),
        ("dataset.hangar.size", 0),
        ("dataset.hangar.split_shares", (0.5, 0.5, 0.5)),
        ("classifier.level", "species"),
        ("classifier.epochs", (1, 2)),
        ("classifier.sizes", (16,)),
        ("classifier.batch_size", 0),
        ("classifier.learning_rate", -1.0),
        ("classifier.frozen_stages", 5),
        ("classifier.crop_scale", (0.9, 0.5)),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field.rpartition(".")[2]):
        config.change(config.preset("smoke"), **{field: value})


def test_only_presets_without_own_pictures_take_a_data_root():
    assert config.with_data_root(config.preset("photos"), "x").dataset.root == "x"
    assert config.with_data_root(config.preset("smoke"), None) == config.preset("smoke")
    with pytest.raises(ValueError, match="only fgvc, photos do"):
        config.with_data_root(config.preset("smoke"), "x")
    with pytest.raises(ValueError, match="--data-root"):
        config.with_data_root(config.preset("photos"), "")


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match="no preset 'jet': choose one of smoke, hangar"):
        config.preset("jet")
