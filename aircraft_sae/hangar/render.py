"""Ray casting: from a scene to pixels and to the part that each of them shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore import EmbreeDevice
from embreex.rtcore_scene import EmbreeScene
from scipy import ndimage

from aircraft_sae.hangar.airframes import Airframe, taxonomy
from aircraft_sae.hangar.meshes import build
from aircraft_sae.hangar.scene import Scene, axes
from aircraft_sae.hangar.solids import MATERIALS, PARTS, Mesh

VERSION = 1
"""Raised whenever the same scene would give other pixels."""
_GEAR = [PARTS.index("nose_gear"), PARTS.index("main_gear")]
_GLASS = [MATERIALS.index(m) for m in ("window", "cockpit")]
_BODY, _FIN = MATERIALS.index("body"), MATERIALS.index("fin")
_BLOCKED = np.float32(1e-3)
_TARGET = 0.13
"""Height over the ground at which the camera aims, and at which an airframe flies."""


@dataclass(frozen=True)
class Picture:
    """A rendered scene."""

    image: np.ndarray  # (size, size, 3) uint8
    mask: np.ndarray  # (size, size) uint8, index into PARTS

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """xmin, ymin, xmax, ymax of the aircraft, the last two exclusive; None where it is out of sight."""
        rows, columns = (np.flatnonzero((self.mask >= 2).any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@lru_cache
def _airframes(name: str) -> dict[str, Airframe]:
    return {a.variant: a for a in taxonomy(name)}


@lru_cache
def _device() -> EmbreeDevice:
    return EmbreeDevice()


def _bvh(vertices: np.ndarray, faces: np.ndarray) -> EmbreeScene:
    scene = EmbreeScene(_device())
    TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
    return scene


def _occluded(bvh: EmbreeScene, origins: np.ndarray, directions: np.ndarray, reach: float) -> np.ndarray:
    if not len(origins):
        return np.zeros(0, bool)
    far = np.full(len(origins), reach, np.float32)
    return bvh.run(origins.astype(np.float32), directions.astype(np.float32), far, query="OCCLUDED") >= 0


@lru_cache(maxsize=128)
def _openness(a: Airframe, n: int = 40) -> np.ndarray:
    """Share of the sky that each vertex of the whole airframe sees nearby (ambient occlusion), (n_vertices,)."""
    mesh = build(a)
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(n, 3)).astype(np.float32)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    bvh = _bvh(mesh.vertices, mesh.faces)
    directions = mesh.normals[:, None] * 1.05 + sphere[None]
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    origins = np.repeat(mesh.vertices + mesh.normals * 2 * _BLOCKED, n, axis=0)
    return 1 - _occluded(bvh, origins, directions.reshape(-1, 3), 0.15).reshape(-1, n).mean(1).astype(np.float32)


@lru_cache
def _cloud_texture(size: int = 512, power: float = 1.7) -> np.ndarray:
    """Tileable 1/f noise in [0, 1], (size, size)."""
    rng = np.random.default_rng(7)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    f[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / f**power).real
    rank = field.argsort(axis=None).argsort().reshape(size, size)
    return (rank / (size * size - 1)).astype(np.float32)


def _noise(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The noise texture at (u, v), one tile per unit, bilinear."""
    texture = _cloud_texture()
    n = len(texture)
    x, y = (u % 1.0) * n, (v % 1.0) * n
    i, j = x.astype(np.int32), y.astype(np.int32)
    a, b = (x - i).astype(np.float32), (y - j).astype(np.float32)
    i, j, k, m = i % n, j % n, (i + 1) % n, (j + 1) % n
    return (texture[i, j] * (1 - a) + texture[k, j] * a) * (1 - b) + (texture[i, m] * (1 - a) + texture[k, m] * a) * b


def _linear(colour) -> np.ndarray:
    return np.asarray(colour, np.float32) ** np.float32(2.2)


