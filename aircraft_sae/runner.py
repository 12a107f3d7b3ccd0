"""Notebooks run in order, each in a kernel of its own; one that would come out the same is kept from the last run."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import re
import signal
import sys
import time
from contextlib import suppress
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Event, Thread

import psutil

from aircraft_sae.store import LABELS, digest, load_meta, stage_metas, watched, write_text
from aircraft_sae.view.report import RECORD

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pillow")
IMPORTS = ("ipykernel.kernelapp", "matplotlib.pyplot", "scipy.stats", "aircraft_sae.study", "aircraft_sae.view.plots")
"""What takes notebooks long to import. No widgets: these look for a kernel when they are imported."""
FORKS = sys.platform == "linux"
"""Whether kernels are forked from one process that has made these imports."""


def find(folder: Path) -> dict[str, Path]:
    """{number: notebook} in order, as .ipynb where there is one, else as its .py; copies are named and left.

    Raises: ValueError where there is none.
    """
    stems = {path.stem for path in folder.glob("[0-9][0-9]_*") if path.suffix in (".py", ".ipynb")}
    known: dict[str, Path] = {}
    for stem in sorted(stems, key=lambda stem: (not (folder / f"{stem}.py").is_file(), len(stem), stem)):
        path = folder / f"{stem}.ipynb"
        if stem[:2] in known or not re.fullmatch(r"\w+", stem):
            print(f"{stem} is taken for a copy, and not run", file=sys.stderr)
        else:
            known[stem[:2]] = path if path.is_file() else path.with_suffix(".py")
    if not known:
        raise ValueError(f"no notebooks in {folder}: run from a clone, installed with pip install -e .")
    return dict(sorted(known.items()))


def check_pair(path: Path, in_place: bool) -> None:
    """Say, or in_place raise as a ValueError, that a notebook and its script are out of step."""
    source = path.with_suffix(".py")
    if path != source and source.is_file() and _cells(read_notebook(path)) != _cells(read_notebook(source)):
        problem = f"{path.name} differs from {source.name}: bring them in step with jupytext --sync {path}"
        if in_place:
            raise ValueError(problem)
        print(problem, file=sys.stderr)


def read_notebook(path: Path):
    """A notebook or a percent script, with a kernel named."""
    import jupytext

    notebook = jupytext.read(path)
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    return notebook


def _cells(notebook) -> list:
    return [[cell.cell_type, cell.source, list(cell.metadata.get("tags", []))] for cell in notebook.cells]


class Runner:
    """Runs the notebooks of one study, whose stages are in `folder`; executed notebooks lie in its report/."""

    def __init__(self, folder: Path, results: Path, environment: dict[str, str], rendered: bool, again: bool = False):
        """results: the folder of numbers; rendered: the study makes its own pictures; again: keep no notebook."""
        self.folder, self.report, self.results = folder, folder / "report", results
        self.environment, self.rendered, self.again = environment, rendered, again
        package = Path(__file__).resolve().parent
        files = sorted([*package.rglob("*"), *(package.parent / "data" / "weights").glob("*")])
        ends = (".py", ".js", ".css", ".html", ".json", ".safetensors")
        self.code = digest([(path.name, path) for path in files if path.suffix in ends])
        self.fresh = False
        """Whether a notebook was executed in this run."""
        self.load_meta = cache(load_meta)
        """What is whole stays so while no notebook runs."""

    def run(self, path: Path):
        """(the executed notebook, what failed in it or nothing), written to the report; kept where nothing changed."""
        import nbformat

        notebook, place = read_notebook(path), self.report / f"{path.stem}.ipynb"
        if not self.again and (kept := self.kept(path)):
            print(f"{path.stem}: nothing that it depends on has changed", file=sys.stderr, flush=True)
            return kept, ""
        key, costs = self._key(notebook), {}
        self.fresh = True
        self.load_meta.cache_clear()
        with watched(costs):
            failure = execute(notebook, path, self.environment)
        stages = {name: meta["fingerprint"] for name, meta in stage_metas(self.folder).items()}
        notebook.metadata[RECORD] = {
            "key": None if failure else key, "stages": stages, "outside": self._outside(place.stem, notebook),
            "cells": digest(notebook.cells), **costs,
        }  # fmt: skip
        place.with_suffix(".html").unlink(missing_ok=True)  # its page is another's now
        write_text(place, nbformat.writes(notebook))
        return notebook, failure

    def kept(self, path: Path):
        """The notebook that an earlier run executed, if nothing that it depends on has changed since; else None."""
        import nbformat

        # pictures of the user's own may have changed: the first notebook looks at them, and then the stages tell
        if not (self.rendered or self.fresh):
            return None
        try:
            notebook = nbformat.read(self.report / f"{path.stem}.ipynb", as_version=4)
            record = notebook.metadata[RECORD]
            same = record["key"] == self._key(read_notebook(path)) and record["cells"] == digest(notebook.cells)
            same = same and record["outside"] == self._outside(path.stem, notebook)
            same = same and all(self.load_meta(self.folder / name, wanted) for name, wanted in record["stages"].items())
            return notebook if same else None
        except Exception:  # not there, or damaged in whatever way
            return None

    def _key(self, notebook) -> str:
        versions = [sys.version, *map(version, LIBRARIES)]
        return digest([_cells(notebook), self.code, self.environment, versions])

    def _outside(self, name: str, notebook) -> list[str]:
        """Digests of the notebook's numbers, and of a person's labels where it shows them."""
        shows = any("export_atlas" in cell.source for cell in notebook.cells)
        paths = [self.results / f"{name}.json", *([self.folder / LABELS] if shows else [])]
        return [digest(path) if path.is_file() else "" for path in paths]


def execute(notebook, path: Path, environment: dict[str, str]) -> str:
    """Run all cells of `notebook` in place, less widgets, which need a kernel; returns what failed, or nothing."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] == "stream":
                screen.stream(message["content"]["text"])
            shows_widget = WIDGET_VIEW in message["content"].get("data", {})
            return None if shows_widget else super().process_message(message, cell, index)

    package = str(Path(__file__).resolve().parents[1])  # for a checkout that is not installed
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    # another backend than this one would leave the figures out
    backend = "module://matplotlib_inline.backend_inline"
    environment = os.environ | environment | {"PYTHONPATH": paths, "MPLBACKEND": backend}
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.source.strip()]
    screen, running, problems, ended = _Screen(path.stem, len(code)), code[:1], [], Event()
    client = Client(
        notebook,
        km=_manager(),
        timeout=None,
        record_timing=False,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=lambda cell, cell_index: running.append(cell_index),
        on_cell_executed=lambda execute_reply, **_: execute_reply["content"]["status"] == "ok" and screen.advance(),
    )

    def work() -> None:
        try:
            client.execute(env=environment, cleanup_kc=True)
        except Exception as problem:
            problems.append(problem)
        finally:
            atexit.unregister(client._cleanup_kernel)  # which nbclient leaves where a kernel did not start
            ended.set()

    # in a thread, so that Ctrl-C is a KeyboardInterrupt here: nbclient swallows some
    Thread(target=work, daemon=True).start()
    try:
        while not ended.wait(0.5):  # a wait without end hears no Ctrl-C on Windows
            pass
    except KeyboardInterrupt:
        while not ended.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
        raise
    finally:
        screen.close()
    notebook.metadata.pop("widgets", None)
    if not problems:
        return ""
    if not isinstance(problems[0], CellExecutionError | DeadKernelError):
        raise problems[0]
    source = notebook.cells[running[-1]].source
    text = getattr(problems[0], "traceback", f"{source}\n\nThe kernel died: out of memory?")
    text = text if sys.stderr.isatty() else re.sub(r"\x1b\[[0-9;]*m", "", text)
    return f"Stopped in {path.name}, code cell {code.index(running[-1]) + 1} of {len(code)}.\n{text.strip()}"


