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
from aircraft_sae.metrics import adjusted, with_draws
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.scenes import VariedScenes
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.comparison import ALL, BEYOND, Sensitivity, about, correlations, shares
from aircraft_sae.studies.curves import batches

BRANCHES = ("1x1", "3x3", "5x5", "pool")
SPECIAL = 0.001
"""Share of random assignments of channels to branches that may give a branch as much, at most."""
STEP = 0.01
"""Share of a feature that is suppressed, to see the derivative."""
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
    far, squares = excess(W_dec, groups), np.square(np.maximum(W_dec, 0)).astype(np.float32)
    drawn, found = _drawn(n_draws, W_dec.shape[1], tuple(own.stop - own.start for own in groups.values()), seed), {}
    for (name, own), chosen in zip(groups.items(), drawn, strict=True):
        p, some = np.ones(len(W_dec)), (far[name] > 2).to_numpy()  # below, more than SPECIAL do
        least = squares[some][:, own].sum(1) * (1 - 1e-5)
        p[some] = (1 + (squares[some] @ chosen.T >= least[:, None]).sum(1)) / (1 + n_draws)
        found[name] = (p <= SPECIAL) & (adjusted(p) <= 0.05)
    return pd.DataFrame(found)


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
    counts = pd.crosstab(category, branch)
    expected = pd.DataFrame(contingency.expected_freq(counts), counts.index, [f"{name}, expected" for name in counts])
    chance = expected.to_numpy() / len(branch)

    def mutual(counts: np.ndarray) -> np.ndarray:
        joint = counts / len(branch)
        return (joint * np.log(np.maximum(joint, 1e-12) / chance)).sum((-2, -1))

    value, null = mutual(counts.to_numpy()), mutual(_permuted(counts.to_numpy(), n_permuted, seed))
    p = (1 + (null >= value - 1e-9).sum()) / (1 + n_permuted)
    return {"value": value, "p": p, "null": with_draws(null.mean(), null, len(branch)), "table": counts.join(expected)}


def _permuted(counts: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, …) tables of counts as they would be with one of the two labels permuted."""
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
    (test pictures, d) image maxima. features.parquet: dictionary, feature_id, mass (mean of its maxima), leaning and
    about. leaning: the factor that has the largest of its `shares`, "unknown" where no response is known. about: the
    factor that it is `about`; else the level of classes that it is placed at, where its AUROC stands out more than
    BEYOND of random directions'; else "unknown". Without scenes, leaning is the level whose class stands out most.
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
        leaning, factor = selective[0]["level"].to_numpy(), np.full(len(placed), "")
        if varied:
            relative, factor = shares(*responses), about(*responses)
            leaning = np.where(relative.max(1) > 0, np.array(ALL)[relative.argmax(1)], "unknown")
        facts = {"dictionary": name, "feature_id": np.arange(len(factor)), "mass": test[name].mean(axis=0)}
        facts |= {"leaning": leaning, "about": np.where(factor != "", factor, placed)}
        tables.append(pd.DataFrame(facts))
    write_parquet(pd.concat(tables, ignore_index=True), folder / "features.parquet")


def across(first: csr_array, second: csr_array, homes: Sequence[np.ndarray], n_permuted: int = 1000) -> dict[str, dict]:
    """Do matched features of two blocks live in branches of the same kind? Cohen's kappa, beside permuted partners'.

    first, second: (pictures, d) image maxima on the same pictures; homes: the branch of each feature of both. The
    partner of a feature that is active is that of the largest correlation. Two results: kappa, permuted; and p.
    """
    live, names = first.max(axis=0).toarray().ravel() > 0, np.unique(np.concatenate(homes))
    parts = (first[:, at : at + 1000] for at in range(0, len(live), 1000))  # of all at once, it would be a gigabyte
    partner = np.concatenate([correlations(part, second).argmax(1) for part in parts])
    own, other = (pd.Categorical(each, names) for each in (homes[0][live], homes[1][partner[live]]))
    counts = pd.crosstab(own, other, dropna=False).to_numpy()

    def kappa(counts: np.ndarray) -> np.ndarray:
        agreed = np.trace(counts, axis1=-2, axis2=-1) / len(own)
        chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / len(own) ** 2
        return (agreed - chance) / np.maximum(1 - chance, 1e-12)

    value, null = kappa(counts), kappa(_permuted(counts, n_permuted))
    drawn = np.random.default_rng(0).multinomial(len(own), counts.ravel() / len(own), n_permuted)
    found = with_draws(value, kappa(drawn.reshape(-1, *counts.shape)), len(own))
    p = (1 + (null >= value - 1e-9).sum()) / (1 + n_permuted)
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
            less = torch.zeros_like(own) if j is None else (active[:, [j]] * first.W_dec[j]).view(own.shape)
            as_is, step, after = (follows((own - size * less).permute(0, 3, 1, 2)) for size in (0, STEP, 1))
            cells = after.permute(0, 2, 3, 1).flatten(0, 2)
            total[0] += second.encode(cells).dense().view(len(own), -1, second.d_sae).amax(1).sum(0)
            total[1] += len(own) * ((step - as_is) / STEP).mean((0, 2, 3)) @ second.W_enc
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
