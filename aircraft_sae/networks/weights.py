"""Weights on disk: safetensors and .pth in, float16 safetensors out. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.store import folder_digest, read_json, write_whole

FOLDER = Path(__file__).resolve().parents[2] / "data" / "weights"
"""Shipped weights: <name>.safetensors, and <name>.json with arch, n_classes, mean, std, and what the maker added."""
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
HEAD = ("head.fc.weight", "head.fc.bias")


def check_arch(arch: str) -> None:
    """ValueError where timm has no such ConvNeXt, or no such pretrained tag of it."""
    if not timm.is_model(arch):
        close = difflib.get_close_matches(arch, timm.list_models("convnext*"), n=3, cutoff=0.3)
        raise ValueError(f"timm has no arch {arch!r}: did you mean {', '.join(close) or 'convnext_atto'}?")
    if timm.models.model_entrypoint(arch).__module__ != timm.models.convnext.__name__:
        raise ValueError(f"arch {arch!r} is no ConvNeXt: choose one, such as convnext_atto or convnext_tiny")
    try:
        timm.get_pretrained_cfg(arch)
    except RuntimeError as problem:
        known = ", ".join(timm.list_pretrained(f"{arch.partition('.')[0]}.*"))
        raise ValueError(f"arch {arch!r}: {problem} timm has {known}") from problem


def weights_digest(cfg: ClassifierConfig) -> str:
    """What the initial weights are known by: their content, or for timm's hub their name there; "none" from scratch.

    Raises: ValueError for an arch that is no timm ConvNeXt, FileNotFoundError for a file that is not there.
    """
    check_arch(cfg.arch)
    if cfg.weights is None:
        return "none"
    if cfg.weights == "timm":
        return timm.get_pretrained_cfg(cfg.arch).hf_hub_id or cfg.arch
    path = find_weights(cfg.weights)
    return folder_digest(file for file in (path, path.with_suffix(".json")) if file.is_file())


def find_weights(weights: str) -> Path:
    """The file that a name in data/weights or a path means; FileNotFoundError names the ways there are."""
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        path = FOLDER / f"{weights}.safetensors"
    if not path.is_file():
        raise unreachable(f"weights {weights!r}: {path} is not there")
    return path


def unreachable(problem: str) -> FileNotFoundError:
    """The error for weights that cannot be had: it names the three places they may come from."""
    names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.safetensors"))) or "none so far"
    return FileNotFoundError(
        f'{problem}. Set classifier.weights to "timm" where its hub can be reached (huggingface.co, or files it has '
        f"cached), to a local .safetensors or .pth file, or to a name in data/weights ({names}); or to None, which "
        "trains from scratch."
    )


def check_weights(cfg: ClassifierConfig) -> None:
    """Refuse weights that training could not start from: what `weights_digest` and `load_weights` raise.

    Raises ValueError too for stages that would be frozen without any weights.
    """
    check_arch(cfg.arch)
    if cfg.frozen_stages and cfg.weights is None:
        raise ValueError(f"frozen_stages={cfg.frozen_stages} would keep random weights: set it to 0 or name weights")
    if cfg.weights not in (None, "timm"):
        with torch.device("meta"):  # names and shapes alone
            model = timm.create_model(cfg.arch, num_classes=1)
        fitting_state(model, find_weights(cfg.weights), cfg.arch)


def load_weights(model: nn.Module, weights: str, arch: str) -> None:
    """Load a file into `model`; a head of another number of classes is left as it is, and said so.

    Raises: FileNotFoundError where it is absent; ValueError where it cannot be read, or is for another architecture.
    """
    path = find_weights(weights)
    state, facts, n_given = fitting_state(model, path, arch)
    if {"mean", "std"} <= set(facts):  # pictures as those it was trained on
        model.pretrained_cfg = {**model.pretrained_cfg, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])}
    model.load_state_dict(state)  # copies into the model's own float32
    if n_given != model.num_classes:
        what = f"its head is for {n_given} classes, here are {model.num_classes}: the head starts anew"
        print(f"{path.name}: {what}", file=sys.stderr)  # beside the progress bars


def fitting_state(model: nn.Module, path: Path, arch: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], int]:
    """(the file's tensors under the model's names, what the JSON beside it says, the classes that its head is for).

    Where these are not the model's, the head is the model's own. Raises: ValueError as `load_weights`.
    """
    facts, own = _facts(path.with_suffix(".json")), model.state_dict()
    state = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    if any(name.startswith("downsample_layers.") for name in state):  # the authors' own names and shapes
        try:
            state = timm.models.convnext.checkpoint_filter_fn(state, model)
        except (KeyError, RuntimeError):  # of another architecture: the comparison below says where
            pass
    n_given = state[HEAD[1]].numel() if HEAD[1] in state else 0
    if n_given != model.num_classes:
        state |= {name: own[name] for name in HEAD}
    remedy = f"Set classifier.arch to the file's own{': ' + facts['arch'] if 'arch' in facts else ''}."
    check_fit(model, state, path, arch, remedy)
    return state, facts, n_given


def check_fit(model: nn.Module, state: dict[str, torch.Tensor], path: Path, arch: str, remedy: str) -> None:
    """ValueError where the tensors of a file have other names or shapes than the model's."""
    own = model.state_dict()
    mismatches = [
        f"{name}: {_shape(state, name)} in the file, {_shape(own, name)} in the model"
        for name in dict.fromkeys([*own, *state])
        if _shape(state, name) != _shape(own, name)
    ]
    if mismatches:
        places = f"at {len(mismatches)} places: {'; '.join(mismatches[:4])}"
        raise ValueError(f"{path} does not fit arch {arch!r}, {places}. {remedy}")


def _facts(path: Path) -> dict[str, Any]:
    """What the JSON beside weights says, {} where there is none; ValueError where it cannot be used."""
    if not path.is_file():
        return {}
    facts = read_json(path)
    colours = [facts[name] for name in ("mean", "std") if name in facts]
    numbers = all(isinstance(v, list) and len(v) == 3 and all(isinstance(x, int | float) for x in v) for v in colours)
    if not facts or not numbers or not isinstance(facts.get("arch", ""), str):
        raise ValueError(f"{path} must be an object with arch, and mean and std of three numbers: mend or remove it")
    return facts


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a .safetensors or a .pth, in which they may lie under "state_dict" or "model".

    Raises: ValueError where it is damaged, or holds objects other than tensors (they could run code when read).
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # safetensors, zipfile and pickle have errors of their own
        raise ValueError(
            f"{path} cannot be read as tensors only: it is damaged, or holds objects that could run code "
            f"({str(problem).splitlines()[0][:200]}). Save model.state_dict() alone, best as .safetensors."
        ) from problem
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no tensors by name: save model.state_dict() alone")
    return state


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors whole or not at all; they are made contiguous, which channels-last weights are not."""
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "absent"
