"""Prepare MUSES (Brödermann et al., ECCV 2024): camera, event camera and LiDAR of real drives in bad weather
and at night, 19 classes.

    python data_scripts/prepare_muses.py SOURCE --out DIR [--splits train val] [--sensors rgb event lidar]

SOURCE is the folder that holds meta.json, or a folder with the downloaded zip files, which are unpacked
first. What there is, its split, weather and time of day are read from meta.json; the raw sensors are
projected to the camera (projection.py) with calib.json:

* LiDAR, float64 (N, 6): range (m), intensity, height (m), both measured from the LiDAR, 0 = no point. Of the
  points that land in one pixel the nearest is kept, none behind the camera or nearer than 1 m. Stored as
  uint16, value / 128 - 128; heights are often negative.
* Events, HDF5: number of events with p = 1 and with p = 0 in the last 30 ms before the last event of the
  file, at most 255.
* Points and counts are projected at the size that is written, instead of thinned out by a resize.

Labels are the labelTrainIds images: 0 to 18 and 255 = ignore, which stays ignore (255 made 0 would be road).
The radar is not read. Unlabelled and labelled samples cannot share a data set: where the test labels are
withheld, write ``--splits test`` to a folder of its own to predict on, and score on val. At 1080 x 1920 a
sample takes about 20 MB, train and val together 35 GB.
Licence: non-commercial; neither the data set nor modified versions of it may be shared, so keep what this
script writes to yourself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import common
import numpy as np
import projection
from common import Sample
from files import unpack
from numpy import ndarray

from mmlib.config import Above, AtLeast
from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description
from mmlib.modalities import SENSORS
from mmlib.runtime import read_json

HOW = """MUSES: register at https://muses.ethz.ch, then download and unzip into one folder
(or leave the zip files in one folder):
  RGB_Frame_Camera_trainvaltest, Semantic_Annotations_trainval, Event_Camera_trainvaltest, Lidar_trainvaltest
  and for --motion-compensation GNSS_trainvaltest (sizes: not stated).
Give this command the folder that then holds meta.json, calib.json, frame_camera/, gt_semantic/,
event_camera/ and lidar/.
Licence: ETH agreement, non-commercial, teaching allowed; you may not share the data set
or modified versions of it."""

SIZE = (1080, 1920)
COUNTS = {"train": 1500, "val": 250, "test": 750}
WEATHER, TIMES = ("clear", "fog", "rain", "snow"), ("day", "night")
CLASSES = (
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, "
    "person, rider, car, truck, bus, train, motorcycle, bicycle"
).split(", ")
PALETTE = common.palette(
    "#804080 #f423e8 #464646 #66669c #be9999 #999999 #faaa1e #dcdc00 #6b8e23 #98fb98 #4682b4 #dc143c #ff0000 "
    "#00008e #000046 #003c64 #005064 #0000e6 #770b20"
)
IDS = {id: id for id in (*range(19), 255)}
# 0 m is stored as 16384 exactly; -128 to 383.99 m in steps of 8 mm holds ranges, heights below the LiDAR and
# 8-bit intensities.
LIDAR = replace(SENSORS["lidar"], scale=1 / 128, offset=-128.0)
LOWEST, HIGHEST = -128.0, 65535 / 128 - 128
MODALITIES = {"rgb": SENSORS["rgb"], "event": SENSORS["event"], "lidar": LIDAR}
FOLDERS = {"rgb": "frame_camera", "event": "event_camera", "lidar": "lidar"}
SUFFIXES = (".npz", ".npy", ".png")  # of files that the authors' tool has projected


@dataclass(frozen=True)
class Options(common.Options):
    """Convert MUSES to the prepared layout; goes on where an earlier run stopped."""

    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Splits to write. 'test' beside others needs the test labels, which may be withheld; 'test' alone does
    without them.
    """
    sensors: tuple[Literal["rgb", "event", "lidar"], ...] = ("rgb", "event", "lidar")
    """Sensors to write."""
    window: Annotated[float, Above(0)] = 30.0
    """Events of so many milliseconds before the last one are counted."""
    enlarge: Annotated[int, AtLeast(1)] = 1
    """Every LiDAR point covers this many pixels squared; nearest point first."""
    motion_compensation: bool = False
    """Move each LiDAR point by what the car did between it and the middle of the exposure; needs gnss/."""
    projected: str = ""
    """Folder that the authors' tool has written (projected_to_rgb), read in place of the raw events and
    LiDAR.
    """

    def recorded(self) -> dict:
        return super().recorded() | {"projected": bool(self.projected)}  # whether, not where

    def inputs(self) -> list[str]:
        return [self.source, self.projected]


