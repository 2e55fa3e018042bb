"""What all slider panels share: they redraw once for several changes, say what they show, and never raise
inside a callback.

A panel is built from widgets that own their content, so that it can be tested without a browser, compares
stably in a notebook, and carries an alternative text that follows what it shows. What went wrong is written
where the result would stand.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape

import ipywidgets as widgets
import numpy as np
from PIL import Image

from .data.prepared import PreparedDataset
from .modalities import SENSORS

FAMILY = "font-family:var(--jp-ui-font-family,sans-serif);font-size:13px;line-height:1.35"


def png_bytes(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def image_html(image: np.ndarray, alt: str, caption: str = "") -> str:
    """An <img> that fills its place without smoothing; its size is stated, so that the page does not jump
    when it changes.
    """
    data = base64.b64encode(png_bytes(image)).decode()
    height, width = image.shape[:2]
    below = f'<div style="{FAMILY};text-align:center;min-height:4.05em">{caption}</div>' if caption else ""
    return (
        f'<img alt="{escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}" '
        f'style="width:100%;height:auto;max-width:none;image-rendering:pixelated;display:block;border:1px solid #d9d9d9">{below}'
    )


class Panel(widgets.VBox):
    """A subclass makes its controls, gives those that redraw to ``_follow``, and fills ``_state`` and its
    widgets in ``_refresh``.
    """

    def __init__(self, max_width: str):
        self._state, self._quiet, self.status = {}, False, widgets.HTML()
        super().__init__(layout=widgets.Layout(width="100%", max_width=max_width))

    def _follow(self, *controls: widgets.Widget) -> None:
        """Redraw whenever one of these changes."""
        for control in controls:
            control.observe(lambda change: None if self._quiet else self.refresh(), "value")

    def _assign(self, values: Iterable[tuple[widgets.Widget, object]]) -> dict:
        """Set each control to its value, redraw once and return ``state()``."""
        self._quiet = True
        try:
            for control, value in values:
                control.value = value
        finally:
            self._quiet = False
        self.refresh()
        return self.state()

    def refresh(self) -> None:
        """Bring every picture and number in step with the controls."""
        try:
            self._refresh()
        except (
            Exception
        ) as error:  # a callback that raises would leave the old picture standing beside the new sliders
            self._state["error"] = f"{type(error).__name__}: {error}"
            self._say(f"Could not update: {escape(self._state['error'])}", "#B00020")

    def state(self) -> dict:
        """What is shown now."""
        return dict(self._state)

    def _say(self, html: str, colour: str = "inherit") -> None:
        """Write the line of the status, which screen readers speak."""
        style = f"{FAMILY};color:{colour};min-height:1.6em;padding:4px 2px"
        self.status.value = f'<div role="status" aria-live="polite" style="{style}">{html}</div>'


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
        from . import world
        from .world.sensors import CASE_SENSOR

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
