"""Faults on the smoke preset: kills, a full or read-only disk, two processes, damage, a changed config, a wrong clock.

`tests/test_faults.py` runs a few; `python tests/benchmarks/faults.py --kills 30` runs many and prints a table. Each
child is forked from a process that has imported everything, works in a data folder of its own, and is compared with an
unbroken run by the checksum of every file.
"""

import argparse
import csv
import ctypes
import errno
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from aircraft_sae.config import change, preset
from aircraft_sae.store import META, PROGRESS, fingerprint, read_json

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["__main__", "aircraft_sae.study", "aircraft_sae.view.atlas", "aircraft_sae.interventions", "pyarrow.dataset"]
)
MEASURED = ("seconds", "peak_memory_bytes", "checksum", "images_per_second", "cells_per_second")
"""What differs between two runs of the same."""
CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
STAGES = (
    "dataset", "networks/trained", "activations/trained", "sae/main", "features/main", "experiments/edit-remove",
    "experiments/segmentation-main", "atlas",
)  # fmt: skip
LIMIT = 120
"""Seconds after which a child hangs."""


# in the child ---------------------------------------------------------------------------------------------------------


def run_stages(data_dir, stages=STAGES, changes=()):
    """The study's stages in order, each made or loaded."""
    from aircraft_sae.study import Study
    from aircraft_sae.view.atlas import export_atlas

    study = Study.open(change(preset("smoke"), **dict(changes)), data_dir=data_dir)
    made = {"dataset": study.pictures, "networks/trained": study.network, "activations/trained": study.activations,
            "sae/main": study.sae, "features/main": study.features, "atlas": partial(export_atlas, study),
            "experiments/edit-remove": partial(_edit, study),
            "experiments/segmentation-main": study.segmentation}  # fmt: skip
    for stage in stages:
        made[stage]()
    return {name: made.made for name, made in study.stages.items()}


def _edit(study):
    """An experiment of notebook 05: parts are taken out of a few scenes."""
    from aircraft_sae.interventions import choose_scenes, edit_scenes

    config, pictures = study.config.dataset.hangar, study.pictures()
    scenes = choose_scenes(pictures, pictures.rows("test")["image"], 1, config.size)
    settings = dict(sites=study.config.sites, kind="remove", parts=pictures.region_names, most=1, size=config.size)
    inputs = {"networks": {"trained": study.network()}, "scenes": scenes}
    study.stage("experiments/edit-remove", edit_scenes, settings | {"supersampling": config.supersampling}, inputs)


def write_labels(data_dir, n=30):
    """A person's labels, each told of once it is on disk."""
    from aircraft_sae import study
    from aircraft_sae.view.browser import Labels

    labels = Labels(Path(data_dir) / "runs" / "smoke", "own")
    study.say("labels: making")
    for i in range(n):
        labels.set(i % 20, label=f"word {i}", rating=i % 6)
        study.say(f"set {i}")
    study.say("labels: made")


def _child(pipe, work, arguments, target, trap, hurried, wrong_clock):
    os.setsid()  # a group of its own, workers included
    with open(os.devnull, "w") as null:
        for stream in (1, 2):
            os.dup2(null.fileno(), stream)
    try:
        armed = _set_trap(trap, str(arguments[0]) if arguments else "")

        def say(line):
            pipe.send(line)
            if target and line.startswith(f"{target}: "):
                armed["now"] = line.endswith(("making", "resuming"))

        _prepare(say, hurried, wrong_clock)
        pipe.send(("result", work(*arguments), dict(armed)))
    except BaseException as error:
        error.add_note(traceback.format_exc())
        pipe.send(("error", type(error).__name__, getattr(error, "errno", None), str(error), error.__notes__[0]))


def _prepare(say, hurried, wrong_clock):
    """Lines to the parent; many notes of how far a stage has come, since the smoke preset's are short; one process."""
    import torch

    from aircraft_sae import activations, store, study
    from aircraft_sae.features import index
    from aircraft_sae.networks import training
    from aircraft_sae.sae import training as sae_training
    from aircraft_sae.view import atlas

    study.say = atlas.say = say
    store.stages.HEARTBEAT, training.CHECKPOINT_SECONDS, sae_training.CHECKPOINT_SECONDS = 0.05, 0.0, 0.0
    activations.SHARD = activations.BATCH = index.PIECE = 8
    torch.set_num_threads(1)  # on busy cores several wait for each other
    if hurried:
        os.cpu_count = lambda: 1  # pictures are rendered in this process, where the trap is
    if wrong_clock:
        time.time = partial(lambda right: right() - 10 * 365 * 86400, time.time)


