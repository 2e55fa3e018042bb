"""LiDAR points and events seen by a camera: readers of the raw files, pinhole projection, z-buffer, counts.
Plain numpy.

A camera looks along +z, x points right, y down; pixel centres have integer coordinates, so pixel c holds u in
[c - 1/2, c + 1/2). ``K`` is a 3 × 3 camera matrix, ``a2b`` a 4 × 4 rigid transform from frame a to frame b in
metres. The images are taken as undistorted.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from files import check_alone
from numpy import ndarray

from mmlib.data.images import DataError
from mmlib.runtime import read_json, reading

POINT = 6  # numbers a LiDAR point: x forward, y left, z up in m, intensity, ring, time in s
# Integers in a line of a GNSS file, by the receiver's names: angles in 1e-5 deg, angular rates in 1e-5 deg/s,
# speeds in mm/s.
GNSS = (
    "iTOW timestamp tAcc lon lat height hMSL fixType numSV hAcc vAcc roll pitch heading accRoll accPitch "
    "accHeading angular_rate_roll angular_rate_pitch angular_rate_heading velN velE velD gSpeed sAcc pDOP "
    "magDec magAcc"
).split()
Size, Pair = tuple[int, int], tuple[ndarray, ndarray]
CLOCK = 1.0  # s; points that lie further from the exposure than this come from another clock


def read_calibration(path: Path, cameras: Iterable[str], transforms: Iterable[str]) -> dict:
    """``intrinsics/<camera>/K`` (3, 3) and ``extrinsics/<transform>`` (4, 4) of a JSON file, by their names.

    Raises:
        ValueError: no such file, no JSON, a key is missing, or a matrix is no camera matrix or no rigid
            transform; names file and key.
    """
    values = read_json(path, "the calibration, which projecting raw sensors needs")
    wanted = {f"intrinsics/{name}/K": 3 for name in cameras} | {
        f"extrinsics/{name}": 4 for name in transforms
    }
    matrices = {}
    for place, size in wanted.items():
        value = values
        for key in place.split("/"):
            value = value.get(key) if isinstance(value, dict) else None
        kinds = (
            "a 3 × 3 camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, or a 4 × 4 rigid "
            "transform, a rotation and a shift in m above the row 0 0 0 1"
        )
        with reading(f"{path}, {place}", kinds, DataError):
            matrix = np.array(value, np.float64)
            turn = matrix[:3, :3]
            if size == 3:
                sound = turn[0, 0] > 0 and turn[1, 1] > 0 and turn[1, 0] == 0
            else:
                sound = np.abs(turn @ turn.T - np.eye(3)).max() < 0.01 and np.linalg.det(turn) > 0
            finite = np.isfinite(matrix).all() and matrix.shape == (size, size)
            if not (sound and finite and np.array_equal(matrix[-1], np.eye(size)[-1])):
                raise ValueError(f"{value}")
        matrices[place.split("/")[1]] = matrix
    return matrices


def resized_camera(camera: ndarray, native: Size, size: Size) -> ndarray:
    """K (or any map to pixels, 3 × 3) of an image of (height, width) ``native`` after it is resized to
    ``size``: edges stay edges.
    """
    sy, sx = np.divide(size, native)
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]]) @ camera


def homography_at_infinity(event_camera: ndarray, camera: ndarray, event2camera: ndarray) -> ndarray:
    """H = K_camera R K_event⁻¹, (3, 3): where a far point seen by the event camera lies in the camera's
    image.

    Events have no depth, so the shift between the two cameras is left out. Rectifying the pair, taking the
    disparity as zero and undoing the rectification, as public tools do, is the same map.
    """
    return camera @ event2camera[:3, :3] @ np.linalg.inv(event_camera)


def read_points(path: Path) -> ndarray:
    """LiDAR points (N, 6) float64: x, y, z in m, intensity, ring, time in s. Points without a finite place
    are no returns and left out.

    Raises:
        DataError: missing, empty, cut inside a point, or no finite point; NaN or negative intensity; names
            the file.
    """
    with reading(path, f"LiDAR points, {POINT} float64 each (fetch it again)", DataError):
        points = np.frombuffer(Path(path).read_bytes()).reshape(-1, POINT)
    points = points[np.isfinite(points[:, :3]).all(1)]
    if not len(points) or not (points[:, 3] >= 0).all():
        raise DataError(
            f"{path}: no point with finite coordinates, or negative or NaN intensity; the file is damaged, "
            f"or no float64 (N, {POINT})"
        )
    return points


def read_motion(path: Path) -> tuple[float, ndarray]:
    """Speed over ground (m/s) and angular rates (3,) (rad/s) of the first line of a GNSS file: how the car
    moves while the LiDAR scans, along its own x axis, turning at a constant rate about its own axes (x
    forward, z down).

    Raises:
        DataError: missing, or other than 28 integers; names the file.
    """
    with reading(path, f"a line of {len(GNSS)} integers, which motion compensation needs", DataError):
        with open(path, encoding="utf-8") as file:
            fields = dict(zip(GNSS, map(int, file.readline().split()), strict=True))
    rates = np.array([fields[f"angular_rate_{axis}"] for axis in ("roll", "pitch", "heading")])
    return fields["gSpeed"] / 1e3, np.deg2rad(rates / 1e5)


def compensate(
    points: ndarray, exposure: float, motion: tuple, lidar2car: ndarray, where="points"
) -> ndarray:
    """Points (N, 6) -> the same, each moved to where it would be measured from the car at the time
    ``exposure`` (s). ``motion``: speed and rates (``read_motion``).

    In the car's frame, with w the rates, v the velocity and t = time of the point - exposure: p' = exp([w] t)
    p + ∫ exp([w] s) v ds over [0, t], the exact motion on an arc. Static surroundings are assumed.

    Raises:
        DataError: points and exposure lie more than a second apart; names ``where``.
    """
    seconds = points[:, 5] - exposure
    apart = np.abs(seconds).max(initial=0)
    if not apart < CLOCK:
        raise DataError(
            f"{where}: a point lies {apart:.3g} s from the exposure; expected less than {CLOCK:g} s, both on "
            "one clock"
        )
    speed, rates = motion
    velocity, rate = np.array([speed, 0, 0]), np.linalg.norm(rates)
    place = points[:, :3] @ lidar2car[:3, :3].T + lidar2car[:3, 3]
    t = seconds[:, None]
    if rate > 1e-9:
        axis, angle = rates / rate, rate * t
        along = axis * (place @ axis)[:, None]
        place = along + (place - along) * np.cos(angle) + np.cross(axis, place) * np.sin(angle)
        forward = axis * (velocity @ axis)
        shift = (
            forward * t
            + (velocity - forward) * np.sin(angle) / rate
            + np.cross(axis, velocity) * (1 - np.cos(angle)) / rate
        )
    else:
        shift = velocity * t
    moved = points.copy()
    moved[:, :3] = (place + shift - lidar2car[:3, 3]) @ np.linalg.inv(lidar2car[:3, :3]).T
    return moved


def visible(places: ndarray, camera: ndarray, to_camera: ndarray, size: Size) -> Pair:
    """Which of the points (N, 3) in m the camera sees, as indices (n,), and in which flat pixel row · width +
    column (n,).
    """
    matrix = camera @ to_camera[:3]
    u, v, depth = (places @ matrix[:, :3].T + matrix[:, 3]).T
    return _pixels(u, v, depth, size)


def _pixels(u: ndarray, v: ndarray, w: ndarray, size: Size) -> Pair:
    """Indices and flat pixels of the homogeneous pixel coordinates (u, v, w) that lie in front of the camera
    and inside the image.
    """
    height, width = size
    with np.errstate(all="ignore"):  # beside the camera it divides by 0
        column, row = np.floor(u / w + 0.5), np.floor(v / w + 0.5)
    inside = (w > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.flatnonzero(inside), (row[inside] * width + column[inside]).astype(np.int64)


def nearest(pixel: ndarray, distance: ndarray, size: Size, enlarge: int = 1) -> Pair:
    """Z-buffer: of the points that land in one pixel the nearest is seen (of equal ones the first).

    Args:
        pixel, distance: (n,) flat pixel and distance of each point.
        enlarge: every point covers enlarge × enlarge pixels, for an even number one more to the right and
            below.

    Returns:
        Flat pixels that are hit (m,), each once, in any order, and the index of the point seen in each (m,).
    """
    height, width = size
    point = np.arange(len(pixel))
    if enlarge > 1:
        point = np.sort(nearest(pixel, distance, size)[1])
        reach = np.arange(enlarge) - (enlarge - 1) // 2
        row, column = (place[:, None, None] for place in np.divmod(pixel[point], width))
        row, column = np.broadcast_arrays(row + reach[:, None], column + reach)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel, point = (row * width + column)[inside], point[np.nonzero(inside)[0]]
    order = np.argsort(distance[point], kind="stable")
    hit, first = np.unique(pixel[order], return_index=True)
    return hit, point[order[first]]


def lidar_returns(points: ndarray, camera: ndarray, lidar2camera: ndarray, size: Size, enlarge: int = 1):
    """What the camera sees of LiDAR points (N, 6): flat pixels (m,) and (m, 3) float64 range in m, intensity,
    height in m.

    Range and height are the LiDAR's own, measured from it. Points nearer than 1 m are the car itself and left
    out.
    """
    places = points[:, :3]
    distance = np.sqrt(np.einsum("ij,ij->i", places, places))
    index, pixel = visible(places, camera, lidar2camera, size)
    far = distance[index] >= 1
    index, pixel = index[far], pixel[far]
    pixel, front = nearest(pixel, distance[index], size, enlarge)
    index = index[front]
    return pixel, np.stack([distance[index], points[index, 3], points[index, 2]], 1)


def read_events(path: Path, window: int) -> tuple:
    """Events of the last ``window`` microseconds before the last one: x, y, p (n,), p = 1 brighter, 0 darker.
    In any order in the file.

    Raises:
        DataError: missing, damaged, or not events/{x,y,t,p} of one length, finite, p of 0 and 1; names the
            file.
        ValueError: h5py, or hdf5plugin with the filters these files are packed with, is not installed.
    """
    try:
        import h5py
        import hdf5plugin  # noqa: F401 - its import registers the filters
    except ImportError as error:
        raise ValueError(f'{path}: event files need {error.name}; pip install -e ".[data]"') from error
    with reading(path, "HDF5 with events/x, y, t, p", DataError), h5py.File(path, "r") as file:
        check_alone(file)
        rows = x, y, t, p = [file[f"events/{name}"] for name in "xytp"]
        if not {row.dtype.kind for row in rows} <= set("biuf") or {row.shape for row in rows} != {(t.size,)}:
            raise TypeError("expected four rows of numbers, one length")
        t = t[:]
        if not np.isfinite(t).all():
            raise ValueError("NaN or infinite event times")
        if not len(t):
            return x[:], y[:], p[:]
        # A Python number: an unsigned 64-bit time would wrap below zero.
        recent = np.flatnonzero(t >= t.max().item() - window)
        part = slice(recent[0], recent[-1] + 1)  # all that is read of the file
        x, y, p = (row[part][recent - recent[0]] for row in (x, y, p))
        if not (np.isfinite(x) & np.isfinite(y) & ((p == 0) | (p == 1))).all():
            raise ValueError(
                "NaN or infinite coordinates, or polarities other than 0 (darker) and 1 (brighter)"
            )
    return x, y, p


def event_counts(x: ndarray, y: ndarray, p: ndarray, homography: ndarray, size: Size) -> ndarray:
    """(H, W, 2) int64: events with p = 1 and with p = 0 in every pixel of the camera, through ``homography``
    (3, 3).
    """
    u, v = np.asarray(x, np.float64), np.asarray(y, np.float64)
    index, pixel = _pixels(*(row[0] * u + row[1] * v + row[2] for row in homography), size)
    cells = 2 * pixel + (1 - np.asarray(p, np.int64)[index])
    return np.bincount(cells, minlength=2 * size[0] * size[1]).reshape(*size, 2)
