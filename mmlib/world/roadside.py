"""What stands or moves on a street: trees, lamps, signs, traffic and people.

``street.layout`` calls these functions. Every one draws random numbers in a fixed order: a seed's street
stays the same only as long as that order does.
"""

import math

from .geometry import turn
from .props import frame, person, shaded

LANE, KERB = 3.3, 0.15  # metres: width of a lane, height of the pavement
SIDES = (1, -1)  # left and right of the road
YAW = {1: math.pi, -1: 0.0}  # who drives on the left comes towards the camera


def tree(draw, x, y, scale):
    """Trunk and a lumpy crown, or a conifer."""
    trunk, radius = draw(2.0, 2.9) * scale, draw(0.15, 0.24) * scale
    green = draw.tint("greens", 0.2)
    draw.cylinder("Vegetation", "trunk", (x, y, 0.0), radius, trunk + 1.2)
    if draw.chance(0.2):
        for k in range(3):
            wide, z = 1.6 - 0.42 * k, trunk * 0.5 + (0.9 + 1.5 * k) * scale
            half, taper = (wide * scale, wide * scale, 0.95 * scale), wide / 1.95
            draw.frustum("Vegetation", shaded(green, 0.7), (x, y, z), half, 0.6 * k, taper)
        return
    wide, tall = draw(1.4, 2.1) * scale, draw(1.3, 1.9) * scale
    z = trunk + tall * 0.9
    draw.ellipsoid("Vegetation", green, (x, y, z), (wide * 0.85, wide * 0.85, tall))
    lumps = 5 if x < 32 else 3
    for k in range(lumps):
        c, s = turn(2 * math.pi * (k / lumps + draw(0, 0.15)))
        r, leaves = wide * draw(0.48, 0.66), draw.tint(green, 0.12)
        centre = x + c * wide * 0.62, y + s * wide * 0.62, z + tall * draw(-0.45, 0.5)
        draw.ellipsoid("Vegetation", leaves, centre, (r, r, r * draw(0.75, 1.0)))


def bush(draw, x, y):
    r = draw(0.45, 0.95)
    green, half = draw.tint("bush", 0.25), (r, r * draw(0.8, 1.1), r * draw(0.7, 1.1))
    draw.ellipsoid("Vegetation", green, (x, y, KERB + r * 0.6), half)


# ---------------------------------------------------------------- poles, signs, lamps
def furniture(draw, road, verge, gap):
    """Lamps and their lights, trees along the kerb, traffic signs, bollards, direction boards."""
    metal, start = draw.finish("metals"), draw(6.0, 10.0)
    height, reach, (opening, end) = 6.2, 1.5, gap
    for k in range(4):
        for side in SIDES:
            x, y = start + 17 * k + (8.5 if side < 0 else 0), side * (road[side] + 0.45)
            if opening - 1 < x < end + 1:
                continue
            head = y - side * reach
            draw.cylinder("Pole", metal, (x, y, KERB), 0.16, height)
            draw.cylinder("Pole", metal, (x, y, KERB), 0.23, 1.0)
            draw.box("Pole", metal, (x, y - side * reach / 2, height), (0.08, reach / 2, 0.08))
            draw.box("Pole", "street lamp", (x, head, height - 0.05), (0.16, 0.38, 0.08), glow=5.0)
            draw.lights.append((x, head, height - 0.3, 9.5, 7.2, 4.4, True))
    draw.lights = sorted(draw.lights)[:7]  # the nearest
    for side in SIDES:
        if verge[side] > 0 or draw.chance(0.45):
            x = draw(8, 15)
            while x < 70:
                if not opening - 2 < x < end + 2:
                    tree(draw, x, side * (road[side] + 0.85), draw(0.8, 1.05))
                x += draw(10, 18)
        for k in range(draw.count(1, 3)):
            sign(draw, draw(6.5, 11) + 7 * k, side * (road[side] + 0.5), draw.count(0, 3))
        if draw.chance(0.4):
            x = draw(6, 10)
            for k in range(6):
                foot = x + 1.5 * k, side * (road[side] + 0.25), KERB
                draw.cylinder("Pole", draw.pick(["white metal", metal]), foot, 0.12, 0.95)
    if draw.chance(0.65):  # direction board on a post beside the carriageway, or over it
        x, side, wide = draw(13, 24), draw.pick([-1, 1]), draw(1.3, 1.8)
        y = side * (road[side] + 0.6)
        board(draw, "blue sign", (x, y - side * wide * 0.75, 4.9), (0.05, wide, 0.85))
        draw.cylinder("Pole", "steel", (x + 0.12, y, KERB), 0.17, 5.7)


def board(draw, finish, centre, half, kind=3):
    """A board with the marks of its kind: 1 or 2 (traffic signs), 3 (letters)."""
    draw.box("TrafficSign", finish, centre, half, pattern=("sign", kind))


def sign(draw, x, y, kind):
    """A traffic sign of kind 0 (round), 1 or 2 (square) on its pole, some with a small board below."""
    tall = draw(2.3, 2.7)
    draw.cylinder("Pole", "bright steel", (x + 0.09, y, KERB), 0.085, tall + 0.2)
    size = draw(0.40, 0.50)
    wide = size * 0.9
    if kind == 0:
        draw.ellipsoid("TrafficSign", "white sign", (x, y, tall), (0.05, size, size), pattern=("sign",))
    else:
        board(draw, "white sign", (x, y, tall), (0.03, wide, wide), kind)
    if draw.chance(0.5):
        board(draw, "white sign", (x, y, tall - size - 0.25), (0.03, wide, 0.2))


