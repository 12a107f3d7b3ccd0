"""The list of what is tested, and verdicts about classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from aircraft_sae.features import claims_of
from aircraft_sae.interventions.suppression import Trial

LEAST_MATCH, LEAST_AUROC, Q = 0.7, 0.9, 0.05
LEAST_OF_CLASS = 15  # pictures of a class, else underpowered
N_RANDOM = {True: 999, False: 99}  # directions beside a feature, with and without a closed form
CLAIM = ["feature_id", "part"]


def frozen_list(
    table: pd.DataFrame, scores: pd.DataFrame | None, bars: pd.DataFrame | None, n_matched: int = 100
) -> pd.DataFrame:
    """The features to test, chosen before any test: feature_id, chosen ("random" or "part"), part.

    "random": 100, as many from each fifth of the living features by density, with the part that it claims, or None;
    "part": n_matched, the best of each part by average precision on half A in turn. table: features.parquet; scores,
    bars: parts.parquet and bars.parquet, None for no parts.
    """
    table = table.set_index("feature_id")
    alive = table[table["density_cell"] > 0]
    fifth = pd.qcut(alive["density_cell"].rank(method="first"), min(5, len(alive)), labels=False)
    shuffled = alive.sample(frac=1, random_state=0)
    turn = shuffled.groupby(fifth).cumcount().sort_values(kind="stable")
    drawn = sorted(turn.index[:100])
    part = None if scores is None else claims_of(scores, bars)[drawn].to_numpy()
    lists = [pd.DataFrame({"feature_id": drawn, "chosen": "random", "part": part})]
    if scores is not None:
        ranked = scores.dropna(subset="ap_a").sort_values("ap_a", ascending=False, kind="stable")
        ranked["turn"] = ranked.groupby("part").cumcount()
        best = ranked.sort_values("turn", kind="stable").head(n_matched)
        lists.append(best[CLAIM].assign(chosen="part"))
    return pd.concat(lists, ignore_index=True)


def class_verdicts(
    claims: pd.DataFrame, table: pd.DataFrame, trial: Trial, labels, seed_match, null_auroc, directions=None
) -> pd.DataFrame:
    """One row a claim (feature_id) about the class that half A chose, on the level that half A chose.

    table: features.parquet; trial: half B's pictures; labels: a row a picture, a column a level; seed_match: (d_sae,);
    null_auroc: of every null's best feature for the class, by (level, class); directions: (d_sae, d_in) to take out in
    place of the decoder's rows.
    A feature passes if its AUROC on B is at least 0.9 (q < 0.05) and above null_auroc, and suppressing it hurts its
    class's pictures, more than the other classes' logits and more than N_RANDOM random directions of equal length do
    (p: its rank among these, q < 0.05), and two seeds have it.
    """
    n_random = N_RANDOM[trial.readout is not None]
    table, rows = table.set_index("feature_id", drop=False), []
    for feature_id in claims["feature_id"]:
        facts, level = table.loc[feature_id], table.at[feature_id, "level"]
        own = np.flatnonzero(labels[level] == facts[f"{level}/class"])
        direction = None if directions is None else directions[feature_id]
        ours, null = (each.mean(0) for each in trial[own].beside_random(feature_id, n_random, direction))
        rows.append({
            "feature_id": feature_id, **{name: facts[f"{level}/{name}"] for name in ("class", "auroc", "auroc_q")},
            "level": level, "null_auroc": null_auroc.get((level, facts[f"{level}/class"]), np.nan),
            "specificity": ours, "control": null.mean(), "n": len(own),
            "seed_match": seed_match[feature_id], "p": ((null <= ours).sum() + 1) / (n_random + 1),
        })  # fmt: skip
    made = claims.drop(columns="part", errors="ignore").merge(pd.DataFrame(rows), on="feature_id", validate="1:1")
    made["q"] = adjusted(made["p"].to_numpy(float))
    tests = {
        "AUROC": (made["auroc"] >= LEAST_AUROC) & (made["auroc_q"] < Q) & ~(made["auroc"] <= made["null_auroc"]),
        "suppression": (made["specificity"] < 0) & (made["q"] < Q),
    }
    made["shown"] = tests["AUROC"] & tests["suppression"]
    seeds, few = made["seed_match"], made["n"] < LEAST_OF_CLASS
    made["passes"] = made["shown"] & (seeds >= LEAST_MATCH)
    otherwise = np.where(few, "underpowered", "not shown")
    made["verdict"] = np.where(made["passes"], "detector of " + made["class"].astype(str), otherwise)
    tests |= {"other seeds": ~(seeds < LEAST_MATCH)}
    made["why"] = ["; ".join(name for name, passed in tests.items() if not passed[i]) for i in made.index]
    return made


@dataclass
class Verdicts:
    """What `experiments.verdict_tables` found: without regions, scenes or classes some of it is None.

    features: one row a feature: feature_id; seed_match, the cosine with its partners in other seeds; suppressed and
    suppressed_random, mean absolute specificity of suppressing it and as much of a random direction; verdict and why,
    as a part's detector or else as a class's. responses: `Responses.table`; parts, classes: the claims, as judged.
    """

    features: pd.DataFrame
    responses: pd.DataFrame | None
    parts: pd.DataFrame | None
    classes: pd.DataFrame | None

    @classmethod
    def open(cls, folder: str | Path) -> "Verdicts":
        """What is in the folder of that stage."""
        paths = [Path(folder) / f"{name}.parquet" for name in ("features", "responses", "parts", "classes")]
        return cls(*(pd.read_parquet(path) if path.is_file() else None for path in paths))


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg's q of the tests that could be made; nan for the others."""
    q, made = np.full(len(p), np.nan), np.isfinite(p)
    q[made] = false_discovery_control(p[made])
    return q


def pass_share(passes: np.ndarray) -> dict[str, float | int]:
    """Share of claims that pass as {value, low, high, n}: exact 95 % interval (Clopper-Pearson) over features."""
    passes = np.asarray(passes, bool)
    bounds = binomtest(int(passes.sum()), len(passes)).proportion_ci()
    return {"value": float(passes.mean()), "low": float(bounds.low), "high": float(bounds.high), "n": len(passes)}
