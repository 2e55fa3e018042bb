"""Weather and light: what each condition means for visible light, near infrared and heat, and the radiance that reaches a camera.

Radiance is in units where a white wall in full sun is about 1. Light fields and heat fields of ``Weather`` are separate on purpose:
switching the light off changes nothing in the thermal image; night is colder there only because its heat fields say so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from .geometry import View, World, turn, trace
from .materials import MATERIAL, cloud_cover, column

CONDITIONS = ("day", "dusk", "night", "fog")
SHADOW_SPREAD = 2.5  # metres: cells of the light map grow like sqrt(x^2 + spread^2) away from the camera


@dataclass(frozen=True)
class Weather:
    """All that a condition changes."""

    # visible light
    sun_direction: tuple = (0.0, 0.0, 1.0)  # unit vector towards the sun (indoors: towards the sun seen through the window)
    sun: tuple = (0.0, 0.0, 0.0)  # radiance that direct light adds to a white surface facing it
    ambient: tuple = (0.0, 0.0, 0.0)  # sky or room light on a white surface
    zenith: tuple = (0.0, 0.0, 0.0)
    horizon: tuple = (0.0, 0.0, 0.0)
    clouds: float = 0.0
    haze: float = 0.0  # extinction, 1/m (visibility is about 3 / haze)
    lamps: float = 0.0  # street lamps, shop signs, room lamps: 0 off .. 1 on
    windows: float = 0.0  # share of windows that are lit
    car_lights: float = 0.0
    headlights: float = 0.0  # the camera car's own
    exposure: float = 1.0
    noise: float = 1.0  # multiplies the camera's noise (sensor gain)
    outside: tuple = (0.0, 0.0, 0.0)  # light on what a room's window shows
    # near infrared, 850 nm
    nir_sun: float = 0.0
    nir_sky: float = 0.0
    nir_flash: float = 0.0  # active illuminator beside the camera, used in the dark
    # heat, degrees Celsius or share of full sun
    air: float = 18.0
    sky_temperature: float = -10.0
    sun_now: float = 0.0  # share of each material's ``warmth`` on sunlit faces
    sun_before: float = 0.0  # share of it that the day left everywhere, times the material's ``keep``
    haze_heat: float = 0.0  # extinction in 8-14 um, 1/m

    @property
    def sunny(self) -> bool:
        return max(self.sun) > 0


def weather(scene: str, condition: str, rng) -> Weather:
    """The weather of one frame; ``rng`` draws the sun's place and small variations."""
    azimuth, height, vary = 2 * math.pi * rng.random(), rng.random(), rng.random()
    if scene == "room":
        ca, sa = turn(0.6 * (azimuth / math.pi - 1) + (1 if vary > 0.5 else -1) * 0.5)
        rise = 0.55 + 0.3 * height
        size = math.sqrt(ca * ca + sa * sa + rise * rise)
        common = dict(sun_direction=(ca / size, sa / size, rise / size), sky_temperature=20.0, nir_flash=0.35)
        return {
            "day": Weather(
                sun=(1.5, 1.38, 1.15), ambient=(0.34, 0.33, 0.32), zenith=(0.8, 1.25, 1.9), horizon=(1.9, 1.95, 2.0),
                outside=(1.6, 1.6, 1.55), exposure=1.9 + 0.3 * vary, nir_sun=1.2, nir_sky=0.45, air=22.0, sun_now=0.8, **common),
            "dusk": Weather(
                ambient=(0.12, 0.10, 0.10), zenith=(0.10, 0.14, 0.34), horizon=(0.75, 0.36, 0.22), outside=(0.10, 0.09, 0.10),
                lamps=0.75, windows=0.6, exposure=1.7, noise=1.6, nir_sky=0.15, air=21.0, **common),
            "night": Weather(
                ambient=(0.012, 0.014, 0.024), zenith=(0.010, 0.014, 0.035), horizon=(0.03, 0.03, 0.05), outside=(0.02, 0.02, 0.025),
                lamps=0.13, windows=0.5, exposure=2.6, noise=4.0, nir_sky=0.01, air=19.5, **common),
        }[condition]  # fmt: skip
    swing = azimuth / math.pi - 1  # -1..1
    if condition == "dusk":  # low, ahead of the camera
        azimuth, tilt = 0.7 * swing, math.radians(6 + 9 * height)
    else:  # mostly behind the camera, and never along the street, so that trees and houses cast shadows across it
        azimuth, tilt = math.copysign((1.75 if vary < 0.7 else 0.75) + 0.75 * abs(swing), swing), math.radians(38 + 20 * height)
    ca, sa = turn(azimuth)
    ct, st = turn(tilt)
    sun_direction = (ct * ca, ct * sa, st)
    return {
        "day": Weather(
            sun_direction, sun=(1.30, 1.19, 0.98), ambient=(0.24, 0.285, 0.36), zenith=(0.13, 0.30, 0.70), horizon=(0.58, 0.72, 0.88),
            clouds=0.3 + 0.6 * vary, haze=0.0016, exposure=1.55, nir_sun=0.85, nir_sky=0.16,
            air=20.0, sky_temperature=-14.0, sun_now=0.9, sun_before=0.3, haze_heat=0.0008),
        "dusk": Weather(
            sun_direction, sun=(0.58, 0.30, 0.13), ambient=(0.145, 0.140, 0.185), zenith=(0.10, 0.14, 0.32), horizon=(0.72, 0.36, 0.18),
            clouds=0.4 + 0.5 * vary, haze=0.003, lamps=0.55, windows=0.30, car_lights=0.7, headlights=0.10, exposure=2.0, noise=1.6,
            nir_sun=0.45, nir_sky=0.08, air=16.0, sky_temperature=-12.0, sun_now=0.2, sun_before=0.75, haze_heat=0.0008),
        "night": Weather(
            sun_direction, ambient=(0.0050, 0.0058, 0.0100), zenith=(0.0022, 0.003, 0.0075), horizon=(0.014, 0.0125, 0.0145), clouds=0.3,
            haze=0.0025, lamps=1.0, windows=0.42, car_lights=1.0, headlights=1.0, exposure=4.0, noise=3.0, nir_sky=0.004, nir_flash=1.0,
            air=9.0, sky_temperature=-20.0, sun_before=0.5, haze_heat=0.0008),
        "fog": Weather(
            sun_direction, ambient=(0.50, 0.52, 0.54), zenith=(0.60, 0.62, 0.64), horizon=(0.60, 0.62, 0.64), haze=0.032 + 0.03 * vary,
            lamps=0.25, windows=0.12, car_lights=0.9, headlights=0.02, exposure=1.25, noise=1.2, nir_sky=0.55,
            air=8.0, sky_temperature=6.0, sun_now=0.05, sun_before=0.15, haze_heat=0.008),
    }[condition]  # fmt: skip


