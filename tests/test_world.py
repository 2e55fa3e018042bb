"""The sensor world: determinism, geometry against closed forms, and each sensor against the physics it
claims.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from numpy._core import _multiarray_umath as umath

from mmlib.modalities import SENSORS
from mmlib.world import ALL, CLASSES, CONDITIONS, FAILURES, PALETTES, SCENE_CONDITIONS, render_frame, sensors
from mmlib.world.geometry import (
    BOX,
    CYLINDER,
    ELLIPSOID,
    FRUSTUM,
    ROW,
    Camera,
    camera_view,
    intersect,
    trace,
    turn,
)
from mmlib.world.materials import MATERIAL, MATERIALS, atlas, texture
from mmlib.world.props import Draw, Place
from mmlib.world.render import SCENES, Shot
from mmlib.world.surfaces import look
from mmlib.world.weather import weather

SIZE = (48, 64)


def physical(frame, name):
    return SENSORS[name].to_physical(frame.images[name])


def checksum(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


@pytest.fixture(scope="module")
def frames():
    """One full frame of every scene and condition."""
    return {(s, c): render_frame(s, 5, c, size=SIZE) for s in SCENES for c in SCENE_CONDITIONS[s]}


def make_world(*primitives):
    """A world that holds exactly these primitives (entries of ``geometry.ROW``) in front of a level camera at
    (0, 0, 1.5).
    """
    draw = Draw(0)
    for p in primitives:
        row = dict.fromkeys(ROW, 0) | dict(colour=(0.5,) * 3, turn=(1.0, 0.0), taper=(0, 0), move=(0, 0, 0))
        row |= dict(style=(0,) * 4, material=MATERIAL["concrete"])
        draw.rows.append(tuple((row | p).values()))
    draw.thing("outdoors", Place(0, 0), road=("asphalt", (0.1, 0.1, 0.1)))
    camera = Camera((0.0, 0.0, 1.5), 0.0, 0.0)
    return draw.build(camera=camera, motion=(0.0, 0.0), tones=[])


# ---------------------------------------------------------------- determinism
SUMS = {
    "street-0-96": "461447606ba0",
    "street-1-48": "2e5dea96fb03",
    "street-700000-48": "20e0cf713395",
    "room-0-96": "eff4407b4f14",
    "room-1-48": "63b49775fead",
    "room-900001-48": "0a99740bd04f",
}


def test_label_checksums():
    """Integers that must come out the same on every CPU and operating system. Where a change is meant, raise
    ``world.dataset.RENDERER``, so that no cache serves the older world.
    """
    for key, expected in SUMS.items():
        scene, seed, height = key.split("-")
        frame = render_frame(
            scene, int(seed), "day", size=(int(height), int(height) * 4 // 3), modalities=("depth",)
        )
        assert checksum(frame.label) == expected, key


def test_labels_do_not_depend_on_simd():
    """The same labels and depth from numpy without its newer vector instructions, in a fresh process."""
    features = " ".join(name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name))
    code = (
        "import hashlib, json; from mmlib.world import render_frame; out = []\n"
        "for scene, seed in (('street', 3), ('room', 3)):\n"
        "    f = render_frame(scene, seed, 'day', size=(48, 64), modalities=('depth',))\n"
        "    out += [hashlib.sha256(a.tobytes()).hexdigest()[:12] for a in (f.label, f.depth)]\n"
        "from numpy._core import _multiarray_umath as u\n"
        "print(json.dumps([out, sum(u.__cpu_features__.get(n, 0) for n in u.__cpu_dispatch__)]))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": features},
    )
    assert run.returncode == 0, run.stderr
    here = []
    for scene in ("street", "room"):
        frame = render_frame(scene, 3, "day", size=SIZE, modalities=("depth",))
        here += [checksum(frame.label), checksum(frame.depth)]
    assert json.loads(run.stdout) == [here, 0]  # 0: none of them was in use


def test_same_arguments_same_frame_and_other_seed_other_frame():
    a, b, c = (render_frame("street", seed, "dusk", size=SIZE) for seed in (8, 8, 9))
    assert all(np.array_equal(a.images[n], b.images[n]) for n in ALL)
    assert not any(np.array_equal(a.images[n], c.images[n]) for n in ALL)
    assert not np.array_equal(a.label, c.label)


@pytest.mark.parametrize("scene", SCENES)
def test_conditions_show_the_same_scene(scene, frames):
    for condition in SCENE_CONDITIONS[scene]:
        assert np.array_equal(frames[scene, condition].label, frames[scene, "day"].label)
        assert np.array_equal(frames[scene, condition].depth, frames[scene, "day"].depth)


@pytest.mark.parametrize("scene", SCENES)
def test_a_sensor_does_not_depend_on_the_others(scene, frames):
    for name in ALL:
        alone = render_frame(scene, 5, "dusk", size=SIZE, modalities=(name,))
        assert list(alone.images) == [name]
        assert np.array_equal(alone.images[name], frames[scene, "dusk"].images[name]), name


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_changes_its_own_sensor_only(case, frames):
    broken = render_frame("street", 5, "day", case, SIZE)
    changed = {n for n in ALL if not np.array_equal(broken.images[n], frames["street", "day"].images[n])}
    assert changed == {sensors.CASE_SENSOR[case]}
    assert np.array_equal(broken.label, frames["street", "day"].label)


def test_exposure_failures_go_the_right_way(frames):
    normal = frames["street", "day"].images["rgb"].mean()
    assert (
        render_frame("street", 5, "day", "overexposure", SIZE, ("rgb",)).images["rgb"].mean() > 1.25 * normal
    )
    assert (
        render_frame("street", 5, "day", "underexposure", SIZE, ("rgb",)).images["rgb"].mean() < 0.6 * normal
    )


# ---------------------------------------------------------------- content
@pytest.mark.parametrize("scene", SCENES)
def test_every_class_occurs_often_enough(scene):
    share, present = np.zeros(len(CLASSES[scene])), np.zeros(len(CLASSES[scene]))
    for seed in range(24):
        counts = np.bincount(
            render_frame(scene, seed, "day", modalities=("depth",)).label.ravel(), minlength=len(share)
        )
        assert len(counts) == len(share)
        share, present = share + counts / counts.sum() / 24, present + (counts > 15) / 24
    assert share.min() > 0.006, dict(zip(CLASSES[scene], share.round(4)))
    assert present.min() >= 0.5, dict(zip(CLASSES[scene], present.round(2)))
    assert len(CLASSES[scene]) == len(PALETTES[scene]) == len(set(PALETTES[scene])) >= 12


@pytest.mark.parametrize("size", [(32, 32), (33, 75), (96, 128)])
def test_shapes_types_and_ranges(size):
    for scene in SCENES:
        frame = render_frame(scene, 2, "night", "eventlowres", size)
        assert set(frame.images) == set(ALL)
        for name, image in frame.images.items():
            assert image.shape == (*size, SENSORS[name].channels) and image.dtype == SENSORS[name].dtype
        assert (
            frame.label.shape == frame.depth.shape == frame.material.shape == size
            and frame.label.dtype == np.uint8
        )
        assert frame.normal.shape == (*size, 3) and frame.normal.dtype == frame.depth.dtype == np.float32
        length = np.linalg.norm(frame.normal, axis=2)
        assert (
            np.allclose(length[np.isfinite(frame.depth)], 1, atol=1e-4)
            and not length[np.isinf(frame.depth)].any()
        )
        assert frame.material.max() < len(MATERIALS)


def test_a_larger_picture_shows_the_same_content():
    small = render_frame("street", 4, "day", size=(48, 64), modalities=("depth",))
    large = render_frame("street", 4, "day", size=(144, 192), modalities=("depth",))
    assert (
        small.label == large.label[1::3, 1::3]
    ).mean() > 0.99  # the centre of each 3 x 3 block is the same ray


# ---------------------------------------------------------------- geometry
def f32(*values):
    return [np.array([v], np.float32) for v in values]


@pytest.mark.filterwarnings(
    "ignore:divide by zero"
)  # upright walls of a frustum without taper: the tracer ignores it too
def test_intersections_against_closed_forms():
    o, d = f32(-10, 0.3, 0.2), f32(1, 0, 0)
    near, far = intersect(BOX, o, f32(1, 1e-6, 1e-6), f32(2, 1, 1))
    assert near[0] == pytest.approx(8) and far[0] == pytest.approx(12)
    near, far = intersect(ELLIPSOID, o, d, f32(2, 1, 1))
    assert near[0] == pytest.approx(10 - 2 * np.sqrt(1 - 0.3**2 - 0.2**2), abs=1e-5) and far[0] > near[0]
    near, _ = intersect(CYLINDER, o, f32(1, 0, 1e-6), f32(2, 2, 1))
    assert near[0] == pytest.approx(10 - np.sqrt(4 - 0.3**2), abs=1e-4)
    near, _ = intersect(CYLINDER, f32(0.5, 0, 9), f32(1e-6, 0, -1), f32(2, 2, 1))  # through the lid
    assert near[0] == pytest.approx(8, abs=1e-4)
    # a pyramid of half width 2 at the bottom that shrinks by 1 m per metre: at height 0.2 + 1 above the
    # bottom its half width is 0.8
    near, far = intersect(FRUSTUM, o, f32(1, 1e-6, 1e-6), f32(2, 2, 1), f32(1, 1))
    assert near[0] == pytest.approx(10 - 0.8, abs=1e-4) and far[0] == pytest.approx(10.8, abs=1e-4)
    for kind, oy in ((BOX, 1.1), (ELLIPSOID, 1.1), (CYLINDER, 2.1), (FRUSTUM, 0.9)):
        with np.errstate(all="ignore"):
            near, far = intersect(
                kind,
                f32(-10, oy, 0.2),
                f32(1, 1e-6, 1e-6),
                f32(2, 2 if kind in (CYLINDER, FRUSTUM) else 1, 1),
                f32(1, 1),
            )
        assert not near[0] <= far[0]


@pytest.mark.parametrize("kind", [BOX, CYLINDER, ELLIPSOID, FRUSTUM])
def test_culling_loses_nothing(kind):
    """The tracer with bounding rectangles finds exactly what testing every ray finds, also for bodies that
    reach behind the camera.
    """
    rng = np.random.default_rng(kind)
    for trial in range(12):
        centre, half = rng.uniform((-1, -4, -1), (12, 4, 3)), rng.uniform(0.1, 3, 3)
        half[1] = half[0] if kind == CYLINDER else half[1]
        yaw, taper = (
            (0.0 if kind == CYLINDER else rng.uniform(0, 6)),
            (0.3, 0.2) if kind == FRUSTUM else (0.0, 0.0),
        )
        if np.hypot(*centre[:2]) < 1.6 * half[:2].max() and abs(centre[2] - 1.5) < half[2] + 0.2:
            continue  # the camera would stand inside
        world = make_world(
            dict(kind=kind, centre=tuple(centre), half=tuple(half), turn=turn(yaw), taper=taper)
        )
        view = camera_view(Camera((0.0, 0.0, 1.5), 0.2, -0.1), SIZE)
        t, prim = trace(world, [view])
        c, s = world.turn[:, 0]
        rel = np.array([0, 0, 1.5]) - centre
        o = f32(c * rel[0] + s * rel[1], c * rel[1] - s * rel[0], rel[2])
        x, y, z = view.dirs
        d = [np.float32(c) * x + np.float32(s) * y, np.float32(c) * y - np.float32(s) * x, z]
        with np.errstate(all="ignore"):
            near, far = intersect(kind, o, d, f32(*half), f32(*taper))
        hit = (near <= far) & (near > 0.12)
        assert np.array_equal(prim >= 0, hit), trial
        assert np.array_equal(t[hit], near[hit])


def test_hits_lie_on_their_primitives_and_normals_point_out():
    world = SCENES["street"](11)
    hits = look(world, [camera_view(world.camera, (96, 128))])
    solid = np.flatnonzero((hits.prim < world.count))
    p, q = hits.prim[solid], hits.local[:, solid].astype(np.float64)
    h = world.half[:, p]
    kind = world.kind[p]
    box, ball = kind == BOX, kind == ELLIPSOID
    assert (
        np.abs(np.abs(q / h)[:, box].max(0) - 1).max() < 2e-2
    )  # thin plates: a rounding of 1 um is much of their thickness
    assert np.abs(((q / h) ** 2).sum(0)[ball] - 1).max() < 2e-2
    assert (hits.facing[np.isfinite(hits.t)] >= 0).all() and (hits.facing[solid] > 0).mean() > 0.99
    ground = np.flatnonzero((hits.prim == world.count))
    assert np.abs(hits.where[2][ground]).max() < 2e-2 and np.array_equal(
        hits.normal[:, ground], np.tile([[0], [0], [1]], len(ground))
    )


def test_ground_depth_follows_from_the_camera_height():
    world = make_world(dict(kind=BOX, centre=(500.0, 0.0, 1.0), half=(0.1, 0.1, 0.1)))
    depth = look(world, [camera_view(world.camera, SIZE)]).t.reshape(SIZE)
    rows = np.arange(30, 48)
    expected = (
        1.5 * world.camera.focal * SIZE[1] / (rows + 0.5 - SIZE[0] / 2)
    )  # z = height * focal / (row - horizon)
    assert np.allclose(depth[rows], expected[:, None], rtol=1e-5)
    assert np.isinf(depth[:23]).all()


def test_texture_detail_fades_with_distance():
    atlas()
    rng = np.random.default_rng(0)
    s, v = rng.uniform(0, 50, (2, 4000))
    brick = np.full(4000, MATERIAL["brick"])
    spread = [texture(brick, s, v, np.full(4000, size)).std() for size in (0.001, 0.05, 0.5, 5.0)]
    assert spread[0] > spread[1] > spread[2] > 2 * spread[3]


# ---------------------------------------------------------------- depth, lidar, events
@pytest.mark.parametrize("scene, far", [("street", 60), ("room", 8)])
def test_depth_error_is_within_what_the_sensor_states(scene, far, frames):
    frame = frames[scene, "day"]
    measured = physical(frame, "depth")[..., 0]
    seen = measured > 0
    unit = 0.0028 if scene == "room" else 0.0006
    step = unit * frame.depth[seen] ** 2
    error = np.abs(measured[seen] - frame.depth[seen])
    assert (error < 3.2 * step + 1 / 256 + 0.02 * frame.depth[seen] * (step > 1)).all() and error.max() > 0
    assert not measured[np.isinf(frame.depth) | (frame.depth > far)].any()
    assert seen.mean() > 0.4
    # disparities are whole numbers, up to the stored 1/256 m
    inverse = 1 / (measured[seen].astype(np.float64) * unit)
    tolerance = inverse / measured[seen] / 256
    fine = tolerance < 0.2
    assert (np.abs(inverse - np.rint(inverse))[fine] < tolerance[fine] + 1e-3).all() and fine.any()


def sweep(world, condition="day", case=""):
    air = weather("room" if world.indoor else "street", condition, np.random.default_rng(0))
    hits = look(world, [sensors.lidar_view(world)])
    return sensors.scan(world, hits, air, np.random.default_rng(1), case)


def test_lidar_points_lie_on_the_true_surface_and_project_where_they_say():
    wall = dict(kind=BOX, centre=(20.0, 0.0, 4.0), half=(1.0, 30.0, 4.0))
    world = make_world(wall)
    points = sweep(world)
    x, y, z, reach, _ = points
    assert len(x) > 2000
    ray = (points[:3] - np.array(sensors.lidar_view(world).origin)[:, None]) / reach
    # metres along the ray
    to_wall, to_ground = np.abs((x - 19) / ray[0]), np.abs(z / np.minimum(ray[2], -1e-3))
    assert np.minimum(to_wall, to_ground).max() < 0.02 * 4 + 0.01
    assert (to_wall < to_ground).mean() > 0.2 and (to_wall > to_ground).mean() > 0.2
    image = sensors.lidar(points, world.camera, (96, 128))
    i, j = np.nonzero(image[..., 0])
    column, row, depth = world.camera.project(x, y, z, (96, 128))
    for k in range(0, len(i), 37):  # each filled pixel holds the nearest of the points that fall into it
        inside = (np.floor(column) == j[k]) & (np.floor(row) == i[k]) & (depth > 0)
        assert image[i[k], j[k], 0] == reach[inside].min()
    heights = image[..., 2][image[..., 0] > 0]
    assert (heights >= 0).all() and heights.max() > 2


def test_lidar_thins_out_in_fog_and_jitter_moves_it():
    worlds = [SCENES["street"](seed) for seed in range(6)]
    clear, fog = (
        np.concatenate([sweep(world, condition)[3] for world in worlds]) for condition in ("day", "fog")
    )
    assert len(fog) < 0.9 * len(clear) and np.percentile(fog, 95) < 0.85 * np.percentile(clear, 95)
    clear, jitter = sweep(worlds[3]), sweep(worlds[3], case="lidarjitter")
    assert jitter.shape == clear.shape
    moved = np.linalg.norm((jitter - clear)[:3], axis=0)
    assert 0.05 < np.median(moved) < 2


# A generator without noise.
QUIET = SimpleNamespace(
    standard_normal=lambda shape, dtype: np.zeros(shape, dtype),
    random=lambda shape, dtype: np.ones(shape, dtype),
)


def test_events():
    rng = np.random.default_rng(0)
    still = rng.standard_normal(SIZE).astype(np.float32)
    assert not sensors.events(still, still, QUIET, 0.003).any()
    change = np.zeros(SIZE, np.float32)
    change[3, 4], change[5, 6], change[7, 8] = 0.5, -0.7, 0.2
    counts = sensors.events(still, still + change, QUIET, 0.003)
    assert counts[3, 4].tolist() == [2, 0] and counts[5, 6].tolist() == [0, 3] and counts.sum() == 5
    noisy = sensors.events(still, still, np.random.default_rng(0), 0.01)
    assert 0 < noisy.mean() < 0.03
    low = sensors.events(still, still + 1, QUIET, 0.003, "eventlowres")
    assert (low == low[0, 0]).all() and low[0, 0].tolist() == [4, 0]


def test_fog_suppresses_events_and_a_still_camera_sees_none(frames):
    counts = {c: physical(frames["street", c], "event").sum() for c in CONDITIONS}
    assert counts["fog"] < 0.6 * counts["day"] and counts["night"] > 0.1 * counts["day"]
    world = dataclasses.replace(SCENES["street"](5), motion=(0.0, 0.0))
    world.move[:] = 0
    world.shape[10:] = 0
    air = weather("street", "day", np.random.default_rng(0))
    light = Shot(world, air, SIZE, two=True).radiance.reshape(3, 2, *SIZE)
    before, now = (sensors.log_intensity(light[:, k], air) for k in (1, 0))
    assert not sensors.events(before, now, QUIET, 0.003).any()


# ---------------------------------------------------------------- heat, near infrared, polarisation
def heat(world, air):
    shot = Shot(world, air, SIZE)
    return sensors.temperature(world, shot.hits, air, shot.sun)


@pytest.mark.parametrize("scene", SCENES)
def test_light_does_not_change_the_temperature(scene):
    """Night's light with day's heat gives day's thermal image, bit for bit; night's heat a colder one."""
    world, draw = SCENES[scene](6), lambda: np.random.default_rng(0)
    day, night = weather(scene, "day", draw()), weather(scene, "night", draw())
    keep = ("air", "sky_temperature", "sun_now", "sun_before", "haze_heat", "sun_direction")
    dark = dataclasses.replace(night, **{name: getattr(day, name) for name in keep})
    assert (dark.sun != day.sun).all() and dark.lamps != day.lamps
    assert np.array_equal(heat(world, dark), heat(world, day))
    assert heat(world, night).mean() < heat(world, day).mean()


def test_people_and_running_engines_are_warm_and_the_sky_is_cold(frames):
    night = frames["street", "night"]
    celsius = physical(night, "thermal")[..., 0]
    label = {name: celsius[night.label == k] for k, name in enumerate(CLASSES["street"])}
    assert label["Sky"].mean() < label["Road"].mean() - 8
    assert label["Pedestrian"].mean() > label["Building"].mean() + 2
    assert celsius.min() > -45 and celsius.max() < 60


def test_vegetation_is_bright_in_near_infrared(frames):
    day = frames["street", "day"]
    nir, grey = physical(day, "nir")[..., 0], physical(day, "rgb").mean(2)
    leaf, sky, road = (day.label == CLASSES["street"].index(n) for n in ("Vegetation", "Sky", "Road"))
    assert (nir / grey)[leaf].mean() > 1.3 * (nir / grey)[road].mean()
    assert nir[sky].mean() < 0.6 * grey[sky].mean()


def test_fresnel_polarisation_has_its_known_values():
    for index in (1.33, 1.5, 1.9):
        diffuse, mirror = sensors.fresnel_polarisation(np.array([1.0, np.cos(np.arctan(index)), 0.0]), index)
        assert diffuse[0] == mirror[0] == 0  # straight on
        assert mirror[1] == pytest.approx(1, abs=1e-4)  # Brewster's angle
        assert 0 < diffuse[1] < diffuse[2] < 1 and mirror[2] == pytest.approx(0, abs=1e-4)


def polarised(lean):
    """Stokes parameters in the middle of a picture of a wall that leans by yaw ``lean``."""
    # no texture
    world = make_world(
        dict(
            kind=BOX,
            centre=(10.0, 0.0, 1.5),
            half=(0.05, 40.0, 40.0),
            turn=turn(lean),
            material=MATERIAL["rubber"],
        )
    )
    air = weather("street", "fog", np.random.default_rng(0))
    shot = Shot(world, dataclasses.replace(air, haze=0.0), SIZE)
    s1, s2 = sensors.stokes(world, shot.hits, dataclasses.replace(air, haze=0.0), shot.colour)
    return [np.where(shot.hits.prim == 0, s, 0).reshape(SIZE) for s in (s1, s2)]


def test_polarisation_of_a_wall():
    s1, s2 = polarised(0.0)
    assert np.hypot(s1, s2)[23:25, 31:33].max() < 2e-3  # normal incidence
    dolp, aolp = sensors.polarisation(s1, s2, np.random.default_rng(0), 1e-5)
    assert 0 <= dolp.min() and dolp.max() <= 1 and np.allclose((aolp**2).sum(2), 1, atol=1e-5)
    s1, s2 = polarised(0.9)
    m1, m2 = polarised(-0.9)  # the mirrored wall: the picture flips and sin of the doubled angle changes sign
    assert np.abs(s1 - m1[:, ::-1]).max() < 1e-4 and np.abs(s2 + m2[:, ::-1]).max() < 1e-4
    assert (
        s1[24, 32] > 0.01 and abs(s2[24, 32]) < 2e-3
    )  # the normal lies along the rows, and so does the polarisation
    assert SENSORS["aolp"].flip_negates == (1,)


def test_angle_is_noise_where_degree_is_zero():
    rng = np.random.default_rng(0)
    zero = np.zeros(SIZE, np.float32)
    dolp, aolp = sensors.polarisation(zero, zero, rng, 0.01)
    assert dolp.mean() < 0.03 and np.hypot(*aolp.mean((0, 1))) < 0.1
    _, sure = sensors.polarisation(zero + 0.3, zero, rng, 0.01)
    assert sure[..., 0].min() > 0.9
