"""Runs the smoke preset in child processes, kills them and compares what they leave, for test_faults.py.

Each child is forked from a process that has imported everything and works in its own data folder. What it leaves is
compared with an unbroken run, file by file.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import psutil

from aircraft_sae.config import change, preset
from aircraft_sae.store import META, PROGRESS, digest, read_json

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["__main__", "aircraft_sae.study", "aircraft_sae.view.browser", "aircraft_sae.interventions", "pyarrow.dataset"]
)
MEASURED = ("seconds", "peak_memory_bytes", "checksum", "images_per_second", "cells_per_second")
"""Facts that differ between equal runs."""
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
STAGES = (
    "dataset", "networks/trained", "activations/trained", "sae/main", "features/main", "experiments/edit-remove",
    "experiments/segmentation-main",
)  # fmt: skip
LIMIT = 120
"""Seconds after which a child counts as hanging."""


def run_stages(data_dir, stages=STAGES, changes=()):
    """In a child: make or load the study's stages in order."""
    from aircraft_sae.studies.manipulation import segment
    from aircraft_sae.study import Study

    def segmented():
        inputs = {"acts": study.activations(), "pictures": study.pictures()}
        study.stage("experiments/segmentation-main", segment, {}, inputs)

    study = Study.open(change(preset("smoke"), **dict(changes)), data_dir=data_dir)
    made = {"dataset": study.pictures, "networks/trained": study.network, "activations/trained": study.activations,
            "sae/main": study.sae, "features/main": study.features,
            "experiments/edit-remove": partial(study.removals, 1),
            "experiments/segmentation-main": segmented}  # fmt: skip
    for stage in stages:
        made[stage]()


def write_labels(data_dir, n=30):
    """In a child: write a person's labels; announce each once it is on disk."""
    from aircraft_sae import study
    from aircraft_sae.view.browser import Labels

    labels = Labels(Path(data_dir) / "runs" / "smoke", "own")
    study.say("labels: making")
    for i in range(n):
        labels.set(i % 20, label=f"word {i}", rating=i % 6)
        study.say(f"set {i}")
    study.say("labels: made")


def _child(pipe, work, arguments, target, trap, hurried):
    os.setsid()  # a process group of its own, workers included
    with open(os.devnull, "w") as null:
        for stream in (1, 2):
            os.dup2(null.fileno(), stream)
    try:
        armed = _set_trap(trap, str(arguments[0]) if arguments else "")

        def say(line):
            pipe.send(line)
            if target and line.startswith(f"{target}: "):
                armed["now"] = line.endswith(("making", "resuming"))

        _prepare(say, hurried)
        work(*arguments)
        pipe.send(dict(armed))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error), traceback.format_exc()))


def _prepare(say, hurried):
    """In a child: send lines to the parent, save progress often, as the smoke stages are short, and use one thread."""
    import torch

    from aircraft_sae import activations, store, study
    from aircraft_sae.networks import training
    from aircraft_sae.sae import training as sae_training

    study.say = store.stages.say = say
    store.stages.HEARTBEAT, training.CHECKPOINT_SECONDS, sae_training.CHECKPOINT_SECONDS = 0.05, 0.0, 0.0
    activations.SHARD = activations.BATCH = 8
    torch.set_num_threads(1)  # several would wait for each other on busy cores
    if hurried:
        os.cpu_count = lambda: 1  # render in this process, where the trap is


def _set_trap(trap, root):
    """In a child: count changes to files under `root` once armed, and kill the process just before one of them.

    trap: (kind, number). "event" is any change; "rename" falls between writing a file and renaming it; "swap" is the
    renaming of meta.json or any later change.
    """
    counts = {"now": False, "event": 0, "rename": 0, "swap": 0}

    def hook(event, args):
        if not counts["now"] or event not in CHANGES or threading.current_thread() is not threading.main_thread():
            return  # the heartbeat writes at any time
        path, writes = str(args[0]), event != "open" or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if not writes or (os.path.isabs(path) and not path.startswith(root)):
            return
        renamed = event == "os.rename"
        swapping = counts["swap"] or (renamed and str(args[1]).endswith(f".partial/{META}"))
        for kind, counted in {"event": True, "rename": renamed, "swap": swapping}.items():
            if trap == (kind, counts[kind]) and counted:
                os.kill(os.getpid(), signal.SIGKILL)
            counts[kind] += bool(counted)

    sys.addaudithook(hook)
    return counts


