"""Functional entropy and its bounds against closed forms, adaptive integration, brute-force sums, and
properties that must hold.
"""

import itertools

import numpy as np
import pytest
from course.closed_forms import bump, coupling, exponential, log_concave, square
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from mmlib.theory.entropy import (
    conditional_entropies,
    entropy,
    entropy_mc,
    information,
    log_sobolev_bound,
    log_sobolev_bound_mc,
    marginal_entropies,
    poincare_bound,
    sample_entropy,
    variance,
)
from mmlib.theory.gaussian import Discrete, Gaussian, gaussian, uniform

EXAMPLES = settings(max_examples=40, derandomize=True)
STANDARD_PAIR = {"x": gaussian(), "y": gaussian()}
SIGNS = {"x": uniform([-1, 1]), "y": uniform([-1, 1])}
POINT = {"rho": 1.0}  # at a single point the information is the plain ‖∇f‖²/f there


def exp_ax(a):
    return lambda x: np.exp(a * x), lambda x: a * np.exp(a * x)


def integral(function, sigma=1.0):
    """∫ function dN(0, σ²) by adaptive quadrature, which shares nothing with the even grid."""
    density = lambda x: np.exp(-(x**2) / 2 / sigma**2) / np.sqrt(2 * np.pi) / sigma
    return sum(
        quad(lambda x: function(x) * density(x), a, b, epsabs=1e-13, epsrel=1e-12, limit=300)[0]
        for a, b in ((-40, 0), (0, 40))
    )


def direct_entropy(f, sigma=1.0):
    """Eq. 1, term by term."""
    m = integral(f, sigma)
    return integral(lambda x: f(x) * np.log(f(x)) if f(x) > 0 else 0.0, sigma) - m * np.log(m)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# ---- values that are known ----


@pytest.mark.parametrize(
    ("sigma", "expected", "printed"),
    [(1.0, 0.3130172217, 0.3130172217), (1.8, 1.7557151405, 0.5418873890), (0.5, None, None)],
)
def test_exponential_meets_the_bound_with_equality(sigma, expected, printed):
    f, gradient = exp_ax(0.7)
    measure = gaussian(sigma)
    exact = exponential(0.7, measure)
    found = entropy(f, measure)
    assert (
        found == pytest.approx(exact.entropy, abs=1e-10) == pytest.approx(direct_entropy(f, sigma), abs=1e-10)
    )
    assert log_sobolev_bound(f, gradient, measure) == pytest.approx(found, rel=1e-10) == exact.information / 2
    if expected:
        assert (
            round(found, 10) == expected
            and round(log_sobolev_bound(f, gradient, measure, rho=1), 10) == printed
        )


def test_the_printed_form_fails_for_wide_noise_and_is_loose_for_narrow():
    f, gradient = exp_ax(0.7)
    gap = [log_sobolev_bound(f, gradient, gaussian(s), rho=1) - entropy(f, gaussian(s)) for s in (0.5, 1.8)]
    assert gap[0] > 0.1 and gap[1] < -1.2


def test_exponential_with_a_covariance_and_a_mean():
    a, mean, covariance = np.array([0.3, -0.5]), np.array([0.2, 0.4]), np.array([[1.5, 0.6], [0.6, 0.8]])
    measure = Gaussian(mean, covariance)
    f = lambda x: np.exp(x @ a)
    q = a @ covariance @ a
    expected = 0.5 * q * np.exp(a @ mean + q / 2)
    assert entropy(f, measure) == pytest.approx(expected, rel=1e-10) == exponential(a, measure).entropy
    assert log_sobolev_bound(f, lambda x: f(x)[:, None] * a, measure) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("d", "expected"), [(1, 0.7296371545), (2, 0.8455686702), (10, 0.9667975600)])
def test_square(d, expected):
    exact = square(d)
    assert round(exact.entropy, 10) == expected and exact.information == 4 and exact.mean == d
    measure, f = gaussian(np.ones(d)), lambda x: (x**2).sum(1)
    found = entropy_mc(f, measure, 40_000)
    assert abs(found.value - expected) < 4 * found.error < 0.2
    if d < 3:
        assert entropy(f, measure) == pytest.approx(expected, abs=1e-6)
        assert information(f, lambda x: 2 * x, measure)["x"] == pytest.approx(4, rel=1e-12)
        assert square(d, 3.0).entropy == pytest.approx(9 * expected) and square(d, 3.0).information == 36


