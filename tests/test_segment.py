"""A finished clustering on new images gives what the run itself gave: same maps, same scores, or a clear
refusal.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.unsupervised import inference
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


def run(room, out, method="unim2", whiten=0, **options):
    evaluation = EvaluationConfig(clusters=4, restarts=2, repeats=1, kmeans_points=500)
    config = ClusterConfig(
        str(room),
        str(out),
        method,
        tokens=TokenConfig("test_efficientnet", "random", size=(64, 96), whiten=whiten),
        evaluation=evaluation,
        steps=3,
        batch_size=4,
        neighbours=2,
        progress=False,
        **options,
    )
    return cluster(config)


@pytest.mark.parametrize(
    "method, whiten, combine",
    [
        ("unim2", 0, "network"),
        ("unim2", 6, "network"),
        ("kmeans", 0, "network"),
        ("kmeans", 6, "network"),
        ("kmeans", 6, "feature"),
        ("stego", 6, "image"),
        ("eagle", 6, "network"),
        ("cosine", 6, "network"),
    ],
)
def test_the_scored_split_again_gives_the_same_scores(room, tmp_path, method, whiten, combine):
    report = run(room, tmp_path / "run", method, whiten, combine=combine)
    saved = load_clustering(tmp_path / "run/clustering.safetensors")
    assert {len(weight) for weight in saved.chain.whitening.values()} == ({whiten} if whiten else set())
    if method == "kmeans" and whiten:
        assert saved.centroids.shape[1] == (2 * whiten if combine == "network" else whiten)
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
    with pytest.raises(ValueError, match="classes .*, in training there were"):
        segment(SegmentConfig(str(tmp_path / "run"), str(street), str(tmp_path / "maps"), progress=False))
    saved = load_clustering(tmp_path / "run/clustering.safetensors")
    saved.settings["backbone"] = "0"
    save_clustering(tmp_path / "run/clustering.safetensors", saved)
    with pytest.raises(ValueError, match="other weights"):
        segment(SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), progress=False))


def test_images_are_taken_as_those_of_the_training(room, tmp_path, capsys, monkeypatch):
    """Another unit is refused, values far from those of the training are pointed out, and other bounds of a
    sensor's range in the new data change nothing.
    """
    report, split = run(room, tmp_path / "run"), "val"
    command = SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), split, progress=False)

    def other(**changes):
        """The same images, of which dataset.json says something else of the thermal ones."""
        root = tmp_path / "-".join(changes)
        shutil.copytree(room, root)
        description = json.loads((root / "dataset.json").read_text())
        (thermal,) = (m for m in description["modalities"] if m["name"] == "thermal")
        thermal |= changes
        (root / "dataset.json").write_text(json.dumps(description))
        return replace(command, data=str(root), out=str(tmp_path / f"maps-{root.name}"))

    offset = PreparedDataset(room).modalities["thermal"].offset
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="trained on 1 channel.s. in °C, .* in K"),
    ):
        patch.setattr(inference, "extract_tokens", None)  # before anything is extracted
        segment(other(unit="K"))
    with pytest.raises(ValueError, match=r"thermal has values of .* °C, in training .*: check units"):
        segment(replace(other(offset=offset + 100), strict=True))
    assert not list(tmp_path.glob("maps-*"))
    assert "warning" not in capsys.readouterr().err
    segment(replace(command, data=str(tmp_path / "offset"), out=str(tmp_path / "warned")))
    assert "warning: thermal has values of" in capsys.readouterr().err
    for same in (other(low=-300.0, high=900.0), replace(command, strict=True)):
        assert segment(same)["counts"] == report["scores"]["counts"]
    assert not capsys.readouterr().err
    path = tmp_path / "run/clustering.safetensors"
    saved = load_clustering(path)
    del saved.settings["modalities"]  # as an earlier version saved it
    save_clustering(path, saved)
    assert segment(replace(command, out=str(tmp_path / "again")))["counts"] == report["scores"]["counts"]


def test_a_run_of_an_earlier_version_is_mended_by_its_own_command(room, tmp_path):
    """It has four files and a state of the same names; the command measures that state again."""
    report = run(room, tmp_path / "run")
    (tmp_path / "run/clustering.safetensors").rename(tmp_path / "run/clusters.safetensors")
    command = SegmentConfig(str(tmp_path / "run"), str(room), str(tmp_path / "maps"), "val", progress=False)
    with pytest.raises(ValueError, match="no such file; .* run again the command that writes it"):
        segment(command)
    assert run(room, tmp_path / "run")["scores"] == report["scores"]
    assert segment(command)["counts"] == report["scores"]["counts"]
