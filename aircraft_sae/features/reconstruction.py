"""How good an autoencoder is: reconstruction, sparsity, what splicing costs the classifier; and its baselines.

Whatever has `reconstruct(acts) -> (recon, codes or None)` on (n, d_in) is measured: trained autoencoders and baselines
alike. Sums run over images in float64 on the network's own scale, so that intervals are over images, never cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import orthogonal_mp_gram
from tqdm import tqdm

from aircraft_sae.activations import Activations
from aircraft_sae.metrics import with_interval
from aircraft_sae.sae import Codes, SparseAutoencoder


class Reconstructs(Protocol):
    """An autoencoder or a baseline."""

    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, Codes | None]:
        """(recon (n, d_in), codes where there are any)."""


@dataclass
class Linear:
    """mean + (x - mean) projected on orthonormal rows `basis` (k, d_in): PCA, or with no rows the mean alone."""

    mean: torch.Tensor
    basis: torch.Tensor

    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.mean + (acts - self.mean) @ self.basis.t() @ self.basis, None


@dataclass
class Nearest:
    """The nearest of `centres` (n_centres, d_in): k-means, one "feature" a cell."""

    centres: torch.Tensor

    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, Codes]:
        best = torch.cdist(acts, self.centres).argmin(1)
        return self.centres[best], Codes(torch.ones(len(acts)), best, torch.arange(len(acts) + 1), len(self.centres))


@dataclass
class Pursuit:
    """Orthogonal matching pursuit of x - mean with k unit rows of `directions` (d_sae, d_in), which nobody trained.

    Source: Pati, Rezaiifar & Krishnaprasad 1993; here scikit-learn's.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    k: int

    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, None]:
        centred, directions = (acts - self.mean).numpy(), self.directions.numpy()
        products = directions @ centred.T
        codes = orthogonal_mp_gram(directions @ directions.T, products, n_nonzero_coefs=self.k)
        return self.mean + torch.from_numpy((directions.T @ codes).T).float(), None


def pca(acts: Activations, rows: np.ndarray, k: int) -> Linear:
    """The mean and the k directions of most variance over the cells of these images (exact, one pass)."""
    mean, _ = acts.moments(rows)
    second = torch.zeros(acts.d_in, acts.d_in, dtype=torch.float64)
    for block in acts.blocks(rows):
        cells = block.flatten(0, 2).double() - mean
        second.addmm_(cells.t(), cells)
    directions = torch.linalg.eigh(second).eigenvectors.flip(1).t()[:k]
    return Linear(mean.float(), directions.float())


def k_means(acts: Activations, rows: np.ndarray, n_centres: int, n_cells: int = 20_000, seed: int = 0) -> Nearest:
    """Mini-batch k-means (scikit-learn's) on shuffled cells of these images."""
    n_cells = min(n_cells, len(rows) * acts.cells_per_image)
    cells = next(acts.batches(rows, n_cells, seed)).float().numpy()
    options = dict(init="random", n_init=1, max_iter=5, batch_size=4096, random_state=seed)  # k-means++ would take 20 s
    fitted = MiniBatchKMeans(min(n_centres, n_cells), **options).fit(cells)
    return Nearest(torch.from_numpy(fitted.cluster_centers_).float())


def readers(sae: SparseAutoencoder, directions: torch.Tensor, biases: torch.Tensor) -> SparseAutoencoder:
    """Given readers as an autoencoder of sae's site: feature i is directions[i] . x + biases[i] where positive.

    directions: (d, d_in) with d at most d_in, biases: (d,); further features never fire. It reconstructs nothing.
    Raises: ValueError for other shapes.
    """
    if directions.shape != (len(biases), sae.d_in) or len(biases) > sae.d_in:
        got = f"{tuple(directions.shape)} and {tuple(biases.shape)}"
        raise ValueError(f"readers need directions (d, {sae.d_in}) and biases (d,), d at most {sae.d_in}, got {got}")
    made = SparseAutoencoder(replace(sae.cfg, variant="batchtopk", k=1, expansion=1, tied=False, **PLAIN), sae.d_in)
    with torch.no_grad():
        for values, given in ((made.W_enc_rows, directions), (made.b_enc, biases)):
            values.zero_()[: len(given)] = given
    return made


