"""One frame: lay out the scene, look at it, and let each requested sensor take its picture."""

import math
import zlib
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from ..config import AtLeast, Between, check_value
from ..modalities import SENSORS
from . import room, sensors, street
from .geometry import camera_view
from .light import contact_shade, radiance, shadow, sunbeam
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
        modalities: which sensors to render; a sensor's image does not depend on the others asked for.
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
    if not modalities:
        raise ValueError(f"modalities {modalities!r}: expected one or more of {', '.join(ALL)}")
    size = height, width = int(size[0]), int(size[1])
    wanted, n = set(modalities), height * width
    world, air = SCENES[scene](int(seed)), weather(scene, condition, _generator("weather", seed))
    shot = Shot(
        world,
        air,
        size,
        "event" in wanted,
        "lidar" in wanted,
        bool({"rgb", "event", "thermal", "nir"} & wanted),
    )
    light = shot.radiance() if {"rgb", "event", "nir"} & wanted else None
    # of the picture, without the earlier pose
    hits = shot.hits.part(0, n)
    colour = shot.colour[:, :n]
    sun = shot.sun[:n]
    broken = {name: case if CASE_SENSOR.get(case) == name else "" for name in ALL}

    def noise(name):
        return _generator("noise", name, seed, condition, broken.get(name, ""))

    images = {}
    if "rgb" in wanted:
        picture = light[:, :n].reshape(3, *size)
        if supersample > 1:
            fine = Shot(world, air, (height * supersample, width * supersample)).radiance()
            fine = np.minimum(fine.reshape(3, height, supersample, width, supersample), 12 / air.exposure)
            picture = fine.mean((2, 4), dtype=np.float32)
        images["rgb"] = sensors.rgb(picture, air, noise("rgb"), broken["rgb"])
    if "depth" in wanted:
        images["depth"] = sensors.depth(hits, size, air, world.indoor, noise("depth"))
    if "event" in wanted:
        now, before = (
            sensors.log_intensity(part, air).reshape(size) for part in (light[:, :n], light[:, n:])
        )
        images["event"] = sensors.events(before, now, noise("event"), 0.002 * air.noise, broken["event"])
    if "lidar" in wanted:
        images["lidar"] = sensors.lidar(
            sensors.scan(world, shot.echoes, air, noise("lidar"), broken["lidar"]), world.camera, size
        )
    if "thermal" in wanted:
        images["thermal"] = sensors.thermal(
            sensors.temperature(world, hits, air, sun).reshape(size), noise("thermal")
        )
    if "nir" in wanted:
        nir = sensors.near_infrared(
            world, hits, air, colour, light[:, :n], sun, shot.occlusion[:n], noise("nir")
        )
        images["nir"] = nir.reshape(*size, 1)
    if {"dolp", "aolp"} & wanted:
        s1, s2 = (s.reshape(size) for s in sensors.stokes(world, hits, air, colour))
        images["dolp"], images["aolp"] = sensors.polarisation(
            s1, s2, noise("polarisation"), 0.008 * air.noise
        )
    return Frame(
        {name: SENSORS[name].to_stored(images[name]) for name in modalities},
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
    """The scene seen from one camera pose, or the event camera's two, and by the LiDAR, all traced in one go;
    with the sunlight on it.
    """

    def __init__(self, world, air, size, two=False, lidar=False, sunlight=True):
        self.world, self.air, self.size = world, air, size
        views = [camera_view(world.camera, size)]
        # the picture shows time 0; the event camera also saw the scene one step earlier, when it stood
        # further back
        if two:
            (forward, yaw), camera, ahead = world.motion, world.camera, world.camera.axes()[0]
            x, y, z = camera.position
            back = replace(
                camera, position=(x - forward * ahead[0], y - forward * ahead[1], z), yaw=camera.yaw - yaw
            )
            views.append(camera_view(back, size, -1.0))
        hits = look(world, views + [sensors.lidar_view(world)] * lidar)
        n = len(views) * size[0] * size[1]
        colour, glow = surface_colour(world, hits, 1 / (world.camera.focal * size[1]), air, n)
        self.hits = hits.part(0, n)
        self.echoes = hits.part(n, len(hits.t))
        self.colour = colour[:, :n]
        self.glow = glow[:, :n]
        # shares of ambient and direct light that shadows leave
        self.ambient = self.sun = np.ones(n, np.float32)
        daylight = air.sunny or air.sun_now > 0
        if sunlight and (daylight or world.indoor):
            self.sun = shadow(world, self.hits, air, max(1.0, math.sqrt(size[0] * size[1] / 12288)))
        if sunlight and world.indoor:
            self.ambient = 0.5 + 0.5 * self.sun
            if daylight:
                self.sun = self.sun * sunbeam(world.window, air.sun_direction, self.hits.where)

    def radiance(self):
        """Visible radiance (3, N); remembers the ambient occlusion for other sensors."""
        self.occlusion = contact_shade(self.hits.t, self.size) * self.ambient
        return radiance(self.world, self.hits, self.air, self.colour, self.glow, self.sun, self.occlusion)
