"""Convex primitives, ray grids and the tracer that finds which primitive each ray meets first.

World axes: x forward along the street (or into the room), y left, z up; metres. A scene is a few hundred *convex* primitives plus an
analytic background (ground plane, or the inside of a room). Every ray grid (camera, second pose of the event camera, LiDAR rings, light
map) is a "view". Each primitive is tested only against the rays inside its bounding rectangle in that grid, and all (primitive, ray)
pairs of one kind are intersected in one vectorised pass; the nearest hit is kept with an atomic minimum over keys that pack distance and
primitive.

Labels must be the same bits on every CPU. So whatever decides visibility uses +, -, *, /, sqrt, floor and comparisons only, one numpy call
each (IEEE 754 rounds these the same everywhere); no matmul, no reductions in floating point, no trigonometry except ``turn``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BOX, FRUSTUM, CYLINDER, ELLIPSOID = range(4)
NEAR = 0.12  # metres: nothing nearer is seen
CHUNK = 1 << 16  # (primitive, ray) pairs worked on at once: keeps temporaries inside the cache
MISS = np.uint64(0xFFFFFFFFFFFFFFFF)

_CORNERS = np.array([(i, j, k) for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], np.float64)  # (8, 3)
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1])  # (12, 2)


def turn(angle: float) -> tuple[float, float]:
    """(cos, sin) of an angle in radians, rounded so that every math library agrees."""
    if angle == 0:
        return 1.0, 0.0
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


class Stage:
    """Collects primitives while a scene is laid out; ``build`` turns them into arrays.

    Half sizes are (hx, hy, hz) about the centre in the primitive's own frame, which is turned by ``yaw`` about z. A FRUSTUM's half sizes
    hold at its bottom and shrink by ``taper`` = (kx, ky) metres per metre of height. CYLINDERs stand upright, ELLIPSOIDs may be turned.
    """

    def __init__(self):
        self.rows: list[tuple] = []

    def add(self, kind, label, material, colour, centre, half, yaw=0.0, taper=(0.0, 0.0), pattern=0, style=(0.0, 0.0, 0.0, 0.0),
            move=(0.0, 0.0), heat=0.0, glow=0.0):
        """One primitive.

        Args:
            label, material, pattern: integers (class; materials.MATERIALS; materials.PATTERNS).
            colour: linear reflectance (r, g, b) in 0..1.
            style: four numbers that its pattern reads (see materials.py).
            move: metres it moves in (x, y) between the two poses of the event camera.
            heat: kelvin above what weather alone would give (engines, bodies, screens).
            glow: radiance it emits in its own colour (lamps), in the units of the tone curve.
        """
        self.rows.append((kind, label, material, pattern, *colour, *centre, *half, *turn(yaw), *taper, *style, *move, heat, glow))

    def box(self, label, material, colour, centre, half, yaw=0.0, **more):
        self.add(BOX, label, material, colour, centre, half, yaw, **more)

    def cylinder(self, label, material, colour, foot, radius, height, **more):
        """Upright cylinder that stands on ``foot`` = (x, y, z)."""
        x, y, z = foot
        self.add(CYLINDER, label, material, colour, (x, y, z + height / 2), (radius, radius, height / 2), **more)

    def ellipsoid(self, label, material, colour, centre, half, yaw=0.0, **more):
        self.add(ELLIPSOID, label, material, colour, centre, half, yaw, **more)

    def build(self, background: list[tuple], **scene) -> "World":
        """Arrays, sorted by kind; ``background`` lists (label, material, pattern, colour) of the surfaces that are not primitives."""
        table = np.array(sorted(self.rows, key=lambda row: row[0]), np.float64)
        extra = np.zeros((len(background), table.shape[1]))
        for row, (label, material, pattern, colour) in zip(extra, background):
            row[:7] = -1, label, material, pattern, *colour
        return World(np.vstack([table, extra]), len(table), **scene)


@dataclass
class World:
    """A laid-out scene: P primitives (rows 0..P-1 of ``table``) and the background's surfaces (rows P..)."""

    table: np.ndarray  # (P + K, 26) float64, columns as in Stage.add
    count: int  # P
    indoor: bool
    camera: "Camera"
    motion: tuple[float, float]  # metres forward and radians of yaw between the event camera's two poses
    paint: object  # (label, material, prim, x, y, z) -> in place: what lies on the ground (road markings, grass, rug)
    room: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)  # x0, x1, y0, y1, height of an indoor scene
    lights: tuple = ()  # street lamps or room lamps: (x, y, z, r, g, b, downward) with radiant intensity r, g, b
    facts: object = None  # scene-specific extras (window for sunlight)

    def __post_init__(self):
        t = self.table
        self.kind = t[: self.count, 0].astype(np.int64)
        self.label, self.material, self.pattern = (t[:, k].astype(np.uint8) for k in (1, 2, 3))
        self.colour = np.ascontiguousarray(t[:, 4:7].T.astype(np.float32))  # (3, P + K)
        self.centre, self.half = t[:, 7:10], t[:, 10:13]
        self.cos, self.sin = t[:, 13], t[:, 14]
        self.taper, self.style, self.move = t[:, 15:17], t[:, 17:21].astype(np.float32), t[:, 21:23]
        self.heat, self.glow = t[:, 23].astype(np.float32), t[:, 24].astype(np.float32)
        # float32 rows for the tracer: 0-2 centre, 3-5 half, 6 cos, 7 sin, 8-9 taper, 10-11 move
        self.shape = np.ascontiguousarray(t[:, [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 21, 22]].T.astype(np.float32))

    def corners(self, time: float) -> np.ndarray:
        """(P, 8, 3) corners of the bounding boxes at ``time`` (0 = picture, 1 = the event camera's second pose)."""
        n = self.count
        local = self.half[:n, None, :] * _CORNERS[None]
        c, s = self.cos[:n, None], self.sin[:n, None]
        out = np.empty((n, 8, 3))
        out[..., 0] = self.centre[:n, None, 0] + time * self.move[:n, None, 0] + (c * local[..., 0] - s * local[..., 1])
        out[..., 1] = self.centre[:n, None, 1] + time * self.move[:n, None, 1] + (s * local[..., 0] + c * local[..., 1])
        out[..., 2] = self.centre[:n, None, 2] + local[..., 2]
        return out


