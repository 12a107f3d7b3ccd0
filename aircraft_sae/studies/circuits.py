"""Circuits between blocks: what the next block loses without a feature, and what the block's derivative predicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from aircraft_sae.networks import Network
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import write_parquet
from aircraft_sae.studies.branches import SPECIAL, image_maxima
from aircraft_sae.studies.curves import batches

STEP = 0.01  # share of a feature's activation that is taken away to measure the derivative


@torch.no_grad()
def find_edges(
    folder: Path, *, network: Network, saes: Sequence[SparseAutoencoder], pictures: Pictures,
    roles: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
    """Suppress upstream features in all cells of the test pictures, and measure what downstream features lose.

    saes: of two sites, where the second's module takes the first's output, as blocks do. roles: upstream features by
    role: those "asked", a "null" that sets the threshold, a "control" whose edges are counted too. edges.parquet:
    role, upstream, downstream (features of at least median activity);
    plain: the downstream feature's mean image maximum; change: how much suppression changes it;
    predicted: change of its mean pre-activation according to the module's derivative;
    beyond: |change / plain| is larger than for all but a share SPECIAL of the null's edges.
    Raises: ValueError where no downstream feature is active.
    """
    (first, second), names, tables = saes, pictures.rows("test")["image"].tolist(), []
    module, ids = network.model.get_submodule(second.cfg.site), [j for own in roles.values() for j in own]
    seen = network.stream(batches(network, pictures, names), [first.cfg.site], logits=False)
    acts = [each.acts[first.cfg.site] for each in seen]
    codes = [first.encode(each.flatten(0, 2)).dense()[:, ids] for each in acts]

    def after(own: torch.Tensor) -> torch.Tensor:
        return module(own.permute(0, 3, 1, 2).to(network.device)).cpu().permute(0, 2, 3, 1)

    whole = [after(own) for own in acts]
    plain = (sum(image_maxima(second, own).sum(0) for own in whole) / len(names)).numpy()
    if not (live := np.flatnonzero(plain >= np.median(plain[plain > 0]))).size:
        raise ValueError(f"no feature of {second.cfg.site} is active in the {len(names)} test pictures: take more")
    for i, j in enumerate(tqdm(ids, "suppress", leave=False)):
        total, linear = torch.zeros(second.d_sae), torch.zeros(second.d_in)
        for own, active, as_is in zip(acts, codes, whole, strict=True):
            less = (active[:, [i]] * first.W_dec[j]).view(own.shape)
            total += image_maxima(second, after(own - less)).sum(0)
            linear += len(own) * ((after(own - STEP * less) - as_is) / STEP).mean((0, 1, 2))
        facts = {"upstream": j, "downstream": live, "plain": plain[live]}
        facts["change"] = (total / len(names)).numpy()[live] - plain[live]
        tables.append(pd.DataFrame(facts | {"predicted": (linear / len(names) @ second.W_enc).numpy()[live]}))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "role", np.repeat([role for role, own in roles.items() for _ in own], len(live)))
    size = (table["change"] / table["plain"]).abs()
    threshold = size[table["role"] == "null"].quantile(1 - SPECIAL)
    write_parquet(table.assign(beyond=size > threshold), folder / "edges.parquet")


def neighbours(order: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """For each chosen feature in turn, the two nearest ones in this order that are neither chosen nor taken."""
    free, found = [i for i, j in enumerate(order) if j not in set(chosen)], []
    for j in chosen:
        at = order.index(j)
        near = sorted(free, key=lambda i: abs(i - at))[:2]
        free = [i for i in free if i not in near]
        found += [order[i] for i in near]
    return found


def strongest(edges: pd.DataFrame) -> pd.DataFrame:
    """Edges with their share (change / plain), the largest first."""
    edges = edges.assign(share=edges["change"] / edges["plain"])
    return edges.sort_values("share", key=np.abs, ascending=False, kind="stable")


def predicted_effects(edges: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each asked feature's changes with its own derivative's prediction, and with another's."""
    rows = []
    for _, table in edges[edges["role"] == "asked"].groupby("first"):
        change, predicted = (table.pivot(index="upstream", columns="downstream", values=each).to_numpy()
                             for each in ("change", "predicted"))  # fmt: skip
        rows += [[spearmanr(own, predicted[j]).statistic for j in (i, i - 1)] for i, own in enumerate(change)]
    return pd.DataFrame(rows, columns=["own", "another's"]).fillna(0.0)  # nan where nothing changes
