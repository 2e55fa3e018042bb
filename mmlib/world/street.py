"""A street: road with markings, kerbs, verges, buildings, gardens behind fences and walls, trees, lamps,
signs, traffic and people.

Every function draws random numbers in a fixed order: a seed's street stays the same only as long as that
order does.
"""

import math

import numpy as np

from .geometry import Camera, World, turn
from .materials import MATERIAL
from .props import Draw, frame, person, shaded

CLASSES = [
    "Building",
    "Fence",
    "Pedestrian",
    "Pole",
    "RoadLine",
    "Road",
    "SideWalk",
    "Vegetation",
    "Cars",
    "Wall",
    "TrafficSign",
    "Sky",
    "Terrain",
    "Bus",
]
PALETTE = [
    (70, 70, 70),
    (100, 40, 40),
    (220, 20, 60),
    (153, 153, 153),
    (157, 234, 50),
    (128, 64, 128),
    (244, 35, 232),
    (107, 142, 35),
    (0, 0, 142),
    (102, 102, 156),
    (220, 220, 0),
    (70, 130, 180),
    (145, 170, 100),
    (0, 60, 100),
]  # DELIVER's colours
(
    BUILDING,
    FENCE,
    PEDESTRIAN,
    POLE,
    ROADLINE,
    ROAD,
    SIDEWALK,
    VEGETATION,
    CARS,
    WALL,
    SIGN,
    SKY,
    TERRAIN,
    BUS,
) = range(14)
LANE, KERB = 3.3, 0.15  # metres: width of a lane, height of the pavement
SIDES = (1, -1)  # left and right of the road
YAW = {1: math.pi, -1: 0.0}  # who drives on the left comes towards the camera

PLASTERS = [
    (0.62, 0.52, 0.36),
    (0.58, 0.38, 0.26),
    (0.66, 0.63, 0.56),
    (0.42, 0.47, 0.50),
    (0.60, 0.55, 0.30),
    (0.52, 0.34, 0.30),
    (0.45, 0.50, 0.40),
]
BRICKS = [(0.36, 0.13, 0.08), (0.42, 0.20, 0.12), (0.30, 0.15, 0.11), (0.44, 0.30, 0.19)]
FACADES = [("render", c) for c in PLASTERS] + [("brick", c) for c in BRICKS]
FLAT_ROOFS = [(0.30, 0.12, 0.08), (0.13, 0.13, 0.15), (0.22, 0.15, 0.12)]
HOUSE_ROOFS = [(0.36, 0.13, 0.08), (0.14, 0.14, 0.16), (0.26, 0.17, 0.13)]
BOARDS = [(0.42, 0.26, 0.13), (0.36, 0.20, 0.10), (0.50, 0.33, 0.18), (0.68, 0.66, 0.62)]
STONES = [("stone", (0.40, 0.38, 0.34)), ("stone", (0.45, 0.38, 0.27)), ("concrete", (0.46, 0.46, 0.45))]
PAVINGS = [(0.40, 0.37, 0.33), (0.44, 0.42, 0.40), (0.42, 0.31, 0.25), (0.36, 0.36, 0.37)]
METALS = [(0.06, 0.085, 0.075), (0.07, 0.07, 0.075), (0.50, 0.51, 0.52)]
GREENS = [(0.10, 0.21, 0.035), (0.14, 0.25, 0.05), (0.07, 0.16, 0.04), (0.20, 0.25, 0.05)]
PAINTS = [
    (0.55, 0.03, 0.03),
    (0.03, 0.09, 0.30),
    (0.60, 0.60, 0.60),
    (0.03, 0.03, 0.035),
    (0.75, 0.75, 0.73),
    (0.10, 0.22, 0.20),
    (0.32, 0.34, 0.36),
    (0.60, 0.33, 0.04),
    (0.12, 0.30, 0.48),
]
BUSES = [(0.62, 0.05, 0.04), (0.70, 0.45, 0.02), (0.04, 0.28, 0.42), (0.10, 0.36, 0.12)]


