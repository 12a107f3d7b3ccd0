"""What features do: suppressed, blurred, edited away, with the controls and nulls that a claim needs beside it."""

from aircraft_sae.interventions.blurring import (
    Window,
    agreement,
    beyond_controls,
    blur,
    blur_effects,
    control_windows,
    feature_lost,
    mediation,
)
from aircraft_sae.interventions.editing import Responses, choose_scenes, edit_scenes, edited, followed, without
from aircraft_sae.interventions.suppression import (
    PooledHead,
    beyond_random,
    effects,
    matched_features,
    random_directions,
    suppress_all,
    suppress_hooked,
)
from aircraft_sae.interventions.verdicts import class_verdicts, frozen_list, judge, part_verdicts, pass_share

__all__ = [
    "PooledHead",
    "Responses",
    "Window",
    "agreement",
    "beyond_controls",
    "beyond_random",
    "blur",
    "blur_effects",
    "choose_scenes",
    "class_verdicts",
    "control_windows",
    "edit_scenes",
    "edited",
    "effects",
    "feature_lost",
    "followed",
    "frozen_list",
    "judge",
    "matched_features",
    "mediation",
    "part_verdicts",
    "pass_share",
    "random_directions",
    "suppress_all",
    "suppress_hooked",
    "without",
]
