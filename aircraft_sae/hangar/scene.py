"""A scene: a small immutable record of one view, sampled independently of the class, and its edits."""

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from aircraft_sae.config import from_dict
from aircraft_sae.hangar import PARTS

Colour = tuple[float, float, float]  # sRGB, 0 to 1


@dataclass(frozen=True)
class Camera:
    """The viewpoint; angles in radians, lengths in units of the airframe's length or span, whichever is longer."""

    azimuth: float  # 0 sees the nose, pi/2 the left side
    elevation: float
    roll: float
    distance: float
    focal: float  # in picture widths
    shift_x: float  # of the aircraft to the right of the picture's centre, in picture widths
    shift_y: float


@dataclass(frozen=True)
class Light:
    """The sun's direction (radians), colour and strength, and the strength of ambient light."""

    azimuth: float
    elevation: float
    colour: Colour
    sun: float
    ambient: float


@dataclass(frozen=True)
class Livery:
    """Paint: colours, the bands' positions (shares of the height of body or fin), dirt and gloss (0 to 1)."""

    colours: tuple[Colour, ...]  # one per material
    belly: Colour
    belly_height: float
    stripe: Colour
    stripe_height: float
    stripe_width: float
    fin_band: Colour
    fin_band_height: float
    dirt: float
    gloss: float


@dataclass(frozen=True)
class Background:
    """Everything behind the aircraft; clouds, haze and hills from 0 to 1."""

    kind: str
    zenith: Colour
    horizon: Colour
    ground: Colour
    clouds: float
    haze: float
    hills: float
    offset: tuple[float, float]  # into the noise textures, so that no two backgrounds are alike


@dataclass(frozen=True)
class Finish:
    """The effects of lens, sensor and file format."""

    exposure: float
    blur: float  # standard deviation in pixels of a picture 224 wide
    noise: float
    quality: int  # of the JPEG


@dataclass(frozen=True)
class Edit:
    """A change to one part of the aircraft."""

    kind: Literal["remove", "recolour", "move", "add"]  # add: another pair of engines, further out under the wings
    part: Literal[*PARTS[2:]]
    value: tuple[float, ...] = ()  # recolour: the colour; move: (forward, left, up)

    def __post_init__(self):
        if self.kind == "add" and self.part != "engine":
            raise ValueError(f"no {self.part} can be added, only engine")


@dataclass(frozen=True)
class Scene:
    """One view of one variant, for `hangar.render.render`."""

    variant: str
    seed: int
    camera: Camera
    light: Light
    livery: Livery
    background: Background
    finish: Finish
    gear_down: bool  # retractable gear is always down on the ground
    propeller_turn: float
    pitch: float
    bank: float
    shadows: bool = True  # without cast shadows, removing a part changes no other pixel
    edits: tuple[Edit, ...] = ()

    @property
    def on_ground(self) -> bool:
        return self.background.kind != "sky"

    def edit(self, kind: str, part: str, value: tuple[float, ...] = ()) -> "Scene":
        """The scene with one more `Edit`; ValueError for an impossible one."""
        return replace(self, edits=(*self.edits, from_dict(Edit, {"kind": kind, "part": part, "value": value})))

    def varied(self, factor: str) -> "Scene":
        """The scene with one of FACTORS changed at random (from its seed); ValueError for an unknown factor."""
        rng, camera = np.random.default_rng([self.seed, 7]), self.camera
        side = float(rng.choice([-1, 1]))
        moved = {name: {name: getattr(camera, name) + side * turn} for name, turn in TURNS.items()}
        moved |= {
            "distance": {"distance": camera.distance * 1.25**side},
            "place": {"shift_x": camera.shift_x + side / 7},
        }
        drawn = {"livery": _livery, "light": _light, "background": partial(_background, kind=self.background.kind)}
        if factor in moved:
            return replace(self, camera=replace(camera, **moved[factor]))
        if factor in drawn:
            return replace(self, **{factor: drawn[factor](rng)})
        raise ValueError(f"no factor {factor!r} to vary: choose one of {', '.join(FACTORS)}")

    def to_json(self) -> str:
        """The scene as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Read what `to_json` wrote."""
        return from_dict(cls, json.loads(text))


