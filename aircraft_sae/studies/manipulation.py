"""Features as knobs in a second task: which part of the aircraft does a cell show?

From a cell's activations x, a linear head names the region it shows. Setting feature j to s times its maximum m_j
keeps what the autoencoder does not explain, so the head's logits follow in closed form:

    x' = x + (s m_j - f_j) d_j        W x' + b = W x + b + (s m_j - f_j) W d_j

The head reads one cell at a time, so a cell's name changes only if the feature's activation in that cell is changed.
Source: Stevens et al. 2025, arXiv 2502.06755; here every control is run.
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

from aircraft_sae.activations import Activations
from aircraft_sae.features import Regions, cell_covariance, encoded, random_directions
from aircraft_sae.features.regions import LEAST
from aircraft_sae.interventions.suppression import logits_from, matched_features
from aircraft_sae.metrics import bootstrap_counts, bootstrap_draws, with_draws, with_interval
from aircraft_sae.networks import Network
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import read_json, write_json, write_parquet

DOSES = (-2.0, 0.0, 0.5, 1.0, 2.0)
THRESHOLDS = (0.0, 0.1, 0.3, 1.0)  # as shares of a feature's maximum
N_RANDOM, N_PASSES = 20, 12  # random directions for each part: by the head alone, and with forward passes


@dataclass(frozen=True, eq=False)
class CellHead:
    """A linear read-out of cells. weight: (regions, d_in); bias: (regions,); names: of regions, "background" first."""

    weight: torch.Tensor
    bias: torch.Tensor
    names: list[str]

    @classmethod
    def open(cls, folder: str | Path) -> "CellHead":
        """Read what `segment` wrote."""
        arrays = load_file(Path(folder) / "head.safetensors")
        return cls(arrays["weight"], arrays["bias"], read_json(Path(folder) / "names.json")["names"])

    def logits(self, acts: torch.Tensor) -> torch.Tensor:
        """(…, regions) from acts (…, d_in)."""
        return acts @ self.weight.t() + self.bias

    def probe(self, region: int) -> torch.Tensor:
        """(d_in,) the head's own direction for a region: its weights minus their mean over regions."""
        return self.weight[region] - self.weight.mean(0)


def cell_regions(coverage: np.ndarray) -> np.ndarray:
    """(…) the region that fills most of a cell, from 1; 0 where all together fill less than LEAST of it."""
    return np.where(coverage.sum(-1) >= LEAST, coverage.argmax(-1) + 1, 0)


