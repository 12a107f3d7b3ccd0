"""Branch specialisation: do features of an Inception block live in one of its branches, and do blocks agree?

A block's acts are its branches' channels side by side, so a decoder row d_i has a part d_i[b] in each branch.
Source: Bozoukov 2025, arXiv 2504.11489, with the nulls that it lacks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_array, save_npz, vstack
from scipy.stats import contingency, false_discovery_control, random_table
from sklearn.neighbors import NearestNeighbors

from aircraft_sae.activations import Activations
from aircraft_sae.config import change
from aircraft_sae.features import halves, random_dictionaries, selectivity
from aircraft_sae.metrics import point, with_draws, with_interval
from aircraft_sae.networks import Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import EDITS, VariedScenes
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.comparison import ALL, BEYOND, MIN_PICTURES, Sensitivity, about, shares
from aircraft_sae.studies.curves import watch

BRANCHES = ("1x1", "3x3", "5x5", "pool")
SPECIAL, N_PERMUTED = 0.001, 9999
"""A branch's share is beyond chance if its p, by N_PERMUTED permutations, is at most SPECIAL."""
Groups = Mapping[str, slice]


def contribution(W_dec: np.ndarray, groups: Groups, squared: bool = False) -> pd.DataFrame:
    """(d_sae, branches) share of each branch in each decoder row.

    The paper's share is ||relu(d_i[b])|| / ||relu(d_i)||; with `squared`, ||d_i[b]||^2 / ||d_i||^2, which sums to 1.
    """
    squares = _squares(W_dec if squared else np.maximum(W_dec, 0))
    found = pd.DataFrame({name: squares[:, own].sum(1) for name, own in groups.items()})
    return found if squared else np.sqrt(found)


def _squares(W_dec: np.ndarray) -> np.ndarray:
    squares = np.square(W_dec)
    return squares / np.maximum(squares.sum(1, keepdims=True), 1e-12)


def excess(W_dec: np.ndarray, groups: Groups) -> pd.DataFrame:
    """(d_sae, branches) standard deviations by which the square of the paper's contribution is above chance.

    By chance, the branch draws n of the row's d channels without replacement: mean n / d, variance n (d - n) / (d - 1)
    Var(w), where w are the channels' shares of the row's square.
    """
    squares, d, found = _squares(np.maximum(W_dec, 0)), W_dec.shape[1], {}
    for name, own in groups.items():
        n = own.stop - own.start
        spread = np.sqrt(n * (d - n) / (d - 1) * squares.var(1))
        found[name] = (squares[:, own].sum(1) - n / d) / np.maximum(spread, 1e-9)
    return pd.DataFrame(found)


def permutation_p(W_dec: np.ndarray, groups: Groups) -> pd.DataFrame:
    """(d_sae, branches) p: how often permuted channels reach a branch's share; 1 up to 2 deviations above chance."""
    far, squares = excess(W_dec, groups), np.square(np.maximum(W_dec, 0)).astype(np.float32)
    drawn, found = _drawn(W_dec.shape[1], tuple(own.stop - own.start for own in groups.values())), {}
    for (name, own), chosen in zip(groups.items(), drawn, strict=True):
        found[name], some = np.ones(len(W_dec)), (far[name] > 2).to_numpy()  # others are seldom as rare as SPECIAL
        least = squares[some][:, own].sum(1) * (1 - 1e-5)
        found[name][some] = (1 + (squares[some] @ chosen.T >= least[:, None]).sum(1)) / (1 + N_PERMUTED)
    return pd.DataFrame(found)


@lru_cache(maxsize=1)
def _drawn(d: int, widths: tuple[int, ...]) -> list[np.ndarray]:
    """For each branch (N_PERMUTED, d) with ones at random channels, as many as it has; no two branches share one."""
    order = np.random.default_rng(0).random((N_PERMUTED, d), np.float32).argsort(1)
    chosen = [np.zeros((N_PERMUTED, d), np.float32) for _ in widths]
    for each, columns in zip(chosen, np.split(order, np.cumsum(widths)[:-1], axis=1), strict=True):
        np.put_along_axis(each, columns, 1, 1)
    return chosen


def specialised(p: pd.DataFrame) -> pd.DataFrame:
    """(d_sae, branches) bool: p is at most SPECIAL, and Benjamini-Hochberg's q over features at most 0.05."""
    return (p <= SPECIAL) & (false_discovery_control(p, axis=0) <= 0.05)


def home(W_dec: np.ndarray, groups: Groups) -> np.ndarray:
    """(d_sae,) the branch whose share of each row is furthest above chance, specialised or not."""
    return np.array(list(groups))[excess(W_dec, groups).to_numpy().argmax(1)]


