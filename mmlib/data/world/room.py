"""A room: furniture along three walls, a table with chairs, pictures, a window, a television, books, lamps, a person.

Built-in ambiguities, so that no single sensor is enough: some furniture is painted like the wall (RGB cannot tell, depth can); pictures,
window and television lie flat on the wall (depth cannot tell, RGB can); the television and people are warm; night frames are dark.
"""

from __future__ import annotations

import math

import numpy as np

from .geometry import FRUSTUM, Camera, Stage, World
from .materials import MATERIAL as M
from .materials import PATTERN as P
from .props import COATS, Draw, person

CLASSES = ["bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall", "window"]
PALETTE = [(0, 0, 255), (233, 89, 48), (0, 218, 0), (149, 0, 240), (222, 241, 24), (255, 206, 206), (0, 224, 229), (106, 136, 204),
    (117, 29, 41),
           (240, 35, 235), (0, 167, 156), (249, 139, 0), (225, 229, 194)]  # SceneNet's colours for the NYU-13 classes
BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(13)
WALLS = [(0.62, 0.58, 0.50), (0.50, 0.56, 0.56), (0.60, 0.50, 0.40), (0.48, 0.55, 0.46), (0.66, 0.64, 0.62), (0.42, 0.48, 0.58),
    (0.58, 0.46, 0.44)]
WOODS = [(0.40, 0.23, 0.11), (0.24, 0.12, 0.06), (0.52, 0.36, 0.20), (0.60, 0.47, 0.30)]
FABRICS = [(0.42, 0.08, 0.07), (0.08, 0.20, 0.32), (0.14, 0.28, 0.16), (0.48, 0.30, 0.08), (0.30, 0.30, 0.33), (0.45, 0.36, 0.27),
    (0.25, 0.10, 0.28)]


class Placer:
    """Adds boxes in the frame of a wall: along it to the right (a), out of it into the room (b), up (z)."""

    def __init__(self, stage, foot, along, inward):
        self.stage, self.foot, self.along, self.inward = stage, foot, along, inward
        self.flat = inward[1] == 0.0  # the front wall: inward runs along x

    def at(self, a, b, z):
        return self.foot[0] + self.along[0] * a + self.inward[0] * b, self.foot[1] + self.along[1] * a + self.inward[1] * b, z

    def half(self, a, b, z):
        return (b, a, z) if self.flat else (a, b, z)

    def box(self, label, material, colour, a, b, z, ha, hb, hz, **more):
        """A box centred at (a, b, z) with half sizes (ha, hb, hz)."""
        self.stage.box(label, M[material], colour, self.at(a, b, z), self.half(ha, hb, hz), **more)

    def lump(self, label, material, colour, a, b, z, ha, hb, hz, **more):
        self.stage.ellipsoid(label, M[material], colour, self.at(a, b, z), self.half(ha, hb, hz), **more)


