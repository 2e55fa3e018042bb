"""A flat-coloured stand-in for the rendered world, for tests of figures and panels that must not wait for a
renderer.
"""

from dataclasses import dataclass

import numpy as np

from mmlib.modalities import SENSORS

CLASSES = ["sky", "road", "building", "car"]
PALETTE = [(70, 130, 180), (128, 64, 128), (70, 70, 70), (0, 0, 142)]
CONDITIONS = ("day", "dusk", "night", "fog")


@dataclass
class Frame:
    images: dict
    label: np.ndarray


def render_frame(
    scene="street", seed=0, condition="day", case="", size=(48, 64), modalities=tuple(SENSORS)
) -> Frame:
    """Road below, sky above, a building and a car at places that depend on ``seed``; every sensor of
    ``mmlib.modalities``.
    """
    height, width = size
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    label[height // 2 :] = 1
    left, car = rng.integers(2, width // 3), rng.integers(width // 3, width - 16)
    label[height // 6 : height // 2 + 3, left : left + width // 3] = 2
    label[height // 2 : height // 2 + 12, car : car + 12] = 3
    light = {"day": 1.0, "dusk": 0.6, "night": 0.1, "fog": 0.8}[condition] * {"underexposure": 0.3}.get(
        case, 1
    )
    rows = np.arange(height)[:, None] * np.ones((1, width))
    distance = np.where(label == 1, 200 / np.maximum(rows - height / 2 + 2, 1), 25.0)
    distance[label == 3] = 8
    distance[label == 0] = 0  # no return
    edges = (np.diff(label.astype(int), axis=1, prepend=label[:, :1].astype(int)) != 0).astype(float)
    rings = (rows % 4 == 0) & (np.arange(width) % 2 == 0) & (distance > 0) & (case != "lidarjitter")
    colours = np.array([(0.5, 0.7, 0.9), (0.4, 0.4, 0.4), (0.6, 0.5, 0.4), (0.7, 0.1, 0.1)])
    angle = rows / height * np.pi
    physical = {
        "rgb": colours[label] * light + rng.normal(0, 0.02, (*size, 3)),
        "depth": distance[..., None],
        "event": np.stack([edges * 3, np.roll(edges, 1, 1) * 3], -1) * (case != "eventlowres"),
        "lidar": np.stack([distance, distance * 0 + 1, distance * 0.1], -1) * rings[..., None],
        "thermal": np.array([-2.0, 15.0, 18.0, 35.0])[label][..., None],
        "nir": colours[label].mean(-1, keepdims=True) * light,
        "dolp": np.where(label == 3, 0.6, 0.1)[..., None],
        "aolp": np.stack([np.cos(2 * angle), np.sin(2 * angle)], -1),
    }
    return Frame(
        {name: SENSORS[name].to_stored(np.maximum(physical[name], -1e6)) for name in modalities}, label
    )
