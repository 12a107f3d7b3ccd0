"""The classifier: built, loaded, trained through kills and divergence, and evaluated; on tiny pictures and nets."""

import copy
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aircraft_sae import networks as classifier
from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import Classifier, inference, network, training, weights
from aircraft_sae.pictures import AircraftData
from aircraft_sae.store.checkpoint import CHECKPOINT

CFG = ClassifierConfig(
    arch="test_convnext", weights=None, layer_scale=0.1, sizes=(32, 48), epochs=(2, 1), batch_size=8,
    learning_rate=5e-3, warmup_epochs=1.0, ema_decay=0.9, frozen_stages=0,
)  # fmt: skip
TAXONOMY = {"variant": ["F-16A/B", "F-16C", "Ан-2"], "family": ["F-16", "F-16", "Ан-2"], "manufacturer": ["X"] * 3}
PER_SPLIT = {"train": 18, "val": 6, "test": 9}

CHILD = """
import os, signal, sys
from aircraft_sae.networks import training
from aircraft_sae.config import ClassifierConfig, from_dict
from aircraft_sae.pictures import AircraftData
import json

def step(self, *batch, whole=training.Run.train_step):
    if self.step == 4:  # the second of three steps of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, *batch)

training.Run.train_step = step
training.train(from_dict(ClassifierConfig, json.loads(sys.argv[1])), AircraftData.open(sys.argv[2]), sys.argv[3], False)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three variants, told apart by colour."""
    folder = tmp_path_factory.mktemp("colours") / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in PER_SPLIT.items():
        for k in range(n):
            picture = rng.integers(100, size=(40, 40, 3), dtype=np.uint8)
            picture[..., k % 3] += 120
            Image.fromarray(picture).save(folder / "images" / f"{split}{k}.jpg")
    for level, classes in TAXONOMY.items():
        names = dict.fromkeys(classes)
        (folder / f"{level.removesuffix('y')}{'ies' if level == 'family' else 's'}.txt").write_text("\n".join(names))
        for split, n in PER_SPLIT.items():
            lines = [f"{split}{k} {classes[k % 3]}" for k in range(n)]
            (folder / f"images_{level}_{split}.txt").write_text("\n".join(lines))
    return AircraftData.open(folder)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    classifier.train(CFG, data, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def made(unbroken):
    return Classifier.load(unbroken)


def same_model(one, other):
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_seed_gives_the_same_model_and_layer_scale_is_set():
    one, other = classifier.build(CFG, 3).state_dict(), classifier.build(CFG, 3).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["head.fc.weight"], classifier.build(replace(CFG, seed=1), 3).head.fc.weight)
    assert one["stages.0.blocks.0.gamma"].unique().tolist() == pytest.approx([0.1])
    assert one["stem.0.weight"].std().item() == pytest.approx(48**-0.5, rel=0.1)  # from 3 x 4 x 4 inputs
    assert not one["stem.0.weight"].is_contiguous()  # but in channels-last memory


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("convnext_atta", "did you mean .*convnext_atto"),
        ("resnet10t", "is no ConvNeXt"),
        ("convnext_tiny.nope", r"has .*convnext_tiny\.fb_in22k_ft_in1k"),
    ],
)
def test_an_arch_that_is_no_convnext_is_refused(arch, message):
    for refuse in (lambda cfg: classifier.build(cfg, 3), classifier.weights_digest):
        with pytest.raises(ValueError, match=message):
            refuse(replace(CFG, arch=arch))


@pytest.mark.parametrize("options", [{}, {"head_norm_first": True}, {"head_hidden_size": 8}])
def test_head_of_the_final_stage_is_the_models_logits(options):
    model = timm.create_model("test_convnext", num_classes=5, ls_init_value=0.5, **options).eval()
    seen = {}
    for name in ("stage3", "stage4"):
        classifier.site(model, name).register_forward_hook(lambda *a, name=name: seen.update({name: a[-1]}))
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, 64, 64))
        assert seen["stage3"].shape == (2, 48, 4, 4) and seen["stage4"].shape == (2, 64, 2, 2)
        torch.testing.assert_close(classifier.head(model, seen["stage4"]), logits, rtol=0, atol=1e-6)
        pooled = seen["stage4"].mean((2, 3))
        if "head_norm_first" in options:
            with pytest.raises(ValueError, match="norms each cell"):
                classifier.head(model, pooled)
        else:
            torch.testing.assert_close(classifier.head(model, pooled), logits, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"got \(2, 48, 4, 4\)"):
        classifier.head(model, seen["stage3"])
    with pytest.raises(ValueError, match="no site 'stage5'"):
        classifier.site(model, "stage5")


