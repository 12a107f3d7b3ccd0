"""Ray casting: from a scene to its picture and a mask of parts."""

from collections import namedtuple
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from aircraft_sae.hangar import MATERIALS, PARTS, VARIANTS, Airframe
from aircraft_sae.hangar.meshes import build
from aircraft_sae.hangar.scene import Scene, axes
from aircraft_sae.hangar.solids import Mesh
from aircraft_sae.hangar.surroundings import BLOCKED, backdrop, below, linear, noise, occluded, skyline

_TARGET = 0.13  # height at which the camera aims and an airframe in flight is placed


Picture = namedtuple("Picture", "image mask")  # (size, size, 3) uint8; (size, size) uint8, indices into PARTS


@lru_cache
def _openness(a: Airframe) -> np.ndarray:
    """Ambient occlusion: the share (n_vertices,) of directions in which nothing is close to a vertex."""
    mesh, n = build(a), 40
    sphere = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    directions = mesh.normals[:, None] * 1.05 + sphere
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    origins = np.repeat(mesh.vertices + mesh.normals * 2 * BLOCKED, n, axis=0)
    blocked = occluded(surface(mesh.vertices, mesh.faces), origins, directions.reshape(-1, 3), 0.15)
    return 1 - blocked.reshape(-1, n).mean(1).astype(np.float32)


def _airframe(scene: Scene) -> Airframe:
    """The variant's airframe, with the engines that edits add."""
    airframe = VARIANTS[scene.variant]
    for edit in scene.edits:
        if edit.kind == "add":
            where = "wing_props" if airframe.wing_props else "wing_jets"
            own = getattr(airframe, where)
            airframe = replace(airframe, **{where: (*own, max(own, default=0.1) + 0.24)})
    return airframe


def _pose(scene: Scene) -> tuple[Mesh, np.ndarray, np.ndarray]:
    """The edited airframe: its mesh, and its vertices and normals in world coordinates."""
    airframe = _airframe(scene)
    mesh = build(airframe)
    vertices, normals = mesh.vertices.astype(float), mesh.normals.astype(float)
    turn = Rotation.from_euler("x", scene.propeller_turn).as_matrix()
    for piece, y, z in mesh.hubs:
        chosen, hub = mesh.piece == piece, np.array([0, y, z])
        vertices[chosen] = (vertices[chosen] - hub) @ turn.T + hub
        normals[chosen] = normals[chosen] @ turn.T
    keep = np.ones(len(mesh.faces), bool)
    if airframe.gear == "retractable" and not scene.gear_down:
        keep &= ~np.isin(mesh.part, [PARTS.index("nose_gear"), PARTS.index("main_gear")])
    for edit in scene.edits:
        chosen = mesh.part == PARTS.index(edit.part)
        if edit.kind == "remove":
            keep &= ~chosen
        elif edit.kind == "move":
            vertices[np.unique(mesh.faces[chosen])] += edit.value
    pitch = mesh.pitch if scene.on_ground else scene.pitch
    turn = Rotation.from_euler("YX", [-pitch, scene.bank]).as_matrix()
    vertices, normals = vertices @ turn.T, normals @ turn.T
    # the wheels of the unedited airframe touch the ground
    unedited = build(VARIANTS[scene.variant]).vertices
    vertices[:, 2] -= (unedited @ turn.T)[:, 2].min() if scene.on_ground else -_TARGET
    mesh = replace(mesh, faces=mesh.faces[keep], part=mesh.part[keep], material=mesh.material[keep])
    return mesh, vertices.astype(np.float32), normals.astype(np.float32)


