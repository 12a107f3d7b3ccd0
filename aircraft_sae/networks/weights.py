"""Weights on disk: found, read by timm (.safetensors, .pth), written as safetensors. Nothing is ever unpickled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from torch import nn

from aircraft_sae.store import digest, read_json, write_whole

FOLDER = Path(__file__).resolve().parents[2] / "data" / "weights"
"""Shipped weights: <name>.safetensors, and <name>.json with arch, mean, std, and what the maker added."""


def find_weights(weights: str) -> Path:
    """The file that a name in data/weights or a path means; FileNotFoundError names the ways there are."""
    path = Path(weights).expanduser()
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
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


def digest_of(path: Path) -> str:
    """A weights file, and the JSON beside it, known by content."""
    return digest([file for file in (path, path.with_suffix(".json")) if file.is_file()])


def load_weights(model: nn.Module, path: Path, remedy: str | None = None) -> None:
    """Load a file into a model of timm's, under its names or those of the authors whose files timm knows.

    A head for another number of classes is left as it is, and said so; not where there is a remedy to name instead.
    Raises: ValueError where the file is damaged, holds objects other than tensors, or is for another architecture.
    """
    state, facts, own = _read(path), _facts(path.with_suffix(".json")), model.state_dict()
    try:  # names and shapes that other code gave
        state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
    except (AttributeError, KeyError, RuntimeError):  # timm knows no others, or the comparison below says where
        pass
    head = [name for name in own if name.rpartition(".")[0] in np.atleast_1d(model.pretrained_cfg["classifier"])]
    if not remedy and head and all(name not in state or _other_rows(state[name], own[name]) for name in head):
        state |= {name: own[name] for name in head}
        if not own[head[0]].is_meta:  # else it is only tried on
            print(f"{path.name}: it has no head for these classes: the head starts anew", file=sys.stderr)
    given, wanted = ({name: tuple(v.shape) for name, v in tensors.items()} for tensors in (state, own))
    if given != wanted:
        misfits = [name for name in {**wanted, **given} if given.get(name) != wanted.get(name)]
        odd, lacking = (
            ", ".join([f"{name} {shapes[name]}" for name in misfits if name in shapes][:3]) or "no more"
            for shapes in (given, wanted)
        )
        arch = model.pretrained_cfg["architecture"]
        remedy = remedy or f"Set classifier.arch to the file's own{': ' + facts['arch'] if 'arch' in facts else ''}."
        raise ValueError(f"{path} does not fit arch {arch!r}: it has {odd} where {lacking} is wanted. {remedy}")
    if not next(model.parameters()).is_meta:
        model.load_state_dict(state)  # copies into the model's own float32
    model.pretrained_cfg |= {name: tuple(facts[name]) for name in ("mean", "std") if name in facts}


def _other_rows(given: torch.Tensor, own: torch.Tensor) -> bool:
    return given.ndim == own.ndim and given.shape != own.shape and given.shape[1:] == own.shape[1:]


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = timm.models.load_state_dict(path)
    except Exception as problem:  # safetensors, zipfile and pickle have errors of their own
        raise ValueError(
            f"{path} cannot be read as tensors only: it is damaged, or holds objects that could run code "
            f"({str(problem).splitlines()[0][:200]}). Save model.state_dict() alone, best as .safetensors."
        ) from problem
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no tensors by name: save model.state_dict() alone")
    return state


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


def write_safetensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors whole or not at all; they are made contiguous, which channels-last weights are not."""
    state = {name: value.cpu().contiguous() for name, value in state.items()}
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))
