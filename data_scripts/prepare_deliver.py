"""Prepare DELIVER (Zhang et al., CVPR 2023): colour, depth, events and LiDAR of a simulated city, 25 classes.

    python data_scripts/prepare_deliver.py SOURCE --out DIR [--depth hha|depth|both]

SOURCE is the archive (about 12.2 GB) or the unpacked folder with img/, event/, lidar/, semantic/ and hha/ or
depth/:

    <sensor>/<condition>/<split>/<scene>/<frame>_<token>_front.png

Condition, split and failure case are read from the components of that path, never searched for in it: "rain"
is also a part of "train". A failure case is the last word of a scene's name (MAP_1_point12_motionblur).
Labels hold their id in the red plane: 1 to 25 are classes, 0 and 255 are void, anything else is an error. Of
images with four planes the first three are kept. Event images may have another size than the camera; they are
brought to its size by nearest neighbour. Single-plane event and LiDAR images become three equal planes, as in
the authors' reader, so that every sample has the same channels.

The authors do not document the scale of depth/, hha/, event/ and lidar/: their values are kept as they are
stored, 0 to 255.
Licence: none stated for the data; the repository is Apache-2.0 and asks to be contacted for commercial use.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import common
import numpy as np
from common import Arrays, Sample
from numpy import ndarray

from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description
from mmlib.modalities import SENSORS

HOW = """DELIVER: one archive of about 12.2 GB, open, no registration.
Google Drive asks for a click, so fetch it in a browser:
  https://drive.google.com/file/d/1P-glCmr-iFSYrzCfNawgVI9qKWfP94pm/view
  (linked from https://jamycheung.github.io/DELIVER.html)
then give this command the archive, or the folder you unpacked it to.
Unpacked and converted it takes about twice that space again.
Licence: none stated for the data; the authors' code is Apache-2.0, and they ask to be contacted for
commercial use."""

SIZE = (1042, 1042)  # height and width of img/ and of everything but event/
CONDITIONS = ("cloud", "fog", "night", "rain", "sun")
CASES = ("motionblur", "overexposure", "underexposure", "lidarjitter", "eventlowres")
# Official numbers of frames; how many of a split's frames show a failure case.
COUNTS = {
    "train": dict(zip(CONDITIONS, (794, 795, 797, 799, 798))),
    "val": dict(zip(CONDITIONS, (398, 400, 410, 398, 399))),
    "test": dict(zip(CONDITIONS, (379, 379, 379, 380, 380))),
}
FAILING = {"train": 1398, "val": 707, "test": 699}

# The authors' names, in the order of their ids; "GroundRail" is their spelling of a guard rail.
CLASSES = (
    "Building, Fence, Other, Pedestrian, Pole, RoadLine, Road, SideWalk, Vegetation, Cars, Wall, "
    "TrafficSign, Sky, Ground, Bridge, RailTrack, GroundRail, TrafficLight, Static, Dynamic, Water, Terrain, "
    "TwoWheeler, Bus, Truck"
).split(", ")
PALETTE = common.palette(
    "#464646 #642828 #375a50 #dc143c #999999 #9dea32 #804080 #f423e8 #6b8e23 #00008e #66669c #dcdc00 #4682b4 "
    "#510051 #966464 #e6968c #b4a5b4 #faaa1e #6ebea0 #aa7832 #2d3c96 #91aa64 #0000e6 #003c64 #000046"
)
IDS = {0: 255, 255: 255} | {id: id - 1 for id in range(1, 26)}

# Values 0 to 255 as stored: no scale is documented.
SENSOR = {
    m.name: replace(m, unit="undocumented", high=255.0, dtype="uint8", scale=1.0, compress=False)
    for m in (
        replace(SENSORS["depth"], name="hha", symbol="H", colour="#56B4E9", channels=3, sparse=False),
        SENSORS["depth"],
        replace(SENSORS["event"], channels=3, channel_names=("red", "green", "blue")),
        replace(SENSORS["lidar"], channel_names=("red", "green", "blue")),
    )
}
for name in ("hha", "depth", "lidar"):
    SENSOR[name] = replace(SENSOR[name], low=0.0, picture="grey")
SENSOR["hha"] = replace(SENSOR["hha"], channel_names=())
SENSOR["rgb"] = SENSORS["rgb"]
# Folder of each image, and the word for it in the file's name.
FOLDER = {"rgb": ("img", "rgb"), "hha": ("hha", "depth"), "label": ("semantic", "semantic")}
FOLDER |= {name: (name, name) for name in ("depth", "event", "lidar")}


@dataclass(frozen=True)
class Options(common.Options):
    """Convert DELIVER to the prepared layout; goes on where an earlier run stopped."""

    depth: Literal["hha", "depth", "both"] = "hha"
    """Which depth image: hha (three planes; the D of published tables), depth (one plane), or both (hha is H
    then).
    """


def sensors(options: Options) -> list[str]:
    return ["rgb", *(("hha", "depth") if options.depth == "both" else (options.depth,)), "event", "lidar"]


def description(options: Options) -> Description:
    modalities = {name: SENSOR[name] for name in sensors(options)}
    if options.depth == "hha":  # the only depth: D, so that tables read as the published ones
        modalities["hha"] = replace(SENSOR["hha"], symbol="D", colour=SENSOR["depth"].colour)
    return Description(
        "deliver",
        CLASSES,
        PALETTE,
        modalities,
        source="DELIVER, Zhang et al., CVPR 2023, https://jamycheung.github.io/DELIVER.html; front view",
        licence="none stated for the data; repository Apache-2.0, commercial use by agreement with the "
        "authors",
        extra={
            "splits": "official; scores on test lie about 10 points below those on val, which is what most "
            "papers print: say which",
            "void": "ids 0 and 255 of the source are 255 here",
            "depth": "published results call the images of hha/ depth: symbol D where they are the only "
            "ones, else H",
            "units": "of hha, depth, event and lidar undocumented: values 0 to 255 as stored; that 0 means "
            "no measurement is our reading",
            "events": "images of another size than the camera's are resized to it by nearest neighbour",
        },
    )


def samples(root: Path, options: Options) -> list[Sample]:
    """One Sample per image in ``root/img``, with the paths of all its files.

    Raises:
        DataError: a name that the data set does not have, or an image without its counterparts.
    """
    listed = []
    for path in sorted((root / "img").glob("*/*/*/*.png")):
        condition, split, scene, name = parts = path.relative_to(root / "img").parts
        if any(part.startswith(".") for part in parts):
            continue
        frame = re.fullmatch(r"(\d+)_rgb_front\.png", name)
        place = re.fullmatch(r"MAP_[^_]+_[^_]+?(?:_(.+))?", scene)
        case = place and (place[1] or "")
        if condition not in CONDITIONS or split not in COUNTS or not frame or case not in ("", *CASES):
            raise DataError(
                f"{path}: expected img/<{' | '.join(CONDITIONS)}>/<{' | '.join(COUNTS)}>/MAP_<n>_<point>/"
                f"<frame>_rgb_front.png, the scene with or without one of _{', _'.join(CASES)} at its end"
            )
        files = {
            key: root.joinpath(
                FOLDER[key][0], condition, split, scene, f"{frame[1]}_{FOLDER[key][1]}_front.png"
            )
            for key in (*sensors(options), "label")
        }
        listed.append(Sample(f"{split}_{condition}_{scene}_{frame[1]}", split, condition, case, files))
    return common.complete(listed, options)


def verify(listed: list[Sample], options: Options, where) -> None:
    """Raise DataError unless every condition, and the failure cases together, have their official number of
    frames in each split.
    """
    conditions, failures = {}, {}
    for split, counts in COUNTS.items():
        conditions |= {f"{split} {condition}": count for condition, count in counts.items()}
        failures[f"{split} failing"] = FAILING[split]
        failures[f"{split} healthy"] = sum(counts.values()) - FAILING[split]
    by_condition = [replace(s, split=f"{s.split} {s.condition}") for s in listed]
    by_failure = [replace(s, split=f"{s.split} {'failing' if s.case else 'healthy'}") for s in listed]
    common.verify_counts(by_condition, conditions, options, where)
    common.verify_counts(by_failure, failures, options, where)


def nearest(array: ndarray, size: tuple[int, int]) -> ndarray:
    """(h, w, C) -> (H, W, C): each pixel takes the value whose centre is nearest to its own."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, array.shape))
    return array[rows][:, columns]


def read(sample: Sample) -> Arrays:
    """Stored images (H, W, C) and label (H, W) of one sample.

    Raises:
        DataError: a file is missing, damaged, of another kind or size, or has an unknown id.
    """
    images = {}
    for name, path in sample.files.items():
        channels = (3, 4) if name in ("rgb", "hha") else (1, 3, 4)
        # A fourth plane, opacity, is left out and changes nothing.
        array = read_image(path, "uint8", channels, None if name == "event" else SIZE)[..., :3]
        if name == "label":
            label = common.map_ids(array[..., 0], IDS, path)
        elif name == "depth":
            if (array != array[..., :1]).any():
                raise DataError(f"{path}: planes that differ; expected one depth value a pixel")
            images[name] = array[..., :1]
        else:
            images[name] = np.repeat(nearest(array, SIZE), 3 // array.shape[2], 2)
    return images, label


def prepare(options: Options) -> None:
    """Convert all frames, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    expected = {split: sum(counts.values()) for split, counts in COUNTS.items()}
    if options.check:
        listed, where = common.prepared_samples(options), options.out
    else:
        folders = sorted({FOLDER[name][0] for name in (*sensors(options), "label")})
        where = common.locate(options, folders, HOW)
        listed = samples(where, options)
    verify(listed, options, where)
    common.run(options, description(options), listed, read, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
