"""Losses of the baselines: spectra, medoids, contrast, depth guidance, distances of distributions, against
brute force and scipy.
"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import laplacian

from mmlib.unsupervised import baselines as b
from mmlib.unsupervised.correspondence import correlation_loss
from mmlib.unsupervised.networks import ClusterNet


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def planted(blocks: list[int], inside=1.0, between=0.02) -> torch.Tensor:
    """An affinity (1, P, P) with one block per object."""
    names = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(blocks))
    same = names[:, None] == names[None, :]
    return torch.where(same, inside, between).double()[None]


# ---------------------------------------------------------------- EAGLE


def test_eigenvectors_agree_with_scipy():
    affinity = randn(2, 12, 12).abs()
    affinity = affinity + affinity.transpose(1, 2)
    affinity = affinity - torch.diag_embed(affinity.diagonal(dim1=1, dim2=2))  # which scipy ignores
    vectors = b.eigenvectors(affinity, 5)
    assert vectors.shape == (2, 12, 4)
    for a, found in zip(affinity.numpy(), vectors.numpy()):
        result = scipy.linalg.eigh(laplacian(a, normed=True))[1][:, 1:5]
        assert np.allclose(np.abs((result * found).sum(0)), 1)  # the same directions, up to sign
    assert ((vectors > 0).double().mean(1) <= 0.5).all()  # the smaller side is positive


def test_the_first_eigenvector_is_the_dropped_one():
    """Of any affinity it is the square root of the degrees, so the others are orthogonal to that."""
    affinity = randn(1, 10, 10, seed=3).abs()
    affinity = affinity + affinity.transpose(1, 2)
    vectors = b.eigenvectors(affinity, 10)
    assert torch.allclose(
        torch.einsum("bpk,bp->bk", vectors, affinity.sum(2).sqrt()),
        torch.zeros(1, 9, dtype=torch.float64),
        atol=1e-9,
    )


def test_a_point_without_affinity_leaves_the_others_as_they_are():
    affinity = planted([4, 2, 1])
    affinity[0, 6] = affinity[0, :, 6] = 0
    with_it, without = b.eigenvectors(affinity, 2)[0, :, 0], b.eigenvectors(affinity[:, :6, :6], 2)[0, :, 0]
    assert torch.allclose(with_it[:6], without) and with_it[6] == 0


@pytest.mark.parametrize("blocks", [[8, 12], [5, 15], [4, 6, 10]])
def test_the_spectrum_finds_planted_objects(blocks):
    """One eigenvector per further block is constant on every block and tells the blocks apart."""
    vectors = b.eigenvectors(planted(blocks), len(blocks))[0]
    start, levels = 0, []
    for length in blocks:
        part = vectors[start : start + length]
        assert torch.allclose(part, part[:1].expand_as(part), atol=1e-9)
        levels.append(part[0])
        start += length
    assert all(torch.dist(x, y) > 0.2 for i, x in enumerate(levels) for y in levels[:i])


def picture(grid=(4, 6)):
    """Codes and colours of two objects: the left third and the rest."""
    left = torch.zeros(1, 1, *grid)
    left[..., : grid[1] // 3] = 1
    code = torch.cat([left, 1 - left], 1)
    rgb = torch.cat([0.2 + 0.6 * left, 0.5 * torch.ones_like(left), 0.9 - 0.7 * left], 1)
    return code, rgb, left.flatten().long()


@pytest.mark.parametrize("colour", [True, False])
def test_pseudo_objects_are_the_planted_ones(colour):
    code, rgb, truth = picture()
    centres = torch.tensor([[-1.0], [1.0]])  # the smaller object is on the positive side
    code = code + 0.02 * randn(1, 2, 4, 6, dtype=torch.float32)
    objects, loss = b.pseudo_objects(code, rgb if colour else None, centres)
    assert objects.shape == (1, 24) and torch.equal(objects[0], truth)
    # In one dimension the cosines are 1 and -1, and so their mean by softmax is tanh 1.
    assert float(loss) == pytest.approx(-math.tanh(1))


def test_pseudo_objects_train_their_centres_only():
    code, rgb, _ = picture()
    code, centres = (code + 0.1).requires_grad_(), randn(32, 3, dtype=torch.float32).requires_grad_()
    b.pseudo_objects(code, rgb, centres)[1].backward()
    assert code.grad is None and centres.grad.abs().sum() > 0


def test_affinities_in_closed_form():
    code = torch.tensor([[[1.0, 0], [2, 0], [-1, 0], [0, 3]]]).double().mT[..., None]
    expected = torch.tensor([[1, 2, 0, 0], [2, 4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 9]]).double() / 9
    assert np.allclose(b.affinities(code, None)[0], expected)
    assert not b.affinities(torch.zeros(1, 3, 2, 2), None).any()
    colours = [[0.5, 0.5, 0.5], [0.6, 0.5, 0.5], [0.5, 0.7, 0.3], [1.0, 1.0, 1.0]]
    rgb = torch.tensor(colours, dtype=torch.float64).T.reshape(1, 3, 4, 1)
    inert = b.affinities(code, rgb)[0] - expected
    red, green, blue = (255 * deviation for deviation in (0.229, 0.224, 0.225))
    assert float(inert[0, 1]) == pytest.approx(math.exp(-((0.1 / red) ** 2) / 0.02), rel=1e-12)
    squares = (0.2 / green) ** 2 + (0.2 / blue) ** 2
    assert float(inert[0, 2]) == pytest.approx(math.exp(-squares / 0.02), rel=1e-12)
    black_white = torch.stack([torch.zeros(3), torch.ones(3)], 1).reshape(1, 3, 1, 2)
    assert 0.95 < float(b.affinities(torch.zeros(1, 2, 1, 2), black_white)[0, 0, 1]) < 0.96


@pytest.mark.parametrize("seed", range(3))
def test_medoids_by_brute_force(seed):
    points = randn(30, 4, seed=seed).requires_grad_()
    objects = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(seed)) * 7  # names with gaps
    prototypes, index = b.medoids(points, objects)
    names = sorted(set(objects.tolist()))
    assert prototypes.shape == (len(names), 4) and [names[i] for i in index] == objects.tolist()
    x = points.detach().numpy()
    for k, name in enumerate(names):
        members = [i for i in range(30) if objects[i] == name]
        cost = {i: sum(np.linalg.norm(x[i] - x[j]) for j in members) for i in members}
        assert np.allclose(prototypes[k].detach(), x[min(cost, key=cost.get)])
    prototypes.sum().backward()
    assert (points.grad.sum(1) != 0).sum() == len(
        names
    )  # the gradient reaches the points chosen, nobody else


def test_a_medoid_is_a_member_and_not_the_mean():
    points = torch.tensor([[0.0, 0], [0.1, 0], [9, 9]])
    assert torch.equal(b.medoids(points, torch.zeros(3, dtype=torch.long))[0], points[1:2])


def test_object_contrast_by_hand():
    own, other = (F.normalize(randn(7, 3, seed=s), dim=1) for s in (1, 2))
    objects, weight = torch.tensor([4, 4, 4, 9, 9, 9, 9]), randn(7, seed=5).abs()
    prototypes, _ = b.medoids(own, objects)
    p, terms = prototypes.numpy(), []
    for z in (own.numpy(), other.numpy()):
        total = 0
        for i, k in enumerate([0, 0, 0, 1, 1, 1, 1]):
            logits = p @ z[i] / 0.07
            total += float(weight[i]) * (np.log(np.exp(logits).sum()) - logits[k])
        terms.append(total / 7)
    assert float(b.object_contrast(own, other, objects, weight)) == pytest.approx(
        (0.3 * terms[0] + 0.7 * terms[1]) / 2
    )


def plain_eagle(codes, tokens, rgb, linear, bias, centres):
    """(object loss, loss of the centres) of EAGLE's released code, one Python loop per index."""
    cells = [np.unravel_index(p, rgb.shape[2:]) for p in range(rgb.shape[2] * rgb.shape[3])]
    images, P = range(len(rgb)), len(cells)
    unit = lambda x: x / math.sqrt(sum(v * v for v in x))
    z = [[unit(linear @ code[n, :, i, j] + bias) for n in images for i, j in cells] for code in codes]
    total, lookup = 0.0, 0.0
    for own, other in ((0, 1), (1, 0)):
        objects, weights = [], []
        for n in images:
            code = [codes[own][n, :, i, j] for i, j in cells]
            affinity = np.array([[max(float(x @ y), 0.0) for y in code] for x in code])
            affinity /= affinity.max()
            colour = [rgb[n, :, i, j] / np.array([0.229, 0.224, 0.225]) / 255 for i, j in cells]
            affinity += [[math.exp(-float((x - y) @ (x - y)) / (2 * 0.1**2)) for y in colour] for x in colour]
            degree = affinity.sum(1)
            lap = (np.diag(degree) - affinity) / np.sqrt(np.outer(degree, degree))
            vectors = np.linalg.eigh(lap)[1][:, 1:4]
            for k in range(3):
                if (vectors[:, k] > 0).mean() > 0.5:
                    vectors[:, k] *= -1
            for v in vectors:
                cosines = np.array([unit(v) @ unit(m) for m in centres[own]])
                share = np.exp(cosines) / np.exp(cosines).sum()
                lookup -= float(share @ cosines) / (len(rgb) * P) / 2
                objects.append(int(cosines.argmax()))
            f = [tokens[own][n, :, i, j] for i, j in cells]
            gram = np.array([[float(x @ y) for y in f] for x in f])
            column = [math.sqrt(sum(gram[p, q] ** 2 for p in range(P))) for q in range(P)]
            weights += [sum(gram[p, q] / column[q] for q in range(P)) / P for p in range(P)]
        prototypes = {}
        for name in sorted(set(objects)):
            members = [z[own][i] for i in range(len(objects)) if objects[i] == name]
            costs = [sum(np.linalg.norm(x - y) for y in members) for x in members]
            prototypes[name] = members[int(np.argmin(costs))]
        for view, share in ((own, 0.3), (other, 0.7)):
            for i, name in enumerate(objects):
                logits = {k: float(z[view][i] @ p) / 0.07 for k, p in prototypes.items()}
                entropy = math.log(sum(math.exp(v) for v in logits.values())) - logits[name]
                total += 0.85 * share / 2 * entropy * weights[i] / len(objects)
    return total, lookup


