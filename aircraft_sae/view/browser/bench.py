"""One picture on the bench: multiply its features, blur its cells, and see what the network makes of it.

Features j with multipliers m change the acts x of every cell to x - sum over j of (1 - m_j) f_j d_j: what the
autoencoder does not explain is kept, so that all multipliers at 1 leave the logits as they are. Where the logits follow
from the mean over cells (`Network.readout`), so do those of any multipliers; elsewhere each choice is a forward pass.
The head that names a cell's part is linear in its acts: what it makes of any multipliers, a page works out.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from aircraft_sae.activations import see_features
from aircraft_sae.features import check_features
from aircraft_sae.interventions import blur, logits_from
from aircraft_sae.pictures import decode
from aircraft_sae.view.browser.catalogue import Catalogue


@dataclass(frozen=True)
class Subject:
    """A picture as the network sees it.

    x: (3, size, size); acts: (rows, columns, d_in); codes: (rows, columns, d_sae); logits: (classes,); aircraft:
    (rows, columns) bool, which cells show it, all where nothing tells.
    """

    picture: Image.Image
    x: Tensor
    acts: Tensor
    codes: Tensor
    logits: Tensor
    aircraft: np.ndarray

    @property
    def strength(self) -> Tensor:
        """(d_sae,) features' activations averaged over cells."""
        return self.codes.mean((0, 1))