def test_square_tends_to_one():
    assert (
        square(1).entropy == pytest.approx(2 - np.euler_gamma - np.log(2))
        and 0.9999 < square(10**5).entropy < 1
    )


@pytest.mark.parametrize(("t", "sigma"), [(2.0, 1.0), (0.3, 1.0), (2.0, 1.8), (-4.0, 1.0), (-4.0, 1.5)])
def test_bump(t, sigma):
    f, gradient = lambda x: np.exp(-(x**2) / 2 / t), lambda x: -x / t * np.exp(-(x**2) / 2 / t)
    exact = bump(t, sigma)
    assert exact.mean == pytest.approx(integral(f, sigma)) and exact.entropy == pytest.approx(
        direct_entropy(f, sigma)
    )
    assert entropy(f, gaussian(sigma)) == pytest.approx(exact.entropy, rel=1e-9)
    assert information(f, gradient, gaussian(sigma))["x"] == pytest.approx(exact.information, rel=1e-9)
    assert exact.entropy <= exact.information / 2
    if (t, sigma) == (2, 1):
        assert round(exact.entropy, 10) == 0.0294476737 and round(exact.information / 2, 10) == 0.0680413817


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_fast_waves_are_resolved(sigma):
    """Six periods a standard deviation; the average over a period is √1.21 … in closed form, and noise this
    wide sees the average.
    """
    f, gradient = lambda x: 1.1 + np.sin(36 / sigma * x), lambda x: 36 / sigma * np.cos(36 / sigma * x)
    rest = np.sqrt(1.1**2 - 1)
    assert information(f, gradient, gaussian(sigma))["x"] == pytest.approx(36**2 * (1.1 - rest), rel=1e-9)
    mean_f_ln_f = 1.1 * np.log((1.1 + rest) / 2) + 1.1 - rest  # ∫ (c + sin) ln(c + sin) over a period
    assert entropy(f, gaussian(sigma)) == pytest.approx(mean_f_ln_f - 1.1 * np.log(1.1), rel=1e-9)


def test_tensorisation_on_two_signs():
    f = lambda x, y: 1 + x * y
    assert entropy(f, SIGNS) == pytest.approx(np.log(2), abs=1e-15)
    assert sum(conditional_entropies(f, SIGNS).values()) == pytest.approx(2 * np.log(2), abs=1e-15)
    assert marginal_entropies(f, SIGNS) == {"x": 0.0, "y": 0.0}


def test_tensorisation_of_a_coupling():
    f = lambda x, y: np.exp(x * y / 2)
    exact = coupling(0.5)
    conditional, marginal = conditional_entropies(f, STANDARD_PAIR), marginal_entropies(f, STANDARD_PAIR)
    assert round(entropy(f, STANDARD_PAIR), 10) == 0.2188068575 == round(exact.entropy, 10)
    assert round(sum(conditional.values()), 10) == 0.3849001795 == round(exact.information / 2, 10)
    assert round(sum(marginal.values()), 10) == 0.0527135355 == round(2 * bump(-1 / 0.25).entropy, 10)
    assert exact.mean == pytest.approx(0.75**-0.5) and conditional["x"] == pytest.approx(conditional["y"])


def cross_entropy_at(logits, label):
    """CE of softmax(z) as a function on a measure of one point, and its gradient."""
    k = len(logits)
    return (
        (lambda z: -np.log(softmax(z)[:, label])),
        (lambda z: softmax(z) - np.eye(k)[label]),
        uniform(np.array([logits])),
    )


@pytest.mark.parametrize(("k", "expected"), [(2, 0.72135), (19, 0.32175), (20, 0.31712), (25, 0.29824)])
def test_information_of_a_uniform_prediction(k, expected):
    f, gradient, point = cross_entropy_at(np.zeros(k), 0)
    found = information(f, gradient, point, **POINT)["x"]
    assert found == pytest.approx((1 - 1 / k) / np.log(k), rel=1e-12) and round(found, 5) == expected


