"""A room: furniture along three walls, table and chairs, pictures, window, television, books, lamps, person.

Built-in ambiguities, so that no single sensor is enough: some furniture is painted like the wall (RGB cannot
tell, depth can); pictures, window and television lie flat on the wall (depth cannot tell, RGB can); the
television and people are warm; night frames are dark. Every function draws random numbers in a fixed order: a
seed's room stays the same only as long as that order does.
"""

import math
from functools import partial

from .geometry import Camera, World
from .materials import PATTERN
from .props import Draw, frame, person, shaded

PAIR = (-1, 1)  # the two sides of a thing


class Wall:
    """Adds things in the frame of a wall: along it to the right (a), out of it into the room (b), up (z), in
    metres from its foot. ``box`` and ``lump`` (an ellipsoid) take what ``put`` takes after the shape.
    """

    def __init__(self, draw, foot, along, inward):
        self.plan, self.inward = list(zip(foot, along, inward)), inward
        self.box, self.lump = (partial(self.put, shape) for shape in (draw.box, draw.ellipsoid))

    def at(self, a, b):
        """World (x, y) of a place."""
        return tuple(foot + along * a + inward * b for foot, along, inward in self.plan)

    def put(self, shape, label, finish, a, b, z, half_a, half_b, half_z, **more):
        half = (half_b, half_a, half_z) if self.inward[0] else (half_a, half_b, half_z)
        shape(label, finish, (*self.at(a, b), z), half, **more)


def layout(seed: int) -> World:
    """The room of this seed."""
    draw = Draw(7002, seed)
    deep, wide, tall = draw(5.2, 6.6), draw(5.0, 5.9), draw(2.45, 2.8)
    paint, floor = draw.tint("walls", 0.1), draw.finish("woods")
    # a runs from left to right as the camera sees it
    front = Wall(draw, (deep, 0.0), (0.0, -1.0), (-1.0, 0.0))
    left, right = (Wall(draw, (0.0, side * wide / 2), (1.0, 0.0), (0.0, -side)) for side in (1, -1))

    # front wall: two places; each side wall: one deep piece and one slim piece
    pieces = draw.order("tv", "shelf" if draw.chance(0.6) else "wardrobe")
    for side, piece in zip(PAIR, pieces):
        _piece(draw, front, piece, side * wide * 0.29, paint)
    big = draw.order("bed", "sofa")
    window_side = draw.count(0, 3)
    # between bed and sofa
    left_deep, right_deep = (1.75 if piece == "bed" else 1.15 for piece in big)
    low, high = right_deep - wide / 2, wide / 2 - left_deep
    middle = (low + high) / 2
    for k, (wall, piece) in enumerate(zip((left, right), big)):
        a = draw(2.8, 3.2)
        _piece(draw, wall, piece, a, paint)
        shelf_left = k == 0 and "shelf" not in pieces
        slim = draw.pick(
            ["shelf", "cabinet", "lamp"] if shelf_left else ["cabinet", "lamp", "plant", "shelf"]
        )
        if deep - a > 2.2:
            _piece(draw, wall, slim, min(deep - 0.75, a + 1.9), paint)
        if window_side == k:
            _window(draw, wall, a + draw(0.2, 0.9))
        else:
            for place in (a - 0.55, a + draw(0.5, 0.8)):
                _picture(draw, wall, place, draw(1.5, 1.75))
    if window_side == 2:
        _window(draw, front, draw(-0.15, 0.15))
    elif draw.chance(0.8):
        _picture(draw, front, draw(-0.2, 0.2), 1.7)
    table = draw(2.5, 3.1)
    _table(draw, table, middle + draw(-0.15, 0.15))
    if draw.chance(0.7):
        centre = draw(1.9, 3.2), middle + draw(-0.3, 0.3), 0.006
        finish, half = draw.finish("fabrics", "carpet"), (draw(0.9, 1.3), draw(0.8, 1.1), 0.006)
        draw.box("floor", finish, centre, half, pattern=("rug", 0.6, 0.5, 0.36))
    if draw.chance(0.55):
        person(draw, "objects", table + draw(0.95, 1.4), draw(low + 0.2, high - 0.2), 0.0, draw(0, 6.28))
    for _ in range(2):  # things left on the floor
        x, y, r = draw(1.6, 2.1), draw(low + 0.2, high - 0.2), draw(0.10, 0.17)
        if draw.chance(0.5):
            draw.ellipsoid("objects", draw.finish("coats", "rubber"), (x, y, r), r)
        else:
            half, yaw = (r * 1.3, r, r), draw(0, 3.1)
            draw.box("objects", "cardboard", (x, y, r), half, yaw, pattern=("board", 1, 2))
    for x in (deep * 0.35, deep * 0.72):
        draw.cylinder("objects", "ceiling lamp", (x, 0.0, tall - 0.07), 0.26, 0.06, glow=1.6)
        draw.lights.append((x, 0.0, tall - 0.45, 1.5, 1.32, 1.05, False))

    camera = Camera((0.30, draw(-0.7, 0.7), draw(1.35, 1.65)), draw(-0.16, 0.16), draw(-0.16, -0.07), 0.64)
    _, wood = draw.tint(floor)
    draw.background("floor", ("parquet" if draw.chance(0.75) else "carpet", wood))
    draw.background("ceiling", "ceiling")
    for _ in range(4):
        draw.background("wall", paint)
    return draw.build(
        camera=camera,
        motion=(draw(0.02, 0.06), draw(-0.025, 0.025)),
        room=(0.0, deep, -wide / 2, wide / 2, tall),
        window=next((row[5:7] for row in draw.rows if row[3] == PATTERN["window"]), None),
    )