class Bench:
    """Interventions on one picture at a time, without a front end."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.readout = catalogue, catalogue.trial.readout
        self.network, self.sae = catalogue.network, catalogue.trial.sae
        self.W_dec = self.sae.W_dec.detach()

    def of_row(self, row: int) -> Subject:
        """A picture of the study; ValueError for a row that is not there."""
        subject, pictures = self.look(self.catalogue.picture(row)), self.catalogue.trial.pictures
        image, grid = self.catalogue.index.images["image"].iloc[row], subject.acts.shape[:2]
        shown = pictures.foreground([image], grid)[0] if pictures.region_names else subject.aircraft
        return replace(subject, aircraft=shown)

    def of_file(self, content: bytes, name: str) -> Subject:
        """A picture that a person gives, read as those of the study. ValueError for none, or over 50 million pixels."""
        try:
            picture = decode(io.BytesIO(content), self.catalogue.trial.pictures.banner, name=name, most=50_000_000)
        except ValueError as error:
            raise ValueError(f"{error}: give a JPEG or PNG file") from error
        return self.look(picture)

    def look(self, picture: Image.Image, x: Tensor | None = None) -> Subject:
        """What the network and the autoencoder make of a picture of any size; x: as the network takes it."""
        x = self.network.as_input(picture) if x is None else x
        with torch.no_grad():
            seen, codes = see_features(self.network, self.sae, x[None])
        acts = seen.acts[self.sae.cfg.site][0]
        return Subject(picture, x, acts, codes[0], seen.logits[0], np.ones(acts.shape[:2], bool))

    def change(
        self, subject: Subject, multipliers: Mapping[int, float], cells: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, Tensor]:
        """Logits "before", "after" and with as much of "random" directions; ValueError for what is out of range.

        cells: (row, column) of those alone in which features are multiplied; all where there are none.
        """
        check_features(list(multipliers), self.sae.d_sae)
        if odd := [factor for factor in multipliers.values() if not 0 <= factor <= 4]:
            raise ValueError(f"a multiplier must be from 0 to 4, got {odd[0]}")
        if cells:
            kept = self._mask(subject, cells)[..., None]
            subject = replace(subject, codes=subject.codes * kept)
        features, gone = list(multipliers), 1 - torch.tensor([[float(m) for m in multipliers.values()]])
        after, random = (self.without(subject, features, gone, rows)[0] for rows in (None, self.catalogue.trial.random))
        return {"before": subject.logits, "after": after, "random": random}

    @torch.no_grad()
    def without(self, subject: Subject, features: list[int], gone: Tensor, directions: Tensor | None = None) -> Tensor:
        """(n, classes) logits less shares `gone` (n, len(features)) of features at once, or of `directions`."""
        rows = (self.W_dec if directions is None else directions)[features]
        if self.readout is not None:
            return self.readout.logits(subject.acts.mean((0, 1)) - (gone * subject.strength[features]) @ rows)
        acts = subject.acts - (gone[:, None, None] * subject.codes[..., features]) @ rows
        return logits_from(self.network, self.sae.cfg.site, acts, subject.x.expand(len(acts), -1, -1, -1))

    def each(self, subject: Subject, features: list[int], besides: list[int]) -> Tensor:
        """(len(features), classes) logits with one of the features taken out at a time, and all of `besides` always."""
        gone = torch.cat([torch.eye(len(features)), torch.ones(len(features), len(besides))], 1)
        return self.without(subject, features + besides, gone)

    @torch.no_grad()
    def reconstruction(self, subject: Subject) -> Tensor:
        """Logits (classes,) with nothing multiplied, but what the autoencoder does not explain left out."""
        recon = subject.codes @ self.W_dec + self.sae.b_dec.detach()
        return logits_from(self.network, self.sae.cfg.site, recon[None], subject.x[None])[0]

    def tried(self, subject: Subject) -> list[int]:
        """The features whose effects are worked out one by one: all active ones in closed form, else the strongest."""
        strength = subject.strength
        return strength.nonzero()[:, 0].tolist() if self.readout else self.catalogue.trial.strongest(strength).tolist()

    def told(self, subject: Subject, row: int | None = None, against: str = "") -> dict[str, Any]:
        """What the bench shows of a picture: logits, features by effect on the margin own - other, cells.

        own: the picture's class, or what is predicted where it has none of the network's; other: `against`, or the most
        probable other one. Raises: ValueError for an `against` that is no class, or is own.
        """
        (winner, rival), classes = subject.logits.topk(2).indices.tolist(), self.network.classes
        label = None if row is None else self.catalogue.label(row)
        own = classes.index(label) if label in classes else winner
        if against and (against not in classes or against == classes[own]):
            raise ValueError(f"the margin is against another class than {classes[own]}, got {against!r}")
        other = classes.index(against) if against else rival if own == winner else winner
        tried = self.tried(subject)
        change = self.each(subject, tried, []) - subject.logits
        effects = dict(zip(tried, (change[:, own] - change[:, other]).tolist(), strict=True))
        strength, peaks = subject.strength, subject.codes.amax((0, 1)).tolist()
        active = [
            {"feature_id": j, "strength": float(strength[j]), "peak": peaks[j], "effect": effects.get(j)}
            for j in strength.argsort(descending=True, stable=True).tolist() if strength[j] > 0
        ]  # fmt: skip
        active.sort(key=lambda each: 1.0 if each["effect"] is None else -abs(each["effect"]))  # those not tried last
        return {
            "picture": row, "label": label, "predicted": classes[winner], "own": classes[own], "other": classes[other],
            "n_active": len(active), "active": active, "classes": classes, "before": subject.logits.tolist(),
            "reconstruction": self.reconstruction(subject).tolist(), "cells": in_cells(subject),
            "regions": self.regions(subject),
        }  # fmt: skip

    def regions(self, subject: Subject) -> list[list[float]] | None:
        """For each cell, row by row, the head's logits of its regions; None without a head."""
        if (head := self.catalogue.head) is None:
            return None
        return [[round(v, 5) for v in cell] for cell in head.logits(subject.acts).flatten(0, 1).tolist()]

    def pushes(self) -> list[np.ndarray]:
        """Of each feature, and of its random direction: (d_sae, regions) that a unit adds to the head's logits."""
        both, weight = (self.W_dec, self.catalogue.trial.random), self.catalogue.head.weight
        return [(rows @ weight.t()).numpy().astype("<f4") for rows in both]

    def blurred(self, subject: Subject, cells: Sequence[tuple[int, int]], sigma: float = 8.0) -> Subject:
        """The picture with cells blurred (sigma: pixels of 224), seen again; ValueError for none, or an absent one."""
        if not cells:
            raise ValueError("choose at least one cell to blur")
        (rows, columns), size = subject.acts.shape[:2], subject.x.shape[1]
        x, soft = subject.x.clone(), self._soft(subject, sigma)
        for row, column in self._mask(subject, cells).nonzero().tolist():
            down, across = (slice(at * size // n, (at + 1) * size // n) for at, n in ((row, rows), (column, columns)))
            x[:, down, across] = soft[:, down, across]
        return self.look(Image.fromarray(self.network.as_picture(x)), x)

    @staticmethod
    def _mask(subject: Subject, cells: Sequence[tuple[int, int]]) -> Tensor:
        """(rows, columns) bool, which cells these are; ValueError for one that is not there."""
        mask = torch.zeros(subject.acts.shape[:2], dtype=torch.bool)
        for row, column in cells:
            if not (0 <= row < len(mask) and 0 <= column < mask.shape[1]):
                raise ValueError(f"cell {row}, {column} is not in the grid of {len(mask)} x {mask.shape[1]}")
            mask[row, column] = True
        return mask

    def _soft(self, subject: Subject, sigma: float) -> Tensor:
        return blur(subject.x, max(0.5, sigma * subject.x.shape[1] / 224))

    def elsewhere(self, subject: Subject, cells: Sequence[tuple[int, int]], sigma: float = 8.0) -> np.ndarray:
        """(n, 2) as many other cells of the aircraft, whose blurring changes as much; (0, 2) where it has too few."""
        free, changed = subject.aircraft.copy(), (subject.x - self._soft(subject, sigma)).square().mean(0, keepdim=True)
        change, own = adaptive_avg_pool2d(changed, free.shape)[0].clamp(1e-9).log().numpy(), tuple(np.transpose(cells))
        free[own] = False
        others = np.argwhere(free)
        distance = np.abs(change[own][:, None] - change[free])
        return others[linear_sum_assignment(distance)[1]] if len(others) >= len(cells) else others[:0]

    def flip(self, subject: Subject) -> dict[str, Any]:
        """The smallest set of features found whose suppression changes the prediction, and a forward pass of it.

        features: their ids, [] where none is found; before, after: predicted classes; verified: whether the network
        without them says so too; needed: whether putting any one of them back brings the old prediction back.
        """
        before, classes = int(subject.logits.argmax()), self.network.classes
        chosen = self._smallest(subject, before)
        found = {"features": chosen, "before": classes[before], "after": classes[before]}
        if not chosen:
            return found | {"verified": False, "needed": False}
        gone = 1 - torch.eye(len(chosen) + 1, len(chosen)).roll(1, 0)  # all of them, then all but one
        predicted = self.without(subject, chosen, gone).argmax(1).tolist()
        taken = subject.codes[..., chosen] @ self.W_dec[chosen]
        with torch.no_grad():
            passed = self.network.see(subject.x[None], edits={self.sae.cfg.site: lambda acts: acts - taken}).logits
        verified, needed = int(passed.argmax()) == predicted[0], all(each == before for each in predicted[1:])
        return found | {"after": classes[predicted[0]], "verified": verified, "needed": needed}

    def _smallest(self, subject: Subject, before: int) -> list[int]:
        """Single features and pairs of those that matter most are searched through, larger sets grown, then thinned."""

        def margins(logits: Tensor) -> Tensor:
            """Of the old prediction to the best other class; below 0 it has flipped."""
            return logits[:, before] - logits.index_fill(1, torch.tensor(before), -torch.inf).amax(1)

        left, chosen = self.tried(subject), []
        if not left:
            return []
        alone = margins(self.each(subject, left, []))
        if alone.min() < 0:
            return [left[alone.argmin()]]
        best = [left[i] for i in alone.argsort()[: 100 if self.readout else 8]]  # pairs: 4,950, or 28 forward passes
        if pairs := list(combinations(range(len(best)), 2)):
            gone = torch.zeros(len(pairs), len(best)).scatter(1, torch.tensor(pairs), 1.0)
            together = margins(self.without(subject, best, gone))
            if together.min() < 0:
                return [best[i] for i in pairs[together.argmin()]]
        while left and len(chosen) < 40:
            margin = margins(self.each(subject, left, chosen))
            chosen.append(left.pop(int(margin.argmin())))
            if margin.min() < 0:
                break
        else:
            return []
        for j in list(chosen):  # the first ones may no longer be needed
            fewer = [i for i in chosen if i != j]
            if margins(self.without(subject, fewer, torch.ones(1, len(fewer))))[0] < 0:
                chosen = fewer
        return chosen


def in_cells(subject: Subject) -> list[list[list[float]]]:
    """For each cell, row by row, [feature, activation] of those active there, the strongest first."""
    values, features = subject.codes.flatten(0, 1).sort(descending=True, stable=True)
    cells = ((features[i, :n].tolist(), values[i, :n].tolist()) for i, n in enumerate((values > 0).sum(1).tolist()))
    return [[[j, round(v, 5)] for j, v in zip(*cell, strict=True)] for cell in cells]
