"""Which features are tested, and what may be said of them: detectors of a class, and four tiers for parts.

1. *Suggestive*: average precision on half B exceeds every null's best feature, and the feature's own score against the
   masks of another picture of the same class.
2. *Specific*: AUROC within strata of family and cell position exceeds every null's best feature by 0.05 or more.
3. *Causal in the scene*: in scenes not used for any choice, removing the part takes 0.3 or more of the feature's
   maximum at the part's own cells, and more than removing other parts takes there.
4. *Replicated*: the best features of two other seeds reach tier 3 for the part, too.

A null's best feature for a part is chosen on half A by the same rule (for the permuted network, on every third picture,
with its own halves). Each p is the largest over its comparisons; tests are at Benjamini-Hochberg q < 0.05 over the
claims of one kind. A part's best feature is judged even below the bar of `features.claims`, which is for features not
found by a search.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from aircraft_sae.activations import Activations
from aircraft_sae.features import FeatureIndex, Regions, best_aurocs, claims_of, seed_match
from aircraft_sae.features.claims import auroc_in_strata, average_precision, guessed_in_strata
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import Trial
from aircraft_sae.metrics import Estimate, q_values
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import VariedScenes
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

LEAST_MATCH, LEAST_AUROC, LEAST_GAIN, LEAST_LOSS, Q = 0.7, 0.9, 0.05, 0.3, 0.05
LEAST_OF_CLASS = 15  # with fewer pictures of a class, its claims are underpowered
WIDE = 0.2  # a claim is imprecise if the interval of its AUROC or R is wider than this, or unknown
N_RANDOM = {True: 999, False: 99}  # random directions per feature, with and without a closed form
CLAIM = ["feature_id", "part"]
TOLD = {2: "follows {}, tier 2 (specific)", 3: "detector of {}, tier 3 (causal in the scene)",
        4: "detector of {}, tier 4 (replicated)"}  # fmt: skip
FAILED = {0: "nulls", 1: "strata", 2: "removal", 3: "other seeds", 4: ""}  # the test that a claim of this tier fails


def features_to_test(
    table: pd.DataFrame, scores: pd.DataFrame | None, bars: pd.DataFrame | None, n_matched: int = 100
) -> pd.DataFrame:
    """The features to test, chosen before any test: feature_id, chosen, part.

    chosen "random": 100 live features, equally many from each fifth by density; part is what each claims, or None.
    chosen "part": n_matched features, taking each part's best, second best, … by average precision on half A in turn.
    table: features.parquet; scores, bars: parts.parquet and bars.parquet, None without parts.
    """
    density = table.set_index("feature_id")["density_cell"]
    alive = density[density > 0]
    fifth = pd.qcut(alive.rank(method="first"), min(5, len(alive)), labels=False)
    turn = alive.sample(frac=1, random_state=0).groupby(fifth).cumcount()
    drawn = sorted(turn.sort_values(kind="stable").index[:100])
    part = None if scores is None else claims_of(scores, bars)[drawn].to_numpy()
    lists = [pd.DataFrame({"feature_id": drawn, "chosen": "random", "part": part})]
    if scores is not None:
        ranked = scores.dropna(subset="ap_a").sort_values("ap_a", ascending=False, kind="stable")
        ranked["turn"] = ranked.groupby("part").cumcount()
        lists.append(ranked.sort_values("turn", kind="stable").head(n_matched)[CLAIM].assign(chosen="part"))
    return pd.concat(lists, ignore_index=True)


def class_verdicts(
    features: Sequence[int], table: pd.DataFrame, trial: Trial, labels, seed_match, null_auroc, directions=None
) -> pd.DataFrame:
    """One row per feature: is it a detector of the class that half A chose for it?

    table: features.parquet; trial: half B; labels: a column per level; null_auroc: by (level, class); directions:
    (d_sae, d_in) to suppress in place of the features'.
    class, level, n: the claim, and how many pictures show the class
    auroc, auroc_q, null_auroc: must be at least 0.9, below 0.05, and less than auroc
    specificity, control, p, q: of suppression, which must hurt the class more than other classes and, by rank, more
        than N_RANDOM random directions of the same length (control: their mean)
    seed_match: must be at least 0.7; shown: all other tests passed; verdict; why: the tests that fail
    """
    n_random, facts, rows = N_RANDOM[trial.readout is not None], table.set_index("feature_id"), []
    for feature_id in features:
        level = facts.at[feature_id, "level"]
        name, area, q = (facts.at[feature_id, f"{level}/{each}"] for each in ("class", "auroc", "auroc_q"))
        own = np.flatnonzero(labels[level] == name)
        direction = None if directions is None else directions[feature_id]
        ours, null = (each.mean(0) for each in trial[own].specificity_with_null(feature_id, n_random, direction))
        rows.append({
            "feature_id": feature_id, "class": name, "level": level, "n": len(own), "auroc": area, "auroc_q": q,
            "null_auroc": null_auroc.get((level, name), np.nan), "specificity": ours, "control": null.mean(),
            "p": ((null <= ours).sum() + 1) / (n_random + 1), "seed_match": seed_match[feature_id],
        })  # fmt: skip
    made = pd.DataFrame(rows)
    made["q"] = q_values(made["p"].to_numpy(float))
    passed = pd.DataFrame({
        "AUROC": (made["auroc"] >= LEAST_AUROC) & (made["auroc_q"] < Q) & ~(made["auroc"] <= made["null_auroc"]),
        "suppression": (made["specificity"] < 0) & (made["q"] < Q),
        "other seeds": made["seed_match"] >= LEAST_MATCH,
    })  # fmt: skip
    made["shown"], made["passes"] = passed["AUROC"] & passed["suppression"], passed.all(axis=1)
    otherwise = np.where(made["n"] < LEAST_OF_CLASS, "underpowered", "not shown")
    made["verdict"] = np.where(made["passes"], "detector of " + made["class"].astype(str), otherwise)
    made["why"] = ["; ".join(passed.columns[~row]) for row in passed.to_numpy()]
    return made


def pass_share(passes: np.ndarray) -> dict[str, float | int]:
    """Share of claims that pass, as a result with the exact (Clopper-Pearson) 95 % interval over features."""
    passes = np.asarray(passes, bool)
    bounds = binomtest(int(passes.sum()), len(passes)).proportion_ci()
    return {"value": float(passes.mean()), "low": float(bounds.low), "high": float(bounds.high), "n": len(passes)}


@dataclass
class Claimant:
    """A dictionary and its claims. removed: its activations of scene edits; seeds: those that must agree for tier 4."""

    sae: SparseAutoencoder
    index: FeatureIndex
    claims: pd.DataFrame
    pictures: Pictures
    removed: Activations
    seeds: Sequence[str] = ()


class Measured(NamedTuple):
    """Estimates for a feature and a part; swapped: ap with another picture's masks; others: R of other removals."""

    ap: Estimate
    swapped: Estimate
    auroc: Estimate
    R: Estimate
    others: Estimate