def test_inverse_information_punishes_confidence():
    def inverse(p):
        f, gradient, point = cross_entropy_at(np.log([p, 1 - p]), 0)
        return 1 / information(f, gradient, point, **POINT)["x"]

    p = np.linspace(0.2, 0.4, 2001)
    values = [inverse(q) for q in p]
    assert min(values) == pytest.approx(1.22770, abs=1e-5) and p[np.argmin(values)] == pytest.approx(
        0.284668, abs=1e-4
    )
    assert inverse(0.99) == pytest.approx(50.2517, abs=1e-4) == -np.log(0.99) / (2 * 0.01**2)


@pytest.mark.parametrize(("c", "ratio"), [((1.0, 0.25), 16.0), ((1.0, 1.0), 1.0), ((0.3, 0.9), 1 / 9)])
def test_a_linear_network_reveals_what_it_leans_on(c, ratio):
    """z = ½ (c₁ W x₁ + c₂ W x₂), W with orthonormal rows: I_i = c_i²/4 ‖q − y‖² / f."""
    rng = np.random.default_rng(0)
    w = np.linalg.qr(rng.standard_normal((5, 3)))[0].T
    x = [rng.standard_normal((1, 5)) for _ in c]
    logits = lambda *x: sum(ci * xi @ w.T for ci, xi in zip(c, x)) / 2
    f = lambda *x: -np.log(softmax(logits(*x))[:, 1])
    gradient = lambda *x: [ci / 2 * (softmax(logits(*x)) - np.eye(3)[1]) @ w for ci in c]
    found = information(f, gradient, {"rgb": uniform(x[0]), "depth": uniform(x[1])}, **POINT)
    q = softmax(logits(*x))[0] - np.eye(3)[1]
    assert found["rgb"] / found["depth"] == pytest.approx(ratio) and found["rgb"] == pytest.approx(
        c[0] ** 2 / 4 * q @ q / f(*x)[0]
    )


def test_mean_fusion_gives_every_modality_the_same_logit_information():
    rng = np.random.default_rng(1)
    z = {name: uniform(rng.standard_normal((1, 4))) for name in "RDE"}
    fused = lambda *z: softmax(sum(z) / 3)
    found = information(
        lambda *z: -np.log(fused(*z)[:, 2]), lambda *z: [(fused(*z) - np.eye(4)[2]) / 3] * 3, z, **POINT
    )
    assert found["R"] == found["D"] == found["E"]


def test_tiling_changes_the_plain_form_only():
    """f = mean CE over N pixels: ‖∇f‖²/f falls as 1/N, N‖∇f‖²/f does not change."""
    z = np.random.default_rng(2).standard_normal((6, 3))

    def plain(tiles):
        pixels = np.tile(z, (tiles, 1))
        point = uniform(pixels.reshape(1, -1))
        f = lambda x: -np.log(softmax(x.reshape(len(x), -1, 3))[..., 0]).mean(1)
        gradient = lambda x: ((softmax(x.reshape(len(x), -1, 3)) - np.eye(3)[0]) / len(pixels)).reshape(
            len(x), -1
        )
        return information(f, gradient, point, **POINT)["x"], len(pixels)

    (once, n), (often, m) = plain(1), plain(16)
    assert often == pytest.approx(once / 16) and m * often == pytest.approx(n * once)


@pytest.mark.parametrize("classes", [4, 8])
def test_kl_has_a_limit_where_two_agree_and_cross_entropy_has_none(classes):
    p = np.full(classes, 1 / classes)
    direction = np.random.default_rng(3).standard_normal(classes)
    z = 1e-3 * direction / np.linalg.norm(direction)
    gradient = lambda x: softmax(x) - p
    kl = information(lambda x: (p * np.log(p / softmax(x))).sum(1), gradient, uniform(z[None]), **POINT)["x"]
    ce = information(lambda x: -(p * np.log(softmax(x))).sum(1), gradient, uniform(z[None]), **POINT)["x"]
    assert kl == pytest.approx(2 / classes, rel=2e-3) and 1 / ce > 1e6


def test_no_information_at_a_clean_target_is_zero_and_not_nan():
    p = softmax(np.array([[1.0, 0.2, -0.3]]))
    f, gradient = lambda x: -(p * np.log(softmax(x))).sum(1), lambda x: softmax(x) - p
    found = information(f, gradient, uniform(np.log(p)), **POINT)["x"]
    assert 0 <= found < 1e-30 and 1 / (found + 1e-6) == pytest.approx(1e6)


