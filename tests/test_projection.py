"""Projection of raw points and events to a camera: closed forms, loops over single points in plain Python,
properties, damaged files.
"""

import json
import math
import sys
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from mmlib.data.prepared import DataError

sys.path.insert(0, str(Path(__file__).parents[1] / "data_scripts"))
import projection  # noqa: E402

SIZE = (30, 40)
K = np.array([[36.0, 0, 19.3], [0, 35.0, 14.2], [0, 0, 1]])
EVENT_K = np.array([[25.0, 0, 13.0], [0, 26.0, 9.0], [0, 0, 1]])


def rigid(rotation: Rotation, shift) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation.as_matrix(), shift
    return matrix


# LiDAR: x forward, y left, z up -> camera: z forward, x right, y down; then slightly turned and shifted.
TO_CAMERA = rigid(
    Rotation.from_rotvec([0.02, -0.05, 0.03]) * Rotation.from_matrix([[0, -1, 0], [0, 0, -1], [1, 0, 0]]),
    [0.2, -0.4, 0.1],
)


def cloud(seed=0, count=800) -> np.ndarray:
    """Points all around the car, some of them at its very place, and as many again before it, several in one
    pixel.
    """
    rng = np.random.default_rng(seed)
    points = np.empty((count, 6))
    points[:, :3] = rng.normal(0, 6, (count, 3)) * rng.choice([0.1, 1, 3], (count, 1))
    ahead = np.c_[np.ones(count), rng.uniform(-0.6, 0.6, (count, 2))] * rng.uniform(0.5, 60, (count, 1))
    points[1::2, :3] = ahead[1::2]
    points[:, 3], points[:, 4], points[:, 5] = (
        rng.integers(0, 256, count),
        rng.integers(0, 5, count),
        rng.uniform(0, 0.1, count),
    )
    return points