@dataclass
class Child:
    """A function in its own process: what it said or raised, and when."""

    said: list = field(default_factory=list)
    counts: dict = field(default_factory=dict)
    error: tuple = ()
    killed: bool = False
    began: float = 0.0
    seconds: float = 0.0  # from the start of the stage to its end, or to the kill
    outlived: bool = False  # a worker was still alive seconds after its parent was killed

    @property
    def made(self):
        return [line.split(":")[0] for line in self.said if ": made in" in line]


def start(work, *arguments, target="", trap=None, kill_after=None, hurried=False):
    """Run work(*arguments) in a child; `finish` waits for it."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_child, args=(theirs, work, arguments, target, trap, hurried))
    process.start()
    theirs.close()
    return Child(), process, ours, target, kill_after


def finish(child, process, pipe, target, kill_after):
    """Wait for a child, or kill it `kill_after` seconds after it began to make the target stage."""
    limit, kill_at = time.monotonic() + LIMIT, None
    while True:
        until = limit if kill_at is None else min(kill_at, limit)
        try:
            got = pipe.recv() if pipe.poll(max(0.0, until - time.monotonic())) else None
        except (EOFError, ConnectionResetError):  # the child has ended
            if child.began and not child.seconds:
                child.seconds = time.monotonic() - child.began
            break
        now = time.monotonic()
        if got is None:
            if now >= limit:
                os.killpg(process.pid, signal.SIGKILL)
                raise TimeoutError(f"hangs after {child.said}")
            os.kill(process.pid, signal.SIGKILL)  # not its workers
            kill_at = None
        elif isinstance(got, str):
            child.said.append(got)
            if got in (f"{target}: making", f"{target}: resuming"):
                child.began = now
                kill_at = now + kill_after if kill_after is not None else None
            elif got.startswith(f"{target}: made"):
                child.seconds, kill_at = now - child.began, None
        elif isinstance(got, dict):
            child.counts = got
        else:
            child.error = got
    process.join()
    child.killed = process.exitcode == -signal.SIGKILL
    child.outlived = _outlived(process.pid)
    return child


def alone(work, *arguments, **options):
    """`finish(start(...))`."""
    return finish(*start(work, *arguments, **options))


def _outlived(group):
    """Whether workers of a dead process stay alive for seconds; if so, kill them."""
    for _ in range(100):
        if not any(_group(process) == group for process in psutil.process_iter()):
            return False
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return True


def _group(process):
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.Error, OSError):
        return None


def contents(folder):
    """{file: digest} of a stage, without the facts that differ between equal runs."""
    return {file.relative_to(folder).as_posix(): _content(file) for file in folder.rglob("*") if file.is_file()}


def _content(file):
    data = file.read_bytes()
    if file.name == META:
        meta = {key: value for key, value in json.loads(data).items() if key not in MEASURED}
        meta["files"] = {name: facts for name, facts in meta["files"].items() if name != "history.csv"}
        data = json.dumps(meta, sort_keys=True).encode()
    if file.name == "history.csv":
        data = pd.read_csv(file, dtype=str).drop(columns=[*MEASURED], errors="ignore").to_json().encode()
    return hashlib.sha256(data).hexdigest()


def exact(runs, stages):
    """{file: (content, inode, time of change)} of finished stages, which nothing may touch."""
    files = [file for stage in stages for file in (runs / stage).rglob("*") if file.is_file()]
    return {file: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


class Unbroken:
    """A complete run without faults: what each stage holds, how long it took and how many changes it made."""

    def __init__(self, folder):
        self.data_dir, self.scratch = folder / "unbroken", folder / "trial"
        self.runs = self.data_dir / "runs" / "smoke"
        self.contents, self.seconds, self.counts = {}, {}, {}
        for stage in STAGES:
            if stage == "dataset":  # by workers and, once again, in one process
                self.seconds["dataset, workers"] = self.run(self.data_dir, stage, hurried=False).seconds
                shutil.rmtree(self.runs / stage)
            child = self.run(self.data_dir, stage)
            self.contents[stage] = contents(self.runs / stage)
            self.seconds[stage], self.counts[stage] = child.seconds, child.counts

    def run(self, data_dir, stage, hurried=True, **options):
        """Run the study up to a stage in a child."""
        stages = STAGES[: STAGES.index(stage) + 1]
        child = alone(run_stages, data_dir, stages, target=stage, hurried=hurried, **options)
        if child.error:
            raise RuntimeError(f"{stage}: {child.error}")
        return child

    def copy(self, before=None):
        """A fresh runs folder that holds all stages, or those before one."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        runs = self.scratch / "runs" / "smoke"
        runs.mkdir(parents=True)
        for stage in STAGES[: STAGES.index(before) if before else None]:
            shutil.copytree(self.runs / stage, runs / stage)
        return runs

    def differing(self, runs, stages=STAGES):
        """What is wrong in a runs folder, in words: different contents, left-over files."""
        wrong = []
        for stage in stages:
            now = contents(runs / stage)
            names = sorted(n for n in now.keys() | self.contents[stage] if now.get(n) != self.contents[stage].get(n))
            wrong += [f"{stage}/{name} differs" for name in names]
        litter = (".partial", ".old", ".tmp", PROGRESS)
        return wrong + [f"{path} is left over" for path in runs.rglob("*") if path.name.endswith(litter)]


