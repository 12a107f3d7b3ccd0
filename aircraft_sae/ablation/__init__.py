"""What features do: suppressed in feature space, with the controls that a claim needs beside it."""

from aircraft_sae.ablation.suppression import (
    PooledHead,
    effects,
    matched_features,
    random_directions,
    suppress_all,
)

__all__ = ["PooledHead", "effects", "matched_features", "random_directions", "suppress_all"]
