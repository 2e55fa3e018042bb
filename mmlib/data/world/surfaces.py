"""From first hits to surface points: position, normal, texture coordinates, label and material, for all rays at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import CYLINDER, ELLIPSOID, FRUSTUM, View, World, trace

FLOOR, CEILING, FRONT, BACK, RIGHT, LEFT = range(6)  # an indoor world's background surfaces, in this order
GROUND, SKY = range(2)  # an outdoor world's


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
    x, y, z = (np.float32(v) for v in origin)
    with np.errstate(all="ignore"):
        if not world.indoor:
            t = -z / dirs[2]
            ground = (dirs[2] < 0) & (t < 2000)
            return np.where(ground, t, np.float32(np.inf)), np.where(ground, world.count + GROUND, world.count + SKY)
        x0, x1, y0, y1, height = (np.float32(v) for v in world.room)
        tx = np.where(dirs[0] > 0, x1 - x, x0 - x) / dirs[0]
        ty = np.where(dirs[1] > 0, y1 - y, y0 - y) / dirs[1]
        tz = np.where(dirs[2] > 0, height - z, -z) / dirs[2]
    t = np.minimum(np.minimum(tx, ty), tz)
    side = np.where(tx <= ty, np.where(dirs[0] > 0, FRONT, BACK), np.where(dirs[1] > 0, LEFT, RIGHT))
    return t, world.count + np.where(tz <= t, np.where(dirs[2] > 0, CEILING, FLOOR), side)


def look(world: World, views: list[View]) -> Hits:
    """Trace all views (not parallel ones) and describe what their rays meet, views one after another."""
    t, prim = trace(world, views)
    dirs = np.concatenate([v.dirs for v in views], 1)
    back_t, back = (np.concatenate(parts) for parts in zip(*(background(world, v.origin, v.dirs) for v in views)))
    behind = (prim < 0) | (back_t < t)
    t, prim = np.where(behind, back_t, t), np.where(behind, back, prim)
    sizes = [v.rows * v.cols for v in views]
    step = np.where(np.isfinite(t), t, np.float32(1))
    where = np.empty_like(dirs)
    for k in range(3):
        where[k] = step * dirs[k] + np.repeat(np.array([v.origin[k] for v in views], np.float32), sizes)
    label, material = world.label[prim], world.material[prim]
    world.paint(label, material, prim, *where)

    normal, local, axis = np.zeros_like(dirs), where.copy(), np.full(len(t), 2, np.int8)
    solid = np.flatnonzero(prim < world.count)
    p = prim[solid]
    time = np.repeat(np.array([v.time for v in views], np.float32), sizes)[solid]
    kind = world.kind[p]
    cx, cy, cz, hx, hy, hz, cos, sin, kx, ky, mx, my = np.take(world.shape, p, 1)
    x, y = where[0][solid] - cx - time * mx, where[1][solid] - cy - time * my
    x, y, z = cos * x + sin * y, cos * y - sin * x, where[2][solid] - cz
    bottom = z + hz
    qx, qy, qz = x / (hx - kx * bottom + np.float32(1e-6)), y / (hy - ky * bottom + np.float32(1e-6)), z / hz
    ax, ay, az = np.abs(qx), np.abs(qy), np.abs(qz)
    face = np.where(az >= np.maximum(ax, ay), 2, np.where(ax >= ay, 0, 1)).astype(np.int8)
    flat = kind <= FRUSTUM
    nx = np.where(flat, np.where(face == 0, np.sign(qx), 0), qx / hx)
    ny = np.where(flat, np.where(face == 1, np.sign(qy), 0), qy / hy)
    nz = np.where(flat, np.where(face == 2, np.sign(qz), np.where(face == 0, kx, ky)), qz / hz)
    round_ = kind == CYLINDER
    cap = round_ & (az > 0.9995) & (qx * qx + qy * qy < 0.998)
    nx, ny, nz = np.where(cap, 0, nx), np.where(cap, 0, ny), np.where(cap, np.sign(qz), np.where(round_, 0, nz))
    length = 1 / np.sqrt(nx * nx + ny * ny + nz * nz + np.float32(1e-20))
    nx, ny, nz = nx * length, ny * length, nz * length
    axis[solid] = np.where(cap, 2, np.where(round_, 0, face))
    ball = np.flatnonzero(kind == ELLIPSOID)
    axis[solid[ball]] = np.where(np.abs(nz[ball]) > 0.75, 2, np.where(np.abs(nx[ball]) > np.abs(ny[ball]), 0, 1))
    normal[0][solid], normal[1][solid], normal[2][solid] = cos * nx - sin * ny, sin * nx + cos * ny, nz
    local[0][solid], local[1][solid], local[2][solid] = x, np.where(round_ & ~cap, np.arctan2(y, x) * hx, y), z
    others = np.flatnonzero(prim >= world.count)
    which = prim[others] - world.count
    if world.indoor:
        towards = np.array([(0, 0, 1), (0, 0, -1), (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, -1, 0)], np.float32)
        axis[others] = np.array([2, 2, 0, 0, 1, 1], np.int8)[which]
    else:
        towards = np.array([(0, 0, 1), (0, 0, 0)], np.float32)
    normal[:, others] = np.take(towards.T, which, 1)
    direction = dirs / np.sqrt(dirs[0] * dirs[0] + dirs[1] * dirs[1] + dirs[2] * dirs[2])
    facing = np.clip(-(normal[0] * direction[0] + normal[1] * direction[1] + normal[2] * direction[2]), 0, 1)
    return Hits(t, prim, label, material, where, normal, local, axis, facing, direction)
