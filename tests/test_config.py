"""Configs: round trips, dotted changes, refusals, and who takes a data root."""

import json
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict

import pytest

from aircraft_sae import config
from aircraft_sae.store import digest


@pytest.mark.parametrize("name", config.PRESETS)
def test_every_preset_survives_json(name):
    preset = config.preset(name)
    assert preset.name == name
    assert config.from_dict(config.StudyConfig, json.loads(json.dumps(asdict(preset)))) == preset


def test_json_with_an_unknown_or_missing_field_is_refused():
    values = asdict(config.preset("smoke"))
    values["classifier"]["colour"] = values["classifier"].pop("seed")
    with pytest.raises(ValueError, match=r"^classifier.colour is not a field, got 0$"):
        config.from_dict(config.StudyConfig, values)
    del values["classifier"]["colour"]
    with pytest.raises(ValueError, match=r"^StudyConfig lacks the fields classifier.seed$"):
        config.from_dict(config.StudyConfig, values)


@pytest.mark.parametrize("value", [True, "3", 3.5, float("nan"), None, [3], 0])
def test_numbers_are_not_converted_and_the_error_is_one_line(value):
    for field in ("k", "learning_rate") if value != 3.5 else ("k",):
        with pytest.raises(ValueError) as caught:
            config.SAEConfig(**{field: value})
        words = "(at least 1|greater than 0)" if value == 0 else "a (valid|finite) (number|integer)"
        assert re.fullmatch(f"{field} must be {words}, got {re.escape(repr(value))}", str(caught.value))
        assert type(caught.value) is ValueError


def test_equal_configs_have_one_form():
    """Lists become tuples and whole numbers floats, so that JSON and fingerprints are equal too."""
    one = config.ClassifierConfig(sizes=[64], epochs=[1], crop_scale=[1, 1])
    other = config.ClassifierConfig(sizes=(64,), epochs=(1,), crop_scale=(1.0, 1.0))
    assert one == other and str(one) == str(other)
    assert digest(one) == digest(other) == digest(pickle.loads(pickle.dumps(one)))
    with pytest.raises(FrozenInstanceError):
        one.seed = 1


def test_configs_load_without_torch():
    program = "import sys; from aircraft_sae import config; print({'torch', 'timm'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_change_reaches_nested_fields_and_leaves_the_original():
    before = config.preset("smoke")
    after = config.change(
        before, **{"dataset.hangar.seed": 7, "classifier.sizes": (96, 64), "classifier.epochs": (2, 1)}
    )
    assert (after.dataset.hangar.seed, after.classifier.sizes, after.classifier.epochs) == (7, (96, 64), (2, 1))
    assert before == config.preset("smoke") and before.dataset.hangar.seed == 0
    with pytest.raises(ValueError, match=r"no field 'dataset.hangar.sead': did you mean dataset.hangar.seed\?"):
        config.change(before, **{"dataset.hangar.sead": 7})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset.source", "elsewhere"),
        ("dataset.hangar.n_variants", 1),
        ("dataset.hangar.split_shares", (0.5, 0.5, 0.5)),
        ("classifier.epochs", (1, 2)),
        ("classifier.sizes", (16,)),
        ("classifier.crop_scale", (0.9, 0.5)),
        ("sites", ("stage4", "../x")),
        ("sites", ("stage4", "a\\b")),
        ("sites", ("stage4", "")),
    ],
)
def test_wrong_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field.rpartition(".")[2]):
        config.change(config.preset("smoke"), **{field: value})
