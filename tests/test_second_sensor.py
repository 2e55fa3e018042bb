"""Scripts of the clustering records: tokens that runs share, and ways to use a second sensor."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "notebooks/results"))

import clusters  # noqa: E402
import second_sensor  # noqa: E402
import second_sensor_ways as ways  # noqa: E402
from small_runs import TINY, configured  # noqa: E402

from mmlib.evaluation.counts import confusion_matrix, score_clusters  # noqa: E402
from mmlib.unsupervised.clustering import assign  # noqa: E402
from mmlib.unsupervised.kmeans import kmeans  # noqa: E402
from mmlib.unsupervised.methods import prepare  # noqa: E402

CLASSES, GRID = 4, (6, 8)


@dataclass(eq=False)
class Frames:
    """Labels and pictures in the manner of a prepared data set; the picture is the label."""

    labels: np.ndarray
    modalities: dict = field(default_factory=lambda: {"rgb": None, "depth": None})
    description: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(classes=tuple("abcd")))

    def __len__(self):
        return len(self.labels)

    def stored(self, index):
        return {}, self.labels[index]


def view(first_noise: float, second_noise: float) -> ways.View:
    """Two sensors of 64 directions; the class of a place is one direction of each, and all else is noise."""
    rng = torch.Generator().manual_seed(0)
    data, codes = [], [[], []]
    for images in (24, 8):
        small = torch.randint(CLASSES, (images, *GRID), generator=rng)
        data.append(Frames(small.repeat_interleave(8, 1).repeat_interleave(8, 2).numpy()))
        for own, noise in zip(codes, (first_noise, second_noise)):
            maps = noise * torch.randn(images, 64, *GRID, generator=rng) / 8
            own.append(maps.scatter_add(1, small[:, None], torch.ones(images, 1, *GRID)))
    codes = tuple(tuple(own) for own in codes)
    order = tuple(np.arange(len(each)) for each in data)
    return ways.View(tuple(data), ("rgb", "depth"), codes, codes, order)


def test_kmeans_is_that_of_the_library():
    points = (
        torch.randn(300, 5, generator=torch.Generator().manual_seed(1))
        + 4 * torch.eye(5)[torch.arange(300) % 5]
    )
    ours, theirs = ways.kmeans(points, 5, 0), kmeans(points, 5, restarts=3).centroids
    assert (ours @ theirs.T).amax(1) == pytest.approx(torch.ones(5), abs=1e-5)


def test_weights_of_points_count_like_copies():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(2))
    copies = torch.arange(60) % 3 + 1
    labels = (ways.unit(points) @ ways.kmeans(points, 3, 0, copies.float()).T).argmax(1)
    for k, centre in enumerate(ways.kmeans(points, 3, 0, copies.float())):
        inside = ways.unit(points).repeat_interleave(copies, 0)[labels.repeat_interleave(copies) == k]
        assert centre == pytest.approx(ways.unit(inside.sum(0)[None])[0], abs=1e-5)


def test_scores_are_those_of_the_library():
    own = view(1.0, 1.0)
    maps = ways.clustered(ways.single(0, 16)(own), own, 0)
    counts, centres = 0, ways.kmeans(ways.points_of(own.white[0][0][:, :16], 0), CLASSES, 0)
    for code, label in zip(own.white[0][1], own.data[1].labels):
        label = torch.from_numpy(label)
        guess = assign(code[None, :16], centres, tuple(label.shape))[0]
        counts = counts + confusion_matrix(guess, label, CLASSES).numpy()
    expected = score_clusters(counts, own.data[1].description.classes)["miou"]["all"]
    assert second_sensor.score(maps, own.data[1])["miou"] == pytest.approx(expected, abs=1e-3)


def test_the_control_moves_the_second_sensor_alone():
    own = view(0.1, 0.1)
    mixed = own.shuffled()
    for split in (0, 1):
        assert torch.equal(mixed.white[0][split], own.white[0][split])
        assert torch.equal(mixed.white[1][split], own.white[1][split][mixed.order[split]])
        assert sorted(mixed.order[split]) == list(range(len(own.data[split])))
        assert (mixed.order[split] != own.order[split]).any()


@pytest.mark.parametrize("name", ["lengths-kept", "shared-directions", "weighed-images", "consensus"])
def test_a_clear_second_sensor_helps_and_a_shuffled_one_does_not(name):
    own = view(first_noise=4.0, second_noise=0.5)
    score = lambda seen: second_sensor.score(
        ways.STEPS[name](seen, 0) if name in ways.STEPS else ways.clustered(ways.CODES[name](seen), seen, 0),
        seen.data[1],
    )["miou"]
    assert score(own) > score(own.shuffled()) + 20


def test_superpixels_do_not_cross_a_clear_edge():
    picture = torch.zeros(1, 48, 64)
    picture[:, :, 29:] = 1.0
    ids = ways.superpixels(picture, 4, 6)
    assert not set(ids[:, :29].flatten().tolist()) & set(ids[:, 29:].flatten().tolist())


def test_masks_are_of_like_tokens_and_do_not_overlap():
    tokens = ways.unit(view(0.2, 0.2).white[0][1]).flatten(2)
    mask = ways.proposals(tokens, count=CLASSES)
    for image, own in zip(tokens, mask):
        truth = image[:CLASSES].argmax(0)
        assert {len(truth[own == k].unique()) for k in own.unique()} == {1}


@pytest.mark.parametrize("keep", [4, 8])
@pytest.mark.parametrize("combine", ["network", "feature"])
def test_tokens_put_together_of_single_sensors_are_those_of_a_run(data, tmp_path, monkeypatch, keep, combine):
    monkeypatch.setattr(clusters, "ROOT", tmp_path)
    monkeypatch.setattr(clusters, "WHITEN", 8)
    clusters.tokens_of.cache_clear()
    tokens = replace(TINY, whiten=keep)
    config = configured(data, method="stego", modalities=("rgb", "depth"), combine=combine, tokens=tokens)
    clusters.prepared(config)  # writes the tokens, which are then read back
    clusters.tokens_of.cache_clear()
    (plan, ours), (expected_plan, expected) = clusters.prepared(config), prepare(config)
    assert plan == expected_plan and torch.equal(ours.neighbours, expected.neighbours)
    for own, theirs in ((ours.tokens, expected.tokens), (ours.scored_tokens, expected.scored_tokens)):
        for name, maps in theirs.batch([0, 1], plan.read).items():
            assert own.batch([0, 1], plan.read)[name] == pytest.approx(maps, abs=1e-5)
