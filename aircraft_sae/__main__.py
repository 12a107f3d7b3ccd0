"""The command: `python -m aircraft_sae [run]`. It imports nothing heavy: the kernels do the work."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from aircraft_sae import config
from aircraft_sae.runner import NOTEBOOKS, Runner, check_pair, find, put_outputs
from aircraft_sae.store import data_folder, make_parents
from aircraft_sae.view.report import write_report

MAIN = "06"
"""The last notebook that is run unless others are named."""


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
    parser = argparse.ArgumentParser(prog="python -m aircraft_sae", description="Run a study.")
    parser.add_argument("command", nargs="?", default="run", choices=("run",), help="the default")
    parser.add_argument("numbers", nargs="*", metavar="NN", help=f"these notebooks; default: 01 to {MAIN}")
    parser.add_argument("--all", action="store_true", help="all notebooks")
    parser.add_argument("--preset", help="one of " + ", ".join(config.PRESETS) + "; default: hangar")
    parser.add_argument("--data-root", metavar="DIR", help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--in-place", action="store_true", help="then put the outputs into notebooks/ too")
    parser.add_argument("--record", action="store_true", help="then put the numbers into data/results, for git")
    parser.add_argument("--again", action="store_true", help="notebooks for which nothing has changed, too")
    options = parser.parse_intermixed_args(arguments)
    name = options.preset or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
    root = options.data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT")
    root = str(Path(root).expanduser().resolve()) if root else ""  # the kernels run in another folder
    try:
        study, data_dir = config.preset(name), data_folder()
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
    except ValueError as error:
        parser.error(str(error))
    folder = data_dir / "runs" / name
    try:
        make_parents(folder / "report")
        environment = {"AIRCRAFT_SAE_PRESET": name, "AIRCRAFT_SAE_DATA_DIR": str(data_dir)}
        environment["AIRCRAFT_SAE_DATA_ROOT"] = root
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
