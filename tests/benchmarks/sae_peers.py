"""This project's sparse autoencoder beside its peers', each trained by its own code: speed, memory, quality.

    python tests/benchmarks/sae_peers.py step
    python tests/benchmarks/sae_peers.py quality --acts FOLDER [--results FILE]

FOLDER: one site's activations, as in data/runs/hangar/activations/stage4. Peers that are not installed are left out;
README.md tells how to install them, and what exactly is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch

from aircraft_sae.activations import Activations
from aircraft_sae.config import SAEConfig, preset
from aircraft_sae.sae.training import Run
from aircraft_sae.store import read_json, write_json

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # sparsify's kernels are for GPUs

PRODUCT = "encoder product"


@dataclass(frozen=True)
class Shape:
    """The size of an autoencoder and of its training."""

    d_in: int = 768
    d_sae: int = 6144
    k: int = 32
    batch_size: int = 4096
    n_steps: int = 1000


class Product:
    """The floor: the product that makes the pre-activations, and nothing else."""

    def __init__(self, shape: Shape):
        self.weight, self.bias = torch.randn(shape.d_sae, shape.d_in), torch.zeros(shape.d_sae)

    @torch.no_grad()
    def step(self, acts: torch.Tensor) -> None:
        torch.addmm(self.bias, acts, self.weight.t())


class Ours:
    """This project, by `Run.train_step`."""

    def __init__(self, shape: Shape, config: SAEConfig = SAEConfig(), **changes):  # noqa: B008, it is frozen
        n_cells = shape.n_steps * shape.batch_size
        sizes = {"expansion": shape.d_sae // shape.d_in, "k": shape.k, "batch_size": shape.batch_size}
        aux_k = config.aux_k if config.dead_after < n_cells else 0
        config = replace(config, n_cells=n_cells, aux_k=aux_k, **sizes, **changes)
        moments = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, shape.d_in)
        scaled = SimpleNamespace(d_in=shape.d_in, moments=lambda rows: moments)  # acts that are scaled already
        self.run = Run(Path(), config, scaled, range(1))

    def step(self, acts: torch.Tensor) -> None:
        self.run.train_step(acts)

    @torch.no_grad()
    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, int]:
        recon, codes = self.run.sae.reconstruct(acts)
        return recon, int(codes.values.count_nonzero())


class Peer:
    """Another library's autoencoder. rate: its default learning rate, that at 16,384 features if it falls with them."""

    package, needs = "", ()
    rate, falls, factors = 0.0, False, (1.0, 3.0, 10.0)

    @classmethod
    def default(cls, shape: Shape) -> float:
        return cls.rate / (shape.d_sae / 2**14) ** (0.5 * cls.falls)

    @torch.no_grad()
    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, int]:
        """(reconstructed cells, features that are not 0 in them)."""
        feature_acts = self.encode(acts)
        return self.decode(feature_acts), int(feature_acts.count_nonzero())


class Sparsify(Peer):
    """EleutherAI's: its trainer wants a language model, so its step is put together from its public parts."""

    package, needs = "eai-sparsify", ("sparsify", "schedulefree")
    rate, falls, factors = 5e-3, True, (0.1, 0.3, 1.0)

    def __init__(self, shape: Shape, learning_rate: float | None = None):
        from schedulefree import ScheduleFreeWrapper
        from sparsify import SparseCoder, SparseCoderConfig
        from sparsify.sign_sgd import SignSGD

        self.sae = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k), dtype=torch.float32)
        steps = SignSGD(self.sae.parameters(), learning_rate or self.default(shape))
        self.optimizer = ScheduleFreeWrapper(steps, momentum=0.95)
        self.optimizer.train()
        self.idle, self.begun = torch.zeros(shape.d_sae, dtype=torch.int64), False

    def step(self, acts: torch.Tensor) -> None:
        if not self.begun:
            self.sae.b_dec.data, self.begun = acts.mean(0), True
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(acts)
        out.fvu.backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.idle += len(acts)
        self.idle[out.latent_indices.flatten()] = 0

    @torch.no_grad()
    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, int]:
        self.optimizer.eval()  # its averaged weights
        out = self.sae(acts)
        self.optimizer.train()
        return out.sae_out, int(out.latent_acts.count_nonzero())


