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

from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description

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
COUNTS = common.read_facts("deliver_counts")  # "failing": frames that show a failure case
PATTERN = re.compile(
    rf"({'|'.join(CONDITIONS)})/(train|val|test)/"
    rf"(MAP_[^_/]+_[^_/]+(?:_({'|'.join(CASES)}))?)/(\d+)_rgb_front\.png"
)

OFFICIAL = common.read_official("deliver")  # values 0 to 255 as stored: no scale is documented
IDS = {0: 255, 255: 255} | {id: id - 1 for id in range(1, 26)}
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
    depths = [name for name in ("hha", "depth") if options.depth in (name, "both")]
    return ["rgb", *depths, "event", "lidar"]


def description(options: Options) -> Description:
    modalities = {name: OFFICIAL.modalities[name] for name in sensors(options)}
    if options.depth == "hha":  # the only depth: D, so that tables read as the published ones
        colour = OFFICIAL.modalities["depth"].colour
        modalities["hha"] = replace(modalities["hha"], symbol="D", colour=colour)
    return replace(OFFICIAL, modalities=modalities)


def samples(root: Path, options: Options) -> list[Sample]:
    """One Sample per image in ``root/img``, with the paths of all its files.

    Raises:
        DataError: a name that the data set does not have, or an image without its counterparts.
    """
    listed = []
    for path in sorted((root / "img").glob("*/*/*/*.png")):
        place = path.relative_to(root / "img").as_posix()
        if "/." in f"/{place}":
            continue
        words = PATTERN.fullmatch(place)
        if not words:
            raise DataError(
                f"{path}: expected img/CONDITION/SPLIT/MAP_<n>_<point>[_CASE]/<frame>_rgb_front.png with one "
                f"of {', '.join(CONDITIONS)}; one of train, val, test; and one of {', '.join(CASES)}"
            )
        condition, split, scene, case, frame = words.groups("")
        files = {}
        for key in (*sensors(options), "label"):
            folder, word = FOLDER[key]
            files[key] = root / folder / condition / split / scene / f"{frame}_{word}_front.png"
        listed.append(Sample(f"{split}_{condition}_{scene}_{frame}", split, condition, case, files))
    return common.complete(listed, options)


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
            images[name] = np.repeat(common.nearest(array, SIZE), 3 // array.shape[2], 2)
    return images, label


def prepare(options: Options):
    """Convert all frames, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    folders = sorted({FOLDER[name][0] for name in (*sensors(options), "label")})
    listed = common.list_samples(options, samples, folders, HOW)
    common.run(options, description(options), listed, read, COUNTS)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
