"""Time and memory of the chain as the data grow: the hangar at 96 pixels with as many scenes as the default, and 10 x.

`python tests/benchmarks/scale.py --folder DIR [--times 1 10]` keeps its stages in DIR; what is there is not made again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

from aircraft_sae.config import change, preset
from aircraft_sae.study import Study

STAGES = {"dataset": "pictures", "networks/trained": "network", "activations/trained": "activations",
          "sae/main": "sae", "features/main": "features"}  # fmt: skip
"""Each stage, and what makes it."""


def make(folder: str, times: int, stage: str) -> None:
    """One stage in this process; prints seconds of wall clock and of CPU, its workers' too."""
    sizes = {"classifier.sizes": (96,), "classifier.epochs": (1,), "dataset.hangar.size": 96}
    config = change(preset("hangar"), name=f"x{times}", **sizes, **{"dataset.hangar.scenes_per_variant": 100 * times})
    study = Study.open(config, data_dir=folder)
    if names := list(STAGES)[: list(STAGES).index(stage)]:
        getattr(study, STAGES[names[-1]])()
    began, used = time.monotonic(), cpu_seconds()
    getattr(study, STAGES[stage])()
    meta = study.stages[stage].meta
    facts = {"wall": time.monotonic() - began, "cpu": cpu_seconds() - used, "peak": meta["peak_memory_bytes"]}
    if study.stages[stage].made:
        print(json.dumps(facts | {"stage": stage, "times": times}))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(psutil.Process().cpu_times()[:4])


def main() -> None:
    """Each stage of each size in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--stage", choices=STAGES)
    options = parser.parse_args()
    if options.stage:
        return make(options.folder, options.times[0], options.stage)
    log = Path(options.folder) / "scale.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    for times in options.times:
        for stage in STAGES:
            words = [sys.executable, __file__, "--folder", options.folder, "--times", str(times), "--stage", stage]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
            with log.open("a") as file:
                file.write(done.stdout)
    rows = {(row["stage"], row["times"]): row for row in map(json.loads, log.read_text().splitlines())}
    heads = [f"x{n}: {what}" for n in options.times for what in ("wall s", "CPU s", "peak MB")]
    print("| stage | " + " | ".join(heads) + " | CPU, times |\n" + "|---" * (len(heads) + 2) + "|")
    for stage in STAGES:
        found = [rows[stage, n] for n in options.times]
        cells = [
            f"{each[key] * scale:,.0f}" for each in found for key, scale in (("wall", 1), ("cpu", 1), ("peak", 1e-6))
        ]
        print(f"| {stage} | " + " | ".join(cells) + f" | {found[-1]['cpu'] / found[0]['cpu']:.1f} |")


if __name__ == "__main__":
    main()
