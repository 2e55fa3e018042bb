"""The modality switchboard: dim, break or remove sensors under sliders, and watch what a trained segmenter
predicts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from html import escape

import ipywidgets as widgets
import numpy as np
import torch
import torch.nn.functional as F

from .data.missing import degrade, faulty
from .evaluation.counts import accuracy, confusion_matrix, iou, miou
from .evaluation.fusion import RULES, fuse, weights
from .figures import error_picture, label_picture, picture, sensor_title
from .modalities import SENSORS, Modality
from .panel import FAMILY, Panel, image_html
from .segmentation.network import Segmenter

CASE_NAMES = {
    "": "none",
    "motionblur": "motion blur",
    "overexposure": "over-exposure",
    "underexposure": "under-exposure",
    "lidarjitter": "jitter",
    "eventlowres": "low resolution",
    "shift": "shifted by 1/8",
    "blur": "blurred 16 times",
    "blank": "stuck at its mean",
    "other": "another scene",
}
FAULTS = ("shift", "blur", "blank", "other")  # of mmlib.data.missing, gross; "dark" and "noise" have sliders
NOTHING_LEFT = (
    "No sensor is switched on: there is nothing to average, so there is no prediction. Switch one on."
)


class Recent:
    """Remember the last ``size`` results of a function of hashable arguments."""

    def __init__(self, function: Callable, size: int):
        self.function, self.size, self.kept = function, size, OrderedDict()

    def __call__(self, *key):
        if key not in self.kept:
            self.kept[key] = self.function(*key)
            if len(self.kept) > self.size:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


def _share_slider(value: float, description: str, tooltip: str) -> widgets.FloatSlider:
    """A slider from 0 to 1 that reports when it is let go, so that a drag does not queue up redraws."""
    return widgets.FloatSlider(
        value,
        min=0,
        max=1,
        step=0.05,
        description=description,
        tooltip=tooltip,
        continuous_update=False,
        readout_format=".2f",
        style={"description_width": "42px"},
        layout=widgets.Layout(width="auto", margin="0 2px"),
    )


class SwitchboardPanel(Panel):
    """Dim, break or remove each sensor, choose how the sensors are fused, and watch what is predicted.

    Args:
        segmenters: what to call it -> trained network; one or two, shown side by side. All predict
            ``source.classes``.
        source: a ``WorldSource`` or ``DatasetSource`` (mmlib.panel), or anything with their attributes
            and ``frame``.
        present: names of the sensors that are on at the start; all by default.

    A sensor's image is encoded again only when that sensor changed: the panel keeps each sensor's logits and
    fuses those of the sensors that are on, by default with their mean (Eq. 5), which is what
    ``Segmenter.forward`` does. Each card shows the weight that the sensor has in each network's fusion.
    """

    def __init__(self, segmenters: Mapping[str, Segmenter], source, present: tuple[str, ...] | None = None):
        super().__init__("1100px")
        self.segmenters, self.source = dict(segmenters), source
        if not self.segmenters:
            raise ValueError(
                "SwitchboardPanel needs at least one segmenter: {'trained': load_segmenter(path)}"
            )
        for name, segmenter in self.segmenters.items():
            if list(segmenter.classes) != list(source.classes):
                raise ValueError(
                    f"{name!r} predicts {len(segmenter.classes)} classes, the frames have {len(source.classes)}; "
                    "use a network trained on data of this kind"
                )
        known = {name: m for s in self.segmenters.values() for name, m in s.modalities.items()}
        self.sensors: dict[str, Modality] = {
            n: known[n]
            for n in sorted(known, key=lambda n: (list(SENSORS).index(n) if n in SENSORS else 99, n))
        }
        if missing := set(self.sensors) - set(source.modalities):
            raise ValueError(
                f"the frames have no {', '.join(sorted(missing))}; they have {', '.join(source.modalities)}"
            )
        self._frames = Recent(source.frame, 64)
        self._looks = Recent(self._look, 24 * len(self.sensors))
        self._build(present or tuple(self.sensors))
        self.children = [self.bar, self.cards, self.status, self.results]
        self.refresh()

    def __repr__(self) -> str:  # short and constant: what a notebook stores and compares
        return f"SwitchboardPanel(sensors={''.join(m.symbol for m in self.sensors.values())}, networks={' | '.join(self.segmenters)})"

    # ---- widgets ----

    def _build(self, present: tuple[str, ...]) -> None:
        style, full = {"description_width": "42px"}, widgets.Layout(width="auto", margin="0 2px")
        self.scene = widgets.IntSlider(
            0,
            0,
            max(self.source.count - 1, 0),
            description="scene",
            continuous_update=False,
            style=style,
            tooltip="which scene to look at",
            layout=widgets.Layout(width="300px"),
        )
        self.condition = widgets.ToggleButtons(
            options=self.source.conditions or ("as recorded",),
            description="light",
            style=style | {"button_width": "68px"},
            layout=widgets.Layout(width="400px"),
            tooltips=[f"the scene in {c} conditions" for c in self.source.conditions],
            tooltip="time of day and weather",
        )
        self.condition.disabled = not self.source.conditions
        self.reset = widgets.Button(
            description="reset sensors",
            tooltip="all sensors on, untouched",
            layout=widgets.Layout(width="120px"),
        )
        self.reset.on_click(lambda _: self.set(**{name: {} for name in self.sensors}))
        self.fusion = widgets.Dropdown(
            options=[rule for rule in RULES if rule != "total"],
            description="fusion",
            style=style,
            layout=widgets.Layout(width="170px"),
            tooltip="how the predictions of the sensors are put together",
        )
        self.show = widgets.Dropdown(
            options=("classes", "errors"),
            description="show",
            style=style,
            layout=widgets.Layout(width="150px"),
            tooltip="the predicted classes, or which pixels are wrong",
        )
        self.bar = widgets.HBox(
            [self.scene, self.condition, self.fusion, self.show, self.reset],
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        self.switch, self.gain, self.noise, self.case, self.view, self.weight, cards = (
            {},
            {},
            {},
            {},
            {},
            {},
            [],
        )
        for name, m in self.sensors.items():
            title = sensor_title(m)
            self.switch[name] = widgets.Checkbox(
                name in present,
                description=f"{title} on",
                indent=False,
                tooltip=f"pass {name} on to the network",
                layout=full,
            )
            self.gain[name] = _share_slider(1.0, "gain", f"{name} gain: 1 = untouched, 0 = black")
            self.noise[name] = _share_slider(
                0.0, "noise", f"{name} noise: standard deviation as a share of the range"
            )
            cases = (
                "",
                *self.source.cases.get(name, ()),
                *(f for f in FAULTS if f != "other" or self.source.count > 1),
            )
            self.case[name] = widgets.Dropdown(
                options=[(CASE_NAMES.get(c, c), c) for c in cases],
                description="failure",
                tooltip=f"how {name} fails",
                style=style,
                layout=full,
            )
            self.view[name], self.weight[name] = widgets.HTML(), widgets.HTML()
            controls = [
                self.switch[name],
                self.view[name],
                self.gain[name],
                self.noise[name],
                self.case[name],
                self.weight[name],
            ]
            cards.append(
                widgets.VBox(
                    controls,
                    layout=widgets.Layout(border_top=f"4px solid {m.colour}", padding="2px", min_width="0"),
                )
            )
        of_sensors = [
            control for group in (self.switch, self.gain, self.noise, self.case) for control in group.values()
        ]
        self._follow(self.scene, self.condition, self.fusion, self.show, *of_sensors)
        columns = min(4, len(cards))
        self.cards = widgets.GridBox(
            cards,
            layout=widgets.Layout(grid_template_columns=f"repeat({columns}, minmax(0, 1fr))", grid_gap="8px"),
        )
        self.truth, self.bars = widgets.HTML(), widgets.HTML()
        self.prediction = {name: widgets.HTML() for name in self.segmenters}
        shares = f"repeat({1 + len(self.segmenters)}, minmax(0, 1fr)) minmax(0, {1 + 0.5 * len(self.segmenters)}fr)"
        self.results = widgets.GridBox(
            [self.truth, *self.prediction.values(), self.bars],
            layout=widgets.Layout(grid_template_columns=shares, grid_gap="8px", align_items="flex-start"),
        )

    def set(
        self,
        scene: int | None = None,
        condition: str | None = None,
        fusion: str | None = None,
        show: str | None = None,
        **sensors: dict,
    ) -> None:
        """Set everything at once and redraw once: ``panel.set(condition="night", rgb={"on": False},
        depth={"gain": 0.5})``.

        A sensor that is named takes on=True, gain=1, noise=0, case="" for what its dict leaves out.

        Raises:
            ValueError: a sensor that the panel does not have, or a setting that no sensor has.
        """
        for name, wanted in sensors.items():
            if name not in self.sensors or set(wanted) - {"on", "gain", "noise", "case"}:
                raise ValueError(
                    f"{name}={wanted}: expected a sensor of {', '.join(self.sensors)} and a dict of on, gain, noise, case"
                )
        values = ((self.scene, scene), (self.condition, condition), (self.fusion, fusion), (self.show, show))
        values = [(control, value) for control, value in values if value is not None]
        for name, wanted in sensors.items():
            wanted = {"on": True, "gain": 1.0, "noise": 0.0, "case": ""} | wanted
            groups = ((self.switch, "on"), (self.gain, "gain"), (self.noise, "noise"), (self.case, "case"))
            values += [(group[name], wanted[key]) for group, key in groups]
        self._assign(values)

    # ---- what the widgets ask for ----

    def _look(
        self, index: int, condition: str, name: str, case: str, gain: float, noise: float
    ) -> tuple[np.ndarray, dict]:
        """One sensor as it is set: its picture, and its logits (1, K, h, w) from every network that knows it."""
        # Without a failure all sensors come from one rendering; a failure of the source's own renders its
        # sensor again.
        own, every = case if case not in FAULTS else "", tuple(self.sensors)
        physical = torch.as_tensor(self._frames(index, condition, own, (name,) if own else every)[0][name])
        if case in FAULTS:
            elsewhere = (index + self.source.count // 2) % self.source.count
            other = (
                torch.as_tensor(self._frames(elsewhere, condition, "", every)[0][name])
                if case == "other"
                else None
            )
            physical = faulty(physical, self.sensors[name], case, "gross", other)
        physical = degrade(physical, self.source.modalities[name], gain, noise, seed=index)
        logits = {}
        for label, segmenter in self.segmenters.items():
            if name in segmenter.modalities:
                with torch.inference_mode():
                    image = segmenter.modalities[name].to_network(physical)[None].float()
                    logits[label] = segmenter.modality_logits({name: image})[name]
        return picture(self.source.modalities[name], physical), logits

    def _settings(self, name: str) -> str:
        words = [f"gain {self.gain[name].value:.2f}", f"noise {self.noise[name].value:.2f}"]
        words += (
            [CASE_NAMES.get(self.case[name].value, self.case[name].value)] if self.case[name].value else []
        )
        return ("on, " if self.switch[name].value else "off, ") + ", ".join(words)

    def _refresh(self) -> None:
        index, condition = self.scene.value, self.condition.value
        label = np.asarray(self._frames(index, condition, "", tuple(self.sensors))[1])
        where = f"scene {index}, {condition}"
        looks = {
            n: self._looks(index, condition, n, self.case[n].value, self.gain[n].value, self.noise[n].value)
            for n in self.sensors
        }
        for name, (image, _) in looks.items():
            dimmed = image if self.switch[name].value else (0.25 * image + 0.75 * 235).astype(np.uint8)
            self.view[name].value = image_html(
                dimmed, f"{sensor_title(self.sensors[name])} image of {where}: {self._settings(name)}"
            )
        on = [name for name in self.sensors if self.switch[name].value]
        symbols = "".join(self.sensors[name].symbol for name in on)
        names = [self.source.classes[k] for k in np.unique(label) if k < len(self.source.classes)]
        self.truth.value = image_html(
            label_picture(label, self.source.palette),
            f"true classes of {where}: {', '.join(names)}",
            "<b>truth</b>",
        )
        self._state = {
            "scene": index,
            "condition": condition,
            "fusion": self.fusion.value,
            "present": symbols,
            "error": "",
        }
        self._state |= {"miou": {}, "accuracy": {}, "iou": {}, "weights": {}}
        for title, box in self.prediction.items():
            logits = {name: looks[name][1][title] for name in on if title in looks[name][1]}
            box.value = self._predict(title, logits, label, where, symbols)
        for name, box in self.weight.items():
            box.value = self._weights(name)
        self.bars.value = self._bars(label)
        chips = " ".join(
            f'<span style="background:{m.colour};color:white;padding:0 6px;border-radius:3px">{sensor_title(m)}</span>'
            for m in (self.sensors[name] for name in on)
        )
        scores = "; ".join(
            f"{escape(title)}: mIoU {value:.1f} %" for title, value in self._state["miou"].items()
        )
        how = {
            "mean": "Averaged over",
            "agreement": "Weighted by agreement:",
            "selection": "Selected from",
        }.get(self.fusion.value, "Fused from")
        note = (
            " Fewer than three sensors have no majority: this is their mean."
            if self.fusion.value == "agreement" and len(on) < 3
            else ""
        )
        said = f"{how} {len(on)} of {len(self.sensors)} sensors: {chips} &nbsp; <b>{scores}</b>{note}"
        self._say(said if on else NOTHING_LEFT)

    def _predict(self, title: str, logits: dict, label: np.ndarray, where: str, symbols: str) -> str:
        """The fused prediction's picture; its scores and the sensors' weights go into the state."""
        if not logits:
            grey = np.full((*label.shape, 3), 235, np.uint8)
            reason = NOTHING_LEFT if not symbols else f"{title} was not trained on any sensor that is on."
            return image_html(
                grey, f"no prediction of {title}: {reason}", f"<b>{escape(title)}</b><br>no prediction"
            )
        rule = self.fusion.value
        self._state["weights"][title] = dict(zip(logits, weights(logits, rule)[:, 0].tolist()))
        fused = F.interpolate(fuse(logits, rule), label.shape, mode="bilinear", align_corners=False)
        prediction = fused[0].argmax(0)
        counts = confusion_matrix(
            prediction, torch.as_tensor(label.astype(np.int64)), len(self.source.classes)
        ).numpy()
        score, right = 100 * float(miou(counts)), 100 * float(accuracy(counts))
        self._state["miou"][title], self._state["accuracy"][title] = score, right
        self._state["iou"][title] = dict(zip(self.source.classes, (100 * iou(counts)).tolist()))
        numbers = [f"mIoU {score:.1f} %", f"{right:.1f} % of pixels right"]
        if self.show.value == "errors":
            image, what = error_picture(prediction, label), "pixels that are wrong (orange) where"
        else:
            image, what = label_picture(prediction, self.source.palette), "classes predicted where"
        alt = f"{what} {title} fuses {symbols} by {rule} in {where}: {', '.join(numbers)}"
        return image_html(image, alt, "<br>".join([f"<b>{escape(title)}</b>", *numbers]))

    def _weights(self, name: str) -> str:
        """The share that a sensor has in each network's fusion, as a table that screen readers can read."""
        rows = ""
        for title in self.segmenters:
            share = self._state["weights"].get(title, {}).get(name)
            fill = f'<div style="background:{self.sensors[name].colour};height:7px;width:{100 * (share or 0):.0f}%"></div>'
            rows += (
                f'<tr><th scope="row" style="text-align:left;font-weight:normal;white-space:nowrap">{escape(title)}</th>'
                f'<td style="width:40%;padding:0 4px"><div style="border:1px solid #8886;background:#8882">{fill}</div></td>'
                f'<td style="text-align:right;white-space:nowrap">{"–" if share is None else f"{100 * share:.0f} %"}</td></tr>'
            )
        head = '<caption style="caption-side:top;text-align:left">weight in the fusion</caption>'
        return f'<table style="{FAMILY};font-size:12px;width:100%;border-collapse:collapse;margin:0">{head}{rows}</table>'

    def _bars(self, label: np.ndarray) -> str:
        """IoU of each class in the frame, one bar a network, as a table that screen readers can read."""
        rows = []
        for k in np.unique(label):
            if k >= len(self.source.classes):
                continue
            name, colour = self.source.classes[k], "#{:02x}{:02x}{:02x}".format(*self.source.palette[k])
            cells = ""
            for title in self.segmenters:
                value = self._state["iou"].get(title, {}).get(name)
                fill = f'<div style="background:{colour};height:9px;width:{value or 0:.0f}%"></div>'
                # the frame is 100 % wide
                bar = f'<div style="border:1px solid #8886;background:#8882">{fill}</div>'
                number = "–" if value is None else f"{value:.0f}"
                cells += (
                    f'<td style="width:{60 / len(self.segmenters):.0f}%;padding:0 4px">{bar}</td>'
                    f'<td style="text-align:right;padding:0 4px">{number}</td>'
                )
            rows.append(
                f'<tr><th scope="row" style="text-align:left;font-weight:normal;padding:0 4px">{escape(name)}</th>{cells}</tr>'
            )
        heads = "".join(
            f'<th colspan="2" scope="col" style="text-align:left;padding:0 4px">{escape(title)}</th>'
            for title in self.segmenters
        )
        return (
            f'<table style="{FAMILY};width:100%;border-collapse:collapse;margin:0">'
            '<caption style="caption-side:top;text-align:left">IoU of each class (%)</caption>'
            f"<tr><td></td>{heads}</tr>{''.join(rows)}</table>"
        )

    def state(self) -> dict:
        """What is shown now: scene, condition, fusion, symbols of the sensors that are on ("present"), error;
        and for each network mIoU, accuracy and class IoU (per cent) and the sensors' weights.
        """
        return super().state()
