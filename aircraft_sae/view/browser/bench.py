"""One picture on the bench: multiply its features, blur its cells, and see what the classifier makes of it.

At the last stage only the mean over cells reaches the head, so that any choice of multipliers m gives

    pooled' = pooled - sum over features j of (1 - m_j) mean_j d_j,    logits' = head(pooled')

with what the autoencoder does not explain kept: all multipliers at 1 leave the logits as they are.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from aircraft_sae.activations import captured
from aircraft_sae.features import check_features
from aircraft_sae.interventions import blur
from aircraft_sae.pictures import test_transform
from aircraft_sae.view.browser.catalogue import Catalogue

LOWEST, HIGHEST = 0.0, 4.0
"""Least and largest multiplier."""
MOST_PIXELS = 50_000_000
N_PAIRED, MOST_FLIPPED = 100, 40
"""Features tried in pairs, and members of a flipping set, at most."""


@dataclass(frozen=True)
class Subject:
    """A picture as the network sees it: x (3, size, size), acts (rows, columns, d_in), codes (rows, columns, d_sae)."""

    picture: Image.Image
    x: torch.Tensor
    acts: torch.Tensor
    codes: torch.Tensor
    logits: torch.Tensor
    """(classes,) of the whole network."""

    @property
    def pooled(self) -> torch.Tensor:
        return self.acts.mean((0, 1))

    @property
    def strength(self) -> torch.Tensor:
        """(d_sae,) features' activations averaged over cells."""
        return self.codes.mean((0, 1))


