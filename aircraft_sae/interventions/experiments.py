"""Experiments for `Study.stage`: make(folder, **inputs, **settings) writes tables of an autoencoder's features.

What is claimed is chosen on half A of the test pictures; tables are of half B.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from aircraft_sae.features import FeatureIndex
from aircraft_sae.features.reconstruction import seed_match
from aircraft_sae.interventions.blurring import PAIR, blur_effects
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import (
    Trial,
    beyond_random,
    effects,
    matched_features,
    random_beside,
    tell_apart,
)
from aircraft_sae.interventions.verdicts import class_verdicts, judge
from aircraft_sae.metrics import interval
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


def point(value: float, n: int | None = None) -> dict[str, float | None]:
    """A result without an interval."""
    value = value if isinstance(value, int) else float(value)
    return {"value": value, "low": None, "high": None, "n": n if n is None else int(n)}


def median(values: np.ndarray) -> dict[str, float | None]:
    """The median as a result, with the 95 % interval by drawing the values anew."""
    drawn = np.random.default_rng(0).integers(len(values), size=(2000, len(values)))
    low, high = interval(np.median(values[drawn], axis=1))
    return {"value": float(np.median(values)), "low": low, "high": high, "n": len(values)}


def mean_over_active(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    """(d,) mean of values (n, d) over the pictures in which each feature is active; 0 where there are none."""
    return (values * active).sum(0) / np.maximum(active.sum(0), 1)


def suppress_features(
    folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame, n_images: int = 140
) -> None:
    """What the network loses with each feature, and with what is taken out in its place: the controls.

    features.parquet: feature_id, n (pictures in which it is active), often (in enough of them for a median), partner
    (-1 for none), and the mean absolute specificity of "feature", "random direction", "feature of like density" and
    "feature, to its mean". Without a closed form: the claims' features alone, in n_images pictures.
    beyond_random.parquet: of the claims drawn at random. reconstruction.parquet: specificity, in all test pictures, of
    leaving out what the autoencoder does not explain. claims: of `frozen_list`.
    """
    half_b, features, W_dec = _half_b(trial, n_images), np.arange(trial.sae.d_sae), trial.sae.W_dec.detach()
    if trial.readout is None:
        features = np.unique(claims["feature_id"])
    partner = matched_features(index.table)
    swapped = W_dec[np.where(partner >= 0, partner, 0)]
    like = swapped * (W_dec.norm(dim=1) / swapped.norm(dim=1))[:, None]
    edits = {
        "feature": {},
        "random direction": {"directions": random_beside(trial)[features]},
        "feature of like density": {"directions": like[features]},
        "feature, to its mean": {"to": trial[~trial.in_b].strength.mean(0)[features]},
    }
    active = (half_b.strength[:, features] > 0).numpy()
    table = pd.DataFrame({"feature_id": features, "n": active.sum(0), "partner": partner[features]})
    table["often"] = table["n"] >= min(8, len(active) // 4)
    for name, how in edits.items():
        table[name] = mean_over_active(np.abs(half_b.suppress(features, **how)["specificity"]), active)
    write_parquet(table, folder / "features.parquet")
    drawn = claims.loc[claims["chosen"] == "random", "feature_id"].tolist()
    write_parquet(beyond_random(half_b, drawn), folder / "beyond_random.parquet")
    after = trial.scores(lambda block: trial.sae.reconstruct(block.flatten(0, 2))[0].view(block.shape))
    only = effects(trial.scores(), after[:, None], trial.labels)["specificity"][:, 0]
    write_parquet(pd.DataFrame({"specificity": only.numpy()}), folder / "reconstruction.parquet")


def _half_b(trial: Trial, n_images: int) -> Trial:
    """Half B of the pictures, or n_images of it, drawn at random, where each effect costs a forward pass."""
    half_b = trial[trial.in_b]
    if trial.readout:
        return half_b
    return half_b[np.sort(np.random.default_rng(0).permutation(len(half_b.rows))[:n_images])]


def dose_response(
    folder: Path, *, trial: Trial, features: Sequence[int], doses: Sequence[float], n_images: int = 140
) -> None:
    """Features multiplied by each dose, and as much of random directions added or taken out.

    doses.parquet: of ("features" or "random directions"), dose, feature_id, n (pictures of half B in which it is
    active), and means over these of the change of the true class's logit and of its size. n_images: of `_half_b`.
    """
    half_b, features, table = _half_b(trial, n_images), list(features), []
    active = (half_b.strength[:, features] > 0).numpy()
    for of, directions in (("features", trial.sae.W_dec.detach()), ("random directions", random_beside(trial))):
        for dose in doses:
            change = half_b.suppress(features, dose, directions=directions[features])["logit"]
            means = {"logit": mean_over_active(change, active), "size": mean_over_active(np.abs(change), active)}
            facts = {"of": of, "dose": dose, "feature_id": features, "n": active.sum(0)}
            table.append(pd.DataFrame(facts | means))
    write_parquet(pd.concat(table, ignore_index=True), folder / "doses.parquet")


def tell_confused(folder: Path, *, trial: Trial, n: int = 8, n_tried: int = 20) -> None:
    """`tell_apart` of the two classes that are most often taken for each other on half A, in features.parquet.

    pair.parquet: one row, their labels one and two, n_wrong, n_a, n_b (pictures of the two in each half). n_tried:
    features to choose from where there is no closed form, those that add most to the two's acts on half A.
    """
    a, labels, predicted, tried = ~trial.in_b, trial.labels.numpy(), trial.scores().argmax(1).numpy(), None
    wrong = a & (predicted != labels)
    pairs = pd.Series([*zip(*np.sort([labels[wrong], predicted[wrong]], axis=0), strict=True)], dtype=object)
    counts = pairs.value_counts()
    pair = tuple(int(label) for label in counts.index[0]) if len(counts) else (0, 1)
    own = np.isin(labels, pair)
    if trial.readout is None:
        size = trial[own & a].strength.mean(0) * trial.sae.W_dec.detach().norm(dim=1)
        tried = size.topk(min(n_tried, len(size))).indices.numpy()
    n_wrong = int(counts.iloc[0]) if len(counts) else 0
    halves = {"n_a": int((own & a).sum()), "n_b": int((own & ~a).sum())}
    facts = {"one": pair[0], "two": pair[1], "n_wrong": n_wrong} | halves
    write_parquet(pd.DataFrame([facts]), folder / "pair.parquet")
    write_parquet(tell_apart(trial, pair, random_beside(trial), tried, n), folder / "features.parquet")


def suppress_some(folder: Path, *, trial: Trial, features: Sequence[int], n_images: int) -> None:
    """Features and random directions suppressed in n_images pictures of half B, drawn at random.

    features.parquet: feature_id, n (pictures in which it matters), feature and random (mean absolute specificity there:
    where it is silent, nothing is taken out).
    """
    chosen = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(trial.in_b))[:n_images])
    trial, random = trial[chosen], random_beside(trial)[features]
    ours, null = (np.abs(trial.suppress(features, directions=each)["specificity"]) for each in (None, random))
    table = {"feature_id": features, "n": (ours > 0).sum(0)}
    table |= {"feature": mean_over_active(ours, ours > 0), "random": mean_over_active(null, ours > 0)}
    write_parquet(pd.DataFrame(table), folder / "features.parquet")


def blur_peaks(
    folder: Path, *, trial: Trial, index: FeatureIndex, picks: pd.DataFrame, sigma: float, window: int
) -> None:
    """`blur_effects` of every pick and its controls, with the picks' `how`, in blur.parquet.

    suppressed.parquet: each pick with the change of the true class's logit when its feature is suppressed instead.
    """
    made = blur_effects(trial, index, picks, sigma, window)
    write_parquet(made.merge(picks[[*PAIR, "how"]], on=PAIR, validate="m:1"), folder / "blur.parquet")
    found = []
    for feature_id, own in picks.groupby("feature_id"):
        some = trial[np.searchsorted(index.rows("test"), own["image_row"])]
        found.append(own[PAIR].assign(suppressed=some.suppress([feature_id])["logit"][:, 0]))
    write_parquet(pd.concat(found, ignore_index=True), folder / "suppressed.parquet")


def judge_claims(
    folder: Path, *, sae: SparseAutoencoder, index: FeatureIndex, claims: pd.DataFrame, pictures: Pictures,
    removals: Path, network: str = "trained",
) -> None:  # fmt: skip
    """`judge` of any dictionary's claims, without other seeds, in claims.parquet."""
    write_parquet(judge(sae, index, claims, pictures, removals, network), folder / "claims.parquet")