def information(category: np.ndarray, branch: np.ndarray) -> dict:
    """Mutual information of two labels (n,), in nats, against 1,000 permutations: value, p, null (a result), table.

    table: counts of category by branch, and those expected for independent labels, in columns "<branch>, expected".
    """
    if not len(branch):
        return {"value": 0.0, "p": 1.0, "null": point(0.0, 0), "table": pd.DataFrame()}
    table = pd.crosstab(category, branch)
    counts, expected = table.to_numpy(), contingency.expected_freq(table)

    def mutual(counts: np.ndarray) -> np.ndarray:
        joint = counts / len(branch)
        return (joint * np.log(np.maximum(joint, 1e-12) / (expected / len(branch)))).sum((-2, -1))

    drawn = np.tile(counts, (1000, 1, 1))
    if min(counts.shape) > 1:  # otherwise nothing can change, and scipy's table is wrong
        drawn = random_table(counts.sum(1), counts.sum(0), seed=0).rvs(1000)
    value, null = mutual(counts), mutual(drawn)
    table = table.join(pd.DataFrame(expected, table.index, [f"{name}, expected" for name in table]))
    null_entry = with_draws(null.mean(), null, len(branch))
    return {"value": value, "p": _p(value, null), "null": null_entry, "table": table}


def _p(value: float, null: np.ndarray) -> float:
    return (1 + (null >= value - 1e-9).sum()) / (1 + len(null))


def content(features: pd.DataFrame) -> tuple[str, dict, dict]:
    """(factor, share of features that lean to it in 5x5, share elsewhere), for the factor that 5x5 is richest in.

    features: feature_id, leaning, home. Even ids choose the factor by the largest difference; odd ids give the shares.
    """
    chosen_on, counted = (features[features["feature_id"] % 2 == half] for half in (0, 1))
    often = pd.crosstab(chosen_on["leaning"], chosen_on["home"] == "5x5", normalize="columns")
    often = often.reindex(columns=[True, False], fill_value=0.0)
    factor = (often[True] - often[False]).idxmax() if len(often) else "nothing"
    parts = (counted["leaning"][(counted["home"] == "5x5") == here] == factor for here in (True, False))
    here, elsewhere = (with_interval(part, np.ones(len(part))) if len(part) else point(0.0, 0) for part in parts)
    return factor, here, elsewhere


@torch.no_grad()
def see_maxima(network: Network, saes: Mapping[str, SparseAutoencoder], pictures: Pictures) -> dict[str, csr_array]:
    """{name: (pictures, d_sae)} largest activation of each feature in each test picture, in one pass over them."""
    found = {name: [] for name in saes}
    sites = list(dict.fromkeys(sae.cfg.site for sae in saes.values()))
    for shown, acts in watch(network, pictures, sites, "features of pictures"):
        for name, sae in saes.items():
            cells = acts[sae.cfg.site].flatten(1, 2)
            codes, maxima = sae.encode(cells.flatten(0, 1)), torch.zeros(len(shown) * sae.d_sae)
            at = codes.cells // cells.shape[1] * sae.d_sae + codes.features
            maxima.scatter_reduce_(0, at, codes.values, "amax")
            found[name].append(csr_array(maxima.view(-1, sae.d_sae).numpy()))
    return {name: vstack(each, "csr") for name, each in found.items()}


def random_thousand(sae: SparseAutoencoder, acts: Activations) -> SparseAutoencoder:
    """1,000 random directions or a few more (at most as many as features), active as often as features."""
    expansion = min(sae.cfg.expansion, -(-1000 // sae.d_in))
    k = max(1, round(sae.cfg.k * expansion / sae.cfg.expansion))
    like = SparseAutoencoder(change(sae.cfg, expansion=expansion, k=k, tied=False, aux_k=0), sae.d_in)
    return random_dictionaries(like, acts, (0,))[0]


def see_blocks(
    folder: Path, *, network: Network, pictures: Pictures, saes: Mapping[str, SparseAutoencoder],
    random: Mapping[str, SparseAutoencoder], varied: VariedScenes | None = None,
) -> None:  # fmt: skip
    """Find what the features of several sites are about, from test pictures and from scenes with one thing changed.

    saes: by name; random: random directions at the same sites, by the same names, called "<name>-random" below.
    <dictionary>.npz: `see_maxima` on test pictures. features.parquet has a row per feature:
    dictionary, feature_id; mass: mean of its image maxima;
    leaning: the factor with the largest of its `shares`, if its responses to all factors but EDITS are known; without
    scenes, the class level it selects best; else "unknown";
    about: the factor it is `about`; else the class level it is placed on, if it selects a class more clearly than a
    share BEYOND of random directions; else "unknown".
    """
    both = dict(saes) | {f"{name}-random": sae for name, sae in random.items()}
    test, edited = see_maxima(network, both, pictures), see_maxima(network, both, varied) if varied else {}
    rows, tables = pictures.rows("test"), []
    labels = {level: (pd.Categorical(rows[level], pictures.classes(level)).codes, pictures.classes(level))
              for level in pictures.levels}  # fmt: skip
    for name, maxima in test.items():
        save_npz(folder / f"{name}.npz", maxima)
    for name in saes:
        pair, responses, selective = (name, f"{name}-random"), [], []
        for each in pair:
            maxima = test[each].toarray()
            unknown = pd.DataFrame({"level": "unknown", "placed": "none"}, np.arange(maxima.shape[1]))
            selective.append(selectivity(maxima, labels, halves(rows[pictures.levels[0]])) if labels else unknown)
            if varied:
                top, parts = maxima.max(0), pictures.region_names
                responses.append(Sensitivity.of(edited[each].toarray(), varied.table, top, parts).response)
        z = [each.filter(regex="/auroc_z$").max(axis=1).fillna(0) for each in selective]
        for i, each in enumerate(pair):
            placed = selective[i]["placed"].where(z[i] > z[1].quantile(BEYOND), "none")
            facts = {"dictionary": each, "feature_id": np.arange(len(placed)), "mass": test[each].mean(axis=0)}
            facts |= {"leaning": selective[i]["level"], "about": placed.replace("none", "unknown")}
            if varied:
                relative, factor = shares(responses[i], responses[1]), about(responses[i], responses[1])
                known = np.isfinite(responses[i][:, len(EDITS) :]).all(1)
                facts["leaning"] = np.where(known, np.array(ALL)[relative.argmax(1)], "unknown")
                facts["about"] = np.where(factor != "", factor, facts["about"])
            tables.append(pd.DataFrame(facts))
    write_parquet(pd.concat(tables, ignore_index=True), folder / "features.parquet")


def _standardised(maxima: csr_array) -> np.ndarray:
    """Columns of mean 0 and length 1, so that their products are Pearson correlations."""
    centred = maxima.toarray()
    centred -= centred.mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=0), 1e-9)