@dataclass(frozen=True)
class Camera:
    """A pinhole camera; ``focal`` is in image widths, so a picture's content does not depend on its size."""

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    focal: float = 0.72

    def axes(self):
        """Unit vectors (forward, right, up) in world axes."""
        cy, sy = turn(self.yaw)
        cp, sp = turn(self.pitch)
        return (cp * cy, cp * sy, sp), (sy, -cy, 0.0), (-(sp * cy), -(sp * sy), cp)

    def project(self, x, y, z, size):
        """World points -> (column, row, depth along the optical axis); pixel (i, j) has its centre at (j + 0.5, i + 0.5)."""
        height, width = size
        f, r, u = self.axes()
        px, py, pz = x - self.position[0], y - self.position[1], z - self.position[2]
        depth = px * f[0] + py * f[1] + pz * f[2]
        scale = self.focal * width / depth
        return width / 2 + (px * r[0] + py * r[1]) * scale, height / 2 - (px * u[0] + py * u[1] + pz * u[2]) * scale, depth


@dataclass
class View:
    """A grid of rays: ``rows`` x ``cols`` from one ``origin`` along ``dirs`` (3, N), or parallel along one direction from N ``starts``."""

    rows: int
    cols: int
    time: float
    bounds: object  # (P, 8, 3) corners -> row0, row1, col0, col1 (P,) of what each primitive may cover
    origin: tuple = ()
    dirs: np.ndarray | None = None
    starts: np.ndarray | None = None
    along: tuple = ()