def judge_parts(
    folder: Path, *, claimants: Mapping[str, Claimant], nulls: Mapping[str, Claimant], removals: VariedScenes
) -> None:
    """Judge each claimant's claims against the nulls' best features for each part; removals: scenes without a part.

    tiers.parquet: claimant, feature_id, chosen, part, tier (0 for none), the columns of `compared`, and
        n_random: how many of the claimant's features were drawn at random, with or without a claim
        best: whether the claim is the first for its part; guessed_auroc: AUROC of a guess from outline and class
    """
    rivals, tables = defaultdict(list), []
    for null in nulls.values():
        first = null.claims.query("chosen == 'part'").drop_duplicates("part")
        for part, found in zip(first["part"], measured(null, first, removals), strict=True):
            rivals[part].append(found)
    for name, claimant in claimants.items():
        claims = claimant.claims.dropna(subset="part").drop_duplicates([*CLAIM, "chosen"], ignore_index=True)
        found = measured(claimant, claims, removals)
        numbers = [compared(each, rivals[part]) for part, each in zip(claims["part"], found, strict=True)]
        regions = Regions.of(claimant.index, claimant.pictures)
        guessed = {part: guessed_in_strata(claimant.index, regions, part) for part in claims["part"].unique()}
        tables.append(tiered(claims.join(pd.DataFrame(numbers)).assign(
            claimant=name, n_random=(claimant.claims["chosen"] == "random").sum(),
            best=(claims["chosen"] == "part") & ~claims.duplicated(["chosen", "part"]),
            guessed_auroc=claims["part"].map(guessed),
        )))  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    reached = table[table["best"] & (table["tier"] >= 3)].groupby("claimant")["part"].agg(set)
    for name, claimant in claimants.items():
        if claimant.seeds:
            everywhere = set.intersection(*(reached.get(other, set()) for other in claimant.seeds))
            again = (table["claimant"] == name) & (table["tier"] == 3) & table["part"].isin(everywhere)
            table.loc[again, "tier"] = 4
    write_parquet(table, folder / "tiers.parquet")


def measured(claimant: Claimant, claims: pd.DataFrame, removals: VariedScenes) -> list[Measured]:
    """The estimates behind the tiers, claim by claim."""
    index, regions = claimant.index, Regions.of(claimant.index, claimant.pictures)
    responses = Responses.of(claimant.sae, claimant.removed, removals)
    return [
        Measured(
            average_precision(index, regions, j, part), average_precision(index, regions, j, part, swap=True),
            auroc_in_strata(index, regions, j, part), *responses.at_part(part, j),
        )
        for j, part in claims[CLAIM].itertuples(index=False)
    ]  # fmt: skip


