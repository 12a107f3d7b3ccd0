"""Configuration: one frozen dataclass per stage, the presets, and their JSON round trip."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

SPLITS = ("train", "val", "trainval", "test")
SOURCES = ("hangar", "fgvc", "folder")
LEVELS = ("variant", "family", "manufacturer")
TAXONOMIES = ("hangar", "pretraining")
OPTIMIZERS = ("muon", "adamw")
SITES = ("stem", "stage1", "stage2", "stage3", "stage4")
VARIANTS = ("topk", "batchtopk", "matryoshka", "l1")


@dataclass(frozen=True)
class HangarConfig:
    """What the hangar renders."""

    taxonomy: str = "hangar"
    """"hangar" (30 variants) or "pretraining" (a disjoint, larger set)."""
    n_variants: int | None = None
    """Only the first so many variants; None takes all."""
    scenes_per_variant: int = 100
    size: int = 224
    """Width and height of a picture in pixels."""
    supersampling: int = 2
    """Rays a pixel are this number squared, but for the sky."""
    seed: int = 0
    split_shares: tuple[float, float, float] = (0.57, 0.10, 0.33)
    """Shares of each variant's scenes in train, val and test."""

    def __post_init__(self):
        _check(self, taxonomy=TAXONOMIES, n_variants=2, scenes_per_variant=3, size=1, supersampling=1, seed=0)
        if abs(sum(self.split_shares) - 1) > 1e-6 or min(self.split_shares) <= 0:
            raise ValueError(f"split_shares must be positive and add up to 1, got {self.split_shares}")


@dataclass(frozen=True)
class DatasetConfig:
    """Where pictures come from: rendered, FGVC-Aircraft, or any folder in its layout."""

    source: str = "hangar"
    root: str | None = None
    """Folder that holds (or, for "fgvc", will hold) fgvc-aircraft-2013b; unused by the hangar."""
    banner: int = 0
    """Rows cut off the bottom of every picture: 20 in FGVC-Aircraft, 0 elsewhere."""
    on_bad_image: str = "raise"
    """"raise" stops at unreadable pictures; "skip" leaves them out and records them."""
    hangar: HangarConfig = field(default_factory=HangarConfig)

    def __post_init__(self):
        _check(self, source=SOURCES, on_bad_image=("raise", "skip"), banner=0)