def verdict_tables(
    folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame, suppressed: pd.DataFrame,
    others: Sequence[SparseAutoencoder], removals: Path | None = None,
) -> None:  # fmt: skip
    """What may be said of the features: the tables that `Verdicts` opens, and null_classes.parquet.

    claims: of `frozen_list`; suppressed: features.parquet of `suppress_features`; others: autoencoders of other seeds;
    removals: of `edit_scenes`, None where scenes cannot be edited. null_classes: the claims about classes, with a
    random direction in each feature's place.
    """
    match, found = seed_match(trial.sae, others), {}
    if removals is not None:
        found["parts"] = judge(trial.sae, index, claims, trial.pictures, removals, seed_match=match)
        write_parquet(Responses.of(trial.sae, removals).table(), folder / "responses.parquet")
    if levels := list(trial.pictures.levels):
        drawn, labels = claims[claims["chosen"] == "random"], index.images.iloc[index.rows("test")][levels]
        given = drawn, index.table, trial[trial.in_b], labels[trial.in_b], match
        found["classes"] = class_verdicts(*given)
        write_parquet(class_verdicts(*given, directions=random_beside(trial)), folder / "null_classes.parquet")
    names = {"feature": "suppressed", "random direction": "suppressed_random"}
    table = pd.DataFrame({"feature_id": range(trial.sae.d_sae), "seed_match": match})
    table = table.merge(suppressed.rename(columns=names)[["feature_id", *names.values()]], "left", validate="1:1")
    if found:
        said = pd.concat(found.values()).sort_values("passes", ascending=False, kind="stable")
        table = table.merge(
            said.drop_duplicates("feature_id")[["feature_id", "verdict", "why"]], "left", validate="1:1"
        )
    for name, each in (found | {"features": table}).items():
        write_parquet(each, folder / f"{name}.parquet")
