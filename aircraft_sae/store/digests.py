"""Digests: what a value holds, and what a function's module says, in 16 hex digits that are the same on any machine."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from aircraft_sae.store.files import META, read_json

_PARSING, N_TRIES = Lock(), 100
"""Python 3.11 fails now and then when two threads build a syntax tree at once (its issue 106905), as numpy does to read
an array's header: hence one at a time here, each source once, and again where it failed."""
_seen: dict[str, tuple[Any, str]] = {}
"""{module: (its spec, its digest)} as first asked for: a module that is loaded anew has another spec."""


def digest(value: Any) -> str:
    """16 hex digits for what `value` holds.

    value: plain values, lists, dicts, sets, dataclasses, arrays, tensors, tables, paths (known by content, not by
    place) and whatever has a text `fingerprint`, which it is known by; nested as you like. A tuple is as a list, a
    number of numpy's as a plain one. Raises: ValueError that names any other thing; FileNotFoundError.
    """
    return _short(json.dumps(_plain(value, "value")).encode())


def fingerprint(*values: Any) -> str:
    """The digest of several values."""
    return digest(values)


def source_digest(function: Callable) -> str:
    """16 hex digits for the source of the module that defines `function`, less comments, docstrings and layout.

    The modules that it imports from its own room (aircraft_sae.features, say) count with it, and what these import.
    What a functools.partial has bound counts too. Raises: ValueError for a function whose module cannot be read again
    (a notebook's) or whose variables cannot be seen (a lambda, an inner function), and for a module that was changed on
    disk after it was loaded.
    """
    bound = []
    while isinstance(function, partial):
        bound += [function.args, function.keywords] if function.args or function.keywords else []
        function = function.func
    function = inspect.unwrap(function)
    name, module = getattr(function, "__qualname__", repr(function)), inspect.getmodule(function)
    path = getattr(module, "__file__", None)
    if not inspect.isfunction(function) or not path or module.__name__ == "__main__" or "<" in name:
        raise ValueError(f"make must be a function of the package, got {name} of {module}: move it there")
    sources: dict[str, str] = {}
    with _PARSING:
        _add_source(module.__name__, sources)
    now = digest(sorted(sources.items()))
    return digest([now, bound]) if bound else now


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
def _parsed(source: bytes) -> tuple[str, frozenset[str]]:
    """(digest of a source, less comments and docstrings; the modules that it imports from)."""
    for _ in range(N_TRIES):
        with suppress(SystemError):
            tree = _NoDocstrings().visit(ast.parse(source))
            break
    else:
        raise SystemError(f"Python could not parse a source in {N_TRIES} tries: run it again, or in Python 3.12")
    imported = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return _short(ast.dump(tree).encode()), frozenset(imported)


class _NoDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        """Texts that stand alone are docstrings, of constants too."""
        return None if isinstance(getattr(node.value, "value", None), str) else node


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(value: Any, name: str) -> Any:
    """`value` in JSON's types, where a dict {kind: …} stands for what JSON lacks; name: what to call it in an error."""
    library, kind = type(value).__module__.partition(".")[0], type(value).__name__
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(known := getattr(value, "fingerprint", None), str):
        return {"fingerprint": known}
    if isinstance(value, bytes):
        return {"bytes": _short(value)}
    if isinstance(value, list | tuple | range):
        return [_plain(each, f"{name}[{i}]") for i, each in enumerate(value)]
    if isinstance(value, set | frozenset):
        return {"set": sorted((_plain(each, name) for each in value), key=json.dumps)}
    if isinstance(value, Mapping):
        entries = [[_plain(key, name), _plain(each, f"{name}[{key!r}]")] for key, each in value.items()]
        return {"dict": sorted(entries, key=lambda entry: json.dumps(entry[0]))}
    if isinstance(value, Path):
        return _path(value)
    if is_dataclass(value) and not isinstance(value, type):
        inner = {each.name: _plain(getattr(value, each.name), f"{name}.{each.name}") for each in fields(value)}
        return {"dataclass": [kind, inner]}
    if library == "torch" and str(getattr(value, "layout", "")) == "torch.strided":
        return _tensor(value)
    if library == "numpy" and hasattr(value, "tobytes") and kind != "MaskedArray":
        return _array(value, name)
    if library == "pandas" and kind == "DataFrame":
        index = value.index.to_frame(index=False, name=range(value.index.nlevels))
        names = [list(value.index.names), list(value.columns.names)]
        return {"table": [_columns(value, name), _columns(index, f"{name}.index"), _plain(names, name)]}
    if library == "pandas" and hasattr(value, "to_frame"):  # a series or an index
        return {kind: _plain(value.to_frame(), name)}
    raise ValueError(
        f"{name} is of type {type(value).__module__}.{type(value).__qualname__}, which has no digest: hand over plain "
        "values, arrays, tables, paths, dataclasses of these, or an object that has a fingerprint"
    )


def _path(path: Path) -> Any:
    if known := read_json(path / META).get("fingerprint"):  # a stage: its meta.json tells seconds as well
        return {"fingerprint": known}
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {"path": [[file.relative_to(path).as_posix(), sha256(file)] for file in files]}


def _tensor(value: Any) -> Any:
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return {"tensor": [str(value.dtype), list(value.shape), _short(flat.numpy())]}


def _array(value: Any, name: str) -> Any:
    import numpy as np

    if isinstance(value, np.bool_ | np.integer | np.float16 | np.float32):
        return value.item()
    if value.dtype.hasobject:
        return {"array": [list(value.shape), _plain(value.tolist(), name)]}
    flat = np.ascontiguousarray(value).reshape(-1)
    content = flat.view(np.uint8) if flat.nbytes else b""
    return {"array": [_plain(np.lib.format.dtype_to_descr(value.dtype), name), list(value.shape), _short(content)]}


def _columns(table: Any, name: str) -> list:
    """Label, dtype and values of each column; whatever is missing where numpy has no word for it is None."""
    plain = []
    for label, column in table.items():
        kind, where = column.dtype, f"{name}[{label!r}]"
        kinds = [str(kind), *([_plain(list(kind.categories), where), kind.ordered] if str(kind) == "category" else [])]
        if type(kind).__module__.startswith("numpy") and not kind.hasobject:
            values = column.to_numpy()
        else:
            values = column.astype(object).where(column.notna(), None).tolist()
        plain.append([_plain(label, where), kinds, _plain(values, where)])
    return plain


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
