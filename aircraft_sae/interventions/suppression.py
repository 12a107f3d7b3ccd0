"""Suppression in feature space: take a feature out of the activations, and see what the classifier loses.

An edit replaces acts x by x - f d in every cell: f is the feature's activation, d its decoder row. What the autoencoder
does not explain stays. Where only a mean over cells follows the site (`Network.readout`), effects have a closed form;
elsewhere each feature and picture takes a forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from aircraft_sae.activations import Activations, replay
from aircraft_sae.devices import run_parallel
from aircraft_sae.features import FeatureIndex, cell_covariance, check_features, halves, random_directions
from aircraft_sae.metrics import with_interval
from aircraft_sae.networks import BATCH, Network, PooledReadout
from aircraft_sae.pictures import Pictures
from aircraft_sae.sae import SparseAutoencoder
from aircraft_sae.store import digest, write_parquet

N_TRIED = 20  # features tried where each costs forward passes


def effects(before: Tensor, after: Tensor, labels: Tensor, rival: Tensor | None = None) -> dict[str, Tensor]:
    """What an edit changes, each (n, …), from logits before (n, classes) and after (n, …, classes), and labels (n,).

    logit, confidence: the true class's logit and probability; specificity: its logit less the mean of all others';
    margin: its logit less that of `rival` (n,), by default the most probable other class before the edit.
    """
    before, labels = (each.view(len(after), *(1,) * (after.ndim - 2), -1) for each in (before, labels))
    if rival is None:
        rival = before.scatter(-1, labels, -torch.inf).argmax(-1)

    def of(values: Tensor, classes: Tensor) -> Tensor:
        return values.gather(-1, classes.view(labels.shape).expand(*values.shape[:-1], 1))[..., 0]

    change = after - before
    logit = of(change, labels)
    return {
        "logit": logit,
        "margin": logit - of(change, rival),
        "confidence": of(after.softmax(-1), labels) - of(before.softmax(-1), labels),
        "specificity": logit - (change.sum(-1) - logit) / max(1, change.shape[-1] - 1),
    }


@dataclass
class Trial:
    """Pictures in which features are suppressed.

    rows: (n,) into acts; labels: (n,) each picture's class; in_b: (n,) bool, half B; strength: (n, d_sae) activations
    averaged over cells.
    """

    network: Network
    sae: SparseAutoencoder
    pictures: Pictures
    acts: Activations
    rows: np.ndarray
    labels: Tensor
    in_b: np.ndarray
    strength: Tensor

    @classmethod
    def of(cls, network: Network, sae: SparseAutoencoder, pictures: Pictures, acts: Activations, index: FeatureIndex):
        """The test pictures of the index; labels are their classes, or the network's predictions if there are none."""
        test = index.rows("test")
        images, places = index.images.iloc[test], pd.Series(np.arange(len(acts.images)), acts.images["image"])
        rows = places[~places.index.duplicated()][images["image"]].to_numpy()  # a picture's own row precedes its views
        in_b = halves(images[pictures.levels[0]] if pictures.levels else np.zeros(len(images)))
        strength = torch.from_numpy(index.sums(test) / index.cells_per_image)
        if network.level is None:
            labels = replay(network, pictures, acts, rows).argmax(1)
        else:
            labels = torch.tensor(pd.Categorical(images[network.level], network.classes).codes).long()
        return cls(network, sae, pictures, acts, rows, labels, in_b, strength)

    def __getitem__(self, kept: np.ndarray) -> "Trial":
        """Some of the pictures: (n,) bool, or indices."""
        return replace(self, **{name: getattr(self, name)[kept] for name in ("rows", "labels", "in_b", "strength")})

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the content."""
        return digest([self.network, self.sae, self.acts, self.rows, self.labels, self.in_b])

    @cached_property
    def readout(self) -> PooledReadout | None:
        """The closed form, where there is one."""
        return self.network.readout(self.acts.site)

    @cached_property
    def pooled(self) -> Tensor:
        """(n, d_in) acts averaged over cells."""
        return torch.cat([block.mean((1, 2)) for block in self.acts.blocks(self.rows)])

    @cached_property
    def random(self) -> Tensor:
        """(d_sae, d_in) random directions with the cells' covariance, each as long as a feature's decoder row."""
        return random_directions(self.sae.W_dec.detach(), cell_covariance(self.acts))

    def strongest(self, strength: Tensor) -> np.ndarray:
        """The N_TRIED active features that add most to the acts, given mean activations (d_sae,)."""
        size = strength * self.sae.W_dec.detach().norm(dim=1)
        best = size.topk(min(N_TRIED, len(size))).indices
        return best[size[best] > 0].numpy()

    @torch.no_grad()
    def suppress(self, features: Sequence[int], directions=None, rival=None) -> dict[str, np.ndarray]:
        """`effects` (n, len(features)) of suppressing features, one at a time.

        directions: (len(features), d_in) in place of the decoder rows; rival: (n,).
        Raises: ValueError for an unknown feature.
        """
        check_features(features, self.sae.d_sae)
        features = list(features)
        directions = self.sae.W_dec.detach()[features] if directions is None else directions
        if self.readout is None:
            return self._by_passes(features, directions, rival)
        parts, removed = [], self.strength[:, features]
        for some in torch.arange(len(self.rows)).split(64):  # x 6,144 features x 100 classes of logits are 157 MB
            after = self.readout.edited(self.pooled[some], removed[some], directions)
            before, rivals = self.readout.logits(self.pooled[some]), None if rival is None else rival[some]
            parts.append(effects(before, after, self.labels[some], rivals))
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _by_passes(self, features, directions, rival) -> dict[str, np.ndarray]:
        passes = partial(replay, self.network, self.pictures, self.acts)
        gone, before = [], passes(self.rows)
        for block in self.acts.blocks(self.rows, BATCH):
            codes = self.sae.encode(block.flatten(0, 2)).dense().view(*block.shape[:3], -1)
            gone.append(codes[..., features])
        gone = torch.cat(gone)

        @torch.no_grad()
        def of_feature(j: int) -> dict[str, Tensor]:
            after, changed = before.clone(), gone[..., j].abs().amax((1, 2)).nonzero()[:, 0]
            for some in changed.split(BATCH) if len(changed) else ():
                taken = gone[some][..., j, None] * directions[j]
                after[some] = passes(self.rows[some.numpy()], lambda block, taken=taken: block - taken)
            return effects(before, after, self.labels, rival)

        parts = list(run_parallel(of_feature, range(len(features))))
        return {name: torch.stack([part[name] for part in parts], 1).numpy() for name in parts[0]}

    def specificity_with_null(self, feature_id: int, n_random: int, direction: Tensor | None = None):
        """(specificity (n,) of suppressing a feature or `direction`, the same (n, n_random) for random directions)."""
        own = (self.sae.W_dec.detach()[feature_id] if direction is None else direction)[None]
        random = random_directions(own.expand(n_random, -1), cell_covariance(self.acts), (0, feature_id))
        found = self.suppress([feature_id] * (n_random + 1), directions=torch.cat([own, random]))["specificity"]
        return found[:, 0], found[:, 1:]


@torch.no_grad()
def logits_from(network: Network, site: str, acts: Tensor, x: Tensor | None) -> Tensor:
    """(n, classes) from a site's acts (n, rows, columns, d_in); x: the pictures, if the network cannot start there."""
    if readout := network.readout(site):
        return readout.logits(acts.mean((1, 2)))
    x = None if network.can_start(site) else x
    parts = torch.arange(len(acts)).split(BATCH)
    return torch.cat([network.see(x if x is None else x[some], given={site: acts[some]}).logits for some in parts])