def seen_by_loop(points, camera, transform, size, enlarge=1, near=1.0) -> dict:
    """{(row, column): (range, intensity, height)}, one point after the other, in plain Python numbers."""
    pixels = {}
    for x, y, z, intensity, *_ in points.tolist():
        distance = math.sqrt(x * x + y * y + z * z)
        a, b, c = (sum(t * v for t, v in zip(row, (x, y, z, 1.0))) for row in transform[:3].tolist())
        if distance < near or c <= 0:
            continue
        column = math.floor(camera[0, 0] * a / c + camera[0, 2] + 0.5)
        row = math.floor(camera[1, 1] * b / c + camera[1, 2] + 0.5)
        if not (0 <= row < size[0] and 0 <= column < size[1]):
            continue
        first, last = -((enlarge - 1) // 2), enlarge // 2
        for r in range(max(0, row + first), min(size[0], row + last + 1)):
            for k in range(max(0, column + first), min(size[1], column + last + 1)):
                if (r, k) not in pixels or distance < pixels[r, k][0]:
                    pixels[r, k] = (distance, intensity, z)
    return pixels


def returns(points, size=SIZE, enlarge=1, camera=K, transform=TO_CAMERA) -> dict:
    pixel, values = projection.lidar_returns(points, camera, transform, size, enlarge)
    assert len(set(pixel.tolist())) == len(pixel)
    return {divmod(p, size[1]): tuple(v) for p, v in zip(pixel.tolist(), values.tolist())}


# ---- LiDAR
# ------------------------------------------------------------------------------------------------------------------------


def test_a_point_on_the_optical_axis_lands_on_the_principal_point():
    axis = np.linalg.inv(TO_CAMERA) @ [0, 0, 7.5, 1]
    point = np.array([[*axis[:3], 9, 0, 0]])
    (row, column), (distance, intensity, height) = next(iter(returns(point).items()))
    assert (row, column) == (14, 19)  # the nearest centres to cy = 14.2, cx = 19.3
    assert (
        math.isclose(distance, np.linalg.norm(axis[:3])) and intensity == 9 and math.isclose(height, axis[2])
    )


def test_pixel_borders_are_half_way_between_centres():
    camera, ahead = np.array([[10.0, 0, 4], [0, 10, 4], [0, 0, 1]]), np.eye(4)
    for u, column in ((-0.51, None), (-0.5, 0), (0.49, 0), (0.5, 1), (7.49, 7), (7.5, None)):
        point = np.array([[(u - 4) / 10 * 4, 0, 4.0, 1, 0, 0]])
        assert [c for _, c in returns(point, (9, 8), camera=camera, transform=ahead)] == (
            [] if column is None else [column]
        ), u


@pytest.mark.parametrize("enlarge", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_same_as_one_point_after_the_other(seed, enlarge):
    points = cloud(seed)
    expected = seen_by_loop(points, K, TO_CAMERA, SIZE, enlarge)
    found = returns(points, enlarge=enlarge)
    assert len(expected) > 100 and found.keys() == expected.keys()
    assert all(np.allclose(found[pixel], expected[pixel], rtol=1e-12) for pixel in expected)


def test_naive_projections_get_this_cloud_wrong():
    """Without the test for points behind the camera, and with the last point written, other pixels and other
    ranges come out.
    """
    points = cloud()
    u, v, w = K @ (TO_CAMERA @ np.c_[points[:, :3], np.ones(len(points))].T)[:3]
    row, column = np.floor(v / w + 0.5), np.floor(u / w + 0.5)
    inside = (row >= 0) & (row < SIZE[0]) & (column >= 0) & (column < SIZE[1])
    assert (inside & (w < 0)).sum() > 10  # behind, yet in the picture
    last = {}
    for r, c, d in zip(
        row[inside & (w > 0)], column[inside & (w > 0)], np.linalg.norm(points[inside & (w > 0), :3], axis=1)
    ):
        last[int(r), int(c)] = d
    found = returns(points)
    assert (
        sum(last[pixel] > found[pixel][0] + 1e-9 for pixel in found) > 10
    )  # a far point drawn over a near one


@settings(max_examples=60)
@given(st.data())
def test_every_pixel_shows_the_minimum_over_its_points(data):
    count = data.draw(st.integers(1, 30))
    enlarge = data.draw(st.integers(1, 3))
    pixel = np.array(data.draw(st.lists(st.integers(0, 11), min_size=count, max_size=count)))
    distance = np.array(
        data.draw(st.lists(st.sampled_from([1.0, 2.0, 2.5, 9.0]), min_size=count, max_size=count))
    )
    hit, seen = projection.nearest(pixel, distance, (3, 4), enlarge)
    assert len(hit) == len(set(hit.tolist()))
    found = dict(zip(hit.tolist(), seen.tolist()))
    for where in range(12):
        steps = [(where // 4 - one // 4, where % 4 - one % 4) for one in pixel.tolist()]
        over = [
            i for i in range(count) if all(-((enlarge - 1) // 2) <= step <= enlarge // 2 for step in steps[i])
        ]
        assert found.get(where) == min(
            over, key=lambda i: (distance[i], i), default=None
        )  # the nearest; of equal ones the first


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))
def test_nothing_behind_the_camera_is_seen(seed, yaw, pitch):
    points = cloud(seed, 60)
    to_camera = rigid(Rotation.from_euler("yx", [yaw, pitch]), [0.1, 0.2, -0.3])
    index, pixel = projection.visible(points[:, :3], K, to_camera, SIZE)
    depth = to_camera[2, :3] @ points[:, :3].T + to_camera[2, 3]
    assert (depth[index] > 0).all() and ((0 <= pixel) & (pixel < SIZE[0] * SIZE[1])).all()
    u, v = ((K @ (to_camera[:3, :3] @ points[:, :3].T + to_camera[:3, 3:]))[:2] / depth).round(9)
    inside = (depth > 0) & (u >= -0.5) & (u < SIZE[1] - 0.5) & (v >= -0.5) & (v < SIZE[0] - 0.5)
    assert np.array_equal(index, np.flatnonzero(inside))


def test_no_point_in_view_gives_no_pixel():
    points = np.array([[-5.0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]])  # behind, and at the LiDAR's own place
    pixel, values = projection.lidar_returns(points, K, TO_CAMERA, SIZE, 3)
    assert len(pixel) == 0 and values.shape == (0, 3)


@given(st.floats(-0.4999, 39.4999), st.floats(-0.4999, 29.4999))
def test_the_camera_of_a_resized_image_hits_the_block_that_holds_the_pixel(u, v):
    half = projection.resized_camera(K, SIZE, (15, 20))
    ray = np.linalg.inv(K) @ [u, v, 1]
    full, small = (matrix @ ray for matrix in (K, half))
    row, column = (math.floor(value / full[2] + 0.5) for value in (full[1], full[0]))
    found = [math.floor(value / small[2] + 0.5) for value in (small[1], small[0])]
    on_a_border = min(abs((value + 0.5) / 2 - round((value + 0.5) / 2)) for value in (u, v)) < 1e-9
    assert found == [row // 2, column // 2] or on_a_border


# ---- motion
# -----------------------------------------------------------------------------------------------------------------------

CAR = rigid(
    Rotation.from_euler("xyz", [math.pi, 0.02, -0.01]), [0.8, 0.1, -1.5]
)  # LiDAR (z up) to car (z down)


def measured(world: np.ndarray, seconds: np.ndarray, pose) -> np.ndarray:
    """(N, 6) points as the LiDAR of a moving car sees the static ``world`` (N, 3), each at its time; pose(t)
    = car to world (4, 4).
    """
    seen = [np.linalg.inv(pose(t) @ CAR) @ [*place, 1] for place, t in zip(world, seconds)]
    return np.c_[np.array(seen)[:, :3], np.ones((len(world), 2)), 100.0 + seconds]


def curve(speed: float, rate: float):
    """Pose at time t of a car on a circle: x forward, y right, z down, so a positive rate turns right."""

    def pose(t):
        radius = speed / rate
        return rigid(
            Rotation.from_euler("z", rate * t),
            [radius * math.sin(rate * t), radius * (1 - math.cos(rate * t)), 0],
        )

    return pose


def test_points_measured_on_a_circle_are_brought_back_to_the_exposure():
    rng = np.random.default_rng(2)
    world, seconds = rng.uniform(-40, 40, (50, 3)), rng.uniform(-0.1, 0.1, 50)
    points = measured(world, seconds, curve(15.0, 0.5))
    expected = measured(world, np.zeros(50), curve(15.0, 0.5))
    motion = 15.0, np.array([0, 0, 0.5])
    found = projection.compensate(points, 100.0, motion, CAR)
    assert np.abs(points - expected)[:, :3].max() > 1  # metres to mend
    assert np.allclose(found[:, :3], expected[:, :3], atol=1e-9) and np.array_equal(
        found[:, 3:], points[:, 3:]
    )


@pytest.mark.parametrize("rates", [(0.3, -0.2, 0.6), (0, 0, 0), (1e-12, 0, 0)])
def test_any_steady_motion_is_the_exponential_of_its_twist(rates):
    velocity, rng = np.array([12.0, 0, 0]), np.random.default_rng(3)
    twist = np.zeros((4, 4))
    a, b, c = rates
    twist[:3, :3], twist[:3, 3] = [[0, -c, b], [c, 0, -a], [-b, a, 0]], velocity
    world, seconds = rng.uniform(-30, 30, (20, 3)), rng.uniform(-0.2, 0.2, 20)
    points = measured(world, seconds, lambda t: expm(twist * t))
    found = projection.compensate(points, 100.0, (12.0, np.array(rates, float)), CAR)
    assert np.allclose(found[:, :3], measured(world, np.zeros(20), lambda t: np.eye(4))[:, :3], atol=1e-8)


def test_points_of_another_clock_are_an_error():
    points = cloud()
    with pytest.raises(DataError, match=r"scan.bin: a point lies 5e\+03 s from the exposure"):
        projection.compensate(points, 5000.0, (1.0, np.zeros(3)), CAR, "scan.bin")


def test_gnss_line(tmp_path):
    names = """iTOW timestamp tAcc lon lat height hMSL fixType numSV hAcc vAcc roll pitch heading accRoll accPitch accHeading
        angular_rate_roll angular_rate_pitch angular_rate_heading velN velE velD gSpeed sAcc pDOP magDec magAcc""".split()
    values = {name: 1000 + i for i, name in enumerate(names)}
    values |= {
        "gSpeed": 13_900,
        "angular_rate_roll": 100_000,
        "angular_rate_pitch": -200_000,
        "angular_rate_heading": 4_500_000,
    }
    (tmp_path / "gnss.txt").write_text(" ".join(map(str, values.values())) + "\n")
    motion = projection.read_motion(tmp_path / "gnss.txt")
    assert motion[0] == 13.9 and np.allclose(np.rad2deg(motion[1]), [1, -2, 45])
    for text, message in (
        ("1 2 3", "28 integers"),
        ("", "28 integers"),
        ("1.5 " * 28, "28 integers"),
        ("1 " * 29, "28 integers"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DataError, match=f"bad.txt: .*{message}"):
            projection.read_motion(tmp_path / "bad.txt")
    with pytest.raises(DataError, match="none.txt: no such file"):
        projection.read_motion(tmp_path / "none.txt")


# ---- LiDAR files
# ------------------------------------------------------------------------------------------------------------------


def test_points_come_back_and_those_without_a_place_are_left_out(tmp_path):
    points = cloud()
    points[3, 0], points[5, 2] = np.nan, np.inf
    points.tofile(tmp_path / "a.bin")
    assert np.array_equal(projection.read_points(tmp_path / "a.bin"), np.delete(points, [3, 5], 0))


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda p: p.tobytes()[:-20], "6 float64 each"),  # cut inside a point
        (lambda p: b"", "no point with finite coordinates"),
        (lambda p: p.astype(np.float32)[:799, :4].tobytes(), "6 float64 each"),  # another kind of LiDAR file
        (lambda p: np.full((4, 6), np.nan).tobytes(), "no point with finite coordinates"),
        (lambda p: np.where(np.arange(6) == 3, -p - 1, p).tobytes(), "negative or NaN intensity"),
        (lambda p: np.where(np.arange(6) == 3, np.nan, p).tobytes(), "negative or NaN intensity"),
    ],
)
def test_damaged_point_files_are_named(tmp_path, content, message):
    (tmp_path / "bad.bin").write_bytes(content(cloud()))
    with pytest.raises(DataError, match=f"bad.bin: .*{message}"):
        projection.read_points(tmp_path / "bad.bin")
    with pytest.raises(DataError, match="none.bin: no such file"):
        projection.read_points(tmp_path / "none.bin")


# ---- events
# -----------------------------------------------------------------------------------------------------------------------


def write_events(path: Path, x, y, t, p, dtypes=("u2", "u2", "u4", "u1")) -> Path:
    with h5py.File(path, "w") as file:
        for name, values, dtype in zip("xytp", (x, y, t, p), dtypes):
            file.create_dataset(
                f"events/{name}", data=np.asarray(values, dtype), **hdf5plugin.Blosc(cname="zstd")
            )
    return path


def burst(seed=0, count=500):
    """Events of 80 ms, in no order, the last one at 100 000 µs."""
    rng = np.random.default_rng(seed)
    t = rng.integers(20_000, 100_000, count)
    t[rng.integers(count)] = 100_000
    return rng.integers(0, 27, count), rng.integers(0, 19, count), t, rng.integers(0, 2, count)


@pytest.mark.parametrize("in_order", [True, False])
def test_events_of_the_window_come_back_in_any_order(tmp_path, in_order):
    x, y, t, p = burst()
    if in_order:
        x, y, t, p = (values[np.argsort(t, kind="stable")] for values in (x, y, t, p))
    found = projection.read_events(write_events(tmp_path / "a.h5", x, y, t, p), 30_000)
    expected = [(a, b, c) for a, b, s, c in zip(x, y, t, p) if s >= 70_000]
    assert list(zip(*(values.tolist() for values in found))) == expected and 100 < len(expected) < 300
    assert (
        sum(t >= 100_000 - 30) < 5
    )  # a window of "30 ms" taken as 30 of the file's units leaves next to nothing


@pytest.mark.parametrize("dtype", ["u4", "u8", "i8", "f8"])
def test_a_recording_shorter_than_the_window_is_kept_whole(tmp_path, dtype):
    t = np.arange(0, 2000, 100)
    path = write_events(tmp_path / "a.h5", t % 7, t % 5, t, t % 2, ("u2", "u2", dtype, "u1"))
    assert len(projection.read_events(path, 30_000)[0]) == 20
    if dtype == "u4":
        with np.errstate(over="ignore"):
            assert not (
                t.astype("u4") >= t.astype("u4").max() - np.uint32(30_000)
            ).any()  # unsigned times wrap below zero


def test_no_event_at_all_is_an_empty_image(tmp_path):
    x, y, p = projection.read_events(write_events(tmp_path / "a.h5", [], [], [], []), 30_000)
    counts = projection.event_counts(x, y, p, np.eye(3), SIZE)
    assert counts.shape == (*SIZE, 2) and not counts.any()


def homography():
    event2camera = rigid(Rotation.from_rotvec([0.03, -0.02, 0.01]), [0.1, 0.02, -0.01])
    return projection.homography_at_infinity(EVENT_K, K, event2camera), event2camera


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 80))
def test_counts_are_those_of_a_loop_and_sum_to_the_events_inside(seed, count):
    x, y, _, p = (values[:count] for values in burst(seed))
    (a, b, c), (d, e, f), (g, h, i) = homography()[0].tolist()
    expected = np.zeros((*SIZE, 2), int)
    for u, v, polarity in zip(x.tolist(), y.tolist(), p.tolist()):
        w = g * u + h * v + i
        row, column = math.floor((d * u + e * v + f) / w + 0.5), math.floor((a * u + b * v + c) / w + 0.5)
        if w > 0 and 0 <= row < SIZE[0] and 0 <= column < SIZE[1]:
            expected[row, column, 1 - polarity] += 1
    counts = projection.event_counts(x, y, p, homography()[0], SIZE)
    assert np.array_equal(counts, expected)
    assert counts.sum() <= count and counts[..., 0].sum() <= p.sum()


def test_events_outside_the_camera_are_left_out_on_every_side():
    shift = np.array([[1.0, 0, -5], [0, 1, -5], [0, 0, 1]])
    x, y = np.array([5, 4, 44, 45, 5, 5]), np.array([5, 5, 5, 5, 4, 35])
    counts = projection.event_counts(x, y, np.ones(6), shift, SIZE)
    assert counts[0, 0, 0] == counts[0, 39, 0] == 1 and counts.sum() == 2
    wrapped = np.zeros((*SIZE, 2), int)
    wrapped[0, 4 - 5, 0] += 1  # what indexing with the negative column does
    assert wrapped[0, 39, 0] == 1


def test_the_homography_places_far_points_where_the_camera_sees_them():
    matrix, event2camera = homography()
    for far, tolerance in ((1e9, 1e-6), (20.0, 0.5)):
        place = np.array([0.1, -0.05, 1]) * far  # in the event camera's frame
        event, camera = EVENT_K @ place, K @ (event2camera[:3, :3] @ place + event2camera[:3, 3])
        mapped = matrix @ (event / event[2])
        apart = np.abs(mapped[:2] / mapped[2] - camera[:2] / camera[2]).max()
        assert apart < tolerance
    assert apart > 1e-3  # near points are off by the parallax, which events cannot know


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.__delitem__("events/p"), "not HDF5 with events/x, y, t, p"),
        (
            lambda f: (f.__delitem__("events/x"), f.create_dataset("events/x", data=np.zeros(3))),
            "events/x, y, t, p",
        ),
        (lambda f: (f.__delitem__("events/t"), f.create_group("events/t")), "events/x, y, t, p"),
        (
            lambda f: f["events/p"].__setitem__(slice(None), 2),
            "polarities other than 0 .darker. and 1 .brighter.",
        ),
        (
            lambda f: (f.__delitem__("events/t"), f.create_dataset("events/t", data=np.full(500, np.nan))),
            "NaN or infinite event times",
        ),
        (
            lambda f: (f.__delitem__("events/x"), f.create_dataset("events/x", data=np.full(500, np.nan))),
            "NaN or infinite coord",
        ),
    ],
)
def test_event_files_of_another_kind_are_named(tmp_path, change, message):
    path = write_events(tmp_path / "bad.h5", *burst())
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=f"bad.h5: .*{message}"):
        projection.read_events(path, 30_000)


