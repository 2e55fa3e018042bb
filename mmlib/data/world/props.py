"""Things that stand in scenes: trees, signs, cars, buses, people; and the random numbers that place them.

Only ``rng.random()`` and ``rng.integers()`` are used (their bits are the same everywhere), and Python's own float arithmetic.
"""

from __future__ import annotations

import math

import numpy as np

from .geometry import ELLIPSOID, FRUSTUM
from .materials import MATERIAL as M
from .materials import PATTERN as P

KERB = 0.15  # metres: height of the pavement
PAINTS = [(0.55, 0.03, 0.03), (0.03, 0.09, 0.30), (0.60, 0.60, 0.60), (0.03, 0.03, 0.035), (0.75, 0.75, 0.73), (0.10, 0.22, 0.20),
    (0.32, 0.34, 0.36), (0.60, 0.33, 0.04), (0.12, 0.30, 0.48)]
COATS = [(0.55, 0.06, 0.06), (0.05, 0.10, 0.35), (0.60, 0.45, 0.08), (0.05, 0.05, 0.06), (0.55, 0.52, 0.48), (0.08, 0.28, 0.14),
    (0.50, 0.16, 0.36), (0.70, 0.30, 0.05)]
BUSES = [(0.62, 0.05, 0.04), (0.70, 0.45, 0.02), (0.04, 0.28, 0.42), (0.10, 0.36, 0.12)]


class Draw:
    """Random numbers whose bits do not depend on the platform."""

    def __init__(self, *key):
        self.rng = np.random.default_rng(list(key))

    def __call__(self, low=0.0, high=1.0) -> float:
        return low + (high - low) * float(self.rng.random())

    def chance(self, p) -> bool:
        return float(self.rng.random()) < p

    def pick(self, values):
        return values[int(self.rng.integers(len(values)))]

    def tint(self, colour, spread=0.15):
        """The colour, a little lighter or darker."""
        gain = self(1 - spread, 1 + spread)
        return tuple(min(c * gain, 0.9) for c in colour)


def tree(u, stage, label, x, y, scale=1.0):
    """Trunk and a lumpy crown, or a conifer."""
    trunk, radius = u(2.0, 2.9) * scale, u(0.15, 0.24) * scale
    green = u.tint(u.pick([(0.10, 0.21, 0.035), (0.14, 0.25, 0.05), (0.07, 0.16, 0.04), (0.20, 0.25, 0.05)]), 0.2)
    stage.cylinder(label, M["bark"], (0.17, 0.12, 0.08), (x, y, 0.0), radius, trunk + 1.2)
    if u.chance(0.2):
        for k in range(3):
            stage.add(FRUSTUM, label, M["leaf"], tuple(c * 0.7 for c in green), (x, y, trunk * 0.5 + (0.9 + 1.5 * k) * scale),
                ((1.6 - 0.42 * k) * scale, (1.6 - 0.42 * k) * scale, 0.95 * scale),
                      yaw=0.6 * k, taper=((1.6 - 0.42 * k) / 1.95, (1.6 - 0.42 * k) / 1.95))
        return
    wide, tall = u(1.4, 2.1) * scale, u(1.3, 1.9) * scale
    centre = trunk + tall * 0.9
    stage.ellipsoid(label, M["leaf"], green, (x, y, centre), (wide * 0.85, wide * 0.85, tall))
    lumps = 5 if x < 32 else 3
    for k in range(lumps):
        a = 2 * math.pi * (k / lumps + u(0, 0.15))
        c, s = round(math.cos(a), 9), round(math.sin(a), 9)
        r = wide * u(0.48, 0.66)
        stage.ellipsoid(label, M["leaf"], u.tint(green, 0.12),
            (x + c * wide * 0.62, y + s * wide * 0.62, centre + tall * u(-0.45, 0.5)), (r, r, r * u(0.75, 1.0)))


def bush(u, stage, label, x, y):
    r = u(0.45, 0.95)
    stage.ellipsoid(label, M["leaf"], u.tint((0.10, 0.19, 0.05), 0.25), (x, y, KERB + r * 0.6), (r, r * u(0.8, 1.1), r * u(0.7, 1.1)))


def sign(u, stage, label, pole, x, y, kind):
    tall = u(2.3, 2.7)
    stage.cylinder(pole, M["metal"], (0.42, 0.43, 0.44), (x + 0.09, y, KERB), 0.085, tall + 0.2)
    size = u(0.40, 0.50)
    if kind == 0.0:
        stage.add(ELLIPSOID, label, M["sign"], (0.8, 0.8, 0.8), (x, y, tall), (0.05, size, size), pattern="sign", style=(0.0, 0, 0, 0))
    else:
        stage.box(label, M["sign"], (0.8, 0.8, 0.8), (x, y, tall), (0.03, size * 0.9, size * 0.9), pattern="sign", style=(kind, 0, 0, 0))
    if u.chance(0.5):
        stage.box(label, M["sign"], (0.8, 0.8, 0.8), (x, y, tall - size - 0.25), (0.03, size * 0.9, 0.2), pattern="sign",
            style=(3.0, 0, 0, 0))


