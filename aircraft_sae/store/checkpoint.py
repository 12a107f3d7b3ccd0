"""The checkpoint of a training under way, in its folder: written whole, read back only by the run it is of."""

import math
import sys
import time
from typing import NoReturn
from zipfile import ZipFile

import torch

from aircraft_sae import ranks
from aircraft_sae.store.files import write_whole

CHECKPOINT = "checkpoint.pt"


class Training:
    """A training run in `folder` that goes on after a kill.

    A subclass sets folder, device, identity (what its checkpoints are known by), step, and parts, {name: what has a
    state dict}, "model" among them; and it has learning_rate(step). noted: names of further attributes to keep; other:
    what a foreign checkpoint is said to be of; remedy: what to lower where a run diverges; place: said before the step.
    """

    place, saved = "", -math.inf

    def save(self) -> None:
        """Write the checkpoint whole or not at all; ValueError for a weight that is not finite."""
        self.check_weights()
        self.saved = time.monotonic()
        if ranks.rank():  # all have the same
            return
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"identity": self.identity}
        state |= {name: getattr(self, name) for name in self.noted}
        write_whole(self.folder / CHECKPOINT, lambda temporary: torch.save(state, temporary))
        self.saved = time.monotonic()

    def due(self, seconds: float) -> bool:
        """Whether the last checkpoint is longer ago than this."""
        return time.monotonic() - self.saved > seconds

    def resume(self) -> None:
        """Go back to the checkpoint, if any; a damaged one is passed over. ValueError for another run's."""
        self._read()
        steps = ranks.gather(torch.tensor([self.step])).tolist()  # before any goes on: the last removes the checkpoint
        if len(set(steps)) > 1:
            raise ValueError(f"the ranks see checkpoints of steps {steps}: put {self.folder} on a disk that all share")

    def _read(self) -> None:
        path, self.saved = self.folder / CHECKPOINT, time.monotonic()
        if not path.is_file():
            return
        try:  # the file's own checksums, which torch.load does not compare
            with ZipFile(path) as file:
                damaged = file.testzip() is not None
        except Exception:  # whatever a damaged header is taken for
            damaged = True
        if damaged:
            print(f"{path} is damaged: the training begins anew", file=sys.stderr)
            return
        try:
            saved = torch.load(path, map_location=self.device, weights_only=True)
            same = saved["identity"] == self.identity
            kept = {name: saved[name] for name in (*self.parts, *self.noted)} if same else {}
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # pickle has errors of its own
            raise ValueError(f"{path} cannot be read as a checkpoint ({problem}): remove it to start anew") from problem
        if not same:
            raise ValueError(f"{path} is of another {self.other}: remove it to start anew")
        for name, part in self.parts.items():
            part.load_state_dict(kept[name])
        for name in self.noted:
            setattr(self, name, kept[name])

    def check_weights(self) -> None:
        """ValueError where a weight is not finite: no loss has told of the last step yet."""
        if not all(bool(weight.isfinite().all()) for weight in self.parts["model"].parameters()):
            self.stop("a weight is not finite", self.step - 1)

    def stop(self, problem: str, step: int) -> NoReturn:
        """Raise the ValueError for a run that has diverged."""
        path, at = self.folder / CHECKPOINT, f"step {step}, learning rate {self.learning_rate(step):.2g}"
        kept = f"the last good checkpoint is in {path}" if path.is_file() else "there is no checkpoint yet"
        raise ValueError(f"{problem}{self.place} at {at}; {kept}. Try a lower {self.remedy}")
