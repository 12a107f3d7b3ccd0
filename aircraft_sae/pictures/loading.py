"""From pictures to batches: resizing, augmentation and loading, the same for any number of workers.

Every picture is squashed to a square. Aircraft fill the width of an FGVC-Aircraft picture: a centre crop would cut off
nose and tail, and padding would spend a third of the network's cells on nothing. Training crops are drawn on the
squashed picture too, so that an aircraft has the same proportions in training as in evaluation.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from aircraft_sae.config import ClassifierConfig

BICUBIC = v2.InterpolationMode.BICUBIC  # as in the training of timm's ConvNeXts


class RandomSquashedCrop(v2.RandomResizedCrop):
    """A random crop whose aspect ratio is relative to the picture's own."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        box = super().make_params([torch.empty(3, 1000, 1000, device="meta")])
        height, width = v2.functional.get_size(flat_inputs[0])
        top, left = int(box["top"] * height / 1000), int(box["left"] * width / 1000)
        bottom, right = (box["top"] + box["height"]) * height / 1000, (box["left"] + box["width"]) * width / 1000
        return {"top": top, "left": left, "height": max(1, round(bottom) - top), "width": max(1, round(right) - left)}


class PictureTransform(v2.Compose):
    """From a picture to (3, size, size) uint8; `normalise` turns a batch of them into the network's input."""

    def __init__(self, steps: Sequence[Callable], mean: Sequence[float], std: Sequence[float]):
        super().__init__([*steps, v2.PILToTensor()])
        self.mean, self.std = tuple(mean), tuple(std)

    def normalise(self, pictures: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) uint8 -> (value / 255 - mean) / std in channels-last float32."""
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        pictures = pictures.to(torch.float32, memory_format=torch.channels_last)
        return pictures.mul_(1 / (255 * std)).sub_(mean / std)


def train_transform(size: int, mean: Sequence[float], std: Sequence[float], cfg: ClassifierConfig) -> PictureTransform:
    """A random crop, flip and colour jitter (brightness, contrast, saturation) of the squashed picture."""
    steps = [RandomSquashedCrop(size, scale=cfg.crop_scale, interpolation=BICUBIC)]
    if cfg.flip:
        steps.append(v2.RandomHorizontalFlip())
    if cfg.colour_jitter:
        steps.append(v2.ColorJitter(*[cfg.colour_jitter] * 3))
    return PictureTransform(steps, mean, std)


def test_transform(size: int, mean: Sequence[float], std: Sequence[float]) -> PictureTransform:
    """The whole picture squashed to size x size."""
    return PictureTransform([v2.Resize((size, size), interpolation=BICUBIC)], mean, std)


test_transform.__test__ = False  # pytest would collect it by its name


class PictureDataset(Dataset):
    """(transformed picture, label, row), indexed by row or (seed, epoch, row), which alone determines augmentation."""

    def __init__(self, read: Callable[[str], Image.Image], images: list[str], labels: np.ndarray, transform: Callable):
        self.read, self.images, self.labels, self.transform = read, images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | tuple[int, int, int]) -> tuple[Any, int, int]:
        seed, epoch, row = index if isinstance(index, tuple) else (0, 0, index)  # workers hold copies of this object
        picture = self.read(self.images[row])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mix(seed, epoch, row))  # torch.manual_seed would seed the GPU too
            return self.transform(picture), int(self.labels[row]), row


class Loader(DataLoader):
    """Batches of (pictures (n, 3, size, size) float32, labels (n,), rows (n,)); see `loader`."""

    order_seed: int | None = None
    size = 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and augmentation of the next pass."""
        if self.order_seed is not None:
            generator = torch.Generator().manual_seed(_mix(self.order_seed, epoch))
            order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self.batch_sampler[:] = _batches([(self.order_seed, epoch, row) for row in order], self.size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for pictures, labels, rows in super().__iter__():  # workers send bytes, a quarter of the size of floats
            yield self.dataset.transform.normalise(pictures), labels, rows


def loader(
    dataset: PictureDataset, batch_size: int, *, order_seed: int | None = None, workers: int | None = None,
    rows: Sequence[int] | None = None,
) -> Loader:  # fmt: skip
    """Batches of `dataset`, or of these rows, in order; with `order_seed`, all rows, shuffled and augmented anew.

    workers: number of processes that read pictures, fewer if shared memory is short; it affects only the speed. By
    default one if the network runs on the CPU (the worker reads 350 pictures of 224 pixels a second, a ConvNeXt-Atto
    trains on 40), up to eight if it runs on a GPU, none for few pictures.
    """
    rows = range(len(dataset)) if rows is None else rows
    if workers is None:  # starting a process takes longer than reading 512 pictures
        workers = 0 if len(rows) < 512 else min(8, cpu_count()) if torch.cuda.is_available() else 1
    if workers and os.path.isdir("/dev/shm"):  # when this is full, a worker dies of a bus error
        n_bytes = batch_size * dataset[0][0].nbytes
        workers = min(workers, shutil.disk_usage("/dev/shm").free // (4 * n_bytes))  # two ahead, one made, one in use
    made = Loader(
        dataset, batch_sampler=_batches(list(rows), batch_size), num_workers=workers,
        persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # otherwise each epoch would draw from torch's global state
    )  # fmt: skip
    made.order_seed, made.size = order_seed, batch_size
    made.set_epoch(0)
    return made


def _batches(rows: list, size: int) -> list[list]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)  # 63 bits
