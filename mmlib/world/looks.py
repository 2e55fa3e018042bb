"""What a surface looks like before any light falls on it: reflectance, material and own light of every hit.

Patterns are painted by rules on a primitive's own coordinates (windows on a facade, lamps on a car, spines on
a bookshelf). They may change the material (a window pane is glass for every sensor) but never the label.
"""

import numpy as np

from .materials import FINISHES, MATERIAL, MATERIALS, PATTERN, column, dice, texture
from .weather import channels


def surface_colour(world, hits, pixel, weather, textured):
    """Reflectance (3, N) and own light (3, N) of hits; sets ``hits.material`` where a pattern changes it.
    ``pixel`` is the angle that a pixel covers (radians); only the first ``textured`` hits get their texture
    (the LiDAR's, at the end, need none).
    """
    colour = np.take(world.colour, hits.prim, 1)
    if not world.indoor:  # the ground plane and kerbs carry several materials
        bare = (hits.prim == world.count) | (world.material[hits.prim] == MATERIAL["paving"])
        for name, tone in world.tones.items():
            colour[:, np.flatnonzero(bare & (hits.material == MATERIAL[name]))] = channels(tone)
    glow, lamp = np.zeros_like(colour), world.glow[hits.prim]
    on = np.flatnonzero(lamp > 0)
    glow[:, on] = colour[:, on] * lamp[on] * np.float32(weather.lamps)
    pattern = world.pattern[hits.prim]
    for name, rule in RULES.items():
        index = np.flatnonzero(pattern == PATTERN[name])
        if len(index):
            rule(Patch(world, hits, index, colour, glow, weather))
    pictured = hits.part(0, textured)
    solid = np.flatnonzero(np.isfinite(pictured.t))
    axis = pictured.axis[solid]
    material = pictured.material[solid]
    prim = pictured.prim[solid]
    x, y, z = np.take(pictured.local, solid, 1)
    # no two things show the same piece of a texture
    shift = (prim % 17).astype(np.float32) * np.float32(0.37)
    s, v = np.where(axis == 0, y, x) + shift, np.where(axis == 2, y, z) + shift
    weight = texture(
        material, s, v, pictured.t[solid] * np.float32(pixel) / np.maximum(pictured.facing[solid], 0.2)
    )
    gain = np.ones(textured, np.float32)
    gain[solid] += (column("gain") - 1)[material] * weight
    colour[:, :textured] *= gain
    for k, m in enumerate(MATERIALS):
        if any(m.shade):
            index = np.flatnonzero(material == k)
            colour[:, solid[index]] += channels(m.shade) * weight[index]
    return colour, glow


def rgb(red, green, blue):
    """One colour as a (3, 1) array, to be multiplied with one number per hit."""
    return np.array([[red], [green], [blue]])


class Patch:
    """The hits of one pattern: coordinates on the face, and setters that write through to the picture."""

    def __init__(self, world, hits, index, colour, glow, weather):
        self.index, self.prim, self.axis = index, hits.prim[index], hits.axis[index]
        self.x, self.y, self.z = hits.local[:, index]
        self.hx, self.hy, self.hz = np.take(world.shape[3:6], self.prim, 1)
        self.style = world.style[:, self.prim]
        self.colour, self.glow, self.material, self.weather = colour, glow, hits.material, weather
        side = self.axis == 0
        self.front = side & (self.x > 0)
        self.back = side & (self.x <= 0)
        self.flank = self.axis == 1
        self.top = self.axis == 2
        self.wide, self.tall = 2 * np.where(side, self.hy, self.hx), 2 * self.hz
        # metres from the face's left and bottom
        self.s = np.where(side, self.y + self.hy, self.x + self.hx)
        self.v = self.z + self.hz
        self.a, self.b = self.s / self.wide, self.v / self.tall  # the same, 0..1

    def border(self):
        """Metres to the nearest edge of the face."""
        return np.minimum(np.minimum(self.s, self.wide - self.s), np.minimum(self.v, self.tall - self.v))

    def set(self, where, colour, material=None, glow=None):
        """Where a mask says so (or at these positions): reflectance and own light, (3,) or (3, n) for the
        patch or those hits; material.
        """
        where = np.flatnonzero(where) if where.dtype == bool else where
        index = self.index[where]
        for target, value in ((self.colour, colour), (self.glow, glow)):
            if value is not None:
                value = np.asarray(value, np.float32).reshape(3, -1)
                target[:, index] = value if value.shape[1] in (1, len(index)) else value[:, where]
        if material:
            self.material[index] = MATERIAL[material]

    def dim(self, mask, factor):
        self.colour[:, self.index[mask]] *= np.float32(factor)