def segment(folder: Path, *, acts: Activations, pictures: Pictures) -> None:
    """Fit a head on 100,000 cells of training and validation pictures, and score it on test pictures.

    head.safetensors, names.json: the `CellHead`
    confusion.npy: (2, pictures, regions, regions) area by true region and cell name: the head's, then the right one
    Raises: ValueError for pictures without regions.
    """
    names = ["background", *pictures.region_names]
    if len(names) == 1:
        raise ValueError("the pictures have no regions: there is nothing to name in their cells")

    def truth(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (…, regions) area of each, (…) the right name
        covered = np.stack([pictures.regions(image, acts.grid) for image in acts.images["image"].iloc[rows]])
        return np.concatenate([1 - covered.sum(3, keepdims=True), covered], 3), cell_regions(covered)

    rows, test = acts.rows("train", "val"), acts.rows("test")
    labels = truth(rows)[1].ravel()
    some = np.sort(np.random.default_rng(0).permutation(len(labels))[:100_000])
    image, cell = np.divmod(some, acts.cells_per_image)
    x, labels = np.float32(acts.acts[rows].reshape(len(rows), -1, acts.d_in)[image, cell]), labels[some]
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    present, n = np.unique(labels, return_counts=True)
    weights = dict(zip(present.tolist(), np.sqrt(n.min() / n), strict=True))  # or few cells would be named gear
    fitted = LogisticRegression(C=0.1, max_iter=100, tol=1e-3, class_weight=weights).fit((x - mean) / deviation, labels)
    coef, intercept = fitted.coef_, fitted.intercept_
    if len(coef) == 1:  # two regions: scikit-learn keeps the second's log-odds alone
        coef, intercept = (np.concatenate([-each, each]) / 2 for each in (coef, intercept))
    weight, bias = np.zeros((len(names), acts.d_in), np.float32), np.full(len(names), -1e4, np.float32)
    weight[present] = coef / deviation  # a region that no cell showed is never named
    bias[present] = intercept - weight[present] @ mean
    head = CellHead(torch.from_numpy(weight), torch.from_numpy(bias), names)
    area, right = truth(test)
    named = torch.cat([head.logits(block).argmax(-1) for block in acts.blocks(test)]).numpy()
    area, right, named = (each.reshape(len(test), acts.cells_per_image, -1) for each in (
        area, np.eye(len(names))[right], np.eye(len(names))[named]))  # fmt: skip
    np.save(folder / "confusion.npy", np.stack([area.transpose(0, 2, 1) @ each for each in (named, right)]))
    write_safetensors(folder / "head.safetensors", {"weight": head.weight, "bias": head.bias})
    write_json(folder / "names.json", {"names": names})


def ious(confusion: np.ndarray, counts=None) -> np.ndarray:
    """(regions,) or (draws, regions) IoU; nan for absent ones. confusion: areas (pictures, true region, named one)."""
    total = np.tensordot(np.ones(len(confusion)) if counts is None else counts, confusion, 1)
    hits = np.diagonal(total, axis1=-2, axis2=-1)
    union = total.sum(-1) + total.sum(-2) - hits
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)


def segmentation_scores(folder: Path) -> dict[str, dict]:
    """Results: iou/<region> of the head, iou_right/<region> of the right names; means over parts, their ratio."""
    names, found, mious = CellHead.open(folder).names, {}, []
    for suffix, confusion in zip(("", "_right"), np.load(folder / "confusion.npy"), strict=True):
        value, draws, n = ious(confusion), bootstrap_draws(ious, confusion), len(confusion)
        mious.append((np.nanmean(value[1:]), np.nanmean(draws[:, 1:], 1)))
        found[f"miou{suffix}"] = with_draws(*mious[-1], n)
        known = np.flatnonzero(np.isfinite(value))
        found |= {f"iou{suffix}/{names[i]}": with_draws(value[i], draws[:, i], n) for i in known}
    ratios = (own / right for own, right in zip(*mious, strict=True))
    return found | {"miou_of_grid_ceiling": with_draws(*ratios, n)}


def f1_scores(codes: csr_array, shows: np.ndarray, least: np.ndarray) -> np.ndarray:
    """(d, parts) F1 of "the feature is active, and at least `least` (d,)" for "the cell shows the part"."""
    on = codes.copy()
    on.data = (codes.data >= np.maximum(least[codes.indices], 1e-12)).astype(np.float64)
    hits = (on.T @ csr_array(shows.astype(np.float64))).toarray()
    return 2 * hits / np.maximum(on.sum(axis=0)[:, None] + shows.sum(0), 1)  # 0 where there is neither


