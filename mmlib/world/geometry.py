"""Convex primitives, ray grids and the tracer that finds which primitive each ray meets first.

World axes: x forward along the street (or into the room), y left, z up; metres. A scene is a few hundred
*convex* primitives plus an analytic background (ground plane, or the inside of a room). Every ray grid
(camera, second pose of the event camera, LiDAR rings, light map) is a "view". Each primitive is tested only
against the rays inside its bounding rectangle in that grid, and all (primitive, ray) pairs of one kind are
intersected in one vectorised pass; the nearest hit is kept with an atomic minimum over keys that pack
distance and primitive.

Labels must be the same bits on every CPU. So whatever decides visibility uses +, -, *, /, sqrt, floor and
comparisons only, one numpy call each (IEEE 754 rounds these the same everywhere); no matmul, no reductions in
floating point, no trigonometry except ``turn``.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHAPES = "box frustum cylinder ellipsoid background".split()
BOX, FRUSTUM, CYLINDER, ELLIPSOID, BACKGROUND = range(5)
NEAR = 0.12  # metres: nothing nearer is seen
CHUNK = 1 << 16  # (primitive, ray) pairs worked on at once: keeps temporaries inside the cache
MISS = np.iinfo(np.int64).max

_CORNERS = np.indices((2, 2, 2)).reshape(3, 1, 8) * 2.0 - 1  # of a box with half sizes 1
# pairs of corners that differ along one axis (2, 12)
_EDGES = np.array([(corner, corner | bit) for bit in (1, 2, 4) for corner in range(8) if not corner & bit]).T


@lru_cache
def turn(angle: float) -> tuple[float, float]:
    """(cos, sin) of an angle in radians, rounded so that every math library agrees."""
    return round(math.cos(angle), 9), round(math.sin(angle), 9)


def dot(a, b):
    """Scalar product of vectors given as three arrays (or numbers) each."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


# A primitive, or a surface of the background; ``props`` says what its entries mean. Besides: ``turn`` is the
# (cos, sin) of the angle about z by which its own frame is turned, ``style`` holds its pattern's numbers, and
# ``move`` is in metres (x, y, z) between the two poses of the event camera.
ROW = dict(
    kind="i8",
    label="u1",
    material="u1",
    pattern="u1",
    colour="f4",
    centre="f8",
    half="f8",
    turn="f8",
    taper="f8",
    style="f4",
    move="f8",
    heat="f4",
    glow="f4",
)


@dataclass
class World:
    """A laid-out scene: P primitives, sorted by kind, and after them the K surfaces of the background.

    Every entry of ``ROW`` is an attribute: an array (P + K,), or (n, P + K) where the entry has n numbers.
    """

    rows: list[tuple]  # (P + K,) with the entries of ROW
    camera: "Camera"
    motion: tuple[float, float]  # metres forward and radians of yaw between the event camera's two poses
    # street lamps or room lamps: (x, y, z, r, g, b, downward) with radiant intensity r, g, b
    lights: list
    # (label, material, x, y, z) -> in place: what lies on the ground (road markings, grass)
    paint: object = lambda *_: None
    tones: list | tuple = ()  # outdoors: (material, reflectance) of the ground
    room: tuple[float, ...] = ()  # x0, x1, y0, y1, height of a room; outdoors empty
    window: tuple | None = None  # indoors: centre, half sizes

    def __post_init__(self):
        for (name, dtype), column in zip(ROW.items(), zip(*self.rows)):
            setattr(self, name, np.ascontiguousarray(np.array(column, dtype).T))
        self.count = np.count_nonzero(self.kind < BACKGROUND)  # P
        self.indoor = bool(self.room)
        # float32 rows for the tracer: 0-2 centre, 3-5 half, 6 cos, 7 sin, 8-9 taper, 10-11 move
        rows = [*self.centre, *self.half, *self.turn, *self.taper, *self.move[:2]]
        self.shape = np.array(rows, np.float32)

    def centres(self, time: float) -> np.ndarray:
        """(3, P + K) centres at ``time`` (0 = picture, -1 = the event camera's earlier pose)."""
        return self.centre + time * self.move

    def corners(self, time: float) -> np.ndarray:
        """(3, P + K, 8) corners of the bounding boxes."""
        (x, y, z), (c, s) = self.half[..., None] * _CORNERS, self.turn[..., None]
        return self.centres(time)[..., None] + np.stack([c * x - s * y, s * x + c * y, z])


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
        """World points -> (column, row, depth along the optical axis); pixel (i, j) has its centre at (j +
        0.5, i + 0.5).
        """
        height, width = size
        offset = [value - start for value, start in zip((x, y, z), self.position)]
        depth, right, up = (dot(offset, axis) for axis in self.axes())
        scale = self.focal * width / depth
        return width / 2 + right * scale, height / 2 - up * scale, depth


