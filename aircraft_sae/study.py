"""The front door: `Study.open("hangar")` loads each stage from disk, or runs it once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from aircraft_sae import networks as classifier
from aircraft_sae.activations import VIEWS, Activations, extract
from aircraft_sae.config import StudyConfig, change, check_name, preset, with_data_root
from aircraft_sae.features import FeatureIndex, build_features
from aircraft_sae.hangar.dataset import render_dataset
from aircraft_sae.networks import Classifier
from aircraft_sae.pictures import AircraftData, open_source
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import train_sae
from aircraft_sae.store import (
    META,
    Stage,
    data_folder,
    default_data_dir,
    fingerprint,
    make_stage,
    read_json,
    write_json,
    write_parquet,
)

VERSIONS = {"ablation": 5, "dataset": 2, "classifier": 2, "activations": 1, "permuted": 1, "sae": 1, "features": 5}
"""To be raised with every change of code after which a stage's result differs: it makes the stage again everywhere."""
CONTROL_EVERY = 3
"""The control network sees every so many pictures."""
ENTRY = ("value", "low", "high", "n")


def say(text: str) -> None:
    """A line on stderr, beside the progress bars and out of the notebooks' outputs."""
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # in one piece: stages are made side by side


class Study:
    """One study on disk: stages in `folder`, numbers in `data_dir`/results."""

    def __init__(self, config: StudyConfig, data_dir: Path):
        self.config, self.data_dir = config, data_dir
        self.folder = data_dir / "runs" / config.name
        self.stages: dict[str, Stage] = {}
        """Stages loaded or made so far."""

    @classmethod
    def open(
        cls,
        preset_or_config: str | StudyConfig | None = None,
        *,
        data_dir: str | Path | None = None,
        data_root: str | Path | None = None,
    ) -> Study:
        """A study by preset name or config; nothing runs until a stage is asked for.

        Where not given: the preset is AIRCRAFT_SAE_PRESET or "hangar", data_dir is AIRCRAFT_SAE_DATA_DIR or the
        repository's data folder, data_root (the folder of pictures) is AIRCRAFT_SAE_DATA_ROOT or the config's own.
        Raises: ValueError for an unknown preset, a data_dir that is no folder, or a data root that the config cannot
        use or lacks.
        """
        config = preset_or_config or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
        if not isinstance(config, StudyConfig):
            config = preset(config)
        config = with_data_root(config, data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT"))
        return cls(config, data_folder(data_dir) if data_dir else default_data_dir())

    def dataset(self) -> AircraftData:
        """The pictures: rendered for the hangar, else found (or downloaded) and checked once."""
        if "dataset" not in self.stages:
            config = self.config.dataset
            if config.source == "hangar":
                self._stage("dataset", config.hangar, {}, partial(render_dataset, config.hangar))
                self._data = open_source(config, self.folder / "dataset")
            else:
                say(f"dataset: reading {config.root or self.data_dir / 'downloads'}")
                self._data = open_source(config, None, self.data_dir / "downloads")
                # known by content, so that a moved folder is not checked again
                check = self._data.check_images if config.on_bad_image == "raise" else None  # else they are left out
                inputs = {"pictures": self._data.fingerprint}
                self._stage("dataset", replace(config, root=None), inputs, self._note_pictures, check)
        return self._data

    def classifier(self) -> Classifier:
        """The trained ConvNeXt, with its `history` and its `predictions` on the test split."""
        if "classifier" not in self.stages:
            config = self.config.classifier
            classifier.check_weights(config)  # before a data set is rendered for them
            data = self.dataset()
            data.classes(config.level)  # refuses a level that these pictures lack
            inputs = {"dataset": data.fingerprint, "weights": classifier.weights_digest(config)}
            self._stage("classifier", config, inputs, self._train)
            self._classifier = Classifier.load(self.folder / "classifier")
        return self._classifier

    def activations(self, site: str | None = None, control: bool = False) -> Activations:
        """The activations of one site, the autoencoder's own unless named; all sites are extracted in one pass.

        control: of the network with permuted weights, for every third picture.
        """
        site, name = site or self.config.sae.site, "permuted" if control else "activations"
        if site not in self.config.sites:
            raise ValueError(
                f"no site {site!r} in this study: it keeps {', '.join(self.config.sites)}: add it to `sites`"
            )
        if name not in self.stages:
            trained, data, sites, n_views = self.classifier(), self._data, self.config.sites, self.config.n_views
            inputs = {"classifier": self.stages["classifier"].fingerprint}
            config = {"sites": list(sites), "n_views": n_views}
            if control:
                trained, data, n_views = trained.permuted(), data.every(CONTROL_EVERY), 0
                config = {"sites": list(sites), "every": CONTROL_EVERY}
            self._stage(name, config, inputs, partial(extract, trained, data, sites, n_views=n_views))
        return Activations.open(self.folder / name / site)

    def sae(self, name: str = "main", *, control: bool = False, every: int = 1, **changes: Any) -> SparseAutoencoder:
        """An autoencoder of the cells of training and validation pictures: the config's, or one with fields changed.

        name: its folder under sae/. control: of the network with permuted weights; every: from every so many pictures
        only, without their views: CONTROL_EVERY gives the control's pictures. As in `study.sae("k8", k=8)`.
        Raises: ValueError for changes to "main", and what its config and its training raise.
        """
        if name == "main" and (changes or control or every != 1):
            raise ValueError('"main" is the config\'s own autoencoder: give any other a name of its own')
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be at least 1, got {every!r}: give a whole number")
        config, stage = change(self.config.sae, **changes), f"sae/{name}"
        acts = self.activations(config.site, control)
        inputs = {"activations": self.stages["permuted" if control else "activations"].fingerprint, "every": str(every)}
        rows = acts.rows("train", "val", *([] if every > 1 else [VIEWS]))
        rows = rows[rows % every == 0]

        def check() -> None:  # both refuse what does not fit these acts
            SparseAutoencoder(config, acts.d_in)
            next(acts.batches(rows, config.batch_size, config.seed))

        alone = threading.current_thread() is threading.main_thread()  # bars of several would overwrite each other
        self._stage(stage, config, inputs, partial(train_sae, config, acts, rows, progress=alone), check)
        return SparseAutoencoder.load(self.folder / stage)

    def features(self, name: str = "main", **which: Any) -> FeatureIndex:
        """The index and table of an autoencoder's features on all pictures; arguments as for `sae`."""
        sae, control = self.sae(name, **which), which.get("control", False)
        acts, data = self.activations(sae.cfg.site, control), self._data.every(CONTROL_EVERY if control else 1)
        inputs = {"sae": self.stages[f"sae/{name}"].fingerprint}
        self._stage(f"features/{name}", {}, inputs, partial(build_features, sae, acts, data))
        return FeatureIndex.open(self.folder / "features" / name)

    def index(self, name: str, dictionary: SparseAutoencoder, control: bool = False) -> FeatureIndex:
        """Index and table of another dictionary's features on the test pictures: a null, say, that nobody trained.

        Raises: ValueError for the name "main", and for a dictionary of another width or of a site that is not kept.
        """
        if name == "main":
            raise ValueError('"main" is the index of the config\'s own autoencoder: give this one a name of its own')
        acts, data = self.activations(dictionary.cfg.site, control), self.dataset()
        if dictionary.d_in != acts.d_in:
            raise ValueError(f"the dictionary {name} is for acts of width {dictionary.d_in}, {dictionary.cfg.site} has "
                             f"{acts.d_in}: make it of this study's acts")  # fmt: skip
        data = data.every(CONTROL_EVERY) if control else data
        weights = [value.numpy().tobytes() for value in dictionary.state_dict().values()]
        inputs = {"activations": self.stages["permuted" if control else "activations"].fingerprint}
        inputs |= {"dictionary": fingerprint(*(hashlib.sha256(values).hexdigest() for values in weights))}

        def make(folder: Path) -> None:
            build_features(dictionary, acts, data, folder, n_permutations=0, splits=("test",))
            (folder / "dictionary").mkdir(exist_ok=True)
            dictionary.save(folder / "dictionary")

        self._stage(f"features/{name}", dictionary.cfg, inputs, make)
        return FeatureIndex.open(self.folder / "features" / name)

    def ablation(self, name: str, make: Callable[[Path], None], uses: Sequence[str], **settings: Any) -> Path:
        """The folder of an experiment that `make(folder)` writes, once for these settings and the stages it uses.

        uses: names of stages made before, as in ("classifier", "features/main"). Raises: KeyError for another one.
        """
        if missing := [stage for stage in uses if stage not in self.stages]:
            raise KeyError(f"{', '.join(missing)}: ask the study for it first, it has {', '.join(self.stages)}")
        inputs = {stage: self.stages[stage].fingerprint for stage in uses}
        self._stage(f"ablation/{name}", settings, inputs, make)
        return self.folder / "ablation" / name

    def export_atlas(self, folder: str | Path | None = None, n_pictures: int | None = None) -> Path:
        """Static HTML of all features, as `aircraft_sae.view.atlas.export_atlas` writes it; gives its index.html."""
        from aircraft_sae.view.atlas import export_atlas  # from above: what a person sees is built on a study

        return export_atlas(self, folder, n_pictures)

    def record(self, notebook: str, results: Mapping[str, Any]) -> Path:
        """Write all of a notebook's numbers, in place of those of its last run.

        Each is a value, or (value, low, high, n) or a dict of these, with None where low, high or n mean nothing.
        Raises: ValueError for what is not that, or not finite.
        """
        flat = {}
        for name, given in results.items():
            if isinstance(given, tuple) and len(given) == len(ENTRY):
                given = dict(zip(ENTRY, given, strict=True))
            elif not isinstance(given, dict):
                given = dict.fromkeys(ENTRY) | {"value": given}
            if set(given) != set(ENTRY):
                raise ValueError(f"{name} must have {', '.join(ENTRY)}, got {', '.join(given)}")
            flat[name] = {key: _number(f"{name} ({key})", given[key], key != "value") for key in ENTRY}
        path = self._results_file(notebook)
        write_json(path, flat)
        return path

    def results(self, notebook: str) -> dict[str, dict[str, float | None]]:
        """What `record` wrote for a notebook; FileNotFoundError where it has not run."""
        path = self._results_file(notebook)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: run notebook {notebook} on {self.config.name} first")
        return json.loads(path.read_text(encoding="utf-8"))

    def _results_file(self, notebook: str) -> Path:
        check_name(notebook)
        return self.data_dir / "results" / self.config.name / f"{notebook}.json"

    def _stage(self, name: str, config: Any, inputs: dict[str, str], make, check=None) -> None:
        """Load or make a stage; check: refuses what cannot be made before anything is written."""
        kind, _, own = name.partition("/")
        check_name(own if kind in ("sae", "features", "ablation") else name)
        inputs = inputs | {"version": str(VERSIONS[kind])}
        if check and read_json(self.folder / name / META).get("fingerprint") != fingerprint(config, inputs):
            check()
        self.stages[name] = make_stage(self.folder / name, config, inputs, make, say=say)

    def _note_pictures(self, work: Path) -> None:
        write_parquet(self._data.table, work / "table.parquet")
        write_parquet(self._data.skipped, work / "skipped.parquet")

    def _train(self, work: Path) -> None:
        classifier.train(self.config.classifier, self._data, work)


def _number(name: str, value: Any, optional: bool) -> float | int | None:
    """A plain number of six significant digits: further ones differ between machines."""
    if value is None and optional:
        return None
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value if isinstance(value, int) else float(f"{value:.6g}")
