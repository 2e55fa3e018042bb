"""Weather: what each condition means for visible light, near infrared and heat.

``weather`` makes one for a frame. Light fields and heat fields are separate on purpose: switching the light
off changes nothing in the thermal image; night is colder there only because its heat fields say so. Radiance
is in units where a white wall in full sun is about 1.
"""

import math
from dataclasses import dataclass

import numpy as np

from .geometry import turn
from .materials import read_table

CONDITIONS = ("day", "dusk", "night", "fog")


def channels(colour) -> np.ndarray:
    """Three numbers as a (3, 1) float32 array, ready to be multiplied with one value per ray."""
    return np.array(colour, np.float32)[:, None]


@dataclass(frozen=True)
class Weather:
    """All that a condition changes; the values stand in ``weather.csv``. Colours are ``channels``."""

    sun_direction: tuple  # unit vector towards the sun (indoors: towards the sun seen through the window)
    # visible light
    sun: np.ndarray  # radiance that direct light adds to a white surface facing it
    ambient: np.ndarray  # sky or room light on a white surface
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze: float  # extinction, 1/m (visibility is about 3 / haze)
    lamps: float  # street lamps, shop signs, room lamps: 0 off .. 1 on
    windows: float  # share of windows that are lit
    car_lights: float
    headlights: float  # the camera car's own
    exposure: float
    noise: float  # multiplies the camera's noise (sensor gain)
    outside: np.ndarray  # light on what a room's window shows
    # near infrared, 850 nm
    nir_sun: float
    nir_sky: float
    nir_flash: float  # active illuminator beside the camera, used in the dark
    # heat, degrees Celsius or share of full sun
    air: float
    sky_temperature: float
    sun_now: float  # share of each material's ``warmth`` on sunlit faces
    sun_before: float  # share of it that the day left everywhere, times the material's ``keep``
    haze_heat: float  # extinction in 8-14 um, 1/m

    @property
    def sunny(self) -> bool:
        return bool(self.sun.any())

    def gradient(self, height) -> np.ndarray:
        """Radiance (3, n) of the clear sky at heights (n,) from 0, the horizon, to 1."""
        return self.horizon + (self.zenith - self.horizon) * np.clip(height, 0, 1)


def weather(scene: str, condition: str, rng) -> Weather:
    """The weather of one frame; ``rng`` draws the sun's place and small variations."""
    azimuth, height, vary = 2 * math.pi * rng.random(), rng.random(), rng.random()
    if scene == "room":
        ca, sa = turn(0.6 * (azimuth / math.pi - 1) + (1 if vary > 0.5 else -1) * 0.5)
        rise = 0.55 + 0.3 * height
        size = math.sqrt(ca * ca + sa * sa + rise * rise)
        sun_direction = (ca / size, sa / size, rise / size)
    else:
        sun_direction = _street_sun(condition, azimuth, height, vary)
    values = {row["field"]: row[f"{scene} {condition}"] for row in read_table("weather.csv")}
    for name in ("clouds", "haze", "exposure"):  # these differ between frames of one condition
        values[name] += values.pop(f"{name} vary") * vary
    colours = {name: channels(value) for name, value in values.items() if isinstance(value, tuple)}
    return Weather(sun_direction, **values | colours)


def _street_sun(condition: str, azimuth: float, height: float, vary: float) -> tuple:
    """Unit vector towards the sun over a street."""
    swing = azimuth / math.pi - 1  # -1..1
    if condition == "dusk":  # low, ahead of the camera
        azimuth, tilt = 0.7 * swing, math.radians(6 + 9 * height)
    else:  # mostly behind the camera, never along the street, so that trees and houses cast shadows across it
        azimuth = math.copysign((1.75 if vary < 0.7 else 0.75) + 0.75 * abs(swing), swing)
        tilt = math.radians(38 + 20 * height)
    ca, sa = turn(azimuth)
    ct, st = turn(tilt)
    return ct * ca, ct * sa, st
