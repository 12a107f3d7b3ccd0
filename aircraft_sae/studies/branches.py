"""Branch specialisation: do features of an Inception block live in one of its branches, and does it last across layers?

The acts of a block are its branches' channels side by side; a feature's decoder row d_i has a part d_i[b] in each.
Source: Bozoukov 2025, arXiv 2504.11489, with the nulls that it lacks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array, save_npz, vstack
from scipy.stats import contingency, random_table
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from aircraft_sae.activations import Activations, effective_radius, gradient_maps
from aircraft_sae.config import change
from aircraft_sae.features import halves
from aircraft_sae.features.reconstruction import random_dictionaries
from aircraft_sae.features.regions import selectivity
from aircraft_sae.metrics import adjusted, point, with_draws, with_interval
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import EDITS, VariedScenes
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.comparison import ALL, BEYOND, FEWEST, Sensitivity, about, correlations, shares
from aircraft_sae.studies.curves import batches

BRANCHES = ("1x1", "3x3", "5x5", "pool")
SPECIAL = 0.001
"""Share of what chance gives that may be as large, at most: of permutations, in `circuits` of others' effects."""
Groups = Mapping[str, slice]


def contribution(W_dec: np.ndarray, groups: Groups, squared: bool = False) -> pd.DataFrame:
    """(d_sae, branches) the share of each branch in each decoder row.

    ||relu(d_i[b])|| / ||relu(d_i)||, the paper's; or with `squared` ||d_i[b]||^2 / ||d_i||^2, which adds up to 1.
    """
    squares = np.square(W_dec if squared else np.maximum(W_dec, 0))
    squares = squares / np.maximum(squares.sum(1, keepdims=True), 1e-12)
    found = pd.DataFrame({name: squares[:, own].sum(1) for name, own in groups.items()})
    return found if squared else np.sqrt(found)


def excess(W_dec: np.ndarray, groups: Groups) -> pd.DataFrame:
    """(d_sae, branches) how far the square of the paper's contribution is above chance, in chance's deviations.

    Chance: as many of the row's channels drawn at random; its mean and variance are those of sampling without
    replacement, n / d and n (d - n) / (d - 1) Var(w), where w are the channels' shares of the row's square.
    """
    squares, d, found = np.square(np.maximum(W_dec, 0)), W_dec.shape[1], {}
    squares = squares / np.maximum(squares.sum(1, keepdims=True), 1e-12)
    for name, own in groups.items():
        n = own.stop - own.start
        spread = np.sqrt(n * (d - n) / (d - 1) * squares.var(1))
        found[name] = (squares[:, own].sum(1) - n / d) / np.maximum(spread, 1e-9)
    return pd.DataFrame(found)


def equalised(groups: Groups, even: bool = True, seed: int = 0) -> tuple[np.ndarray, dict[str, slice]]:
    """(channels, groups among them): of each branch as many, drawn at random, as the narrowest has.

    Not even: as many channels in all, in the proportions of the branches.
    """
    rng, widths = np.random.default_rng(seed), np.array([own.stop - own.start for own in groups.values()])
    least = widths.min()
    wanted = np.full(len(widths), least) if even else (widths * len(widths) * least / widths.sum()).round().astype(int)
    drawn = [np.sort(rng.choice(np.arange(own.start, own.stop), n, False))
             for own, n in zip(groups.values(), wanted, strict=True)]  # fmt: skip
    ends = np.cumsum(wanted).tolist()
    return np.concatenate(drawn), {name: slice(end - n, end) for name, end, n in zip(groups, ends, wanted, strict=True)}


def by_chance(W_dec: np.ndarray, groups: Groups, n_draws: int = 9999, seed: int = 0) -> pd.DataFrame:
    """(d_sae, branches) p: in how many of n_draws permutations of the row's channels a branch has as much of the row.

    1 where the share is less than two deviations above chance, which is seldom as rare as SPECIAL.
    """
    far, squares = excess(W_dec, groups), np.square(np.maximum(W_dec, 0)).astype(np.float32)
    drawn, found = _drawn(n_draws, W_dec.shape[1], tuple(own.stop - own.start for own in groups.values()), seed), {}
    for (name, own), chosen in zip(groups.items(), drawn, strict=True):
        found[name], some = np.ones(len(W_dec)), (far[name] > 2).to_numpy()
        least = squares[some][:, own].sum(1) * (1 - 1e-5)
        found[name][some] = (1 + (squares[some] @ chosen.T >= least[:, None]).sum(1)) / (1 + n_draws)
    return pd.DataFrame(found)