def tell_apart(trial: Trial, pair: tuple[int, int], n: int = 8) -> pd.DataFrame:
    """The n features whose suppression most lowers the margin between two labels on half A, with the effect on half B.

    Without a closed form, only the `strongest` features of the pair's half A are tried. feature_id; value, low, high,
    n: mean change of the margin; random: that of its random direction.
    """
    own, W_dec = trial[np.isin(trial.labels, pair)], trial.sae.W_dec.detach()
    features = np.arange(trial.sae.d_sae)
    if not trial.readout and len(tried := trial.strongest(own.strength[~own.in_b].mean(0))):
        features = tried

    def margins(half: np.ndarray, which: np.ndarray, directions: Tensor) -> np.ndarray:
        rival = torch.where(own.labels == pair[0], pair[1], pair[0])[half]
        return own[half].suppress(which.tolist(), directions=directions[which], rival=rival)["margin"]

    best = features[margins(~own.in_b, features, W_dec).mean(0).argsort()[:n]]
    ours, null = (margins(own.in_b, best, directions) for directions in (W_dec, trial.random))
    found = pd.DataFrame([with_interval(each, np.ones(len(each))) for each in ours.T])
    return found.assign(feature_id=best, random=null.mean(0))


def matched_features(table: pd.DataFrame) -> np.ndarray:
    """(d_sae,) for each feature, another at random with density and strength within 25 % of its own; -1 if none."""
    density, rng = table["density_cell"].to_numpy(), np.random.default_rng(0)
    strength, partner = (table["mean"] * table["norm"]).fillna(0).to_numpy(), np.full(len(density), -1)
    for j in np.flatnonzero(density > 0):
        like = np.abs(density / density[j] - 1) <= 0.25
        like &= np.abs(strength / max(strength[j], 1e-12) - 1) <= 0.25
        like[j] = False
        if like.any():
            partner[j] = rng.choice(np.flatnonzero(like))
    return partner