def layout(seed: int) -> World:
    """The room of this seed."""
    u, stage = Draw(7002, seed), Stage()
    deep, wide, tall = u(5.2, 6.6), u(5.0, 5.9), u(2.45, 2.8)
    x1, y0, y1 = deep, -wide / 2, wide / 2
    wall, floor = u.tint(u.pick(WALLS), 0.1), u.pick(WOODS)
    front = Placer(stage, (x1, 0.0), (0.0, -1.0), (-1.0, 0.0))  # a runs from left to right as the camera sees it
    left, right = Placer(stage, (0.0, y1), (1.0, 0.0), (0.0, -1.0)), Placer(stage, (0.0, y0), (1.0, 0.0), (0.0, 1.0))
    lights: list[tuple] = []

    # front wall: two places; each side wall: one deep piece and one slim piece
    slots = wide * 0.29
    pieces = ["tv", "shelf"] if u.chance(0.6) else ["tv", "wardrobe"]
    if u.chance(0.5):
        pieces.reverse()
    for a, piece in zip((-slots, slots), pieces):
        _piece(u, stage, front, piece, a, wall, lights)
    big = ["bed", "sofa"]
    if u.chance(0.5):
        big.reverse()
    window_side = int(u.rng.integers(3))
    free = (y0 + (1.75 if big[1] == "bed" else 1.15), y1 - (1.75 if big[0] == "bed" else 1.15))  # between bed and sofa
    middle = (free[0] + free[1]) / 2
    for k, (place, piece) in enumerate(zip((left, right), big)):
        at = u(2.8, 3.2)
        _piece(u, stage, place, piece, at, wall, lights)
        slim = u.pick(["shelf", "cabinet", "lamp"]) if pieces[0] != "shelf" and pieces[1] != "shelf" and k == 0 else u.pick(["cabinet",
            "lamp", "plant", "shelf"])
        if deep - at > 2.2:
            _piece(u, stage, place, slim, min(deep - 0.75, at + 1.9), wall, lights)
        if window_side == k:
            _window(u, stage, place, at + u(0.2, 0.9), wall)
        else:
            for a in (at - 0.55, at + u(0.5, 0.8)):
                _picture(u, place, a, u(1.5, 1.75))
    if window_side == 2:
        _window(u, stage, front, u(-0.15, 0.15), wall)
    elif u.chance(0.8):
        _picture(u, front, u(-0.2, 0.2), 1.7)
    table = u(2.5, 3.1)
    _table(u, stage, table, middle + u(-0.15, 0.15))
    if u.chance(0.7):
        x, y = u(1.9, 3.2), middle + u(-0.3, 0.3)
        stage.box(FLOOR, M["carpet"], u.pick(FABRICS), (x, y, 0.006), (u(0.9, 1.3), u(0.8, 1.1), 0.006), pattern="rug",
            style=(0.6, 0.5, 0.36, 0.0))
    if u.chance(0.55):
        person(u, stage, OBJECTS, table + u(0.95, 1.4), u(free[0] + 0.2, free[1] - 0.2), 0.0, u(0, 6.28))
    for _ in range(2):  # things left on the floor
        x, y, r = u(1.6, 2.1), u(free[0] + 0.2, free[1] - 0.2), u(0.10, 0.17)
        if u.chance(0.5):
            stage.ellipsoid(OBJECTS, M["rubber"], u.pick(COATS), (x, y, r), (r, r, r))
        else:
            stage.box(OBJECTS, M["paper"], (0.50, 0.36, 0.22), (x, y, r), (r * 1.3, r, r), yaw=u(0, 3.1), pattern="board",
                style=(1.0, 2.0, 0, 0))
    for x in (deep * 0.35, deep * 0.72):
        stage.cylinder(OBJECTS, M["lamp"], (1.0, 0.93, 0.80), (x, 0.0, tall - 0.07), 0.26, 0.06, glow=1.6)
        lights.append((x, 0.0, tall - 0.45, 1.5, 1.32, 1.05, False))

    camera = Camera((0.30, u(-0.7, 0.7), u(1.35, 1.65)), u(-0.16, 0.16), u(-0.16, -0.07), 0.64)
    wood = u.tint(floor)
    ceiling = (0.78, 0.78, 0.76)
    background = [(FLOOR, M["parquet"] if u.chance(0.75) else M["carpet"], 0, wood),
        (CEILING, M["tile"], 0, ceiling)] + [(WALL, M["render"], 0, wall)] * 4
    window = next(((row[7:10], row[10:13]) for row in stage.rows if row[3] == P["window"]), None)
    return stage.build(background, indoor=True, camera=camera, motion=(u(0.02, 0.06), u(-0.025, 0.025)), paint=lambda *_: None,
        room=(0.0, x1, y0, y1, tall), lights=tuple(lights), facts={"window": window})


# ---------------------------------------------------------------- furniture
def _piece(u, stage, place, name, a, wall, lights):
    finish = ("render", u.tint(wall, 0.05)) if u.chance(0.4) else ("wood", u.tint(u.pick(WOODS)))  # some of it is painted like the wall
    {"tv": _tv, "shelf": _shelf, "wardrobe": _wardrobe, "cabinet": _cabinet, "bed": _bed, "sofa": _sofa, "lamp": _lamp,
        "plant": _plant}[name](u, stage, place, a, finish, lights)


def _tv(u, stage, place, a, finish, lights):
    place.box(FURNITURE, *finish, a, 0.24, 0.25, 0.80, 0.22, 0.25, pattern="board", style=(3.0, 1.0, 0, 0))
    w = u(0.58, 0.74)
    place.box(TV, "screen", (0.02, 0.02, 0.02), a, 0.10, 0.62 + w * 0.56, w, 0.03, w * 0.56, pattern="tv",
        style=(u(), float(u.chance(0.75)), 0, 0), heat=9.0)
    for k in (-1, 1):
        r = u(0.06, 0.09)
        place.box(OBJECTS, "rubber", u.pick(COATS), a + k * 0.72, 0.25, 0.5 + r * 1.6, r, r, r * 1.6)