def _facade(p: Patch):
    """Storeys of windows with frames and mullions; below them doors, or shops with sign boards. style: pitch,
    storey, kind, shops.
    """
    pitch, storey, kind, shops = p.style
    wall, shops, tall = ~p.top, shops > 0, p.tall
    n = np.maximum(1, np.floor(p.wide / pitch + 0.5))  # bays
    base = np.where(shops, np.float32(3.6), np.float32(0.5))
    across, level = p.a * n, (p.v - base) / storey
    i, j = np.floor(across), np.floor(level)
    fu, fv = across - i, level - j  # place within the bay and the storey, 0..1
    full = wall & (j >= 0) & (p.v < tall - 0.9) & (base + (j + 1) * storey < tall + 0.3)
    frames = np.array(
        [(0.24, 0.30, 0.05, 0.05), (0.28, 0.12, 0.34, 0.10), (0.84, 0.86, 0.88, 0.94)], np.float32
    )
    left, low, high = frames[:, kind.astype(np.int64)]  # of a bay and a storey, for the four kinds of facade
    pane = full & (fu > left) & (fu < 1 - left) & (fv > low) & (fv < high)
    reveal = full & (fu > left - 0.05) & (fu < 1.05 - left) & (fv > low - 0.07) & (fv < high + 0.04)
    p.dim(wall & ((p.v > tall - 0.45) | (shops & (p.v > 3.3) & (p.v < 3.6))), 1.25)  # ledges
    p.set(reveal & (kind < 3), np.minimum(p.colour[:, p.index] * 0.4 + 0.42, 0.85))
    shutter = full & (kind == 1) & ~pane & (np.abs(fu - 0.5) < 0.40) & (fv > low) & (fv < high)
    hue, tint = dice(p.prim, 0, 7), dice(p.prim, i, 3)
    p.set(shutter, [0.12 + 0.3 * hue, 0.20 + 0.1 * hue, 0.26 - 0.18 * hue])
    shop = wall & shops & (p.v > 0.45) & (p.v < 2.6) & (fu > 0.06) & (fu < 0.94)
    sign = wall & shops & (p.v > 2.7) & (p.v < 3.3) & (fu > 0.03) & (fu < 0.97)
    board = np.stack(
        [0.15 + 0.55 * (tint * 3 % 1), 0.12 + 0.4 * (tint * 7 % 1), 0.12 + 0.5 * (tint * 11 % 1)]
    )
    letters = (
        sign
        & (p.v > 2.85)
        & (p.v < 3.15)
        & (fu > 0.2)
        & (fu < 0.8)
        & (dice(np.floor(p.s * 5), p.prim, 5) > 0.4)
    )
    p.set(sign, board, glow=board * (0.6 * p.weather.lamps))
    p.set(letters, (0.85, 0.85, 0.8), glow=rgb(0.9, 0.85, 0.7) * p.weather.lamps)
    middle = np.abs(fu - 0.5) * p.wide / n  # metres from the middle of the bay
    door = wall & ~shops & (i == np.floor(n / 2)) & (middle < 0.6) & (p.v < 2.3)
    p.set(door, [0.10 + 0.25 * hue, 0.09 + 0.06 * hue, 0.10 + 0.1 * (1 - hue)], "wood")
    mullion = pane & ((middle < 0.05) | ((kind < 2) & (np.abs(fv - 0.62) < 0.025)))
    glass = np.flatnonzero((pane | shop) & ~door & ~mullion)
    shop, fv, tint, chance = shop[glass], fv[glass], tint[glass], dice(p.prim[glass], i[glass], j[glass] + 11)
    lit = chance < np.where(shop, 1.7 * p.weather.windows, p.weather.windows)
    curtain = 0.55 + 0.45 * ((chance * 37) % 1)  # warm, or cool light
    inside = np.where(
        lit,
        (0.22 + 0.5 * ((chance * 91) % 1))
        * (0.55 + 0.45 * np.where(shop, 1, 1 - np.abs(fv - np.float32(0.6)))),
        0,
    )
    glow = (
        channels((1.0, 0.72, 0.38)) * curtain + channels((0.75, 0.88, 1.0)) * (1 - curtain) * 0.7
    ) * inside
    p.set(glass, [0.035 + 0.05 * tint, 0.045 + 0.05 * tint, 0.055 + 0.06 * tint], "glass", glow)
    p.set(mullion, (0.55, 0.53, 0.5), "render")


