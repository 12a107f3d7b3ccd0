"""Times of the hot paths on one GPU.

    python tests/benchmarks/gpu.py [--results FILE] [--tiny]

Pictures are made in memory and weights are random, so that only the package is needed, with 24 GB of GPU memory and ten
minutes. --tiny, or a machine without a GPU, runs everything in small: that checks the script and measures nothing.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sae_peers import Ours, Product, Shape, table
from torch.utils.flop_counter import FlopCounterMode

from aircraft_sae.activations import Activations, extract
from aircraft_sae.config import ClassifierConfig, change, preset
from aircraft_sae.devices import device
from aircraft_sae.features import build_index
from aircraft_sae.networks import Network, build
from aircraft_sae.networks.training import Run
from aircraft_sae.pictures import Pictures, decode
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.sae.training import choose, train_sae
from aircraft_sae.store import write_json

GPU = torch.cuda.is_available()


class Made(Pictures):
    """n pictures of FGVC-Aircraft's usual size, as JPEGs in memory, of 100 variants."""

    def __init__(self, n: int):
        rng, self.files = np.random.default_rng(0), []
        for _ in range(4):
            colours = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((1024, 695))
            noisy = np.asarray(colours) + rng.normal(0, 11, (695, 1024, 3))
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
    """Takes times; rows: name, ms, rate (items a second), tflops, mib (peak of GPU memory above the start)."""

    def __init__(self, rounds: int):
        self.rounds, self.rows = rounds, []

    def __call__(self, name: str, n: int, work: Callable, flops: float = 0, once: bool = False) -> None:
        """Add a row for `work`, which handles n items: the median of the rounds after three to warm up."""
        for _ in range(0 if once else min(3, self.rounds)):
            work()
        before = torch.cuda.memory_allocated() if GPU else 0
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        marks = [self.now()]
        for _ in range(1 if once else self.rounds):
            work()
            marks.append(self.now())
        ms = statistics.median(1000 * (end - begin) for begin, end in pairwise(marks))
        mib = (torch.cuda.max_memory_allocated() - before) / 2**20 if GPU else 0
        self.rows.append({"name": name, "ms": ms, "rate": 1000 * n / ms, "tflops": flops / ms / 1e9, "mib": mib})

    @staticmethod
    def now() -> float:
        """Seconds, once the GPU has finished."""
        if GPU:
            torch.cuda.synchronize()
        return time.perf_counter()


@torch.no_grad()
def autoencoder(bench: Bench, shape: Shape) -> None:
    """The encoder product, decoding, and whole training steps."""
    n, where, named = shape.batch_size, device(), f"d_sae {shape.d_sae:,}: "
    acts = torch.randn(n, shape.d_in, device=where)
    flops, few = 2 * n * shape.d_in * shape.d_sae, 2 * n * shape.d_in * shape.k
    for kind in (torch.float32, torch.bfloat16):
        with where:
            product = Product(shape)
        product.weight, product.bias = product.weight.to(kind), product.bias.to(kind)
        bench(f"{named}encoder product, {kind}", n, partial(product.step, acts.to(kind)), flops)
    sae = Ours(shape, variant="topk").run.sae
    codes = choose(sae, acts, 0.0)[0]
    bench(f"{named}recon, embedding_bag", n, partial(codes.decode, sae.W_dec.detach()), few)
    for variant in ("topk", "batchtopk"):
        for mixed in (True, False):
            step = Ours(shape, variant=variant, mixed_precision=mixed).step
            bench(f"{named}step, {variant}, mixed precision {mixed}", n, partial(step, acts), flops + (4 + mixed) * few)


