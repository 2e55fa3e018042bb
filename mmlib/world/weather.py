"""Weather: what each condition means for visible light, near infrared and heat.

``weather`` makes one for a frame. Light fields and heat fields are separate on purpose: switching the light
off changes nothing in the thermal image; night is colder there only because its heat fields say so. Radiance
is in units where a white wall in full sun is about 1.
"""

import math
from dataclasses import dataclass

import numpy as np

from .geometry import turn

CONDITIONS = ("day", "dusk", "night", "fog")


def channels(colour) -> np.ndarray:
    """Three numbers as a (3, 1) float32 array, ready to be multiplied with one value per ray."""
    return np.array(colour, np.float32)[:, None]


@dataclass(frozen=True)
class Weather:
    """All that a condition changes."""

    # visible light
    # unit vector towards the sun (indoors: towards the sun seen through the window)
    sun_direction: tuple = (
        0.0,
        0.0,
        1.0,
    )
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
    else:  # mostly behind the camera, never along the street, so that trees and houses cast shadows across it
        azimuth = math.copysign((1.75 if vary < 0.7 else 0.75) + 0.75 * abs(swing), swing)
        tilt = math.radians(38 + 20 * height)
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