TURNS = {"azimuth": np.radians(15), "elevation": np.radians(10), "roll": np.radians(10)}
FACTORS = ("livery", "light", "background", *TURNS, "distance", "place")  # for `Scene.varied`


def factors(scene: Scene) -> dict[str, float | str | bool]:
    """The scene's numbers as one flat row: camera_azimuth, light_sun, livery_dirt, …"""
    record, groups = asdict(scene), ("camera", "light", "livery", "background", "finish")
    row = {f"{group}_{name}": value for group in groups for name, value in record[group].items()}
    row |= {name: record[name] for name in ("gear_down", "propeller_turn", "pitch", "bank", "seed")}
    return {name: value for name, value in row.items() if not isinstance(value, tuple)}


def sample(variant: str, seed: int, number: int) -> Scene:
    """Draw scene `number` of a seed; only its airframe depends on the variant, so nothing else gives away the class."""
    rng = np.random.default_rng([seed, number])
    kind = str(rng.choice(["sky", "runway", "field", "apron"], p=[0.46, 0.2, 0.14, 0.2]))
    ground = kind != "sky"
    bank, pitch = (0.0, 0.0) if ground else (rng.normal(0, 0.14), rng.uniform(-0.05, 0.2))
    return Scene(
        variant=variant, seed=int(rng.integers(2**31)),
        camera=_camera(rng, ground), light=_light(rng), livery=_livery(rng), background=_background(rng, kind),
        finish=Finish(rng.uniform(0.85, 1.2), rng.uniform(0, 0.7), rng.uniform(0, 0.02), int(rng.integers(70, 96))),
        gear_down=ground or rng.random() < 0.45, propeller_turn=rng.uniform(0, 2 * np.pi), pitch=pitch, bank=bank,
    )  # fmt: skip


# nose, tail, fin, wing tips and wheels of a typical airframe: what the camera frames
_OUTLINE = np.array([[0.5, 0, 0], [-0.5, 0, 0.04], [-0.46, 0, 0.2], [0, 0.42, 0.02], [0, -0.42, 0.02], [0, 0, -0.14]])


def _camera(rng: np.random.Generator, ground: bool) -> Camera:
    side = rng.choice([-1, 1])
    azimuth = side * (np.pi / 2 + rng.normal(0, 0.6)) if rng.random() < 0.82 else rng.uniform(-np.pi, np.pi)
    # spotters stand at a fence or on a terrace; they look up at aircraft in flight more often than down
    elevation = 0.03 + abs(rng.normal(0, 0.16)) if ground else rng.normal(-0.1, 0.25)
    roll, distance = rng.normal(0, 0.07), rng.uniform(2.2, 7.0)
    camera = Camera(float(azimuth), min(max(elevation, -0.7), 0.7), roll, distance, 1.0, 0.0, 0.0)
    position, right, down, forward = axes(camera)
    p = _OUTLINE - position
    x, y = p @ right / (p @ forward), p @ down / (p @ forward)
    width, height = float(np.ptp(x)), float(np.ptp(y))
    focal = rng.triangular(0.6, 0.92, 1.0) / max(width, height)
    room_x, room_y = (max(0.02, (1 - size * focal) / 2) for size in (width, height))
    # at most three cells of a 7 x 7 grid
    shift_x, shift_y = (min(max(rng.uniform(-room, room), -3 / 7), 3 / 7) for room in (room_x, room_y))
    return replace(camera, focal=focal, shift_x=shift_x - float(x.max() + x.min()) / 2 * focal,
                   shift_y=shift_y - float(y.max() + y.min()) / 2 * focal)  # fmt: skip


