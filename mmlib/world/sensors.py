"""The eight sensors: each turns hits, light and heat into its image in physical units (see
``mmlib.modalities.SENSORS``).

Noise comes from one generator per sensor, so asking for fewer sensors, or breaking one of them
(``FAILURES``), leaves every other image as it was.
"""

import math

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from .geometry import View, dot, ring_view
from .light import sun_cosine
from .materials import MATERIAL, PATTERN, column, dice
from .surfaces import FRONT

CASE_SENSOR = {
    "motionblur": "rgb",
    "overexposure": "rgb",
    "underexposure": "rgb",
    "lidarjitter": "lidar",
    "eventlowres": "event",
}
FAILURES = tuple(CASE_SENSOR)
f32 = np.float32
LUMA = np.array([0.2126, 0.7152, 0.0722], f32)
# display gamma, then a little contrast
_TONE = np.linspace(0, 1, 4097, dtype=f32) ** (1 / 2.2)
_TONE += 0.35 * (_TONE * _TONE * (3 - 2 * _TONE) - _TONE)


def _enlarged(image, factor, size):
    """The image (C, h, w) with every pixel repeated ``factor`` times both ways, cut to ``size``."""
    return image.repeat(factor, 1).repeat(factor, 2)[:, : size[0], : size[1]]


def _display(light):
    """Light, 0..1 of what the sensor holds, as display values 0..1."""
    return _TONE[(np.clip(light, 0, 1) * 4096).astype(np.int32)]


# ---------------------------------------------------------------- visible light
def rgb(radiance, weather, rng, case="") -> np.ndarray:
    """Camera picture (H, W, 3) in 0..1 from radiance (3, H, W): glare, exposure, photon and read noise,
    film-like curve, display gamma.
    """
    light = radiance * weather.exposure
    size = _, width = light.shape[1:]
    if weather.lamps > 0:  # scattering in the lens: bright lamps grow a halo
        excess = np.clip(light - 0.9, 0, 8)
        halo = gaussian_filter(excess, (0, width / 90, width / 90), truncate=2.5) * 0.30
        wide = gaussian_filter(excess[:, ::2, ::2], (0, width / 50, width / 50), truncate=2.0)
        light = light + halo + _enlarged(wide, 2, size) * 0.22
    if case == "motionblur":
        light = _smear(light, rng)
    light = light * {"overexposure": 5.0, "underexposure": 0.07}.get(case, 1.0)
    gain = math.sqrt(weather.noise) * (2.5 if case == "underexposure" else 1)
    sigma = np.sqrt(light * 0.0009 + 1.6e-5) * gain
    light = np.maximum(light + sigma * rng.standard_normal(light.shape, f32), 0)
    return np.moveaxis(_display(light * (1 + light * (1 / 6)) / (1 + light)), 0, 2)


def _smear(light, rng):
    """Linear motion blur over a tenth of the picture's width, in a random direction."""
    angle, length = (rng.random() - 0.5) * 1.2, light.shape[2] * (0.07 + 0.06 * rng.random())
    steps = max(5, int(length))
    out = np.zeros_like(light)
    for along in (0.5 - np.arange(steps) / (steps - 1)) * length:
        moved = 0, round(along * math.sin(angle)), round(along * math.cos(angle))
        out += shift(light, moved, order=0, mode="nearest")
    return out / steps


# ---------------------------------------------------------------- range
def depth(hits, shape, weather, indoor, rng) -> np.ndarray:
    """Depth (H, W, 1) in metres, 0 = no measurement.

    The camera measures disparity (1 / z) in steps of ``unit``, so a step of depth grows with z squared. Noise
    of half a step, then quantisation, so |error| stays below 3 steps. Holes: sky, out of range,
    surfaces seen at grazing angles, glass and other mirrors, a few at random, and distant things in fog.
    """
    far, unit = (8.0, 0.0028) if indoor else (60.0, 0.0006)  # m, 1/m
    chance = rng.random(hits.t.shape, f32)
    jitter = np.clip(rng.standard_normal(hits.t.shape, f32), -4, 4) * 0.5
    good = hits.t < far
    z = np.where(good, hits.t, 1)
    disparity = np.maximum(np.rint(1 / (z * unit) + jitter), 1)
    grazing = np.clip(1 - hits.facing / 0.09, 0, 1)
    veiled = (1 - np.exp(-0.6 * weather.haze * z)) * (weather.haze > 0.01)
    loss = 0.004 + grazing + 0.55 * column("gloss")[hits.material] ** 2 + veiled
    return np.where(good & (chance > loss), 1 / (disparity * unit), 0).reshape(*shape, 1)


