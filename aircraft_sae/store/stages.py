"""Stage folders on disk: written whole or not at all, identified by a fingerprint, resumed after a kill.

A stage is made in `<name>.partial`, which is renamed to `<name>` once its `meta.json` is written. A kill leaves either
the partial folder, which the next call resumes, or an unfinished swap, which it completes. `<name>.lock` keeps two
processes from making the same stage at once. A stage is made again if a file no longer has its recorded checksum.
"""

import ctypes
import json
import multiprocessing
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from aircraft_sae.store.files import META, digest, full_disk_named, make_parents, read_json, sha256, write_json

PROGRESS = ".making.json"  # in a partial folder: its fingerprint, seconds and peak memory so far
REPLACED = "was removed, or made anew by another study of the same name: open this one again, and rename one of them"
HEARTBEAT = 3.0  # seconds between two samples of time and memory, each of which takes 50 ms


@dataclass(frozen=True)
class Stage:
    """A finished stage folder."""

    folder: Path
    meta: dict[str, Any]
    made: bool  # by this call; False: loaded

    def check(self, work: Path | None = None) -> None:
        """ValueError if another study has made the stage anew; removes `work`, which was made from it."""
        if read_json(self.folder / META).get("fingerprint") != self.meta["fingerprint"]:
            if work:
                shutil.rmtree(work)
            raise ValueError(f"{self.folder} {REPLACED}")


def say(text: str) -> None:
    """Print a line to stderr; on stdout it would end up in the notebooks' outputs."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # one write per line, since stages may run in parallel


def make_stage(
    folder: Path, config: Any, inputs: dict[str, str], make: Callable, name: str = "", source: Stage | None = None
) -> Stage:
    """Load the stage in `folder`, or make it with `make(work)`, where work holds what a killed run left behind.

    config: plain JSON or a dataclass; inputs: digests of what the stage is made from; name: the stage's name in
    messages; source: a stage that make reads.
    Raises: whatever make raises, OSError for a full disk, PermissionError, ValueError if `source` was made anew.
    """
    if source:
        source.check()
    name = name or folder.name
    work, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
    wanted = digest([config, inputs])
    if not old.exists() and (meta := load_meta(folder, wanted)):
        return Stage(folder, meta, made=False)
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # it would wait for its parent for ever
        remedy = 'put your script\'s code under if __name__ == "__main__":'
        raise RuntimeError(f"{name} would be made by a worker process, which runs your script anew: {remedy}")
    make_parents(folder)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        say(f"{name}: waiting for another process that is making it")
        held = lock.acquire()
    with held:
        if (work / META).is_file():  # killed during the swap
            _swap(work, folder, old)
        elif folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        if meta := load_meta(folder, wanted, lambda problem: say(f"{name}: {problem}")):
            return Stage(folder, meta, made=False)
        remedy = f"make room, or point AIRCRAFT_SAE_DATA_DIR at a larger disk; {work.name} is kept and will be resumed"
        with full_disk_named(f"making {folder}", folder.parent, remedy):
            meta = _make(work, name, wanted, make) | {"config": config, "inputs": inputs}
            if source:
                source.check(work)
            meta = json.loads(json.dumps(meta, default=asdict))  # as it will be read back
            write_json(work / META, meta | {"checksum": digest(meta)})
        _swap(work, folder, old)
    megabytes = sum(file["bytes"] for file in meta["files"].values()) / 1e6
    say(f"{name}: made in {meta['seconds']:.0f} s, {megabytes:.1f} MB")
    return Stage(folder, meta, made=True)


def _make(work: Path, name: str, wanted: str, make: Callable) -> dict:
    progress = read_json(work / PROGRESS)
    if progress.get("fingerprint") != wanted:
        shutil.rmtree(work, ignore_errors=True)
        progress = {"fingerprint": wanted}
    say(f"{name}: {'resuming' if work.exists() else 'making'}")
    work.mkdir(exist_ok=True)
    with suppress(OSError, AttributeError, TypeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)  # return hundreds of megabytes that parallel passes have freed
    with watched(progress, work / PROGRESS):
        make(work)
    for left_over in work.rglob(".*.tmp"):  # from interrupted atomic writes
        left_over.unlink()
    files = sorted(path for path in work.rglob("*") if path.is_file() and path.name != PROGRESS)
    versions = {p: version(p) for p in ("torch", "timm", "numpy")} | {"python": platform.python_version()}
    facts = {
        path.relative_to(work).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    return progress | {"versions": versions, "files": facts}


@contextmanager
def watched(note: dict[str, Any], path: Path | None = None) -> Iterator[None]:
    """Add seconds and peak memory (bytes, with child processes) to `note`; keep a copy in the file `path`, if any."""
    stop = threading.Event()
    began = time.monotonic() - note.get("seconds", 0)

    def beat() -> None:
        peak = max(note.get("peak_memory_bytes", 0), _memory())
        note.update(seconds=round(time.monotonic() - began, 3), peak_memory_bytes=peak)
        with suppress(OSError):  # a full disk is reported where the data are written
            path and write_json(path, note)

    def watch() -> None:
        while not stop.wait(HEARTBEAT):
            beat()

    beat()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        beat()


def _memory() -> int:
    """Bytes used by this process and its children; shared pages count once where the system can tell."""
    total, own = 0, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            used = process.memory_full_info()
            total += getattr(used, "pss", used.rss)
    return total


def stage_metas(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: meta} of the finished stages in a study's folder, such as "sae/main"."""
    metas = {path.parent.relative_to(folder).as_posix(): _meta(path.parent) for path in folder.rglob(META)}
    return {name: meta for name, meta in metas.items() if meta and not name.endswith((".partial", ".old"))}


def load_meta(folder: Path, wanted: str, tell: Callable[[str], None] = lambda problem: None) -> dict[str, Any]:
    """The meta of an intact stage with this fingerprint; else {}, and `tell` is called with the reason."""
    meta = _meta(folder)
    if meta and meta["fingerprint"] == wanted:
        for name, recorded in meta["files"].items():
            if not (folder / name).is_file() or sha256(folder / name) != recorded["sha256"]:
                tell(f"{name} is damaged: it is missing, or its checksum differs from the recorded one")
                return {}
        return meta
    if (folder / META).exists():
        tell("its config or its inputs have changed" if meta else f"{META} is damaged")
    return {}


def _meta(folder: Path) -> dict[str, Any]:
    meta = read_json(folder / META)
    return meta if meta.pop("checksum", None) == digest(meta) else {}


def _swap(work: Path, folder: Path, old: Path) -> None:
    (work / PROGRESS).unlink(missing_ok=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    shutil.rmtree(old, ignore_errors=True)
