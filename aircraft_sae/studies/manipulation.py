"""Features as knobs in a second task: which part of the aircraft does a cell show?

A linear head on the acts x of a cell names its region. Turning feature j to s sets it to s times its maximum m_j, in
every cell or in some, and keeps what the autoencoder does not explain:

    x' = x + (s m_j - f_j) d_j,  so that the head's logits become  W x' + b = W x + b + (s m_j - f_j) W d_j

Source: Stevens et al. 2025, arXiv 2502.06755, with every control run. As the head reads each cell by itself, what
changes elsewhere changes because the feature is active there, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
from aircraft_sae.metrics import bootstrap_counts, bootstrap_draws, with_draws
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import read_json, write_json, write_parquet

DOSES = (-2.0, 0.0, 0.5, 1.0, 2.0)
THRESHOLDS = (0.0, 0.1, 0.3, 1.0)
"""Shares of a feature's maximum from which it is taken to say that a cell shows its part."""
N_RANDOM, N_PASSES = 20, 4
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
    region, as shares of a cell, by the region that the head names their cell, and by `cell_regions`: the most that one
    region a cell can reach. Raises: ValueError for pictures without regions.
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
    rarity = dict(
        enumerate(1 / np.sqrt(np.maximum(np.bincount(shown["fit"][some]), 1)))
    )  # else few cells are named a gear
    rarity = {region: weight / max(rarity.values()) for region, weight in rarity.items()}
    fitted = LogisticRegression(C=0.1, max_iter=100, tol=1e-3, class_weight=rarity)
    fitted.fit((x - mean) / deviation, shown["fit"][some])
    weight, bias = np.zeros((len(names), acts.d_in), np.float32), np.full(len(names), -1e4, np.float32)
    weight[fitted.classes_] = fitted.coef_ / deviation  # regions that no cell showed are never named
    bias[fitted.classes_] = fitted.intercept_ - weight[fitted.classes_] @ mean
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
    """miou, miou_ceiling and miou_of_grid_ceiling, and iou/<region> and iou_ceiling/<region>, as results."""
    names, (own, ceiling) = CellHead.open(folder).names, np.load(folder / "confusion.npy")
    drawn = {name: bootstrap_draws(ious, each) for name, each in {"": own, "_ceiling": ceiling}.items()}
    value = {"": ious(own), "_ceiling": ious(ceiling)}
    found = {f"miou{name}": with_draws(np.nanmean(value[name]), np.nanmean(drawn[name], 1), len(own)) for name in value}
    ratio, of = (np.nanmean(each[""], -1) / np.nanmean(each["_ceiling"], -1) for each in (value, drawn))
    found["miou_of_grid_ceiling"] = with_draws(ratio, of, len(own))
    for name in value:
        for i, region in enumerate(names):
            if np.isfinite(value[name][i]):
                found[f"iou{name}/{region}"] = with_draws(value[name][i], drawn[name][:, i], len(own))
    return found


def choose_knobs(codes: csr_array, shows: np.ndarray) -> pd.DataFrame:
    """The feature that tells each part best: a row a part, with feature_id, threshold, f1 and top (its maximum).

    codes: (cells, d) feature activations; shows: (cells, parts) bool, whether a cell shows a part. f1: of "the feature
    is at least threshold times its maximum", the best of THRESHOLDS.
    """
    top, found = codes.max(axis=0).toarray().ravel(), []
    member = csr_array(shows.astype(np.float64))
    for threshold in THRESHOLDS:
        on = codes.copy()
        on.data = (codes.data >= np.maximum(threshold * top[codes.indices], 1e-12)).astype(np.float64)
        found.append(2 * (on.T @ member).toarray() / np.maximum(on.sum(axis=0)[:, None] + shows.sum(0), 1))
    f1 = np.stack(found)  # (thresholds, d, parts)
    ids, parts = f1.max(0).argmax(0), np.arange(shows.shape[1])
    own = f1[:, ids, parts]
    threshold = np.array(THRESHOLDS)[own.argmax(0)]
    return pd.DataFrame({"feature_id": ids, "threshold": threshold, "f1": own.max(0), "top": top[ids]})


