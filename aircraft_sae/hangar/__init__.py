"""The hangar: rendered aircraft whose every pixel's part is known. Knows nothing of torch.

`airframes` names the variants, `meshes` builds them, `scene` samples and edits views, `render` casts the rays,
`dataset` writes FGVC-Aircraft's layout.
"""

PARTS = (  # the index is the value in a mask; the first two are background
    "sky", "ground", "fuselage", "wing", "stabilizer", "fin", "engine", "propeller",
    "nose_gear", "main_gear", "window", "cockpit", "strut", "flap_fairing",
)  # fmt: skip
MATERIALS = ("body", "wing", "fin", "engine", "window", "cockpit", "rubber", "metal", "propeller")
