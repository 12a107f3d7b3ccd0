"""What is tested, and verdicts: about classes, and four tiers of what may be said of a feature that claims a part.

1, *suggestive*: its average precision on half B is above that of every null's best feature, and above its own with the
masks of another picture of the same class. 2, *specific*: so is its AUROC within strata of family and cell position, by
0.05 or more. 3, *causal in the scene*: removing the part, in scenes that chose nothing, takes 0.3 or more of its
maximum away at the part's own cells, and more than removing other parts does there. 4, *replicated*: the best
feature of each of two other seeds reaches tier 3.
A null's best is what a dictionary that learned nothing offers for the part by the same rule on half A (the permuted
network on every third picture, with halves of its own). Each p is the largest of its comparisons; tests are at
Benjamini-Hochberg q < 0.05 over claims of one kind. A part's best feature is judged whether or not it is above the bar
that makes a claim (`claims`): the bar is for features that were not looked for.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from aircraft_sae.features import FeatureIndex, Regions, best_aurocs, claims_of, seed_match
from aircraft_sae.features.claims import auroc_in_strata, average_precision, guessed_in_strata
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import Trial
from aircraft_sae.metrics import Estimate, adjusted
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

LEAST_MATCH, LEAST_AUROC, Q = 0.7, 0.9, 0.05
LEAST_OF_CLASS = 15  # pictures of a class, else underpowered
N_RANDOM = {True: 999, False: 99}  # directions beside a feature, with and without a closed form
CLAIM = ["feature_id", "part"]
WORDS = {1: "suggestive", 2: "specific", 3: "causal in the scene", 4: "replicated"}
LEAST_GAIN, LEAST_LOSS = 0.05, 0.3
WIDE = 0.2  # a claim is imprecise where the interval of its AUROC or of its R is wider, or is none


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
    null_auroc: of every null's best feature for the class, by (level, class); directions: (d_sae, d_in) to take out.
    A feature passes if its AUROC on B is at least 0.9 (q < 0.05) and above null_auroc, and suppressing it hurts its
    class's pictures, more than other classes' logits and than N_RANDOM random directions of equal length do (p: its
    rank among these, q < 0.05), and two seeds have it.
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
        "other seeds": ~(made["seed_match"] < LEAST_MATCH),
    }
    made["shown"] = tests["AUROC"] & tests["suppression"]
    made["passes"] = made["shown"] & (made["seed_match"] >= LEAST_MATCH)
    otherwise = np.where(made["n"] < LEAST_OF_CLASS, "underpowered", "not shown")
    made["verdict"] = np.where(made["passes"], "detector of " + made["class"].astype(str), otherwise)
    made["why"] = ["; ".join(name for name, passed in tests.items() if not passed[i]) for i in made.index]
    return made


@dataclass
class Verdicts:
    """What `verdict_tables` found: without regions, scenes or classes some of it is None.

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


def pass_share(passes: np.ndarray) -> dict[str, float | int]:
    """Share of claims that pass as {value, low, high, n}: exact 95 % interval (Clopper-Pearson) over features."""
    passes = np.asarray(passes, bool)
    bounds = binomtest(int(passes.sum()), len(passes)).proportion_ci()
    return {"value": float(passes.mean()), "low": float(bounds.low), "high": float(bounds.high), "n": len(passes)}


@dataclass
class Claimant:
    """A dictionary whose claims are judged; network: that its edited scenes are seen by; seeds: that have to agree."""

    sae: SparseAutoencoder
    index: FeatureIndex
    claims: pd.DataFrame
    pictures: Pictures
    network: str = "trained"
    seeds: Sequence[str] = ()


class Measured(NamedTuple):
    """Of one feature and part; swapped: ap with another picture's masks; others: R when other parts are removed."""

    ap: Estimate
    swapped: Estimate
    auroc: Estimate
    R: Estimate
    others: Estimate