@EXAMPLES
@given(st.lists(st.floats(0.05, 3), min_size=2, max_size=3))
def test_inverses_are_bounded_by_the_harmonic_mean(slopes):
    """Σ 1/I_i >= M² / Σ I_i, with equality iff all are equal."""
    measure = {f"m{i}": gaussian(0.5) for i in range(len(slopes))}
    f = lambda *x: np.exp(sum(a * xi for a, xi in zip(slopes, x)))
    found = np.array(list(information(f, lambda *x: [a * f(*x) for a in slopes], measure, nodes=40).values()))
    assert np.allclose(found / found[0], np.square(slopes) / slopes[0] ** 2)
    low = len(found) ** 2 / found.sum()
    assert (1 / found).sum() >= low * (1 - 1e-12)
    if np.ptp(found) > 0.1 * found.max():
        assert (1 / found).sum() > low * (1 + 1e-4)


def test_poincare():
    a, covariance = np.array([0.7, -0.2]), np.array([[1.5, 0.6], [0.6, 0.8]])
    measure, expected = Gaussian(np.zeros(2), covariance), a @ covariance @ a
    linear = lambda x: x @ a  # negative in places, which the variance does not mind
    assert (
        variance(linear, measure)
        == pytest.approx(expected)
        == poincare_bound(lambda x: np.tile(a, (len(x), 1)), measure)
    )
    assert variance(lambda x: x**2, gaussian()) == pytest.approx(2) and poincare_bound(
        lambda x: 2 * x, gaussian()
    ) == pytest.approx(4)
    assert poincare_bound(lambda x: 2 * x, gaussian(0.5), rho=4) == pytest.approx(
        poincare_bound(lambda x: 2 * x, gaussian(0.5))
    )


# ---- Monte Carlo ----

CALIBRATION = [
    (lambda x: np.exp(0.7 * x), gaussian(), exponential(0.7, gaussian()).entropy),
    (lambda x: np.exp(-(x**2) / 4), gaussian(), bump(2.0).entropy),
    (lambda x: (x**2).sum(1), gaussian(np.ones(3)), square(3).entropy),
    (lambda x, y: 1 + x * y, SIGNS, np.log(2)),
]


@pytest.mark.parametrize(
    ("f", "measure", "truth"), CALIBRATION, ids=["exponential", "bump", "square", "signs"]
)
def test_error_bars_of_the_entropy_are_calibrated(f, measure, truth):
    estimates = [entropy_mc(f, measure, 2_000, seed) for seed in range(400)]
    z = np.array([(e.value - truth) / e.error for e in estimates])
    assert abs(z.mean()) < 0.25 and 0.88 < z.std() < 1.15, (z.mean(), z.std())


def test_error_bars_of_the_bound_are_calibrated():
    f, gradient = lambda x: np.exp(0.4 * x), lambda x: 0.4 * np.exp(0.4 * x)
    truth = exponential(0.4, gaussian(1.5)).information / 2
    estimates = [
        log_sobolev_bound_mc(f, gradient, gaussian(1.5), samples=2_000, seed=seed) for seed in range(400)
    ]
    z = np.array([(e.value - truth) / e.error for e in estimates])
    assert abs(z.mean()) < 0.2 and 0.88 < z.std() < 1.12, (z.mean(), z.std())


def test_the_jackknife_removes_the_bias_of_the_plain_estimate():
    x = np.random.default_rng(0).standard_normal((40_000, 24))
    values, truth = x**2, square(1).entropy
    m = values.mean(1)
    plain = (values * np.log(values)).mean(1) - m * np.log(m)
    ours, _ = sample_entropy(values)
    spread = ours.std() / 200
    assert abs(plain.mean() - truth + 2 / (2 * 24)) < 0.01, "too small by Var f / (2 n E f)"
    assert abs(ours.mean() - truth) < 4 * spread < 0.01


def test_the_jackknife_is_what_leaving_out_one_by_one_gives():
    values = np.random.default_rng(1).exponential(size=12)
    plain = lambda v: np.mean(v * np.log(v)) - v.mean() * np.log(v.mean())
    left = np.array([plain(np.delete(values, i)) for i in range(12)])
    value, error = sample_entropy(values)
    assert value == pytest.approx(12 * plain(values) - 11 * left.mean())
    assert error == pytest.approx(np.sqrt(11 / 12 * ((left - left.mean()) ** 2).sum()))