@pytest.mark.parametrize("seed", range(3))
def test_eagle_agrees_with_the_released_code_written_plainly(seed):
    torch.manual_seed(seed)
    eagle = b.Eagle(5).double()
    codes, tokens = ([randn(3, c, 3, 5, seed=seed + i) + 0.3 for i in (10, 20)] for c in (5, 7))
    tokens = [x.abs() for x in tokens]  # no scalar product is negative
    rgb = torch.rand(3, 3, 3, 5, dtype=torch.float64)
    found = eagle(codes, tokens, rgb)
    plain = lambda *tensors: [x.detach().numpy() for x in tensors]
    project = plain(eagle.project.weight, eagle.project.bias)
    expected = plain_eagle(
        plain(*codes), plain(*tokens), rgb.numpy(), *project, eagle.centres.detach().numpy()
    )
    assert abs(expected[0]) > 0.01 and [x.item() for x in found] == pytest.approx(expected, abs=1e-10)
    # In single precision, as it is trained.
    single = eagle.float()([x.float() for x in codes], [x.float() for x in tokens], rgb.float())
    assert [x.item() for x in single] == pytest.approx(expected, abs=1e-6)


def test_weights_of_raw_features_are_near_one_over_the_root_of_their_number():
    weight = b.correspondence_weight(randn(2, 40, 14, 14) + 2)
    assert weight.shape == (392,) and float(weight.mean()) == pytest.approx(1 / 14, rel=0.02)
    centred = randn(2, 40, 14, 14)
    weight = b.correspondence_weight(centred - centred.mean((2, 3), keepdim=True))
    assert weight.min() > 0  # which those of the released code are not


