"""Several ranks at one stage: equal to one process, also when ranks are killed and others, of another number, go on.

    python tests/benchmarks/ranks.py kills [--kills 30]
    python tests/benchmarks/ranks.py speed --data-dir data

`tests/test_ranks.py` kills ten ranks a stage. Ranks are forked from a process that has imported everything, as in
`faults.py`, on the smoke preset. `speed` times two ranks of one thread beside one process of two, in turn.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import faults

STAGES = ("networks/trained", "activations/trained", "sae/main", "features/main")
TOLERANCE = {"networks/trained": 0.01, "sae/main": 5e-3}
"""Of probabilities, and of weights as a share of the largest of each tensor; other files are the same to the byte. Muon
and Adam make steps of one length from gradients of any: rounding turns biases that hardly matter."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def join(number: int, n: int, port: int) -> None:
    """In a child: meet the others, as under torchrun."""
    from aircraft_sae import ranks

    known = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in known.items()})
    ranks.join()


def work(number: int, n: int, port: int, data_dir: str, stage: str) -> str:
    """In a child: one rank's part of a stage; what ended it early, if anything."""
    from aircraft_sae import ranks

    try:
        join(number, n, port)
        faults.run_stages(data_dir, (*faults.STAGES[: faults.STAGES.index(stage)], stage))
        ranks.leave()
    except RuntimeError as problem:
        if ranks.ended(problem):
            return "another rank has ended"
        raise
    return ""


class Crew:
    """n ranks at one stage."""

    def __init__(self, n: int, data_dir: Path, stage: str):
        self.stage, port = stage, free_port()
        self.all = [faults.start(work, i, n, port, str(data_dir), stage, target=stage, hurried=True) for i in range(n)]

    def kill(self, victim: int, after: float) -> bool:
        """Kill one of them so many seconds after the first has begun to make the stage; whether it was still there."""
        pipe = self.all[0][2]
        while pipe.poll(faults.LIMIT):
            try:
                if pipe.recv() in (f"{self.stage}: making", f"{self.stage}: resuming"):
                    break
            except EOFError:
                return False
        time.sleep(after)
        process = self.all[victim][1]
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def end(self) -> list:
        """Wait for all; what each gave."""
        return [faults.finish(*one) for one in self.all]


def different(runs: Path, unbroken: faults.Unbroken, stage: str) -> list[str]:
    """What one process made and these ranks did not, in words."""
    if stage not in TOLERANCE:
        return unbroken.differing(runs, (stage,))
    if stage == "sae/main":
        read = safetensors.numpy.load_file
        own, whole = (read(folder / stage / "sae_weights.safetensors") for folder in (runs, unbroken.runs))
    else:
        own, whole = (pd.read_parquet(folder / stage / "predictions.parquet") for folder in (runs, unbroken.runs))
        own, whole = ({"p": table.filter(regex=r"^p_").to_numpy()} for table in (own, whole))
    off = {name: np.abs(values - own[name]).max() / np.abs(values).max() for name, values in whole.items()}
    wrong = [f"{stage}: {name} is off by {float(each):.1e}" for name, each in off.items() if each > TOLERANCE[stage]]
    litter = (".partial", ".old", ".tmp")
    return wrong + [f"{path} is left over" for path in runs.rglob("*") if path.name.endswith(litter)]


def kill_trial(unbroken: faults.Unbroken, stage: str, n_kills: int, rng: random.Random) -> dict:
    """Kill a rank of one to three at a random moment, so many times; then run on: {"kills", "wrong"}."""
    runs, kills, wrong = unbroken.copy(stage), [], []
    before = faults.exact(runs, faults.STAGES[: faults.STAGES.index(stage)])
    for _ in range(n_kills):
        n = rng.choice([2, 2, 3, 1])
        crew, began = Crew(n, runs.parents[1], stage), time.monotonic()
        there = crew.kill(victim := rng.randrange(n), rng.random() * unbroken.seconds[stage])
        ends = crew.end()
        if there and not (runs / stage).exists():
            told = [end.result for i, end in enumerate(ends) if i != victim]
            wrong += [f"{stage}: {each.error}" for each in ends if each.error]
            wrong += [f"not told of the end of another: {told}"] * any(not each for each in told)
        kills.append({"ranks": n, "victim": victim, "hit": there, "seconds": time.monotonic() - began})
        if (runs / stage).exists():
            wrong += different(runs, unbroken, stage)
            runs = unbroken.copy(stage)
            before = faults.exact(runs, faults.STAGES[: faults.STAGES.index(stage)])
    last = Crew(rng.choice([1, 2, 3]), runs.parents[1], stage).end()
    wrong += [str(each.error or each.result) for each in last if each.error or each.result]
    wrong += different(runs, unbroken, stage)
    now = faults.exact(runs, faults.STAGES[: faults.STAGES.index(stage)])
    wrong += [f"{file} was changed" for file in before if before[file] != now.get(file)]
    return {"kills": kills, "wrong": wrong}