class Bench:
    """Interventions on one picture at a time, without a front end."""

    def __init__(self, catalogue: Catalogue):
        self.catalogue = catalogue
        self.classifier, self.sae = catalogue.classifier, catalogue.sae
        self.transform = test_transform(self.classifier.image_size, self.classifier.mean, self.classifier.std)
        self.W_dec = self.sae.W_dec.detach()

    def of_row(self, row: int) -> Subject:
        """A picture of the study."""
        self.catalogue.thumbnail(row)  # refuses a row that is not there
        return self.look(self.catalogue.data.picture(self.catalogue.index.images["image"].iloc[row]))

    def of_file(self, content: bytes, name: str = "the file") -> Subject:
        """A picture that a person gives. ValueError where it is none, or has more than 50 million pixels."""
        try:
            with Image.open(io.BytesIO(content)) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    raise ValueError(f"{opened.width} x {opened.height} pixels are too many")
                opened.draft("RGB", (1024, 1024))
                picture = ImageOps.exif_transpose(opened).convert("RGB")  # as the camera was held
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = (
                "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            )  # which names an object in memory
            raise ValueError(f"{name} is no picture that can be used{reason}: give a JPEG or PNG file") from error
        return self.look(picture)

    def look(self, picture: Image.Image) -> Subject:
        """What the network and the autoencoder make of a picture of any size, squashed to the network's."""
        return self._seen(picture, self.transform.normalise(self.transform(picture)[None])[0])

    @torch.no_grad()
    def _seen(self, picture: Image.Image, x: torch.Tensor) -> Subject:
        site = self.sae.cfg.site
        with captured(self.classifier, [site]) as got:
            logits = self.classifier.model(x[None].to(next(self.classifier.model.parameters()).device))[0]
        acts = got[site][0].float().cpu().permute(1, 2, 0)
        codes = self.sae.encode(acts.flatten(0, 1)).dense().view(*acts.shape[:2], -1)
        return Subject(picture, x, acts, codes, logits.float().cpu())

    def removed(self, subject: Subject, multipliers: Mapping[int, float]) -> torch.Tensor:
        """(d_sae,) how much of each feature's mean activation goes; ValueError for a feature or factor out of range."""
        gone = torch.zeros(self.sae.d_sae)
        for feature_id, factor in multipliers.items():
            check_features([feature_id], self.sae.d_sae)
            if not LOWEST <= factor <= HIGHEST:
                raise ValueError(f"a multiplier must be from {LOWEST:g} to {HIGHEST:g}, got {factor}")
            gone[feature_id] = (1 - factor) * subject.strength[feature_id]
        return gone

    @torch.no_grad()
    def change(self, subject: Subject, multipliers: Mapping[int, float]) -> dict[str, torch.Tensor]:
        """Logits (classes,) "before" and "after" the multipliers, and of two controls.

        "random": as much of random directions of equal length; "reconstruction": nothing multiplied, but what the
        autoencoder does not explain is left out.
        """
        gone, pooled = self.removed(subject, multipliers), subject.pooled[None]
        some = gone.nonzero()[:, 0]
        recon = subject.strength @ self.W_dec + self.sae.b_dec.detach()
        made = {
            "before": pooled,
            "after": pooled - gone[some] @ self.W_dec[some],
            "random": pooled - gone[some] @ self.catalogue.random[some],
            "reconstruction": recon[None],
        }
        return {name: self.catalogue.head.logits(each)[0] for name, each in made.items()}

    def blurred(self, subject: Subject, cells: Sequence[tuple[int, int]], sigma: float = 8.0) -> Subject:
        """The picture with some cells' squares blurred, seen again. sigma: pixels of a picture of 224.

        Raises: ValueError for no cell, or one that is not there.
        """
        rows, columns = subject.acts.shape[:2]
        if not cells:
            raise ValueError("choose at least one cell to blur")
        size = subject.x.shape[1]
        x, soft = subject.x.clone(), blur(subject.x, max(0.5, sigma * size / 224))
        for row, column in cells:
            if not (0 <= row < rows and 0 <= column < columns):
                raise ValueError(f"cell {row}, {column} is not in the grid of {rows} x {columns}")
            down, across = (slice(at * size // n, (at + 1) * size // n) for at, n in ((row, rows), (column, columns)))
            x[:, down, across] = soft[:, down, across]
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.classifier.mean, self.classifier.std))
        pixels = (255 * (x * std + mean)).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return self._seen(Image.fromarray(pixels), x)

    @torch.no_grad()
    def flip(self, subject: Subject) -> dict[str, Any]:
        """The smallest set of features found whose suppression changes the prediction, and a forward pass of it.

        features: their ids, [] where none is found; before, after: predicted classes; verified: whether the whole
        network, with the features taken out of its activations, says so too; needed: whether putting any one of them
        back brings the old prediction back. Sizes 1 and 2 (of the 100 that matter most) are searched through, larger
        sets are grown one by one, then thinned.
        """
        pooled, strength, head = subject.pooled[None], subject.strength[None], self.catalogue.head
        before = int(head.logits(pooled)[0].argmax())
        active = strength[0].nonzero()[:, 0]
        chosen = self._smallest(pooled[0], strength[0], active, before)
        classes = self.classifier.classes
        if not chosen:
            return {
                "features": [],
                "before": classes[before],
                "after": classes[before],
                "verified": False,
                "needed": False,
            }
        sets = [chosen] + [[j for j in chosen if j != left] for left in chosen]
        predicted = [int(self._logits(pooled[0], strength[0], each).argmax()) for each in sets]
        return {
            "features": [int(j) for j in chosen], "before": classes[before], "after": classes[predicted[0]],
            "verified": self._forward(subject, chosen) == predicted[0],
            "needed": all(each == before for each in predicted[1:]),
        }  # fmt: skip

    def _logits(self, pooled: torch.Tensor, strength: torch.Tensor, features: Sequence[int]) -> torch.Tensor:
        some = torch.tensor(list(features), dtype=torch.int64)
        return self.catalogue.head.logits((pooled - strength[some] @ self.W_dec[some])[None])[0]

    def _smallest(self, pooled: torch.Tensor, strength: torch.Tensor, active: torch.Tensor, before: int) -> list[int]:
        head, parts = self.catalogue.head, strength[active, None] * self.W_dec[active]  # (active, d_in)

        def margins(changed: torch.Tensor) -> torch.Tensor:
            """Of the old prediction to the best other class; below 0 it has flipped."""
            logits = head.logits(changed)
            own = logits[:, before].clone()
            logits[:, before] = -torch.inf
            return own - logits.amax(1)

        if not len(active):
            return []
        alone = margins(pooled - parts)
        if alone.min() < 0:
            return [int(active[alone.argmin()])]
        best = alone.argsort()[:N_PAIRED].tolist()
        if len(best) > 1:
            pairs = torch.tensor(list(combinations(best, 2)))
            together = margins(pooled - parts[pairs[:, 0]] - parts[pairs[:, 1]])
            if together.min() < 0:
                return active[pairs[together.argmin()]].tolist()
        left, chosen = pooled.clone(), []
        for _ in range(min(MOST_FLIPPED, len(active))):
            left_over = margins(left - parts)
            left_over[chosen] = torch.inf
            chosen.append(int(left_over.argmin()))
            left = left - parts[chosen[-1]]
            if left_over.min() < 0:
                break
        else:
            return []
        for j in list(chosen):  # the first ones may no longer be needed
            if margins((left + parts[j])[None])[0] < 0:
                left, chosen = left + parts[j], [i for i in chosen if i != j]
        return active[chosen].tolist()

    @torch.no_grad()
    def _forward(self, subject: Subject, features: Sequence[int]) -> int:
        """The class that the whole network predicts with these features taken out of its activations."""
        module, some = self.classifier.site(self.sae.cfg.site), torch.tensor(list(features))
        taken = (subject.codes[..., some] @ self.W_dec[some]).permute(2, 0, 1)[None]
        handle = module.register_forward_hook(lambda _module, _inputs, out: out - taken.to(out.device, out.dtype))
        try:
            where = next(self.classifier.model.parameters()).device
            return int(self.classifier.model(subject.x[None].to(where))[0].argmax())
        finally:
            handle.remove()
