"""The sensor world: procedural street and room scenes, ray-cast, with one physical sensor model per modality.
See ``render_frame``.
"""

from .props import CLASSES, PALETTES
from .render import ALL, CONDITIONS, FAILURES, SCENE_CONDITIONS, Frame, render_frame

__all__ = [
    "ALL",
    "CLASSES",
    "CONDITIONS",
    "FAILURES",
    "PALETTES",
    "SCENE_CONDITIONS",
    "Frame",
    "ensure",
    "render_dataset",
    "render_frame",
]


def __getattr__(name):
    # Only now, because data sets need torch, which takes seconds to import; frames do not.
    if name in ("ensure", "render_dataset"):
        from . import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
