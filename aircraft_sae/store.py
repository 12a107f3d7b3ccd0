"""Stage folders on disk: written whole or not at all, known by a fingerprint, resumable after a kill.

A stage is made in `<name>.partial` and renamed to `<name>` once its `meta.json` is written, so a folder with the final
name is always whole. A kill leaves a partial folder, which the next call resumes, or half a swap, which the next call
finishes. `<name>.lock` keeps two processes from making the same stage at once. Every file's checksum is compared when a
stage is loaded: a damaged one is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from filelock import FileLock, Timeout

if TYPE_CHECKING:  # the command works without loading pandas
    import pandas as pd

META = "meta.json"
LABELS = "labels.csv"
"""What a person wrote about features, in a study's folder: it is never made again."""
PROGRESS = ".making.json"
"""Inside a partial folder: for what fingerprint and by which process it is made, seconds and memory so far."""
HEARTBEAT = 1.0
"""Seconds between two samples of time and memory."""


@dataclass(frozen=True)
class Stage:
    """A finished stage folder."""

    folder: Path
    meta: dict[str, Any]
    made: bool
    """Whether this call made it (False: it was loaded)."""

    @property
    def fingerprint(self) -> str:
        return self.meta["fingerprint"]


def default_data_dir() -> Path:
    """AIRCRAFT_SAE_DATA_DIR, else the repository's data folder, else ./data where the package is not in a checkout.

    Raises: ValueError where it is a file.
    """
    if chosen := os.environ.get("AIRCRAFT_SAE_DATA_DIR"):
        return data_folder(chosen)
    checkout = Path(__file__).resolve().parents[1]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def data_folder(path: str | Path) -> Path:
    """An absolute path that is a folder or can become one; ValueError for a file, and for a path below one."""
    path = Path(path).expanduser().resolve()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is no folder: name another in data_dir=... or AIRCRAFT_SAE_DATA_DIR")
    return path


