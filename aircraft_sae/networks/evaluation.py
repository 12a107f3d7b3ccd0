"""Trained networks: their files, their predictions on a split, and how good these are on each level of the taxonomy."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
from joblib import cpu_count
from sklearn.metrics import confusion_matrix
from timm.data import resolve_model_data_config
from tqdm import tqdm

from aircraft_sae import metrics
from aircraft_sae.config import ClassifierConfig, from_dict
from aircraft_sae.devices import device
from aircraft_sae.networks.build import build
from aircraft_sae.networks.network import BATCH, Network
from aircraft_sae.networks.weights import FOLDER, PACKAGED, load_weights, write_safetensors
from aircraft_sae.pictures import Pictures, loader, test_transform
from aircraft_sae.store import read_json, write_json, write_text


def load(folder: str | Path, name: str = "trained") -> Network:
    """The network that `train` wrote in `folder`, on the GPU where there is one.

    Raises: FileNotFoundError where it has not, ValueError for files that are damaged or do not fit each other.
    """
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder / 'model.safetensors'} is not there: train a network into it first")
    remedy = "Train a network into this folder anew, or bring all files of one."
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
    """A network as it was trained elsewhere: of data/weights, "efficientnet_lite0", or by its name in timm's hub.

    size: pixels of its pictures. Its classes are those that data/weights tells of, else none are named.
    Raises: ValueError for another name; FileNotFoundError where its package or the hub is not there.
    """
    facts, hub = read_json(FOLDER / f"{name}.json"), name in timm.list_pretrained()
    if not facts and not hub and name not in PACKAGED:
        shipped = ", ".join(sorted([*PACKAGED, *(file.stem for file in FOLDER.glob("*.safetensors"))]))
        own = "a name of timm's hub (arch.weights), or a network of your own"
        raise ValueError(f"no network {name!r}: trained, permuted, {shipped}, {own}")
    arch = facts.get("arch") or PACKAGED.get(name, (None, name))[1]
    classes = facts.get("classes", [])
    n_classes = len(classes) or timm.get_pretrained_cfg(arch).num_classes
    model = build(ClassifierConfig(arch=arch, weights="timm" if hub else name), n_classes)
    pixels = resolve_model_data_config(model)
    return Network(model.to(device()), classes, size, tuple(pixels["mean"]), tuple(pixels["std"]), name)


def save(network: Network, cfg: ClassifierConfig, folder: Path) -> None:
    """Write model.safetensors (float32), config.json and history.csv; the model last, since `load` asks for it."""
    facts = {"classifier": asdict(cfg), "classes": network.classes, "mean": network.mean, "std": network.std}
    write_json(folder / "config.json", facts)
    if network.history is not None:
        write_text(folder / "history.csv", network.history.to_csv(index=False))
    write_safetensors(folder / "model.safetensors", network.model.state_dict())


def predict(network: Network, pictures: Pictures, split: str = "test") -> pd.DataFrame:
    """One row an image: image, label, predicted (class names), confidence, and p_0, p_1, … (float32).

    In float32, so that probabilities agree with the sites' activations. ValueError where pictures have other classes.
    """
    level = network.level or pictures.levels[0]
    if pictures.classes(level) != network.classes:
        raise ValueError(f"{pictures.name} has other {level} classes than this network was trained on")
    views = pictures.torch(split, level, test_transform(network.size, network.mean, network.std))
    batches = loader(views, BATCH, workers=n_workers(len(views)))
    seen = network.stream(batch for batch, _, _ in batches)
    bar = tqdm(seen, f"predict {split}", len(batches), unit="batch", leave=False, delay=10)
    p = torch.cat([each.logits.softmax(1) for each in bar]).numpy()
    names, rows = np.asarray(network.classes, dtype=object), pictures.rows(split)
    table = {"image": rows["image"], "label": rows[level], "predicted": names[p.argmax(1)], "confidence": p.max(1)}
    return pd.DataFrame(table | {f"p_{c}": p[:, c] for c in range(p.shape[1])})


def evaluate(network: Network, pictures: Pictures, split: str, predictions: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """How good a network's predictions on a split are, and their confusion: counts, rows actual, columns predicted.

    The first is {name: {"value", "low", "high", "n"}}, with 95 % intervals over images: 2,000 bootstrap draws.
    Names are split/level/metric: class_averaged_accuracy (FGVC-Aircraft's official metric) and top1_accuracy. A coarser
    level's probabilities are sums over its classes. Raises: ValueError for predictions of other images, or of no
    `predict`.
    """
    level, classes = network.level or pictures.levels[0], network.classes
    columns = [f"p_{c}" for c in range(len(classes))]
    if lacking := {"image", "label", *columns} - set(predictions):
        raise ValueError(f"these predictions lack {', '.join(sorted(lacking)[:5])}: give those of `predict`")
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


def n_workers(n_pictures: int) -> int:
    """Loading processes: one beside a CPU that computes, more beside a GPU, none for a handful of pictures."""
    if n_pictures < 512:  # starting a process takes longer
        return 0
    return min(8, cpu_count()) if torch.cuda.is_available() else 1
