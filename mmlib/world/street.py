"""A street: road with markings, kerbs, verges, buildings, gardens behind fences and walls; ``roadside`` adds
trees, lamps, signs, traffic and people.

Every function draws random numbers in a fixed order: a seed's street stays the same only as long as that
order does.
"""

import numpy as np

from .geometry import Camera, World
from .materials import MATERIAL
from .props import LABEL, Draw, shaded
from .roadside import KERB, LANE, SIDES, bush, furniture, people, traffic, tree


def layout(seed: int) -> World:
    """The street of this seed."""
    draw = Draw(7001, seed)
    # for the left (1) and right (-1): distance of the kerb, width of the verge, distance of the property line
    road = {side: LANE + (2.3 if draw.chance(0.6) else 0.3) for side in SIDES}
    verge = {side: draw(1.2, 2.0) * draw.chance(0.8) for side in SIDES}
    walk = {side: road[side] + verge[side] + draw(2.2, 3.4) for side in SIDES}
    start = draw(17, 34) if draw.chance(0.40) else 1e3
    gap = start, end = start, start + 7.0  # where a side road crosses
    for side in SIDES:
        for x0, x1 in (-4, min(start, 130)), (end, 130):
            if x1 > x0:
                centre = (x0 + x1) / 2, side * (road[side] + 14), KERB / 2
                draw.box("SideWalk", "pavement", centre, ((x1 - x0) / 2, 14, KERB / 2))
    for side, boundary in zip(SIDES, draw.order("wall", "fence")):
        _plots(draw, side, walk[side], gap, boundary)
    _backdrop(draw)
    furniture(draw, road, verge, gap)
    zebra = draw(7.5, 15) if draw.chance(0.75) else -99.0
    traffic(draw, road, zebra)
    people(draw, road, verge, walk, zebra)

    grey, pave = draw(0.12, 0.20), draw.finish("pavings")
    tones = [("asphalt", (grey * 1.02, grey, grey * 0.98)), ("paint", (0.78, 0.78, 0.74))]
    tones += draw.tint(pave), draw.tint("lawn")
    camera = Camera(
        (0.0, -LANE / 2 + draw(-0.5, 0.5), draw(1.5, 1.8)), draw(-0.12, 0.12), draw(-0.04, 0.03), 0.78
    )
    draw.background("Road", ("asphalt", grey))
    draw.background("Sky", "sky")
    return draw.build(
        camera=camera,
        paint=_ground(draw, road, verge, walk, gap, zebra),
        motion=(draw(0.22, 0.50), draw(-0.012, 0.012)),
        tones=tones,
    )


def _ground(draw, road, verge, walk, gap, zebra):
    """The rule that tells road, markings, pavement and grass apart by position (exact float32 arithmetic: it
    decides labels).
    """
    dash, width, bays = draw(2.6, 3.6), 0.11, draw.chance(0.7)

    def paint(label, material, x, y, z):
        def cover(index, name, surface):
            label[index], material[index] = LABEL[name], MATERIAL[surface]

        on = np.flatnonzero(label == LABEL["Road"])
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
        cover(on, "Terrain", "grass")
        cover(on[inside | across], "Road", "asphalt")
        cover(on[inside & ~across & ((lanes & ~near) | strip | stop)], "RoadLine", "paint")
        top = np.flatnonzero((label == LABEL["SideWalk"]) & (z > KERB - 0.02))
        for side in SIDES:
            edge = y[top] * side
            grass = (edge > road[side] + 0.25) & (edge < road[side] + verge[side]) | (edge > walk[side])
            cover(top[grass], "Terrain", "grass")

    return paint


# ---------------------------------------------------------------- buildings and gardens
def _plots(draw, side, line, gap, boundary):
    """One side of the street, plot by plot. The first or second plot has a garden or park behind the given
    boundary.
    """
    x, k, first_open, (start, end) = -3.0 + draw(0, 3), 0, draw.count(0, 2), gap
    while x < 95:
        size = draw(9, 16)
        if x + size > start - 0.5 and x < end:
            if start - x <= 6:
                x = end + 0.5
                continue
            size = start - x - 0.5
        kind = "block" if draw.chance(0.5) else ("house" if draw.chance(0.6) else "park")
        if k == 0 and first_open == 1:
            kind, size = "block", draw(9, 12)
        if k == first_open:
            kind, size = draw.pick(["house", "park"]), draw(11, 17) if start - x > 18 else size
        if kind == "block":
            _block(draw, x, size, side, line)
        else:
            if kind == "house":
                _house(draw, x, size, side, line + draw(4, 6.5))
            else:
                for _ in range(2):
                    tree(draw, x + draw(1, size - 1), side * (line + draw(3, 7)), draw(0.8, 1.25))
            for _ in range(draw.count(2, 5)):
                bush(draw, x + draw(0.8, size - 0.8), side * (line + draw(0.9, 2.6)))
            kind = boundary if k <= 1 else draw.pick(["fence", "fence", "wall", "hedge"])
            _boundary(draw, x, size, side, line + 0.1, kind)
        x, k = x + size, k + 1


