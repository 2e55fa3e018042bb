"""The modality switchboard: dim, break or remove sensors under sliders, and watch what segmenters predict.

Your own trained network, in three lines; from a notebook outside this folder, the first one is
``import sys; sys.path.insert(0, "…/notebooks")``:

    from course.switchboard import switchboard

    switchboard({"mine": "runs/mine/model.safetensors"}, "data/mine")
"""

from collections.abc import Mapping
from functools import lru_cache
from html import escape
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib import pyplot as plt

from mmlib.data.missing import complete, degrade, faulty
from mmlib.data.prepared import PreparedDataset
from mmlib.evaluation.counts import accuracy, confusion_matrix, iou, miou
from mmlib.evaluation.fusion import RULES, fuse, weights
from mmlib.evaluation.subsets import largest
from mmlib.figures import DARKER, class_legend, error_picture, label_picture, picture, sensor_title
from mmlib.segmentation.network import Segmenter, load_segmenter

from .panel import Panel, bar_table, change, control, grid, image_html, legend, row, still

# Gross faults of mmlib.data.missing in words; "dark" and "noise" have sliders.
FAULTS = {
    "shift": "shifted by 1/8",
    "blur": "blurred 16 times",
    "blank": "stuck at its mean",
    "other": "another scene",
}
UNTOUCHED = {"on": True, "gain": 1.0, "noise": 0.0, "case": ""}  # a sensor's controls at the start
# Style of a scenario's button, by whether it is what is shown: dark on light, in dark themes, too.
PRESSED = {
    True: {"font_weight": "bold", "button_color": "#cfe3f5", "text_color": "#1a1a1a"},
    False: {"font_weight": "", "button_color": None, "text_color": None},
}
NOTHING_LEFT = (
    "No sensor is switched on: there is nothing to average, so there is no prediction. Switch one on."
)


def switchboard(
    networks: Mapping[str, str | Path | Segmenter], data: str | Path, split: str = "val"
) -> "SwitchboardPanel":
    """The switchboard of one or two trained networks on prepared data.

    Args:
        networks: what to call it -> a network, or the checkpoint that ``python -m mmlib train`` wrote.
        data: a prepared data set (``data_scripts``), of which the sensors are read that the networks know.
        split: whose frames to look at. Choose on "val"; "test" is for the last number.

    Raises:
        ValueError: as ``SwitchboardPanel``.
    """
    loaded = {
        name: network if isinstance(network, Segmenter) else load_segmenter(network)
        for name, network in networks.items()
    }
    sensors = dict.fromkeys(sensor for network in loaded.values() for sensor in network.modalities)
    return SwitchboardPanel(loaded, PreparedDataset(data, split, tuple(sensors)))