def lidar_view(world) -> View:
    """The rays of one sweep: 40 rings, dense around the horizon, every 0.45 degrees. The scanner sits on the
    roof above the camera (indoors: on the same pole), level, with the camera's heading.
    """
    up, down, above = (24, -38, 0.10) if world.indoor else (9, -25, 0.35)
    u = np.linspace(1, -1, 40)
    bend = 0.45 * u + 0.55 * u**3
    elevations = np.radians(np.where(u > 0, bend * up, -bend * down))
    x, y, z = world.camera.position
    azimuths = np.radians(np.arange(-42, 42.01, 0.45))
    return ring_view((x, y, z + above), world.camera.yaw, elevations, azimuths)


def scan(world, hits, weather, rng, case="") -> np.ndarray:
    """One sweep of the LiDAR from the hits of ``lidar_view``: (5, n) float32 rows x, y, z (metres, where the
    sensor believes the points are), range (metres) and intensity (percent).

    Echo power ~ reflectance * cos(angle) * exp(-2 haze range) / range^2 against a noisy threshold (higher in
    fog, which scatters back) decides which points return; mirrors swallow most; fog returns a few false
    points near the sensor. ``lidarjitter`` turns every ring by its own small angle and the whole sensor by
    one.
    """
    view, n = lidar_view(world), len(hits.t)
    chance, (noise, level) = rng.random(n, f32), rng.standard_normal((2, n), f32)
    reach = np.minimum(hits.t, 1e3)
    gloss = column("gloss")[hits.material]
    retro = column("retro")[hits.material] * (1 - 0.6 * gloss)
    power = retro * hits.facing * np.exp(-2 * weather.haze * reach) / (reach * reach)
    threshold = 1e-5 * (1 + 40 * weather.haze) * np.exp(0.5 * level)
    good = (power > threshold) & (reach < 80) & (chance > 0.01 + 0.7 * gloss**2)
    measured = reach + 0.02 * np.clip(noise, -4, 4)
    if weather.haze > 0.01:
        ghost = (chance > 0.985) & (reach > 6)
        measured, good = np.where(ghost, 2 + np.abs(noise) * 1.5, measured), good | ghost
    direction = hits.direction
    if case == "lidarjitter":
        sway = np.radians(rng.standard_normal(view.rows) * 1.2 + rng.standard_normal() * 1.5).astype(f32)
        tip = math.radians(1.0 + rng.random()) * (1 if rng.random() > 0.5 else -1)
        (x, y, z), c, s = direction, *np.repeat([np.cos(sway), np.sin(sway)], view.cols, 1)
        direction = np.stack([c * x - s * y, s * x + c * y, z + tip])
        measured = measured + 0.10 * rng.standard_normal(n, f32)
    places = direction * measured + np.array(view.origin, f32)[:, None]
    return np.stack([*places, measured, 100 * retro * np.sqrt(hits.facing)])[:, good]


def lidar(points, camera, size) -> np.ndarray:
    """Points projected into the camera: (H, W, 3) = range m, intensity in percent, height above ground m; 0 =
    no point; the nearest point of a pixel wins.
    """
    height, width = size
    x, y, z, reach, intensity = points[:, np.argsort(-points[3], kind="stable")]
    *place, ahead = camera.project(x, y, z, size)
    j, i = np.floor(place).astype(np.int64)
    inside = (ahead > 0.2) & (j >= 0) & (j < width) & (i >= 0) & (i < height)
    image = np.zeros((*size, 3), f32)
    image[i[inside], j[inside]] = np.stack([reach, intensity, np.maximum(z, 0)], 1)[inside]
    return image


# ---------------------------------------------------------------- events
def log_intensity(radiance, weather) -> np.ndarray:
    """What an event pixel sees: the log of luminance above its dark current (works at night until that
    floor).
    """
    return np.log(np.tensordot(LUMA, radiance, 1) * weather.exposure + 0.03)


