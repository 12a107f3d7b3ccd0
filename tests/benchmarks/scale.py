"""Time and memory of the chain as the data grow: the hangar at 96 pixels, with as many scenes as the default and 10 x.

`python tests/benchmarks/scale.py --folder DIR [--times 1 10]` keeps its stages in DIR and does not make them again.
"""

import argparse
import json
import subprocess
import sys

import psutil

from aircraft_sae.config import change, preset
from aircraft_sae.study import Study

STAGES = {"dataset": "pictures", "networks/trained": "network", "activations/trained": "activations",
          "sae/main": "sae", "features/main": "features"}  # fmt: skip
"""{stage: the method that makes it}."""


def make(folder: str, times: int, stage: str) -> None:
    """Make one stage in this process; print its seconds of wall clock and CPU, workers included, and peak memory."""
    sizes = {"classifier.sizes": (96,), "classifier.epochs": (1,), "dataset.hangar.size": 96}
    config = change(preset("hangar"), name=f"x{times}", **sizes, **{"dataset.hangar.scenes_per_variant": 100 * times})
    study = Study.open(config, data_dir=folder)
    getattr(study, STAGES[stage])()
    meta, cpu = study.stages[stage].meta, sum(psutil.Process().cpu_times()[:4])
    print(json.dumps({"wall s": meta["seconds"], "CPU s": cpu, "peak MB": meta["peak_memory_bytes"] / 1e6}))


def main() -> None:
    """Make each stage of each size in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--stage", choices=STAGES, help="make this one alone")
    given = parser.parse_args()
    if given.stage:
        return make(given.folder, given.times[0], given.stage)
    print("| scenes | stage | wall s | CPU s | peak MB |\n|---|---|---|---|---|")
    for times in given.times:
        for stage in STAGES:
            words = [sys.executable, __file__, "--folder", given.folder, "--times", str(times), "--stage", stage]
            facts = json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)
            print(f"| x{times} | {stage} | " + " | ".join(f"{each:,.0f}" for each in facts.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
