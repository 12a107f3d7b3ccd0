"""Files that are written whole or not at all, and the folder they go to."""

import errno
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

META = "meta.json"  # what is known of a finished stage, in its folder
ENTRY = ("value", "low", "high", "n")
LABELS = "labels.csv"  # what a person wrote about features, in a study's folder: it is never made again


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside of it where it was installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def data_folder(chosen: str | Path | None = None) -> Path:
    """`chosen`, else AIRCRAFT_SAE_DATA_DIR, else data/ of the checkout or where Python runs; ValueError for a file."""
    if not (chosen := chosen or os.environ.get("AIRCRAFT_SAE_DATA_DIR")):
        checkout = Path(__file__).resolve().parents[2]
        chosen = (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"
    path = Path(chosen).expanduser().resolve()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is no folder: name another in data_dir=... or AIRCRAFT_SAE_DATA_DIR")
    return path


def make_parents(path: Path) -> None:
    """Make the folder that `path` is to be in; PermissionError where nothing can be written."""
    above = next(each for each in path.parents if each.exists())
    if not os.access(above, os.W_OK):
        remedy = "make it writable, or point AIRCRAFT_SAE_DATA_DIR at a folder that is"
        raise PermissionError(errno.EACCES, f"{path} has to be made, and {above} cannot be written to: {remedy}")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_room(folder: Path, needed: int, remedy: str) -> None:
    """Make a folder; OSError where its disk has no room for so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB of disk are free"
        raise OSError(f"writing into {folder} needs {sizes}: {remedy}")


@contextmanager
def full_disk_named(doing: str, folder: Path, remedy: str) -> Iterator[None]:
    """OSError that says so where a full disk is behind an error: libraries wrap the system's in their own."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        with suppress(OSError):
            full = full or shutil.disk_usage(folder).free <= 2**16
        if full:
            raise OSError(errno.ENOSPC, f"disk full while {doing}: {remedy}") from error
        raise


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file beside `path`, then put it in its place; OSError that names a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        # inside: without what was written there would be room again
        with full_disk_named(f"writing {path}", path.parent, "make room"):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON whole or not at all; ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=asdict) + "\n")


def write_parquet(table: Any, path: Path) -> None:
    """Write a table of pandas whole or not at all."""
    write_whole(path, table.to_parquet)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, damaged or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def entries(results: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """{name: {value, low, high, n}} of six significant digits: further ones differ between machines.

    Each is given as a value, (value, low, high, n) or a dict of these. Raises: ValueError for others, or not finite.
    """
    flat = {}
    for name, given in results.items():
        if isinstance(given, tuple) and len(given) == len(ENTRY):
            given = dict(zip(ENTRY, given, strict=True))
        elif not isinstance(given, dict):
            given = dict.fromkeys(ENTRY) | {"value": given}
        if set(given) != set(ENTRY):
            raise ValueError(f"{name} must have {', '.join(ENTRY)}, got {', '.join(given)}")
        flat[name] = {key: _number(f"{name} ({key})", given[key], key != "value") for key in ENTRY}
    return flat


def _number(name: str, value: Any, optional: bool) -> float | int | None:
    if value is None and optional:
        return None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value if isinstance(value, int) else float(f"{value:.6g}")
