"""The command: `python -m aircraft_sae [run|info|clean]`. It imports nothing heavy: the kernels do the work."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from aircraft_sae import config
from aircraft_sae.runner import NOTEBOOKS, Runner, check_pair, find, put_outputs
from aircraft_sae.store import LABELS, data_folder, make_parents, stage_metas
from aircraft_sae.view.report import write_report

MAIN = "06"
"""The last notebook that is run unless others are named."""
RUNNING = "run-"
"""A process that runs a study holds a lock of this name and its id."""


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
    parser = argparse.ArgumentParser(prog="python -m aircraft_sae", description="Run, inspect or remove a study.")
    parser.add_argument("command", nargs="?", default="run", choices=("run", "info", "clean"), help="default: run")
    parser.add_argument("numbers", nargs="*", metavar="NN", help=f"run: these notebooks; default: 01 to {MAIN}")
    parser.add_argument("--all", action="store_true", help="run: all notebooks")
    parser.add_argument("--preset", help="one of " + ", ".join(config.PRESETS) + "; default: hangar")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--in-place", action="store_true", help="run: then put the outputs into notebooks/ too")
    parser.add_argument("--record", action="store_true", help="run: then put the numbers into data/results, for git")
    parser.add_argument("--again", action="store_true", help="run: notebooks for which nothing has changed, too")
    parser.add_argument("--yes", action="store_true", help="clean: remove without asking")
    options = parser.parse_intermixed_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT")
    root = str(Path(root).expanduser().resolve()) if root else ""  # the kernels run in another folder
    try:
        study, data_dir = config.preset(name), data_folder()
        if options.command == "run":
            study = config.with_data_root(study, root)
            if study.dataset.needs_root and not Path(root).is_dir():
                raise ValueError(f"the data root {root} is not a folder")
            if options.in_place and not study.dataset.rendered:
                raise ValueError(f"--in-place would put the photographs of {name} into notebooks/: run without it")
            notebooks = find(NOTEBOOKS)
            asked = {number.zfill(2) for number in options.numbers}
            asked = asked or {number for number in notebooks if options.all or number <= MAIN}
            if unknown := sorted(asked - set(notebooks)):
                raise ValueError(f"no notebook {', '.join(unknown)}: there are {', '.join(notebooks)}")
            for number in sorted(asked):
                check_pair(notebooks[number], options.in_place)
        elif options.numbers or options.all:
            raise ValueError(f"{options.command} takes no notebooks: only run does")
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir / "runs" / name
    try:
        if options.command == "info":
            return info(folder)
        if options.command == "clean":
            return clean(folder, options.yes)
        environment = {"AIRCRAFT_SAE_PRESET": name, "AIRCRAFT_SAE_DATA_DIR": str(data_dir)}
        environment["AIRCRAFT_SAE_DATA_ROOT"] = root
        runner = Runner(folder, environment, study.dataset.rendered, options.again)
        # keeps `clean` away, between stages too; another process may run this study as well
        lock = folder / f"{RUNNING}{os.getpid()}.lock"
        make_parents(lock)
        try:
            with FileLock(lock):
                status = run(notebooks, asked, runner, study, options.in_place)
            if options.record and not status:
                shutil.copytree(runner.results, data_dir / "results" / name, dirs_exist_ok=True)
            return status
        finally:
            lock.unlink(missing_ok=True)
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = " The next run goes on from what is on disk, part-made stages too." * (options.command == "run")
        print(f"\nInterrupted.{goes_on}", file=sys.stderr)
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


def info(folder: Path) -> int:
    """Print each stage in `folder`: made or not, size, seconds, peak memory."""
    made = stage_metas(folder)
    begun = {path.relative_to(folder).as_posix().removesuffix(".partial") for path in folder.rglob("*.partial")}
    print(f"{folder}\n{'stage':32} {'state':10} {'MB':>9} {'seconds':>9} {'peak MB':>9}")
    for name in sorted({"dataset", "networks/trained", *made, *begun}):
        if meta := made.get(name):
            size, memory = sum(file["bytes"] for file in meta["files"].values()), meta["peak_memory_bytes"]
            print(f"{name:32} {'made':10} {size / 1e6:9.1f} {meta['seconds']:9.1f} {memory / 1e6:9.0f}")
        else:
            print(f"{name:32} {'part made' if name in begun else 'not made':10}")
    return 0


def clean(folder: Path, yes: bool) -> int:
    """Remove what is in `folder`, less a person's labels, after saying how much; not while it is being made or run."""
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
            what = "The study is being run" if lock.stem.startswith(RUNNING) else f"{lock.stem} is being made"
            print(f"{what} by another process; nothing was removed.", file=sys.stderr)
            return 1
    with suppress(EOFError):
        yes = yes or input("Remove all of it? [y/N] ").strip().lower() in ("y", "yes")
    if not yes:
        print("Nothing was removed (--yes removes without asking).")
        return 1
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LABELS:
            path.unlink()
    with suppress(OSError):  # labels are there
        folder.rmdir()
    print(f"Removed, less what was written by hand: {folder / LABELS}" if folder.exists() else "Removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
