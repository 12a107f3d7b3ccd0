"""Notebooks run in order, each in a kernel of its own; one that would come out the same is kept from the last run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sys
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aircraft_sae.store import LABELS, digest, fingerprint, load_meta, stage_metas, watched, write_text
from aircraft_sae.view.report import RECORD

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "scikit-learn",
    "pillow",
    "embreex",
)


def find(folder: Path, in_place: bool) -> list[Path]:
    """The numbered notebooks in order, each as .ipynb where there is one, else as its .py source.

    Raises: ValueError where there is none, or, in_place, where a pair is out of step.
    """
    found = {path.stem: path for end in ("py", "ipynb") for path in sorted(folder.glob(f"[0-9][0-9]_*.{end}"))}
    if not found:
        raise ValueError(f"no notebooks in {folder}: run from a clone, installed with pip install -e .")
    for path in found.values():
        source = path.with_suffix(".py")
        if path.suffix == ".ipynb" and source.is_file() and as_script(path) != source.read_text(encoding="utf-8"):
            problem = f"{path.name} differs from {source.name}: bring them in step with jupytext --sync {path}"
            if in_place:
                raise ValueError(problem)
            print(problem, file=sys.stderr)
    return [found[stem] for stem in sorted(found)]


def as_script(path: Path) -> str:
    """The percent script that jupytext makes of a notebook with the repository's settings."""
    from jupytext.cli import jupytext

    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(output):
        jupytext([str(path), "--to", "py:percent", "--output", "-", "--quiet"])
    return output.buffer.getvalue().decode()


class Runner:
    """Runs the notebooks of one study, whose stages are in `folder`; executed notebooks lie in its report/."""

    def __init__(self, folder: Path, results: Path, environment: dict[str, str], rendered: bool, again: bool = False):
        """results: the folder of numbers; rendered: the study makes its own pictures; again: keep no notebook."""
        self.folder, self.report, self.results = folder, folder / "report", results
        self.environment, self.rendered, self.again = environment, rendered, again
        package, weights = Path(__file__).resolve().parent, NOTEBOOKS.parent / "data" / "weights"
        files = [*package.rglob("*"), *weights.glob("*")]
        ends = (".py", ".js", ".css", ".html", ".json", ".safetensors")
        self.code = digest([(path.name, path) for path in sorted(files) if path.suffix in ends])
        self.fresh = False
        """Whether a notebook was executed in this run."""
        self.ran: list[tuple[Path, Any]] = []
        """Where the notebooks of this run lie, and they."""

    def run(self, path: Path):
        """(the executed notebook, what failed in it or nothing), written to the report; kept where nothing changed."""
        notebook, place = read_notebook(path), self.report / f"{path.stem}.ipynb"
        key = self._key(notebook)
        if kept := self._kept(place, key):
            print(f"{path.stem}: nothing that it depends on has changed", file=sys.stderr, flush=True)
            self.ran.append((place, kept))
            return kept, ""
        self.fresh, costs = True, {}
        with watched(costs):
            failure = execute(notebook, path, self.environment)
        drop_widgets(notebook)
        notebook.metadata[RECORD] = {
            "key": None if failure else key, "stages": self._stages(), "outside": self._outside(place.stem, notebook),
            "cells": _content(notebook), "seconds": costs["seconds"],
            "peak_memory_bytes": costs["peak_memory_bytes"],
        }  # fmt: skip
        self._write(place, notebook)
        self._forget(notebook.metadata[RECORD]["stages"])
        self.ran.append((place, notebook))
        return notebook, failure

    def _key(self, notebook) -> str:
        cells = [[cell.cell_type, cell.source, list(cell.metadata.get("tags", []))] for cell in notebook.cells]
        versions = {name: version(name) for name in LIBRARIES}
        return fingerprint(cells, self.code, self.environment, versions, sys.version)

    def _kept(self, place: Path, key: str):
        """The notebook that an earlier run executed, if nothing that it depends on has changed since."""
        import nbformat

        # pictures of the user's own may have changed: the first notebook looks at them, and then the stages tell
        if self.again or not (self.rendered or self.fresh):
            return None
        try:
            notebook = nbformat.read(place, as_version=4)
            record = notebook.metadata[RECORD]
            same = record["key"] == key and record["cells"] == _content(notebook)
            same = same and record["outside"] == self._outside(place.stem, notebook)
            whole = same and all(load_meta(self.folder / name, wanted) for name, wanted in record["stages"].items())
        except Exception:  # not there, or damaged in whatever way
            return None
        return notebook if whole else None

    def _stages(self) -> dict[str, str]:
        return {name: meta["fingerprint"] for name, meta in stage_metas(self.folder).items()}

    def _outside(self, name: str, notebook) -> list[str]:
        """Digests of the notebook's numbers, and of a person's labels where it shows them."""
        shows = any("export_atlas" in cell.source for cell in notebook.cells)
        paths = [self.results / f"{name}.json", *([self.folder / LABELS] if shows else [])]
        return [hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths]

    def _forget(self, now: dict[str, str]) -> None:
        """What a later notebook has made again, earlier ones of this run have not used."""
        for place, earlier in self.ran:
            record = earlier.metadata[RECORD]
            left = {name: wanted for name, wanted in record["stages"].items() if now.get(name, wanted) == wanted}
            if left != record["stages"]:
                record["stages"] = left
                self._write(place, earlier)

    def _write(self, place: Path, notebook) -> None:
        import nbformat

        place.with_suffix(".html").unlink(missing_ok=True)  # its page is another's now
        write_text(place, nbformat.writes(notebook))


