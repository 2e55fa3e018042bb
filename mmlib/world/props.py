"""What both scenes need to place things: random numbers, colours, turned coordinates, people.

Only ``rng.random()`` and ``rng.integers()`` are used (their bits are the same everywhere), and Python's own
float arithmetic.
"""

import numpy as np

from .geometry import Stage, turn
from .materials import REFLECTANCES


class Draw(Stage):
    """A stage and the random numbers that fill it; their bits do not depend on the platform."""

    def __init__(self, *key):
        super().__init__()
        self.rng = np.random.default_rng(list(key))

    def __call__(self, low=0.0, high=1.0) -> float:
        return low + (high - low) * float(self.rng.random())

    def count(self, low, high) -> int:
        """An integer from low to high - 1."""
        return int(self.rng.integers(low, high))

    def chance(self, p) -> bool:
        return float(self.rng.random()) < p

    def pick(self, values):
        return values[int(self.rng.integers(len(values)))]

    def colour(self, name):
        """One reflectance of a list of ``reflectances.csv``."""
        return self.pick(REFLECTANCES[name])

    def tint(self, colour, spread=0.15):
        """The colour, a little lighter or darker."""
        gain = self(1 - spread, 1 + spread)
        return tuple(min(c * gain, 0.9) for c in colour)


def shaded(colour, gain):
    return tuple(c * gain for c in colour)


def frame(x, y, yaw):
    """A function (metres ahead, metres to the left) -> world (x, y) for something that stands at x, y and
    looks along yaw.
    """
    c, s = turn(yaw)
    return lambda ahead, left: (x + c * ahead - s * left, y + s * ahead + c * left)


def person(draw, label, x, y, z, yaw):
    """Legs in mid-stride, coat, arms, head. Skin is warm, clothes less so."""
    h = draw(0.92, 1.06)
    coat = draw.tint(draw.colour("coats"))
    trousers = draw.tint(draw.colour("trousers"))
    skin = draw.colour("skin")
    stride, at, (c, s) = draw(0.06, 0.2), frame(x, y, yaw), turn(yaw)
    parts = []  # material, colour, ahead, left, up, half sizes, kelvin above the air
    for leg in (1, -1):
        parts.append(("cloth", trousers, leg * stride, leg * 0.10, 0.43, (0.105, 0.10, 0.46 * h), 6.0))
        parts.append(("cloth", coat, -leg * stride * 0.6, leg * 0.235, 1.10, (0.065, 0.055, 0.30 * h), 7.0))
    parts += [
        ("cloth", coat, 0, 0, 1.10, (0.15, 0.205, 0.36 * h), 8.0),
        ("cloth", coat, 0, 0, 1.34, (0.12, 0.25, 0.13), 8.0),
        ("skin", skin, 0.02, 0, 1.62, (0.115, 0.10, 0.145), 14.0),
        ("cloth", draw.colour("hair"), -0.03, 0, 1.67, (0.115, 0.105, 0.12), 9.0),
    ]
    for material, colour, ahead, left, up, half, heat in parts:
        draw.ellipsoid(
            label,
            material,
            colour,
            (*at(ahead, left), z + up * h),
            half,
            yaw,
            move=(0.05 * c, 0.05 * s),
            heat=heat,
        )
