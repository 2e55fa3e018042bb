"""A street: road with markings, kerbs, verges, buildings, gardens behind fences and walls, trees, lamps, signs, traffic and people."""

from __future__ import annotations

import math

import numpy as np

from .geometry import FRUSTUM, Camera, Stage, World
from .materials import MATERIAL as M
from .materials import PATTERN as P
from .props import KERB, Draw, bus, bush, car, person, sign, tree

CLASSES = ["Building", "Fence", "Pedestrian", "Pole", "RoadLine", "Road", "SideWalk", "Vegetation", "Cars", "Wall", "TrafficSign", "Sky",
           "Terrain", "Bus"]
PALETTE = [(70, 70, 70), (100, 40, 40), (220, 20, 60), (153, 153, 153), (157, 234, 50), (128, 64, 128), (244, 35, 232), (107, 142, 35),
           (0, 0, 142), (102, 102, 156), (220, 220, 0), (70, 130, 180), (145, 170, 100), (0, 60, 100)]  # DELIVER's colours
BUILDING, FENCE, PEDESTRIAN, POLE, ROADLINE, ROAD, SIDEWALK, VEGETATION, CARS, WALL, SIGN, SKY, TERRAIN, BUS = range(14)
LANE = 3.3  # metres: width of a lane

PLASTERS = [(0.62, 0.52, 0.36), (0.58, 0.38, 0.26), (0.66, 0.63, 0.56), (0.42, 0.47, 0.50), (0.60, 0.55, 0.30), (0.52, 0.34, 0.30),
            (0.45, 0.50, 0.40)]
BRICKS = [(0.36, 0.13, 0.08), (0.42, 0.20, 0.12), (0.30, 0.15, 0.11), (0.44, 0.30, 0.19)]
FACADES = [("render", c) for c in PLASTERS] + [("brick", c) for c in BRICKS]


def layout(seed: int) -> World:
    """The street of this seed."""
    u, stage = Draw(7001, seed), Stage()
    # kerb distance on the left (1) and right (-1)
    road = {1: LANE + (2.3 if u.chance(0.6) else 0.3), -1: LANE + (2.3 if u.chance(0.6) else 0.3)}
    verge = {1: u(1.2, 2.0) * u.chance(0.8), -1: u(1.2, 2.0) * u.chance(0.8)}
    walk = {side: road[side] + verge[side] + u(2.2, 3.4) for side in (1, -1)}  # distance of the property line
    crossing = u(17, 34) if u.chance(0.40) else 1e3
    gap = (crossing, crossing + 7.0)
    for side in (1, -1):
        for x0, x1 in ((-4, min(gap[0], 130)), (gap[1], 130)):
            if x1 > x0:
                stage.box(SIDEWALK, M["paving"], (0.4, 0.4, 0.4), ((x0 + x1) / 2, side * (road[side] + 14), KERB / 2),
                    ((x1 - x0) / 2, 14, KERB / 2))
    fenced = 1 if u.chance(0.5) else -1
    for side in (1, -1):
        _plots(u, stage, side, walk[side], gap, "fence" if side == fenced else "wall")
    _backdrop(u, stage)
    lights = _furniture(u, stage, road, verge, walk, gap)
    zebra = u(7.5, 15) if u.chance(0.75) else -99.0
    _traffic(u, stage, road, zebra)
    _people(u, stage, road, verge, walk, zebra)

    grey = u(0.12, 0.20)
    pave = u.pick([(0.40, 0.37, 0.33), (0.44, 0.42, 0.40), (0.42, 0.31, 0.25), (0.36, 0.36, 0.37)])
    tones = {"asphalt": (grey * 1.02, grey, grey * 0.98), "paint": (0.78, 0.78, 0.74), "paving": u.tint(pave),
        "grass": u.tint((0.115, 0.20, 0.045))}
    camera = Camera((0.0, -LANE / 2 + u(-0.5, 0.5), u(1.5, 1.8)), u(-0.12, 0.12), u(-0.04, 0.03), 0.78)
    background = [(ROAD, M["asphalt"], 0, (grey, grey, grey)), (SKY, M["sky"], 0, (0, 0, 0))]
    paint = _ground(stage, road, verge, walk, gap, zebra, u)
    return stage.build(background, indoor=False, camera=camera, motion=(u(0.22, 0.50), u(-0.012, 0.012)), paint=paint,
        lights=tuple(lights), facts={"tones": tones})


