"""How good an autoencoder is: reconstruction, sparsity and the cost of splicing; baselines and null dictionaries.

The object measured is a function reconstruct(acts) -> (recon, codes or None) on (n, d_in): an autoencoder, or a
`partial` of a baseline below. Sums run over images in float64, in the network's own units, and intervals are over
images, never cells. A claim about features has to beat `null_dictionaries`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import orthogonal_mp_gram
from torch.nn.functional import cosine_similarity, kl_div, nll_loss, normalize

from aircraft_sae.activations import Activations, replay
from aircraft_sae.config import SAEConfig, change
from aircraft_sae.metrics import point, with_interval
from aircraft_sae.networks import Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import Codes, SparseAutoencoder, units

SEED_STEP = 100  # between the seeds of nulls: wider than the range of autoencoders' seeds


def project(mean: torch.Tensor, basis: torch.Tensor, acts: torch.Tensor) -> tuple[torch.Tensor, None]:
    """mean + (acts - mean) projected onto `basis` (k, d_in), orthonormal rows from `pca`; without rows, the mean."""
    return mean + (acts - mean) @ basis.t() @ basis, None


def nearest(centres: torch.Tensor, acts: torch.Tensor) -> tuple[torch.Tensor, Codes]:
    """The nearest of `centres` (n_centres, d_in), coded as one feature per cell."""
    best = torch.cdist(acts, centres).argmin(1)
    return centres[best], Codes(torch.ones(len(acts)), best, torch.arange(len(acts) + 1), len(centres))


def pursue(mean: torch.Tensor, directions: torch.Tensor, k: int, acts: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Orthogonal matching pursuit of acts - mean with k of the unit rows of `directions` (Pati et al. 1993)."""
    centred, directions = (acts - mean).numpy(), directions.numpy()
    codes = orthogonal_mp_gram(directions @ directions.T, directions @ centred.T, n_nonzero_coefs=k)
    return mean + torch.from_numpy((directions.T @ codes).T).float(), None


def pca(acts: Activations, rows: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (d_in,), the k principal directions (k, d_in)) of the cells of these images."""
    directions = torch.linalg.eigh(covariance(acts, rows)).eigenvectors.flip(1).t()[:k]
    return acts.moments(rows)[0].float(), directions.float()


def covariance(acts: Activations, rows: np.ndarray) -> torch.Tensor:
    """(d_in, d_in) covariance of these images' cells, in float64."""
    mean, second = acts.moments(rows)[0], torch.zeros(acts.d_in, acts.d_in, dtype=torch.float64)
    for block in acts.blocks(rows):
        cells = block.flatten(0, 2).double() - mean
        second.addmm_(cells.t(), cells)
    return second / (len(rows) * acts.cells_per_image - 1)


def k_means(acts: Activations, rows: np.ndarray, n_centres: int) -> torch.Tensor:
    """(n_centres, d_in) by scikit-learn's mini-batch k-means on up to 20,000 shuffled cells of these images."""
    n_cells = min(20_000, len(rows) * acts.cells_per_image)
    cells = next(acts.batches(rows, n_cells, seed=0)).float().numpy()
    options = dict(init="random", n_init=1, max_iter=5, batch_size=4096, random_state=0)  # k-means++ would take 20 s
    fitted = MiniBatchKMeans(min(n_centres, n_cells), **options).fit(cells)
    return torch.from_numpy(fitted.cluster_centers_).float()


