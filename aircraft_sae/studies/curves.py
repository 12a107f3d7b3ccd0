"""Curve detectors in early vision: which angles do neurons, features and their nulls respond to?

A unit's response is its activation in the middle cell of a stimulus (`Curves`); `tuning` judges it.
Source of the claim: Gorton 2024, arXiv 2406.03662, which has neither numbers nor a control.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.sparse import csc_array
from tqdm import tqdm, trange

from aircraft_sae.activations import Activations, site_folder
from aircraft_sae.features import encoded
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.curves import MIDDLE, SIZE
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies import tuning


def record_middle(folder: Path, *, network: Network, pictures: Pictures, sites: Sequence[str]) -> None:
    """Write the acts of each site's middle cell, (pictures, d_in) float32, to <site>.npy."""
    if type(network.model).__name__ == "GoogLeNet":
        raise ValueError("torchvision's googlenet has 3x3 kernels in its 5x5 branches: take arch inceptionv1")
    names, cells = pictures.table["image"].tolist(), {site: _cell(network, site) for site in sites}
    seen, middles = network.stream(_batches(network, pictures, names), sites, logits=False), []
    for each in tqdm(seen, "stimuli", -(-len(names) // BATCH), leave=False):
        middles.append({site: each.acts[site][:, i, i].clone() for site, i in cells.items()})  # a view keeps the map
    for site in sites:
        np.save(folder / f"{site_folder(site)}.npy", torch.cat([each[site] for each in middles]).numpy())


def _batches(network: Network, pictures: Pictures, names: Sequence[str]) -> Iterator[torch.Tensor]:
    """Pictures by name as the network takes them, BATCH at a time."""
    for start in range(0, len(names), BATCH):
        yield torch.stack([network.as_input(pictures.picture(name)) for name in names[start : start + BATCH]])


def watch(
    network: Network, pictures: Pictures, sites: Sequence[str], what: str
) -> Iterator[tuple[list[str], dict[str, torch.Tensor]]]:
    """(names, acts by site) of test pictures, batch after batch: between batches, the caller has all threads."""
    names = pictures.rows("test")["image"].tolist()
    for start in trange(0, len(names), BATCH, desc=what, leave=False):
        shown = names[start : start + BATCH]
        (seen,) = network.stream(list(_batches(network, pictures, shown)), sites, logits=False)
        yield shown, seen.acts


def _cell(network: Network, site: str) -> int:
    """Row and column of the cell whose gradient is centred closest to where strokes pass."""
    noise = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
    x = network.as_input(Image.fromarray(noise))[None].requires_grad_()
    acts = network.see(x, [site]).acts[site]
    middle = acts.shape[1] // 2
    (gradient,) = torch.autograd.grad(acts[0, middle, middle].sum(), x)
    seen, pixels = gradient[0].abs().sum((0, 2)), torch.arange(network.size)
    centre, wanted = float((seen * pixels).sum() / seen.sum()), (MIDDLE + 0.5) * network.size / SIZE - 0.5
    return middle + round((wanted - centre) * acts.shape[1] / network.size)


def usual(sae: SparseAutoencoder | None, acts: Activations) -> np.ndarray:
    """(d,) QUANTILE of each unit's positive activations in test pictures (sparse units are silent in most cells)."""
    blocks = acts.blocks(acts.rows("test"))
    if sae is None:
        codes = csc_array(torch.cat([block.flatten(0, 2) for block in blocks]).relu().numpy())
    else:
        codes = encoded(sae, blocks).tocsc()
    columns = np.split(codes.data, codes.indptr[1:-1])
    return np.array([np.quantile(own, tuning.QUANTILE) if len(own) else 0.0 for own in columns])


def tune(
    folder: Path, *, stimuli: Path, pictures: Pictures, acts: Activations, saes: Mapping[str, SparseAutoencoder]
) -> None:
    """Find the curve detectors among a site's neurons and the units of dictionaries, and what they cover.

    stimuli: from `record_middle`; pictures: the `Curves` shown; acts: of real pictures; saes: "features" and nulls.
    Writes, for each dictionary:
    units.parquet: the columns of `tuned`, detects, dictionary, unit; tuning_<dictionary>.npy: (d, angles);
    coverage.parquet: dictionary, n detectors among units, and the `coverage` of the first m detectors of `family`;
    matched.parquet: `equal_choice` among as many detectors as there are among neurons, or ten if there are none;
    split.parquet: `split_neurons` of "features" alone.
    """
    middle, n_neurons = np.load(stimuli / f"{site_folder(acts.site)}.npy"), 0
    units, covered, matched = [], [], []
    for name, sae in {"neurons": None, **saes}.items():
        values = middle if sae is None else sae.encode(torch.from_numpy(middle)).dense().numpy()
        curves, table = tuning.tuned(values, pictures.table)
        detects = tuning.detects(table, usual(sae, acts))
        units.append(table.assign(detects=detects, dictionary=name, unit=np.arange(len(table))))
        np.save(folder / f"tuning_{name.replace(' ', '_')}.npy", curves)
        own = curves[detects]
        order, facts = tuning.family(own, tuning.LARGEST), {"dictionary": name, "n": len(own), "units": len(table)}
        n_neurons = n_neurons or len(own) or len(tuning.PUBLISHED)
        matched.append({"dictionary": name} | tuning.equal_choice(own, n_neurons))
        covered += [facts | {"m": m} | tuning.coverage(own[order[:m]]) for m in range(len(order) + 1)]
        if name == "features":
            parts = tuning.split_neurons(middle, values, sae.W_dec.detach().numpy(), pictures.table)
            write_parquet(parts, folder / "split.parquet")
    write_parquet(pd.concat(units, ignore_index=True), folder / "units.parquet")
    write_parquet(pd.DataFrame(covered), folder / "coverage.parquet")
    write_parquet(pd.DataFrame(matched), folder / "matched.parquet")


@torch.no_grad()
def find_patches(
    folder: Path, *, network: Network, pictures: Pictures, sae: SparseAutoencoder, units: Sequence[int]
) -> None:
    """Record the nine strongest patches of some features in test pictures, at most one from each picture.

    patches.parquet: unit, image, row, column, value
    """
    rows, site = [], sae.cfg.site
    for shown, seen in watch(network, pictures, [site], f"{site} in pictures"):
        n, n_rows, columns, _ = seen[site].shape
        maps = encoded(sae, [seen[site]])[:, units].toarray().reshape(n, n_rows * columns, len(units))
        rows += [(unit, image, *divmod(int(maps[i, :, j].argmax()), columns), maps[i, :, j].max())
                 for i, image in enumerate(shown) for j, unit in enumerate(units)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["unit", "image", "row", "column", "value"])
    top = table.sort_values("value", ascending=False, kind="stable").groupby("unit", sort=False)
    write_parquet(top.head(9).reset_index(drop=True), folder / "patches.parquet")