def _turn(angle: float, axis: int) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = np.eye(3)
    turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
    return turn


def _pose(scene: Scene) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """The airframe as the scene has it: its faces, and vertices and normals in the world."""
    airframe = _airframes(scene.taxonomy).get(scene.variant)
    if airframe is None:
        raise ValueError(f"no variant {scene.variant!r} in the taxonomy {scene.taxonomy!r}")
    mesh = build(airframe)
    vertices, normals = mesh.vertices.astype(float), mesh.normals.astype(float)
    turn = _turn(scene.propeller_turn, 0)
    for piece, y, z in mesh.hubs:
        chosen, hub = mesh.piece == piece, np.array([0, y, z])
        vertices[chosen] = (vertices[chosen] - hub) @ turn.T + hub
        normals[chosen] = normals[chosen] @ turn.T
    keep = np.ones(len(mesh.faces), bool)
    if airframe.gear == "retractable" and not scene.gear_down:
        keep &= ~np.isin(mesh.part, _GEAR)
    for edit in scene.edits:
        chosen = mesh.part == PARTS.index(edit.part)
        if edit.kind == "remove":
            keep &= ~chosen
        elif edit.kind in ("move", "scale"):
            for piece in np.unique(mesh.piece[mesh.faces[chosen]]):
                own = mesh.piece == piece
                centre = vertices[own].mean(0)
                vertices[own] = vertices[own] + edit.value if edit.kind == "move" else (vertices[own] - centre) * edit.value[0] + centre
    pitch = mesh.pitch if scene.on_ground else scene.pitch
    turn = _turn(-pitch, 1) @ _turn(scene.bank, 0)
    vertices, normals = vertices @ turn.T, normals @ turn.T
    if scene.on_ground:
        # wheels of the unedited airframe touch the ground
        whole = mesh.vertices @ turn.T
        vertices[:, 2] -= whole[:, 2].min()
    else:
        vertices[:, 2] += _TARGET
    return mesh.keep(keep), vertices.astype(np.float32), normals.astype(np.float32)


def render(scene: Scene, size: int = 224, supersampling: int = 2) -> Picture:
    """Cast `supersampling`² rays a pixel. Picture before JPEG; the same scene gives the same bytes."""
    mesh, vertices, normals = _pose(scene)
    position, right, down, forward = axes(scene.camera)
    position = position + [0, 0, _TARGET]
    if scene.on_ground:
        position[2] = max(position[2], 0.02)
    sun = np.array([np.cos(scene.light.elevation) * np.cos(scene.light.azimuth),
                    np.cos(scene.light.elevation) * np.sin(scene.light.azimuth),
                    np.sin(scene.light.elevation)], np.float32)  # fmt: skip
    bvh = _bvh(vertices, mesh.faces) if len(mesh.faces) else None

    def rays(columns, rows):
        x = (columns / size - 0.5 - scene.camera.shift_x) / scene.camera.focal
        y = (rows / size - 0.5 - scene.camera.shift_y) / scene.camera.focal
        d = x[..., None] * right + y[..., None] * down + forward
        return (d / np.linalg.norm(d, axis=-1, keepdims=True)).astype(np.float32)

    centres = np.arange(size) + 0.5
    back, is_ground = _backdrop(scene, position, rays(*np.meshgrid(centres, centres)).reshape(-1, 3), sun, bvh)
    image = back.reshape(size, size, 3)
    mask = is_ground.reshape(size, size).astype(np.uint8)
    if bvh is not None:
        left, top, wide, high = _window(scene, vertices[np.unique(mesh.faces)] - position, right, down, forward, size)
        s = supersampling
        columns, rows = (start + (np.arange(n * s) + 0.5) / s for start, n in ((left, wide), (top, high)))
        directions = rays(*np.meshgrid(columns, rows)).reshape(-1, 3)
        if len(directions):
            colour, part = _cast(scene, mesh, vertices, normals, bvh, position, directions, sun)
            part = part.reshape(high, s, wide, s).swapaxes(1, 2).reshape(high, wide, s * s)
            colour = colour.reshape(high, s, wide, s, 3).swapaxes(1, 2).reshape(high, wide, s * s, 3)
            covered = part > 0
            area = (slice(top, top + high), slice(left, left + wide))
            image[area] = colour.sum(2) / (s * s) + image[area] * (1 - covered.mean(2, dtype=np.float32))[..., None]
            # a pixel belongs to the part that most of its rays meet; background needs more than half of them
            counts = (part[..., None, :] == part[..., :, None]).sum(-1) * covered
            best = np.take_along_axis(part, counts.argmax(2)[..., None], 2)[..., 0]
            mask[area] = np.where(2 * covered.sum(2) >= s * s, best, mask[area])
    return Picture(_finish(scene, image, size), mask)