def mean_over_active(values: np.ndarray, active: np.ndarray) -> np.ndarray:
    """(d,) mean of values (n, d) over the pictures in which each feature is active; 0 if there are none."""
    return (values * active).sum(0) / np.maximum(active.sum(0), 1)


def suppress_features(folder: Path, *, trial: Trial, index: FeatureIndex, claims: pd.DataFrame) -> None:
    """Suppress all features and two controls on half B; without a closed form, only those in `claims`, in 140 pictures.

    features.parquet: feature_id, n (pictures in which it is active), often (whether n is large enough), partner (the
        feature of like density, -1 if none)
        feature, random direction, feature of like density: mean absolute specificity
    beyond_random.parquet: `beyond_random` of the claims drawn at random
    """
    features, W_dec, most = np.arange(trial.sae.d_sae), trial.sae.W_dec.detach(), None
    if trial.readout is None:
        features, most = np.unique(claims["feature_id"]), 140
    half_b, partner = _half_b(trial, most), matched_features(index.table)
    swapped = W_dec[np.where(partner >= 0, partner, 0)]
    like = swapped * (W_dec.norm(dim=1) / swapped.norm(dim=1))[:, None]
    active = (half_b.strength[:, features] > 0).numpy()
    table = pd.DataFrame({"feature_id": features, "n": active.sum(0), "partner": partner[features]})
    table["often"] = table["n"] >= min(8, len(active) // 4)
    kinds = {"feature": W_dec, "random direction": trial.random, "feature of like density": like}
    for name, directions in kinds.items():
        found = half_b.suppress(features, directions=directions[features])["specificity"]
        table[name] = mean_over_active(np.abs(found), active)
    write_parquet(table, folder / "features.parquet")
    drawn = claims.loc[claims["chosen"] == "random", "feature_id"].tolist()
    write_parquet(beyond_random(half_b, drawn), folder / "beyond_random.parquet")


def beyond_random(trial: Trial, features: Sequence[int]) -> pd.DataFrame:
    """Is a feature's effect larger than that of random directions of the same length? One row per active feature.

    feature_id; beyond: its mean absolute specificity, over pictures in which it is active, exceeds 95 % of theirs.
    """
    table, n_random = [], 19 if trial.readout is None else 99  # 19 is the fewest for a test at 5 %
    for j in features:
        if (active := (trial.strength[:, j] > 0).numpy()).any():
            ours, null = (np.abs(each).mean(0) for each in trial[active].specificity_with_null(j, n_random))
            table.append((j, bool((null >= ours).sum() + 1 <= 0.05 * (n_random + 1))))
    return pd.DataFrame(table, columns=["feature_id", "beyond"])


def _half_b(trial: Trial, most: int | None) -> Trial:
    """Half B, or `most` pictures of it at random."""
    return trial[np.sort(np.random.default_rng(0).permutation(np.flatnonzero(trial.in_b))[:most])]


def suppress_sample(folder: Path, *, trial: Trial, features: Sequence[int], n_images: int) -> None:
    """Suppress features and random directions in n_images pictures of half B, drawn at random.

    features.parquet: feature_id, n (pictures that change), feature, random (mean absolute specificity in these).
    """
    half_b, random = _half_b(trial, n_images), trial.random[features]
    ours, null = (np.abs(half_b.suppress(features, directions=each)["specificity"]) for each in (None, random))
    table = {"feature_id": features, "n": (ours > 0).sum(0)}
    table |= {"feature": mean_over_active(ours, ours > 0), "random": mean_over_active(null, ours > 0)}
    write_parquet(pd.DataFrame(table), folder / "features.parquet")
