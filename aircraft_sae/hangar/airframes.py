"""The taxonomy: invented manufacturers, families and variants, told apart by their airframes alone.

Their numbers are in `airframes.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Airframe:
    """One variant: lengths in metres, shares of length or span where named `…_at`, angles in degrees."""

    variant: str = ""
    family: str = ""
    manufacturer: str = ""
    # fuselage; nose, tail, hump in units of girth
    length: float = 36.0
    girth: float = 3.8
    section_height: float = 1.05
    boxy: float = 2.0
    nose: float = 1.5
    nose_power: float = 2.0
    nose_droop: float = 0.25
    tail: float = 3.0
    tail_tip: float = 0.1
    upsweep: float = 0.7
    hump: float = 0.0
    hump_at: float = 0.2
    window_rows: int = 1
    window_end: float = 0.8
    window_pitch: float = 0.3
    cockpit: str = "windscreen"
    cockpit_size: float = 1.0
    canopy_at: float = 0.3
    canopy_length: float = 0.2
    # wing
    span: float = 34.0
    chord: float = 6.0
    taper: float = 0.3
    sweep: float = 26.0
    dihedral: float = 5.0
    kink: float = 0.25
    wing_at: float = 0.36
    wing_height: str = "low"
    winglet: str = "none"
    fairings: int = 0
    biplane: bool = False
    biplane_gap: float = 1.8
    top_span: float = 1.0
    strut_at: tuple[float, ...] = ()
    # tail
    tail_kind: str = "conventional"
    twin_fin: str = ""
    fin_at: float = 0.06
    fin_height: float = 6.0
    fin_chord: float = 5.5
    fin_taper: float = 0.35
    fin_sweep: float = 36.0
    dorsal: float = 0.0
    stab_span: float = 13.0
    stab_chord: float = 4.0
    stab_sweep: float = 30.0
    stab_dihedral: float = 5.0
    # engines; size in units of girth
    wing_jets: tuple[float, ...] = ()
    rear_jets: tuple[float, ...] = ()
    rear_jets_at: float = 0.24
    tail_jet: str = ""
    intakes: tuple[float, ...] = ()
    intake_at: float = 0.42
    nose_prop: bool = False
    cowl: float = 0.0
    wing_props: tuple[float, ...] = ()
    engine_size: float = 0.55
    propeller: float = 0.7
    blades: int = 4
    # gear; leg and wheel in units of girth
    gear: str = "retractable"
    leg: float = 0.45
    wheel: float = 0.13
    bogies: int = 1
    track: float = 0.16
    nose_gear_at: float = 0.1
    spats: bool = False


_DATA = json.loads(
    files("aircraft_sae.hangar").joinpath("airframes.json").read_text("utf-8"),
    object_hook=lambda values: {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()},
)
ARCHETYPES = _DATA["archetypes"]
"""Kinds of aircraft: a family starts from one, and a variant changes its family a little."""
VARIANTS = {
    # the family's own numbers win over the house style, the variant's over both
    variant: Airframe(
        variant, name, maker, **ARCHETYPES[family["archetype"]] | house["style"] | family["changes"] | changes
    )
    for maker, house in _DATA["manufacturers"].items()
    for name, family in house["families"].items()
    for variant, changes in family["variants"].items()
}
"""All airframes by name, in order of manufacturer and family."""
