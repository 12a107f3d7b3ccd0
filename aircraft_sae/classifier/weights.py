"""Weights on disk: safetensors and .pth in, float16 safetensors out. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

import safetensors.torch
import timm
import torch
from torch import nn

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.store import folder_digest, write_whole

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


def load_weights(model: nn.Module, weights: str, arch: str) -> None:
    """Load a file into `model`; a head of another number of classes is left as it is, and said so.

    Raises: FileNotFoundError where it is absent; ValueError where it cannot be read, or is for another architecture.
    """
    path = find_weights(weights)
    facts_path = path.with_suffix(".json")
    facts = json.loads(facts_path.read_text(encoding="utf-8")) if facts_path.is_file() else {}
    if isinstance(facts, dict) and {"mean", "std"} <= set(facts):  # pictures as those it was trained on
        model.pretrained_cfg = {**model.pretrained_cfg, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])}
    own = model.state_dict()
    state = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    if any(name.startswith("downsample_layers.") for name in state):  # the authors' own names and shapes
        try:
            state = timm.models.convnext.checkpoint_filter_fn(state, model)
        except (KeyError, RuntimeError):  # of another architecture: the comparison below says where
            pass
    n_classes, n_given = len(own[HEAD[1]]), len(state.get(HEAD[1], ()))
    if n_given != n_classes:
        state |= {name: own[name] for name in HEAD}
    mismatches = [
        f"{name}: {_shape(state, name)} in the file, {_shape(own, name)} in the model"
        for name in dict.fromkeys([*own, *state])
        if _shape(state, name) != _shape(own, name)
    ]
    if mismatches:
        raise ValueError(
            f"{path} does not fit arch {arch!r}, at {len(mismatches)} places: {'; '.join(mismatches[:4])}. "
            f"Set classifier.arch to the file's own{': ' + facts['arch'] if 'arch' in facts else ''}."
        )
    model.load_state_dict(state)  # copies into the model's own float32
    if n_given != n_classes:
        what = f"its head is for {n_given} classes, here are {n_classes}: the head starts anew"
        print(f"{path.name}: {what}", file=sys.stderr)  # beside the progress bars


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
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no tensors by name: save model.state_dict() alone")
    return state


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors whole or not at all; they are made contiguous, which channels-last weights are not."""
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))


def _shape(state: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "absent"
