"""Training of sparse autoencoders: one dense product per step; all that follows uses only the features that fired.

On scaled acts (centred, mean squared norm d_in) the loss of n cells is

    ||recon - x||^2 / (n d_in)  +  AuxK (Gao et al. 2024, arXiv 2406.04093, appendix A.2)

Its first term is the batch's squared error as a share of the training cells' variance.
"""

import math
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from aircraft_sae.config import SAEConfig
from aircraft_sae.devices import device, has_bfloat16
from aircraft_sae.sae.model import BLOCK, Codes, SparseAutoencoder
from aircraft_sae.store import checkpoint, digest, write_text

CHECKPOINT_SECONDS = 20.0
FLOOR = 0.9  # the search for a batch's threshold starts from this share of the last batch's
Gradients = tuple[Tensor, Tensor, Tensor]  # of W_dec, W_enc_rows and b_enc


def choose(sae: SparseAutoencoder, centred: Tensor, floor: float, rough: bool = False) -> tuple[Codes, float]:
    """(codes of acts - b_dec, smallest value selected) in training: "batchtopk" takes the n k largest of the batch.

    floor: where the search starts; lowered if too high.
    """
    if sae.cfg.variant == "topk":
        return sae.select(centred, 0.0, rough), 0.0
    wanted = len(centred) * sae.cfg.k
    if floor == 0 and len(centred) > BLOCK:  # half of all pre-activations are positive, too many to collect
        floor = FLOOR * choose(sae, centred[:BLOCK], 0.0, rough)[1]
    while True:
        codes = sae.select(centred, floor, rough)
        if len(codes.values) >= wanted:
            least = codes.values.topk(wanted, sorted=False).values.min()
            return codes.where(codes.values >= least), least.item()
        if floor == 0:
            return codes, codes.values.min().item() if len(codes.values) else 0.0
        floor = floor / 2 if floor > 1e-3 else 0.0


@torch.no_grad()
def backward(sae: SparseAutoencoder, centred: Tensor, codes: Codes, dead: Tensor | None = None) -> tuple[float, float]:
    """(loss, fvu) of acts - b_dec; gradients go into .grad. dead: ids for AuxK, which uses every fourth cell."""
    cfg = sae.cfg
    error = codes.decode(sae.W_dec).sub_(centred)
    loss = fvu = torch.linalg.vector_norm(error).item() ** 2 / error.numel()
    upstream = error * (2 / error.numel())
    gradients = of_features(sae, centred, codes, upstream)
    if dead is not None and len(dead):
        loss += aux(sae, centred, error, dead, gradients)
    W_dec, W_enc_rows, sae.b_enc.grad = gradients
    sae.b_dec.grad = upstream.sum(0).sub_(sae.b_enc.grad @ sae.W_enc_rows)
    sae.W_dec.grad = W_dec.add_(W_enc_rows) if cfg.tied else W_dec
    if not cfg.tied:
        sae.W_enc_rows.grad = W_enc_rows
    return loss, fvu


def of_features(sae: SparseAutoencoder, centred: Tensor, codes: Codes, upstream: Tensor) -> Gradients:
    """Gradients of the features' weights, given upstream (n, d_in), the gradient of recon."""
    of_values = codes.dot(sae.W_dec, upstream).mul_(codes.values > 0)
    turned, order = codes.by_feature()
    W_dec = turned.decode(upstream)
    turned.values = of_values.take(order)
    b_enc = torch.segment_reduce(turned.values, "sum", offsets=turned.offsets, unsafe=True)
    return W_dec, turned.decode(centred), b_enc


def aux(sae: SparseAutoencoder, centred: Tensor, error: Tensor, dead: Tensor, gradients: Gradients) -> float:
    """AuxK's loss: the dead features with the largest pre-activations reconstruct the error. Adds to `gradients`."""
    centred, missing = centred[::4], error[::4].neg()
    rows_enc, rows_dec = sae.W_enc_rows[dead], sae.W_dec[dead]
    pre_acts = torch.addmm(sae.b_enc[dead], centred, rows_enc.t())
    values, places = pre_acts.topk(min(sae.cfg.aux_k, len(dead)), sorted=False)
    acts = torch.zeros_like(pre_acts).scatter_(1, places, values.relu_())
    weight = sae.cfg.aux_coefficient / missing.square().sum().clamp(min=1e-12)
    left = torch.addmm(missing, acts, rows_dec, beta=-1)
    loss = weight * left.square().sum()
    upstream = left.mul_(2 * weight)
    acts_grad = (upstream @ rows_dec.t()).mul_(acts > 0)
    for rows, more in zip(gradients, (acts.t() @ upstream, acts_grad.t() @ centred, acts_grad.sum(0)), strict=True):
        rows.index_add_(0, dead, more)
    return loss.item()


def units(cfg: SAEConfig, acts, rows) -> tuple[Tensor, Tensor | float]:
    """(mean (d_in,), scale): training receives (x - mean) scale for each cell x; scale: one number, or (d_in,)."""
    mean, variance = acts.moments(rows)
    whole = math.sqrt(acts.d_in / variance.sum())
    return mean.float(), variance.clamp(min=1e-12).rsqrt().float() if cfg.standardise == "channels" else whole


