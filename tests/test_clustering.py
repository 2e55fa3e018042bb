"""Clusters of codes: planted groups, definitions by loops, forced empty clusters, the guided filter as
windows of regressions.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmlib.data.prepared import PreparedDataset
from mmlib.runtime import save_tensors
from mmlib.unsupervised import clustering as cl
from mmlib.unsupervised import kmeans as km
from mmlib.unsupervised.networks import ClusterNet, ClusterNetConfig
from mmlib.unsupervised.tokens import TokenChain

CENTRES = F.normalize(
    torch.tensor([[1.0, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, -1, 0.1], [0.5, -0.8, 0, 0]]), dim=1
)


def planted(n=60, noise=0.08, seed=0):
    """n codes around each of four directions, of any length; and which."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.arange(4).repeat(n)
    codes = CENTRES[which] + noise * torch.randn(4 * n, 4, generator=generator)
    return codes * (0.1 + 5 * torch.rand(4 * n, 1, generator=generator)), which


def random_codes(n, dim, seed):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_planted_directions_are_found_whatever_the_lengths():
    codes, which = planted()
    result = km.kmeans(codes, 4, seed=1)
    overlap = result.centroids @ CENTRES.T
    assert (overlap.max(1).values > 0.99).all() and sorted(overlap.argmax(1).tolist()) == [0, 1, 2, 3]
    assert torch.equal(overlap.argmax(1)[km.nearest_centroid(codes, result.centroids)[0]], which)
    assert (
        result.use.tolist() == [0.25] * 4
        and len(result.inertia) == 10
        and result.restarts.shape == (10, 4, 4)
    )
    assert (
        torch.allclose(result.centroids.norm(dim=1), torch.ones(4))
        and result.centroids.dtype == torch.float32
    )


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4))
def test_inertia_never_rises_and_is_what_it_says(seed, clusters, restarts):
    codes = random_codes(40, 3, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(km, "CHUNK", 7)
        patch.setattr(km, "TOLERANCE", 0)
        result = km.kmeans(codes, clusters, restarts=restarts, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        histories = [km.lloyd(codes, km.plus_plus(codes, clusters, generator))[2] for _ in range(restarts)]
    for last, centroids, history in zip(result.inertia, result.restarts, histories):
        assert all(later <= earlier + 1e-12 for earlier, later in zip(history, history[1:]))
        assert history[-1] == pytest.approx(last)
        assert last == pytest.approx(
            np.mean([1 - max(cosine(x, c) for c in centroids) for x in codes]), abs=1e-6
        )
    best = min(range(restarts), key=result.inertia.__getitem__)
    assert torch.equal(result.centroids, result.restarts[best])
    labels = [max(range(clusters), key=lambda k: cosine(x, result.centroids[k])) for x in codes]
    assert result.use.tolist() == pytest.approx([labels.count(k) / 40 for k in range(clusters)])


def test_centroids_are_a_fixed_point(monkeypatch):
    """At the end each centroid is the direction of the sum of its unit points: no other direction has a
    larger sum of cosines.
    """
    codes = random_codes(80, 5, 3)
    monkeypatch.setattr(km, "TOLERANCE", 0)
    result = km.kmeans(codes, 4, restarts=2)
    labels = km.nearest_centroid(codes, result.centroids)[0].numpy()
    unit = codes.numpy() / np.linalg.norm(codes.numpy(), axis=1, keepdims=True)
    for k in range(4):
        total = unit[labels == k].sum(0)
        assert result.centroids[k].numpy() == pytest.approx(total / np.linalg.norm(total), abs=1e-5)


def test_seeds_follow_the_law_of_kmeans_plus_plus():
    """Four points: the ordered pairs of seeds appear as often as probability 1/4 times distance over the sum
    of distances says.
    """
    points = torch.tensor([[1.0, 0], [0.9, 0.5], [0, 1], [-1, 0.2]], dtype=torch.float64)
    distance = np.array([[1 - cosine(a, b) for b in points] for a in points])
    expected = distance / distance.sum(1, keepdims=True) / 4
    generator, draws = torch.Generator().manual_seed(0), 4000
    unit, counts = F.normalize(points, dim=1), np.zeros((4, 4))
    for _ in range(draws):
        seeds = km.plus_plus(points, 2, generator)
        first, second = (unit @ seeds.T).argmax(0).tolist()
        counts[first, second] += 1
    error = np.sqrt(expected * (1 - expected) / draws) + 1e-12
    assert not counts[np.eye(4, dtype=bool)].any() and (np.abs(counts / draws - expected) < 4.5 * error).all()


def test_seeds_look_at_the_nearest_seed_only():
    """With one point of each of three directions, duplicated often or not, three seeds are always the three
    directions.
    """
    points = torch.tensor([[1.0, 0]] * 50 + [[0, 2.0]] + [[-3.0, 0]] * 9)
    for seed in range(20):
        seeds = km.plus_plus(points, 3, torch.Generator().manual_seed(seed))
        assert len({tuple(row) for row in seeds.round(decimals=6).tolist()}) == 3


def test_an_empty_cluster_starts_again_at_the_farthest_point():
    points = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    start = F.normalize(
        torch.tensor([[1.0, 0, 0], [-1, -1, -1]], dtype=torch.float64), dim=1
    )  # nothing is nearest to the second
    labels, similarity = km.nearest_centroid(points, start)
    assert labels.tolist() == [0, 0, 0, 0]
    moved = km.update_centroids(points, labels, similarity - torch.tensor([0, 0, 0, 1e-3]), 2)
    assert moved[1].tolist() == [0, 0, 1]
    _, labels, history = km.lloyd(points, start)
    assert sorted(labels.unique().tolist()) == [0, 1] and history[-1] < history[0]
    assert all(later <= earlier + 1e-12 for earlier, later in zip(history, history[1:]))


def test_a_cluster_whose_points_cancel_starts_again():
    points = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    moved = km.update_centroids(points, torch.tensor([0, 0, 1]), torch.tensor([0.0, -0.1, 1.0]), 2)
    assert moved.tolist() == [[-1, 0, 0], [0, 1, 0]]


def test_a_run_does_not_end_while_a_cluster_is_empty(monkeypatch):
    """Both empty clusters start again at twins, so one stays empty: a tolerance that any iteration meets must
    not end the run there.
    """
    points = torch.tensor([[1.0, 0, 0.1]] * 5 + [[1.0, 0.2, 0]] * 5 + [[0, 1.0, 0]] * 5, dtype=torch.float64)
    start = torch.tensor([[1.0, 0, 0], [-1, -1, -1], [-1, -1, -2]], dtype=torch.float64)
    monkeypatch.setattr(km, "TOLERANCE", 1.0)
    _, labels, history = km.lloyd(points, start)
    assert len(labels.unique()) == 3 and len(history) == 3


def test_seeds_decide_everything_and_chunks_nothing(monkeypatch):
    codes = random_codes(200, 6, 1).float()
    one = km.kmeans(codes, 5, seed=4)
    with monkeypatch.context() as patch:
        patch.setattr(km, "CHUNK", 13)
        same = km.kmeans(codes, 5, seed=4)
    assert torch.allclose(one.centroids, same.centroids, atol=1e-6) and one.inertia == pytest.approx(
        same.inertia
    )
    assert km.kmeans(codes, 5, seed=5).inertia != one.inertia


def test_codes_of_length_zero_are_left_out():
    codes, _ = planted()
    result = km.kmeans(torch.cat([torch.zeros(50, 4), codes]), 4)
    assert result.use.tolist() == [0.25] * 4 and result.inertia == pytest.approx(km.kmeans(codes, 4).inertia)


@pytest.mark.parametrize(
    ("codes", "clusters", "message"),
    [
        (torch.ones(3, 4), 4, "3 of 3 codes are not 0, fewer than 4 clusters"),
        (torch.zeros(9, 4), 2, "0 of 9 codes"),
        (torch.ones(50, 4), 2, "1 distinct directions for 2 clusters"),
        (torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]]), 3, "2 distinct directions"),
        (
            torch.linspace(1, 2, 50)[:, None] + 1e-7 * random_codes(50, 4, 0),
            2,
            "1 distinct directions",
        ),  # lengths and rounding alone
        (torch.tensor([[1.0, float("nan")], [0, 1]]), 2, "codes hold NaN"),
        (torch.tensor([[1.0, float("inf")], [0, 1]]), 2, "codes hold NaN"),
    ],
)
def test_bad_codes_are_refused(codes, clusters, message):
    with pytest.raises(ValueError, match=message):
        km.kmeans(codes, clusters)