def _car(p: Patch):
    """Body: lamps, plate, grille, sills, wheel arches. style: 0 parked or 1 running."""
    running, up, out = p.style[0] * p.weather.car_lights, p.b, np.abs(p.y) / p.hy
    p.dim(~p.top & (up < 0.22), 0.25)
    p.dim(p.flank & (np.abs(np.abs(p.x) - 0.62 * p.hx) < 0.42) & (p.v < 0.42), 0.12)
    p.dim(p.flank & (np.abs(p.x + 0.05) < 0.03) & (up > 0.3), 0.6)
    lamps = (up > 0.5) & (up < 0.86)
    p.set(p.back & lamps & (out > 0.62), (0.45, 0.02, 0.02), glow=rgb(2.6, 0.06, 0.04) * running)
    p.set(p.front & lamps & (out > 0.55), (0.75, 0.75, 0.72), "glass", rgb(9.0, 8.6, 7.4) * running)
    p.set(p.front & (out < 0.5) & (up > 0.3) & (up < 0.75), (0.03, 0.03, 0.03))
    p.set((p.back | p.front) & (np.abs(p.y) < 0.28) & (up > 0.36) & (up < 0.52), (0.8, 0.8, 0.76), "sign")


def _cabin(p: Patch):
    """Windows all round, with pillars; roof in the body's colour."""
    along = np.where(p.axis == 0, np.abs(p.y) / p.hy, np.abs(p.x) / (p.hx * (1 - 0.30 * p.v / p.tall)))
    pillar = p.flank & (np.abs(p.x + 0.1) < 0.06)
    p.set(
        ~p.top & ~pillar & (along < 0.88) & (p.v > 0.07 * p.tall) & (p.v < 0.90 * p.tall),
        (0.03, 0.035, 0.04),
        "glass",
    )


def _bus(p: Patch):
    """Window band with pillars, doors, windscreens, destination display, lamps. style: 1 running."""
    running, up, out, ends = p.style[0] * p.weather.car_lights, p.b, np.abs(p.y) / p.hy, p.front | p.back
    p.dim(~p.top & (up < 0.14), 0.2)
    p.set(p.flank & (up > 0.30) & (up < 0.36), (0.75, 0.75, 0.72))
    pane = p.flank & (up > 0.42) & (up < 0.80) & ((p.s % 1.5) > 0.12)
    door = np.abs(p.x) - 0.55 * p.hx
    pane |= p.flank & (door**2 < 0.36) & (np.abs(door) > 0.04) & (up > 0.12) & (up < 0.82)
    screen = (p.front & (up > 0.36) & (up < 0.80) | p.back & (up > 0.52) & (up < 0.82)) & (out < 0.90)
    p.set(pane | screen, (0.04, 0.05, 0.055), "glass", rgb(0.34, 0.32, 0.25) * (running * (p.flank | p.back)))
    display = (ends & (out < 0.7) | (p.flank & (np.abs(p.x) < 1.0))) & (up > 0.84) & (up < 0.95)
    p.set(display, (0.02, 0.02, 0.02), glow=(0, 0, 0))
    text = display & (dice(np.floor(p.s * 9), np.floor(p.v * 9), p.prim) > 0.45) & (up > 0.86) & (up < 0.93)
    p.set(text, (0.8, 0.45, 0.05), glow=(1.1, 0.6, 0.08))
    p.set(
        p.back & (out > 0.78) & (up > 0.22) & (up < 0.46),
        (0.45, 0.02, 0.02),
        glow=rgb(2.4, 0.05, 0.03) * running,
    )
    p.set(
        p.front & (out > 0.6) & (up > 0.18) & (up < 0.28),
        (0.75, 0.75, 0.7),
        "glass",
        rgb(8.0, 7.6, 6.6) * running,
    )
    p.set(p.back & (out < 0.6) & (up > 0.16) & (up < 0.4) & ((p.v * 8) % 1 < 0.4), (0.05, 0.05, 0.05))


