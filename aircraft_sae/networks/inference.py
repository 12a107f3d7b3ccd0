"""A trained classifier: its predictions on a split, and how good they are on each level of the taxonomy."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix
from timm.models.convnext import ConvNeXt
from torch import nn
from tqdm import tqdm

from aircraft_sae import metrics
from aircraft_sae.config import LEVELS, ClassifierConfig, from_dict
from aircraft_sae.devices import device, side_by_side
from aircraft_sae.networks import network
from aircraft_sae.networks.weights import check_fit, read_weights, write_safetensors
from aircraft_sae.pictures import AircraftData, loader, test_transform
from aircraft_sae.store import write_json, write_text

BATCH = 64 if torch.cuda.is_available() else 16
"""Pictures in a forward pass: on a CPU so few that what a layer makes is still in its caches, a quarter faster."""
WORKERS_FROM = 512
"""Fewer pictures than this are loaded in this process: starting another takes longer."""


@dataclass
class Classifier:
    """A trained ConvNeXt in evaluation mode, and what it takes to use it.

    classes: names in the order of the logits; history: one row per epoch; predictions: `predict` on the test split.
    """

    cfg: ClassifierConfig
    model: ConvNeXt
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: pd.DataFrame | None = None
    predictions: pd.DataFrame | None = None

    def __post_init__(self):
        self.model.eval()

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        """What `train` wrote in `folder`, on the GPU where there is one.

        Raises: FileNotFoundError where it has not, ValueError for files that are damaged or do not fit each other.
        """
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{folder / 'model.safetensors'} is not there: train a classifier into it first")
        remedy = "Train a classifier into this folder anew, or bring all files of one."
        history, predictions = folder / "history.csv", folder / "predictions.parquet"
        try:
            facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            cfg, classes = from_dict(ClassifierConfig, facts["classifier"]), list(facts["classes"])
            pixels = tuple(facts["mean"]), tuple(facts["std"])
            tables = (pd.read_csv(history) if history.is_file() else None,
                      pd.read_parquet(predictions) if predictions.is_file() else None)  # fmt: skip
        except (OSError, KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{folder} holds a damaged classifier ({problem}). {remedy}") from problem
        model, path = network.build(replace(cfg, weights=None), len(classes)), folder / "model.safetensors"
        state = read_weights(path)
        check_fit(model, state, path, cfg.arch, remedy)
        model.load_state_dict(state)
        return cls(cfg, model.to(device()), classes, *pixels, *tables)

    def save(self, folder: Path) -> None:
        """Write model.safetensors (float32), config.json and history.csv; the model last, since `load` asks for it."""
        facts = {"classifier": asdict(self.cfg), "classes": self.classes, "mean": self.mean, "std": self.std}
        write_json(folder / "config.json", facts)
        if self.history is not None:
            write_text(folder / "history.csv", self.history.to_csv(index=False))
        write_safetensors(folder / "model.safetensors", self.model.state_dict())

    @property
    def image_size(self) -> int:
        return self.cfg.image_size

    def site(self, name: str) -> nn.Module:
        """The module whose output is the site, as in `network.site`."""
        return network.site(self.model, name)

    def head(self, acts: torch.Tensor) -> torch.Tensor:
        """Logits (n, n_classes) from stage-4 acts (n, d_in, rows, columns) or their mean over cells (n, d_in)."""
        return network.head(self.model, acts)

    def logits_from(self, name: str, acts: torch.Tensor) -> torch.Tensor:
        """Logits (n, n_classes) from a site's acts (n, d_in, rows, columns)."""
        return network.logits_from(self.model, name, acts.to(next(self.model.parameters()).device))

    def permuted(self, seed: int = 0) -> Classifier:
        """The same network with permuted weights, as in `network.permuted`: the control that has learned nothing."""
        return replace(self, model=network.permuted(self.model, seed), history=None, predictions=None)

    def predict(self, data: AircraftData, split: str = "test", progress: bool = True) -> pd.DataFrame:
        """One row per image: image, label, predicted (class names), confidence, and p_0, p_1, … (float32).

        In float32, so that probabilities agree with the sites' activations. ValueError where `data` has other classes.
        """
        if data.classes(self.cfg.level) != self.classes:
            raise ValueError(f"{data.folder} has other {self.cfg.level} classes than this classifier was trained on")
        pictures = data.torch(split, self.cfg.level, test_transform(self.image_size, self.mean, self.std))
        where, probabilities = next(self.model.parameters()).device, []
        batches = (batch for batch, _, _ in loader(pictures, BATCH, workers=n_workers(len(pictures))))

        @torch.inference_mode()
        def see(batch: torch.Tensor) -> torch.Tensor:
            return self.model(batch.to(where, non_blocking=True)).float().softmax(1).cpu()

        with tqdm(total=len(pictures), desc=f"predict {split}", unit="img", disable=not progress, leave=False) as bar:
            for made in side_by_side(see, batches):
                probabilities.append(made)
                bar.update(len(made))
        p = torch.cat(probabilities).numpy()
        names, rows = np.asarray(self.classes, dtype=object), data.rows(split)
        table = {"image": rows["image"], "label": rows[self.cfg.level], "predicted": names[p.argmax(1)]}
        return pd.DataFrame({**table, "confidence": p.max(1), **{f"p_{c}": p[:, c] for c in range(p.shape[1])}})