# ---------------------------------------------------------------- furniture along the walls
def _piece(draw, wall, name, a, paint):
    """One piece of furniture at place ``a`` of a wall."""
    # some like the wall
    finish = draw.tint(paint, 0.05) if draw.chance(0.4) else draw.tint("woods")
    body = partial(wall.box, "furniture", finish)
    match name:
        case "tv":
            body(a, 0.24, 0.25, 0.80, 0.22, 0.25, pattern=("board", 3, 1))
            w = draw(0.58, 0.74)
            h, pattern = w * 0.56, ("tv", draw(), draw.chance(0.75))
            wall.box("tv", "screen", a, 0.10, 0.62 + h, w, 0.03, h, pattern=pattern, heat=9.0)
            for side in PAIR:
                r = draw(0.06, 0.09)
                coat, tall = draw.finish("coats", "rubber"), r * 1.6
                wall.box("objects", coat, a + side * 0.72, 0.25, 0.5 + tall, r, r, tall)
        case "shelf":  # bookcase: back, sides, boards and rows of books
            w, tall, deep, floors = draw(0.52, 0.68), draw(1.7, 2.1), 0.17, 5
            body(a, 0.02, tall / 2, w, 0.02, tall / 2)
            for side in PAIR:
                body(a + side * w, deep, tall / 2, 0.025, deep, tall / 2)
            room = (tall - 0.06) / floors - 0.07
            for k in range(floors + 1):
                z = 0.04 + (tall - 0.06) * k / floors
                body(a, deep, z, w, deep, 0.02)
                if k == floors:
                    break
                z += 0.02
                if draw.chance(0.88):
                    fill, h = draw(0.75, 0.97) * w, room / 2
                    place = a - (w - fill) * draw.pick([-0.9, 0.9])
                    wall.box("books", "row of books", place, 0.15, z + h, fill, 0.12, h, pattern=("books",))
                else:
                    vase = draw.finish("coats", "rubber")
                    wall.lump("objects", vase, a + draw(-0.2, 0.2), 0.17, z + 0.11, 0.09, 0.09, 0.11)
        case "wardrobe":
            w, tall = draw(0.6, 0.8), draw(1.85, 2.15)
            body(a, 0.29, tall / 2, w, 0.29, tall / 2, pattern=("board", 2, 1))
        case "cabinet":
            w, tall = draw(0.45, 0.6), draw(0.75, 1.1)
            body(a, 0.22, tall / 2, w, 0.22, tall / 2, pattern=("board", 1, 4))
            r = draw(0.08, 0.12)
            wall.lump("objects", draw.finish("coats", "tile"), a - 0.2, 0.22, tall + r, r, r, r)
            wall.box(
                "books", "row of books", a + 0.14, 0.2, tall + 0.12, 0.18, 0.09, 0.12, pattern=("books",)
            )
        case "bed":  # along the wall, headboard at the far end: frame, mattress, blanket, pillows
            w, long = draw(0.70, 0.80), 1.02
            cloth, wood = draw.tint("fabrics"), draw.tint("woods")
            bed = partial(wall.box, "bed")
            bed(wood, a + long + 0.05, w, 0.48, 0.05, w, 0.48, pattern=("board", 2, 1))
            bed(wood, a, w, 0.17, long, w, 0.13)
            bed("mattress", a, w, 0.39, long - 0.02, w - 0.02, 0.10)
            pattern = "stripes", draw(2, 5), 0.35
            bed(cloth, a - 0.30, w, 0.42, long - 0.31, w + 0.03, 0.13, pattern=pattern)
            for side in PAIR:
                place = a + long - 0.30, w + side * w * 0.48, 0.53
                wall.lump("bed", "pillow", *place, 0.22, w * 0.40, 0.11)
        case "sofa":  # seat, back, arms and cushions
            w, cloth = draw(0.85, 1.0), draw.tint(draw.finish("fabrics", "carpet"))
            accent, sofa = draw.finish("fabrics"), partial(wall.box, "sofa")
            sofa(cloth, a, 0.46, 0.22, w, 0.44, 0.20)
            sofa(cloth, a, 0.14, 0.50, w, 0.14, 0.38)
            for side in PAIR:
                sofa(cloth, a + side * w, 0.46, 0.32, 0.11, 0.46, 0.31)
                place = a + side * (w - 0.12) * 0.5, 0.52, 0.46
                sofa(draw.tint(cloth, 0.1), *place, (w - 0.14) * 0.48, 0.36, 0.07)
                wall.lump("sofa", accent, a + side * w * 0.6, 0.36, 0.68, 0.22, 0.13, 0.20)
        case "lamp":  # floor lamp with a warm shade
            foot = wall.at(a, 0.30)
            for radius, tall in ((0.15, 0.03), (0.02, 1.45)):
                draw.cylinder("objects", "lamp stand", (*foot, 0.0), radius, tall)
            shade = (*foot, 1.60), (0.24, 0.24, 0.17)
            draw.frustum("objects", "lamp shade", *shade, taper=0.3, glow=1.6, heat=6.0)
            draw.lights.append((*wall.at(a, 0.75), 1.5, 1.3, 0.95, 0.55, False))
        case "plant":
            x, y = wall.at(a, 0.32)
            draw.cylinder("objects", "flower pot", (x, y, 0.0), 0.17, 0.32)
            draw.cylinder("objects", "stem", (x, y, 0.3), 0.025, 0.5)
            for _ in range(5):
                green = draw.tint("house plant", 0.2)
                centre = x + draw(-0.16, 0.16), y + draw(-0.16, 0.16), draw(0.65, 1.25)
                half = draw(0.14, 0.22), draw(0.14, 0.22), draw(0.12, 0.2)
                draw.ellipsoid("objects", green, centre, half)