def render(scene: Scene, size: int = 224, supersampling: int = 2) -> Picture:
    """Cast `supersampling`² rays per pixel, or one where it shows only sky; returns the picture before JPEG coding."""
    mesh, vertices, normals = _pose(scene)
    position, right, down, forward = axes(scene.camera)
    position = position + [0, 0, _TARGET]
    if scene.on_ground:
        position[2] = max(position[2], 0.02)
    high, around = scene.light.elevation, scene.light.azimuth
    sun = np.array([np.cos(high) * np.cos(around), np.cos(high) * np.sin(around), np.sin(high)], np.float32)
    bvh = surface(vertices, mesh.faces) if len(mesh.faces) else None

    def rays(columns, rows):
        x = ((columns / size - 0.5 - scene.camera.shift_x) / scene.camera.focal).astype(np.float32)[None, :, None]
        y = ((rows / size - 0.5 - scene.camera.shift_y) / scene.camera.focal).astype(np.float32)[:, None, None]
        d = x * right.astype(np.float32) + (y * down.astype(np.float32) + forward.astype(np.float32))
        return (d / np.sqrt(1 + x * x + y * y)).reshape(-1, 3)

    s = supersampling
    grid = (np.arange(size * s) + 0.5) / s
    # in flight and above the trees, the sky has no edges: one ray per pixel is enough
    rise = rays(grid[[0, -1]], grid)[:, 2].reshape(size, 2 * s).min(1)
    split = int((rise >= skyline(scene)).cumprod().sum())  # rows of sky only; in flight, all
    lower = rays(grid, grid[split * s :])
    ground = below(scene, lower[:, 2]).reshape(-1, size * s, 1)
    mask, missed = np.zeros((size, size), np.uint8), np.ones((size * s, size * s), bool)
    mask[split:] = 2 * _pool(ground.astype(np.uint16), s)[..., 0] >= s * s
    image = np.zeros((size, size, 3), np.float32)  # the sum over a pixel's rays
    if bvh is not None:
        seen = vertices[np.unique(mesh.faces)] - position
        left, wide = _span(seen @ right / (seen @ forward), scene.camera.shift_x, scene.camera.focal, size)
        top, high = _span(seen @ down / (seen @ forward), scene.camera.shift_y, scene.camera.focal, size)
        area = slice(top, top + high), slice(left, left + wide)
        fine = slice(top * s, (top + high) * s), slice(left * s, (left + wide) * s)
        if wide and high:
            toward = rays(grid[fine[1]], grid[fine[0]])
            colour, part = _cast(scene, mesh, vertices, normals, bvh, position, toward, sun)
            image[area] = _pool(colour.reshape(high * s, wide * s, 3), s)
            missed[fine] = part.reshape(high * s, wide * s) == 0
            part = part.reshape(high, s, wide, s).swapaxes(1, 2).reshape(high, wide, s * s)
            # a pixel shows the part that most of its rays hit, or background if more than half hit none
            counts = (part[..., None, :] == part[..., :, None]).sum(-1) * (part > 0)
            best = np.take_along_axis(part, counts.argmax(2)[..., None], 2)[..., 0]
            mask[area] = np.where(2 * (part > 0).sum(2) >= s * s, best, mask[area])
    middles = np.arange(size) + 0.5
    sky = backdrop(scene, position, rays(middles, middles[:split]), sun, bvh).reshape(split, size, 3)
    image[:split] += _pool(missed[: split * s, :, None].astype(np.uint16), s) * sky
    if len(lower):
        seen, light = missed[split * s :], np.zeros((*ground.shape[:2], 3), np.float32)
        light[seen] = backdrop(scene, position, lower[seen.ravel()], sun, bvh)
        image[split:] += _pool(light, s)
    return Picture(_finish(scene, image / np.float32(s * s), size), mask)


def _pool(fine: np.ndarray, s: int) -> np.ndarray:
    """Sum over squares of s x s rays: (h s, w s, c) -> (h, w, c)."""
    return sum(fine[i::s, j::s] for i in range(s) for j in range(s))


def _span(at, shift, focal, size):
    """The first pixel and the number of pixels, along one side, in which points at these slopes can fall."""
    at = (at * focal + shift + 0.5) * size
    low, high = (int(np.clip(v, 0, size)) for v in (np.floor(at.min()) - 1, np.ceil(at.max()) + 1))
    return low, high - low


