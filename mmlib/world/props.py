"""What both scenes need to place things: classes, random numbers, finishes, and things made of parts.

Only ``rng.random()`` and ``rng.integers()`` are used (their bits are the same everywhere), and Python's own
float arithmetic.

Two tables say what things look like. ``draws.csv`` lists what is drawn for a thing, in this order: its name,
the method of ``Draw`` that draws it, and what the method is given (numbers, names of lists of finishes, or
what was drawn before). ``parts.csv`` lists the primitives of a thing, in the order in which they are placed:

* shape; label: a class; finish: what was drawn under this name, else a list of finishes;
* x, y, z: the centre, in metres along the two axes of the thing's place, and up;
* half_x, half_y, half_z: half sizes about the centre, along the same axes;
* taper_x, taper_y: a frustum's half sizes hold at its bottom and shrink by this per metre of height;
* pattern: its name and up to four numbers that it reads (see ``looks``);
* heat: kelvin above what weather alone would give (engines, bodies, screens);
* glow: radiance that it emits in its own colour (lamps), in the units of the tone curve.

Numbers may depend on what was drawn: "0.5 tall + r + 0.02" is a sum of products of numbers and names.
"""

import math
from functools import cache

import numpy as np

from .geometry import CYLINDER, SHAPES, World, turn
from .materials import FINISHES, MATERIAL, PATTERN, read_groups

# By scene: names of the classes and their colours, DELIVER's for the street, SceneNet's NYU-13 for the room.
CLASSES = {scene: [row["class"] for row in rows] for scene, rows in read_groups("classes.csv").items()}
PALETTES = {
    scene: [tuple(bytes.fromhex(row["colour"][1:])) for row in rows]
    for scene, rows in read_groups("classes.csv").items()
}
LABEL = {name: index for names in CLASSES.values() for index, name in enumerate(names)}
MEASURES = "x y z half_x half_y half_z taper_x taper_y heat glow".split()  # columns of parts.csv


class Place:
    """Where a thing stands: ``x``, ``y``, ``z`` of its foot, and its two axes on the floor: ahead and to the
    left, turned by ``yaw``, or those of a wall that runs along or across the room.
    """

    def __init__(self, x, y, yaw=0.0, z=0.0, axes=None):
        c, s = turn(yaw)
        self.x, self.y, self.yaw, self.z, self.axes = x, y, yaw, z, axes or ((c, s), (-s, c))

    def at(self, first, second):
        """World (x, y) of the point so many metres along the axes."""
        (ax, ay), (bx, by) = self.axes
        return self.x + ax * first + bx * second, self.y + ay * first + by * second


def _terms(cell: str) -> list[tuple[float, list[str]]]:
    """A sum such as "0.5 tall + r" as its terms: a factor, and the names that it is multiplied with."""
    terms = []
    for words in map(str.split, cell.split("+")):
        names = [word for word in words if word.isidentifier()]
        terms.append((math.prod(float(word) for word in words if word not in names), names))
    return terms


@cache
def _parts(thing: str) -> list[tuple]:
    """The rows of ``parts.csv`` for a thing: kind, label, finish, pattern, its numbers (those of ``MEASURES``
    and the four of the pattern), and the terms of those that are sums, by their place among the numbers.
    """
    parts = []
    for row in read_groups("parts.csv")[thing]:
        pattern, *style = row.get("pattern", "none").split()
        numbers = [*(row.get(column, 0.0) for column in MEASURES), *style, *4 * [0.0]][: len(MEASURES) + 4]
        sums = {k: _terms(cell) for k, cell in enumerate(numbers) if isinstance(cell, str)}
        kind = SHAPES.index(row["shape"])
        parts.append((kind, row["label"], row["finish"], PATTERN[pattern], numbers, sums))
    return parts


class Draw:
    """Lays out a scene: random numbers whose bits do not depend on the platform, and the primitives and
    lights that are placed with them.
    """

    def __init__(self, *key):
        self.rng = np.random.default_rng(key)
        self.rows, self.lights = [], []

    # ------------------------------------------------------------ random numbers
    def __call__(self, low=0.0, high=1.0) -> float:
        return low + (high - low) * self.rng.random()

    number = __call__  # its name in draws.csv

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
        """One finish, (material, reflectance), of a list of ``finishes.csv``, or the one given; of another
        material where one is named.
        """
        own, colour = name if isinstance(name, tuple) else self.pick(FINISHES[name])
        return material or own, colour

    def tint(self, finish, spread=0.15):
        """The finish, or one of the list with this name, a little lighter or darker."""
        material, colour = self.finish(finish)
        gain = self(1 - spread, 1 + spread)
        return material, tuple(min(c * gain, 0.9) for c in colour)

    def shade(self, finish, gain, lift=0.0):
        """The finish with its reflectance times ``gain`` plus ``lift``."""
        material, colour = finish
        return material, tuple(c * gain + lift for c in colour)

    def draws(self, thing, values) -> dict:
        """Adds to ``values`` what ``draws.csv`` lists for this thing, by name; returns it."""
        for row in read_groups("draws.csv").get(thing, ()):
            _, name, method, *arguments = row.values()
            values[name] = getattr(self, method)(*[values.get(cell, cell) for cell in arguments])
        return values

    # ------------------------------------------------------------ things
    def thing(self, name, place, step=0.0, **values) -> dict:
        """Draws what a thing needs besides ``values``, and places its parts; returns both. ``step``: metres
        that it moves ahead between the two poses of the event camera.
        """
        values, (ahead, _) = self.draws(name, values), place.axes
        move = step * ahead[0], step * ahead[1], 0.0
        for kind, label, finish, pattern, numbers, sums in _parts(name):
            numbers = numbers.copy()
            for k, terms in sums.items():
                numbers[k] = 0.0
                for product, names in terms:
                    for factor in names:
                        product *= values[factor]
                    numbers[k] += product
            x, y, z, long, wide, tall, *taper, heat, glow, a, b, c, d = numbers
            if not (place.yaw or ahead[0]):  # the first axis runs across the room
                long, wide = wide, long
            # cylinders are round and never turned
            heading = ahead if place.yaw and kind != CYLINDER else (1.0, 0.0)
            material, colour = self.finish(values.get(finish, finish))
            look = LABEL[values.get(label, label)], MATERIAL[material], pattern, colour
            shape = (*place.at(x, y), place.z + z), (long, wide, tall), heading, tuple(taper)
            self.rows.append((kind, *look, *shape, (a, b, c, d), move, heat, glow))
        return values

    def build(self, **scene) -> World:
        """The scene; ``scene`` as for World."""
        return World(sorted(self.rows, key=lambda row: row[0]), lights=self.lights, **scene)
