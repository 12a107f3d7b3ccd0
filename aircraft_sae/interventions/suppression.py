"""Suppression in feature space: take a feature out of the activations, and see what a read-out makes of the rest.

An edit replaces acts x by x - ((1 - factor) f - to) d in every cell: f is the feature's activation, d its decoder row.
The part of x that the autoencoder does not explain stays, so that changing nothing changes nothing.

Where the network goes on from the site by a mean over cells (`Network.readout`), the effect of each feature on each
picture follows from the means in closed form; elsewhere a forward pass of each pair gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from aircraft_sae.activations import Activations, replay
from aircraft_sae.devices import side_by_side
from aircraft_sae.features import FeatureIndex, check_features, halves
from aircraft_sae.features.reconstruction import cell_covariance, random_directions
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import BATCH, Network, PooledReadout, Seen, logits
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import digest

EFFECTS = ("logit", "margin", "confidence", "specificity")
IMAGES_AT_ONCE = 64
"""In closed form: 64 x 6,144 features x 100 classes of logits are 157 MB, and a few such arrays live at once."""
N_RANDOM = {"closed form": 99, "forward passes": 19}
"""Random directions beside a feature; 19 are the fewest for a test at 5 %."""


def effects(
    before: torch.Tensor, after: torch.Tensor, labels: torch.Tensor, rival: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """What an edit changes: (n, …) each, after less before.

    before: (n, classes) logits; after: (n, …, classes); labels: (n,) true classes; rival: (n,) the class that the
    margin is to, by default the most probable other one before the edit.
    logit: of the true class; margin: true class's logit less the rival's; confidence: true class's probability;
    specificity: logit less the mean change of all other classes' logits.
    """
    shape = (len(labels),) + (1,) * (after.ndim - 1)
    if rival is None:
        rival = before.scatter(1, labels[:, None], -torch.inf).argmax(1)

    def of(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return values.gather(-1, classes.view(shape).expand(*values.shape[:-1], 1))[..., 0]

    change = after - before.view(len(before), *(1,) * (after.ndim - 2), -1)
    logit = of(change, labels)
    others = (change.sum(-1) - logit) / max(1, change.shape[-1] - 1)
    return {
        "logit": logit,
        "margin": logit - of(change, rival),
        "confidence": of(after.softmax(-1), labels) - before.softmax(-1).gather(1, labels[:, None]).view(shape)[..., 0],
        "specificity": logit - others,
    }


@dataclass
class Trial:
    """Pictures in which features are suppressed, and how that is scored.

    rows: (n,) of acts; labels: (n,) int64 indices into what `read` gives of a picture; in_b: (n,) bool, half B; codes:
    (n, d_sae) features' mean activations over cells, where they are known; sites: what `read` looks at.
    """

    network: Network
    sae: SparseAutoencoder
    pictures: Pictures
    acts: Activations
    rows: np.ndarray
    labels: torch.Tensor
    in_b: np.ndarray
    codes: torch.Tensor | None = None
    read: Callable[[Seen], torch.Tensor] = logits
    sites: Sequence[str] = ()

    @classmethod
    def of(
        cls, network: Network, sae: SparseAutoencoder, pictures: Pictures, acts: Activations, index: FeatureIndex
    ) -> Trial:
        """The test pictures of the index; labels are their classes, or what the network takes them for without any."""
        test = index.rows("test")
        images, places = index.images.iloc[test], pd.Series(np.arange(len(acts.images)), acts.images["image"])
        rows = places[~places.index.duplicated()][images["image"]].to_numpy()  # views come last
        in_b = halves(images[pictures.levels[0]] if pictures.levels else np.zeros(len(images)))
        codes = torch.from_numpy(index.sums(test) / index.cells_per_image)
        made = cls(network, sae, pictures, acts, rows, torch.zeros(len(rows), dtype=torch.int64), in_b, codes)
        if network.level is None:
            return replace(made, labels=made.scores().argmax(1))
        labels = pd.Categorical(images[network.level], network.classes).codes
        return replace(made, labels=torch.from_numpy(labels.astype(np.int64)))

    def __getitem__(self, kept: np.ndarray) -> Trial:
        """Some of the pictures: (n,) bool, or indices."""
        codes = self.__dict__.get("strength", self.codes)
        codes = None if codes is None else codes[kept]
        return replace(self, rows=self.rows[kept], labels=self.labels[kept], in_b=self.in_b[kept], codes=codes)

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.network, self.sae, self.acts, self.rows, self.labels, self.in_b, self.read.__qualname__])

    @cached_property
    def readout(self) -> PooledReadout | None:
        """The closed form, where there is one."""
        return self.network.readout(self.acts.site) if self.read is logits else None

    @cached_property
    def pooled(self) -> torch.Tensor:
        """(n, d_in) acts averaged over cells."""
        return torch.cat([block.mean((1, 2)) for block in self.acts.blocks(self.rows)])

    @cached_property
    def strength(self) -> torch.Tensor:
        """(n, d_sae) features' activations averaged over cells."""
        return torch.cat([codes.mean((1, 2)) for codes in self._codes()]) if self.codes is None else self.codes

    @torch.no_grad()
    def scores(self, edit: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """(n, …) what `read` gives, of acts as they are or changed by `edit`, by forward passes."""
        seen = replay(self.network, self.pictures, self.acts, self.rows, edit, self.sites)
        return torch.cat([self.read(each) for each in seen])

    @torch.no_grad()
    def suppress(
        self,
        features: Sequence[int],
        factor: float = 0.0,
        *,
        to: torch.Tensor | float = 0.0,
        directions: torch.Tensor | None = None,
        rival: torch.Tensor | None = None,
    ) -> dict[str, np.ndarray]:
        """Effects (n, len(features)) of multiplying each feature by `factor`, one at a time: those of `effects`.

        A feature may be listed several times. to: (len(features),) is added to the feature; directions:
        (len(features), d_in) to go along in place of the decoder's rows; rival: as in `effects`.
        Raises: ValueError for a feature that is not there.
        """
        check_features(features, self.sae.d_sae)
        features = list(features)
        directions = self.sae.W_dec.detach()[features] if directions is None else directions
        if self.readout is None:
            return self._forward(features, factor, to, directions, rival)
        parts, removed = [], (1 - factor) * self.strength[:, features] - to
        for some in torch.arange(len(self.rows)).split(IMAGES_AT_ONCE):
            after = self.readout.edited(self.pooled[some], removed[some], directions)
            before, rivals = self.readout.logits(self.pooled[some]), None if rival is None else rival[some]
            parts.append(effects(before, after, self.labels[some], rivals))
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in EFFECTS}

    def _forward(self, features, factor, to, directions, rival) -> dict[str, np.ndarray]:
        gone = torch.cat([(1 - factor) * codes[..., features] - to for codes in self._codes()])
        before = self.scores()
        rival = before.scatter(1, self.labels[:, None], -torch.inf).argmax(1) if rival is None else rival

        @torch.no_grad()
        def of_feature(j: int) -> torch.Tensor:
            found = torch.zeros(len(EFFECTS), len(self.rows))
            changed = gone[..., j].abs().amax((1, 2)).nonzero()[:, 0]  # where nothing goes, nothing changes
            for some in changed.split(BATCH) if len(changed) else ():
                taken = gone[some][..., j, None] * directions[j]
                after = self[some.numpy()].scores(lambda block, taken=taken: block - taken)
                found[:, some] = torch.stack([*effects(before[some], after, self.labels[some], rival[some]).values()])
            return found

        made = torch.stack([*side_by_side(of_feature, range(len(features)))], 2)
        return {name: values.numpy() for name, values in zip(EFFECTS, made, strict=True)}

    def _codes(self) -> Iterator[torch.Tensor]:
        """(at most BATCH, rows, columns, d_sae) at a time."""
        for block in self.acts.blocks(self.rows, BATCH):
            yield self.sae.encode(block.flatten(0, 2)).dense().view(*block.shape[:3], -1)

    def beside_random(
        self,
        feature_id: int,
        covariance: torch.Tensor,
        n_random: int | None = None,
        seed: int = 0,
        direction: torch.Tensor | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Specificity of suppressing a feature (n,), and of taking out as much of random directions (n, n_random).

        direction: (d_in,) to go along in place of the decoder's row.
        """
        n_random = n_random or N_RANDOM["closed form" if self.readout else "forward passes"]
        own = (self.sae.W_dec.detach()[feature_id] if direction is None else direction)[None]
        directions = torch.cat([own, random_directions(own.expand(n_random, -1), covariance, (seed, feature_id))])
        found = self.suppress([feature_id] * len(directions), directions=directions)["specificity"]
        return found[:, 0], found[:, 1:]


@torch.no_grad()
def logits_from(network: Network, site: str, acts: torch.Tensor, x: torch.Tensor | None) -> torch.Tensor:
    """(n, classes) from a site's acts (n, rows, columns, d_in): in closed form, or by going on from there.

    x: (n, 3, size, size) the pictures, needed where the network cannot start at the site.
    """
    if readout := network.readout(site):
        return readout.logits(acts.mean((1, 2)))
    x = None if network.can_start(site) else x
    parts = torch.arange(len(acts)).split(BATCH)
    return torch.cat([network.see(x if x is None else x[some], given={site: acts[some]}).logits for some in parts])


def beyond_random(
    trial: Trial, features: Sequence[int], covariance: torch.Tensor, n_random: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """Is a feature's effect beyond that of as much of random directions of its length? One row a feature.

    effect: mean absolute specificity over the pictures in which the feature is active; random: the median of its random
    directions; beyond: whether it is above 95 % of these; n: pictures. Features that are active in none are left out.
    """
    check_features(features, trial.sae.d_sae)
    table = []
    for j in features:
        active = (trial.strength[:, j] > 0).numpy()
        if active.any():
            made = trial[active].beside_random(j, covariance, n_random, seed)
            ours, null = (np.abs(each).mean(0) for each in made)
            beyond = bool((null >= ours).sum() + 1 <= 0.05 * (len(null) + 1))
            facts = {"feature_id": j, "effect": ours, "random": np.median(null), "n": int(active.sum())}
            table.append(facts | {"beyond": beyond})
    return pd.DataFrame(table)


def tell_apart(
    trial: Trial, pair: tuple[int, int], random: torch.Tensor, features: Sequence[int] | None = None, n: int = 8
) -> pd.DataFrame:
    """The n features whose suppression lowers the margin between two classes most on half A, and what it does on B.

    pair: two labels; random: (d_sae, d_in) a direction beside each feature; features: to choose from, by default all.
    feature_id; value, low, high, n: mean change of the true class's logit less the other's over half B's pictures of
    the two; random: that of the random direction; beyond_value, beyond_low, …: value less random.
    """
    features = np.arange(trial.sae.d_sae) if features is None else np.asarray(features)
    own, W_dec = trial[np.isin(trial.labels, pair)], trial.sae.W_dec.detach()

    def margins(half: np.ndarray, which: np.ndarray, directions: torch.Tensor) -> np.ndarray:
        some = own[half]
        rival = torch.where(some.labels == pair[0], pair[1], pair[0])
        return some.suppress(which.tolist(), directions=directions[which], rival=rival)["margin"]

    best = features[margins(~own.in_b, features, W_dec).mean(0).argsort()[:n]]
    ours, null = (margins(own.in_b, best, directions) for directions in (W_dec, random))
    table, ones = [], np.ones(len(ours))
    for j, mine, other in zip(best, ours.T, null.T, strict=True):
        beyond = {f"beyond_{name}": each for name, each in with_interval(mine - other, ones).items()}
        table.append({"feature_id": int(j)} | with_interval(mine, ones) | {"random": float(other.mean())} | beyond)
    return pd.DataFrame(table)


def random_beside(trial: Trial, every: int = 1) -> torch.Tensor:
    """(d_sae, d_in) a random direction for each feature, as long as its decoder row, spread as the cells are."""
    return random_directions(trial.sae.W_dec.detach(), cell_covariance(trial.acts, every))


def matched_features(table: pd.DataFrame, within: float = 0.25, seed: int = 0) -> np.ndarray:
    """(d,) for each feature another one, drawn at random among those of like density and like strength; -1 for none.

    table: features.parquet (density_cell, mean, norm); strength: mean activation times decoder norm; like: within this
    share of its own.
    """
    density, rng = table["density_cell"].to_numpy(), np.random.default_rng(seed)
    strength, partner = (table["mean"] * table["norm"]).fillna(0).to_numpy(), np.full(len(density), -1)
    for j in np.flatnonzero(density > 0):
        like = np.abs(density / density[j] - 1) <= within
        like &= np.abs(strength / max(strength[j], 1e-12) - 1) <= within
        like[j] = False
        if like.any():
            partner[j] = rng.choice(np.flatnonzero(like))
    return partner