def test_mean_of_ratios_is_not_ratio_of_means():
    a = np.array([0.3, -0.5, 0.2])
    f = lambda x: np.exp(x @ a)
    gradient = lambda x: f(x)[:, None] * a
    found = log_sobolev_bound_mc(f, gradient, gaussian(np.ones(3)), samples=40_000)
    assert (
        abs(2 * found.value - 0.459515) < 8 * found.error
        and abs(2 * found.value - 0.671942) > 20 * found.error
    )
    x = gaussian(np.ones(3)).sample(200_000, np.random.default_rng(0))
    assert (gradient(x) ** 2).sum(1).mean() / f(x).mean() == pytest.approx(0.671942, rel=0.02)


def test_the_same_seed_gives_the_same_numbers():
    f = exp_ax(0.7)[0]
    assert (
        entropy_mc(f, gaussian(), 100, seed=3)
        == entropy_mc(f, gaussian(), 100, seed=3)
        != entropy_mc(f, gaussian(), 100, seed=4)
    )


def test_samples_have_the_covariance_that_was_asked_for():
    covariance = np.array([[1.5, 0.6], [0.6, 0.8]])
    measure = Gaussian(np.array([1.0, -2.0]), covariance)
    x, nodes = measure.sample(200_000, np.random.default_rng(0)), measure.nodes(60)
    assert np.allclose(np.cov(x.T), covariance, atol=0.02) and np.allclose(x.mean(0), [1, -2], atol=0.01)
    centred = nodes.points - [1, -2]
    assert np.allclose((nodes.weights[:, None] * centred).T @ centred, covariance) and np.allclose(
        nodes.weights @ nodes.points, [1, -2]
    )


# ---- properties ----


@st.composite
def positive_functions(draw):
    """f = exp(a·x + b sin(c·x + d) − e x²) in one dimension, with its gradient."""
    a, b, d = (draw(st.floats(-1, 1)) for _ in range(3))
    c, e = draw(st.floats(0.2, 2)), draw(st.floats(0, 1))
    f = lambda x: np.exp(a * x + b * np.sin(c * x + d) - e * x**2)
    return f, lambda x: f(x) * (a + b * c * np.cos(c * x + d) - 2 * e * x)


@EXAMPLES
@given(positive_functions(), st.floats(0.2, 2.0), st.floats(-1, 1))
def test_entropy_is_non_negative_and_bounded(functions, sigma, mean):
    f, gradient = functions
    measure = gaussian(sigma, mean)
    found, bound = entropy(f, measure), log_sobolev_bound(f, gradient, measure)
    assert 0 <= found <= bound * (1 + 1e-9) + 1e-14
    assert variance(f, measure) <= poincare_bound(gradient, measure) * (1 + 1e-9) + 1e-14
    ent, information_half = (
        entropy_mc(f, measure, 4_000),
        log_sobolev_bound_mc(f, gradient, measure, samples=4_000),
    )
    assert ent.value - information_half.value <= 6 * np.hypot(ent.error, information_half.error) + 1e-12
    if sigma <= 1:
        assert found <= log_sobolev_bound(f, gradient, measure, rho=1) * (1 + 1e-9) + 1e-14, (
            "the printed form holds for σ <= 1"
        )


@EXAMPLES
@given(positive_functions(), st.floats(1e-6, 1e6))
def test_entropy_and_information_are_homogeneous(functions, c):
    f, gradient = functions
    measure = gaussian()
    assert entropy(lambda x: c * f(x), measure) == pytest.approx(
        c * entropy(f, measure), rel=1e-9, abs=1e-14 * c
    )
    scaled = log_sobolev_bound(lambda x: c * f(x), lambda x: c * gradient(x), measure)
    assert scaled == pytest.approx(c * log_sobolev_bound(f, gradient, measure), rel=1e-9)
    value, error = sample_entropy(f(np.linspace(-2, 2, 50)))
    assert np.allclose(sample_entropy(c * f(np.linspace(-2, 2, 50))), (c * value, c * error))


