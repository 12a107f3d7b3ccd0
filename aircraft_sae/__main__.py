"""The command, which runs notebooks. It imports nothing heavy: each notebook runs in its own kernel."""

import argparse
import atexit
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Thread

import psutil

from aircraft_sae import config, store
from aircraft_sae.view.report import ANSI, RECORD, write_page, write_report

MAIN = "06"  # the last notebook of a default run
NOTEBOOKS = store.shipped("notebooks")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pillow")


def find(folder: Path) -> dict[str, Path]:
    """{number: notebook, or its script where there is none}, in order, without copies such as 01_x-Copy1."""
    known: dict[str, Path] = {}
    for script in sorted(folder.glob("[0-9][0-9]_*.py")):
        if re.fullmatch(r"\w+", script.stem):
            notebook = script.with_suffix(".ipynb")
            known.setdefault(script.stem[:2], notebook if notebook.is_file() else script)
    return known


def read_notebook(path: Path):
    """Read a notebook or a percent script."""
    import jupytext  # imported here, since that takes a second

    return jupytext.read(path)


def write_notebook(path: Path, notebook) -> None:
    """Write a notebook whole or not at all."""
    import nbformat

    store.write_text(path, nbformat.writes(notebook) + "\n")


class Runner:
    """Executes notebooks for the study in `folder`, writes them to its report/, and skips those that are up to date."""

    def __init__(self, folder: Path, environment: dict[str, str], rendered: bool):
        """rendered: the study renders its own pictures."""
        self.folder, self.report, self.results = folder, folder / "report", folder / "results"
        self.environment = environment
        # a user's own pictures may have changed: always execute the first notebook, which checks them
        self.trusted = rendered
        files = sorted([*Path(__file__).resolve().parent.rglob("*"), *store.shipped("data/weights").glob("*")])
        suffixes = (".py", ".js", ".css", ".html", ".json", ".safetensors")
        self.code = store.digest([(path.name, path) for path in files if path.suffix in suffixes])

    def run(self, path: Path):
        """Execute a notebook, and write it and its page to the report: (notebook, failure or "")."""
        notebook, costs = read_notebook(path), {}
        key, self.trusted = self._key(notebook), True
        with store.watched(costs):
            failure = execute(notebook, path, self.environment)
        stages = {name: meta["fingerprint"] for name, meta in store.stage_metas(self.folder).items()}
        notebook.metadata[RECORD] = {
            "key": None if failure else key, "stages": stages, "numbers": self._numbers(path.stem),
            "cells": store.digest(notebook.cells), **costs,
        }  # fmt: skip
        write_page(self.report / f"{path.stem}.html", path.stem, notebook)
        write_notebook(self.report / f"{path.stem}.ipynb", notebook)
        return notebook, failure

    def kept(self, path: Path):
        """The notebook as executed by an earlier run, or None if anything that it depends on has changed."""
        try:
            notebook = read_notebook(self.report / f"{path.stem}.ipynb")
            record = notebook.metadata[RECORD]
            now = self._key(read_notebook(path)), store.digest(notebook.cells), self._numbers(path.stem)
            same = self.trusted and now == (record["key"], record["cells"], record["numbers"])
            same &= (self.report / f"{path.stem}.html").is_file()
            whole = same and all(store.load_meta(self.folder / name, key) for name, key in record["stages"].items())
            return notebook if whole else None
        except Exception:  # missing, or damaged in any way
            return None

    def _key(self, notebook) -> str:
        cells = [[cell.cell_type, cell.source, list(cell.metadata.get("tags", []))] for cell in notebook.cells]
        versions = [sys.version, *map(version, LIBRARIES)]
        return store.digest([cells, self.code, self.environment, versions])

    def _numbers(self, name: str) -> str:
        """A digest of the numbers that the notebook has recorded, "" if there are none."""
        path = self.results / f"{name}.json"
        return store.digest(path) if path.is_file() else ""