def layout(seed: int) -> World:
    """The street of this seed."""
    draw = Draw(7001, seed)
    # for the left (1) and right (-1): distance of the kerb, width of the verge, distance of the property line
    road = {side: LANE + (2.3 if draw.chance(0.6) else 0.3) for side in SIDES}
    verge = {side: draw(1.2, 2.0) * draw.chance(0.8) for side in SIDES}
    walk = {side: road[side] + verge[side] + draw(2.2, 3.4) for side in SIDES}
    crossing = draw(17, 34) if draw.chance(0.40) else 1e3
    gap = (crossing, crossing + 7.0)  # where a side road crosses
    for side in SIDES:
        for x0, x1 in ((-4, min(gap[0], 130)), (gap[1], 130)):
            if x1 > x0:
                centre = (x0 + x1) / 2, side * (road[side] + 14), KERB / 2
                draw.box(SIDEWALK, "paving", (0.4, 0.4, 0.4), centre, ((x1 - x0) / 2, 14, KERB / 2))
    fenced = 1 if draw.chance(0.5) else -1
    for side in SIDES:
        _plots(draw, side, walk[side], gap, "fence" if side == fenced else "wall")
    _backdrop(draw)
    lights = _furniture(draw, road, verge, gap)
    zebra = draw(7.5, 15) if draw.chance(0.75) else -99.0
    _traffic(draw, road, zebra)
    _people(draw, road, verge, walk, zebra)

    grey, pave = draw(0.12, 0.20), draw.pick(PAVINGS)
    tones = {
        "asphalt": (grey * 1.02, grey, grey * 0.98),
        "paint": (0.78, 0.78, 0.74),
        "paving": draw.tint(pave),
        "grass": draw.tint((0.115, 0.20, 0.045)),
    }
    camera = Camera(
        (0.0, -LANE / 2 + draw(-0.5, 0.5), draw(1.5, 1.8)), draw(-0.12, 0.12), draw(-0.04, 0.03), 0.78
    )
    background = [(ROAD, "asphalt", 0, (grey, grey, grey)), (SKY, "sky", 0, (0, 0, 0))]
    paint = _ground(draw, road, verge, walk, gap, zebra)
    return draw.build(
        background,
        indoor=False,
        camera=camera,
        motion=(draw(0.22, 0.50), draw(-0.012, 0.012)),
        paint=paint,
        lights=tuple(lights),
        facts={"tones": tones},
    )


def _ground(draw, road, verge, walk, gap, zebra):
    """The rule that tells road, markings, pavement and grass apart by position (exact float32 arithmetic: it
    decides labels).
    """
    ground, dash, width, bays = len(draw.rows), draw(2.6, 3.6), 0.11, draw.chance(0.7)

    def paint(label, material, prim, x, y, z):
        on = np.flatnonzero(prim == ground)
        gx, gy = x[on], y[on]
        inside = (gy < road[1]) & (gy > -road[-1])
        across = (gx > gap[0]) & (gx < gap[1]) & (gx < 900)
        lanes = (np.abs(gy) < width) & (gx - np.floor(gx / 6) * 6 < dash)
        for side in SIDES:
            parking = road[side] > LANE + 1
            lanes |= np.abs(gy - side * (LANE + 0.1 if parking else LANE - 0.05)) < 0.085
            if parking and bays:
                lanes |= (gx - np.floor(gx / 5.8) * np.float32(5.8) < 0.16) & (gy * side > LANE)
        strip = (gx > zebra) & (gx < zebra + 3.2) & (gy - np.floor(gy) < 0.52)
        near = (gx > zebra - 1.4) & (gx < zebra + 4.2)
        stop = (gx > zebra - 1.25) & (gx < zebra - 0.8) & (gy < 0)
        line = inside & ~across & ((lanes & ~near) | strip | stop)
        label[on] = np.where(line, ROADLINE, np.where(inside | across, ROAD, TERRAIN))
        material[on] = np.where(
            line, MATERIAL["paint"], np.where(inside | across, MATERIAL["asphalt"], MATERIAL["grass"])
        )
        top = np.flatnonzero((label == SIDEWALK) & (z > KERB - 0.02))
        for side in SIDES:
            edge = y[top] * side
            grass = (edge > road[side] + 0.25) & (edge < road[side] + verge[side]) | (edge > walk[side])
            label[top[grass]], material[top[grass]] = TERRAIN, MATERIAL["grass"]

    return paint