def test_eagle_learns_objects_and_its_centres_apart():
    code, rgb, _ = picture()
    torch.manual_seed(1)
    eagle = b.Eagle(2)
    codes = [(code + 0.3 * randn(1, 2, 4, 6, seed=s, dtype=torch.float32)).requires_grad_() for s in (1, 2)]
    loss, lookup = eagle(codes, [torch.rand(1, 6, 4, 6) + 0.5 for _ in range(2)], rgb)
    loss.backward()
    assert all(c.grad.abs().sum() > 0 for c in codes) and eagle.project.weight.grad.abs().sum() > 0
    assert eagle.centres.grad is None  # the object loss does not move them
    lookup.backward()
    assert (eagle.centres.grad.abs().sum((1, 2)) > 0).all()  # one set for each view


# ---------------------------------------------------------------- depth guidance


def test_depth_features_have_a_cosine_in_closed_form():
    depth = torch.tensor([0.5, 1.0, 4.0, 80.0, 200.0, 0.1]).double().reshape(1, 1, 1, 6)
    f = b.depth_features(depth)[0, :, 0].T
    u = np.log(np.clip(depth.flatten().numpy(), 0.5, 80) / 0.5) / np.log(160)
    assert np.allclose(f @ f.T, np.cos((u[:, None] - u[None, :]) * np.pi / 2))
    assert float(f[0] @ f[3]) == pytest.approx(0, abs=1e-12) and float(f[3] @ f[4]) == pytest.approx(1)
    one = F.normalize(depth.flatten()[:, None], dim=1)  # what a single channel would say
    assert torch.allclose(one @ one.T, torch.ones(6, 6, dtype=torch.float64))


