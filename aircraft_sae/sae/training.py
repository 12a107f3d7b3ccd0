"""Training of sparse autoencoders: one dense product a step, everything after it on the features that fired.

In scaled acts (centred, mean squared norm d_in) the loss of n cells is

    mean over prefixes of ||recon - x||^2 / (n d_in)  +  l1_coefficient sum of feature_acts / n  +  AuxK

so that for one prefix its first term is the batch's squared error as a share of the training cells' variance.
AuxK: Gao et al. 2024, arXiv 2406.04093, appendix A.2. Matryoshka: Bussmann et al. 2025, arXiv 2503.17547.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from aircraft_sae.config import SAEConfig
from aircraft_sae.devices import device, has_bfloat16
from aircraft_sae.sae.model import BLOCK, Codes, SparseAutoencoder
from aircraft_sae.store import checkpoint, fingerprint, write_text

CHECKPOINT_SECONDS = 20.0
FLOOR = 0.9
"""A batch's threshold is looked for above this share of the last one."""
THRESHOLD_DECAY = 0.99


@dataclass
class Parts:
    """What one step measured. fvu: of the whole dictionary; fired: (d_sae,) entries per feature."""

    loss: float
    fvu: float
    codes: Codes
    fired: torch.Tensor


@torch.no_grad()
def backward(sae: SparseAutoencoder, centred: torch.Tensor, codes: Codes, dead: torch.Tensor | None = None) -> Parts:
    """Write the loss's gradients for acts - b_dec (n, d_in) into .grad of all parameters, from the codes of these acts.

    dead: ids of dead features, for AuxK on the first quarter of the cells. A cell's centre is taken as constant in
    choosing its features, as everywhere, and as variable in everything else.
    """
    cfg, n = sae.cfg, len(centred)
    scale = 1 / (n * sae.d_in * len(cfg.prefixes))
    ends = [round(share * sae.d_sae) for share in cfg.prefixes]
    slices = list(zip([0, *ends], ends, strict=False))
    pieces = [codes] if len(slices) == 1 else [codes.within(*bounds) for bounds in slices]
    error, errors = centred.neg(), []
    for piece in pieces:
        error = error.add_(piece.decode(sae.W_dec)) if len(pieces) == 1 else error + piece.decode(sae.W_dec)
        errors.append(error)
    squares = [torch.linalg.vector_norm(error).item() ** 2 for error in errors]
    loss = sum(squares) * scale + cfg.l1_coefficient * codes.values.sum().item() / n
    left_over = errors[-1][: max(1, n // 4)].neg() if dead is not None and len(dead) and cfg.aux_k else None
    upstream = None
    W_dec_grads, W_enc_grads, b_enc_grads = [], [], []
    for (start, end), piece, error in zip(reversed(slices), reversed(pieces), reversed(errors), strict=True):
        # features of a prefix are in every longer one; the longest's error is not needed again
        upstream = error.mul_(2 * scale) if upstream is None else upstream.add_(error, alpha=2 * scale)
        values_grad = piece.dot(sae.W_dec, upstream)
        values_grad.add_(cfg.l1_coefficient / n).mul_(piece.values > 0)
        turned, order = piece.by_feature(start, end)
        W_dec_grads.insert(0, turned.decode(upstream))
        turned.values = values_grad[order]
        W_enc_grads.insert(0, turned.decode(centred))
        b_enc_grads.insert(0, turned.sums())
    grads = (W_dec_grads, W_enc_grads, b_enc_grads)
    W_dec_grad, W_enc_grad, b_enc_grad = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in grads)
    b_dec_grad = upstream.sum(0)
    if left_over is not None:
        loss += _aux(sae, centred[: len(left_over)], left_over, dead, W_dec_grad, W_enc_grad, b_enc_grad)
    b_dec_grad.sub_(b_enc_grad @ sae.W_enc_rows)
    if cfg.tied:
        W_dec_grad.add_(W_enc_grad)
    else:
        sae.W_enc_rows.grad = W_enc_grad
    sae.W_dec.grad, sae.b_enc.grad, sae.b_dec.grad = W_dec_grad, b_enc_grad, b_dec_grad
    fired = torch.bincount(codes.features[codes.values > 0], minlength=sae.d_sae)
    return Parts(loss, squares[-1] / (n * sae.d_in), codes, fired)


def _aux(sae, centred, left_over, dead, W_dec_grad, W_enc_grad, b_enc_grad) -> float:
    """Add AuxK's gradients: the dead features with the largest pre-activations reconstruct what is left over."""
    cfg = sae.cfg
    rows_enc, rows_dec = sae.W_enc_rows[dead], sae.W_dec[dead]
    pre_acts = torch.addmm(sae.b_enc[dead], centred, rows_enc.t())
    values, places = pre_acts.topk(min(cfg.aux_k, len(dead)), sorted=False)
    acts = torch.zeros_like(pre_acts).scatter_(1, places, values.relu_())
    miss = torch.addmm(left_over, acts, rows_dec, beta=-1)
    weight = cfg.aux_coefficient / left_over.square().sum().clamp(min=1e-12)
    loss = weight * miss.square().sum()
    upstream = miss.mul_(2 * weight)
    acts_grad = (upstream @ rows_dec.t()).mul_(acts > 0)
    W_dec_grad.index_add_(0, dead, acts.t() @ upstream)
    W_enc_grad.index_add_(0, dead, acts_grad.t() @ centred)
    b_enc_grad.index_add_(0, dead, acts_grad.sum(0))
    return loss.item()


def choose(sae: SparseAutoencoder, centred: torch.Tensor, floor: float, rough: bool = False) -> tuple[Codes, float]:
    """(codes in training of acts - b_dec, the least value chosen): for batch variants the n k largest of the batch.

    Only values above `floor` are collected, and the search is repeated with a lower one where they are too few.
    """
    cfg = sae.cfg
    if cfg.variant in ("topk", "l1"):
        return sae.select(centred, 0.0, rough), 0.0
    wanted = len(centred) * cfg.k
    if floor == 0 and len(centred) > BLOCK:  # half of all pre-activations are positive: too many to collect
        floor = FLOOR * choose(sae, centred[:BLOCK], 0.0, rough)[1]
    while True:
        codes = sae.select(centred, floor, rough)
        if len(codes.values) >= wanted:
            least = codes.values.topk(wanted, sorted=False).values.min()
            return codes.where(codes.values >= least), least.item()
        if floor == 0:
            return codes, codes.values.min().item() if len(codes.values) else 0.0
        floor = floor / 2 if floor > 1e-3 else 0.0


def train_sae(folder: str | Path, cfg: SAEConfig, acts, rows, progress: bool = True) -> None:
    """Train on the cells of the images `rows` into `folder`: sae_weights.safetensors, cfg.json, history.csv.

    A checkpoint that a killed run of the same cfg and acts left there is resumed, on a CPU to the same bits.
    Raises: ValueError for a checkpoint of another run, or a loss that is not finite (the last checkpoint is kept).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(cfg, acts, rows, folder)
    run.resume()
    with tqdm(total=cfg.n_steps * cfg.batch_size, initial=run.n_seen, unit=" cells", disable=not progress) as bar:
        with closing(ahead(acts.batches(rows, cfg.batch_size, cfg.seed, run.step))) as cells:
            began = saved = time.monotonic()
            while run.step < cfg.n_steps:
                run.train_step(next(cells))
                run.sums["seconds"] += time.monotonic() - began  # the wait for cells too
                began = time.monotonic()
                bar.update(cfg.batch_size)
                if run.step % run.every == 0 or run.step == cfg.n_steps:
                    bar.set_postfix(run.note(), refresh=False)
                if began - saved > CHECKPOINT_SECONDS:
                    run.check_weights()
                    run.save()
                    saved = began
    run.check_weights()
    run.sae.in_units_of(run.mean.to(run.device), run.scale).save(folder, scale=run.scale)
    write_text(folder / "history.csv", pd.DataFrame(run.history).to_csv(index=False))
    (folder / checkpoint.CHECKPOINT).unlink(missing_ok=True)


class Run:
    """One training run: all that a checkpoint holds, and the steps that change it."""

    def __init__(self, cfg: SAEConfig, acts, rows, folder: Path):
        self.cfg, self.folder = cfg, folder
        self.device = device()
        self.rough = cfg.mixed_precision and has_bfloat16(self.device)
        mean, variance = acts.moments(rows)
        self.identity = fingerprint(cfg, acts.d_in, len(rows), [f"{v:.4g}" for v in (*mean.tolist(), variance)])
        self.mean, self.scale = mean.float(), math.sqrt(acts.d_in / variance)
        self.sae = SparseAutoencoder(cfg, acts.d_in).to(self.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=cfg.learning_rate, fused=True)
        self.idle = torch.zeros(self.sae.d_sae, dtype=torch.int64, device=self.device)
        """Cells since each feature fired."""
        self.floor, self.step, self.history = 0.0, 0, []
        self.sums = {"loss": 0.0, "fvu": 0.0, "entries": 0, "seconds": 0.0, "steps": 0}
        """Since the last row of the history."""
        self.every = max(1, cfg.n_steps // 100)

    @property
    def n_seen(self) -> int:
        """Cells so far."""
        return self.step * self.cfg.batch_size

    def train_step(self, cells: torch.Tensor) -> None:
        """One update from cells (n, d_in) in the units of the network; ValueError for a loss that is not finite."""
        acts = cells.to(self.device, torch.float32, copy=True).sub_(self.mean.to(self.device)).mul_(self.scale)
        sae, cfg = self.sae, self.cfg
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        with torch.no_grad():
            centred = acts.sub_(sae.b_dec)
            codes, least = choose(sae, centred, self.floor, self.rough)
            dead = (self.idle > cfg.dead_after).nonzero()[:, 0] if cfg.aux_k else None
            parts = backward(sae, centred, codes, dead)
            if not math.isfinite(parts.loss):
                self.stop(f"the loss is {parts.loss}")
            if cfg.frozen_decoder:
                sae.W_dec.grad = None
            elif cfg.unit_norm:  # only what turns a row changes anything: its length is set again after the step
                along = torch.bmm(sae.W_dec.grad[:, None], sae.W_dec[:, :, None])[:, 0]
                sae.W_dec.grad.addcmul_(sae.W_dec, along, value=-1)
            self.optimizer.step()
            self.optimizer.zero_grad()  # not kept beside the next ones
            if cfg.unit_norm and not cfg.frozen_decoder:
                normalize(sae.W_dec, out=sae.W_dec)
            if cfg.variant in ("batchtopk", "matryoshka"):
                decay = min(THRESHOLD_DECAY, self.step / (self.step + 1))  # at first the plain mean
                sae.threshold.mul_(decay).add_(least * (1 - decay))
                self.floor = FLOOR * least
            self.idle.add_(len(centred)).mul_(parts.fired == 0)
        self.step += 1
        step = {"loss": parts.loss, "fvu": parts.fvu, "entries": int(parts.fired.sum()), "steps": 1}
        self.sums |= {name: self.sums[name] + value for name, value in step.items()}

    def note(self) -> dict[str, float]:
        """Add a row to the history: means since the last one. Returns what the progress bar shows."""
        n, cfg = self.sums["steps"], self.cfg
        row = {
            "n_cells": self.n_seen, "lr": self.learning_rate(self.step - 1), "loss": self.sums["loss"] / n,
            "fvu": self.sums["fvu"] / n, "l0": self.sums["entries"] / (n * cfg.batch_size),
            "dead_share": (self.idle > cfg.dead_after).float().mean().item(),
            "cells_per_second": n * cfg.batch_size / self.sums["seconds"], "seconds": self.sums["seconds"],
        }  # fmt: skip
        self.history.append(row)
        self.sums = dict.fromkeys(self.sums, 0)
        return {"fvu": f"{row['fvu']:.4f}", "l0": f"{row['l0']:.1f}", "dead": f"{row['dead_share']:.1%}"}

    def learning_rate(self, step: int) -> float:
        """Linear up in the warm-up, level, then linear down to almost 0 at the last step."""
        n, cfg = self.cfg.n_steps, self.cfg
        up = (step + 1) / max(1, round(cfg.warmup_share * n))
        down = (n - step) / max(1, round(cfg.decay_share * n))
        return cfg.learning_rate * min(1.0, up, down)

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step, "floor": self.floor, "history": self.history, "sums": self.sums, "idle": self.idle,
            "mean": self.mean, "scale": self.scale, "sae": self.sae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        checkpoint.save(self.folder, self.identity, state)

    def resume(self) -> None:
        """Go back to the checkpoint, if there is one; ValueError where it is of another run."""
        saved = checkpoint.load(self.folder, self.identity, self.device, "config or other activations")
        if not saved:
            return
        self.sae.load_state_dict(saved["sae"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.floor, self.idle = saved["step"], saved["floor"], saved["idle"]
        self.history, self.sums = saved["history"], saved["sums"]
        self.mean, self.scale = saved["mean"].cpu(), saved["scale"]

    def check_weights(self) -> None:
        """ValueError where a weight is not finite: no loss has told of the last step yet."""
        if not checkpoint.finite(self.sae):
            self.stop("a weight is not finite")

    def stop(self, problem: str) -> NoReturn:
        """Raise the ValueError for a run that has diverged."""
        raise ValueError(
            f"{problem} at step {self.step}, learning rate {self.learning_rate(self.step):.2g}; "
            f"{checkpoint.last_good(self.folder)}. "
            "Try a lower sae.learning_rate (a third)"
        )


def ahead(items: Iterator[torch.Tensor], n: int = 2) -> Iterator[torch.Tensor]:
    """The same items, up to n of them made in a thread while the last one is used; its errors are raised here."""
    made, stop = queue.Queue(n), threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                return made.put(item, timeout=0.1)

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(StopIteration())
        except BaseException as problem:  # whatever it is, the one who waits must hear of it
            put(problem)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), BaseException):
            yield item
        if not isinstance(item, StopIteration):
            raise item
    finally:
        stop.set()
        thread.join()
