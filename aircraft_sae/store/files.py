"""Files that are written whole or not at all, and the folder they go to."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command works without loading pandas
    import pandas as pd

META = "meta.json"
"""What is known of a finished stage, in its folder."""
LABELS = "labels.csv"
"""What a person wrote about features, in a study's folder: it is never made again."""


def default_data_dir() -> Path:
    """AIRCRAFT_SAE_DATA_DIR, else the repository's data folder, else ./data where the package is not in a checkout.

    Raises: ValueError where it is a file.
    """
    if chosen := os.environ.get("AIRCRAFT_SAE_DATA_DIR"):
        return data_folder(chosen)
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def data_folder(path: str | Path) -> Path:
    """An absolute path that is a folder or can become one; ValueError for a file, and for a path below one."""
    path = Path(path).expanduser().resolve()
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


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file beside `path`, then put it in its place; OSError that names a full disk."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if disk_full(error, path.parent):  # to be seen now: without what was written there is room again
            raise OSError(errno.ENOSPC, f"disk full while writing {path}") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def disk_full(error: Exception, folder: Path) -> bool:
    """Whether a full disk is behind an error: libraries wrap the system's in their own."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return True
    with suppress(OSError):
        return shutil.disk_usage(folder).free <= 2**16
    return False


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, damaged or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