class SAELens(Peer):
    """By `SAETrainer.step`; the learning rate falls over the last fifth, as in its tutorials."""

    package, needs, rate, variant = "sae-lens", ("sae_lens.training.sae_trainer",), 3e-4, "TopK"

    def __init__(self, shape: Shape, learning_rate: float | None = None):
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        config = SAETrainerConfig(
            total_training_samples=shape.n_steps * shape.batch_size, train_batch_size_samples=shape.batch_size,
            lr=learning_rate or self.default(shape), lr_end=0.0, lr_decay_steps=shape.n_steps // 5,
        )  # fmt: skip
        made, settings = (getattr(sae_lens, f"{self.variant}TrainingSAE{end}") for end in ("", "Config"))
        self.sae = made(settings(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k))
        self.encode, self.decode = self.sae.encode, self.sae.decode
        self.trainer = SAETrainer(config, self.sae, iter(()))

    def step(self, acts: torch.Tensor) -> None:
        self.trainer.step(acts)
        self.trainer.n_training_steps += 1


class DictionaryLearning(Peer):
    """By `TopKTrainer.update`; the learning rate rises over the first tenth and falls over the last fifth."""

    package, needs, variant = "dictionary-learning", ("dictionary_learning.trainers",), "TopK"
    rate, falls, encoding = 2e-4, True, {}

    def __init__(self, shape: Shape, learning_rate: float | None = None):
        from dictionary_learning import trainers

        self.trainer, self.n_done = getattr(trainers, f"{self.variant}Trainer")(
            steps=shape.n_steps, activation_dim=shape.d_in, dict_size=shape.d_sae, k=shape.k, layer=0, lm_name="none",
            lr=learning_rate, warmup_steps=min(1000, shape.n_steps // 10), decay_start=round(0.8 * shape.n_steps),
            seed=0, device="cpu",
        ), 0  # fmt: skip
        self.encode, self.decode = partial(self.trainer.ae.encode, **self.encoding), self.trainer.ae.decode

    def step(self, acts: torch.Tensor) -> None:
        self.trainer.update(self.n_done, acts)
        self.n_done += 1


def batchtopk(peer: type, **more) -> type:
    """Measured with the k largest of each block of cells, not with its threshold: its best case."""
    return type(f"{peer.__name__}BatchTopK", (peer,), {"variant": "BatchTopK"} | more)


class Overcomplete(Peer):
    """By `train_sae`, one batch a call, with the criterion and the optimizer of its readme."""

    package, needs, rate = "overcomplete", ("overcomplete.sae",), 5e-4

    def __init__(self, shape: Shape, learning_rate: float | None = None):
        from overcomplete.sae import TopKSAE, train_sae

        self.train, self.sae = train_sae, TopKSAE(shape.d_in, shape.d_sae, top_k=shape.k)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=learning_rate or self.default(shape))

    @staticmethod
    def criterion(acts, recon, pre_acts, feature_acts, dictionary) -> torch.Tensor:
        return torch.nn.functional.mse_loss(recon, acts)

    def step(self, acts: torch.Tensor) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line an epoch
            self.train(self.sae, [acts], self.criterion, self.optimizer, nb_epochs=1)

    @torch.no_grad()
    def reconstruct(self, acts: torch.Tensor) -> tuple[torch.Tensor, int]:
        self.sae.eval()  # train_sae sets it to training again
        _, feature_acts, recon = self.sae(acts)
        return recon, int(feature_acts.count_nonzero())


