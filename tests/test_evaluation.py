"""Predictions on a split, and how good they are on each level of the taxonomy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from aircraft_sae.config import ClassifierConfig
from aircraft_sae.networks import Network, build, evaluate, predict
from aircraft_sae.pictures import FGVCLayout, test_transform

TAXONOMY = {"variant": ["F-16A/B", "F-16C", "Ан-2"], "family": ["F-16", "F-16", "Ан-2"], "manufacturer": ["X"] * 3}
PER_SPLIT = {"train": 3, "val": 3, "test": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three variants, told apart by colour."""
    folder = tmp_path_factory.mktemp("colours") / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, n in PER_SPLIT.items():
        for k in range(n):
            picture = rng.integers(100, size=(40, 40, 3), dtype=np.uint8)
            picture[..., k % 3] += 120
            Image.fromarray(picture).save(folder / "images" / f"{split}{k}.jpg")
    for level, classes in TAXONOMY.items():
        names = dict.fromkeys(classes)
        (folder / f"{level.removesuffix('y')}{'ies' if level == 'family' else 's'}.txt").write_text("\n".join(names))
        for split, n in PER_SPLIT.items():
            lines = [f"{split}{k} {classes[k % 3]}" for k in range(n)]
            (folder / f"images_{level}_{split}.txt").write_text("\n".join(lines))
    return FGVCLayout.open(folder)


@pytest.fixture(scope="module")
def made():
    cfg = ClassifierConfig(arch="test_convnext", weights=None, layer_scale=0.1, frozen_stages=0)
    return Network(build(cfg, 3), TAXONOMY["variant"], 48, (0.5,) * 3, (0.5,) * 3, level="variant")


def test_predictions_are_the_models_own(made, data):
    table = predict(made, data, "test")
    pictures = data.torch("test", "variant", test_transform(48, made.mean, made.std))
    batch = pictures.transform.normalise(torch.stack([pictures[k][0] for k in range(9)]))
    with torch.inference_mode():
        p = made.model(batch).softmax(1).numpy()
    np.testing.assert_allclose(table[["p_0", "p_1", "p_2"]], p, atol=1e-6)
    assert table["image"].tolist() == data.rows("test")["image"].tolist()
    assert table["label"].tolist() == data.rows("test")["variant"].tolist()
    assert table["predicted"].tolist() == [made.classes[c] for c in p.argmax(1)]
    np.testing.assert_allclose(table["confidence"], p.max(1), atol=1e-6)
    with pytest.raises(ValueError, match="other variant classes"):
        predict(replace(made, classes=made.classes[::-1]), data)


def test_evaluation_equals_sklearns_on_made_predictions(made, data):
    rng = np.random.default_rng(3)
    table = predict(made, data, "test")
    p = rng.dirichlet(np.ones(3), size=9).astype(np.float32)
    table[["p_0", "p_1", "p_2"]] = p
    measured, confusion = evaluate(made, data, "test", table)
    labels = np.arange(9) % 3
    family, family_p = np.minimum(labels, 2) // 2, np.stack([p[:, 0] + p[:, 1], p[:, 2]], 1)
    expected = {
        "test/variant/class_averaged_accuracy": balanced_accuracy_score(labels, p.argmax(1)),
        "test/variant/top1_accuracy": top_k_accuracy_score(labels, p, k=1),
        "test/family/class_averaged_accuracy": balanced_accuracy_score(family, family_p.argmax(1)),
        "test/family/top1_accuracy": np.mean(family == family_p.argmax(1)),
        "test/manufacturer/class_averaged_accuracy": 1.0,
    }
    assert {name: measured[name]["value"] for name in expected} == pytest.approx(expected)
    assert 0 < expected["test/variant/top1_accuracy"] < expected["test/family/top1_accuracy"] < 1
    assert len(measured) == 6
    for result in measured.values():
        assert result["n"] == 9 and result["low"] - 1e-7 <= result["value"] <= result["high"] + 1e-7
    assert confusion.loc["F-16C"].sum() == 3
    assert np.trace(confusion) == np.sum(labels == p.argmax(1))
    with pytest.raises(ValueError, match="of other images than the val split"):
        evaluate(made, data, "val", table)