def _manager():
    """A manager of kernels of this interpreter, forked where that works."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import LocalProvisioner

    class Forked(LocalProvisioner):
        async def launch_kernel(self, cmd, **options):
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(IMPORTS))
            resource_tracker.ensure_running()  # else it would let Ctrl-C through again
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server inherits
            arguments = [*cmd[3:], f"--IPKernelApp.parent_handle={os.getpid()}"]
            self.process = process = context.Process(target=_serve, args=(arguments, options["env"], options["cwd"]))
            try:
                process.start()
            except (EOFError, OSError):  # an import failed: then let a cell say so
                return await super().launch_kernel(cmd, **options)
            process.stdin = process.stdout = process.stderr = None  # as subprocess.Popen has them
            process.poll, process.wait = lambda: process.exitcode, process.join
            process.send_signal = lambda number: os.kill(process.pid, number)
            return self.connection_info

    # without folders to look in, "python3" is this interpreter, whatever a kernelspec of that name says
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    if FORKS:
        manager.provisioner = Forked(kernel_spec=manager.kernel_spec, parent=manager)
    return manager


def _serve(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel, in a process of its own, no longer than the command is there."""
    os.setsid()  # Ctrl-C is for the command
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    matplotlib.rcParams["backend"] = environment["MPLBACKEND"]  # it was imported with another environment
    Thread(target=lambda: multiprocessing.parent_process().join() or os._exit(1), daemon=True).start()
    launch_new_instance(arguments)


class _Screen:
    """A bar of cells that ends with the line which the running cell rewrites, over what it prints; lines in a log."""

    def __init__(self, title: str, n_cells: int):
        from tqdm import tqdm

        self.log = not sys.stderr.isatty()
        self.bar = tqdm(total=n_cells, desc=title, unit="cell", dynamic_ncols=True, disable=self.log)
        self.title, self.n_cells, self.n_done, self.line, self.shown = title, n_cells, 0, "", time.monotonic()

    def stream(self, text: str) -> None:
        """Print whole lines; in a log, every ten seconds, the one that is rewritten too."""
        *whole, line = (self.line + text).split("\n")
        for done in whole:
            self._print(done)
        self.line = line[line.rstrip("\r").rfind("\r") + 1 :]
        self.bar.set_postfix_str(_visible(self.line))
        if self.log and time.monotonic() > self.shown + 10:
            self._print(self.line)

    def advance(self) -> None:
        """Count one more cell as done."""
        self._print(self.line)
        self.line, self.n_done = "", self.n_done + 1
        self.bar.set_postfix_str("", refresh=False)
        self.bar.update()
        if self.log:
            print(f"{self.title}: {self.n_done} of {self.n_cells} cells", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.bar.close()

    def _print(self, line: str) -> None:
        if _visible(line):
            self.shown = time.monotonic()
            self.bar.write(_visible(line), file=sys.stderr)


def _visible(line: str) -> str:
    """What a terminal would show of a line with carriage returns, less colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line.rstrip("\r").rpartition("\r")[2]).rstrip()


def put_outputs(path: Path, executed) -> None:
    """Write an executed notebook in the place of the one at `path`, less progress bars."""
    import nbformat

    notebook = deepcopy(executed)
    notebook.metadata.pop(RECORD)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    write_text(path.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