@dataclass
class View:
    """A grid of N = rows x cols rays, from one ``origin`` along ``dirs`` (3, N), or from N origins (3, N)
    along one direction.
    """

    rows: int
    cols: int
    bounds: object  # (3, P, 8) corners -> row0, row1, col0, col1 (P,) of what each primitive may cover
    origin: tuple | np.ndarray
    dirs: tuple | np.ndarray
    time: float = 0.0


def _extents(corners, position, axes):
    """Bounds of the boxes in a frame (forward, right, up): the smallest and the largest right / forward and
    up / forward, (2, P) each.

    Boxes that reach behind the eye are cut at the near plane first; boxes wholly behind it get empty
    intervals (inf, -inf).
    """
    offset = corners - np.array(position)[:, None, None]
    ends = np.stack([dot(offset, axis) for axis in axes])  # (3, P, 8): depth, right, up
    a, b = ends[..., _EDGES[0]], ends[..., _EDGES[1]]
    with np.errstate(all="ignore"):
        cuts = a + (b - a) * ((NEAR - a[0]) / (b[0] - a[0]))  # where edges pierce the near plane
        points = np.concatenate([ends, cuts], 2)
        slopes = points[1:] / points[0]
    visible = np.concatenate([ends[0] >= NEAR, (a[0] < NEAR) != (b[0] < NEAR)], 1)
    return [
        slopes.min(2, where=visible, initial=np.inf),
        slopes.max(2, where=visible, initial=-np.inf),
    ]


def cells(low, high, n):
    """First and last + 1 of the n cells whose centres (at 0, 1, ...) lie between the bounds, with a hair of
    margin.
    """
    return (np.clip(end, 0, n).astype(np.int64) for end in (np.ceil(low - 1e-3), np.floor(high + 1e-3) + 1))


def camera_view(camera: Camera, size, time=0.0) -> View:
    """The rays of a picture. Directions have length 1 along the optical axis, so a ray's parameter t IS the
    depth in metres.
    """
    height, width = size
    f = camera.focal * width
    axes = forward, right, up = camera.axes()
    u = ((np.arange(width) + 0.5) - width / 2) / f
    v = (height / 2 - (np.arange(height)[:, None] + 0.5)) / f
    dirs = np.array([(a + v * b + u * c).ravel() for a, b, c in zip(forward, up, right)], np.float32)

    def bounds(corners):
        (u0, v0), (u1, v1) = (f * bound for bound in _extents(corners, camera.position, axes))
        rows = cells(height / 2 - v1 - 0.5, height / 2 - v0 - 0.5, height)
        return *rows, *cells(u0 + width / 2 - 0.5, u1 + width / 2 - 0.5, width)

    return View(height, width, bounds, camera.position, dirs, time)


def ring_view(position, yaw, elevations, azimuths) -> View:
    """A LiDAR's rays, one row per ring: unit directions from elevations (descending) and azimuths (ascending,
    below a right angle).
    """
    c, s = turn(yaw)
    slope = np.tan(elevations)
    flat = 1 / np.sqrt(1 + slope * slope)
    ca, sa = np.cos(azimuths), np.sin(azimuths)  # positive azimuth = left
    dirs = np.stack(
        [
            np.outer(flat, c * ca - s * sa).ravel(),
            np.outer(flat, s * ca + c * sa).ravel(),
            np.repeat(flat * slope, len(azimuths)),
        ]
    ).astype(np.float32)
    step = azimuths[1] - azimuths[0]

    def bounds(corners):
        (a0, e0), (a1, e1) = _extents(corners, position, ((c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0)))
        a0, a1 = np.arctan(a0), np.arctan(a1)
        # the slope above / horizontal range lies between climb and climb * cos(largest azimuth)
        shrink = np.cos(np.clip(np.maximum(np.abs(a0), np.abs(a1)), 0, 1.57))
        e0, e1 = np.where(e0 > 0, e0 * shrink, e0), np.where(e1 < 0, e1 * shrink, e1)
        r0, r1 = np.searchsorted(-slope, -e1 - 1e-6), np.searchsorted(-slope, -e0 + 1e-6)
        return r0, r1, *cells((a0 - azimuths[0]) / step, (a1 - azimuths[0]) / step, len(azimuths))

    return View(len(elevations), len(azimuths), bounds, position, dirs)


