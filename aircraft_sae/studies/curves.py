"""Curve detectors in early vision: which angles do neurons, features and their nulls answer to, and do they matter?

A unit's response is its activation in the middle cell of a stimulus (`Curves`); `tuning` judges it.
Source of the claim: Gorton 2024, arXiv 2406.03662, which has neither numbers nor a control.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from aircraft_sae.activations import Activations, site_folder
from aircraft_sae.features.index import encoded
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import BATCH, Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.pictures.curves import MIDDLE, SIZE
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.tuning import (
    LARGEST,
    PUBLISHED,
    QUANTILE,
    Tuning,
    alike,
    by_kind,
    contour_agreement,
    contour_angles,
    coverage,
    equal_choice,
    family,
    split,
)  # fmt: skip


def see_middle(folder: Path, *, network: Network, pictures: Pictures, sites: Sequence[str]) -> None:
    """Acts of the middle cell, (pictures, d_in) float32, in <site>.npy."""
    if type(network.model).__name__ == "GoogLeNet":
        raise ValueError("torchvision's googlenet has 3x3 kernels in its 5x5 branches: take arch inceptionv1")
    names, found, margin = pictures.table["image"].tolist(), {site: [] for site in sites}, _margin(network, sites)
    cells = {site: _cell(network, site) for site in sites}
    cropped = (_cropped(x, margin) for x in batches(network, pictures, names))
    for each in tqdm(network.stream(cropped, sites, logits=False), "stimuli", -(-len(names) // BATCH), leave=False):
        for site, acts in each.acts.items():
            found[site].append(_middle(network, acts, cells[site], margin))
    for site, acts in found.items():
        np.save(folder / f"{site_folder(site)}.npy", torch.cat(acts).numpy())


def batches(network: Network, pictures: Pictures, names: Sequence[str]) -> Iterator[torch.Tensor]:
    """Pictures by name, BATCH at a time, as the network takes them."""
    for start in range(0, len(names), BATCH):
        yield torch.stack([network.as_input(pictures.picture(name)) for name in names[start : start + BATCH]])


def _noise(network: Network) -> torch.Tensor:
    x = torch.rand(1, 3, network.size, network.size, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (network.mean, network.std))
    return (x - mean) / std


def _cell(network: Network, site: str) -> int:
    """Row, and column, of the cell that sees most of where strokes pass, by the centre of its gradient."""
    with torch.enable_grad():
        acts = network.see(x := _noise(network).requires_grad_(), [site]).acts[site]
        middle = acts.shape[1] // 2
        (gradient,) = torch.autograd.grad(acts[0, middle, middle].sum(), x)
    seen, pixels = gradient[0].abs().sum((0, 2)), torch.arange(network.size)
    centre, wanted = float((seen * pixels).sum() / seen.sum()), (MIDDLE + 0.5) * network.size / SIZE - 0.5
    return middle + round((wanted - centre) * acts.shape[1] / network.size)


def _margin(network: Network, sites: Sequence[str]) -> int:
    """Pixels that can be cut off each side without a change in the middle cell: as early layers see little, a lot."""
    x, cells = _noise(network), {site: _cell(network, site) for site in sites}
    margin, middles = 16 * (network.size * 3 // 14 // 16), []
    for cut in (0, margin):
        (seen,) = network.stream([_cropped(x, cut)], sites, logits=False)
        middles.append(torch.cat([_middle(network, acts, cells[site], cut) for site, acts in seen.acts.items()], 1))
    return margin if torch.allclose(*middles, rtol=1e-3, atol=1e-4) else 0


def _cropped(x: torch.Tensor, margin: int) -> torch.Tensor:
    return x[..., margin : x.shape[2] - margin, margin : x.shape[3] - margin]


def _middle(network: Network, acts: torch.Tensor, cell: int, margin: int) -> torch.Tensor:
    """(n, d) of a cell of whole pictures, seen without their margins."""
    at = cell - margin * acts.shape[1] // (network.size - 2 * margin)
    return acts[:, at, at].clone()  # the map may go


def usual(sae: SparseAutoencoder | None, acts: Activations) -> np.ndarray:
    """(d,) QUANTILE of each unit's positive activations in test pictures: sparse units are silent in most cells."""
    blocks = acts.blocks(acts.rows("test"))
    if sae is None:
        values = torch.cat([block.flatten(0, 2) for block in blocks]).t().numpy()
        columns = (own[own > 0] for own in values)
    else:
        codes = encoded(sae, blocks).tocsc()
        columns = np.split(codes.data, codes.indptr[1:-1])
    return np.array([np.quantile(own, QUANTILE) if len(own) else 0.0 for own in columns])