def test_cluster_probe_finds_planted_directions_and_leaves_the_codes_alone():
    torch.manual_seed(1)
    codes, which = planted()
    code = codes.T.reshape(1, 4, 8, 30).contiguous().requires_grad_()
    probe = cl.ClusterProbe(4, 4)
    hard = -np.mean([max(cosine(x, c) for c in probe.clusters.detach()) for x in codes])
    assert probe(code).item() == pytest.approx(hard, abs=1e-5)
    optimizer = torch.optim.Adam(probe.parameters(), 5e-2)
    for _ in range(150):
        optimizer.zero_grad()
        probe(code).backward()
        optimizer.step()
    assert (
        code.grad is None
        and torch.allclose(probe.centroids.norm(dim=1), torch.ones(4))
        and not probe.centroids.requires_grad
    )
    best = km.kmeans(codes, 4).inertia[0] - 1  # the loss is the inertia − 1: k-means is its lower bound
    assert best - 1e-5 <= probe(code).item() < hard - 0.05


def test_assignment_is_the_largest_cosine_of_upsampled_codes():
    torch.manual_seed(2)
    code, centroids = torch.randn(2, 6, 5, 4), 3 * torch.rand(4, 1) * torch.randn(4, 6)
    large = F.interpolate(code, (17, 23), mode="bilinear", align_corners=False)
    cosines = F.cosine_similarity(large[:, None], centroids[None, :, :, None, None], dim=2)
    top = cosines.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-5
    result = cl.assign(code, centroids, (17, 23))
    assert (
        result.shape == (2, 17, 23)
        and clear.float().mean() > 0.99
        and torch.equal(result[clear], cosines.argmax(1)[clear])
    )


