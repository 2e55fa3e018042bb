"""What a surface looks like before any light falls on it: reflectance, material and own light of every hit.

Patterns are painted by rules on a primitive's own coordinates (windows on a facade, lamps on a car, spines on
a bookshelf). They may change the material (a window pane is glass for every sensor) but never the label.
"""

import numpy as np

from .materials import FINISHES, MATERIAL, PATTERN, column, dice, read_groups, texture
from .weather import channels


def surface_colour(world, hits, pixel, weather, textured):
    """Reflectance (3, N) and own light (3, N) of hits; sets ``hits.material`` where a pattern changes it.
    ``pixel`` is the angle that a pixel covers (radians); only the first ``textured`` hits get their texture
    (the LiDAR's, at the end, need none).
    """
    colour = np.take(world.colour, hits.prim, 1)
    # the ground plane and kerbs of a street carry several materials
    bare = (hits.prim == world.count) | (world.material[hits.prim] == MATERIAL["paving"])
    for name, tone in world.tones:
        colour[:, np.flatnonzero(bare & (hits.material == MATERIAL[name]))] = channels(tone)
    glow = colour * world.glow[hits.prim] * weather.lamps
    pattern = world.pattern[hits.prim]
    for name, rule in RULES.items():
        index = np.flatnonzero(pattern == PATTERN[name])
        if len(index):
            patch = Patch(world, hits, index, weather)
            patch.paint(name, colour, glow, hits.material, rule(patch))
    pictured = hits.part(0, textured)
    axis, material, (x, y, z) = pictured.axis, pictured.material, pictured.local
    # no two things show the same piece of a texture
    shift = (pictured.prim % 17).astype(np.float32) * 0.37
    s, v = np.where(axis == 0, y, x) + shift, np.where(axis == 2, y, z) + shift
    footprint = pictured.t * pixel / np.maximum(pictured.facing, 0.2)
    weight = texture(material, s, v, footprint)  # of the sky, which is far away, 0 at any level of detail
    colour[:, :textured] *= 1 + (column("gain") - 1)[material] * weight
    colour[:, :textured] += np.take(column("shade").T, material, 1) * weight
    return colour, glow


def rgb(*colour):
    """One colour as a (3, 1) array, to be multiplied with one number per hit."""
    return np.array(colour)[:, None]


def within(place, low, high):
    return (place > low) & (place < high)


class Patch:
    """The hits of one pattern: coordinates on the face."""

    def __init__(self, world, hits, index, weather):
        self.index, self.prim, axis = index, hits.prim[index], hits.axis[index]
        self.x, self.y, self.z = hits.local[:, index]
        self.hx, self.hy, self.hz = np.take(world.shape[3:6], self.prim, 1)
        self.style, self.weather = world.style[:, self.prim], weather
        self.base = np.take(world.colour, self.prim, 1)  # without any mark
        self.all, self.ends, self.flank, self.sides = axis >= 0, axis == 0, axis == 1, axis < 2
        self.front, self.back = self.ends & (self.x > 0), self.ends & (self.x <= 0)
        self.wide, self.tall = 2 * np.where(self.ends, self.hy, self.hx), 2 * self.hz
        # metres from the face's left and bottom
        self.s = np.where(self.ends, self.y + self.hy, self.x + self.hx)
        self.v = self.z + self.hz
        self.a, self.b = self.s / self.wide, self.v / self.tall  # the same, 0..1
        # metres to the nearest edge of the face
        self.border = np.minimum(
            np.minimum(self.s, self.wide - self.s), np.minimum(self.v, self.tall - self.v)
        )

    def paint(self, pattern, colour, glow, material, places):
        """The marks that ``marks.csv`` lists for a pattern, one over the other, onto the picture: its
        reflectance (3, N), own light (3, N) and material (N,).

        A mark covers a face, and on it what lies between the bounds of up to three coordinates. There it
        multiplies the reflectance ("dim"), or sets it, the material or the light, which "times" multiplies.
        Faces, coordinates and what else a cell names are attributes of the patch or entries of ``places``:
        (n,) for the n hits of the patch, colours (3, n).
        """
        places = vars(self) | places
        for mark in read_groups("marks.csv")[pattern]:
            where = places[mark["face"]]
            for bounds in filter(None, map(mark.get, ("first", "second", "third"))):
                name, low, high = bounds.split()
                where = where & within(places[name], float(low), float(high))
            where = np.flatnonzero(where)
            index = self.index[where]
            cells = map(mark.get, ("dim", "colour", "light", "times"))
            dim, paint, light, times = (places.get(cell, cell) for cell in cells)
            if "dim" in mark:
                colour[:, index] *= _part(dim, where)
            if "colour" in mark:
                colour[:, index] = _part(np.reshape(paint, (3, -1)), where)
            if "light" in mark:
                light = _part(np.reshape(light, (3, -1)), where)
                glow[:, index] = light * _part(times, where) if "times" in mark else light
            if "material" in mark:
                material[index] = MATERIAL[mark["material"]]