def intersect(kind, o, d, h, taper=None):
    """(t_in, t_out) where rays o + t d enter and leave a convex primitive centred at the origin of its own
    frame; they hit it iff t_in <= t_out (NaN: no hit). o, d, h: three float32 arrays each (origin, direction,
    half sizes), one entry per pair.
    """
    t_in, t_out = -np.inf, np.inf
    # between two parallel planes
    for k in {BOX: (2, 0, 1), FRUSTUM: (2,), CYLINDER: (2,), ELLIPSOID: ()}[kind]:
        inv = 1 / d[k]
        middle, reach = -o[k] * inv, h[k] * np.abs(inv)
        t_in, t_out = np.maximum(t_in, middle - reach), np.minimum(t_out, middle + reach)
    if kind == FRUSTUM:  # four leaning planes: +-x + kx (z + hz) <= hx, and the same for y
        for k in (0, 1):
            room, lean = h[k] - taper[k] * (o[2] + h[2]), taper[k] * d[2]
            for sign in (1, -1):
                rate = lean + sign * d[k]
                t = (room - sign * o[k]) / rate
                t_in = np.maximum(t_in, np.where(rate < 0, t, -np.inf))
                t_out = np.minimum(t_out, np.where(rate < 0, np.inf, t))
    elif kind != BOX:  # quadratic equation; a cylinder is an ellipsoid without end along z
        reach = h[0], h[1], np.inf if kind == CYLINDER else h[2]
        oh, dh = ([a / b for a, b in zip(vector, reach)] for vector in (o, d))
        a, b, c = dot(dh, dh), dot(oh, dh), oh[0] * oh[0] + oh[1] * oh[1] - 1 + oh[2] * oh[2]
        root, inv = np.sqrt(b * b - a * c), 1 / a
        t_in, t_out = np.maximum(t_in, (-b - root) * inv), np.minimum(t_out, (root - b) * inv)
    return t_in, t_out


def trace(world: World, views: list[View]) -> tuple[np.ndarray, np.ndarray]:
    """First hit of every ray of every view (either all parallel or none), views one after another: t (N,)
    float32 ray parameter (inf = nothing) and prim (N,) int64 row of the world (-1 = nothing). For the
    background see ``surfaces.background``.
    """
    parallel = np.ndim(views[0].origin) == 2
    rays = np.concatenate([v.origin if parallel else v.dirs for v in views], 1)
    parts, first, (c, s) = [], 0, world.turn
    for view in views:
        row0, row1, col0, col1 = view.bounds(world.corners(view.time))
        tall, wide = row1 - row0, col1 - col0
        # what the view's rays share, in each primitive's own frame: the eye, or the direction of parallel
        # light
        x, y, z = view.dirs if parallel else np.array(view.origin)[:, None] - world.centres(view.time)
        # primitive, its first ray, rays from row to row, columns, rays, what they share
        entries = np.arange(len(c)), first + row0 * view.cols + col0, view.cols, wide, tall * wide
        part = np.stack(np.broadcast_arrays(*entries, c * x + s * y, c * y - s * x, z))
        parts.append(part[:, (tall > 0) & (wide > 0)])
        first += view.rows * view.cols
    table = np.concatenate(parts, 1)
    kinds = world.kind[table[0].astype(np.int64)]
    key = np.full(rays.shape[1], MISS)
    with np.errstate(all="ignore"):
        for kind in range(BACKGROUND):
            columns = table[:, kinds == kind]
            cuts = np.flatnonzero(np.diff(np.cumsum(columns[4]) // CHUNK)) + 1
            for block in np.split(columns, cuts, 1):
                _keep_nearest(key, world.shape, kind, block, rays, parallel)
    hit = key != MISS
    t = np.where(hit, (key >> 32).astype(np.int32).view(np.float32), np.float32(np.inf))
    return t, np.where(hit, key & 0xFFFFFFFF, -1)


def _keep_nearest(key, shape, kind, block, rays, parallel):
    """Intersect primitives of one kind (columns of ``block``) with the rays of their rectangles and lower
    ``key`` where they are hit.
    """
    prim, first, cols, wide, area = block[:5].astype(np.int64)
    # flatten: one pair per cell of a rectangle
    pick = np.repeat(np.arange(len(prim)), area)
    row, col = np.divmod(np.arange(len(pick)) - (np.cumsum(area) - area)[pick], wide[pick])
    ray = first[pick] + row * cols[pick] + col

    def each(*columns):
        return [shape[k][prim][pick] for k in columns]

    x, y, z = (along[ray] for along in rays)
    shared = [values[pick] for values in block[5:].astype(np.float32)]
    if parallel:
        cx, cy, cz = each(0, 1, 2)
        x, y, z = x - cx, y - cy, z - cz
    if kind != CYLINDER:  # cylinders are round and never turned
        c, s = each(6, 7)
        x, y = c * x + s * y, c * y - s * x
    o, d = ((x, y, z), shared) if parallel else (shared, (x, y, z))
    t_in, t_out = intersect(kind, o, d, each(3, 4, 5), each(8, 9) if kind == FRUSTUM else None)
    good = np.flatnonzero((t_in <= t_out) & (t_in > NEAR))
    packed = t_in[good].view(np.int32).astype(np.int64) << 32 | prim[pick[good]]
    np.minimum.at(key, ray[good], packed)
