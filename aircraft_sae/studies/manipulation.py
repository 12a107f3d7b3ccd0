"""Features as knobs in a second task: which part of the aircraft does a cell show?

A linear head on the acts x of a cell names its region. Turning feature j to s sets it to s times its maximum m_j, in
every cell or in some, and keeps what the autoencoder does not explain:

    x' = x + (s m_j - f_j) d_j,  so that the head's logits become  W x' + b = W x + b + (s m_j - f_j) W d_j

Source: Stevens et al. 2025, arXiv 2502.06755, with every control run. As the head reads each cell by itself, what
changes elsewhere changes because the feature is active there, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_array
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from aircraft_sae.activations import Activations, site_folder
from aircraft_sae.features import Regions
from aircraft_sae.features.index import encoded
from aircraft_sae.features.reconstruction import cell_covariance, random_directions
from aircraft_sae.features.regions import LEAST
from aircraft_sae.interventions.suppression import matched_features
from aircraft_sae.metrics import bootstrap_counts, bootstrap_draws, with_draws, with_interval
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import read_json, write_json, write_parquet

DOSES = (-2.0, 0.0, 0.5, 1.0, 2.0)
THRESHOLDS = (0.0, 0.1, 0.3, 1.0)
"""Shares of a feature's maximum from which it is taken to say that a cell shows its part."""
N_RANDOM, N_PASSES = 20, 12
"""Random directions for each part; and those that cost forward passes."""


@dataclass(frozen=True, eq=False)
class CellHead:
    """A linear read-out of cells. weight: (regions, d_in); bias: (regions,); names: of regions, "background" first."""

    weight: torch.Tensor
    bias: torch.Tensor
    names: list[str]

    @classmethod
    def open(cls, folder: str | Path) -> "CellHead":
        """What `segment` wrote."""
        arrays = load_file(Path(folder) / "head.safetensors")
        return cls(arrays["weight"], arrays["bias"], read_json(Path(folder) / "names.json")["names"])

    def logits(self, acts: torch.Tensor) -> torch.Tensor:
        """(…, regions) of acts (…, d_in)."""
        return acts @ self.weight.t() + self.bias


def cell_regions(coverage: np.ndarray) -> np.ndarray:
    """(…) 1 + the region that fills most of a cell; 0 where all fill less than LEAST of it. coverage: (…, regions)."""
    return np.where(coverage.sum(-1) >= LEAST, coverage.argmax(-1) + 1, 0)


def segment(folder: Path, *, acts: Activations, pictures: Pictures, n_cells: int = 100_000) -> None:
    """Fit a head on n_cells of training and validation pictures, and score it on test pictures.

    head.safetensors and names.json: as `CellHead` has them. confusion.npy: (2, pictures, regions, regions) pixels of a
    region, as shares of a cell, by the region that the head names their cell, and by `cell_regions`, the right names.
    Raises: ValueError for pictures without regions.
    """
    if not (names := ["background", *pictures.region_names])[1:]:
        raise ValueError("the pictures have no regions: there is nothing to name in their cells")
    rows = {"fit": acts.rows("train", "val"), "test": acts.rows("test")}
    shares = {}
    for name, own in rows.items():
        found = np.stack([pictures.regions(image, acts.grid) for image in acts.images["image"].iloc[own]])
        shares[name] = np.concatenate([1 - found.sum(3, keepdims=True), found], 3).reshape(-1, len(names))
    shown = {name: cell_regions(each[:, 1:]) for name, each in shares.items()}
    some = np.sort(np.random.default_rng(0).permutation(len(shown["fit"]))[:n_cells])
    image, cell = np.divmod(some, acts.cells_per_image)
    x = np.float32(acts.acts[rows["fit"]].reshape(len(rows["fit"]), -1, acts.d_in)[image, cell])
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    present, n = np.unique(shown["fit"][some], return_counts=True)
    weights = dict(zip(present.tolist(), np.sqrt(n.min() / n), strict=True))  # else hardly a cell were named a gear
    fitted = LogisticRegression(C=0.1, max_iter=100, tol=1e-3, class_weight=weights)
    fitted.fit((x - mean) / deviation, shown["fit"][some])
    weight, bias = np.zeros((len(names), acts.d_in), np.float32), np.full(len(names), -1e4, np.float32)
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(coef) == 1:  # of two regions, the second's odds
        coef, intercept = (np.concatenate([-each, each]) / 2 for each in (coef, intercept))
    weight[fitted.classes_] = coef / deviation  # regions that no cell showed are never named
    bias[fitted.classes_] = intercept - weight[fitted.classes_] @ mean
    head = CellHead(torch.from_numpy(weight), torch.from_numpy(bias), names)
    named = torch.cat([head.logits(block).argmax(-1) for block in acts.blocks(rows["test"])]).numpy()
    shape = len(rows["test"]), acts.cells_per_image, len(names)
    truth = shares["test"].reshape(shape)
    by = [np.eye(len(names))[each.reshape(shape[:2])] for each in (named, shown["test"])]
    np.save(folder / "confusion.npy", np.stack([truth.transpose(0, 2, 1) @ each for each in by]))
    write_safetensors(folder / "head.safetensors", {"weight": head.weight, "bias": head.bias})
    write_json(folder / "names.json", {"names": names})


