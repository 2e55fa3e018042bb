"""One frame: lay out the scene, look at it, and let each requested sensor take its picture."""

import math
import zlib
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Annotated, Literal

import numpy as np

from ..config import AtLeast, Between, check_value
from ..modalities import SENSORS
from . import room, sensors, street
from .geometry import camera_view
from .light import contact_shade, radiance, shadow
from .looks import surface_colour
from .sensors import CASE_SENSOR, FAILURES
from .surfaces import look
from .weather import CONDITIONS, weather

ALL = tuple(SENSORS)
SCENES = {"street": street.layout, "room": room.layout}
SCENE_CONDITIONS = {"street": CONDITIONS, "room": ("day", "dusk", "night")}  # there is no fog indoors
Size = Annotated[tuple[int, int], Between(32, 2048)]  # height and width in pixels


@dataclass
class Frame:
    """One rendered sample: what the sensors stored, and the truth behind it."""

    images: dict[str, np.ndarray]  # name -> (H, W, C) in the modality's stored dtype
    label: np.ndarray  # (H, W) uint8
    depth: np.ndarray  # (H, W) float32, metres along the optical axis, inf = sky
    normal: np.ndarray  # (H, W, 3) float32, world axes (x forward, y left, z up), 0 = sky
    material: np.ndarray  # (H, W) uint8, index into materials.MATERIALS


def _generator(*parts) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(p.encode()) if isinstance(p, str) else int(p) for p in parts])


def render_frame(
    scene: str,
    seed: int,
    condition: str = "day",
    case: str = "",
    size=(96, 128),
    modalities=ALL,
    supersample: int = 1,
) -> Frame:
    """Render one frame. The same arguments give the same labels on any CPU, and the same images up to the
    last bit of exp and log.

    Args:
        scene: "street" or "room".
        seed: non-negative integer; fixes the scene. Conditions and cases of one seed show the same scene and
            have equal labels.
        condition: "day", "dusk", "night" or, outdoors only, "fog".
        case: "" or a sensor failure: "motionblur", "overexposure", "underexposure" (rgb), "lidarjitter"
            (lidar), "eventlowres" (event).
        size: (height, width) in pixels.
        modalities: which sensors to render, none for the truth alone; a sensor's image does not depend on the
            others asked for.
        supersample: rays per pixel and axis for the RGB picture (3 for figures); truth and the other sensors
            keep one ray per pixel.

    Raises:
        ValueError: an argument is not allowed; the message lists what is.
    """
    check_value("scene", scene, Literal[tuple(SCENES)])
    check_value(f"condition of a {scene}", condition, Literal[SCENE_CONDITIONS[scene]])
    check_value("case", case, Literal["", *FAILURES])
    check_value("modalities", modalities, tuple[Literal[ALL], ...])
    check_value("size", size, Size)
    check_value("seed", seed, Annotated[int, AtLeast(0)])
    check_value("supersample", supersample, Annotated[int, Between(1, 8)])
    size = height, width = tuple(map(int, size))
    world, air = SCENES[scene](int(seed)), weather(scene, condition, _generator("weather", seed))
    shot = Shot(world, air, size, "event" in modalities, "lidar" in modalities)
    # of the picture, without the earlier pose
    now = slice(height * width)
    hits = shot.hits.part(0, height * width)
    colour = shot.colour[:, now]

    def noise(name):
        failure = case if CASE_SENSOR.get(case) == name else ""
        return _generator("noise", name, seed, condition, failure)

    @cache
    def polarisation():
        s1, s2 = (s.reshape(size) for s in sensors.stokes(world, hits, air, colour))
        return sensors.polarisation(s1, s2, noise("polarisation"), 0.008 * air.noise)

    def picture(name):
        """The image of one sensor in physical units."""
        match name:
            case "rgb":
                light = shot.radiance[:, now].reshape(3, *size)
                if supersample > 1:
                    fine = Shot(world, air, (height * supersample, width * supersample)).radiance
                    fine = fine.reshape(3, height, supersample, width, supersample)
                    light = np.minimum(fine, 12 / air.exposure).mean((2, 4), dtype=np.float32)
                return sensors.rgb(light, air, noise(name), case)
            case "depth":
                return sensors.depth(hits, size, air, world.indoor, noise(name))
            case "event":
                poses = np.split(shot.radiance, 2, 1)
                after, before = (sensors.log_intensity(light, air).reshape(size) for light in poses)
                return sensors.events(before, after, noise(name), 0.002 * air.noise, case)
            case "lidar":
                points = sensors.scan(world, shot.echoes, air, noise(name), case)
                return sensors.lidar(points, world.camera, size)
            case "thermal":
                heat = sensors.temperature(world, hits, air, shot.sun[now])
                return sensors.thermal(heat.reshape(size), noise(name))
            case "nir":
                light, sun, occlusion = shot.radiance[:, now], shot.sun[now], shot.occlusion[now]
                nir = sensors.near_infrared(world, hits, air, colour, light, sun, occlusion, noise(name))
                return nir.reshape(*size, 1)
            case "dolp" | "aolp":
                return polarisation()[name == "aolp"]

    return Frame(
        {name: SENSORS[name].to_stored(picture(name)) for name in modalities},
        hits.label.reshape(size),
        hits.t.reshape(size),
        np.ascontiguousarray(hits.normal.T).reshape(*size, 3),
        hits.material.reshape(size),
    )


def render_row(row, scene, size, modalities):
    """What a process that renders a data set does: a row, and its images and label. It lives here, where
    nothing imports torch.
    """
    frame = render_frame(scene, row["seed"], row["condition"], row["case"], size, modalities)
    return row, frame.images, frame.label


class Shot:
    """The scene seen from one camera pose, or the event camera's two, and by the LiDAR, all traced in one go.
    The light that falls on it is worked out when a sensor first asks for it.
    """

    def __init__(self, world, air, size, two=False, lidar=False):
        self.size = size
        views = [camera_view(world.camera, size)]
        # the picture shows time 0; the event camera also saw the scene one step earlier, when it stood
        # further back
        if two:
            (forward, yaw), camera, ahead = world.motion, world.camera, world.camera.axes()[0]
            x, y, z = camera.position
            position = x - forward * ahead[0], y - forward * ahead[1], z
            views.append(camera_view(replace(camera, position=position, yaw=camera.yaw - yaw), size, -1.0))
        hits = look(world, views + [sensors.lidar_view(world)] * lidar)
        n = len(views) * size[0] * size[1]
        colour, glow = surface_colour(world, hits, 1 / (world.camera.focal * size[1]), air, n)
        self.hits, self.echoes = hits.part(0, n), hits.part(n, len(hits.t))
        self.colour, self.glow, self.scene = colour[:, :n], glow[:, :n], (world, self.hits, air)

    @cached_property
    def sun(self):
        """Share of the sun's light (N,) that arrives."""
        return self.shares[1]

    @cached_property
    def shares(self):
        """Shares of ambient and of direct light that arrive."""
        detail = max(1.0, math.sqrt(self.size[0] * self.size[1] / 12288))
        return shadow(*self.scene, detail)

    @cached_property
    def occlusion(self):
        """Share of ambient light (N,) that arrives."""
        return contact_shade(self.hits.t, self.size) * self.shares[0]

    @cached_property
    def radiance(self):
        """Visible radiance (3, N)."""
        return radiance(*self.scene, self.colour, self.glow, self.sun, self.occlusion)