def _ground(stage, road, verge, walk, gap, zebra, u):
    """The rule that tells road, markings, pavement and grass apart by position (exact arithmetic: it decides labels)."""
    f = np.float32
    left, right = f(road[1]), f(-road[-1])
    count = len(stage.rows)
    parking = {side: road[side] > LANE + 1 for side in (1, -1)}
    dash, width = f(u(2.6, 3.6)), f(0.11)
    bays = u.chance(0.7)

    def paint(label, material, prim, x, y, z):
        on = np.flatnonzero(prim == count)
        gx, gy = x[on], y[on]
        inside = (gy < left) & (gy > right)
        across = (gx > f(gap[0])) & (gx < f(gap[1])) & (gx < f(900))
        period = gx - np.floor(gx / f(6)) * f(6)
        lanes = (np.abs(gy) < width) & (period < dash)
        for side in (1, -1):
            if parking[side]:
                lanes |= np.abs(gy - f(side * (LANE + 0.1))) < f(0.085)
                if bays:
                    bay = gx - np.floor(gx / f(5.8)) * f(5.8)
                    lanes |= (bay < f(0.16)) & (gy * side > f(LANE))
            else:
                lanes |= np.abs(gy - f(side * (LANE - 0.05))) < f(0.085)
        bars = gy - np.floor(gy) < f(0.52)
        strip = (gx > f(zebra)) & (gx < f(zebra + 3.2))
        near = (gx > f(zebra - 1.4)) & (gx < f(zebra + 4.2))
        stop = (gx > f(zebra - 1.25)) & (gx < f(zebra - 0.8)) & (gy < 0)
        line = inside & ~across & ((lanes & ~near) | (strip & bars) | stop)
        label[on] = np.where(line, ROADLINE, np.where(inside | across, ROAD, TERRAIN))
        material[on] = np.where(line, M["paint"], np.where(inside | across, M["asphalt"], M["grass"]))
        top = np.flatnonzero((label == SIDEWALK) & (z > f(KERB - 0.02)))
        py = y[top]
        for side in (1, -1):
            edge = py * f(side)
            grass = (edge > f(road[side] + 0.25)) & (edge < f(road[side] + verge[side])) | (edge > f(walk[side]))
            label[top[grass]], material[top[grass]] = TERRAIN, M["grass"]

    return paint


# ---------------------------------------------------------------- buildings and gardens
def _plots(u, stage, side, line, gap, boundary):
    """One side of the street, plot by plot. The first or second plot has a garden or park behind the given boundary."""
    x, k, first_open = -3.0 + u(0, 3), 0, int(u.rng.integers(2))
    while x < 95:
        size = u(9, 16)
        if x + size > gap[0] - 0.5 and x < gap[1]:
            if gap[0] - x > 6:
                size = gap[0] - x - 0.5
            else:
                x = gap[1] + 0.5
                continue
        kind = "block" if u.chance(0.5) else ("house" if u.chance(0.6) else "park")
        if k == 0 and first_open == 1:
            kind, size = "block", u(9, 12)
        if k == first_open:
            kind, size = u.pick(["house", "park"]), u(11, 17) if gap[0] - x > 18 else size
        if kind == "block":
            _block(u, stage, x, size, side, line)
        else:
            if kind == "house":
                _house(u, stage, x, size, side, line + u(4, 6.5))
            else:
                for _ in range(2):
                    tree(u, stage, VEGETATION, x + u(1, size - 1), side * (line + u(3, 7)), u(0.8, 1.25))
            for _ in range(int(u.rng.integers(2, 5))):
                bush(u, stage, VEGETATION, x + u(0.8, size - 0.8), side * (line + u(0.9, 2.6)))
            _boundary(u, stage, x, size, side, line + 0.1, boundary if k <= 1 else u.pick(["fence", "fence", "wall", "hedge"]))
        x, k = x + size, k + 1