# ---------------------------------------------------------------- buildings and gardens
def _plots(draw, side, line, gap, boundary):
    """One side of the street, plot by plot. The first or second plot has a garden or park behind the given
    boundary.
    """
    x, k, first_open = -3.0 + draw(0, 3), 0, draw.count(0, 2)
    while x < 95:
        size = draw(9, 16)
        if x + size > gap[0] - 0.5 and x < gap[1]:
            if gap[0] - x <= 6:
                x = gap[1] + 0.5
                continue
            size = gap[0] - x - 0.5
        kind = "block" if draw.chance(0.5) else ("house" if draw.chance(0.6) else "park")
        if k == 0 and first_open == 1:
            kind, size = "block", draw(9, 12)
        if k == first_open:
            kind, size = draw.pick(["house", "park"]), draw(11, 17) if gap[0] - x > 18 else size
        if kind == "block":
            _block(draw, x, size, side, line)
        else:
            if kind == "house":
                _house(draw, x, size, side, line + draw(4, 6.5))
            else:
                for _ in range(2):
                    _tree(draw, x + draw(1, size - 1), side * (line + draw(3, 7)), draw(0.8, 1.25))
            for _ in range(draw.count(2, 5)):
                _bush(draw, x + draw(0.8, size - 0.8), side * (line + draw(0.9, 2.6)))
            _boundary(
                draw,
                x,
                size,
                side,
                line + 0.1,
                boundary if k <= 1 else draw.pick(["fence", "fence", "wall", "hedge"]),
            )
        x, k = x + size, k + 1


def _block(draw, x, size, side, line):
    """Flats of two to five storeys, some above shops; its roof is flat or leans."""
    material, colour = draw.pick(FACADES)
    colour, storey, deep, shops = draw.tint(colour), draw(2.9, 3.4), draw(9, 13), draw.chance(0.45)
    height = storey * draw.count(2, 6) + (3.6 if shops else 0.5) + 0.6
    kind = draw.count(0, 4) if draw.chance(0.7) else 0
    x, y = x + size / 2, side * (line + deep / 2 + 0.05)
    half = (size / 2 - 0.02, deep / 2, height / 2)
    draw.box(
        BUILDING,
        material,
        colour,
        (x, y, height / 2),
        half,
        pattern="facade",
        style=(draw(1.9, 3.0), storey, kind, shops),
    )
    if draw.chance(0.5):
        _roof(draw, FLAT_ROOFS, x, y, height, size / 2, deep / 2 + 0.3, draw(1.6, 2.8))
    else:
        edge = tuple(c * 0.8 + 0.1 for c in colour)
        draw.box(BUILDING, "concrete", edge, (x, y, height + 0.12), (size / 2 + 0.02, deep / 2 + 0.22, 0.16))


def _house(draw, x, size, side, line):
    material, colour = draw.pick(FACADES)
    storey, deep, wide = draw(2.7, 3.0), draw(7, 9), size * 0.36
    height = storey * draw.count(1, 3) + 1.2
    x, y = x + size / 2, side * (line + deep / 2)
    colour, style, half = (
        draw.tint(colour),
        (draw(2.2, 3.2), storey, draw.count(0, 2)),
        (wide, deep / 2, height / 2),
    )
    draw.box(BUILDING, material, colour, (x, y, height / 2), half, pattern="facade", style=style)
    rise = draw(1.8, 3.0)
    _roof(draw, HOUSE_ROOFS, x, y, height, wide + 0.4, deep / 2 + 0.5, rise, hipped=True)
    draw.box(
        BUILDING, "brick", (0.32, 0.15, 0.10), (x + wide * 0.5, y, height + rise), (0.35, 0.35, 0.8)
    )  # chimney


def _roof(draw, colours, x, y, height, wide, deep, rise, hipped=False):
    """A roof whose ridge runs along the street; some hipped ones lean on all four sides."""
    colour = draw.pick(colours)
    lean = draw.pick([0.0, deep / rise * 0.6]) if hipped else 0.0
    draw.frustum(
        BUILDING,
        "roof",
        colour,
        (x, y, height + rise / 2),
        (wide, deep, rise / 2),
        taper=(lean, deep / rise * 0.98),
    )