def fingerprint(*values: Any) -> str:
    """16 hex digits for dataclasses and plain JSON values; ValueError for anything else."""
    try:
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False, default=asdict)
    except TypeError as error:
        raise ValueError(f"only dataclasses and plain JSON values have a fingerprint, got {values!r}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_digest(paths: Iterable[Path]) -> str:
    """16 hex digits for the content of files, and of folders with all below them; names count, places do not."""
    entries = []
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there, so it has no digest")
        files = [path] if path.is_file() else _files(path)
        entries += [(file.relative_to(path.parent).as_posix(), _sha256(file)) for file in files]
    return fingerprint(sorted(entries))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON whole or not at all; ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=asdict) + "\n")


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table whole or not at all."""
    write_whole(path, table.to_parquet)


def make_stage(
    folder: Path,
    config: Any,
    inputs: Mapping[str, str],
    make: Callable[[Path], None],
    *,
    say: Callable[[str], None] = print,
) -> Stage:
    """Load the stage in `folder`, or make it with `make(work)`; work holds what an earlier, killed make left there.

    config: a dataclass or plain JSON value; inputs: fingerprints of what the stage is made from. Raises: what make
    raises (its work is kept for the next call); OSError that names the disk when it is full; PermissionError where the
    stage has to be made and nothing can be written.
    """
    folder = Path(folder)
    work, old, lock = (folder.with_name(folder.name + end) for end in (".partial", ".old", ".lock"))
    wanted = fingerprint(config, dict(inputs))
    if not old.exists() and (meta := _load(folder, wanted)):
        return Stage(folder, meta, made=False)
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # else it would wait for its parent, for ever
        raise RuntimeError(
            f"{folder.name} would be made by a worker process, which runs your script's code anew: put that code under "
            'if __name__ == "__main__":'
        )
    make_parents(folder)
    with _locked(lock, lambda: say(f"{folder.name}: waiting for process {read_json(work / PROGRESS).get('pid', '')}")):
        if (work / META).is_file():  # a kill during the swap
            _swap(work, folder, old)
        elif folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        if meta := _load(folder, wanted, say):
            return Stage(folder, meta, made=False)
        try:
            meta = _make(work, folder.name, wanted, make, say) | {"config": config, "inputs": dict(inputs)}
            meta = json.loads(json.dumps(meta, default=asdict))  # as it will be read
            write_json(work / META, meta | {"checksum": fingerprint(meta)})
        except Exception as error:
            if not _full(error, folder.parent):
                raise
            free = shutil.disk_usage(folder.parent).free
            raise OSError(
                errno.ENOSPC,
                f"disk full while making {folder} ({free / 1e6:.1f} MB free): make room, or point "
                f"AIRCRAFT_SAE_DATA_DIR at a larger disk; what {work.name} holds is kept and used",
            ) from error
        _swap(work, folder, old)
    megabytes = sum(file["bytes"] for file in meta["files"].values()) / 1e6
    say(f"{folder.name}: made in {meta['seconds']:.0f} s, {megabytes:.1f} MB")
    return Stage(folder, read_json(folder / META), made=True)


def make_parents(path: Path) -> None:
    """Make the folder that `path` is to be in; PermissionError where nothing can be written."""
    above = next(each for each in path.parents if each.exists())
    if not os.access(above, os.W_OK):
        remedy = "make it writable, or point AIRCRAFT_SAE_DATA_DIR at a folder that is"
        raise PermissionError(errno.EACCES, f"{path} has to be made, and {above} cannot be written to: {remedy}")
    path.parent.mkdir(parents=True, exist_ok=True)


def _make(work: Path, name: str, wanted: str, make: Callable[[Path], None], say: Callable[[str], None]) -> dict:
    progress = read_json(work / PROGRESS)
    if progress.get("fingerprint") != wanted:
        shutil.rmtree(work, ignore_errors=True)
        progress = {"fingerprint": wanted, "seconds": 0.0, "peak_memory_bytes": 0}
    progress.pop("pid", None)  # of who was killed
    say(f"{name}: {'resuming' if work.exists() else 'making'}")
    work.mkdir(exist_ok=True)
    with _watched(work / PROGRESS, progress):
        make(work)
    for left_over in work.rglob(".*.tmp"):  # of atomic writes that were killed
        left_over.unlink()
    files = {file.relative_to(work).as_posix(): file for file in _files(work) if file != work / PROGRESS}
    return progress | {
        "versions": {p: version(p) for p in ("torch", "timm", "numpy")} | {"python": platform.python_version()},
        "files": {name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for name, file in files.items()},
    }


@contextmanager
def _watched(path: Path, progress: dict[str, Any]) -> Iterator[None]:
    """Add time and memory to `progress`, on disk too: a kill loses one heartbeat, a waiting process finds the pid."""
    began = time.monotonic() - progress["seconds"]

    def beat():
        peak = max(progress["peak_memory_bytes"], memory())
        progress.update(seconds=round(time.monotonic() - began, 3), peak_memory_bytes=peak)
        with suppress(OSError):  # a full disk is reported by whoever writes the data
            write_json(path, progress | {"pid": os.getpid()})

    with heartbeat(beat):
        yield


@contextmanager
def heartbeat(beat: Callable[[], None]) -> Iterator[None]:
    """Call `beat` now, every HEARTBEAT seconds in a thread, and at the end."""
    stop = threading.Event()

    def watch():
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


def memory(itself: bool = True) -> int:
    """Bytes of this process (itself) and its children; pages they share count once where the system can tell."""
    total = 0
    for process in [psutil.Process()] * itself + psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            used = process.memory_full_info()
            total += getattr(used, "pss", used.rss)
    return total


def stage_metas(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: meta} of the finished stages in a study's folder, as "sae/main"."""
    found = {}
    for pattern in (f"*/{META}", f"*/*/{META}"):
        with suppress(FileNotFoundError):  # another process puts a stage in its place
            for path in sorted(folder.glob(pattern)):
                meta, own = read_json(path), path.parent
                if isinstance(meta.get("files"), dict) and not own.name.endswith((".partial", ".old")):
                    found[own.relative_to(folder).as_posix()] = meta
    return found


def is_whole(folder: Path, wanted: str) -> bool:
    """Whether a stage of this fingerprint is there, with every file as it was written."""
    return bool(_load(folder, wanted))


def _load(folder: Path, wanted: str, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The meta of a whole stage, {} where it is absent, of another fingerprint or damaged."""
    meta = read_json(folder / META)
    problem = _problem(folder, meta, wanted) if (folder / META).exists() else ""
    if problem and say:
        say(f"{folder.name}: {problem}")
    return {} if problem else meta


def _problem(folder: Path, meta: dict[str, Any], wanted: str) -> str:
    """What keeps a stage from being loaded, if anything does."""
    told = {key: value for key, value in meta.items() if key != "checksum"}
    if not meta or meta.get("checksum", fingerprint(told)) != fingerprint(told):  # older ones have none
        return f"{META} is damaged"
    if not isinstance(meta.get("files"), dict):
        return f"{META} is damaged"
    if meta.get("fingerprint") != wanted:
        return "its config or what it is made from changed"
    for name, recorded in meta["files"].items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != recorded["bytes"]:
            return f"{name} is damaged: {size} bytes, {recorded['bytes']} recorded"
        if _sha256(file) != recorded["sha256"]:
            return f"{name} is damaged: its checksum differs from the recorded one"
    return ""


def _full(error: Exception, folder: Path) -> bool:
    """Whether a full disk is behind an error: libraries wrap the system's in their own."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    with suppress(OSError):
        return shutil.disk_usage(folder).free <= 2**16
    return False


@contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _swap(work: Path, folder: Path, old: Path) -> None:
    (work / PROGRESS).unlink(missing_ok=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file beside `path`, then put it in its place: whole, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _full(error, path.parent):  # to be seen now: without what was written there is room again
            raise OSError(errno.ENOSPC, f"disk full while writing {path}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, damaged or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
