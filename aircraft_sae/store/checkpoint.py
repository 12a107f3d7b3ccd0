"""The checkpoint of a training under way, in its folder: written whole, read back only by the run it is of."""

import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from aircraft_sae.store.files import write_whole

CHECKPOINT = "checkpoint.pt"


def save(folder: Path, identity: str, state: dict[str, Any]) -> None:
    """Write the state of the run `identity` whole or not at all."""
    write_whole(folder / CHECKPOINT, lambda temporary: torch.save(state | {"identity": identity}, temporary))


def load(folder: Path, identity: str, device: torch.device, what: str) -> dict[str, Any] | None:
    """What `save` wrote; None where there is nothing, or where it is damaged, which is said.

    what: words for what an identity stands for. Raises: ValueError for another file, or the checkpoint of another run.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    try:  # the file's own checksums, which torch.load does not compare
        with ZipFile(path) as file:
            damaged = file.testzip() is not None
    except Exception:  # whatever a damaged header is taken for
        damaged = True
    if damaged:
        print(f"{path} is damaged: the training begins anew", file=sys.stderr)
        return None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        same = saved["identity"] == identity
    except (OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as problem:  # pickle has errors of its own
        raise ValueError(f"{path} cannot be read as a checkpoint ({problem}): remove it to start anew") from problem
    if not same:
        raise ValueError(f"{path} is of another {what}: remove it to start anew")
    return saved


def last_good(folder: Path) -> str:
    """Where the last checkpoint is, in words."""
    path = folder / CHECKPOINT
    return f"the last good checkpoint is in {path}" if path.is_file() else "there is no checkpoint yet"


def finite(model: torch.nn.Module) -> bool:
    """Whether every parameter is a finite number."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters())
