"""Frames of the sensor world: their physical images, a source of them, and the switchboard of notebook 07,
which looks at them.
"""

from __future__ import annotations

import ipywidgets as widgets
import numpy as np
import torch

from mmlib import world
from mmlib.data.description import Description
from mmlib.modalities import SENSORS
from mmlib.world.sensors import CASE_SENSOR

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

    def _bar(self) -> widgets.Widget:
        bar, conditions = super()._bar(), self.dataset.conditions
        self.condition = widgets.ToggleButtons(
            options=conditions,
            description="light",
            tooltip="time of day and weather",
            tooltips=[f"the scene in {condition} conditions" for condition in conditions],
            style={"description_width": "42px", "button_width": "68px"},
            layout={"width": "400px", "margin": "0 2px"},
        )
        self._follow(condition=self.condition)
        scene, *others = bar.children
        bar.children = scene, self.condition, *others
        return bar

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

    def _refresh(self) -> None:
        super()._refresh()
        self._state["condition"] = self.condition.value
