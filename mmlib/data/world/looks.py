"""What a surface looks like before any light falls on it: reflectance, material and own light of every hit.

Patterns are painted by rules on a primitive's own coordinates (windows on a facade, lamps on a car, spines on a bookshelf). They may change
the material (a window pane is glass for every sensor) but never the label.
"""

from __future__ import annotations

import numpy as np

from .materials import MATERIAL, MATERIALS, PATTERN, column, dice, texture

GLASS, METAL, RENDER, CLOTH = (MATERIAL[n] for n in ("glass", "metal", "render", "cloth"))
WARM, COOL = np.array([1.0, 0.72, 0.38], np.float32), np.array([0.75, 0.88, 1.0], np.float32)


def surface_colour(world, hits, pixel, weather, textured):
    """Reflectance (3, N) and own light (3, N) of hits; sets ``hits.material`` where a pattern changes it.

    Args:
        pixel: angle that one pixel covers, radians (chooses the texture's level of detail).
        textured: how many hits, from the first, get their texture (the LiDAR's, at the end, need none).
    """
    colour = world.colour[:, hits.prim]
    ground = hits.prim == world.count
    if not world.indoor:
        for name, tone in world.facts["tones"].items():  # the ground plane and kerbs carry several materials
            chosen = np.flatnonzero((hits.material == MATERIAL[name]) & (ground | (world.material[hits.prim] == MATERIAL["paving"])))
            colour[:, chosen] = np.array(tone, np.float32)[:, None]
    glow = np.zeros_like(colour)
    lamp = world.glow[hits.prim]
    on = np.flatnonzero(lamp > 0)
    glow[:, on] = colour[:, on] * lamp[on] * np.float32(weather.lamps)
    painted = world.pattern[hits.prim]
    for name, rule in RULES.items():
        index = np.flatnonzero(painted == PATTERN[name])
        if len(index):
            rule(Patch(world, hits, index, colour, glow, weather))
    seen = hits.part(0, textured)
    solid = np.flatnonzero(np.isfinite(seen.t))
    axis, material = seen.axis[solid], seen.material[solid]
    x, y, z = np.take(seen.local, solid, 1)
    shift = (np.arange(len(world.label)) % 17).astype(np.float32)[seen.prim[solid]] * np.float32(0.37)
    s, v = np.where(axis == 0, y, x) + shift, np.where(axis == 2, y, z) + shift
    weight = texture(material, s, v, seen.t[solid] * np.float32(pixel) / np.maximum(seen.facing[solid], np.float32(0.2)))
    colour[:, solid] *= 1 + (column("gain") - 1)[material] * weight
    for k, m in enumerate(MATERIALS):
        if any(m.shade):
            chosen = np.flatnonzero(material == k)
            colour[:, solid[chosen]] += np.array(m.shade, np.float32)[:, None] * weight[chosen]
    return colour, glow


class Patch:
    """The hits of one pattern: coordinates on the face, and setters that write through to the picture."""

    def __init__(self, world, hits, index, colour, glow, weather):
        self.index, self.prim, self.axis = index, hits.prim[index], hits.axis[index]
        self.x, self.y, self.z = hits.local[:, index]
        self.hx, self.hy, self.hz = np.take(world.shape[3:6], self.prim, 1)
        self.style = world.style[self.prim].T
        self.heat = world.heat[self.prim]
        self.colour, self.glow, self.material, self.weather = colour, glow, hits.material, weather
        side = self.axis == 0
        self.s = np.where(side, self.y + self.hy, self.x + self.hx)  # metres from the left edge of the face
        self.v = self.z + self.hz  # metres from its bottom
        self.wide = 2 * np.where(side, self.hy, self.hx)
        self.tall = 2 * self.hz
        self.front, self.back, self.flank, self.top = side & (self.x > 0), side & (self.x <= 0), self.axis == 1, self.axis == 2

    def set(self, mask, rgb, material=None, glow=None):
        """Where ``mask`` (or at these positions): reflectance, own light (3 numbers, or (3, n) for all hits of the patch, or for the
        chosen), material.
        """
        mask = np.flatnonzero(mask) if mask.dtype == bool else mask
        chosen = self.index[mask]
        if not len(chosen):
            return
        def values(v):
            v = np.asarray(v, np.float32)
            return v[:, None] if v.ndim == 1 else (v if v.shape[1] in (1, len(mask)) else v[:, mask])
        self.colour[:, chosen] = values(rgb)
        if material is not None:
            self.material[chosen] = material
        if glow is not None:
            self.glow[:, chosen] = values(glow)

    def dim(self, mask, factor):
        self.colour[:, self.index[mask]] *= np.float32(factor)