def place(runs, stage, whole):
    """How far a killed run had come, judging by the files."""
    folder = runs / stage
    work, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    if (work / META).is_file() or old.exists():
        return "swap"
    if work.exists():
        return "making" if (work / PROGRESS).is_file() else "before"
    same = read_json(folder / META).get("fingerprint") == read_json(whole / META)["fingerprint"]
    return "after" if same else "before"


def kill_trial(unbroken, stage, n_kills, rng):
    """Kill the making of a stage n times in a row, then let it finish; what happened at each kill, and what is wrong.

    Half of the kills come at a random time; the others before any change on disk, between a write and its rename, or in
    the swap. In half of the trials an outdated stage is in the place.
    """
    runs, upstream = unbroken.copy(stage), STAGES[: STAGES.index(stage)]
    data_dir, before = runs.parents[1], exact(runs, upstream)
    if rng.random() < 0.5:
        shutil.copytree(unbroken.runs / stage, runs / stage)
        meta = read_json(runs / stage / META) | {"fingerprint": "outdated"}
        meta["checksum"] = digest({key: value for key, value in meta.items() if key != "checksum"})
        (runs / stage / META).write_text(json.dumps(meta))
    kills, wrong = [], []
    for _ in range(n_kills):
        how, timed = rng.choice(["time"] * 3 + ["event", "rename", "swap"]), stage
        if how == "time":
            timed = f"{stage}, workers" if stage == "dataset" else stage
            options = {"kill_after": rng.random() * unbroken.seconds[timed], "hurried": stage != "dataset"}
        else:
            options = {"trap": (how, rng.randrange(unbroken.counts[stage][how] + (how == "swap")))}
        child = unbroken.run(data_dir, stage, **options)
        where = place(runs, stage, unbroken.runs / stage) if child.killed else "after"
        kills.append({"killed": child.killed, "where": where, **options})
        wrong += [f"a worker outlived its killed parent ({options})"] * child.outlived
        if where == "after":
            if not child.killed and f"{stage}: making" in child.said:
                unbroken.seconds[timed] = child.seconds  # it varies with the load of the machine
            break
    pictures = {file.name: file.stat().st_ino for file in runs.glob("dataset.partial/**/images/*.jpg")}
    last = unbroken.run(data_dir, stage)
    again = [file.name for file in runs.glob("dataset/**/images/*.jpg")
             if pictures.get(file.name, file.stat().st_ino) != file.stat().st_ino]  # fmt: skip
    if kills[-1]["where"] == "making" and f"{stage}: resuming" not in last.said:
        wrong.append(f"not resumed: {last.said}")
    wrong += [f"{name} was made before the kill, and again" for name in again]
    wrong += unbroken.differing(runs, (*upstream, stage)) + touched(runs, upstream, before)
    return {"kills": kills, "wrong": wrong}


def touched(runs, stages, before):
    """Files of finished stages that are no longer what `exact` found before, in words."""
    now = exact(runs, stages)
    return [f"{file} was touched" for file in before.keys() | now.keys() if before.get(file) != now.get(file)]


def damage(file, rng, how="flip"):
    """Flip one bit of a file, or cut its end off."""
    data, at = bytearray(file.read_bytes()), rng.randrange(file.stat().st_size)
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data[:at] if how == "cut" else data)