# ---------------------------------------------------------------- traffic and people
def traffic(draw, road, zebra):
    """A bus (oncoming, ahead or at a stop), cars in both lanes, parked cars where there is room for them."""
    kind = draw.pick(["oncoming", "ahead", "stop"]) if draw.chance(0.9) else ""
    wide = [side for side in SIDES if road[side] > LANE + 1]  # where cars park
    bus_x, taken = 0.0, ()  # lanes within 8 m of the bus: 1 and -1 are driven, 2 and -2 parked in
    if kind == "stop":
        side = draw.pick(SIDES) if len(wide) == 2 else (wide or [-1])[0]
        bus_x, taken = draw(13, 20), (side, 2 * side)
        bus(draw, bus_x, side * (road[side] - 1.35), YAW[side], 0.0)
    elif kind:
        side = 1 if kind == "oncoming" else -1
        bus_x, taken = draw(15, 26) if kind == "oncoming" else draw(17, 25), (side,)
        bus(draw, bus_x, side * (LANE / 2 + 0.1), YAW[side], -0.25 * side)

    def free(lane, x, before=8.0, behind=8.0):
        return lane not in taken or not bus_x - before < x < bus_x + behind

    if draw.chance(0.65):
        x = draw(11, 40)
        if free(1, x):
            car(draw, x, LANE / 2 + draw(-0.2, 0.3), YAW[1], -0.3, True)
    if draw.chance(0.65):
        x = draw(9, 13) if kind == "ahead" else draw(9, 30)
        if free(-1, x, before=6.0):
            car(draw, x, -LANE / 2 + draw(-0.2, 0.2), YAW[-1], 0.3, True)
    for side in wide:
        x = draw(6.5, 9)
        while x < 62:
            if draw.chance(0.62) and free(2 * side, x, 9.0, 9.0) and not zebra - 3 < x < zebra + 6:
                car(draw, x, side * (road[side] - 1.15), YAW[side] + draw(-0.02, 0.02), 0.0, False)
            x += 5.8


def car(draw, x, y, yaw, move, running):
    """Body, cabin, four wheels."""
    paint, van = draw.tint("paints"), draw.chance(0.2)
    long, wide, belt = draw(2.0, 2.25), draw(0.86, 0.92), draw(0.44, 0.5)
    heat = 9.0 if running else 1.5 * draw.count(0, 2)
    at, (c, s), move, belt = frame(x, y, yaw), turn(yaw), (move, 0, 0), belt * 0.62
    body = (x, y, 0.22 + belt), (long, wide, belt)
    draw.frustum("Cars", paint, *body, yaw, (0.18, 0.10), ("car", running), move, heat)
    back, half, tall, slope = (0.05, long * 0.9, 0.48, 0.2) if van else (0.18, long * 0.60, 0.36, 0.55)
    tall *= 0.75
    centre = x - c * back * long, y - s * back * long, 0.22 + belt * 2 + tall
    cabin = centre, (half, wide * 0.94, tall)
    draw.frustum("Cars", paint, *cabin, yaw, (slope, 0.22), ("cabin",), move, heat * 0.2)
    for a in (0.62, -0.62) if x < 42 else ():
        for b in SIDES:
            wheel = (*at(a * long, b * (wide - 0.07)), 0.33), (0.34, 0.13, 0.34)
            draw.ellipsoid("Cars", "car tyre", *wheel, yaw, move=move, heat=12.0 if running else 0.0)


def bus(draw, x, y, yaw, move):
    paint, at = draw.tint("buses"), frame(x, y, yaw)
    placed = {"yaw": yaw, "move": (move, 0, 0)}
    body = (x, y, 0.3 + 1.42), (5.4, 1.25, 1.42)
    draw.box("Bus", paint, *body, pattern=("bus", 1), heat=6.0, **placed)
    draw.box("Bus", "bus roof", (x, y, 3.22), (4.6, 0.9, 0.11), heat=4.0, **placed)
    for ahead in (3.4, -3.1):
        for left in (1.16, -1.16):
            wheel = (*at(ahead, left), 0.48), (0.5, 0.16, 0.5)
            draw.ellipsoid("Bus", "bus tyre", *wheel, heat=14.0, **placed)


def people(draw, road, verge, walk, zebra):
    """Five to eight on the pavements; up to two on the zebra crossing."""
    for k in range(draw.count(5, 9)):
        side = 1 if (k + draw.chance(0.3)) % 2 else -1
        low = road[side] + verge[side] + 0.4
        x, y = draw(8.0, 11.0) + 2.4 * (k // 2), side * draw(low, max(low + 0.2, walk[side] - 0.4))
        person(draw, "Pedestrian", x, y, KERB, draw.pick([0.0, math.pi]) + draw(-0.3, 0.3))
    for likely in (0.85, 0.55):
        if zebra < 0 or not draw.chance(likely):
            break
        place = zebra + draw(0.6, 2.6), draw(-3.0, 3.0), 0.0
        person(draw, "Pedestrian", *place, math.pi / 2 * draw.pick(SIDES))