def compared(own: Measured, nulls: Sequence[Measured]) -> dict[str, float]:
    """A claim against the nulls: ap, auroc, R, each with _low, _high and _p; null_ap, … (the nulls' largest); others
    (`Measured`); gain (auroc - null_auroc); imprecise (WIDE); n_scenes (of part and feature).
    """
    row = {"others": own.others.value, "n_scenes": len(own.R.influence)}
    by_others = own.others if np.isfinite(own.others.value) else Estimate(0.0, 0 * own.R.influence)
    rivals = {
        "ap": [own.swapped, *(null.ap for null in nulls)], "auroc": [null.auroc for null in nulls], "R": [by_others],
    }  # fmt: skip
    for name, others in rivals.items():
        mine: Estimate = getattr(own, name)
        row[name], (row[f"{name}_low"], row[f"{name}_high"]) = mine.value, mine.interval
        row[f"{name}_p"] = np.fmax.reduce([np.nan, *((mine - other).p for other in others)])  # nan only where all are
        row[f"null_{name}"] = np.fmax.reduce([np.nan, *(getattr(null, name).value for null in nulls)])
    row["gain"] = row["auroc"] - row["null_auroc"]
    row["imprecise"] = not all(row[f"{name}_high"] - row[f"{name}_low"] <= WIDE for name in ("auroc", "R"))
    return row


def tiered(table: pd.DataFrame) -> pd.DataFrame:
    """One claimant's claims with ap_q, auroc_q, R_q (over the claims of one kind) and tier (0 to 3)."""
    for name in ("ap", "auroc", "R"):
        table[f"{name}_q"] = table.groupby(["chosen", "best"])[f"{name}_p"].transform(lambda p: q_values(p.to_numpy()))
    suggestive = table["ap_q"] < Q
    specific = suggestive & (table["auroc_q"] < Q) & (table["gain"] >= LEAST_GAIN)
    causal = specific & (table["R_q"] < Q) & (table["R"] >= LEAST_LOSS)
    return table.assign(tier=suggestive.astype(int) + specific + causal)


def said(parts: pd.DataFrame | None, classes: pd.DataFrame | None) -> pd.DataFrame:
    """The best verdict on each feature: feature_id, tier, verdict, why; a part of tier 2 or more outranks a class."""
    tables = []
    if parts is not None:
        claims = zip(parts["tier"].astype(int), parts["part"].str.replace("_", " "), strict=True)
        facts = {"verdict": [TOLD.get(tier, "not shown").format(part) for tier, part in claims]}
        tables.append(parts[["feature_id", "tier"]].assign(
            **facts, why=parts["tier"].map(FAILED), order=parts["tier"].where(parts["tier"] >= 2, -1)))  # fmt: skip
    if classes is not None:
        words = classes[["feature_id", "verdict", "why"]]
        tables.append(words.assign(tier=0, order=np.where(classes["passes"], 1, -2)))
    best = pd.concat(tables).sort_values("order", ascending=False, kind="stable").drop_duplicates("feature_id")
    return best.drop(columns="order")


def verdict_tables(
    folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame, others: Sequence[SparseAutoencoder],
    suppressed: pd.DataFrame | None = None, nulls: Sequence[FeatureIndex] = (), tiers: Path | None = None,
    removed: Activations | None = None, removals: VariedScenes | None = None,
) -> None:  # fmt: skip
    """Write features.parquet and, where regions, scenes or classes are known, further tables.

    features.parquet: feature_id; seed_match; suppressed, suppressed_random (its mean absolute specificity, and its
        random direction's); verdict, why
    responses.parquet: `Responses.table`; parts.parquet: tiers.parquet
    classes.parquet, null_classes.parquet: `class_verdicts` of features, and of random directions
    claims: from `features_to_test`; others: autoencoders of other seeds; suppressed: from `suppress_features`, if there
    are classes; nulls: null dictionaries' indexes; tiers: folder of `judge_parts`; removed, removals: as for it.
    """
    match, found = seed_match(trial.sae, others), {}
    table = pd.DataFrame({"feature_id": range(trial.sae.d_sae), "seed_match": match})
    if tiers is not None:
        judged = pd.read_parquet(tiers / "tiers.parquet")
        judged = judged[judged["claimant"] == judged["claimant"].iloc[0]]
        found["parts"] = judged.assign(seed_match=match[judged["feature_id"]])
        write_parquet(Responses.of(trial.sae, removed, removals).table(), folder / "responses.parquet")
    if suppressed is not None and (levels := list(trial.pictures.levels)):
        drawn, labels = claims[claims["chosen"] == "random"], index.images.iloc[index.rows("test")][levels]
        rivals = [best_aurocs(null.maxima(rows), null.images.iloc[rows][levels])
                  for null in nulls for rows in [null.rows("test")]]  # fmt: skip
        best = pd.concat(rivals, axis=1).max(axis=1) if rivals else pd.Series(dtype=float)
        given = drawn["feature_id"], index.table, trial[trial.in_b], labels[trial.in_b], match, best
        found["classes"] = class_verdicts(*given)
        write_parquet(class_verdicts(*given, directions=trial.random), folder / "null_classes.parquet")
        names = {"feature": "suppressed", "random direction": "suppressed_random"}
        table = table.merge(suppressed.rename(columns=names)[["feature_id", *names.values()]], "left", validate="1:1")
    if found:
        table = table.merge(said(found.get("parts"), found.get("classes")), "left", "feature_id", validate="1:1")
    for name, each in (found | {"features": table}).items():
        write_parquet(each, folder / f"{name}.parquet")