def _shelf(u, stage, place, a, finish, lights):
    """Bookcase: sides, boards, back and rows of books."""
    w, tall, deep = u(0.52, 0.68), u(1.7, 2.1), 0.17
    place.box(FURNITURE, *finish, a, 0.02, tall / 2, w, 0.02, tall / 2)
    for side in (-1, 1):
        place.box(FURNITURE, *finish, a + side * w, deep, tall / 2, 0.025, deep, tall / 2)
    boards = 5
    for k in range(boards + 1):
        z = 0.04 + (tall - 0.06) * k / boards
        place.box(FURNITURE, *finish, a, deep, z, w, deep, 0.02)
        if k < boards:
            room = (tall - 0.06) / boards - 0.07
            if u.chance(0.88):
                fill = u(0.75, 0.97) * w
                place.box(BOOKS, "paper", (0.5, 0.4, 0.3), a - (w - fill) * u.pick([-0.9, 0.9]), 0.15, z + 0.02 + room / 2, fill, 0.12,
                    room / 2, pattern="books")
            else:
                place.lump(OBJECTS, "rubber", u.pick(COATS), a + u(-0.2, 0.2), 0.17, z + 0.02 + 0.11, 0.09, 0.09, 0.11)


def _wardrobe(u, stage, place, a, finish, lights):
    w, tall = u(0.6, 0.8), u(1.85, 2.15)
    place.box(FURNITURE, *finish, a, 0.29, tall / 2, w, 0.29, tall / 2, pattern="board", style=(2.0, 1.0, 0, 0))


def _cabinet(u, stage, place, a, finish, lights):
    w, tall = u(0.45, 0.6), u(0.75, 1.1)
    place.box(FURNITURE, *finish, a, 0.22, tall / 2, w, 0.22, tall / 2, pattern="board", style=(1.0, 4.0, 0, 0))
    r = u(0.08, 0.12)
    place.lump(OBJECTS, "tile", u.pick(COATS), a - 0.2, 0.22, tall + r, r, r, r)
    place.box(BOOKS, "paper", (0.5, 0.4, 0.3), a + 0.14, 0.2, tall + 0.12, 0.18, 0.09, 0.12, pattern="books")


def _bed(u, stage, place, a, finish, lights):
    """Along the wall, headboard at the far end: frame, mattress, blanket, pillows."""
    w, long = u(0.70, 0.80), 1.02
    cloth, frame = u.tint(u.pick(FABRICS)), u.tint(u.pick(WOODS))
    place.box(BED, "wood", frame, a + long + 0.05, w, 0.48, 0.05, w, 0.48, pattern="board", style=(2.0, 1.0, 0, 0))
    place.box(BED, "wood", frame, a, w, 0.17, long, w, 0.13)
    place.box(BED, "cloth", (0.74, 0.73, 0.70), a, w, 0.39, long - 0.02, w - 0.02, 0.10)
    place.box(BED, "cloth", cloth, a - 0.30, w, 0.42, long - 0.31, w + 0.03, 0.13, pattern="stripes", style=(u(2, 5), 0.35, 0, 0))
    for side in (-1, 1):
        place.lump(BED, "cloth", (0.80, 0.79, 0.76), a + long - 0.30, w + side * w * 0.48, 0.53, 0.22, w * 0.40, 0.11)


def _sofa(u, stage, place, a, finish, lights):
    """Seat, back, arms and cushions."""
    w, cloth, accent = u(0.85, 1.0), u.tint(u.pick(FABRICS)), u.pick(FABRICS)
    place.box(SOFA, "carpet", cloth, a, 0.46, 0.22, w, 0.44, 0.20)
    place.box(SOFA, "carpet", cloth, a, 0.14, 0.50, w, 0.14, 0.38)
    for side in (-1, 1):
        place.box(SOFA, "carpet", cloth, a + side * w, 0.46, 0.32, 0.11, 0.46, 0.31)
        place.box(SOFA, "carpet", u.tint(cloth, 0.1), a + side * (w - 0.12) * 0.5, 0.52, 0.46, (w - 0.14) * 0.48, 0.36, 0.07)
        place.lump(SOFA, "cloth", accent, a + side * w * 0.6, 0.36, 0.68, 0.22, 0.13, 0.20)


def _lamp(u, stage, place, a, finish, lights):
    """Floor lamp with a warm shade."""
    x, y, _ = place.at(a, 0.30, 0)
    stage.cylinder(OBJECTS, M["metal"], (0.12, 0.11, 0.10), (x, y, 0.0), 0.15, 0.03)
    stage.cylinder(OBJECTS, M["metal"], (0.12, 0.11, 0.10), (x, y, 0.0), 0.02, 1.45)
    stage.add(FRUSTUM, OBJECTS, M["lamp"], (1.0, 0.80, 0.52), (x, y, 1.60), (0.24, 0.24, 0.17), taper=(0.3, 0.3), glow=1.6, heat=6.0)
    inward = place.at(a, 0.75, 0)
    lights.append((inward[0], inward[1], 1.5, 1.3, 0.95, 0.55, False))


