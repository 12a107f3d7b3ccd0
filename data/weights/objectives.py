"""Train one network from nothing on the same scenes by one of three objectives, for notebook 07 to compare.

    python data/weights/objectives.py self_supervised data/weights/hangar_self_supervised.safetensors --steps 1000
    python data/weights/objectives.py parts data/weights/hangar_parts.safetensors --steps 1000
    python data/weights/objectives.py classes data/weights/hangar_classes.safetensors --steps 1000
    python data/weights/objectives.py inceptionv1 data/weights/hangar_inceptionv1.safetensors --steps 4000

The scenes are those of pretrain.py's third round, at 160 pixels; architecture, first weights and schedule are the
same for the first three; crops and colours vary more where there are no labels. The last is InceptionV1 with class
labels, for notebooks 09 and 10, turned by any angle. README.md beside this file tells what came of it.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pretrain import FRAMES  # which also puts this taxonomy in place of the hangar's
from timm.optim import create_optimizer_v2, muon
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample, normalize, one_hot
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from aircraft_sae.config import ClassifierConfig, DatasetConfig, HangarConfig, StudyConfig
from aircraft_sae.devices import device, has_bfloat16
from aircraft_sae.networks import build, inception
from aircraft_sae.networks.build import keep_depthwise_in_float32
from aircraft_sae.networks.training import ORTHOGONALISE
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.pictures import Pictures
from aircraft_sae.store import checkpoint, data_folder, digest, write_json
from aircraft_sae.study import Study

ARCH = ClassifierConfig(weights=None, layer_scale=0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SITES = (2, 3)  # stages whose cells learn, at strides 16 and 32
SCENES = StudyConfig(
    name="pretraining-objectives",
    dataset=DatasetConfig(
        hangar=HangarConfig(size=160, scenes_per_variant=100, seed=2, split_shares=(0.94, 0.03, 0.03))
    ),
)


def crops(n: int, least: float, degrees: float, generator: torch.Generator) -> torch.Tensor:
    """(n, 2, 3) maps from a crop to the picture, both from -1 to 1: area, aspect, turn, place and flip at random."""
    draw = partial(torch.rand, n, generator=generator)
    side = (least + (1 - least) * draw()).sqrt()
    stretch = torch.exp((draw() - 0.5) * 0.4)
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    angle = (2 * draw() - 1) * math.radians(degrees)
    flip = 1.0 - 2.0 * (draw() < 0.5)
    rows = [[flip * width * angle.cos(), -height * angle.sin(), (2 * draw() - 1) * (1 - width)],
            [flip * width * angle.sin(), height * angle.cos(), (2 * draw() - 1) * (1 - height)]]  # fmt: skip
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def recoloured(x: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """x (n, 3, h, w) in 0 to 1 with brightness, contrast, saturation and tint changed, a fifth of it grey."""
    draw = lambda *shape: 2 * torch.rand(len(x), *shape, 1, 1, generator=generator) - 1  # noqa: E731
    x = x * (1 + strength * draw(1)) * (1 + 0.5 * strength * draw(3))
    middle = x.mean((1, 2, 3), keepdim=True)
    x = middle + (x - middle) * (1 + strength * draw(1))
    grey = x.mean(1, keepdim=True)
    kept = torch.where(draw(1) < -0.6, 0.0, 1 + strength * draw(1))
    return (grey + (x - grey) * kept).clamp(0, 1)


def at_crop(values: torch.Tensor, maps: torch.Tensor, size: int, mode: str = "bilinear") -> torch.Tensor:
    """(n, c, size, size) of pictures (n, c, h, w) float, less coarse first where the crop would skip pixels."""
    grid = affine_grid(maps, (len(values), 1, size, size), align_corners=False)
    return grid_sample(values, grid, mode, "reflection", align_corners=False)


def contrast(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Normalised cross-entropy of n pairs of rows (n, d) among all 2n. Source: Chen et al. 2020, 2002.05709, eq. 1."""
    z = normalize(torch.cat([a, b]).float(), dim=1)
    alike = (z @ z.t() / temperature).fill_diagonal_(-math.inf)
    return cross_entropy(alike, torch.arange(2 * len(a), device=z.device).roll(len(a)))


def projector(d_in: int) -> nn.Module:
    """From acts to the space in which views are compared."""
    return nn.Sequential(nn.Linear(d_in, 512), nn.BatchNorm1d(512), nn.GELU(), nn.Linear(512, 128))


class Objective(nn.Module):
    """What a network learns by: forward(model, pictures uint8, masks, labels, size, generator) is the loss."""

    n_views, crop, colour, mean, std = 1, 0.5, 0.2, MEAN, STD
    degrees, share = (20, 20), 0.0  # pictures are turned by up to so much in the beginning and in the end; share done
    sizes, batch_size, peak = ((96, 0.6), (128, 0.3), (160, 0.1)), 96, 3e-3  # pixels and shares of the steps; rate

    def view(self, pictures, size, generator):
        """(pictures as the network takes them, the maps of their crops)."""
        least, most = self.degrees
        maps = crops(len(pictures), self.crop, least + (most - least) * self.share, generator)
        x = recoloured(at_crop(pictures, maps, size), self.colour, generator)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return ((x - mean) / std).contiguous(memory_format=torch.channels_last), maps


