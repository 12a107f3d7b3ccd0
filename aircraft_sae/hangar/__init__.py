"""The hangar: rendered aircraft with a known part at every pixel. Independent of torch.

`meshes` builds airframes, `scene` samples and edits views, `render` casts rays, `dataset` writes FGVC-Aircraft's
layout. Manufacturers, families and variants are invented and differ only in their airframes. `airframes.json` holds
their numbers: lengths in metres, `…_at` as shares of length or span, angles in degrees; nose, tail, engine_size,
propeller, leg and wheel in girths, hump in radii.
"""

import json
from dataclasses import make_dataclass
from importlib.resources import files

PARTS = (  # in the order of mask values; the first two are background
    "sky", "ground", "fuselage", "wing", "stabilizer", "fin", "engine", "propeller",
    "nose_gear", "main_gear", "window", "cockpit", "strut", "flap_fairing",
)  # fmt: skip
MATERIALS = ("body", "wing", "fin", "engine", "window", "cockpit", "rubber", "metal", "propeller")
_DATA = json.loads(
    files(__name__).joinpath("airframes.json").read_text("utf-8"),
    object_hook=lambda values: {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()},
)
Airframe = make_dataclass(  # one variant, with a field for each default
    "Airframe", [(name, type(v), v) for name, v in _DATA["defaults"].items()],
    namespace={"__module__": __name__}, frozen=True,
)  # fmt: skip
ARCHETYPES = _DATA["archetypes"]  # each family starts from one; variants change their family a little
VARIANTS = {  # by name
    # family overrides house style, variant overrides both
    variant: Airframe(
        variant, name, maker, **ARCHETYPES[family["archetype"]] | house["style"] | family["changes"] | changes
    )
    for maker, house in _DATA["manufacturers"].items()
    for name, family in house["families"].items()
    for variant, changes in family["variants"].items()
}
