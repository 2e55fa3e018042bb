"""The modality switchboard: dim, break or remove sensors under sliders, and watch what segmenters predict.

It works on anybody's networks (``load_segmenter``) and prepared data set (``PreparedDataset``); from a
notebook outside this folder, with ``sys.path.insert(0, "…/notebooks")``.
"""

from collections.abc import Mapping
from functools import lru_cache
from html import escape

import ipywidgets as widgets
import numpy as np
import torch

from mmlib.data.missing import complete, degrade, faulty
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.counts import accuracy, confusion_matrix, iou, miou
from mmlib.evaluation.fusion import RULES, fuse, weights
from mmlib.evaluation.subsets import largest
from mmlib.figures import error_picture, label_picture, picture, sensor_title
from mmlib.segmentation.network import Segmenter

from .panel import Panel, bar_table, image_html

# Gross faults of mmlib.data.missing in words; "dark" and "noise" have sliders.
FAULTS = {
    "shift": "shifted by 1/8",
    "blur": "blurred 16 times",
    "blank": "stuck at its mean",
    "other": "another scene",
}
UNTOUCHED = {"on": True, "gain": 1.0, "noise": 0.0, "case": ""}  # a sensor's controls at the start
NOTHING_LEFT = (
    "No sensor is switched on: there is nothing to average, so there is no prediction. Switch one on."
)


def _control(kind: type, description: str, tooltip: str, width: str = "auto", **options) -> widgets.Widget:
    """A control of the panel, with its name and what it does in words."""
    style, layout = {"description_width": "42px"}, {"width": width, "margin": "0 2px"}
    return kind(description=description, tooltip=tooltip, style=style, layout=layout, **options)


