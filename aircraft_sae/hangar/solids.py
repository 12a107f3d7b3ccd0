"""The solids of airframes: lofts, tubes, bodies of revolution, wheels and lifting surfaces. Axes as in `meshes`."""

from dataclasses import dataclass

import numpy as np
import trimesh

from aircraft_sae.hangar import MATERIALS, PARTS


@dataclass(frozen=True)
class Mesh:
    """The triangles of one airframe."""

    vertices: np.ndarray  # (n, 3) float32
    normals: np.ndarray  # (n, 3) float32, outward
    coat: np.ndarray  # (n,) float32 in [-1, 1]: height on fuselage or fin, for the livery's bands
    piece: np.ndarray  # (n,) int32: the solid that each vertex belongs to
    faces: np.ndarray  # (m, 3) int32
    part: np.ndarray  # (m,) uint8, index into PARTS
    material: np.ndarray  # (m,) uint8, index into MATERIALS
    hubs: tuple[tuple[int, float, float], ...]  # (piece, y, z) of everything that turns with a propeller
    pitch: float  # attitude on the ground in radians, nose up


class Builder:
    """Collects solids and joins them into a mesh."""

    def __init__(self):
        self.solids, self.n_vertices, self.hubs = [], 0, []

    def add(self, vertices, faces, part, material, coat=0.0, mirror=False):
        """Add a solid and, if `mirror`, its mirror image as a second piece; returns the number of the last piece."""
        vertices, faces = np.asarray(vertices, float), np.asarray(faces)
        normals, n, m = trimesh.Trimesh(vertices, faces, process=False).vertex_normals, len(vertices), len(faces)
        of_vertices = vertices, normals, np.broadcast_to(coat, n), np.full(n, len(self.solids))
        of_faces = faces + self.n_vertices, np.full(m, PARTS.index(part)), np.full(m, MATERIALS.index(material))
        self.solids.append((*of_vertices, *of_faces))
        self.n_vertices += n
        if mirror:
            self.add(vertices * [1, -1, 1], faces[:, ::-1], part, material, coat)
        return len(self.solids) - 1

    def loft(self, rings, part, material, coat=0.0, mirror=False, caps=True):
        """Add a skin over closed rings (k, m, 3); its caps have their own vertices, for sharp edges."""
        rings = np.asarray(rings, float)
        k, m = rings.shape[:2]
        index = np.arange(k * m).reshape(k, m)
        faces = quads(np.column_stack([index, index[:, :1]]))
        vertices, coat = rings.reshape(-1, 3), np.broadcast_to(np.asarray(coat, float), (k, m)).ravel()
        if caps:
            fan = np.stack([np.arange(m), np.roll(np.arange(m), -1), np.full(m, m)], 1)
            for ring, level, turn in ((rings[0], coat[:m], 1), (rings[-1], coat[-m:], -1)):
                faces = np.concatenate([faces, len(vertices) + fan[:, ::turn]])
                vertices = np.concatenate([vertices, ring, ring.mean(0, keepdims=True)])
                coat = np.concatenate([coat, level, [level.mean()]])
        # rings may run either way: orient the skin outwards, so that its volume is positive
        triangles = vertices[faces] - vertices.mean(0)
        if np.einsum("ij,ij->i", triangles[:, 0], np.cross(triangles[:, 1], triangles[:, 2])).sum() < 0:
            faces = faces[:, ::-1]
        return self.add(vertices, faces, part, material, coat, mirror)

    def tube(self, start, end, radius, part, material, mirror=False):
        """Add a straight rod between two points."""
        axis = np.subtract(end, start) / np.linalg.norm(np.subtract(end, start))
        side = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.9 else [0, 1.0, 0])
        side /= np.linalg.norm(side)
        angle = np.linspace(0, 2 * np.pi, 8, endpoint=False)[:, None]
        ring = radius * (np.cos(angle) * side + np.sin(angle) * np.cross(axis, side))
        self.loft([start + ring, end + ring], part, material, mirror=mirror)

    def revolve(self, profile, centre, part, material, mirror=False, n=20):
        """Add a body of revolution about x, from (x, radius) pairs; ends with a radius stay open."""
        (x, r), angle = np.transpose(profile), np.linspace(0, 2 * np.pi, n, endpoint=False)
        rings = np.stack(np.broadcast_arrays(x[:, None], np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))), -1)
        return self.loft(np.add(rings, centre), part, material, mirror=mirror, caps=False)

    def wheel(self, centre, radius, width, part, mirror=False):
        """Add a wheel about the y axis."""
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        circle = np.stack([np.cos(angle), np.zeros(16), np.sin(angle)], 1) * radius
        rings = [circle * s + [0, y * width, 0] for s, y in ((0.7, -0.5), (1, -0.3), (1, 0.3), (0.7, 0.5))]
        self.loft(np.add(rings, centre), part, "rubber", mirror=mirror)

    def mesh(self, pitch, scale):
        """All solids as one mesh, scaled."""
        kinds = np.float32, np.float32, np.float32, np.int32, np.int32, np.uint8, np.uint8
        columns = zip(zip(*self.solids, strict=True), kinds, strict=True)
        vertices, *others = (np.concatenate(own).astype(kind) for own, kind in columns)
        hubs = tuple((piece, y * scale, z * scale) for piece, y, z in self.hubs)
        return Mesh(vertices * np.float32(scale), *others, hubs, pitch)