def _set_trap(trap, root):
    """Count what changes files under `root` once armed, and kill this process just before one of these changes.

    trap: (kind, number). kinds: "event" is any change, "rename" the moment between a file's write and its rename,
    "swap" a change from the last one, when meta.json comes into its place, on.
    """
    counts = {"now": False, "event": 0, "rename": 0, "swap": 0}

    def hook(event, args):
        if not counts["now"] or event not in CHANGES or threading.current_thread() is not threading.main_thread():
            return  # the heartbeat's changes come at any time
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


# in the parent --------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A function in a process of its own: what it said, gave or raised, and when."""

    said: list = field(default_factory=list)
    result: object = None
    counts: dict = field(default_factory=dict)
    error: tuple = ()
    killed: bool = False
    began: float = 0.0
    seconds: float = 0.0
    """From the stage's beginning to its end, or to the kill."""
    outlived: bool = False
    """Whether a worker was still there seconds after its parent was killed."""


def start(work, *arguments, target="", trap=None, kill_after=None, hurried=False, wrong_clock=False):
    """Run work(*arguments) in a child; `finish` waits for it."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_child, args=(theirs, work, arguments, target, trap, hurried, wrong_clock))
    process.start()
    theirs.close()
    return Child(), process, ours, target, kill_after


def finish(child, process, pipe, target, kill_after):
    """Wait for a child, or kill it `kill_after` seconds after the target stage's making began."""
    limit, kill_at = time.monotonic() + LIMIT, None
    while True:
        until = limit if kill_at is None else min(kill_at, limit)
        try:
            got = pipe.recv() if pipe.poll(max(0.0, until - time.monotonic())) else None
        except (EOFError, ConnectionResetError):  # it has ended
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
        elif got[0] == "result":
            child.result, child.counts = got[1:]
        else:
            child.error = got[1:]
    process.join()
    child.killed = process.exitcode == -signal.SIGKILL
    child.outlived = _outlived(process.pid)
    return child


def alone(work, *arguments, **options):
    """`finish(start(...))`."""
    return finish(*start(work, *arguments, **options))


def _outlived(group):
    """Whether workers of a dead process stay; then they are killed."""
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
    """{file: digest} of a stage, less what differs between two runs of the same."""
    return {file.relative_to(folder).as_posix(): _content(file) for file in folder.rglob("*") if file.is_file()}


def _content(file):
    data = file.read_bytes()
    if file.name == META:
        meta = {key: value for key, value in json.loads(data).items() if key not in MEASURED}
        meta["files"] = {name: facts for name, facts in meta["files"].items() if name != "history.csv"}
        data = json.dumps(meta, sort_keys=True).encode()
    if file.name == "history.csv":
        rows = csv.DictReader(io.StringIO(data.decode()))
        data = json.dumps([{name: v for name, v in row.items() if name not in MEASURED} for row in rows]).encode()
    return hashlib.sha256(data).hexdigest()


def exact(runs, stages):
    """{file: (checksum, inode, time of change)} of finished stages: nothing may touch one."""
    files = [file for stage in stages for file in (runs / stage).rglob("*") if file.is_file()]
    return {file: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat()[stat.ST_INO], file.stat().st_mtime_ns)
            for file in files}  # fmt: skip