def description(options: Options) -> Description:
    if not options.splits or not options.sensors:
        raise DataError("--splits and --sensors: name at least one each")
    if options.projected and (options.motion_compensation or options.enlarge != 1 or options.window != 30):
        raise DataError(
            "--projected reads finished images; --motion-compensation, --enlarge and --window are for raw "
            "sensors"
        )
    return Description(
        "muses",
        CLASSES,
        PALETTE,
        {name: MODALITIES[name] for name in MODALITIES if name in options.sensors},
        source="MUSES, Brödermann et al., ECCV 2024, https://muses.ethz.ch; registration",
        licence="ETH agreement, non-commercial; the data set and modified versions of it may not be shared",
        extra={
            "splits": "official; where the test labels are withheld, val is what can be scored here, and is "
            "not the published test",
            "void": "labelTrainIds: 255 of the source is 255 here",
            "condition": "weather and time of day of meta.json",
            "event": "events with p = 1 and with p = 0, at most 255; --window counts back from the last "
            "event of a file",
            "lidar": "range (m), intensity (unit undocumented), height (m), from the LiDAR's origin",
            "projection": "by the authors' tool"
            if options.projected
            else "by this script: nearest point first, events as if far away",
        },
    )


def read_meta(root: Path) -> dict:
    """meta.json: an entry for each sample.

    Raises:
        ValueError: no JSON, or an entry without a known split, weather and time of day; names the entry.
    """
    path = root / "meta.json"
    meta = read_json(path, "the list of samples")
    if not meta:
        raise DataError(f"{path}: expected one entry a sample, by its name")
    for name, entry in meta.items():
        for key, choices in (("split", tuple(COUNTS)), ("weather", WEATHER), ("time_of_day", TIMES)):
            value = entry.get(key) if isinstance(entry, dict) else None
            if value not in choices:
                raise DataError(f"{path}, {name!r}: {key} is {value!r}; expected {', '.join(choices)}")
    return meta


def _path(root: Path, name: str, entry: Mapping, sensor: str) -> PurePosixPath:
    """Relative path of a sample's file, as meta.json states it; may not leave the data set."""
    key = f"path_to_{FOLDERS.get(sensor, sensor)}"
    path = PurePosixPath(str(entry.get(key) or ""))
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise DataError(
            f"{root / 'meta.json'}, {name!r}: {key} is {entry.get(key)!r}; expected a path below the data "
            "set's folder"
        )
    return path


def samples(root: Path, meta: Mapping, options: Options) -> list[Sample]:
    """One Sample per entry of the wanted splits, with the paths of its files.

    Raises:
        DataError: an entry without a path, or a file that is not there.
    """
    tests, splits = root / "gt_semantic" / "test", set(options.splits)
    labelled = "test" not in splits or tests.is_dir()
    if not labelled and len(splits) > 1:
        raise DataError(
            f"{tests}: not found; without test labels write --splits train val, and --splits test to another "
            "folder (a data set is labelled throughout or not at all)"
        )
    listed = []
    for name, entry in meta.items():
        if entry["split"] not in splits:
            continue
        files = {}
        for sensor in options.sensors:
            path = _path(root, name, entry, sensor)
            files[sensor] = root / path
            if options.projected and sensor != "rgb":
                choices = [Path(options.projected) / path.with_suffix(suffix) for suffix in SUFFIXES]
                files[sensor] = next((choice for choice in choices if choice.exists()), choices[0])
        if labelled:
            frame = _path(root, name, entry, "rgb")
            stem = frame.name.removesuffix("_frame_camera.png")
            files["label"] = root.joinpath("gt_semantic", *frame.parts[1:-1], f"{stem}_gt_labelTrainIds.png")
        if options.motion_compensation and "lidar" in options.sensors:
            files["gnss"] = root / _path(root, name, entry, "gnss")
        listed.append(Sample(name, entry["split"], f"{entry['weather']}-{entry['time_of_day']}", "", files))
    return common.complete(listed, options)


def geometry(root: Path, options: Options) -> dict[str, ndarray]:
    """Matrices at the size that is written: camera K, event homography, lidar2rgb, and lidar2gnss where
    points are to be moved.
    """
    raw = [name for name in ("event", "lidar") if name in options.sensors and not options.projected]
    if not raw:
        return {}
    transforms = [f"{name}2rgb" for name in raw]
    if options.motion_compensation and "lidar" in raw:
        transforms.append("lidar2gnss")
    cameras = ["rgb", *raw[: raw.count("event")]]
    matrices = projection.read_calibration(root / "calib.json", cameras, transforms)
    size = options.size if any(options.size) else SIZE
    matrices["rgb"] = camera = projection.resized_camera(matrices["rgb"], SIZE, size)
    if "event" in raw:
        matrices["homography"] = projection.homography_at_infinity(
            matrices["event"], camera, matrices["event2rgb"]
        )
    return matrices


def check_returns(values: ndarray, where) -> None:
    """Raise DataError unless (n, 3) range, intensity, height are finite, no range or intensity negative, and
    all can be stored.
    """
    low, high = values.min(0, initial=0), values.max(0, initial=0)  # NaN stays NaN
    if not ((low >= (0, 0, LOWEST)).all() and (high <= HIGHEST).all()):
        extents = ", ".join(
            f"{name} {a:.4g} to {b:.4g}" for name, a, b in zip(LIDAR.channel_names, low, high)
        )
        raise DataError(
            f"{where}: {extents}; expected finite values, range and intensity from 0, height from "
            f"{LOWEST:g}, to {HIGHEST:.0f}"
        )