def _sign(p: Patch):
    """Traffic sign faces (both sides painted). style: 0 speed limit, 1 warning, 2 information, 3 direction
    board.
    """
    limit, warning, information, board = (p.style[0] == kind for kind in range(4))
    a, b = np.where(p.axis == 0, -p.y / p.hy, p.x / p.hx), p.z / p.hz  # a grows to the right of who drives by
    edge, beside, height = np.maximum(np.abs(a), np.abs(b)), np.abs(a), np.abs(b)
    white, black = (0.82, 0.82, 0.80), (0.03, 0.03, 0.03)
    p.set(limit, white)
    p.set(limit & (np.sqrt(a * a + b * b) > 0.70), (0.66, 0.03, 0.04))
    # two digits of 3 x 5 dots
    left = a < 0
    col = np.floor((np.abs(a + (a < 0) * 0.56) - 0.04) / 0.16)
    row = np.floor((b + 0.40) / 0.16)
    # 3, 5 or 7
    first = np.array([0b111_001_111_001_111, 0b111_100_111_001_111, 0b111_001_001_001_001])[p.prim % 3]
    dot = (
        np.where(left, first, 0b111_101_101_101_111)
        >> (np.clip(row, 0, 4) * 3 + 2 - np.clip(col, 0, 2)).astype(np.int64)
        & 1
    )
    p.set(limit & (dot == 1) & (col >= 0) & (col < 3) & (row >= 0) & (row < 5) & (beside < 0.54), black)
    p.set(warning, (0.85, 0.58, 0.03))
    p.set(
        warning & ((edge > 0.86) | (beside < 0.13) & (np.abs(b + 0.05) < 0.55) & (np.abs(b + 0.32) > 0.09)),
        black,
    )
    p.set(information | board, (0.02, 0.16, 0.55))
    p.set((information | board) & (edge > 0.90), white)
    p.set(information & (beside < 0.5) & (height < 0.55) & ((beside > 0.28) | (height < 0.12)), white)
    text = (
        (np.abs(height - 0.38) < 0.16)
        & (np.abs(a + 0.15) < 0.55)
        & (dice(np.floor(a * 14), np.floor(b * 1.6), p.prim) > 0.35)
    )
    arrow = np.abs(a - 0.68)
    p.set(
        board
        & (text | (arrow < 0.08) & (height < 0.6) | (arrow < 0.9 * (0.66 - b)) & (b > 0.45) & (b < 0.66)),
        white,
    )


def _books(p: Patch):
    """Rows of spines of different tint, width and height."""
    width, face = 0.038 + 0.02 * dice(p.prim, 0, 1), ~p.top
    k = np.floor(p.s / width)
    tint, tone = dice(k, p.prim, 2), dice(k, p.prim, 9)
    palette = np.array([colour for _, colour in FINISHES["books"]], np.float32)
    p.set(face, palette[(tint * 8).astype(int)].T * (0.7 + 0.6 * tone))
    p.set(p.top, (0.7, 0.67, 0.58))
    p.dim(face & ((p.s / width) % 1 < 0.14), 0.35)
    p.dim(face & (p.v > p.tall * (0.78 + 0.22 * tone)), 0.10)
    p.set(face & (np.abs(p.b - 0.6) < 0.05) & (tone > 0.4), (0.75, 0.66, 0.4))


def _picture(p: Patch):
    """A frame, a mount and a small landscape or abstract painting. style: which one, 0..1."""
    a, b, border, one = p.a, p.b, p.border(), p.style[0]
    sky = np.stack([0.55 + 0.35 * b * one, 0.45 + 0.25 * b, 0.35 + 0.5 * b * (1 - one)])
    land = np.stack([0.10 + 0.5 * one * b, 0.22 + 0.3 * (1 - one) * a, 0.10 + 0.25 * b])
    hill = b < 0.35 + 0.18 * np.sin(a * (5 + 6 * one) + one * 9) + 0.10 * np.sin(a * 17)
    blocks = np.floor(a * 4) + 5 * np.floor(b * 3)
    bold = np.stack([dice(blocks, np.floor(one * 1000), k) for k in (21, 22, 23)]) ** 1.5 * 0.8
    sun = (a - 0.3 - 0.4 * one) ** 2 * (p.wide / p.tall) ** 2 + (b - 0.7) ** 2 < 0.012
    art = np.where(sun, rgb(0.9, 0.7, 0.25), np.where(one > 0.55, bold, np.where(hill, land, sky)))
    p.set(border >= 0, np.where(border < 0.09, 0.78, art))
    p.set(border < 0.035, rgb(1, 0.75, 0.5) * np.where(one > 0.5, 0.03, 0.22), "wood")