def train_sae(folder: Path, cfg: SAEConfig, acts, rows) -> None:
    """Train on the cells of the images `rows` into `folder`: sae_weights.safetensors, cfg.json, history.csv.

    A killed run with the same cfg and acts resumes from its checkpoint; on a CPU, the result is bit-identical.
    Raises: ValueError for a checkpoint of another run, or a loss that is not finite (the last checkpoint is kept).
    """
    run = Run(folder, cfg, acts, rows)
    run.resume()
    batches = islice(acts.batches(rows, cfg.batch_size, cfg.seed, run.step), cfg.n_steps - run.step)
    # parallel training runs show no bar; otherwise TQDM_DISABLE decides
    hidden = {} if threading.current_thread() is threading.main_thread() else {"disable": True}
    began = time.monotonic()
    bar = tqdm(batches, total=cfg.n_steps, initial=run.step, unit=f" x {cfg.batch_size} cells", **hidden)
    for cells in bar:
        row = run.train_step(cells)
        row["seconds"], began = time.monotonic() - began, time.monotonic()  # includes waiting for cells
        bar.set_postfix({name: f"{row[name]:.3f}" for name in ("fvu", "l0", "dead_share")}, refresh=False)
        if run.due(CHECKPOINT_SECONDS):
            run.save()
    run.check_weights()
    run.sae.fold_scaling(run.mean, run.scale).save(folder)
    steps = pd.DataFrame(run.history)
    hundredths = steps.groupby(np.arange(len(steps)) // max(1, cfg.n_steps // 100))
    history = hundredths.mean().assign(**hundredths[["n_cells", "lr", "dead_share"]].last())
    history["cells_per_second"] = cfg.batch_size / history["seconds"]
    history["seconds"] = hundredths["seconds"].sum()
    write_text(folder / "history.csv", history.to_csv(index=False))
    (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)


class Run(checkpoint.Training):
    """A training run on scaled acts. idle: cells since each feature last fired; history: one row per step."""

    noted, other = ("idle", "floor", "history"), "config or other activations"
    remedy = "sae.learning_rate (a third)"

    def __init__(self, folder: Path, cfg: SAEConfig, acts, rows):
        self.cfg, self.folder, self.device = cfg, folder, device()
        self.rough = cfg.mixed_precision and has_bfloat16(self.device)
        self.sae = SparseAutoencoder(cfg, acts.d_in).to(self.device)
        mean, scale = units(cfg, acts, rows)
        measured = [f"{v:.4g}" for v in (*mean.tolist(), *np.atleast_1d(scale))]
        self.identity = digest([cfg, acts.d_in, len(rows), measured])
        self.mean, self.scale = mean.to(self.device), scale if isinstance(scale, float) else scale.to(self.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=cfg.learning_rate, fused=True)
        self.parts = {"model": self.sae, "optimizer": self.optimizer}
        self.idle = torch.zeros(self.sae.d_sae, dtype=torch.int64, device=self.device)
        self.floor, self.history = 0.0, []

    @property
    def step(self) -> int:
        return len(self.history)

    @torch.no_grad()
    def train_step(self, cells: Tensor) -> dict[str, float]:
        """One update from cells (n, d_in) in the network's units; returns its row of the history.

        Raises: ValueError for a loss that is not finite.
        """
        sae, cfg, n = self.sae, self.cfg, len(cells)
        self.optimizer.param_groups[0]["lr"] = rate = self.learning_rate(self.step)
        scaled = cells.to(self.device, torch.float32, copy=True).sub_(self.mean).mul_(self.scale)
        centred = scaled.sub_(sae.b_dec)
        codes, least = choose(sae, centred, self.floor, self.rough)
        dead = (self.idle > cfg.dead_after).nonzero()[:, 0] if cfg.aux_k else None
        loss, fvu = backward(sae, centred, codes, dead)
        fired = torch.bincount(codes.features, codes.values > 0, sae.d_sae)
        if not math.isfinite(loss):
            self.stop(f"the loss is {loss}", self.step)
        if cfg.frozen_decoder:
            sae.W_dec.grad = None
        else:  # rows keep length 1, so only the gradient's component at right angles to a row counts
            along = torch.bmm(sae.W_dec.grad[:, None], sae.W_dec[:, :, None])[:, 0]
            sae.W_dec.grad.addcmul_(sae.W_dec, along, value=-1)
        self.optimizer.step()
        self.optimizer.zero_grad()  # frees the gradients before the next ones are computed
        if not cfg.frozen_decoder:
            normalize(sae.W_dec, out=sae.W_dec)
        if cfg.variant == "batchtopk":
            decay = min(0.99, self.step / (self.step + 1))  # a plain mean at first
            sae.threshold.mul_(decay).add_(least * (1 - decay))
            self.floor = FLOOR * least
        self.idle.add_(n).mul_(fired == 0)
        self.history.append({
            "n_cells": (self.step + 1) * cfg.batch_size, "lr": rate, "loss": loss, "fvu": fvu,
            "l0": fired.sum().item() / n, "dead_share": (self.idle > cfg.dead_after).float().mean().item(),
        })  # fmt: skip
        return self.history[-1]

    def learning_rate(self, step: int) -> float:
        """Rises linearly in the warm-up, stays level, then falls linearly to almost 0 at the last step."""
        n, cfg = self.cfg.n_steps, self.cfg
        up = (step + 1) / max(1, round(cfg.warmup_share * n))
        down = (n - step) / max(1, round(cfg.decay_share * n))
        return cfg.learning_rate * min(1.0, up, down)
