"""Networks compared by what their features respond to, on the same pictures.

Scenes differ in one factor alone (`vary_scenes`). The response of feature j to factor f is the change of its image
maximum, as a share of its range, averaged over the scenes s in which it is active:

    r_jf = E_s |max over cells f_j(s with f changed) - max over cells f_j(s)| / max over pictures f_j

A network's *profile* is the mean of r_jf over features, weighted by activity. Random directions respond too, and more
to larger changes of the picture, so their profile is shown beside it, and a feature is *about* a factor only if the
factor's share of its responses is larger than for 99.5 % of random directions.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from aircraft_sae.activations import Activations
from aircraft_sae.features import FeatureIndex, Regions, best_aurocs, best_estimates, best_matches, halves, part_scores
from aircraft_sae.features.reconstruction import pca, seed_agreement
from aircraft_sae.hangar.scene import FACTORS
from aircraft_sae.metrics import average, bootstrap_counts, point, with_draws, with_interval
from aircraft_sae.networks import Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import EDITS
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet

ALL = (*EDITS, *FACTORS)
MIN_PICTURES = 10  # known scenes that a response needs; a third of all scenes if there are few
BEYOND = 0.995  # a feature must surpass this share of random directions; 5 % of these pass, in one factor or another
RANDOM = "random directions"


@dataclass
class Sensitivity:
    """How features respond. change: {factor: (scenes, d) as a share of the feature's range, nan where unknown}."""

    change: dict[str, np.ndarray]

    @classmethod
    def of(cls, maxima: np.ndarray, table: pd.DataFrame, top: np.ndarray, parts: Sequence[str]) -> "Sensitivity":
        """maxima: (pictures, d) for the rows of `table`, from `VariedScenes`; top: (d,) the features' ranges.

        The part that a feature responds to most is chosen on even scenes, and its response is measured on odd ones.
        """
        shape = table["number"].max() + 1, maxima.shape[1]

        def by_scene(factor: str, part: str) -> np.ndarray:
            own = ((table["factor"] == factor) & (table["part"] == part)).to_numpy()
            found = np.full(shape, np.nan)
            found[table["number"][own]] = maxima[own]
            return found

        before = by_scene("", "")
        before[before == 0] = np.nan  # a silent feature has nothing to lose
        span, even = np.where(top > 0, top, np.nan), np.arange(shape[0]) % 2 == 0
        change = {}
        for factor in ALL:
            own = parts if factor in EDITS else [""]
            each = np.stack([np.abs(by_scene(factor, part) - before) / span for part in own])  # (parts, scenes, d)
            best = np.nan_to_num(means(each[:, even], 1), nan=-1).argmax(0)
            change[factor] = np.take_along_axis(each, best[None, None], 0)[0]
            if factor in EDITS:
                change[factor][even] = np.nan
        return cls(change)

    @property
    def response(self) -> np.ndarray:
        """(d, factors) r_jf, nan where unknown."""
        return np.stack([means(change, 0, self.fewest) for change in self.change.values()], 1)

    @property
    def fewest(self) -> int:
        return min(MIN_PICTURES, len(next(iter(self.change.values()))) // 3)

    def draws(self, mass: np.ndarray) -> dict[str, np.ndarray]:
        """{factor: (501,) mean response weighted by features' mass (d,)}: for all scenes, then 500 bootstraps."""
        found = {}
        for factor, change in self.change.items():
            known = np.isfinite(change)
            own = known.sum(0) >= self.fewest
            weight, change, known = mass[own], np.nan_to_num(change[:, own]), known[:, own].astype(float)
            counts = np.vstack([np.ones(len(known)), bootstrap_counts(len(known), 500)])
            with np.errstate(invalid="ignore"):
                drawn = np.ma.masked_invalid(counts @ change / (counts @ known))
            found[factor] = np.ma.average(drawn, 1, weight).filled(np.nan)
        return found

    def profile(self, mass: np.ndarray, random: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """A row per factor: value, low, high, n; times, …: multiples of random directions' `draws`."""
        rows = []
        for factor, drawn in self.draws(mass).items():
            n = int(np.isfinite(self.change[factor]).any(1).sum())
            own, times = (with_draws(each[0], each[1:], n) for each in (drawn, drawn / random[factor]))
            relative = {"times": times["value"], "times_low": times["low"], "times_high": times["high"]}
            rows.append({"factor": factor} | own | relative)
        return pd.DataFrame(rows)


def means(values: np.ndarray, axis: int, fewest: int = 1) -> np.ndarray:
    """Mean that ignores nan, and is nan where fewer than `fewest` values are known."""
    known = np.isfinite(values).sum(axis)
    return np.where(known >= fewest, np.nansum(values, axis) / np.maximum(known, 1), np.nan)


def shares(response: np.ndarray, random: np.ndarray) -> np.ndarray:
    """(d, factors) each factor's share of a feature's responses, once divided by random directions' mean response."""
    usual = means(random, 0)
    relative = np.nan_to_num(response / np.where(usual > 0, usual, np.nan), nan=0.0)
    return relative / np.maximum(relative.sum(1, keepdims=True), 1e-12)


def about(response: np.ndarray, random: np.ndarray) -> np.ndarray:
    """(d,) the factor whose share is furthest above the BEYOND quantile of random directions; "" if none is above."""
    usual = np.quantile(shares(random, random), BEYOND, axis=0)
    beyond = shares(response, random) / np.where(usual > 0, usual, np.inf)
    return np.where(beyond.max(1) > 1, np.array(ALL)[beyond.argmax(1)], "")


def profile_network(
    folder: Path, *, acts: Activations, varied: Activations, pictures: Pictures, saes: Mapping[str, SparseAutoencoder],
    random: Sequence[SparseAutoencoder],
) -> None:  # fmt: skip
    """What a network's features at one site respond to and show, compared with random directions.

    acts: for `pictures`; varied: for `VariedScenes`; saes: seeds by name; random: two dictionaries of random
    directions, the first as the null, the second to be compared with it as features are.
    features.parquet: dictionary, feature_id, mass (share of all activation), about
    typical.parquet: factor, and the three strongest patches of the first seed's most active feature about it
    profile.parquet: dictionary, and the columns of `Sensitivity.profile`
    scores.parquet: dictionary, measure, value, low, high, n
        mean_ap, n_parts: of the parts' best features, and how many of them beat the null's
        auroc_<level>, probe_<k>: of classes' best features and of `probed`, means over classes; dead, seed_agreement
    """
    first, *others = saes.values()
    parts, dictionaries = list(pictures.region_names), {"null": random[0], RANDOM: random[1], **saes}
    tables, profiles, scores, null, usual = [], [], {}, {}, {}
    for name, sae in dictionaries.items():
        index, changed = (FeatureIndex.of(sae, each, each.rows("test")) for each in (acts, varied))
        mass, top = np.asarray(index.by_cell.sum(axis=0)).ravel(), index.by_cell.max(axis=0).toarray().ravel()
        found = Sensitivity.of(changed.maxima(changed.rows("test")), varied.images, top, parts)
        regions = Regions.of(index, pictures)
        estimates = best_estimates(index, regions, best_matches(part_scores(index, regions)))
        if name == "null":
            null = {"response": found.response, "estimates": estimates}
            continue
        table = pd.DataFrame({"dictionary": name, "feature_id": np.arange(len(mass)), "mass": mass / mass.sum()})
        table["about"] = about(found.response, null["response"])
        tables.append(table)
        usual = usual or found.draws(mass)  # of RANDOM, which comes before features
        profiles.append(found.profile(mass, usual).assign(dictionary=name))
        better = sum((estimates[part] - null["estimates"][part]).interval[0] > 0 for part in estimates)
        maxima, labels = index.maxima(index.rows("test")), index.images.loc[:, list(pictures.levels)]
        scores[name] = {"mean_ap": average(list(estimates.values())).entry, "n_parts": point(better, len(parts))}
        scores[name] |= {"dead": point((mass == 0).mean(), len(mass))} | probed(maxima, labels)
        areas = best_aurocs(maxima, labels).groupby(level=0)
        scores[name] |= {f"auroc_{level}": point(each.mean(), len(each)) for level, each in areas}
        if sae is first:
            write_parquet(typical(table, index), folder / "typical.parquet")
    agreement = [seed_agreement(first.W_dec, other.W_dec)["agreement"] for other in others]
    scores |= {"all": {"seed_agreement": point(np.mean(agreement), len(agreement))}} | baselines(acts, pictures)
    rows = [{"dictionary": name, "measure": each} | own[each] for name, own in scores.items() for each in own]
    write_parquet(pd.DataFrame(rows), folder / "scores.parquet")
    write_parquet(pd.concat(tables, ignore_index=True), folder / "features.parquet")
    write_parquet(pd.concat(profiles, ignore_index=True), folder / "profile.parquet")


def typical(table: pd.DataFrame, index: FeatureIndex) -> pd.DataFrame:
    """The three strongest patches of the most active feature about each factor."""
    best = table[table["about"] != ""].sort_values("mass", ascending=False).drop_duplicates("about")
    columns = ["factor", "image", "row", "column"]
    found = [index.patches(row.feature_id, "top", 3).assign(factor=row.about) for row in best.itertuples()]
    return pd.concat([pd.DataFrame(columns=columns), *found])[columns]


def probed(values: np.ndarray, labels: pd.DataFrame) -> dict[str, dict]:
    """AUROC on half B of logistic regressions on one and on five columns, means over classes of the second level.

    values: (images, d). The columns are those whose standardised class means differ most on half A.
    Source: Gurnee et al. 2023, arXiv 2305.01610, "k-sparse probing".
    """
    own, in_b = labels.iloc[:, 1].to_numpy(), halves(labels.iloc[:, 0])
    values, scores = (values - values.mean(0)) / np.maximum(values.std(0), 1e-9), {1: [], 5: []}
    for member in (own == name for name in np.unique(own)):
        if member[in_b].any() and member[~in_b].any():
            apart = np.abs(values[~in_b & member].mean(0) - values[~in_b & ~member].mean(0))
            for k in scores:
                best = np.argsort(-apart, kind="stable")[:k]
                fitted = LogisticRegression(class_weight="balanced").fit(values[~in_b][:, best], member[~in_b])
                scores[k].append(roc_auc_score(member[in_b], fitted.decision_function(values[in_b][:, best])))
    return {f"probe_{k}": point(np.mean(each), len(each)) for k, each in scores.items()}


def baselines(acts: Activations, pictures: Pictures) -> dict[str, dict[str, dict]]:
    """`probed` with the site's channels and with their principal components, both signs, in place of features."""
    rows, found = acts.rows("test"), {}
    mean, directions = pca(acts, acts.rows("train", "val"), acts.d_in)
    blocks = [block.flatten(1, 2) for block in acts.blocks(rows)]
    labels = acts.images.iloc[rows].loc[:, list(pictures.levels)]
    for name, of in {"channels": blocks, "PCA": [(block - mean) @ directions.t() for block in blocks]}.items():
        extremes = [np.hstack([each.amax(1), (-each).amax(1)]) for each in of]
        found[name] = probed(np.concatenate(extremes), labels)
    return found


def sites_at(network: Network, strides: Sequence[int]) -> dict[int, str]:
    """The last site of each stride, by its alias ("stage3") if it has one; ValueError where a stride is missing."""
    found = {info["reduction"]: info["module"] for info in getattr(network.model, "feature_info", [])}
    if lacking := [stride for stride in strides if stride not in found]:
        raise ValueError(f"{network.name} has no site of stride {lacking[0]}: it has {', '.join(map(str, found))}")
    # the config names sites by alias, and activations are kept by name
    alias = partial(re.sub, r"^stages\.(\d)$", lambda path: f"stage{int(path[1]) + 1}")
    return {stride: alias(found[stride]) for stride in strides}


def common_width(widths: Sequence[int]) -> int:
    """The smallest common multiple of these widths that is at least 1,000: every network gets that many features."""
    step = math.lcm(*widths)
    return step * -(-1000 // step)


def accuracy(acts: Activations, level: str) -> dict[str, float | None]:
    """Test accuracy of a logistic regression on pooled acts, fitted on training pictures."""
    rows, labels = [acts.rows(split) for split in ("train", "test")], acts.images[level].to_numpy()
    train, test = (np.concatenate([block.mean((1, 2)).numpy() for block in acts.blocks(each)]) for each in rows)
    mean, deviation = train.mean(0), np.maximum(train.std(0), 1e-6)
    fitted = LogisticRegression(C=0.1).fit((train - mean) / deviation, labels[rows[0]])
    right = fitted.predict((test - mean) / deviation) == labels[rows[1]]
    return with_interval(right, np.ones(len(right)))
