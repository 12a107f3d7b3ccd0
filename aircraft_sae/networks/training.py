"""Train a network (Muon or AdamW, warm-up and cosine, averaged weights, growing image size), load and score it."""

import json
import math
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from sklearn.metrics import confusion_matrix
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2, muon
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from tqdm import tqdm

from aircraft_sae import metrics
from aircraft_sae.config import ClassifierConfig, from_dict
from aircraft_sae.devices import device, has_bfloat16, run_parallel
from aircraft_sae.networks.build import build, check_weights, freeze, keep_depthwise_in_float32, weights_digest
from aircraft_sae.networks.network import BATCH, Network
from aircraft_sae.networks.weights import FOLDER, PACKAGED, find_weights, load_weights, read_facts, write_safetensors
from aircraft_sae.pictures import Loader, Pictures, loader, test_transform, train_transform
from aircraft_sae.store import checkpoint, digest, write_json, write_parquet, write_text

CHECKPOINT_SECONDS = 60.0  # between checkpoints within an epoch; every epoch ends with one
ORTHOGONALISE = muon.zeropower_via_newtonschulz  # Muon calls it in bfloat16, with no option to change that


def train(folder: Path, cfg: ClassifierConfig, pictures: Pictures, weights: str | None = None) -> None:
    """Train into `folder`: model.safetensors (averaged weights), config.json, history.csv, predictions.parquet (test).

    A killed run with the same cfg and pictures resumes from its checkpoint. On a CPU the result is bit-identical,
    because order and augmentation depend on (seed, epoch, row) alone. weights: digest of the initial weights, if known.
    Raises: ValueError for a checkpoint of another run, or a loss that is not finite (the last checkpoint is kept).
    """
    run = Run(cfg, pictures, folder, weights or weights_digest(cfg))
    run.resume()
    n_seen = run.epoch * run.n_images + run.n_seen
    with tqdm(total=run.n_images * cfg.n_epochs, initial=n_seen, unit="img") as bar:
        for size, end in zip(cfg.sizes, accumulate(cfg.epochs), strict=True):
            batches = run.batches(size)  # keeps its loading processes until deleted
            while run.epoch < end:
                run.train_epoch(size, batches, bar)
            del batches
    made = run.averaged(cfg.image_size)
    write_parquet(predict(made, pictures, "test"), folder / "predictions.parquet")
    save(made, replace(cfg, level=run.level), folder)
    (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)


