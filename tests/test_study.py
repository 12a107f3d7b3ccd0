"""The front door: stages are made once, and again if their config changed; numbers survive the round trip to disk."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from aircraft_sae import config
from aircraft_sae.activations import Activations, extract
from aircraft_sae.devices import run_parallel
from aircraft_sae.features.reconstruction import both_signs, dictionary
from aircraft_sae.networks import predict
from aircraft_sae.study import Study

TRAINED = "networks/trained"
UNFINISHED = shutil.ignore_patterns("*.partial", "experiments", "features", "sae")  # others may be making these


def test_smoke_chain_is_made_once_and_then_loaded(smoke_study):
    again = Study.open("smoke", data_dir=smoke_study.data_dir)
    network = again.network()
    assert not any(stage.made for stage in again.stages.values()) and set(again.stages) == {"dataset", TRAINED}
    assert len(network.history) == sum(again.config.classifier.epochs)
    assert network.predictions["image"].tolist() == again.pictures().rows("test")["image"].tolist()
    assert network.predictions.equals(predict(network, again.pictures(), "test")), "predictions of other weights"


def test_a_changed_classifier_leaves_the_data_and_trains_again(smoke_study, tmp_path):
    shutil.copytree(smoke_study.folder, tmp_path / "runs" / "smoke", ignore=UNFINISHED)
    changed = config.change(smoke_study.config, **{"classifier.epochs": (1,), "classifier.level": "family"})
    other = Study.open(changed, data_dir=tmp_path)
    assert len(other.network().history) == 1 and other.network().classes == other.pictures().classes("family")
    assert {name: stage.made for name, stage in other.stages.items()} == {"dataset": False, TRAINED: True}


def test_two_configs_of_one_name_do_not_mix(smoke_study, tmp_path):
    for name in ("both", "alone"):
        shutil.copytree(smoke_study.folder, tmp_path / name / "runs" / "smoke", ignore=UNFINISHED)
    one, alone = (Study.open("smoke", data_dir=tmp_path / name) for name in ("both", "alone"))
    acts = one.activations()
    other = config.change(smoke_study.config, **{"classifier.seed": 1, "classifier.epochs": (1,)})
    Study.open(other, data_dir=tmp_path / "both").activations()
    assert acts.fingerprint == alone.activations().fingerprint, "not that of what was opened"
    with pytest.raises(ValueError, match="was removed, or made anew by another study"):
        acts.acts[:1]
    assert torch.equal(Study.open("smoke", data_dir=tmp_path / "both").sae("k2", k=2).W_dec, alone.sae("k2", k=2).W_dec)


def test_pictures_that_another_config_rendered_anew_are_refused(smoke_study, tmp_path, monkeypatch):
    shutil.copytree(smoke_study.folder, tmp_path / "runs" / "smoke", ignore=shutil.ignore_patterns("act*", "*.partial"))
    one = Study.open("smoke", data_dir=tmp_path)
    one.network()
    other = Study.open(config.change(smoke_study.config, **{"dataset.hangar.seed": 1}), data_dir=tmp_path)

    def meanwhile(folder, **given):
        extract(folder, **given)
        other.pictures()

    meanwhile.__module__, meanwhile.__qualname__ = extract.__module__, extract.__qualname__
    monkeypatch.setattr("aircraft_sae.study.extract", meanwhile)
    for _ in range(2):  # while a stage is made, and before another is
        with pytest.raises(ValueError, match="made anew by another study of the same name"):
            one.activations()
    assert not (one.folder / "activations" / "trained").exists()
    monkeypatch.undo()
    again = Study.open("smoke", data_dir=tmp_path)  # renders its own pictures again
    assert np.array_equal(again.activations().acts, smoke_study.activations().acts)


@pytest.fixture
def folder_study(smoke_study, tmp_path):
    """Opens a study of a copy of the hangar's pictures, as a user's own folder."""
    root = tmp_path / "pictures"
    shutil.copytree(smoke_study.folder / "dataset" / "fgvc-aircraft-2013b", root / "fgvc-aircraft-2013b")
    own = config.change(config.preset("smoke"), name="mine", dataset=config.DatasetConfig(source="folder"))
    return root, lambda **more: Study.open(config.change(own, **more), data_dir=tmp_path, data_root=root)


def test_a_folder_is_checked_once_and_again_when_its_content_changes(folder_study):
    root, open_study = folder_study
    data = root / "fgvc-aircraft-2013b" / "data"

    def checked():
        study = open_study()
        study.pictures()
        return study.stages["dataset"]

    first = checked()
    assert first.made and str(root) not in json.dumps(first.meta) and not checked().made
    next(data.glob("masks/*.png")).unlink()
    assert checked().made
    image = sorted((data / "images").glob("*.jpg"))[3]
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(ValueError, match=image.name):
        checked()


def test_preset_data_dir_and_data_root_come_from_arguments_then_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRCRAFT_SAE_PRESET", "photos")
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_ROOT", "from/environment")
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_DIR", str(tmp_path))
    opened = Study.open()
    assert (opened.config.name, opened.config.dataset.root) == ("photos", "from/environment")
    assert opened.folder == tmp_path / "runs" / "photos" and not opened.folder.exists()
    opened = Study.open("fgvc", data_root="given", data_dir=tmp_path / "x")
    assert (opened.config.dataset.root, opened.data_dir) == ("given", tmp_path / "x")
    with pytest.raises(ValueError, match="only fgvc, photos do"):
        Study.open("smoke")
    monkeypatch.setenv("AIRCRAFT_SAE_DATA_ROOT", "")  # as if it were absent
    with pytest.raises(ValueError, match="needs a folder"):
        Study.open()
    monkeypatch.delenv("AIRCRAFT_SAE_PRESET")
    assert Study.open().config == config.preset("hangar")


def test_recorded_numbers_come_back_flat_and_replace_the_last_ones(tmp_path):
    opened = Study.open("smoke", data_dir=tmp_path)
    opened.record("01_x", {"old": 1})
    measured = {"value": np.float32(0.123456789), "low": 0.1, "high": 0.2, "n": np.int64(7)}
    path = opened.record("01_x", {"a/b": measured, "c": (1.5, 1, 2, 3), "train_seconds": 12.5})
    assert path == tmp_path / "runs" / "smoke" / "results" / "01_x.json"
    assert opened.results("01_x") == {
        "a/b": {"value": 0.123457, "low": 0.1, "high": 0.2, "n": 7},
        "c": {"value": 1.5, "low": 1, "high": 2, "n": 3},
        "train_seconds": {"value": 12.5, "low": None, "high": None, "n": None},
    }
    with pytest.raises(FileNotFoundError, match="run notebook 02_y"):
        opened.results("02_y")


def test_autoencoders_are_made_once_and_each_has_its_own_name(smoke_study):
    first = smoke_study.sae()
    assert smoke_study.stages["sae/main"].folder.name == "main"
    again = Study.open("smoke")
    assert torch.equal(again.sae().W_dec, first.W_dec) and not again.stages["sae/main"].made
    few = dict(n_cells=500, dead_after=200, batch_size=32)
    assert again.sae("k2", k=2, **few).cfg.k == 2
    assert again.stages["sae/k2"].made and again.sae("k2", k=2, **few).cfg.k == 2 and not again.stages["sae/k2"].made
    third = again.sae("third", pictures="every3", **few)
    assert again.sae("third", pictures="every3", **few).W_dec.equal(third.W_dec) and not again.stages["sae/third"].made
    assert not again.sae("third", **few).W_dec.equal(third.W_dec) and again.stages["sae/third"].made
    with pytest.raises(ValueError, match="give any other a name of its own"):
        again.sae(k=2)
    assert again.activations("stage1").acts.shape[1:3] == (16, 16) and "activations/trained-stage1" in again.stages
    assert again.sae("stage2", **few).cfg.site == "stage2" and again.sae("k2", k=2, **few).cfg.site == "stage4"
    again.sae("stage2", site="stage2", **few)
    assert not again.stages["sae/stage2"].made


def test_autoencoders_trained_side_by_side_are_those_trained_alone(smoke_study, set_threads):
    few, names = dict(n_cells=2000, dead_after=1000, batch_size=32), {f"beside{seed}": seed for seed in (1, 2, 3)}
    set_threads(2)
    beside = list(run_parallel(lambda name: smoke_study.sae(name, seed=names[name], **few), names))
    set_threads(1)
    for name, model in zip(names, beside, strict=True):
        assert smoke_study.stages[f"sae/{name}"].made
        alone = smoke_study.sae(f"alone{name}", seed=names[name], **few)
        torch.testing.assert_close(model.W_dec, alone.W_dec, rtol=0, atol=1e-5)
    assert not beside[0].W_dec.allclose(beside[1].W_dec)


def test_the_control_is_a_network_like_any_other(smoke_study):
    acts = smoke_study.activations(network="permuted", pictures="every3")
    own, pictures = smoke_study.activations(), smoke_study.pictures()
    assert acts.images["image"].tolist() == pictures.table["image"].tolist()[::3]
    assert np.abs(np.float32(acts.acts[:]) - np.float32(own.acts[: len(pictures.table) : 3])).max() > 0.1
    assert len(own.images) == len(pictures.table) + len(pictures.rows("trainval"))


def test_features_are_indexed_once_with_all_that_is_measured_of_them(smoke_study):
    index = smoke_study.features()
    table, data = index.table, smoke_study.pictures()
    assert index.images["image"].tolist() == data.table["image"].tolist()
    assert table["feature_id"].tolist() == list(range(index.d_sae)) and len(table) == index.d_sae
    wanted = {"density_cell", "placed", "part", "part_ap"}
    wanted |= {f"{level}/{name}" for level in data.levels for name in ("class", "auroc", "auroc_z", "auroc_q")}
    assert wanted <= set(table)
    parts = pd.read_parquet(smoke_study.stages["features/main"].folder / "parts.parquet")
    own = parts[parts["feature_id"] == 5].set_index("part")
    assert own["ap_a"][table["part"][5]] == table["part_ap_a"][5]
    share = own["prevalence"]
    beyond = (own["ap_a"] - share) / np.sqrt(share * (1 - share))
    assert beyond[table["part"][5]] == beyond.max()
    control = smoke_study.features("permuted", network="permuted", pictures="every3", batch_size=32)
    assert len(control.images) == len(data.table[::3]) and smoke_study.stages["features/permuted"].made
    smoke_study.features()
    assert not smoke_study.stages["features/main"].made


def test_another_dictionary_is_indexed_on_test_pictures_and_again_when_it_changes(smoke_study):
    sae, folder = smoke_study.sae(), smoke_study.folder / "features" / "null-x"
    mean = torch.zeros(sae.d_in)
    null = dictionary(sae, mean, 1.0, both_signs(torch.eye(sae.d_in)))
    index = smoke_study.features("null-x", sae=null, splits=["test"], selectivity=False)
    assert set(index.images["split"]) == {"test"} and (folder / "parts.parquet").is_file()
    smoke_study.features("null-x", sae=null, splits=["test"], selectivity=False)
    assert not smoke_study.stages["features/null-x"].made
    with torch.no_grad():
        null.b_dec.add_(0.1)
    smoke_study.features("null-x", sae=null, splits=["test"], selectivity=False)
    assert smoke_study.stages["features/null-x"].made


EXPERIMENT = """
import numpy as np


