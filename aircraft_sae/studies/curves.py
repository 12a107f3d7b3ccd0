"""Curve detectors in early vision: which angles do neurons, features and their nulls respond to, and does it matter?

A unit's response is its activation in the middle cell of a stimulus (`Curves`); `tuning` judges it.
Source of the claim: Gorton 2024, arXiv 2406.03662, which has neither numbers nor a control.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csc_array
from torch.nn.functional import pad
from tqdm import tqdm, trange

from aircraft_sae.activations import Activations, site_folder
from aircraft_sae.features.index import encoded
from aircraft_sae.metrics import with_interval
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
    seen = _middles(network, batches(network, pictures, names), cells, _margin(network, cells))
    found = list(tqdm(seen, "stimuli", -(-len(names) // BATCH), leave=False))
    for site in sites:
        np.save(folder / f"{site_folder(site)}.npy", torch.cat([each[site] for each in found]).numpy())


def _middles(
    network: Network, batches: Iterable[torch.Tensor], cells: Mapping[str, int], margin: int
) -> Iterator[dict[str, torch.Tensor]]:
    """{site: (n, d)} acts in `cells` (numbered as in whole pictures) of pictures whose margins are cut off."""
    cropped = (pad(x, (-margin,) * 4) for x in batches)
    for seen in network.stream(cropped, list(cells), logits=False):
        grids = {site: acts.shape[1] for site, acts in seen.acts.items()}
        at = {site: cells[site] - margin * n // (network.size - 2 * margin) for site, n in grids.items()}
        yield {site: acts[:, at[site], at[site]].clone() for site, acts in seen.acts.items()}  # a view keeps the map


def batches(network: Network, pictures: Pictures, names: Sequence[str]) -> Iterator[torch.Tensor]:
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
        (seen,) = network.stream(list(batches(network, pictures, shown)), sites, logits=False)
        yield shown, seen.acts


def _noise(network: Network) -> torch.Tensor:
    x = torch.rand(1, 3, network.size, network.size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (network.mean, network.std))
    return (x - mean) / std


def _cell(network: Network, site: str) -> int:
    """Row and column of the cell whose gradient is centred closest to where strokes pass."""
    with torch.enable_grad():
        acts = network.see(x := _noise(network).requires_grad_(), [site]).acts[site]
        middle = acts.shape[1] // 2
        (gradient,) = torch.autograd.grad(acts[0, middle, middle].sum(), x)
    seen, pixels = gradient[0].abs().sum((0, 2)), torch.arange(network.size)
    centre, wanted = float((seen * pixels).sum() / seen.sum()), (MIDDLE + 0.5) * network.size / SIZE - 0.5
    return middle + round((wanted - centre) * acts.shape[1] / network.size)


def _margin(network: Network, cells: Mapping[str, int]) -> int:
    """How many pixels to cut off each side because the sites' cells do not see them: many for early layers, else 0."""
    margin, found = 16 * (network.size * 3 // 14 // 16), []
    for cut in (0, margin):
        (seen,) = _middles(network, [_noise(network)], cells, cut)
        found.append(torch.cat(list(seen.values()), 1))
    return margin if torch.allclose(*found, rtol=1e-3, atol=1e-4) else 0


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
    units.parquet: dictionary, unit, the columns of `tuned`, detects; tuning_<dictionary>.npy: (d, angles);
    coverage.parquet: dictionary, n detectors among units, and the `coverage` of the first m detectors of `family`;
    matched.parquet: `equal_choice` among as many detectors as there are among neurons, or ten if there are none;
    kinds.parquet: how `alike` each dictionary's detectors are, and their responses `by_kind`;
    split.parquet: `split_neurons` of "features" alone.
    """
    middle, n_neurons = np.load(stimuli / f"{site_folder(acts.site)}.npy"), 0
    units, covered, matched, kinds = [], [], [], []
    for name, sae in {"neurons": None, **saes}.items():
        values = middle if sae is None else sae.encode(torch.from_numpy(middle)).dense().numpy()
        curves, table = tuning.tuned(values, pictures.table)
        detects = tuning.detects(table, usual(sae, acts))
        table.insert(0, "dictionary", name)
        table.insert(1, "unit", np.arange(len(table)))
        units.append(table.assign(detects=detects))
        np.save(folder / f"tuning_{name.replace(' ', '_')}.npy", curves)
        own = curves[detects]
        order, facts = tuning.family(own, tuning.LARGEST), {"dictionary": name, "n": len(own), "units": len(table)}
        n_neurons = n_neurons or len(own) or len(tuning.PUBLISHED)
        matched.append({"dictionary": name} | tuning.equal_choice(own, n_neurons))
        covered += [facts | {"m": m} | tuning.coverage(own[order[:m]]) for m in range(len(order) + 1)]
        if len(own):
            responses = tuning.by_kind(values[:, detects], pictures.table).to_dict()
            kinds.append({"dictionary": name, "alike": tuning.alike(own)} | responses)
        if name == "features":
            parts = tuning.split_neurons(middle, values, sae.W_dec.detach().numpy(), pictures.table)
            write_parquet(parts, folder / "split.parquet")
    made = {"units": pd.concat(units, ignore_index=True), "coverage": covered, "matched": matched, "kinds": kinds}
    for name, table in made.items():
        write_parquet(pd.DataFrame(table), folder / f"{name}.parquet")


@torch.no_grad()
def find_patches(
    folder: Path, *, network: Network, pictures: Pictures, sae: SparseAutoencoder, units: Sequence[int]
) -> None:
    """Record the nine strongest patches of some features in test pictures, at most one from each picture.

    patches.parquet: unit, image, row, column, value
    """
    rows, site = [], sae.cfg.site
    for shown, seen in watch(network, pictures, [site], f"{site} in pictures"):
        n, _, columns, _ = seen[site].shape
        maps = encoded(sae, [seen[site]])[:, units].toarray().reshape(n, -1, len(units))
        rows += [(unit, image, *divmod(int(maps[i, :, j].argmax()), columns), maps[i, :, j].max())
                 for i, image in enumerate(shown) for j, unit in enumerate(units)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["unit", "image", "row", "column", "value"])
    top = table.sort_values("value", ascending=False, kind="stable").groupby("unit", sort=False)
    write_parquet(top.head(9).reset_index(drop=True), folder / "patches.parquet")


@torch.no_grad()
def suppress_families(
    folder: Path, *, network: Network, site: str, after: str, sae: SparseAutoencoder, pictures: Pictures,
    families: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
    """Suppress families of features at a site: how far do a later site's acts in the middle cell move?

    after: the later site; pictures: `Curves`. lost.parquet: family, kind (of stimulus), and value, low, high, n
    (pictures): summed length of the changes, divided by the acts' summed length.
    """
    W_dec, rows, cell = sae.W_dec.detach(), [], _cell(network, after)

    def without(acts: torch.Tensor, own: list[int]) -> torch.Tensor:
        codes = sae.encode(acts.flatten(0, 2)).dense()[:, own]
        return acts - (codes @ W_dec[own]).view(acts.shape)

    edits = {"": {}} | {name: {site: partial(without, own=list(own))} for name, own in families.items()}
    for kind, table in tqdm(pictures.table.groupby("kind", sort=False), "suppress families", leave=False):
        middles: dict[str, list] = {name: [] for name in edits}
        for x in batches(network, pictures, table["image"].tolist()):
            for name, edit in edits.items():
                middles[name].append(network.see(x, [after], edit).acts[after][:, cell, cell].clone())
        plain, *changed = (torch.cat(each) for each in middles.values())
        rows += [{"family": name, "kind": kind} | with_interval((each - plain).norm(dim=1), plain.norm(dim=1))
                 for name, each in zip(families, changed, strict=True)]  # fmt: skip
    write_parquet(pd.DataFrame(rows), folder / "lost.parquet")