def _window(draw, wall, a):
    """Window flat on the wall, sill, curtains (NYU's 13 classes count curtains as window)."""
    w, h, z = draw(0.62, 0.80), draw(0.55, 0.65), 1.55
    window = partial(wall.box, "window")
    window("window", a, 0.012, z, w, 0.012, h, pattern=("window",))
    window("window sill", a, 0.08, z - h - 0.03, w + 0.08, 0.08, 0.025)
    cloth, pattern = draw.tint("curtains"), ("stripes", 11, 0.55)
    for side in PAIR:
        window(cloth, a + side * (w + 0.10), 0.05, z - 0.12, 0.17, 0.045, h + 0.28, pattern=pattern)


def _picture(draw, wall, a, z):
    w, h = draw(0.28, 0.45), draw(0.24, 0.36)
    wall.box("picture", "picture", a, 0.012, z, w, 0.012, h, pattern=("picture", draw()))


# ---------------------------------------------------------------- table and chairs
def _legs(draw, label, finish, at, ahead, left, radius, heights):
    """Four legs at (+-ahead, +-left); heights of the two in front and the two behind."""
    for a, tall in zip((ahead, -ahead), heights):
        for b in (left, -left):
            draw.cylinder(label, finish, (*at(a, b), 0.0), radius, tall)


def _table(draw, x, y):
    """Table with four legs, two or three chairs, and a few things on it."""
    wood, seat = draw.tint("woods"), draw.tint(draw.finish("fabrics", "carpet"))
    hx, hy, tall, dark = draw(0.38, 0.48), draw(0.55, 0.72), 0.74, shaded(wood, 0.8)
    draw.box("table", wood, (x, y, tall), (hx, hy, 0.025))
    draw.box("table", dark, (x, y, tall - 0.07), (hx - 0.06, hy - 0.06, 0.05))
    _legs(draw, "table", dark, frame(x, y, 0.0), hx - 0.07, hy - 0.07, 0.035, (tall - 0.03, tall - 0.03))
    for dx, dy, yaw in (0.0, hy + 0.22, math.pi / 2), (0.0, -hy - 0.22, -math.pi / 2), (hx + 0.25, 0.0, 0.0):
        if dy or draw.chance(0.6):  # the third, at the end, is not always there
            place = x + dx + draw(-0.08, 0.08), y + dy + draw(-0.08, 0.08), yaw + draw(-0.35, 0.35)
            _chair(draw, *place, seat, wood)
    r = draw(0.07, 0.10)
    bowl, place = draw.finish("coats", "tile"), (x + draw(-0.15, 0.15), y + draw(-0.3, 0.3))
    draw.ellipsoid("objects", bowl, (*place, tall + 0.02 + r), (r, r, r * 1.2))
    cup = x - 0.1, y + draw(-0.35, 0.35), tall + 0.02
    # empty, or with hot tea
    draw.cylinder("objects", "cup", cup, 0.045, 0.11, heat=draw.pick([0.0, 25.0]))
    if draw.chance(0.6):
        for k in range(3):
            centre = x + 0.1, y + 0.28, tall + 0.05 + 0.045 * k
            draw.box("books", draw.finish("fabrics", "paper"), centre, (0.11, 0.15, 0.022), 0.25 * k)


def _chair(draw, x, y, yaw, seat, wood):
    """Seat, back (away from the table) and four legs."""
    at = frame(x, y, yaw)
    draw.box("chair", seat, (x, y, 0.45), (0.21, 0.21, 0.035), yaw)
    back = (*at(0.20, 0), 0.78), (0.02, 0.20, 0.17)
    draw.box("chair", wood, *back, yaw, pattern=("stripes", 9, 0.4))
    _legs(draw, "chair", wood, at, 0.18, 0.18, 0.022, (0.95, 0.43))