def _extents(corners, position, axes):
    """Bounds of the boxes in a frame (forward, right, up): smallest and largest right / forward and up / forward, each (P,).

    Boxes that reach behind the eye are cut at the near plane first; boxes wholly behind it get empty intervals (inf, -inf).
    """
    px, py, pz = (corners[..., k] - position[k] for k in range(3))
    depth, right, up = (px * a[0] + py * a[1] + pz * a[2] for a in axes)  # (P, 8) each
    inv = 1 / np.maximum(depth, NEAR)
    u, v = right * inv, up * inv
    out = [u.min(1), u.max(1), v.min(1), v.max(1)]
    ahead = (depth >= NEAR).sum(1)
    for row in np.flatnonzero(ahead < 8):
        if not ahead[row]:
            for k in range(4):
                out[k][row] = (np.inf, -np.inf)[k % 2]
            continue
        q = np.stack([depth[row], right[row], up[row]])
        a, b = q[:, _EDGES[:, 0]], q[:, _EDGES[:, 1]]
        cross = (a[0] < NEAR) != (b[0] < NEAR)
        a, b = a[:, cross], b[:, cross]
        cut = a + (b - a) * ((NEAR - a[0]) / (b[0] - a[0]))  # where edges pierce the near plane
        points = np.concatenate([q[:, q[0] >= NEAR], cut], 1)
        u, v = points[1] / np.maximum(points[0], NEAR), points[2] / np.maximum(points[0], NEAR)
        for k, value in enumerate((u.min(), u.max(), v.min(), v.max())):
            out[k][row] = value
    return out


def _rectangle(low_row, high_row, low_col, high_col, rows, cols):
    """Grid indices whose centres lie between the bounds (with a hair of margin), clipped to the grid."""
    def inside(low, high, n):
        first, last = np.ceil(np.nan_to_num(low) - 1e-3), np.floor(np.nan_to_num(high) + 1e-3) + 1
        return np.clip(first, 0, n).astype(np.int64), np.clip(last, 0, n).astype(np.int64)
    return *inside(low_row, high_row, rows), *inside(low_col, high_col, cols)


def camera_view(camera: Camera, size, time=0.0) -> View:
    """The rays of a picture. Directions have length 1 along the optical axis, so a ray's parameter t IS the depth in metres."""
    height, width = size
    f = camera.focal * width
    forward, right, up = camera.axes()
    u = ((np.arange(width) + 0.5) - width / 2) / f
    v = (height / 2 - (np.arange(height) + 0.5)) / f
    dirs = np.stack([(forward[k] + v[:, None] * up[k] + u[None, :] * right[k]).ravel() for k in range(3)]).astype(np.float32)

    def bounds(corners):
        u0, u1, v0, v1 = (f * bound for bound in _extents(corners, camera.position, (forward, right, up)))
        return _rectangle(height / 2 - v1 - 0.5, height / 2 - v0 - 0.5, u0 + width / 2 - 0.5, u1 + width / 2 - 0.5, height, width)

    return View(height, width, time, bounds, camera.position, dirs)


