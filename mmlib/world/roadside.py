"""What stands or moves on a street: trees, lamps, signs, traffic and people.

``street.layout`` calls these functions. Every one draws random numbers in a fixed order: a seed's street
stays the same only as long as that order does.
"""

import math

from .geometry import turn
from .props import Place

LANE, KERB = 3.3, 0.15  # metres: width of a lane, height of the pavement
SIDES = (1, -1)  # left and right of the road
YAW = {1: math.pi, -1: 0.0}  # who drives on the left comes towards the camera


def tree(draw, x, y, scale):
    """Trunk and a lumpy crown, or a conifer."""
    place = Place(x, y)
    values = draw.thing("tree", place, scale=scale)
    if draw.chance(0.2):
        for k in range(3):
            wide = 1.6 - 0.42 * k
            level = 0.9 + 1.5 * k
            draw.thing("conifer", Place(x, y, 0.6 * k), wide=wide, lean=wide / 1.95, level=level, **values)
        return
    values = draw.thing("crown", place, **values)
    lumps = 5 if x < 32 else 3
    for k in range(lumps):
        c, s = turn(2 * math.pi * (k / lumps + draw(0, 0.15)))
        draw.thing("lump", place, cos=c, sin=s, **values)


# ---------------------------------------------------------------- poles, signs, lamps
def furniture(draw, road, verge, gap):
    """Lamps and their lights, trees along the kerb, traffic signs, bollards, direction boards."""
    metal, start = draw.finish("metals"), draw(6.0, 10.0)
    opening, end = gap
    for k in range(4):
        for side in SIDES:
            x, y = start + 17 * k + (8.5 if side < 0 else 0), side * (road[side] + 0.45)
            if not opening - 1 < x < end + 1:
                draw.thing("street lamp", Place(x, y), metal=metal, side=side)
                draw.lights.append((x, y - side * 1.5, 5.9, 9.5, 7.2, 4.4, True))
    draw.lights = sorted(draw.lights)[:7]  # the nearest
    for side in SIDES:
        if verge[side] > 0 or draw.chance(0.45):
            x = draw(8, 15)
            while x < 70:
                if not opening - 2 < x < end + 2:
                    tree(draw, x, side * (road[side] + 0.85), draw(0.8, 1.05))
                x += draw(10, 18)
        for k in range(draw.count(1, 3)):  # traffic signs: round, or one of two square ones
            place, kind = Place(draw(6.5, 11) + 7 * k, side * (road[side] + 0.5)), draw.count(0, 3)
            values = draw.thing("sign", place)
            draw.thing("square sign" if kind else "round sign", place, kind=kind, **values)
            if draw.chance(0.5):
                draw.thing("small board", place, **values)
        if draw.chance(0.4):
            x = draw(6, 10)
            for k in range(6):
                place = Place(x + 1.5 * k, side * (road[side] + 0.25))
                draw.thing("bollard", place, metal=draw.pick(["white metal", metal]))
    if draw.chance(0.65):  # direction board on a post beside the carriageway, or over it
        x, side, wide = draw(13, 24), draw.pick([-1, 1]), draw(1.3, 1.8)
        draw.thing("direction board", Place(x, side * (road[side] + 0.6)), side=side, wide=wide)


# ---------------------------------------------------------------- traffic and people
def traffic(draw, road, zebra):
    """A bus (oncoming, ahead or at a stop), cars in both lanes, parked cars where there is room for them."""
    kind = draw.pick(["oncoming", "ahead", "stop"]) if draw.chance(0.9) else ""
    wide = [side for side in SIDES if road[side] > LANE + 1]  # where cars park
    bus_x, taken = 0.0, ()  # lanes within 8 m of the bus: 1 and -1 are driven, 2 and -2 parked in
    if kind == "stop":
        side = draw.pick(SIDES) if len(wide) == 2 else (wide or [-1])[0]
        bus_x, taken = draw(13, 20), (side, 2 * side)
        draw.thing("bus", Place(bus_x, side * (road[side] - 1.35), YAW[side]))
    elif kind:
        side = 1 if kind == "oncoming" else -1
        bus_x, taken = draw(15, 26) if kind == "oncoming" else draw(17, 25), (side,)
        draw.thing("bus", Place(bus_x, side * (LANE / 2 + 0.1), YAW[side]), 0.25)

    def free(lane, x, before=8.0, behind=8.0):
        return lane not in taken or not bus_x - before < x < bus_x + behind

    if draw.chance(0.65):
        x = draw(11, 40)
        if free(1, x):
            car(draw, x, LANE / 2 + draw(-0.2, 0.3), YAW[1], True)
    if draw.chance(0.65):
        x = draw(9, 13) if kind == "ahead" else draw(9, 30)
        if free(-1, x, before=6.0):
            car(draw, x, -LANE / 2 + draw(-0.2, 0.2), YAW[-1], True)
    for side in wide:
        x = draw(6.5, 9)
        while x < 62:
            if draw.chance(0.62) and free(2 * side, x, 9.0, 9.0) and not zebra - 3 < x < zebra + 6:
                car(draw, x, side * (road[side] - 1.15), YAW[side] + draw(-0.02, 0.02), False)
            x += 5.8


def car(draw, x, y, yaw, running):
    """Body, cabin, four wheels; ``running``: on the road with its engine on, or parked, some not for long."""
    values, place = draw.draws("car", {}), Place(x, y, yaw)
    heat = 9.0 if running else 1.5 * draw.count(0, 2)
    for part in "body", "van" if values["van"] else "saloon", "wheels":
        if part != "wheels" or x < 42:
            draw.thing(part, place, 0.3 * running, running=running, heat=heat, **values)


def people(draw, road, verge, walk, zebra):
    """Five to eight on the pavements; up to two on the zebra crossing."""
    for k in range(draw.count(5, 9)):
        side = 1 if (k + draw.chance(0.3)) % 2 else -1
        low = road[side] + verge[side] + 0.4
        x, y = draw(8.0, 11.0) + 2.4 * (k // 2), side * draw(low, max(low + 0.2, walk[side] - 0.4))
        place = Place(x, y, draw.pick([0.0, math.pi]) + draw(-0.3, 0.3), KERB)
        draw.thing("person", place, 0.05, who="Pedestrian")
    for likely in (0.85, 0.55):
        if zebra < 0 or not draw.chance(likely):
            break
        place = Place(zebra + draw(0.6, 2.6), draw(-3.0, 3.0), math.pi / 2 * draw.pick(SIDES))
        draw.thing("person", place, 0.05, who="Pedestrian")