def dictionary(sae: SparseAutoencoder, mean: torch.Tensor, directions: torch.Tensor) -> SparseAutoencoder:
    """Directions (d, d_in) that nobody trained, as an autoencoder: of x - mean the k largest products are kept.

    d must be a multiple of d_in. With the network's channels and their negatives: the neuron basis.
    Raises: ValueError for other shapes.
    """
    if not len(directions) or directions.shape != (len(directions) // sae.d_in * sae.d_in, sae.d_in):
        d_in, got = sae.d_in, tuple(directions.shape)
        raise ValueError(f"a dictionary needs directions (d, {d_in}) with d a multiple of {d_in}, got {got}")
    made = SparseAutoencoder(
        replace(sae.cfg, variant="topk", expansion=len(directions) // sae.d_in, tied=False, **PLAIN), sae.d_in
    )
    with torch.no_grad():
        for rows in (made.W_dec, made.W_enc_rows):
            rows.copy_(torch.nn.functional.normalize(directions))
        made.b_dec.copy_(mean)
    return made


def both_signs(directions: torch.Tensor) -> torch.Tensor:
    """Each direction and its negative, since features are never negative."""
    return torch.cat([directions, -directions])


PLAIN = {"prefixes": (1.0,), "l1_coefficient": 0.0}


@dataclass
class Measured:
    """Sums per image (arrays (n_images,) float64) and counts per feature of one autoencoder on some images."""

    table: pd.DataFrame
    """error, total, pooled_error, pooled_total, entries (active features, summed over cells), distinct (features); and
    cells, error, total, entries of foreground and background where these are told apart."""
    fired: np.ndarray
    """(d_sae,) cells on which each feature fired; empty without codes."""
    n_cells: int
    results: dict[str, dict[str, float | None]] = field(default_factory=dict)


@torch.no_grad()
def measure(
    model: Reconstructs,
    acts: Activations,
    rows: np.ndarray,
    mean: torch.Tensor,
    foreground: np.ndarray | None = None,
    progress: bool = False,
) -> Measured:
    """Reconstruct all cells of these images. mean: (d_in,) of the training cells, which fvu compares with.

    foreground: (images, rows, columns) bool, for the fvu and l0 of cells that show the aircraft, and of the others.
    Raises: ValueError for no images, a foreground of others, and what `encode` raises.
    """
    _check_images(rows, foreground, "masks")
    parts, fired, start, mean = [], None, 0, mean.float()
    for block in tqdm(acts.blocks(rows), "reconstruct", -(-len(rows) // 64), disable=not progress, leave=False):
        n, shape = len(block), block.shape
        cells = block.flatten(0, 2)
        recon, codes = model.reconstruct(cells)
        error, total = (recon - cells).view(n, -1, shape[-1]).double(), (cells - mean).view(n, -1, shape[-1]).double()
        part = {
            "error": error.square().sum((1, 2)), "total": total.square().sum((1, 2)),
            "pooled_error": error.mean(1).square().sum(1), "pooled_total": total.mean(1).square().sum(1),
        }  # fmt: skip
        shown = None if foreground is None else torch.from_numpy(foreground[start : start + n]).view(n, -1)
        start += n
        places = {} if shown is None else {"foreground": shown, "background": ~shown}
        for place, mask in places.items():
            part[f"cells_{place}"] = mask.sum(1).double()
            part[f"error_{place}"] = (error.square().sum(2) * mask).sum(1)
            part[f"total_{place}"] = (total.square().sum(2) * mask).sum(1)
        if codes is not None:
            codes = codes.where(codes.values > 0)
            for place, mask in places.items():
                part[f"entries_{place}"] = (codes.offsets.diff().view(n, -1) * mask).sum(1).double()
            image = codes.cells // (shape[1] * shape[2])
            part["entries"] = torch.bincount(image, minlength=n).double()
            seen = torch.zeros(n, codes.d_sae, dtype=torch.bool)
            seen[image, codes.features] = True
            part["distinct"] = seen.sum(1).double()
            counts = torch.bincount(codes.features, minlength=codes.d_sae)
            fired = counts if fired is None else fired + counts
        parts.append(pd.DataFrame({name: values.numpy() for name, values in part.items()}))
    table = pd.concat(parts, ignore_index=True)
    n_cells = len(rows) * acts.cells_per_image
    measured = Measured(table, np.zeros(0, int) if fired is None else fired.numpy(), n_cells)
    measured.results = _summary(measured)
    return measured


def _summary(measured: Measured) -> dict[str, dict[str, float | None]]:
    table, n_images = measured.table, len(measured.table)
    per_image = np.full(n_images, measured.n_cells / n_images)
    ratios = {"fvu": ("error", "total"), "pooled_fvu": ("pooled_error", "pooled_total")}
    results = {name: with_interval(table[a], table[b]) for name, (a, b) in ratios.items()}
    for place in ("foreground", "background"):
        if table.get(f"total_{place}", pd.Series([0.0])).sum():
            own = table[table[f"cells_{place}"] > 0]  # a draw of images without any such cell has no fvu
            results[f"fvu_{place}"] = with_interval(own[f"error_{place}"], own[f"total_{place}"])
            if len(measured.fired):
                results[f"l0_{place}"] = with_interval(own[f"entries_{place}"], own[f"cells_{place}"])
    if len(measured.fired):
        results["l0"] = with_interval(table["entries"], per_image)
        results["distinct_features_per_image"] = with_interval(table["distinct"], np.ones(n_images))
        density = measured.fired / measured.n_cells
        for name, share in {"dead_share": (density == 0).mean(), "dense_share": (density > 0.1).mean()}.items():
            results[name] = {"value": float(share), "low": None, "high": None, "n": len(density)}
    return results


@torch.no_grad()
def splice(
    model: Reconstructs, acts: Activations, rows: np.ndarray, labels: np.ndarray, after: Callable, mean: torch.Tensor
) -> dict[str, dict[str, float | None]]:
    """What it costs the classifier to go on from the reconstruction, with 95 % intervals over images.

    labels: (n_images,) class indices; after: logits from acts (n, d_in, rows, columns), as `Classifier.logits_from`.
    top1_lost_points: accuracy lost, in percentage points; agreement: share of images with the same prediction;
    kl_nats: KL(p || p spliced); ce_recovered_zero, ce_recovered_mean: share of the cross-entropy lost by replacing all
    acts with 0, or with the mean, that the reconstruction wins back.
    Raises: ValueError for no images, labels of others, and what `encode` raises.
    """
    _check_images(rows, labels, "labels")
    parts, start, mean = [], 0, mean.float()
    for block in acts.blocks(rows):
        target = torch.from_numpy(labels[start : start + len(block)])
        start += len(block)
        recon = model.reconstruct(block.flatten(0, 2))[0].view(block.shape)
        variants = {"own": block, "spliced": recon, "zero": torch.zeros_like(block), "mean": mean.expand(block.shape)}
        logs = {name: after(value.permute(0, 3, 1, 2)).cpu().log_softmax(1) for name, value in variants.items()}
        own, spliced = logs["own"], logs["spliced"]
        part = {f"ce_{name}": -log.gather(1, target[:, None])[:, 0] for name, log in logs.items()}
        part |= {"kl": (own.exp() * (own - spliced)).sum(1), "agree": own.argmax(1) == spliced.argmax(1)}
        part |= {f"hit_{name}": logs[name].argmax(1) == target for name in ("own", "spliced")}
        parts.append(pd.DataFrame({name: values.double().numpy() for name, values in part.items()}))
    table = pd.concat(parts, ignore_index=True)
    ones = np.ones(len(table))
    results = {
        "top1_lost_points": with_interval(100 * (table["hit_own"] - table["hit_spliced"]), ones),
        "agreement": with_interval(table["agree"], ones),
        "kl_nats": with_interval(table["kl"], ones),
    }
    for name in ("zero", "mean"):
        lost = table[f"ce_{name}"]
        results[f"ce_recovered_{name}"] = with_interval(lost - table["ce_spliced"], lost - table["ce_own"])
    return results


def seed_agreement(first: torch.Tensor, second: torch.Tensor, seed: int = 0) -> dict[str, float]:
    """How far two dictionaries W_dec (d_sae, d_in) have the same features: mean cosine of the best one-to-one pairs.

    agreement: that mean, less what the first reaches with `mixtures` of the second, as a share of the way from there to
    1; matched_cosine, chance: the two means. Source: Hungarian matching as in Paulo & Belrose 2025, arXiv 2501.16615.
    """
    matched, chance = (matched_cosines(first, other).mean().item() for other in (second, mixtures(second, seed)))
    return {"agreement": (matched - chance) / (1 - chance), "matched_cosine": matched, "chance": chance}


def mixtures(rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """As many directions (n, d) that mean nothing and are spread as `rows` are: sums of all with random weights.

    Isotropic directions would be too weak a chance: where rows share a few dimensions, they are alike by that alone.
    """
    weights = torch.randn(len(rows), len(rows), generator=torch.Generator().manual_seed(seed))
    return weights @ rows.detach() / len(rows) ** 0.5


def cell_covariance(acts: Activations, every: int = 1) -> torch.Tensor:
    """(d_in, d_in) of the cells of validation pictures, or of every so many of these."""
    return torch.cov(torch.cat([block.flatten(0, 2)[::every] for block in acts.blocks(acts.rows("val"))]).t())


def random_directions(like: torch.Tensor, covariance: torch.Tensor, seed: int | tuple[int, ...] = 0) -> torch.Tensor:
    """(d, d_in) directions drawn from N(0, covariance), each as long as the row of `like` (d, d_in) in its place."""
    root = _root(covariance)
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(like.shape, np.float32)) @ root.t()
    return drawn * (like.norm(dim=1) / drawn.norm(dim=1).clamp(min=1e-12))[:, None]


@lru_cache(maxsize=2)
def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root of a covariance; the last ones are kept, since many directions are drawn from one.

    Symmetric, because eigenvectors by themselves may change sign with the last bit of what they are computed from.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
    return (eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.t()).float()


def matched_cosines(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """(d_sae,) cosine of each row of `first` with its partner in `second`, partners chosen for the largest sum."""
    return _partners(first, second)[0]


def seed_match(sae: SparseAutoencoder, others: Sequence[SparseAutoencoder]) -> np.ndarray:
    """(d_sae,) how well other autoencoders have each feature: the lower of the cosines of decoder and encoder.

    Partners are those of `matched_cosines`; the least over the others.
    """
    found = []
    for other in others:
        cosines, partner = _partners(sae.W_dec, other.W_dec)
        rows_enc = sae.W_enc_rows.detach(), other.W_enc_rows.detach()[partner]
        found.append(torch.minimum(cosines, torch.nn.functional.cosine_similarity(*rows_enc)))
    return torch.stack(found).amin(0).numpy()


def _check_images(rows: np.ndarray, given: np.ndarray | None, what: str) -> None:
    if not len(rows) or (given is not None and len(given) != len(rows)):
        raise ValueError(f"one entry for each of at least one image: got {len(rows)} rows and {what} for "
                         f"{'none' if given is None else len(given)}")  # fmt: skip


def _partners(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if first.shape != second.shape:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"features have partners in a dictionary (d_sae, d_in) of the same shape, got {got}")
    unit = torch.nn.functional.normalize
    cosines = unit(first.detach()) @ unit(second.detach()).t()
    row, column = (torch.from_numpy(index) for index in linear_sum_assignment(cosines.numpy(), maximize=True))
    return cosines[row, column], column