def _boundary(draw, x, size, side, y, kind):
    """What closes a garden: wooden boards or white pickets on posts, a wall with a cover, or a hedge."""

    def along(label, material, colour, middle, thick, half, **more):
        draw.box(
            label, material, colour, (x + size / 2, side * y, KERB + middle), (size / 2, thick, half), **more
        )

    if kind == "fence":
        height, colour = draw(1.35, 1.9), draw.pick(BOARDS)
        along(
            FENCE,
            "wood",
            draw.tint(colour),
            height / 2,
            0.04,
            height / 2,
            pattern="stripes",
            style=(5.0, 0.35),
        )
        for k in range(int(size / 2.4) + 1 if x < 28 else 0):  # far away, details cost time and show nothing
            draw.box(
                FENCE,
                "wood",
                shaded(colour, 0.8),
                (x + 0.1 + k * 2.4, side * (y - 0.07), KERB + height / 2 + 0.08),
                (0.07, 0.05, height / 2 + 0.08),
            )
    elif kind == "wall":
        height, (material, colour) = draw(1.3, 2.1), draw.pick(STONES)
        along(WALL, material, draw.tint(colour, 0.1), height / 2, 0.18, height / 2)
        along(WALL, "concrete", (0.52, 0.50, 0.47), height + 0.05, 0.26, 0.06)
    else:
        height = draw(1.1, 1.6)
        along(VEGETATION, "leaf", draw.tint((0.09, 0.18, 0.04)), height / 2, 0.4, height / 2)


def _backdrop(draw):
    """What closes the view: far buildings and a belt of trees, so that the street does not end in nothing."""
    for k in range(7):
        y, height = -66 + 22 * k + draw(-4, 4), draw(8, 24)
        draw.box(
            BUILDING,
            "render",
            draw.tint(draw.pick(FACADES)[1]),
            (draw(118, 140), y, height / 2),
            (8, draw(7, 11), height / 2),
            pattern="facade",
            style=(3.0, 3.2),
        )
    for side in SIDES:
        for k in range(4):
            r = draw(4, 6)
            draw.ellipsoid(
                VEGETATION,
                "leaf",
                draw.tint((0.08, 0.15, 0.05)),
                (18 + 20 * k + draw(-5, 5), side * draw(32, 40), 2.5),
                (r * 1.5, r, r),
            )


def _tree(draw, x, y, scale):
    """Trunk and a lumpy crown, or a conifer."""
    trunk, radius = draw(2.0, 2.9) * scale, draw(0.15, 0.24) * scale
    green = draw.tint(draw.pick(GREENS), 0.2)
    draw.cylinder(VEGETATION, "bark", (0.17, 0.12, 0.08), (x, y, 0.0), radius, trunk + 1.2)
    if draw.chance(0.2):
        for k in range(3):
            wide, z = 1.6 - 0.42 * k, trunk * 0.5 + (0.9 + 1.5 * k) * scale
            draw.frustum(
                VEGETATION,
                "leaf",
                shaded(green, 0.7),
                (x, y, z),
                (wide * scale, wide * scale, 0.95 * scale),
                0.6 * k,
                taper=(wide / 1.95, wide / 1.95),
            )
        return
    wide, tall = draw(1.4, 2.1) * scale, draw(1.3, 1.9) * scale
    centre = trunk + tall * 0.9
    draw.ellipsoid(VEGETATION, "leaf", green, (x, y, centre), (wide * 0.85, wide * 0.85, tall))
    lumps = 5 if x < 32 else 3
    for k in range(lumps):
        c, s = turn(2 * math.pi * (k / lumps + draw(0, 0.15)))
        r = wide * draw(0.48, 0.66)
        draw.ellipsoid(
            VEGETATION,
            "leaf",
            draw.tint(green, 0.12),
            (x + c * wide * 0.62, y + s * wide * 0.62, centre + tall * draw(-0.45, 0.5)),
            (r, r, r * draw(0.75, 1.0)),
        )


def _bush(draw, x, y):
    r = draw(0.45, 0.95)
    colour = draw.tint((0.10, 0.19, 0.05), 0.25)
    draw.ellipsoid(
        VEGETATION, "leaf", colour, (x, y, KERB + r * 0.6), (r, r * draw(0.8, 1.1), r * draw(0.7, 1.1))
    )