def test_missing_depth_never_enters_a_mean():
    depth = torch.zeros(1, 1, 4, 6)
    depth[0, 0, :2, :2] = torch.tensor([[2.0, 0.0], [4.0, float("nan")]])
    depth[0, 0, :2, 2:4] = 5.0
    depth[0, 0, 2:, 4:] = float("inf")
    assert b.depth_on_grid(depth, (2, 3))[0, 0].tolist() == [[3.0, 5.0, 0.0], [0.0, 0.0, 0.0]]


def test_back_projection_is_a_pinhole():
    depth = torch.full((1, 1, 3, 4), 2.0)
    points = b.back_project(depth).reshape(3, 4, 3)
    focal = 2 * math.sqrt(3)  # half the width of 4 cells lies at 30 degrees
    for v in range(3):
        for u in range(4):
            expected = [(u - 1.5) / focal * 2.0, (v - 1) / focal * 2.0, 2.0]
            assert points[v, u].tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(b.back_project(3 * depth), 3 * b.back_project(depth))


def greedy(points: np.ndarray, count: int, valid: np.ndarray, start: int) -> list[int]:
    sample = [start]
    while len(sample) < count:
        gaps = {i: min(((points[i] - points[j]) ** 2).sum() for j in sample) for i in np.flatnonzero(valid)}
        sample.append(int(max(gaps, key=gaps.get)))
    return sample


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 10))
def test_farthest_points_by_brute_force(seed, count):
    points = randn(2, 14, 3, seed=seed)
    valid = torch.rand(2, 14, generator=torch.Generator().manual_seed(seed)) < 0.8
    valid[:, 5] = True
    result = b.farthest_points(points, count, valid, torch.Generator().manual_seed(seed))
    for i in range(2):
        few = min(count, int(valid[i].sum()))
        expected = greedy(points[i].numpy(), few, valid[i].numpy(), int(result[i, 0]))
        assert result[i].tolist()[: len(expected)] == expected
        assert valid[i, result[i]].all()


def test_farthest_points_of_a_line():
    points = torch.zeros(1, 9, 3)
    points[0, :, 0] = torch.arange(9)
    every = torch.ones(1, 9, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(s) for s in range(60)]
    samples = [b.farthest_points(points, 3, every, generator)[0].tolist() for generator in generators]
    assert {sample[0] for sample in samples} == set(range(9)) and [0, 8, 4] in samples
    few = torch.zeros(1, 9, dtype=torch.bool)
    few[0, [2, 6]] = True
    sample = b.farthest_points(points, 5, few, generators[0])[0].tolist()
    assert set(sample[:2]) == set(sample) == {2, 6}


