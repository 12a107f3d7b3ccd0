"""What changes when features are suppressed, blurred or edited away, with the controls and nulls a claim needs."""

# ruff: noqa: I001
from aircraft_sae.interventions.blurring import (
    Window, agreement, beyond_controls, blur, blur_peaks, choose_picks, feature_lost, mediation, patched,
)  # fmt: skip
from aircraft_sae.interventions.editing import Responses
from aircraft_sae.interventions.suppression import (
    Trial, effects, logits_from, mean_over_active, suppress_features, suppress_sample, tell_apart,
)  # fmt: skip
from aircraft_sae.interventions.verdicts import Claimant, features_to_test, judge_parts, pass_share, verdict_tables
