"""Files written whole or not at all, where they go, and digests: 16 hex digits that depend on content alone."""

import ast
import errno
import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np

META = "meta.json"  # the facts of a finished stage, in its folder
ENTRY = ("value", "low", "high", "n")
_PARSING = threading.Lock()


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside it when installed, next to it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / name if (package / name).is_dir() else package.parent / name


def data_folder(chosen: str | Path | None = None) -> Path:
    """`chosen`, else AIRCRAFT_SAE_DATA_DIR, else data/ in the checkout or working directory; ValueError for a file."""
    if not (chosen := chosen or os.environ.get("AIRCRAFT_SAE_DATA_DIR")):
        checkout = Path(__file__).resolve().parents[2]
        chosen = (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"
    path = Path(chosen).expanduser().resolve()
    nearest = next(each for each in (path, *path.parents) if each.exists())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is not a folder: choose another with data_dir=... or AIRCRAFT_SAE_DATA_DIR")
    return path


def make_parents(path: Path) -> None:
    """Make the parent folder of `path`; PermissionError, with a remedy, if it is read-only."""
    nearest = next(each for each in path.parents if each.exists())
    if not os.access(nearest, os.W_OK):
        remedy = "make it writable, or point AIRCRAFT_SAE_DATA_DIR at a folder that is"
        raise PermissionError(errno.EACCES, f"cannot make {path}, since {nearest} cannot be written to: {remedy}")
    path.parent.mkdir(parents=True, exist_ok=True)


def check_room(folder: Path, needed: int, remedy: str) -> None:
    """Make a folder; OSError if its disk has less than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB of disk are free"
        raise OSError(f"writing into {folder} needs {sizes}: {remedy}")


@contextmanager
def full_disk_named(doing: str, folder: Path, remedy: str) -> Iterator[None]:
    """Turn an error caused by a full disk, which libraries report in their own ways, into an OSError that says so."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        with suppress(OSError):  # if the folder cannot be asked, the first error says more
            full = full or shutil.disk_usage(folder).free <= 2**16
        if full:
            raise OSError(errno.ENOSPC, f"disk full while {doing}: {remedy}") from error
        raise


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it; an OSError says if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with full_disk_named(f"writing {path}", path.parent, "make room"):  # checks before the file is deleted
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
    """Write a DataFrame whole or not at all."""
    write_whole(path, table.to_parquet)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # given a path, numpy would append .npy
            np.save(file, array)

    write_whole(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if the file is absent, damaged or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def entries(results: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """{name: {value, low, high, n}} to six digits, from numbers, tuples or dicts; ValueError if not finite."""
    flat = {}
    for name, given in results.items():
        if not isinstance(given, dict):
            values = given if isinstance(given, tuple) else (given, None, None, None)
            given = dict(zip((*ENTRY, "a fifth"), values, strict=False))
        if set(given) != set(ENTRY):
            raise ValueError(f"{name} must have {', '.join(ENTRY)}, got {', '.join(given)}")
        flat[name] = {}
        for key in ENTRY:
            value = given[key].item() if hasattr(given[key], "item") else given[key]
            if isinstance(value, float) and math.isfinite(value):
                value = float(f"{value:.6g}")
            elif not isinstance(value, int) and (value is not None or key == "value"):
                raise ValueError(f"{name} ({key}) must be a finite number, got {value!r}")
            flat[name][key] = value
    return flat


def digest(value: Any) -> str:
    """16 hex digits for the content of `value`.

    value: plain values, lists, dicts, dataclasses, arrays, tensors, tables, paths (by what the files hold) and objects
    with a text `fingerprint`, nested in any way. Tuples count as lists, and numpy's numbers as Python's.
    Raises: ValueError for anything else; FileNotFoundError.
    """
    return _short(json.dumps(_plain(value)).encode())


def source_digest(function: Callable) -> str:
    """16 hex digits for the sources of a function's room, without comments, docstrings and layout.

    A room is all modules of aircraft_sae.features, for example, or the one file of aircraft_sae.metrics.
    Raises: ValueError for a function outside a module (a notebook's, a lambda, …), or a source changed since import.
    """
    name, module = getattr(function, "__qualname__", repr(function)), inspect.getmodule(function)
    path = getattr(module, "__file__", None)
    if not inspect.isfunction(function) or not path or module.__name__ == "__main__" or "<" in name:
        raise ValueError(f"make must be a function of the package, got {name} of {module}: move it there")
    room, files = ".".join(module.__name__.split(".")[:2]), [path]
    if folders := getattr(sys.modules[room], "__path__", None):  # glob leaves out hidden copies, such as Jupyter's
        files = [file for folder in folders for file in sorted(glob(f"{escape(folder)}/**/*.py", recursive=True))]
    with _PARSING:
        now = digest([_without_words(Path(file).read_bytes()) for file in files])
    for loaded, each in list(sys.modules.items()):
        if f"{loaded}.".startswith(f"{room}.") and each.__spec__:
            vars(each.__spec__).setdefault("source_digest", now)
    # else results of the loaded code would be filed under the new code; a reload makes a new spec
    if vars(module.__spec__)["source_digest"] != now:
        raise ValueError(f"the source of {room} was changed after it was loaded: restart the kernel")
    return now


@cache
def _without_words(source: bytes) -> str:
    """The digest of a source without comments, docstrings and layout."""
    try:
        tree = ast.parse(source)
    except SystemError:  # rare, in Python 3.11, while numpy parses in another thread (cpython 106905)
        return _without_words(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):  # a lone constant is a docstring
            node.body = [each for each in body if not (type(each) is ast.Expr and type(each.value) is ast.Constant)]
    return _short(ast.dump(tree).encode())


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """`value` in JSON's types; {kind: …} stands for a type that JSON lacks."""
    library, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(known := getattr(value, "fingerprint", None), str):
        return {"fingerprint": known}
    if isinstance(value, list | tuple | range):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        pairs = [[_plain(key), _plain(each)] for key, each in value.items()]
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if isinstance(value, Path):
        if known := read_json(value / META).get("fingerprint"):  # a stage, whose meta.json also records its duration
            return {"fingerprint": known}
        files = sorted(file for file in value.rglob("*") if file.is_file()) if value.is_dir() else [value]
        return {"path": [[file.relative_to(value).as_posix(), sha256(file)] for file in files]}
    if is_dataclass(value) and not isinstance(value, type):
        return {"dataclass": [kind, {each.name: _plain(getattr(value, each.name)) for each in fields(value)}]}
    if library == "torch" and str(getattr(value, "layout", "")) == "torch.strided":
        import torch

        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return {"tensor": [str(value.dtype), list(value.shape), _short(content)]}
    if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32):
        return value.item()
    if type(value) in (np.ndarray, np.memmap):
        if value.dtype.hasobject:  # in chunks: the scenes of ten thousand pictures are 60 MB
            parts = (_plain(value[i : i + 1000].tolist()) for i in range(0, len(value), 1000))
            return {"array": [list(value.shape), [_short(json.dumps(part).encode()) for part in parts]]}
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"array": [_plain(np.lib.format.dtype_to_descr(value.dtype)), list(value.shape), _short(content)]}
    if library == "pandas" and kind == "DataFrame":
        from pandas.util import hash_pandas_object

        names = list(value.index.names), list(value.columns.names), list(value.columns)
        dtypes = [(str(each), getattr(each, "categories", None), getattr(each, "ordered", None))
                  for each in (value.index.dtype, *value.dtypes)]  # fmt: skip
        mixed = (value.dtypes == "object").to_numpy()  # columns in which pandas gives 1 and "1" the same hash
        rows, others = hash_pandas_object(value.loc[:, ~mixed]), value.loc[:, mixed]
        index = value.index.to_numpy() if value.index.dtype == "object" else None
        return {"table": _plain([names, dtypes, rows.to_numpy(), others.to_numpy(), index])}
    if library == "pandas" and hasattr(value, "to_frame"):  # a series or an index
        return {kind: _plain(value.to_frame())}
    known = "plain values, arrays, tables, paths, dataclasses of these, or an object with a fingerprint"
    raise ValueError(f"{value!r:.80} ({type(value).__module__}.{kind}) has no digest: pass {known}")


def sha256(path: Path) -> str:
    """The checksum of a file, cached until the file changes."""
    found = path.stat()
    if time.time_ns() - found.st_mtime_ns < 2e9:  # another change so soon might leave the time as it is
        return _sha256.__wrapped__(str(path))
    return _sha256(str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _sha256(path: str, *_known_by: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
