"""Correspondence losses against brute force, finite differences and what must hold for any points."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mmlib.unsupervised.correspondence import (
    PAIRS,
    CorrespondenceConfig,
    Shifts,
    all_points,
    centred,
    cmcs_loss,
    correlation_loss,
    cosine,
    derangement,
    sample_points,
)

FORMS = [
    dict(),
    dict(centre=False),
    dict(clamp=False),
    dict(stabilize=True),
    dict(clamp=False, stabilize=True),
    dict(reduction="sum"),
]


def points(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def quadruple(B=2, P=5, Q=7, C=4, D=3, seed=0, dtype=torch.float64):
    f1, f2, c1, c2 = (
        points(B, n, k, seed=seed + i, dtype=dtype)
        for i, (n, k) in enumerate([(P, C), (Q, C), (P, D), (Q, D)])
    )
    return f1, f2, c1.requires_grad_(), c2.requires_grad_()


def looped(f1, f2, c1, c2, b, centre=True, clamp=True, reduction="mean", stabilize=False):
    """Eq. 1 and 2 with one Python loop per index and the released code's centring, in the order in which that
    subtracts.
    """

    def cos(x, y):
        dot = sum(u * v for u, v in zip(x, y))
        return dot / math.sqrt(sum(u * u for u in x) * sum(v * v for v in y))

    a, e, s, t = (x.detach().tolist() for x in (f1, f2, c1, c2))
    B, P, Q = len(a), len(a[0]), len(e[0])
    table = np.array([[[cos(a[n][p], e[n][q]) for q in range(Q)] for p in range(P)] for n in range(B)])
    if centre:
        before = table.mean()
        for n, p in itertools.product(range(B), range(P)):
            table[n, p] -= table[n, p].sum() / Q
        table = table - table.mean() + before
    total = 0.0
    for n, p, q in itertools.product(range(B), range(P), range(Q)):
        similarity = cos(s[n][p], t[n][q])
        if clamp:
            similarity = max(similarity, 0.0)
        if stabilize:
            similarity = min(similarity, 0.8)
        total -= (table[n, p, q] - b) * similarity
    return total / (B * P * Q if reduction == "mean" else B)


def spread_out(f1, f2, c1, c2, b, centre=True, clamp=True, reduction="mean", stabilize=False):
    """The same by broadcasting torch's own cosine similarity, for gradients; ``b`` may be a function of (F',
    S).
    """
    table = F.cosine_similarity(f1[:, :, None], f2[:, None], dim=-1)
    if centre:
        table = table - table.mean(-1, keepdim=True) + table.mean()
    s = F.cosine_similarity(c1[:, :, None], c2[:, None], dim=-1)
    b = b(table, s) if callable(b) else b
    bounded = F.relu(s) if clamp else s
    bounded = torch.minimum(bounded, torch.full_like(bounded, 0.8)) if stabilize else bounded
    loss = -((table - b) * bounded).flatten(1)
    return (loss.mean(1) if reduction == "mean" else loss.sum(1)).mean()


@pytest.mark.parametrize("tile", [0, 2, 5, 64])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_and_gradients_are_those_of_brute_force(form, tile):
    f1, f2, c1, c2 = quadruple()
    loss = correlation_loss(f1, f2, c1, c2, 0.2, tile=tile, **form)
    assert loss.item() == pytest.approx(looped(f1, f2, c1, c2, 0.2, **form), abs=1e-10, rel=1e-10)
    expected = torch.autograd.grad(spread_out(f1, f2, c1, c2, 0.2, **form), (c1, c2))
    for a, b in zip(torch.autograd.grad(loss, (c1, c2)), expected):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
        assert b.abs().max() > 1e-3


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(2, 4),
    st.integers(2, 4),
    st.integers(1, 12),
    st.floats(-1, 1),
    st.sampled_from(FORMS),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_tile_size_does_not_matter(B, P, Q, C, D, tile, b, form, seed):
    f1, f2, c1, c2 = quadruple(B, P, Q, C, D, seed)
    plain, tiled = (correlation_loss(f1, f2, c1, c2, b, tile=t, **form) for t in (0, tile))
    torch.testing.assert_close(tiled, plain, atol=1e-10, rtol=1e-10)
    for x, y in zip(torch.autograd.grad(tiled, (c1, c2)), torch.autograd.grad(plain, (c1, c2))):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_by_finite_differences(form, tile):
    """Of both codes and of a shift that carries a gradient, at points away from the kinks."""
    f1, f2, c1, c2 = quadruple(seed=5)
    s = cosine(c1, c2).detach()
    assert s.abs().min() > 1e-4 and (s - 0.8).abs().min() > 1e-4 and (s < 0).any() and (s > 0.8).any()
    b = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: correlation_loss(f1, f2, *x, tile=tile, **form), (c1, c2, b), eps=1e-7, atol=1e-7
    )


def test_centring_is_the_released_one():
    table = points(3, 4, 6).numpy()
    expected = table - table.mean(2, keepdims=True)
    expected = expected - expected.mean() + table.mean()
    np.testing.assert_allclose(centred(torch.from_numpy(table)).numpy(), expected, atol=1e-12)
    assert np.allclose(expected.mean(2), table.mean())  # every row has the same mean


@given(st.integers(0, 2**31), st.floats(0.01, 100), st.sampled_from([0, 2]))
@settings(max_examples=30)
def test_length_of_tokens_and_codes_does_not_matter(seed, factor, tile):
    f1, f2, c1, c2 = quadruple(seed=seed)
    lengths = factor * (
        0.5 + torch.rand(2, 5, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    loss = correlation_loss(f1, f2, c1, c2, 0.3, tile=tile)
    scaled = correlation_loss(f1 * lengths, f2 * factor, c1 * lengths, c2 / factor, 0.3, tile=tile)
    torch.testing.assert_close(scaled, loss, atol=1e-12, rtol=1e-9)
    for c, gradient in zip((c1, c2), torch.autograd.grad(loss, (c1, c2))):
        assert (c * gradient).sum(2).abs().max() < 1e-12  # so no gradient along a code


@pytest.mark.parametrize("tile", [0, 2])
def test_self_pairs_are_symmetric(tile):
    """Both ends of a self pair get the same gradient, but for centring, which goes by rows."""
    f, c = points(2, 5, 4), points(2, 5, 3, seed=1)
    s = cosine(c, c)
    torch.testing.assert_close(s, s.mT)
    torch.testing.assert_close(s.diagonal(dim1=1, dim2=2), torch.ones(2, 5, dtype=torch.float64))
    for centre in (False, True):
        first, second = c.clone().requires_grad_(), c.clone().requires_grad_()
        g1, g2 = torch.autograd.grad(
            correlation_loss(f, f, first, second, 0.1, centre=centre, tile=tile), (first, second)
        )
        assert torch.allclose(g1, g2, atol=1e-12) != centre
        both = c.clone().requires_grad_()  # one tensor on both ends: the two gradients add up
        (total,) = torch.autograd.grad(
            correlation_loss(f, f, both, both, 0.1, centre=centre, tile=tile), both
        )
        torch.testing.assert_close(total, g1 + g2)


@pytest.mark.parametrize("tile", [0, 2])
def test_the_clamp_stops_gradients_of_dissimilar_codes(tile):
    f1, f2, c1, _ = quadruple()
    with torch.no_grad():
        c2 = points(2, 7, 3).abs() + 0.1
        c1.abs_().add_(0.1)
        c1[:, 0] *= -1  # this code is dissimilar to all others
    for clamp, stopped in ((True, True), (False, False)):
        (gradient,) = torch.autograd.grad(correlation_loss(f1, f2, c1, c2, 0.2, clamp=clamp, tile=tile), c1)
        assert (gradient[:, 0] == 0).all() == stopped and (gradient[:, 1:] != 0).any(2).all()


@pytest.mark.parametrize("tile", [0, 2])
def test_more_alike_than_the_shift_attracts_less_repels(tile):
    """A small step with b below all correspondences makes all codes more alike, with b above them less."""
    f1, f2, c1, c2 = quadruple()
    for b, direction in ((-4.0, 1), (4.0, -1)):
        g1, g2 = torch.autograd.grad(correlation_loss(f1, f2, c1, c2, b, tile=tile), (c1, c2))
        change = cosine(c1 - 1e-3 * g1, c2 - 1e-3 * g2).clamp_min(0) - cosine(c1, c2).clamp_min(0)
        assert direction * change.mean() > 0


def test_it_learns_the_kinds_of_token():
    kinds = torch.randint(0, 3, (4, 16), generator=torch.Generator().manual_seed(0))
    f = F.one_hot(kinds, 5).float() + 0.1 * points(4, 16, 5, dtype=torch.float32)
    c = points(4, 16, 3, seed=3, dtype=torch.float32).requires_grad_()
    optimizer = torch.optim.Adam([c], 0.05)
    config = CorrespondenceConfig(
        Shifts("absolute", numbers={"x": (0.4, 0.4, 0.4)}), weights=(1.0, 0.0, 1.0), negatives=1, tile=5
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        loss, _ = cmcs_loss({"x": f}, {"x": c}, None, config, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flat, kind = c.detach().reshape(1, 64, 3), kinds.flatten()
    s, same = cosine(flat, flat)[0], kind[:, None] == kind
    assert s[same].mean() > 0.95 and s[~same].mean() < 0.1


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_the_tiled_form_never_holds_all_pairs():
    B, P, tile = 2, 96, 8
    f1, f2, c1, c2 = quadruple(B, P, P, 4, 3, dtype=torch.float32)
    saved = {}
    for t in (0, tile):
        shapes, largest = [], Largest()
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda x, to=shapes: to.append(x.numel()) or x, lambda x: x
            ),
            largest,
        ):
            correlation_loss(f1, f2, c1, c2, 0.2, tile=t).backward()
        saved[t] = max(shapes), largest.elements
    assert saved[0] == (B * P * P, B * P * P)
    assert saved[tile] == (
        B * P * 3,
        B * tile * P,
    )  # nothing larger than the codes is kept, nothing larger than a tile exists


@pytest.mark.parametrize("tile", [0, 7])
def test_low_precision_input_is_accumulated_in_float32(tile):
    """bf16 tokens and codes, and an autocast region around: the result is that of float64 on the same
    numbers, to float32's precision.
    """
    f1, f2, c1, c2 = (x.detach().to(torch.bfloat16) for x in quadruple(4, 40, 40, 16, 8))
    exact = [x.double() for x in (f1, f2)] + [x.double().requires_grad_() for x in (c1, c2)]
    expected = correlation_loss(*exact, 0.2)
    c1, c2 = c1.requires_grad_(), c2.requires_grad_()
    wide = [x.detach().float().requires_grad_() for x in (c1, c2)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = correlation_loss(f1, f2, c1, c2, 0.2, tile=tile)
        same = correlation_loss(f1, f2, *wide, 0.2, tile=tile)
        config = CorrespondenceConfig(
            Shifts("absolute", numbers={"x": (0.2, 0.2, 0.2)}), weights=(0.0, 1.0, 0.0), tile=tile
        )
        cmcs, _ = cmcs_loss({"x": f1}, {"x": c1}, ({"x": f2}, {"x": c2}), config)
    assert loss.dtype == cmcs.dtype == torch.float32
    assert loss.item() == same.item() == cmcs.item() == pytest.approx(expected.item(), rel=1e-4)
    exact_gradients = torch.autograd.grad(expected, exact[2:])
    for a, b in zip(torch.autograd.grad(same, wide), exact_gradients):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
    for a, b in zip(torch.autograd.grad(loss, (c1, c2)), exact_gradients):
        assert a.dtype == torch.bfloat16 and (a - b).abs().max() < 1e-2 * b.abs().max()


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("tile", [0, 2])
def test_tokens_without_direction(tile, clamp):
    """Zero vectors have cosine 0 to all and get no gradient; constant features leave the loss finite; a NaN
    is not hidden.
    """
    f1, f2, c1, c2 = quadruple()
    with torch.no_grad():
        c1[0, 0], f1[1, 1] = 0, 0
    loss = correlation_loss(f1, f2, c1, c2, 0.2, clamp=clamp, tile=tile)
    gradients = torch.autograd.grad(loss, (c1, c2))
    assert torch.isfinite(loss) and all(torch.isfinite(g).all() and g.abs().max() < 1 for g in gradients)
    assert (gradients[0][0, 0] == 0).all() and (gradients[0][0, 1] != 0).any()
    for constant in (torch.zeros_like(f1), torch.ones_like(f1)):
        loss = correlation_loss(constant, constant, c1, c1, 0.2, clamp=clamp, tile=tile)
        level = float(constant[0, 0, 0]) - 0.2  # F is 0 or 1 everywhere
        s = F.cosine_similarity(c1[:, :, None], c1[:, None], dim=-1)
        assert loss.item() == pytest.approx(
            (-level * (s.clamp_min(0) if clamp else s).mean()).item(), abs=1e-12
        )
        assert torch.isfinite(torch.autograd.grad(loss, c1)[0]).all()
    f1[0, 0, 0] = torch.nan
    assert torch.isnan(correlation_loss(f1, f2, c1, c2, 0.2, clamp=clamp, tile=tile))


# --- Eq. 9: modalities, pair types, shifts


NAMES = ("rgb", "depth")
NUMBERS = {"rgb": (0.1, 0.2, 0.3), "depth": (-0.1, 0.0, 0.15)}


def batch(B=4, P=5, dtype=torch.float64):
    """(frozen, codes, neighbours) of two modalities; the codes require gradients."""
    groups = [
        {n: points(B, P, 4 + (k % 2 == 1) * -1, seed=10 * k + i, dtype=dtype) for i, n in enumerate(NAMES)}
        for k in range(4)
    ]
    for k in (1, 3):
        groups[k] = {n: c.requires_grad_() for n, c in groups[k].items()}
    return groups[0], groups[1], (groups[2], groups[3])


def orders(B, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return [derangement(B, generator) for _ in range(count)]


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("rule", ["absolute", "adaptive"])
def test_the_sum_over_modalities_and_pairs(rule, tile):
    frozen, codes, (near_f, near_c) = batch()
    weights, lambdas = (0.5, 0.7, 0.3), {"depth": 2.5}
    shifts = Shifts(rule, numbers=NUMBERS, bias=0.11, factor=3.5)
    config = CorrespondenceConfig(shifts, weights, lambdas, negatives=2, tile=tile)
    loss, terms = cmcs_loss(frozen, codes, (near_f, near_c), config, torch.Generator().manual_seed(9))
    expected = 0.0
    for n in NAMES:
        f, c = frozen[n], codes[n]
        partners = {
            "self": [(f, c)],
            "knn": [(near_f[n], near_c[n])],
            "random": [(f[o], c[o]) for o in orders(4, 2, 9)],
        }
        for i, pair in enumerate(PAIRS):
            b = NUMBERS[n][i]
            if rule == "adaptive":  # EAGLE's released rule, whose b is differentiated too
                b = (
                    (lambda t, s: 3.5 * (t.mean() + s.mean() - 0.11))
                    if pair == "random"
                    else (lambda t, s: (t.mean() - s.mean() - 0.11).abs())
                )
            term = sum(spread_out(f, f2, c, c2, b) for f2, c2 in partners[pair]) / len(partners[pair])
            assert (
                terms[n][pair].item() == pytest.approx(term.item(), abs=1e-10)
                and not terms[n][pair].requires_grad
            )
            expected = expected + lambdas.get(n, 1.0) * weights[i] * term
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)
    leaves = [*codes.values(), *near_c.values()]
    for a, b in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


def test_what_has_no_weight_is_not_computed():
    """Not even looked at: its points are NaN."""
    frozen, codes, neighbours = batch()
    shifts = Shifts("absolute", numbers=NUMBERS)
    frozen["depth"] = frozen["depth"] * torch.nan
    config = CorrespondenceConfig(shifts, (1.0, 0.0, 0.0), {"depth": 0.0})
    loss, terms = cmcs_loss(frozen, codes, None, config)
    assert torch.isfinite(loss) and {n: list(t) for n, t in terms.items()} == {"rgb": ["self"]}
    assert torch.isnan(cmcs_loss(frozen, codes, None, CorrespondenceConfig(shifts, (1.0, 0.0, 0.0)))[0])
    one = {n: x[:1] for n, x in frozen.items()}, {n: x[:1] for n, x in codes.items()}
    assert torch.isfinite(
        cmcs_loss(*one, None, config)[0]
    )  # without random pairs, a batch of one image will do


def test_the_codes_of_each_modality_are_taught_by_that_modality_alone():
    frozen, codes, neighbours = batch()
    gradients = {}
    for value in (0.0, 1.0, 3.0):
        config = CorrespondenceConfig(Shifts("absolute", numbers=NUMBERS), lambdas={"depth": value})
        loss, _ = cmcs_loss(frozen, codes, neighbours, config, torch.Generator().manual_seed(0))
        gradients[value] = torch.autograd.grad(loss, [codes["rgb"], codes["depth"]], allow_unused=True)
    torch.testing.assert_close(gradients[0.0][0], gradients[3.0][0])
    torch.testing.assert_close(3 * gradients[1.0][1], gradients[3.0][1])
    assert gradients[0.0][1] is None


def test_weights_and_quantiles_of_each_modality():
    """A modality's own triples are what it has where all share them; pairs that it alone leaves out are not
    looked at.
    """
    frozen, codes, neighbours = batch()
    generator = lambda: torch.Generator().manual_seed(3)
    own = {"rgb": (0.2, 0.7, 0.1), "depth": (0.5, 0.0, 2.0)}
    lambdas = {"rgb": 0.3, "depth": 4.0}
    shifts = Shifts("absolute", numbers=NUMBERS)
    loss, terms = cmcs_loss(
        frozen, codes, neighbours, CorrespondenceConfig(shifts, own, lambdas), generator()
    )
    alone = [
        cmcs_loss(
            frozen,
            codes,
            neighbours,
            CorrespondenceConfig(shifts, weights, dict.fromkeys(NAMES, 0.0) | {name: lambdas[name]}),
            generator(),
        )[0]
        for name, weights in own.items()
    ]
    assert loss.item() == pytest.approx(sum(alone).item(), abs=1e-12)
    assert [list(pairs) for pairs in terms.values()] == [["self", "knn", "random"], ["self", "random"]]
    levels = {"rgb": (0.5, 0.6, 0.9), "depth": (0.1, 0.2, 0.3)}
    measured = lambda quantiles: Shifts(quantiles=quantiles).measure([(frozen, neighbours[0])], generator())
    for name, triple in levels.items():
        assert measured(levels).numbers[name] == measured(triple).numbers[name]


@pytest.mark.parametrize("centre", [True, False])
def test_measured_shifts_are_quantiles_of_brute_force_correspondences(centre):
    levels = (0.5, 0.6, 0.9)
    batches = [(f, near[0]) for f, _, near in (batch(), batch(3, 4))]
    shifts = Shifts(quantiles=levels).measure(batches, torch.Generator().manual_seed(4), centre=centre)
    generator = torch.Generator().manual_seed(4)
    drawn = [derangement(len(f["rgb"]), generator) for f, _ in batches]
    for n in NAMES:
        for i, pair in enumerate(PAIRS):
            values = []
            for (f, near), order in zip(batches, drawn):
                other = {"self": f[n], "knn": near[n], "random": f[n][order]}[pair]
                table = np.einsum(
                    "npc,nqc->npq",
                    *(x.numpy() / np.linalg.norm(x.numpy(), axis=2, keepdims=True) for x in (f[n], other)),
                )
                if centre:
                    mean = table.mean()
                    table = table - table.mean(2, keepdims=True)
                    table = table - table.mean() + mean
                values.append(table.ravel())
            assert shifts.numbers[n][i] == pytest.approx(
                np.quantile(np.concatenate(values), levels[i]), abs=1e-10
            )
    few = Shifts(quantiles=levels).measure([(points_of(8, 200, 1), points_of(8, 200, 2))], limit=2**14)
    many = Shifts(quantiles=levels).measure([(points_of(8, 200, 1), points_of(8, 200, 2))])
    assert few.numbers != many.numbers
    np.testing.assert_allclose(
        few.numbers["rgb"], many.numbers["rgb"], atol=0.05
    )  # of 320 000 values, 16 000 say about the same


def points_of(B, P, seed):
    return {"rgb": points(B, P, 6, seed=seed)}


def test_config_as_saved_and_read_back_gives_the_same_loss():
    import json
    from dataclasses import asdict

    frozen, codes, neighbours = batch()
    shifts = Shifts().measure([(frozen, neighbours[0])], torch.Generator().manual_seed(0))
    again = Shifts(**json.loads(json.dumps(asdict(shifts))))
    values = [
        cmcs_loss(frozen, codes, neighbours, CorrespondenceConfig(s), torch.Generator().manual_seed(0))[0]
        for s in (shifts, again)
    ]
    assert values[0] == values[1]


def setting(**options):
    return lambda f, c, n: cmcs_loss(f, c, n, CorrespondenceConfig(**options))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f, c, n: cmcs_loss(f, {"rgb": c["rgb"]}, n, CONFIG), r"\['depth', 'rgb'\], \['rgb'\]"),
        (lambda f, c, n: cmcs_loss(f, c, (n[0], {}), CONFIG), "KNN pairs weight 0"),
        (lambda f, c, n: cmcs_loss(f, c, None, CONFIG), "KNN pairs weight 0"),
        (
            lambda f, c, n: cmcs_loss(f, c, n, CorrespondenceConfig(lambdas={"thermal": 1.0})),
            "'thermal'.*name only these",
        ),
        (
            lambda f, c, n: cmcs_loss(
                f, c, n, CorrespondenceConfig(CONFIG.shifts, lambdas=dict.fromkeys(NAMES, 0.0))
            ),
            "a λ above 0",
        ),
        (
            lambda f, c, n: cmcs_loss(f, c, n, CorrespondenceConfig()),
            r"no numbers for modality 'rgb'.*measure\(batches\)",
        ),
        (lambda f, c, n: cmcs_loss(f, c, n, CorrespondenceConfig(Shifts("absolute"))), "give numbers="),
        (lambda f, c, n: cmcs_loss({k: x[:1] for k, x in f.items()}, c, n, CONFIG), "batch size is 1"),
        (
            lambda f, c, n: cmcs_loss({k: x[:2] for k, x in f.items()}, c, n, CONFIG),
            "rgb: f1, f2, c1, c2 have shapes",
        ),
        (lambda f, c, n: Shifts().measure([(f, {k: x[:2] for k, x in n[0].items()})]), "rgb: f1, f2"),
        (setting(shifts=Shifts("quantiles")), "--rule quantiles: expected one of quantile, absolute"),
        (setting(shifts=Shifts(quantiles=(0.5, 60, 90))), "--quantiles 60: expected 0 or more, at most 1"),
        (setting(weights=(0.0, 0.0, 0.0)), "a weight > 0"),
        (setting(weights={"rgb": (1.0, 1.0, 1.0)}), r"no weights for modality 'depth' among \['rgb'\]"),
        (setting(weights={"rgb": (1.0, -1.0, 1.0)}), "--weights rgb -1.0: expected 0 or more"),
        (setting(weights={"rgb": (1.0, 1.0)}), "--weights rgb 1.0 1.0: expected 3 values"),
        (
            lambda f, c, n: Shifts(quantiles={"rgb": (0.5,) * 3}).measure([(f, n[0])]),
            "no quantiles for modality 'depth'",
        ),
        (setting(weights=(1.0, -1.0, 0.0)), "--weights -1.0: expected 0 or more"),
        (setting(lambdas={"rgb": math.nan}), "--lambdas rgb nan: expected a finite number"),
        (setting(negatives=0), "--negatives 0: expected 1 or more"),
        (setting(tile=-1), "--tile -1: expected 0 or more"),
        (lambda f, c, n: derangement(1), "batch size is 1"),
    ],
)
def test_errors_of_the_sum_say_what_to_do(call, message):
    frozen, codes, neighbours = batch()
    with pytest.raises(ValueError, match=message):
        call(frozen, codes, neighbours)


CONFIG = CorrespondenceConfig(Shifts("absolute", numbers=NUMBERS))


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 5, 4), (2, 7, 3), (2, 5, 3), (2, 7, 3)],  # channels of the tokens
        [(2, 5, 4), (2, 7, 4), (2, 5, 3), (2, 7, 2)],  # channels of the codes
        [(2, 5, 4), (2, 7, 4), (2, 7, 3), (2, 7, 3)],  # points of image 1
        [(2, 5, 4), (2, 7, 4), (2, 5, 3), (2, 5, 3)],  # points of image 2
        [(2, 5, 4), (1, 7, 4), (2, 5, 3), (2, 7, 3)],  # batch: must not be broadcast
        [(5, 4), (7, 4), (5, 3), (7, 3)],
        [(2, 5, 4), (2, 7, 4), (2, 5), (2, 7)],
        [(2, 0, 4), (2, 7, 4), (2, 0, 3), (2, 7, 3)],
    ],
)
def test_shapes_that_do_not_belong_together(shapes):
    with pytest.raises(ValueError, match=r"expected \(B, P, C\), \(B, Q, C\)"):
        correlation_loss(*(torch.ones(shape) for shape in shapes), 0.1)


def test_one_channel_has_no_angle():
    with pytest.raises(ValueError, match="C and D 2 or more"):
        correlation_loss(
            torch.ones(2, 5, 1), torch.ones(2, 5, 1), torch.ones(2, 5, 3), torch.ones(2, 5, 3), 0.1
        )
    for options, message in ((dict(tile=-1), "--tile"), (dict(reduction="none"), "--reduction none")):
        with pytest.raises(ValueError, match=message):
            correlation_loss(*quadruple(), 0.1, **options)


# --- points


def ramps(B=3, h=4, w=6, scale=1.0):
    """Maps whose two channels are the coordinates in [−1, 1]: bilinear samples of a ramp are the coordinates
    themselves.
    """
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return scale * torch.stack([x, y]).expand(B, 2, h, w)


def test_samples_of_a_ramp_are_the_coordinates():
    coords = torch.rand(3, 11, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    coords[0, 0] = torch.tensor([1.2, -1.5])  # beyond the border: the border's value
    for maps, factor, atol in ((ramps(), 1, 1e-6), (ramps(h=3, w=3, scale=2.0).half(), 2, 2e-3)):
        samples = sample_points(maps, coords)
        torch.testing.assert_close(samples, factor * coords.clamp(-1, 1), atol=atol, rtol=0)
    assert sample_points(ramps().double(), coords).dtype == torch.float64
    grid = all_points(ramps())
    torch.testing.assert_close(
        sample_points(points(3, 5, 4, 6, dtype=torch.float32), grid),
        all_points(points(3, 5, 4, 6, dtype=torch.float32)),
    )
    assert (
        grid.shape == (3, 24, 2) and grid[0, 1, 0] > grid[0, 0, 0] and grid[0, 1, 1] == grid[0, 0, 1]
    )  # row by row


def test_all_modalities_are_sampled_at_the_same_places():
    frozen = {"rgb": ramps(), "depth": ramps(h=5, w=5)}
    codes = {"rgb": ramps(h=2, w=2), "depth": ramps(scale=-1.0)}
    coords = torch.rand(3, 50, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    f, c = ({name: sample_points(x, coords) for name, x in maps.items()} for maps in (frozen, codes))
    for other in (f["depth"], c["rgb"], -c["depth"]):
        torch.testing.assert_close(f["rgb"], other, atol=1e-6, rtol=0)
    assert not torch.equal(f["rgb"][0], f["rgb"][1])  # each image has places of its own
    assert f["rgb"].abs().max() > 0.9 and f["rgb"].mean().abs() < 0.2
    assert all(torch.equal(sample_points(x, coords[:, :0]), all_points(x)) for x in frozen.values())


def test_derangements_are_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = {}
    for _ in range(4500):
        drawn = tuple(derangement(4, generator).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert set(counts) == {
        p for p in itertools.permutations(range(4)) if all(i != v for i, v in enumerate(p))
    }
    assert (
        sum((n - 500) ** 2 / 500 for n in counts.values()) < 26.1
    )  # chi-square, 8 degrees of freedom: 0.1 %
    assert derangement(2).tolist() == [1, 0]
    again = [derangement(32, torch.Generator().manual_seed(7)).tolist() for _ in range(2)]
    assert again[0] == again[1] and sorted(again[0]) == list(range(32))


@given(st.integers(0, 10_000), st.floats(0.1, 5.0))
@settings(max_examples=15)
def test_without_harmonizers_cmcs_is_one_loss_on_joined_tokens(seed, weight):
    """Eq. 6 is linear in F: judges that see the same code are one judge, who sees unit tokens side by side,
    scaled by √λ, and the weighted mean of their shifts.
    """
    frozen = {"rgb": points(4, 6, 5, seed=seed), "depth": points(4, 6, 5, seed=seed + 1)}
    code = points(4, 6, 3, seed=seed + 2)
    shifts = Shifts("absolute", numbers={"rgb": (0.1, 0.2, 0.3), "depth": (0.4, -0.1, 0.2)})
    config = CorrespondenceConfig(shifts, lambdas={"depth": weight}, negatives=1)
    order = lambda: torch.Generator().manual_seed(seed)
    judged, _ = cmcs_loss(
        frozen, {"rgb": code, "depth": code}, (frozen, {"rgb": code, "depth": code}), config, order()
    )
    joined = {
        "both": torch.cat(
            [F.normalize(frozen["rgb"], dim=2), weight**0.5 * F.normalize(frozen["depth"], dim=2)], 2
        )
    }
    mean = tuple(
        (a + weight * b) / (1 + weight) for a, b in zip(*(shifts.numbers[name] for name in ("rgb", "depth")))
    )
    one = CorrespondenceConfig(Shifts("absolute", numbers={"both": mean}), negatives=1)
    alone, _ = cmcs_loss(joined, {"both": code}, (joined, {"both": code}), one, order())
    torch.testing.assert_close(judged, (1 + weight) * alone, rtol=1e-9, atol=1e-12)
