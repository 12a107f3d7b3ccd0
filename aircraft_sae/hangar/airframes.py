"""The two taxonomies: invented manufacturers, families and variants, told apart by their airframes alone."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


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
    stab_at: float = 0.0
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
    engine_length: float = 1.0
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

    def shape(self) -> tuple:
        """All that the airframe looks like, without its names."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in ("variant", "family", "manufacturer"))


# An archetype is a kind of aircraft; a family starts from one and a variant changes its family a little.
_ARCHETYPES = {
    "airliner": dict(wing_jets=(0.34,), winglet="none", fairings=3),
    "widebody": dict(
        length=60.0, girth=6.0, span=60.0, chord=11.0, sweep=31.0, wing_jets=(0.32,), fairings=4, fin_height=9.5,
        fin_chord=8.5, stab_span=21.0, stab_chord=6.5, bogies=2, window_pitch=0.2, engine_size=0.6, nose=1.2, tail=2.6,
    ),
    "jumbo": dict(
        length=66.0, girth=6.8, span=64.0, chord=13.0, sweep=36.0, wing_jets=(0.34, 0.62), fairings=3, fin_height=10.5,
        fin_chord=10.0, stab_span=23.0, stab_chord=7.5, bogies=2, window_pitch=0.2, engine_size=0.42, hump=0.5,
        window_rows=2, nose=1.1, tail=2.5,
    ),
    "rear_twin": dict(
        length=30.0, girth=2.8, span=24.0, chord=4.6, tail_kind="t", rear_jets=(0.35,), engine_size=0.5, fin_height=4.6,
        fin_chord=4.6, fin_taper=0.6, fin_sweep=42.0, stab_span=9.5, stab_chord=2.8, wing_at=0.46, track=0.18,
        nose=1.8, tail=2.6, window_pitch=0.34,
    ),
    "trijet": dict(
        length=46.0, girth=3.8, span=34.0, chord=7.0, sweep=33.0, tail_kind="t", rear_jets=(0.3,), tail_jet="fin",
        engine_size=0.42, fin_height=6.0, fin_chord=7.0, fin_taper=0.62, fin_sweep=46.0, stab_span=13.0,
        wing_at=0.46, fairings=2, window_pitch=0.28,
    ),
    "bizjet": dict(
        length=20.0, girth=2.3, span=20.5, chord=3.8, sweep=30.0, tail_kind="t", rear_jets=(0.4,), engine_size=0.52,
        fin_height=3.6, fin_chord=3.6, fin_taper=0.65, fin_sweep=46.0, stab_span=8.0, stab_chord=2.2, wing_at=0.45,
        nose=2.1, nose_power=1.6, tail=2.6, window_pitch=0.6, window_end=0.62, wheel=0.12, bogies=0,
    ),
    "turboprop": dict(
        length=27.0, girth=2.8, span=28.0, chord=3.0, taper=0.55, sweep=3.0, kink=0.0, dihedral=1.0, wing_at=0.4,
        wing_height="high", wing_props=(0.3,), engine_size=0.42, propeller=0.7, blades=6, tail_kind="t",
        fin_height=4.8, fin_chord=4.6, fin_taper=0.6, fin_sweep=30.0, dorsal=1.0, stab_span=8.0, stab_chord=2.2,
        stab_sweep=6.0, nose=1.6, tail=3.0, window_pitch=0.34, track=0.12,
    ),
    "freighter": dict(
        length=30.0, girth=4.3, boxy=3.0, span=40.0, chord=5.2, taper=0.5, sweep=2.0, kink=0.0, dihedral=1.0,
        wing_at=0.38, wing_height="high", wing_props=(0.26, 0.52), engine_size=0.32, propeller=0.48, blades=4,
        fin_height=7.0, fin_chord=6.0, fin_taper=0.45, fin_sweep=18.0, dorsal=0.9, stab_span=16.0, stab_chord=4.4,
        stab_sweep=8.0, nose=0.9, nose_droop=0.3, tail=2.4, upsweep=1.1, window_rows=0, leg=0.22, wheel=0.16, track=0.1,
        bogies=2, cockpit_size=1.5,
    ),
    "tourer": dict(
        length=8.2, girth=1.35, section_height=1.15, span=11.0, chord=1.6, taper=0.7, sweep=0.0, kink=0.0, dihedral=1.8,
        wing_at=0.3, wing_height="high", strut_at=(0.52,), nose_prop=True, propeller=0.72, blades=2, cowl=0.78,
        fin_height=1.5, fin_chord=1.4, fin_taper=0.6, fin_sweep=30.0, dorsal=0.5, stab_span=3.4, stab_chord=1.0,
        stab_sweep=4.0, stab_dihedral=0.0, nose=1.0, nose_droop=0.3, tail=3.6, upsweep=0.6, window_pitch=0.75,
        window_end=0.55, gear="fixed", leg=0.55, wheel=0.17, bogies=0, track=0.22, nose_gear_at=0.1, cockpit_size=1.3,
        engine_size=0.5,
    ),
    "low_tourer": dict(
        length=7.8, girth=1.3, span=10.0, chord=1.5, taper=0.65, sweep=1.0, kink=0.0, dihedral=6.0, wing_at=0.32,
        nose_prop=True, propeller=0.72, blades=2, cowl=0.8, fin_height=1.4, fin_chord=1.4, fin_taper=0.55,
        fin_sweep=34.0, stab_span=3.4, stab_chord=1.0, stab_sweep=4.0, nose=1.2, tail=3.6, upsweep=0.5, window_rows=0,
        cockpit="canopy", canopy_at=0.4, canopy_length=0.34, gear="fixed", leg=0.4, wheel=0.17, bogies=0, track=0.3,
        nose_gear_at=0.14,
    ),
    "biplane": dict(
        length=8.0, girth=1.2, span=10.0, chord=1.5, taper=0.85, sweep=0.0, kink=0.0, dihedral=2.0, wing_at=0.27,
        biplane=True, biplane_gap=1.75, strut_at=(0.68,), nose_prop=True, propeller=0.95, blades=2, cowl=1.05,
        fin_height=1.1, fin_chord=1.2, fin_taper=0.6, fin_sweep=25.0, stab_span=3.3, stab_chord=1.1, stab_sweep=10.0,
        stab_dihedral=0.0, nose=0.7, nose_power=2.6, tail=4.5, upsweep=0.5, window_rows=0, cockpit="canopy",
        canopy_at=0.42, canopy_length=0.12, gear="taildragger", leg=0.6, wheel=0.24, bogies=0, track=0.17,
    ),
    "warbird": dict(
        length=9.4, girth=1.35, span=11.2, chord=2.3, taper=0.5, sweep=4.0, kink=0.0, dihedral=5.5, wing_at=0.28,
        nose_prop=True, propeller=1.15, blades=4, cowl=0.85, fin_height=1.5, fin_chord=1.6, fin_taper=0.55,
        fin_sweep=20.0, stab_span=4.0, stab_chord=1.2, stab_sweep=8.0, stab_dihedral=0.0, nose=1.6, nose_power=1.8,
        tail=3.8, upsweep=0.35, window_rows=0, cockpit="bubble", canopy_at=0.44, canopy_length=0.2, gear="taildragger",
        leg=0.85, wheel=0.25, bogies=0, track=0.3,
    ),
    "fighter": dict(
        length=15.5, girth=1.7, span=10.0, chord=5.4, taper=0.2, sweep=42.0, kink=0.0, dihedral=-1.0, wing_at=0.46,
        wing_height="mid", tail_jet="exhaust", intakes=(-0.1,), engine_size=1.0, fin_height=2.8, fin_chord=3.0,
        fin_taper=0.35, fin_sweep=46.0, stab_span=5.4, stab_chord=2.0, stab_sweep=42.0, stab_dihedral=0.0, nose=3.0,
        nose_power=1.35, nose_droop=0.3, tail=2.0, tail_tip=0.55, upsweep=0.0, window_rows=0, cockpit="bubble",
        canopy_at=0.26, canopy_length=0.2, leg=0.5, wheel=0.2, bogies=0, track=0.22, nose_gear_at=0.24,
    ),
    "flying_boat_hauler": dict(
        length=19.0, girth=2.4, span=27.0, chord=3.6, taper=0.55, sweep=2.0, kink=0.0, dihedral=1.5, wing_at=0.34,
        wing_height="parasol", wing_props=(0.22,), engine_size=0.55, propeller=0.75, blades=3, strut_at=(0.42,),
        fin_height=3.6, fin_chord=3.4, fin_taper=0.6, fin_sweep=18.0, tail_kind="cruciform", stab_span=9.0,
        stab_chord=2.3, stab_sweep=5.0, nose=1.3, tail=3.4, upsweep=0.9, window_pitch=0.7, window_end=0.7, leg=0.4,
        wheel=0.2, track=0.12, bogies=0,
    ),
    "commuter": dict(
        length=16.0, girth=1.7, span=16.0, chord=2.1, taper=0.55, sweep=3.0, kink=0.0, dihedral=5.0, wing_at=0.36,
        wing_props=(0.28,), engine_size=0.5, propeller=0.75, blades=3, fin_height=2.6, fin_chord=2.3, fin_taper=0.5,
        dorsal=0.8, stab_span=6.0, stab_chord=1.4, stab_sweep=8.0, nose=1.9, window_pitch=0.6, bogies=0, track=0.28,
        wheel=0.16,
    ),
    "trainer": dict(
        length=12.0, girth=1.6, span=9.8, chord=2.6, taper=0.5, sweep=14.0, kink=0.0, dihedral=3.0, wing_at=0.42,
        tail_jet="exhaust", intakes=(-0.1,), intake_at=0.38, engine_size=0.85, fin_height=2.3, fin_chord=2.2,
        fin_taper=0.45, fin_sweep=32.0, stab_span=4.8, stab_chord=1.6, stab_sweep=18.0, nose=2.2, nose_power=1.6,
        tail=2.6, tail_tip=0.4, upsweep=0.0, window_rows=0, cockpit="bubble", canopy_at=0.34, canopy_length=0.32,
        leg=0.5, wheel=0.18, bogies=0, track=0.22, nose_gear_at=0.2,
    ),
}  # fmt: skip

