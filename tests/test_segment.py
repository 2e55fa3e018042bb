"""A finished clustering on new images gives what the run itself gave: same maps, same scores, or a clear
refusal.
"""

import json

import numpy as np
import pytest
from PIL import Image

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.unsupervised.clustering import load_clustering, save_clustering
from mmlib.unsupervised.inference import EvaluationConfig, SegmentConfig, segment
from mmlib.unsupervised.methods import ClusterConfig, TokenConfig
from mmlib.unsupervised.train import cluster


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "room"
    return world.render_dataset(root, "room", 8, 3, 3, (32, 48), ("rgb", "thermal"), progress=False)


def run(room, out, method="unim2", **options):
    evaluation = EvaluationConfig(clusters=4, restarts=2, repeats=1, kmeans_points=500)
    config = ClusterConfig(
        str(room),
        str(out),
        method,
        tokens=TokenConfig("descriptors"),
        evaluation=evaluation,
        steps=3,
        batch_size=4,
        neighbours=2,
        progress=False,
        **options,
    )
    return cluster(config)


@pytest.mark.parametrize("method", ["unim2", "kmeans", "cosine"])
def test_the_scored_split_again_gives_the_same_scores(room, tmp_path, method):
    report = run(room, tmp_path / "run", method)
    scores = segment(
        SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), "val", progress=False)
    )
    assert scores["counts"] == report["scores"]["counts"]
    assert scores["mapping"] == report["scores"]["mapping"]
    assert (
        json.loads((tmp_path / "maps/scores.json").read_text())["scores"]["miou"] == report["scores"]["miou"]
    )


def test_maps_hold_the_classes_that_the_run_named(room, tmp_path):
    report = run(room, tmp_path / "run")
    segment(SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), "test", progress=False))
    data = PreparedDataset(room, "test")
    counts = np.zeros(256, int)
    for row in data.rows:
        with Image.open(tmp_path / "maps" / f"{row['id']}.png") as image:
            assert image.mode == "P" and image.size == (48, 32)
            counts += np.bincount(np.asarray(image).ravel(), minlength=256)
    assert counts.sum() == 3 * 32 * 48
    assert set(np.flatnonzero(counts)) <= {target % 256 for target in report["scores"]["mapping"]}


def test_names_may_be_given_anew_on_the_split_that_is_scored(room, tmp_path):
    run(room, tmp_path / "run")
    own, anew = (
        segment(
            SegmentConfig(
                str(tmp_path / "run"), str(room), str(tmp_path / str(k)), "test", rematch=k, progress=False
            )
        )
        for k in (False, True)
    )
    assert (own["rule"], anew["rule"]) == ("given", "hungarian")
    assert anew["accuracy"]["all"] >= own["accuracy"]["all"]  # Hungarian matching maximises exactly that


def test_what_does_not_fit_is_refused(room, tmp_path):
    with pytest.raises(ValueError, match="clustering.safetensors: no such file"):
        segment(SegmentConfig(str(tmp_path / "none"), str(room), str(tmp_path / "maps"), progress=False))
    run(room, tmp_path / "run")
    other = world.render_dataset(tmp_path / "colour", "room", 1, 1, 1, (32, 48), ("rgb",), progress=False)
    with pytest.raises(ValueError, match="thermal"):
        segment(SegmentConfig(str(tmp_path / "run"), str(other), str(tmp_path / "maps"), progress=False))
    street = world.render_dataset(
        tmp_path / "street", "street", 1, 1, 1, (32, 48), ("rgb", "thermal"), progress=False
    )
    with pytest.raises(ValueError, match="names its clusters by"):
        segment(SegmentConfig(str(tmp_path / "run"), str(street), str(tmp_path / "maps"), progress=False))
    saved = load_clustering(tmp_path / "run/clustering.safetensors")
    saved.settings["backbone"] = "0"
    save_clustering(tmp_path / "run/clustering.safetensors", saved)
    with pytest.raises(ValueError, match="other weights"):
        segment(SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), progress=False))


def test_a_run_of_an_earlier_version_is_mended_by_its_own_command(room, tmp_path):
    """It has four files and a state of the same names; the command measures that state again."""
    report = run(room, tmp_path / "run")
    (tmp_path / "run/clustering.safetensors").rename(tmp_path / "run/clusters.safetensors")
    command = SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), "val", progress=False)
    with pytest.raises(ValueError, match="no such file; .* run again the command that writes it"):
        segment(command)
    assert run(room, tmp_path / "run")["scores"] == report["scores"]
    assert segment(command)["counts"] == report["scores"]["counts"]