class Run(checkpoint.Training):
    """A training run: what a checkpoint holds, and the steps that change it."""

    noted, other = ("step", "history", "sums"), "config, data set or initial weights"
    remedy = "classifier.learning_rate (a third), more warmup_epochs, or mixed_precision=False"

    def __init__(self, cfg: ClassifierConfig, pictures: Pictures, folder: Path, weights: str = ""):
        check_weights(cfg)
        self.cfg, self.pictures, self.folder, self.device = cfg, pictures, folder, device()
        self.level = cfg.level or pictures.levels[0]
        self.classes = pictures.classes(self.level)
        self.identity = digest([cfg, pictures.fingerprint, weights])
        self.model = build(cfg, len(self.classes)).to(self.device)
        pixels = resolve_model_data_config(self.model)
        self.mean, self.std = tuple(pixels["mean"]), tuple(pixels["std"])
        self.frozen = freeze(self.model, cfg.frozen_stages)
        self.learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        native = has_bfloat16(self.device)
        # emulated in bfloat16, Muon takes three times as long as the forward and backward passes together
        muon.zeropower_via_newtonschulz = partial(ORTHOGONALISE, dtype=torch.bfloat16 if native else torch.float32)
        fused = {"fused": True} if cfg.optimizer == "adamw" else {}
        # one-dimensional weights (biases, norms, layer scale) do not decay
        self.optimizer = create_optimizer_v2(self.model, cfg.optimizer, cfg.learning_rate, cfg.weight_decay, **fused)
        # the average's decay grows from 0, so that a short run does not keep part of its initial weights
        self.ema = ModelEmaV3(self.model, decay=cfg.ema_decay, use_warmup=True)
        rough = cfg.mixed_precision and native
        self.precision = partial(torch.autocast, self.device.type, torch.bfloat16, enabled=rough)
        if rough and self.device.type == "cpu":
            keep_depthwise_in_float32(self.model)
        self.parts = {"model": self.model, "ema": self.ema.module, "optimizer": self.optimizer}
        # two halves of a batch in parallel take a quarter less time; BatchNorm needs the whole batch
        whole = any(isinstance(module, BatchNorm) for module in self.model.modules())
        self.n_parts = 1 if whole or self.device.type == "cuda" else 2
        self.n_images = len(pictures.rows(cfg.train_split))
        self.steps_per_epoch = math.ceil(self.n_images / cfg.batch_size)
        self.step, self.history = 0, []
        self.sums = {"loss": 0.0, "hits": 0, "seconds": 0.0}  # over the current epoch's images so far

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return len(self.history)

    @property
    def place(self) -> str:
        return f" in epoch {self.epoch + 1}"

    @property
    def n_steps(self) -> int:
        """Steps done in the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def n_seen(self) -> int:
        """Training images seen in the current epoch."""
        return min(self.n_steps * self.cfg.batch_size, self.n_images)

    def batches(self, size: int) -> Loader:
        """Augmented training batches of pictures (n, 3, size, size)."""
        transform = train_transform(size, self.mean, self.std, self.cfg)
        views = self.pictures.torch(self.cfg.train_split, self.level, transform)
        return loader(views, self.cfg.batch_size, order_seed=self.cfg.seed)

    def train_epoch(self, size: int, batches: Loader, bar: tqdm) -> None:
        """Finish the current epoch: remaining steps, validation, checkpoint."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.cfg.n_epochs} at {size} px")
        began, before = time.monotonic(), self.sums["seconds"]
        self.model.train()
        for part in self.frozen:
            part.eval()
        batches.set_epoch(self.epoch)
        # after a kill, batches already trained on are loaded and skipped
        for pictures, labels, _ in islice(batches, self.n_steps, None):
            self.train_step(pictures.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
            self.sums["seconds"] = before + time.monotonic() - began
            bar.update(self.epoch * self.n_images + self.n_seen - bar.n)
            bar.set_postfix(loss=f"{self.sums['loss'] / self.n_seen:.3f}", refresh=False)
            if self.due(CHECKPOINT_SECONDS):
                self.save()
        self.check_weights()
        val_loss, val_accuracy = self.validate(size)
        self.history.append({
            "epoch": self.epoch + 1, "size": size, "lr": self.learning_rate(self.step - 1),
            "train_loss": self.sums["loss"] / self.n_images, "train_accuracy": self.sums["hits"] / self.n_images,
            "val_loss": val_loss, "val_accuracy": val_accuracy,
            "images_per_second": self.n_images / self.sums["seconds"], "seconds": before + time.monotonic() - began,
        })  # fmt: skip
        self.sums = dict.fromkeys(self.sums, 0)
        self.save()
        write_text(self.folder / "history.csv", pd.DataFrame(self.history).to_csv(index=False))

    def train_step(self, pictures: torch.Tensor, labels: torch.Tensor) -> None:
        """One update from a batch (n, 3, size, size) with labels (n,); ValueError for a loss that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)

        def learn(part: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, int, tuple[torch.Tensor, ...]]:
            shown, wanted = part
            loss, logits = self.loss(shown, wanted)
            loss, hits = loss * len(wanted) / len(labels), (logits.argmax(1) == wanted).sum().item()
            return loss.item(), hits, torch.autograd.grad(loss, self.learned, materialize_grads=True)

        parts = zip(pictures.chunk(self.n_parts), labels.chunk(self.n_parts), strict=True)
        losses, hits, grads = zip(*run_parallel(learn, list(parts)), strict=True)
        if not math.isfinite(loss := sum(losses)):
            self.stop(f"the loss is {loss}", self.step)
        for weight, *own in zip(self.learned, *grads, strict=True):
            weight.grad = sum(own)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.model, step=self.step)
        self.sums["loss"] += loss * len(labels)
        self.sums["hits"] += sum(hits)

    def loss(self, pictures: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(training loss, logits (n, classes)) of pictures (n, 3, size, size); data/weights/pretrain.py adds to it."""
        with self.precision():
            logits = self.model(pictures).float()
        return cross_entropy(logits, labels, label_smoothing=self.cfg.label_smoothing), logits

    def validate(self, size: int) -> tuple[float, float]:
        """(cross-entropy, top-1 accuracy) of the averaged weights on the validation split; nan without one."""
        if self.cfg.val_split is None:
            return math.nan, math.nan
        table = predict(self.averaged(size), self.pictures, self.cfg.val_split)
        p, own = table.filter(regex=r"^p_\d+$").to_numpy(), pd.Categorical(table["label"], self.classes).codes
        loss = -np.log(p[range(len(p)), own].clip(1e-30)).mean()
        return float(loss), float((table["label"] == table["predicted"]).mean())

    def averaged(self, size: int) -> Network:
        """The network with the averaged weights."""
        kept = {"level": self.level, "mixed_precision": self.cfg.mixed_precision, "history": pd.DataFrame(self.history)}
        return Network(self.ema.module, self.classes, size, self.mean, self.std, **kept)

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to almost 0 at the last step."""
        n_steps = self.steps_per_epoch * self.cfg.n_epochs
        n_warmup = min(round(self.cfg.warmup_epochs * self.steps_per_epoch), n_steps // 2)  # short runs decay too
        if step < n_warmup:
            return self.cfg.learning_rate * (step + 1) / n_warmup
        return self.cfg.learning_rate * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2


def load(folder: str | Path, name: str = "trained") -> Network:
    """Load what `train` wrote, on the GPU if any; FileNotFoundError if it is absent, ValueError for damaged files."""
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder / 'model.safetensors'} is not there: train a network into it first")
    remedy = "Train a network into this folder again, or copy all files of one here."
    history, predictions = folder / "history.csv", folder / "predictions.parquet"
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        cfg, classes = from_dict(ClassifierConfig, facts["classifier"]), list(facts["classes"])
        pixels = tuple(facts["mean"]), tuple(facts["std"])
        tables = (pd.read_csv(history) if history.is_file() else None,
                  pd.read_parquet(predictions) if predictions.is_file() else None)  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(f"{folder} holds a damaged network ({problem}). {remedy}") from problem
    model = build(replace(cfg, weights=None), len(classes))
    load_weights(model, folder / "model.safetensors", remedy)
    return Network(model.to(device()), classes, cfg.image_size, *pixels, name, cfg.level, cfg.mixed_precision, *tables)


def pretrained(name: str, size: int) -> Network:
    """A network trained elsewhere, for pictures of `size` pixels.

    name: in data/weights, in timm's hub, "efficientnet_lite0", or a .pth or .safetensors file, whose arch (except
    inception5h.pth's) and classes, if any, are read from a JSON file beside it.
    Raises: ValueError for an unknown name or arch; FileNotFoundError without the file, its package or the hub.
    """
    is_file, in_hub = Path(name).suffix in (".pth", ".safetensors"), name in timm.list_pretrained()
    shipped = sorted([*PACKAGED, *(each.stem for each in FOLDER.glob("*.safetensors"))])
    if not (is_file or in_hub or name in shipped):
        own = "a .pth or .safetensors file, a name of timm's hub (arch.weights), or a network of your own"
        raise ValueError(f"no network {name!r}: trained, permuted, {', '.join(shipped)}, {own}")
    facts = {"arch": name} if in_hub else read_facts(find_weights(name))
    if "arch" not in facts:
        raise ValueError(f'{name} needs {{"arch": "…"}}, a name that timm knows, in {Path(name).stem}.json beside it')
    arch, classes = facts["arch"], facts.get("classes", [])
    n_classes = len(classes) or timm.get_pretrained_cfg(arch).num_classes
    model = build(ClassifierConfig(arch=arch, weights="timm" if in_hub else name), n_classes)
    pixels = resolve_model_data_config(model)
    known = Path(name).stem if is_file else name
    return Network(model.to(device()), classes, size, tuple(pixels["mean"]), tuple(pixels["std"]), known)


def save(network: Network, cfg: ClassifierConfig, folder: Path) -> None:
    """Write config.json, history.csv and, last because `load` looks for it, model.safetensors (float32)."""
    facts = {"classifier": asdict(cfg), "classes": network.classes, "mean": network.mean, "std": network.std}
    write_json(folder / "config.json", facts)
    if network.history is not None:
        write_text(folder / "history.csv", network.history.to_csv(index=False))
    write_safetensors(folder / "model.safetensors", network.model.state_dict())


def predict(network: Network, pictures: Pictures, split: str = "test") -> pd.DataFrame:
    """A row per image: image, label, predicted, confidence, p_0, … (float32); ValueError if the classes differ."""
    level = network.level or pictures.levels[0]
    if pictures.classes(level) != network.classes:
        raise ValueError(f"{pictures.name} has other {level} classes than the network was trained on")
    views = pictures.torch(split, level, test_transform(network.size, network.mean, network.std))
    batches = loader(views, BATCH)
    seen = network.stream(batch for batch, _, _ in batches)
    bar = tqdm(seen, f"predict {split}", len(batches), unit="batch", leave=False, delay=10)
    p = torch.cat([each.logits.softmax(1) for each in bar]).numpy()
    names, rows = np.asarray(network.classes, dtype=object), pictures.rows(split)
    table = {"image": rows["image"], "label": rows[level], "predicted": names[p.argmax(1)], "confidence": p.max(1)}
    return pd.DataFrame(table | {f"p_{c}": p[:, c] for c in range(p.shape[1])})


def evaluate(network: Network, pictures: Pictures, split: str, predictions: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """(accuracies, confusion counts with actual rows and predicted columns) from `predict`'s table.

    Accuracies are {split/level/metric: {"value", "low", "high", "n"}}, with 95 % intervals from 2,000 bootstrap draws
    of images: class_averaged_accuracy (FGVC-Aircraft's official metric) and top1_accuracy. At coarser levels,
    probabilities are summed over classes. Raises: ValueError for predictions of other images, or missing columns.
    """
    level, classes = network.level or pictures.levels[0], network.classes
    columns = [f"p_{c}" for c in range(len(classes))]
    if lacking := {"image", "label", *columns} - set(predictions):
        raise ValueError(f"these predictions lack {', '.join(sorted(lacking)[:5])}: use those of `predict`")
    if predictions["image"].tolist() != pictures.rows(split)["image"].tolist():
        raise ValueError(f"these predictions are of other images than the {split} split of {pictures.name}")
    fine, labels = predictions[columns].to_numpy(), np.array([classes.index(name) for name in predictions["label"]])
    results = {}
    for coarse in pictures.levels[pictures.levels.index(level) :]:
        names, parents = pictures.classes(coarse), np.arange(len(classes))
        if coarse != level:
            parent_of = pictures.parents(level, coarse)
            parents = np.array([names.index(parent_of[name]) for name in classes])
        own, n = parents[labels], len(names)
        predicted = (fine @ np.eye(n, dtype=fine.dtype)[parents]).argmax(1)
        draws = metrics.bootstrap_draws(metrics.class_averaged_accuracy, own, predicted, n)
        averaged = metrics.class_averaged_accuracy(own, predicted, n)
        results[f"{split}/{coarse}/class_averaged_accuracy"] = metrics.with_draws(averaged, draws, len(own))
        results[f"{split}/{coarse}/top1_accuracy"] = metrics.with_interval(own == predicted, np.ones(len(own)))
    confusion = confusion_matrix(labels, fine.argmax(1), labels=range(len(classes)))
    return results, pd.DataFrame(confusion, pd.Index(classes, name="actual"), pd.Index(classes, name="predicted"))
