"""Weather and light: what each condition means for visible light, near infrared and heat, and the radiance
that reaches a camera.

Radiance is in units where a white wall in full sun is about 1. Light fields and heat fields of ``Weather``
are separate on purpose: switching the light off changes nothing in the thermal image; night is colder there
only because its heat fields say so.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from .geometry import View, cells, dot, trace, turn
from .materials import MATERIAL, cloud_cover, column

CONDITIONS = ("day", "dusk", "night", "fog")


def channels(colour) -> np.ndarray:
    """Three numbers as a (3, 1) float32 array, ready to be multiplied with one value per ray."""
    return np.array(colour, np.float32)[:, None]


@dataclass(frozen=True)
class Weather:
    """All that a condition changes."""

    # visible light
    sun_direction: tuple = (
        0.0,
        0.0,
        1.0,
    )  # unit vector towards the sun (indoors: towards the sun seen through the window)
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

    def gradient(self, height) -> np.ndarray:
        """Radiance (3, n) of the clear sky at heights (n,) from 0, the horizon, to 1."""
        return channels(self.horizon) + (channels(self.zenith) - channels(self.horizon)) * np.clip(
            height, 0, 1
        )


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
                sun=(1.5, 1.38, 1.15),
                ambient=(0.34, 0.33, 0.32),
                zenith=(0.8, 1.25, 1.9),
                horizon=(1.9, 1.95, 2.0),
                outside=(1.6, 1.6, 1.55),
                exposure=1.9 + 0.3 * vary,
                nir_sun=1.2,
                nir_sky=0.45,
                air=22.0,
                sun_now=0.8,
                **common,
            ),
            "dusk": Weather(
                ambient=(0.12, 0.10, 0.10),
                zenith=(0.10, 0.14, 0.34),
                horizon=(0.75, 0.36, 0.22),
                outside=(0.10, 0.09, 0.10),
                lamps=0.75,
                windows=0.6,
                exposure=1.7,
                noise=1.6,
                nir_sky=0.15,
                air=21.0,
                **common,
            ),
            "night": Weather(
                ambient=(0.012, 0.014, 0.024),
                zenith=(0.010, 0.014, 0.035),
                horizon=(0.03, 0.03, 0.05),
                outside=(0.02, 0.02, 0.025),
                lamps=0.13,
                windows=0.5,
                exposure=2.6,
                noise=4.0,
                nir_sky=0.01,
                air=19.5,
                **common,
            ),
        }[condition]
    swing = azimuth / math.pi - 1  # -1..1
    if condition == "dusk":  # low, ahead of the camera
        azimuth, tilt = 0.7 * swing, math.radians(6 + 9 * height)
    else:  # mostly behind the camera, and never along the street, so that trees and houses cast shadows across it
        azimuth, tilt = (
            math.copysign((1.75 if vary < 0.7 else 0.75) + 0.75 * abs(swing), swing),
            math.radians(38 + 20 * height),
        )
    ca, sa = turn(azimuth)
    ct, st = turn(tilt)
    sun_direction = (ct * ca, ct * sa, st)
    return {
        "day": Weather(
            sun_direction,
            sun=(1.30, 1.19, 0.98),
            ambient=(0.24, 0.285, 0.36),
            zenith=(0.13, 0.30, 0.70),
            horizon=(0.58, 0.72, 0.88),
            clouds=0.3 + 0.6 * vary,
            haze=0.0016,
            exposure=1.55,
            nir_sun=0.85,
            nir_sky=0.16,
            air=20.0,
            sky_temperature=-14.0,
            sun_now=0.9,
            sun_before=0.3,
            haze_heat=0.0008,
        ),
        "dusk": Weather(
            sun_direction,
            sun=(0.58, 0.30, 0.13),
            ambient=(0.145, 0.140, 0.185),
            zenith=(0.10, 0.14, 0.32),
            horizon=(0.72, 0.36, 0.18),
            clouds=0.4 + 0.5 * vary,
            haze=0.003,
            lamps=0.55,
            windows=0.30,
            car_lights=0.7,
            headlights=0.10,
            exposure=2.0,
            noise=1.6,
            nir_sun=0.45,
            nir_sky=0.08,
            air=16.0,
            sky_temperature=-12.0,
            sun_now=0.2,
            sun_before=0.75,
            haze_heat=0.0008,
        ),
        "night": Weather(
            sun_direction,
            ambient=(0.0050, 0.0058, 0.0100),
            zenith=(0.0022, 0.003, 0.0075),
            horizon=(0.014, 0.0125, 0.0145),
            clouds=0.3,
            haze=0.0025,
            lamps=1.0,
            windows=0.42,
            car_lights=1.0,
            headlights=1.0,
            exposure=4.0,
            noise=3.0,
            nir_sky=0.004,
            nir_flash=1.0,
            air=9.0,
            sky_temperature=-20.0,
            sun_before=0.5,
            haze_heat=0.0008,
        ),
        "fog": Weather(
            sun_direction,
            ambient=(0.50, 0.52, 0.54),
            zenith=(0.60, 0.62, 0.64),
            horizon=(0.60, 0.62, 0.64),
            haze=0.032 + 0.03 * vary,
            lamps=0.25,
            windows=0.12,
            car_lights=0.9,
            headlights=0.02,
            exposure=1.25,
            noise=1.2,
            nir_sky=0.55,
            air=8.0,
            sky_temperature=6.0,
            sun_now=0.05,
            sun_before=0.15,
            haze_heat=0.008,
        ),
    }[condition]


def sun_cosine(hits, weather) -> np.ndarray:
    """Cosine (N,) 0..1 between surfaces and the direction of the sun."""
    return np.clip(dot(hits.normal, weather.sun_direction), 0, 1)


# ---------------------------------------------------------------- shadows
def shadow(world, hits, weather, detail) -> np.ndarray:
    """Share of direct light (N,) 0..1 at each hit: a light map compared at the four nearest cells.

    The light map is a view of the scene from a far light: parallel rays, one for each cell of a grid on the
    ground, so small near its middle and growing like sqrt(x^2 + spread^2) away from it. Outdoors the light is
    the sun; indoors it stands for ceiling and window, and makes soft shadows under furniture. No convex
    primitive shades itself; outdoors, faces turned away from the light keep 1 (they get none of it anyway).
    ``detail`` = 1 suits pictures of 96 x 128.
    """
    if world.indoor:
        (x0, x1, y0, y1, _), (lx, ly, lz), spread = world.room, (0.05, 0.08, 0.9955), 6.0
        across, up = (
            (int(96 * detail), (x1 - x0) * 0.6, (x0 + x1) / 2),
            (int(96 * detail), (y1 - y0) * 0.65, (y0 + y1) / 2),
        )
    else:
        (lx, ly, lz), spread = weather.sun_direction, 2.5
        across, up = (
            (int(128 * detail), 80.0, 4.0),
            (int(96 * detail), 36.0, 0.0),
        )  # cells, half their extent in metres, middle
    top, cols, rows = 60.0, across[0], up[0]  # the rays start at this height

    def places(n, span, middle):
        return middle + spread * np.sinh((2 * (np.arange(n) + 0.5) / n - 1) * math.asinh(span / spread))

    def index(value, n, span, middle):
        return (np.arcsinh((value - middle) * (1 / spread)) / math.asinh(span / spread) + 1) / 2 * n - 0.5

    def cell(x, y, z):
        """Column and row of the light map (not rounded) on the ray through a point."""
        return index(x - z * (lx / lz), *across), index(y - z * (ly / lz), *up)

    def bounds(corners):
        col, row = cell(*corners)
        return *cells(row.min(1), row.max(1), rows), *cells(col.min(1), col.max(1), cols)

    x, y = places(*across) + top * lx / lz, places(*up) + top * ly / lz
    starts = np.stack([np.tile(x, rows), np.repeat(y, cols), np.full(rows * cols, top)]).astype(np.float32)
    t, owner = trace(world, [View(rows, cols, bounds, starts, (-lx, -ly, -lz))])
    height = np.where(np.isfinite(t), top - t * lz, np.float32(-1))

    out = np.ones(len(hits.t), np.float32)
    chosen = np.flatnonzero(np.isfinite(hits.t) & ((dot(hits.normal, (lx, ly, lz)) > 0) | world.indoor))
    x, y, z = np.take(hits.where, chosen, 1)
    prim = hits.prim[chosen]
    col, row = cell(x, y, z)
    col, row = np.clip(col, 0, cols - 1.001), np.clip(row, 0, rows - 1.001)
    c, r = col.astype(np.int64), row.astype(np.int64)
    right, down = (col - c).astype(np.float32), (row - r).astype(np.float32)
    corner, z = r * cols + c, z + np.float32(0.06)
    shade = np.zeros(len(z), np.float32)
    for step, weight in (
        (0, (1 - down) * (1 - right)),
        (1, (1 - down) * right),
        (cols, down * (1 - right)),
        (cols + 1, down * right),
    ):
        at = corner + step
        shade += weight * ((height[at] > z) & (owner[at] != prim))
    out[chosen] -= shade
    return out


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
    out, sun = weather.gradient(np.sqrt(up + np.float32(1e-4)) * 1.25), channels(weather.sun)
    if weather.clouds > 0:
        flat = 1 / (up + np.float32(0.12))
        cover = cloud_cover(x * flat * 0.30 + weather.clouds * 31, y * flat * 0.22)
        cover = np.clip((cover - (0.85 - 0.55 * weather.clouds)) * 2.6, 0, 1) * np.clip(up * 6, 0, 1)
        bright = channels(weather.horizon) * 0.75 + sun * 0.35 + channels(weather.ambient) * 0.25
        out += (bright - out) * (cover * np.float32(0.8))
    if weather.sunny:
        near = np.clip(dot(direction, weather.sun_direction), 0, 1)
        near2 = near * near
        near8 = near2 * near2 * near2 * near2
        out += sun * (0.35 * near8 + 0.8 * near8**8 + 12 * (near > 0.9992))  # halo and disc
    return out


def _from_point(hits, place, size, least):
    """Light from a small source: vector to it, 1 / distance, 1 / distance^2 (softened by its ``size``, m^2),
    cosine on the surface.
    """
    towards = [p - w for p, w in zip(place, hits.where)]
    inv2 = 1 / (dot(towards, towards) + size)
    inv = np.sqrt(inv2)
    return towards, inv, inv2, np.clip(dot(hits.normal, towards) * inv + least, 0, 1)


def radiance(world, hits, weather: Weather, colour, glow, sun, occlusion) -> np.ndarray:
    """Visible radiance (3, N) towards the camera: colour, glow: reflectance and own light (3, N); sun: share
    of direct light (N,) 0..1;
    occlusion: share of ambient light (N,) 0..1."""
    f32 = np.float32
    solid = np.isfinite(hits.t)
    ambient, eye, heading = channels(weather.ambient), world.camera.position, world.camera.axes()[0]
    low, high = (0.92, 0.08) if world.indoor else (0.72, 0.28)  # more light comes from above
    light = ambient * ((low + high * hits.normal[2]) * occlusion)
    if weather.sunny:
        light = light + channels(weather.sun) * (sun_cosine(hits, weather) * sun)
    if (
        world.indoor and world.facts["window"]
    ):  # daylight from the window, a small area light a little into the room
        k, outward = _facing_window(world.facts["window"])
        place = list(world.facts["window"][0])
        place[k] -= 0.1 * outward
        towards, inv, inv2, cosine = _from_point(hits, place, 0.4, 0.10)
        cosine = cosine * np.clip(0.15 - towards[k] * outward * inv, 0, 1)
        light = light + channels(weather.outside) * (1.5 * cosine * inv2 * occlusion)
    if weather.lamps > 0:
        by_colour = {}  # lamps of one colour are summed before they are coloured: three times less work
        for *place, r, g, b, downward in world.lights:
            towards, inv, inv2, cosine = _from_point(hits, place, 0.05, 0.08)
            beam = np.clip(towards[2] * inv, 0, 1) if downward else 1
            by_colour[r, g, b] = by_colour.get((r, g, b), 0) + cosine * beam * inv2
        for lamp, amount in by_colour.items():
            light = light + channels(lamp) * (weather.lamps * amount)
    if weather.headlights > 0:
        away = [w - p for p, w in zip((eye[0], eye[1], eye[2] - 0.7), hits.where)]
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
        out[:, shiny] += _mirrored(world, hits, weather, shiny, ambient, sun)
    if not world.indoor:
        far = np.flatnonzero(~solid)
        out[:, far] = sky(weather, hits.direction[:, far])
        through = np.exp(-weather.haze * np.where(solid, hits.t, np.inf))
        if weather.haze < 0.01:  # in clear air the sky is itself; only solid things fade
            through[far] = 1
        out = out * through + channels(weather.horizon) * f32(0.92) * (1 - through)
    return out


def _mirrored(world, hits, weather, shiny, ambient, sun):
    """What glossy surfaces (indices ``shiny``) add by reflection: ambient light indoors; sky, houses opposite
    and sun outdoors.
    """
    cosine = hits.facing[shiny]
    mirror = hits.direction[:, shiny] + 2 * cosine * hits.normal[:, shiny]
    fresnel = 0.05 + 0.95 * (1 - cosine) ** 5
    if world.indoor:
        seen = ambient * np.float32(0.7)
    else:
        above = weather.gradient(np.sqrt(np.abs(mirror[2])) * 1.2)
        seen = np.where(mirror[2] > 0.10 + 0.10 * np.abs(mirror[1]), above, ambient * np.float32(0.38))
        if weather.sunny:
            glint = np.clip(dot(mirror, weather.sun_direction), 0, 1) ** 60
            seen = seen + channels(weather.sun) * (glint * sun[shiny] * 3)
    return seen * (fresnel * column("gloss")[hits.material[shiny]] * np.float32(1.6))