def _block(draw, x, size, side, line):
    """Flats of two to five storeys, some above shops; its roof is flat or leans."""
    wall, storey, deep, shops = draw.tint("facades"), draw(2.9, 3.4), draw(9, 13), draw.chance(0.45)
    height = storey * draw.count(2, 6) + (3.6 if shops else 0.5) + 0.6
    kind = draw.count(0, 4) if draw.chance(0.7) else 0
    x, y = x + size / 2, side * (line + deep / 2 + 0.05)
    half, pattern = (size / 2 - 0.02, deep / 2, height / 2), ("facade", draw(1.9, 3.0), storey, kind, shops)
    draw.box("Building", wall, (x, y, height / 2), half, pattern=pattern)
    if draw.chance(0.5):
        _roof(draw, "flat roofs", x, y, height, size / 2, deep / 2 + 0.3, draw(1.6, 2.8))
    else:
        edge = "concrete", tuple(c * 0.8 + 0.1 for c in wall[1])
        draw.box("Building", edge, (x, y, height + 0.12), (size / 2 + 0.02, deep / 2 + 0.22, 0.16))


def _house(draw, x, size, side, line):
    wall = draw.finish("facades")
    storey, deep, wide = draw(2.7, 3.0), draw(7, 9), size * 0.36
    height = storey * draw.count(1, 3) + 1.2
    x, y = x + size / 2, side * (line + deep / 2)
    wall, pattern = draw.tint(wall), ("facade", draw(2.2, 3.2), storey, draw.count(0, 2))
    half = wide, deep / 2, height / 2
    draw.box("Building", wall, (x, y, height / 2), half, pattern=pattern)
    rise = draw(1.8, 3.0)
    _roof(draw, "house roofs", x, y, height, wide + 0.4, deep / 2 + 0.5, rise, hipped=True)
    draw.box("Building", "chimney", (x + wide * 0.5, y, height + rise), (0.35, 0.35, 0.8))


def _roof(draw, finish, x, y, height, wide, deep, rise, hipped=False):
    """A roof whose ridge runs along the street; some hipped ones lean on all four sides."""
    finish = draw.finish(finish)
    taper = draw.pick([0.0, deep / rise * 0.6]) if hipped else 0.0, deep / rise * 0.98
    draw.frustum("Building", finish, (x, y, height + rise / 2), (wide, deep, rise / 2), taper=taper)


def _boundary(draw, x, size, side, y, kind):
    """What closes a garden: wooden boards or white pickets on posts, a wall with a cover, or a hedge."""

    def along(label, finish, middle, thick, half, **more):
        draw.box(label, finish, (x + size / 2, side * y, KERB + middle), (size / 2, thick, half), **more)

    if kind == "fence":
        height, wood = draw(1.35, 1.9), draw.finish("boards")
        middle = height / 2
        along("Fence", draw.tint(wood), middle, 0.04, middle, pattern=("stripes", 5.0, 0.35))
        for k in range(int(size / 2.4) + 1 if x < 28 else 0):  # far away, details cost time and show nothing
            post = x + 0.1 + k * 2.4, side * (y - 0.07), KERB + middle + 0.08
            draw.box("Fence", shaded(wood, 0.8), post, (0.07, 0.05, middle + 0.08))
    elif kind == "wall":
        height, stone = draw(1.3, 2.1), draw.finish("stones")
        along("Wall", draw.tint(stone, 0.1), height / 2, 0.18, height / 2)
        along("Wall", "coping", height + 0.05, 0.26, 0.06)
    else:
        middle = draw(1.1, 1.6) / 2
        along("Vegetation", draw.tint("hedge"), middle, 0.4, middle)


def _backdrop(draw):
    """What closes the view: far buildings and a belt of trees, so that the street does not end in nothing."""
    for k in range(7):
        y, height = -66 + 22 * k + draw(-4, 4), draw(8, 24)
        _, colour = draw.tint("facades")
        centre, half = (draw(118, 140), y, height / 2), (8, draw(7, 11), height / 2)
        draw.box("Building", ("render", colour), centre, half, pattern=("facade", 3.0, 3.2))
    for side in SIDES:
        for k in range(4):
            r = draw(4, 6)
            green = draw.tint("forest")
            centre = 18 + 20 * k + draw(-5, 5), side * draw(32, 40), 2.5
            draw.ellipsoid("Vegetation", green, centre, (r * 1.5, r, r))