def make(folder, *, acts, table, n):
    '''Write a number.'''
    np.save(folder / "x.npy", acts.acts[:n].sum() + len(table))
"""


def test_an_experiment_is_made_again_for_its_code_settings_and_inputs_alone(smoke_study, write_module):
    acts, table = smoke_study.activations(), smoke_study.features().table

    def made(source=EXPERIMENT, acts=acts, table=table, n=2):
        path = smoke_study.stage("experiments/try", write_module(source).make, {"n": n}, {"acts": acts, "table": table})
        return smoke_study.stages["experiments/try"].made, float(np.load(path / "x.npy"))

    first, number = made()
    assert first and made() == (False, number)
    assert not made(EXPERIMENT.replace("Write a number.", "Write one number."))[0], "a docstring"
    assert not made(EXPERIMENT.replace("    np.save", "    # why\n    np.save"))[0], "a comment"
    again = Activations.open(smoke_study.folder / "activations" / "trained", acts.site)
    assert not made(acts=again, table=table.copy())[0], "the same inputs"
    again, other = made(EXPERIMENT.replace("+ len(table)", "+ len(table) + 1"))
    assert again and other == pytest.approx(number + 1, abs=0.5), "its code"
    assert made()[0] and made(n=3)[0] and made()[0], "its settings"
    changed = table.assign(density_cell=table["density_cell"] + 1e-9)
    assert made(table=changed)[0] and made()[0], "a column of a table"
    values = np.array(acts.acts)
    values[0, 0, 0, 0] += 1
    assert made(acts=Activations(values, acts.images, acts.site))[0], "one entry of an array"


def test_a_script_without_a_guard_ends_with_the_remedy(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from aircraft_sae.config import change, preset\nfrom aircraft_sae.study import Study\n"
        f"Study.open(change(preset('smoke'), name='unguarded'), data_dir={str(tmp_path)!r}).pictures()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode and "__name__" in done.stderr


def test_some_cells_of_a_network_and_an_autoencoder_of_them(smoke_study):
    cells = smoke_study.sampled_cells(("stem", "stage3"), "trained", 6)
    assert list(cells) == ["stem", "stage3"]
    network = smoke_study.network()
    for site, acts in cells.items():
        assert acts.site == site and acts.grid == (6, 1) and acts.d_in == network.shape(site)[2]
        assert set(acts.images["split"]) == {"train", "val", "test"}
    smoke_study.sampled_cells(("stage1",), "trained", 6)
    assert cells["stem"].acts[:1].any(), "overwritten by another list of sites"
    sae = smoke_study.dictionary("of-cells", cells["stage3"], expansion=3, k=2)
    assert sae.d_sae == 3 * cells["stage3"].d_in and sae.cfg.k == 2 and sae.cfg.site == "stage3"