def tune(
    folder: Path, *, stimuli: Path, pictures: Pictures, acts: Activations, saes: Mapping[str, SparseAutoencoder]
) -> None:
    """Tuning of a site's neurons and of dictionaries' units: which are curve detectors, and what they cover.

    stimuli: of `see_middle`; pictures: the `Curves` it saw; acts: cells of real pictures; saes: "features" and others.
    units.parquet: dictionary, unit, peak, width, echo, beyond_line, corner, strongest, detects.
    tuning_<dictionary>.npy: (d, angles). coverage.parquet: dictionary, n (detectors) of so many units, m, and the
    values of `coverage` of the first m detectors of `family`. matched.parquet: `equal_choice` among as many detectors
    as neurons are, ten where none is. kinds.parquet: dictionary, alike, and `by_kind` of its detectors. split.parquet:
    `split` of "features".
    """
    middle, n_neurons = np.load(stimuli / f"{site_folder(acts.site)}.npy"), 0
    units, covered, matched, kinds = [], [], [], []
    for name, sae in {"neurons": None, **saes}.items():
        values = middle if sae is None else sae.encode(torch.from_numpy(middle)).dense().detach().numpy()
        tuning = Tuning.of(values, pictures.table)
        names = "peak", "width", "echo", "beyond_line", "corner", "strongest"
        found = {each: getattr(tuning, each) for each in names}
        detects = found["detects"] = tuning.detects(usual(sae, acts))
        units.append(pd.DataFrame({"dictionary": name, "unit": np.arange(len(tuning.curves))} | found))
        np.save(folder / f"tuning_{name.replace(' ', '_')}.npy", tuning.curves)
        own = tuning.curves[detects]
        order, facts = family(own, LARGEST), {"dictionary": name, "n": len(own), "units": len(detects)}
        n_neurons = n_neurons or len(own) or len(PUBLISHED)
        matched.append(facts | equal_choice(own, n_neurons))
        covered += [facts | {"m": m} | coverage(own[order[:m]]) for m in range(len(order) + 1)]
        if len(own):
            asked = by_kind(values[:, detects], pictures.table).to_dict()
            kinds.append({"dictionary": name, "alike": alike(own)} | asked)
        if name == "features":
            write_parquet(split(middle, values, sae.W_dec.detach().numpy(), pictures.table), folder / "split.parquet")
    made = {"units": pd.concat(units, ignore_index=True), "coverage": covered, "matched": matched, "kinds": kinds}
    for name, table in made.items():
        write_parquet(pd.DataFrame(table), folder / f"{name}.parquet")


