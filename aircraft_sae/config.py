"""Configuration: one frozen dataclass per stage, checked by pydantic, and the presets in `presets.json`."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, field, is_dataclass
from difflib import get_close_matches
from functools import cache, reduce
from importlib.resources import files
from operator import getitem
from typing import Annotated, Any, Literal, dataclass_transform, get_args

from pydantic import AfterValidator, ConfigDict, Field, StrictBool, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

NAMES_FILES = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
LEVELS = tuple(NAMES_FILES)  # FGVC-Aircraft's levels, finest first
Split = Literal["train", "val", "trainval", "test"]
SPLITS = get_args(Split)
Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
PositiveOrZero = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[PositiveOrZero, Field(le=1)]
ShareBelow1 = Annotated[PositiveOrZero, Field(lt=1)]
Site = Annotated[str, Field(pattern=r"^[\w-]+(\.[\w-]+)*(:[\w-]+)?$")]
"""A place in the network: an alias (stage4), a module's path (stages.2.blocks.1) or a module's branch (mixed4c:5x5)."""


def check_name(name: str) -> str:
    """Return the name; ValueError if it could lead to another folder, which making a stage would then replace."""
    if not re.fullmatch(r"\w[\w.-]{0,99}(?<!\.partial)(?<!\.old)(?<!\.lock)", name):
        rule = "letters, digits and _, after the first also . and -, at most 100, not ending in .partial, .old or .lock"
        raise ValueError(f"a name has {rule}: got {name!r}")
    return name


@contextmanager
def _one_line() -> Iterator[None]:
    """Turn pydantic's report into a one-line ValueError: the field, what it must be, and what it got."""
    try:
        yield
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["type"] == "value_error":  # raised in this module
            raise ValueError(str(wrong["ctx"]["error"])) from None
        problems = {
            "missing": "lacks a value",
            "unexpected_keyword_argument": "is not a field",
            "string_pattern_mismatch": "must be like stage4, stages.2.blocks.1 or mixed4c:5x5",
        }
        problem = re.sub("^.* should", "must", wrong["msg"]).replace("greater than or equal to", "at least")
        name = ".".join(part for part in wrong["loc"] if isinstance(part, str)) or error.title
        raise ValueError(f"{name} {problems.get(wrong['type'], problem)}, got {wrong['input']!r}") from None


@dataclass_transform(frozen_default=True)
def _checked(cls: type) -> type:
    """Make a frozen dataclass that refuses values of the wrong type instead of converting them."""
    cls = dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))(cls)
    cls.__init__ = _one_line()(cls.__init__)
    return cls


@_checked
class HangarConfig:
    """What the hangar renders."""

    n_variants: Annotated[Count, Field(ge=2)] | None = None  # use only the first n; None: all
    scenes_per_variant: Annotated[Count, Field(ge=3)] = 100
    size: Count = 224  # width and height of a picture in pixels
    supersampling: Count = 2  # squared: rays per pixel (sky pixels get fewer)
    seed: CountOrZero = 0
    split_shares: tuple[Positive, Positive, Positive] = (0.57, 0.10, 0.33)  # train, val, test, per variant

    def __post_init__(self):
        if abs(sum(self.split_shares) - 1) > 1e-6:
            raise ValueError(f"split_shares must add up to 1, got {self.split_shares}")


@_checked
class DatasetConfig:
    """Where the pictures come from: rendered, FGVC-Aircraft, or any folder."""

    source: Literal["hangar", "fgvc", "folder"] = "hangar"  # folder: FGVC layout, split/class/*.jpg or class/*.jpg
    root: str | None = None  # the folder of images, or the one that holds fgvc-aircraft-2013b; unused by the hangar
    banner: CountOrZero = 0  # rows cut off the bottom of each picture (FGVC-Aircraft: 20)
    hangar: HangarConfig = field(default_factory=HangarConfig)

    @property
    def rendered(self) -> bool:
        return self.source == "hangar"

    @property
    def needs_root(self) -> bool:
        return self.source == "folder"


@_checked
class ClassifierConfig:
    """How the network is built and trained."""

    arch: str = "convnext_atto_ols"  # any CNN in timm
    # a name in data/weights, a .safetensors or .pth file, "timm" (download), or None (train from scratch)
    weights: str | None = "hangar_pretrained"
    layer_scale: Positive | None = None  # initial layer scale when training from scratch; None: timm's 1e-6
    level: str | None = None  # classes to learn, such as "family"; None: the finest level that the pictures have
    train_split: Split = "train"
    val_split: Split | None = "val"  # evaluated after each epoch, never selected on; None if training uses it
    sizes: tuple[Annotated[Count, Field(ge=32)], ...] = (160, 224)  # pixels in each phase; evaluation uses the last
    epochs: tuple[Count, ...] = (3, 2)  # epochs in each phase, one entry per size
    batch_size: Count = 32
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: for matrices, with AdamW for the rest
    learning_rate: Positive = 2e-3
    warmup_epochs: PositiveOrZero = 0.3
    weight_decay: PositiveOrZero = 0.05
    label_smoothing: ShareBelow1 = 0.1
    ema_decay: ShareBelow1 = 0.98  # decay per step of the averaged weights, which are evaluated and saved
    frozen_stages: Annotated[CountOrZero, Field(le=4)] = 2  # the stem and the first n stages are not trained
    crop_scale: tuple[Positive, Positive] = (0.7, 1.0)  # share of the area in a random crop; (1, 1) only resizes
    flip: StrictBool = True
    colour_jitter: PositiveOrZero = 0.2
    mixed_precision: StrictBool = True  # bfloat16 autocast where the hardware supports it
    seed: CountOrZero = 0

    def __post_init__(self):
        if len(self.sizes) != len(self.epochs) or not self.sizes:
            raise ValueError(f"sizes and epochs need one entry per phase, got {self.sizes} and {self.epochs}")
        if not self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be low and high shares in (0, 1], got {self.crop_scale}")

    @property
    def n_epochs(self) -> int:
        return sum(self.epochs)

    @property
    def image_size(self) -> int:
        return self.sizes[-1]


