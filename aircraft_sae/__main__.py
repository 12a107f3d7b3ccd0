"""The command: run notebooks, or make a stage. It imports nothing heavy: each notebook has a kernel of its own."""

import argparse
import atexit
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psutil

from aircraft_sae import config, store
from aircraft_sae.make import STAGES, check_asked, make
from aircraft_sae.view.report import ANSI, RECORD, write_report

MAIN = "06"  # the last notebook that is run unless others are named
NOTEBOOKS = store.shipped("notebooks")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pillow")


def find(folder: Path) -> dict[str, Path]:
    """{number: .ipynb, else .py} in order, ValueError where there is none; copies are named and left."""
    stems = {path.stem for path in folder.glob("[0-9][0-9]_*") if path.suffix in (".py", ".ipynb")}
    known: dict[str, Path] = {}
    for stem in sorted(stems, key=lambda stem: (not (folder / f"{stem}.py").is_file(), len(stem), stem)):
        path = folder / f"{stem}.ipynb"
        if stem[:2] in known or not re.fullmatch(r"\w+", stem):
            print(f"{stem} is taken for a copy, and not run", file=sys.stderr)
        else:
            known[stem[:2]] = path if path.is_file() else path.with_suffix(".py")
    if not known:
        raise ValueError(f"no notebooks in {folder}: install the package again")
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

    def __init__(self, folder: Path, environment: dict[str, str], rendered: bool, again: bool = False):
        """rendered: the study makes its own pictures; again: keep no notebook."""
        self.folder, self.report, self.results = folder, folder / "report", folder / "results"
        self.environment, self.again = environment, again
        package = Path(__file__).resolve().parent
        files = sorted([*package.rglob("*"), *store.shipped("data/weights").glob("*")])
        ends = (".py", ".js", ".css", ".html", ".json", ".safetensors")
        self.code = store.digest([(path.name, path) for path in files if path.suffix in ends])
        # pictures of the user's own may have changed: the first notebook looks at them, and then the stages tell
        self.trusted = rendered
        self.load_meta = cache(store.load_meta)  # what is whole stays so while no notebook runs

    def run(self, path: Path):
        """(the executed notebook, what failed in it or nothing), written to the report; kept where nothing changed."""
        import nbformat

        if not self.again and (kept := self.kept(path)):
            print(f"{path.stem}: nothing that it depends on has changed", file=sys.stderr, flush=True)
            return kept, ""
        notebook, place, costs = read_notebook(path), self.report / f"{path.stem}.ipynb", {}
        key, self.trusted = self._key(notebook), True
        self.load_meta.cache_clear()
        with store.watched(costs):
            failure = execute(notebook, path, self.environment)
        stages = {name: meta["fingerprint"] for name, meta in store.stage_metas(self.folder).items()}
        notebook.metadata[RECORD] = {
            "key": None if failure else key, "stages": stages, "outside": self._outside(path.stem, notebook),
            "cells": store.digest(notebook.cells), **costs,
        }  # fmt: skip
        place.with_suffix(".html").unlink(missing_ok=True)  # its page is another's now
        store.write_text(place, nbformat.writes(notebook))
        return notebook, failure

    def kept(self, path: Path):
        """The notebook that an earlier run executed, if nothing that it depends on has changed since; else None."""
        try:
            notebook = read_notebook(self.report / f"{path.stem}.ipynb")
            record = notebook.metadata[RECORD]
            now = self._key(read_notebook(path)), store.digest(notebook.cells), self._outside(path.stem, notebook)
            same = self.trusted and now == (record["key"], record["cells"], record["outside"])
            whole = same and all(self.load_meta(self.folder / name, key) for name, key in record["stages"].items())
            return notebook if whole else None
        except Exception:  # not there, or damaged in whatever way
            return None

    def _key(self, notebook) -> str:
        versions = [sys.version, *map(version, LIBRARIES)]
        return store.digest([_cells(notebook), self.code, self.environment, versions])

    def _outside(self, name: str, notebook) -> list[str]:
        """Digests of the notebook's numbers, and of a person's labels where it shows them."""
        shows = any("export_atlas" in cell.source for cell in notebook.cells)
        paths = [self.results / f"{name}.json", *([self.folder / store.LABELS] if shows else [])]
        return [store.digest(path) if path.is_file() else "" for path in paths]