# manufacturer -> (house style, {family: (archetype, changes of the family, {variant: changes of the variant})})
_HANGAR = {
    "Aldgate": (dict(nose=1.7, nose_power=1.75, fin_sweep=40.0, dorsal=0.35), {
        "Aldgate 210": ("airliner", dict(girth=4.2), {
            "210-100": dict(length=31.0),
            "210-300": dict(length=43.0, winglet="blended", fin_height=6.4),
        }),
        "Aldgate 250": ("widebody", dict(), {
            "250-200": dict(length=52.0),
            "250-400": dict(length=70.0, winglet="raked", engine_size=0.72),
        }),
        "Aldgate 270": ("jumbo", dict(), {
            "270-100": dict(length=54.0, hump=0.55, window_rows=2),
            "270-800": dict(length=76.0, hump=0.0, window_rows=2, hump_at=0.35, winglet="sharklet"),
        }),
    }),
    "Borealis": (dict(nose=1.35, nose_power=2.3, cockpit_size=1.2), {
        "Borealis R70": ("rear_twin", dict(), {
            "R70": dict(length=24.0),
            "R90": dict(length=37.0, engine_size=0.62, winglet="blended"),
        }),
        "Borealis T3": ("trijet", dict(), {
            "T3-1": dict(length=40.0, rear_jets_at=0.27),
            "T3-2/F": dict(length=50.0, window_rows=0, fairings=4, winglet="fence"),
        }),
        "Borealis Petrel": ("bizjet", dict(), {
            "Petrel II": dict(length=16.5, tail_kind="cruciform"),
            "Petrel X": dict(length=23.0, winglet="sharklet", engine_size=0.6),
        }),
    }),
    "Cormorant": (dict(nose_power=2.2), {
        "Cormorant C40": ("turboprop", dict(), {
            "C40": dict(length=21.0, blades=4),
            "C70": dict(length=31.5, blades=6, propeller=0.8),
        }),
        "Cormorant Hauler": ("freighter", dict(), {
            "Hauler 2": dict(length=25.0, wing_props=(0.3,), propeller=0.6, engine_size=0.42),
            "Hauler 4": dict(length=33.0),
        }),
        "Cormorant Isle": ("flying_boat_hauler", dict(), {
            "Isle 100": dict(),
            "Isle 300": dict(
                twin_fin="plate", tail_kind="conventional", blades=5, length=21.0, fin_height=3.0, fin_chord=2.4,
            ),
        }),
    }),
    "Dunlin": (dict(fin_sweep=38.0), {
        "Dunlin 172": ("tourer", dict(), {
            "172": dict(),
            "172 Retractable": dict(gear="retractable", strut_at=(), blades=3, tail_kind="t", length=9.0),
        }),
        "Dunlin Arrow": ("low_tourer", dict(), {
            "Arrow": dict(spats=True),
            "Arrow T": dict(tail_kind="t", gear="retractable", winglet="tank", length=8.6),
        }),
    }),
    "Étoile": (dict(), {
        "Étoile Bise": ("biplane", dict(), {
            "Bise 1": dict(),
            "Bise 2": dict(top_span=1.3, strut_at=(0.5, 0.88), span=8.8, cowl=0.8, nose=1.2),
        }),
        "Étoile Mistral": ("warbird", dict(), {
            "Mistral A": dict(cowl=1.25, nose=0.8, nose_power=2.6, blades=3, taper=0.75),
            "Mistral B": dict(nose=2.2, taper=0.35),
        }),
    }),
    "Falken": (dict(), {
        "Falken F-9": ("fighter", dict(), {
            "F-9A/B": dict(),
            "F/A-9D": dict(twin_fin="canted", span=12.5, chord=5.0, sweep=32.0, length=16.5, girth=2.0),
        }),
        "Falken Delta": ("fighter", dict(
            sweep=56.0, chord=8.2, taper=0.05, span=9.5, wing_height="low", wing_at=0.42, stab_span=0.4, stab_chord=0.3,
        ), {
            "Delta 3": dict(),
            "Delta 5": dict(length=18.0, fin_height=3.4, dorsal=1.2, canopy_length=0.28, winglet="tank"),
        }),
    }),
}  # fmt: skip


