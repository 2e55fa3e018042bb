"""Where in an image a sensor's information comes from, under a slider for the width of the noise. Notebook 03
shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import ipywidgets as widgets
import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from mmlib.figures import picture, picture_grid, sensor_title
from mmlib.segmentation.information import exact, mean_cross_entropy, noisy

from .panel import Panel, image_html
from .world_source import network_batch

DECADES = 2.0  # maps run from 1/100 to 100 times the mean


def prepared(network, images: Mapping[str, np.ndarray], label: np.ndarray) -> tuple[dict, Tensor]:
    """Physical images name -> (C, H, W) and a label (H, W) as the network takes them, a batch of one."""
    return network_batch(network, images), torch.as_tensor(label).long()[None]


def information_maps(network, images: dict, label: Tensor, sigma: float) -> tuple[dict, dict, float]:
    """What each pixel of each sensor adds to σ² N ‖∇_i f‖² / f (Eq. 6), f the cross-entropy at a noisy image.

    Returns:
        (maps name -> (H, W), whose sum is the sensor's information; noisy images name -> (C, H, W); f).
    """
    with torch.enable_grad(), exact(label.device, network):
        z = noisy(images, sigma, seed=0)
        f, pixels = mean_cross_entropy(network(z), label)
        gradients = torch.autograd.grad(f.sum(), [*z.values()])
    scale = sigma**2 * float(pixels) / f.item()
    maps = {name: scale * g[0].square().sum(0).numpy() for name, g in zip(z, gradients)}
    return maps, {name: image.detach()[0] for name, image in z.items()}, f.item()


class InformationPanel(Panel):
    """Each sensor as the network sees it under noise, and below it where its information comes from.

    The maps' colours are fixed: from 1/100 to 100 times the mean over all pixels of all sensors.

    Args:
        networks: what to call it -> trained network.
        source: a ``world_source.WorldSource``; scene: which of its scenes.

    ``state()`` has network, light, sigma, information (by sensor), loss, gap and error.
    """

    def __init__(self, networks: Mapping[str, torch.nn.Module], source, scene: int = 0):
        super().__init__("1080px")
        self.networks, self.source, self.scene, self._drawn = dict(networks), source, scene, {}
        self._maps = lru_cache(maxsize=64)(self._compute)
        self.network = widgets.ToggleButtons(
            options=list(networks), tooltip="which network", style={"button_width": "150px"}
        )
        self.light = widgets.ToggleButtons(
            options=source.conditions, tooltip="time of day and weather", style={"button_width": "64px"}
        )
        self.sigma = widgets.FloatLogSlider(
            0.1,
            min=-2,
            max=0,
            step=0.1,
            readout_format=".2f",
            description="noise σ",
            tooltip="standard deviation of the noise, in units of each sensor's own spread",
            layout={"width": "98%", "max_width": "460px"},
        )
        self.pictures = widgets.HTML()
        self._follow(network=self.network, light=self.light, sigma=self.sigma)
        row = {"display": "flex", "flex_flow": "row wrap", "width": "100%", "overflow": "hidden"}
        tools = widgets.Box([self.network, self.light, self.sigma], layout=row)
        self.children = [self.pictures, self.status, tools]
        self.refresh()

    def __repr__(self) -> str:  # constant: what a notebook stores and compares
        return f"InformationPanel(networks={' | '.join(self.networks)})"

    def _compute(self, name: str, light: str, sigma: float) -> tuple[dict, dict, float]:
        network = self.networks[name]
        images, label = self.source.frame(self.scene, light, "", tuple(network.modalities))
        return information_maps(network, *prepared(network, images, label), sigma)

    def _refresh(self) -> None:
        network = self.networks[self.network.value]
        sigma = self.sigma.value
        maps, z, loss = self._maps(self.network.value, self.light.value, sigma)
        information = {name: float(values.sum()) for name, values in maps.items()}
        whole = sum(information.values())
        mean = whole / sum(values.size for values in maps.values())
        cells, self._drawn = "", {}
        for name, values in maps.items():
            sensor = network.modalities[name]
            seen = picture(sensor, sensor.from_network(z[name]).numpy())
            colours = colour_map(values / mean)
            share = information[name] / whole
            title = sensor_title(sensor)
            self._drawn[title] = seen, colours, share
            words = f"<b>{title}</b><br>I = {information[name]:.3g}<br>{100 * share:.0f} % of all"
            cells += '<div style="flex:1 1 150px;min-width:0;max-width:265px">'
            cells += image_html(seen, f"{title} with noise of σ = {sigma:.2f}")
            cells += image_html(
                colours, f"where the information of {title} comes from, {information[name]:.3g} in all", words
            )
            cells += "</div>"
        self.pictures.value = f'<div style="display:flex;flex-wrap:wrap;gap:4px">{cells}</div>'
        gap = max(information.values()) / min(information.values())
        self._state = {
            "network": self.network.value,
            "light": self.light.value,
            "sigma": sigma,
            "information": information,
            "loss": loss,
            "gap": gap,
            "error": "",
        }
        self._say(
            f"Cross-entropy {loss:.3f}; information of all sensors {whole:.3g}; Fisher gap {gap:.1f}. "
            "Dark: 1/100 of the mean pixel or less, bright: 100 times it."
        )

    def figure(self) -> plt.Figure:
        rows = [{title: parts[k] for title, parts in self._drawn.items()} for k in (0, 1)]
        shares = ", ".join(f"{title[0]} {100 * share:.0f} %" for title, (_, _, share) in self._drawn.items())
        title = f"{self.light.value}, {self.network.value}, σ = {self.sigma.value:.2f}; information: {shares}"
        return picture_grid(rows, ["with noise", "information"], title)


def colour_map(ratio: np.ndarray) -> np.ndarray:
    """(H, W) multiples of the mean -> colours (H, W, 3), logarithmic and fixed."""
    level = (np.log10(np.maximum(ratio, 1e-12)) + DECADES) / (2 * DECADES)
    return (255 * matplotlib.colormaps["inferno"](level.clip(0, 1))[..., :3]).astype(np.uint8)