def agreement_across_blocks(first: csr_array, second: csr_array, homes: Sequence[np.ndarray]) -> dict:
    """Do matched features of two blocks live in branches of the same kind? Cohen's kappa, and its null.

    first, second: (pictures, d) image maxima on the same pictures; homes: each feature's branch, for both. A
    feature's partner is its best correlate among the second block's features; both are active in MIN_PICTURES pictures.
    They are matched if they correlate better than a share BEYOND of features do with shifted pictures.
    kappa: with a bootstrap interval over partners, which several features may share;
    permuted, p: with the second block's homes permuted over its features; matched: share of features.
    """
    fewest, n_draws = min(MIN_PICTURES, first.shape[0] // 3), 1000
    often = [np.flatnonzero((each > 0).sum(axis=0) >= fewest) for each in (first, second)]
    first, second = (_standardised(each[:, own]) for each, own in zip((first, second), often, strict=True))
    shifted = np.roll(second, len(second) // 2, axis=0)
    chance = np.quantile((first.T @ shifted).max(1), BEYOND)  # before the next product: each takes 340 MB
    correlation = first.T @ second
    partner, matched = correlation.argmax(1), correlation.max(1) > chance
    if not matched.any():
        return {"kappa": point(0.0, 0), "permuted": point(0.0, 0), "p": 1.0, "matched": 0.0}
    kinds, shared = np.unique(np.concatenate(homes)), np.unique(partner[matched], return_inverse=True)[1]
    own, other = (np.searchsorted(kinds, each[some]) for each, some in zip(homes, often, strict=True))
    own, partner, n = own[matched], partner[matched], len(kinds)

    def kappa(counts: np.ndarray) -> np.ndarray:
        counts = counts.reshape(-1, n, n) / counts.reshape(-1, n * n).sum(1)[:, None, None]
        chance = (counts.sum(1) * counts.sum(2)).sum(1)
        return (np.trace(counts, axis1=1, axis2=2) - chance) / np.maximum(1 - chance, 1e-12)

    rng, by_partner = np.random.default_rng(0), np.zeros((shared.max() + 1, n * n))
    np.add.at(by_partner, (shared, own * n + other[partner]), 1)
    drawn = rng.multinomial(len(by_partner), np.full(len(by_partner), 1 / len(by_partner)), n_draws) @ by_partner
    permuted = rng.permuted(np.tile(other, (n_draws, 1)), axis=1)[:, partner]
    null = kappa(np.stack([np.bincount(own * n + each, minlength=n * n) for each in permuted]))
    value = kappa(by_partner.sum(0))[0]
    found = {"kappa": with_draws(value, kappa(drawn), len(own)), "permuted": with_draws(null.mean(), null, len(own))}
    return found | {"p": _p(value, null), "matched": float(matched.mean())}


def purity(W_dec: np.ndarray, labels: np.ndarray) -> dict[str, dict]:
    """Share of a row's 15 nearest neighbours (by cosine) with its label, or with permuted ones; at most 3,000 rows."""
    rng = np.random.default_rng(0)
    some = rng.permutation(len(W_dec))[:3000]
    W_dec, labels, k = W_dec[some], labels[some], min(15, len(some) - 1)
    if k < 1:
        return {"purity": point(0.0, 0), "permuted": point(0.0, 0)}
    nearest = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(W_dec)
    near = nearest.kneighbors(W_dec, return_distance=False)[:, 1:]

    def same(own: np.ndarray) -> np.ndarray:
        return (own[near] == own[:, None]).mean(1)

    own = same(labels)
    draws = [own[rng.integers(len(own), size=len(own))].mean() for _ in range(100)]
    null = [same(rng.permutation(labels)).mean() for _ in range(100)]
    return {"purity": with_draws(own.mean(), draws, len(own)), "permuted": with_draws(np.mean(null), null, len(own))}