class Unbroken:
    """A whole run that nothing happened to: what each stage holds, how long it took and how many changes it made."""

    def __init__(self, folder, twice=True):
        self.data_dir, self.scratch = folder / "unbroken", folder / "trial"
        self.runs = self.data_dir / "runs" / "smoke"
        self.contents, self.seconds, self.counts = {}, {}, {}
        for stage in STAGES:
            for workers in (True, False) if stage == "dataset" else (False, False)[: 1 + twice]:
                shutil.rmtree(self.runs / stage, ignore_errors=True)
                child = self.run(self.data_dir, stage, hurried=not workers)
                if workers:
                    self.seconds["dataset, workers"] = child.seconds
                now = contents(self.runs / stage)
                assert self.contents.setdefault(stage, now) == now, f"{stage} differs between two unbroken runs"
            self.seconds[stage], self.counts[stage] = child.seconds, child.counts

    def run(self, data_dir, stage, hurried=True, **options):
        """The study up to a stage, in a child."""
        stages = STAGES[: STAGES.index(stage) + 1]
        child = alone(run_stages, data_dir, stages, target=stage, hurried=hurried, **options)
        if child.error:
            raise RuntimeError(f"{stage}: {child.error}")
        return child

    def copy(self, before=None, to=None):
        """The runs folder of a fresh data folder with the stages before one, or all."""
        to = to or self.scratch
        shutil.rmtree(to, ignore_errors=True)
        runs = to / "runs" / "smoke"
        runs.mkdir(parents=True)
        for stage in STAGES[: STAGES.index(before) if before else None]:
            shutil.copytree(self.runs / stage, runs / stage)
        return runs

    def differing(self, runs, stages=STAGES):
        """What is wrong in a runs folder, in words: contents that differ, and anything left over."""
        wrong = []
        for stage in stages:
            now = contents(runs / stage)
            names = sorted(n for n in now.keys() | self.contents[stage] if now.get(n) != self.contents[stage].get(n))
            wrong += [f"{stage}/{name} differs" for name in names]
        litter = (".partial", ".old", ".tmp", PROGRESS)
        return wrong + [f"{path} is left over" for path in runs.rglob("*") if path.name.endswith(litter)]


def place(runs, stage, whole):
    """How far a killed run had come, by what is on disk."""
    folder = runs / stage
    work, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    if (work / META).is_file() or old.exists():
        return "swap"
    if (work / PROGRESS).is_file():
        return "making"
    if work.exists():  # an empty folder
        return "before"
    same = read_json(folder / META).get("fingerprint") == read_json(whole / META)["fingerprint"]
    return "after" if same else "before"


def kill_trial(unbroken, stage, n_kills, rng):
    """Kill the making of a stage so many times, one after the other, and run on: what happened at each kill, and wrong.

    Half of the kills come at a random time; of the rest a third each before any change on disk, between a write and
    its rename, and in the swap. In half of the trials an outdated stage is there that is to be replaced.
    """
    runs, upstream = unbroken.copy(stage), STAGES[: STAGES.index(stage)]
    data_dir, before, name = runs.parents[1], exact(runs, upstream), stage
    if rng.random() < 0.5:
        shutil.copytree(unbroken.runs / stage, runs / stage)
        meta = read_json(runs / stage / META) | {"fingerprint": "of another config"}
        meta["checksum"] = fingerprint({key: value for key, value in meta.items() if key != "checksum"})
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
        share, resumed = min(1.0, child.seconds / unbroken.seconds[timed]), f"{name}: resuming" in child.said
        kills.append({"how": how, "killed": child.killed, "where": where, "share": share, "resumed": resumed})
        wrong += [f"a worker outlived its killed parent ({options})"] * child.outlived
        if where == "after":
            if not child.killed and f"{name}: making" in child.said:
                unbroken.seconds[timed] = child.seconds  # what else the machine does makes it differ
            break
    pictures = {file: file.stat().st_ino for file in runs.glob(f"{name}.partial/**/images/*.jpg")}
    last = unbroken.run(data_dir, stage)
    kept = {file: runs / stage / file.relative_to(runs / f"{name}.partial") for file in pictures}
    lost = [file.name for file, now in kept.items() if now.stat().st_ino != pictures[file]]
    if kills[-1]["where"] == "making" and f"{name}: resuming" not in last.said:
        wrong.append(f"not resumed: {last.said}")
    wrong += [f"{name} was made before the kill, and again" for name in lost]
    wrong += unbroken.differing(runs, (*upstream, stage))
    changed = [str(file) for file, facts in exact(runs, upstream).items() if before.get(file) != facts]
    return {"kills": kills, "wrong": wrong, "changed": changed + [str(f) for f in before if not f.exists()]}


def label_trial(folder, rng):
    """Kill a process that writes labels, and look at the file: all that was told of is there."""
    from aircraft_sae.view.browser import Labels

    shutil.rmtree(folder, ignore_errors=True)
    other = Labels(folder / "runs" / "smoke", "another")
    other.set(3, label="kept")
    how = rng.choice(["time", "event", "rename"])
    trap = (how, rng.randrange(30 if how == "rename" else 100))  # each label takes three changes and a bit
    options = {"kill_after": rng.random() * 0.5} if how == "time" else {"trap": trap}
    child = alone(write_labels, folder, target="labels", **options)
    told = [int(line.split()[1]) for line in child.said if line.startswith("set ")]
    found, wrong = Labels(folder / "runs" / "smoke", "own").all(), []
    expected = {i % 20: f"word {i}" for i in told}
    following = len(told)  # on disk perhaps, though not told of
    for feature in expected.keys() | found.keys():
        allowed = {expected.get(feature)} | ({f"word {following}"} if feature == following % 20 else set())
        if found.get(feature, {}).get("label") not in allowed:
            wrong.append(f"feature {feature} is {found.get(feature)}, not {allowed}")
    if other.all() != {3: {"label": "kept", "note": "", "rating": 0}}:
        wrong.append(f"the other autoencoder's labels are {other.all()}")
    return {"kills": [{"how": how, "killed": child.killed, "where": "making" if child.killed else "after",
                       "share": len(told) / 30, "resumed": False}], "wrong": wrong, "changed": []}  # fmt: skip


