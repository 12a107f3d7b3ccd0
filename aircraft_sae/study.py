"""The front door: `Study.open("hangar")` loads each stage from disk, or runs it once."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aircraft_sae import store
from aircraft_sae.activations import VIEWS, Activations, extract, site_folder
from aircraft_sae.config import SAEConfig, StudyConfig, change, check_name, preset, with_data_root
from aircraft_sae.features import PARTS, FeatureIndex, Regions, build_features, claim_bars, halves, probe_dictionary
from aircraft_sae.features.reconstruction import Null, null_dictionaries, random_dictionaries, short_training
from aircraft_sae.hangar import VARIANTS
from aircraft_sae.hangar.dataset import render_dataset
from aircraft_sae.hangar.scene import FACTORS
from aircraft_sae.interventions import Claimant, features_to_test, judge_parts
from aircraft_sae.networks import Network, build, check_weights, load, pretrained, train, weights_digest
from aircraft_sae.pictures import Pictures, note_pictures, open_source
from aircraft_sae.pictures.scenes import EDITS, VariedScenes, choose_scenes, vary_scenes
from aircraft_sae.sae import SparseAutoencoder, train_sae
from aircraft_sae.store import say
from aircraft_sae.studies.comparison import profile_network

OWN = ("main", "local")  # the config's own autoencoders
N_BARS = 20  # null dictionaries; a claim has to beat the best features of 95 % of them


class Study:
    """One study on disk: stages in `folder`, the numbers of its notebooks in folder/results.

    Arguments that methods share. network: "trained" (the config's), "permuted" (the same with permuted weights), a name
    that `pretrained` knows, or a Network. pictures: "all", "every3" (every third picture) or the like, or Pictures.
    like: "main" or "local", one of the config's own autoencoders.
    """

    def __init__(
        self, config: StudyConfig, data_dir: Path, network: Network | None = None, pictures: Pictures | None = None
    ):
        self.config, self.data_dir = config, data_dir
        self.folder = data_dir / "runs" / config.name
        self.stages: dict[str, store.Stage] = {}  # loaded or made so far
        self._pictures, self._networks = pictures, {} if network is None else {"trained": network}
        # asked for repeatedly, and slow to look up: their inputs have to be loaded and hashed
        self.bars, self.nulls, self.tiers = cache(self.bars), cache(self.nulls), cache(self.tiers)

    @classmethod
    def open(
        cls, preset_or_config: str | StudyConfig | None = None, *, data_dir: str | Path | None = None,
        data_root: str | Path | None = None, network: Network | None = None, pictures: Pictures | None = None,
    ) -> "Study":  # fmt: skip
        """Open a study by preset name or config; nothing runs until a stage is asked for.

        Defaults: AIRCRAFT_SAE_PRESET or "hangar"; AIRCRAFT_SAE_DATA_DIR or the repository's data folder;
        AIRCRAFT_SAE_DATA_ROOT or the config's own root. network, pictures: used instead of the config's.
        Raises: ValueError for an unknown preset, a data_dir that is a file, a missing or unwanted data root.
        """
        config = preset_or_config or os.environ.get("AIRCRAFT_SAE_PRESET") or "hangar"
        config = config if isinstance(config, StudyConfig) else preset(config)
        config = with_data_root(config, data_root or os.environ.get("AIRCRAFT_SAE_DATA_ROOT"))
        return cls(config, store.data_folder(data_dir), network, pictures)

    def pictures(self, name: str | Pictures = "all") -> Pictures:
        """The study's pictures, rendered or found, and checked once. Raises: ValueError for an unknown name."""
        if isinstance(name, Pictures):
            return name
        if self._pictures is None:
            self._pictures = self._open_pictures()
        if name == "all":
            return self._pictures
        if not (number := re.fullmatch(r"every([1-9]\d*)", str(name))):
            raise ValueError(f'no pictures {name!r}: choose "all", "every3" or the like, or pictures of your own')
        return self._pictures.every(int(number[1]))

    def _open_pictures(self) -> Pictures:
        config = self.config.dataset
        if config.rendered:
            folder = self.stage("dataset", render_dataset, {"config": config.hangar}, {"variants": VARIANTS})
            return open_source(config, folder)
        say(f"dataset: reading {config.root or self.data_dir / 'downloads'}")
        found = open_source(config, None, self.data_dir / "downloads")
        if not self.find_stage("dataset", pictures=found):  # pictures are identified by content, not by place
            found.check_images()
        if twins := found.twins():
            few = "; ".join(twins[:5])
            say(f"dataset: {len(twins)} pictures are in several splits, which flatters test results: {few}")
        self.stage("dataset", note_pictures, {}, {"pictures": found})
        return found

    def network(self, name: str | Network = "trained") -> Network:
        """A network; one trained here has its `history`, and its `predictions` on the test split.

        Raises: ValueError for an unknown name, and for sites of the config that the trained network lacks.
        """
        if isinstance(name, Network):
            return name
        if name not in self._networks:
            if name == "trained":
                self._networks[name] = self._train_network()
            elif name == "permuted":
                self._networks[name] = self.network().permuted()
            else:
                self._networks[name] = pretrained(name, self.config.classifier.image_size)
        return self._networks[name]

    def _train_network(self) -> Network:
        config = self.config.classifier
        check_weights(config)  # before the data set is rendered, which takes longer
        pictures = self.pictures()
        classes = pictures.classes(config.level or pictures.levels[0])  # refuses a level that these pictures lack
        untrained = Network(build(replace(config, weights=None), len(classes)), classes)
        for site in self.config.sites:
            untrained.check_site(site)
        inputs = {"pictures": pictures, "weights": weights_digest(config)}
        return load(self.stage("networks/trained", train, {"cfg": config}, inputs))

    def activations(
        self, site: str | None = None, network: str | Network = "trained", pictures: str | Pictures = "all"
    ) -> Activations:
        """A network's activations at a site (sae.site by default) on pictures.

        One pass extracts all sites of the config; the trained network, on all pictures, is shown random views too.
        """
        site, sites = site or self.config.sae.site, self.config.sites
        seen, shown = self.network(network), self.pictures(pictures)
        name = "activations/" + "-".join([seen.name, *([shown.name] if shown.name != "all" else [])])
        if site not in sites:
            sites, name = (site,), f"{name}-{site_folder(site)}"
        for each in sites:
            seen.check_site(each)
        views = self.config.n_views * (seen is self.network() and shown is self.pictures())
        how = {"augmentation": self.config.classifier, "n_views": views} if views else {}
        settings = {"sites": list(sites)} | how
        return Activations.open(self.stage(name, extract, settings, {"network": seen, "pictures": shown}), site)

    def sampled_cells(
        self, sites: Sequence[str], network: str | Network, n: int = 64, by_norm: bool = False
    ) -> dict[str, Activations]:
        """{site: n cells of each picture, drawn by `some_cells`}: for early sites, with thousands of cells."""
        seen, pictures = self.network(network), self.pictures("every1")
        settings = {"sites": list(sites), "n_cells": n, "by_norm": by_norm}
        name = f"activations/{seen.name}-{n}-cells{'-by-norm' * by_norm}-{store.digest(settings['sites'])[:8]}"
        folder = self.stage(name, extract, settings, {"network": seen, "pictures": pictures})
        return {site: Activations.open(folder, site) for site in sites}

    def dictionary(self, name: str, acts: Activations, **changes: Any) -> SparseAutoencoder:
        """A short training of the config's autoencoder on `acts` of the training and validation pictures."""
        config = change(self.config.sae, site=acts.site, **short_training(self.config.sae) | changes)
        return self._trained(name, config, acts, acts.rows("train", "val"))

    def sae(
        self, name: str = "main", *, like: str | None = None, network: str | Network = "trained",
        pictures: str | Pictures = "all", **changes,
    ) -> SparseAutoencoder:  # fmt: skip
        """An autoencoder trained on the training and validation pictures, as in `study.sae("k8", k=8)`.

        name: its folder under sae/, and its site too if a site has this name and `site` is not given. changes: fields
        that differ from the config of `like` ("main" by default). Random views are used with "all" pictures only.
        Raises: ValueError for changes to "main" or "local", an unknown name without changes, and another `like`.
        """
        if like not in (None, *OWN):
            raise ValueError(f"like must be one of {', '.join(OWN)}, got {like!r}")
        if name in OWN and (changes or (network, pictures) != ("trained", "all") or like not in (None, name)):
            raise ValueError(f'"{name}" is an autoencoder of the config itself: give any other a name of its own')
        check_name(name)
        own = {"main": self.config.sae, "local": self.config.local}
        config = change(own[like or (name if name in OWN else "main")], **changes)
        if name not in OWN and "site" not in changes:
            seen = self.network(network)
            with suppress(ValueError):  # most names are not sites
                seen.check_site(name)
                config = replace(config, site=name)
        if name not in OWN and config in own.values() and (network, pictures) == ("trained", "all"):
            raise ValueError(f"no autoencoder {name!r}: choose main, local or a site, or change a field, as in k=16")
        shown = self._shown_to(network, pictures)
        acts = self.activations(config.site, network, shown)
        rows = acts.rows("train", "val", *([VIEWS] if pictures == "all" else []))
        if pictures != "all" and shown == "all":
            rows = rows[acts.images["image"].iloc[rows].isin(self.pictures(pictures).table["image"])]
        return self._trained(name, config, acts, rows)

    def _trained(self, name: str, config: SAEConfig, acts: Activations, rows: np.ndarray) -> SparseAutoencoder:
        SparseAutoencoder(config, acts.d_in)  # both refuse a config that does not fit these acts
        acts.per_epoch(rows, config.batch_size)
        inputs = {"acts": acts, "rows": rows}
        return SparseAutoencoder.load(self.stage(f"sae/{check_name(name)}", train_sae, {"cfg": config}, inputs))

    def features(
        self, name: str = "main", *, sae: SparseAutoencoder | None = None, network: str | Network = "trained",
        pictures: str | Pictures = "all", splits: Sequence[str] = ("train", "val", "test"), selectivity: bool = True,
        **changes: Any,
    ) -> FeatureIndex:  # fmt: skip
        """The index and table of an autoencoder's features on pictures; other arguments as for `sae`.

        sae: a dictionary that is not on disk, such as a null. Raises: ValueError if it is named "main" or "local", or
        is not as wide as its site.
        """
        if sae is not None and name in OWN:
            raise ValueError(f'"{name}" is the index of the config\'s own autoencoder: give this one a name of its own')
        check_name(name)
        sae = sae or self.sae(name, network=network, pictures=pictures, **changes)
        shown = self._shown_to(network, pictures)
        acts = self.activations(sae.cfg.site, network, shown)
        if sae.d_in != acts.d_in:
            raise ValueError(f"{name} is for a width of {sae.d_in}, and {sae.cfg.site} has {acts.d_in}: make it from "
                             "this study's activations")  # fmt: skip
        settings = {"splits": list(splits), "by_class": selectivity}
        inputs = {"sae": sae, "acts": acts, "pictures": self.pictures(shown)}
        return FeatureIndex.open(self.stage(f"features/{name}", build_features, settings, inputs))

    def _shown_to(self, network: str | Network, pictures: str | Pictures) -> str | Pictures:
        """Return "all" for the trained network, whose activations on all pictures exist anyway; else `pictures`."""
        return "all" if self.network(network) is self.network() else pictures

    def nulls(self, like: str = "main", seed: int = 0) -> dict[str, Null]:
        """`null_dictionaries` for an autoencoder; another seed draws new ones."""
        own, end = self.sae(like), f"-{seed}" * (seed > 0)
        acts = self.activations(own.cfg.site)
        return null_dictionaries(own, acts, lambda kind, **how: self.sae(f"{like}-{kind}{end}", like=like, **how), seed)

    def claims(self, like: str = "main") -> pd.DataFrame:
        """`features_to_test` for an autoencoder: the features to test, chosen before any test."""
        index = self.features(like)
        if not self.pictures().region_names:
            return features_to_test(index.table, None, None)
        return features_to_test(index.table, pd.read_parquet(index.folder / PARTS), self.bars(like))

    def bars(self, like: str = "main") -> pd.DataFrame:
        """`claim_bars` for an autoencoder: part, bar."""
        own = self.sae(like)
        acts = self.activations(own.cfg.site)
        inputs = {"acts": acts, "pictures": self.pictures()}
        inputs["nulls"] = random_dictionaries(own, acts, range(1000, 1000 + N_BARS))  # seeds that no other null uses
        return pd.read_parquet(self.stage(f"experiments/bars-{like}", claim_bars, {}, inputs) / "bars.parquet")

    def vary(
        self, name: str, scenes: Sequence[str], *, edits: Sequence[str], most: int, parts: Sequence[str] | None = None,
        factors: Sequence[str] = (),
    ) -> VariedScenes:  # fmt: skip
        """`vary_scenes` at the hangar's size and supersampling; parts: all by default."""
        settings = {"factors": factors, "edits": edits, "parts": parts or self.pictures().region_names, "most": most}
        hangar = self.config.dataset.hangar
        settings |= {"size": hangar.size, "supersampling": hangar.supersampling}
        return VariedScenes.open(self.stage(f"experiments/{name}", vary_scenes, settings, {"scenes": scenes}))

    def removals(self, most: int = 70) -> VariedScenes:
        """Scenes of half B, unchanged and with each part removed in up to `most` scenes."""
        return self.vary("edit-remove", self._scenes(most), edits=["part"], most=most)

    def varied(self, most: int = 40) -> VariedScenes:
        """Scenes of half B, unchanged and with one thing varied; each part is edited in up to `most` scenes."""
        return self.vary("varied", self._scenes(most), edits=EDITS, most=most, factors=FACTORS)

    def _scenes(self, most: int) -> list[str]:
        """Scenes of half B that show each part `most` times, if there are enough."""
        pictures = self.pictures()
        test = pictures.rows("test")
        half_b = test["image"][halves(test[pictures.levels[0]])]
        return choose_scenes(pictures, half_b, most, self.config.dataset.hangar.size)

    def tiers(self, like: str = "main") -> Path:
        """`judge_parts` for three seeds, probes and nulls. Raises: ValueError if there are no scenes to edit."""
        pictures, own, names = self.pictures(), self.sae(like), [like, f"{like}-seed1", f"{like}-seed2"]
        if not pictures.region_names or pictures.scenes is None:
            raise ValueError(f"{self.config.name} has no scenes from which parts can be removed: nothing can be judged")
        bars, removals = self.bars(like), self.removals()

        def claimant(name: str, null: Null, **facts: Any) -> Claimant:
            name = f"{like}-{name}".replace(" ", "-")
            index = self.features(name, **null._asdict(), splits=["test"], selectivity=False)
            scores = pd.read_parquet(index.folder / PARTS)
            claims = features_to_test(index.table, scores, bars, len(pictures.region_names))
            removed = self.activations(own.cfg.site, null.network, removals)
            return Claimant(null.sae, index, claims, self.pictures(null.pictures), removed, **facts)

        removed = self.activations(own.cfg.site, pictures=removals)
        claimants = {like: Claimant(own, self.features(like), self.claims(like), pictures, removed, names[1:])}
        for seed, name in enumerate(names[1:], 1):
            other = self.sae(name, like=like, seed=own.cfg.seed + seed)
            claimants[name] = claimant(f"seed{seed}", Null(other), seeds=[each for each in names if each != name])
        acts = self.activations(own.cfg.site)
        claimants["probes"] = claimant("probes", Null(probe_dictionary(own, acts, Regions.of(acts, pictures))))
        learned_nothing = {kind: null for kind, null in self.nulls(like).items() if kind not in ("channels", "PCA")}
        nulls = {kind: claimant(f"null-{kind}", null) for kind, null in learned_nothing.items()}
        for kind, null in self.nulls(like, 1).items():
            claimants[f"null, {kind}"] = claimant(f"null-{kind}-1", null)
        inputs = {"claimants": claimants, "nulls": nulls, "removals": removals}
        return self.stage(f"experiments/tiers-{like}", judge_parts, {}, inputs)

    def seeds(self, network: str | Network, site: str, d_sae: int, n: int = 3) -> dict[str, SparseAutoencoder]:
        """{"seed 0": …}: n short trainings that differ only in their seed, on the same pictures for every network.

        Raises: ValueError if d_sae is not a multiple of the site's width.
        """
        seen = self.network(network)
        if d_sae % (width := seen.shape(site)[2]):
            raise ValueError(f"d_sae must be a multiple of {width}, the width of {site} of {seen.name}, got {d_sae}")
        how = {"site": site, "expansion": d_sae // width, "k": 16, "standardise": "channels"}
        how |= short_training(self.config.sae) | {"network": network, "pictures": "every1"}
        return {f"seed {i}": self.sae(f"{seen.name}-{site_folder(site)}-{i}", seed=i, **how) for i in range(n)}

    def profile(self, network: str | Network, site: str, saes: Mapping[str, SparseAutoencoder]) -> Path:
        """`profile_network` for the autoencoders from `seeds`."""
        seen, pictures = self.network(network), self.pictures("every1")
        acts = self.activations(site, network, self._shown_to(network, "every1"))
        inputs = {"acts": acts, "varied": self.activations(site, network, self.varied()), "pictures": pictures}
        inputs |= {"saes": saes, "random": random_dictionaries(next(iter(saes.values())), acts, (0, 1))}
        return self.stage(f"experiments/profile-{seen.name}-{site_folder(site)}", profile_network, {}, inputs)

    def stage(self, name: str, make: Callable, settings: Mapping | None = None, inputs: Mapping | None = None) -> Path:
        """The folder that `make(folder, **inputs, **settings)` fills, now or in an earlier run.

        A stage is identified by its settings (plain values and configs), digests of its inputs (arrays, tables,
        networks, pictures, autoencoders, …) and the source of make's room; it is made again if any of them changes.
        Raises: ValueError if make is not a function of a package, or an input has no digest.
        """
        for part in name.split("/"):
            check_name(part)
        dataset = self.stages.get("dataset") if self.config.dataset.rendered else None
        settings, inputs, folder = dict(settings or {}), dict(inputs or {}), self.folder / name
        known = {each: store.digest(value) for each, value in inputs.items()} | {"source": store.source_digest(make)}
        write = partial(make, **inputs, **settings)
        self.stages[name] = store.make_stage(folder, settings, known, write, name=name, source=dataset)
        return folder

    def find_stage(self, name: str, **inputs: Any) -> Path | None:
        """The folder of a stage on disk that was made from these inputs, whatever its other inputs; else None."""
        known = store.read_json(self.folder / name / store.META).get("inputs", {})
        same = known and all(known.get(each) == store.digest(value) for each, value in inputs.items())
        return self.folder / name if same else None

    def record(self, notebook: str, results: Mapping[str, Any]) -> Path:
        """Write a notebook's numbers, in any form that `store.entries` takes; they replace those of its last run."""
        path = self.folder / "results" / f"{check_name(notebook)}.json"
        store.write_json(path, store.entries(results))
        return path

    def results(self, notebook: str) -> dict[str, dict[str, float | None]]:
        """The numbers recorded by a notebook. Raises: FileNotFoundError if it has not run."""
        path = self.folder / "results" / f"{check_name(notebook)}.json"
        if not (found := store.read_json(path)):
            raise FileNotFoundError(f"{path} is not there: run notebook {notebook} on {self.config.name} first")
        return found
