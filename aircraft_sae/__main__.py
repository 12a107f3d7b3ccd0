"""The command: `python -m aircraft_sae [run|info|clean] [--preset NAME] [--data-root DIR]`.

`run` executes the notebooks in order, shows what the running cell prints, and writes the executed notebooks and one
HTML report. It imports nothing heavy: the kernels do the work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from aircraft_sae import config
from aircraft_sae.store import LABELS, META, default_data_dir, write_text

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 0: success, 1: a failure, 2: words it does not understand, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m aircraft_sae", description="Run, inspect or remove a study.")
    parser.add_argument("command", nargs="?", default="run", choices=("run", "info", "clean"), help="default: run")
    parser.add_argument("--preset", help="one of " + ", ".join(config.presets()) + "; default: hangar")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--in-place", action="store_true", help="run: then put the outputs into notebooks/ too")
    parser.add_argument("--yes", action="store_true", help="clean: remove without asking")
    options = parser.parse_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    data_root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT")
    try:
        study = config.preset(name)
        if options.command == "run":
            study = config.with_data_root(study, data_root)
            if study.dataset.source == "folder" and not Path(data_root).expanduser().is_dir():
                raise ValueError(f"the data root {data_root} is not a folder")
            if options.in_place and study.dataset.source != "hangar":
                raise ValueError(
                    f"--in-place would put the photographs of preset {name} into notebooks/: run without it"
                )
            paths = _notebooks(NOTEBOOKS, options.in_place)
    except ValueError as error:
        parser.error(str(error))
    folder = default_data_dir() / "runs" / name
    if options.command == "info":
        return info(folder)
    if options.command == "clean":
        return clean(folder, options.yes)
    # absolute, because the kernels run in another folder
    environment = {"AIRCRAFT_SAE_PRESET": name, "AIRCRAFT_SAE_DATA_DIR": str(default_data_dir())}
    environment["AIRCRAFT_SAE_DATA_ROOT"] = str(Path(data_root).expanduser().resolve()) if data_root else ""
    try:
        return run(paths, folder / "report", environment, options.in_place)
    except KeyboardInterrupt:
        print("\nInterrupted. The next run goes on from the stages and part-made stages on disk.", file=sys.stderr)
        return 130


def run(paths: list[Path], report: Path, environment: dict[str, str], in_place: bool) -> int:
    """Execute notebooks into the folder `report`, join them in its index.html; stops at the first failing cell."""
    import nbformat

    began, executed, failure = time.monotonic(), {}, ""
    print(f"aircraft_sae: preset {environment['AIRCRAFT_SAE_PRESET']}, {len(paths)} notebooks", flush=True)
    report.mkdir(parents=True, exist_ok=True)
    for path in paths:
        executed[path.stem] = notebook = _read_notebook(path)
        failure = _execute(notebook, path, environment)
        _drop_widgets(notebook)
        write_text(report / f"{path.stem}.ipynb", nbformat.writes(notebook))
        if failure:
            break
    _write_report(report / "index.html", executed, environment["AIRCRAFT_SAE_PRESET"])
    if failure:
        print(f"\n{failure}\n\nReport up to there: {report / 'index.html'}", file=sys.stderr)
        return 1
    if in_place:
        for path in paths:
            _put_outputs(path, executed[path.stem])
    print(f"Done in {time.monotonic() - began:.0f} s. Report: {report / 'index.html'}")
    return 0


def info(folder: Path) -> int:
    """Print each stage in `folder`: made or not, size, seconds, peak memory."""
    names = {"dataset", "classifier"}
    for path in (*(meta.parent for meta in folder.rglob(META)), *folder.rglob("*.partial")):
        names.add(path.relative_to(folder).as_posix().removesuffix(".partial"))
    print(f"{folder}\n{'stage':24} {'state':10} {'MB':>9} {'seconds':>9} {'peak MB':>9}")
    for name in sorted(names):
        try:
            meta = json.loads((folder / name / META).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = "part made" if (folder / f"{name}.partial").is_dir() else "not made"
            print(f"{name:24} {state:10}")
            continue
        size = sum(file["bytes"] for file in meta["files"].values())
        print(f"{name:24} {'made':10} {size / 1e6:9.1f} {meta['seconds']:9.1f} {meta['peak_memory_bytes'] / 1e6:9.0f}")
    return 0


def clean(folder: Path, yes: bool) -> int:
    """Remove what is in `folder`, less a person's labels, after saying how much; not while a stage is being made."""
    from filelock import FileLock, Timeout

    if not folder.is_dir():
        print(f"Nothing to remove: {folder} is not there.")
        return 0
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / LABELS]
    print(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    for lock in folder.rglob("*.lock"):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            print(f"{lock.stem} is being made by another process; nothing was removed.", file=sys.stderr)
            return 1
    if not yes:
        try:
            answer = input("Remove all of it? [y/N] ")
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was removed (--yes removes without asking).")
            return 1
    if not (folder / LABELS).is_file():
        shutil.rmtree(folder)
        print("Removed.")
        return 0
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LABELS:
            path.unlink()
    print(f"Removed, less what was written by hand: {folder / LABELS}")
    return 0


def _notebooks(folder: Path, in_place: bool) -> list[Path]:
    """The numbered notebooks in order, each as .ipynb where there is one, else as its .py source."""
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


def _read_notebook(path: Path):
    import jupytext

    notebook = jupytext.read(path)
    notebook.metadata.setdefault("kernelspec", {"name": "python3", "display_name": "Python 3", "language": "python"})
    return notebook


def _execute(notebook, path: Path, environment: dict[str, str]) -> str:
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


def _drop_widgets(notebook) -> None:
    """Take out widgets, which need a running kernel; a figure beside each shows the same."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]


def _put_outputs(path: Path, executed) -> None:
    """Write results into the notebook at `path`, less progress bars; everything else in it stays as it was."""
    import nbformat

    target = path.with_suffix(".ipynb")
    notebook = _read_notebook(path)
    notebook.metadata.pop("widgets", None)
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = [output for output in ran.outputs if output.get("name") != "stderr"]
    write_text(target, nbformat.writes(notebook) + "\n")


def _write_report(path: Path, executed: dict, title: str) -> None:
    """Join notebooks in one HTML page that needs no network."""
    import nbformat
    from nbconvert import HTMLExporter

    links = "\n".join(f'- <a href="#{name}">{name}</a>' for name in executed)
    cells = [nbformat.v4.new_markdown_cell(f"# aircraft_sae: {title}\n\n{links}")]
    for name, notebook in executed.items():
        cells += [nbformat.v4.new_markdown_cell(f'<a id="{name}"></a>'), *notebook.cells]
    whole = nbformat.v4.new_notebook(cells=cells, metadata=next(iter(executed.values())).metadata)
    diagrams = dict.fromkeys(("mermaid_js_url", "mermaid_layout_elk_js_url"), "")
    exporter = HTMLExporter(embed_images=True, **diagrams)
    page, _ = exporter.from_notebook_node(whole, {"metadata": {"name": f"aircraft_sae {title}"}})
    write_text(path, re.sub(r"<script src=.*?</script>", "", page))


if __name__ == "__main__":
    sys.exit(main())