def _facade(p: Patch):
    """Storeys of windows with frames and mullions; on the ground floor doors, or shops with sign boards. style: pitch, storey, kind,
    shops.
    """
    pitch, storey, kind, shops = p.style
    wall = p.axis != 2
    n = np.maximum(1, np.floor(p.wide / pitch + 0.5))
    u = p.s / p.wide * n
    i = np.floor(u)
    fu = u - i
    base = np.where(shops > 0, np.float32(3.6), np.float32(0.5))
    level = (p.v - base) / storey
    j = np.floor(level)
    fv = level - j
    full = (j >= 0) & (p.v < p.tall - 0.9 + 0 * j) & (base + (j + 1) * storey < p.tall + 0.3)
    frames = np.array([(0.24, 0.30, 0.05, 0.05), (0.28, 0.12, 0.34, 0.10), (0.84, 0.86, 0.88, 0.94)], np.float32)
    left, low, high = frames[:, kind.astype(np.int64)]  # of a bay and a storey, for the four kinds of facade
    pane = full & wall & (fu > left) & (fu < 1 - left) & (fv > low) & (fv < high)
    reveal = full & wall & (fu > left - 0.05) & (fu < 1.05 - left) & (fv > low - 0.07) & (fv < high + 0.04)
    ledge = wall & ((p.v > p.tall - 0.45) | ((shops > 0) & (p.v > 3.3) & (p.v < 3.6)))
    p.dim(ledge, 1.25)
    p.set(reveal & (kind < 3), np.minimum(p.colour[:, p.index] * 0.4 + 0.42, 0.85))
    shutter = full & wall & (kind == 1) & ~pane & (np.abs(fu - 0.5) < 0.40) & (fv > low) & (fv < high)
    hue = dice(p.prim, p.prim * 0, p.prim * 0 + 7)
    p.set(shutter, np.stack([0.12 + 0.3 * hue, 0.20 + 0.1 * hue, 0.26 - 0.18 * hue]))
    shop = wall & (shops > 0) & (p.v > 0.45) & (p.v < 2.6) & (fu > 0.06) & (fu < 0.94)
    sign = wall & (shops > 0) & (p.v > 2.7) & (p.v < 3.3) & (fu > 0.03) & (fu < 0.97)
    tint = dice(p.prim, i.astype(np.int64), p.prim * 0 + 3)
    board = np.stack([0.15 + 0.55 * (tint * 3 % 1), 0.12 + 0.4 * (tint * 7 % 1), 0.12 + 0.5 * (tint * 11 % 1)])
    letters = sign & (p.v > 2.85) & (p.v < 3.15) & (fu > 0.2) & (fu < 0.8) & (dice(np.floor(p.s * 5), p.prim, p.prim * 0 + 5) > 0.4)
    p.set(sign, board, glow=board * (0.6 * p.weather.lamps))
    p.set(letters, (0.85, 0.85, 0.8), glow=np.array([0.9, 0.85, 0.7]) * p.weather.lamps)
    door = wall & (shops == 0) & (i == np.floor(n / 2)) & (np.abs(fu - 0.5) * p.wide / n < 0.6) & (p.v < 2.3)
    p.set(door, np.stack([0.10 + 0.25 * hue, 0.09 + 0.06 * hue, 0.10 + 0.1 * (1 - hue)]), MATERIAL["wood"])
    mullion = pane & ((np.abs(fu - 0.5) * p.wide / n < 0.05) | ((kind < 2) & (np.abs(fv - 0.62) < 0.025)))
    glass = np.flatnonzero((pane | shop) & ~door & ~mullion)
    prim, i, j, shop, fv = p.prim[glass], i[glass].astype(np.int64), j[glass].astype(np.int64), shop[glass], fv[glass]
    chance, tint = dice(prim, i, j + 11), tint[glass]
    lit = chance < np.where(shop, 1.7 * p.weather.windows, p.weather.windows)
    curtain = 0.55 + 0.45 * ((chance * 37) % 1)
    inside = np.where(lit, (0.22 + 0.5 * ((chance * 91) % 1)) * (0.55 + 0.45 * np.where(shop, 1, 1 - np.abs(fv - np.float32(0.6)))), 0)
    glow = (WARM[:, None] * curtain + COOL[:, None] * (1 - curtain) * 0.7) * inside
    p.set(glass, np.stack([0.035 + 0.05 * tint, 0.045 + 0.05 * tint, 0.055 + 0.06 * tint]), GLASS, glow)
    p.set(mullion, (0.55, 0.53, 0.5), RENDER)