def test_exported_weights_come_back_by_name_and_start_a_new_head(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    odd = replace(made, mean=(0.1, 0.2, 0.3))
    classifier.export_weights(odd, tmp_path / "mine.safetensors", hours=2)
    facts = json.loads((tmp_path / "mine.json").read_text())
    assert (facts["arch"], facts["classes"], facts["hours"]) == ("test_convnext", made.classes, 2)
    named = replace(CFG, weights="mine")
    same, other = classifier.build(named, 3), classifier.build(named, 4)
    assert same.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    for name, value in made.model.state_dict().items():
        assert same.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(same.state_dict()[name], value.cpu(), rtol=1e-3, atol=1e-6)
    assert torch.equal(other.head.fc.weight, classifier.build(replace(CFG, layer_scale=None), 4).head.fc.weight)
    assert torch.equal(other.head.norm.weight, same.head.norm.weight)
    assert capsys.readouterr().err == "mine.safetensors: its head is for 3 classes, here are 4: the head starts anew\n"
    before = classifier.weights_digest(named)
    (tmp_path / "mine.json").write_text("{}")
    assert before != classifier.weights_digest(named) != classifier.weights_digest(CFG)
    with torch.no_grad():
        odd.model.head.fc.bias[0], kept = 1e5, odd.model.head.fc.bias[0].item()
    with pytest.raises(ValueError, match=r"head.fc.bias holds values beyond float16"):
        classifier.export_weights(odd, tmp_path / "mine.safetensors")
    with torch.no_grad():
        odd.model.head.fc.bias[0] = kept
    with pytest.raises(ValueError, match=r"exported as \.safetensors, got mine\.pth"):
        classifier.export_weights(odd, tmp_path / "mine.pth")


def test_the_default_arch_fits_into_ten_megabytes(tmp_path):
    cfg = ClassifierConfig(weights=None)
    model = classifier.build(cfg, 60)
    classifier.export_weights(Classifier(cfg, model, ["x"] * 60, (0,) * 3, (1,) * 3), tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_size < 10e6


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_pth_files_load_bare_or_wrapped(wrap, tmp_path):
    given = classifier.build(replace(CFG, seed=5), 3).state_dict()
    torch.save(wrap({f"module.{name}": value for name, value in given.items()}), tmp_path / "w.pth")
    loaded = classifier.build(replace(CFG, weights=str(tmp_path / "w.pth")), 3).state_dict()
    assert all(torch.equal(loaded[name], given[name]) for name in given)


def test_weights_with_the_authors_names_load(tmp_path):
    given = classifier.build(replace(CFG, seed=5), 3).state_dict()
    renamed = {}
    for name, value in given.items():
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".").replace("conv_dw", "dwconv")
        name = name.replace("stages.1.downsample", "downsample_layers.1").replace("mlp.fc", "pwconv")
        name = name.replace("stages.2.downsample", "downsample_layers.2").replace("head.norm", "norm")
        renamed[name.replace("stages.3.downsample", "downsample_layers.3").replace("head.fc", "head")] = value
    torch.save({"model": renamed}, tmp_path / "w.pth")
    loaded = classifier.build(replace(CFG, weights=str(tmp_path / "w.pth")), 3).state_dict()
    assert all(torch.equal(loaded[name], given[name]) for name in given)
    with pytest.raises(ValueError, match="does not fit arch 'test_convnext2'"):
        classifier.build(replace(CFG, arch="test_convnext2", weights=str(tmp_path / "w.pth")), 3)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_files_that_are_no_plain_tensors_are_refused_and_run_nothing(tmp_path):
    torch.save({"model": Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\x08")
    for name, message in {"evil.pth": "could run", "numbers.pth": "no tensors", "short.safetensors": "damaged"}.items():
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            classifier.build(replace(CFG, weights=str(tmp_path / name)), 3)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused_with_names_and_shapes(tmp_path):
    state = classifier.build(replace(CFG, arch="test_convnext2"), 3).state_dict()
    weights.write_safetensors(tmp_path / "w.safetensors", state)
    (tmp_path / "w.json").write_text('{"arch": "test_convnext2"}')
    message = r"stem.0.weight: \(32, 3, 4, 4\) in the file, \(24, 3, 4, 4\) in the model.*own: test_convnext2"
    with pytest.raises(ValueError, match=message):
        classifier.build(replace(CFG, weights=str(tmp_path / "w.safetensors")), 3)


@pytest.mark.parametrize("source", ["timm", "nowhere", "nowhere.pth"])
def test_weights_that_cannot_be_had_name_the_three_ways(source, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r'to "timm".*\.pth file.*name in data/weights'):
        classifier.build(replace(CFG, weights=source), 3)


def test_training_learns_and_writes_what_loading_needs(unbroken, made, data):
    assert sorted(p.name for p in unbroken.iterdir()) == [
        "config.json", "history.csv", "model.safetensors", "predictions.parquet",
    ]  # fmt: skip
    assert made.history.columns.tolist() == [
        "epoch", "size", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second",
        "seconds",
    ]  # fmt: skip
    assert made.history["epoch"].tolist() == [1, 2, 3] and made.history["size"].tolist() == [32, 32, 48]
    assert made.history["val_accuracy"].iloc[-1] == 1 and made.history["val_loss"].iloc[-1] < 0.5
    val = made.predict(data, "val", progress=False)  # of the saved weights, which are those that were validated
    likelihood = val[["p_0", "p_1", "p_2"]].to_numpy()[range(6), np.arange(6) % 3]
    assert made.history["val_loss"].iloc[-1] == pytest.approx(-np.log(likelihood).mean(), rel=0.05)
    assert made.cfg == CFG and made.classes == TAXONOMY["variant"] and made.mean == (0.5, 0.5, 0.5)
    assert not made.model.training and made.image_size == 48
    pd.testing.assert_frame_equal(made.predict(data, "test", progress=False), made.predictions)
    with pytest.raises(FileNotFoundError, match="train a classifier into it first"):
        Classifier.load(unbroken / "elsewhere")


def test_a_run_killed_after_an_epoch_ends_in_the_same_bits(data, unbroken, tmp_path):
    values = json.dumps(CFG.__dict__)
    child = subprocess.run([sys.executable, "-c", CHILD, values, data.folder, tmp_path], check=False)
    assert child.returncode == -signal.SIGKILL and (tmp_path / CHECKPOINT).is_file()
    classifier.train(CFG, data, tmp_path, progress=False)
    assert same_model(tmp_path, unbroken)


def test_a_run_stopped_inside_an_epoch_ends_in_the_same_bits(data, unbroken, tmp_path, monkeypatch):
    step, steps, seen = training.Run.train_step, [], {}

    def interrupted(self, *batch):
        steps.append(self.step)
        seen.setdefault(self.epoch, []).extend(batch[1].tolist())
        if steps == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        step(self, *batch)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training.Run, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        classifier.train(CFG, data, tmp_path, progress=False)
    classifier.train(CFG, data, tmp_path, progress=False)
    assert steps == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert seen[0] != seen[2] and sorted(seen[0]) == sorted(seen[2]) == [0] * 6 + [1] * 6 + [2] * 6  # shuffled anew
    assert same_model(tmp_path, unbroken)
    history = [pd.read_csv(folder / "history.csv")["train_loss"] for folder in (tmp_path, unbroken)]
    pd.testing.assert_series_equal(*history)


@pytest.mark.parametrize(("bad_step", "problem"), [(4, "the loss is (nan|inf)"), (5, "a weight is not finite")])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch, bad_step, problem):
    """A step of infinite length: the next loss is not a number, or the epoch ends before there is one."""
    right = training.Run.learning_rate
    monkeypatch.setattr(training.Run, "learning_rate", lambda self, k: np.inf if k == bad_step else right(self, k))
    with pytest.raises(ValueError, match=rf"{problem} in epoch 2 at step .*learning rate .*last good checkpoint.*Try"):
        classifier.train(CFG, data, tmp_path, progress=False)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["model"].values())
    with pytest.raises(ValueError, match="of another config"):
        classifier.train(replace(CFG, seed=1), data, tmp_path, progress=False)


@pytest.mark.parametrize("n_stages", [0, 2])
def test_frozen_stages_keep_their_weights_and_all_else_moves(data, tmp_path, n_stages):
    path = tmp_path / "weights.safetensors"
    weights.write_safetensors(path, classifier.build(CFG, 3).state_dict())
    run = training.Run(replace(CFG, frozen_stages=n_stages, weights=str(path)), data, tmp_path)
    frozen = tuple(["stem.", "stages.0.", "stages.1."][: n_stages + 1 if n_stages else 0])
    before = copy.deepcopy(run.model.state_dict())
    for _ in range(3):
        run.train_step(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    for model in (run.model, run.ema.module):
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith(frozen), name


def test_random_weights_are_not_frozen(data, tmp_path):
    with pytest.raises(ValueError, match="frozen_stages=1 would keep random weights: set it to 0 or name weights"):
        classifier.train(replace(CFG, frozen_stages=1), data, tmp_path, progress=False)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_optimizer_is_the_one_named(data, tmp_path, name):
    run = training.Run(replace(CFG, optimizer=name), data, tmp_path)
    assert type(run.optimizer).__name__.lower() == name
    with pytest.raises(ValueError, match="optimizer must be 'muon' or 'adamw', got 'sgd'"):
        replace(CFG, optimizer="sgd")


def test_averaged_weights_schedule_and_decay(data, tmp_path):
    run = training.Run(CFG, data, tmp_path)
    average = None
    for step in range(6):
        run.train_step(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
        decay = min(0.9, 1 - (1 + step) ** (-2 / 3))
        weight = run.model.head.fc.weight.detach().clone()
        average = weight if average is None else decay * average + (1 - decay) * weight
    torch.testing.assert_close(run.ema.module.head.fc.weight.detach(), average)
    rates = [run.learning_rate(step) / CFG.learning_rate for step in range(9)]  # 3 epochs of 3 steps, one to warm up
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1]) and rates[6] == pytest.approx(0.5)
    assert np.all(np.diff(rates[3:]) < 0) and 0 < rates[-1] < 0.1
    for group in run.optimizer.param_groups:
        assert {weight.ndim > 1 for weight in group["params"]} == {group["weight_decay"] == CFG.weight_decay}
        assert {group["weight_decay"] for group in run.optimizer.param_groups} == {0, CFG.weight_decay}


def test_label_smoothing_precision_and_validation(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bfloat16", lambda where: True)
    pictures, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 3
    for mixed, dtype in {True: torch.bfloat16, False: torch.float32}.items():
        run = training.Run(replace(CFG, mixed_precision=mixed, val_split=None), data, tmp_path)
        with run.precision:
            logits = run.model(pictures)
        assert logits.dtype == dtype
        run.train_step(pictures, labels)
        assert run.sums["loss"] == pytest.approx(8 * cross_entropy(logits.float(), labels, label_smoothing=0.1).item())
        assert np.isnan(run.validate(32)).all()
    monkeypatch.setattr(training, "has_bfloat16", lambda where: False)
    assert not training.Run(CFG, data, tmp_path).precision._enabled


class NoBfloat16(TorchDispatchMode):
    """Fails where an operation makes a bfloat16 tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        assert all(value.dtype != torch.bfloat16 for value in tree_leaves(made) if isinstance(value, torch.Tensor))
        return made


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_step_without_bfloat16_in_hardware_makes_none(data, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(training, "has_bfloat16", lambda where: False)
    run = training.Run(replace(CFG, optimizer=optimizer), data, tmp_path)
    with NoBfloat16():
        run.train_step(torch.randn(8, 3, 32, 32, device=run.device), torch.arange(8, device=run.device) % 3)
        run.validate(32)
    monkeypatch.setattr(training, "has_bfloat16", lambda where: True)
    run = training.Run(CFG, data, tmp_path)
    with pytest.raises(AssertionError), NoBfloat16():
        run.train_step(torch.randn(8, 3, 32, 32, device=run.device), torch.arange(8, device=run.device) % 3)


def test_depthwise_convolutions_train_in_float32_and_give_the_same(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bfloat16", lambda where: True)
    monkeypatch.setattr(training, "device", lambda: torch.device("cpu"))
    run, pictures = training.Run(CFG, data, tmp_path), torch.randn(2, 3, 32, 32)
    plain = training.build(CFG, 3)
    plain.load_state_dict(run.model.state_dict())
    seen = []
    depthwise = [module for module in run.model.modules() if isinstance(module, network.Float32Conv)]
    for module in depthwise:
        module.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    assert len(depthwise) == sum("conv_dw.weight" in name for name, _ in plain.named_parameters())
    with run.precision:
        rough = run.model(pictures)
    assert set(seen) == {torch.float32} and len(seen) == len(depthwise) and rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), plain(pictures), rtol=0.1, atol=0.1)
    assert not any(isinstance(module, network.Float32Conv) for module in run.ema.module.modules())


def test_predictions_are_the_models_own(made, data, tmp_path):
    table = made.predict(data, "test", progress=False)
    pictures = data.torch("test", "variant", inference.test_transform(48, made.mean, made.std))
    batch = pictures.transform.normalise(torch.stack([pictures[k][0] for k in range(9)]))
    with torch.inference_mode():
        p = made.model(batch).softmax(1).numpy()
    np.testing.assert_allclose(table[["p_0", "p_1", "p_2"]], p, atol=1e-6)
    assert table["image"].tolist() == data.rows("test")["image"].tolist()
    assert table["label"].tolist() == data.rows("test")["variant"].tolist()
    assert table["predicted"].tolist() == [made.classes[c] for c in p.argmax(1)]
    np.testing.assert_allclose(table["confidence"], p.max(1), atol=1e-6)
    with pytest.raises(ValueError, match="other variant classes"):
        replace(made, classes=made.classes[::-1]).predict(data)


def test_evaluation_equals_sklearns_on_made_predictions(made, data):
    rng = np.random.default_rng(3)
    table = made.predict(data, "test", progress=False)
    p = rng.dirichlet(np.ones(3), size=9).astype(np.float32)
    table[["p_0", "p_1", "p_2"]] = p
    measured = classifier.evaluate(made, data, "test", table)
    labels = np.arange(9) % 3
    family, family_p = np.minimum(labels, 2) // 2, np.stack([p[:, 0] + p[:, 1], p[:, 2]], 1)
    expected = {
        "test/variant/class_averaged_accuracy": balanced_accuracy_score(labels, p.argmax(1)),
        "test/variant/top1_accuracy": top_k_accuracy_score(labels, p, k=1),
        "test/variant/top5_accuracy": 1.0,
        "test/family/class_averaged_accuracy": balanced_accuracy_score(family, family_p.argmax(1)),
        "test/family/top1_accuracy": np.mean(family == family_p.argmax(1)),
        "test/manufacturer/class_averaged_accuracy": 1.0,
    }
    assert {name: measured.results[name]["value"] for name in expected} == pytest.approx(expected)
    assert 0 < expected["test/variant/top1_accuracy"] < expected["test/family/top1_accuracy"] < 1
    assert len(measured.results) == 12 and "test/variant/expected_calibration_error" in measured.results
    for result in measured.results.values():
        assert result["n"] == 9 and result["low"] - 1e-7 <= result["value"] <= result["high"] + 1e-7
    assert measured.confusion.loc["F-16C"].sum() == 3
    assert np.trace(measured.confusion) == np.sum(labels == p.argmax(1))
    assert measured.confused["n_images"].sum() == 9 - np.trace(measured.confusion)
    with pytest.raises(ValueError, match="of other images than the val split"):
        classifier.evaluate(made, data, "val", table)
