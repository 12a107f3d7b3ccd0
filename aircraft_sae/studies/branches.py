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
from scipy.stats import contingency
from sklearn.metrics import mutual_info_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from aircraft_sae.activations import Activations, effective_radius, gradient_maps
from aircraft_sae.config import change
from aircraft_sae.features import halves
from aircraft_sae.features.reconstruction import random_dictionaries
from aircraft_sae.features.regions import selectivity
from aircraft_sae.metrics import adjusted, with_draws
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import VariedScenes
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.comparison import BEYOND, Sensitivity, about, correlations
from aircraft_sae.studies.curves import batches

BRANCHES = ("1x1", "3x3", "5x5", "pool")
SPECIAL = 0.001
"""Share of random assignments of channels to branches that may give a branch as much, at most."""
Groups = Mapping[str, slice]


def contribution(W_dec: np.ndarray, groups: Groups, squared: bool = False) -> pd.DataFrame:
    """(d_sae, branches) the share of each branch in each decoder row.

    ||relu(d_i[b])|| / ||relu(d_i)||, the paper's; or with `squared` ||d_i[b]||^2 / ||d_i||^2, which adds up to 1.
    """
    squares = np.square(W_dec if squared else np.maximum(W_dec, 0))
    squares = squares / np.maximum(squares.sum(1, keepdims=True), 1e-12)
    shares = {name: squares[:, own].sum(1) for name, own in groups.items()}
    return pd.DataFrame(shares if squared else {name: np.sqrt(share) for name, share in shares.items()})


def excess(W_dec: np.ndarray, groups: Groups) -> pd.DataFrame:
    """(d_sae, branches) how far the square of the paper's contribution is above chance, in chance's deviations.

    Chance: as many of the row's channels drawn at random; its mean and variance are those of sampling without
    replacement, n / d and n (d - n) / (d - 1) Var(w) of shares w of the channels.
    """
    shares, d = (
        contribution(W_dec, {str(i): slice(i, i + 1) for i in range(W_dec.shape[1])}).to_numpy() ** 2,
        len(W_dec.T),
    )
    found = {}
    for name, own in groups.items():
        n = own.stop - own.start
        spread = np.sqrt(n * (d - n) / (d - 1) * shares.var(1))
        found[name] = (shares[:, own].sum(1) - n / d) / np.maximum(spread, 1e-9)
    return pd.DataFrame(found)


def equalised(groups: Groups, seed: int = 0) -> tuple[np.ndarray, dict[str, slice]]:
    """(channels, groups among them): of each branch as many, drawn at random, as the narrowest has."""
    rng, width = np.random.default_rng(seed), min(own.stop - own.start for own in groups.values())
    drawn = [np.sort(rng.choice(np.arange(own.start, own.stop), width, False)) for own in groups.values()]
    return np.concatenate(drawn), {name: slice(i * width, (i + 1) * width) for i, name in enumerate(groups)}


def specialised(W_dec: np.ndarray, groups: Groups, n_draws: int = 9999, seed: int = 0) -> pd.DataFrame:
    """(d_sae, branches) bool: where a branch has more of a row than chance gives it.

    Chance: the row's channels permuted. A feature is specialised in a branch if at most SPECIAL of n_draws permutations
    give the branch as much, and if that holds at a false discovery rate of 5 % (Benjamini-Hochberg, over features).
    """
    far, order, d = excess(W_dec, groups), _orders(n_draws, W_dec.shape[1], seed), W_dec.shape[1]
    squares, found = np.square(np.maximum(W_dec, 0)).astype(np.float32), {}
    for name, own in groups.items():
        p, some = np.ones(len(W_dec)), (far[name] > 2).to_numpy()  # below, more than SPECIAL do
        chosen = np.zeros((n_draws, d), np.float32)
        np.put_along_axis(chosen, order[:, own], 1, 1)
        least = squares[some][:, own].sum(1) * (1 - 1e-5)
        p[some] = (1 + (squares[some] @ chosen.T >= least[:, None]).sum(1)) / (1 + n_draws)
        found[name] = (p <= SPECIAL) & (adjusted(p) <= 0.05)
    return pd.DataFrame(found)


@lru_cache(maxsize=1)
def _orders(n: int, d: int, seed: int) -> np.ndarray:
    """(n, d) permutations."""
    return np.random.default_rng(seed).random((n, d), np.float32).argsort(1).astype(np.int16)