def specialised(p: pd.DataFrame) -> pd.DataFrame:
    """(d_sae, branches) bool: p at most SPECIAL, at a false discovery rate of 5 % (Benjamini-Hochberg, over features).

    With p from 9,999 draws, fewer than one feature in 500 cannot be found.
    """
    return (p <= SPECIAL) & p.apply(lambda own: adjusted(own.to_numpy()) <= 0.05)


@lru_cache(maxsize=2)
def _drawn(n: int, d: int, widths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    """For each width (n, d), in each row as many ones at random: no channel is in two of them."""
    order = np.random.default_rng(seed).random((n, d), np.float32).argsort(1)
    chosen = [np.zeros((n, d), np.float32) for _ in widths]
    for each, columns in zip(chosen, np.split(order, np.cumsum(widths)[:-1], axis=1), strict=True):
        np.put_along_axis(each, columns, 1, 1)
    return chosen


def home(W_dec: np.ndarray, groups: Groups) -> np.ndarray:
    """(d_sae,) the branch that has most of each row beyond chance, specialised or not."""
    return np.array(list(groups))[excess(W_dec, groups).to_numpy().argmax(1)]


def information(category: np.ndarray, branch: np.ndarray, n_permuted: int = 1000, seed: int = 0) -> dict:
    """Mutual information of two labels, (n,) each, in nats, beside permuted ones: value, p, null (a result), table.

    table: counts of category by branch, and what independence would give, in columns "<branch>", "<branch>, expected".
    """
    if not len(branch):
        return {"value": 0.0, "p": 1.0, "null": point(0.0, 0), "table": pd.DataFrame()}
    counts = pd.crosstab(category, branch)
    expected = pd.DataFrame(contingency.expected_freq(counts), counts.index, [f"{name}, expected" for name in counts])
    chance = expected.to_numpy() / len(branch)

    def mutual(counts: np.ndarray) -> np.ndarray:
        joint = counts / len(branch)
        return (joint * np.log(np.maximum(joint, 1e-12) / chance)).sum((-2, -1))

    value, null = mutual(counts.to_numpy()), mutual(_permuted(counts.to_numpy(), n_permuted, seed))
    p = (1 + (null >= value - 1e-9).sum()) / (1 + n_permuted)
    return {"value": value, "p": p, "null": with_draws(null.mean(), null, len(branch)), "table": counts.join(expected)}


def content(features: pd.DataFrame, branch: str = "5x5") -> tuple[str, dict, dict]:
    """(factor, its share at home in a branch, its share elsewhere): what features of the branch lean to more.

    features: feature_id, leaning, home. The factor is chosen on even ids, by the largest difference; odd ones count.
    """
    chosen_on, counted = (features[features["feature_id"] % 2 == half] for half in (0, 1))
    often = pd.crosstab(chosen_on["leaning"], chosen_on["home"] == branch, normalize="columns")
    often = often.reindex(columns=[True, False], fill_value=0.0)
    factor = (often[True] - often[False]).idxmax() if len(often) else "nothing"
    parts = (counted["leaning"][(counted["home"] == branch) == here] == factor for here in (True, False))
    here, elsewhere = (with_interval(part, np.ones(len(part))) if len(part) else point(0.0, 0) for part in parts)
    return factor, here, elsewhere


def _permuted(counts: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, …) tables of counts as they would be with one of the two labels permuted."""
    if min(counts.shape) < 2:  # nothing can change, and scipy's table is wrong
        return np.tile(counts, (n, 1, 1))
    return random_table(counts.sum(1), counts.sum(0), seed=seed).rvs(n)


@torch.no_grad()
def see_maxima(
    network: Network, saes: Mapping[str, SparseAutoencoder], pictures: Pictures, split: str = "test"
) -> dict[str, csr_array]:
    """(pictures, d_sae) largest activation of each feature of dictionaries, by name, each at its own site.

    One pass over the pictures of a split, and no map is kept.
    """
    names, found = pictures.rows(split)["image"].tolist(), {name: [] for name in saes}
    sites = list(dict.fromkeys(sae.cfg.site for sae in saes.values()))
    for x in tqdm(batches(network, pictures, names), "features of pictures", -(-len(names) // BATCH), leave=False):
        (seen,) = network.stream([x], sites, logits=False)  # one by one: coding takes longer, and all threads
        for name, sae in saes.items():
            acts = seen.acts[sae.cfg.site]
            codes, top = sae.encode(acts.flatten(0, 2)), torch.zeros(len(acts), sae.d_sae)
            at = codes.cells // acts[0, ..., 0].numel() * sae.d_sae + codes.features
            found[name].append(
                csr_array(top.view(-1).scatter_reduce_(0, at, codes.values, "amax").view_as(top).numpy())
            )
    return {name: vstack(each, "csr") for name, each in found.items()}


def random_thousand(sae: SparseAutoencoder, acts: Activations) -> SparseAutoencoder:
    """At least 1,000 random directions, if there are as many features, active as often as features are."""
    expansion = min(sae.cfg.expansion, -(-1000 // sae.d_in))
    k = max(1, round(sae.cfg.k * expansion / sae.cfg.expansion))
    like = SparseAutoencoder(change(sae.cfg, expansion=expansion, k=k, tied=False, aux_k=0), sae.d_in)
    return random_dictionaries(like, acts, (0,))[0]


def see_blocks(
    folder: Path, *, network: Network, pictures: Pictures, saes: Mapping[str, SparseAutoencoder],
    random: Mapping[str, SparseAutoencoder], varied: VariedScenes | None = None,
) -> None:  # fmt: skip
    """What the features of several sites are about, from test pictures and from scenes in which one thing is changed.

    saes: by name; random: random directions of the same sites, by the same names; these become dictionaries
    "<name>-random". <dictionary>.npz: (test pictures, d) image maxima. features.parquet: dictionary, feature_id, mass
    (mean of its maxima), leaning and about. leaning: the factor that has the largest of its `shares`, "unknown" unless
    the responses to all factors but EDITS are known. about: the factor that it is `about`; else the level of classes
    that it is placed at, where its AUROC stands out more than BEYOND of random directions'; else "unknown". Without
    scenes, leaning is the level whose class stands out most; without classes, "unknown".
    """
    both = dict(saes) | {f"{name}-random": sae for name, sae in random.items()}
    test = see_maxima(network, both, pictures)
    edited = see_maxima(network, both, varied) if varied else {}
    rows, tables = pictures.rows("test"), []
    labels = {level: (pd.Categorical(rows[level], pictures.classes(level)).codes, pictures.classes(level))
              for level in pictures.levels}  # fmt: skip
    for name, maxima in test.items():
        save_npz(folder / f"{name}.npz", maxima)
    for name in saes:
        names, responses, selective = (name, f"{name}-random"), [], []
        for each in names:
            maxima = test[each].toarray()
            nothing = pd.DataFrame({"level": "unknown", "placed": "none"}, np.arange(maxima.shape[1]))
            selective.append(selectivity(maxima, labels, halves(rows[pictures.levels[0]])) if labels else nothing)
            if varied:
                parts = pictures.region_names
                responses.append(Sensitivity.of(edited[each].toarray(), varied.table, maxima.max(0), parts).response)
        stand_out = [each.filter(regex="/auroc_z$").max(axis=1).fillna(0) for each in selective]
        for i, each in enumerate(names):
            placed = selective[i]["placed"].where(stand_out[i] > stand_out[1].quantile(BEYOND), "none")
            facts = {"dictionary": each, "feature_id": np.arange(len(placed)), "mass": test[each].mean(axis=0)}
            facts |= {"leaning": selective[i]["level"], "about": placed.replace("none", "unknown")}
            if varied:
                relative, factor = shares(responses[i], responses[1]), about(responses[i], responses[1])
                known = np.isfinite(responses[i][:, len(EDITS) :]).all(1)
                facts["leaning"] = np.where(known, np.array(ALL)[relative.argmax(1)], "unknown")
                facts["about"] = np.where(factor != "", factor, facts["about"])
            tables.append(pd.DataFrame(facts))
    write_parquet(pd.concat(tables, ignore_index=True), folder / "features.parquet")


def across(first: csr_array, second: csr_array, homes: Sequence[np.ndarray], n_draws: int = 1000) -> dict:
    """Do matched features of two blocks live in branches of the same kind? Cohen's kappa, beside permuted homes.

    first, second: (pictures, d) image maxima on the same pictures; homes: the branch of each feature of both. Of
    features that are active in FEWEST pictures, a partner is that of the largest correlation; the two are matched if it
    is beyond BEYOND of those with the pictures shifted. kappa: with its interval by bootstrap over partners, which
    several features may share; permuted, p: with the second block's homes permuted over its features; matched: a share.
    """
    fewest = min(FEWEST, first.shape[0] // 3)
    often = [np.flatnonzero((each > 0).sum(axis=0) >= fewest) for each in (first, second)]
    first, second = (csr_array(each[:, own]) for each, own in zip((first, second), often, strict=True))
    shifted = csr_array(second[(np.arange(second.shape[0]) + second.shape[0] // 2) % second.shape[0]])
    partners, best, chance = [], [], []
    for at in range(0, first.shape[1], 1000):  # of all at once, it would be a gigabyte
        found, other = (correlations(first[:, at : at + 1000], each) for each in (second, shifted))
        partners.append(found.argmax(1)), best.append(found.max(1)), chance.append(other.max(1))
    matched = np.concatenate(best) > np.quantile(np.concatenate(chance), BEYOND)
    if not matched.any():
        return {"kappa": point(0.0, 0), "permuted": point(0.0, 0), "p": 1.0, "matched": 0.0}
    names, partner = np.unique(np.concatenate(homes)), np.concatenate(partners)[matched]
    own, other = (pd.Categorical(each[some], names).codes.astype(int) for each, some in zip(homes, often, strict=True))
    own, n = own[matched], len(names)

    def kappa(counts: np.ndarray) -> np.ndarray:
        counts = counts.reshape(-1, n, n) / counts.reshape(-1, n * n).sum(1)[:, None, None]
        chance = (counts.sum(1) * counts.sum(2)).sum(1)
        return (np.trace(counts, axis1=1, axis2=2) - chance) / np.maximum(1 - chance, 1e-12)

    def counted(others: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(own * n + each, minlength=n * n) for each in others])

    rng, shared = np.random.default_rng(0), np.unique(partner, return_inverse=True)[1]
    by_partner = np.zeros((shared.max() + 1, n * n))
    np.add.at(by_partner, (shared, own * n + other[partner]), 1)
    drawn = rng.multinomial(len(by_partner), np.full(len(by_partner), 1 / len(by_partner)), n_draws) @ by_partner
    value = kappa(counted(other[partner][None]))[0]
    null = kappa(counted(rng.permuted(np.tile(other, (n_draws, 1)), axis=1)[:, partner]))
    found = {"kappa": with_draws(value, kappa(drawn), len(own)), "permuted": with_draws(null.mean(), null, len(own))}
    return found | {"p": (1 + (null >= value - 1e-9).sum()) / (1 + n_draws), "matched": float(matched.mean())}


def purity(
    W_dec: np.ndarray, labels: np.ndarray, k: int = 15, n_rows: int = 3000, n_permuted: int = 100
) -> dict[str, dict]:
    """Share of a row's k nearest neighbours, by cosine, with its own label; and with permuted labels: two results.

    Among n_rows rows, drawn at random if there are more.
    """
    rng = np.random.default_rng(0)
    some = rng.permutation(len(W_dec))[:n_rows]
    W_dec, labels, k = W_dec[some], labels[some], min(k, len(some) - 1)
    if k < 1:
        return {"purity": point(0.0, 0), "permuted": point(0.0, 0)}
    nearest = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(W_dec)
    near = nearest.kneighbors(W_dec, return_distance=False)[:, 1:]

    def same(own: np.ndarray) -> np.ndarray:
        return (own[near] == own[:, None]).mean(1)

    own = same(labels)
    draws = [own[rng.integers(len(own), size=len(own))].mean() for _ in range(n_permuted)]
    null = [same(rng.permutation(labels)).mean() for _ in range(n_permuted)]
    return {"purity": with_draws(own.mean(), draws, len(own)), "permuted": with_draws(np.mean(null), null, len(own))}


def see_reach(
    folder: Path, *, network: Network, pictures: Pictures, sae: SparseAutoencoder, patches: Path, units: Sequence[int]
) -> None:  # fmt: skip
    """How much of the picture features see, in reach.parquet: unit, radius (`effective_radius`, at its best patch)."""
    best, rows = pd.read_parquet(patches / "patches.parquet").drop_duplicates("unit").set_index("unit"), []
    for j in tqdm(units, "gradients", leave=False):
        cell, image = (int(best.at[j, "row"]), int(best.at[j, "column"])), best.at[j, "image"]
        gradient = gradient_maps(network, sae, network.as_input(pictures.picture(image)), j, cell)[1]
        rows.append((j, effective_radius(gradient, cell, network.shape(sae.cfg.site)[:2])))
    write_parquet(pd.DataFrame(rows, columns=["unit", "radius"]), folder / "reach.parquet")
