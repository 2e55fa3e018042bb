"""The sensor world as a data set: disjoint splits, the prepared layout, resuming after a kill, the cache."""

from pathlib import Path

import numpy as np
import pytest

from mmlib.data.prepared import DataError, PreparedDataset
from mmlib.world import CLASSES, FAILURES, SCENE_CONDITIONS, ensure, render_dataset, render_frame
from mmlib.world.dataset import SEEDS, samples

SMALL = dict(train=7, val=3, test=2, size=(32, 48), modalities=("rgb", "depth", "event"), progress=False)


def tree(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(Path(root).rglob("*")) if p.is_file()}


def test_splits_never_share_a_scene():
    ranges = sorted((seeds[0], seeds[-1]) for seeds in SEEDS.values())
    assert set(SEEDS) == {"train", "val", "test"}
    assert all(a <= b for a, b in ranges) and all(
        before[1] < after[0] for before, after in zip(ranges, ranges[1:])
    )
    seeds = [row["seed"] for split in SEEDS for row in samples("street", split, 1000)]
    assert len(set(seeds)) == 3000


@pytest.mark.parametrize("scene", CLASSES)
def test_every_split_mixes_conditions_and_failures(scene):
    for split in SEEDS:
        rows = samples(scene, split, 300)
        assert len({row["id"] for row in rows}) == 300
        for condition in SCENE_CONDITIONS[scene]:
            assert sum(r["condition"] == condition for r in rows) == 300 // len(SCENE_CONDITIONS[scene])
        assert sum(bool(r["case"]) for r in rows) == 60
        for case in FAILURES:
            hit = [r["condition"] for r in rows if r["case"] == case]
            assert len(hit) == 12 and set(hit) == set(SCENE_CONDITIONS[scene])
        # only sensors that are there can fail
        assert {r["case"] for r in samples(scene, split, 300, ("depth", "lidar"))} == {"", "lidarjitter"}
    assert samples("street", "train", 10)[9]["id"] == "street_000009_dusk_overexposure"
    assert samples("street", "val", 1)[0]["id"] == "street_700000_day"


def test_ensure_renders_once_in_the_prepared_layout(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path))
    root = ensure("street", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert ensure("street", **SMALL) == root and {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    assert ensure("room", **SMALL) != root and ensure("street", **(SMALL | {"val": 2})) != root
    data = PreparedDataset(root, "train")
    assert (
        len(data) == 7
        and data.description.classes == CLASSES["street"]
        and list(data.modalities) == ["rgb", "depth", "event"]
    )
    for k, row in enumerate(samples("street", "train", 7, SMALL["modalities"])):
        frame = render_frame(
            "street", row["seed"], row["condition"], row["case"], (32, 48), SMALL["modalities"]
        )
        sample, (images, label) = data[k], data.stored(k)
        assert (sample["id"], sample["condition"], sample["case"]) == (
            row["id"],
            row["condition"],
            row["case"],
        )
        assert np.array_equal(label, frame.label) and all(
            np.array_equal(images[n], frame.images[n]) for n in images
        )


def test_several_processes_render_the_same_files(tmp_path):
    one = render_dataset(tmp_path / "one", "room", **SMALL)
    two = render_dataset(tmp_path / "two", "room", **SMALL, workers=2)
    assert tree(one) == tree(two)


def test_a_folder_with_another_data_set_is_refused(tmp_path):
    render_dataset(tmp_path / "a", "room", **SMALL)
    with pytest.raises(DataError, match="already holds a finished"):
        render_dataset(tmp_path / "a", "room", **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(scene="moon"),
        dict(train=-1),
        dict(train=1.5),
        dict(val=10**6),
        dict(train=0, val=0, test=0),
        dict(modalities=("sonar",)),
        dict(size=(1, 1)),
        dict(workers=0),
    ],
)
def test_wrong_arguments(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected|must|ask for"):
        render_dataset(tmp_path / "x", **(dict(scene="room") | SMALL | wrong))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "call",
    [
        dict(scene="forest"),
        dict(scene="street", condition="rain"),
        dict(scene="room", condition="fog"),
        dict(scene="street", case="dirt"),
        dict(scene="street", modalities=("rgb", "radar")),
        dict(scene="street", modalities="rgb"),
        dict(scene="street", size=(96,)),
        dict(scene="street", size=(8, 8)),
        dict(scene="street", size=(96.0, 128)),
        dict(scene="street", seed=-1),
        dict(scene="street", seed=1.5),
        dict(scene="street", supersample=0),
    ],
)
def test_wrong_arguments_of_a_frame_say_what_is_allowed(call):
    with pytest.raises(ValueError, match="expected|must be"):
        render_frame(**({"seed": 0} | call))


def test_fog_is_refused_indoors_with_the_allowed_conditions():
    with pytest.raises(ValueError, match="condition of a room fog: expected one of day, dusk, night"):
        render_frame("room", 0, "fog")
