"""Frames of the sensor world: their physical images, and a source of them for the switchboard of notebook 05."""

from __future__ import annotations

import numpy as np

from mmlib import world
from mmlib.modalities import SENSORS
from mmlib.world.sensors import CASE_SENSOR

CASE_WORDS = {
    "motionblur": "motion blur",
    "overexposure": "over-exposure",
    "underexposure": "under-exposure",
    "lidarjitter": "jitter",
    "eventlowres": "low resolution",
}


def physical_images(frame) -> dict[str, np.ndarray]:
    """Stored images of a rendered frame, name -> (H, W, C), as physical values (C, H, W) float32."""
    return {name: SENSORS[name].to_physical(image).transpose(2, 0, 1) for name, image in frame.images.items()}


class WorldSource:
    """What ``SwitchboardPanel`` asks of a source, rendered when it is looked at. ``scene``: "street" or "room"."""

    # Scene 0 lies far from the rendered data set, so no network was trained on these scenes.
    first_seed, count, size, modalities = 1_900_000_000, 40, (96, 128), SENSORS

    def __init__(self, scene: str = "street"):
        self.scene, self.classes, self.palette = scene, list(world.CLASSES[scene]), world.PALETTES[scene]
        self.conditions = tuple(world.SCENE_CONDITIONS[scene])
        self.cases = {
            name: {case: CASE_WORDS[case] for case, sensor in CASE_SENSOR.items() if sensor == name}
            for name in SENSORS
        }

    def frame(self, index: int, condition: str, case: str, names: tuple[str, ...]) -> tuple[dict, np.ndarray]:
        """Physical images name -> (C, H, W) of the sensors ``names``, and the label (H, W)."""
        frame = world.render_frame(self.scene, self.first_seed + index, condition, case, self.size, names)
        return physical_images(frame), frame.label