def axes(camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The camera's position relative to its target, and the unit vectors right, down and forward."""
    a, e, r = camera.azimuth, camera.elevation, camera.roll
    back = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    down = np.cross(-back, right)
    return camera.distance * back, np.cos(r) * right + np.sin(r) * down, np.cos(r) * down - np.sin(r) * right, -back


def _light(rng: np.random.Generator) -> Light:
    elevation = rng.uniform(0.25, 1.2)
    warm = max(0.0, 0.6 - elevation)
    sun, ambient = ((0.3, 0.7), (0.75, 1.0)) if rng.random() < 0.25 else ((1.3, 2.1), (0.4, 0.65))  # overcast or sunny
    colour = (1.0, 1.0 - 0.3 * warm, 0.97 - 0.7 * warm)
    return Light(rng.uniform(-np.pi, np.pi), elevation, colour, rng.uniform(*sun), rng.uniform(*ambient))


def _vivid(rng: np.random.Generator) -> Colour:
    hue, saturation, value = rng.random() * 6, rng.uniform(0.5, 0.95), rng.uniform(0.3, 0.9)
    k = (np.array([5, 3, 1]) + hue) % 6
    return tuple((value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).tolist())


def _grey(rng: np.random.Generator, low: float, high: float) -> Colour:
    return tuple(np.clip(rng.uniform(low, high) + rng.normal(0, 0.015, 3), 0, 1).tolist())


def _livery(rng: np.random.Generator) -> Livery:
    def paint(white: float) -> Colour:
        draw = rng.random()
        return _grey(rng, 0.86, 0.97) if draw < white else _grey(rng, 0.3, 0.75) if draw < white + 0.2 else _vivid(rng)

    body = paint(0.5)
    wing = body if rng.random() < 0.35 else paint(0.25) if rng.random() < 0.4 else _grey(rng, 0.5, 0.8)
    fin = body if rng.random() < 0.2 else _vivid(rng) if rng.random() < 0.8 else paint(0.3)
    engine = body if rng.random() < 0.4 else paint(0.25)
    # glass, tyres and propellers vary too; otherwise their share of the pixels would give away the class
    glass = [_grey(rng, 0.05, 0.3) if rng.random() < 0.7 else tuple(c * 0.6 for c in _vivid(rng)) for _ in range(2)]
    rubber, metal, propeller = _grey(rng, 0.06, 0.25), _grey(rng, 0.3, 0.8), _grey(rng, 0.08, 0.8)
    striped = rng.random() < 0.55
    return Livery(
        colours=(body, wing, fin, engine, *glass, rubber, metal, propeller),  # in MATERIALS' order
        belly=paint(0.2) if rng.random() < 0.4 else body, belly_height=rng.uniform(-0.6, 0.0),
        stripe=_vivid(rng), stripe_height=rng.uniform(-0.4, 0.5),
        stripe_width=rng.uniform(0.05, 0.22) if striped else 0.0,
        fin_band=_vivid(rng) if rng.random() < 0.5 else fin, fin_band_height=rng.uniform(-0.6, 0.6),
        dirt=rng.uniform(0, 0.35), gloss=rng.uniform(0.15, 1.0),
    )  # fmt: skip


def _background(rng: np.random.Generator, kind: str) -> Background:
    zenith = np.array([0.22, 0.42, 0.75]) * rng.uniform(0.7, 1.25) + rng.normal(0, 0.03, 3)
    horizon = np.array([0.72, 0.81, 0.9]) * rng.uniform(0.8, 1.08) + rng.normal(0, 0.03, 3)
    grey = rng.random() * (rng.random() < 0.45)
    zenith, horizon = ((1 - grey) * c + grey * (0.4 * c.mean() + 0.4) for c in (zenith, horizon))
    ground = {"sky": [0.4, 0.42, 0.38], "runway": [0.36, 0.36, 0.37], "field": [0.36, 0.45, 0.22],
              "apron": [0.58, 0.57, 0.55]}[kind]  # fmt: skip
    ground = np.array(ground) * rng.uniform(0.7, 1.25) + rng.normal(0, 0.02, 3)
    colours = (tuple(np.clip(c, 0.02, 1).tolist()) for c in (zenith, horizon, ground))
    clouds, haze, hills = rng.uniform(0, 1), rng.uniform(0.1, 0.8), rng.uniform(0, 1)
    return Background(kind, *colours, clouds, haze, hills, (rng.random(), rng.random()))