def _block(u, stage, x, size, side, line):
    material, colour = u.pick(FACADES)
    colour, storey, deep, shops = u.tint(colour), u(2.9, 3.4), u(9, 13), u.chance(0.45)
    height = storey * int(u.rng.integers(2, 6)) + (3.6 if shops else 0.5) + 0.6
    kind = float(u.rng.integers(4)) if u.chance(0.7) else 0.0
    y = side * (line + deep / 2 + 0.05)
    stage.box(BUILDING, M[material], colour, (x + size / 2, y, height / 2), (size / 2 - 0.02, deep / 2, height / 2), pattern="facade",
              style=(u(1.9, 3.0), storey, kind, float(shops)))
    if u.chance(0.5):
        rise = u(1.6, 2.8)
        half = deep / 2 + 0.3
        stage.add(FRUSTUM, BUILDING, M["roof"], u.pick([(0.30, 0.12, 0.08), (0.13, 0.13, 0.15), (0.22, 0.15, 0.12)]),
            (x + size / 2, y, height + rise / 2),
                  (size / 2, half, rise / 2), taper=(0.0, half / rise * 0.98))
    else:
        stage.box(BUILDING, M["concrete"], tuple(c * 0.8 + 0.1 for c in colour), (x + size / 2, y, height + 0.12),
            (size / 2 + 0.02, deep / 2 + 0.22, 0.16))


def _house(u, stage, x, size, side, line):
    material, colour = u.pick(FACADES)
    storey, deep, wide = u(2.7, 3.0), u(7, 9), size * 0.36
    height = storey * int(u.rng.integers(1, 3)) + 1.2
    y = side * (line + deep / 2)
    stage.box(BUILDING, M[material], u.tint(colour), (x + size / 2, y, height / 2), (wide, deep / 2, height / 2), pattern="facade",
        style=(u(2.2, 3.2), storey, float(u.rng.integers(2)), 0.0))
    rise, half = u(1.8, 3.0), deep / 2 + 0.5
    stage.add(FRUSTUM, BUILDING, M["roof"], u.pick([(0.36, 0.13, 0.08), (0.14, 0.14, 0.16), (0.26, 0.17, 0.13)]),
        (x + size / 2, y, height + rise / 2), (wide + 0.4, half, rise / 2),
              taper=(u.pick([0.0, half / rise * 0.6]), half / rise * 0.98))
    stage.box(BUILDING, M["brick"], (0.32, 0.15, 0.10), (x + size / 2 + wide * 0.5, y, height + rise), (0.35, 0.35, 0.8))


