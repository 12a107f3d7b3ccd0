"""Scenes to a folder that torchvision.datasets.FGVCAircraft reads, with part masks and a scene table beside it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
from joblib import cpu_count
from PIL import Image
from pyarrow.parquet import ParquetWriter
from tqdm import tqdm

from aircraft_sae.config import LEVELS, NAMES_FILES, SPLITS, HangarConfig
from aircraft_sae.hangar import PARTS, VARIANTS, Airframe
from aircraft_sae.hangar.render import render
from aircraft_sae.hangar.scene import Scene, factors, sample
from aircraft_sae.store import write_text

ROWS = 1024  # of the table of scenes, held at once


def render_dataset(
    folder: Path, config: HangarConfig, variants: dict[str, Airframe] = VARIANTS, workers: int | None = None
) -> None:
    """Render every scene of `config` into `folder`; whole pictures that are there already are kept.

    variants: always `VARIANTS`, handed over so that a stage of pictures is known by them. The bytes do not depend on
    the number of workers (None: one a core). Raises: ValueError where there are fewer variants than wanted.
    """
    if (config.n_variants or 0) > len(variants):
        raise ValueError(f"n_variants is {config.n_variants}, but there are {len(variants)}")
    data = folder / "fgvc-aircraft-2013b" / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True, exist_ok=True)
    jobs = list(enumerate(product(list(variants)[: config.n_variants], _splits(config))))
    with mapper(len(jobs), workers) as mapped:
        rows = tqdm(mapped(partial(_draw, config=config, data=data), jobs), "render scenes", len(jobs), unit="scene")
        table = _write_table(iter(rows), data / "scenes.parquet")
    lists = {name: table[level].unique() for level, name in NAMES_FILES.items()}
    for split in SPLITS:
        chosen = table[table["split"].isin(["train", "val"] if split == "trainval" else [split])]
        lists[f"images_{split}.txt"] = chosen["image"]
        lists |= {f"images_{level}_{split}.txt": chosen["image"] + " " + chosen[level] for level in LEVELS}
    for name, lines in lists.items():
        write_text(data / name, "".join(f"{line}\n" for line in lines))


def _write_table(rows: Iterator[dict], path: Path) -> pd.DataFrame:
    """Write the table of scenes, of which a row takes 2 kB, some rows at a time; what lists are made of."""
    tables, file = [], None
    with ExitStack() as stack:
        while some := list(islice(rows, ROWS)):
            part = pd.DataFrame(some)
            content = pyarrow.Table.from_pandas(part, file and file.schema, preserve_index=False)
            file = file or stack.enter_context(ParquetWriter(path, content.schema))
            file.write_table(content)
            tables.append(part[["image", "split", *LEVELS]])
    return pd.concat(tables, ignore_index=True)


@contextmanager
def mapper(n_jobs: int, workers: int | None = None) -> Iterator[Callable[[Callable, Sequence], Iterator]]:
    """What maps a function over about so many jobs, in order, by processes that are kept from call to call."""
    workers = workers or min(cpu_count(), max(1, n_jobs // 16))  # starting a process takes a second
    if workers == 1:
        yield map
    else:
        # not a Pool, which starts processes that die again and again
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
            try:
                yield partial(pool.map, chunksize=4)
            finally:
                pool.shutdown(cancel_futures=True)  # nothing more is wanted, where the caller failed


def _end_with_parent() -> None:
    """A worker would outlive a killed parent, and write into what may be another run's folder by then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it waits for the scenes under way

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _splits(config: HangarConfig) -> list[str]:
    """The split of each scene of a variant: drawn, at least one scene in each, and the same for all variants."""
    n, (train, val, _) = config.scenes_per_variant, config.split_shares
    second = min(max(2, round(n * (train + val))), n - 1)
    first = min(max(1, round(n * train)), second - 1)
    rank = np.random.default_rng([config.seed, 1]).permutation(n).argsort()
    return np.where(rank < first, "train", np.where(rank < second, "val", "test")).tolist()


def _draw(job: tuple[int, tuple[str, str]], config: HangarConfig, data: Path) -> dict:
    """Render one scene, (number, (variant, split)), unless its files are there; returns its row of the table."""
    number, (variant, split) = job
    name, scene = f"{number:07d}", sample(variant, config.seed, number)
    image, mask = data / "images" / f"{name}.jpg", data / "masks" / f"{name}.png"
    try:  # whole files, that is: after a power cut, they may be shorter than what was written
        Image.open(image).load()
        labels = np.asarray(Image.open(mask))
    except (OSError, SyntaxError):  # which a damaged PNG raises
        labels = draw(scene, data, name, config.size, config.supersampling)
    pixels = np.bincount(labels.ravel(), minlength=len(PARTS))
    left, top, right, bottom = Image.fromarray(labels >= 2).getbbox() or (0, 0, *labels.shape)
    row = {"image": name, "split": split} | {level: getattr(VARIANTS[variant], level) for level in LEVELS}
    row |= {"xmin": left + 1, "ymin": top + 1, "xmax": right, "ymax": bottom} | factors(scene)
    row |= {f"pixels_{part}": int(n) for part, n in zip(PARTS, pixels, strict=True)}
    return row | {"scene": scene.to_json()}


def draw(scene: Scene, folder: Path, name: str, size: int, supersampling: int) -> np.ndarray:
    """Render a scene into masks/<name>.png and images/<name>.jpg, each whole or not at all; its mask."""
    picture, temporary = render(scene, size, supersampling), folder / f".{name}.{os.getpid()}.tmp"
    files = (picture.mask, f"masks/{name}.png", "PNG"), (picture.image, f"images/{name}.jpg", "JPEG")
    for pixels, path, kind in files:
        Image.fromarray(pixels).save(temporary, kind, quality=scene.finish.quality)
        temporary.replace(folder / path)
    return picture.mask