def _car(p: Patch):
    """Body: lamps, plate, grille, sills, wheel arches. style: 0 parked or 1 running."""
    running = p.style[0] * p.weather.car_lights
    up, out = p.v / p.tall, np.abs(p.y) / p.hy
    p.dim(~p.top & (up < 0.22), 0.25)
    arch = p.flank & (np.abs(np.abs(p.x) - 0.62 * p.hx) < 0.42) & (p.v < 0.42)
    p.dim(arch, 0.12)
    p.dim(p.flank & (np.abs(p.x + 0.05) < 0.03) & (up > 0.3), 0.6)
    tail = p.back & (out > 0.62) & (up > 0.5) & (up < 0.86)
    p.set(tail, (0.45, 0.02, 0.02), glow=np.array([[2.6], [0.06], [0.04]]) * running)
    head = p.front & (out > 0.55) & (up > 0.5) & (up < 0.86)
    p.set(head, (0.75, 0.75, 0.72), GLASS, np.array([[9.0], [8.6], [7.4]]) * running)
    p.set(p.front & (out < 0.5) & (up > 0.3) & (up < 0.75), (0.03, 0.03, 0.03))
    p.set((p.back | p.front) & (np.abs(p.y) < 0.28) & (up > 0.36) & (up < 0.52), (0.8, 0.8, 0.76), MATERIAL["sign"])


def _cabin(p: Patch):
    """Windows all round, with pillars; roof in the body's colour."""
    shrink = 1 - 0.30 * p.v / p.tall
    along = np.where(p.axis == 0, np.abs(p.y) / p.hy, np.abs(p.x) / (p.hx * shrink))
    pane = ~p.top & (along < 0.88) & (p.v > 0.07 * p.tall) & (p.v < 0.90 * p.tall)
    pane &= ~(p.flank & (np.abs(p.x + 0.1) < 0.06))
    p.set(pane, (0.03, 0.035, 0.04), GLASS)