@EXAMPLES
@given(positive_functions(), st.floats(0.01, 300))
def test_rescaling_a_modality_with_its_noise_changes_nothing(functions, a):
    """0 to 1 or 0 to 255: the information with Σ is the same, the printed form changes by 1/a²."""
    f, gradient = functions
    both = lambda x, y: f(x) + f(y)
    base = information(both, lambda x, y: (gradient(x), gradient(y)), STANDARD_PAIR, nodes=100)
    rescaled = {"x": gaussian(a), "y": gaussian()}
    g, dg = lambda x, y: both(x / a, y), lambda x, y: (gradient(x / a) / a, gradient(y))
    assert information(g, dg, rescaled, nodes=100) == pytest.approx(base, rel=1e-9, abs=1e-15)
    assert information(g, dg, rescaled, rho=1, nodes=100)["x"] == pytest.approx(
        base["x"] / a**2, rel=1e-9, abs=1e-15
    )
    swapped = information(
        lambda y, x: both(x, y),
        lambda y, x: (gradient(y), gradient(x)),
        {"y": gaussian(), "x": gaussian()},
        nodes=100,
    )
    assert swapped == pytest.approx(base), "the order of the modalities is not seen"


@EXAMPLES
@given(st.integers(0, 10**6), st.sampled_from([(2, 3), (3, 2, 4), (1, 5)]))
def test_tensorisation_on_random_discrete_products(seed, sizes):
    rng = np.random.default_rng(seed)
    table = rng.exponential(size=sizes) * (rng.random(sizes) > 0.2)
    weights = [rng.dirichlet(np.ones(n)) for n in sizes]
    measure = {f"m{i}": Discrete(np.arange(n), w) for i, (n, w) in enumerate(zip(sizes, weights))}
    f = lambda *x: table[tuple(np.asarray(v, int) for v in x)]

    def plain(values, w):  # Eq. 1 with 0 ln 0 = 0, as sums
        m = sum(v * p for v, p in zip(values, w))
        return sum(p * v * np.log(v) for v, p in zip(values, w) if v > 0) - (m * np.log(m) if m > 0 else 0)

    cells = list(itertools.product(*map(range, sizes)))
    mass = [np.prod([w[i] for w, i in zip(weights, cell)]) for cell in cells]
    found = entropy(f, measure)
    assert found == pytest.approx(plain([table[c] for c in cells], mass), abs=1e-12)
    conditional, marginal = conditional_entropies(f, measure), marginal_entropies(f, measure)
    for i, name in enumerate(measure):
        others = [range(n) if j != i else [0] for j, n in enumerate(sizes)]
        expected, seen = 0.0, np.zeros(sizes[i])
        for cell in itertools.product(*others):
            line = [table[cell[:i] + (k,) + cell[i + 1 :]] for k in range(sizes[i])]
            share = np.prod([w[c] for j, (w, c) in enumerate(zip(weights, cell)) if j != i])
            expected, seen = expected + share * plain(line, weights[i]), seen + share * np.array(line)
        assert conditional[name] == pytest.approx(expected, abs=1e-12)
        assert marginal[name] == pytest.approx(plain(seen, weights[i]), abs=1e-12)
    assert -1e-15 <= found <= sum(conditional.values()) + 1e-12


@EXAMPLES
@given(positive_functions(), positive_functions(), st.floats(0, 0.4))
def test_tensorisation_on_gaussian_products(first, second, c):
    f, g = first[0], second[0]
    joint = lambda x, y: f(x) * g(y) * np.exp(c * np.sin(x * y))
    assert (
        entropy(joint, STANDARD_PAIR, 100)
        <= sum(conditional_entropies(joint, STANDARD_PAIR, 100).values()) * (1 + 1e-9) + 1e-14
    )
    product = lambda x, y: f(x) * g(y)  # independent factors: equality, and Ent(fg) = E g Ent f + E f Ent g
    mean = lambda h: float(gaussian().nodes(100).weights @ h(gaussian().nodes(100).points))
    expected = mean(g) * entropy(f, gaussian(), 100) + mean(f) * entropy(g, gaussian(), 100)
    assert entropy(product, STANDARD_PAIR, 100) == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert sum(conditional_entropies(product, STANDARD_PAIR, 100).values()) == pytest.approx(
        expected, rel=1e-9, abs=1e-14
    )


@EXAMPLES
@given(positive_functions(), st.floats(0.3, 3), st.floats(0, 2))
def test_strongly_log_concave_densities(functions, rho, quartic):
    f, gradient = functions
    measure = log_concave(lambda x: rho * x**2 / 2 + quartic * x**4 / 4, -14, 14)
    assert entropy(f, measure) <= log_sobolev_bound(f, gradient, measure, rho=rho) * (1 + 1e-9) + 1e-14
    assert variance(f, measure) <= poincare_bound(gradient, measure, rho=rho) * (1 + 1e-9) + 1e-14