def _make(archetype: str, *changes: dict, **names: str) -> Airframe:
    frame = replace(Airframe(**_ARCHETYPES[archetype]), **names)
    for change in changes:
        frame = replace(frame, **change)
    return frame


def _hangar() -> list[Airframe]:
    return [
        # the family's own numbers win over the house style, the variant's over both
        _make(archetype, style, base, change, variant=variant, family=family, manufacturer=manufacturer)
        for manufacturer, (style, families) in _HANGAR.items()
        for family, (archetype, base, variants) in families.items()
        for variant, change in variants.items()
    ]


def _pretraining(n_families: int = 64, n_variants: int = 3) -> list[Airframe]:
    """Families drawn at random from every archetype, each with variants that change two or three things."""
    rng = np.random.default_rng(20260)
    scaled = ("length", "girth", "span", "chord", "fin_height", "fin_chord", "stab_span", "nose", "tail", "engine_size",
              "propeller", "fin_taper", "canopy_length", "window_pitch", "leg", "wheel")  # fmt: skip
    frames, kinds = [], list(_ARCHETYPES)
    for number in range(n_families):
        kind = kinds[number % len(kinds)]
        base = _make(kind)
        base = replace(base, **{name: float(getattr(base, name) * rng.uniform(0.8, 1.25)) for name in scaled})
        sweep, fin_sweep = base.sweep + float(rng.uniform(-5, 9)), base.fin_sweep + float(rng.uniform(-10, 10))
        dihedral, nose = base.dihedral + float(rng.uniform(-2, 3)), float(rng.uniform(1.5, 2.5))
        base = replace(base, sweep=sweep, fin_sweep=fin_sweep, dihedral=dihedral, nose_power=nose)
        # some families leave their archetype: another wing height, tail or engine layout
        if rng.random() < 0.5:
            base = replace(base, **_odd(base, rng))
        for i in range(n_variants):
            frame = replace(base, length=base.length * (0.8, 1.0, 1.25)[i])
            for change in rng.permutation(4)[:2]:
                frame = replace(frame, **_twist(frame, int(change), rng))
            family = f"P{number:02d}"
            names = {"variant": f"{family}-{i + 1}", "family": family, "manufacturer": f"Works {number // 4 + 1}"}
            frames.append(replace(frame, **names))
    return frames