def _part(values, where):
    """What ``values`` say there: one number or colour for all, or one for each hit."""
    return values[..., where] if np.shape(values)[-1:] > (1,) else values


def _facade(p: Patch):
    """Storeys of windows with frames and mullions; below them doors, or shops with sign boards. style: pitch,
    storey, kind, shops.
    """
    pitch, storey, kind, shops = p.style
    wall, shops, v, tall = p.sides, p.sides & (shops > 0), p.v, p.tall
    n = np.maximum(1, np.floor(p.wide / pitch + 0.5))  # bays
    base = np.where(shops, np.float32(3.6), np.float32(0.5))
    across, level = p.a * n, (v - base) / storey
    i, j = np.floor(across), np.floor(level)
    fu, fv = across - i, level - j  # place within the bay and the storey, 0..1
    full = wall & (j >= 0) & (v < tall - 0.9) & (base + (j + 1) * storey < tall + 0.3)
    frames = np.array(
        [(0.24, 0.30, 0.05, 0.05), (0.28, 0.12, 0.34, 0.10), (0.84, 0.86, 0.88, 0.94)], np.float32
    )
    left, low, high = frames[:, kind.astype(np.int64)]  # of a bay and a storey, for the four kinds of facade
    pane = full & within(fu, left, 1 - left) & within(fv, low, high)
    reveal = full & within(fu, left - 0.05, 1.05 - left) & within(fv, low - 0.07, high + 0.04)
    shutter = full & (kind == 1) & ~pane & (np.abs(fu - 0.5) < 0.40) & within(fv, low, high)
    hue, tint = dice(p.prim, 0, 7), dice(p.prim, i, 3)
    shop = shops & within(v, 0.45, 2.6) & within(fu, 0.06, 0.94)
    middle = np.abs(fu - 0.5) * p.wide / n  # metres from the middle of the bay
    door = wall & ~shops & (i == np.floor(n / 2)) & (middle < 0.6) & (v < 2.3)
    mullion = pane & ((middle < 0.05) | ((kind < 2) & (np.abs(fv - 0.62) < 0.025)))
    chance = dice(p.prim, i, j + 11)
    lit = chance < np.where(shop, 1.7 * p.weather.windows, p.weather.windows)
    curtain = 0.55 + 0.45 * ((chance * 37) % 1)  # warm, or cool light
    bright = 0.55 + 0.45 * np.where(shop, 1, 1 - np.abs(fv - 0.6))
    inside = np.where(lit, (0.22 + 0.5 * ((chance * 91) % 1)) * bright, 0)
    warm, cool = channels((1.0, 0.72, 0.38)), channels((0.75, 0.88, 1.0))
    return dict(
        ledge=wall & (v > tall - 0.45) | shops & within(v, 3.3, 3.6),
        reveal=reveal & (kind < 3),
        plaster=np.minimum(p.base * 0.4 + 0.42, 0.85),
        shutter=shutter,
        shutters=[0.12 + 0.3 * hue, 0.20 + 0.1 * hue, 0.26 - 0.18 * hue],
        sign=shops & within(v, 2.7, 3.3) & within(fu, 0.03, 0.97),
        board=channels((0.15, 0.12, 0.12)) + channels((0.55, 0.4, 0.5)) * (tint * channels((3, 7, 11)) % 1),
        signs=0.6 * p.weather.lamps,
        door=door,
        doors=[0.10 + 0.25 * hue, 0.09 + 0.06 * hue, 0.10 + 0.1 * (1 - hue)],
        pane=(pane | shop) & ~door & ~mullion,
        glass=[0.035 + 0.05 * tint, 0.045 + 0.05 * tint, 0.055 + 0.06 * tint],
        room=(warm * curtain + cool * (1 - curtain) * 0.7) * inside,
        fu=fu,
        letters=dice(np.floor(p.s * 5), p.prim, 5),
        mullion=mullion,
        lamps=p.weather.lamps,
    )