def _bus(p: Patch):
    """Window band with pillars, doors, windscreens, destination display, lamps. style: 1 running."""
    up, out = p.v / p.tall, np.abs(p.y) / p.hy
    running = p.style[0] * p.weather.car_lights
    p.dim(~p.top & (up < 0.14), 0.2)
    p.set(p.flank & (up > 0.30) & (up < 0.36), (0.75, 0.75, 0.72))
    pane = p.flank & (up > 0.42) & (up < 0.80) & ((p.s % 1.5) > 0.12)
    pane |= p.flank & ((np.abs(p.x) - 0.55 * p.hx) ** 2 < 0.36) & (up > 0.12) & (up < 0.82) & (np.abs(np.abs(p.x) - 0.55 * p.hx) > 0.04)
    screen = (p.front & (up > 0.36) & (up < 0.80) | p.back & (up > 0.52) & (up < 0.82)) & (out < 0.90)
    p.set(pane | screen, (0.04, 0.05, 0.055), GLASS, np.array([[0.34], [0.32], [0.25]]) * (running * (p.flank | p.back)))
    display = (p.front | p.back | (p.flank & (np.abs(p.x) < 1.0))) & (up > 0.84) & (up < 0.95) & (out * (p.axis == 0) < 0.7)
    p.set(display, (0.02, 0.02, 0.02), glow=np.zeros(3))
    text = display & (dice(np.floor(p.s * 9), np.floor(p.v * 9), p.prim) > 0.45) & (up > 0.86) & (up < 0.93)
    p.set(text, (0.8, 0.45, 0.05), glow=np.array([1.1, 0.6, 0.08]))
    p.set(p.back & (out > 0.78) & (up > 0.22) & (up < 0.46), (0.45, 0.02, 0.02), glow=np.array([[2.4], [0.05], [0.03]]) * running)
    p.set(p.front & (out > 0.6) & (up > 0.18) & (up < 0.28), (0.75, 0.75, 0.7), GLASS, np.array([[8.0], [7.6], [6.6]]) * running)
    p.set(p.back & (out < 0.6) & (up > 0.16) & (up < 0.4) & ((p.v * 8) % 1 < 0.4), (0.05, 0.05, 0.05))


def _sign(p: Patch):
    """Traffic sign faces (both sides painted). style: 0 speed limit, 1 warning, 2 information, 3 direction board."""
    kind = p.style[0]
    a, b = np.where(p.axis == 0, -p.y / p.hy, p.x / p.hx), p.z / p.hz  # a grows to the right of who drives by
    r = np.sqrt(a * a + b * b)
    edge = np.maximum(np.abs(a), np.abs(b))
    white, red, blue, yellow, black = (0.82, 0.82, 0.80), (0.66, 0.03, 0.04), (0.02, 0.16, 0.55), (0.85, 0.58, 0.03), (0.03, 0.03, 0.03)
    p.set(kind == 0, white)
    p.set((kind == 0) & (r > 0.70), red)
    left, col, row = a < 0, np.floor((np.abs(a + (a < 0) * 0.56) - 0.04) / 0.16), np.floor((b + 0.40) / 0.16)  # two digits of 3 x 5 dots
    first = np.array([0b111_001_111_001_111, 0b111_100_111_001_111, 0b111_001_001_001_001])[p.prim % 3]  # 3, 5 or 7
    digit = np.where(left, first, 0b111_101_101_101_111)
    inside = (col >= 0) & (col < 3) & (row >= 0) & (row < 5) & (np.abs(a) < 0.54)
    dot = (digit >> (np.clip(row, 0, 4) * 3 + 2 - np.clip(col, 0, 2)).astype(np.int64)) & 1
    p.set((kind == 0) & inside & (dot == 1), black)
    p.set(kind == 1, yellow)
    p.set((kind == 1) & (edge > 0.86), black)
    p.set((kind == 1) & (np.abs(a) < 0.13) & (np.abs(b + 0.05) < 0.55) & (np.abs(b + 0.32) > 0.09), black)
    p.set(kind >= 2, blue)
    p.set((kind >= 2) & (edge > 0.90), white)
    p.set((kind == 2) & (np.abs(a) < 0.5) & (np.abs(b) < 0.55) & ((np.abs(a) > 0.28) | (np.abs(b) < 0.12)), white)
    rows = (np.abs(np.abs(b) - 0.38) < 0.16) & (np.abs(a + 0.15) < 0.55) & (dice(np.floor(a * 14), np.floor(b * 1.6), p.prim) > 0.35)
    shaft, tip = (np.abs(a - 0.68) < 0.08) & (np.abs(b) < 0.6), (np.abs(a - 0.68) < 0.9 * (0.66 - b)) & (b > 0.45) & (b < 0.66)
    p.set((kind == 3) & (rows | shaft | tip), white)