def home(W_dec: np.ndarray, groups: Groups) -> np.ndarray:
    """(d_sae,) the branch that has most of each row beyond chance, specialised or not."""
    return np.array(list(groups))[excess(W_dec, groups).to_numpy().argmax(1)]


def information(category: np.ndarray, branch: np.ndarray, n_permuted: int = 1000, seed: int = 0) -> dict:
    """Mutual information of two labels, (n,) each, in nats, beside permuted ones: value, p, null (a result), table.

    table: counts of category by branch, and what independence would give, in columns "<branch>", "<branch>, expected".
    """
    rng, value = np.random.default_rng(seed), mutual_info_score(category, branch)
    null = np.array([mutual_info_score(category, rng.permutation(branch)) for _ in range(n_permuted)])
    counts = pd.crosstab(category, branch)
    expected = pd.DataFrame(contingency.expected_freq(counts), counts.index, [f"{name}, expected" for name in counts])
    p = (1 + (null >= value).sum()) / (1 + n_permuted)
    return {"value": value, "p": p, "null": with_draws(null.mean(), null, len(branch)), "table": counts.join(expected)}


@torch.no_grad()
def see_maxima(
    network: Network, saes: Mapping[str, SparseAutoencoder], pictures: Pictures, split: str = "test"
) -> dict[str, csr_array]:
    """(pictures, d_sae) largest activation of each feature of dictionaries, by name, each at its own site.

    One pass over the pictures of a split, and no map is kept.
    """
    names, found = pictures.rows(split)["image"].tolist(), {name: [] for name in saes}
    sites = list(dict.fromkeys(sae.cfg.site for sae in saes.values()))
    seen = network.stream(batches(network, pictures, names), sites, logits=False)
    for each in tqdm(seen, "features of pictures", -(-len(names) // BATCH), leave=False):
        for name, sae in saes.items():
            acts = each.acts[sae.cfg.site]
            codes = sae.encode(acts.flatten(0, 2)).dense().view(len(acts), -1, sae.d_sae)
            found[name].append(csr_array(codes.amax(1).numpy()))
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

    saes: by name; random: random directions of the same sites, by the same names. <name>.npz and <name>-random.npz:
    (test pictures, d) image maxima. features.parquet: dictionary, feature_id, mass (mean of its maxima), category: the
    factor that it is `about`, where scenes can be varied; else the level of classes that it is placed at, where its
    AUROC stands out more than BEYOND of random directions'; else "unknown".
    """
    both = dict(saes) | {f"{name}-random": sae for name, sae in random.items()}
    test = see_maxima(network, both, pictures)
    edited = see_maxima(network, both, varied) if varied else {}
    rows, tables = pictures.rows("test"), []
    labels = {level: (pd.Categorical(rows[level], pictures.classes(level)).codes, pictures.classes(level))
              for level in pictures.levels}  # fmt: skip
    in_b = halves(rows[pictures.levels[0]])
    for name in saes:
        responses, selective = [], []
        for each in (name, f"{name}-random"):
            save_npz(folder / f"{each}.npz", test[each])
            selective.append(selectivity(test[each].toarray(), labels, in_b))
            if varied:
                top = test[each].max(axis=0).toarray().ravel()
                own = Sensitivity.of(edited[each].toarray(), varied.table, top, pictures.region_names)
                responses.append(own.response)
        z, usual = (each.filter(regex="/auroc_z$").max(axis=1).fillna(0) for each in selective)
        placed = selective[0]["placed"].where(z > usual.quantile(BEYOND), "none").replace("none", "unknown")
        factor = about(*responses) if varied else np.full(len(placed), "")
        facts = {"dictionary": name, "feature_id": np.arange(len(factor)), "mass": test[name].mean(axis=0)}
        tables.append(pd.DataFrame(facts | {"category": np.where(factor != "", factor, placed)}))
    write_parquet(pd.concat(tables, ignore_index=True), folder / "features.parquet")


def across(first: csr_array, second: csr_array, homes: Sequence[np.ndarray], n_permuted: int = 1000) -> dict[str, dict]:
    """Do matched features of two blocks live in branches of the same kind? Cohen's kappa, beside permuted partners'.

    first, second: (pictures, d) image maxima on the same pictures; homes: the branch of each feature of both. The
    partner of a feature that is active is that of the largest correlation. Two results: kappa, permuted; and p.
    """
    live, rng = first.max(axis=0).toarray().ravel() > 0, np.random.default_rng(0)
    names, pairs = np.unique(np.concatenate(homes), return_inverse=True)
    own, other = pairs[: len(live)][live], pairs[len(live) :][correlations(first, second).argmax(1)[live]]

    def kappa(own: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Of each row of labels (draws, n)."""
        both, size = own * len(names) + other, len(names) ** 2
        counts = np.stack([np.bincount(row, minlength=size) for row in both]).reshape(-1, len(names), len(names))
        agreed = np.trace(counts, axis1=1, axis2=2) / both.shape[1]
        chance = (counts.sum(1) * counts.sum(2)).sum(1) / both.shape[1] ** 2
        return (agreed - chance) / np.maximum(1 - chance, 1e-12)

    draws = rng.integers(len(own), size=(n_permuted, len(own)))
    value, null = (
        kappa(own[None], other[None])[0],
        kappa(own[None], rng.permuted(np.tile(other, (n_permuted, 1)), axis=1)),
    )
    found, p = (
        with_draws(value, kappa(own[draws], other[draws]), len(own)),
        (1 + (null >= value).sum()) / (1 + n_permuted),
    )
    return {"kappa": found, "permuted": with_draws(null.mean(), null, len(own)), "p": p}


def purity(W_dec: np.ndarray, labels: np.ndarray, k: int = 15, n_permuted: int = 200) -> dict[str, dict]:
    """Share of a row's k nearest neighbours, by cosine, with its own label; and with permuted labels: two results."""
    nearest = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(W_dec)
    near, rng = nearest.kneighbors(W_dec, return_distance=False)[:, 1:], np.random.default_rng(0)

    def same(own: np.ndarray) -> np.ndarray:
        return (own[near] == own[:, None]).mean(1)

    own = same(labels)
    draws = [own[rng.integers(len(own), size=len(own))].mean() for _ in range(n_permuted)]
    null = [same(rng.permutation(labels)).mean() for _ in range(n_permuted)]
    return {"purity": with_draws(own.mean(), draws, len(own)), "permuted": with_draws(np.mean(null), null, len(own))}


@torch.no_grad()
def find_edges(
    folder: Path, *, network: Network, saes: Sequence[SparseAutoencoder], pictures: Pictures,
    roles: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
    """What each downstream feature loses when an upstream one is suppressed in all cells of the test pictures.

    saes: of two sites, the second's module following the first at once, as blocks do; roles: upstream features that
    are "asked", of which "null" sets what is much, and "control", whose edges are counted beside. edges.parquet: role,
    upstream, downstream, change (of the mean image maximum, as a share of it), predicted (the same of the mean
    pre-activation, by the module's derivative at what it sees), beyond (larger than all but SPECIAL of the null's).
    Only downstream features with at least a tenth of the median activity are asked.
    """
    (first, second), names = saes, pictures.rows("test")["image"].tolist()
    follows, tables = network.model.get_submodule(second.cfg.site), []
    seen = network.stream(batches(network, pictures, names), [first.cfg.site], logits=False)
    acts = [each.acts[first.cfg.site] for each in seen]
    codes = [first.encode(each.flatten(0, 2)).dense() for each in acts]

    def means(j: int | None = None) -> np.ndarray:
        """(2, d_sae) mean image maximum, and what the derivative adds to the mean pre-activation, without feature j."""
        total = torch.zeros(2, second.d_sae)
        for own, active in zip(acts, codes, strict=True):
            less = 0 * own if j is None else (active[:, [j]] * first.W_dec[j]).view(own.shape)
            x, without = (each.permute(0, 3, 1, 2) for each in (own, less))
            after, along = torch.func.jvp(follows, (x - without,), (-without,))
            cells = after.permute(0, 2, 3, 1).flatten(0, 2)
            total[0] += second.encode(cells).dense().view(len(own), -1, second.d_sae).amax(1).sum(0)
            total[1] += len(own) * along.mean((0, 2, 3)) @ second.W_enc
        return (total / len(names)).numpy()

    plain = means()[0]
    live = np.flatnonzero(plain > 0.1 * np.median(plain[plain > 0]))
    for role, features in roles.items():
        for j in tqdm(features, f"suppress {role}", leave=False):
            after, linear = means(j)[:, live]
            facts = {"role": role, "upstream": j, "downstream": live, "change": after / plain[live] - 1}
            tables.append(pd.DataFrame(facts | {"predicted": linear / plain[live]}))
    table = pd.concat(tables, ignore_index=True)
    usual = table.loc[table["role"] == "null", "change"].abs().quantile(1 - SPECIAL)
    write_parquet(table.assign(beyond=table["change"].abs() > usual), folder / "edges.parquet")


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