def turn_knobs(
    folder: Path, *, segmentation: Path, acts: Activations, pictures: Pictures, saes: Mapping[str, SparseAutoencoder]
) -> None:
    """Turn the best feature of each part, and what is turned in its place, in all cells of half B's test pictures.

    saes: the autoencoder as "feature", and others by name, whose own best features are controls. knobs.parquet: arm,
    part, feature_id, threshold, f1, top (the feature's maximum on half A). turned.parquet: arm, part, dose, image, n
    (cells named the part), target (share of these whose name changes; nan without any) and other (of the other cells).
    Arms beside `saes`, of as much in each cell along another direction of equal length: "random direction" (the mean of
    N_RANDOM, spread as the cells are), "isotropic direction" (the same, spread evenly), "random feature" (of like
    density and strength; left out where there is none), "probe" (the head's own row for the part, less the mean row).
    """
    head, rows = CellHead.open(segmentation), acts.rows("test")
    regions = Regions.of(acts, pictures)
    cells = np.repeat(regions.in_b, acts.cells_per_image)
    before = torch.cat([head.logits(block).flatten(0, 2) for block in acts.blocks(rows[regions.in_b])]).t().contiguous()
    named, images = before.argmax(0).numpy(), acts.images["image"].iloc[rows[regions.in_b]].to_numpy()
    shows, knobs, turned = regions.labels[~regions.in_b].reshape(-1, len(regions.names)), [], []

    def change(amount: np.ndarray, direction: torch.Tensor) -> np.ndarray:
        after = torch.addr(before, head.weight @ direction, torch.from_numpy(np.float32(amount)))
        return (after.max(0).indices.numpy() != named).reshape(len(images), -1)  # regions first: four times as fast

    for arm, sae in saes.items():
        codes, W_dec = encoded(sae, acts.blocks(rows)), sae.W_dec.detach()
        own, other = codes[~cells], codes[cells].tocsc()
        chosen, n_on = choose_knobs(own, shows), np.diff(own.tocsc().indptr)
        facts = {"density_cell": n_on / own.shape[0], "mean": own.sum(axis=0) / np.maximum(n_on, 1)}
        partner = matched_features(pd.DataFrame(facts | {"norm": W_dec.norm(dim=1)}))
        knobs.append(chosen.assign(arm=arm, part=regions.names))
        for i, (j, top) in enumerate(zip(chosen["feature_id"], chosen["top"], strict=True), 1):
            ways = {arm: W_dec[[j]]}
            if arm == "feature":
                ways |= in_its_place(W_dec[j], i, head, acts, W_dec[partner[[j]]] if partner[j] >= 0 else None)
            activation, target = other[:, [j]].toarray().ravel(), (named == i).reshape(len(images), -1)
            for dose in DOSES:
                amount = dose * top - activation
                for way, directions in ways.items():
                    changed = np.mean([change(amount, each) for each in directions], 0)
                    with np.errstate(invalid="ignore"):
                        shares = {name: (changed * where).sum(1) / where.sum(1)
                                  for name, where in {"target": target, "other": ~target}.items()}  # fmt: skip
                    facts = {"arm": way, "part": head.names[i], "dose": dose, "image": images, "n": target.sum(1)}
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
    """(result, draws) of a share: mean over the pictures that have such cells, then over parts. which: or "other"."""
    own = turned[(turned["arm"] == arm) & (turned["dose"] == dose)]
    shares = own.pivot(index="image", columns="part", values=which).to_numpy()
    draws = bootstrap_draws(_mean_of_means, shares)
    return with_draws(_mean_of_means(shares), draws, len(shares)), draws


def _mean_of_means(shares: np.ndarray, counts=None) -> np.ndarray:
    counts = np.ones(len(shares)) if counts is None else counts
    with np.errstate(invalid="ignore"):
        return np.nanmean((counts @ np.nan_to_num(shares)) / (counts @ np.isfinite(shares)), axis=-1)