def choose_knobs(codes: csr_array, shows: np.ndarray) -> pd.DataFrame:
    """The feature with the best F1 for each part, one row per part: feature_id, threshold, f1, top, active.

    codes: (cells, d) activations; shows: (cells, parts) bool. threshold: the best of THRESHOLDS; top: the feature's
    maximum; active: share of the part's cells in which it is active.
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
    """Set each part's best feature, and its controls, in all cells of half B's test pictures.

    saes: the autoencoder as "feature", and others by name, each with best features of its own. Other arms change each
    cell by the same length along "random direction" (the mean of N_RANDOM, with the cells' covariance), "isotropic
    direction", "random feature" (of like density and strength, if there is one) and "probe" (`CellHead.probe`).
    knobs.parquet: arm, part, the columns of `choose_knobs` (on half A); f1_b: F1 on half B
    turned.parquet: arm, part, dose, image
        n, n_other: cells that the head gives the part's name, and other cells
        target, other: share of each that lose their names, nan if there are none
        gained: share of the others that get the part's name
    """
    head, rows, regions = CellHead.open(segmentation), acts.rows("test"), Regions.of(acts, pictures)
    cells, rows_b = np.repeat(regions.in_b, acts.cells_per_image), rows[regions.in_b]
    before = torch.cat([head.logits(block).flatten(0, 2) for block in acts.blocks(rows_b)]).t().contiguous()
    named, images = before.argmax(0).view(len(rows_b), -1).numpy(), acts.images["image"].iloc[rows_b].to_numpy()
    shows, knobs, turned = regions.labels.reshape(-1, len(regions.names)), [], []

    def names_after(amount: np.ndarray, direction: torch.Tensor) -> np.ndarray:
        logits = torch.addr(before, head.weight @ direction, torch.from_numpy(np.float32(amount)))
        return logits.max(0).indices.view(named.shape).numpy()  # regions first: four times as fast

    for arm, sae in saes.items():
        codes, W_dec = encoded(sae, acts.blocks(rows)), sae.W_dec.detach()
        own, other = codes[~cells], codes[cells].tocsc()
        chosen, n_on = choose_knobs(own, shows[~cells]), np.diff(own.tocsc().indptr)
        ids, least = chosen["feature_id"].to_numpy(), (chosen["threshold"] * chosen["top"]).to_numpy()
        f1_b = f1_scores(other[:, ids].tocsr(), shows[cells], least).diagonal()
        knobs.append(chosen.assign(f1_b=f1_b, arm=arm, part=regions.names))
        density = {"density_cell": n_on / own.shape[0], "mean": own.sum(axis=0) / np.maximum(n_on, 1)}
        partner = matched_features(pd.DataFrame(density | {"norm": W_dec.norm(dim=1)}))
        for i, (j, top) in enumerate(zip(ids, chosen["top"], strict=True), 1):
            ways = {arm: W_dec[[j]]}
            if arm == "feature":
                ways |= control_directions(W_dec[j], i, head, acts, W_dec[partner[[j]]] if partner[j] >= 0 else None)
            activation, target = other[:, [j]].toarray().ravel(), named == i
            facts = {"part": head.names[i], "image": images, "n": target.sum(1), "n_other": (~target).sum(1)}
            for dose, (way, directions) in product(DOSES, ways.items()):
                after = np.stack([names_after(dose * top - activation, each) for each in directions])
                changed, gained = (after != named).mean(0), (after == i).mean(0)
                with np.errstate(invalid="ignore"):
                    shares = {"target": (changed * target).sum(1) / facts["n"],
                              "other": (changed * ~target).sum(1) / facts["n_other"],
                              "gained": (gained * ~target).sum(1) / facts["n_other"]}  # fmt: skip
                turned.append(pd.DataFrame({"arm": way, "dose": dose} | facts | shares))
    write_parquet(pd.concat(knobs, ignore_index=True), folder / "knobs.parquet")
    write_parquet(pd.concat(turned, ignore_index=True), folder / "turned.parquet")


def control_directions(
    direction: torch.Tensor, region: int, head: CellHead, acts: Activations, partner: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """By arm, directions (n, d_in) as long as a feature's. partner: (1, d_in) the "random feature", or None."""
    spreads = {"random direction": cell_covariance(acts), "isotropic direction": torch.eye(acts.d_in)}
    ways = {name: random_directions(direction.expand(N_RANDOM, -1), each, (region,)) for name, each in spreads.items()}
    ways |= {"probe": head.probe(region)[None]} | ({} if partner is None else {"random feature": partner})
    return {name: each * direction.norm() / each.norm(dim=1, keepdim=True) for name, each in ways.items()}


def macro_average(turned: pd.DataFrame, arm: str, dose: float, which: str = "target") -> tuple[dict, np.ndarray]:
    """(result, draws) of a share: its mean over pictures that have such cells, then over parts that the head names.

    which: "target", "other" or "gained". A part without a "random feature" is left out of that arm.
    """
    ever_named = turned.groupby("part")["n"].transform("sum") > 0
    own = turned[ever_named & (turned["arm"] == arm) & (turned["dose"] == dose)]
    shares = own.pivot(index="image", columns="part", values=which).to_numpy()
    draws = bootstrap_draws(_mean_of_means, shares)
    return with_draws(_mean_of_means(shares, np.ones(len(shares))), draws, len(shares)), draws


def _mean_of_means(shares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nanmean((counts @ np.nan_to_num(shares)) / (counts @ np.isfinite(shares)), axis=-1)


def on_target(turned: pd.DataFrame, arm: str, dose: float) -> dict[str, float | None]:
    """Of the cells that change, the share that had the part's name before; pictures are the units."""
    own = turned[(turned["arm"] == arm) & (turned["dose"] == dose)]
    hits = own["n"] * own["target"].fillna(0)
    sums = own.assign(hits=hits, all=hits + own["n_other"] * own["other"]).groupby("image")[["hits", "all"]].sum()
    return with_interval(sums["hits"], sums["all"])


def beyond(turned: pd.DataFrame, dose: float, control: str) -> dict[str, dict]:
    """For each part, the share of its cells that the feature renames, minus that of `control`; by picture."""
    own = turned[turned["dose"] == dose].pivot(index=["part", "image"], columns="arm", values="target")
    apart = (own["feature"] - own[control]).dropna()
    return {part: with_interval(each, np.ones(len(each))) for part, each in apart.groupby(level=0, sort=False)}


@torch.no_grad()
def compare_edits(
    folder: Path, *, network: Network, sae: SparseAutoencoder, segmentation: Path, knobs: Path,
    scenes: Activations, acts: Activations, dose: float, everywhere: bool,
) -> None:  # fmt: skip
    """Set a part's feature in the scenes in which the part was edited: does the same happen?

    scenes: the network's activations of `VariedScenes`; acts: of all pictures.
    everywhere: change all cells, or only those with the part's name before or after the scene edit. Ways (how):
    "feature", and at the same length "probe" and "random direction 0", … with the covariance of acts.
    cells.parquet: part, scene, how, and counts of cells
        target, others: named the part before, or not; others_turned: of others, those that the way renames
        edited, turned, both: of target, those renamed by the scene edit, by the way, by both
        same, shuffled: of both, those with the same new name; the same with shuffled names
        background: of both, those that the scene edit makes background
    logits.parquet: part, scene, how (also "scene edit"), and for each class the change of its logit
    named.npy: (edited scenes, 3, rows, columns) names as it is, with the feature set, with the scene edit
    Raises: ValueError for a network that cannot start at the site.
    """
    head, site = CellHead.open(segmentation), sae.cfg.site
    table = pd.read_parquet(knobs / "knobs.parquet").query("arm == 'feature'").set_index("part")
    cells, logits, maps = [], [], []
    for part, own in scenes.images.query("part != ''").groupby("part", sort=False):
        i, j, top = head.names.index(part), int(table.at[part, "feature_id"]), float(table.at[part, "top"])
        whole, edited = (torch.from_numpy(scenes.acts[rows]).float() for rows in (own["number"], own.index))
        activation = torch.from_numpy(encoded(sae, [whole])[:, [j]].toarray()).view(*whole.shape[:3], 1)
        before, after = (head.logits(each).argmax(-1) for each in (whole, edited))
        where = torch.ones_like(before, dtype=torch.bool) if everywhere else (before == i) | (after == i)
        amount, direction, probe = (dose * top - activation) * where[..., None], sae.W_dec.detach()[j], head.probe(i)
        drawn = random_directions(direction.expand(N_PASSES, -1), cell_covariance(acts), (i, 1))
        ways = {"feature": direction, "probe": probe * direction.norm() / probe.norm()}
        ways |= {f"random direction {n}": each for n, each in enumerate(drawn)}
        changed = {"scene edit": edited} | {how: whole + amount * each for how, each in ways.items()}
        plain, facts = logits_from(network, site, whole, None), {"part": part, "scene": own["number"].to_numpy()}
        for how, x in changed.items():
            change = (logits_from(network, site, x, None) - plain).numpy()
            logits.append(pd.DataFrame(facts | {"how": how}).join(pd.DataFrame(change, columns=network.classes)))
            named = head.logits(x).argmax(-1)
            if how != "scene edit":
                cells.append(pd.DataFrame(facts | {"how": how} | _counts(before, named, after, i)))
            if how == "feature":
                maps.append(torch.stack([before, named, after], 1).byte().numpy())
    np.save(folder / "named.npy", np.concatenate(maps))
    write_parquet(pd.concat(cells, ignore_index=True), folder / "cells.parquet")
    write_parquet(pd.concat(logits, ignore_index=True), folder / "logits.parquet")


def _counts(before: torch.Tensor, named: torch.Tensor, after: torch.Tensor, part: int) -> dict[str, np.ndarray]:
    """Counts of `compare_edits` in each scene, from the names of its cells (n, rows, columns)."""
    target, turned, edited = before == part, named != before, after != part
    both = target & turned & edited
    masks = {
        "target": target, "edited": target & edited, "turned": target & turned, "both": both,
        "same": both & (named == after), "background": both & (after == 0),
        "others": ~target, "others_turned": ~target & turned,
    }  # fmt: skip
    counts = {name: each.sum((1, 2)).numpy() for name, each in masks.items()}
    regions = range(int(torch.stack([named, after]).max()) + 1)
    by_name = [torch.stack([(both & (each == r)).sum((1, 2)) for r in regions], 1) for each in (named, after)]
    return counts | {"shuffled": (by_name[0] * by_name[1]).sum(1).numpy() / np.maximum(counts["both"], 1)}


def logit_agreement(logits: pd.DataFrame) -> dict[str, dict]:
    """Do a feature and a scene edit move the same logits? Rank correlations over classes, means over parts.

    Effects are means over a part's scenes; intervals redraw scenes within each part and pool random directions. own: a
    part's feature and its scene edit; other parts: other parts' scene edits; random direction: in the feature's place;
    beyond …: own minus each; p: of own, against features and scene edits paired at random.
    """
    drawn = {how: [] for how in logits["how"].unique() if how != "probe"}
    for i, (_, own) in enumerate(logits.groupby("part", sort=False)):
        counts = bootstrap_counts(n := own["scene"].nunique(), 500, (i,)) / n
        for how in drawn:
            effect = own[own["how"] == how].drop(columns=["part", "scene", "how"]).to_numpy()
            ranks = rankdata(np.vstack([effect.mean(0), counts @ effect]), axis=1)
            ranks -= ranks.mean(1, keepdims=True)
            drawn[how].append(ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12))
    ranks = {how: np.stack(each) for how, each in drawn.items()}  # (parts, 1 + draws, classes)
    n, scene = len(ranks["scene edit"]), ranks.pop("scene edit")
    crossed = {how: np.einsum("pdc,qdc->dpq", each, scene) for how, each in ranks.items()}
    same_part = {how: np.trace(each, axis1=1, axis2=2) / n for how, each in crossed.items()}
    own, random = same_part.pop("feature"), np.stack([*same_part.values()])
    others = (crossed["feature"].sum((1, 2)) - n * own) / max(1, n * (n - 1))
    found = {"own": own, "other parts": others, "random direction": random}
    found |= {"beyond other parts": own - others, "beyond random direction": own - random}
    found = {name: np.atleast_2d(each) for name, each in found.items()}  # (directions, 1 + draws)
    results = {name: with_draws(each[:, 0].mean(), each[:, 1:].ravel(), n) for name, each in found.items()}
    rng = np.random.default_rng(0)
    paired = np.array([crossed["feature"][0][np.arange(n), rng.permutation(n)].mean() for _ in range(2000)])
    return results | {"p": with_draws((1 + (paired >= own[0]).sum()) / 2001, [], n)}
