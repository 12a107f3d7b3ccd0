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
from aircraft_sae.interventions.suppression import Trial, beyond_random, matched_features, random_beside
from aircraft_sae.interventions.verdicts import class_verdicts, judge
from aircraft_sae.metrics import interval
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet


def point(value: float, n: int | None = None) -> dict[str, float | None]:
    """A result without an interval."""
    return {"value": float(value), "low": None, "high": None, "n": n if n is None else int(n)}


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
    beyond_random.parquet: of the claims drawn at random. claims: of `frozen_list`.
    """
    half_b, features, W_dec = trial[trial.in_b], np.arange(trial.sae.d_sae), trial.sae.W_dec.detach()
    if trial.readout is None:
        features = np.unique(claims["feature_id"])
        half_b = half_b[np.sort(np.random.default_rng(0).permutation(len(half_b.rows))[:n_images])]
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
    """`blur_effects` of every pick and its controls, with the picks' `how`, in blur.parquet."""
    made = blur_effects(trial, index, picks, sigma, window)
    write_parquet(made.merge(picks[[*PAIR, "how"]], on=PAIR, validate="m:1"), folder / "blur.parquet")


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
