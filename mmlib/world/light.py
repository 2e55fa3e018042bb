"""Light: shadows, and the radiance that reaches a camera from every hit, in the units of ``weather.Weather``.

Called by ``render.Shot``; the near-infrared and thermal sensors share its sun and shadows.
"""

import math

import numpy as np
from scipy.ndimage import uniform_filter

from .geometry import View, cells, dot, trace
from .materials import MATERIAL, cloud_cover, column
from .weather import Weather, channels


def sun_cosine(hits, weather) -> np.ndarray:
    """Cosine (N,) 0..1 between surfaces and the direction of the sun."""
    return np.clip(dot(hits.normal, weather.sun_direction), 0, 1)


# ---------------------------------------------------------------- shadows
def shadow(world, hits, weather, detail) -> tuple:
    """Shares of ambient (1, or (N,)) and of direct light (N,) 0..1 that reach each hit: a light map compared
    at the four nearest cells, and indoors the window.

    The light map is a view of the scene from a far light: parallel rays, one for each cell of a grid on the
    ground, so small near its middle and growing like sqrt(x^2 + spread^2) away from it. Outdoors the light is
    the sun; indoors it stands for ceiling and window, and makes soft shadows under furniture. No convex
    primitive shades itself; outdoors, faces turned away from the light keep 1 (they get none of it anyway).
    ``detail`` = 1 suits pictures of 96 x 128.
    """
    # of the grid along x and y: cells, half their extent in metres, middle, and the light's direction
    if world.indoor:
        (x0, x1, y0, y1, _), (lx, ly, lz), spread = world.room, (0.05, 0.08, 0.9955), 6.0
        across = (int(96 * detail), (x1 - x0) * 0.6, (x0 + x1) / 2, lx)
        up = (int(96 * detail), (y1 - y0) * 0.65, (y0 + y1) / 2, ly)
    else:
        (lx, ly, lz), spread = weather.sun_direction, 2.5
        across = (int(128 * detail), 80.0, 4.0, lx)
        up = (int(96 * detail), 36.0, 0.0, ly)
    top, cols, rows = 60.0, across[0], up[0]  # the rays start at this height

    def cell(x, y, z):
        """Column and row of the light map (not rounded) on the ray through a point."""
        for place, (n, span, middle, light) in ((x, across), (y, up)):
            offset = np.arcsinh((place - z * (light / lz) - middle) * (1 / spread))
            yield (offset / math.asinh(span / spread) + 1) / 2 * n - 0.5

    def bounds(corners):
        col, row = cell(*corners)
        return *cells(row.min(1), row.max(1), rows), *cells(col.min(1), col.max(1), cols)

    x, y = (
        middle
        + spread * np.sinh((2 * (np.arange(n) + 0.5) / n - 1) * math.asinh(span / spread))
        + top * light / lz
        for n, span, middle, light in (across, up)
    )
    starts = np.stack([np.tile(x, rows), np.repeat(y, cols), np.full(rows * cols, top)]).astype(np.float32)
    t, owner = trace(world, [View(rows, cols, bounds, starts, (-lx, -ly, -lz))])
    height = np.where(np.isfinite(t), top - t * lz, np.float32(-1))

    direct = np.ones_like(hits.t)
    shaded = np.flatnonzero(np.isfinite(hits.t) & ((dot(hits.normal, (lx, ly, lz)) > 0) | world.indoor))
    x, y, z = np.take(hits.where, shaded, 1)
    prim = hits.prim[shaded]
    col, row = cell(x, y, z)
    col, row = np.clip(col, 0, cols - 1.001), np.clip(row, 0, rows - 1.001)
    corner, z = row.astype(np.int64) * cols + col.astype(np.int64), z + np.float32(0.06)
    right, down = col % 1, row % 1
    shade = np.zeros(len(z), np.float32)
    for below, tall in ((0, 1 - down), (cols, down)):
        for beside, wide in ((0, 1 - right), (1, right)):
            at = corner + below + beside
            shade += tall * wide * ((height[at] > z) & (owner[at] != prim))
    direct[shaded] -= shade
    if not world.indoor:
        return 1, direct
    return 0.5 + 0.5 * direct, direct * sunbeam(world.window, weather.sun_direction, hits.where)


