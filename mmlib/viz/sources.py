"""Where a panel's frames come from: scenes rendered on demand, or the samples of a data set."""

from __future__ import annotations

import numpy as np

from ..data.prepared import PreparedDataset
from ..modalities import SENSORS


class WorldSource:
    """Frames of the sensor world, rendered when they are looked at.

    Args:
        scene: "street" or "room".
        first_seed: seed of scene 0. The default lies far from those of the rendered data set, so no network
            has seen these scenes.
        count: number of scenes on offer.
    """

    def __init__(
        self,
        scene: str = "street",
        first_seed: int = 1_900_000_000,
        count: int = 40,
        size: tuple[int, int] = (96, 128),
    ):
        from .. import world
        from ..world.sensors import CASE_SENSOR

        self.scene, self.first_seed, self.count, self.size, self._render = (
            scene,
            first_seed,
            count,
            size,
            world.render_frame,
        )
        self.classes, self.palette, self.modalities = (
            list(world.CLASSES[scene]),
            world.PALETTES[scene],
            SENSORS,
        )
        self.conditions = tuple(world.SCENE_CONDITIONS[scene])
        self.cases = {
            name: tuple(case for case in world.FAILURES if CASE_SENSOR[case] == name) for name in SENSORS
        }

    def frame(self, index: int, condition: str, case: str, names: tuple[str, ...]) -> tuple[dict, np.ndarray]:
        """Physical images name -> (C, H, W) of the sensors ``names``, and the label (H, W)."""
        frame = self._render(self.scene, self.first_seed + index, condition, case, self.size, names)
        return {
            name: self.modalities[name].to_physical(image).transpose(2, 0, 1)
            for name, image in frame.images.items()
        }, frame.label


class DatasetSource:
    """The samples of a prepared data set, as they lie on disk: no live conditions, no failure cases."""

    def __init__(self, dataset: PreparedDataset):
        self.dataset, self.count, self.modalities = dataset, len(dataset), dataset.modalities
        self.classes, self.palette = dataset.description.classes, dataset.description.palette
        self.conditions, self.cases = (), {}

    def frame(self, index: int, condition: str, case: str, names: tuple[str, ...]) -> tuple[dict, np.ndarray]:
        images, label = self.dataset.physical(index)
        return {name: images[name] for name in names}, np.asarray(label)