@dataclass(frozen=True)
class Evaluation:
    """results: {name: {"value", "low", "high", "n"}} with 95 % intervals; predictions: one row per image;
    confusion: counts, rows actual, columns predicted; confused: the class pairs most often mistaken, worst first."""

    results: dict[str, dict[str, float]]
    predictions: pd.DataFrame
    confusion: pd.DataFrame
    confused: pd.DataFrame


def evaluate(
    classifier: Classifier, data: AircraftData, split: str = "test", predictions: pd.DataFrame | None = None
) -> Evaluation:
    """How good the classifier is on a split, with intervals over images: 2,000 bootstrap draws.

    Names are split/level/metric: class_averaged_accuracy (FGVC-Aircraft's official metric), top1_accuracy,
    top5_accuracy (of all classes where there are fewer) and expected_calibration_error. A coarser level's
    probabilities are sums over its classes; only levels that `data` has are there.
    predictions: those that `predict` gave, where it need not run again.
    Raises: ValueError for predictions of other images, and what `predict` raises.
    """
    table = classifier.predict(data, split) if predictions is None else predictions
    if lacking := {"image", "label", *(f"p_{c}" for c in range(len(classifier.classes)))} - set(table):
        raise ValueError(f"these predictions lack {', '.join(sorted(lacking)[:5])}: give those of Classifier.predict")
    if table["image"].tolist() != data.rows(split)["image"].tolist():
        raise ValueError(f"these predictions are of other images than the {split} split of {data.folder}")
    level, classes = classifier.cfg.level, classifier.classes
    fine = table[[f"p_{c}" for c in range(len(classes))]].to_numpy()
    labels = pd.Categorical(table["label"], classes).codes.astype(np.int64)
    results = {}
    for coarse in (name for name in LEVELS[LEVELS.index(level) :] if name in data.levels):
        names = data.classes(coarse)
        parents = data.parents(level, coarse) if coarse != level else {name: name for name in classes}
        parent_index = np.array([names.index(parents[name]) for name in classes])
        measured = _measure(parent_index[labels], metrics.roll_up(fine, parent_index, len(names)), len(names))
        results |= {f"{split}/{coarse}/{metric}": result for metric, result in measured.items()}
    confusion = confusion_matrix(labels, fine.argmax(1), labels=range(len(classes)))
    confused = metrics.most_confused(confusion, classes)
    return Evaluation(results, table, pd.DataFrame(confusion, index=classes, columns=classes), confused)


def _measure(labels: np.ndarray, probabilities: np.ndarray, n_classes: int) -> dict[str, dict[str, float]]:
    """Each metric by name from labels (n,) and probabilities (n, n_classes)."""
    probabilities = np.clip(probabilities, 0, 1)  # sums of float32 may end just above 1
    measures = {
        "class_averaged_accuracy": (metrics.class_averaged_accuracy, labels, probabilities.argmax(1), n_classes),
        "top1_accuracy": (metrics.top_k_accuracy, labels, probabilities, 1),
        "top5_accuracy": (metrics.top_k_accuracy, labels, probabilities, min(5, n_classes)),
        "expected_calibration_error": (metrics.expected_calibration_error, probabilities, labels),
    }
    results = {}
    for name, (metric, *arguments) in measures.items():
        low, high = metrics.bootstrap_interval(metric, *arguments, n=2000)
        results[name] = {"value": metric(*arguments), "low": low, "high": high, "n": len(labels)}
    return results


def export_weights(source: Classifier | str | Path, path: str | Path, **facts: Any) -> None:
    """Write a classifier's weights (or those in its folder) as float16 safetensors, and what they are as JSON beside.

    facts: more entries for the JSON, such as how the weights were made.
    Raises: ValueError for another suffix than .safetensors, or a weight too large for float16.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are exported as .safetensors, got {path.name}")
    made = source if isinstance(source, Classifier) else Classifier.load(source)
    state = {name: value.half() for name, value in made.model.state_dict().items()}
    large = [name for name, value in state.items() if not value.isfinite().all()]
    if large:
        raise ValueError(f"{large[0]} holds values beyond float16's 65504: has the training diverged?")
    write_safetensors(path, state)
    own = {"arch": made.cfg.arch, "n_classes": len(made.classes), "image_size": made.image_size}
    own |= {"mean": made.mean, "std": made.std, "classes": made.classes}
    write_json(path.with_suffix(".json"), own | facts)


def n_workers(n_pictures: int) -> int:
    """Loading processes: one beside a CPU that computes, more beside a GPU, none for a handful of pictures."""
    if n_pictures < WORKERS_FROM:
        return 0
    return min(8, torch.multiprocessing.cpu_count()) if torch.cuda.is_available() else 1
