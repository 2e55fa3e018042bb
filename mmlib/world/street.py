"""A street: road with markings, kerbs, verges, buildings, gardens behind fences and walls; ``roadside`` adds
trees, lamps, signs, traffic and people.

Every function draws random numbers in a fixed order: a seed's street stays the same only as long as that
order does.
"""

import numpy as np

from .geometry import Camera, World
from .materials import MATERIAL
from .props import LABEL, Draw, Place
from .roadside import KERB, LANE, SIDES, furniture, people, traffic, tree


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
                draw.thing("pavement", Place((x0 + x1) / 2, side * (road[side] + 14)), half=(x1 - x0) / 2)
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
    draw.thing("outdoors", Place(0, 0), road=("asphalt", (grey, grey, grey)))
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
                draw.thing("bush", Place(x + draw(0.8, size - 0.8), side * (line + draw(0.9, 2.6))))
            kind = boundary if k <= 1 else draw.pick(["fence", "fence", "wall", "hedge"])
            _boundary(draw, x, size, side, line + 0.1, kind)
        x, k = x + size, k + 1


def _block(draw, x, size, side, line):
    """Flats of two to five storeys, some above shops; its roof is flat or leans."""
    values = draw.draws("block plan", {"half": size / 2})
    values["kind"] = draw.count(0, 4) if draw.chance(0.7) else 0
    values["height"] = values["storey"] * values["floors"] + (3.6 if values["shops"] else 0.5) + 0.6
    place = Place(x + size / 2, side * (line + values["deep"] / 2 + 0.05))
    draw.thing("block", place, **values)
    if draw.chance(0.5):
        values = draw.draws("roof plan", values)
        draw.thing("flat roof", place, lean=(values["deep"] / 2 + 0.3) / values["rise"], **values)
    else:
        draw.thing("roof edge", place, **values)


def _house(draw, x, size, side, line):
    """A house of one or two storeys; its roof leans on two sides or on all four."""
    values = draw.draws("house plan", {"half": size / 2})
    values["height"] = values["storey"] * values["floors"] + 1.2
    values["lean"] = (values["deep"] / 2 + 0.5) / values["rise"]
    draw.thing("house", Place(x + size / 2, side * (line + values["deep"] / 2)), **values)


def _boundary(draw, x, size, side, y, kind):
    """What closes a garden: wooden boards or white pickets on posts, a wall with a cover, or a hedge."""
    values = draw.thing(kind, Place(x + size / 2, side * y), half=size / 2)
    # far away, details cost time and show nothing
    for k in range(int(size / 2.4) + 1 if kind == "fence" and x < 28 else 0):
        draw.thing("fence post", Place(x + 0.1 + k * 2.4, side * y), side=side, **values)


def _backdrop(draw):
    """What closes the view: far buildings and a belt of trees, so that the street does not end in nothing."""
    for k in range(7):
        draw.thing("far building", Place(0.0, -66.0 + 22 * k))
    for side in SIDES:
        for k in range(4):
            draw.thing("grove", Place(18.0 + 20 * k, 0.0), side=side)
