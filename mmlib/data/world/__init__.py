"""The sensor world: procedural street and room scenes, ray-cast, with one physical sensor model per modality. See ``render_frame``."""

from .dataset import ensure, render_dataset
from .render import ALL, CLASSES, CONDITIONS, FAILURES, PALETTES, SCENE_CONDITIONS, Frame, render_frame

__all__ = ["ALL", "CLASSES", "CONDITIONS", "FAILURES", "PALETTES", "SCENE_CONDITIONS", "Frame", "ensure", "render_dataset", "render_frame"]