def test_a_quadratic_potential_is_a_gaussian():
    f, gradient = exp_ax(0.7)
    measure = log_concave(lambda x: x**2 / (2 * 1.8**2), -25, 25)
    assert (
        entropy(f, measure)
        == pytest.approx(1.7557151405, abs=1e-9)
        == log_sobolev_bound(f, gradient, measure, rho=1 / 1.8**2)
    )


def test_separated_points_have_entropy_and_no_information():
    """Two data, f constant around each: no constant can bound the entropy by the gradient."""
    step, flat = lambda x: np.where(x > 0, 2.0, 0.5), lambda x: np.zeros_like(x)
    data = uniform([-1.0, 1.0])
    assert entropy(step, data) == pytest.approx(
        0.5 * (2 * np.log(2) + 0.5 * np.log(0.5)) - 1.25 * np.log(1.25)
    )
    assert log_sobolev_bound(step, flat, data, rho=1e-9) == 0 < entropy(step, data)


def wide_bump(t):
    """(exact value, function, its arguments) of e^{-x²/2t}, t < -1: f times the density is a Gaussian that
    widens without end as t rises to -1, its largest value in the middle all the while.
    """
    f, exact = lambda x: np.exp(-(x**2) / 2 / t), bump(t)
    yield exact.entropy, entropy, f, gaussian()
    yield exact.information / 2, log_sobolev_bound, f, lambda x: -x / t * f(x), gaussian()
    if t < -2:
        yield bump(t / 2).mean - exact.mean**2, variance, f, gaussian()


def wide_coupling(c):
    """The same for e^{cxy}, which widens along the diagonal as c rises to 1."""
    f, exact = lambda x, y: np.exp(c * x * y), coupling(c)
    yield exact.entropy, entropy, f, STANDARD_PAIR
    yield exact.information / 4, lambda *a: conditional_entropies(*a)["x"], f, STANDARD_PAIR
    yield bump(-1 / c**2).entropy, lambda *a: marginal_entropies(*a)["y"], f, STANDARD_PAIR


def test_mass_that_the_grid_cuts_off_is_refused_and_never_lost_in_silence():
    right, refused = 0, 0
    widths = [
        *map(wide_bump, -1 - np.geomspace(1e-4, 3, 40)),
        *map(wide_coupling, 1 - np.geomspace(1e-4, 0.7, 30)),
    ]
    for exact, function, *arguments in itertools.chain(*widths):
        try:
            assert function(*arguments) == pytest.approx(exact, rel=1e-6)
            right += 1
        except ValueError as error:
            assert "away from the datum" in str(error)
            refused += 1
    assert right > 30 and refused > 50
    hidden = lambda x: 1 + 1e-12 * np.exp(x**2 / 2.02)  # of its mean 1e-11 is far out, of its entropy most
    with pytest.raises(ValueError, match="away from the datum"):
        entropy(hidden, gaussian())


@pytest.mark.parametrize("scale", [1e-300, 1e290])
def test_numbers_near_the_ends_of_floating_point(scale):
    f, gradient = exp_ax(0.7)
    exact = exponential(0.7, gaussian())
    scaled = (lambda x: scale * f(x)), (lambda x: scale * gradient(x))
    assert entropy(scaled[0], gaussian()) == pytest.approx(scale * exact.entropy, rel=1e-9, abs=0)
    assert log_sobolev_bound(*scaled, gaussian()) == pytest.approx(
        scale * exact.information / 2, rel=1e-9, abs=0
    )
    bound = log_sobolev_bound_mc(*scaled, gaussian())
    assert abs(bound.value - scale * exact.information / 2) < 4 * bound.error


def test_zero_times_log_zero_is_zero():
    assert entropy(lambda x: np.maximum(x, 0) ** 2, gaussian()) == pytest.approx(
        direct_entropy(lambda x: max(x, 0) ** 2), abs=1e-6
    )
    assert entropy(lambda x: 0 * x, gaussian()) == 0 and entropy_mc(lambda x: 0 * x, gaussian()) == (0, 0)
    half_zero = entropy_mc(lambda x, y: 1 + x * y, SIGNS, 1_000)
    assert abs(half_zero.value - np.log(2)) < 4 * half_zero.error < 0.2
    relu = lambda x: np.maximum(x, 0) ** 2, lambda x: 2 * np.maximum(x, 0)
    assert information(*relu, gaussian())["x"] == pytest.approx(2, rel=1e-12), "half of the 4 of x²"
    assert (
        marginal_entropies(
            lambda x, y: 1 + x * y, {"x": Discrete([-1, 1, 0], [0.5, 0.5, 0]), "y": uniform([-1, 1])}
        )["x"]
        == 0
    )


