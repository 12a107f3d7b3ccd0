"""From an airframe's numbers to triangles: fuselage, glass, wings, tail, engines and gear.

Axes: x forward, y left, z up; in metres until `build` scales the longer of length and span to 1.
"""

from functools import lru_cache
from itertools import product

import numpy as np
import trimesh

from aircraft_sae.hangar import Airframe
from aircraft_sae.hangar.solids import Builder, Mesh, jet, propeller, quads, spindle, surface


class _Fuselage:
    """A fuselage's skin as a function of station s (0 nose, 1 tail) and angle (0 left, pi/2 top)."""

    def __init__(self, a: Airframe):
        self.a, self.radius = a, a.girth / 2

    def frame(self, s):
        """x, radius, height of the axis and height of the hump at stations s (n,), in metres."""
        a, r = self.a, self.radius
        front = np.clip(s * a.length / (a.nose * a.girth), 0, 1)
        rear = np.clip((1 - s) * a.length / (a.tail * a.girth), 0, 1)
        blunt = (1 - (1 - front) ** a.nose_power) ** (1 / a.nose_power)
        taper = a.tail_tip + (1 - a.tail_tip) * np.sin(np.pi / 2 * rear) ** 0.9
        rise = -a.nose_droop * r * (1 - front) ** 2 + a.upsweep * r * (1 - rear) ** 1.7
        hump = a.hump * r * np.exp(-(((s - a.hump_at) / 0.12) ** 4))
        return a.length * (0.5 - s), r * blunt * taper, rise, hump

    def point(self, s, angle, out=0.0):
        """Points (..., 3) `out` metres above the skin."""
        x, r, rise, hump = self.frame(s)
        p = 2 / self.a.boxy
        c, d = np.cos(angle), np.sin(angle)
        y = (r + out) * np.sign(c) * np.abs(c) ** p
        z = (r * self.a.section_height + out) * np.sign(d) * np.abs(d) ** p + np.clip(d, 0, 1) * hump + rise
        return np.stack(np.broadcast_arrays(x, y, z), -1)

    def patch(self, builder, s, angle, part, out, n):
        """Add a slightly lifted piece of skin between two stations and two angles: a window or windscreen pane."""
        p = self.point(np.linspace(*s, n[0])[:, None], np.linspace(*angle, n[1]), out).reshape(-1, 3)
        builder.add(p, quads(np.arange(len(p)).reshape(n)), part, part)


def _wing(b, a: Airframe, height, span, leading, chord):
    """Add a pair of wings with tips; returns a function from a share of the half-span to (leading edge, chord)."""
    sweep, dihedral = np.tan(np.radians((a.sweep, a.dihedral)))

    def at(share):
        y = share * (span / 2)
        kink = max(0.0, 0.35 - share) / 0.35 * a.kink * chord
        edge = np.array([leading - sweep * y + kink * 0.4, y, height + dihedral * y])
        return edge, chord * (1 - (1 - a.taper) * share) + kink

    sections = [(*at(t), 0.13 - 0.03 * t, [0, 0, 1]) for t in (0, 0.12, 0.35, 0.7, 0.97, 1.0)]
    tip, tip_chord = at(1.0)
    winglets = {"blended": (0.25, 0.075, 0.9), "sharklet": (0.12, 0.12, 0.8)}
    out, up = [-0.045, 0.05, 0.006], [0, 0, 1]  # raked
    if a.winglet in winglets:
        lean, rise, back = winglets[a.winglet]
        out, up = [-back * rise, lean * rise, rise], np.array([0, -rise, lean * rise]) / np.hypot(rise, lean * rise)
    for t in (0.35, 1.0) if a.winglet in (*winglets, "raked") else ():
        sections.append((tip + np.array(out) * span * t, tip_chord * (1 - 0.65 * t), 0.09, up))
    surface(b, sections, "wing", "wing", mirror=True)
    if a.winglet == "fence":
        fence = [(tip + [0.15 * tip_chord, 0, z * span], tip_chord * c, 0.06, [0, 1, 0])
                 for z, c in ((-0.035, 0.5), (0.0, 1.0), (0.04, 0.45))]  # fmt: skip
        surface(b, fence, "wing", "wing", mirror=True)
    if a.winglet == "tank":
        b.revolve(spindle(1.5 * tip_chord, 0.28 * tip_chord), tip - [0.5 * tip_chord, 0, 0], "wing", "wing", True)
    return at


