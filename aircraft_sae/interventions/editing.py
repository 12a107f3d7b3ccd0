"""What features lose when a part is removed from a rendered scene and every other pixel stays as it was."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from aircraft_sae.activations import Activations
from aircraft_sae.features import FeatureIndex, cell_labels
from aircraft_sae.metrics import Estimate, ratio
from aircraft_sae.pictures.scenes import VariedScenes
from aircraft_sae.sae import SparseAutoencoder


@dataclass
class Responses:
    """What edits do to features j. The pictures n are scenes s and their edits; p are parts.

    edits: number (of the scene's picture), part, changed (pixels), and as the table's index the number of the edit's
    picture; maxima: (n, j) image maxima; shows: (s, rows, columns, p) bool, the cells that show a part
    """

    parts: list[str]
    edits: pd.DataFrame
    maxima: np.ndarray
    shows: np.ndarray
    index: FeatureIndex

    @classmethod
    def of(cls, sae: SparseAutoencoder, acts: Activations, scenes: VariedScenes) -> "Responses":
        """Encode a network's activations of scenes in which parts were edited."""
        rows, table = np.arange(len(acts.images)), acts.images
        index, whole = FeatureIndex.of(sae, acts, rows), table.loc[table["factor"] == "", "image"]
        shows = cell_labels(np.stack([scenes.regions(image, acts.grid) for image in whole]))
        return cls(list(scenes.region_names), table[table["part"] != ""], index.maxima(rows), shows, index)

    def table(self) -> pd.DataFrame:
        """feature_id, part, response: share of the feature's image maxima lost to a part's edits; nan without edits."""
        R = {}
        for part in self.parts:
            own = self.edits[self.edits["part"] == part]
            whole, left = (self.maxima[pictures].sum(0) for pictures in (own["number"], own.index))
            unknown = np.full_like(whole, 0 if len(own) else np.nan)
            R[part] = np.divide(whole - left, whole, out=unknown, where=whole > 0)
        table = pd.DataFrame(R, dtype=float).rename_axis("feature_id").reset_index()
        return table.melt("feature_id", var_name="part", value_name="response")

    def at_part(self, part: str, feature_id: int) -> tuple[Estimate, Estimate]:
        """R at the part's own cells: for removing the part, and for removing others that are at most twice as large.

        R: the fall of the largest activation in these cells, as a share of the largest anywhere before the edit, over
        scenes that show the part and activate the feature. Size: the median number of pixels that a removal changes.
        """
        maps, top = self.index.maps(feature_id, slice(None)), self.maxima[:, feature_id]
        place, changed = self.shows[..., self.parts.index(part)], self.edits.groupby("part")["changed"].median()
        changed = changed.reindex(self.parts)
        own = self.edits.loc[self.edits["part"] == part, "number"]
        own = own[top[own] > 0]
        like = [each for each in changed.index if each != part and changed[each] <= 2 * changed[part]]
        found = []
        for removed in ([part], like):
            edits = self.edits[self.edits["part"].isin(removed) & self.edits["number"].isin(own)]
            scenes = edits["number"].to_numpy()
            peaks = [np.where(place[scenes], maps[at], 0).max((1, 2), initial=0) for at in (scenes, edits.index)]
            sums = pd.DataFrame({"lost": peaks[0] - peaks[1], "whole": top[scenes]}).groupby(scenes).sum()
            found.append(ratio(sums["lost"], sums["whole"]))
        return found[0], found[1]
