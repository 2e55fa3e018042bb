"""What surfaces are made of: a table of materials, lists of finishes, a small atlas of textures, and the
patterns painted onto primitives.

A material's numbers come from ordinary handbook ranges, rounded; they need to be plausible and mutually
consistent, not exact.
"""

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

SIDE = 256  # texels along a texture's side; levels of detail halve it


@lru_cache
def read_table(name: str) -> list[dict]:
    """Rows of a table that lies beside this file, without their empty cells; numbers become floats, several
    numbers a tuple of them.
    """
    with open(Path(__file__).with_name(name), newline="", encoding="utf-8") as file:
        return [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(file)]


@lru_cache
def read_groups(name: str) -> dict[str, list[dict]]:
    """Rows of a table as ``read_table`` gives them, by the entry of its first column."""
    groups = {}
    for row in read_table(name):
        groups.setdefault(next(iter(row.values())), []).append(row)
    return groups


def _number(text: str):
    try:
        numbers = tuple(map(float, text.split()))
    except ValueError:
        return text
    return numbers[0] if len(numbers) == 1 else numbers


# The columns of materials.csv:
# texture, tile: the texture, and the metres that one tile of it covers
# gain, shade: the texture's second colour is base * gain + shade
# gloss: weight of the mirror reflection, 0..1
# index: refractive index
# nir: reflectance at 850 nm; negative: -nir times the visible one
# retro: LiDAR reflectance at 905 nm
# emissivity: in 8-14 um
# warmth, keep: kelvin that full sun adds, and the share of it left hours after
MATERIALS = read_table("materials.csv")
# Finishes to pick from, by the name of the list: (material, linear reflectance (red, green, blue)).
FINISHES = {
    name: [(row["material"], row["reflectance"]) for row in rows]
    for name, rows in read_groups("finishes.csv").items()
}
MATERIAL = {m["name"]: k for k, m in enumerate(MATERIALS)}
PATTERNS = "none facade car cabin bus sign books picture window tv rug board stripes".split()
PATTERN = {name: k for k, name in enumerate(PATTERNS)}


@lru_cache
def column(field: str) -> np.ndarray:
    """One field of all materials as a float32 array, to be indexed with a material map."""
    return np.array([m[field] for m in MATERIALS], np.float32)


# ---------------------------------------------------------------- textures
def _cloud(rng, slope):
    """Tileable (SIDE, SIDE) noise with spectrum 1 / f^slope, scaled to about 0..1."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))
    f[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIDE, SIDE))) / f**slope * (f < 0.5)).real
    noise -= noise.mean()
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1)


def _masonry(rng, courses, blocks, shift):
    """Courses of blocks, every other one moved by ``shift`` blocks: a random number per block, and the
    distance to the nearest edge of a block as a share of the tile, both (SIDE, SIDE).
    """
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    course = np.floor(y * courses).astype(int)
    u = x * blocks + shift * (course % 2)
    tone = rng.random((int(courses), int(blocks)))[course, (np.floor(u) % blocks).astype(int)]
    return tone, np.minimum(
        np.minimum(u % 1, 1 - u % 1) / blocks, np.minimum(y * courses % 1, 1 - y * courses % 1) / courses
    )


@lru_cache(maxsize=1)
def atlas() -> tuple[np.ndarray, ...]:
    """All textures with their levels of detail (SIDE, SIDE / 2, ..., 1 texels wide) as one flat float32 array
    of weights 0..1 of the second colour, where in it each level begins, and the texture's number by material.

    ``textures.csv`` says what each is the sum of: a constant and, times a weight, noise (fine, mid, soft),
    cracks, threads, grain and streaks of wood. Masonry has courses of blocks; it adds a random number per
    block (tone), or that times ``mid`` (mottle), and has joints of weight 1. Boards stand upright.
    """
    rng = np.random.default_rng(20240607)
    fine, mid, soft, ridges = (_cloud(rng, slope) for slope in (0.4, 1.0, 1.7, 1.6))
    at = np.arange(SIDE)
    wave = np.sin(at / SIDE * 2 * np.pi * 32)
    fields = {
        "fine": fine,
        "mid": mid,
        "soft": soft,
        "cracks": np.abs(ridges - 0.5) < 0.012,
        "threads": np.outer(wave, wave),
        "grain": mid[at * 8 % SIDE][:, at // 4],
        "streaks": mid[:, at * 5 % SIDE],
    }
    textures = {}
    for row in read_table("textures.csv"):
        weight = row["constant"] + sum(row[name] * field for name, field in fields.items())
        if "courses" in row:
            tone, gap = _masonry(rng, row["courses"], row["blocks"], row["shift"])
            weight = np.where(gap < row["joint"], 1, weight + row["tone"] * tone + row["mottle"] * tone * mid)
        textures[row["texture"]] = weight.T if "upright" in row else weight
    levels = [np.clip(list(textures.values()), 0, 1).astype(np.float32)]
    while n := levels[-1].shape[1] // 2:
        levels.append(levels[-1].reshape(-1, n, 2, n, 2).mean((2, 4)))
    first = np.cumsum([0] + [level.size for level in levels[:-1]])
    which = np.array([list(textures).index(m["texture"]) for m in MATERIALS])
    return np.concatenate([level.ravel() for level in levels]), first, which


def texture(material, s, v, footprint):
    """Weight 0..1 of the second colour at points (N,) of materials (indices), at surface coordinates s, v
    (metres), where a pixel covers ``footprint`` metres.
    """
    flat, first, which = atlas()
    per_metre = (SIDE / column("tile"))[material]
    level = np.clip(np.frexp(footprint * per_metre)[1], 0, 8)  # one texel of this level is about one pixel
    x, y = ((np.floor(place * per_metre).astype(np.int64) & (SIDE - 1)) >> level for place in (s, v))
    return flat[first[level] + (((which[material] << (8 - level)) + y) << (8 - level)) + x]


@lru_cache(maxsize=1)
def _clouds() -> np.ndarray:
    return _cloud(np.random.default_rng(11), 1.75).astype(np.float32)


def cloud_cover(s, v) -> np.ndarray:
    """Smooth tileable noise 0..1 of period 1 (bilinear, so that it has no visible texels)."""
    field, s, v = _clouds(), s * SIDE, v * SIDE
    i, j = np.floor(v), np.floor(s)
    fi, fj = v - i, s - j
    rows, (left, right) = (np.add.outer((0, 1), k.astype(np.int64)) & (SIDE - 1) for k in (i, j))
    top, bottom = (field[row, left] * (1 - fj) + field[row, right] * fj for row in rows)
    return top + (bottom - top) * fi


def dice(a, b, c):
    """Deterministic number 0..1 for three integers or integer arrays (a lit window, the tint of a book)."""
    a, b, c = (np.asarray(value).astype(np.int64) for value in (a, b, c))
    h = (a * 73856093) ^ (b * 19349663) ^ (c * 83492791)
    h = ((h & 0xFFFFFFFF) * 0x9E3779B1) & 0xFFFFFFFF
    h ^= h >> 15
    return (((h * 0x85EBCA77) & 0xFFFFFFFF) >> 8).astype(np.float32) / np.float32(1 << 24)