def timed(number: int, n: int, port: int, data_dir: str, what: str) -> float:
    """In a child: seconds of one rank of n, which have two threads together, at a job of `speed`."""
    import torch

    from aircraft_sae import ranks
    from aircraft_sae.activations import Activations, extract
    from aircraft_sae.config import SAEConfig, change
    from aircraft_sae.sae import train_sae
    from aircraft_sae.study import Study

    torch.set_num_threads(max(1, 2 // n))
    study = Study.open("hangar", data_dir=data_dir)
    network, folder = study.network(), Path(data_dir) / f"timed-{port}"
    join(number, n, port)
    folder.mkdir(exist_ok=True)
    if what == "extraction":
        pictures = study.pictures().subset(np.arange(768), "first")
        job = (extract, folder, network, pictures, study.config.sites)
    elif what == "autoencoder, 320 to 640":
        acts = study.activations()
        job = (
            train_sae,
            folder,
            change(study.config.sae, n_cells=300_000, mixed_precision=False),
            acts,
            acts.rows("train"),
        )
    else:
        acts = np.random.default_rng(0).standard_normal((1000, 7, 7, 768), np.float32).astype(np.float16)
        cfg = SAEConfig(n_cells=49_152, dead_after=40_000, mixed_precision=False)
        job = (
            train_sae,
            folder,
            cfg,
            Activations(acts, pd.DataFrame({"split": ["train"] * 1000}), "stage4"),
            np.arange(1000),
        )
    ranks.wait()
    began = time.monotonic()
    job[0](*job[1:])
    ranks.wait()
    return time.monotonic() - began


def speed(data_dir: str, rounds: int) -> None:
    """A row a job: one process of two threads, two ranks of one thread, in turn."""
    print("| | one process, 2 threads: s | two ranks, 1 thread each: s | ratio |\n|---|---|---|---|")
    for what in ("extraction", "autoencoder, 320 to 640", "autoencoder, 768 to 6,144"):
        seconds = {1: [], 2: []}
        for i in range(rounds):
            for n in (1, 2) if i % 2 else (2, 1):
                port = free_port()
                crew = [faults.start(timed, each, n, port, data_dir, what) for each in range(n)]
                ends = [faults.finish(*one) for one in crew]
                if wrong := [end.error for end in ends if end.error]:
                    raise RuntimeError(f"{what}: {wrong[0]}")
                seconds[n].append(max(end.result for end in ends))
        one, two = map(median, seconds.values())
        print(f"| {what} | {one:.2f} | {two:.2f} | {one / two:.2f} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "speed"))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--data-dir", help="of speed: where the default preset has been run")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    kills(given.kills) if given.what == "kills" else speed(given.data_dir, given.rounds)


def kills(n: int) -> None:
    """A row a stage."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken = faults.Unbroken(Path(folder), twice=False)
        print("| stage | kills | of one rank, two, three | of the first | wrong | seconds |\n" + "|---" * 6 + "|")
        for stage in STAGES:
            rng, began, hits, wrong = random.Random(stage), time.monotonic(), [], []
            while len(hits) < n:
                trial = kill_trial(unbroken, stage, min(10, n - len(hits)), rng)
                hits += [kill for kill in trial["kills"] if kill["hit"]]
                wrong += trial["wrong"]
            sizes = [sum(kill["ranks"] == size for kill in hits) for size in (1, 2, 3)]
            first, seconds = sum(kill["victim"] == 0 for kill in hits), time.monotonic() - began
            print(f"| {stage} | {len(hits)} | {', '.join(map(str, sizes))} | {first} | {len(wrong)} | {seconds:.0f} |")
            print(*wrong[:5], sep="\n", end="\n" * bool(wrong))


if __name__ == "__main__":
    main()
