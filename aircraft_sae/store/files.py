"""Files written whole or not at all, where they go, and digests: 16 hex digits for content, the same on any machine."""

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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

META = "meta.json"  # what is known of a finished stage, in its folder
ENTRY = ("value", "low", "high", "n")
REPLACED = (
    "was removed, or made anew by another study of the same name with another config: open this one again, and give "
    "one of the two another name"
)
LABELS = "labels.csv"  # what a person wrote about features, in a study's folder: it is never made again
_PARSING, N_TRIES = threading.Lock(), 100
"""Python 3.11 fails now and then when two threads build a syntax tree at once (its issue 106905), as numpy does to read
an array's header: hence one at a time here, each source once, and again where it failed."""
_seen: dict[str, tuple[Any, str]] = {}  # {module: (spec, digest)} as first asked for; loaded anew, its spec is another


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


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy file whole or not at all."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # to a path, numpy would add an ending
            np.save(file, array)

    write_whole(path, write)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where it is absent, damaged or none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def entries(results: Mapping[str, Any]) -> dict[str, dict[str, float | int | None]]:
    """{name: {value, low, high, n}} of six digits, from values, tuples or dicts; ValueError for others, not finite."""
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


def digest(value: Any) -> str:
    """16 hex digits for what `value` holds.

    value: plain values, lists, dicts, dataclasses, arrays, tensors, tables, paths (known by content, not by place) and
    whatever has a text `fingerprint`; nested as you like. A tuple is as a list, a number of numpy's as a plain one.
    Raises: ValueError that names any other thing; FileNotFoundError.
    """
    return _short(json.dumps(_plain(value, "value")).encode())


def fingerprint(*values: Any) -> str:
    """The digest of several values."""
    return digest(values)


def source_digest(function: Callable) -> str:
    """16 hex digits for the source of a function's module, less comments, docstrings and layout.

    The modules that it imports from its own room (aircraft_sae.features, say) count with it, and what these import.
    Raises: ValueError for a function that the source does not tell (a notebook's, inner, …) and for a changed module.
    """
    name, module = getattr(function, "__qualname__", repr(function)), inspect.getmodule(function)
    path = getattr(module, "__file__", None)
    if not inspect.isfunction(function) or not path or module.__name__ == "__main__" or "<" in name:
        raise ValueError(f"make must be a function of the package, got {name} of {module}: move it there")
    sources = {}
    with _PARSING:
        _add_source(module.__name__, sources)
    return digest(sorted(sources.items()))


def _add_source(name: str, sources: dict[str, str]) -> None:
    """Add the digest of a module's source, and of those that it imports from its room, loaded by now or not."""
    spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
    now, imported = _parsed(Path(spec.origin).read_bytes())
    sources[name] = now
    loaded, then = _seen.setdefault(name, (spec, now))
    if spec is loaded and now != then:  # the old code's result would be known as the new code's
        raise ValueError(f"{spec.origin} was changed after it was loaded: restart the kernel")
    _seen[name] = spec, now
    room = ".".join(name.split(".")[:2])
    for other in imported:
        if (other == room or other.startswith(f"{room}.")) and other not in sources:
            _add_source(other, sources)


@cache
def _parsed(source: bytes) -> tuple[str, set[str]]:
    """(digest of a source, less comments and docstrings; the modules that it imports from)."""
    for _ in range(N_TRIES):
        with suppress(SystemError):
            tree = ast.parse(source)
            break
    else:
        raise SystemError(f"Python could not parse a source in {N_TRIES} tries: run it again, or in Python 3.12")
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
        if isinstance(body := getattr(node, "body", None), list):  # a constant alone is a docstring
            node.body = [each for each in body if not (type(each) is ast.Expr and type(each.value) is ast.Constant)]
    return _short(ast.dump(tree).encode()), imported


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(value: Any, name: str) -> Any:
    """`value` in JSON's types, where a dict {kind: …} stands for what JSON lacks; name: what to call it in an error."""
    library, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(known := getattr(value, "fingerprint", None), str):
        return {"fingerprint": known}
    if isinstance(value, list | tuple | range):
        return [_plain(each, f"{name}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, Mapping):
        entries = [[_plain(key, name), _plain(each, f"{name}[{key!r}]")] for key, each in value.items()]
        return {"dict": sorted(entries, key=lambda entry: json.dumps(entry[0]))}
    if isinstance(value, Path):
        if known := read_json(value / META).get("fingerprint"):  # a stage: its meta.json tells seconds as well
            return {"fingerprint": known}
        files = sorted(file for file in value.rglob("*") if file.is_file()) if value.is_dir() else [value]
        return {"path": [[file.relative_to(value).as_posix(), sha256(file)] for file in files]}
    if is_dataclass(value) and not isinstance(value, type):
        inner = {each.name: _plain(getattr(value, each.name), f"{name}.{each.name}") for each in fields(value)}
        return {"dataclass": [kind, inner]}
    if library == "torch" and str(getattr(value, "layout", "")) == "torch.strided":
        import torch

        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return {"tensor": [str(value.dtype), list(value.shape), _short(content)]}
    if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32):
        return value.item()
    if type(value) in (np.ndarray, np.memmap):
        if value.dtype.hasobject:  # a thousand at a time: the scenes of ten thousand pictures are 60 MB
            parts = (_plain(value[i : i + 1000].tolist(), name) for i in range(0, len(value), 1000))
            return {"array": [list(value.shape), [_short(json.dumps(part).encode()) for part in parts]]}
        content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"array": [_plain(np.lib.format.dtype_to_descr(value.dtype), name), list(value.shape), _short(content)]}
    if library == "pandas" and kind == "DataFrame":
        index = value.index.to_frame(index=False, name=range(value.index.nlevels))
        names = [list(value.index.names), list(value.columns.names)]
        return {"table": [_columns(value, name), _columns(index, f"{name}.index"), _plain(names, name)]}
    if library == "pandas" and hasattr(value, "to_frame"):  # a series or an index
        return {kind: _plain(value.to_frame(), name)}
    known = "plain values, arrays, tables, paths, dataclasses of these, or an object that has a fingerprint"
    raise ValueError(f"{name} is of type {type(value).__module__}.{kind}, which has no digest: hand over {known}")


def _columns(table: Any, name: str) -> list:
    """Label, dtype and values of each column; whatever is missing where numpy has no word for it is None."""
    columns = []
    for label, column in table.items():
        kind, values = column.dtype, column
        if not isinstance(kind, np.dtype) or kind.hasobject:
            values = column.astype(object).where(column.notna(), None)
        own = [label, str(kind), getattr(kind, "categories", None), getattr(kind, "ordered", None), values.to_numpy()]
        columns.append(_plain(own, f"{name}[{label!r}]"))
    return columns


def sha256(path: Path) -> str:
    """The checksum of a file; read once in a process, unless it may have changed since."""
    found = path.stat()
    if time.time_ns() - found.st_mtime_ns < 2e9:  # a second change could leave the same time
        return _sha256.__wrapped__(str(path))
    return _sha256(str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _sha256(path: str, *_known_by: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