def _vehicle(p: Patch):
    """Cars: lamps, plate, grille, sills, wheel arches; buses: window band with pillars, doors, windscreens,
    destination display, lamps. style: 0 parked or 1 running.
    """
    middle = np.abs(p.x)
    return dict(
        out=np.abs(p.y) / p.hy,
        plate=np.abs(p.y),
        seam=np.abs(p.x + 0.05),
        wheel=np.abs(middle - 0.62 * p.hx),
        door=np.abs(middle - 0.55 * p.hx),
        middle=middle,
        bay=p.s % 1.5,
        slat=p.v * 8 % 1,
        dots=dice(np.floor(p.s * 9), np.floor(p.v * 9), p.prim),
        running=p.style[0] * p.weather.car_lights,
    )


def _cabin(p: Patch):
    """Windows all round, with pillars; roof in the body's colour."""
    along = np.where(p.ends, np.abs(p.y) / p.hy, np.abs(p.x) / (p.hx * (1 - 0.30 * p.v / p.tall)))
    pane = p.sides & (along < 0.88) & within(p.v, 0.07 * p.tall, 0.90 * p.tall)
    return dict(pane=pane & ~(p.flank & (np.abs(p.x + 0.1) < 0.06)))


def _sign(p: Patch):
    """Traffic sign faces (both sides painted). style: 0 speed limit, 1 warning, 2 information, 3 direction
    board.
    """
    a, b = np.where(p.ends, -p.y / p.hy, p.x / p.hx), p.z / p.hz  # a grows to the right of who drives by
    beside, height, arrow = np.abs(a), np.abs(b), np.abs(a - 0.68)
    # two digits of 3 x 5 dots
    col = np.floor((np.abs(a + (a < 0) * 0.56) - 0.04) / 0.16)
    row = np.floor((b + 0.40) / 0.16)
    # 3, 5 or 7, then 0
    first = np.array([0b111_001_111_001_111, 0b111_100_111_001_111, 0b111_001_001_001_001])[p.prim % 3]
    place = np.clip(row, 0, 4) * 3 + 2 - np.clip(col, 0, 2)
    dot = np.where(a < 0, first, 0b111_101_101_101_111) >> place.astype(np.int64) & 1
    kinds = ("limit", "warning", "information", "board")
    return dict(
        radius=np.sqrt(a * a + b * b),
        edge=np.maximum(beside, height),
        beside=beside,
        height=height,
        digit=dot & within(col, -1, 3) & within(row, -1, 5),
        bar=np.abs(b + 0.05),
        gap=np.abs(b + 0.32),
        line=np.abs(height - 0.38),
        text=np.abs(a + 0.15),
        dots=dice(np.floor(a * 14), np.floor(b * 1.6), p.prim),
        arrow=arrow,
        head=arrow - 0.9 * (0.66 - b),
        rise=b,
        **{kind: p.style[0] == k for k, kind in enumerate(kinds)},
    )


def _books(p: Patch):
    """Rows of spines of different tint, width and height."""
    place = p.s / (0.038 + 0.02 * dice(p.prim, 0, 1))
    k = np.floor(place)
    tint, tone = dice(k, p.prim, 2), dice(k, p.prim, 9)
    palette = np.array([colour for _, colour in FINISHES["books"]], np.float32)
    return dict(
        spine=palette[(tint * 8).astype(int)].T * (0.7 + 0.6 * tone),
        paper=~p.sides,
        edge=place % 1,
        above=p.v - p.tall * (0.78 + 0.22 * tone),
        line=np.abs(p.b - 0.6),
        tone=tone,
    )