class SwitchboardPanel(Panel):
    """Dim, break or remove each sensor, choose how the sensors are fused, and watch what is predicted.

    Args:
        segmenters: what to call it -> trained network; one or two, shown side by side. All predict the data
            set's classes.
        dataset: the frames to look at, of which those that lack a sensor are left out.

    A sensor's image is encoded again only when that sensor changed: the panel keeps each sensor's logits and
    fuses those of the sensors that are on, by default with their mean (Eq. 5), which is what
    ``Segmenter.forward`` does. Each card shows the weight that the sensor has in each network's fusion.

    Every score stands beside its difference to the pinned state: the first one, until ``pin`` takes another.

    A subclass may show more than recorded frames: failures of its own (``cases``: sensor -> {case: in
    words}), and what else tells a frame beside the number of its scene (``_place``, of which ``_frame`` makes
    it).

    ``state()`` has scene, fusion, symbols of the sensors that are on ("present"), error; and for each network
    that predicts miou, its difference to the pinned state (delta), accuracy, iou of each class (per cent) and
    the sensors' weights.

    Raises:
        ValueError: a segmenter that predicts other classes or needs sensors that the frames lack.
    """

    cases: Mapping[str, dict] = {}

    def __init__(self, segmenters: Mapping[str, Segmenter], dataset: PreparedDataset):
        super().__init__("1400px")
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
        self._pinned = {"miou": {}, "iou": {title: {} for title in self.segmenters}, "words": "nothing"}
        self._frames = lru_cache(64)(self._frame)
        self._looks = lru_cache(24 * len(self.sensors))(self._look)
        tools, cards = self._tools(), self._cards()
        self.children = [
            self._scenarios(),
            tools,
            self.status,
            self._results(),
            self.legend,
            cards,
            self.bars,
        ]
        self.refresh()
        self.pin()

    def __repr__(self) -> str:  # short and constant: what a notebook stores and compares
        symbols = "".join(m.symbol for m in self.sensors.values())
        return f"{type(self).__name__}(sensors={symbols}, networks={' | '.join(self.segmenters)})"

    # ---- widgets ----

    def scenarios(self) -> dict[str, dict]:
        """Name of a scenario -> what it sets; sensors that it does not name are on and untouched."""
        first, *_, last = self.sensors
        return {
            "all sensors": {},
            f"no {first}": {first: {"on": False}},
            f"black {first}": {first: {"gain": 0.0}},
            f"{first} lies": {first: {"case": "other"}},
            f"only {last}": {name: {"on": name == last} for name in self.sensors},
        }

    def play(self, scenario: str) -> dict:
        """What a click on the button of a scenario does; returns ``state()``."""
        return self.set(**{name: {} for name in self.sensors} | self.scenarios()[scenario])

    def _scenarios(self) -> widgets.Widget:
        """A button for each scenario."""
        self.buttons = {}
        for name in self.scenarios():
            button = widgets.Button(description=name, tooltip=f"show: {name}", layout={"width": "auto"})
            button.on_click(lambda _, name=name: self.play(name))
            self.buttons[name] = button
        return row([*self.buttons.values()])

    def _tools(self) -> widgets.Widget:
        """What concerns the whole scene."""
        last = len(self.dataset) - 1
        self.scene = control(widgets.IntSlider, "scene", "which scene to look at", "2 1 210px", max=last)
        rules = [rule for rule in RULES if rule != "total"]
        how = "fusion: how the predictions of the sensors are put together"
        self.fusion = control(widgets.Dropdown, "fusion", how, "1 1 155px", options=rules)
        what = "show the predicted classes, or which pixels are wrong"
        self.show = control(widgets.Dropdown, "show", what, "1 1 130px", options=("classes", "errors"))
        self._follow(scene=self.scene, fusion=self.fusion, show=self.show)
        why = "compare all that follows with what is shown now"
        self.pinner = widgets.Button(description="pin this", tooltip=why, layout={"width": "auto"})
        self.pinner.on_click(lambda _: self.pin())
        return row([self.scene, self.fusion, self.show, self.pinner])

    def _cards(self) -> widgets.Widget:
        """A card for each sensor: its switch, picture, sliders, failure and weights."""
        self.controls, self.view, self.weight, cards = {}, {}, {}, []
        share = {"max": 1, "step": 0.05, "readout": False}  # its number stands below the picture
        for name, modality in self.sensors.items():
            title, use = f"{sensor_title(modality)} on", f"{name} on: it takes part in the fusion"
            gain = f"{name} gain: 1 = untouched, 0 = black"
            noise = f"{name} noise: standard deviation as a share of the range"
            cases = {"": "no failure"} | self.cases.get(name, {}) | FAULTS
            options = [(words, case) for case, words in cases.items()]
            self.controls[name] = controls = {
                "on": control(widgets.Checkbox, title, use, value=True, indent=False),
                "gain": control(widgets.FloatSlider, "gain", gain, value=1.0, **share),
                "noise": control(widgets.FloatSlider, "noise", noise, **share),
                # Without a description it shows its tooltip, which is then its name, too.
                "case": control(widgets.Dropdown, "", f"{name}: how it fails", options=options),
            }
            self._follow(**{f"{name} {key}": control for key, control in controls.items()})
            # Pictures of sensors stay smaller than the predictions, which are what one looks at.
            self.view[name] = widgets.HTML(layout={"flex": "0 1 128px"})
            self.weight[name] = widgets.HTML()
            switch, *others = controls.values()
            sliders = widgets.VBox(others, layout={"flex": "1 1 140px", "min_width": "0"})
            middle = widgets.HBox([self.view[name], sliders], layout={"align_items": "center"})
            layout = {"border_top": f"4px solid {modality.colour}", "padding": "2px", "min_width": "0"}
            cards.append(widgets.VBox([switch, middle, self.weight[name]], layout=layout))
        return grid(cards, 250)

    def _results(self) -> widgets.Widget:
        """The label and each network's prediction, side by side where there is room."""
        self.truth, self.legend, self.bars = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.prediction = {name: widgets.HTML() for name in self.segmenters}
        return grid([self.truth, *self.prediction.values()], 160)

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

    def pin(self) -> None:
        """Compare from now on with what is shown now."""
        self._pinned = self.state() | {"words": self._words()}
        self.refresh()

    def _words(self) -> str:
        """The state in a few words."""
        changed = [
            name for name, c in self.controls.items() if [w.value for w in c.values()][1:] != [1, 0, ""]
        ]
        touched = f", {', '.join(changed)} altered" if changed else ""
        where = ", ".join(map(str, self._place()))
        return f"scene {where}, {self._state['present'] or 'no sensor'}, {self.fusion.value}{touched}"

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
        self._state |= {"miou": {}, "accuracy": {}, "delta": {}}
        self._state |= {key: {title: {} for title in self.segmenters} for key in ("iou", "weights")}

        # Each sensor's picture, pale where it is off; the logits of those that are on.
        logits, self._drawn = {title: {} for title in self.segmenters}, {}
        for name, modality in self.sensors.items():
            _, gain, noise, case = self.controls[name].values()
            image, outputs = self._looks(place, name, case.value, gain.value, noise.value)
            if name in on:
                for title, output in outputs.items():
                    logits[title][name] = output
            else:
                image = (0.25 * image + 0.75 * 235).astype(np.uint8)
            settings = f"gain {gain.value:.2f}, noise {noise.value:.2f}"
            below = settings + f"\n{case.label}" * bool(case.value) if name in on else "off"
            self._drawn[sensor_title(modality)] = image, below
            words = f"{'on' if name in on else 'off'}, {settings}, {case.label}"
            alt = f"{sensor_title(modality)} image of {where}: {words}"
            self.view[name].value = image_html(image, alt, settings.replace(", ", "<br>"), lines=2)

        # The label and each network's prediction; then the tables of what was computed for it.
        label = self._frames(*place)[1]
        ids = [k for k in np.unique(label) if k < len(classes)]
        alt = f"true classes of {where}: {', '.join(classes[k] for k in ids)}"
        truth = label_picture(label, self.palette)
        self._drawn["truth"], self._present = (truth, ""), ids
        self.truth.value = image_html(truth, alt, "<b>truth</b>")
        for title, box in self.prediction.items():
            box.value = self._predict(title, logits[title], label, where)

        iou, shares = self._state["iou"], self._state["weights"].items()
        for name, box in self.weight.items():
            colour, rows = self.sensors[name].colour, {}
            for title, share in shares:
                rows[title] = (colour, [100 * share[name] if name in share else None])
            box.value = bar_table("weight in the fusion", rows, 38, unit=" %")
        colour = {k: "#{:02x}{:02x}{:02x}".format(*self.palette[k]) for k in ids}
        errors = {"wrong": "#{:02x}{:02x}{:02x}".format(*DARKER), "right": "#ffffff"}
        named = {classes[k]: colour[k] for k in ids}
        self.legend.value = legend(errors if self.show.value == "errors" else named)
        rows, changes, pinned = {}, {}, self._pinned["iou"]
        for k in ids:
            name = classes[k]
            rows[name] = (colour[k], [scores.get(name) for scores in iou.values()])
            changes[name] = [change(iou[t].get(name), pinned[t].get(name)) for t in self.segmenters]
        what = "IoU of each class (%), and its difference to the pinned state"
        self.bars.value = bar_table(what, rows, 76, tuple(self.segmenters), changes=changes)
        for name, settings in self.scenarios().items():
            self.buttons[name].style = PRESSED[self._plays(settings)]

        # One sentence that says it all.
        if not on:
            return self._say(NOTHING_LEFT)
        chips = " ".join(
            f'<span style="display:inline-block;border-bottom:3px solid {escape(modality.colour)};'
            f'padding:0 3px">{escape(sensor_title(modality))}</span>'
            for modality in on.values()
        )
        scores = "; ".join(
            f"{escape(title)}: mIoU {v:.1f} %{self._state['delta'][title]}"
            for title, v in self._state["miou"].items()
        )
        too_few = rule == "agreement" and len(on) < 3
        note = " Fewer than three sensors have no majority: this is their mean." * too_few
        count = f"{len(on)} of {len(self.sensors)} sensors"
        against = f" Pinned: {escape(self._pinned['words'])}."
        self._say(f"Fused by {rule}, {count}: {chips} &nbsp; <b>{scores}</b>.{note}{against}")

    def _plays(self, settings: dict) -> bool:
        """Whether the panel is set as a scenario wants it."""
        wanted = dict(settings)
        for name in self.sensors:
            values = UNTOUCHED | wanted.pop(name, {})
            wanted |= {f"{name} {key}": value for key, value in values.items()}
        return all(self._named[key].value == value for key, value in wanted.items())

    def _predict(self, title: str, logits: dict, label: torch.Tensor, where: str) -> str:
        """The fused prediction's picture; its scores and the sensors' weights go into the state."""
        name = f"<b>{escape(title)}</b>"
        if not logits:
            grey = np.full((*label.shape, 3), 235, np.uint8)
            self._drawn[title] = grey, "no prediction"
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
        delta = change(score, self._pinned["miou"].get(title))
        self._state["delta"][title] = f" ({delta} against the pinned state)" if delta else ""
        numbers = f"mIoU {score:.1f} %", f"{right:.1f} % of pixels right"
        image, what = label_picture(prediction, self.palette), "classes predicted where"
        if self.show.value == "errors":
            image, what = error_picture(prediction, label), "pixels that are wrong (orange) where"
        self._drawn[title] = image, numbers[0] + f" ({delta})" * bool(delta)
        alt = f"{what} {title} fuses {self._state['present']} by {rule} in {where}: {', '.join(numbers)}"
        large = f'<span style="font-size:16px"><b>{numbers[0]}</b>{" " + delta if delta else ""}</span>'
        return image_html(image, alt, "<br>".join([name, large, numbers[1]]))

    def figure(self) -> plt.Figure:
        """The panel as a still picture: truth and predictions above, sensors as they are set below."""
        sensors = [sensor_title(modality) for modality in self.sensors.values()]
        above = {title: drawn for title, drawn in self._drawn.items() if title not in sensors}
        title = f"Shown: {self._words()}. Pinned: {self._pinned['words']}"
        fig = still([above, {title: self._drawn[title] for title in sensors}], title)
        if self.show.value == "classes":
            class_legend(fig, self.classes, self.palette, self._present)
        return fig