def _facing_window(window):
    """Across which axis (0 x, 1 y) a window looks, and in which direction (1 or -1)."""
    centre, half = window
    k = 0 if half[0] < half[1] else 1
    return k, math.copysign(1.0, centre[k])


def sunbeam(window, sun, where) -> np.ndarray:
    """1 (N,) where the ray to the sun leaves the room through a pane of the window (centre, half sizes), else
    0.
    """
    if window is None:
        return np.zeros_like(where[0])
    (centre, half), (k, outward) = window, _facing_window(window)
    other, direction = 1 - k, list(sun)
    direction[k] = outward * max(abs(sun[k]), 0.45)  # the sun always stands before the window
    step = (centre[k] - where[k]) / np.float32(direction[k])
    a, b = (where[i] + step * direction[i] - centre[i] for i in (other, 2))
    inside = (
        (np.abs(a) < half[other] - 0.06) & (np.abs(a) > 0.03) & (np.abs(b) < half[2] - 0.06) & (step > 0.05)
    )
    return inside.astype(np.float32)


def contact_shade(t, size) -> np.ndarray:
    """Cheap ambient occlusion (N,) 0.55..1 of pictures of this size, one after another: darker where a pixel
    lies deeper than its surroundings (unsharp mask of inverse depth).
    """
    near = (1 / np.maximum(t, 0.3)).reshape(-1, *size)
    width = max(3, size[1] // 18)
    excess = (uniform_filter(near, (1, width, width), mode="nearest") - near) / (near + np.float32(0.02))
    return (1 - np.clip(excess * 1.1, 0, 0.45)).ravel()


# ---------------------------------------------------------------- radiance
def sky(weather: Weather, direction) -> np.ndarray:
    """Radiance (3, n) of the sky along unit directions (3, n)."""
    x, y, z = direction
    up = np.clip(z, 0, 1)
    out = weather.gradient(np.sqrt(up + np.float32(1e-4)) * 1.25)
    if weather.clouds > 0:
        flat = 1 / (up + np.float32(0.12))
        cover = cloud_cover(x * flat * 0.30 + weather.clouds * 31, y * flat * 0.22)
        cover = np.clip((cover - (0.85 - 0.55 * weather.clouds)) * 2.6, 0, 1) * np.clip(up * 6, 0, 1)
        bright = weather.horizon * 0.75 + weather.sun * 0.35 + weather.ambient * 0.25
        out += (bright - out) * (cover * np.float32(0.8))
    if weather.sunny:
        near = np.clip(dot(direction, weather.sun_direction), 0, 1)
        near2 = near * near
        near8 = near2 * near2 * near2 * near2
        out += weather.sun * (0.35 * near8 + 0.8 * near8**8 + 12 * (near > 0.9992))  # halo and disc
    return out


def _from_point(hits, place, size, least):
    """Light from a small source: vector to it, 1 / distance, 1 / distance^2 (softened by its ``size``, m^2),
    cosine on the surface.
    """
    towards = channels(place) - hits.where
    inv2 = 1 / (dot(towards, towards) + size)
    inv = np.sqrt(inv2)
    return towards, inv, inv2, np.clip(dot(hits.normal, towards) * inv + least, 0, 1)


def radiance(world, hits, weather: Weather, colour, glow, sun, occlusion) -> np.ndarray:
    """Visible radiance (3, N) towards the camera: colour, glow: reflectance and own light (3, N); sun: share
    of direct light (N,) 0..1;
    occlusion: share of ambient light (N,) 0..1."""
    f32 = np.float32
    solid = np.isfinite(hits.t)
    eye, heading = world.camera.position, world.camera.axes()[0]
    low, high = (0.92, 0.08) if world.indoor else (0.72, 0.28)  # more light comes from above
    light = weather.ambient * ((low + high * hits.normal[2]) * occlusion)
    if weather.sunny:
        light = light + weather.sun * (sun_cosine(hits, weather) * sun)
    # daylight from the window, a small area light a little into the room
    if world.indoor and world.window:
        k, outward = _facing_window(world.window)
        place = list(world.window[0])
        place[k] -= 0.1 * outward
        towards, inv, inv2, cosine = _from_point(hits, place, 0.4, 0.10)
        cosine = cosine * np.clip(0.15 - towards[k] * outward * inv, 0, 1)
        light = light + weather.outside * (1.5 * cosine * inv2 * occlusion)
    if weather.lamps > 0:
        by_colour = {}  # lamps of one colour are summed before they are coloured: three times less work
        for *place, r, g, b, downward in world.lights:
            towards, inv, inv2, cosine = _from_point(hits, place, 0.05, 0.08)
            beam = np.clip(towards[2] * inv, 0, 1) if downward else 1
            by_colour[r, g, b] = by_colour.get((r, g, b), 0) + cosine * beam * inv2
        for lamp, amount in by_colour.items():
            light = light + channels(lamp) * (weather.lamps * amount)
    if weather.headlights > 0:
        away = hits.where - channels((*eye[:2], eye[2] - 0.7))
        r2 = dot(away, away) + 1
        inv = 1 / np.sqrt(r2)
        ahead, drop = (away[0] * heading[0] + away[1] * heading[1]) * inv, away[2] * inv + 0.03
        beam = np.clip((ahead - 0.80) * 5, 0, 1) ** 2 * np.exp(-np.square(drop * 6.5))
        cosine = np.clip(-dot(hits.normal, away) * inv + 0.10, 0, 1)
        retro = (
            1
            + f32(2.5) * (hits.material == MATERIAL["sign"])
            + f32(1.2) * (hits.material == MATERIAL["paint"])
        )
        light = light + channels((17.0, 16.2, 14.2)) * (
            weather.headlights * beam * cosine * retro / (r2 + 12)
        )
    out = colour * light + glow
    shiny = np.flatnonzero((column("gloss")[hits.material] > 0.08) & solid)
    if len(shiny):
        out[:, shiny] += _mirrored(world, hits, weather, shiny, sun)
    if not world.indoor:
        far = np.flatnonzero(~solid)
        out[:, far] = sky(weather, hits.direction[:, far])
        through = np.exp(-weather.haze * np.where(solid, hits.t, np.inf))
        if weather.haze < 0.01:  # in clear air the sky is itself; only solid things fade
            through[far] = 1
        out = out * through + weather.horizon * f32(0.92) * (1 - through)
    return out


def _mirrored(world, hits, weather, shiny, sun):
    """What glossy surfaces (indices ``shiny``) add by reflection: ambient light indoors; sky, houses opposite
    and sun outdoors.
    """
    cosine = hits.facing[shiny]
    mirror = hits.direction[:, shiny] + 2 * cosine * hits.normal[:, shiny]
    fresnel = 0.05 + 0.95 * (1 - cosine) ** 5
    if world.indoor:
        reflected = weather.ambient * np.float32(0.7)
    else:
        above = weather.gradient(np.sqrt(np.abs(mirror[2])) * 1.2)
        below = weather.ambient * np.float32(0.38)
        reflected = np.where(mirror[2] > 0.10 + 0.10 * np.abs(mirror[1]), above, below)
        if weather.sunny:
            glint = np.clip(dot(mirror, weather.sun_direction), 0, 1) ** 60
            reflected = reflected + weather.sun * (glint * sun[shiny] * 3)
    return reflected * (fresnel * column("gloss")[hits.material[shiny]] * np.float32(1.6))
