"""One stage from the command line, in one process or, under torchrun, in several."""

import json
import os
import sys
import time
from ast import literal_eval
from contextlib import suppress
from pathlib import Path
from typing import Any

from aircraft_sae.config import StudyConfig, change

STAGES = ("dataset", "network", "activations", "sae", "features")


def check_asked(names: list[str], config: StudyConfig, changes: list[str]) -> tuple[str, StudyConfig]:
    """(the stage named, the config with "field=value" changes); ValueError for others."""
    if len(names) != 1 or names[0] not in STAGES:
        raise ValueError(f"make takes one of {', '.join(STAGES)} at a time, got {' '.join(names) or 'none'}")
    if wrong := [each for each in changes if "=" not in each]:
        raise ValueError(f"--set takes FIELD=VALUE, got {wrong[0]!r}")
    fields = (each.split("=", 1) for each in changes)
    return names[0], change(config, **{field.strip(): _value(text.strip()) for field, text in fields})


def _value(text: str) -> Any:
    for read in (json.loads, literal_eval):  # true, null and [64], or True, None and (64,)
        with suppress(ValueError, SyntaxError):
            return read(text)
    return text


def make(stage: str, config: StudyConfig, data_dir: Path, site: str | None) -> int:
    """Make one of `STAGES` and what it needs, or find it made; exit code as the command's.

    site: of activations, or of an autoencoder and its features: "main" and "local" at their own sites; at any other
    site, an autoencoder with main's settings, named after the site.
    """
    if int(os.environ.get("RANK", 0)):
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: one bar is enough
    from aircraft_sae import ranks
    from aircraft_sae.activations import site_folder
    from aircraft_sae.study import Study

    try:
        if stage == "activations" and not config.keep_activations:
            raise ValueError("keep_activations is false, so that no activations are stored: make sae or features")
        ranks.join()
        study = Study(config, data_dir)
        name, changes = {config.local.site: "local", config.sae.site: "main"}.get(site or config.sae.site), {}
        if name is None:
            name, changes = site_folder(site), {"site": site}
        {
            "dataset": study.pictures, "network": study.network, "activations": lambda: study.activations(site),
            "sae": lambda: study.sae(name, **changes), "features": lambda: study.features(name, **changes),
        }[stage]()  # fmt: skip
        if ranks.rank() == 0:
            for made in study.stages.values():
                print(made.folder)
        ranks.leave()
        return 0
    except KeyboardInterrupt:
        print(f"{ranks.label()}Interrupted. The next run goes on from what is on disk.", file=sys.stderr, flush=True)
        return 130
    except (ValueError, OSError, RuntimeError) as problem:
        if ranks.ended(problem):
            first = str(problem).splitlines()[0]
            print(f"{ranks.label()}another rank has ended ({first})", file=sys.stderr, flush=True)
            time.sleep(60)  # torchrun ends this one, and tells of the one that ended first
        elif isinstance(problem, RuntimeError):
            raise
        else:
            print(f"{ranks.label()}{problem}", file=sys.stderr, flush=True)
        return 1