def execute(notebook, path: Path, environment: dict[str, str]) -> str:
    """Run all cells of `notebook` in place, keeping no widgets and no stderr. Returns the failure, or ""."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class Client(NotebookClient):
        def handle_comm_msg(self, *_): ...  # no widget state; nbclient's replies to Output widgets can hang

        def process_message(self, message, cell, index):
            content = message["content"]
            if message["msg_type"] == "stream":
                _show(content["text"])
            data = content.get("data", {})
            bare = data.pop(WIDGET_VIEW, None) and set(data) <= {"text/plain"}  # no picture stands in for it
            return None if bare or content.get("name") == "stderr" else super().process_message(message, cell, index)

    def begin(**_) -> None:
        _show(f"{path.stem}: code cell {client.code_cells_executed + 1} of {len(sources)}\n")

    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    client = Client(
        notebook,
        # with no folders to search, "python3" is this interpreter, whatever kernelspecs are installed
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
        timeout=None, record_timing=False, extra_arguments=["--log-level=40", "--ext=aircraft_sae.__main__"],
        resources={"metadata": {"path": str(path.parent)}}, on_cell_execute=begin,
    )  # fmt: skip
    package = str(Path(__file__).resolve().parents[1])  # for a checkout that is not installed
    # the temporary folder keeps the user's start-up files and settings out; a killed kernel may still use it
    with TemporaryDirectory(ignore_cleanup_errors=True) as ipython, ThreadPoolExecutor() as pool:
        environment = os.environ | environment | {
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
            "IPYTHONDIR": ipython,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # another backend would leave out the figures
            "TQDM_MININTERVAL": "0.1" if sys.stderr.isatty() else "10",
        }  # fmt: skip
        # in a thread, since nbclient swallows some Ctrl-C; on Windows a wait without a timeout ignores them all
        running = pool.submit(client.execute, env=environment, cleanup_kc=True)
        try:
            while wait([running], 0.5).not_done:
                pass
        except KeyboardInterrupt:
            while wait([running], 0.1).not_done:
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):
                        process.kill()
            raise
        finally:
            atexit.unregister(client._cleanup_kernel)  # nbclient leaves this handler behind if a kernel does not start
    problem = running.exception()
    if problem is None:
        return ""
    if not isinstance(problem, CellExecutionError | DeadKernelError):
        raise problem
    n = max(1, client.code_cells_executed)
    text = getattr(problem, "traceback", f"{sources[n - 1]}\n\nThe kernel died: out of memory?")
    text = text if sys.stderr.isatty() else ANSI.sub("", text)
    return f"Stopped in {path.name}, code cell {n} of {len(sources)}.\n{text.strip()}"


def _show(text: str) -> None:
    """Print what a cell prints; in a log, each state of a progress bar gets its own line."""
    if not sys.stderr.isatty():
        lines = ANSI.sub("", text).splitlines()
        text = "".join(f"{line.rstrip()}\n" for line in lines if line.strip())
    print(text, end="", file=sys.stderr, flush=True)


def load_ipython_extension(shell) -> None:
    """In a kernel: exit once the command is gone, whoever adopts the orphan (ipykernel only looks for process 1)."""
    command = os.getppid()

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m aircraft_sae", description="Run the notebooks of a study.")
    add = parser.add_argument
    add("numbers", nargs="*", metavar="[run] NN", help=f"numbers of notebooks; default: 01 to {MAIN}")
    add("--preset", help=f"one of {', '.join(config.PRESETS)}; default: hangar")
    add("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b, or your pictures")
    add("--all", action="store_true", help="all notebooks")
    add("--again", action="store_true", help="rerun notebooks that are up to date, too")
    add("--in-place", action="store_true", help="also write the outputs into notebooks/")
    add("--record", action="store_true", help="also copy the numbers into data/results, for git")
    add("--network", metavar="NAME", help="the network for notebooks 09 and 10, by name or as a file of weights")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Exit code: 0 success, 1 a failure, 2 arguments that it does not understand, 130 Ctrl-C."""
    try:
        TemporaryDirectory(dir=Path.home()).cleanup()
    except (OSError, RuntimeError):  # no home, or a read-only one: libraries want to write there
        os.environ |= {"HOME": gettempdir(), "USER": os.environ.get("USER") or "nobody"}
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT") or ""
    root = root and str(Path(root).expanduser().resolve())  # kernels run in another folder
    network = options.network or os.environ.get("AIRCRAFT_SAE_NETWORK") or ""
    if Path(network).suffix in (".pth", ".safetensors"):
        network = str(Path(network).expanduser().resolve())
    try:
        study, data_dir = config.with_data_root(config.preset(name), root), store.data_folder()
        if study.dataset.needs_root and not any(each.is_dir() for each in Path(root).glob("[!.]*")):
            raise ValueError(f"{root} holds no folders: put pictures into {root}/CLASS/*.jpg, for two classes or more")
        if options.in_place and not study.dataset.rendered:
            raise ValueError(f"--in-place would put the photographs of {name} into notebooks/: run without it")
        if network and (options.in_place or options.record):
            raise ValueError(f"--in-place and --record are for the default networks, not for {network}")
        notebooks = find(NOTEBOOKS)
        asked = {number.zfill(2) for number in options.numbers if number != "run"}
        asked = asked or {number for number in notebooks if options.all or number <= MAIN}
        if unknown := sorted(asked - set(notebooks)):
            raise ValueError(f"no notebook {', '.join(unknown)}: there are {', '.join(notebooks)}")
        if options.network and not asked & {"09", "10"}:
            raise ValueError(f"--network is for notebooks 09 and 10, not {', '.join(sorted(asked))}: say run 09 10")
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir / "runs" / name
    values = {"PRESET": name, "DATA_DIR": str(data_dir), "DATA_ROOT": root, "NETWORK": network}
    environment = {f"AIRCRAFT_SAE_{key}": value for key, value in values.items()}
    try:
        store.make_parents(folder / "report")
        runner = Runner(folder, environment, study.dataset.rendered)
        status = run(notebooks, asked, runner, study, options.again, options.in_place)
        if options.record and not status:
            shutil.copytree(runner.results, data_dir / "results" / name, dirs_exist_ok=True)
        return status
    except OSError as error:  # a full disk, or a folder that cannot be written to
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The next run resumes from what is on disk, including partial stages.", file=sys.stderr)
        return 130


def run(
    notebooks: dict[str, Path], asked: set[str], runner: Runner, study: config.StudyConfig, again: bool, in_place: bool
) -> int:
    """Execute the requested notebooks that are not up to date, up to the first failure, and write the report."""
    began, executed, failure = time.monotonic(), {}, ""
    print(f"aircraft_sae: preset {study.name}, {len(asked)} notebooks", flush=True)
    for number, path in notebooks.items():
        kept = None if again and number in asked else runner.kept(path)
        if kept:  # even if it was not requested: it belongs in the report
            executed[path.stem] = kept
            if number in asked:
                print(f"{path.stem}: up to date", file=sys.stderr, flush=True)
        elif number in asked:
            executed[path.stem], failure = runner.run(path)
            if failure:
                break
    index = write_report(runner.folder, study, executed, time.monotonic() - began, failure)
    if failure:
        print(f"\n{failure}\n\nReport so far: {index}", file=sys.stderr)
        return 1
    for path in (notebooks[number] for number in asked if in_place):
        del executed[path.stem].metadata[RECORD]
        write_notebook(path.with_suffix(".ipynb"), executed[path.stem])
    print(f"Done in {time.monotonic() - began:.0f} s. Report: {index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
