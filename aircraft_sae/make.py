"""Make one stage from the command line, in one process or, under torchrun, in several."""

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


def configure(names: list[str], config: StudyConfig, changes: list[str], site: str | None) -> tuple[str, StudyConfig]:
    """(the stage's name, the config after its "field=value" changes). Raises: ValueError for wrong arguments."""
    if len(names) != 1 or names[0] not in STAGES:
        raise ValueError(f"make takes one of {', '.join(STAGES)} at a time, got {' '.join(names) or 'none'}")
    if site and names[0] in ("dataset", "network"):
        raise ValueError(f"--site is for activations, sae and features, not for {names[0]}")
    if wrong := [each for each in changes if "=" not in each]:
        raise ValueError(f"--set takes FIELD=VALUE, got {wrong[0]!r}")
    fields = (each.split("=", 1) for each in changes)
    config = change(config, **{field.strip(): _value(text.strip()) for field, text in fields})
    if names[0] == "activations" and not config.keep_activations:
        raise ValueError("keep_activations is false, so no activations are stored: make sae or features")
    return names[0], config


def _value(text: str) -> Any:
    for read in (json.loads, literal_eval):  # true, null and [64], or True, None and (64,)
        with suppress(ValueError, SyntaxError):
            return read(text)
    return text


def make(stage: str, config: StudyConfig, data_dir: Path, site: str | None) -> int:
    """Make one of `STAGES` and the stages it needs, and print their folders; returns the command's exit code.

    site: where the config has an autoencoder ("main", "local"), that one is made; elsewhere one named after the site.
    """
    if int(os.environ.get("RANK", 0)):
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported: one bar is enough
    from aircraft_sae import ranks
    from aircraft_sae.activations import site_folder
    from aircraft_sae.study import Study

    try:
        ranks.join()
        study = Study(config, data_dir)
        name = {config.local.site: "local", config.sae.site: "main"}.get(site or config.sae.site)
        name, changes = (name, {}) if name else (site_folder(site), {"site": site})
        {
            "dataset": study.pictures, "network": study.network, "activations": lambda: study.activations(site),
            "sae": lambda: study.sae(name, **changes), "features": lambda: study.features(name, **changes),
        }[stage]()  # fmt: skip
        if ranks.rank() == 0:
            print(*(made.folder for made in study.stages.values()), sep="\n")
        ranks.leave()
        return 0
    except KeyboardInterrupt:
        print(f"{ranks.label()}Interrupted. The next run resumes from what is on disk.", file=sys.stderr, flush=True)
        return 130
    except (ValueError, OSError, RuntimeError) as problem:
        if ranks.ended(problem):
            first = str(problem).splitlines()[0]
            print(f"{ranks.label()}another rank has ended ({first})", file=sys.stderr, flush=True)
            time.sleep(60)  # torchrun stops this one, and reports the one that ended first
        elif isinstance(problem, RuntimeError):
            raise
        else:
            print(f"{ranks.label()}{problem}", file=sys.stderr, flush=True)
        return 1
