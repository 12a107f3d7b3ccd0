"""Verdicts: what may be said of a feature, and of how many features drawn at random.

A feature is called the detector of a part only if all of this holds, on pictures and scenes on which nothing was
chosen: its AUROC among cells that show aircraft is at least 0.05 above what the place in the picture, the outline and
the picture's class predict; removing the part takes at least half of its activation, and more than removing any other
part whose edit is of like size or smaller; and two autoencoders from other seeds have it too. Tests are at
Benjamini-Hochberg q < 0.05 over all claims of a list.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, false_discovery_control

from aircraft_sae.features import FeatureIndex, Regions, excess_tests
from aircraft_sae.hangar.solids import PARTS
from aircraft_sae.interventions.editing import FIRST, Responses
from aircraft_sae.interventions.suppression import PooledHead, random_directions, suppress_all
from aircraft_sae.metrics import bootstrap_counts
from aircraft_sae.pictures import AircraftData
from aircraft_sae.sae import SparseAutoencoder

LEAST_EXCESS, LEAST_RESPONSE, LEAST_MATCH, LEAST_AUROC, Q = 0.05, 0.5, 0.7, 0.9, 0.05
LEAST_PICTURES, LEAST_SCENES, LEAST_OF_CLASS = 70, 30, 15
"""Pictures and scenes in which a feature is active, pictures of a class: with fewer, a claim is called underpowered."""
N_DRAWS, N_RANDOM = 2000, 999
TESTS = {"excess_passes": "guesses", "response_passes": "removal", "selective_passes": "other parts"}


def frozen_list(
    table: pd.DataFrame, scores: pd.DataFrame | None = None, n_random: int = 100, n_matched: int = 100, seed: int = 0
) -> pd.DataFrame:
    """The features to test, chosen before any test: feature_id, chosen ("random" or "part"), part.

    "random": as many from each fifth of the living features by density, part that of the largest excess on half A;
    "part": the best of each part by average precision on half A in turn. table: features.parquet; scores:
    parts.parquet, None for no parts.
    """
    alive = table[table["density_cell"] > 0]
    fifth = pd.qcut(alive["density_cell"].rank(method="first"), min(5, len(alive)), labels=False)
    shuffled = alive.sample(frac=1, random_state=seed)
    turn = shuffled.groupby(fifth).cumcount().sort_values(kind="stable")
    drawn = sorted(turn.index[:n_random])
    part = table["part"] if scores is not None else pd.Series(None, table.index, dtype=object)
    lists = [pd.DataFrame({"feature_id": drawn, "chosen": "random", "part": part[drawn].to_numpy()})]
    if scores is not None:
        ranked = scores.dropna(subset="ap_a").sort_values("ap_a", ascending=False, kind="stable")
        ranked["turn"] = ranked.groupby("part").cumcount()
        best = ranked.sort_values("turn", kind="stable").head(n_matched)
        lists.append(best[["feature_id", "part"]].assign(chosen="part"))
    return pd.concat(lists, ignore_index=True)


def judge(
    dictionary: SparseAutoencoder,
    index: FeatureIndex,
    claims: pd.DataFrame,
    data: AircraftData,
    removals: str | Path,
    network: str = "trained",
    seed_match: np.ndarray | None = None,
) -> pd.DataFrame:
    """`part_verdicts` of claims about a dictionary's features, on half B of the test pictures and on scene edits.

    index: of the dictionary; removals: what `edit_scenes` wrote for "remove", with acts of `network`.
    """
    pairs = list(claims[["feature_id", "part"]].itertuples(index=False))
    excess = excess_tests(index, Regions.of(index, data), pairs)
    return part_verdicts(claims, excess, Responses.of(dictionary, removals, network), seed_match)


def part_verdicts(
    claims: pd.DataFrame,
    excess: pd.DataFrame,
    responses: Responses,
    seed_match: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a claim (feature_id, part, …) with each test's numbers, and the verdict.

    excess: `excess_tests` of the same claims, in order; seed_match: (d_sae,) cosine with the partners in other seeds,
    None where the dictionary has none, whose claims can then be shown but do not pass.
    Adds R, S with _low and _high (bootstrap over scenes), S_p, excess_q, S_q, n_scenes, seed_match, a column for each
    test passed, shown (all tests but the seeds'), passes, verdict and why (the tests failed).
    """
    features, which = np.unique(claims["feature_id"].to_numpy(int), return_inverse=True)
    parts = claims["part"].map(PARTS[FIRST:].index).to_numpy()
    response = responses.response(features)
    whole = response[parts, which], responses.selectivity(response)[parts, which]
    draws = np.empty((2, N_DRAWS, len(claims)), np.float32)
    for start in range(0, N_DRAWS, 250):  # as many draws at a time: 250 x 12 x features
        counts = bootstrap_counts(len(responses.before), 250, (seed, start))
        drawn = responses.response(features, counts)
        for kind, values in enumerate((drawn, responses.selectivity(drawn))):
            draws[kind, start : start + 250] = values[:, parts, which]
    table = claims.reset_index(drop=True).join(excess.drop(columns=["feature_id", "part"]).reset_index(drop=True))
    for name, value, values in zip("RS", whole, draws, strict=True):
        seen = np.isfinite(value)
        bounds = np.full((2, len(claims)), np.nan)
        bounds[:, seen] = np.quantile(np.nan_to_num(values[:, seen]), [0.025, 0.975], axis=0)
        table[name], table[f"{name}_low"], table[f"{name}_high"] = value, *bounds
    table["S_p"] = np.where(np.isfinite(whole[1]), ((draws[1] <= 0).sum(0) + 1) / (N_DRAWS + 1), np.nan)
    scenes = {part: responses.of_part(part)[1] for part in table["part"].unique()}
    active = responses.before > 0
    table["n_scenes"] = [int(active[scenes[part], j].sum()) for j, part in claims[["feature_id", "part"]].to_numpy()]
    for name in ("excess", "S"):
        table[f"{name}_q"] = adjusted(table[f"{name}_p"].to_numpy(float))
    table["excess_passes"] = (table["excess"] >= LEAST_EXCESS) & (table["excess_q"] < Q)
    table["response_passes"] = (table["R"] >= LEAST_RESPONSE) & (table["n_scenes"] >= LEAST_SCENES)
    table["selective_passes"] = (table["S"] > 0) & (table["S_q"] < Q)
    table["shown"] = table[list(TESTS)].all(axis=1)
    table["seed_match"] = np.nan if seed_match is None else seed_match[table["feature_id"]]
    table["passes"] = table["shown"] & (table["seed_match"] >= LEAST_MATCH)
    failed = {title: ~table[name] for name, title in TESTS.items()}
    if seed_match is not None:
        failed["other seeds"] = table["seed_match"] < LEAST_MATCH
    table = _worded(table, "part", failed, (table["n"] < LEAST_PICTURES) | (table["n_scenes"] < LEAST_SCENES))
    if seed_match is None:
        table.loc[table["shown"], "verdict"] = "shown, seeds not asked"
    return table


