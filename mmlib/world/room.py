"""A room: furniture along three walls, table and chairs, pictures, window, television, books, lamps, person.

Built-in ambiguities, so that no single sensor is enough: some furniture is painted like the wall (RGB cannot
tell, depth can); pictures, window and television lie flat on the wall (depth cannot tell, RGB can); the
television and people are warm; night frames are dark. Every function draws random numbers in a fixed order: a
seed's room stays the same only as long as that order does.
"""

import math

from .geometry import Camera, World
from .materials import PATTERN
from .props import Draw, Place


def layout(seed: int) -> World:
    """The room of this seed."""
    draw = Draw(7002, seed)
    deep, wide, tall, paint, floor = draw.draws("room", {}).values()

    def wall(side, a):
        """Place ``a`` metres along the left wall (side 1), the right one (-1) or the front one (0), from left
        to right as the camera sees it; the second axis points into the room.
        """
        if side:
            return Place(a, side * wide / 2, axes=((1.0, 0.0), (0.0, -side)))
        return Place(deep, -a, axes=((0.0, -1.0), (-1.0, 0.0)))

    # front wall: two places; each side wall: one deep piece and one slim piece
    pieces = draw.order("tv", "shelf" if draw.chance(0.6) else "wardrobe")
    for side, piece in zip((-1, 1), pieces):
        _piece(draw, wall(0, side * wide * 0.29), piece, paint)
    big = draw.order("bed", "sofa")
    window_side = (1, -1, 0)[draw.count(0, 3)]
    # between bed and sofa
    left_deep, right_deep = (1.75 if piece == "bed" else 1.15 for piece in big)
    low, high = right_deep - wide / 2, wide / 2 - left_deep
    middle = (low + high) / 2
    for side, piece in zip((1, -1), big):
        a = draw(2.8, 3.2)
        _piece(draw, wall(side, a), piece, paint)
        shelf_left = side == 1 and "shelf" not in pieces
        slim = draw.pick(
            ["shelf", "cabinet", "lamp"] if shelf_left else ["cabinet", "lamp", "plant", "shelf"]
        )
        if deep - a > 2.2:
            _piece(draw, wall(side, min(deep - 0.75, a + 1.9)), slim, paint)
        if window_side == side:
            draw.thing("window", wall(side, a + draw(0.2, 0.9)))
        else:
            for place in (a - 0.55, a + draw(0.5, 0.8)):
                draw.thing("picture", wall(side, place), z=draw(1.5, 1.75))
    if window_side == 0:
        draw.thing("window", wall(0, draw(-0.15, 0.15)))
    elif draw.chance(0.8):
        draw.thing("picture", wall(0, draw(-0.2, 0.2)), z=1.7)
    table = draw(2.5, 3.1)
    _table(draw, table, middle + draw(-0.15, 0.15))
    if draw.chance(0.7):
        draw.thing("rug", Place(0, middle))
    if draw.chance(0.55):
        place = Place(table + draw(0.95, 1.4), draw(low + 0.2, high - 0.2), draw(0, 6.28))
        draw.thing("person", place, 0.05, who="objects")
    for _ in range(2):  # things left on the floor
        x, y, r = draw(1.6, 2.1), draw(low + 0.2, high - 0.2), draw(0.10, 0.17)
        name, yaw = ("ball", 0.0) if draw.chance(0.5) else ("parcel", draw(0, 3.1))
        draw.thing(name, Place(x, y, yaw), r=r)
    for x in (deep * 0.35, deep * 0.72):
        draw.thing("ceiling lamp", Place(x, 0.0), tall=tall)
        draw.lights.append((x, 0.0, tall - 0.45, 1.5, 1.32, 1.05, False))

    camera = Camera((0.30, draw(-0.7, 0.7), draw(1.35, 1.65)), draw(-0.16, 0.16), draw(-0.16, -0.07), 0.64)
    _, wood = draw.tint(floor)
    covering = "parquet" if draw.chance(0.75) else "carpet", wood
    draw.thing("indoors", Place(0, 0), ground=covering, paint=paint)
    return draw.build(
        camera=camera,
        motion=(draw(0.02, 0.06), draw(-0.025, 0.025)),
        room=(0.0, deep, -wide / 2, wide / 2, tall),
        window=next((row[5:7] for row in draw.rows if row[3] == PATTERN["window"]), None),
    )


def _piece(draw, place, name, paint):
    """One piece of furniture at a wall."""
    # some like the wall
    body = draw.tint(paint, 0.05) if draw.chance(0.4) else draw.tint("woods")
    values = draw.thing(name, place, body=body)
    match name:
        case "shelf":  # boards, and rows of books or single vases on all but the last
            for k in range(6):
                values["level"] = k / 5
                draw.thing("shelf board", place, **values)
                if k < 5:
                    draw.thing("row of books" if draw.chance(0.88) else "vase", place, **values)
        case "lamp":
            draw.lights.append((*place.at(0, 0.75), 1.5, 1.3, 0.95, 0.55, False))
        case "plant":
            for _ in range(5):
                draw.thing("leaf", Place(*place.at(0, 0.32)))


def _table(draw, x, y):
    """Table with four legs, two or three chairs, and a few things on it."""
    place = Place(x, y)
    values = draw.thing("table", place)
    side, end = values["wide"] + 0.22, values["long"] + 0.25
    for dx, dy, yaw in (0.0, side, math.pi / 2), (0.0, -side, -math.pi / 2), (end, 0.0, 0.0):
        if dy or draw.chance(0.6):  # the third, at the end, is not always there
            chair = x + dx + draw(-0.08, 0.08), y + dy + draw(-0.08, 0.08), yaw + draw(-0.35, 0.35)
            draw.thing("chair", Place(*chair), **values)
    draw.thing("bowl and cup", place)
    if draw.chance(0.6):
        for k in range(3):
            draw.thing("book", Place(x + 0.1, y + 0.28, 0.25 * k, 0.79 + 0.045 * k))