# ---------------------------------------------------------------- poles, signs, lamps
def _furniture(draw, road, verge, gap):
    """Lamps, trees along the kerb, traffic signs, bollards, direction boards. Returns the lamps' lights."""
    lights, metal, start = [], draw.pick(METALS), draw(6.0, 10.0)
    height, reach = 6.2, 1.5
    for k in range(4):
        for side in SIDES:
            x, y = start + 17 * k + (8.5 if side < 0 else 0), side * (road[side] + 0.45)
            if gap[0] - 1 < x < gap[1] + 1:
                continue
            head = y - side * reach
            draw.cylinder(POLE, "metal", metal, (x, y, KERB), 0.16, height)
            draw.cylinder(POLE, "metal", metal, (x, y, KERB), 0.23, 1.0)
            draw.box(POLE, "metal", metal, (x, y - side * reach / 2, height), (0.08, reach / 2, 0.08))
            draw.box(POLE, "lamp", (1.0, 0.86, 0.62), (x, head, height - 0.05), (0.16, 0.38, 0.08), glow=5.0)
            lights.append((x, head, height - 0.3, 9.5, 7.2, 4.4, True))
    for side in SIDES:
        if verge[side] > 0 or draw.chance(0.45):
            x = draw(8, 15)
            while x < 70:
                if not gap[0] - 2 < x < gap[1] + 2:
                    _tree(draw, x, side * (road[side] + 0.85), draw(0.8, 1.05))
                x += draw(10, 18)
        for k in range(draw.count(1, 3)):
            _sign(draw, draw(6.5, 11) + 7 * k, side * (road[side] + 0.5), draw.count(0, 3))
        if draw.chance(0.4):
            x = draw(6, 10)
            for k in range(6):
                colour = draw.pick([(0.6, 0.6, 0.58), metal])
                draw.cylinder(
                    POLE, "metal", colour, (x + 1.5 * k, side * (road[side] + 0.25), KERB), 0.12, 0.95
                )
    if draw.chance(0.65):  # direction board on two posts beside the carriageway, or over it
        x, side, wide = draw(13, 24), draw.pick([-1, 1]), draw(1.3, 1.8)
        y = side * (road[side] + 0.6)
        draw.box(
            SIGN,
            "sign",
            (0.02, 0.16, 0.55),
            (x, y - side * wide * 0.75, 4.9),
            (0.05, wide, 0.85),
            pattern="sign",
            style=(3,),
        )
        draw.cylinder(POLE, "metal", (0.35, 0.36, 0.37), (x + 0.12, y, KERB), 0.17, 5.7)
    return sorted(lights, key=lambda lamp: lamp[0])[:7]  # the nearest


def _sign(draw, x, y, kind):
    """A traffic sign of kind 0 (round), 1 or 2 (square) on its pole, some with a small board below."""
    tall = draw(2.3, 2.7)
    draw.cylinder(POLE, "metal", (0.42, 0.43, 0.44), (x + 0.09, y, KERB), 0.085, tall + 0.2)
    size, white = draw(0.40, 0.50), (0.8, 0.8, 0.8)
    if kind == 0:
        draw.ellipsoid(SIGN, "sign", white, (x, y, tall), (0.05, size, size), pattern="sign")
    else:
        draw.box(
            SIGN, "sign", white, (x, y, tall), (0.03, size * 0.9, size * 0.9), pattern="sign", style=(kind,)
        )
    if draw.chance(0.5):
        draw.box(
            SIGN,
            "sign",
            white,
            (x, y, tall - size - 0.25),
            (0.03, size * 0.9, 0.2),
            pattern="sign",
            style=(3,),
        )


# ---------------------------------------------------------------- traffic and people
def _traffic(draw, road, zebra):
    """A bus (oncoming, ahead or at a stop), cars in both lanes, and parked cars where there is room for them."""
    kind = draw.pick(["oncoming", "ahead", "stop"]) if draw.chance(0.9) else ""
    wide = [side for side in SIDES if road[side] > LANE + 1]  # where cars park
    bus_x, taken = 0.0, ()  # lanes within 8 m of the bus: 1 and -1 are driven, 2 and -2 parked in
    if kind == "stop":
        side = draw.pick(SIDES) if len(wide) == 2 else (wide or [-1])[0]
        bus_x, taken = draw(13, 20), (side, 2 * side)
        _bus(draw, bus_x, side * (road[side] - 1.35), YAW[side], 0.0)
    elif kind:
        side = 1 if kind == "oncoming" else -1
        bus_x, taken = draw(15, 26) if kind == "oncoming" else draw(17, 25), (side,)
        _bus(draw, bus_x, side * (LANE / 2 + 0.1), YAW[side], -0.25 * side)

    def free(lane, x, before=8.0, behind=8.0):
        return lane not in taken or not bus_x - before < x < bus_x + behind

    if draw.chance(0.65):
        x = draw(11, 40)
        if free(1, x):
            _car(draw, x, LANE / 2 + draw(-0.2, 0.3), YAW[1], -0.3, True)
    if draw.chance(0.65):
        x = draw(9, 13) if kind == "ahead" else draw(9, 30)
        if free(-1, x, before=6.0):
            _car(draw, x, -LANE / 2 + draw(-0.2, 0.2), YAW[-1], 0.3, True)
    for side in wide:
        x = draw(6.5, 9)
        while x < 62:
            if draw.chance(0.62) and free(2 * side, x, 9.0, 9.0) and not zebra - 3 < x < zebra + 6:
                _car(draw, x, side * (road[side] - 1.15), YAW[side] + draw(-0.02, 0.02), 0.0, False)
            x += 5.8