# ---------------------------------------------------------------- shadows
def light_view(direction, rows, cols, reach=80.0, side=36.0, middle=(0.0, 0.0), spread=SHADOW_SPREAD) -> View:
    """Parallel rays from a far light, one for each cell of a grid on the ground; cells are small near ``middle`` and grow with distance."""
    lx, ly, lz = direction
    top = 60.0

    def index(value, span, n, centre):
        return (np.arcsinh((value - centre) * (1 / spread)) / math.asinh(span / spread) + 1) / 2 * n

    def place(cells, span, n, centre):
        return centre + spread * np.sinh((2 * (np.arange(cells) + 0.5) / n - 1) * math.asinh(span / spread))

    x = place(cols, reach, cols, middle[0])
    y = place(rows, side, rows, middle[1])
    starts = np.stack([np.tile(x + top * lx / lz, rows), np.repeat(y + top * ly / lz, cols), np.full(rows * cols, top)]).astype(np.float32)

    def bounds(corners):
        a, b = corners[..., 0] - corners[..., 2] * (lx / lz), corners[..., 1] - corners[..., 2] * (ly / lz)
        r0, r1 = index(b.min(1), side, rows, middle[1]), index(b.max(1), side, rows, middle[1])
        c0, c1 = index(a.min(1), reach, cols, middle[0]), index(a.max(1), reach, cols, middle[0])
        def inside(low, high, n):
            return np.clip(np.ceil(low - 0.5), 0, n).astype(np.int64), np.clip(np.floor(high - 0.5) + 1, 0, n).astype(np.int64)
        return *inside(r0, r1, rows), *inside(c0, c1, cols)

    view = View(rows, cols, 0.0, bounds, starts=starts, along=(-lx, -ly, -lz))
    def lookup(x, y, z):
        """Row and column of the light map (not rounded) on the ray through a point."""
        return index(y - z * (ly / lz), side, rows, middle[1]) - 0.5, index(x - z * (lx / lz), reach, cols, middle[0]) - 0.5

    view.lookup = lookup
    view.height = lambda t: top - t * lz
    return view