@torch.no_grad()
def compare_edits(
    folder: Path, *, network: Network, sae: SparseAutoencoder, segmentation: Path, knobs: Path, scenes: Path,
    acts: Activations, dose: float, everywhere: bool,
) -> None:  # fmt: skip
    """Turn each part's knob in scenes of which the part was edited too: does the same follow?

    scenes: what `edit_scenes` wrote; acts: of the study, for random directions; everywhere: in all cells, or in those
    named the part. cells.parquet: a row an edited scene: part, scene, target (cells named the part), turned (of these,
    by the feature), edited (by the scene edit), same (turned to what the edited scene is named there), chance (of that,
    were the names shuffled over turned cells), others, others_turned. named.npy: (edited scenes, 3, rows, columns) what
    the head names: as it is, turned, edited. logits.parquet: part, scene, how ("scene
    edit", "feature", "random direction 0", …) and the change of each class's logit.
    Raises: ValueError for a network that cannot go on from the site.
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
        target = before == i
        amount = (dose * top - activation) * (1.0 if everywhere else target[..., None])
        direction = sae.W_dec.detach()[j]
        drawn = random_directions(direction.expand(N_PASSES, -1), cell_covariance(acts), (i, 1))
        ways = {"feature": direction} | {f"random direction {n}": each for n, each in enumerate(drawn)}
        seen = {"scene edit": edited} | {how: whole + amount * each for how, each in ways.items()}
        named = head.logits(seen["feature"]).argmax(-1)
        maps.append(torch.stack([before, named, after], 1).byte().numpy())
        for s, scene in enumerate(own["scene"]):
            turned, others = target[s] & (named[s] != i), ~target[s]
            new, there = named[s][turned], after[s][turned]
            shares = [each.bincount(minlength=len(head.names)).double() for each in (new, there)]
            counts = {
                "target": target[s], "turned": turned, "edited": target[s] & (after[s] != i), "same": new == there,
                "others": others, "others_turned": others & (named[s] != before[s]),
            }  # fmt: skip
            facts = {"part": part, "scene": scene, "chance": float(shares[0] @ shares[1]) / max(1, len(new))}
            cells.append(facts | {name: int(each.sum()) for name, each in counts.items()})
        plain = see(whole)
        for how, each in seen.items():
            facts = pd.DataFrame({"part": part, "scene": own["scene"].to_numpy(), "how": how})
            logits.append(facts.join(pd.DataFrame(see(each) - plain, columns=network.classes)))
    np.save(folder / "named.npy", np.concatenate(maps))
    write_parquet(pd.DataFrame(cells), folder / "cells.parquet")
    write_parquet(pd.concat(logits, ignore_index=True), folder / "logits.parquet")


def agreement(logits: pd.DataFrame, n_draws: int = 500) -> dict[str, dict]:
    """Do a feature and a scene edit move the same logits? Rank correlations over classes, means over parts.

    logits: of `compare_edits`. own: of the effects of a part's feature and of its scene edit, each the mean over
    scenes; other parts: of a part's feature and other parts' scene edits; random direction: in the feature's place; and
    how far own is beyond either. Intervals: scenes drawn anew within each part.
    """
    drawn = {how: [] for how in logits["how"].unique()}
    for i, (_, own) in enumerate(logits.groupby("part", sort=False)):
        counts = bootstrap_counts(n := own["scene"].nunique(), n_draws, (i,)) / n
        for how, each in own.drop(columns=["part", "scene"]).groupby("how"):
            effect = each.drop(columns="how").to_numpy()
            ranks = rankdata(np.vstack([effect.mean(0), counts @ effect]), axis=1)
            ranks -= ranks.mean(1, keepdims=True)
            drawn[how].append(ranks / np.maximum(np.linalg.norm(ranks, axis=1, keepdims=True), 1e-12))
    ranks = {how: np.stack(each) for how, each in drawn.items()}  # (parts, 1 + draws, classes)
    n, scene = len(ranks["scene edit"]), ranks.pop("scene edit")
    both = {how: np.einsum("pdc,qdc->dpq", each, scene) for how, each in ranks.items()}
    own = {how: np.trace(each, axis1=1, axis2=2) / n for how, each in both.items()}
    feature = own.pop("feature")
    found = {"own": feature, "random direction": np.mean([*own.values()], 0)}
    found["other parts"] = (both["feature"].sum((1, 2)) - n * feature) / max(1, n * (n - 1))
    for name in ("other parts", "random direction"):
        found[f"beyond {name}"] = feature - found[name]
    return {name: with_draws(each[0], each[1:], n) for name, each in found.items()}