def two_at_once(unbroken, first="dataset", kill=False):
    """Two processes make the same stages at the same time; what is wrong. kill: the first to make one is killed."""
    runs, target = unbroken.copy(first), first
    trap = ("event", unbroken.counts[first]["event"] // 2) if kill else None
    both = [start(run_stages, runs.parents[1], target=target, trap=trap, hurried=kill)]
    while kill and both[0][1].is_alive() and not (runs / f"{first}.partial").exists():
        time.sleep(0.01)  # else the second may be the first
    both.append(start(run_stages, runs.parents[1], target=target))
    both = [finish(*one) for one in both]
    wrong = unbroken.differing(runs)
    done = [child for child in both if not child.killed]
    wrong += [f"an error: {child.error}" for child in done if child.error]
    names = STAGES[STAGES.index(first) :]
    made = Counter(line.split(":")[0] for child in both for line in child.said if ": made in" in line)
    wrong += [f"made {made}, not once each of {names}"] if made != Counter(names) else []
    waited = sum("waiting for process" in line for child in both for line in child.said)
    return {"wrong": wrong, "waited": waited, "killed": len(both) - len(done)}


def damage(file, rng, how="flip"):
    """Flip one bit of a file, or cut off its end."""
    data, at = bytearray(file.read_bytes()), rng.randrange(file.stat().st_size)
    data[at] ^= 1 << rng.randrange(8)
    file.write_bytes(data[:at] if how == "cut" else data)


def damage_trial(unbroken, stage, rng, how="flip"):
    """A bit of a finished stage's file is flipped, or its end cut off: found, told of, made again, and no more."""
    runs = unbroken.copy()
    files = sorted(file for file in (runs / stage).rglob("*") if file.is_file() and file.stat().st_size)
    file = rng.choice(files)
    damage(file, rng, how)
    others = [other for other in STAGES if other != stage]
    before = exact(runs, others)
    child = alone(run_stages, runs.parents[1])
    wrong = [f"an error: {child.error}"] * bool(child.error) + unbroken.differing(runs)
    wrong += [f"{name} was changed" for name, facts in exact(runs, others).items() if before.get(name) != facts]
    line = f"{stage}: {file.relative_to(runs / stage)} is damaged"
    seen = any(told.startswith(line) for told in child.said)
    if not seen and file.name != META:  # a flipped fingerprint is that of another config
        wrong.append(f"not told that {file.name} is damaged: {child.said}")
    return {"wrong": wrong, "file": file.name, "said": child.said}


def config_trial(unbroken, changes, first, back=True):
    """A config is changed, and changed `back`: what depends on it is made again, and no other file changes."""
    runs, at = unbroken.copy(), STAGES.index(first)
    needs = {"experiments/edit-remove": "networks/trained", "experiments/segmentation-main": "activations/trained"}
    spared = [stage for stage, last in needs.items() if at > STAGES.index(last)]
    kept, again = [*STAGES[:at], *spared], [s for s in STAGES[at:] if s not in spared]
    before = exact(runs, kept)
    child = alone(run_stages, runs.parents[1], STAGES, tuple(changes.items()))
    made = [line.split(":")[0] for line in child.said if ": made in" in line]
    wrong = [f"an error: {child.error}"] * bool(child.error) + [f"made {made}, not {again}"] * (made != again)
    if back:
        child = alone(run_stages, runs.parents[1])
        wrong += [f"an error: {child.error}"] * bool(child.error) + unbroken.differing(runs)
    wrong += [f"{name} was changed" for name, facts in exact(runs, kept).items() if before.get(name) != facts]
    return {"wrong": wrong, "made": made}


def clock_trial(unbroken, stage, rng):
    """A stage is killed, the clock set back ten years and every file dated in the future; then the run goes on."""
    runs = unbroken.copy(stage)
    killed = unbroken.run(runs.parents[1], stage, trap=("event", rng.randrange(unbroken.counts[stage]["event"])))
    for path in runs.rglob("*"):
        os.utime(path, (4e9, 4e9))
    before = exact(runs, STAGES[: STAGES.index(stage)])
    child = alone(run_stages, runs.parents[1], wrong_clock=True)
    wrong = [f"an error: {child.error}"] * bool(child.error) + unbroken.differing(runs)
    wrong += [f"{name} was changed" for name, facts in before.items() if exact(runs, STAGES).get(name) != facts]
    seconds = [read_json(runs / each / META)["seconds"] for each in STAGES]
    wrong += [f"seconds are {seconds}"] * (min(seconds) < 0 or max(seconds) > LIMIT)
    again = alone(run_stages, runs.parents[1])  # the clock is right again
    wrong += [f"made again: {again.said}"] * bool(again.said)
    return {"wrong": wrong, "killed": killed.killed}


# disks of one's own, in a child ---------------------------------------------------------------------------------------


def own_mounts():
    """From here on this process mounts for itself alone; OSError where the system lets it not."""
    user, libc = os.geteuid(), ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000 | (0x10000000 if user else 0)):  # CLONE_NEWNS, CLONE_NEWUSER
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if user:
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    _mount("--make-rprivate", "/")
    with tempfile.TemporaryDirectory() as folder:
        _mount("-t", "tmpfs", "tmpfs", folder)
        _mount("-o", "remount,size=64k", folder)
        subprocess.run(["umount", folder], check=True)