class Saev:
    """The release on the registry: ReLU with an L1 penalty, no TopK, so that its l0 cannot be set: `step` only."""

    package, needs = "saev", ("saev.nn", "saev.config")

    def __init__(self, shape: Shape):
        from saev import config, nn

        self.sae = nn.SparseAutoencoder(config.SparseAutoencoder(shape.d_in, shape.d_sae // shape.d_in))
        self.optimizer, self.n_done = torch.optim.Adam(self.sae.parameters(), lr=4e-4, fused=True), 0

    def step(self, acts: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 4e-4 * min(1, self.n_done / 500)
        self.sae.normalize_w_dec()
        self.sae(acts)[2].loss.backward()
        self.sae.remove_parallel_grads()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.n_done += 1


PEERS = {
    "sparsify": Sparsify, "SAELens": SAELens, "dictionary_learning": DictionaryLearning, "overcomplete": Overcomplete,
    "saev": Saev, "SAELens, batchtopk": batchtopk(SAELens),
    "dictionary_learning, batchtopk": batchtopk(DictionaryLearning, encoding={"use_threshold": False}),
}  # fmt: skip
OURS = {
    "this project": partial(Ours, variant="topk"),
    "this project, float32": partial(Ours, variant="topk", mixed_precision=False),
    "this project, batchtopk": partial(Ours, variant="batchtopk"),
}


def installed() -> dict[str, type]:
    """The peers that can be imported; says which cannot, and why."""
    found = {}
    for name, peer in PEERS.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                for module in peer.needs:
                    importlib.import_module(module)
        except Exception as problem:  # a peer beside other libraries than it was made for fails in any way
            print(f"{name} is left out: {peer.package} cannot be imported ({type(problem).__name__}: {problem})")
        else:
            found[name] = peer
            print(f"{name}: {peer.package} {version(peer.package)}")
    return found


def milliseconds(shape: Shape, contestants: dict, rounds: int, warm_up: int = 2) -> dict[str, float]:
    """Median time of a step of each, one step each in turn; all see the same float32 random cells."""
    generator = torch.Generator().manual_seed(0)
    running, times = {name: make(shape) for name, make in contestants.items()}, {name: [] for name in contestants}
    for i in range(warm_up + rounds):
        acts = torch.randn(shape.batch_size, shape.d_in, generator=generator)
        for name, contestant in running.items():
            cells = acts.clone()
            began = time.perf_counter()
            contestant.step(cells)
            if i >= warm_up:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


def added_memory(shape: Shape, name: str, n_steps: int = 4) -> float:
    """MiB at the peak of training, in this process, above what was resident before the autoencoder was made.

    A tiny autoencoder is made and trained first, so that code which is imported late is not counted. Linux only.
    """
    make = (OURS | PEERS)[name]
    tiny = make(Shape(16, 64, 4, 64, shape.n_steps))
    tiny.step(torch.randn(64, 16))
    acts = torch.randn(shape.batch_size, shape.d_in)
    torch.mm(acts, acts.t()[:, :64])
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    contestant = make(shape)
    for _ in range(n_steps):
        contestant.step(acts)
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    """KiB of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def step(shape: Shape, rounds: int, threads: int) -> None:
    """Print milliseconds and memory of a training step."""
    peers = installed()
    times = milliseconds(shape, {PRODUCT: Product} | OURS | peers, rounds)
    memory, context = {}, multiprocessing.get_context("spawn")
    for name in [*OURS, *peers] if Path("/proc/self/clear_refs").exists() else []:
        with context.Pool(1, torch.set_num_threads, (threads,)) as process:
            memory[name] = process.apply(added_memory, (shape, name))
    found = pd.DataFrame({"ms a step": times, "MiB added": pd.Series(memory, dtype=float)}).loc[list(times)]
    found["x product"], found["x this project"] = (found["ms a step"] / times[of] for of in (PRODUCT, "this project"))
    found["x leanest peer"] = found["MiB added"] / found["MiB added"].reindex(list(peers)).min()
    print(f"\nOne training step, {shape}, {threads} threads, torch {torch.__version__}, median of {rounds}:\n")
    print(found.round(2).to_string(na_rep=""))


class Cells:
    """Stored activations, scaled as this project scales them: centred, mean squared norm d_in."""

    def __init__(self, folder: str):
        self.acts = Activations.open(Path(folder).parent, Path(folder).name)
        self.rows = self.acts.rows("train", "val")
        mean, variance = self.acts.moments(self.rows)
        self.mean, self.scale = mean.float(), (self.acts.d_in / variance.sum()) ** 0.5
        self.test = torch.cat([block.flatten(0, 2) for block in self.acts.blocks(self.acts.rows("test"))])
        self.some = self.test[np.random.default_rng(0).permutation(len(self.test))[:8192]]

    def batches(self, batch_size: int):
        """Endless scaled float32 batches, the same for every contestant."""
        for cells in self.acts.batches(self.rows, batch_size, seed=0):
            yield self.scaled(cells.float())

    def scaled(self, cells: torch.Tensor) -> torch.Tensor:
        return (cells - self.mean) * self.scale

    def measure(self, contestant, cells: torch.Tensor) -> tuple[float, float]:
        """(fvu, l0) of cells in the network's own units.

        fvu: squared error over squared distance from the training cells' mean; l0: features of a cell that are not 0.
        """
        error = total = n_active = 0.0
        for block in cells.split(4096):
            recon, active = contestant.reconstruct(self.scaled(block))
            error += (recon / self.scale + self.mean - block).square().sum(dtype=torch.float64).item()
            total += (block - self.mean).square().sum(dtype=torch.float64).item()
            n_active += active
        return error / total, n_active / len(cells)


def train(contestant, shape: Shape, cells: Cells, every: int) -> dict:
    """Seconds in `step` alone, test fvu and l0, and on the way [cells seen, seconds, fvu of some test cells]."""
    seconds, curve = 0.0, []
    for i, batch in zip(range(1, shape.n_steps + 1), cells.batches(shape.batch_size), strict=False):
        began = time.perf_counter()
        contestant.step(batch)
        seconds += time.perf_counter() - began
        if i % every == 0 or i == shape.n_steps:
            curve.append([i * shape.batch_size, seconds, cells.measure(contestant, cells.some)[0]])
            print(f"\r{i} of {shape.n_steps} steps, fvu {curve[-1][2]:.4f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    fvu, l0 = cells.measure(contestant, cells.test)
    return {"seconds": seconds, "fvu": fvu, "l0": l0, "curve": curve}


def quality(folder: str, config: SAEConfig, n_cells: int, only: list[str], results: str | None, threads: int) -> None:
    """Train all on the same cells, each peer at several learning rates, and print what each reached and when."""
    cells = Cells(folder)
    d_in, n_steps = cells.acts.d_in, n_cells // config.batch_size
    shape = Shape(d_in, config.expansion * d_in, config.k, config.batch_size, n_steps)
    runs = {  # (name, learning rate): (what makes the contestant, whether the rate is its default)
        (name, factor * peer.default(shape)): (partial(peer, shape, factor * peer.default(shape)), factor == 1)
        for name, peer in installed().items()
        if hasattr(peer, "reconstruct")
        for factor in peer.factors
    }
    for variant in ("topk", "batchtopk"):
        make = partial(Ours, shape, config=config, variant=variant)
        runs[f"this project, {variant}", config.learning_rate] = make, True
    kept = read_json(Path(results)) if results else {}
    if kept.setdefault("shape", asdict(shape)) != asdict(shape):
        raise ValueError(f"{results} holds runs of another shape: name another file")
    done = {}
    for (name, rate), (make, default) in runs.items():
        key = f"{name} @ {rate:.2g}"
        if key not in kept and (not only or name in only):
            torch.manual_seed(0)
            print(key, file=sys.stderr)
            kept[key] = train(make(), shape, cells, every=4 if name.startswith("this") else 64)
            if results:
                write_json(Path(results), kept)
        if key in kept:
            done[name, f"{rate:.2g}{' (default)' * default}"] = kept[key]
    ours = next((run for (name, _), run in done.items() if name == f"this project, {config.variant}"), None)
    rows = []
    for (name, rate), run in done.items():
        row = {"": name, "learning rate": rate, "test fvu": run["fvu"], "l0": run["l0"], "seconds": run["seconds"]}
        if ours and not name.startswith("this"):  # both fvus are of the same test cells
            passed = next((seconds for _, seconds, fvu in ours["curve"] if fvu <= run["curve"][-1][2]), np.nan)
            row |= {"this project's to the same fvu": passed, "share": passed / run["seconds"]}
        rows.append(row)
    print(f"\n{n_cells:,} cells seen by each, {shape}, {threads} threads, torch {torch.__version__}:\n")
    print(pd.DataFrame(rows).round(4).to_string(index=False, na_rep=""))


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("step", "quality"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="steps timed")
    for field in ("d_in", "d_sae", "k", "batch_size"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=getattr(Shape, field), help="step")
    parser.add_argument("--acts", help="quality: folder of one site's activations")
    parser.add_argument("--preset", default="hangar", help="quality: whose autoencoder")
    parser.add_argument("--cells", type=int, default=1_000_000, help="quality: seen by each contestant")
    parser.add_argument("--only", action="append", default=[], help="quality: train these contestants now")
    parser.add_argument("--results", help="quality: file of the runs done so far, which are not repeated")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    shape = Shape(given.d_in, given.d_sae, given.k, given.batch_size)
    if given.what == "step":
        step(shape, given.rounds, given.threads)
    elif not given.acts:
        parser.error("quality needs --acts")
    else:
        quality(given.acts, preset(given.preset).sae, given.cells, given.only, given.results, given.threads)


if __name__ == "__main__":
    main()
