"""Rays against triangles, by Embree: through embreex, and through libigl where embreex has no wheel (Linux on ARM)."""

from functools import cache

import numpy as np


def surface(vertices: np.ndarray, faces: np.ndarray):
    """What rays are cast at. Loads a library, which photographs can do without."""
    try:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene
    except ImportError:
        return _Libigl(vertices, faces)
    scene = EmbreeScene(_device())
    TriangleMesh(scene, vertices.astype(np.float32), faces.astype(np.int32))
    return scene


@cache
def _device():
    from embreex.rtcore import EmbreeDevice

    return EmbreeDevice()


class _Libigl:
    """As much of embreex's scene as is used here, one ray at a time: the same hits, about ten times slower."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        try:
            from igl.embree import EmbreeIntersector
        except ImportError:
            raise ImportError(
                "rendering needs embreex, or libigl where embreex has no wheel: pip install libigl"
            ) from None
        self.corners = vertices.astype(np.float32)[faces]
        self.scene = EmbreeIntersector()
        self.scene.init(np.asfortranarray(vertices, np.float32), np.asfortranarray(faces, np.int32))

    def run(self, origins: np.ndarray, directions: np.ndarray, far=None, query: str = "INTERSECT", output=None):
        """The face that each ray (n, 3) meets first, -1 for none; with `output` also u, v and the normal Ng."""
        far = np.full(len(origins), np.inf) if far is None else far
        hits = [self.scene.intersectRay_first(o, d, 0, end) for o, d, end in zip(origins, directions, far, strict=True)]
        face = np.array([hit[0] for hit in hits], np.int32)
        u, v = np.array([hit[2:] for hit in hits], np.float32).reshape(-1, 2).T  # hit[1] is the distance
        a, b, c = self.corners[face].swapaxes(0, 1)
        return {"primID": face, "u": u, "v": v, "Ng": np.cross(b - a, c - a)} if output else face
