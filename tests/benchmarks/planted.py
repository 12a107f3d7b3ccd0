"""A planted dictionary: sums of 6 of 1,024 known directions in 256 dimensions with 5 % noise. Which are found?

    python tests/benchmarks/planted.py

A direction is found where some decoder row has a cosine above 0.9 with it. Chance is what rows before training reach.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_sae import VARIANTS, Planted

from aircraft_sae.config import SAEConfig
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import train_sae


def main() -> None:
    """Print the share found by each variant."""
    planted = Planted(200_000, 256, 1024, 6)
    shared = dict(k=6, expansion=8, n_cells=1_500_000, batch_size=1000, learning_rate=3e-3, dead_after=50_000, aux_k=64)
    for variant in VARIANTS:
        cfg = SAEConfig(variant=variant, **shared)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            train_sae(Path(folder), cfg, planted, [0])
            trained = SparseAutoencoder.load(folder)
        seconds = time.perf_counter() - began
        best = [best_cosines(sae, planted) for sae in (trained, SparseAutoencoder(cfg, 256))]
        found, chance = ((cosines > 0.9).float().mean().item() for cosines in best)
        print(
            f"{variant:10} {found:7.1%} found, mean cosine {best[0].mean():.3f}, chance {chance:.1%}, {seconds:.0f} s"
        )


def best_cosines(sae: SparseAutoencoder, planted: Planted) -> torch.Tensor:
    """(n_true,) largest cosine of any decoder row with each planted direction."""
    return (normalize(sae.W_dec.detach()) @ planted.directions.t()).amax(0)


if __name__ == "__main__":
    main()