def _car(draw, x, y, yaw, move, running):
    """Body, cabin, four wheels."""
    paint, van = draw.tint(draw.pick(PAINTS)), draw.chance(0.2)
    long, wide, belt = draw(2.0, 2.25), draw(0.86, 0.92), draw(0.44, 0.5)
    heat, move, (c, s), at = (
        9.0 if running else 1.5 * draw.count(0, 2),
        (move, 0),
        turn(yaw),
        frame(x, y, yaw),
    )
    draw.frustum(
        CARS,
        "metal",
        paint,
        (x, y, 0.22 + belt * 0.62),
        (long, wide, belt * 0.62),
        yaw,
        (0.18, 0.10),
        "car",
        (running,),
        move,
        heat,
    )
    back, half, tall, slope = (0.05, long * 0.9, 0.48, 0.2) if van else (0.18, long * 0.60, 0.36, 0.55)
    centre = x - c * back * long, y - s * back * long, 0.22 + belt * 1.24 + tall * 0.75
    draw.frustum(
        CARS,
        "metal",
        paint,
        centre,
        (half, wide * 0.94, tall * 0.75),
        yaw,
        (slope, 0.22),
        "cabin",
        move=move,
        heat=heat * 0.2,
    )
    for a in (0.62, -0.62) if x < 42 else ():
        for b in SIDES:
            draw.ellipsoid(
                CARS,
                "rubber",
                (0.025, 0.025, 0.027),
                (*at(a * long, b * (wide - 0.07)), 0.33),
                (0.34, 0.13, 0.34),
                yaw,
                move=move,
                heat=12.0 if running else 0.0,
            )


def _bus(draw, x, y, yaw, move):
    paint, at, move = draw.tint(draw.pick(BUSES)), frame(x, y, yaw), (move, 0)
    draw.box(
        BUS,
        "metal",
        paint,
        (x, y, 0.3 + 1.42),
        (5.4, 1.25, 1.42),
        yaw,
        pattern="bus",
        style=(1,),
        move=move,
        heat=6.0,
    )
    draw.box(BUS, "metal", (0.6, 0.6, 0.6), (x, y, 3.22), (4.6, 0.9, 0.11), yaw, move=move, heat=4.0)
    for ahead in (3.4, -3.1):
        for left in (1.16, -1.16):
            draw.ellipsoid(
                BUS,
                "rubber",
                (0.03, 0.03, 0.03),
                (*at(ahead, left), 0.48),
                (0.5, 0.16, 0.5),
                yaw,
                move=move,
                heat=14.0,
            )


def _people(draw, road, verge, walk, zebra):
    """Five to eight on the pavements; up to two on the zebra crossing."""
    for k in range(draw.count(5, 9)):
        side = 1 if (k + draw.chance(0.3)) % 2 else -1
        low = road[side] + verge[side] + 0.4
        x, y = draw(8.0, 11.0) + 2.4 * (k // 2), side * draw(low, max(low + 0.2, walk[side] - 0.4))
        person(draw, PEDESTRIAN, x, y, KERB, draw.pick([0.0, math.pi]) + draw(-0.3, 0.3))
    for likely in (0.85, 0.55):
        if zebra < 0 or not draw.chance(likely):
            break
        person(draw, PEDESTRIAN, zebra + draw(0.6, 2.6), draw(-3.0, 3.0), 0.0, math.pi / 2 * draw.pick(SIDES))
