"""A classical baseline for the classifier: HOG features and a linear SVM, on any folder in FGVC-Aircraft layout.

    python tests/benchmarks/hog_svm.py --data-root FOLDER [--record]

Trains on the train split, chooses C on val and evaluates on test once. Prints the class-averaged test accuracy with its
bootstrap interval; --record also merges it into notebook 01's results in data/runs/photos.
Needs scikit-image: pip install -e ".[benchmarks]".
Source: Dalal & Triggs 2005, "Histograms of Oriented Gradients for Human Detection".
"""

import argparse
import time

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

NOTEBOOK, RESULT = "01_train_classifier", "hog_svm/test/{level}/class_averaged_accuracy"
SIZE = 96  # pictures are squashed to this square; this and HOG's settings were best on the photographs' val split
HOG = {"orientations": 12, "pixels_per_cell": (16, 16), "cells_per_block": (2, 2), "channel_axis": -1}
PENALTIES = 0.002, 0.02, 0.2, 2.0  # C times the number of features, which is the mean squared norm once standardised


def hog_features(data: FGVCLayout, split: str, mirror: bool = False) -> np.ndarray:
    """(images, features) float32, in the order of `data.rows(split)`."""
    features = []
    for image in tqdm(data.rows(split)["image"], f"HOG of {split}{', mirrored' * mirror}", unit=" pictures"):
        pixels = np.asarray(data.picture(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        features.append(hog(pixels[:, ::-1] if mirror else pixels, **HOG).astype(np.float32))
    return np.stack(features)


def run(data: FGVCLayout, level: str) -> dict:
    """Train with mirror images, choose C on val, and test: value, low, high, n, top_1, val (accuracy by C), seconds."""
    began, n_classes = time.monotonic(), len(data.classes(level))
    labels = {split: data.torch(split, level, None).labels for split in ("train", "val", "test")}
    features = {split: hog_features(data, split) for split in labels}
    features["train"] = np.concatenate([features["train"], hog_features(data, "train", mirror=True)])
    labels["train"] = np.tile(labels["train"], 2)
    scaler = StandardScaler(copy=False).fit(features["train"])
    features = {split: scaler.transform(values) for split, values in features.items()}
    models, val = {}, {}
    for penalty in tqdm(PENALTIES, "SVM", unit=" fits"):
        c = penalty / features["train"].shape[1]
        models[c] = LinearSVC(C=c, class_weight="balanced", dual=True, random_state=0)
        predicted = models[c].fit(features["train"], labels["train"]).predict(features["val"])
        val[c] = class_averaged_accuracy(labels["val"], predicted, n_classes)
    test = labels["test"], models[max(val, key=val.get)].predict(features["test"]), n_classes
    draws = bootstrap_draws(class_averaged_accuracy, *test)
    return with_draws(class_averaged_accuracy(*test), draws, len(labels["test"])) | {
        "top_1": float(np.mean(test[0] == test[1])), "val": val, "seconds": time.monotonic() - began,
    }  # fmt: skip


def record(study: Study, level: str, result: dict) -> None:
    """Merge the number into the results of notebook 01."""
    try:
        entries = {name: tuple(entry.values()) for name, entry in study.results(NOTEBOOK).items()}
    except FileNotFoundError:
        entries = {}
    entries[RESULT.format(level=level)] = tuple(result[key] for key in ("value", "low", "high", "n"))
    print(f"wrote {study.record(NOTEBOOK, entries)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True, help="folder that holds fgvc-aircraft-2013b")
    parser.add_argument("--banner", type=int, default=0, help="rows to crop off the bottom: 20 for FGVC-Aircraft")
    parser.add_argument("--level", choices=LEVELS, default="variant")
    parser.add_argument("--record", action="store_true", help=f"merge into data/runs/photos/results/{NOTEBOOK}.json")
    given = parser.parse_args()
    study = Study.open("photos", data_root=given.data_root)
    result = run(FGVCLayout.open(given.data_root, banner=given.banner), given.level)
    print("val by C:", ", ".join(f"{penalty:g}: {score:.3f}" for penalty, score in result["val"].items()))
    print(
        f"HOG + linear SVM, class-averaged {given.level} accuracy on test: {result['value']:.3f} "
        f"({result['low']:.3f} to {result['high']:.3f}, n = {result['n']}); top-1 {result['top_1']:.3f}; "
        f"{result['seconds']:.0f} s"
    )
    if given.record:
        record(study, given.level, result)


if __name__ == "__main__":
    main()
