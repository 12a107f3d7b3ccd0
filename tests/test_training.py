"""Training resumes to the same bits, stops when it diverges, and learns the same from half batches side by side."""

import copy
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import build, load, predict, train, training
from aircraft_sae.networks.build import keep_depthwise_in_float32
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.pictures import ImageFolder
from aircraft_sae.store.checkpoint import CHECKPOINT

CFG = ClassifierConfig(
    arch="test_convnext", weights=None, layer_scale=0.1, sizes=(32, 48), epochs=(2, 1), batch_size=8,
    learning_rate=5e-3, warmup_epochs=1.0, ema_decay=0.9, frozen_stages=0,
)  # fmt: skip
CLASSES = ["F-16A", "F-16C", "Ан-2"]
PER_SPLIT = {"train": 18, "val": 6, "test": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes that differ in colour."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, n in PER_SPLIT.items():
        for k in range(n):
            picture = rng.integers(100, size=(40, 40, 3), dtype=np.uint8)
            picture[..., k % 3] += 120
            folder = root / split / CLASSES[k % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{k}.jpg")
    return ImageFolder.open(root)


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train(folder, CFG, data)
    return folder


def test_training_learns_and_writes_what_loading_needs(unbroken, data):
    made = load(unbroken)
    assert sorted(p.name for p in unbroken.iterdir()) == [
        "config.json", "history.csv", "model.safetensors", "predictions.parquet",
    ]  # fmt: skip
    assert made.history.columns.tolist() == [
        "epoch", "size", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "images_per_second",
        "seconds",
    ]  # fmt: skip
    assert made.history["epoch"].tolist() == [1, 2, 3] and made.history["size"].tolist() == [32, 32, 48]
    assert made.history["val_accuracy"].iloc[-1] == 1 and made.history["val_loss"].iloc[-1] < 0.5
    val = predict(made, data, "val")  # the saved weights are those that were validated
    likelihood = val[["p_0", "p_1", "p_2"]].to_numpy()[range(6), np.arange(6) // 2]
    assert made.history["val_loss"].iloc[-1] == pytest.approx(-np.log(likelihood).mean(), rel=0.05)
    assert (made.classes, made.level, made.mean, made.size) == (CLASSES, "class", (0.5, 0.5, 0.5), 48)
    assert not made.model.training
    pd.testing.assert_frame_equal(predict(made, data, "test"), made.predictions)


def test_a_subclass_may_have_a_loss_of_its_own(data, tmp_path, monkeypatch):
    """As in data/weights/pretrain.py."""
    monkeypatch.setattr(training.Run, "loss", lambda *_: {}["its own"])
    with pytest.raises(KeyError, match="its own"):
        train(tmp_path, CFG, data)


@pytest.mark.parametrize(("seconds", "again"), [(-1, 4), (math.inf, 3)])  # saved at each step, or each epoch
def test_a_run_stopped_inside_an_epoch_ends_in_the_same_bits(data, unbroken, tmp_path, monkeypatch, seconds, again):
    step, steps, seen = training.Run.train_step, [], {}

    def interrupted(self, *batch):
        steps.append(self.step)
        seen.setdefault(self.epoch, []).extend(batch[1].tolist())
        if steps == [0, 1, 2, 3, 4]:
            raise KeyboardInterrupt
        step(self, *batch)

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(training.Run, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, CFG, data)
    train(tmp_path, CFG, data)
    assert steps == [*range(5), *range(again, 9)]
    assert seen[0] != seen[2] and sorted(seen[0]) == sorted(seen[2]) == [0] * 6 + [1] * 6 + [2] * 6  # shuffled anew
    assert len({(folder / "model.safetensors").read_bytes() for folder in (tmp_path, unbroken)}) == 1
    history = [pd.read_csv(folder / "history.csv")["train_loss"] for folder in (tmp_path, unbroken)]
    pd.testing.assert_series_equal(*history)


@pytest.mark.parametrize(("bad_step", "problem"), [(4, "the loss is (nan|inf)"), (5, "a weight is not finite")])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(data, tmp_path, monkeypatch, bad_step, problem):
    """An infinite step shows in the next loss, or in the weights when the epoch ends first."""
    right = training.Run.learning_rate
    monkeypatch.setattr(training.Run, "learning_rate", lambda self, k: np.inf if k == bad_step else right(self, k))
    with pytest.raises(ValueError, match=rf"{problem} in epoch 2 at step .*learning rate .*last good checkpoint.*Try"):
        train(tmp_path, CFG, data)
    saved = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert saved["step"] == 3 and all(value.isfinite().all() for value in saved["model"].values())
    with pytest.raises(ValueError, match="with another config"):
        train(tmp_path, replace(CFG, seed=1), data)


@pytest.mark.parametrize("n_stages", [0, 2])
def test_frozen_stages_keep_their_weights_and_all_others_change(data, tmp_path, n_stages):
    path = tmp_path / "weights.safetensors"
    write_safetensors(path, build(CFG, 3).state_dict())
    run = training.Run(replace(CFG, frozen_stages=n_stages, weights=str(path)), data, tmp_path)
    frozen = tuple(["stem.", "stages.0.", "stages.1."][: n_stages + 1 if n_stages else 0])
    before = copy.deepcopy(run.model.state_dict())
    for _ in range(3):
        run.train_step(torch.randn(8, 3, 32, 32), torch.arange(8) % 3)
    for model in (run.model, run.ema.module):
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) == name.startswith(frozen), name


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
        with run.precision():
            logits = run.model(pictures)
        assert logits.dtype == dtype
        run.train_step(pictures, labels)
        assert run.sums["loss"] == pytest.approx(8 * cross_entropy(logits.float(), labels, label_smoothing=0.1).item())
        assert np.isnan(run.validate(32)).all()
    monkeypatch.setattr(training, "has_bfloat16", lambda where: False)
    assert not training.Run(CFG, data, tmp_path).precision()._enabled


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes whole batches")
@pytest.mark.parametrize("threads", [1, 2])
def test_half_batches_side_by_side_learn_as_the_whole_batch(data, tmp_path, set_threads, threads):
    set_threads(threads)
    pictures, labels, learned = torch.randn(7, 3, 32, 32), torch.arange(7) % 3, []
    for n_parts in (1, 2):
        run = training.Run(replace(CFG, optimizer="adamw", mixed_precision=False), data, tmp_path)
        assert run.n_parts == 2
        run.n_parts = n_parts
        run.train_step(pictures, labels)
        learned.append(run)
    torch.testing.assert_close(*[[state["exp_avg"] for state in run.optimizer.state.values()] for run in learned])
    assert learned[0].sums == pytest.approx(learned[1].sums)


def test_batch_norm_takes_whole_batches(data, tmp_path):
    cfg = replace(CFG, arch="mobilenetv3_small_050", layer_scale=None, epochs=(1, 1))
    assert training.Run(cfg, data, tmp_path).n_parts == 1
    train(tmp_path, cfg, data)
    assert load(tmp_path).history["train_loss"].notna().all()


class NoBfloat16(TorchDispatchMode):
    """Fails where an operation makes a bfloat16 tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        assert all(value.dtype != torch.bfloat16 for value in tree_leaves(made) if isinstance(value, torch.Tensor))
        return made


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_without_hardware_support_a_step_makes_no_bfloat16(data, tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr(training, "run_parallel", map)  # in the thread that is watched
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
    plain = build(CFG, 3)
    plain.load_state_dict(run.model.state_dict())
    seen = []
    depthwise = [module for module in run.model.modules() if "forward" in vars(module)]
    for module in depthwise:
        module.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    assert len(depthwise) == sum("conv_dw.weight" in name for name, _ in plain.named_parameters())
    with run.precision():
        rough = run.model(pictures)
    assert set(seen) == {torch.float32} and len(seen) == len(depthwise) and rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), plain(pictures), rtol=0.1, atol=0.1)
    assert not any("forward" in vars(module) for module in run.ema.module.modules())
    padded = build(ClassifierConfig(arch="tf_efficientnet_lite0", weights=None), 3).eval()  # timm's Conv2dSame
    expected = padded.forward_features(pictures)
    keep_depthwise_in_float32(padded)
    torch.testing.assert_close(padded.forward_features(pictures), expected)