def _boundary(u, stage, x, size, side, y, kind):
    centre = (x + size / 2, side * y)
    if kind == "fence":  # wooden boards, or white pickets, on posts
        height = u(1.35, 1.9)
        colour = u.pick([(0.42, 0.26, 0.13), (0.36, 0.20, 0.10), (0.50, 0.33, 0.18), (0.68, 0.66, 0.62)])
        stage.box(FENCE, M["wood"], u.tint(colour), (*centre, KERB + height / 2), (size / 2, 0.04, height / 2), pattern="stripes",
            style=(5.0, 0.35, 0.0, 0.0))
        for k in range(int(size / 2.4) + 1 if x < 28 else 0):  # far away, details cost time and show nothing
            stage.box(FENCE, M["wood"], tuple(c * 0.8 for c in colour), (x + 0.1 + k * 2.4, side * (y - 0.07), KERB + height / 2 + 0.08),
                (0.07, 0.05, height / 2 + 0.08))
    elif kind == "wall":
        height = u(1.3, 2.1)
        material, colour = u.pick([("stone", (0.40, 0.38, 0.34)), ("stone", (0.45, 0.38, 0.27)), ("concrete", (0.46, 0.46, 0.45))])
        stage.box(WALL, M[material], u.tint(colour, 0.1), (*centre, KERB + height / 2), (size / 2, 0.18, height / 2))
        stage.box(WALL, M["concrete"], (0.52, 0.50, 0.47), (*centre, KERB + height + 0.05), (size / 2, 0.26, 0.06))
    else:
        height = u(1.1, 1.6)
        stage.box(VEGETATION, M["leaf"], u.tint((0.09, 0.18, 0.04)), (*centre, KERB + height / 2), (size / 2, 0.4, height / 2))


def _backdrop(u, stage):
    """What closes the view: far buildings and a belt of trees, so that the street does not end in nothing."""
    for k in range(7):
        y, height = -66 + 22 * k + u(-4, 4), u(8, 24)
        stage.box(BUILDING, M["render"], u.tint(u.pick(FACADES)[1]), (u(118, 140), y, height / 2), (8, u(7, 11), height / 2),
            pattern="facade", style=(3.0, 3.2, 0.0, 0.0))
    for side in (1, -1):
        for k in range(4):
            r = u(4, 6)
            stage.ellipsoid(VEGETATION, M["leaf"], u.tint((0.08, 0.15, 0.05)), (18 + 20 * k + u(-5, 5), side * u(32, 40), 2.5),
                (r * 1.5, r, r))


# ---------------------------------------------------------------- poles, signs, lamps
def _furniture(u, stage, road, verge, walk, gap):
    """Lamps, trees along the kerb, traffic signs, bollards, direction boards. Returns the lamps' lights."""
    lights = []
    metal = u.pick([(0.06, 0.085, 0.075), (0.07, 0.07, 0.075), (0.50, 0.51, 0.52)])
    start = u(6.0, 10.0)
    for k in range(4):
        for side in (1, -1):
            x, y = start + 17 * k + (8.5 if side < 0 else 0), side * (road[side] + 0.45)
            if gap[0] - 1 < x < gap[1] + 1:
                continue
            height, reach = 6.2, 1.5
            stage.cylinder(POLE, M["metal"], metal, (x, y, KERB), 0.16, height)
            stage.cylinder(POLE, M["metal"], metal, (x, y, KERB), 0.23, 1.0)
            stage.box(POLE, M["metal"], metal, (x, y - side * reach / 2, height), (0.08, reach / 2, 0.08))
            stage.box(POLE, M["lamp"], (1.0, 0.86, 0.62), (x, y - side * reach, height - 0.05), (0.16, 0.38, 0.08), glow=5.0)
            lights.append((x, y - side * reach, height - 0.3, 9.5, 7.2, 4.4, True))
    for side in (1, -1):
        if verge[side] > 0 or u.chance(0.45):
            x = u(8, 15)
            while x < 70:
                if not gap[0] - 2 < x < gap[1] + 2:
                    tree(u, stage, VEGETATION, x, side * (road[side] + 0.85), u(0.8, 1.05))
                x += u(10, 18)
        for k in range(int(u.rng.integers(1, 3))):
            sign(u, stage, SIGN, POLE, u(6.5, 11) + 7 * k, side * (road[side] + 0.5), u.pick([0.0, 1.0, 2.0]))
        if u.chance(0.4):
            x0 = u(6, 10)
            for k in range(6):
                stage.cylinder(POLE, M["metal"], u.pick([(0.6, 0.6, 0.58), metal]), (x0 + 1.5 * k, side * (road[side] + 0.25), KERB),
                    0.12, 0.95)
    if u.chance(0.65):  # direction board on two posts beside the carriageway, or over it
        x, y, wide = u(13, 24), u.pick([-1.0, 1.0]), u(1.3, 1.8)
        y0 = -road[-1] - 0.6 if y < 0 else road[1] + 0.6
        centre = y0 + (wide if y < 0 else -wide) * 0.75
        stage.box(SIGN, M["sign"], (0.02, 0.16, 0.55), (x, centre, 4.9), (0.05, wide, 0.85), pattern="sign", style=(3.0, 0, 0, 0))
        stage.cylinder(POLE, M["metal"], (0.35, 0.36, 0.37), (x + 0.12, y0, KERB), 0.17, 5.7)
    lights.sort(key=lambda lamp: lamp[0])
    return lights[:7]