def _window(scene, p, right, down, forward, size):
    """The rectangle of pixels that the aircraft can fall into: left, top, width, height."""
    depth = p @ forward
    spans = []
    for axis, shift in ((right, scene.camera.shift_x), (down, scene.camera.shift_y)):
        at = (p @ axis / depth * scene.camera.focal + shift + 0.5) * size
        low, high = (int(np.clip(v, 0, size)) for v in (np.floor(at.min()) - 1, np.ceil(at.max()) + 1))
        spans.append((low, high - low))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]


def _cast(scene, mesh, vertices, normals, bvh, position, directions, sun):
    """Light of every ray (n, 3), 0 where it misses, and the part that it meets (n,), 0 for none."""
    n = len(directions)
    hit = bvh.run(np.broadcast_to(position.astype(np.float32), (n, 3)).copy(), directions, query="INTERSECT", output=1)
    rays = np.flatnonzero(hit["primID"] >= 0)
    colour, part = np.zeros((n, 3), np.float32), np.zeros(n, np.uint8)
    face = hit["primID"][rays]
    part[rays] = mesh.part[face]
    u, v = hit["u"][rays], hit["v"][rays]
    weights = np.stack([1 - u - v, u, v], 1)
    corners = mesh.faces[face]
    view = -directions[rays]
    normal = np.einsum("nk,nkc->nc", weights, normals[corners])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    flat = hit["Ng"][rays]
    flat = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-12)
    flat *= np.sign(np.einsum("nc,nc->n", flat, view))[:, None]
    normal *= np.where(np.einsum("nc,nc->n", normal, flat) < 0, -1, 1)[:, None]
    open_ = np.einsum("nk,nk->n", weights, _openness(_airframes(scene.taxonomy)[scene.variant])[corners])
    point = np.einsum("nk,nkc->nc", weights, vertices[corners])

    toward = normal @ sun
    lit = np.clip(toward, 0, 1)
    if scene.shadows:
        facing = np.flatnonzero(lit > 0)
        origins = point[facing] + flat[facing] * 2 * _BLOCKED
        lit[facing] *= ~_occluded(bvh, origins, np.broadcast_to(sun, origins.shape).copy(), 10.0)
    albedo, gloss = _paint(scene, mesh, face, weights, corners)
    sky, ground = _linear(scene.background.zenith) * 0.5 + _linear(scene.background.horizon) * 0.5, _linear(scene.background.ground)
    up = (normal[:, 2:] + 1) / 2
    ambient = scene.light.ambient * (sky * up + 0.6 * ground * (1 - up)) * open_[:, None] * 1.6
    light = _linear(scene.light.colour) * scene.light.sun
    half = view + sun
    half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-9
    shine = np.clip(np.einsum("nc,nc->n", normal, half), 0, 1) ** (20 + 100 * gloss) * (lit > 0) * gloss * 1.2
    facing = np.clip(np.einsum("nc,nc->n", normal, view), 0, 1)
    fresnel = (0.04 + 0.96 * (1 - facing) ** 5) * (0.25 + 0.75 * gloss) * open_
    bounce_up = 2 * facing * normal[:, 2] - view[:, 2]
    mirror = np.where(bounce_up[:, None] > 0, sky * 1.3, ground * 0.7) * (0.5 + 0.5 * scene.light.ambient)
    colour[rays] = albedo * (lit[:, None] * light + ambient) + shine[:, None] * light + fresnel[:, None] * mirror
    return colour, part