def test_depth_guidance_by_hand():
    """With as many points as cells, order does not matter: the loss is that of all pairs of cells, written as
    a double loop.
    """
    depth, code = randn(2, 1, 3, 4).abs() + 0.6, randn(2, 5, 3, 4, seed=1).requires_grad_()
    result = b.depth_guidance(depth, code, torch.Generator().manual_seed(0))
    total = 0.0
    u = np.log(depth.numpy().reshape(2, 12) / 0.5) / np.log(160) * np.pi / 2
    unit = F.normalize(code.detach().flatten(2), dim=1).numpy()
    table = np.cos(u[:, :, None] - u[:, None])
    table += table.mean() - table.mean(2, keepdims=True)  # pointwise centring
    for i in range(2):
        for p in range(12):
            for q in range(12):
                total -= (table[i, p, q] - b.DEPTH_SHIFT) * max(0.0, float(unit[i, :, p] @ unit[i, :, q]))
    assert float(result) == pytest.approx(total / (2 * 144))
    result.backward()
    assert code.grad.abs().sum() > 0


def test_depth_guidance_uses_the_farthest_points_of_measured_cells():
    depth, code = randn(2, 1, 14, 14).abs() + 0.6, randn(2, 5, 14, 14, seed=1)
    depth[0, 0, :2] = 0
    seeded = lambda: torch.Generator().manual_seed(0)
    index = b.farthest_points(b.back_project(depth), 121, (depth > 0).flatten(1), seeded())
    f, c = b.depth_features(depth).flatten(2), code.flatten(2)
    f, c = (torch.stack([x[i][:, index[i]].T for i in range(2)]) for x in (f, c))
    assert float(b.depth_guidance(depth, code, seeded())) == pytest.approx(
        float(correlation_loss(f, f, c, c, b.DEPTH_SHIFT))
    )


def test_images_without_depth_take_no_part():
    depth, code = randn(3, 1, 3, 4).abs() + 0.6, randn(3, 5, 3, 4, seed=1).requires_grad_()
    depth[1] = 0
    guidance = lambda *maps: b.depth_guidance(*maps, torch.Generator().manual_seed(0))
    result = guidance(depth, code)
    assert float(result) == pytest.approx(float(guidance(depth[[0, 2]], code[[0, 2]])))
    result.backward()
    assert not code.grad[1].any() and code.grad[0].any() and code.grad[2].any()
    nothing = guidance(torch.zeros_like(depth), code)
    nothing.backward()
    assert float(nothing) == 0


# ---------------------------------------------------------------- CORAL, MMD, cosine


def test_coral_against_numpy():
    x, y = randn(20, 4), 2 * randn(30, 4, seed=1) + 5
    gap = np.cov(x.numpy().T) - np.cov(y.numpy().T)
    assert float(b.coral(x, y)) == pytest.approx((gap**2).sum() / 64)


def test_coral_is_zero_exactly_for_equal_covariances():
    x = randn(25, 3)
    turn = torch.linalg.qr(randn(25, 25, seed=2))[0]
    white = x - x.mean(0)
    for same in (x + 7, -x, x.flip(0), torch.cat([white, -white, white, -white]) * math.sqrt(99 / 4 / 24)):
        assert float(b.coral(x, same)) < 1e-20
    for other in (1.1 * x, x @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).double()), turn @ x):
        assert float(b.coral(x, other)) > 1e-6


def brute_mmd(x, y, scales, bandwidth):
    def k(u, v):
        return np.mean([np.exp(-((u - v) ** 2).sum() / (s * bandwidth)) for s in scales])

    return (
        np.mean([k(u, v) for u in x for v in x])
        + np.mean([k(u, v) for u in y for v in y])
        - 2 * np.mean([k(u, v) for u in x for v in y])
    )


def test_mmd_by_a_double_loop():
    """Value, and gradient by finite differences, for which the bandwidth stays as it is."""
    x, y = randn(6, 3).requires_grad_(), randn(9, 3, seed=1) + 1
    both = np.concatenate([x.detach(), y])
    gaps = [((both[i] - both[j]) ** 2).sum() for i in range(15) for j in range(15) if i != j]
    expected = lambda x: brute_mmd(x, y.numpy(), b.SCALES, np.mean(gaps))
    loss = b.mmd(x, y)
    assert float(loss) == pytest.approx(expected(x.detach().numpy()), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, x)
    for place in ((0, 0), (3, 2), (5, 1)):
        step = np.zeros((6, 3))
        step[place] = 1e-5
        change = expected(x.detach().numpy() + step) - expected(x.detach().numpy() - step)
        assert float(gradient[place]) == pytest.approx(change / 2e-5, rel=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8))
