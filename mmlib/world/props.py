"""What both scenes need to place things: classes, random numbers, finishes, turned coordinates, people.

Only ``rng.random()`` and ``rng.integers()`` are used (their bits are the same everywhere), and Python's own
float arithmetic.
"""

from functools import partial

import numpy as np

from .geometry import BACKGROUND, BOX, CYLINDER, ELLIPSOID, FRUSTUM, ROW, World, turn
from .materials import FINISHES, MATERIAL, PATTERN, read_table

# By scene: names of the classes and their colours, DELIVER's for the street, SceneNet's NYU-13 for the room.
CLASSES: dict[str, list] = {}
PALETTES: dict[str, list] = {}
for _row in read_table("classes.csv"):
    CLASSES.setdefault(_row["scene"], []).append(_row["class"])
    PALETTES.setdefault(_row["scene"], []).append(tuple(bytes.fromhex(_row["colour"][1:])))
LABEL = {name: index for names in CLASSES.values() for index, name in enumerate(names)}


class Draw:
    """Lays out a scene: random numbers whose bits do not depend on the platform, and the primitives and
    lights that are placed with them.
    """

    def __init__(self, *key):
        self.rng = np.random.default_rng(key)
        self.rows, self.lights = [], []
        self.box, self.frustum, self.ellipsoid, self.background = (
            partial(self.add, kind) for kind in (BOX, FRUSTUM, ELLIPSOID, BACKGROUND)
        )

    # ------------------------------------------------------------ random numbers
    def __call__(self, low=0.0, high=1.0) -> float:
        return low + (high - low) * float(self.rng.random())

    def count(self, low, high) -> int:
        """An integer from low to high - 1."""
        return int(self.rng.integers(low, high))

    def chance(self, p) -> bool:
        return self() < p

    def pick(self, values):
        """One of the values; of a single one without a random number."""
        return values[self.count(0, len(values))]

    def order(self, first, second):
        """The two things in either order."""
        return (second, first) if self.chance(0.5) else (first, second)

    def finish(self, name, material=None):
        """One finish, (material, reflectance), of a list of ``finishes.csv``; another material where one is
        named. What is a finish already stays as it is.
        """
        if isinstance(name, tuple):
            return name
        own, colour = self.pick(FINISHES[name])
        return material or own, colour

    def tint(self, finish, spread=0.15):
        """The finish, or one of the list with this name, a little lighter or darker."""
        material, colour = self.finish(finish)
        gain = self(1 - spread, 1 + spread)
        return material, tuple(min(c * gain, 0.9) for c in colour)

    # ------------------------------------------------------------ primitives
    def add(
        self,
        kind,
        label,
        finish,
        centre=0,
        half=0,
        yaw=0.0,
        taper=0,
        pattern=("none",),
        move=0,
        heat=0.0,
        glow=0.0,
    ):
        """One primitive, or a surface of the background. Where several numbers are due, one stands for all.

        Args:
            label: name of a class.
            finish: (material, linear reflectance (r, g, b) in 0..1), or the name of a list of finishes.
            half: half sizes (hx, hy, hz) about the centre, in its own frame, which is turned by ``yaw`` about
                z.
            taper: a FRUSTUM's half sizes hold at its bottom and shrink by (kx, ky) metres per metre of
                height.
            pattern: name in materials.PATTERN and up to four numbers that it reads (see looks.py).
            move: metres it moves in (x, y, z) between the two poses of the event camera.
            heat: kelvin above what weather alone would give (engines, bodies, screens).
            glow: radiance it emits in its own colour (lamps), in the units of the tone curve.
        """
        material, colour = self.finish(finish)
        pattern, *style = *pattern, 0, 0, 0, 0
        look = LABEL[label], MATERIAL[material], PATTERN[pattern], colour
        self.rows.append((kind, *look, centre, half, turn(yaw), taper, tuple(style[:4]), move, heat, glow))

    def cylinder(self, label, finish, foot, radius, height, **more):
        """Upright cylinder that stands on ``foot`` = (x, y, z)."""
        x, y, z = foot
        self.add(CYLINDER, label, finish, (x, y, z + height / 2), (radius, radius, height / 2), **more)

    def build(self, **scene) -> World:
        """The scene; ``scene`` as for World."""
        return World(np.array(sorted(self.rows, key=lambda row: row[0]), ROW), lights=self.lights, **scene)


def shaded(finish, gain):
    material, colour = finish
    return material, tuple(c * gain for c in colour)


def frame(x, y, yaw):
    """A function (metres ahead, metres to the left) -> world (x, y) for something that stands at x, y and
    looks along yaw.
    """
    c, s = turn(yaw)
    return lambda ahead, left: (x + c * ahead - s * left, y + s * ahead + c * left)


def person(draw, label, x, y, z, yaw):
    """Legs in mid-stride, coat, arms, head. Skin is warm, clothes less so."""
    h = draw(0.92, 1.06)
    coat = draw.tint("coats")
    trousers = draw.tint("trousers")
    skin = draw.finish("skin")
    stride, at, (c, s) = draw(0.06, 0.2), frame(x, y, yaw), turn(yaw)

    def part(finish, ahead, left, up, half, heat):
        """An ellipsoid of these half sizes, so far ahead, left and up; ``heat``: kelvin above the air."""
        centre = (*at(ahead, left), z + up * h)
        draw.ellipsoid(label, finish, centre, half, yaw, move=(0.05 * c, 0.05 * s, 0), heat=heat)

    for leg in (1, -1):
        part(trousers, leg * stride, leg * 0.10, 0.43, (0.105, 0.10, 0.46 * h), 6.0)
        part(coat, -leg * stride * 0.6, leg * 0.235, 1.10, (0.065, 0.055, 0.30 * h), 7.0)
    part(coat, 0, 0, 1.10, (0.15, 0.205, 0.36 * h), 8.0)
    part(coat, 0, 0, 1.34, (0.12, 0.25, 0.13), 8.0)
    part(skin, 0.02, 0, 1.62, (0.115, 0.10, 0.145), 14.0)
    part("hair", -0.03, 0, 1.67, (0.115, 0.105, 0.12), 9.0)