def dictionary(sae: SparseAutoencoder, mean: torch.Tensor, scale, directions: torch.Tensor) -> SparseAutoencoder:
    """An autoencoder of directions (a multiple of d_in, d_in); the k with the largest products with acts are active."""
    cfg = replace(sae.cfg, variant="topk", expansion=len(directions) // sae.d_in, tied=False)
    made, rows = SparseAutoencoder(cfg, sae.d_in), normalize(directions)
    made.load_state_dict({"W_dec": rows, "W_enc_rows": rows}, strict=False)
    return made.fold_scaling(mean, scale)


def both_signs(directions: torch.Tensor) -> torch.Tensor:
    """Each direction and its negative, because a feature's activation is never negative."""
    return torch.cat([directions, -directions])


class Measured(NamedTuple):
    """What `measure` found. fired: (d_sae,) number of cells in which each feature is active; table: sums per image."""

    results: dict[str, dict[str, float | None]]
    fired: np.ndarray
    n_cells: int
    table: pd.DataFrame


@torch.no_grad()
def measure(reconstruct: Callable, acts: Activations, rows, mean, foreground: np.ndarray | None = None) -> Measured:
    """How well are these images' cells reconstructed? mean: (d_in,), for fvu; foreground: (images, rows, columns) bool.

    Results:
        fvu, pooled_fvu: of cells, and of each picture's mean over cells
        l0, distinct_features_per_image, dead_share, dense_share (active in over 10 % of cells): if there are codes
        fvu_foreground, fvu_background, l0_foreground, l0_background: where the foreground is known
    """
    tables, fired, start, mean = [], [], 0, mean.float()
    for block in acts.blocks(rows):
        cells, n = block.flatten(0, 2), len(block)
        recon, codes = reconstruct(cells)
        error, total = ((cells - other).view(n, -1, acts.d_in).double() for other in (recon, mean))
        by_image = {"pooled_error": error.mean(1).square().sum(1), "pooled_total": total.mean(1).square().sum(1)}
        by_cell = {"cells": torch.ones(n, acts.cells_per_image)}
        by_cell |= {"error": error.square().sum(2), "total": total.square().sum(2)}
        if codes is not None:
            codes = codes.where(codes.values > 0)
            by_cell["entries"] = codes.offsets.diff().view(n, -1)
            seen = torch.zeros(n, codes.d_sae, dtype=torch.bool)
            seen[codes.cells // acts.cells_per_image, codes.features] = True
            by_image["distinct"] = seen.sum(1)
            fired.append(torch.bincount(codes.features, minlength=codes.d_sae))
        places = {"": torch.ones(n, acts.cells_per_image, dtype=torch.bool)}
        if foreground is not None:
            shown = torch.from_numpy(foreground[start : start + n]).view(n, -1)
            places |= {"_foreground": shown, "_background": ~shown}
        for place, mask in places.items():
            by_image |= {f"{name}{place}": (values * mask).sum(1) for name, values in by_cell.items()}
        tables.append(pd.DataFrame({name: values.double().numpy() for name, values in by_image.items()}))
        start += n
    table, n_cells = pd.concat(tables, ignore_index=True), start * acts.cells_per_image
    results = {"pooled_fvu": with_interval(table["pooled_error"], table["pooled_total"])}
    for place in places:
        own = table[table[f"cells{place}"] > 0]  # fvu needs a cell
        if len(own):
            results[f"fvu{place}"] = with_interval(own[f"error{place}"], own[f"total{place}"])
        if len(own) and fired:
            results[f"l0{place}"] = with_interval(own[f"entries{place}"], own[f"cells{place}"])
    if not fired:
        return Measured(results, np.zeros(0, int), n_cells, table)
    counts = torch.stack(fired).sum(0).numpy()
    results["distinct_features_per_image"] = with_interval(table["distinct"], np.ones(len(table)))
    results["dead_share"] = point((counts == 0).mean(), len(counts))
    results["dense_share"] = point((counts / n_cells > 0.1).mean(), len(counts))
    return Measured(results, counts, n_cells, table)


@torch.no_grad()
def splice(
    reconstruct: Callable, acts: Activations, rows, labels, network: Network, pictures: Pictures, mean
) -> dict[str, dict]:
    """What it costs the network to continue from the reconstruction of these images' cells; intervals over images.

    labels: (n_images,) class indices; pictures: those of acts.
        top1_change_points: change of accuracy, in percentage points; kl_nats: KL(p || p spliced)
        agreement: share of images that keep their prediction
        ce_recovered_zero, ce_recovered_mean: of the cross-entropy lost by setting all acts to 0, or to the mean, the
            share that the reconstruction recovers
    """
    edits = {
        "own": None, "spliced": lambda block: reconstruct(block.flatten(0, 2))[0].view(block.shape),
        "zero": torch.zeros_like, "mean": mean.float().expand_as,
    }  # fmt: skip
    logs, losses = {}, {}
    for name, edit in edits.items():
        logs[name] = replay(network, pictures, acts, rows, edit).double().log_softmax(1)
        losses[name] = nll_loss(logs[name], torch.from_numpy(labels), reduction="none").numpy()
    before, after = (logs[name].argmax(1).numpy() for name in ("own", "spliced"))
    divergence, ones = kl_div(logs["spliced"], logs["own"], reduction="none", log_target=True), np.ones(len(rows))
    return {
        "top1_change_points": with_interval(100 * ((after == labels) - 1.0 * (before == labels)), ones),
        "agreement": with_interval(before == after, ones),
        "kl_nats": with_interval(divergence.sum(1).numpy(), ones),
        "ce_recovered_zero": with_interval(losses["zero"] - losses["spliced"], losses["zero"] - losses["own"]),
        "ce_recovered_mean": with_interval(losses["mean"] - losses["spliced"], losses["mean"] - losses["own"]),
    }


def seed_agreement(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """How far two dictionaries W_dec (d_sae, d_in) share their features, beyond chance.

        matched_cosine, chance: mean cosine of `partners` in the second, and in `mixtures` of it
        agreement: where matched_cosine lies between chance (0) and 1
    Source: Hungarian matching as in Paulo & Belrose 2025, arXiv 2501.16615.
    """
    matched, chance = (partners(first, other)[0].mean().item() for other in (second, mixtures(second)))
    return {"agreement": (matched - chance) / (1 - chance), "matched_cosine": matched, "chance": chance}


def mixtures(rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """(n, d) meaningless directions with the covariance of `rows`: sums of all rows with random weights."""
    weights = torch.randn(len(rows), len(rows), generator=torch.Generator().manual_seed(seed))
    return weights @ rows.detach() / len(rows) ** 0.5


@lru_cache(maxsize=2)
def cell_covariance(acts: Activations) -> torch.Tensor:
    """(d_in, d_in) covariance of the cells of validation pictures, from which random directions are drawn."""
    return covariance(acts, acts.rows("val")).float()


def random_directions(like: torch.Tensor, covariance: torch.Tensor, seed: int | tuple[int, ...] = 0) -> torch.Tensor:
    """(d, d_in) directions from N(0, covariance), each as long as its row of `like` (d, d_in)."""
    drawn = np.random.default_rng(seed).standard_normal(like.shape, np.float32)
    drawn = torch.from_numpy(drawn) @ _root(covariance).t()
    return drawn * (like.norm(dim=1) / drawn.norm(dim=1).clamp(min=1e-12))[:, None]


@lru_cache(maxsize=2)  # many directions are drawn from one covariance
def _root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric square root, because eigenvectors alone may change sign with a covariance's last bit."""
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
    return (eigenvectors * eigenvalues.clamp(min=0).sqrt() @ eigenvectors.t()).float()


def partners(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines (d_sae,) of each row of `first` with its partner in `second`, the partners); these maximise the sum."""
    cosines = normalize(first.detach()) @ normalize(second.detach()).t()
    row, column = (torch.from_numpy(index) for index in linear_sum_assignment(cosines.numpy(), maximize=True))
    return cosines[row, column], column


def seed_match(sae: SparseAutoencoder, others: Sequence[SparseAutoencoder]) -> np.ndarray:
    """(d_sae,) each feature's lowest cosine with its partners in other autoencoders, over decoder and encoder."""
    found = []
    for other in others:
        cosines, partner = partners(sae.W_dec, other.W_dec)
        found += [cosines, cosine_similarity(sae.W_enc_rows.detach(), other.W_enc_rows.detach()[partner])]
    return torch.stack(found).amin(0).numpy()


class Null(NamedTuple):
    """A dictionary, and the names of the network and pictures on which `Study` indexes it."""

    sae: SparseAutoencoder
    network: str = "trained"
    pictures: str = "all"


def short_training(cfg: SAEConfig) -> dict[str, int]:
    """Changes to a config: training on an eighth of its cells, with half of its batch size."""
    return {"n_cells": cfg.n_cells // 8, "dead_after": cfg.dead_after // 8, "batch_size": cfg.batch_size // 2}


def null_dictionaries(
    sae: SparseAutoencoder, acts: Activations, train: Callable[..., SparseAutoencoder], seed: int = 0
) -> dict[str, Null]:
    """An autoencoder's nulls by name, as sparse as it is and (but for channels and PCA) as wide; fixed by the seed.

    acts: at its site; train(kind, network, pictures, **changes): trains "frozen-decoder" or "permuted", or loads it.
        channels, PCA: in both signs, for seed 0 only
        random directions: with the covariance of the cells of validation pictures
        untrained: as initialised
        frozen decoder, permuted network: short trainings, the second on a network with permuted weights
    """
    few = short_training(sae.cfg)
    mean, scale = units(sae.cfg, acts, acts.rows("train", "val"))
    nulls = {}
    if seed == 0:
        spread = _scaled(covariance(acts, acts.rows("train")), scale)
        for name, rows in {"channels": torch.eye(acts.d_in), "PCA": torch.linalg.eigh(spread).eigenvectors.t()}.items():
            nulls[name] = Null(dictionary(sae, mean, scale, both_signs(rows.float())))
    nulls["random directions"] = Null(random_dictionaries(sae, acts, (seed,))[0])
    nulls["untrained"] = Null(untrained(sae, acts, seed))
    few["seed"] = nulls["untrained"].sae.cfg.seed
    nulls["frozen decoder"] = Null(train("frozen-decoder", frozen_decoder=True, **few))
    of = {"network": "permuted", "pictures": "every3"}
    return nulls | {"permuted network": Null(train("permuted", **of, **few), **of)}


def _scaled(covariance: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """A covariance in an autoencoder's units; a scale common to all channels changes no direction."""
    return covariance if isinstance(scale, float) else scale[:, None] * covariance * scale


def random_dictionaries(sae: SparseAutoencoder, acts: Activations, seeds: Iterable[int]) -> list[SparseAutoencoder]:
    """For each seed, d_sae random directions with the covariance of the cells of validation pictures."""
    mean, scale = units(sae.cfg, acts, acts.rows("train", "val"))
    spread, like = _scaled(cell_covariance(acts), scale), torch.ones(sae.d_sae, acts.d_in)
    return [dictionary(sae, mean, scale, random_directions(like, spread, seed)) for seed in seeds]


def untrained(sae: SparseAutoencoder, acts: Activations, seed: int = 0) -> SparseAutoencoder:
    """An untrained `sae`: its own start for seed 0, else another."""
    start = change(sae.cfg, variant="topk", seed=sae.cfg.seed + SEED_STEP * seed, tied=False)
    return SparseAutoencoder(start, sae.d_in).fold_scaling(*units(sae.cfg, acts, acts.rows("train", "val")))


@torch.no_grad()
def as_batchtopk(sae: SparseAutoencoder, acts: Activations) -> SparseAutoencoder:
    """A copy that selects by threshold, k features per cell over 4,096 cells, as BatchTopK does (arXiv 2412.06410)."""
    rows = acts.rows("train")
    cells = next(acts.batches(rows, min(4096, len(rows) * acts.cells_per_image), 0))
    pre_acts = ((cells - sae.b_dec) @ sae.W_enc + sae.b_enc).flatten()
    made = copy.deepcopy(sae)
    made.cfg = change(sae.cfg, variant="batchtopk")
    made.threshold.fill_(pre_acts.topk(len(cells) * sae.cfg.k).values[-1])
    return made
