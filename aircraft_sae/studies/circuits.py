"""Circuits between blocks: what the next block loses without a feature, and what its derivative foretells."""

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
from aircraft_sae.studies.branches import SPECIAL
from aircraft_sae.studies.curves import batches

STEP = 0.01
"""Share of a feature that is suppressed, to see the derivative."""


@torch.no_grad()
def find_edges(
    folder: Path, *, network: Network, saes: Sequence[SparseAutoencoder], pictures: Pictures,
    roles: Mapping[str, Sequence[int]],
) -> None:  # fmt: skip
    """What each downstream feature loses when an upstream one is suppressed in all cells of the test pictures.

    saes: of two sites, the second's module following the first at once, as blocks do; roles: upstream features that
    are "asked", of which "null" sets what is much, and "control", whose edges are counted beside. edges.parquet: role,
    upstream, downstream, plain (its mean image maximum), change (of that), predicted (change of its mean pre-activation
    by the module's derivative), beyond (change / plain larger than all but SPECIAL of the null's). Only downstream
    features of at least the median activity are asked. Raises: ValueError where no feature is active.
    """
    (first, second), names, tables = saes, pictures.rows("test")["image"].tolist(), []
    follows, ids = network.model.get_submodule(second.cfg.site), [j for own in roles.values() for j in own]
    seen = network.stream(batches(network, pictures, names), [first.cfg.site], logits=False)
    acts = [each.acts[first.cfg.site] for each in seen]
    codes = [first.encode(each.flatten(0, 2)).dense()[:, ids] for each in acts]

    def after(own: torch.Tensor) -> torch.Tensor:
        return follows(own.permute(0, 3, 1, 2).to(network.device)).cpu().permute(0, 2, 3, 1)

    def maxima(own: torch.Tensor) -> torch.Tensor:
        return second.encode(own.flatten(0, 2)).dense().view(len(own), -1, second.d_sae).amax(1).sum(0)

    whole = [after(own) for own in acts]
    plain = (sum(maxima(own) for own in whole) / len(names)).numpy()
    if not (live := np.flatnonzero(plain >= np.median(plain[plain > 0]))).size:
        raise ValueError(f"no feature of {second.cfg.site} is active in the {len(names)} test pictures: take more")
    for i, j in enumerate(tqdm(ids, "suppress", leave=False)):
        total, linear = torch.zeros(second.d_sae), torch.zeros(second.d_in)
        for own, active, as_is in zip(acts, codes, whole, strict=True):
            less = (active[:, [i]] * first.W_dec[j]).view(own.shape)
            total += maxima(after(own - less))
            linear += len(own) * ((after(own - STEP * less) - as_is) / STEP).mean((0, 1, 2))
        facts = {"upstream": j, "downstream": live, "plain": plain[live]}
        facts["change"] = (total / len(names)).numpy()[live] - plain[live]
        tables.append(pd.DataFrame(facts | {"predicted": (linear / len(names) @ second.W_enc).numpy()[live]}))
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "role", np.repeat([role for role, own in roles.items() for _ in own], len(live)))
    size = (table["change"] / table["plain"]).abs()
    usual = size[table["role"] == "null"].quantile(1 - SPECIAL)
    write_parquet(table.assign(beyond=size > usual), folder / "edges.parquet")


def neighbours(order: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Of each chosen feature the nearest two in an order, none of them chosen or taken, one after the other."""
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


def foretold(edges: pd.DataFrame) -> pd.DataFrame:
    """Of each asked feature, the rank correlation of its changes with what its own derivative says, and another's."""
    rows = []
    for _, table in edges[edges["role"] == "asked"].groupby("first"):
        change, predicted = (table.pivot(index="upstream", columns="downstream", values=each).to_numpy()
                             for each in ("change", "predicted"))  # fmt: skip
        rows += [(spearmanr(change[i], predicted[i]).statistic, spearmanr(change[i], predicted[i - 1]).statistic)
                 for i in range(len(change))]  # fmt: skip
    return pd.DataFrame(rows, columns=["own", "another's"]).fillna(0.0)  # where nothing changes