def events(before, after, rng, background, case="") -> np.ndarray:
    """Event counts (H, W, 2) = brighter, darker between two log-intensity images (H, W).

    A pixel fires once per threshold of log change. Every pixel's threshold differs a little, and a share
    ``background`` of them fires at random.
    """
    change = after - before
    size, factor = change.shape, 4 if case == "eventlowres" else 1  # an array with fewer rows and columns

    def blocks(values):
        """Sums over blocks of ``factor`` x ``factor`` pixels."""
        for axis, n in enumerate(size):
            values = np.add.reduceat(values, np.arange(0, n, factor), axis)
        return values

    change = blocks(change) / blocks(np.ones_like(change))
    threshold = 0.22 * (1 + 0.08 * np.clip(rng.standard_normal(change.shape, f32), -3, 3))
    noise = (rng.random((2, *change.shape), f32) < background).astype(f32)
    counts = np.minimum(np.floor(np.maximum([change, -change], 0) / threshold) + noise, 8)
    return np.moveaxis(_enlarged(counts, factor, size), 0, 2)


# ---------------------------------------------------------------- heat
def temperature(world, hits, weather, sun) -> np.ndarray:
    """Apparent temperature (N,) in degrees Celsius before the detector: reads the weather's heat fields only,
    never its light.

    surface = air + warmth * (sun now + what is left of the sun before) + own heat; a share 1 - emissivity of
    what the camera sees is the sky's or the surroundings' reflection; fog slowly replaces everything by its
    own temperature. ``sun`` (N,) is not shaded, 0..1.
    """
    m, pattern = hits.material, world.pattern[hits.prim]
    air, cold_sky = weather.air, weather.sky_temperature
    cosine = sun_cosine(hits, weather)
    stored = weather.sun_before * column("keep")[m] * (0.6 + 0.4 * cosine)
    surface = air + column("warmth")[m] * (weather.sun_now * cosine * sun + stored)
    # no two things are equally warm
    own = world.heat[hits.prim] + (dice(hits.prim, hits.prim, 77) - 0.5) * 1.2
    leak = max(20.0 - air, 0)  # windows of heated houses
    if world.indoor:  # warm air rises; the far wall is an outer wall; the window is as cold as the street
        own = own + 0.7 * (hits.where[2] - 1.2) - f32(1.3) * (hits.prim == world.count + FRONT)
        leak = 9.0 - air
    engine = pattern == PATTERN["car"]  # warm at the bonnet, cool at the boot
    ahead = np.clip(0.5 + hits.local[0] / np.maximum(world.shape[3], 1e-3)[hits.prim], 0, 1)
    own = np.where(engine, own * (0.25 + 0.75 * ahead), own)
    pane = (m == MATERIAL["glass"]) & ((pattern == PATTERN["facade"]) | (pattern == PATTERN["window"]))
    surface = surface + own + pane * f32(0.35) * leak
    around = air + (cold_sky - air) * np.clip(hits.normal[2] + 0.3, 0, 1)
    emissivity = column("emissivity")[m]
    apparent = emissivity * surface + (1 - emissivity) * around
    sky = cold_sky + (air - cold_sky) * (1 - np.clip(hits.direction[2], 0, 1)) ** 6
    through = np.exp(-weather.haze_heat * hits.t)
    return np.where(np.isfinite(hits.t), apparent * through + air * (1 - through), sky)


def thermal(temperatures, rng) -> np.ndarray:
    """Thermal image (H, W, 1) in degrees Celsius from apparent temperatures (H, W): lens blur, NETD kelvin of
    noise, column pattern.
    """
    width, netd = temperatures.shape[1], 0.12
    image = gaussian_filter(temperatures, 0.5 + width / 1000)
    noise = rng.standard_normal(image.shape, f32) * netd + rng.standard_normal(width, f32) * (0.4 * netd)
    return (image + noise)[..., None]