def _paint(scene, mesh, face, weights, corners):
    """Albedo (n, 3) in linear light and gloss (n,) of what each ray meets."""
    livery, material = scene.livery, mesh.material[face]
    albedo = _linear(livery.colours)[material]
    coat = np.einsum("nk,nk->n", weights, mesh.coat[corners])
    body, fin = material == _BODY, material == _FIN
    albedo[body & (coat < livery.belly_height)] = _linear(livery.belly)
    albedo[body & (np.abs(coat - livery.stripe_height) < livery.stripe_width)] = _linear(livery.stripe)
    albedo[fin & (coat > livery.fin_band_height)] = _linear(livery.fin_band)
    at = np.einsum("nk,nkc->nc", weights, mesh.vertices[corners])
    stain = _noise(at[:, 0] * 1.7 + scene.background.offset[0], at[:, 2] * 0.9 + at[:, 1] * 1.3)
    albedo *= (1 - livery.dirt * stain**2)[:, None]
    for edit in scene.edits:
        if edit.kind == "recolour":
            albedo[mesh.part[face] == PARTS.index(edit.part)] = _linear(edit.value)
    gloss = np.full(len(face), livery.gloss, np.float32)
    gloss[np.isin(material, _GLASS)] = 1.0
    gloss[material == MATERIALS.index("rubber")] = 0.1
    return albedo, gloss


def _backdrop(scene, position, directions, sun, bvh):
    """Light (n, 3) of sky and ground along rays that meet no aircraft, and which of them meet the ground."""
    b = scene.background
    rise = directions[:, 2]
    zenith, horizon = _linear(b.zenith), _linear(b.horizon)
    height = np.clip(rise, 0, 1)[:, None] ** 0.5 if scene.on_ground else np.clip(rise * 0.8 + 0.45, 0, 1)[:, None]
    colour = horizon + (zenith - horizon) * height
    spread = 0.35 / (np.abs(rise) + 0.35)
    cloud = _noise(directions[:, 0] * spread * 0.5 + b.offset[0], directions[:, 1] * spread * 0.5 + b.offset[1])
    cloud = 0.75 * cloud + 0.25 * _noise(directions[:, 0] * spread * 2.1 + b.offset[1], directions[:, 1] * spread * 2.1 + 2 * rise)
    cover = np.clip((cloud - 1 + b.clouds * 0.8) * 2.5, 0, 1)[:, None] * 0.85
    colour = colour * (1 - cover) + cover * (0.55 + 0.5 * np.float32(scene.light.ambient)) * (horizon * 0.3 + 0.6)
    if not scene.on_ground:
        return colour, np.zeros(len(colour), bool)
    around = np.arctan2(directions[:, 1], directions[:, 0]) / (2 * np.pi)
    ridge = 0.015 + 0.05 * b.hills * _noise(around * 3 + b.offset[0], np.full_like(around, b.offset[1]))
    trees = (rise < ridge) & (rise >= 0)
    shade = 0.5 + 0.5 * _noise(around * 60, rise * 20)
    far = _linear([0.2, 0.27, 0.18]) * shade[:, None] * (0.6 + 0.4 * scene.light.sun / 2)
    colour = np.where(trees[:, None], far * (1 - 0.6 * b.haze) + horizon * 0.6 * b.haze, colour)

    ground = np.flatnonzero(rise < -1e-4)
    away = (-position[2] / rise[ground]).astype(np.float32)
    x, y = (position[i].astype(np.float32) + directions[ground, i] * away for i in (0, 1))
    lit = np.ones(len(ground), np.float32)
    near = np.flatnonzero(np.hypot(x, y) < 4)
    if scene.shadows and bvh is not None:
        origins = np.stack([x[near], y[near], np.full(len(near), _BLOCKED)], 1)
        lit[near] = ~_occluded(bvh, origins, np.broadcast_to(sun, origins.shape).copy(), 10.0)
    albedo = _terrain(scene, x, y, away)
    sky = horizon * 0.5 + zenith * 0.5
    light = _linear(scene.light.colour) * scene.light.sun * sun[2]
    seen = albedo * (lit[:, None] * light + sky * scene.light.ambient * 1.6)
    fade = (1 - np.exp(-away * 0.02 * b.haze))[:, None]
    colour[ground] = seen * (1 - fade) + horizon * fade * 0.8
    return colour, rise < -1e-4


