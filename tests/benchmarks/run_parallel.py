"""What `devices.run_parallel` gains: forward passes and autoencoders' trainings, one after the other and side by side.

    python tests/benchmarks/run_parallel.py [--preset hangar] [--rounds 3]

The same work both ways, in turn, the order exchanged each round. The study's network and activations must be there
already.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from aircraft_sae.config import change
from aircraft_sae.devices import device, has_bfloat16, run_parallel
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.sae.training import train_sae
from aircraft_sae.study import Study

N_BATCHES = 40


@torch.inference_mode()
def forward(batch: torch.Tensor, network: Network, mixed: bool) -> None:
    """One pass of the network."""
    network.see(batch, mixed=mixed)


def works(study: Study) -> dict[str, tuple[Callable, list]]:
    """{name: (function, items)}."""
    network, acts, cfg = study.network(), study.activations(), study.config.sae
    size = network.size
    batch = torch.randn(BATCH, 3, size, size, device=device()).contiguous(memory_format=torch.channels_last)
    made = {f"{N_BATCHES} batches, float32": (partial(forward, network=network, mixed=False), [batch] * N_BATCHES)}
    if has_bfloat16(device()):
        mixed = partial(forward, network=network, mixed=True)
        made[f"{N_BATCHES} batches, bfloat16"] = mixed, [batch] * N_BATCHES
    rows = acts.rows("train", "val", "views")
    short = change(cfg, n_cells=cfg.n_cells // 8, dead_after=cfg.dead_after // 8, batch_size=cfg.batch_size // 2)

    def training(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_sae(Path(folder), change(short, seed=seed), acts, rows)

    return made | {"4 autoencoders": (training, [0, 1, 2, 3])}


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="hangar")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {given.rounds} rounds:")
    ways = {"one after the other": map, "side by side": run_parallel}
    for name, (function, items) in works(Study.open(given.preset)).items():
        function(items[0])  # warm-up
        times = {way: [] for way in ways}
        for i in range(given.rounds):
            for way in list(ways)[:: 1 if i % 2 == 0 else -1]:
                began = time.perf_counter()
                list(ways[way](function, items))
                times[way].append(time.perf_counter() - began)
        alone, beside = (statistics.median(seconds) for seconds in times.values())
        ratios = [b / a for a, b in zip(*times.values(), strict=True)]
        print(f"{name:22} {alone:6.1f} s, side by side {beside:6.1f} s: {statistics.median(ratios):.2f} ", end="")
        print(f"({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