def _window(p: Patch):
    """Seen from inside a room: white frame, panes, and the street outside (bright by day, dark blue at
    night).
    """
    a, b = p.a, p.b
    frame = (p.border() < 0.06) | (np.abs(a - 0.5) * p.wide < 0.03) | (np.abs(b - 0.7) * p.tall < 0.025)
    out, light = p.weather.gradient(b * 1.2 - 0.3), channels(p.weather.outside)
    house = b < 0.30 + 0.25 * dice(np.floor(a * 3.3), p.prim, 4)
    tree = (np.abs(a - 0.62) ** 2 * 5 + (b - 0.34) ** 2 * 4 < 0.16) | (b < 0.14)
    pinprick = house & (dice(np.floor(a * 22), np.floor(b * 22), p.prim) < 0.35 * p.weather.windows)
    for mask, view in (
        (house, rgb(0.42, 0.34, 0.29) * light),
        (tree, rgb(0.09, 0.20, 0.06) * light),
        (pinprick, rgb(1.0, 0.7, 0.35)),
    ):
        out = np.where(mask, view, out)
    p.set(~frame, (0.04, 0.045, 0.05), "glass", out)
    p.set(frame, (0.80, 0.79, 0.76))


def _tv(p: Patch):
    """Bezel and screen. style: which programme, 0..1; 1 on."""
    border, cell = p.border(), np.floor(p.a * 3) + 3 * np.floor(p.b * 2)
    p.set(border > -1, (0.015, 0.015, 0.017))
    show = np.stack([0.15 + 0.7 * dice(cell, np.floor(p.style[0] * 1000), k) for k in (31, 32, 33)])
    show = np.where(p.b < 0.3, rgb(0.08, 0.35, 0.12), show * rgb(0.6, 0.8, 1.1))
    p.set((border > 0.025) & ~p.top, (0.02, 0.02, 0.025), glow=show * (0.6 * p.style[1]))


def _rug(p: Patch):
    """Border, medallion and stripes. style: second colour (r, g, b)."""
    a, b = np.abs(p.x) / p.hx, np.abs(p.y) / p.hy
    edge, diamond = np.maximum(a, b), a + b
    p.set((edge > 0.82) & (edge < 0.93) | (diamond < 0.62) & (diamond > 0.35), p.style[:3])
    p.dim((edge < 0.8) & (diamond > 0.72) & (np.floor(p.x * 9) % 2 == 0), 0.7)


def _stripes(p: Patch):
    """Folds of a curtain, or slats: brightness waves along the face. style: folds per metre, depth."""
    p.colour[:, p.index] *= 1 - p.style[1] * (0.5 + 0.5 * np.sin(2 * np.pi * (p.s * p.style[0])))


def _board(p: Patch):
    """Panels with joints (cupboard doors, drawers). style: panels across, panels up."""
    across, high = p.style[:2]
    u, v = p.a * across % 1, p.b * high % 1
    cell_w, cell_h = p.wide / np.maximum(across, 1), p.tall / np.maximum(high, 1)
    seam = np.minimum(np.minimum(u, 1 - u) * cell_w, np.minimum(v, 1 - v) * cell_h)
    p.dim(~p.top & (seam < 0.015), 0.35)
    p.set(
        ~p.top & (np.abs(u - 0.88) * cell_w < 0.02) & (np.abs(v - 0.5) * cell_h < 0.06),
        (0.55, 0.52, 0.45),
        "metal",
    )


RULES = {
    "facade": _facade,
    "car": _car,
    "cabin": _cabin,
    "bus": _bus,
    "sign": _sign,
    "books": _books,
    "picture": _picture,
    "window": _window,
    "tv": _tv,
    "rug": _rug,
    "board": _board,
    "stripes": _stripes,
}