@torch.inference_mode()
def passes(bench: Bench, network: Network, sizes: tuple[int, ...]) -> int:
    """Forward passes, and `network.stream` with two stages recorded; returns the FLOPs of a picture."""
    pixels, where = (3, network.size, network.size), network.device
    with FlopCounterMode(display=False) as counter:
        network.model(torch.zeros(1, *pixels, device=where))
    flops = counter.get_total_flops()
    model = network.model.to(memory_format=torch.channels_last)
    for n in sizes:
        x = torch.randn(n, *pixels).contiguous(memory_format=torch.channels_last)
        for mixed, kind in ((False, "float32"), (True, "bfloat16")):
            with torch.autocast(where.type, torch.bfloat16, enabled=mixed):
                forward = partial(model, x.to(where))
                bench(f"batch {n}: forward, {kind}, channels last", n, forward, n * flops)
            stream = partial(network.stream, [x] * 4, ("stage3", "stage4"), mixed, logits=False)
            name = f"batch {n}: stages 3 and 4 recorded, {kind}"
            bench(name, 4 * n, lambda stream=stream: list(stream()), 4 * n * flops)
    return flops


def chain(bench: Bench, cfg: ClassifierConfig, flops: int, sizes: tuple, folder: Path) -> None:
    """Training steps, loading, and the stages of the preset."""
    n, batch_sizes, n_cells = sizes
    study, pictures = preset("fgvc"), Made(n)
    for size in batch_sizes:
        x = torch.randn(size, 3, *[cfg.image_size] * 2).to(device()).contiguous(memory_format=torch.channels_last)
        run, labels = Run(replace(cfg, batch_size=size), pictures, folder), torch.arange(size, device=device()) % 100
        bench(f"batch {size}: training step", size, partial(run.train_step, x, labels), 3 * size * flops)
    batches = Run(cfg, pictures, folder).batches(cfg.image_size)
    list(batches)  # the loading processes start, and stay
    bench("loading for training", len(pictures.rows(cfg.train_split)), lambda: list(batches), once=True)
    network = Network(build(cfg, 100).to(device()), pictures.classes(), cfg.image_size, level="variant")
    bench("extract, stages 3 and 4", n, partial(extract, folder, network, pictures, study.sites), once=True)
    for own in (study.sae, study.local):
        acts, place = Activations.open(folder, own.site), folder / f"sae-{own.site}"
        place.mkdir()
        own = change(own, n_cells=n_cells, batch_size=min(own.batch_size, n_cells // 4), dead_after=n_cells // 2)
        rows = acts.rows("train", "val", "test")
        bench(f"train_sae, {own.site}", n_cells, partial(train_sae, place, own, acts, rows), once=True)
        index = partial(build_index, SparseAutoencoder.load(place), acts, place, rows)
        bench(f"build_index, {own.site}, pictures", len(rows), index, once=True)


def main() -> None:
    """Measure everything, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes")
    parser.add_argument("--results", help="JSON file for the numbers")
    given = parser.parse_args()
    tiny = given.tiny or not GPU
    bench, cfg = Bench(1 if tiny else 15), replace(preset("fgvc").classifier, weights=None)
    if tiny:
        cfg = replace(cfg, arch="test_convnext", sizes=(64,), batch_size=4)
    for shape in (Shape(32, 64, 2, 64),) if tiny else (Shape(), Shape(d_sae=24_576)):
        autoencoder(bench, replace(shape, n_steps=bench.rounds + 3))
    network = Network(build(cfg, 100).to(device()), [f"{i}" for i in range(100)], cfg.image_size)
    flops = passes(bench, network, (2,) if tiny else (64, 256))
    with tempfile.TemporaryDirectory() as folder:
        chain(bench, cfg, flops, (24, (4,), 256) if tiny else (2048, (32, 128), 200_000), Path(folder))
    where = torch.cuda.get_device_name() if GPU else "CPU"
    head = f"{'TINY SIZES, not a measurement: ' * tiny}{where}, {os.cpu_count()} CPU cores, torch {torch.__version__}"
    rows = [(row["name"], *(f"{row[key]:,.3g}" for key in ("ms", "rate", "tflops", "mib"))) for row in bench.rows]
    print(f"{head}:\n\n{table([('', 'ms', 'a second', 'TFLOP/s', 'MiB added'), *rows])}")
    if given.results:
        write_json(Path(given.results), {"what": head, "rows": bench.rows})


if __name__ == "__main__":
    main()