def _plant(u, stage, place, a, finish, lights):
    x, y, _ = place.at(a, 0.32, 0)
    stage.cylinder(OBJECTS, M["brick"], (0.45, 0.20, 0.11), (x, y, 0.0), 0.17, 0.32)
    stage.cylinder(OBJECTS, M["bark"], (0.2, 0.14, 0.08), (x, y, 0.3), 0.025, 0.5)
    for k in range(5):
        stage.ellipsoid(OBJECTS, M["leaf"], u.tint((0.10, 0.24, 0.06), 0.2), (x + u(-0.16, 0.16), y + u(-0.16, 0.16), u(0.65, 1.25)),
            (u(0.14, 0.22), u(0.14, 0.22), u(0.12, 0.2)))


def _window(u, stage, place, a, wall):
    """Window flat on the wall, sill, curtains (NYU's 13 classes count curtains as window)."""
    w, h, z = u(0.62, 0.80), u(0.55, 0.65), 1.55
    place.box(WINDOW, "render", (0.8, 0.8, 0.78), a, 0.012, z, w, 0.012, h, pattern="window")
    place.box(WINDOW, "render", (0.75, 0.74, 0.72), a, 0.08, z - h - 0.03, w + 0.08, 0.08, 0.025)
    cloth = u.tint(u.pick(FABRICS + WALLS))
    for side in (-1, 1):
        place.box(WINDOW, "cloth", cloth, a + side * (w + 0.10), 0.05, z - 0.12, 0.17, 0.045, h + 0.28, pattern="stripes",
            style=(11.0, 0.55, 0, 0))


def _picture(u, place, a, z):
    w, h = u(0.28, 0.45), u(0.24, 0.36)
    place.box(PICTURE, "paper", (0.7, 0.7, 0.65), a, 0.012, z, w, 0.012, h, pattern="picture", style=(u(), 0, 0, 0))


def _table(u, stage, x, y):
    """Table with four legs, two or three chairs, and a few things on it."""
    wood, seat = u.tint(u.pick(WOODS)), u.tint(u.pick(FABRICS))
    hx, hy, tall = u(0.38, 0.48), u(0.55, 0.72), 0.74
    stage.box(TABLE, M["wood"], wood, (x, y, tall), (hx, hy, 0.025))
    stage.box(TABLE, M["wood"], tuple(c * 0.8 for c in wood), (x, y, tall - 0.07), (hx - 0.06, hy - 0.06, 0.05))
    for a in (1, -1):
        for b in (1, -1):
            stage.cylinder(TABLE, M["wood"], tuple(c * 0.8 for c in wood), (x + a * (hx - 0.07), y + b * (hy - 0.07), 0.0), 0.035,
                tall - 0.03)
    spots = [(0.0, hy + 0.22, math.pi / 2), (0.0, -hy - 0.22, -math.pi / 2), (hx + 0.25, 0.0, 0.0)]
    for k, (dx, dy, yaw) in enumerate(spots):
        if k < 2 or u.chance(0.6):
            _chair(u, stage, x + dx + u(-0.08, 0.08), y + dy + u(-0.08, 0.08), yaw + u(-0.35, 0.35), seat, wood)
    r = u(0.07, 0.10)
    stage.ellipsoid(OBJECTS, M["tile"], u.pick(COATS), (x + u(-0.15, 0.15), y + u(-0.3, 0.3), tall + 0.02 + r), (r, r, r * 1.2))
    stage.cylinder(OBJECTS, M["tile"], (0.75, 0.74, 0.7), (x - 0.1, y + u(-0.35, 0.35), tall + 0.02), 0.045, 0.11, heat=u.pick([0.0, 25.0]))
    if u.chance(0.6):
        for k in range(3):
            stage.box(BOOKS, M["paper"], u.pick(FABRICS), (x + 0.1, y + 0.28, tall + 0.05 + 0.045 * k), (0.11, 0.15, 0.022), yaw=0.25 * k)


def _chair(u, stage, x, y, yaw, seat, wood):
    """Seat, back (away from the table) and four legs."""
    c, s = round(math.cos(yaw), 9), round(math.sin(yaw), 9)
    def at(a, b):
        return x + c * a - s * b, y + s * a + c * b
    stage.box(CHAIR, M["carpet"], seat, (*at(0, 0), 0.45), (0.21, 0.21, 0.035), yaw)
    stage.box(CHAIR, M["wood"], wood, (*at(0.20, 0), 0.78), (0.02, 0.20, 0.17), yaw, pattern="stripes", style=(9.0, 0.4, 0, 0))
    for a in (1, -1):
        for b in (1, -1):
            stage.cylinder(CHAIR, M["wood"], wood, (*at(a * 0.18, b * 0.18), 0.0), 0.022, 0.43 if a < 0 else 0.95)