@torch.no_grad()
def see_pictures(
    folder: Path, *, network: Network, site: str, pictures: Pictures, units: Mapping[str, list[int]],
    saes: Mapping[str, SparseAutoencoder], tuning: Path | None = None, n_patches: int = 9, n_bins: int = 36,
) -> None:  # fmt: skip
    """Stream test pictures past some units of the site's "neurons" and of dictionaries; only what is asked is kept.

    patches.parquet: dictionary, unit, image, row, column, value of the strongest cell of each of n_patches pictures.
    contours.parquet: dictionary, unit, correlation and p, as `contour_agreement` has them of the unit's tuning curve
    (tuning: what `tune` wrote) and its mean activation by the angle of the aircraft's outline; empty without either.
    """
    names, rows, counts = pictures.rows("test")["image"].tolist(), [], np.zeros(n_bins)
    sums, at = {name: np.zeros((n_bins, len(own))) for name, own in units.items()}, 0
    seen = network.stream(batches(network, pictures, names), [site], logits=False)
    for acts in tqdm((each.acts[site] for each in seen), f"{site} in pictures", -(-len(names) // BATCH), leave=False):
        shape, shown = acts.shape[:3], names[at : at + len(acts)]
        angles = [contour_angles(pictures.mask(n) > 0, shape[1:]) for n in shown] if pictures.region_names else np.nan
        known = np.isfinite(np.broadcast_to(angles, shape))
        bins = np.round(np.asarray(angles)[known] / 360 * n_bins).astype(int) % n_bins if known.any() else []
        np.add.at(counts, bins, 1)
        for name, own in units.items():
            some = encoded(saes[name], [acts])[:, own].toarray() if name in saes else acts.numpy()[..., own]
            values = some.reshape(*shape, -1)
            np.add.at(sums[name], bins, values[known])
            flat = values.reshape(shape[0], -1, len(own))
            rows += [(name, unit, image, *divmod(int(flat[i, :, j].argmax()), shape[2]), flat[i, :, j].max())
                     for i, image in enumerate(shown) for j, unit in enumerate(own)]  # fmt: skip
        at += len(acts)
    table = pd.DataFrame(rows, columns=["dictionary", "unit", "image", "row", "column", "value"])
    top = table.sort_values("value", ascending=False, kind="stable").groupby(["dictionary", "unit"], sort=False)
    write_parquet(top.head(n_patches).reset_index(drop=True), folder / "patches.parquet")
    contours = [pd.DataFrame({"dictionary": [], "unit": [], "correlation": [], "p": []})]
    for name, own in units.items() if tuning and counts.any() else ():
        curves = np.load(tuning / f"tuning_{name.replace(' ', '_')}.npy")[list(own)]
        with np.errstate(invalid="ignore"):
            correlation, p = contour_agreement(curves, (sums[name] / counts[:, None]).T)
        contours.append(pd.DataFrame({"dictionary": name, "unit": own, "correlation": correlation, "p": p}))
    write_parquet(pd.concat(contours, ignore_index=True), folder / "contours.parquet")


@torch.no_grad()
def suppress_families(
    folder: Path, *, network: Network, site: str, after: str, sae: SparseAutoencoder, pictures: Pictures,
    families: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
    """What a later site loses without some features: the length of the change of the middle cell, by that of its acts.

    after: a site that follows; pictures: of `Curves`; families: features by name. lost.parquet: family, kind (of
    stimulus), value, low, high, n (pictures).
    """
    W_dec, rows, cell = sae.W_dec.detach(), [], _cell(network, after)

    def without(acts: torch.Tensor, own: list[int]) -> torch.Tensor:
        codes = sae.encode(acts.flatten(0, 2)).dense()[:, own]
        return acts - (codes @ W_dec[own]).view(acts.shape)

    for kind, table in tqdm(pictures.table.groupby("kind", sort=False), "suppress families", leave=False):
        edits = {"": {}} | {name: {site: partial(without, own=list(own))} for name, own in families.items()}
        middles: dict[str, list] = {name: [] for name in edits}
        for x in batches(network, pictures, table["image"].tolist()):
            for name, edit in edits.items():
                middles[name].append(_middle(network, network.see(x, [after], edit).acts[after], cell, 0))
        plain, *changed = (torch.cat(each) for each in middles.values())
        rows += [{"family": name, "kind": kind} | with_interval((each - plain).norm(dim=1), plain.norm(dim=1))
                 for name, each in zip(families, changed, strict=True)]  # fmt: skip
    write_parquet(pd.DataFrame(rows), folder / "lost.parquet")