def _content(notebook) -> str:
    """A digest of all cells, outputs too."""
    return hashlib.sha256(json.dumps(notebook.cells, sort_keys=True).encode()).hexdigest()


def read_notebook(path: Path):
    """A notebook or a percent script, with a kernel named."""
    import jupytext

    notebook = jupytext.read(path)
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    return notebook


def execute(notebook, path: Path, environment: dict[str, str]) -> str:
    """Run all cells of `notebook` in place; returns what failed, or nothing."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] == "stream":
                screen.stream(message["content"]["text"])
            return super().process_message(message, cell, index)

    # without folders to look in, "python3" is this interpreter, whatever a kernelspec of that name says
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    screen, running = _Screen(path.stem, len(code)), 0

    def starts(cell, cell_index):
        nonlocal running
        running = cell_index

    client = Client(
        notebook,
        km=manager,
        timeout=None,
        record_timing=False,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=starts,
        on_cell_executed=lambda execute_reply, **_: execute_reply["content"]["status"] == "ok" and screen.advance(),
    )
    package = str(Path(__file__).resolve().parents[1])  # for a checkout that is not installed
    environment = {
        **os.environ,
        **environment,
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
    }
    environment.pop("MPLBACKEND", None)  # another backend than the kernel's own would leave the figures out
    try:
        client.execute(env=environment, cleanup_kc=True)
    except Exception as error:
        if getattr(client, "_async_cleanup_kernel_future", None):  # nbclient turns Ctrl-C into other errors
            raise KeyboardInterrupt from error
        if not isinstance(error, CellExecutionError | DeadKernelError):
            raise
        source = notebook.cells[running].source
        text = getattr(error, "traceback", f"{source}\n\nThe kernel died: out of memory?")
        text = text if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)
        return f"Stopped in {path.name}, code cell {code.index(running) + 1} of {len(code)}.\n{text.strip()}"
    finally:
        screen.close()
    return ""


class _Screen:
    """A bar of cells for one notebook and, under it, what the running cell prints, its own bars included."""

    def __init__(self, title: str, n_cells: int):
        from tqdm import tqdm

        self.terminal = sys.stderr.isatty()
        self.cells = tqdm(total=n_cells, desc=title, unit="cell", dynamic_ncols=True, disable=not self.terminal)
        self.status = tqdm(bar_format="{desc}", position=1, leave=False, dynamic_ncols=True, disable=not self.terminal)
        self.title, self.n_cells, self.n_done, self.line, self.shown = title, n_cells, 0, "", time.monotonic()

    def stream(self, text: str) -> None:
        """Print whole lines; the one that a bar keeps rewriting shows below, or every ten seconds in a log."""
        *whole, line = (self.line + text).split("\n")
        for done in whole:
            self._print(done)
        self.line = line[line.rstrip("\r").rfind("\r") + 1 :]
        if self.terminal:
            self.status.set_description_str(_visible(self.line))
        elif time.monotonic() > self.shown + 10:
            self._print(self.line)

    def advance(self) -> None:
        """Count one more cell as done."""
        self._print(self.line)
        self.line, self.n_done = "", self.n_done + 1
        self.status.set_description_str("")
        self.cells.update()
        if not self.terminal:
            print(f"{self.title}: {self.n_done} of {self.n_cells} cells", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.status.close()
        self.cells.close()

    def _print(self, line: str) -> None:
        if _visible(line):
            self.shown = time.monotonic()
            self.cells.write(_visible(line), file=sys.stderr)


def _visible(line: str) -> str:
    """What a terminal would show of a line with carriage returns, less colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip("\r").rpartition("\r")[2]).rstrip()


def drop_widgets(notebook) -> None:
    """Take out widgets, which need a running kernel; a figure beside each shows the same."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]


def put_outputs(path: Path, executed) -> None:
    """Write results into the notebook at `path`, less progress bars; everything else in it stays as it was."""
    import nbformat

    target = path.with_suffix(".ipynb")
    notebook = read_notebook(path)
    notebook.metadata.pop("widgets", None)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = [output for output in ran.outputs if output.get("name") != "stderr"]
    write_text(target, nbformat.writes(notebook) + "\n")
