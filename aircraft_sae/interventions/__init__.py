"""What features do: suppressed, blurred, edited away, with the controls and nulls that a claim needs beside it."""

from aircraft_sae.features.reconstruction import random_directions
from aircraft_sae.interventions.blurring import (
    Window,
    agreement,
    beyond_controls,
    blur,
    blur_effects,
    choose_picks,
    control_windows,
    feature_lost,
    mediation,
    patched,
)
from aircraft_sae.interventions.editing import Responses, choose_scenes, edit_scenes, edited, followed, without
from aircraft_sae.interventions.suppression import (
    Trial,
    beyond_random,
    effects,
    logits_from,
    matched_features,
    random_beside,
    tell_apart,
)
from aircraft_sae.interventions.verdicts import Verdicts, class_verdicts, frozen_list, judge, part_verdicts, pass_share

__all__ = [
    "Responses", "Trial", "Verdicts", "Window", "agreement", "beyond_controls", "beyond_random", "blur", "blur_effects",
    "choose_picks", "choose_scenes", "class_verdicts", "control_windows", "edit_scenes", "edited", "effects",
    "feature_lost", "followed", "frozen_list", "judge", "logits_from", "matched_features", "mediation", "part_verdicts",
    "pass_share", "patched", "random_beside", "random_directions", "tell_apart", "without",
]  # fmt: skip