def sunlit(world: World, view: View, hits) -> np.ndarray:
    """Share of direct light (N,) 0..1 at each hit: a light map compared at the four nearest cells.

    No convex primitive shades itself; outdoors, faces turned away from the light keep 1 (they get none of it anyway).
    """
    t, owner = trace(world, [view])
    height = np.where(np.isfinite(t), view.height(t), np.float32(-1)).astype(np.float32)
    lx, ly, lz = (-np.float32(v) for v in view.along)
    towards = hits.normal[0] * lx + hits.normal[1] * ly + hits.normal[2] * lz > 0
    chosen = np.flatnonzero(np.isfinite(hits.t) & (towards | world.indoor))
    out = np.ones(len(hits.t), np.float32)
    x, y, z = np.take(hits.where, chosen, 1)
    prim = hits.prim[chosen]
    row, col = view.lookup(x, y, z)
    row, col = np.clip(row, 0, view.rows - 1.001), np.clip(col, 0, view.cols - 1.001)
    r, c = row.astype(np.int64), col.astype(np.int64)
    fr, fc = (row - r).astype(np.float32), (col - c).astype(np.float32)
    cell = r * view.cols + c
    z = z + np.float32(0.06)
    shade = np.zeros(len(z), np.float32)
    for step, weight in ((0, (1 - fr) * (1 - fc)), (1, (1 - fr) * fc), (view.cols, fr * (1 - fc)), (view.cols + 1, fr * fc)):
        at = cell + step
        shade += weight * ((height[at] > z) & (owner[at] != prim))
    out[chosen] -= shade
    return out


