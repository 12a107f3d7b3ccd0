"""Predictions on a split, and how good they are at each level of the taxonomy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from aircraft_sae.networks import evaluate, predict
from aircraft_sae.pictures import test_transform


def test_predictions_are_the_models_own(smoke_study):
    network, data = smoke_study.network(), smoke_study.pictures()
    table, test = predict(network, data, "test"), data.rows("test")
    pictures = data.torch("test", "variant", test_transform(network.size, network.mean, network.std))
    batch = pictures.transform.normalise(torch.stack([pictures[k][0] for k in range(len(test))]))
    with torch.inference_mode():
        p = network.model(batch).softmax(1).numpy()
    np.testing.assert_allclose(table.filter(regex=r"^p_\d+$"), p, atol=1e-5)
    assert table["image"].tolist() == test["image"].tolist()
    assert table["label"].tolist() == test["variant"].tolist()
    assert table["predicted"].tolist() == [network.classes[c] for c in p.argmax(1)]
    np.testing.assert_allclose(table["confidence"], p.max(1), atol=1e-5)
    with pytest.raises(ValueError, match="other variant classes"):
        predict(replace(network, classes=network.classes[::-1]), data)


@pytest.mark.filterwarnings("ignore:A single label")  # one manufacturer
def test_evaluation_equals_scikit_learns(smoke_study):
    network, data = smoke_study.network(), smoke_study.pictures()
    table, test = predict(network, data, "test"), data.rows("test")
    p = np.random.default_rng(3).dirichlet(np.full(len(network.classes), 0.1), len(test)).astype(np.float32)
    table[[f"p_{c}" for c in range(p.shape[1])]] = p
    measured, confusion = evaluate(network, data, "test", table)
    above, expected = data.table.drop_duplicates("variant").set_index("variant").loc[network.classes], {}
    for level in data.levels:
        classes = data.classes(level)
        of_variant = network.classes if level == "variant" else above[level]
        sums = np.stack([p[:, np.equal(of_variant, name)].sum(1) for name in classes], 1)
        labels = [classes.index(name) for name in test[level]]
        guessed = sums.argmax(1)
        expected[f"test/{level}/class_averaged_accuracy"] = balanced_accuracy_score(labels, guessed)
        expected[f"test/{level}/top1_accuracy"] = np.mean(labels == guessed)
        if level == "variant":
            assert np.trace(confusion) == np.sum(labels == guessed) and confusion.to_numpy().sum() == len(test)
    assert {name: measured[name]["value"] for name in expected} == pytest.approx(expected)
    assert len(set(np.round(list(expected.values()), 3))) > 2, "levels differ"
    for result in measured.values():
        assert result["n"] == len(test) and result["low"] - 1e-7 <= result["value"] <= result["high"] + 1e-7
    with pytest.raises(ValueError, match="of other images than the val split"):
        evaluate(network, data, "val", table)
