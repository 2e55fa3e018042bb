"""LiDAR points and events seen by a camera: readers of the raw files, pinhole projection, z-buffer, counts.
Plain numpy.

A camera looks along +z, x points right, y down; pixel centres have integer coordinates, so pixel c holds u in
[c - 1/2, c + 1/2). ``K`` is a 3 × 3 camera matrix, ``a2b`` a 4 × 4 rigid transform from frame a to frame b in
metres. The images are taken as undistorted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
CHUNK = 1 << 15  # events at a time, so that intermediate arrays stay in the processor's cache
CLOCK = 1.0  # s; points that lie further from the exposure than this come from another clock


def read_calibration(path: Path, cameras: Iterable[str], transforms: Iterable[str]) -> dict[str, ndarray]:
    """``intrinsics/<camera>/K`` (3, 3) and ``extrinsics/<transform>`` (4, 4) of a JSON file, by their names.

    Raises:
        ValueError: no such file, no JSON, a key is missing, or a matrix is no camera matrix or no rigid
            transform; names file and key.
    """
    values = read_json(path, "the calibration, which projecting raw sensors needs")
    matrices = {}
    for name in (*cameras, *transforms):
        place, size = (("intrinsics", name, "K"), 3) if name in cameras else (("extrinsics", name), 4)
        where, value = f"{path}, {'/'.join(place)}", values
        try:
            for key in place:
                value = value[key]
            matrix = np.array(value, np.float64)
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: missing, or not a matrix of numbers; expected a {size} × {size} matrix"
            ) from error
        if matrix.shape != (size, size) or not np.isfinite(matrix).all():
            raise DataError(f"{where}: shape {matrix.shape}; expected a finite {size} × {size} matrix")
        turn = matrix[:3, :3]
        if size == 3:
            sound = turn[0, 0] > 0 and turn[1, 1] > 0 and turn[1, 0] == 0
            problem = "no camera matrix; expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]], fx, fy > 0"
        else:
            sound = np.abs(turn @ turn.T - np.eye(3)).max() < 0.01 and np.linalg.det(turn) > 0
            problem = "no rigid transform; expected a rotation and a shift in m above the row 0 0 0 1"
        if not sound or not np.array_equal(matrix[-1], np.eye(size)[-1]):
            raise DataError(f"{where}: {matrix.tolist()} is {problem}")
        matrices[name] = matrix
    return matrices


def resized_camera(camera: ndarray, native: tuple[int, int], size: tuple[int, int]) -> ndarray:
    """K (or any map to pixels, 3 × 3) of an image of (height, width) ``native`` after it is resized to
    ``size``: edges stay edges.
    """
    (sy, sx) = (new / old for new, old in zip(size, native))
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
    with reading(path, "LiDAR points", DataError):
        values, size = np.fromfile(path, np.float64), Path(path).stat().st_size
    if not size or size % (8 * POINT):
        raise DataError(
            f"{path}: {size} bytes are no whole number of {POINT} float64 a point ({8 * POINT} bytes); "
            "fetch it again"
        )
    points = values.reshape(-1, POINT)
    finite = np.isfinite(points[:, :3]).all(1)
    if not finite.any():
        raise DataError(f"{path}: none of {len(points)} points has finite coordinates; the file is damaged")
    points = points if finite.all() else points[finite]
    if not (points[:, 3] >= 0).all():
        raise DataError(f"{path}: negative or NaN intensity; the file is damaged, or no float64 (N, {POINT})")
    return points


@dataclass(frozen=True)
class Motion:
    """How the car moves while the LiDAR scans: along its own x axis, turning at a constant rate about its own
    axes (x forward, z down).
    """

    speed: float  # m/s
    rates: ndarray  # (3,) rad/s


def read_motion(path: Path) -> Motion:
    """Speed over ground and angular rates of the first line of a GNSS file.

    Raises:
        DataError: missing, or other than 28 integers; names the file.
    """
    with reading(path, f"a line of {len(GNSS)} integers, which motion compensation needs", DataError):
        with open(path, encoding="utf-8") as file:
            values = [int(word) for word in file.readline().split()]
    if len(values) != len(GNSS):
        raise DataError(f"{path}: {len(values)} numbers in the first line; expected {len(GNSS)} integers")
    fields = dict(zip(GNSS, values))
    rates = np.array([fields[f"angular_rate_{axis}"] for axis in ("roll", "pitch", "heading")])
    return Motion(fields["gSpeed"] / 1e3, np.deg2rad(rates / 1e5))


def compensate(
    points: ndarray, exposure: float, motion: Motion, lidar2car: ndarray, where="points"
) -> ndarray:
    """Points (N, 6) -> the same, each moved to where it would be measured from the car at the time
    ``exposure`` (s).

    In the car's frame, with w the rates, v the velocity and t = time of the point - exposure: p' = exp([w] t)
    p + ∫ exp([w] s) v ds over [0, t], the exact motion on an arc. Static surroundings are assumed.

    Raises:
        DataError: points and exposure lie more than a second apart; names ``where``.
    """
    seconds = points[:, 5] - exposure
    if not np.abs(seconds).max(initial=0) < CLOCK:
        apart = np.abs(seconds).max()
        raise DataError(
            f"{where}: a point lies {apart:.3g} s from the exposure; expected less than {CLOCK:g} s, both on "
            "one clock"
        )
    velocity, rate = np.array([motion.speed, 0, 0]), np.linalg.norm(motion.rates)
    place = points[:, :3] @ lidar2car[:3, :3].T + lidar2car[:3, 3]
    t = seconds[:, None]
    if rate > 1e-9:
        axis, angle = motion.rates / rate, rate * t
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


def visible(
    places: ndarray, camera: ndarray, to_camera: ndarray, size: tuple[int, int]
) -> tuple[ndarray, ndarray]:
    """Which of the points (N, 3) in m the camera sees, as indices (n,), and in which flat pixel row · width +
    column (n,).
    """
    matrix = camera @ to_camera[:3]
    u, v, depth = (places @ matrix[:, :3].T + matrix[:, 3]).T
    return _pixels(u, v, depth, size)


def _pixels(u: ndarray, v: ndarray, w: ndarray, size: tuple[int, int]) -> tuple[ndarray, ndarray]:
    """Indices and flat pixels of the homogeneous pixel coordinates (u, v, w) that lie in front of the camera
    and inside the image.
    """
    height, width = size
    front = np.flatnonzero(w > 0)
    if len(front) < len(w):
        u, v, w = u[front], v[front], w[front]
    with np.errstate(over="ignore"):
        column, row = np.floor(u / w + 0.5), np.floor(v / w + 0.5)
    inside = np.flatnonzero((column >= 0) & (column < width) & (row >= 0) & (row < height))
    return front[inside], (row[inside] * width + column[inside]).astype(np.int64)


def nearest(
    pixel: ndarray, distance: ndarray, size: tuple[int, int], enlarge: int = 1
) -> tuple[ndarray, ndarray]:
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
        pixel, point = nearest(pixel, distance, size)
        reach = np.arange(enlarge) - (enlarge - 1) // 2
        row, column = (pixel // width)[:, None, None] + reach[:, None], (pixel % width)[:, None, None] + reach
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel, point = (
            (row * width + column)[inside],
            np.broadcast_to(point[:, None, None], inside.shape)[inside],
        )
    distance = distance[point]
    buffer = np.full(height * width, np.inf)
    np.minimum.at(buffer, pixel, distance)
    front = np.flatnonzero(distance == buffer[pixel])
    pixel, point, order = pixel[front], point[front], np.arange(len(front), dtype=np.int32)
    first = np.empty(height * width, np.int32)
    first[pixel[::-1]] = order[::-1]  # backwards: where a pixel comes twice, the last assignment stays
    once = first[pixel] == order
    return pixel[once], point[once]


def lidar_returns(
    points: ndarray,
    camera: ndarray,
    lidar2camera: ndarray,
    size: tuple[int, int],
    enlarge: int = 1,
    near: float = 1.0,
):
    """What the camera sees of LiDAR points (N, 6): flat pixels (m,) and (m, 3) float64 range in m, intensity,
    height in m.

    Range and height are the LiDAR's own, measured from it. Points nearer than ``near`` m are the car itself
    and left out.
    """
    places = points[:, :3]
    distance = np.sqrt(np.einsum("ij,ij->i", places, places))
    index, pixel = visible(places, camera, lidar2camera, size)
    if (close := distance[index] < near).any():
        index, pixel = index[~close], pixel[~close]
    pixel, front = nearest(pixel, distance[index], size, enlarge)
    index = index[front]
    return pixel, np.stack([distance[index], points[index, 3], points[index, 2]], 1)


def read_events(path: Path, window: int) -> tuple[ndarray, ndarray, ndarray]:
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
        rows = [file[f"events/{name}"] for name in "xytp"]
        kinds = [getattr(row, "dtype", np.dtype(object)).kind for row in rows]
        if not set(kinds) <= set("biuf") or {row.shape for row in rows} != {(rows[0].size,)}:
            raise DataError(
                f"{path}: events/x, y, t, p have other types or lengths; expected four rows of numbers, one "
                "length"
            )
        t = rows[2][:]
        if not len(t):
            return tuple(np.zeros(0) for _ in range(3))
        if not np.isfinite(t).all():
            raise DataError(f"{path}: NaN or infinite event times")
        # A Python number: an unsigned 64-bit time would wrap below zero.
        recent = t >= t.max().item() - window
        first, last = (place := np.flatnonzero(recent))[0], place[-1] + 1
        x, y, p = (rows[i][first:last][recent[first:last]] for i in (0, 1, 3))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise DataError(f"{path}: NaN or infinite event coordinates")
    if not ((p == 0) | (p == 1)).all():
        raise DataError(
            f"{path}: polarities {np.unique(p)[:5].tolist()}; expected 0 (darker) and 1 (brighter)"
        )
    return x, y, p


def event_counts(x: ndarray, y: ndarray, p: ndarray, homography: ndarray, size: tuple[int, int]) -> ndarray:
    """(H, W, 2) int64: events with p = 1 and with p = 0 in every pixel of the camera, through ``homography``
    (3, 3).
    """
    cells = [np.zeros(0, np.int64)]
    for first in range(0, len(x), CHUNK):
        u, v = (np.asarray(values[first : first + CHUNK], np.float64) for values in (x, y))
        index, pixel = _pixels(*(row[0] * u + row[1] * v + row[2] for row in homography), size)
        cells.append(2 * pixel + (1 - np.asarray(p[first : first + CHUNK], np.int64)[index]))
    return np.bincount(np.concatenate(cells), minlength=2 * size[0] * size[1]).reshape(*size, 2)
