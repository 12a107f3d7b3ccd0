"""One picture on the bench: multiply its features or blur its cells, and see how the network's answer changes.

Multiplying each feature j by m_j changes the acts x of a cell to x - sum over j of (1 - m_j) f_j d_j. Whatever the
autoencoder does not explain stays, so that multipliers of 1 leave the logits as they are. Where the logits follow from
the mean over cells (`Network.readout`), any multipliers have a closed form; elsewhere each choice is a forward pass.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from aircraft_sae.activations import see_features
from aircraft_sae.features import check_features
from aircraft_sae.interventions import blur, logits_from
from aircraft_sae.pictures import decode
from aircraft_sae.view.browser.catalogue import Catalogue

Cells = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Subject:
    """A picture as the network sees it.

    x: (3, size, size); acts: (rows, columns, d_in); codes: (rows, columns, d_sae); logits: (classes,);
    aircraft: (rows, columns) bool, the cells that show the aircraft; all of them if there are no masks.
    """

    picture: Image.Image
    x: Tensor
    acts: Tensor
    codes: Tensor
    logits: Tensor
    aircraft: np.ndarray

    @property
    def strength(self) -> Tensor:
        """(d_sae,) each feature's activation averaged over cells."""
        return self.codes.mean((0, 1))


class Bench:
    """Interventions on one picture at a time, without a front end."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue, self.readout = catalogue, catalogue.trial.readout
        self.network, self.sae = catalogue.network, catalogue.trial.sae
        self.W_dec = self.sae.W_dec.detach()

    def of_row(self, row: int) -> Subject:
        """A picture of the study; ValueError for an unknown row."""
        subject, pictures = self.look(self.catalogue.picture(row)), self.catalogue.trial.pictures
        if not pictures.region_names:
            return subject
        image = self.catalogue.index.images["image"].iloc[row]
        return replace(subject, aircraft=pictures.foreground([image], subject.acts.shape[:2])[0])

    def of_file(self, content: bytes, name: str) -> Subject:
        """The user's picture, read as the study's are; ValueError if it is no picture, or too large."""
        try:
            picture = decode(io.BytesIO(content), self.catalogue.trial.pictures.banner, name=name, most=50_000_000)
        except ValueError as error:
            raise ValueError(f"{error}: give a JPEG or PNG file") from error
        return self.look(picture)

    def look(self, picture: Image.Image, x: Tensor | None = None) -> Subject:
        """Run the network and the autoencoder on a picture of any size; x: the network's input, if known."""
        x = self.network.as_input(picture) if x is None else x
        with torch.no_grad():
            seen, codes = see_features(self.network, self.sae, x[None])
        acts = seen.acts[self.sae.cfg.site][0]
        return Subject(picture, x, acts, codes[0], seen.logits[0], np.ones(acts.shape[:2], bool))

    def change(self, subject: Subject, multipliers: Mapping[int, float], cells: Cells = ()) -> dict[str, Tensor]:
        """Logits "before" and "after" multiplying features, and with "random" directions in their place.

        cells: multiply in these cells only, or in all if none are given.
        Raises: ValueError for an unknown feature or cell, or a multiplier out of range.
        """
        check_features(list(multipliers), self.sae.d_sae)
        if odd := [factor for factor in multipliers.values() if not 0 <= factor <= 4]:
            raise ValueError(f"a multiplier must be from 0 to 4, got {odd[0]}")
        features, gone = list(multipliers), 1 - torch.tensor([[float(m) for m in multipliers.values()]])
        some = replace(subject, codes=subject.codes * self._mask(subject, cells)[..., None]) if cells else subject
        after, random = (
            self.without(some, features, gone, rows)[0] for rows in (self.W_dec, self.catalogue.trial.random)
        )
        return {"before": subject.logits, "after": after, "random": random}

    @torch.no_grad()
    def without(self, subject: Subject, features: list[int], gone: Tensor, directions: Tensor) -> Tensor:
        """(n, classes) logits after removing shares `gone` (n, len(features)) of features, along `directions`."""
        rows = directions[features]
        if self.readout is not None:
            return self.readout.logits(subject.acts.mean((0, 1)) - (gone * subject.strength[features]) @ rows)
        acts = subject.acts - (gone[:, None, None] * subject.codes[..., features]) @ rows
        return logits_from(self.network, self.sae.cfg.site, acts, subject.x.expand(len(acts), -1, -1, -1))

    @torch.no_grad()
    def reconstruction(self, subject: Subject) -> Tensor:
        """(classes,) logits of the autoencoder's reconstruction: its error is dropped."""
        recon = subject.codes @ self.W_dec + self.sae.b_dec.detach()
        return logits_from(self.network, self.sae.cfg.site, recon[None], subject.x[None])[0]

    def page(self, subject: Subject, row: int | None = None, against: str = "") -> dict[str, Any]:
        """A picture's page: logits, active features by effect on the margin own - other, and cells.

        own: the picture's class, or the predicted one if it has none; other: `against`, or the most probable other
        class. Raises: ValueError if `against` is not another class.
        """
        (winner, rival), classes = subject.logits.topk(2).indices.tolist(), self.network.classes
        label = None if row is None else self.catalogue.label(row)
        own = classes.index(label) if label in classes else winner
        if against and (against not in classes or against == classes[own]):
            raise ValueError(f"the margin needs a class other than {classes[own]}, got {against!r}")
        other = classes.index(against) if against else rival if own == winner else winner
        strength, peaks = subject.strength, subject.codes.amax((0, 1)).tolist()
        # suppressed one by one: all active features in closed form, else the strongest
        tried = (strength.nonzero()[:, 0] if self.readout else self.catalogue.trial.strongest(strength)).tolist()
        change = self.without(subject, tried, torch.eye(len(tried)), self.W_dec) - subject.logits
        effects = dict(zip(tried, (change[:, own] - change[:, other]).tolist(), strict=True))
        active = [
            {"feature_id": j, "peak": peaks[j], "effect": effects.get(j)}
            for j in strength.argsort(descending=True, stable=True).tolist() if strength[j] > 0
        ]  # fmt: skip
        active.sort(key=lambda each: 1.0 if each["effect"] is None else -abs(each["effect"]))  # the untried last
        return {
            "picture": row, "label": label, "predicted": classes[winner], "own": classes[own], "other": classes[other],
            "active": active, "classes": classes, "before": subject.logits.tolist(),
            "reconstruction": self.reconstruction(subject).tolist(), "cells": active_by_cell(subject),
        }  # fmt: skip

    def blurred(self, subject: Subject, cells: Cells, sigma: float = 8.0) -> Subject:
        """Blur cells (sigma: pixels of 224) and look again; ValueError for no cell or an unknown one."""
        if not cells:
            raise ValueError("choose at least one cell to blur")
        inside = interpolate(self._mask(subject, cells)[None, None].float(), subject.x.shape[1:])[0] > 0
        x = torch.where(inside, _soft(subject, sigma), subject.x)
        return self.look(Image.fromarray(self.network.as_picture(x)), x)

    def control_cells(self, subject: Subject, cells: Cells, sigma: float = 8.0) -> np.ndarray:
        """(n, 2) as many other aircraft cells that blurring changes about as much; (0, 2) if there are too few."""
        free = subject.aircraft.copy()
        changed = (subject.x - _soft(subject, sigma)).square().mean(0, keepdim=True)
        change, own = adaptive_avg_pool2d(changed, free.shape)[0].clamp(1e-9).log().numpy(), tuple(np.transpose(cells))
        free[own] = False
        others = np.argwhere(free)
        distance = np.abs(change[own][:, None] - change[free])
        return others[linear_sum_assignment(distance)[1]] if len(others) >= len(cells) else others[:0]

    @staticmethod
    def _mask(subject: Subject, cells: Cells) -> Tensor:
        mask = torch.zeros(subject.acts.shape[:2], dtype=torch.bool)
        for row, column in cells:
            if not (0 <= row < len(mask) and 0 <= column < mask.shape[1]):
                raise ValueError(f"cell {row}, {column} is not in the grid of {len(mask)} x {mask.shape[1]}")
            mask[row, column] = True
        return mask


def _soft(subject: Subject, sigma: float) -> Tensor:
    return blur(subject.x, max(0.5, sigma * subject.x.shape[1] / 224))


def active_by_cell(subject: Subject) -> list[list[list[float]]]:
    """For each cell, row by row, [feature, activation] of its active features, strongest first."""
    values, features = subject.codes.flatten(0, 1).sort(descending=True, stable=True)
    cells = ((features[i, :n].tolist(), values[i, :n].tolist()) for i, n in enumerate((values > 0).sum(1).tolist()))
    return [[[j, round(v, 5)] for j, v in zip(*cell, strict=True)] for cell in cells]
