"""From first hits to surface points: position, normal, texture coordinates, label and material, for all rays
at once.
"""

from dataclasses import dataclass

import numpy as np

from .geometry import CYLINDER, ELLIPSOID, FRUSTUM, View, World, dot, trace

FLOOR, CEILING, FRONT, BACK, RIGHT, LEFT = range(6)  # an indoor world's background surfaces, in this order
GROUND, SKY = range(2)  # an outdoor world's
INDOOR_NORMALS = np.array([(0, 0, 1), (0, 0, -1), (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, -1, 0)], np.float32)
OUTDOOR_NORMALS = np.array([(0, 0, 1), (0, 0, 0)], np.float32)


@dataclass
class Hits:
    """What N rays meet. float32 unless said; vectors are (3, N)."""

    t: np.ndarray  # ray parameter (camera views: depth in metres), inf = sky
    prim: np.ndarray  # row of the world's table, int64
    label: np.ndarray  # uint8
    material: np.ndarray  # uint8
    where: np.ndarray  # world position (sky: the ray's direction from the origin, 1 m away)
    normal: np.ndarray  # unit, outward
    local: np.ndarray  # position in the primitive's own frame
    axis: np.ndarray  # face of a box: 0 x, 1 y, 2 z (int8); other shapes: the normal's largest component
    facing: np.ndarray  # cosine between normal and the direction to the eye, 0..1
    direction: np.ndarray  # unit ray directions

    def part(self, first: int, last: int) -> "Hits":
        """Hits first..last-1; arrays are shared, so a material painted later shows in both."""
        return Hits(**{name: value[..., first:last] for name, value in vars(self).items()})


def background(world: World, origin, dirs):
    """Analytic surfaces that enclose the scene: t (N,) and table row (N,)."""
    origin = np.array(origin, np.float32)[:, None]
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
    side = np.where(tx <= ty, np.where(ahead, FRONT, BACK), np.where(left, LEFT, RIGHT))
    return t, world.count + np.where(tz <= t, np.where(up, CEILING, FLOOR), side)


def look(world: World, views: list[View]) -> Hits:
    """Trace all views (not parallel ones) and describe what their rays meet, views one after another."""
    t, prim = trace(world, views)
    dirs = np.concatenate([v.dirs for v in views], 1)
    back_t, back = (
        np.concatenate(parts) for parts in zip(*(background(world, v.origin, v.dirs) for v in views))
    )
    behind = (prim < 0) | (back_t < t)
    t, prim = np.where(behind, back_t, t), np.where(behind, back, prim)
    origin_x, origin_y, origin_z, time = np.array([(*v.origin, v.time) for v in views], np.float32).T
    sizes = [v.rows * v.cols for v in views]
    where = np.where(np.isfinite(t), t, np.float32(1)) * dirs
    for k, origin in enumerate((origin_x, origin_y, origin_z)):
        where[k] += np.repeat(origin, sizes)
    label, material = world.label[prim], world.material[prim]
    world.paint(label, material, *where)

    solid, others = np.flatnonzero(prim < world.count), np.flatnonzero(prim >= world.count)
    normal, local, axis = np.empty_like(dirs), where.copy(), np.empty(len(t), np.int8)
    normal[:, others] = np.take(
        INDOOR_NORMALS if world.indoor else OUTDOOR_NORMALS, prim[others] - world.count, 0
    ).T
    axis[others] = np.where(normal[0, others] != 0, 0, np.where(normal[1, others] != 0, 1, 2))
    on_normal, on_local, axis[solid] = _on_primitives(
        world, prim[solid], np.take(where, solid, 1), np.repeat(time, sizes)[solid]
    )
    for k in range(3):
        normal[k][solid], local[k][solid] = on_normal[k], on_local[k]
    direction = dirs / np.sqrt(dot(dirs, dirs))
    facing = np.clip(-dot(normal, direction), 0, 1)
    return Hits(t, prim, label, material, where, normal, local, axis, facing, direction)


def _on_primitives(world, prim, where, time):
    """Normal (3, n), position in the primitive's frame (3, n) and face (n,) of points on primitives at the
    times they were seen.
    """
    kind = world.kind[prim]
    flat, ball, pillar = kind <= FRUSTUM, kind == ELLIPSOID, kind == CYLINDER
    cx, cy, cz, hx, hy, hz, cos, sin, kx, ky, mx, my = np.take(world.shape, prim, 1)
    x, y, z = where[0] - cx - time * mx, where[1] - cy - time * my, where[2] - cz
    x, y = cos * x + sin * y, cos * y - sin * x
    bottom = z + hz
    # each -1..1 inside
    q = (
        x / (hx - kx * bottom + np.float32(1e-6)),
        y / (hy - ky * bottom + np.float32(1e-6)),
        z / hz,
    )
    ax, ay, az = (np.abs(place) for place in q)
    axis = np.where(az >= np.maximum(ax, ay), 2, np.where(ax >= ay, 0, 1))
    cap = pillar & (az > 0.9995) & (q[0] * q[0] + q[1] * q[1] < 0.998)  # a cylinder's lid
    wall = pillar & ~cap

    sign = [np.sign(place) for place in q]
    nx = np.where(flat, np.where(axis == 0, sign[0], 0), q[0] / hx)
    ny = np.where(flat, np.where(axis == 1, sign[1], 0), q[1] / hy)
    nz = np.where(flat, np.where(axis == 2, sign[2], np.where(axis == 0, kx, ky)), q[2] / hz)
    nx, ny, nz = np.where(cap, 0, nx), np.where(cap, 0, ny), np.where(cap, sign[2], np.where(wall, 0, nz))
    length = 1 / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-20))
    nx, ny, nz = nx * length, ny * length, nz * length
    axis = np.where(cap, 2, np.where(wall, 0, axis))
    axis = np.where(ball, np.where(np.abs(nz) > 0.75, 2, np.where(np.abs(nx) > np.abs(ny), 0, 1)), axis)
    y = np.where(wall, np.arctan2(y, x, where=wall, out=np.zeros_like(y)) * hx, y)  # metres around the pillar
    return (cos * nx - sin * ny, sin * nx + cos * ny, nz), (x, y, z), axis