def read_lidar(
    sample: Sample, options: Options, matrices: Mapping, entry: Mapping, size: tuple[int, int]
) -> ndarray:
    """Stored LiDAR image (H, W, 3) from raw points."""
    path = sample.files["lidar"]
    points = projection.read_points(path)
    check_returns(np.c_[np.linalg.norm(points[:, :3], axis=1), points[:, 3], points[:, 2]], path)
    if options.motion_compensation:
        keys = [f"frame_camera_exposure_{end}_timestamp_us" for end in ("start", "end")]
        try:
            exposure = sum(int(entry[key]) for key in keys) / 2e6
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"meta.json, {sample.id!r}: no {' and '.join(keys)} in microseconds; motion compensation "
                "needs them"
            ) from error
        points = projection.compensate(
            points, exposure, projection.read_motion(sample.files["gnss"]), matrices["lidar2gnss"], path
        )
    pixel, values = projection.lidar_returns(
        points, matrices["rgb"], matrices["lidar2rgb"], size, options.enlarge
    )
    image = np.full((size[0] * size[1], 3), LIDAR.to_stored(0), np.uint16)
    image[pixel] = LIDAR.to_stored(values)
    return image.reshape(*size, 3)


def read_projected(path: Path, sensor: str) -> ndarray:
    """Stored image of a file that the authors' tool has written: .npz or .npy as computed, or .png.

    In a .png the planes stand in reverse order, and LiDAR is uint16 (v + 100) · 150. Readers of 8 bits see
    its high byte only.

    Raises:
        DataError: missing, damaged, or not (1080, 1920, 3) of the documented type and range; names the file.
    """
    if path.suffix == ".png":
        array = read_image(path, "uint16" if sensor == "lidar" else "uint8", 3, SIZE)[..., ::-1]
        array = array / 150 - 100 if sensor == "lidar" else array
    else:
        dtype = "float32" if sensor == "lidar" else "uint8"
        if path.suffix == ".npy":
            array = read_image(path, dtype, 3, SIZE)
        else:
            try:
                with np.load(path, allow_pickle=False) as file:
                    array = file["arr_0"]
            except Exception as error:  # a damaged archive fails in a dozen ways
                reason = f"{type(error).__name__}: {error}"
                raise DataError(f"{path}: cannot be read ({reason}); expected one {dtype} array") from error
        if array.dtype != dtype or array.shape != (*SIZE, 3):
            raise DataError(f"{path}: {array.dtype} {array.shape}; expected {dtype} {(*SIZE, 3)}")
    if sensor == "event":
        return np.ascontiguousarray(array[..., :2])
    check_returns(array.reshape(-1, 3), path)
    return LIDAR.to_stored(array)


def read(
    sample: Sample, options: Options, matrices: Mapping, entry: Mapping
) -> tuple[dict[str, ndarray], ndarray | None]:
    """Stored images (H, W, C) and label (H, W) of one sample; raw events and LiDAR at the size that is
    written, all else as it is.

    Raises:
        DataError: a file is missing, damaged, or of another kind, size or range.
    """
    images, label, size = {}, None, options.size if any(options.size) else SIZE
    for sensor in options.sensors:
        path = sample.files[sensor]
        if sensor == "rgb":
            images[sensor] = read_image(path, "uint8", 3, SIZE)
        elif options.projected:
            images[sensor] = read_projected(path, sensor)
        elif sensor == "lidar":
            images[sensor] = read_lidar(sample, options, matrices, entry, size)
        else:
            events = projection.read_events(path, round(1000 * options.window))
            counts = projection.event_counts(*events, matrices["homography"], size)
            images[sensor] = np.minimum(counts, 255).astype(np.uint8)  # a plain cast would wrap 256 to 0
    if "label" in sample.files:
        path = sample.files["label"]
        label = common.map_ids(read_image(path, None, 1, SIZE, palette=True)[..., 0], IDS, path)
    return images, label


def locate(options: Options) -> Path:
    """The folder with meta.json and the wanted sensors. A folder of zip files is unpacked first, all into
    one.
    """
    common.check_options(options)
    source = Path(options.source)
    archives = sorted(source.glob("*.zip")) if options.source else []
    if archives and not (source / "meta.json").exists():
        source = unpack(archives, Path(f"{options.out.rstrip('/')}-source"), options.progress)
        options = replace(options, source=str(source))
    names = [FOLDERS[name] for name in options.sensors if name == "rgb" or not options.projected]
    return common.locate(options, ["meta.json", *names], HOW)


def prepare(options: Options) -> None:
    """Convert the wanted splits, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    described, listed, convert = description(options), [], None
    if not options.check:
        root = locate(options)
        meta, matrices = read_meta(root), geometry(root, options)
        listed = samples(root, meta, options)

        def convert(sample: Sample):
            return read(sample, options, matrices, meta[sample.id])

    expected = {split: COUNTS[split] for split in options.splits}
    common.run(options, described, listed, convert, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