def lead_elsewhere(file: h5py.File, name: str, kind: str, secret: Path) -> None:
    """Replace the array ``name`` by one that looks the same and whose values lie in another file."""
    shape, dtype = file[name].shape, file[name].dtype
    group, _, last = name.rpartition("/")
    copy = secret.with_suffix(".h5")
    with h5py.File(copy, "w") as other:
        file.copy(group or name, other)
    secret.write_bytes(bytes(file[name].nbytes))
    if kind == "external group":
        del file[group]
        file[group] = h5py.ExternalLink(copy, group)
        return
    del file[name]
    if kind == "external storage":
        file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape, dtype)
        layout[...] = h5py.VirtualSource(copy, name, shape)
        file.create_virtual_dataset(name, layout)
    else:
        link = h5py.SoftLink("/elsewhere/" + last)
        file["elsewhere"] = h5py.ExternalLink(copy, group)
        file[name] = h5py.ExternalLink(copy, name) if kind == "external link" else link


@pytest.mark.parametrize(
    "kind", ["external storage", "external link", "external group", "soft link", "virtual"]
)
def test_event_files_that_lead_to_other_files_are_refused(tmp_path, kind):
    path = write_events(tmp_path / "bad.h5", *burst())
    with h5py.File(path, "r+") as file:
        lead_elsewhere(file, "events/p", kind, tmp_path / "secret")
    with h5py.File(path) as file:
        assert file["events/p"][()].shape == (500,)  # without the check it would be read
    with pytest.raises(DataError, match="bad.h5: .*leads out of the file"):
        projection.read_events(path, 30_000)