class SwitchboardPanel(Panel):
    """Dim, break or remove each sensor, choose how the sensors are fused, and watch what is predicted.

    Args:
        segmenters: what to call it -> trained network; one or two, shown side by side. All predict the data
            set's classes.
        dataset: the frames to look at, of which those that lack a sensor are left out.

    A sensor's image is encoded again only when that sensor changed: the panel keeps each sensor's logits and
    fuses those of the sensors that are on, by default with their mean (Eq. 5), which is what
    ``Segmenter.forward`` does. Each card shows the weight that the sensor has in each network's fusion.

    A subclass may show more than recorded frames: failures of its own (``cases``: sensor -> {case: in
    words}), and what else tells a frame beside the number of its scene (``_place``, of which ``_frame`` makes
    it).

    ``state()`` has scene, fusion, symbols of the sensors that are on ("present"), error; and for each network
    that predicts miou, accuracy, iou of each class (per cent) and the sensors' weights.

    Raises:
        ValueError: a segmenter that predicts other classes or needs sensors that the frames lack.
    """

    cases: Mapping[str, dict] = {}

    def __init__(self, segmenters: Mapping[str, Segmenter], dataset: PreparedDataset):
        super().__init__("1100px")
        if isinstance(dataset, PreparedDataset):  # a card for each sensor needs an image for each
            dataset = complete(dataset)
        self.segmenters, self.dataset = dict(segmenters), dataset
        self.classes, self.palette = dataset.description.classes, dataset.description.palette
        modalities = {}
        for name, segmenter in self.segmenters.items():
            modalities |= segmenter.modalities
            if list(segmenter.classes) != list(self.classes):
                raise ValueError(
                    f"{name!r} predicts {len(segmenter.classes)} classes, "
                    f"the frames have {len(self.classes)}; use a network trained on data of this kind"
                )
        if missing := set(modalities) - set(dataset.modalities):
            raise ValueError(
                f"the frames have no {', '.join(sorted(missing))}; they have {', '.join(dataset.modalities)}"
            )
        self.sensors = {name: modalities[name] for name in dataset.modalities if name in modalities}
        self._frames = lru_cache(64)(self._frame)
        self._looks = lru_cache(24 * len(self.sensors))(self._look)
        self.children = [self._bar(), self._cards(), self.status, self._results()]
        self.refresh()

    def __repr__(self) -> str:  # short and constant: what a notebook stores and compares
        symbols = "".join(m.symbol for m in self.sensors.values())
        return f"{type(self).__name__}(sensors={symbols}, networks={' | '.join(self.segmenters)})"

    # ---- widgets ----

    def _bar(self) -> widgets.Widget:
        """What concerns the whole scene. A slider reports when it is let go: a drag queues up no redraws."""
        self.scene = _control(
            widgets.IntSlider,
            "scene",
            "which scene to look at",
            "300px",
            max=len(self.dataset) - 1,
            continuous_update=False,
        )
        rules = [rule for rule in RULES if rule != "total"]
        how = "how the predictions of the sensors are put together"
        self.fusion = _control(widgets.Dropdown, "fusion", how, "170px", options=rules)
        what = "the predicted classes, or which pixels are wrong"
        self.show = _control(widgets.Dropdown, "show", what, "150px", options=("classes", "errors"))
        self._follow(scene=self.scene, fusion=self.fusion, show=self.show)
        self.reset = widgets.Button(
            description="reset sensors", tooltip="all sensors on, untouched", layout={"width": "120px"}
        )
        self.reset.on_click(lambda _: self.set(**{name: {} for name in self.sensors}))
        layout = {"flex_flow": "row wrap", "align_items": "center"}
        return widgets.HBox([self.scene, self.fusion, self.show, self.reset], layout=layout)

    def _cards(self) -> widgets.Widget:
        """A card for each sensor: its switch, picture, sliders, failure and weights."""
        self.controls, self.view, self.weight, cards = {}, {}, {}, []
        share = {"max": 1, "step": 0.05, "continuous_update": False}
        for name, modality in self.sensors.items():
            title, use = f"{sensor_title(modality)} on", f"pass {name} on to the network"
            gain = f"{name} gain: 1 = untouched, 0 = black"
            noise = f"{name} noise: standard deviation as a share of the range"
            cases = {"": "none"} | self.cases.get(name, {}) | FAULTS
            options = [(words, case) for case, words in cases.items()]
            self.controls[name] = controls = {
                "on": _control(widgets.Checkbox, title, use, value=True, indent=False),
                "gain": _control(widgets.FloatSlider, "gain", gain, value=1.0, **share),
                "noise": _control(widgets.FloatSlider, "noise", noise, **share),
                "case": _control(widgets.Dropdown, "failure", f"how {name} fails", options=options),
            }
            self._follow(**{f"{name} {key}": control for key, control in controls.items()})
            self.view[name], self.weight[name] = widgets.HTML(), widgets.HTML()
            switch, *others = controls.values()
            layout = {"border_top": f"4px solid {modality.colour}", "padding": "2px", "min_width": "0"}
            cards.append(widgets.VBox([switch, self.view[name], *others, self.weight[name]], layout=layout))
        columns = f"repeat({min(4, len(cards))}, minmax(0, 1fr))"
        return widgets.GridBox(cards, layout={"grid_template_columns": columns, "grid_gap": "8px"})

    def _results(self) -> widgets.Widget:
        """The label, each network's prediction, and the classes' IoU."""
        self.truth, self.bars = widgets.HTML(), widgets.HTML()
        self.prediction = {name: widgets.HTML() for name in self.segmenters}
        count = len(self.segmenters)
        columns = f"repeat({1 + count}, minmax(0, 1fr)) minmax(0, {1 + 0.5 * count}fr)"
        layout = {"grid_template_columns": columns, "grid_gap": "8px", "align_items": "flex-start"}
        return widgets.GridBox([self.truth, *self.prediction.values(), self.bars], layout=layout)

    def set(self, **values) -> dict:
        """Set everything at once and redraw once: ``panel.set(scene=3, fusion="agreement", rgb={"on": False},
        depth={"gain": 0.5})``. Returns ``state()``.

        A sensor that is named takes on=True, gain=1, noise=0, case="" for what its dict leaves out.

        Raises:
            ValueError: a sensor that the panel does not have, or a setting that no sensor has.
        """
        for name in self.sensors:
            if name in values:
                settings = UNTOUCHED | values.pop(name)
                values |= {f"{name} {key}": value for key, value in settings.items()}
        return super().set(**values)

    # ---- what the widgets ask for ----

    def _place(self) -> tuple:
        """What is looked at; the number of the scene stands first."""
        return (self.scene.value,)

    def _frame(self, index: int) -> tuple[dict, torch.Tensor]:
        """Physical images name -> (C, H, W), and the label (H, W)."""
        return self.dataset.physical(index)

    def _image(self, place: tuple, name: str, case: str) -> torch.Tensor:
        """A sensor's physical image; ``case`` is a failure of a subclass."""
        return self._frames(*place)[0][name]

    @torch.inference_mode()
    def _look(self, place: tuple, name: str, case: str, gain: float, noise: float) -> tuple[np.ndarray, dict]:
        """One sensor as it is set: its picture, and its logits (1, K, h, w) from each network that has it."""
        modality, (scene, *rest), count = self.sensors[name], place, len(self.dataset)
        physical = self._image(place, name, case)
        if case in FAULTS:
            elsewhere, other = (scene + count // 2) % count, None
            if case == "other" and elsewhere != scene:
                other = self._image((elsewhere, *rest), name, "")
            physical = faulty(physical, modality, case, "gross", other)
        physical = degrade(physical, modality, gain, noise, seed=scene)
        logits = {}
        for title, segmenter in self.segmenters.items():
            if name in segmenter.modalities:
                image = segmenter.modalities[name].to_network(physical)[None].float()
                logits[title] = segmenter.modality_logits({name: image})[name]
        return picture(modality, physical), logits

    def _refresh(self) -> None:
        place, rule, classes = self._place(), self.fusion.value, self.classes
        where = f"scene {', '.join(map(str, place))}"
        on = {name: modality for name, modality in self.sensors.items() if self.controls[name]["on"].value}
        symbols = "".join(modality.symbol for modality in on.values())
        self._state = {"scene": place[0], "fusion": rule, "present": symbols, "error": ""}
        self._state |= {"miou": {}, "accuracy": {}}
        self._state |= {key: {title: {} for title in self.segmenters} for key in ("iou", "weights")}

        # Each sensor's picture, pale where it is off; the logits of those that are on.
        logits = {title: {} for title in self.segmenters}
        for name, modality in self.sensors.items():
            _, gain, noise, case = self.controls[name].values()
            image, outputs = self._looks(place, name, case.value, gain.value, noise.value)
            if name in on:
                for title, output in outputs.items():
                    logits[title][name] = output
            else:
                image = (0.25 * image + 0.75 * 235).astype(np.uint8)
            words = f"{'on' if name in on else 'off'}, gain {gain.value:.2f}, noise {noise.value:.2f}"
            alt = f"{sensor_title(modality)} image of {where}: {words}, failure: {case.label}"
            self.view[name].value = image_html(image, alt)

        # The label and each network's prediction; then the tables of what was computed for it.
        label = self._frames(*place)[1]
        ids = [k for k in np.unique(label) if k < len(classes)]
        alt = f"true classes of {where}: {', '.join(classes[k] for k in ids)}"
        self.truth.value = image_html(label_picture(label, self.palette), alt, "<b>truth</b>")
        for title, box in self.prediction.items():
            box.value = self._predict(title, logits[title], label, where)

        iou, shares = self._state["iou"].values(), self._state["weights"].items()
        for name, box in self.weight.items():
            colour, rows = self.sensors[name].colour, {}
            for title, share in shares:
                rows[title] = (colour, [100 * share[name] if name in share else None])
            box.value = bar_table("weight in the fusion", rows, 40, unit=" %")
        rows = {}
        for k in ids:
            colour = "#{:02x}{:02x}{:02x}".format(*self.palette[k])
            rows[classes[k]] = (colour, [scores.get(classes[k]) for scores in iou])
        self.bars.value = bar_table("IoU of each class (%)", rows, 60, tuple(self.segmenters))

        # One sentence that says it all.
        if not on:
            return self._say(NOTHING_LEFT)
        chips = " ".join(
            f'<span style="background:{escape(modality.colour)};color:white;padding:0 6px;border-radius:3px">'
            f"{escape(sensor_title(modality))}</span>"
            for modality in on.values()
        )
        scores = "; ".join(f"{escape(title)}: mIoU {v:.1f} %" for title, v in self._state["miou"].items())
        too_few = rule == "agreement" and len(on) < 3
        note = " Fewer than three sensors have no majority: this is their mean." * too_few
        count = f"{len(on)} of {len(self.sensors)} sensors"
        self._say(f"Fused by {rule}, {count}: {chips} &nbsp; <b>{scores}</b>{note}")

    def _predict(self, title: str, logits: dict, label: torch.Tensor, where: str) -> str:
        """The fused prediction's picture; its scores and the sensors' weights go into the state."""
        name = f"<b>{escape(title)}</b>"
        if not logits:
            grey = np.full((*label.shape, 3), 235, np.uint8)
            reason = f"no prediction: {title} was not trained on any sensor that is on."
            return image_html(grey, reason, f"{name}<br>no prediction")
        rule = self._state["fusion"]
        prediction = largest(fuse(logits, rule), label.shape, title)[2]
        counts = confusion_matrix(prediction, label, len(self.classes))
        score, right = 100 * float(miou(counts)), 100 * float(accuracy(counts))
        values = {
            "miou": score,
            "accuracy": right,
            "iou": dict(zip(self.classes, (100 * iou(counts)).tolist())),
            "weights": dict(zip(logits, weights(logits, rule)[:, 0].tolist())),
        }
        for key, value in values.items():
            self._state[key][title] = value
        numbers = f"mIoU {score:.1f} %", f"{right:.1f} % of pixels right"
        image, what = label_picture(prediction, self.palette), "classes predicted where"
        if self.show.value == "errors":
            image, what = error_picture(prediction, label), "pixels that are wrong (orange) where"
        alt = f"{what} {title} fuses {self._state['present']} by {rule} in {where}: {', '.join(numbers)}"
        return image_html(image, alt, "<br>".join([name, *numbers]))
