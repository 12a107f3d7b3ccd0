"""Four tiers of what may be said of a feature that claims a part, on half B and on scenes that chose nothing.

1, *suggestive*: its average precision is above that of every null's best feature, and above its own with the masks of
another picture of the same class. 2, *specific*: so is its AUROC within strata of family and cell position, by 0.05 or
more. 3, *causal in the scene*: removing the part takes 0.3 or more of its maximum away at the part's own cells, and
more than removing other parts does there. 4, *replicated*: the best feature of each of two other seeds reaches tier 3.
A null's best is what a dictionary that learned nothing offers for the part by the same rule on half A (the permuted
network on every third picture, with halves of its own). Each p is the largest of its comparisons; tests are at
Benjamini-Hochberg q < 0.05 over claims of one kind. A part's best feature is judged whether or not it is above the bar
that makes a claim (`claims`): the bar is for features that were not looked for.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from aircraft_sae.features import FeatureIndex, Regions, auroc_in_strata, average_precision
from aircraft_sae.features.claims import guessed_in_strata
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.verdicts import CLAIM, Q, adjusted
from aircraft_sae.metrics import Estimate
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

WORDS = {1: "suggestive", 2: "specific", 3: "causal in the scene", 4: "replicated"}
LEAST_GAIN, LEAST_LOSS = 0.05, 0.3
WIDE = 0.2
"""A claim is imprecise where the interval of its AUROC or of its R is wider, or is none."""


@dataclass
class Claimant:
    """A dictionary whose claims are judged, or that stands for nothing learned. claims: feature_id, chosen, part.

    network: whose answers to scene edits its features read; seeds: the other claimants that have to replicate.
    """

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
    best (the first of its part in the list), tier (0 for none) and what `compared` tells; nulls.parquet: the same
    numbers of the nulls' best, without tests.
    """
    rivals, rows = defaultdict(list), []
    for name, null in nulls.items():
        first = null.claims.query("chosen == 'part'").drop_duplicates("part")
        for j, part, found in zip(first["feature_id"], first["part"], measured(null, first, removals), strict=True):
            rivals[part].append(found)
            rows.append((name, part, j, found.ap.value, found.auroc.value, found.R.value))
    columns = ["null", "part", "feature_id", "ap", "auroc", "R"]
    write_parquet(pd.DataFrame(rows, columns=columns), folder / "nulls.parquet")
    tables = []
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
        row[f"{name}_p"] = largest((mine - other).p for other in others)
        row[f"null_{name}"] = largest(getattr(null, name).value for null in nulls)
    row["gain"] = row["auroc"] - row["null_auroc"]
    row["imprecise"] = not all(row[f"{name}_high"] - row[f"{name}_low"] <= WIDE for name in ("auroc", "R"))
    return row


def largest(values: Iterable[float]) -> float:
    """Of those that are numbers; nan where none is."""
    return max((value for value in values if np.isfinite(value)), default=np.nan)


def tiered(table: pd.DataFrame) -> pd.DataFrame:
    """The claims of one claimant with ap_q, auroc_q, R_q, over those of one kind, and tier (0 to 3)."""
    for name in ("ap", "auroc", "R"):
        table[f"{name}_q"] = table.groupby(["chosen", "best"])[f"{name}_p"].transform(lambda p: adjusted(p.to_numpy()))
    passes = [table["ap_q"] < Q]
    passes.append(passes[0] & (table["auroc_q"] < Q) & (table["gain"] >= LEAST_GAIN))
    passes.append(passes[1] & (table["R_q"] < Q) & (table["R"] >= LEAST_LOSS))
    return table.assign(tier=sum(each.astype(int) for each in passes))


def said(parts: pd.DataFrame | None, classes: pd.DataFrame | None) -> pd.DataFrame:
    """What a person is told of each feature that was tested: feature_id, tier, verdict, why (the test that failed).

    parts: of `judge_parts`, claims of one claimant; classes: of `class_verdicts`. A part of tier 2 or more comes first,
    then a class that passes.
    """
    tables = []
    if parts is not None:
        named, tier = parts["part"].str.replace("_", " "), parts["tier"].astype(int)
        what = np.where(tier >= 3, "detector of ", "follows ")
        words = what + named + ", tier " + tier.astype(str) + " (" + tier.map(WORDS).fillna("") + ")"
        why = tier.map({0: "nulls", 1: "strata", 2: "removal", 3: "other seeds", 4: ""})
        facts = {"tier": tier, "verdict": words.where(tier >= 2, "not shown"), "why": why}
        tables.append(parts[["feature_id"]].assign(**facts, order=np.where(tier >= 2, tier, -1)))
    if classes is not None:
        tables.append(
            classes[["feature_id", "verdict", "why"]].assign(tier=0, order=np.where(classes["passes"], 1, -2))
        )
    best = pd.concat(tables).sort_values("order", ascending=False, kind="stable").drop_duplicates("feature_id")
    return best.drop(columns="order")