# ---------------------------------------------------------------- near infrared, polarisation
def near_infrared(world, hits, weather, colour, light, sun, occlusion, rng) -> np.ndarray:
    """850 nm picture (N,) in 0..1: leaves, cloth and skin bright, water, glass and clear sky dark; in the
    dark an illuminator beside the lens. ``colour``, ``light``, ``sun`` and ``occlusion`` as for (or from)
    ``light.radiance``.
    """
    luma = LUMA @ colour
    own = column("nir")[hits.material]
    # visible texture, softened
    relief = 0.3 + 0.7 * np.clip(luma / ((LUMA @ world.colour)[hits.prim] + 1e-3), 0.4, 1.3)
    albedo = np.clip(np.where(own < 0, -own * luma, own * relief), 0, 0.9)
    above = weather.nir_sky * (0.7 + 0.3 * hits.normal[2]) * occlusion
    power, spread = (6.0, 8.0) if world.indoor else (60.0, 40.0)
    flash = weather.nir_flash * power * hits.facing / (hits.t * hits.t + spread)
    arriving = above + weather.nir_sun * (sun_cosine(hits, weather) * sun) + flash
    sky = np.maximum(light[0] * 0.52 - light[2] * 0.18, 0.02 * light[0])  # blue scatters, 850 nm does not
    out = np.where(np.isfinite(hits.t), albedo * arriving, sky)
    if weather.haze > 0.01:
        through = np.exp(-weather.haze * hits.t)
        out = out * through + weather.nir_sky * (1 - through)
    out = out * 1.8
    out = out + np.sqrt(out * 0.0006 + 1.5e-5) * rng.standard_normal(out.shape, f32)
    return _display(out / (1 + out * 0.35))


def fresnel_polarisation(cosine, index):
    """Degree of linear polarisation of (diffusely re-emitted, mirror-reflected) light at an angle with this
    cosine, refractive index n.

    Diffuse light is polarised in the plane of normal and view, mirrored light across it (Atkinson & Hancock
    2006).
    """
    sine2 = np.clip(1 - cosine * cosine, 0, 1)
    n2 = index * index
    root = np.sqrt(n2 - sine2)
    diffuse = (
        (index - 1 / index) ** 2 * sine2 / (2 + 2 * n2 - (index + 1 / index) ** 2 * sine2 + 4 * cosine * root)
    )
    mirror = 2 * sine2 * cosine * root / (n2 - sine2 - n2 * sine2 + 2 * sine2 * sine2 + 1e-6)
    return np.clip(diffuse, 0, 1), np.clip(mirror, 0, 1)


def stokes(world, hits, weather, colour) -> tuple[np.ndarray, np.ndarray]:
    """Normalised Stokes parameters (s1, s2), each (N,), in the image's axes (s1 > 0: polarised along the
    rows, s2 > 0: rising to the right).
    """
    _, right, up = (np.array(a, f32) for a in world.camera.axes())

    def doubled(a, b):
        """cos and sin of twice the angle of (a, b)."""
        size = a * a + b * b + 1e-9
        return (a * a - b * b) / size, 2 * a * b / size

    # the normal's part perpendicular to the line of sight
    across = hits.normal + hits.direction * hits.facing
    index = column("index")[hits.material]
    diffuse, mirror = fresnel_polarisation(hits.facing, index)
    base = ((index - 1) / (index + 1)) ** 2
    shine = (0.03 + column("gloss")[hits.material]) * (base + (1 - base) * (1 - hits.facing) ** 5)
    body = (LUMA @ colour) * 0.55 + 0.02
    degree = (body * diffuse - shine * mirror) / (body + shine)

    # the sky is polarised across the direction towards the sun, most at a right angle from it (Rayleigh)
    sun = np.array(weather.sun_direction, f32)
    near = dot(hits.direction, sun)
    clear = (weather.haze < 0.01) * weather.sunny
    rayleigh = 0.75 * (1 - near * near) / (1 + near * near) * (1 - 0.7 * weather.clouds) * clear
    towards_sun = (sun @ axis - (axis @ hits.direction) * near for axis in (right, up))
    solid = np.isfinite(hits.t)
    through = np.exp(-weather.haze * np.where(solid, hits.t, 0))
    of_surface, of_sky = doubled(right @ across, up @ across), doubled(*towards_sun)
    return tuple(np.where(solid, degree * s, -rayleigh * q) * through for s, q in zip(of_surface, of_sky))


def polarisation(s1, s2, rng, noise) -> tuple[np.ndarray, np.ndarray]:
    """(dolp (H, W, 1), aolp (H, W, 2) = cos, sin of the doubled angle) from Stokes images (H, W); the angle
    is noise where the degree is near zero.
    """
    s1, s2 = (s + noise * rng.standard_normal(s.shape, f32) for s in (s1, s2))
    degree = np.sqrt(s1 * s1 + s2 * s2)
    return np.clip(degree, 0, 1)[..., None], np.stack([s1, s2], -1) / np.maximum(degree, 1e-9)[..., None]