def _odd(a: Airframe, rng: np.random.Generator) -> dict:
    choices = [dict(wing_height=str(rng.choice(["low", "mid", "high"])))]
    if not a.twin_fin:
        choices.append(dict(tail_kind=str(rng.choice(["conventional", "t", "cruciform"]))))
        choices.append(
            dict(twin_fin=str(rng.choice(["plate", "canted"])), tail_kind="conventional", fin_height=a.fin_height * 0.8)
        )
    if a.wing_jets:
        choices.append(dict(wing_jets=(0.3, 0.58) if len(a.wing_jets) == 1 else (0.33,)))
    if a.wing_props:
        choices.append(dict(wing_props=(0.24, 0.5) if len(a.wing_props) == 1 else (0.3,)))
    if a.gear != "retractable":
        choices.append(dict(gear="retractable"))
    return choices[rng.integers(len(choices))]


def _twist(a: Airframe, change: int, rng: np.random.Generator) -> dict:
    if change == 0:
        return dict(winglet=str(rng.choice(["none", "blended", "sharklet", "raked", "fence", "tank"])))
    if change == 1:
        return dict(engine_size=a.engine_size * float(rng.choice([0.75, 1.3])), blades=int(rng.integers(2, 7)))
    if change == 2:
        span = a.span * float(rng.choice([0.85, 1.15]))
        return dict(span=span, fairings=int(rng.integers(0, 5)) if a.girth > 2.5 else 0)
    if a.twin_fin:
        return dict(fin_height=a.fin_height * 1.3)
    return dict(tail_kind=str(rng.choice(["conventional", "cruciform", "t"])))


def taxonomy(name: str) -> list[Airframe]:
    """All airframes of "hangar" (30) or "pretraining" (192), ordered by manufacturer and family."""
    known = {"hangar": _hangar, "pretraining": _pretraining}
    if name not in known:
        raise ValueError(f"no taxonomy {name!r}: choose one of {', '.join(known)}")
    return known[name]()
