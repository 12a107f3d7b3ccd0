"""What keeping activations costs: `activations.extract` beside a bare forward loop over the same pictures.

    python tests/benchmarks/extraction.py [--preset hangar] [--images 512] [--rounds 3]

Both read the same pictures through the same loader into the same network; the bare loop has no hooks and keeps nothing.
The study's dataset and classifier must be there already.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from timeit import timeit

import numpy as np
import torch

from aircraft_sae.activations import extract
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import PictureDataset, Pictures, loader, test_transform
from aircraft_sae.study import Study


@torch.inference_mode()
def forward(network: Network, pictures: Pictures) -> None:
    """The bare loop."""
    transform, n = test_transform(network.size, network.mean, network.std), len(pictures.table)
    views = PictureDataset(pictures.picture, pictures.table["image"].tolist(), np.zeros(n, np.int64), transform)
    for batch, _, _ in loader(views, BATCH):
        network.model(batch.to(network.device, non_blocking=True))


def main() -> None:
    """The command: both in turn, the order exchanged each round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="hangar")
    parser.add_argument("--images", type=int, default=512, help="pictures; the first of the data set")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    study = Study.open(given.preset)
    network, pictures = study.network(), study.pictures()
    pictures = pictures.subset(np.arange(min(given.images, len(pictures.table))), "first")
    n_images = len(pictures.table)
    forward(network, pictures.subset(np.arange(min(BATCH, n_images)), "warm-up"))
    times = {"bare loop": [], "extract": []}
    for i in range(given.rounds):
        for name in list(times)[:: 1 if i % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                ours = partial(extract, folder, network, pictures, study.config.sites)
                times[name].append(timeit(ours if name == "extract" else partial(forward, network, pictures), number=1))
    speeds = {name: n_images / statistics.median(values) for name, values in times.items()}
    print(f"{n_images} pictures of {network.size} pixels, sites {', '.join(study.config.sites)}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {given.rounds}:")
    for name, speed in speeds.items():
        print(f"{name:10} {speed:6.1f} images per second")
    ratios = [bare / ours for bare, ours in zip(*times.values(), strict=True)]
    print(f"extract / bare loop: {speeds['extract'] / speeds['bare loop']:.3f}, ", end="")
    print(f"of single rounds {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