# ---------------------------------------------------------------- traffic and people
def _traffic(u, stage, road, zebra):
    kind = u.pick(["oncoming", "ahead", "stop"]) if u.chance(0.9) else ""
    taken = []
    if kind == "oncoming":
        x = u(15, 26)
        bus(u, stage, BUS, x, LANE / 2 + 0.1, math.pi, -0.25)
        taken = [(1, x - 8, x + 8)]
    elif kind == "ahead":
        x = u(17, 25)
        bus(u, stage, BUS, x, -LANE / 2 - 0.1, 0.0, 0.25)
        taken = [(-1, x - 8, x + 8)]
    elif kind == "stop":
        side = u.pick([1, -1]) if road[1] > LANE + 1 and road[-1] > LANE + 1 else (1 if road[1] > LANE + 1 else -1)
        x = u(13, 20)
        bus(u, stage, BUS, x, side * (road[side] - 1.35), 0.0 if side < 0 else math.pi, 0.0)
        taken = [(side, x - 8, x + 8), (2 * side, x - 8, x + 8)]
    if u.chance(0.65):
        x = u(11, 40)
        if not any(s == 1 and a < x < b for s, a, b in taken):
            car(u, stage, CARS, x, LANE / 2 + u(-0.2, 0.3), math.pi, -0.3, True)
    if u.chance(0.65):
        x = u(9, 13) if kind == "ahead" else u(9, 30)
        if not any(s == -1 and a + 2 < x < b for s, a, b in taken):
            car(u, stage, CARS, x, -LANE / 2 + u(-0.2, 0.2), 0.0, 0.3, True)
    for side in (1, -1):
        if road[side] > LANE + 1:
            x = u(6.5, 9)
            while x < 62:
                blocked = any(s == 2 * side and a - 1 < x < b + 1 for s, a, b in taken) or zebra - 3 < x < zebra + 6
                if u.chance(0.62) and not blocked:
                    car(u, stage, CARS, x, side * (road[side] - 1.15), (0.0 if side < 0 else math.pi) + u(-0.02, 0.02), 0.0, False)
                x += 5.8


def _people(u, stage, road, verge, walk, zebra):
    for k in range(int(u.rng.integers(5, 9))):
        side = 1 if (k + int(u.chance(0.3))) % 2 else -1
        low = road[side] + verge[side] + 0.4
        person(u, stage, PEDESTRIAN, u(8.0, 11.0) + 2.4 * (k // 2), side * u(low, max(low + 0.2, walk[side] - 0.4)), KERB,
            u.pick([0.0, math.pi]) + u(-0.3, 0.3))
    if zebra > 0 and u.chance(0.85):
        person(u, stage, PEDESTRIAN, zebra + u(0.6, 2.6), u(-3.0, 3.0), 0.0, math.pi / 2 * u.pick([1, -1]))
        if u.chance(0.55):
            person(u, stage, PEDESTRIAN, zebra + u(0.6, 2.6), u(-3.0, 3.0), 0.0, math.pi / 2 * u.pick([1, -1]))