def contact_shade(t, shapes) -> np.ndarray:
    """Cheap ambient occlusion (N,) 0.55..1: darker where a pixel lies deeper than its surroundings (unsharp mask of inverse depth)."""
    out, first = np.empty_like(t), 0
    for rows, cols in shapes:
        part = slice(first, first + rows * cols)
        near = (1 / np.maximum(t[part], 0.3)).reshape(rows, cols)
        width = max(3, cols // 18)
        excess = (uniform_filter(near, width, mode="nearest") - near) / (near + np.float32(0.02))
        out[part] = (1 - np.clip(excess * np.float32(1.1), 0, np.float32(0.45))).ravel()
        first = part.stop
    return out


# ---------------------------------------------------------------- radiance
def sky(weather: Weather, direction) -> np.ndarray:
    """Radiance (3, n) of the sky along unit directions (3, n)."""
    x, y, z = direction
    up = np.clip(z, 0, 1)
    blend = np.sqrt(up + np.float32(1e-4))
    zenith, horizon = (np.array(c, np.float32)[:, None] for c in (weather.zenith, weather.horizon))
    out = horizon + (zenith - horizon) * np.clip(blend * 1.25, 0, 1)
    if weather.clouds > 0:
        flat = 1 / (up + np.float32(0.12))
        cover = cloud_cover(x * flat * 0.30 + weather.clouds * 31, y * flat * 0.22)
        cover = np.clip((cover - (0.85 - 0.55 * weather.clouds)) * 2.6, 0, 1) * np.clip(up * 6, 0, 1)
        bright = horizon * 0.75 + np.array(weather.sun, np.float32)[:, None] * 0.35 + np.array(weather.ambient, np.float32)[:, None] * 0.25
        out += (bright - out) * (cover * np.float32(0.8))
    if weather.sunny:
        near = np.clip(x * weather.sun_direction[0] + y * weather.sun_direction[1] + z * weather.sun_direction[2], 0, 1)
        near2 = near * near
        near8 = near2 * near2 * near2 * near2
        halo = 0.35 * near8 + 0.8 * near8**8 + 12 * (near > 0.9992)
        out += np.array(weather.sun, np.float32)[:, None] * halo
    return out


def radiance(world: World, hits, weather: Weather, colour, glow, sun_share, occlusion, eye, heading) -> np.ndarray:
    """Visible radiance (3, N) towards the camera.

    Args:
        colour, glow: reflectance and own light (3, N); sun_share, occlusion: (N,) 0..1; eye: camera position; heading: its unit forward
        vector.
    """
    f32 = np.float32
    nx, ny, nz = hits.normal
    solid = np.isfinite(hits.t)
    ambient = np.array(weather.ambient, f32)[:, None]
    light = ambient * ((f32(0.92) + f32(0.08) * nz if world.indoor else f32(0.72) + f32(0.28) * nz) * occlusion)
    if weather.sunny:
        s = weather.sun_direction
        cosine = np.clip(nx * f32(s[0]) + ny * f32(s[1]) + nz * f32(s[2]), 0, 1)
        if world.indoor:
            sun_share = sun_share * world.facts["sunbeam"](s, *hits.where)
        light = light + np.array(weather.sun, f32)[:, None] * (cosine * sun_share)
    x, y, z = hits.where
    if world.indoor and world.facts["pane"]:  # daylight from the window, a small area light
        px, py, pz, ox, oy = world.facts["pane"]
        dx, dy, dz = f32(px) - x, f32(py) - y, f32(pz) - z
        inv2 = 1 / (dx * dx + dy * dy + dz * dz + f32(0.4))
        inv = np.sqrt(inv2)
        cosine = np.clip((nx * dx + ny * dy + nz * dz) * inv + f32(0.10), 0, 1)
        cosine = cosine * np.clip(f32(0.15) - (dx * f32(ox) + dy * f32(oy)) * inv, 0, 1)
        light = light + np.array(weather.outside, f32)[:, None] * (f32(1.5) * cosine * inv2 * occlusion)
    if weather.lamps > 0:
        by_colour = {}
        for lx, ly, lz, r, g, b, downward in world.lights:
            dx, dy, dz = f32(lx) - x, f32(ly) - y, f32(lz) - z
            inv2 = 1 / (dx * dx + dy * dy + dz * dz + f32(0.05))
            inv = np.sqrt(inv2)
            cosine = np.clip((nx * dx + ny * dy + nz * dz) * inv + f32(0.08), 0, 1)
            beam = np.clip(dz * inv, 0, 1) if downward else f32(1)
            by_colour[r, g, b] = by_colour.get((r, g, b), 0) + cosine * beam * inv2
        for colour_, amount in by_colour.items():
            light = light + np.array(colour_, f32)[:, None] * (f32(weather.lamps) * amount)
    if weather.headlights > 0:
        dx, dy, dz = x - f32(eye[0]), y - f32(eye[1]), z - f32(eye[2] - 0.7)
        r2 = dx * dx + dy * dy + dz * dz + f32(1.0)
        inv = 1 / np.sqrt(r2)
        ahead = (dx * f32(heading[0]) + dy * f32(heading[1])) * inv
        drop = dz * inv + f32(0.03)
        beam = np.clip((ahead - f32(0.80)) * 5, 0, 1) ** 2 * np.exp(-np.square(drop * f32(6.5)))
        cosine = np.clip(-(nx * dx + ny * dy + nz * dz) * inv + f32(0.10), 0, 1)
        retro = 1 + f32(2.5) * (hits.material == MATERIAL["sign"]) + f32(1.2) * (hits.material == MATERIAL["paint"])
        light = light + np.array([17.0, 16.2, 14.2], f32)[:, None] * (f32(weather.headlights) * beam * cosine * retro / (r2 + f32(12)))
    out = colour * light + glow
    gloss = column("gloss")[hits.material]
    shiny = np.flatnonzero((gloss > 0.08) & solid)
    if len(shiny):
        d, n, cosine = hits.direction[:, shiny], hits.normal[:, shiny], hits.facing[shiny]
        mirror = d + 2 * cosine * n
        fresnel = 0.05 + 0.95 * (1 - cosine) ** 5
        if world.indoor:
            seen = ambient * f32(0.7) + np.zeros_like(mirror)
        else:
            blend = np.clip(np.sqrt(np.abs(mirror[2])) * 1.2, 0, 1)
            zenith, horizon = (np.array(c, f32)[:, None] for c in (weather.zenith, weather.horizon))
            above = horizon + (zenith - horizon) * blend
            opposite = ambient * f32(0.38)
            seen = np.where(mirror[2] > 0.10 + 0.10 * np.abs(mirror[1]), above, opposite)
            if weather.sunny:
                glint = np.clip(mirror[0] * f32(s[0]) + mirror[1] * f32(s[1]) + mirror[2] * f32(s[2]), 0, 1) ** 60
                seen = seen + np.array(weather.sun, f32)[:, None] * (glint * sun_share[shiny] * 3)
        out[:, shiny] += seen * (fresnel * gloss[shiny] * f32(1.6))
    if not world.indoor:
        far = np.flatnonzero(~solid)
        if len(far):
            out[:, far] = sky(weather, hits.direction[:, far])
        through = np.exp(-weather.haze * np.where(solid, hits.t, np.inf))
        if weather.haze < 0.01:  # in clear air the sky is itself; only solid things fade
            through[far] = 1
        veil = np.array(weather.horizon, f32)[:, None] * f32(0.92)
        out = out * through + veil * (1 - through)
    return out
