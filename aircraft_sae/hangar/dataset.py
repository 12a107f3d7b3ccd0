"""Render scenes into a folder that torchvision.datasets.FGVCAircraft can read, with part masks and a scene table."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import cpu_count
from PIL import Image
from tqdm import tqdm

from aircraft_sae.config import LEVELS, NAMES_FILES, SPLITS, HangarConfig
from aircraft_sae.hangar import PARTS, VARIANTS, Airframe
from aircraft_sae.hangar.render import Picture, render
from aircraft_sae.hangar.scene import Scene, factors, sample
from aircraft_sae.store import write_text


def render_dataset(folder: Path, config: HangarConfig, variants: dict[str, Airframe] = VARIANTS) -> None:
    """Render every scene of `config` into `folder`; intact pictures from an earlier run are kept.

    variants: always `VARIANTS`; an argument only so that the stage's key depends on them.
    Raises: ValueError if `config` wants more variants than there are.
    """
    if (config.n_variants or 0) > len(variants):
        raise ValueError(f"n_variants is {config.n_variants}, but there are {len(variants)}")
    data = folder / "fgvc-aircraft-2013b" / "data"
    jobs = list(enumerate(product(list(variants)[: config.n_variants], _splits(config))))
    with worker_map(len(jobs)) as mapped:
        rows = tqdm(mapped(partial(_draw, config=config, data=data), jobs), "render scenes", len(jobs), unit="scene")
        table = pd.DataFrame(rows)
    table.to_parquet(data / "scenes.parquet", index=False, row_group_size=1024)
    lists = {name: table[level].unique() for level, name in NAMES_FILES.items()}
    for split in SPLITS:
        chosen = table[table["split"].isin(["train", "val"] if split == "trainval" else [split])]
        lists[f"images_{split}.txt"] = chosen["image"]
        lists |= {f"images_{level}_{split}.txt": chosen["image"] + " " + chosen[level] for level in LEVELS}
    for name, lines in lists.items():
        write_text(data / name, "".join(f"{line}\n" for line in lines))


@contextmanager
def worker_map(n_jobs: int) -> Iterator[Callable[[Callable, Sequence], Iterator]]:
    """An ordered `map` over about `n_jobs` jobs, in processes that are kept from call to call."""
    workers = min(cpu_count(), max(1, n_jobs // 16))  # starting a process takes a second
    if workers == 1:
        yield map
        return
    # a Pool would restart processes that die, again and again
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        try:
            yield partial(pool.map, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Stop a worker that outlives a killed parent: by then, its folder may belong to another run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent waits for scenes in progress

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _splits(config: HangarConfig) -> list[str]:
    """A random split for each scene of a variant, the same for all variants; no split is empty."""
    n, (train, val, _) = config.scenes_per_variant, config.split_shares
    second = min(max(2, round(n * (train + val))), n - 1)
    first = min(max(1, round(n * train)), second - 1)
    rank = np.random.default_rng([config.seed, 1]).permutation(n).argsort()
    return np.where(rank < first, "train", np.where(rank < second, "val", "test")).tolist()


def _draw(job: tuple[int, tuple[str, str]], config: HangarConfig, data: Path) -> dict:
    """Render one scene, (number, (variant, split)), unless its files are intact; returns its row of the table."""
    number, (variant, split) = job
    name, scene = f"{number:07d}", sample(variant, config.seed, number)
    try:  # decode both: a power cut can truncate a file
        Image.open(data / "images" / f"{name}.jpg").load()
        labels = np.asarray(Image.open(data / "masks" / f"{name}.png"))
    except (OSError, SyntaxError):  # a damaged PNG raises SyntaxError
        labels = draw(scene, name, data, config.size, config.supersampling).mask
    pixels = np.bincount(labels.ravel(), minlength=len(PARTS))
    left, top, right, bottom = Image.fromarray(labels >= 2).getbbox() or (0, 0, *labels.shape)
    row = {"image": name, "split": split} | {level: getattr(VARIANTS[variant], level) for level in LEVELS}
    row |= {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom} | factors(scene)
    row |= {f"pixels_{part}": int(n) for part, n in zip(PARTS, pixels, strict=True)}
    return row | {"scene": scene.to_json()}


def draw(scene: Scene, name: str, folder: Path, size: int, supersampling: int) -> Picture:
    """Render a scene into masks/<name>.png and images/<name>.jpg, each written whole."""
    picture, temporary = render(scene, size, supersampling), folder / f".{name}.{os.getpid()}.tmp"
    files = (picture.mask, f"masks/{name}.png", "PNG"), (picture.image, f"images/{name}.jpg", "JPEG")
    for pixels, path, kind in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(temporary, kind, quality=scene.finish.quality)
        temporary.replace(folder / path)
    return picture