@_checked
class SAEConfig:
    """A sparse autoencoder and its training, on centred activations scaled to a mean squared norm of d_in."""

    site: Site = "stage4"
    variant: Literal["topk", "batchtopk"] = "batchtopk"
    standardise: Literal["nothing", "channels"] = "nothing"  # channels: z-score each one first
    expansion: Count = 8  # d_sae / d_in
    k: Count = 32  # active features per cell: at most (topk) or on average (batchtopk)
    tied: StrictBool = False  # W_enc is the transpose of W_dec
    frozen_decoder: StrictBool = False  # a control: W_dec stays random
    n_cells: Count = 1_000_000  # cells seen in training, counting repeats
    batch_size: Count = 1024
    learning_rate: Positive = 6e-3
    warmup_share: Share = 0.02
    decay_share: Share = 0.3  # the learning rate falls linearly to 0 over this last share of the steps
    aux_k: CountOrZero = 256  # AuxK: dead features used to reconstruct the error of each cell; 0 turns it off
    aux_coefficient: PositiveOrZero = 1 / 32
    dead_after: CountOrZero = 100_000  # a feature that has not fired for this many cells is dead
    mixed_precision: StrictBool = True
    seed: CountOrZero = 0

    def __post_init__(self):
        if self.aux_k and self.dead_after >= self.n_cells:
            raise ValueError(f"dead_after={self.dead_after} is not below n_cells={self.n_cells}: lower it")
        if self.tied and self.frozen_decoder:
            raise ValueError("a tied autoencoder with a frozen decoder would learn nothing but biases")
        if self.tied and self.standardise == "channels":
            raise ValueError("a tied autoencoder cannot standardise channels: their scales would untie it")

    @property
    def n_steps(self) -> int:
        return max(1, self.n_cells // self.batch_size)


@_checked
class StudyConfig:
    """One study: its name and the config of every stage."""

    name: Annotated[str, AfterValidator(check_name)] = "hangar"
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    sites: tuple[Site, ...] = ("stage3", "stage4")  # sites whose activations are stored
    n_views: CountOrZero = 1  # random views of each train and val picture, on which autoencoders train too
    sae: SAEConfig = field(default_factory=SAEConfig)  # at the end of the network, as in most publications
    # at an earlier site, where features stay local (notebook 03 compares sites)
    local: SAEConfig = SAEConfig(
        site="stage3", standardise="channels", learning_rate=3e-3, n_cells=600_000, dead_after=60_000
    )

    def __post_init__(self):
        if self.sae.site not in self.sites:
            raise ValueError(f"sae.site must be one of the stored sites, {self.sites}, got {self.sae.site!r}")


def preset(name: str) -> StudyConfig:
    """The preset called `name`; ValueError lists the presets."""
    if name not in list(PRESETS):  # a list, since the name may be unhashable
        raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def with_data_root(config: StudyConfig, data_root: str | None) -> StudyConfig:
    """The config, reading `data_root` if given; ValueError if its source takes no folder, or needs one and has none."""
    if data_root and config.dataset.rendered:
        takers = ", ".join(name for name, known in PRESETS.items() if not known.dataset.rendered)
        raise ValueError(f"{config.name} renders its own pictures and takes no data root: only {takers} do")
    if data_root:
        config = change(config, **{"dataset.root": str(data_root)})
    if config.dataset.needs_root and not config.dataset.root:
        remedy = "name it with --data-root, data_root=... or AIRCRAFT_SAE_DATA_ROOT"
        raise ValueError(f"{config.name} needs a folder of pictures, or one that holds fgvc-aircraft-2013b: {remedy}")
    return config


_adapter = cache(TypeAdapter)


@_one_line()
def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """Rebuild a config of class `cls` from JSON values; ValueError for a wrong, unknown or missing field."""
    config = _adapter(cls).validate_python(values)
    if missing := _names(asdict(config)) - _names(values):
        raise ValueError(f"{cls.__name__} lacks the fields {', '.join(sorted(missing))}")
    return config


def _names(values: dict[str, Any], above: str = "") -> set[str]:
    """Names of all values, nested ones dotted ("classifier.seed")."""
    inner = (_names(value, f"{above}{name}.") for name, value in values.items() if isinstance(value, dict))
    return {f"{above}{name}" for name in values}.union(*inner)


def change(config: Any, **values: Any) -> Any:
    """A copy with dotted fields changed, as in change(c, **{"classifier.seed": 1}); ValueError for an unknown field."""
    changed = asdict(config)
    names = _names(changed)
    for path, value in values.items():
        if path not in names:
            close = get_close_matches(path, names, 1, 0)
            raise ValueError(f"{type(config).__name__} has no field {path!r}: did you mean {close[0]}?")
        *above, name = path.split(".")
        reduce(getitem, above, changed)[name] = asdict(value) if is_dataclass(value) else value
    return from_dict(type(config), changed)


_PRESETS = json.loads(files("aircraft_sae").joinpath("presets.json").read_text("utf-8"))
PRESETS = {name: change(StudyConfig(name=name), **values) for name, values in _PRESETS.items()}