def _books(p: Patch):
    """Rows of spines of different tint, width and height."""
    width = 0.038 + 0.02 * dice(p.prim, p.prim * 0, p.prim * 0 + 1)
    k = np.floor(p.s / width)
    tint, tone = dice(k, p.prim, p.prim * 0 + 2), dice(k, p.prim, p.prim * 0 + 9)
    palette = np.array([(0.55, 0.08, 0.06), (0.07, 0.18, 0.42), (0.08, 0.30, 0.16), (0.70, 0.55, 0.20), (0.62, 0.58, 0.50),
        (0.28, 0.12, 0.30), (0.75, 0.30, 0.08), (0.05, 0.05, 0.06)], np.float32)
    rgb = palette[(tint * 8).astype(int)].T * (0.7 + 0.6 * tone)
    p.set(~p.top, rgb)
    p.set(p.top, (0.7, 0.67, 0.58))
    p.dim(~p.top & ((p.s / width) % 1 < 0.14), 0.35)
    p.dim(~p.top & (p.v > p.tall * (0.78 + 0.22 * tone)), 0.10)
    p.set(~p.top & (np.abs(p.v / p.tall - 0.6) < 0.05) & (tone > 0.4), (0.75, 0.66, 0.4))


def _picture(p: Patch):
    """A frame, a mount and a small landscape or abstract painting. style: which one, 0..1."""
    a, b = p.s / p.wide, p.v / p.tall
    border = np.minimum(np.minimum(p.s, p.wide - p.s), np.minimum(p.v, p.tall - p.v))
    one = p.style[0]
    key = np.floor(one * 1000)
    sky = np.stack([0.55 + 0.35 * b * one, 0.45 + 0.25 * b, 0.35 + 0.5 * b * (1 - one)])
    hill = b < 0.35 + 0.18 * np.sin(a * (5 + 6 * one) + one * 9) + 0.10 * np.sin(a * 17)
    land = np.stack([0.10 + 0.5 * one * b, 0.22 + 0.3 * (1 - one) * a, 0.10 + 0.25 * b])
    art = np.where(hill, land, sky)
    blocks = np.floor(a * 4) + 5 * np.floor(b * 3)
    bold = np.stack([dice(blocks, key, p.prim * 0 + k) for k in (21, 22, 23)]) ** 1.5 * 0.8
    art = np.where(one > 0.55, bold, art)
    sun = (a - 0.3 - 0.4 * one) ** 2 * (p.wide / p.tall) ** 2 + (b - 0.7) ** 2 < 0.012
    art = np.where(sun, np.array([[0.9], [0.7], [0.25]]), art)
    p.set(border >= 0, np.where(border < 0.09, 0.78, art))
    frame = np.where(one > 0.5, 0.03, 0.22)
    p.set(border < 0.035, np.stack([frame, frame * 0.75, frame * 0.5]), MATERIAL["wood"])