def _terrain(scene, x, y, away):
    """Albedo of the ground at (x, y): asphalt with markings, grass, or concrete slabs."""
    b = scene.background
    albedo = np.broadcast_to(_linear(b.ground), (len(x), 3)).copy()
    turn = b.offset[0] * np.pi
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if b.kind == "runway":
        along, across = x, y + (b.offset[1] - 0.5) * 1.5
    # texture finer than a pixel would sparkle: fade it with distance
    detail = np.clip(6 / away, 0, 1)
    grain = (_noise(along * 0.9 + b.offset[0], across * 0.9 + b.offset[1]) - 0.5) * detail
    wide = _noise(along * 0.11 + b.offset[1], across * 0.11 + b.offset[0]) - 0.5
    if b.kind == "field":
        albedo *= (1 + 0.9 * grain + 0.6 * wide)[:, None]
        return np.clip(albedo * (1 + wide[:, None] * [0.5, 0.0, -0.3]), 0.01, 1).astype(np.float32)
    albedo *= (1 + 0.35 * grain + 0.35 * wide)[:, None]
    if b.kind == "apron":
        seam = (np.abs((along / 0.35) % 1 - 0.5) > 0.485) | (np.abs((across / 0.35) % 1 - 0.5) > 0.485)
        albedo *= np.where(seam, 1 - 0.35 * detail, 1)[:, None]
        line = (np.abs(across - 0.4) < 0.012) & (b.offset[1] > 0.4)
        albedo[line] = _linear([0.8, 0.65, 0.15])
        return np.clip(albedo, 0.01, 1)
    edge = (np.abs(np.abs(across) - 1.1) < 0.025) | ((np.abs(across) < 0.02) & ((along / 0.8) % 1 < 0.55))
    albedo[edge] = albedo[edge] * (1 - detail[edge, None]) + _linear([0.85, 0.85, 0.82]) * detail[edge, None]
    grass = np.abs(across) > 1.35
    albedo[grass] = _linear([0.38, 0.44, 0.22]) * (1 + 0.8 * grain[grass] + 0.5 * wide[grass])[:, None]
    return np.clip(albedo, 0.01, 1)


def _finish(scene, image, size):
    f = scene.finish
    image = image * np.float32(f.exposure)
    # a shoulder instead of clipping: highlights keep their colour
    image = np.where(image > 0.7, 0.7 + 0.3 * (1 - np.exp(-(image - 0.7) / 0.3)), image)
    if f.blur * size / 224 > 0.15:
        image = ndimage.gaussian_filter(image, (f.blur * size / 224, f.blur * size / 224, 0), truncate=3)
    image = np.clip(image, 0, 1) ** np.float32(1 / 2.2)
    noise = np.random.default_rng(scene.seed).standard_normal((size, size, 3), dtype=np.float32)
    return (np.clip(image + noise * np.float32(f.noise), 0, 1) * 255 + 0.5).astype(np.uint8)