def _picture(p: Patch):
    """A frame, a mount and a small landscape or abstract painting. style: which one, 0..1."""
    a, b, one = p.a, p.b, p.style[0]
    blocks = np.floor(a * 4) + 5 * np.floor(b * 3)
    return dict(
        sky=[0.55 + 0.35 * b * one, 0.45 + 0.25 * b, 0.35 + 0.5 * b * (1 - one)],
        hill=b < 0.35 + 0.18 * np.sin(a * (5 + 6 * one) + one * 9) + 0.10 * np.sin(a * 17),
        land=[0.10 + 0.5 * one * b, 0.22 + 0.3 * (1 - one) * a, 0.10 + 0.25 * b],
        one=one,
        bold=np.stack([dice(blocks, np.floor(one * 1000), k) for k in (21, 22, 23)]) ** 1.5 * 0.8,
        sun=(a - 0.3 - 0.4 * one) ** 2 * (p.wide / p.tall) ** 2 + (b - 0.7) ** 2 < 0.012,
        frame=rgb(1, 0.75, 0.5) * np.where(one > 0.5, 0.03, 0.22),
    )


def _window(p: Patch):
    """Seen from inside a room: white frame, panes, and the street outside (bright by day, dark blue at
    night).
    """
    a, b, outside = p.a, p.b, p.weather.outside
    frame = (p.border < 0.06) | (np.abs(a - 0.5) * p.wide < 0.03) | (np.abs(b - 0.7) * p.tall < 0.025)
    house = ~frame & (b < 0.30 + 0.25 * dice(np.floor(a * 3.3), p.prim, 4))
    tree = (np.abs(a - 0.62) ** 2 * 5 + (b - 0.34) ** 2 * 4 < 0.16) | (b < 0.14)
    return dict(
        frame=frame,
        pane=~frame,
        evening=p.weather.gradient(b * 1.2 - 0.3),
        house=house,
        bricks=rgb(0.42, 0.34, 0.29) * outside,
        tree=~frame & tree,
        leaves=rgb(0.09, 0.20, 0.06) * outside,
        pinprick=dice(np.floor(a * 22), np.floor(b * 22), p.prim) - 0.35 * p.weather.windows,
    )


def _tv(p: Patch):
    """Bezel and screen. style: which programme, 0..1; 1 on."""
    cell = np.floor(p.a * 3) + 3 * np.floor(p.b * 2)
    show = np.stack([0.15 + 0.7 * dice(cell, np.floor(p.style[0] * 1000), k) for k in (31, 32, 33)])
    return dict(show=show * rgb(0.6, 0.8, 1.1), on=0.6 * p.style[1])


def _rug(p: Patch):
    """Border, medallion and stripes. style: second colour (r, g, b)."""
    a, b = np.abs(p.x) / p.hx, np.abs(p.y) / p.hy
    return dict(edge=np.maximum(a, b), diamond=a + b, second_colour=p.style[:3], stripe=np.floor(p.x * 9) % 2)


def _stripes(p: Patch):
    """Folds of a curtain, or slats: brightness waves along the face. style: folds per metre, depth."""
    return dict(waves=1 - p.style[1] * (0.5 + 0.5 * np.sin(2 * np.pi * (p.s * p.style[0]))))


def _board(p: Patch):
    """Panels with joints (cupboard doors, drawers). style: panels across, panels up."""
    across, high = p.style[:2]
    u, v = p.a * across % 1, p.b * high % 1
    cell_w, cell_h = p.wide / np.maximum(across, 1), p.tall / np.maximum(high, 1)
    seam = np.minimum(np.minimum(u, 1 - u) * cell_w, np.minimum(v, 1 - v) * cell_h)
    return dict(seam=seam, across=np.abs(u - 0.88) * cell_w, up=np.abs(v - 0.5) * cell_h)


RULES = {
    "facade": _facade,
    "car": _vehicle,
    "cabin": _cabin,
    "bus": _vehicle,
    "sign": _sign,
    "books": _books,
    "picture": _picture,
    "window": _window,
    "tv": _tv,
    "rug": _rug,
    "board": _board,
    "stripes": _stripes,
}
