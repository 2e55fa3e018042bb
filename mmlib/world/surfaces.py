"""From first hits to surface points: position, normal, texture coordinates, label and material, for all rays
at once.
"""

from dataclasses import dataclass

import numpy as np

from .geometry import CYLINDER, ELLIPSOID, View, World, dot, trace

FLOOR, CEILING, FRONT, BACK, RIGHT, LEFT = range(6)  # an indoor world's background surfaces, in this order
GROUND, SKY = range(2)  # an outdoor world's
INDOOR_NORMALS = np.array([(0, 0, 1), (0, 0, -1), (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, -1, 0)], np.float32)
INDOOR_AXES = np.array([2, 2, 0, 0, 1, 1])  # outdoors the ground is a floor, too
OUTDOOR_NORMALS = np.array([(0, 0, 1), (0, 0, 0)], np.float32)


@dataclass
class Hits:
    """What N rays meet. float32 unless said; vectors are (3, N)."""

    t: np.ndarray  # ray parameter (camera views: depth in metres), inf = sky
    prim: np.ndarray  # row of the world, int64
    label: np.ndarray  # uint8
    material: np.ndarray  # uint8
    where: np.ndarray  # world position (sky: the ray's direction from the origin, 1 m away)
    normal: np.ndarray  # unit, outward
    local: np.ndarray  # position in the primitive's own frame
    axis: np.ndarray  # face of a box: 0 x, 1 y, 2 z; other shapes: the normal's largest component
    facing: np.ndarray  # cosine between normal and the direction to the eye, 0..1
    direction: np.ndarray  # unit ray directions

    def part(self, first: int, last: int) -> "Hits":
        """Hits first..last-1; arrays are shared, so a material painted later shows in both."""
        return Hits(**{name: value[..., first:last] for name, value in vars(self).items()})


def background(world: World, origin, dirs):
    """Surfaces that enclose the scene: t (N,) and row of the world (N,) for rays from origins (3, N)."""
    with np.errstate(all="ignore"):
        if not world.indoor:
            t = -origin[2] / dirs[2]
            ground = (dirs[2] < 0) & (t < 2000)
            return np.where(ground, t, np.float32(np.inf)), world.count + np.where(ground, GROUND, SKY)
        x0, x1, y0, y1, height = world.room
        low, high = np.array([(x0, y0, 0), (x1, y1, height)], np.float32)[..., None]
        # where the ray crosses a wall of each pair
        tx, ty, tz = np.where(dirs > 0, high - origin, low - origin) / dirs
    t = np.minimum(np.minimum(tx, ty), tz)
    ahead, left, up = dirs > 0
    # the first of each pair of surfaces, or the one after it
    side = np.where(tx <= ty, FRONT + ~ahead, RIGHT + left)
    return t, world.count + np.where(tz <= t, FLOOR + up, side)


def look(world: World, views: list[View]) -> Hits:
    """Trace all views (not parallel ones) and describe what their rays meet, views one after another."""
    t, prim = trace(world, views)
    dirs = np.concatenate([v.dirs for v in views], 1)
    poses = np.array([(*v.origin, v.time) for v in views], np.float32)
    *origin, time = np.repeat(poses, [v.rows * v.cols for v in views], 0).T
    back_t, back = background(world, origin, dirs)
    behind = (prim < 0) | (back_t < t)
    t, prim = np.where(behind, back_t, t), np.where(behind, back, prim)
    where = np.where(np.isfinite(t), t, np.float32(1)) * dirs + origin
    label, material = world.label[prim], world.material[prim]
    world.paint(label, material, *where)

    # as of the background; then what lies on primitives
    surface = np.maximum(prim - world.count, 0)
    normals = INDOOR_NORMALS if world.indoor else OUTDOOR_NORMALS
    normal, local, axis = np.take(normals.T, surface, 1), where.copy(), INDOOR_AXES[surface]
    solid = np.flatnonzero(prim < world.count)
    normal[:, solid], local[:, solid], axis[solid] = _on_primitives(
        world, prim[solid], np.take(where, solid, 1), time[solid]
    )
    direction = dirs / np.sqrt(dot(dirs, dirs))
    facing = np.clip(-dot(normal, direction), 0, 1)
    return Hits(t, prim, label, material, where, normal, local, axis, facing, direction)


def _on_primitives(world, prim, where, time):
    """Normal (3, n), position in the primitive's frame (3, n) and face (n,) of points on primitives at the
    times they were seen.
    """
    kind = world.kind[prim]
    cx, cy, cz, hx, hy, hz, cos, sin, kx, ky, mx, my = np.take(world.shape, prim, 1)
    x, y, z = where[0] - cx - time * mx, where[1] - cy - time * my, where[2] - cz
    x, y = cos * x + sin * y, cos * y - sin * x
    bottom = z + hz
    # each -1..1 inside
    q = np.stack(
        [x / (hx - kx * bottom + np.float32(1e-6)), y / (hy - ky * bottom + np.float32(1e-6)), z / hz]
    )
    ax, ay, az = np.abs(q)
    axis = np.where(az >= np.maximum(ax, ay), 2, np.where(ax >= ay, 0, 1))
    lid = (az > 0.9995) & (q[0] * q[0] + q[1] * q[1] < 0.998)
    ball, wall = kind == ELLIPSOID, (kind == CYLINDER) & ~lid

    lean = [np.zeros_like(kx), np.zeros_like(kx), np.where(axis == 0, kx, ky)]  # of a frustum's sides
    own = np.arange(3)[:, None] == axis
    q[2, wall] = 0
    normal = np.where(ball | wall, q / (hx, hy, hz), np.where(own, np.sign(q), lean))
    nx, ny, nz = normal * (1 / np.sqrt(dot(normal, normal) + np.float32(1e-20)))
    axis = np.where(wall, 0, axis)
    round_axis = np.where(np.abs(nz) > 0.75, 2, np.where(np.abs(nx) > np.abs(ny), 0, 1))
    axis = np.where(ball, round_axis, axis)
    y = np.where(wall, np.arctan2(y, x, where=wall, out=np.zeros_like(y)) * hx, y)  # metres around the pillar
    return (cos * nx - sin * ny, sin * nx + cos * ny, nz), (x, y, z), axis