@dataclass(frozen=True)
class ClassifierConfig:
    """How the ConvNeXt is built and trained."""

    arch: str = "convnext_atto_ols"
    """Any ConvNeXt that timm knows."""
    weights: str | None = "hangar_pretrained"
    """A name in data/weights, a .safetensors or .pth file, "timm" (its hub), or None (from scratch)."""
    layer_scale: float | None = None
    """Initial layer scale when training from scratch; None keeps timm's 1e-6."""
    level: str = "variant"
    train_split: str = "train"
    val_split: str | None = "val"
    """Watched after each epoch, never chosen on; None where it is part of train_split."""
    sizes: tuple[int, ...] = (160, 224)
    """Picture size of each phase in pixels; the last one is used for evaluation."""
    epochs: tuple[int, ...] = (3, 2)
    """Epochs of each phase, as many as there are sizes."""
    batch_size: int = 32
    optimizer: str = "muon"
    """"muon" (matrices; AdamW for the rest) or "adamw"."""
    learning_rate: float = 2e-3
    warmup_epochs: float = 0.3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    ema_decay: float = 0.98
    """Decay per step of the averaged weights that are evaluated and saved."""
    frozen_stages: int = 1
    """The stem and this many stages keep their loaded weights."""
    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Area share of the random crop; (1, 1) only resizes."""
    flip: bool = True
    colour_jitter: float = 0.2
    mixed_precision: bool = True
    """bfloat16 autocast on a GPU, and on a CPU that has it in hardware."""
    seed: int = 0

    def __post_init__(self):
        _check(
            self, level=LEVELS, optimizer=OPTIMIZERS, train_split=SPLITS, val_split=SPLITS, sizes=32, epochs=1, seed=0,
            batch_size=1, warmup_epochs=0, weight_decay=0, frozen_stages=range(5), colour_jitter=0,
        )  # fmt: skip
        if len(self.sizes) != len(self.epochs) or not self.sizes:
            raise ValueError(f"sizes and epochs need one entry per phase, got {self.sizes} and {self.epochs}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share, from 0 to below 1, got {getattr(self, name)}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two rising shares in (0, 1], got {self.crop_scale}")

    @property
    def n_epochs(self) -> int:
        return sum(self.epochs)

    @property
    def image_size(self) -> int:
        return self.sizes[-1]


@dataclass(frozen=True)
class SAEConfig:
    """A sparse autoencoder and its training. Lengths are in scaled acts: centred, mean squared norm d_in."""

    site: str = "stage4"
    variant: str = "batchtopk"
    """"topk", "batchtopk", "matryoshka" (batchtopk, nested) or "l1"."""
    expansion: int = 8
    """d_sae / d_in."""
    k: int = 32
    """Features a cell has, exactly or on average; unused by "l1"."""
    tied: bool = False
    """W_enc is W_dec transposed."""
    unit_norm: bool = True
    """Rows of W_dec keep length 1."""
    frozen_decoder: bool = False
    """W_dec keeps its random directions: a control."""
    prefixes: tuple[float, ...] = (1.0,)
    """Shares of d_sae whose reconstructions are averaged in the loss: several, rising, for "matryoshka"."""
    l1_coefficient: float = 0.0
    """Loss per mean total activation of a cell."""
    n_cells: int = 1_000_000
    """Cells seen in training, over all epochs."""
    batch_size: int = 1024
    learning_rate: float = 6e-3
    warmup_share: float = 0.02
    decay_share: float = 0.3
    """Last share of the steps, in which the learning rate falls to 0."""
    aux_k: int = 256
    """Dead features that reconstruct the error of each cell (AuxK); 0 for none."""
    aux_coefficient: float = 1 / 32
    dead_after: int = 100_000
    """A feature is dead that has not fired on so many cells."""
    mixed_precision: bool = True
    seed: int = 0

    def __post_init__(self):
        _check(self, site=SITES, variant=VARIANTS, expansion=1, k=1, n_cells=1, batch_size=1, l1_coefficient=0, aux_k=0,
               aux_coefficient=0, dead_after=0, seed=0)  # fmt: skip
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("warmup_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share of the steps, 0 to 1, got {getattr(self, name)}")
        if list(self.prefixes) != sorted({*self.prefixes, 1}) or self.prefixes[-1] != 1 or self.prefixes[0] <= 0:
            raise ValueError(f"prefixes must be rising shares that end with 1, got {self.prefixes}")
        if self.aux_k and self.dead_after >= self.n_cells:
            raise ValueError(
                f"dead_after={self.dead_after} leaves no time to be dead in n_cells={self.n_cells}: lower it"
            )
        if self.tied and self.frozen_decoder:
            raise ValueError("a tied autoencoder with a frozen decoder would learn nothing but biases")
        if (len(self.prefixes) > 1) != (self.variant == "matryoshka"):
            raise ValueError(f"several prefixes are for matryoshka, which needs them: got {self.prefixes}")
        if (self.l1_coefficient > 0) != (self.variant == "l1"):
            raise ValueError(f"l1_coefficient is for l1, which needs it: got {self.l1_coefficient} for {self.variant}")

    @property
    def n_steps(self) -> int:
        return max(1, self.n_cells // self.batch_size)


@dataclass(frozen=True)
class StudyConfig:
    """One whole study: its name and the config of every stage."""

    name: str = "hangar"
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    sites: tuple[str, ...] = ("stage3", "stage4")
    """Places in the network whose activations are kept."""
    n_views: int = 1
    """Random crops and flips of each training and validation picture from which autoencoders learn too."""
    sae: SAEConfig = field(default_factory=SAEConfig)

    def __post_init__(self):
        _check(self, sites=SITES, n_views=0)
        check_name(self.name)
        if self.sae.site not in self.sites:
            raise ValueError(f"sae.site must be one of the sites that are kept, {self.sites}, got {self.sae.site!r}")


def presets() -> dict[str, StudyConfig]:
    """All presets by name."""
    return {
        "smoke": StudyConfig(
            name="smoke",
            dataset=DatasetConfig(hangar=HangarConfig(n_variants=4, scenes_per_variant=12, size=64, supersampling=1)),
            classifier=ClassifierConfig(
                arch="test_convnext", weights=None, layer_scale=0.1, sizes=(64,), epochs=(2,), batch_size=8,
                frozen_stages=0,
            ),
            sae=SAEConfig(expansion=4, k=4, n_cells=4000, batch_size=64, aux_k=8, dead_after=1000),
        ),
        "hangar": StudyConfig(sae=SAEConfig(expansion=2)),
        "fgvc": StudyConfig(
            name="fgvc",
            dataset=DatasetConfig(source="fgvc", banner=20),
            classifier=ClassifierConfig(
                arch="convnext_tiny.fb_in22k_ft_in1k", weights="timm", train_split="trainval", val_split=None,
                sizes=(224,), epochs=(30,), optimizer="adamw", learning_rate=2e-4, warmup_epochs=1.0, frozen_stages=0,
                ema_decay=0.999, crop_scale=(0.4, 1.0),
            ),
        ),
        "photos": StudyConfig(
            name="photos",
            dataset=DatasetConfig(source="folder"),
            classifier=ClassifierConfig(sizes=(160,), epochs=(7,), ema_decay=0.99, frozen_stages=0),
            sae=SAEConfig(expansion=2),
        ),
        "pretraining": StudyConfig(
            name="pretraining",
            dataset=DatasetConfig(
                hangar=HangarConfig(
                    taxonomy="pretraining", scenes_per_variant=300, size=224, seed=1, split_shares=(0.94, 0.03, 0.03)
                )
            ),
            classifier=ClassifierConfig(  # goes on from the shipped weights: their model card tells how they began
                epochs=(2, 1), batch_size=64, learning_rate=3e-3, warmup_epochs=0.2, frozen_stages=0, ema_decay=0.999,
                colour_jitter=0.0,
            ),
        ),
    }  # fmt: skip


def preset(name: str) -> StudyConfig:
    """The preset called `name`; ValueError lists those there are."""
    known = presets()
    if name not in list(known):
        raise ValueError(f"no preset {name!r}: choose one of {', '.join(known)}")
    return known[name]


def with_data_root(config: StudyConfig, data_root: str | None) -> StudyConfig:
    """A copy that reads its pictures from `data_root`, or the same where that is empty.

    Raises: ValueError where the source takes no folder, or needs one and has none.
    """
    if data_root:
        if config.dataset.source == "hangar":
            takers = ", ".join(name for name, known in presets().items() if known.dataset.source != "hangar")
            raise ValueError(f"{config.name} renders its own pictures and takes no data root: only {takers} do")
        config = change(config, **{"dataset.root": str(data_root)})
    if config.dataset.source == "folder" and not config.dataset.root:
        raise ValueError(
            f"{config.name} needs a folder of pictures: name the one that holds fgvc-aircraft-2013b with --data-root, "
            "data_root=... or AIRCRAFT_SAE_DATA_ROOT"
        )
    return config


def to_json(config: Any) -> str:
    """Readable JSON of a config dataclass."""
    return json.dumps(asdict(config), indent=2)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """A config of class `cls` from plain values; ValueError names unknown and missing fields."""
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} is an object with a value for each field, got {values!r}")
    names = {f.name for f in fields(cls)}
    if set(values) != names:
        raise ValueError(
            f"{cls.__name__}: unknown fields {sorted(set(values) - names)}, missing {sorted(names - set(values))}"
        )
    hints = get_type_hints(cls)
    built = {}
    for key, value in values.items():
        if is_dataclass(hints[key]):
            value = from_dict(hints[key], value)
        elif isinstance(value, list):
            value = tuple(value)
        built[key] = value
    return cls(**built)


def from_json(text: str) -> StudyConfig:
    """A StudyConfig from what `to_json` wrote."""
    return from_dict(StudyConfig, json.loads(text))


def change(config: StudyConfig, **values: Any) -> StudyConfig:
    """A copy with dotted fields changed, as in change(c, **{"classifier.seed": 1}); ValueError names a wrong field."""
    together, inner = {}, {}  # at once, since fields are checked against each other
    for path, value in values.items():
        head, _, rest = path.partition(".")
        if not any(f.name == head for f in fields(config)):
            names = ", ".join(f.name for f in fields(config))
            raise ValueError(f"no field {head!r} in {type(config).__name__}: {names}")
        if rest and not is_dataclass(getattr(config, head)):
            raise ValueError(f"{head} of {type(config).__name__} has no fields: give it a value as a whole")
        (inner.setdefault(head, {}) if rest else together)[rest or head] = value
    for head, below in inner.items():
        together[head] = change(together.get(head, getattr(config, head)), **below)
    return replace(config, **together)


def check_name(name: str) -> None:
    """ValueError for a name that could stand for another folder than its own, which making a stage replaces."""
    if not re.fullmatch(r"\w[\w.-]{0,99}(?<!\.partial)(?<!\.old)(?<!\.lock)", name):
        raise ValueError(
            "a name has letters, digits, _, dots and dashes, at most 100; it begins with no dot or dash, and ends with "
            f"neither .partial nor .old nor .lock: got {name!r}"
        )


def _check(config: Any, **bounds: Any) -> None:
    """ValueError for a field that is not of its hint's type, none of its choices, or below its least value."""
    words, hints = {"int": "a whole number", "float": "a finite number", "str": "a text"}, get_type_hints(type(config))
    for own in fields(config):
        name, value, bound = own.name, getattr(config, own.name), bounds.get(own.name)
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} must be {words.get(own.type, own.type)}, got {value!r}")
        for each in value if isinstance(value, tuple | list) else [] if value is None else [value]:
            if isinstance(bound, tuple | range) and each not in bound:
                raise ValueError(f"{name} must be one of {', '.join(map(str, bound))}, got {each!r}")
            if isinstance(bound, int) and each < bound:
                raise ValueError(f"{name} must be at least {bound}, got {each}")


def _fits(value: Any, hint: Any) -> bool:
    kinds = get_args(hint)
    if get_origin(hint) is tuple:
        sized = isinstance(value, tuple | list) and (kinds[-1] is ... or len(value) == len(kinds))
        return sized and all(_fits(each, kinds[0]) for each in value)
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
