"""Weights to ship in data/weights: those of a trained network as float16, and what they are in a JSON file beside them.

python data/weights/export.py data/runs/hangar/networks/trained data/weights/NAME.safetensors
"""

import sys
from pathlib import Path
from typing import Any

from aircraft_sae.networks import load
from aircraft_sae.networks.weights import write_safetensors
from aircraft_sae.store import read_json, write_json


def export_weights(folder: str | Path, path: str | Path, **facts: Any) -> None:
    """Write the weights of the network in `folder` as float16 safetensors; what they are, and `facts`, as JSON beside.

    Raises: ValueError for another suffix than .safetensors, or a weight too large for float16.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"weights are exported as .safetensors, got {path.name}")
    made, trained = load(folder), read_json(Path(folder) / "config.json")
    state = {name: value.half() for name, value in made.model.state_dict().items()}
    if large := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{large[0]} holds values beyond float16's 65504: has the training diverged?")
    write_safetensors(path, state)
    own = {"arch": trained["classifier"]["arch"], "n_classes": len(made.classes), "image_size": made.size}
    write_json(path.with_suffix(".json"), own | {"mean": made.mean, "std": made.std, "classes": made.classes} | facts)


if __name__ == "__main__":
    export_weights(*sys.argv[1:])