def execute(notebook, path: Path, environment: dict[str, str]) -> str:
    """Run all cells of `notebook` in place, less widgets, which need a kernel; returns what failed, or nothing."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from nbclient.output_widget import OutputWidget

    class Silent(OutputWidget):
        def send(self, *_, **__): ...  # while a reply is awaited, sending can lose its wake-up: waiting for ever

    class Client(NotebookClient):
        def process_message(self, message, cell, index):
            if message["msg_type"] == "stream":
                _show(message["content"]["text"])
            data = message["content"].get("data", {})
            bare = data.pop(WIDGET_VIEW, None) and set(data) <= {"text/plain"}  # without a picture in its place
            return None if bare else super().process_message(message, cell, index)

    n_cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
    begun, problems, ended = [], [], Event()

    def begin(cell, cell_index: int) -> None:
        begun.append(cell)
        _show(f"{path.stem}: code cell {len(begun)} of {n_cells}\n")

    client = Client(
        notebook,
        # without folders to look in, "python3" is this interpreter, whatever a kernelspec of that name says
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[])),
        timeout=None, record_timing=False, extra_arguments=["--log-level=40", "--ext=aircraft_sae.__main__"],
        resources={"metadata": {"path": str(path.parent)}}, on_cell_execute=begin,
    )  # fmt: skip
    client.widget_registry["@jupyter-widgets/output"]["OutputModel"] = Silent
    # in the place of a person's own start-up files and settings; a kernel that was killed may still have files there
    personal = TemporaryDirectory(prefix="aircraft_sae-", ignore_cleanup_errors=True)
    package = str(Path(__file__).resolve().parents[1])  # for a checkout that is not installed
    environment = os.environ | environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "IPYTHONDIR": personal.name,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # another would leave the figures out
        "TQDM_MININTERVAL": "0.1" if sys.stderr.isatty() else "10",
    }  # fmt: skip

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
        while not ended.wait(0.5):  # a wait without end hears no Ctrl-C on Windows, and a join takes it for the end
            pass
    except KeyboardInterrupt:
        while not ended.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
        raise
    notebook.metadata.pop("widgets", None)
    if not problems:
        return ""
    if not isinstance(problems[0], CellExecutionError | DeadKernelError):
        raise problems[0]
    source = begun[-1].source if begun else ""
    text = getattr(problems[0], "traceback", f"{source}\n\nThe kernel died: out of memory?")
    text = text if sys.stderr.isatty() else ANSI.sub("", text)
    return f"Stopped in {path.name}, code cell {max(1, len(begun))} of {n_cells}.\n{text.strip()}"


def _show(text: str) -> None:
    """Pass on what a cell prints; in a log, where nothing can be rewritten, each state of a progress bar is a line."""
    if not sys.stderr.isatty():
        lines = ANSI.sub("", text).splitlines()
        text = "".join(f"{line.rstrip()}\n" for line in lines if line.strip())
    print(text, end="", file=sys.stderr, flush=True)


def load_ipython_extension(shell) -> None:
    """In a kernel: end with the command, whichever process is an orphan's next parent (ipykernel knows only 1)."""
    command = os.getppid() if os.name == "nt" else int(os.environ["JPY_PARENT_PID"])
    logging.getLogger("tornado.general").setLevel(logging.CRITICAL)  # ipykernel's threads may trip over its own end

    def watch() -> None:
        while os.getppid() == command:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def put_outputs(path: Path, notebook) -> None:
    """Write an executed notebook in the place of the one at `path`, less progress bars."""
    import nbformat

    del notebook.metadata[RECORD]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    store.write_text(path.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")


@contextmanager
def _home() -> Iterator[None]:
    """A folder for what libraries write into a person's home, where there is none that can be written."""
    try:
        TemporaryDirectory(dir=Path.home()).cleanup()
        other = nullcontext()
    except (OSError, RuntimeError):  # no home, or a user without a name
        other = TemporaryDirectory(prefix="aircraft_sae-home-")
    with other as home:
        if home:
            os.environ.update({"HOME": home, "USER": os.environ.get("USER") or "nobody"})
        yield


@_home()
def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 0: success, 1: a failure, 2: words it does not understand, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m aircraft_sae", description="Run a study, or make one of its stages."
    )
    parser.add_argument("command", nargs="?", default="run", choices=("run", "make"), help="default: run")
    parser.add_argument(
        "names", nargs="*", metavar="NN|STAGE",
        help=f"run: these notebooks; default: 01 to {MAIN}. make: one of " + ", ".join(STAGES),
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="all notebooks")
    parser.add_argument("--preset", help="one of " + ", ".join(config.PRESETS) + "; default: hangar")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument(
        "--network", metavar="NAME", help="of 09 and 10: weights that come with it, or a file of your own"
    )
    parser.add_argument("--site", help="of make: a place in the network, such as stage3")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of make: such as sae.k=16")
    parser.add_argument("--in-place", action="store_true", help="then put the outputs into notebooks/ too")
    parser.add_argument("--record", action="store_true", help="then put the numbers into data/results, for git")
    parser.add_argument("--again", action="store_true", help="notebooks for which nothing has changed, too")
    options = parser.parse_intermixed_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT")
    root = str(Path(root).expanduser().resolve()) if root else ""  # the kernels run in another folder
    network = options.network or os.environ.get("AIRCRAFT_SAE_NETWORK") or ""
    if Path(network).suffix in (".pth", ".safetensors"):
        network = str(Path(network).expanduser().resolve())
    try:
        study, data_dir = config.preset(name), store.data_folder()
        study = config.with_data_root(study, root)
        if study.dataset.needs_root and not Path(root).is_dir():
            raise ValueError(f"the data root {root} is not a folder")
        if options.in_place and not study.dataset.rendered:
            raise ValueError(f"--in-place would put the photographs of {name} into notebooks/: run without it")
        if options.command == "make":
            if options.all or options.again or options.in_place or options.record or network:
                raise ValueError("--all, --again, --in-place, --record and --network are for run, not for make")
            if options.site and options.names[:1] not in (["activations"], ["sae"], ["features"]):
                raise ValueError(f"--site is for activations, sae and features, not for {' '.join(options.names)}")
            return make(*check_asked(options.names, study, options.set), data_dir, options.site)
        if options.set or options.site:
            raise ValueError("--set and --site are for make: a study of your own is a config, as in the README")
        if network and (options.in_place or options.record):
            raise ValueError(f"--in-place and --record are for the networks that come with it, not for {network}")
        notebooks = find(NOTEBOOKS)
        asked = {number.zfill(2) for number in options.names}
        asked = asked or {number for number in notebooks if options.all or number <= MAIN}
        if unknown := sorted(asked - set(notebooks)):
            raise ValueError(f"no notebook {', '.join(unknown)}: there are {', '.join(notebooks)}")
        for number in sorted(asked):
            check_pair(notebooks[number], options.in_place)
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir / "runs" / name
    try:
        store.make_parents(folder / "report")
        environment = {"AIRCRAFT_SAE_PRESET": name, "AIRCRAFT_SAE_DATA_DIR": str(data_dir)}
        environment["AIRCRAFT_SAE_DATA_ROOT"] = root
        environment["AIRCRAFT_SAE_NETWORK"] = network
        runner = Runner(folder, environment, study.dataset.rendered, options.again)
        status = run(notebooks, asked, runner, study, options.in_place)
        if options.record and not status:
            shutil.copytree(runner.results, data_dir / "results" / name, dirs_exist_ok=True)
        return status
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = "The next run goes on from what is on disk, part-made stages too."
        print(f"\nInterrupted. {goes_on}", file=sys.stderr)
        return 130


def run(notebooks: dict[str, Path], asked: set[str], runner: Runner, study: config.StudyConfig, in_place: bool) -> int:
    """Execute notebooks, or keep what the last run made of them, up to the first failure, and write the report."""
    began, executed, failure = time.monotonic(), {}, ""
    print(f"aircraft_sae: preset {study.name}, {len(asked)} notebooks", flush=True)
    for number, path in notebooks.items():
        if number in asked:
            executed[path.stem], failure = runner.run(path)
        elif kept := runner.kept(path):  # not asked for, but it belongs in the report
            executed[path.stem] = kept
        if failure:
            break
    index = write_report(runner.folder, runner.results, study, executed, time.monotonic() - began, failure)
    if failure:
        print(f"\n{failure}\n\nReport up to there: {index}", file=sys.stderr)
        return 1
    if in_place:
        for path in (notebooks[number] for number in asked):
            put_outputs(path, executed[path.stem])
    print(f"Done in {time.monotonic() - began:.0f} s. Report: {index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
