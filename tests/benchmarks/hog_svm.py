"""A classical baseline for the classifier: HOG features and a linear SVM, on any folder in FGVC-Aircraft layout.

    python tests/benchmarks/hog_svm.py --data-root FOLDER [--image-size 96] [--record]

Trained on the train split; val chooses C; test is looked at once. Prints the class-averaged test accuracy with its
bootstrap interval; --record also merges it into data/results/photos/01_train_classifier.json.
Needs scikit-image: pip install -e ".[benchmarks]".
Source: Dalal & Triggs 2005, "Histograms of Oriented Gradients for Human Detection".
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.feature import hog
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from tqdm import tqdm

from aircraft_sae.config import LEVELS
from aircraft_sae.metrics import bootstrap_draws, class_averaged_accuracy, with_draws
from aircraft_sae.pictures import FGVCLayout
from aircraft_sae.study import Study

RESULT = "hog_svm/test/{level}/class_averaged_accuracy"
NOTEBOOK = "01_train_classifier"


@dataclass(frozen=True)
class HogConfig:
    """The descriptor and the values of C to choose from; the defaults were best on the photographs' val split."""

    image_size: int = 96
    """Pictures are squashed to this square, in pixels."""
    pixels_per_cell: int = 16
    orientations: int = 12
    colour: bool = True
    """Each pixel's gradient from its strongest colour channel; else from the grey picture."""
    balanced: bool = True
    """Weigh classes by their inverse frequency."""
    mirrored: bool = True
    """Train on each picture and its mirror image."""
    penalties: tuple[float, ...] = (0.002, 0.02, 0.2, 2.0)
    """Values tried for C times the length of the descriptor: standardised features have about that squared norm."""


def hog_features(data: FGVCLayout, split: str, cfg: HogConfig, mirror: bool = False) -> np.ndarray:
    """(images, descriptor) float32, in the order of `data.rows(split)`: blocks of 2 x 2 cells, L2-Hys."""
    features = []
    for image in tqdm(data.rows(split)["image"], f"HOG of {split}{', mirrored' * mirror}", unit=" pictures"):
        picture = data.picture(image).convert("RGB" if cfg.colour else "L")
        pixels = np.asarray(picture.resize((cfg.image_size, cfg.image_size), Image.Resampling.BICUBIC))
        features.append(
            hog(
                pixels[:, ::-1] if mirror else pixels,
                orientations=cfg.orientations,
                pixels_per_cell=(cfg.pixels_per_cell, cfg.pixels_per_cell),
                cells_per_block=(2, 2),
                channel_axis=-1 if cfg.colour else None,
            ).astype(np.float32)
        )
    return np.stack(features)


def labels_of(data: FGVCLayout, split: str, level: str) -> np.ndarray:
    """(images,) class indices, in the order of `data.rows(split)`."""
    return data.torch(split, level, lambda picture: picture).labels


def fit(train: np.ndarray, labels: np.ndarray, val: np.ndarray, val_labels: np.ndarray, n_classes: int, cfg: HogConfig):
    """(best LinearSVC, {C: class-averaged val accuracy}); features are standardised already."""
    models, scores = {}, {}
    for penalty in (bar := tqdm(cfg.penalties, "SVM", unit=" fits")):
        c, weight = penalty / train.shape[1], "balanced" if cfg.balanced else None
        models[c] = LinearSVC(C=c, class_weight=weight, dual=True, random_state=0).fit(train, labels)
        scores[c] = class_averaged_accuracy(val_labels, models[c].predict(val), n_classes)
        bar.set_postfix(C=f"{c:.1g}", val=f"{scores[c]:.3f}")
    return models[max(scores, key=scores.get)], scores


def run(data: FGVCLayout, level: str = "variant", cfg: HogConfig = HogConfig()) -> dict:
    """Train, choose C on val, and test: value, low, high, n, top_1, C, val (scores by C), seconds."""
    began, n_classes = time.monotonic(), len(data.classes(level))
    features = {split: hog_features(data, split, cfg) for split in ("train", "val", "test")}
    labels = {split: labels_of(data, split, level) for split in features}
    if cfg.mirrored:
        features["train"] = np.concatenate([features["train"], hog_features(data, "train", cfg, mirror=True)])
        labels["train"] = np.tile(labels["train"], 2)
    scaler = StandardScaler(copy=False).fit(features["train"])
    features = {split: scaler.transform(values) for split, values in features.items()}
    model, scores = fit(features["train"], labels["train"], features["val"], labels["val"], n_classes, cfg)
    test = labels["test"], model.predict(features["test"]), n_classes
    draws = bootstrap_draws(class_averaged_accuracy, *test)
    return with_draws(class_averaged_accuracy(*test), draws, len(labels["test"])) | {
        "top_1": float(np.mean(test[0] == test[1])), "C": model.C, "val": scores, "seconds": time.monotonic() - began,
    }  # fmt: skip


def record(study: Study, level: str, result: dict) -> None:
    """Merge the number into the results of notebook 01, whatever else stands there."""
    try:
        there = {name: tuple(entry.values()) for name, entry in study.results(NOTEBOOK).items()}
    except FileNotFoundError:
        there = {}
    entry = tuple(result[key] for key in ("value", "low", "high", "n"))
    print(f"wrote {study.record(NOTEBOOK, there | {RESULT.format(level=level): entry})}")


def main(arguments: list[str] | None = None) -> dict:
    """The command; returns what `run` does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--banner", type=int, default=0, help="rows to cut off the bottom: 20 for FGVC-Aircraft")
    parser.add_argument("--level", choices=LEVELS, default="variant")
    parser.add_argument("--image-size", type=int, default=HogConfig.image_size)
    parser.add_argument("--pixels-per-cell", type=int, default=HogConfig.pixels_per_cell)
    parser.add_argument("--orientations", type=int, default=HogConfig.orientations)
    parser.add_argument("--record", action="store_true", help=f"merge into data/results/photos/{NOTEBOOK}.json")
    given = parser.parse_args(arguments)
    study = Study.open("photos", data_root=given.data_root)
    cfg = HogConfig(given.image_size, given.pixels_per_cell, given.orientations)
    result = run(FGVCLayout.open(given.data_root, banner=given.banner), given.level, cfg)
    print("val by C:", ", ".join(f"{penalty:g}: {score:.3f}" for penalty, score in result["val"].items()))
    print(
        f"HOG + linear SVM, class-averaged {given.level} accuracy on test: {result['value']:.3f} "
        f"({result['low']:.3f} to {result['high']:.3f}, n = {result['n']}); top-1 {result['top_1']:.3f}; "
        f"{result['seconds']:.0f} s"
    )
    if given.record:
        record(study, given.level, result)
    return result


if __name__ == "__main__":
    main()