def ious(confusion: np.ndarray, counts=None) -> np.ndarray:
    """(draws, regions) or (regions,) intersection over union; nan where a region is neither shown nor named.

    confusion: (pictures, regions, regions) pixels by what they show, by what they are named.
    """
    total = np.tensordot(np.ones(len(confusion)) if counts is None else counts, confusion, 1)
    hits = np.diagonal(total, axis1=-2, axis2=-1)
    union = total.sum(-1) + total.sum(-2) - hits
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def segmentation_scores(folder: Path) -> dict[str, dict]:
    """Results: miou of parts, that of the right names, and their ratio; and iou/<region>, iou_right/<region>."""
    names, (own, right) = CellHead.open(folder).names, np.load(folder / "confusion.npy")
    drawn = {"": bootstrap_draws(ious, own), "_right": bootstrap_draws(ious, right)}
    value, n = {"": ious(own), "_right": ious(right)}, len(own)
    mean, draws = ({name: np.nanmean(each[..., 1:], -1) for name, each in of.items()} for of in (value, drawn))
    found = {f"miou{name}": with_draws(mean[name], draws[name], n) for name in mean}
    found["miou_of_grid_ceiling"] = with_draws(mean[""] / mean["_right"], draws[""] / draws["_right"], n)
    for name, (i, region) in product(value, enumerate(names)):
        if np.isfinite(value[name][i]):
            found[f"iou{name}/{region}"] = with_draws(value[name][i], drawn[name][:, i], n)
    return found