def _mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def _small_disk(folder, runs, stage, share, free):
    """The child of `full_disk`: first little room, then much; what comes of it is copied into `folder`."""
    own_mounts()
    disk = folder / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", disk)
    shutil.copytree(runs, disk / "runs" / "smoke")
    used = shutil.disk_usage(disk).used
    _mount("-o", f"remount,size={used + int(free * share)}", disk)
    stages, error = STAGES[: STAGES.index(stage) + 1], ""
    before = exact(disk / "runs" / "smoke", stages[:-1])
    try:
        run_stages(disk, stages)
    except OSError as problem:
        error = f"{problem.errno} {problem}"
    changed = before != exact(disk / "runs" / "smoke", stages[:-1])
    whole = (disk / "runs" / "smoke" / stage / META).exists()
    _mount("-o", "remount,size=1g", disk)
    run_stages(disk, stages)
    changed = changed or before != exact(disk / "runs" / "smoke", stages[:-1])
    shutil.copytree(disk / "runs" / "smoke", folder / "after")
    return error, changed, whole


def full_disk(unbroken, stage, share):
    """The disk has room for a share of what the stage takes; then room is made."""
    runs, folder = unbroken.copy(stage), unbroken.scratch / "full"
    folder.mkdir()
    blocks = sum(-(-file.stat().st_size // 4096) for file in (unbroken.runs / stage).rglob("*"))
    child = alone(_small_disk, folder, runs, stage, share, 4096 * blocks, hurried=True)
    if child.error:
        return {"wrong": [f"an error: {child.error}"], "error": ""}
    error, changed, whole = child.result
    wrong = ["a finished file was changed"] * changed + unbroken.differing(
        folder / "after", STAGES[: STAGES.index(stage) + 1]
    )
    wrong += ["an error, and a finished stage"] * bool(error and whole)
    documented = (f"{errno.ENOSPC} ", "disk full while making"), ("", "GB of disk are free")
    known = any(error.startswith(code) and words in error for code, words in documented)
    if error and not (known and "AIRCRAFT_SAE_DATA_DIR" in error):
        wrong.append(f"not the documented error: {error}")
    return {"wrong": wrong, "error": error}


def _read_only_disk(folder, runs):
    """The child of `read_only`: what loading gives there, and what making something."""
    own_mounts()
    _mount("--bind", folder, folder)
    _mount("-o", "remount,bind,ro", folder)
    made = run_stages(folder)
    try:
        run_stages(folder, STAGES, (("sae.k", 3),))
    except OSError as problem:
        return made, type(problem).__name__, str(problem)
    return made, "", ""


def read_only(unbroken):
    """All stages are loaded from a data folder that cannot be written to, and none can be made there."""
    runs = unbroken.copy()
    before = exact(runs, STAGES)
    child = alone(_read_only_disk, runs.parents[1], runs)
    if child.error:
        return {"wrong": [f"an error: {child.error}"]}
    made, name, message = child.result
    wrong = [f"made {made}"] * any(made.values()) + ["changed"] * (before != exact(runs, STAGES))
    if name != "PermissionError" or "AIRCRAFT_SAE_DATA_DIR" not in message:
        wrong.append(f"not the documented error: {name} {message}")
    return {"wrong": wrong, "error": message}


# the long version -----------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of each stage")
    parser.add_argument("--only", nargs="+", choices=(*STAGES, "labels"), help="kills of these, and no other faults")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        unbroken = Unbroken(Path(folder))
        print(f"an unbroken run, twice, to the same bytes: {time.monotonic() - began:.0f} s", flush=True)
        bad = _kills(unbroken, Path(folder) / "labels", options, rng)
        bad += [] if options.only else _others(unbroken, rng)
    sys.exit(f"{len(bad)} wrong" if bad else 0)


def _kills(unbroken, labels, options, rng):
    names = ("stage", "kills", "time", "event", "rename", "swap", "too late", "before", "making", "in the swap",
             "after", "share at the kill", "runs", "equal", "finished files changed", "seconds")  # fmt: skip
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    bad = []
    for stage in options.only or (*STAGES, "labels"):
        began, trials, kills, missed = time.monotonic(), [], [], 0
        while len(kills) < options.kills:
            most = min(rng.choice([1, 1, 2, 3]), options.kills - len(kills))
            trial = label_trial(labels, rng) if stage == "labels" else kill_trial(unbroken, stage, most, rng)
            kills += [kill for kill in trial["kills"] if kill["killed"]]
            missed += sum(not kill["killed"] for kill in trial["kills"])  # the stage was made before
            trials.append(trial)
            for line in trial["wrong"] + trial["changed"]:
                bad.append(f"{stage}: {line} {trial['kills']}")
                print("WRONG", bad[-1], file=sys.stderr, flush=True)
        how, where = (Counter(kill[key] for kill in kills) for key in ("how", "where"))
        quartiles = np.quantile([kill["share"] for kill in kills], (0.25, 0.5, 0.75))
        cells = [stage, len(kills), *(how[h] for h in ("time", "event", "rename", "swap"))]
        cells += [missed, *(where[w] for w in ("before", "making", "swap", "after"))]
        cells += [", ".join(f"{q:.2f}" for q in quartiles), len(trials), sum(not trial["wrong"] for trial in trials)]
        cells += [sum(len(trial["changed"]) for trial in trials), f"{time.monotonic() - began:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return bad


def _others(unbroken, rng):
    """Every other fault; what was wrong."""
    trials = {f"two at once, from {first}{', one killed' * kill}": partial(two_at_once, unbroken, first, kill)
              for first in ("dataset", "networks/trained", "sae/main") for kill in (False, True)}  # fmt: skip
    trials |= {f"{how}: {stage} {i}": partial(damage_trial, unbroken, stage, rng, how)
               for stage in STAGES for how in ("flip", "cut") for i in range(3)}  # fmt: skip
    changes = {"dataset.hangar.seed": 1, "classifier.seed": 1, "n_views": 0, "sae.k": 3}
    for name, first in zip(changes, ("dataset", "networks/trained", "activations/trained", "sae/main"), strict=True):
        trials[f"changed: {name}"] = partial(config_trial, unbroken, {name: changes[name]}, first)
    trials |= {f"clock: {stage}": partial(clock_trial, unbroken, stage, rng) for stage in STAGES}
    if error := alone(own_mounts).error:
        print(f"no full or read-only disk: this system lets a process not mount ({error[2]})")
    else:
        trials |= {f"full disk: {stage}, room for {share:.0%}": partial(full_disk, unbroken, stage, share)
                   for stage in STAGES for share in (0.05, 0.3, 0.6, 0.9)}  # fmt: skip
        trials["read-only"] = partial(read_only, unbroken)
    bad = []
    for name, trial in trials.items():
        began, made = time.monotonic(), trial()
        facts = {key: value for key, value in made.items() if key not in ("wrong", "said")}
        print(f"{name}: {'WRONG' if made['wrong'] else 'right'}, {time.monotonic() - began:.0f} s {facts}", flush=True)
        for line in made["wrong"]:
            bad.append(f"{name}: {line}")
            print("WRONG", bad[-1], file=sys.stderr, flush=True)
    return bad


if __name__ == "__main__":
    main()
