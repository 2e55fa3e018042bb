"""Draw ``switchboard.gif``, the moving picture of the README: one street scene, whose sensors are dimmed and
removed one after the other, and what two networks then predict.

    python notebooks/results/moving_picture.py

The networks are those of the switchboard (``street_full.safetensors``, ``street_all-subsets.safetensors``); the
scene is one that neither has seen. A minute on one core.
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the course's own package, which is not installed

from course.world_source import physical_images  # noqa: E402

from mmlib import world  # noqa: E402
from mmlib.evaluation.counts import confusion_matrix, miou  # noqa: E402
from mmlib.figures import INK, label_picture, picture, put_picture, sensor_title, use_style  # noqa: E402
from mmlib.modalities import SENSORS  # noqa: E402
from mmlib.segmentation.network import load_segmenter  # noqa: E402

NETWORKS = {
    "street_full.safetensors": "trained on all sensors, always",
    "street_all-subsets.safetensors": "trained on all subsets at once",
}
SCENE = 910_001  # beyond the rendered scenes, by day
# (what is done, how bright each sensor is: 1 = untouched, None = removed; frames that it is shown for)
STEPS = [
    ("all sensors", {}, 7),
    *(("the camera is dimmed", {"rgb": gain}, 1) for gain in np.linspace(0.9, 0.0, 10)),
    ("the camera is black", {"rgb": 0.0}, 5),
    ("the camera is removed", {"rgb": None}, 7),
    ("camera and LiDAR are removed", {"rgb": None, "lidar": None}, 7),
    ("only events are left", {"rgb": None, "lidar": None, "depth": None}, 7),
    ("only the camera is left", {"depth": None, "event": None, "lidar": None}, 7),
]


def draw(networks: dict, physical: dict, label: torch.Tensor, title: str, gains: dict) -> Image.Image:
    """One frame."""
    images = {
        name: None if gains.get(name, 1) is None else image * gains.get(name, 1)
        for name, image in physical.items()
    }
    fig = plt.figure(figsize=(8.4, 5.0), layout="none")
    fig.suptitle(title, fontsize=14, x=0.02, y=0.98, ha="left")
    sensors = fig.add_gridspec(1, 4, left=0.02, right=0.98, top=0.86, bottom=0.53, wspace=0.06)
    maps = fig.add_gridspec(1, 3, left=0.02, right=0.98, top=0.40, bottom=0.01, wspace=0.06)

    def axes(place) -> plt.Axes:
        axis = fig.add_subplot(place)
        axis.set(xticks=[], yticks=[])
        return axis

    for column, (name, image) in enumerate(images.items()):
        axis = axes(sensors[column])
        if image is None:
            put_picture(axis, np.full((96, 128, 3), 255, np.uint8), sensor_title(SENSORS[name]))
            axis.text(0.5, 0.5, "removed", ha="center", va="center", color=INK, transform=axis.transAxes)
        else:
            put_picture(axis, picture(SENSORS[name], image), sensor_title(SENSORS[name]))
        for spine in axis.spines.values():
            spine.set(visible=True, color=SENSORS[name].colour, linewidth=2)
    palette = next(iter(networks.values())).palette
    put_picture(axes(maps[0]), label_picture(label.numpy(), palette), "what is there")
    for column, (name, network) in enumerate(networks.items()):
        shown = {
            sensor: torch.from_numpy(network.modalities[sensor].to_network(image))[None].float()
            for sensor, image in images.items()
            if image is not None
        }
        with torch.no_grad():
            prediction = network(shown)[0].argmax(0)
        score = 100 * float(miou(confusion_matrix(prediction, label, len(network.classes))))
        words = f"{name}\nmIoU {score:.0f} %"
        put_picture(axes(maps[column + 1]), label_picture(prediction.numpy(), palette), words)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100)
    plt.close(fig)
    return Image.open(buffer).convert("RGB")


def main() -> None:
    use_style()
    networks = {title: load_segmenter(HERE / file) for file, title in NETWORKS.items()}
    frame = world.render_frame("street", SCENE, "day")
    sensors = next(iter(networks.values())).modalities
    physical = {name: image for name, image in physical_images(frame).items() if name in sensors}
    physical = {name: physical[name] for name in sensors}
    label = torch.from_numpy(np.asarray(frame.label, np.int64))
    frames = [(draw(networks, physical, label, title, gains), 140 * count) for title, gains, count in STEPS]
    # One palette for all frames, so that what stands still does not flicker.
    sheet = Image.fromarray(np.concatenate([np.asarray(image) for image, _ in frames[::3]]))
    colours = sheet.quantize(255, dither=Image.Dither.NONE)
    palette = np.reshape(colours.getpalette(), (-1, 3))
    palette[palette.min(1) > 245] = 255  # paper is white, and not nearly so
    colours.putpalette(palette.astype(np.uint8).tobytes())
    first, *rest = (image.quantize(palette=colours, dither=Image.Dither.NONE) for image, _ in frames)
    durations = [duration for _, duration in frames]
    first.save(HERE / "switchboard.gif", save_all=True, append_images=rest, duration=durations, loop=0)
    print(f"wrote switchboard.gif, {(HERE / 'switchboard.gif').stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
