"""Scenes to a folder that torchvision.datasets.FGVCAircraft reads, with part masks and a scene table beside it."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from aircraft_sae.config import LEVELS, HangarConfig
from aircraft_sae.hangar.airframes import Airframe, taxonomy
from aircraft_sae.hangar.render import Picture, render
from aircraft_sae.hangar.scene import Scene, factors, sample
from aircraft_sae.hangar.solids import PARTS

SPLITS = ("train", "val", "test")


def airframes(config: HangarConfig) -> list[Airframe]:
    """The variants that the config asks for; ValueError where the taxonomy has fewer."""
    frames = taxonomy(config.taxonomy)
    if config.n_variants is not None and config.n_variants > len(frames):
        raise ValueError(f"n_variants is {config.n_variants}, but the taxonomy {config.taxonomy!r} has {len(frames)}")
    return frames[: config.n_variants]


def render_dataset(folder: Path, config: HangarConfig, workers: int | None = None) -> None:
    """Render every scene of `config` into `folder`; pictures that are there already are kept.

    The bytes do not depend on the number of workers (None: one a core).
    """
    frames = airframes(config)
    data = Path(folder) / "fgvc-aircraft-2013b" / "data"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True, exist_ok=True)
    numbers = [(v, i) for v in range(len(frames)) for i in range(config.scenes_per_variant)]
    jobs = [(v * config.scenes_per_variant + i, frames[v].variant) for v, i in numbers]
    with _mapper(len(jobs), workers) as mapped:
        rows = mapped(partial(_draw, config=config, data=data), jobs)
        rows = list(tqdm(rows, "render scenes", len(jobs), unit="scene", smoothing=0.05))
    _write_tables(config, frames, numbers, pd.DataFrame(rows), data)


@contextmanager
def renderer(
    n_scenes: int, size: int, supersampling: int, workers: int | None = None
) -> Iterator[Callable[[Sequence[Scene]], Iterator[Picture]]]:
    """A function that renders scenes in order, by processes that are kept from call to call; nothing is written.

    n_scenes: about how many it will be asked for, which says how many processes are worth it where workers is None.
    """
    with _mapper(n_scenes, workers) as mapped:
        yield partial(mapped, partial(render, size=size, supersampling=supersampling))


@contextmanager
def _mapper(n_jobs: int, workers: int | None) -> Iterator[Callable[[Callable, Sequence], Iterator]]:
    """What maps a function over jobs, in several processes (None: one a core)."""
    workers = workers or min(os.cpu_count() or 1, max(1, n_jobs // 16))  # starting a process takes a second
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
    """A worker would outlive a killed parent, and write into what may be another run's folder by then.

    Ctrl-C is the parent's: it waits for the scenes under way.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _draw(job: tuple[int, str], config: HangarConfig, data: Path) -> dict:
    """Render one scene unless its files are there; returns its row of the table."""
    number, variant = job
    name = f"{number:07d}"
    scene = sample(variant, config.taxonomy, config.seed, number)
    image, mask = data / "images" / f"{name}.jpg", data / "masks" / f"{name}.png"
    if (labels := _drawn(image, mask)) is None:
        picture = render(scene, config.size, config.supersampling)
        labels = picture.mask
        _save(Image.fromarray(labels), mask, format="PNG")
        _save(Image.fromarray(picture.image), image, format="JPEG", quality=scene.finish.quality)
    pixels = np.bincount(labels.ravel(), minlength=len(PARTS))
    box = dict(zip(("xmin", "ymin", "xmax", "ymax"), _box(labels), strict=True))
    counts = {f"pixels_{part}": int(n) for part, n in zip(PARTS, pixels, strict=True)}
    return {"image": name} | box | factors(scene) | counts | {"scene": scene.to_json()}


def _drawn(image: Path, mask: Path) -> np.ndarray | None:
    """The mask of a picture that is there, whole: after a power cut, files may be shorter than what was written."""
    try:
        Image.open(image).load()
        return np.asarray(Image.open(mask))
    except (OSError, SyntaxError):  # which a damaged PNG raises
        return None


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """1-based inclusive box of the aircraft as FGVC-Aircraft writes it; the whole picture where it is out of sight."""
    rows, columns = (np.flatnonzero((mask >= 2).any(axis)) for axis in (1, 0))
    if not len(rows):
        return 1, 1, mask.shape[1], mask.shape[0]
    return int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1


def _save(image: Image.Image, path: Path, **options) -> None:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)


def _write_tables(config, frames, numbers, table, data):
    n, (train, val, _) = config.scenes_per_variant, config.split_shares
    # which scenes of a variant fall into which split is drawn, the same for all variants
    order = np.random.default_rng([config.seed, 1]).permutation(n)
    rank = np.empty(n, int)
    rank[order] = np.arange(n)
    second = min(max(2, round(n * (train + val))), n - 1)  # at least one scene in each split
    first = min(max(1, round(n * train)), second - 1)
    split = np.where(rank < first, "train", np.where(rank < second, "val", "test"))
    for level in LEVELS:
        table.insert(1, level, [getattr(frames[v], level) for v, _ in numbers])
    table.insert(1, "split", [split[i] for _, i in numbers])
    table.to_parquet(data / "scenes.parquet", index=False)
    boxes = table[["image", "xmin", "ymin", "xmax", "ymax"]]
    _lines(data / "images_box.txt", (" ".join(map(str, row)) for row in boxes.itertuples(index=False)))
    for level, plural in zip(LEVELS, ("variants", "families", "manufacturers"), strict=True):
        _lines(data / f"{plural}.txt", dict.fromkeys(getattr(frame, level) for frame in frames))
    for name, members in {**{s: (s,) for s in SPLITS}, "trainval": ("train", "val")}.items():
        chosen = table[table["split"].isin(members)]
        _lines(data / f"images_{name}.txt", chosen["image"])
        for level in LEVELS:
            _lines(data / f"images_{level}_{name}.txt", chosen["image"] + " " + chosen[level])


def _lines(path: Path, lines) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