@lru_cache
def build(a: Airframe) -> Mesh:
    """The airframe with its gear down, scaled to 1 and centred between nose and tail."""
    b, skin = Builder(), _Fuselage(a)
    r, height = a.girth / 2, a.girth / 2 * a.section_height
    stations = np.concatenate([np.linspace(0, 0.12, 14)[:-1] ** 1.3 / 0.12**0.3, np.linspace(0.12, 1, 36)])
    stations[0] = 1e-4
    angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    b.loft(skin.point(stations[:, None], angles), "fuselage", "body", np.sin(angles))
    _glass(b, a, skin)

    wing_z = {"low": -0.72, "mid": -0.05, "high": 0.9, "parasol": 1.0}[a.wing_height] * height
    leading = a.length * (0.5 - a.wing_at)
    at = _wing(b, a, wing_z, a.span, leading, a.chord)
    if a.biplane:
        top = wing_z + a.biplane_gap
        above = _wing(b, a, top, a.span * a.top_span, leading + 0.2 * a.chord, a.chord)
        for share, back in product(a.strut_at, (0.15, 0.65)):
            (low, c), (high, d) = at(share), above(share / a.top_span)
            ends = low - [back * c, 0, 0], high - [back * d, 0, 0]
            b.tube(*ends, 0.011 * a.girth + 0.02, "strut", "metal", mirror=True)
        for x in (leading - 0.1 * a.chord, leading - 0.6 * a.chord):
            b.tube([x, 0.5 * r, 0.5 * height], [x, 0.9 * r, top], 0.04, "strut", "metal", mirror=True)
    else:
        for spot, c in map(at, a.strut_at):
            low, high = [spot[0] - 0.35 * c, 0.8 * r, -0.75 * height], spot - [0.35 * c, 0, 0]
            b.tube(low, high, 0.02 * a.girth, "strut", "wing", mirror=True)
    for share in np.linspace(0.25, 0.8, a.fairings):
        spot, c = at(share)
        profile = spindle(0.62 * c if share < 0.6 else 0.75 * c, 0.065 * c + 0.035 * a.girth)
        b.revolve(profile, spot - [1.0 * c, 0, 0.035 * c + 0.02 * a.girth], "flap_fairing", "wing", True, n=12)
    _tail(b, a, skin)
    _engines(b, a, skin, at, height)
    return b.mesh(_gear(b, a, at, height), 1 / max(a.length, a.span))


def _glass(b, a: Airframe, skin: _Fuselage):
    lift = 0.012 * a.girth
    for row in range(a.window_rows):
        first, last = (0.13, a.window_end) if row == 0 else (a.hump_at - 0.1, a.hump_at + (0.09 if a.hump else 0.25))
        pitch, middle = a.window_pitch * a.girth / a.length, np.arcsin(0.3 if row == 0 else 0.74)
        for s in np.arange(max(first, a.nose * a.girth / a.length * 0.8), last, pitch):
            for angle in (middle, np.pi - middle):
                skin.patch(b, (s, s + 0.55 * pitch), (angle - 0.13, angle + 0.13), "window", lift, (2, 3))
    if a.cockpit == "windscreen":
        long = a.girth / a.length
        start = a.nose * long * (0.38 if a.nose_power > 1.7 else 0.5)
        for low, high, back in ((20, 48, 0.55), (52, 88, 0.42), (92, 128, 0.42), (132, 160, 0.55)):
            front = start + (0.16 if 50 < low < 130 else 0.3) * long
            ends = front, front + back * long * a.cockpit_size
            skin.patch(b, ends, np.radians((low, high)), "cockpit", lift, (4, 4))
        return
    x, radius, rise, hump = skin.frame(a.canopy_at)
    top = radius * a.section_height + rise + hump
    long, wide = a.canopy_length * a.length, 0.62 * radius
    tall = (0.85 if a.cockpit == "bubble" else 0.5) * a.girth * 0.5
    sphere = trimesh.creation.icosphere(3)
    p = sphere.vertices * [long / 2, wide, tall]
    p[:, 0] -= 0.12 * long * np.clip(p[:, 2] / tall, 0, 1) ** 2
    b.add(p + [x, 0, top - 0.12 * radius], sphere.faces, "cockpit", "cockpit")


