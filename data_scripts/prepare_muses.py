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
from common import Arrays, Sample, Size
from numpy import ndarray

from mmlib.config import Above, AtLeast
from mmlib.data.images import read_image
from mmlib.data.prepared import DataError, Description
from mmlib.runtime import read_json, reading

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
OFFICIAL = common.read_official("muses")
IDS = {id: id for id in (*range(19), 255)}
# 0 m is stored as 16384 exactly; -128 to 383.99 m in steps of 8 mm holds ranges, heights below the LiDAR and
# 8-bit intensities.
LIDAR = OFFICIAL.modalities["lidar"]
LOWEST, HIGHEST = LIDAR.to_physical(np.array([0, 65535]))
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
    if options.projected and (options.motion_compensation or options.enlarge != 1 or options.window != 30):
        raise DataError(
            "--projected reads finished images; --motion-compensation, --enlarge and --window are for raw "
            "sensors"
        )
    modalities = {name: each for name, each in OFFICIAL.modalities.items() if name in options.sensors}
    extra = OFFICIAL.extra | ({"projection": "by the authors' tool"} if options.projected else {})
    return replace(OFFICIAL, modalities=modalities, extra=extra)


def read_meta(root: Path) -> dict:
    """meta.json: an entry for each sample.

    Raises:
        ValueError: no JSON, or an entry without a known split, weather and time of day; names the entry.
    """
    path = root / "meta.json"
    meta = read_json(path, "the list of samples")
    for name, entry in meta.items():
        for key, choices in (("split", tuple(COUNTS)), ("weather", WEATHER), ("time_of_day", TIMES)):
            value = entry.get(key) if isinstance(entry, dict) else None
            if value not in choices:
                raise DataError(f"{path}, {name!r}: {key} is {value!r}; expected {', '.join(choices)}")
    return meta


def _path(root: Path, name: str, entry: Mapping, sensor: str) -> PurePosixPath:
    """Relative path of a sample's file, as meta.json states it; may not leave the data set."""
    key = f"path_to_{FOLDERS.get(sensor, sensor)}"
    path = PurePosixPath(str(entry.get(key)))
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


def written_size(options: Options) -> Size:
    return options.size if any(options.size) else SIZE


def geometry(root: Path, options: Options) -> dict:
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
    matrices["rgb"] = camera = projection.resized_camera(matrices["rgb"], SIZE, written_size(options))
    if "event" in raw:
        far = projection.homography_at_infinity(matrices["event"], camera, matrices["event2rgb"])
        matrices["homography"] = far
    return matrices


def check_returns(values: ndarray, where):
    """Raise DataError unless (n, 3) range, intensity, height are finite, no range or intensity negative, and
    all can be stored.
    """
    low, high = values.min(0, initial=0), values.max(0, initial=0)  # NaN stays NaN
    if not ((low >= (0, 0, LOWEST)).all() and (high <= HIGHEST).all()):
        extents = ", ".join(map("{} {:.4g} to {:.4g}".format, LIDAR.channel_names, low, high))
        raise DataError(
            f"{where}: {extents}; expected finite values, range and intensity from 0, height from "
            f"{LOWEST:g}, to {HIGHEST:.0f}"
        )


def read_lidar(sample: Sample, options: Options, matrices: Mapping, entry: Mapping) -> ndarray:
    """Stored LiDAR image (H, W, 3) from raw points."""
    path, size = sample.files["lidar"], written_size(options)
    points = projection.read_points(path)
    check_returns(np.c_[np.linalg.norm(points[:, :3], axis=1), points[:, 3], points[:, 2]], path)
    if options.motion_compensation:
        keys = [f"frame_camera_exposure_{end}_timestamp_us" for end in ("start", "end")]
        with reading(
            f"meta.json, {sample.id!r}", f"an entry with {' and '.join(keys)} in microseconds", DataError
        ):
            exposure = sum(int(entry[key]) for key in keys) / 2e6
        motion = projection.read_motion(sample.files["gnss"])
        points = projection.compensate(points, exposure, motion, matrices["lidar2gnss"], path)
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
    lidar = sensor == "lidar"
    dtype = "float32" if lidar else "uint8"
    if path.suffix == ".png":
        array = read_image(path, "uint16" if lidar else "uint8", 3, SIZE)[..., ::-1]
        array = array / 150 - 100 if lidar else array
    elif path.suffix == ".npy":
        array = read_image(path, dtype, 3, SIZE)
    else:
        with reading(path, f"one {dtype} array", DataError), np.load(path, allow_pickle=False) as file:
            array = file["arr_0"]
        if array.dtype != dtype or array.shape != (*SIZE, 3):
            raise DataError(f"{path}: {array.dtype} {array.shape}; expected {dtype} {(*SIZE, 3)}")
    if not lidar:
        return array[..., :2]
    check_returns(array.reshape(-1, 3), path)
    return LIDAR.to_stored(array)


def read(sample: Sample, options: Options, matrices: Mapping, entry: Mapping) -> Arrays:
    """Stored images (H, W, C) and label (H, W) of one sample; raw events and LiDAR at the size that is
    written, all else as it is.

    Raises:
        DataError: a file is missing, damaged, or of another kind, size or range.
    """
    images = {}
    for sensor in options.sensors:
        path = sample.files[sensor]
        if sensor == "rgb":
            images[sensor] = read_image(path, "uint8", 3, SIZE)
        elif options.projected:
            images[sensor] = read_projected(path, sensor)
        elif sensor == "lidar":
            images[sensor] = read_lidar(sample, options, matrices, entry)
        else:
            events = projection.read_events(path, round(1000 * options.window))
            counts = projection.event_counts(*events, matrices["homography"], written_size(options))
            images[sensor] = np.minimum(counts, 255).astype(np.uint8)  # a plain cast would wrap 256 to 0
    label = common.read_ids(sample.files["label"], IDS, SIZE) if "label" in sample.files else None
    return images, label


def prepare(options: Options):
    """Convert the wanted splits, or with --check read them back.

    Raises:
        DataError: the source does not look as documented, or a file is unreadable.
    """
    described, listed, convert = description(options), [], None
    if not options.check:
        names = [FOLDERS[name] for name in options.sensors if name == "rgb" or not options.projected]
        packed = "" if (Path(options.source) / "meta.json").exists() else "*.zip"
        root = common.locate(options, ["meta.json", *names], HOW, packed)
        meta, matrices = read_meta(root), geometry(root, options)
        listed = samples(root, meta, options)

        def convert(sample: Sample):
            return read(sample, options, matrices, meta[sample.id])

    expected = {split: COUNTS[split] for split in options.splits}
    common.run(options, described, listed, convert, expected)


if __name__ == "__main__":
    common.start(prepare, Options, __doc__)
