"""The hangar: rendered aircraft whose every pixel's part is known. Knows nothing of torch.

`meshes` builds the airframes, `scene` samples and edits views, `render` casts the rays, `dataset` writes
FGVC-Aircraft's layout. Manufacturers, families and variants are invented, and told apart by their airframes alone.
Their numbers are in `airframes.json`: lengths in metres, shares of length or span where named `…_at`, angles in
degrees; nose, tail, hump, engine_size, propeller, leg and wheel in units of girth.
"""

import json
from dataclasses import make_dataclass
from importlib.resources import files

PARTS = (  # the index is the value in a mask; the first two are background
    "sky", "ground", "fuselage", "wing", "stabilizer", "fin", "engine", "propeller",
    "nose_gear", "main_gear", "window", "cockpit", "strut", "flap_fairing",
)  # fmt: skip
MATERIALS = ("body", "wing", "fin", "engine", "window", "cockpit", "rubber", "metal", "propeller")
_DATA = json.loads(
    files(__name__).joinpath("airframes.json").read_text("utf-8"),
    object_hook=lambda values: {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()},
)
Airframe = make_dataclass(  # one variant: its fields are the defaults' names
    "Airframe", [(name, type(v), v) for name, v in _DATA["defaults"].items()],
    namespace={"__module__": __name__}, frozen=True,
)  # fmt: skip
ARCHETYPES = _DATA["archetypes"]  # a family starts from one, and a variant changes its family a little
VARIANTS = {  # by name, in order of manufacturer and family
    # the family's own numbers win over the house style, the variant's over both
    variant: Airframe(
        variant, name, maker, **ARCHETYPES[family["archetype"]] | house["style"] | family["changes"] | changes
    )
    for maker, house in _DATA["manufacturers"].items()
    for name, family in house["families"].items()
    for variant, changes in family["variants"].items()
}
