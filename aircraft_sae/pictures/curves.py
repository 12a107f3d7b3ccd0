"""Synthetic stimuli for curve detectors: anti-aliased strokes on grey. All that varies is in the table.

An angle is the direction of the normal, from the stroke's middle to its centre of curvature, in degrees anticlockwise.
"""

from itertools import product

import numpy as np
import pandas as pd
from PIL import Image

from aircraft_sae.pictures.base import Pictures

SIZE = 224  # pixels
MIDDLE = 119  # strokes pass through here: the centre of a cell's receptive field at strides 2, 4 and 8
LENGTH, WIDTH, GREY, CONTRAST = 48.0, 4.0, 128, 100
ANGLES, RADII, SHIFTS = range(0, 360, 5), (12.0, 20.0, 34.0, 60.0), ((0, 0), (2, 0), (0, 2), (-2, -2))


class Curves(Pictures):
    """Curves, and the lines and corners that a curve detector should respond to less.

    Columns of the table: image, split ("test"), kind, angle
    radius: in pixels; inf for straight strokes
    contrast: 1 for bright, -1 for dark; right, down: shift in pixels
    """

    name = "curves"

    def __init__(self) -> None:
        rows = [("curve", *row) for row in product(ANGLES, RADII, (1, -1), SHIFTS)]
        rows += [("line", *row) for row in product(ANGLES, (np.inf,), (1, -1), SHIFTS)]
        rows += [("corner", *row) for row in product(ANGLES[::2], (np.inf,), (1, -1), SHIFTS[:1])]
        table = pd.DataFrame(rows, columns=["kind", "angle", "radius", "contrast", "shift"])
        table["right"], table["down"] = zip(*table.pop("shift"), strict=True)
        table.insert(0, "image", [f"{i:05d}" for i in range(len(table))])
        super().__init__(table.assign(split="test"), {})
        self._drawn = table.set_index("image")

    def picture(self, image: str) -> Image.Image:
        """SIZE x SIZE RGB."""
        known = self._drawn.loc[image]
        across, down = np.meshgrid(np.arange(SIZE) - MIDDLE - known["right"], np.arange(SIZE) - MIDDLE - known["down"])
        angle = np.radians(known["angle"])
        # normal: towards the centre of curvature; along: along the stroke
        along, normal = across * np.sin(angle) + down * np.cos(angle), across * np.cos(angle) - down * np.sin(angle)
        ink = _corner(normal, along) if known["kind"] == "corner" else _curve(normal, along, float(known["radius"]))
        return Image.fromarray(np.uint8(np.rint(GREY + CONTRAST * known["contrast"] * ink))).convert("RGB")

    def contents(self) -> list[str]:
        """The settings that are not in the table."""
        return [str((SIZE, MIDDLE, LENGTH, WIDTH, GREY, CONTRAST))]


def _stroke(distance: np.ndarray) -> np.ndarray:
    """The share of each pixel that a stroke covers, given the distance to its centre line."""
    return np.clip((WIDTH + 1) / 2 - distance, 0, 1)


def _curve(normal: np.ndarray, along: np.ndarray, radius: float) -> np.ndarray:
    if np.isinf(radius):
        return _stroke(np.hypot(normal, np.maximum(np.abs(along) - LENGTH / 2, 0)))
    turned = np.abs(np.arctan2(along, radius - normal))  # angle from the stroke's middle, at the centre of curvature
    end = min(LENGTH / 2 / radius, np.pi)
    beyond = np.hypot(normal - radius * (1 - np.cos(end)), np.abs(along) - radius * np.sin(end))
    return _stroke(np.where(turned <= end, np.abs(np.hypot(radius - normal, along) - radius), beyond))


def _corner(normal: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Two straight strokes at a right angle that opens along the normal."""
    out, side = (normal + np.abs(along)) / 2**0.5, np.abs(normal - np.abs(along)) / 2**0.5
    return _stroke(np.hypot(side, np.maximum(np.abs(out - LENGTH / 4) - LENGTH / 4, 0)))