def _window(p: Patch):
    """Seen from inside a room: white frame, panes, and the street outside (bright by day, dark blue at night)."""
    a, b = p.s / p.wide, p.v / p.tall
    border = np.minimum(np.minimum(p.s, p.wide - p.s), np.minimum(p.v, p.tall - p.v))
    frame = (border < 0.06) | (np.abs(a - 0.5) * p.wide < 0.03) | (np.abs(b - 0.7) * p.tall < 0.025)
    zenith, horizon = (np.array(c, np.float32)[:, None] for c in (p.weather.zenith, p.weather.horizon))
    out = horizon + (zenith - horizon) * np.clip(b * 1.2 - 0.3, 0, 1)
    house = b < 0.30 + 0.25 * dice(np.floor(a * 3.3), p.prim, p.prim * 0 + 4)
    tree = (np.abs(a - 0.62) ** 2 * 5 + (b - 0.34) ** 2 * 4 < 0.16) | (b < 0.14)
    light = np.array(p.weather.outside, np.float32)[:, None]
    out = np.where(house, np.array([[0.42], [0.34], [0.29]]) * light, out)
    out = np.where(tree, np.array([[0.09], [0.20], [0.06]]) * light, out)
    pinprick = house & (dice(np.floor(a * 22), np.floor(b * 22), p.prim) < 0.35 * p.weather.windows)
    out = np.where(pinprick, np.array([[1.0], [0.7], [0.35]]), out)
    p.set(~frame, (0.04, 0.045, 0.05), GLASS, out)
    p.set(frame, (0.80, 0.79, 0.76))


def _tv(p: Patch):
    """Bezel and screen. style: which programme, 0..1; 1 on."""
    a, b = p.s / p.wide, p.v / p.tall
    border = np.minimum(np.minimum(p.s, p.wide - p.s), np.minimum(p.v, p.tall - p.v))
    p.set(border > -1, (0.015, 0.015, 0.017))
    screen = (border > 0.025) & (p.axis != 2)
    cell = np.floor(a * 3) + 3 * np.floor(b * 2)
    show = np.stack([0.15 + 0.7 * dice(cell, np.floor(p.style[0] * 1000), p.prim * 0 + k) for k in (31, 32, 33)])
    show = np.where(b < 0.3, np.array([[0.08], [0.35], [0.12]]), show * np.array([[0.6], [0.8], [1.1]]))
    p.set(screen, (0.02, 0.02, 0.025), None, show * (0.6 * p.style[1]))


def _rug(p: Patch):
    """Border, medallion and stripes. style: second colour (r, g, b)."""
    a, b = np.abs(p.x) / p.hx, np.abs(p.y) / p.hy
    second = np.stack([p.style[0], p.style[1], p.style[2]])
    edge = np.maximum(a, b)
    p.set((edge > 0.82) & (edge < 0.93), second)
    p.set((a + b < 0.62) & (a + b > 0.35), second)
    p.set((edge < 0.8) & (a + b > 0.72) & (np.floor(p.x * 9) % 2 == 0), p.colour[:, p.index] * 0.7)


def _stripes(p: Patch):
    """Folds of a curtain, or slats: brightness waves along the face. style: folds per metre, depth."""
    u = p.s * p.style[0]
    p.colour[:, p.index] *= 1 - p.style[1] * (0.5 + 0.5 * np.sin(2 * np.pi * u))


def _board(p: Patch):
    """Panels with joints (cupboard doors, drawers). style: panels across, panels up."""
    u, v = p.s / p.wide * p.style[0] % 1, p.v / p.tall * p.style[1] % 1
    face = p.axis != 2
    cell_w, cell_h = p.wide / np.maximum(p.style[0], 1), p.tall / np.maximum(p.style[1], 1)
    seam = np.minimum(np.minimum(u, 1 - u) * cell_w, np.minimum(v, 1 - v) * cell_h)
    p.dim(face & (seam < 0.015), 0.35)
    p.set(face & (np.abs(u - 0.88) * cell_w < 0.02) & (np.abs(v - 0.5) * cell_h < 0.06), (0.55, 0.52, 0.45), METAL)


RULES = {"facade": _facade, "car": _car, "cabin": _cabin, "bus": _bus, "sign": _sign, "books": _books, "picture": _picture,
         "window": _window, "tv": _tv, "rug": _rug, "stripes": _stripes, "board": _board}