def ring_view(position, yaw, elevations, azimuths) -> View:
    """A LiDAR's rays, one row per ring: unit directions from elevations (descending) and azimuths (ascending, below a right angle)."""
    c, s = turn(yaw)
    slope = np.tan(elevations)
    flat = 1 / np.sqrt(1 + slope * slope)
    ca, sa = np.cos(azimuths), np.sin(azimuths)  # positive azimuth = left
    dirs = np.stack([(flat[:, None] * (c * ca - s * sa)[None]).ravel(), (flat[:, None] * (s * ca + c * sa)[None]).ravel(),
                     np.repeat(flat * slope, len(azimuths))]).astype(np.float32)
    step = azimuths[1] - azimuths[0]

    def bounds(corners):
        a0, a1, e0, e1 = _extents(corners, position, ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0)))
        a0, a1, seen = np.arctan(a0), np.arctan(a1), a0 <= a1
        # the slope above / horizontal range lies between climb and climb * cos(largest azimuth)
        shrink = np.cos(np.clip(np.maximum(np.abs(a0), np.abs(a1)), 0, 1.57))
        e0, e1 = np.where(e0 > 0, e0 * shrink, e0), np.where(e1 < 0, e1 * shrink, e1)
        r0, r1 = np.searchsorted(-slope, -e1 - 1e-6), np.searchsorted(-slope, -e0 + 1e-6)
        _, _, c0, c1 = _rectangle(e0, e0, (a0 - azimuths[0]) / step, (a1 - azimuths[0]) / step, 1, len(azimuths))
        return r0, np.where(seen, r1, r0), c0, c1

    return View(len(elevations), len(azimuths), 0.0, bounds, position, dirs)


def _pairs(r0, r1, c0, c1, first, cols):
    """Flatten rectangles of a row-major grid: ray index of every (rectangle, cell) pair, and how many each rectangle has."""
    tall, wide = r1 - r0, c1 - c0
    segment = np.repeat(np.arange(len(tall)), tall)  # one segment per rectangle row
    row = np.arange(len(segment)) - np.repeat(np.cumsum(tall) - tall, tall)
    length = wide[segment]
    start = first[segment] + (r0[segment] + row) * cols[segment] + c0[segment]
    ray = np.arange(length.sum()) + np.repeat(start - (np.cumsum(length) - length), length)
    return ray, tall * wide


def intersect(kind, o, d, h, taper=None):
    """Where rays o + t d enter and leave a convex primitive centred at the origin of its own frame.

    Args:
        o, d, h: three float32 arrays each (origin, direction, half sizes), one entry per pair.

    Returns:
        (t_in, t_out): the ray hits iff t_in <= t_out; NaN means no hit.
    """
    if kind == BOX or kind == CYLINDER or kind == FRUSTUM:
        inv = 1 / d[2]
        middle, reach = -o[2] * inv, h[2] * np.abs(inv)
        t_in, t_out = middle - reach, middle + reach
    if kind == BOX:
        for k in (0, 1):
            inv = 1 / d[k]
            middle, reach = -o[k] * inv, h[k] * np.abs(inv)
            t_in, t_out = np.maximum(t_in, middle - reach), np.minimum(t_out, middle + reach)
    elif kind == FRUSTUM:  # four leaning planes: +-x + kx (z + hz) <= hx, and the same for y
        for k in (0, 1):
            room = h[k] - taper[k] * (o[2] + h[2])
            lean = taper[k] * d[2]
            for sign in (1, -1):
                rate = lean + d[k] if sign > 0 else lean - d[k]
                t = (room - o[k] if sign > 0 else room + o[k]) / rate
                t_in, t_out = np.maximum(t_in, np.where(rate < 0, t, -np.inf)), np.minimum(t_out, np.where(rate < 0, np.inf, t))
    else:
        n = 2 if kind == CYLINDER else 3
        oh, dh = [o[k] / h[k] for k in range(n)], [d[k] / h[k] for k in range(n)]
        a, b, c = dh[0] * dh[0] + dh[1] * dh[1], oh[0] * dh[0] + oh[1] * dh[1], oh[0] * oh[0] + oh[1] * oh[1] - 1
        if n == 3:
            a, b, c = a + dh[2] * dh[2], b + oh[2] * dh[2], c + oh[2] * oh[2]
        root, inv = np.sqrt(b * b - a * c), 1 / a
        enter, leave = (-b - root) * inv, (root - b) * inv
        t_in, t_out = (np.maximum(t_in, enter), np.minimum(t_out, leave)) if n == 2 else (enter, leave)
    return t_in, t_out


