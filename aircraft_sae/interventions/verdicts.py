"""Verdicts about classes, the list of what is tested, and the first edition's verdict about parts.

That called a feature the detector of a part (a region of the pictures) only if all of this held, on pictures and scenes
on which nothing was chosen: its AUROC among cells that show any part is at least 0.05 above what the place in the
picture, the outline and the picture's class predict; removing the part takes at least half of its activation, and more
than removing any other part whose edit is of like size or smaller; and two autoencoders from other seeds have it too.
Tests are at Benjamini-Hochberg q < 0.05 over all claims of a list.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest, false_discovery_control

from aircraft_sae.features import Regions, claims_of
from aircraft_sae.features.regions import excess_tests
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import Trial
from aircraft_sae.metrics import bootstrap_counts
from aircraft_sae.pictures import Pictures

LEAST_EXCESS, LEAST_RESPONSE, LEAST_MATCH, LEAST_AUROC, Q = 0.05, 0.5, 0.7, 0.9, 0.05
LEAST_PICTURES, LEAST_SCENES, LEAST_OF_CLASS = 70, 30, 15
"""Pictures and scenes in which a feature is active, pictures of a class: with fewer, a claim is called underpowered."""
N_DRAWS = 2000
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


def strict_verdicts(claims, index, pictures: Pictures, responses: Responses, seed_match) -> pd.DataFrame:
    """The first edition's verdict: feature_id, part, chosen, excess, anywhere (R of all cells), seed_match, strict.

    It asks that a sparse feature beat what knows the outline, and keeps to be compared with tiers.
    """
    pairs = claims[CLAIM].drop_duplicates().itertuples(index=False, name=None)
    excess = excess_tests(index, Regions.of(index, pictures), list(pairs))
    table = part_verdicts(claims, excess, responses, seed_match).rename(columns={"passes": "strict", "R": "anywhere"})
    return table[[*CLAIM, "chosen", "excess", "anywhere", "seed_match", "strict"]]


def part_verdicts(
    claims: pd.DataFrame, excess: pd.DataFrame, responses: Responses, seed_match: np.ndarray | None = None
) -> pd.DataFrame:
    """One row a claim (feature_id, part, …) with each test's numbers, and the verdict.

    excess: `excess_tests` of the claims; seed_match: (d_sae,) cosine with the partners in other seeds, None where the
    dictionary has none, whose claims can then be shown but do not pass.
    Adds R, S with _low and _high (bootstrap over scenes), S_p, excess_q, S_q, n_scenes, a column for each test passed,
    shown (all tests but the seeds'), seed_match, passes, verdict and why (the tests failed).
    """
    table = claims.merge(excess, on=CLAIM, how="left", validate="m:1")
    features, which = np.unique(table["feature_id"].to_numpy(int), return_inverse=True)
    parts = table["part"].map(responses.parts.index).to_numpy()

    def both(counts: np.ndarray | None = None) -> np.ndarray:
        """R and S of the claims, (2, claims) or (2, draws, claims)."""
        response = responses.response(features, counts)
        return np.stack([each[..., parts, which] for each in (response, responses.selectivity(response))])

    whole, n_scenes = both(), len(responses.before)
    draws = [both(bootstrap_counts(n_scenes, 250, (0, start))) for start in range(0, N_DRAWS, 250)]
    draws = np.concatenate(draws, axis=1, dtype=np.float32)
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)  # nan where no scene shows the part
    for name, *values in zip("RS", whole, low, high, strict=True):
        table[[name, f"{name}_low", f"{name}_high"]] = np.transpose(values)
    table["S_p"] = np.where(np.isfinite(whole[1]), ((draws[1] <= 0).sum(0) + 1) / (N_DRAWS + 1), np.nan)
    active = responses.before > 0
    table["n_scenes"] = [active[responses.of_part(part)[1], j].sum() for j, part in table[CLAIM].to_numpy()]
    for name in ("excess", "S"):
        table[f"{name}_q"] = adjusted(table[f"{name}_p"].to_numpy(float))
    table["excess_passes"] = (table["excess"] >= LEAST_EXCESS) & (table["excess_q"] < Q)
    table["response_passes"] = (table["R"] >= LEAST_RESPONSE) & (table["n_scenes"] >= LEAST_SCENES)
    table["selective_passes"] = (table["S"] > 0) & (table["S_q"] < Q)
    tests = {"guesses": "excess_passes", "removal": "response_passes", "other parts": "selective_passes"}
    table["shown"] = table[list(tests.values())].all(axis=1)
    table["seed_match"] = np.nan if seed_match is None else seed_match[table["feature_id"]]
    few = (table["n"] < LEAST_PICTURES) | (table["n_scenes"] < LEAST_SCENES)
    return _worded(table, "part", {name: table[column] for name, column in tests.items()}, few)


def class_verdicts(
    claims: pd.DataFrame, table: pd.DataFrame, trial: Trial, labels: pd.DataFrame, seed_match, directions=None
) -> pd.DataFrame:
    """One row a claim (feature_id) about the class that half A chose, on the level that half A chose.

    table: features.parquet; trial: half B's pictures; labels: a row a picture, a column a level; seed_match: (d_sae,);
    directions: (d_sae, d_in) to take out in place of the decoder's rows.
    A feature passes if its AUROC on B is at least 0.9 (q < 0.05) and suppressing it hurts its class's pictures, more
    than the other classes' logits and more than N_RANDOM random directions of equal length do (p: its rank among these,
    q < 0.05), and two seeds have it.
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
            "level": level, "specificity": ours, "control": null.mean(), "n": len(own),
            "seed_match": seed_match[feature_id], "p": ((null <= ours).sum() + 1) / (n_random + 1),
        })  # fmt: skip
    made = claims.drop(columns="part", errors="ignore").merge(pd.DataFrame(rows), on="feature_id", validate="1:1")
    made["q"] = adjusted(made["p"].to_numpy(float))
    tests = {
        "AUROC": (made["auroc"] >= LEAST_AUROC) & (made["auroc_q"] < Q),
        "suppression": (made["specificity"] < 0) & (made["q"] < Q),
    }
    made["shown"] = tests["AUROC"] & tests["suppression"]
    return _worded(made, "class", tests, made["n"] < LEAST_OF_CLASS)


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


def _worded(table: pd.DataFrame, what: str, tests: dict[str, pd.Series], few: pd.Series) -> pd.DataFrame:
    """The claims with passes, verdict and why, from shown, seed_match (nan where not asked) and each test passed."""
    seeds, said = table["seed_match"], "detector of " + table[what].astype(str).str.replace("_", " ")
    table["passes"] = table["shown"] & (seeds >= LEAST_MATCH)
    otherwise = np.where(few, "underpowered", "not shown")
    otherwise = np.where(table["shown"] & seeds.isna(), "shown, seeds not asked", otherwise)
    table["verdict"] = np.where(table["passes"], said, otherwise)
    tests = tests | {"other seeds": ~(seeds < LEAST_MATCH)}
    table["why"] = ["; ".join(name for name, passed in tests.items() if not passed[i]) for i in table.index]
    return table