def _cast(scene, mesh, vertices, normals, bvh, position, directions, sun):
    """The light (n, 3) along each ray, 0 for a miss, and the part (n,) it hits, 0 for none."""
    origins = np.full(directions.shape, position, np.float32)
    hit = bvh.run(origins, directions, query="INTERSECT", output=1)
    rays = np.flatnonzero(hit["primID"] >= 0)
    colour, part = np.zeros_like(directions), np.zeros(len(directions), np.uint8)
    face = hit["primID"][rays]
    part[rays] = mesh.part[face]
    u, v = hit["u"][rays], hit["v"][rays]
    weights = np.stack([1 - u - v, u, v], 1)
    corners, view = mesh.faces[face], -directions[rays]
    normal = np.einsum("nk,nkc->nc", weights, normals[corners])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    flat = hit["Ng"][rays] / (np.linalg.norm(hit["Ng"][rays], axis=1, keepdims=True) + 1e-12)
    flat *= np.sign(np.einsum("nc,nc->n", flat, view))[:, None]
    normal *= np.where(np.einsum("nc,nc->n", normal, flat) < 0, -1, 1)[:, None]
    open_ = np.einsum("nk,nk->n", weights, _openness(_airframe(scene))[corners])
    point = np.einsum("nk,nkc->nc", weights, vertices[corners])

    lit = np.clip(normal @ sun, 0, 1)
    if scene.shadows:
        facing = np.flatnonzero(lit > 0)
        origins = point[facing] + flat[facing] * 2 * BLOCKED
        lit[facing] *= ~occluded(bvh, origins, np.broadcast_to(sun, origins.shape).copy(), 10.0)
    albedo, gloss = _paint(scene, mesh, face, weights, corners)
    sky = linear(scene.background.zenith) * 0.5 + linear(scene.background.horizon) * 0.5
    ground = linear(scene.background.ground)
    up = (normal[:, 2:] + 1) / 2
    ambient = scene.light.ambient * (sky * up + 0.6 * ground * (1 - up)) * open_[:, None] * 1.6
    light = linear(scene.light.colour) * scene.light.sun
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
    """The albedo (n, 3) in linear light and the gloss (n,) where each ray hits."""
    livery, material = scene.livery, mesh.material[face]
    albedo = linear(livery.colours)[material]
    coat = np.einsum("nk,nk->n", weights, mesh.coat[corners])
    body, fin, rubber, *glass = (material == MATERIALS.index(m) for m in ("body", "fin", "rubber", "window", "cockpit"))
    albedo[body & (coat < livery.belly_height)] = linear(livery.belly)
    albedo[body & (np.abs(coat - livery.stripe_height) < livery.stripe_width)] = linear(livery.stripe)
    albedo[fin & (coat > livery.fin_band_height)] = linear(livery.fin_band)
    at = np.einsum("nk,nkc->nc", weights, mesh.vertices[corners])
    stain = noise(at[:, 0] * 1.7 + scene.background.offset[0], at[:, 2] * 0.9 + at[:, 1] * 1.3)
    albedo *= (1 - livery.dirt * stain**2)[:, None]
    for edit in scene.edits:
        if edit.kind == "recolour":
            albedo[mesh.part[face] == PARTS.index(edit.part)] = linear(edit.value)
    gloss = np.full(len(face), livery.gloss, np.float32)
    gloss[np.logical_or(*glass)] = 1.0
    gloss[rubber] = 0.1
    return albedo, gloss


def _finish(scene, image, size):
    f = scene.finish
    image = image * np.float32(f.exposure)
    # soft clipping: highlights keep their colour
    image = np.where(image > 0.7, 0.7 + 0.3 * (1 - np.exp(-(image - 0.7) / 0.3)), image)
    if (blur := f.blur * size / 224) > 0.15:
        image = ndimage.gaussian_filter(image, (blur, blur, 0), truncate=3)
    image = np.clip(image, 0, 1) ** np.float32(1 / 2.2)
    noise = np.random.default_rng(scene.seed).standard_normal((size, size, 3), dtype=np.float32)
    return (np.clip(image + noise * np.float32(f.noise), 0, 1) * 255 + 0.5).astype(np.uint8)


def surface(vertices: np.ndarray, faces: np.ndarray):
    """A mesh to cast rays at, from embreex or, for Linux on ARM, libigl; imported only when something is rendered."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError:
        return _Libigl(vertices, faces)
    scene = EmbreeScene()
    TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
    return scene


class _Libigl:
    """Stands in for embreex's scenes, one ray at a time: the same hits, ten times slower."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        from igl.embree import EmbreeIntersector

        self.corners, self.scene = vertices.astype(np.float32)[faces], EmbreeIntersector()
        self.scene.init(np.asfortranarray(vertices, np.float32), np.asfortranarray(faces, np.int32))

    def run(self, origins: np.ndarray, directions: np.ndarray, far=None, query: str = "INTERSECT", output=None):
        """The face that each ray (n, 3) hits first, -1 for none; with `output`, also u, v and the normal Ng."""
        far = np.full(len(origins), np.inf) if far is None else far
        hits = [self.scene.intersectRay_first(o, d, 0, end) for o, d, end in zip(origins, directions, far, strict=True)]
        face = np.array([hit[0] for hit in hits], np.int32)
        u, v = np.array([hit[2:] for hit in hits], np.float32).reshape(-1, 2).T  # hit[1] is the distance
        a, b, c = self.corners[face].swapaxes(0, 1)
        return {"primID": face, "u": u, "v": v, "Ng": np.cross(b - a, c - a)} if output else face