def test_a_flat_guide_only_smooths_and_a_true_one_moves_the_edge():
    """A border that the coarse grid cannot place: with the picture's edge as guide, most of the wrong pixels
    go back to their own side.
    """
    truth = (torch.arange(64) >= 20).long().expand(64, 64)
    token = F.avg_pool2d(truth[None, None].float(), 16).round()  # the edge lies at 20, the tokens say 16
    code = torch.cat([1 - token, token], 1)
    guide = (0.2 + 0.6 * truth[None, None]).float() + 0.02 * torch.randn(
        1, 1, 64, 64, generator=torch.Generator().manual_seed(0)
    )
    coarse = cl.assign(code, torch.eye(2), (64, 64))[0]
    refined = cl.assign(code, torch.eye(2), (64, 64), guide)[0]
    flat = cl.assign(code, torch.eye(2), (64, 64), torch.full_like(guide, 0.5))[0]
    errors = [int((labels != truth).sum()) for labels in (coarse, refined, flat)]
    assert errors[0] == 4 * 64 and errors[1] < errors[0] / 2 and errors[2] > 0.9 * errors[0]


@pytest.mark.parametrize(("channels", "radius"), [(1, 2), (3, 1), (3, 9)])
def test_guided_filter_is_the_mean_of_window_regressions(channels, radius):
    """Every window a ridge regression by normal equations with an intercept; a pixel averages the fits of all
    windows that hold it.
    """
    generator = torch.Generator().manual_seed(channels)
    guide, maps = (torch.rand(2, c, 7, 6, generator=generator, dtype=torch.float64) for c in (channels, 3))
    eps, expected = 0.01, np.zeros((2, 3, 7, 6))
    window = lambda i, size: range(max(i - radius, 0), min(i + radius + 1, size))
    for b in range(2):
        for k in range(3):
            total, windows = np.zeros((7, 6)), np.zeros((7, 6))
            for y in range(7):
                for x in range(6):
                    inside = [(i, j) for i in window(y, 7) for j in window(x, 6)]
                    a = np.array([[*guide[b, :, i, j].tolist(), 1.0] for i, j in inside])
                    p = np.array([float(maps[b, k, i, j]) for i, j in inside])
                    ridge = eps * len(inside) * np.diag([1.0] * channels + [0.0])  # the intercept is free
                    fit = a @ np.linalg.solve(a.T @ a + ridge, a.T @ p)
                    for (i, j), value in zip(inside, fit):
                        total[i, j] += value
                        windows[i, j] += 1
            expected[b, k] = total / windows
    result = cl.guided_filter(maps, guide, radius, eps)
    assert result.numpy() == pytest.approx(expected, abs=1e-9)
    assert cl.guided_filter(maps.float(), guide.float(), radius, eps).numpy() == pytest.approx(
        expected, abs=1e-5
    )