def test_damaged_event_files_and_missing_packages_are_explained(tmp_path, monkeypatch):
    path = write_events(tmp_path / "bad.h5", *burst())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not HDF5"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="bad.h5: .* not HDF5 with"):
            projection.read_events(path, 30_000)
    with pytest.raises(DataError, match="none.h5: no such file"):
        projection.read_events(tmp_path / "none.h5", 30_000)
    for absent in ("hdf5plugin", "h5py"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, absent, None)
            with pytest.raises(
                ValueError, match=rf'bad.h5: event files need {absent}; pip install -e "\.\[data\]"'
            ):
                projection.read_events(path, 30_000)


# ---- calibration
# ------------------------------------------------------------------------------------------------------------------


def calibration() -> dict:
    return {
        "intrinsics": {"rgb": {"K": K.tolist()}, "event": {"K": EVENT_K.tolist()}},
        "extrinsics": {"lidar2rgb": TO_CAMERA.tolist(), "event2rgb": np.eye(4).tolist()},
    }


def test_calibration_comes_back(tmp_path):
    (tmp_path / "calib.json").write_text(json.dumps(calibration()))
    found = projection.read_calibration(tmp_path / "calib.json", ["rgb", "event"], ["lidar2rgb"])
    assert found.keys() == {"rgb", "event", "lidar2rgb"}
    assert (
        np.array_equal(found["rgb"], K)
        and np.array_equal(found["event"], EVENT_K)
        and np.array_equal(found["lidar2rgb"], TO_CAMERA)
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c["extrinsics"].pop("lidar2rgb"),
            "extrinsics/lidar2rgb: cannot be read .* a 4 × 4 rigid transform",
        ),
        (lambda c: c.pop("intrinsics"), "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera matrix"),
        (
            lambda c: c["intrinsics"].update(rgb=[1]),
            "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera matrix",
        ),
        (
            lambda c: c["intrinsics"]["rgb"].update(K=np.eye(4).tolist()),
            "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera",
        ),
        (
            lambda c: c["intrinsics"]["rgb"].update(K=np.diag([0.0, 9, 1]).tolist()),
            "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera",
        ),
        (
            lambda c: c["intrinsics"]["rgb"].update(K=K.T.tolist()),
            "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera",
        ),
        (
            lambda c: c["intrinsics"]["rgb"].update(K="K"),
            "intrinsics/rgb/K: cannot be read .* a 3 × 3 camera",
        ),
        (
            lambda c: c["extrinsics"].update(lidar2rgb=(2 * np.eye(4)).tolist()),
            "lidar2rgb: cannot be read .* 4 × 4 rigid transform",
        ),
        (
            lambda c: c["extrinsics"].update(lidar2rgb=np.diag([1.0, 1, -1, 1]).tolist()),
            "lidar2rgb: cannot be read .* 4 × 4 rigid transform",
        ),
        (
            lambda c: c["extrinsics"].update(lidar2rgb=TO_CAMERA.T.tolist()),
            "lidar2rgb: cannot be read .* 4 × 4 rigid transform",
        ),
        (
            lambda c: c["extrinsics"].update(lidar2rgb=[[float("nan")] * 4] * 4),
            "lidar2rgb: cannot be read .* 4 × 4 rigid transform",
        ),
    ],
)
def test_bad_calibrations_name_file_and_key(tmp_path, change, message):
    values = calibration()
    change(values)
    (tmp_path / "calib.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=f"calib.json, .*{message}"):
        projection.read_calibration(tmp_path / "calib.json", ["rgb"], ["lidar2rgb"])


def test_a_calibration_that_is_no_json_is_named(tmp_path):
    (tmp_path / "calib.json").write_text("{")
    with pytest.raises(ValueError, match="calib.json: .*not the calibration"):
        projection.read_calibration(tmp_path / "calib.json", ["rgb"], [])
    with pytest.raises(ValueError, match="none.json: no such file"):
        projection.read_calibration(tmp_path / "none.json", ["rgb"], [])