def quads(index):
    """(2 q, 3) triangles of the q squares in a grid of vertex indices."""
    a, b, c, d = (corner.ravel() for corner in (index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]))
    return np.concatenate([np.stack([a, b, c], 1), np.stack([c, b, d], 1)])


def surface(builder, sections, part, material, coat=0.0, mirror=False):
    """Add a lifting surface of symmetric NACA four-digit aerofoils.

    sections: (leading edge, chord, relative thickness, direction of thickness).
    """
    u = (1 - np.cos(np.linspace(0, np.pi, 9))) / 2
    half = 0.2969 * np.sqrt(u) - 0.126 * u - 0.3516 * u**2 + 0.2843 * u**3 - 0.1036 * u**4
    u, half = np.concatenate([u, u[-2:0:-1]]), np.concatenate([half, -half[-2:0:-1]])
    rings = [leading + chord * (np.outer(u, [-1.0, 0, 0]) + np.outer(5 * thickness * half, up))
             for leading, chord, thickness, up in sections]  # fmt: skip
    builder.loft(rings, part, material, np.asarray(coat)[..., None], mirror)


def spindle(length, radius):
    """The (x, radius) profile of a spindle."""
    t = np.linspace(0, np.pi, 11)
    return np.stack([length / 2 * np.cos(t), radius * np.sin(t)], 1)


def jet(b, centre, length, radius, mirror):
    """Add a nacelle with open intake, fan and exhaust cone."""
    shell = [(0.38, 0.72), (0.5, 0.8), (0.5, 0.9), (0.36, 1.0), (0.0, 1.04), (-0.3, 0.9), (-0.5, 0.66), (-0.42, 0.6)]
    fan, cone = [(0.44, 0.0), (0.36, 0.18), (0.34, 0.76)], [(-0.35, 0.68), (-0.5, 0.4), (-0.72, 0.0)]
    for profile, material in ((shell, "engine"), (fan, "rubber"), (cone, "metal")):
        b.revolve(np.multiply(profile, [length, radius]), centre, "engine", material, mirror)


def propeller(b, hub, radius, blades, mirror):
    """Add a spinner and twisted blades, which turn about the hub."""
    spin = radius * 0.16
    turning = [b.revolve([(spin * 1.7, 0), (spin * 1.3, spin * 0.6), (0, spin)], hub, "propeller", "propeller", mirror)]
    for i in range(blades):
        turn = 2 * np.pi * i / blades + 0.3
        c, s = np.cos(turn), np.sin(turn)
        rings = []
        for share, width, twist in ((0.1, 0.1, 1.1), (0.45, 0.19, 0.75), (0.8, 0.17, 0.5), (1.0, 0.07, 0.4)):
            across = np.array([-np.sin(twist), np.cos(twist)]) * width * radius / 2
            thick = np.array([np.cos(twist), np.sin(twist)]) * radius * 0.012
            x, y = np.array([across, thick, -across, -thick]).T
            z = share * radius
            rings.append(np.stack([x, y * c - z * s, y * s + z * c], 1))
        turning.append(b.loft(np.add(rings, hub), "propeller", "propeller", mirror=mirror))
    for piece in turning:
        # a mirrored piece directly follows its original
        b.hubs += [(piece - 1, hub[1], hub[2]), (piece, -hub[1], hub[2])] if mirror else [(piece, hub[1], hub[2])]