class Classes(Objective):
    """Class labels: cross-entropy over variants."""

    def __init__(self, widths, n_classes):
        super().__init__()
        self.head = nn.Linear(widths[-1], n_classes)

    def forward(self, model, pictures, masks, labels, size, generator):
        x, _ = self.view(pictures, size, generator)
        return cross_entropy(self.head(model.forward_features(x).float().mean((2, 3))), labels, label_smoothing=0.1)


class Inception(Classes):
    """Class labels for InceptionV1, whose curves should turn every way."""

    colour, degrees, mean, std = 0.3, (20, 180), inception.MEAN, inception.STD
    sizes, batch_size, peak = ((96, 0.7), (128, 0.2), (160, 0.1)), 64, 1e-3


class Parts(Objective):
    """Part masks: at strides 16 and 32 a linear layer gives the share of each region in a cell (cross-entropy)."""

    def __init__(self, widths, n_regions):
        super().__init__()
        self.n_regions = n_regions
        self.heads = nn.ModuleList([nn.Conv2d(d, n_regions, 1) for d in widths])

    def forward(self, model, pictures, masks, labels, size, generator):
        x, maps = self.view(pictures, size, generator)
        shown = at_crop(masks[:, None].float(), maps, size, "nearest")[:, 0].long()
        shown = one_hot(shown, self.n_regions).movedim(-1, 1).float()
        loss = 0
        for acts, head in zip(model.forward_intermediates(x, SITES, intermediates_only=True), self.heads, strict=True):
            wanted = avg_pool2d(shown, size // acts.shape[-1])
            weight = wanted.mean((0, 2, 3)).clamp(min=1e-4) ** -0.5  # parts are small
            logp = head(acts.float()).log_softmax(1)
            loss = (
                loss - (weight[:, None, None] * wanted * logp).sum(1).mean() / (weight[:, None, None] * wanted).mean()
            )
        return loss / self.n_regions


class SelfSupervised(Objective):
    """No labels: two views of a picture, and the cells at one place in them, should be alike and others not.

    Source: SimCLR (Chen et al. 2020, arXiv 2002.05709) for pictures; for cells, matched by where they lie in the
    picture, after Pinheiro et al. 2020 (arXiv 2011.05499).
    """

    n_views, crop, colour = 2, 0.3, 0.6
    whole, cells, temperature = 1.0, 1.0, 0.2

    def __init__(self, widths):
        super().__init__()
        self.projectors = nn.ModuleList([projector(d) for d in (*widths, widths[-1])])

    def forward(self, model, pictures, masks, labels, size, generator):
        views = [self.view(pictures, size, generator) for _ in range(2)]
        acts = [model.forward_intermediates(x, SITES, intermediates_only=True) for x, _ in views]
        pooled = [self.projectors[-1](each[-1].float().mean((2, 3))) for each in acts]
        loss = self.whole * contrast(*pooled, self.temperature)
        for one, two, project in zip(*acts, self.projectors, strict=False):
            loss = loss + self.cells * self.of_cells(one, two, [maps for _, maps in views], project, generator)
        return loss

    def of_cells(self, one, two, maps, project, generator, n_cells=512):
        """Cells of one view against what the other shows at the same place."""
        n, _, rows, columns = one.shape
        whole = torch.cat([maps[1], torch.tensor([[[0.0, 0, 1]]]).expand(n, 1, 3)], 1)
        grid = affine_grid(maps[0], (n, 1, rows, columns), align_corners=False).flatten(1, 2)  # places in the picture
        there = torch.linalg.solve(whole[:, :2, :2], (grid - maps[1][:, None, :, 2]).transpose(1, 2)).transpose(1, 2)
        seen = (there.abs() <= 1 - 1 / rows).all(2) & (grid.abs() <= 1).all(2)
        other = grid_sample(two.float(), there.view(n, rows, columns, 2), align_corners=False).flatten(2).movedim(1, 2)
        own, other = one.float().flatten(2).movedim(1, 2)[seen], other[seen]
        some = torch.randperm(len(own), generator=generator)[:n_cells]
        return contrast(project(own[some]), project(other[some]), self.temperature)


OBJECTIVES = {"classes": Classes, "parts": Parts, "self_supervised": SelfSupervised, "inceptionv1": Inception}


class Run(checkpoint.Training):
    """One training; batches and crops depend on the step alone."""

    noted, other, remedy = ("step",), "objective or schedule", "learning rate"

    def __init__(self, objective: str, pictures: Pictures, folder: Path, n_steps: int):
        self.folder, self.device, self.step, self.n_steps, kind = folder, device(), 0, n_steps, OBJECTIVES[objective]
        self.sizes, self.batch_size, self.peak = kind.sizes, kind.batch_size, kind.peak
        known = [objective, list(self.sizes), n_steps, self.batch_size, self.peak]
        self.identity = digest([known, pictures.fingerprint])
        rows = pictures.rows("train")
        names = rows["image"].tolist()
        bar = {"desc": "read", "unit": "img", "chunksize": 64}
        self.pictures = torch.from_numpy(np.stack(thread_map(lambda n: np.asarray(pictures.picture(n)), names, **bar)))
        self.masks = torch.from_numpy(np.stack(thread_map(pictures.mask, names, **bar)))
        self.labels = torch.tensor(rows["variant"].map({f.variant: i for i, f in enumerate(FRAMES)}).to_numpy())
        torch.manual_seed(0)
        self.model = inception.InceptionV1(1, norm=True) if objective == "inceptionv1" else build(ARCH, 1)
        self.model.to(self.device, memory_format=torch.channels_last)
        widths = [self.model.feature_info[i]["num_chs"] for i in SITES[:-1]] + [self.model.num_features]
        given = {"parts": (len(pictures.region_names) + 1,), "self_supervised": ()}.get(objective, (len(FRAMES),))
        self.objective = OBJECTIVES[objective](widths, *given).to(self.device)
        both = nn.ModuleDict({"model": self.model, "objective": self.objective})
        self.learned = [w for n, w in both.named_parameters() if not n.startswith(("model.head", "model.softmax2"))]
        self.mixed = has_bfloat16(self.device)
        if self.mixed and self.device.type == "cpu":
            keep_depthwise_in_float32(self.model)
        muon.zeropower_via_newtonschulz = partial(ORTHOGONALISE, dtype=torch.bfloat16 if self.mixed else torch.float32)
        self.optimizer = create_optimizer_v2(both, "muon", self.peak, 0.05)
        self.ema = ModelEmaV3(self.model, decay=0.995, use_warmup=True)
        self.parts = {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer, "head": self.objective}

    def learning_rate(self, step: int) -> float:
        warm = max(1, self.n_steps // 25)
        if step < warm:
            return self.peak * (step + 1) / warm
        return self.peak * (1 + math.cos(math.pi * (step - warm) / (self.n_steps - warm))) / 2

    def batch(self) -> tuple:
        per_epoch = len(self.labels) // self.batch_size
        epoch, i = divmod(self.step, per_epoch)
        order = np.random.default_rng((0, epoch)).permutation(len(self.labels))
        own = order[i * self.batch_size : (i + 1) * self.batch_size]
        x = self.pictures[own].movedim(3, 1).float() / 255
        return x.to(self.device), self.masks[own], self.labels[own]

    def train(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        ends = np.cumsum([share for _, share in self.sizes]) * self.n_steps
        with tqdm(total=self.n_steps, initial=self.step, unit="step") as bar:
            while self.step < self.n_steps:
                size = self.sizes[int(np.searchsorted(ends, self.step, "right"))][0]
                generator, self.objective.share = torch.Generator().manual_seed(self.step), self.step / self.n_steps
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate(self.step)
                self.model.train(), self.objective.train()
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                    loss = self.objective(self.model, *self.batch(), size, generator)
                if not math.isfinite(loss.item()):
                    self.stop(f"the loss is {loss.item()}", self.step)
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.learned, 3.0)
                self.optimizer.step()
                self.step += 1
                self.ema.update(self.model, step=self.step)
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}", size=size, refresh=False)
                if self.due(120):
                    self.save()
        self.save()


def main(arguments: list[str] | None = None) -> None:
    """Render, train, and write the weights as float16."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("objective", choices=list(OBJECTIVES))
    parser.add_argument("to", type=Path, help="a .safetensors file")
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args(arguments)
    pictures = Study.open(SCENES).pictures()
    folder = data_folder() / "runs" / SCENES.name / "networks" / given.objective
    run = Run(given.objective, pictures, folder, given.steps)
    run.train()
    model, objective = run.ema.module, run.objective
    if given.objective == "inceptionv1":
        model.fold()
    left = ("head.fc", "softmax2", "mixed5b")  # with mixed5b InceptionV1's file would be 12.1 MB
    state = {n: v.half() for n, v in model.state_dict().items() if not n.startswith(left)}
    write_safetensors(given.to, state)
    facts = {"arch": "inceptionv1" if given.objective == "inceptionv1" else ARCH.arch, "image_size": 160}
    facts |= {"mean": objective.mean, "std": objective.std, "objective": given.objective}
    write_json(given.to.with_suffix(".json"), facts | {"steps": given.steps, "batch_size": run.batch_size})


if __name__ == "__main__":
    main()