def _tail(b, a: Airframe, skin: _Fuselage):
    x0 = a.length * (-0.5 + a.fin_at) + a.fin_chord
    _, radius, rise, _ = skin.frame(1 - a.fin_at - 0.5 * a.fin_chord / a.length)
    base, lean = rise + 0.4 * radius * a.section_height, np.tan(np.radians(a.fin_sweep))
    levels = ((0, 1.0), (0.5, 1 - (1 - a.fin_taper) / 2), (0.97, a.fin_taper), (1.0, a.fin_taper * 0.85))
    half = a.stab_span / 2
    for side in (-1.0, 1.0) if a.twin_fin else (0.0,):
        y = side * half * (0.98 if a.twin_fin == "plate" else 0.4)
        z = base if a.twin_fin != "plate" else base - 0.3 * a.fin_height
        lean_out = 0.25 * side if a.twin_fin == "canted" else 0.0
        fin = []
        for t, c in levels:
            edge = [x0 - lean * t * a.fin_height, y + lean_out * t * a.fin_height, z + t * a.fin_height]
            fin.append((edge, a.fin_chord * c, 0.1, [0, 1, 0]))
        surface(b, fin, "fin", "fin", [2 * t - 1 for t, _ in levels])
    if a.dorsal:
        front = x0 + a.dorsal * a.fin_chord
        crest = [x0 - lean * 0.25 * a.fin_height, 0, base + 0.25 * a.fin_height]
        root = ([front, 0, base - 0.1 * radius], front - x0 + 0.5 * a.fin_chord, 0.035, [0, 1, 0])
        surface(b, [root, (crest, 0.5 * a.fin_chord, 0.08, [0, 1, 0])], "fin", "body", -1.0)
    share = {"conventional": 0.0, "cruciform": 0.45, "t": 0.97}[a.tail_kind]
    z = base + share * a.fin_height if share else rise + 0.15 * radius
    x = x0 - lean * share * a.fin_height + (0.0 if share else -0.1 * a.fin_chord)
    sweep, dihedral = np.tan(np.radians((a.stab_sweep, a.stab_dihedral)))
    stab = [([x - sweep * t * half, t * half, z + dihedral * t * half], a.stab_chord * (1 - 0.5 * t), 0.09, [0, 0, 1])
            for t in (0, 0.5, 0.97, 1)]  # fmt: skip
    surface(b, stab, "stabilizer", "wing", mirror=True)


def _engines(b, a: Airframe, skin: _Fuselage, at, height):
    size = a.engine_size * a.girth
    for share in a.wing_jets:
        spot, chord = at(share)
        below = spot + [0.18 * chord + 0.45 * size, 0, -0.62 * size]
        jet(b, below, 2.1 * size, 0.5 * size, True)
        foot = (below + [0.5 * size, 0, 0.42 * size], 1.9 * size, 0.1, [0, 1, 0])
        top = (spot + [0.05 * chord, 0, 0], 0.75 * chord, 0.05, [0, 1, 0])
        surface(b, [foot, top], "engine", "engine", mirror=True)
    for level in a.rear_jets:
        x, radius, rise, _ = skin.frame(1 - a.rear_jets_at)
        centre = np.array([x, radius + 0.72 * size, rise + level * height])
        jet(b, centre, 2.3 * size, 0.5 * size, True)
        foot = ([x + 0.4 * size, 0.5 * radius, centre[2]], 1.2 * size, 0.14, [0, 0, 1])
        pylon = [foot, (centre + [0.4 * size, -0.4 * size, 0], 1.1 * size, 0.14, [0, 0, 1])]
        surface(b, pylon, "engine", "engine", mirror=True)
    if a.tail_jet == "fin":
        x, radius, rise, _ = skin.frame(1 - a.fin_at - 0.7 * a.fin_chord / a.length)
        jet(b, [x - 0.3 * size, 0, rise + radius + 0.5 * size], 3.0 * size, 0.52 * size, False)
    if a.tail_jet == "exhaust":
        r = max(a.tail_tip * a.girth * 0.5, 0.3 * size)
        end = [-a.length / 2, 0, a.upsweep * a.girth / 2]
        pipe = [(0.6 * r, r * 1.1), (-0.8 * r, r * 0.9), (-0.7 * r, r * 0.75), (0.5 * r, r * 0.6)]
        b.revolve(pipe, end, "engine", "metal")
        b.revolve([(0.4 * r, r * 0.8), (0.3 * r, 0)], end, "engine", "rubber")
        _, radius, _, _ = skin.frame(a.intake_at)
        for level in a.intakes:
            spot, scale = [a.length * (0.5 - a.intake_at), radius * 0.95, level * height], [0.42 * size, 0.36 * size]
            box = np.array([(0.0, 0.72), (0.3, 0.85), (-1.2, 1.0), (-4.2, 0.7), (-5.0, 0.1)]) * scale
            b.revolve(box, spot, "engine", "body", mirror=True)
            b.revolve(np.array([(0.05, 0.72), (0.0, 0.0)]) * scale, spot, "engine", "rubber", mirror=True)
    if a.nose_prop:
        x, rise = a.length / 2, -a.nose_droop * a.girth / 2
        if a.cowl:
            r = 0.5 * a.cowl * a.girth
            cowl = [(-0.05 * r, 0.5 * r), (0.1 * r, 0.85 * r), (-0.2 * r, r), (-1.3 * r, r), (-1.8 * r, 0.8 * r)]
            b.revolve(cowl, [x - 0.05 * r, 0, rise], "engine", "engine")
        propeller(b, [x + 0.02 * a.girth, 0, rise], a.propeller * a.girth, a.blades, False)
    for share in a.wing_props:
        spot, chord = at(share)
        long = chord + 1.6 * size
        centre = spot + [0.8 * size - 0.35 * chord, 0, -0.12 * size if a.wing_height != "low" else 0.1 * size]
        profile = [(0.5, 0.0), (0.5, 0.55), (0.4, 0.85), (0.2, 1.0), (-0.15, 0.9), (-0.5, 0.1)]
        b.revolve(np.asarray(profile) * [long, 0.5 * size], centre, "engine", "engine", True)
        propeller(b, centre + [0.5 * long, 0, 0], a.propeller * a.girth, a.blades, True)


