"""At which site do features follow parts best? Autoencoders at several sites, scored on half A.

    python tests/benchmarks/sites.py                                      # all; writes sites.csv
    python tests/benchmarks/sites.py stage3 stage4 --k 32 --width 1280    # some of it

Runs on the default study and makes its missing stages. One row per site, way to standardise, k and width, with means
over parts: average precision of the best feature, its AUROC among aircraft cells within family and place, and that
AUROC for a frozen decoder trained as long. Features are chosen and scored on the same half A of the test pictures,
which compares sites but supports no claim.
"""

import argparse
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig
from aircraft_sae.features import Regions, auroc_in_strata, best_matches, build_index, part_scores
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import train_sae
from aircraft_sae.study import Study

SITES = ("stage2", *(f"stages.2.blocks.{i}" for i in range(6)), "stage3", "stage4")
N_CELLS = 300_000


def scored(cfg: SAEConfig, acts: Activations, regions: Regions) -> tuple[float, float, SparseAutoencoder]:
    """(mean average precision, mean AUROC within strata) of the parts' best features on half A, and the autoencoder."""
    with tempfile.TemporaryDirectory() as folder:
        train_sae(Path(folder), cfg, acts, acts.rows("train", "val"))
        sae = SparseAutoencoder.load(folder)
        index = build_index(sae, acts, folder, acts.rows("test"))
        there = replace(regions, rows=index.rows("test"))
        best = best_matches(part_scores(index, there))
        on_a = replace(there, in_b=~there.in_b)
        within = [auroc_in_strata(index, on_a, int(j), part).value for part, j in best["feature_id"].items()]
    return float(best["ap_a"].mean()), float(np.nanmean(within)), sae


def main() -> None:
    """Print a row as soon as it is there, and write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sites", nargs="*", default=SITES)
    parser.add_argument("--k", type=int, nargs="*", default=(8, 16, 32))
    parser.add_argument("--width", type=int, nargs="*", default=(640, 1280), help="features")
    parser.add_argument("--ways", nargs="*", default=("nothing", "channels"), help="to standardise")
    parser.add_argument("--to", type=Path, default=Path("sites.csv"))
    given, study, rows = parser.parse_args(), Study.open("hangar"), []
    for site in given.sites:
        acts = study.activations(site)
        regions = Regions.of(acts, study.pictures())
        for ways, k, width in product(given.ways, given.k, given.width):
            changes = {"site": site, "standardise": ways, "k": k, "expansion": max(1, width // acts.d_in)}
            cfg = replace(study.config.local, n_cells=N_CELLS, dead_after=N_CELLS // 10, **changes)
            ap, within, sae = scored(cfg, acts, regions)
            frozen = scored(replace(cfg, frozen_decoder=True), acts, regions)
            row = {"site": site, "standardised": ways, "k": k, "features": sae.d_sae, "mean AP": ap}
            rows.append(row | {"AUROC within strata": within, "of a frozen decoder": frozen[1]})
            print(rows[-1], flush=True)
            pd.DataFrame(rows).round(3).to_csv(given.to, index=False)


if __name__ == "__main__":
    main()