def test_mmd_is_a_distance_of_sets(seed, n, m):
    x, y = randn(n, 3, seed=seed), randn(m, 3, seed=seed + 1)
    assert float(b.mmd(x, x.flip(0))) == pytest.approx(0, abs=1e-12)
    assert float(b.mmd(x, torch.cat([x, x]))) == pytest.approx(
        0, abs=1e-12
    )  # the same distribution in another number of samples
    assert float(b.mmd(x, y)) > 1e-6
    assert float(b.mmd(x, y)) == pytest.approx(float(b.mmd(y, x)))


def test_mmd_sees_means_to_which_coral_is_blind_and_both_ignore_pairing():
    x = randn(40, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert float(b.coral(x, x + 2)) < 1e-20 < 1e-2 < float(b.mmd(x, x + 2))
    assert float(b.mmd(x, x[order])) < 1e-12 and float(b.cosine_distance(x, x[order])) > 0.3
    assert torch.isfinite(b.mmd(torch.ones(3, 2), torch.ones(4, 2)))  # no spread, no bandwidth


def test_cosine_in_closed_form():
    x = torch.tensor([[1.0, 0], [1, 0], [1, 0], [3, 4]])
    y = torch.tensor([[5.0, 0], [-2, 0], [0, 1], [4, 3]])
    assert float(b.cosine_distance(x, y)) == pytest.approx((0 + 2 + 1 + (1 - 24 / 25)) / 4)


@pytest.mark.parametrize(
    "loss",
    [b.coral, b.cosine_distance],
)
def test_gradients_by_finite_differences(loss):
    assert torch.autograd.gradcheck(
        loss, (randn(5, 3).requires_grad_(), randn(5, 3, seed=1).requires_grad_())
    )


def test_object_contrast_gradient_by_finite_differences():
    objects, weight = torch.tensor([0, 0, 0, 1, 1, 1]), torch.rand(6).double()
    views = randn(6, 3, seed=4).requires_grad_(), randn(6, 3, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: b.object_contrast(x, y, objects, weight), views)


@pytest.mark.parametrize("kind", ["coral", "mmd", "cosine"])
def test_distillation_moves_the_student_to_the_teacher(kind):
    tokens = {
        name: randn(2, 6, 3, 4, seed=i, dtype=torch.float32) for i, name in enumerate(["rgb", "depth", "nir"])
    }
    tokens["rgb"].requires_grad_()
    torch.manual_seed(0)
    net = ClusterNet(6, list(tokens))
    students = lambda: [net.msn[name](tokens[name]) for name in ("depth", "nir")]
    loss = {"coral": b.coral, "mmd": b.mmd, "cosine": b.cosine_distance}[kind]
    teacher, *flat = (
        torch.stack([x[i, :, v, u] for i in range(2) for v in range(3) for u in range(4)])
        for x in (tokens["rgb"], *students())
    )

    def distil():
        return b.distillation_loss(tokens["rgb"], students(), kind)

    expected = sum(float(loss(teacher, student)) for student in flat) / 2
    assert float(distil()) == pytest.approx(expected, rel=1e-4)
    optimizer = torch.optim.Adam(net.msn.parameters(), 3e-3)
    first = float(distil())
    for _ in range(60):
        optimizer.zero_grad()
        distil().backward()
        optimizer.step()
    assert float(distil()) < 0.8 * first and tokens["rgb"].grad is None  # the teacher gets no gradient


def test_distillation_samples_the_same_places_of_both():
    teacher = randn(2, 4, 5, 5, dtype=torch.float32)
    student = teacher.clone().requires_grad_()
    loss = b.distillation_loss(teacher, [student], "cosine", 7, torch.Generator().manual_seed(0))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    b.distillation_loss(-teacher, [student], "mmd", 7, torch.Generator().manual_seed(0)).backward()
    assert (student.grad != 0).any(1).sum() == 7
