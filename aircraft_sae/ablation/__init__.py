"""What features do: suppressed in feature space, with the controls that a claim needs beside it."""

from aircraft_sae.ablation.blurring import Window, blur, blur_effects, control_windows
from aircraft_sae.ablation.editing import Responses, edit_responses, edited
from aircraft_sae.ablation.suppression import (
    PooledHead,
    effects,
    matched_features,
    random_directions,
    suppress_all,
)

__all__ = [
    "PooledHead",
    "Responses",
    "Window",
    "blur",
    "blur_effects",
    "control_windows",
    "edit_responses",
    "edited",
    "effects",
    "matched_features",
    "random_directions",
    "suppress_all",
]