def _gear(b, a: Airframe, at, height):
    """Add legs and wheels; returns the airframe's pitch at rest, in radians."""
    r, wheel = a.girth / 2, a.wheel * a.girth
    low = -height - a.leg * a.girth
    spot, chord = at(a.track)
    x, y = spot[0] - 0.6 * chord, max(spot[1], 0.55 * r)
    from_wing = a.wing_height == "low" and y > 0.8 * r
    top = [x, y, spot[2]] if from_wing else [x, 0.6 * r, -0.6 * height]
    x = a.length * (0.5 - a.wing_at) - 0.1 * a.chord if a.gear == "taildragger" else x
    b.tube(top, [x, y, low + wheel], 0.05 * a.girth + 0.02, "main_gear", "metal", True)
    for dx in (-1.15 * wheel, 1.15 * wheel) if a.bogies == 2 else (0.0,):
        for dy in (0.0,) if a.bogies == 0 else (-0.5 * wheel, 0.5 * wheel):
            b.wheel([x + dx, y + dy, low + wheel], wheel, 0.6 * wheel, "main_gear", True)
    if a.spats:
        b.revolve(spindle(3.6 * wheel, 1.15 * wheel), [x, y, low + 1.35 * wheel], "main_gear", "body", True)
    if a.gear == "taildragger":
        tail = np.array([-0.46 * a.length, 0, a.upsweep * r * 0.7 - r * 0.35])
        b.tube(tail + [0, 0, 0.1 * r], tail - [0, 0, 0.35 * r], 0.04 * a.girth, "main_gear", "metal")
        b.wheel(tail - [0, 0, 0.4 * r], 0.45 * wheel, 0.3 * wheel, "main_gear")
        return float(np.arctan2(tail[2] - 0.6 * r - low, x - tail[0]) * 0.9)
    nose = a.length * (0.5 - a.nose_gear_at)
    b.tube([nose, 0, -0.6 * height], [nose, 0, low + 0.8 * wheel], 0.045 * a.girth + 0.02, "nose_gear", "metal")
    for dy in (0.0,) if a.bogies == 0 else (-0.35 * wheel, 0.35 * wheel):
        b.wheel([nose, dy, low + 0.8 * wheel], 0.8 * wheel, 0.45 * wheel, "nose_gear")
    if a.spats:
        b.revolve(spindle(3.0 * wheel, 0.9 * wheel), [nose, 0, low + 1.15 * wheel], "nose_gear", "body")
    return 0.0