def trace(world: World, views: list[View]) -> tuple[np.ndarray, np.ndarray]:
    """First hit of every ray of every view, views one after another.

    Returns:
        t (N,) float32 ray parameter (inf = nothing) and prim (N,) int64 row of ``world.table`` (-1 = nothing). The background is not
        considered here (see ``surfaces.background``).
    """
    parallel = views[0].starts is not None
    if parallel:
        rays = views[0].starts
    else:
        rays = views[0].dirs if len(views) == 1 else np.concatenate([v.dirs for v in views], 1)
    key = np.full(rays.shape[1], MISS)
    parts, first, corners = [], 0, {}
    for view in views:
        if view.time not in corners:
            corners[view.time] = world.corners(view.time)
        r0, r1, c0, c1 = view.bounds(corners[view.time])
        prim = np.flatnonzero((r1 > r0) & (c1 > c0))
        c, s = world.cos[prim], world.sin[prim]
        fx, fy, fz = view.along if parallel else view.origin
        if not parallel:  # the eye in the primitive's own frame
            fx = fx - (world.centre[prim, 0] + view.time * world.move[prim, 0])
            fy = fy - (world.centre[prim, 1] + view.time * world.move[prim, 1])
            fz = fz - world.centre[prim, 2]
        local = [c * fx + s * fy, c * fy - s * fx, fz + 0 * c]
        grid = [r0[prim], r1[prim], c0[prim], c1[prim], np.full(len(prim), first), np.full(len(prim), view.cols)]
        parts.append((prim, grid, local))
        first += view.rows * view.cols
    prim = np.concatenate([p[0] for p in parts])
    grid = [np.concatenate([p[1][k] for p in parts]) for k in range(6)]
    local = [np.concatenate([p[2][k] for p in parts]).astype(np.float32) for k in range(3)]
    with np.errstate(all="ignore"):
        for kind in range(4):
            chosen = np.flatnonzero(world.kind[prim] == kind)
            done = np.cumsum((grid[1] - grid[0])[chosen] * (grid[3] - grid[2])[chosen])
            cuts = np.searchsorted(done, np.arange(CHUNK, done[-1] if len(done) else 0, CHUNK), side="right")
            for block in np.split(chosen, np.unique(cuts)):
                if len(block):
                    _trace_block(kind, prim[block], [g[block] for g in grid], [q[block] for q in local], world.shape, rays, parallel, key)
    hit = key != MISS
    t = np.where(hit, (key >> np.uint64(32)).astype(np.uint32).view(np.float32), np.float32(np.inf))
    return t, np.where(hit, (key & np.uint64(0xFFFFFFFF)).astype(np.int64), -1)


def _trace_block(kind, prim, grid, local, shape, rays, parallel, key):
    ray, counts = _pairs(*grid)
    pick = np.repeat(np.arange(len(prim)), counts)
    x, y, z = rays[0][ray], rays[1][ray], rays[2][ray]
    local = [q[pick] for q in local]
    if parallel:
        cx, cy, cz = (shape[k][prim][pick] for k in range(3))
        x, y, z = x - cx, y - cy, z - cz
    if kind != CYLINDER:  # cylinders are round and never turned
        c, s = shape[6][prim][pick], shape[7][prim][pick]
        x, y = c * x + s * y, c * y - s * x
    h = [shape[3 + k][prim][pick] for k in range(3)]
    taper = [shape[8 + k][prim][pick] for k in range(2)] if kind == FRUSTUM else None
    o, d = ((x, y, z), local) if parallel else (local, (x, y, z))
    t_in, t_out = intersect(kind, o, d, h, taper)
    good = np.flatnonzero((t_in <= t_out) & (t_in > np.float32(NEAR)))
    packed = (t_in[good].view(np.uint32).astype(np.uint64) << np.uint64(32)) | prim[pick[good]].astype(np.uint64)
    np.minimum.at(key, ray[good], packed)
