"""The checkpoint of a training under way, in its folder: written whole, read back only by the run it is of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from aircraft_sae.store.files import write_whole

if TYPE_CHECKING:  # the command works without loading torch
    import torch

CHECKPOINT = "checkpoint.pt"


def save(folder: Path, identity: str, state: dict[str, Any]) -> None:
    """Write the state of the run `identity` whole or not at all."""
    import torch

    write_whole(folder / CHECKPOINT, lambda temporary: torch.save(state | {"identity": identity}, temporary))


def load(folder: Path, identity: str, device: torch.device, what: str) -> dict[str, Any] | None:
    """What `save` wrote; None where there is nothing, or where it is damaged, which is said.

    what: words for what an identity stands for. Raises: ValueError for the checkpoint of another run, or of none.
    """
    import torch

    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    if not _undamaged(path):
        print(f"{path} is damaged: the training begins anew", file=sys.stderr)
        return None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        same = saved["identity"] == identity
    except Exception as problem:  # zipfile and pickle have errors of their own
        raise ValueError(f"{path} cannot be read as a checkpoint: remove it to start anew") from problem
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


def _undamaged(path: Path) -> bool:
    """Whether what torch.save wrote agrees with its own checksums, which torch.load does not compare."""
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # whatever a damaged header is taken for
        return False
