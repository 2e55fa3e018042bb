"""Frames of the sensor world: their physical images, a source of them, and the switchboard of notebook 07,
which looks at them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ipywidgets as widgets
import numpy as np
import torch

from mmlib import world
from mmlib.data.description import Description
from mmlib.modalities import SENSORS
from mmlib.world.sensors import CASE_SENSOR

from .panel import control
from .switchboard import SwitchboardPanel

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


def network_batch(network, physical: Mapping, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """Physical images name -> (C, H, W), as a network takes them: a batch of one, of ``names`` or of all that
    are there.
    """
    present = physical if names is None else names
    return {
        name: sensor.to_network(torch.as_tensor(physical[name]))[None].float()
        for name, sensor in network.modalities.items()
        if name in present
    }


class WorldSource:
    """Scenes that are rendered when they are looked at. ``scene``: "street" or "room"."""

    # Scene 0 lies far from the rendered data set, so no network was trained on these scenes.
    first_seed, count, size, modalities = 1_900_000_000, 40, (96, 128), SENSORS

    def __init__(self, scene: str = "street"):
        self.scene, self.classes, self.palette = scene, list(world.CLASSES[scene]), world.PALETTES[scene]
        self.description = Description(scene, self.classes, self.palette, SENSORS)
        self.conditions = tuple(world.SCENE_CONDITIONS[scene])
        self.cases = {
            name: {case: CASE_WORDS[case] for case, sensor in CASE_SENSOR.items() if sensor == name}
            for name in SENSORS
        }

    def __len__(self) -> int:
        return self.count

    def frame(self, index: int, condition: str, case: str, names: tuple[str, ...]) -> tuple[dict, np.ndarray]:
        """Physical images name -> (C, H, W) of the sensors ``names``, and the label (H, W)."""
        frame = world.render_frame(self.scene, self.first_seed + index, condition, case, self.size, names)
        return physical_images(frame), frame.label


class WorldPanel(SwitchboardPanel):
    """The switchboard over rendered scenes: with the light to choose, and with failures of sensors that are
    rendered, not painted onto the picture.

    Args:
        segmenters: what to call it -> trained network.
        source: a ``WorldSource``, or anything with its attributes and ``frame``.

    ``state()`` has the condition, too.
    """

    def __init__(self, segmenters, source):
        self.cases = source.cases
        super().__init__(segmenters, source)

    def scenarios(self) -> dict[str, dict]:
        calm, *rest = self.dataset.conditions
        alone = next(reversed(self.sensors))
        scenarios = {
            "all well": {"condition": calm},
            "night": {"condition": "night"},
            "fog, no LiDAR": {"condition": "fog", "lidar": {"on": False}},
            "black camera": {"condition": calm, "rgb": {"gain": 0.0}},
            "the camera lies": {"condition": calm, "rgb": {"case": "other"}},
            "depth drifts": {"condition": calm, "depth": {"case": "shift"}},
            "night, noisy camera": {"condition": "night", "rgb": {"noise": 0.2}},
            f"only {alone}": {"condition": calm} | {name: {"on": name == alone} for name in self.sensors},
        }
        known = {"condition", *self.sensors}
        return {
            name: settings
            for name, settings in scenarios.items()
            if settings["condition"] in (calm, *rest) and known.issuperset(settings)
        }

    def _tools(self) -> widgets.Widget:
        tools = super()._tools()
        self.condition = control(
            widgets.Dropdown,
            "light",
            "light: time of day and weather",
            "1 1 110px",
            options=self.dataset.conditions,
        )
        self._follow(condition=self.condition)
        scene, *others = tools.children
        tools.children = scene, self.condition, *others
        return tools

    def _place(self) -> tuple:
        return self.scene.value, self.condition.value

    def _frame(self, index: int, condition: str, case: str = "", names: tuple = ()) -> tuple:
        images, label = self.dataset.frame(index, condition, case, names or tuple(self.sensors))
        return {name: torch.as_tensor(image) for name, image in images.items()}, torch.as_tensor(label).long()

    def _image(self, place: tuple, name: str, case: str) -> torch.Tensor:
        """Without a failure all sensors come from one rendering; a failure renders its own sensor again."""
        if case not in self.cases.get(name, {}):
            return super()._image(place, name, case)
        return self._frames(*place, case, (name,))[0][name]

    def state(self) -> dict:
        return super().state() | {"condition": self.condition.value}
