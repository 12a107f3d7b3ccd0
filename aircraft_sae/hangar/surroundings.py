"""The aircraft's surroundings: sky, clouds, hills, runway, field and apron; and the noise in paint."""

from functools import lru_cache

import numpy as np
from scipy import ndimage

from aircraft_sae.hangar.scene import Colour, Scene

BLOCKED = np.float32(1e-3)  # a ray towards the light starts this far off a surface, so as not to hit it


@lru_cache
def _cloud_texture() -> np.ndarray:
    """Tileable 1/f^1.7 noise in [0, 1], (512, 512)."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    f[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(np.random.default_rng(7).normal(size=f.shape)) / f**1.7).real
    rank = field.argsort(axis=None).argsort().reshape(f.shape)
    return (rank / (f.size - 1)).astype(np.float32)


def noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The noise texture at (u, v), one tile per unit, interpolated bilinearly."""
    texture = _cloud_texture()
    at = np.stack([u, v], dtype=np.float32, casting="same_kind") * np.float32(len(texture))
    return ndimage.map_coordinates(texture, at, np.float32, order=1, mode="grid-wrap")


def linear(colour: Colour) -> np.ndarray:
    """An sRGB colour as linear light."""
    return np.asarray(colour, np.float32) ** np.float32(2.2)


def occluded(bvh, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
    """(n,) bool: rays that hit a surface within `reach`."""
    if not len(origins):
        return np.zeros(0, bool)
    far = np.full(len(origins), reach, np.float32)
    return bvh.run(origins.astype(np.float32), directions.astype(np.float32), far, query="OCCLUDED") >= 0


def backdrop(scene: Scene, position, directions, sun, bvh) -> np.ndarray:
    """The light (n, 3) of sky and ground along rays (n, 3) that miss the aircraft."""
    rise = directions[:, 2]
    colour = np.empty((len(rise), 3), np.float32)
    above = np.flatnonzero(~below(scene, rise))
    colour[above] = _sky(scene, directions[above])
    if not scene.on_ground:
        return colour
    zenith, horizon = linear(scene.background.zenith), linear(scene.background.horizon)
    ground = np.flatnonzero(below(scene, rise))
    away = (-position[2] / rise[ground]).astype(np.float32)
    x, y = (position[i].astype(np.float32) + directions[ground, i] * away for i in (0, 1))
    lit = np.ones(len(ground), np.float32)
    near = np.flatnonzero(np.hypot(x, y) < 4)
    if scene.shadows and bvh is not None:
        origins = np.stack([x[near], y[near], np.full(len(near), BLOCKED)], 1)
        lit[near] = ~occluded(bvh, origins, np.broadcast_to(sun, origins.shape).copy(), 10.0)
    sky = horizon * 0.5 + zenith * 0.5
    light = linear(scene.light.colour) * scene.light.sun * sun[2]
    seen = _terrain(scene, x, y, away) * (lit[:, None] * light + sky * scene.light.ambient * 1.6)
    fade = (1 - np.exp(-away * 0.02 * scene.background.haze))[:, None]
    colour[ground] = seen * (1 - fade) + horizon * fade * 0.8
    return colour


def below(scene: Scene, rise: np.ndarray) -> np.ndarray:
    """(n,) bool: rays that hit the ground, given the vertical component of their directions; none in flight."""
    return (rise < -1e-4) & scene.on_ground


def skyline(scene: Scene) -> float:
    """The vertical component above which a ray clears ground and trees; in flight, all rays do."""
    return 0.015 + 0.05 * scene.background.hills if scene.on_ground else -np.inf


def _sky(scene: Scene, directions: np.ndarray) -> np.ndarray:
    """The light (n, 3) of sky, clouds and, on the ground, trees on the horizon."""
    b, rise = scene.background, directions[:, 2]
    zenith, horizon = linear(b.zenith), linear(b.horizon)
    height = np.clip(rise, 0, 1)[:, None] ** 0.5 if scene.on_ground else np.clip(rise * 0.8 + 0.45, 0, 1)[:, None]
    colour = horizon + (zenith - horizon) * height
    x, y = directions[:, :2].T * (0.35 / (np.abs(rise) + 0.35))
    cloud = 0.75 * noise(x * 0.5 + b.offset[0], y * 0.5 + b.offset[1])
    cloud += 0.25 * noise(x * 2.1 + b.offset[1], y * 2.1 + 2 * rise)
    cover = np.clip((cloud - 1 + b.clouds * 0.8) * 2.5, 0, 1)[:, None] * 0.85
    colour = colour * (1 - cover) + cover * (0.55 + 0.5 * np.float32(scene.light.ambient)) * (horizon * 0.3 + 0.6)
    if not scene.on_ground:
        return colour
    low = np.flatnonzero((rise >= 0) & (rise < skyline(scene)))
    around, rise = np.arctan2(directions[low, 1], directions[low, 0]) / (2 * np.pi), rise[low]
    ridge = 0.015 + 0.05 * b.hills * noise(around * 3 + b.offset[0], np.full_like(around, b.offset[1]))
    low, around, rise = (each[rise < ridge] for each in (low, around, rise))
    shade = 0.5 + 0.5 * noise(around * 60, rise * 20)
    far = linear([0.2, 0.27, 0.18]) * shade[:, None] * (0.6 + 0.4 * scene.light.sun / 2)
    colour[low] = far * (1 - 0.6 * b.haze) + horizon * 0.6 * b.haze
    return colour


def _terrain(scene, x, y, away):
    """The ground's albedo at (x, y): asphalt with markings, grass, or concrete slabs."""
    b = scene.background
    albedo = np.broadcast_to(linear(b.ground), (len(x), 3)).copy()
    c, s = (np.float32(f(b.offset[0] * np.pi)) for f in (np.cos, np.sin))
    along, across = x * c + y * s, y * c - x * s
    if b.kind == "runway":
        along, across = x, y + (b.offset[1] - 0.5) * 1.5
    # texture finer than a pixel would alias: fade it with distance
    detail = np.clip(6 / away, 0, 1)
    grain = (noise(along * 0.9 + b.offset[0], across * 0.9 + b.offset[1]) - 0.5) * detail
    wide = noise(along * 0.11 + b.offset[1], across * 0.11 + b.offset[0]) - 0.5
    if b.kind == "field":
        albedo *= (1 + 0.9 * grain + 0.6 * wide)[:, None]
        return np.clip(albedo * (1 + wide[:, None] * [0.5, 0.0, -0.3]), 0.01, 1).astype(np.float32)
    albedo *= (1 + 0.35 * grain + 0.35 * wide)[:, None]
    if b.kind == "apron":
        seam = (np.abs((along / 0.35) % 1 - 0.5) > 0.485) | (np.abs((across / 0.35) % 1 - 0.5) > 0.485)
        albedo *= np.where(seam, 1 - 0.35 * detail, 1)[:, None]
        line = (np.abs(across - 0.4) < 0.012) & (b.offset[1] > 0.4)
        albedo[line] = linear([0.8, 0.65, 0.15])
        return np.clip(albedo, 0.01, 1)
    edge = (np.abs(np.abs(across) - 1.1) < 0.025) | ((np.abs(across) < 0.02) & ((along / 0.8) % 1 < 0.55))
    albedo[edge] = albedo[edge] * (1 - detail[edge, None]) + linear([0.85, 0.85, 0.82]) * detail[edge, None]
    grass = np.abs(across) > 1.35
    albedo[grass] = linear([0.38, 0.44, 0.22]) * (1 + 0.8 * grain[grass] + 0.5 * wide[grass])[:, None]
    return np.clip(albedo, 0.01, 1)
