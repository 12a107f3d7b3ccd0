"""What the hot paths take on one GPU, in each way there is, so that a way can be chosen by measurement.

    python tests/benchmarks/gpu.py [--results FILE] [--tiny]

Nothing but the package has to be there: pictures are made in memory, weights are random. 24 GB of GPU memory and ten
minutes are enough. Without a GPU, or with --tiny, all runs in small: that checks this script and measures nothing.
"""

import argparse
import gc
import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from extraction import forward
from PIL import Image
from sae_peers import Ours, Product, Shape, table
from torch.utils.flop_counter import FlopCounterMode

from aircraft_sae.activations import Activations, extract
from aircraft_sae.config import ClassifierConfig, SAEConfig, change, preset
from aircraft_sae.devices import device
from aircraft_sae.features import build_index
from aircraft_sae.networks import Network, build
from aircraft_sae.networks.training import Run
from aircraft_sae.pictures import Pictures, decode
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import choose, train_sae
from aircraft_sae.store import write_json

GPU, WARM_UP = torch.cuda.is_available(), 3
N_IMAGES, N_TRAINVAL, N_TEST = 10_000, 6_667, 3_333  # FGVC-Aircraft's
JPEGS = {"FGVC-Aircraft": (1024, 695), "ImageNet": (500, 375)}  # pixels of a usual picture


class Made(Pictures):
    """n pictures of a size, as JPEGs in memory: colours that change slowly, with noise; 100 variants."""

    def __init__(self, n: int, size: tuple[int, int]):
        rng, self.files = np.random.default_rng(0), []
        for _ in range(4):
            colours = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size)
            noisy = np.asarray(colours) + rng.normal(0, 11, (size[1], size[0], 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file := BytesIO(), "JPEG", quality=90)
            self.files.append(file.getvalue())
        classes = [f"{i:03}" for i in range(100)]
        rows = [(f"{i}", ("train", "val", "test")[i % 3], classes[i % 100]) for i in range(n)]
        super().__init__(pd.DataFrame(rows, columns=["image", "split", "variant"]), {"variant": classes})

    def picture(self, image: str) -> Image.Image:
        return decode(BytesIO(self.files[int(image) % len(self.files)]))

    def contents(self) -> list[str]:
        return [f"{len(self.files)} files"]


class Bench:
    """Takes times; rows: name, ms, rate (things a second), tflops, mib (peak of memory above what was held before)."""

    def __init__(self, rounds: int):
        self.rounds, self.rows = rounds, []
        self.alarm = getattr(signal, "alarm", lambda _: None)  # Windows has none
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, late)

    def __call__(self, name: str, n: int, make: Callable[[], Callable], flops: float = 0, once: bool = False) -> float:
        """The rate of what `make` gives, which handles n things; what fails or takes minutes has none, but a line."""
        if GPU:
            gc.collect()  # which takes a tenth of a second
        torch.set_float32_matmul_precision(
            "high" if "TF32" in name else "highest"
        )  # cuDNN's convolutions use it anyway
        before, ms, mib = torch.cuda.memory_allocated() if GPU else 0, math.nan, math.nan
        try:
            self.alarm(120)
            work = make()
            for _ in range(0 if once else min(WARM_UP, self.rounds)):
                work()
            if GPU:
                torch.cuda.reset_peak_memory_stats()
            ms = statistics.median(milliseconds(work, 1 if once else self.rounds))
            mib = (torch.cuda.max_memory_allocated() - before) / 2**20 if GPU else 0
        except Exception as problem:  # every library has errors of its own
            print(f"{name} failed: {type(problem).__name__}: {str(problem)[:200]}", flush=True)
        finally:
            self.alarm(0)
        self.rows.append({"name": name, "ms": ms, "rate": 1000 * n / ms, "tflops": flops / ms / 1e9, "mib": mib})
        return self.rows[-1]["rate"]


def late(*_) -> None:
    """What the alarm does."""
    raise TimeoutError("not done after two minutes")


