"""What features do: suppressed, blurred, edited away, with the controls and nulls that a claim needs beside it."""

# ruff: noqa: I001
from aircraft_sae.interventions.blurring import (
    Window, agreement, beyond_controls, blur, choose_picks, feature_lost, mediation, patched,
)  # fmt: skip
from aircraft_sae.interventions.editing import Responses, choose_scenes, edit_scenes, without
from aircraft_sae.interventions.suppression import Trial, effects, logits_from, tell_apart
from aircraft_sae.interventions.tiers import Claimant
from aircraft_sae.interventions.verdicts import Verdicts, frozen_list, pass_share
