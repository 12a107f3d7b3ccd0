"""The command: `python -m aircraft_sae [run|info|clean] [--preset NAME] [--data-root DIR]`.

`run` executes the notebooks in order, shows what the running cell prints, and writes the executed notebooks and an HTML
report. It imports nothing heavy: the kernels do the work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aircraft_sae import config
from aircraft_sae.runner import NOTEBOOKS, Runner, find, put_outputs
from aircraft_sae.store import LABELS, META, default_data_dir, make_parents
from aircraft_sae.view.report import write_report

RUNNING = "run-"
"""How the lock of a process that runs a study is called; then its id."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; exit code 0: success, 1: a failure, 2: words it does not understand, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m aircraft_sae", description="Run, inspect or remove a study.")
    parser.add_argument("command", nargs="?", default="run", choices=("run", "info", "clean"), help="default: run")
    parser.add_argument("--preset", help="one of " + ", ".join(config.presets()) + "; default: hangar")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--in-place", action="store_true", help="run: then put the outputs into notebooks/ too")
    parser.add_argument(
        "--again", action="store_true", help="run: execute notebooks for which nothing has changed, too"
    )
    parser.add_argument("--yes", action="store_true", help="clean: remove without asking")
    options = parser.parse_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    data_root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT")
    try:
        study = config.preset(name)
        if options.command == "run":
            study = config.with_data_root(study, data_root)
            if study.dataset.needs_root and not Path(data_root).expanduser().is_dir():
                raise ValueError(f"the data root {data_root} is not a folder")
            if options.in_place and not study.dataset.rendered:
                raise ValueError(
                    f"--in-place would put the photographs of preset {name} into notebooks/: run without it"
                )
            paths = find(NOTEBOOKS, options.in_place)
        data_dir = default_data_dir()
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir / "runs" / name
    # absolute, because the kernels run in another folder
    environment = {"AIRCRAFT_SAE_PRESET": name, "AIRCRAFT_SAE_DATA_DIR": str(data_dir)}
    environment["AIRCRAFT_SAE_DATA_ROOT"] = str(Path(data_root).expanduser().resolve()) if data_root else ""
    try:
        if options.command == "info":
            return info(folder)
        if options.command == "clean":
            return clean(folder, options.yes)
        rendered = study.dataset.rendered
        runner = Runner(folder, data_dir / "results" / name, environment, rendered, options.again)
        with _running(folder):
            return run(paths, runner, study, options.in_place)
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = (
            " The next run goes on from the stages and part-made stages on disk." if options.command == "run" else ""
        )
        print(f"\nInterrupted.{goes_on}", file=sys.stderr)
        return 130


def run(paths: list[Path], runner: Runner, study: config.StudyConfig, in_place: bool) -> int:
    """Execute notebooks, or keep what the last run made of them, and write the report; stops at the first failure."""
    began, executed, failure = time.monotonic(), {}, ""
    print(f"aircraft_sae: preset {study.name}, {len(paths)} notebooks", flush=True)
    for path in paths:
        executed[path.stem], failure = runner.run(path)
        if failure:
            break
    index = write_report(runner.folder, runner.results, study, executed, time.monotonic() - began, failure)
    if failure:
        print(f"\n{failure}\n\nReport up to there: {index}", file=sys.stderr)
        return 1
    if in_place:
        for path in paths:
            put_outputs(path, executed[path.stem])
    print(f"Done in {time.monotonic() - began:.0f} s. Report: {index}")
    return 0


@contextmanager
def _running(folder: Path) -> Iterator[None]:
    """Keeps `clean` away, between stages too, from a study that this process runs; others may run it as well."""
    from filelock import FileLock

    path = folder / f"{RUNNING}{os.getpid()}.lock"
    make_parents(path)
    try:
        with FileLock(path):
            yield
    finally:
        path.unlink(missing_ok=True)


def info(folder: Path) -> int:
    """Print each stage in `folder`: made or not, size, seconds, peak memory."""
    names = {"dataset", "classifier"}
    for path in (*(meta.parent for meta in folder.rglob(META)), *folder.rglob("*.partial")):
        names.add(path.relative_to(folder).as_posix().removesuffix(".partial"))
    print(f"{folder}\n{'stage':32} {'state':10} {'MB':>9} {'seconds':>9} {'peak MB':>9}")
    for name in sorted(names):
        try:
            meta = json.loads((folder / name / META).read_text(encoding="utf-8"))
            size = sum(file["bytes"] for file in meta["files"].values())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            state = "part made" if (folder / f"{name}.partial").is_dir() else "not made"
            print(f"{name:32} {state:10}")
            continue
        print(f"{name:32} {'made':10} {size / 1e6:9.1f} {meta['seconds']:9.1f} {meta['peak_memory_bytes'] / 1e6:9.0f}")
    return 0


def clean(folder: Path, yes: bool) -> int:
    """Remove what is in `folder`, less a person's labels, after saying how much; not while it is being made or run."""
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
            made = not lock.stem.startswith(RUNNING)
            what = f"{lock.stem} is being made" if made else "The study is being run"
            print(f"{what} by another process; nothing was removed.", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