def test_guided_filter_keeps_constants_and_linear_functions_of_the_guide():
    guide = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = torch.cat([torch.full((1, 1, 20, 20), 0.7), guide[:, :1] - 2 * guide[:, 1:2] + 1], 1).double()
    assert torch.allclose(cl.guided_filter(maps, guide, 3, 1e-9), maps, atol=1e-6)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Codes that know the three classes at a quarter of the size, with clusters in another order and one
    cluster too many.
    """
    data = PreparedDataset(toy.make(tmp_path_factory.mktemp("toy")), "val")

    labels = torch.stack([data.physical(i)[1] for i in range(len(data))]).clamp(max=3)
    codes = F.avg_pool2d(F.one_hot(labels, 4).permute(0, 3, 1, 2).float(), 4)
    return data, codes, torch.eye(4)[[2, 0, 1, 3]] * 5


def test_counts_of_a_split_and_of_its_conditions(split):
    data, codes, centroids = split
    expected = {
        "all": np.zeros((3, 4), int),
        "condition=day": np.zeros((3, 4), int),
        "condition=night": np.zeros((3, 4), int),
    }
    for i, row in enumerate(data.rows):
        label = data.physical(i)[1]
        large = F.interpolate(codes[i : i + 1], label.shape, mode="bilinear", align_corners=False)[0]
        for y in range(label.shape[0]):
            for x in range(label.shape[1]):
                if label[y, x] != 255:
                    cluster = max(range(4), key=lambda k: float(large[:, y, x] @ centroids[k]))
                    for group in ("all", f"condition={row['condition']}"):
                        expected[group][label[y, x], cluster] += 1
    counts = cl.count(codes, data, centroids)
    assert set(counts) == set(expected)
    for group in expected:  # a tie of two clusters may fall either way
        assert np.abs(counts[group] - expected[group]).sum() <= 8
        assert counts[group].sum() == expected[group].sum()
    assert counts["all"].argmax(1).tolist() == [1, 2, 0]


def test_counts_with_refined_edges(split):
    data, codes, centroids = split
    plain, refined = (
        cl.count(codes, data, centroids),
        cl.count(codes, data, centroids, guide="rgb"),
    )
    hits = [counts["all"][range(3), [1, 2, 0]].sum() for counts in (plain, refined)]
    assert hits[1] > hits[0]
    with pytest.raises(ValueError, match="--guide thermal: expected one of rgb, depth, aolp"):
        cl.check_guide("thermal", data)


def test_a_clustering_is_saved_whole(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "clustering.safetensors"
    chain = TokenChain({"rgb": torch.rand(2, 7) + 0.1}, True, 0.5)
    net = ClusterNet(7, ["rgb", "depth"], ClusterNetConfig(dim=7))
    for mapping in (None, [1, -1, 0]):
        for parts in ({}, {"chain": chain}, {"network": net, "chain": chain}):
            saved = cl.Clustering(
                torch.randn(3, 7), mapping, ["a", "b"], [[1, 2, 3], [4, 5, 6]], **parts, settings={"seed": 3}
            )
            cl.save_clustering(path, saved)
            again = cl.load_clustering(path)
            assert torch.equal(again.centroids, saved.centroids)
            assert again.mapping == (None if mapping is None else [1, -1, 0])
            assert (again.classes, again.palette, again.settings) == (
                saved.classes,
                saved.palette,
                saved.settings,
            )
            if "chain" in parts:
                assert torch.equal(again.chain.statistics["rgb"], chain.statistics["rgb"])
                assert (again.chain.smooth, again.chain.centre) == (True, 0.5)
            else:
                assert not again.chain.statistics and not again.chain.smooth
            if "network" in parts:
                ours, theirs = net.state_dict(), again.network.state_dict()
                assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
            else:
                assert again.network is None
    save_tensors(tmp_path / "other.safetensors", {"x": torch.ones(1)}, {"kind": "network"})
    for name, message in (
        ("other", "KeyError: 'clustering'.*not a clustering of"),
        ("missing", "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            cl.load_clustering(tmp_path / f"{name}.safetensors")


def test_label_maps_without_labels(tmp_path, split):
    _, codes, centroids = split
    data = PreparedDataset(toy.make(tmp_path / "bare", train=1, val=5, labels=False), "val")
    cl.write_label_maps(tmp_path / "maps", codes, data, cl.Clustering(centroids))
    listed = json.loads((tmp_path / "maps" / "ids.json").read_text())
    assert [entry["name"] for entry in listed] == ["cluster 0", "cluster 1", "cluster 2", "cluster 3"]
    assert len({tuple(entry["colour"]) for entry in listed}) == 4
    for index, assignment, _ in cl.assignments(codes, data, centroids):
        with Image.open(tmp_path / "maps" / f"{data.rows[index]['id']}.png") as image:
            assert np.array_equal(np.array(image), assignment)  # ids, not colours
            assert image.convert("RGB").getpixel((20, 0)) == tuple(listed[int(assignment[0, 20])]["colour"])
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(data)


def test_label_maps_with_names(tmp_path, split):
    data, codes, centroids = split
    named = cl.Clustering(centroids, [2, 0, 1, -1], toy.CLASSES, toy.PALETTE)
    cl.write_label_maps(tmp_path, codes, data, named)
    right = total = 0
    for index, assignment, label in cl.assignments(codes, data, centroids):
        with Image.open(tmp_path / f"{data.rows[index]['id']}.png") as image:
            ids = np.array(image)
        assert np.array_equal(ids == 255, assignment == 3)
        right, total = right + (ids == label.numpy()).sum(), total + label.numel()
    assert (
        right / total > 0.9
        and [e["name"] for e in json.loads((tmp_path / "ids.json").read_text())] == toy.CLASSES
    )


def test_many_clusters_have_colours_of_their_own():
    colours = cl.cluster_palette(40)
    assert len(set(colours)) == 40 and all(0 <= value <= 255 for colour in colours for value in colour)
