"""Training: Muon or AdamW, cosine with warm-up, averaged weights, phases of size; a killed run goes on unchanged."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import NoReturn

import pandas as pd
import torch
from timm.optim import create_optimizer_v2, muon
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.devices import device, has_bfloat16
from aircraft_sae.networks.build import build, check_weights, freeze, keep_depthwise_in_float32, weights_digest
from aircraft_sae.networks.evaluation import n_workers, predict, save
from aircraft_sae.networks.network import BATCH, Network
from aircraft_sae.pictures import AircraftData, Loader, loader, pixel_config, test_transform, train_transform
from aircraft_sae.store import checkpoint, fingerprint, write_parquet, write_text

CHECKPOINT_SECONDS = 60.0
"""Between two checkpoints inside an epoch; there is one after every epoch too."""
ORTHOGONALISE = muon.zeropower_via_newtonschulz
"""Muon's own iteration, which it calls in bfloat16 and leaves no way to say otherwise."""


def train(folder: str | Path, cfg: ClassifierConfig, data: AircraftData, progress: bool = True) -> None:
    """Train into `folder`: model.safetensors (averaged weights), config.json, history.csv, predictions.parquet.

    A checkpoint that a killed run of the same cfg and data left there is resumed: on a CPU to the same bits, since
    order and augmentation depend on (seed, epoch, row) alone. predictions are of the test split.
    Raises: ValueError for a checkpoint of another run, or a loss that is not finite (the last checkpoint is kept),
    and what `build` and the data set raise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(cfg, data, folder)
    run.resume()
    with tqdm(total=run.n_images * cfg.n_epochs, initial=run.n_seen, unit="img", disable=not progress) as bar:
        while run.epoch < cfg.n_epochs:
            run.train_epoch(bar)
    made = Network(
        run.ema.module, data.classes(run.level), cfg.image_size, run.mean, run.std, level=run.level,
        mixed_precision=cfg.mixed_precision, history=pd.DataFrame(run.history),
    )  # fmt: skip
    write_parquet(predict(made, data, "test", progress), folder / "predictions.parquet")
    save(made, replace(cfg, level=run.level), folder)
    (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)


class Run:
    """One training run: all that a checkpoint holds, and the steps that change it."""

    def __init__(self, cfg: ClassifierConfig, data: AircraftData, folder: Path):
        check_weights(cfg)
        self.cfg, self.data, self.folder, self.device = cfg, data, folder, device()
        self.level = cfg.level or data.levels[0]
        self.identity = fingerprint(cfg, data.fingerprint, weights_digest(cfg))
        self.model = build(cfg, len(data.classes(self.level))).to(self.device)
        self.mean, self.std = pixel_config(self.model)
        freeze(self.model, cfg.frozen_stages)
        # biases, norms and layer scale, all one-dimensional, do not decay
        # emulated, Muon's bfloat16 takes ten times as long as forward and backward pass together
        exact = torch.bfloat16 if has_bfloat16(self.device) else torch.float32
        muon.zeropower_via_newtonschulz = partial(ORTHOGONALISE, dtype=exact)
        fused = {"fused": True} if cfg.optimizer == "adamw" else {}
        self.optimizer = create_optimizer_v2(self.model, cfg.optimizer, cfg.learning_rate, cfg.weight_decay, **fused)
        # its decay grows with the step, else a short run would keep part of its first weights
        self.ema = ModelEmaV3(self.model, decay=cfg.ema_decay, use_warmup=True)
        rough = cfg.mixed_precision and has_bfloat16(self.device)
        self.precision = torch.autocast(self.device.type, torch.bfloat16, enabled=rough)
        if rough and self.device.type == "cpu":
            keep_depthwise_in_float32(self.model)
        self.n_images = len(data.rows(cfg.train_split))
        self.steps_per_epoch = math.ceil(self.n_images / cfg.batch_size)
        self.step, self.history = 0, []
        self.sums = {"loss": 0.0, "hits": 0, "seconds": 0.0}
        """Of the epoch under way: loss and hits over its images, seconds in training."""
        self._loaders: dict[int, Loader] = {}

    @property
    def epoch(self) -> int:
        """The epoch under way: those before it are trained, validated and saved."""
        return len(self.history)

    @property
    def n_seen(self) -> int:
        """Training images so far, over all epochs."""
        steps = self.step - self.epoch * self.steps_per_epoch
        return self.epoch * self.n_images + min(steps * self.cfg.batch_size, self.n_images)

    def train_epoch(self, bar: tqdm) -> None:
        """What is left of the epoch under way: steps, validation, checkpoint."""
        size = self.cfg.sizes[bisect_right(list(accumulate(self.cfg.epochs)), self.epoch)]
        bar.set_description(f"epoch {self.epoch + 1}/{self.cfg.n_epochs} at {size} px")
        began = saved = time.monotonic()
        before = self.sums["seconds"]
        self.model.train()
        # batches that were trained on before a kill are loaded and passed over: cheap, and the rest stays the same
        for pictures, labels, _ in islice(self._batches(size), self.step - self.epoch * self.steps_per_epoch, None):
            self.train_step(pictures.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
            self.sums["seconds"] = before + time.monotonic() - began
            bar.update(len(labels))
            bar.set_postfix(loss=f"{self.sums['loss'] / (self.n_seen - self.epoch * self.n_images):.3f}", refresh=False)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.check_weights()
                self.save()
                saved = time.monotonic()
        self.check_weights()
        val_loss, val_accuracy = self.validate(size)
        seconds = self.sums["seconds"]
        self.history.append({
            "epoch": self.epoch + 1, "size": size, "lr": self.learning_rate(self.step - 1),
            "train_loss": self.sums["loss"] / self.n_images, "train_accuracy": self.sums["hits"] / self.n_images,
            "val_loss": val_loss, "val_accuracy": val_accuracy,
            "images_per_second": self.n_images / seconds, "seconds": before + time.monotonic() - began,
        })  # fmt: skip
        self.sums = {"loss": 0.0, "hits": 0, "seconds": 0.0}
        self.save()
        write_text(self.folder / "history.csv", pd.DataFrame(self.history).to_csv(index=False))

    def train_step(self, pictures: torch.Tensor, labels: torch.Tensor) -> None:
        """One update from a batch (n, 3, size, size) and its labels (n,); ValueError for a loss that is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        with self.precision:
            logits = self.model(pictures).float()
        loss = cross_entropy(logits, labels, label_smoothing=self.cfg.label_smoothing)
        if not math.isfinite(value := loss.item()):
            self.stop(f"the loss is {value}", self.step)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.ema.update(self.model, step=self.step)
        self.sums["loss"] += value * len(labels)
        self.sums["hits"] += int((logits.argmax(1) == labels).sum())

    @torch.inference_mode()
    def validate(self, size: int) -> tuple[float, float]:
        """(cross-entropy, top-1 accuracy) of the averaged weights on the validation split; nan where there is none."""
        if self.cfg.val_split is None:
            return math.nan, math.nan
        pictures = self.data.torch(self.cfg.val_split, self.level, test_transform(size, self.mean, self.std))
        loss = hits = 0
        for batch, labels, _ in loader(pictures, BATCH, workers=n_workers(len(pictures))):
            labels = labels.to(self.device)
            with self.precision:
                logits = self.ema.module(batch.to(self.device)).float()
            loss += cross_entropy(logits, labels, reduction="sum").item()
            hits += (logits.argmax(1) == labels).sum().item()
        return loss / len(pictures), hits / len(pictures)

    def learning_rate(self, step: int) -> float:
        """Linear up to the peak in the warm-up, then half a cosine down to almost 0 at the run's last step."""
        n_steps = self.steps_per_epoch * self.cfg.n_epochs
        n_warmup = min(round(self.cfg.warmup_epochs * self.steps_per_epoch), n_steps // 2)  # short runs come down too
        if step < n_warmup:
            return self.cfg.learning_rate * (step + 1) / n_warmup
        return self.cfg.learning_rate * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup))) / 2

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step, "history": self.history, "sums": self.sums, "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(), "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        checkpoint.save(self.folder, self.identity, state)

    def resume(self) -> None:
        """Go back to the checkpoint, if there is one; ValueError where it is of another run, or none."""
        saved = checkpoint.load(self.folder, self.identity, self.device, "config, data set or initial weights")
        if not saved:
            return
        self.model.load_state_dict(saved["model"])
        self.ema.module.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.history, self.sums = saved["step"], saved["history"], saved["sums"]

    def check_weights(self) -> None:
        """ValueError where a weight is not finite: no loss has told of the last step yet."""
        if not checkpoint.finite(self.model):
            self.stop("a weight is not finite", self.step - 1)

    def stop(self, problem: str, step: int) -> NoReturn:
        """Raise the ValueError for a run that has diverged."""
        rate, kept = self.learning_rate(step), checkpoint.last_good(self.folder)
        raise ValueError(
            f"{problem} in epoch {self.epoch + 1} at step {step}, learning rate {rate:.2g}; {kept}. Try a lower "
            "classifier.learning_rate (a third), more warmup_epochs, or mixed_precision=False"
        )

    def _batches(self, size: int) -> Loader:
        """The epoch's batches; a phase of one size keeps its loading processes."""
        if size not in self._loaders:
            transform = train_transform(size, self.mean, self.std, self.cfg)
            pictures = self.data.torch(self.cfg.train_split, self.level, transform)
            workers = n_workers(self.n_images)
            self._loaders = {size: loader(pictures, self.cfg.batch_size, order_seed=self.cfg.seed, workers=workers)}
        self._loaders[size].set_epoch(self.epoch)
        return self._loaders[size]