@torch.no_grad()
def class_verdicts(
    claims: pd.DataFrame,
    table: pd.DataFrame,
    head: PooledHead,
    pooled: torch.Tensor,
    removed: torch.Tensor,
    directions: torch.Tensor,
    covariance: torch.Tensor,
    truth: torch.Tensor,
    labels: dict,
    seed_match: np.ndarray,
    n_random: int = N_RANDOM,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a claim (feature_id) about the class that half A chose, on the level that half A chose.

    table: features.parquet; pooled: (n, d_in), removed: (n, d_sae) mean activations, truth: (n,) indices of classes,
    all of the pictures of half B; directions: (d_sae, d_in); covariance: (d_in, d_in) of cells; labels: level ->
    (n,) names.
    A feature passes if its AUROC on B is at least 0.9 (q < 0.05) and suppressing it hurts its class's pictures, more
    than the other classes' logits and more than `n_random` random directions of equal length do (p: its rank among
    these, q < 0.05), and two seeds have it.
    """
    rows = []
    for feature_id in claims["feature_id"]:
        level = table.at[feature_id, "level"]
        own = np.flatnonzero(np.asarray(labels[level]) == table.at[feature_id, f"{level}/class"])
        known = {name: table.at[feature_id, f"{level}/{name}"] for name in ("class", "auroc", "auroc_q")}
        random = random_directions(directions[feature_id].expand(n_random, -1), covariance, (seed, feature_id))
        both = torch.cat([directions[feature_id][None], random])
        effect = suppress_all(head, pooled[own], removed[own, feature_id, None].expand(-1, len(both)), both, truth[own])
        ours, null = np.split(effect["specificity"].mean(0), [1])
        rows.append(known | {
            "level": level, "specificity": ours[0], "control": null.mean(), "n": len(own),
            "seed_match": seed_match[feature_id], "p": ((null <= ours[0]).sum() + 1) / (n_random + 1),
        })  # fmt: skip
    made = claims.drop(columns="part", errors="ignore").reset_index(drop=True).join(pd.DataFrame(rows))
    made["q"] = adjusted(made["p"].to_numpy(float))
    failed = {
        "AUROC": ~((made["auroc"] >= LEAST_AUROC) & (made["auroc_q"] < Q)),
        "suppression": ~((made["specificity"] < 0) & (made["q"] < Q)),
        "other seeds": made["seed_match"] < LEAST_MATCH,
    }
    made["shown"] = ~(failed["AUROC"] | failed["suppression"])
    made["passes"] = made["shown"] & ~failed["other seeds"]
    return _worded(made, "class", failed, made["n"] < LEAST_OF_CLASS)


def adjusted(p: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg's q of the tests that could be made; nan for the others."""
    q, made = np.full(len(p), np.nan), np.isfinite(p)
    if made.any():
        q[made] = false_discovery_control(p[made])
    return q


def pass_share(passes: np.ndarray) -> dict[str, float | int]:
    """Share of claims that pass as {value, low, high, n}: exact 95 % interval (Clopper-Pearson) over features.

    Raises: ValueError for no claim.
    """
    passes = np.asarray(passes, bool)
    if not len(passes):
        raise ValueError("a share needs at least one claim, got none")
    bounds = binomtest(int(passes.sum()), len(passes)).proportion_ci()
    return {"value": float(passes.mean()), "low": float(bounds.low), "high": float(bounds.high), "n": len(passes)}


def _worded(table: pd.DataFrame, what: str, failed: dict[str, pd.Series], few: pd.Series) -> pd.DataFrame:
    said = "detector of " + table[what].astype(str).str.replace("_", " ")
    table["verdict"] = np.where(table["passes"], said, np.where(few, "underpowered", "not shown"))
    table["why"] = ["; ".join(name for name, column in failed.items() if column[i]) for i in table.index]
    return table