# ---- what is refused ----

ONE = lambda x: np.ones_like(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy(lambda x: x, gaussian()), r"f = -\d.* at -\d.*finite f >= 0"),
        (lambda: entropy(lambda x, y: x - 2, SIGNS), r"f = -3 at -1\.?, -1\.?: functional entropy"),
        (lambda: entropy_mc(lambda x: x, gaussian()), "finite f >= 0"),
        (lambda: conditional_entropies(lambda x, y: x * y, SIGNS), "f = -1 at"),
        (lambda: entropy(lambda x: np.log(np.maximum(x, 0)), uniform([0.0, 1.0])), "f = -inf at 0"),
        (lambda: variance(lambda x: x * np.nan, gaussian()), "f = nan"),
        (lambda: entropy(lambda x: 1.0, gaussian()), r"f returned shape \(\) for 4000 points"),
        (lambda: entropy(lambda x: x[:, None] ** 2, gaussian()), r"expected \(4000,\), one number a point"),
        (
            lambda: information(lambda x, y: ONE(x), lambda x, y: x, STANDARD_PAIR),
            r"one finite array per modality \(x, y\)",
        ),
        (lambda: information(ONE, lambda x: x * np.inf, gaussian()), "one finite array"),
        (
            lambda: information(lambda x: 0 * x, ONE, gaussian()),
            "f = 0 with a gradient that is not 0 at point 0",
        ),
        (lambda: information(ONE, ONE, uniform([1.0])), "give rho"),
        (lambda: information(ONE, ONE, gaussian(), rho=0), "rho 0: expected a positive number"),
        (lambda: gaussian(0.0), "every direction needs some spread"),
        (lambda: gaussian(np.nan), "expected finite numbers"),
        (
            lambda: Gaussian(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])),
            "not symmetric positive definite",
        ),
        (
            lambda: Gaussian(np.zeros(2), np.array([[1.0, 0.2], [0.1, 1.0]])),
            "not symmetric positive definite",
        ),
        (lambda: Gaussian(np.zeros(2), np.eye(3)), r"mean \(2,\), covariance \(3, 3\)"),
        (lambda: Gaussian(np.array(np.inf), np.eye(1)), "finite"),
        (lambda: Discrete([0, 1], [0.5, 0.6]), "sum to 1"),
        (lambda: Discrete([0, 1], [1.5, -0.5]), "smallest is -0.5"),
        (lambda: Discrete([0, 1, 2], [0.5, 0.5]), r"points \(3,\), weights \(2,\)"),
        (lambda: entropy(ONE, gaussian(), nodes=7), "even number"),
        (
            lambda: entropy(lambda x: x[:, 0], gaussian(np.ones(9))),
            "too large; use fewer nodes or the functions that end in _mc",
        ),
        (lambda: entropy_mc(ONE, gaussian(), samples=3), "at least 8"),
        (lambda: entropy(lambda x: np.exp(10 * x), gaussian()), "more than 13σ away"),
        (lambda: entropy(lambda x: np.exp(x**2), gaussian()), "or does not exist; narrow the noise"),
        (lambda: log_sobolev_bound(*exp_ax(5), gaussian(2.0)), "more than 13σ away"),
        (lambda: conditional_entropies(lambda x, y: np.exp(9 * x), STANDARD_PAIR), "more than 13σ away"),
        (lambda: marginal_entropies(lambda x, y: np.exp(9 * x), STANDARD_PAIR), "more than 13σ away"),
        (lambda: log_concave(lambda x: x**2 / 2, -2, 2), "widen the interval"),
        (lambda: bump(-0.5), "t > 0 or t < -σ² = -1"),
        (lambda: coupling(1.0), r"\|c\| < 1"),
    ],
)
def test_bad_input_is_refused_with_the_reason(call, message):
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(ValueError, match=message):
        call()
