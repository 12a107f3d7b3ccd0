"""Several ranks at one stage: equal to one process, even if ranks are killed and a different number of them resumes.

`tests/test_ranks.py` runs it on the smoke preset. Ranks are forked from a process that has imported everything, as in
`faults.py`.
"""

import os
import random
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy
from benchmarks import faults

STAGES = ("networks/trained", "activations/trained", "sae/main", "features/main")
TOLERANCE = {"networks/trained": 0.01, "sae/main": 5e-3}
"""Of probabilities, and of weights relative to the largest in each tensor; other stages are equal to the byte. Muon and
Adam take steps of equal length whatever the gradient, so rounding turns biases that hardly matter."""


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def join(number: int, n: int, port: int) -> None:
    """In a child: connect to the others as under torchrun."""
    from aircraft_sae import ranks

    known = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in known.items()})
    ranks.join()


def work(number: int, n: int, port: int, data_dir: str, stage: str) -> str:
    """In a child: one rank's part of a stage; returns what ended it early, if anything."""
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
        """Kill a rank this many seconds after the first began to make the stage; whether it was still alive."""
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

    def end(self, killed: bool = False) -> list:
        """Wait for all ranks; the `faults.Child` of each.

        After a kill, None for a rank that was still connecting to the killed one and goes on trying: torchrun ends it.
        """
        ends = []
        for one in self.all:
            try:
                ends.append(faults.finish(*one))
            except TimeoutError:
                if not killed or one[0].said:
                    raise
                ends.append(None)
        return ends


def different(runs: Path, unbroken: faults.Unbroken, stage: str) -> list[str]:
    """Where these ranks' stage differs from a single process's, in words."""
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
    return wrong + unbroken.differing(runs, ())


def kill_trial(unbroken: faults.Unbroken, stage: str, n_kills: int, rng: random.Random) -> dict:
    """Kill one of one to three ranks at a random moment, n times, then let others finish: {"kills", "wrong"}."""
    runs, kills, wrong = unbroken.copy(stage), [], []
    upstream = faults.STAGES[: faults.STAGES.index(stage)]
    before = faults.exact(runs, upstream)
    for _ in range(n_kills):
        n = rng.choice([2, 2, 3, 1])
        crew = Crew(n, runs.parents[1], stage)
        alive = crew.kill(victim := rng.randrange(n), rng.random() * unbroken.seconds[stage])
        ends = crew.end(alive)
        kills.append({"ranks": n, "victim": victim, "killed": alive, "hung": None in ends})
        if (runs / stage).exists():
            wrong += different(runs, unbroken, stage)
            runs = unbroken.copy(stage)
            before = faults.exact(runs, upstream)
        elif alive:
            others = [end for i, end in enumerate(ends) if i != victim and end]
            wrong += [f"{stage}: {each.error}" for each in others if each.error]
            others = [end.result for end in others]
            wrong += [f"not told that another rank ended: {others}"] * any(not each for each in others)
    last = Crew(rng.choice([1, 2, 3]), runs.parents[1], stage).end()
    wrong += [str(each.error or each.result) for each in last if each.error or each.result]
    return {"kills": kills, "wrong": wrong + different(runs, unbroken, stage) + faults.touched(runs, upstream, before)}