def milliseconds(work: Callable, rounds: int) -> list[float]:
    """Of each round; on a GPU between two of its own events, between which it may also wait for the CPU."""
    if not GPU:
        marks = [time.perf_counter()]
        for _ in range(rounds):
            work()
            marks.append(time.perf_counter())
        return [1000 * (ended - began) for began, ended in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return [began.elapsed_time(ended) for began, ended in pairwise(events)]


@torch.no_grad()
def autoencoder(bench: Bench, shape: Shape) -> None:
    """The encoder product, the ways to decode and back, and whole training steps."""
    n, where = shape.batch_size, device()
    acts, named = torch.randn(n, shape.d_in, device=where), f"d_sae {shape.d_sae:,}: "
    flops, few = 2 * n * shape.d_in * shape.d_sae, 2 * n * shape.d_in * shape.k

    def product(how: str) -> Callable:
        with where:
            made, kind = Product(shape), torch.bfloat16 if how == "bfloat16" else torch.float32
        made.weight, made.bias, cells = made.weight.to(kind), made.bias.to(kind), acts.to(kind)
        return partial(made.step, cells)

    for how in ("float32", "TF32", "bfloat16"):
        bench(f"{named}encoder product, {how}", n, partial(product, how), flops)
    sae = Ours(shape, variant="topk").run.sae
    codes, W_dec, upstream = choose(sae, acts, 0.0)[0], sae.W_dec.detach(), torch.randn_like(acts)
    turned = codes.by_feature()[0]
    parts = [(each.offsets, each.features, each.values, (len(each), each.d_sae)) for each in (codes, turned)]
    by_cell, by_feature = (torch.sparse_csr_tensor(*each, check_invariants=False) for each in parts)
    ways = {
        "recon, dense product": (flops, lambda: codes.dense() @ W_dec),
        "recon, embedding_bag (Codes.decode)": (few, lambda: codes.decode(W_dec)),
        "recon, CSR product": (few, lambda: by_cell @ W_dec),
        "W_dec's gradient, dense product": (flops, lambda: codes.dense().t() @ upstream),
        "W_dec's gradient, embedding_bag": (few, lambda: turned.decode(upstream)),
        "W_dec's gradient, CSR product": (few, lambda: by_feature @ upstream),
        "codes turned for it (Codes.by_feature)": (0, codes.by_feature),
        "values' gradient, dense product": (flops, lambda: (upstream @ W_dec.t())[codes.cells, codes.features]),
        "values' gradient, embedding_bag (Codes.dot)": (few, lambda: codes.dot(W_dec, upstream)),
    }
    try:
        if not GPU:
            raise ImportError("it runs on a GPU alone")
        from sparsify.xformers import xformers_embedding_bag
    except Exception as problem:  # pip install eai-sparsify; of what that needs itself, too
        print(f"{named}sparsify's Triton decoder is left out: {problem}", flush=True)
    else:
        features, values, weight = codes.features.view(n, -1), codes.values.view(n, -1).clone(), W_dec.clone()
        weights = weight.requires_grad_(), values.requires_grad_()

        def with_gradients() -> None:
            with torch.enable_grad():
                torch.autograd.grad(xformers_embedding_bag(features, *weights), weights, upstream)

        ways["recon, sparsify's Triton decoder"] = few, lambda: xformers_embedding_bag(features, *weights)
        ways["recon and both gradients, sparsify's Triton decoder"] = 3 * few, with_gradients
    for name, (own, work) in ways.items():
        bench(named + name, n, lambda work=work: work, own)
    for variant in ("topk", "batchtopk"):
        for rough in (True, False):
            make = partial(Ours, shape, variant=variant, mixed_precision=rough)
            how = f"step, {variant}, {'bfloat16' if rough else 'float32'} search"
            bench(named + how, n, lambda make=make: partial(make().step, acts), flops + (4 + rough) * few)


@torch.inference_mode()
def passes(bench: Bench, network: Network, sizes: tuple[int, ...]) -> int:
    """Forward passes in each way, and `network.stream` with two stages recorded; gives the FLOPs of a picture."""
    pixels = 3, network.size, network.size
    with FlopCounterMode(display=False) as counter:
        network.model(torch.zeros(1, *pixels, device=network.device))
    flops = counter.get_total_flops()

    def bare(n: int, how: str) -> Callable:
        kind = torch.channels_last if "last" in how else torch.contiguous_format
        model, x = deepcopy(network.model).to(memory_format=kind), torch.randn(n, *pixels, device=network.device)
        x = x.contiguous(memory_format=kind)
        if "compile" in how:
            torch._dynamo.reset()
            model = torch.compile(model, dynamic=False, backend="inductor" if bench.rounds > 1 else "eager")

        def work() -> None:
            with torch.autocast(network.device.type, torch.bfloat16, enabled="bfloat16" in how):
                model(x)

        return work

    def stream(n: int, mixed: bool) -> Callable:
        x = torch.randn(n, *pixels).contiguous(memory_format=torch.channels_last)
        x = x.pin_memory() if GPU else x
        return lambda: [len(seen.logits) for seen in network.stream([x] * 4, ("stage3", "stage4"), mixed, logits=False)]

    last = [f"{kind}, channels last" for kind in ("float32", "TF32", "bfloat16", "bfloat16, compiled")]
    for n in sizes:
        for how in ("float32", *last):
            bench(f"batch {n}: forward, {how}", n, partial(bare, n, how), n * flops)
        for mixed in (False, True):
            name = f"batch {n}: stages 3 and 4 recorded, {'bfloat16' if mixed else 'float32'}"
            bench(name, 4 * n, partial(stream, n, mixed), 4 * n * flops)
    return flops


def chain(bench: Bench, cfg: ClassifierConfig, flops: int, sizes: tuple, folder: Path) -> dict[str, float]:
    """The preset's stages on pictures in memory; {stage: minutes of all of FGVC-Aircraft at these rates}."""
    n, batch_sizes, n_cells = sizes
    study, made = preset("fgvc"), {kind: Made(n, size) for kind, size in JPEGS.items()}
    pictures = made["FGVC-Aircraft"]

    def training(size: int) -> Callable:
        run, x = Run(replace(cfg, batch_size=size), pictures, folder), torch.randn(size, 3, *[cfg.image_size] * 2)
        x = x.to(device()).contiguous(memory_format=torch.channels_last)
        return partial(run.train_step, x, torch.arange(size, device=device()) % 100)

    def loading(kind: str) -> Callable:
        batches = Run(cfg, made[kind], folder).batches(cfg.image_size)

        def read() -> int:
            return sum(len(labels) for _, labels, _ in batches)

        read()  # its processes start, and stay
        return read

    steps = [bench(f"batch {m}: training step", m, partial(training, m), 3 * m * flops) for m in batch_sizes]
    n_train, loaded = len(pictures.rows(cfg.train_split)), []
    for kind in made:
        loaded.append(bench(f"loading for training, {kind}'s size", n_train, partial(loading, kind), once=True))
    network = Network(build(cfg, 100).to(device()), pictures.classes(), cfg.image_size, level="variant")
    seen = bench("bare loop, pictures loaded", n, lambda: partial(forward, network, pictures), once=True)
    keep = partial(extract, folder, network, pictures, study.sites, augmentation=cfg, n_views=study.n_views)
    kept = bench("extract, stages 3 and 4", n + study.n_views * n_train, lambda: keep, once=True)
    seconds = {
        "classifier, training": cfg.n_epochs * N_TRAINVAL / min(steps[0], loaded[0]),
        "classifier, test pictures": N_TEST / seen,
        "activations": (N_IMAGES + study.n_views * N_TRAINVAL) / kept,
    }
    for own in (study.sae, study.local):
        trained, indexed = of_site(bench, own, n_cells, folder)
        seconds[f"autoencoder, {own.site}"] = own.n_cells / trained
        seconds[f"feature index, {own.site}"] = N_IMAGES / indexed
    minutes = {stage: value / 60 for stage, value in seconds.items()}
    return minutes | {"all": sum(minutes.values())}


def of_site(bench: Bench, own: SAEConfig, n_cells: int, folder: Path) -> tuple[float, float]:
    """(cells a second of `train_sae`, pictures a second of `build_index`) of what `extract` wrote into the folder."""
    acts, its = Activations.open(folder, own.site), folder / f"sae-{own.site}"
    its.mkdir()
    less = {"batch_size": min(own.batch_size, n_cells // 4), "dead_after": min(own.dead_after, n_cells - 1)}
    rows, learned = acts.rows("train", "val", "test"), acts.rows("train", "val", "views")
    train = partial(train_sae, its, change(own, n_cells=n_cells, **less), acts, learned)

    def index() -> Callable:
        return partial(build_index, SparseAutoencoder.load(its), acts, its, rows)

    trained = bench(f"train_sae, {own.site}", n_cells, lambda: train, once=True)
    return trained, bench(f"build_index, {own.site}, pictures", len(rows), index, once=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--results", help="JSON file for the numbers")
    given = parser.parse_args()
    tiny = given.tiny or not GPU
    bench, cfg = Bench(1 if tiny else 15), replace(preset("fgvc").classifier, weights=None)
    if tiny:
        cfg = replace(cfg, arch="test_convnext", sizes=(64,), batch_size=4)
    n_steps = bench.rounds + WARM_UP
    for shape in (Shape(32, 64, 2, 64), Shape(32, 128, 2, 64)) if tiny else (Shape(), Shape(d_sae=24_576)):
        autoencoder(bench, replace(shape, n_steps=n_steps))
    network = Network(build(cfg, 100).to(device()), [f"{i}" for i in range(100)], cfg.image_size)
    flops, minutes = passes(bench, network, (2, 4) if tiny else (64, 256)), {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            sizes = (24, (4, 8), 256) if tiny else (2048, (32, 128), 200_000)
            minutes = chain(bench, cfg, flops, sizes, Path(folder))
        except Exception as problem:  # what has been measured is shown all the same
            print(f"the chain failed: {type(problem).__name__}: {problem}", flush=True)
    where = torch.cuda.get_device_name() if GPU else "CPU"
    head = f"{where}, {os.cpu_count()} CPU cores, torch {torch.__version__}"
    head = f"TINY SIZES, not a measurement, on the {head}" if tiny else f"One {head}, median of {bench.rounds}"
    rows = [("", "ms", "a second", "TFLOP/s", "MiB added")]
    for row in bench.rows:
        speed, added = f"{row['tflops']:.3g}" if row["tflops"] else "", f"{row['mib']:,.0f}" if GPU else ""
        rows.append((row["name"], f"{row['ms']:.3g}", f"{row['rate']:,.0f}", speed, added))
    print(f"\n{head}:\n\n{table(rows)}\n\nThe whole preset fgvc at these rates:\n")
    print(table([("stage", "minutes"), *((stage, f"{value:.2g}") for stage, value in minutes.items())]))
    if given.results:
        facts = {row["name"]: {key: row[key] for key in row if row[key] == row[key]} for row in bench.rows}  # no nan
        minutes = {stage: value for stage, value in minutes.items() if value == value}
        write_json(Path(given.results), {"what": head, "tiny": tiny, "rows": facts, "fgvc_minutes": minutes})


if __name__ == "__main__":
    main()
