"""Atomic checkpoints; a run resumes only its own."""

import math
import sys
import time
from pickle import UnpicklingError
from typing import NoReturn
from zipfile import ZipFile

import torch

from aircraft_sae.store.files import write_whole

CHECKPOINT = "checkpoint.pt"


class Training:
    """A training run in `folder` that survives a kill.

    A subclass sets folder, device, step, identity (a digest that its checkpoints must have), parts ({name: object with
    a state dict}, including "model") and learning_rate(step); noted (further attributes to save); and, for messages,
    other (what differs in a foreign checkpoint), remedy (what to lower if it diverges) and place (" in epoch 2").
    """

    place, saved = "", -math.inf

    def save(self) -> None:
        """Write the checkpoint; ValueError if a weight is not finite."""
        self.check_weights()
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"identity": self.identity}
        state |= {name: getattr(self, name) for name in self.noted}
        write_whole(self.folder / CHECKPOINT, lambda temporary: torch.save(state, temporary))
        self.saved = time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether the last checkpoint is older than this many seconds."""
        return time.monotonic() - self.saved > seconds

    def resume(self) -> None:
        """Load the checkpoint, if any; a damaged one is ignored. ValueError if it is another run's."""
        path, self.saved = self.folder / CHECKPOINT, time.monotonic()
        if not path.is_file():
            return
        try:
            with ZipFile(path) as file:
                damaged = file.testzip() is not None  # torch.load ignores the checksums
        except Exception:  # a damaged header can raise anything
            damaged = True
        if damaged:
            print(f"{path} is damaged: training starts again", file=sys.stderr)
            return
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            same = saved["identity"] == self.identity
            kept = {name: saved[name] for name in (*self.parts, *self.noted)} if same else {}
        except torch.OutOfMemoryError:  # the file may be whole
            raise
        except (UnpicklingError, RuntimeError, LookupError, TypeError) as problem:
            raise ValueError(f"{path} is not a checkpoint ({problem}): remove it to start again") from problem
        if not same:
            raise ValueError(f"{path} is from a run with another {self.other}: remove it to start again")
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        for name in self.noted:
            setattr(self, name, kept[name])

    def check_weights(self) -> None:
        """ValueError if a weight is not finite, which the last step can cause even if its loss was finite."""
        if not all(bool(weight.isfinite().all()) for weight in self.parts["model"].parameters()):
            self.stop("a weight is not finite", self.step - 1)

    def stop(self, problem: str, step: int) -> NoReturn:
        """Raise the ValueError for a run that has diverged."""
        path, at = self.folder / CHECKPOINT, f"step {step}, learning rate {self.learning_rate(step):.2g}"
        kept = f"the last good checkpoint is in {path}" if path.is_file() else "there is no checkpoint yet"
        raise ValueError(f"{problem}{self.place} at {at}; {kept}. Try a lower {self.remedy}")