def judge_parts(
    folder: Path, *, claimants: Mapping[str, Claimant], nulls: Mapping[str, Claimant], removals: Path
) -> None:
    """Each claimant's claims beside the nulls' first claim of each part; removals: of `edit_scenes`.

    tiers.parquet, a row a claim: claimant, n_random (its features drawn at random, whether or not they claim a part),
    best (the first of its part in the list), tier (0 for none) and what `compared` tells.
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
        table = claims.join(pd.DataFrame(numbers))
        regions = Regions.of(claimant.index, claimant.pictures)
        guessed = {part: guessed_in_strata(claimant.index, regions, part) for part in claims["part"].unique()}
        table["guessed_auroc"] = table["part"].map(guessed)
        table.insert(0, "claimant", name)
        table["n_random"] = (claimant.claims["chosen"] == "random").sum()
        table["best"] = (claims["chosen"] == "part") & ~claims.duplicated(["chosen", "part"])
        tables.append(tiered(table))
    table = pd.concat(tables, ignore_index=True)
    reached = table[table["best"] & (table["tier"] >= 3)].groupby("claimant")["part"].agg(set)
    for name, claimant in claimants.items():
        if claimant.seeds:
            everywhere = set.intersection(*(reached.get(other, set()) for other in claimant.seeds))
            again = (table["claimant"] == name) & (table["tier"] == 3) & table["part"].isin(everywhere)
            table.loc[again, "tier"] = 4
    write_parquet(table, folder / "tiers.parquet")


def measured(claimant: Claimant, claims: pd.DataFrame, removals: Path) -> list[Measured]:
    """What tiers are made of, claim by claim."""
    index, regions = claimant.index, Regions.of(claimant.index, claimant.pictures)
    responses = Responses.of(claimant.sae, removals, claimant.network)
    return [
        Measured(
            average_precision(index, regions, j, part), average_precision(index, regions, j, part, swap=True),
            auroc_in_strata(index, regions, j, part), *responses.at_part(part, j),
        )
        for j, part in claims[CLAIM].itertuples(index=False)
    ]  # fmt: skip


def compared(own: Measured, nulls: Sequence[Measured]) -> dict[str, float]:
    """ap, auroc, R with _low, _high and _p; the nulls' largest null_ap, null_auroc, null_R; swapped, others; imprecise.

    gain: auroc less the nulls' largest; n: pictures; n_scenes: those that show the part and in which it is active.
    """
    row = {"swapped": own.swapped.value, "others": own.others.value, "n": len(own.ap.influence)}
    row["n_scenes"] = len(own.R.influence)
    by_others = own.others if np.isfinite(own.others.value) else Estimate(0.0, 0 * own.R.influence)
    rivals = {
        "ap": [own.swapped, *(null.ap for null in nulls)], "auroc": [null.auroc for null in nulls], "R": [by_others],
    }  # fmt: skip
    for name, others in rivals.items():
        mine: Estimate = getattr(own, name)
        row[name], (row[f"{name}_low"], row[f"{name}_high"]) = mine.value, mine.interval
        # the largest that is known
        row[f"{name}_p"] = np.fmax.reduce([np.nan, *((mine - other).p for other in others)])
        row[f"null_{name}"] = np.fmax.reduce([np.nan, *(getattr(null, name).value for null in nulls)])
    row["gain"] = row["auroc"] - row["null_auroc"]
    row["imprecise"] = not all(row[f"{name}_high"] - row[f"{name}_low"] <= WIDE for name in ("auroc", "R"))
    return row


def tiered(table: pd.DataFrame) -> pd.DataFrame:
    """The claims of one claimant with ap_q, auroc_q, R_q, over those of one kind, and tier (0 to 3)."""
    for name in ("ap", "auroc", "R"):
        table[f"{name}_q"] = table.groupby(["chosen", "best"])[f"{name}_p"].transform(lambda p: adjusted(p.to_numpy()))
    passes = [table["ap_q"] < Q]
    passes.append(passes[0] & (table["auroc_q"] < Q) & (table["gain"] >= LEAST_GAIN))
    passes.append(passes[1] & (table["R_q"] < Q) & (table["R"] >= LEAST_LOSS))
    return table.assign(tier=sum(each.astype(int) for each in passes))


def said(parts: pd.DataFrame | None, classes: pd.DataFrame | None) -> pd.DataFrame:
    """What is told of each tested feature: feature_id, tier, verdict, why not more; a part of tier 2 goes first."""
    tables = []
    if parts is not None:
        named, tier = parts["part"].str.replace("_", " "), parts["tier"].astype(int)
        what = np.where(tier >= 3, "detector of ", "follows ")
        words = what + named + ", tier " + tier.astype(str) + " (" + tier.map(WORDS).fillna("") + ")"
        why = tier.map({0: "nulls", 1: "strata", 2: "removal", 3: "other seeds", 4: ""})
        facts = {"tier": tier, "verdict": words.where(tier >= 2, "not shown"), "why": why}
        tables.append(parts[["feature_id"]].assign(**facts, order=np.where(tier >= 2, tier, -1)))
    if classes is not None:
        words = classes[["feature_id", "verdict", "why"]]
        tables.append(words.assign(tier=0, order=np.where(classes["passes"], 1, -2)))
    best = pd.concat(tables).sort_values("order", ascending=False, kind="stable").drop_duplicates("feature_id")
    return best.drop(columns="order")


def verdict_tables(
    folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame, others: Sequence[SparseAutoencoder],
    suppressed: pd.DataFrame | None = None, nulls: Sequence[FeatureIndex] = (), tiers: Path | None = None,
    removals: Path | None = None,
) -> None:  # fmt: skip
    """What may be said of the features: the tables that `Verdicts` opens, and null_classes.parquet.

    claims: of `frozen_list`; others: autoencoders of other seeds; suppressed: features.parquet of `suppress_features`,
    None for no classes; nulls: indexes of what learned nothing; tiers, removals: of `judge_parts` and `edit_scenes`, or
    None. null_classes: the claims about classes, with a random direction in each feature's place.
    """
    match, found = seed_match(trial.sae, others), {}
    table = pd.DataFrame({"feature_id": range(trial.sae.d_sae), "seed_match": match})
    if tiers is not None and removals is not None:
        responses = Responses.of(trial.sae, removals)
        judged = pd.read_parquet(tiers / "tiers.parquet")
        judged = judged[judged["claimant"] == judged["claimant"].iloc[0]]
        found["parts"] = judged.assign(seed_match=match[judged["feature_id"]])
        write_parquet(responses.table(), folder / "responses.parquet")
    if suppressed is not None and (levels := list(trial.pictures.levels)):
        drawn, labels = claims[claims["chosen"] == "random"], index.images.iloc[index.rows("test")][levels]
        test = [(null, null.rows("test")) for null in nulls]
        rivals = [best_aurocs(null.maxima(rows), null.images.iloc[rows][levels]) for null, rows in test]
        best = pd.concat(rivals, axis=1).max(axis=1) if rivals else pd.Series(dtype=float)
        given = drawn, index.table, trial[trial.in_b], labels[trial.in_b], match, best
        found["classes"] = class_verdicts(*given)
        write_parquet(class_verdicts(*given, directions=trial.random), folder / "null_classes.parquet")
        names = {"feature": "suppressed", "random direction": "suppressed_random"}
        table = table.merge(suppressed.rename(columns=names)[["feature_id", *names.values()]], "left", validate="1:1")
    if found:
        table = table.merge(said(found.get("parts"), found.get("classes")), "left", "feature_id", validate="1:1")
    for name, each in (found | {"features": table}).items():
        write_parquet(each, folder / f"{name}.parquet")