def car(u, stage, label, x, y, yaw, move, running):
    """Body, cabin, four wheels."""
    paint, van = u.tint(u.pick(PAINTS)), u.chance(0.2)
    long, wide, belt = u(2.0, 2.25), u(0.86, 0.92), u(0.44, 0.5)
    c, s = round(math.cos(yaw), 9), round(math.sin(yaw), 9)
    heat, on = (9.0, 1.0) if running else (1.5 * u.rng.integers(2), 0.0)
    stage.add(FRUSTUM, label, M["metal"], paint, (x, y, 0.22 + belt * 0.62), (long, wide, belt * 0.62), yaw, (0.18, 0.10),
        pattern="car", style=(on, 0, 0, 0), move=(move, 0), heat=heat)
    back = 0.18 if not van else 0.05
    cabin_long, cabin_tall = (long * 0.60, 0.36) if not van else (long * 0.9, 0.48)
    bottom = 0.22 + belt * 1.24
    stage.add(FRUSTUM, label, M["metal"], paint, (x - c * back * long, y - s * back * long, bottom + cabin_tall * 0.75),
        (cabin_long, wide * 0.94, cabin_tall * 0.75), yaw,
              taper=(0.55 if not van else 0.2, 0.22), pattern="cabin", move=(move, 0), heat=heat * 0.2)
    for a in (0.62, -0.62) if x < 42 else ():
        for b in (1, -1):
            lx, ly = a * long, b * (wide - 0.07)
            stage.ellipsoid(label, M["rubber"], (0.025, 0.025, 0.027), (x + c * lx - s * ly, y + s * lx + c * ly, 0.33),
                (0.34, 0.13, 0.34), yaw, move=(move, 0), heat=12.0 if running else 0.0)


def bus(u, stage, label, x, y, yaw, move):
    paint = u.tint(u.pick(BUSES))
    c, s = round(math.cos(yaw), 9), round(math.sin(yaw), 9)
    stage.box(label, M["metal"], paint, (x, y, 0.3 + 1.42), (5.4, 1.25, 1.42), yaw, pattern="bus", style=(1.0, 0, 0, 0), move=(move, 0),
        heat=6.0)
    stage.box(label, M["metal"], (0.6, 0.6, 0.6), (x, y, 3.22), (4.6, 0.9, 0.11), yaw, move=(move, 0), heat=4.0)
    for a in (3.4, -3.1):
        for b in (1, -1):
            lx, ly = a, b * 1.16
            stage.ellipsoid(label, M["rubber"], (0.03, 0.03, 0.03), (x + c * lx - s * ly, y + s * lx + c * ly, 0.48), (0.5, 0.16, 0.5), yaw,
                move=(move, 0), heat=14.0)


def person(u, stage, label, x, y, z, yaw):
    """Legs in mid-stride, coat, arms, head. Skin is warm, clothes less so."""
    h, coat, trousers = u(0.92, 1.06), u.tint(u.pick(COATS)), u.tint(u.pick([(0.05, 0.06, 0.12), (0.06, 0.05, 0.05), (0.25, 0.22, 0.17),
        (0.12, 0.14, 0.18)]))
    skin = u.pick([(0.58, 0.38, 0.28), (0.42, 0.26, 0.18), (0.20, 0.12, 0.08)])
    c, s = round(math.cos(yaw), 9), round(math.sin(yaw), 9)
    move, stride = (0.05 * c, 0.05 * s), u(0.06, 0.2)
    def at(ahead, left, up):
        return x + c * ahead - s * left, y + s * ahead + c * left, z + up * h
    for leg in (1, -1):
        stage.ellipsoid(label, M["cloth"], trousers, at(leg * stride, leg * 0.10, 0.43), (0.105, 0.10, 0.46 * h), yaw, move=move,
            heat=6.0)
        stage.ellipsoid(label, M["cloth"], coat, at(-leg * stride * 0.6, leg * 0.235, 1.10), (0.065, 0.055, 0.30 * h), yaw,
            move=move, heat=7.0)
    stage.ellipsoid(label, M["cloth"], coat, at(0, 0, 1.10), (0.15, 0.205, 0.36 * h), yaw, move=move, heat=8.0)
    stage.ellipsoid(label, M["cloth"], coat, at(0, 0, 1.34), (0.12, 0.25, 0.13), yaw, move=move, heat=8.0)
    stage.ellipsoid(label, M["skin"], skin, at(0.02, 0, 1.62), (0.115, 0.10, 0.145), yaw, move=move, heat=14.0)
    stage.ellipsoid(label, M["cloth"], u.pick([(0.05, 0.03, 0.02), (0.25, 0.15, 0.06), (0.45, 0.42, 0.38)]), at(-0.03, 0, 1.67),
        (0.115, 0.105, 0.12), yaw, move=move, heat=9.0)