def f1_scores(codes: csr_array, shows: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(d, parts) F1 of "the feature is active, and at least `least` (d,)" for "the cell shows the part"."""
    on = codes.copy()
    on.data = (codes.data >= np.maximum(least[codes.indices], 1e-12)).astype(np.float64)
    hits = (on.T @ csr_array(shows.astype(np.float64))).toarray()
    return 2 * hits / np.maximum(on.sum(axis=0)[:, None] + shows.sum(0), 1)  # 0 where there is neither


def choose_knobs(codes: csr_array, shows: np.ndarray) -> pd.DataFrame:
    """The feature that tells each part best: a row a part, with feature_id, threshold, f1, top and active.

    codes: (cells, d) feature activations; shows: (cells, parts) bool, whether a cell shows a part. f1: of the best of
    THRESHOLDS; top: the feature's maximum; active: share of the part's cells in which it is above 0.
    """
    top = codes.max(axis=0).toarray().ravel()
    f1 = np.stack([f1_scores(codes, shows, threshold * top) for threshold in THRESHOLDS])  # (thresholds, d, parts)
    ids, parts = f1.max(0).argmax(0), np.arange(shows.shape[1])
    own = f1[:, ids, parts]
    active = ((codes[:, ids].toarray() > 0) & shows).sum(0) / np.maximum(shows.sum(0), 1)
    threshold = np.array(THRESHOLDS)[own.argmax(0)]
    facts = {"feature_id": ids, "threshold": threshold, "f1": own.max(0), "top": top[ids], "active": active}
    return pd.DataFrame(facts)


def turn_knobs(
    folder: Path, *, segmentation: Path, acts: Activations, pictures: Pictures, saes: Mapping[str, SparseAutoencoder]
) -> None:
    """Turn the best feature of each part, and what is turned in its place, in all cells of half B's test pictures.

    saes: the autoencoder as "feature", and others by name, whose own best features are controls. knobs.parquet: arm,
    part, the columns of `choose_knobs` (of half A), f1_b (on half B). turned.parquet: arm, part, dose, image, n and
    n_other (cells named the part, and other ones), target (share of n whose name changes; nan without any), other (of
    n_other), gained (share of n_other that get the part's name). Arms beside `saes`, of as much in each cell along
    another direction of equal length: "random direction" (the mean of N_RANDOM, spread as the cells are), "isotropic
    direction" (the same, spread evenly), "random feature" (the direction of one of like density and strength; left out
    where there is none), "probe" (the head's own row for the part, less the mean row).
    """
    head, rows = CellHead.open(segmentation), acts.rows("test")
    regions = Regions.of(acts, pictures)
    cells, rows_b = np.repeat(regions.in_b, acts.cells_per_image), rows[regions.in_b]
    before = torch.cat([head.logits(block).flatten(0, 2) for block in acts.blocks(rows_b)]).t().contiguous()
    named, images = before.argmax(0).numpy(), acts.images["image"].iloc[rows_b].to_numpy()
    shows, knobs, turned = regions.labels.reshape(-1, len(regions.names)), [], []

    def after(amount: np.ndarray, direction: torch.Tensor) -> np.ndarray:  # regions first: four times as fast
        logits = torch.addr(before, head.weight @ direction, torch.from_numpy(np.float32(amount)))
        return logits.max(0).indices.numpy()

    for arm, sae in saes.items():
        codes, W_dec = encoded(sae, acts.blocks(rows)), sae.W_dec.detach()
        own, other = codes[~cells], codes[cells].tocsc()
        chosen, n_on = choose_knobs(own, shows[~cells]), np.diff(own.tocsc().indptr)
        ids = chosen["feature_id"].to_numpy()
        scored = f1_scores(other[:, ids].tocsr(), shows[cells], (chosen["threshold"] * chosen["top"]).to_numpy())
        knobs.append(chosen.assign(f1_b=scored.diagonal(), arm=arm, part=regions.names))
        density = {"density_cell": n_on / own.shape[0], "mean": own.sum(axis=0) / np.maximum(n_on, 1)}
        partner = matched_features(pd.DataFrame(density | {"norm": W_dec.norm(dim=1)}))
        for i, (j, top) in enumerate(zip(ids, chosen["top"], strict=True), 1):
            ways = {arm: W_dec[[j]]}
            if arm == "feature":
                ways |= in_its_place(W_dec[j], i, head, acts, W_dec[partner[[j]]] if partner[j] >= 0 else None)
            activation, target = other[:, [j]].toarray().ravel(), (named == i).reshape(len(images), -1)
            n, n_other = target.sum(1), (~target).sum(1)
            for dose, (way, directions) in product(DOSES, ways.items()):
                made = [after(dose * top - activation, each).reshape(target.shape) for each in directions]
                changed = np.mean([each != named.reshape(target.shape) for each in made], 0)
                gained = np.mean([each == i for each in made], 0)
                counts = {"target": (changed * target, n), "other": (changed * ~target, n_other),
                          "gained": (gained * ~target, n_other)}  # fmt: skip
                with np.errstate(invalid="ignore"):
                    shares = {name: each.sum(1) / of for name, (each, of) in counts.items()}
                facts = {"arm": way, "part": head.names[i], "dose": dose, "image": images, "n": n, "n_other": n_other}
                turned.append(pd.DataFrame(facts | shares))
    write_parquet(pd.concat(knobs, ignore_index=True), folder / "knobs.parquet")
    write_parquet(pd.concat(turned, ignore_index=True), folder / "turned.parquet")


def in_its_place(
    direction: torch.Tensor, region: int, head: CellHead, acts: Activations, partner: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """By arm, directions (n, d_in) as long as a feature's: random ones, the probe's, another feature's."""
    own = (head.weight[region] - head.weight.mean(0))[None]
    spreads = {"random direction": cell_covariance(acts), "isotropic direction": torch.eye(acts.d_in)}
    drawn = {name: random_directions(direction.expand(N_RANDOM, -1), each, (region,)) for name, each in spreads.items()}
    ways = drawn | {"probe": own} | ({} if partner is None else {"random feature": partner})
    return {name: each * direction.norm() / each.norm(dim=1, keepdim=True) for name, each in ways.items()}


def macro(turned: pd.DataFrame, arm: str, dose: float, which: str = "target") -> tuple[dict, np.ndarray]:
    """(result, draws) of a share: mean over the pictures that have such cells, then over parts that the head names.

    which: "target", "other" or "gained". Parts without a partner are left out of "random feature".
    """
    named = turned.groupby("part")["n"].transform("sum") > 0
    own = turned[named & (turned["arm"] == arm) & (turned["dose"] == dose)]
    shares = own.pivot(index="image", columns="part", values=which).to_numpy()
    draws = bootstrap_draws(_mean_of_means, shares)
    return with_draws(_mean_of_means(shares), draws, len(shares)), draws


def _mean_of_means(shares: np.ndarray, counts=None) -> np.ndarray:
    counts = np.ones(len(shares)) if counts is None else counts
    with np.errstate(invalid="ignore"):
        return np.nanmean((counts @ np.nan_to_num(shares)) / (counts @ np.isfinite(shares)), axis=-1)


def on_target(turned: pd.DataFrame, arm: str, dose: float) -> dict[str, float | None]:
    """Of all cells whose name changes, the share that was named the part: a result, with pictures as units."""
    own = turned[(turned["arm"] == arm) & (turned["dose"] == dose)]
    hits = own["n"] * own["target"].fillna(0)
    sums = pd.DataFrame({"image": own["image"], "hits": hits, "all": hits + own["n_other"] * own["other"]})
    sums = sums.groupby("image").sum()
    return with_interval(sums["hits"], sums["all"])


def beyond(turned: pd.DataFrame, dose: float, control: str, arm: str = "feature") -> dict[str, dict]:
    """For each part, how much more of its cells `arm` changes than `control`: results over pictures, pair by pair."""
    own = turned[turned["dose"] == dose].pivot(index=["part", "image"], columns="arm", values="target")
    apart = (own[arm] - own[control]).dropna()
    return {part: with_interval(each, np.ones(len(each))) for part, each in apart.groupby(level=0, sort=False)}


@torch.no_grad()
def compare_edits(
    folder: Path, *, network: Network, sae: SparseAutoencoder, segmentation: Path, knobs: Path, scenes: Path,
    acts: Activations, dose: float, everywhere: bool,
) -> None:  # fmt: skip
    """Turn each part's knob in scenes of which the part was edited too: does the same follow?

    scenes: what `edit_scenes` wrote; acts: of the study, for random directions; everywhere: in all cells, or in those
    that the head names the part in the scene as it is or edited. Each is done by the "feature", as much by "random
    direction 0", … and by the "probe".
    cells.parquet: a row for each edited scene and way: part, scene, how, target (cells named the part), edited (of
    these, those that the scene edit renames), turned (those that the knob renames), both; same (of both, those with the
    edited scene's name), shuffled (of both, were those names shuffled), background (of both, those that the edited
    scene has as background), others and others_turned. named.npy: (edited scenes, 3, rows, columns) what the head
    names: as it is, with the feature turned, edited. logits.parquet: part, scene, how (or "scene edit") and the change
    of each class's logit. Raises: ValueError for a network that cannot go on from the site.
    """
    head, table = CellHead.open(segmentation), pd.read_parquet(knobs / "knobs.parquet")
    table, site = table[table["arm"] == "feature"].set_index("part"), sae.cfg.site
    edits, cells, logits, maps = pd.read_parquet(scenes / "edits.parquet"), [], [], []
    stored = torch.from_numpy(np.load(scenes / network.name / f"{site_folder(site)}.npy")).float()

    def see(given: torch.Tensor) -> np.ndarray:
        return torch.cat([network.see(None, given={site: each}).logits for each in given.split(BATCH)]).numpy()

    for part, own in edits.groupby("part", sort=False):
        i, j, top = head.names.index(part), int(table.at[part, "feature_id"]), float(table.at[part, "top"])
        whole, edited = stored[own["scene"].tolist()], stored[(len(stored) - len(edits) + own.index).tolist()]
        activation = torch.from_numpy(encoded(sae, [whole])[:, [j]].toarray()).view(*whole.shape[:3], 1)
        before, after = (head.logits(each).argmax(-1) for each in (whole, edited))
        where = torch.ones_like(before, dtype=torch.bool) if everywhere else (before == i) | (after == i)
        amount, direction = (dose * top - activation) * where[..., None], sae.W_dec.detach()[j]
        drawn = random_directions(direction.expand(N_PASSES, -1), cell_covariance(acts), (i, 1))
        probe = head.weight[i] - head.weight.mean(0)
        ways = {"feature": direction, "probe": probe * direction.norm() / probe.norm()}
        ways |= {f"random direction {n}": each for n, each in enumerate(drawn)}
        facts, plain = {"part": part, "scene": own["scene"].to_numpy()}, see(whole)
        for how, each in {"scene edit": None, **ways}.items():
            x = edited if each is None else whole + amount * each
            change = pd.DataFrame(see(x) - plain, columns=network.classes)
            logits.append(pd.DataFrame(facts | {"how": how}).join(change))
            if each is None:
                continue
            named = head.logits(x).argmax(-1)
            cells.append(pd.DataFrame(facts | {"how": how} | _compared(before, named, after, i)))
            if how == "feature":
                maps.append(torch.stack([before, named, after], 1).byte().numpy())
    np.save(folder / "named.npy", np.concatenate(maps))
    write_parquet(pd.concat(cells, ignore_index=True), folder / "cells.parquet")
    write_parquet(pd.concat(logits, ignore_index=True), folder / "logits.parquet")


def _compared(before: torch.Tensor, named: torch.Tensor, after: torch.Tensor, part: int) -> dict[str, np.ndarray]:
    """Counts of `compare_edits` for each scene (n, rows, columns), from the names of its cells."""
    target, turned, edited = before == part, named != before, after != part
    both = target & turned & edited
    masks = {"target": target, "edited": target & edited, "turned": target & turned, "both": both}
    masks |= {"same": both & (named == after), "background": both & (after == 0)}
    masks |= {"others": ~target, "others_turned": ~target & turned}
    regions = range(int(torch.stack([named, after]).max()) + 1)
    shares = [torch.stack([(both & (each == r)).sum((1, 2)) for r in regions], 1) for each in (named, after)]
    counts = {name: each.sum((1, 2)).numpy() for name, each in masks.items()}
    return counts | {"shuffled": (shares[0] * shares[1]).sum(1).numpy() / np.maximum(counts["both"], 1)}


def agreement(logits: pd.DataFrame, n_draws: int = 500) -> dict[str, dict]:
    """Do a feature and a scene edit move the same logits? Rank correlations over classes, means over parts.

    logits: of `compare_edits`. own: of the effects of a part's feature and of its scene edit, each the mean over
    scenes; other parts: of a part's feature and other parts' scene edits; random direction: in the feature's place; and
    how far own is beyond either. Intervals: scenes drawn anew within each part, and of random directions these too.
    p: of own, were features and scene edits paired at random.
    """
    drawn = {how: [] for how in logits["how"].unique() if how != "probe"}
    for i, (_, own) in enumerate(logits.groupby("part", sort=False)):
        counts = bootstrap_counts(n := own["scene"].nunique(), n_draws, (i,)) / n
        for how in drawn:
            effect = own[own["how"] == how].drop(columns=["part", "scene", "how"]).to_numpy()
            ranks = rankdata(np.vstack([effect.mean(0), counts @ effect]), axis=1)
            ranks -= ranks.mean(1, keepdims=True)
            drawn[how].append(ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12))
    ranks = {how: np.stack(each) for how, each in drawn.items()}  # (parts, 1 + draws, classes)
    n, scene = len(ranks["scene edit"]), ranks.pop("scene edit")
    both = {how: np.einsum("pdc,qdc->dpq", each, scene) for how, each in ranks.items()}
    crossed = both.pop("feature")
    feature, *random = (np.trace(each, axis1=1, axis2=2) / n for each in (crossed, *both.values()))
    others = (crossed.sum((1, 2)) - n * feature) / max(1, n * (n - 1))
    random, rng = np.stack(random), np.random.default_rng(0)
    paired = np.array([crossed[0][np.arange(n), rng.permutation(n)].mean() for _ in range(2000)])
    found = {"own": (feature, feature), "other parts": (others, others), "random direction": (random.mean(0), random)}
    found["beyond other parts"] = (feature - others,) * 2
    found["beyond random direction"] = feature - random.mean(0), feature - random
    results = {name: with_draws(value[0], draws[..., 1:].ravel(), n) for name, (value, draws) in found.items()}
    return results | {"p": with_draws((1 + (paired >= feature[0]).sum()) / 2001, [], n)}
