"""The checks must be able to fail: each mutation breaks one expression of the library, and its tests and its
notebook must notice.

How a mutation is made and run: mutating.py. To add one, add an entry to ``MUTATIONS``. A mutation whose
expression is no longer there fails, and says which.
"""

import json

import pytest
from mutating import ROOT, Mutation, Notebook, attempt, mutate

THEORY, INFORMATION, REGULARIZER, SCALE = (
    f"tests/test_{name}.py" for name in ("theory", "information", "regularizer", "scale")
)
SEGMENTATION, CORRESPONDENCE, NETWORKS = (
    f"tests/test_{name}.py" for name in ("segmentation", "correspondence", "cluster_networks")
)
EVALUATION, MATCHING, FUSION = (f"tests/test_{name}.py" for name in ("evaluation", "matching", "fusion"))
NOTEBOOK_01, NOTEBOOK_02 = "notebooks/01_functional_entropy.ipynb", "notebooks/02_log_sobolev_bound.ipynb"
NOTEBOOK_03 = "notebooks/03_from_bound_to_loss.ipynb"
NOTEBOOK_04, NOTEBOOK_05 = "notebooks/04_segmenter_and_subsets.ipynb", "notebooks/05_the_regularizer.ipynb"
EXPONENTIAL = "test_exponential_meets_the_bound_with_equality"
TENSORISATION = "test_tensorisation_on_two_signs"
LINEAR = "test_linear_network_has_the_ratio_of_squared_weights"
BRUTE_FORCE = "test_values_and_gradients_are_those_of_brute_force"
ALL_PAIRS = "test_the_sum_over_modalities_and_pairs"
PUSHES = "test_every_form_pushes_the_weakest_modality_up_most"


def of(file: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{file}::{name}" for name in names)


MUTATIONS = [
    Mutation(
        "sign of the entropy",
        "entropy",
        "_mean(weights, kl_div(values, ANY))",
        "-_mean(weights, kl_div(values, ANY))",
        of(THEORY, EXPONENTIAL, TENSORISATION, "test_entropy_is_non_negative_and_bounded"),
        NOTEBOOK_01,
    ),
    Mutation(
        "arguments of the divergence",
        "entropy",
        "kl_div(values, ANY)",
        "kl_div(ANY, values)",
        of(THEORY, "test_bump"),
        NOTEBOOK_01,
    ),
    Mutation(
        "factor one half",
        "log_sobolev_bound",
        "0.5 * ANY",
        "1.0 * ANY",
        of(THEORY, EXPONENTIAL, "test_a_quadratic_potential_is_a_gaussian"),
        NOTEBOOK_02,
    ),
    Mutation(
        "gradient without covariance",
        "_energies",
        'np.einsum("ni,ij,nj->n", g, factor.covariance, g)',
        "np.square(g).sum(1)",
        of(THEORY, EXPONENTIAL, "test_rescaling_a_modality_with_its_noise_changes_nothing", "test_poincare"),
        NOTEBOOK_02,
    ),
    Mutation(
        "curvature multiplies",
        "_energies",
        "ANY / rho",
        "ANY * rho",
        of(THEORY, "test_a_quadratic_potential_is_a_gaussian", "test_strongly_log_concave_densities"),
        NOTEBOOK_02,
    ),
    Mutation(
        "marginals for conditionals",
        "conditional_entropies",
        "kl_div(values, ANY)",
        "kl_div(weights.sum(1) @ values, ANY)",
        of(
            THEORY,
            TENSORISATION,
            "test_tensorisation_of_a_coupling",
            "test_tensorisation_on_random_discrete_products",
        ),
        NOTEBOOK_01,
    ),
    Mutation(
        "conditionals for marginals",
        "marginal_entropies",
        "_mean(own, kl_div(ANY, _mean(weights, values)))",
        "conditional_entropies(f, measure, nodes)[name]",
        of(THEORY, TENSORISATION, "test_tensorisation_on_random_discrete_products"),
        NOTEBOOK_01,
    ),
    Mutation(
        "variance without the mean",
        "variance",
        "(values - weights @ values) ** 2",
        "values**2",
        of(THEORY, "test_poincare"),
        NOTEBOOK_02,
    ),
    Mutation(
        "plain estimate instead of the jackknife",
        "sample_entropy",
        "mean * (count * whole - (count - 1) * centre)",
        "mean * whole",
        of(
            THEORY,
            "test_the_jackknife_removes_the_bias_of_the_plain_estimate",
            "test_the_jackknife_is_what_leaving_out_one_by_one_gives",
        ),
    ),
    Mutation(
        "error bars of half the width",
        "sample_entropy",
        "mean * np.sqrt(ANY)",
        "0.5 * mean * np.sqrt(ANY)",
        of(THEORY, "test_error_bars_of_the_entropy_are_calibrated"),
        NOTEBOOK_01,
    ),
    Mutation(
        "zero log zero",
        "sample_entropy",
        "xlogy(share, share)",
        "share * np.log(share)",
        of(THEORY, "test_zero_times_log_zero_is_zero"),
    ),
    Mutation(
        "variance for standard deviation",
        "gaussian",
        "sigma**2",
        "sigma",
        of(THEORY, EXPONENTIAL),
        NOTEBOOK_02,
    ),
    Mutation(
        "covariance transposed in sampling",
        "_placed",
        "np.linalg.cholesky(self.covariance).T",
        "np.linalg.cholesky(self.covariance)",
        of(
            THEORY,
            "test_samples_have_the_covariance_that_was_asked_for",
            "test_exponential_with_a_covariance_and_a_mean",
        ),
    ),
    Mutation(
        "sign in a closed form",
        "bump",
        "-v / (2 * s) - np.log(v) / 2",
        "v / (2 * s) - np.log(v) / 2",
        of(THEORY, "test_bump"),
        NOTEBOOK_01,
    ),
    Mutation(
        "sign in a closed form of two",
        "coupling",
        "ANY + rest**-0.5 * np.log(rest) / 2",
        "ANY - rest**-0.5 * np.log(rest) / 2",
        of(THEORY, "test_tensorisation_of_a_coupling"),
        NOTEBOOK_01,
    ),
    Mutation(
        "standard deviation for variance in the network's information",
        "input_information",
        "sigma**2",
        "sigma",
        of(INFORMATION, LINEAR, "test_tiling_an_image_changes_nothing_and_units_cancel"),
        NOTEBOOK_05,
    ),
    Mutation(
        "information not divided by the loss",
        "_information",
        "energy / (f + EPS)",
        "energy",
        of(INFORMATION, LINEAR, "test_closed_forms_equal_autograd"),
    ),
    Mutation(
        "sign in the closed form of logits",
        "logit_information",
        "ANY1 - 2 * ANY2 + 1",
        "ANY1 + 2 * ANY2 + 1",
        of(INFORMATION, "test_closed_forms_equal_autograd", "test_logit_information_of_a_uniform_prediction"),
    ),
    Mutation(
        "cross-entropy for divergence",
        "feature_information",
        "(target * (log_mean - log_q)).sum(3)",
        "-(target * log_q).sum(3)",
        of(
            INFORMATION,
            "test_feature_information_equals_autograd[kl]",
            "test_where_features_agree_kl_tends_to_one_and_ce_to_zero",
        ),
    ),
    Mutation(
        "samples without labels taken for informative",
        "_information",
        "pixels > 0",
        "pixels >= 0",
        of(INFORMATION, "test_bad_input_is_refused_or_marked"),
    ),
    Mutation(
        "information for the sum of its inverses",
        "combine",
        "(1 / information).nansum()",
        "information.nansum()",
        of(REGULARIZER, "test_forms", f"{PUSHES}[inverse]"),
        NOTEBOOK_03,
    ),
    Mutation(
        "sign of the balance",
        "combine",
        "information.nanmean() * (1 / information).nanmean() - 1",
        "1 - information.nanmean() * (1 / information).nanmean()",
        of(REGULARIZER, "test_forms", f"{PUSHES}[balance]", "test_three_lines_in_anybodys_loop"),
    ),
    Mutation(
        "probes that are not amortised",
        "probe",
        "self.strength(progress) * config.probe_every",
        "self.strength(progress)",
        of(REGULARIZER, "test_the_probe_is_lazy_and_amortised"),
    ),
    Mutation(
        "a cap that stops the gradient",
        "term",
        "value * (cap / value.detach().clamp_min(cap))",
        "value.clamp_max(cap)",
        of(REGULARIZER, "test_the_cap_is_counted_and_keeps_the_direction"),
    ),
    Mutation(
        "inverted before the mean over samples",
        "term",
        "torch.where(taken, whole, 0.0).sum(1) / count",
        "count / torch.where(taken, 1 / whole, 0.0).sum(1)",
        of(REGULARIZER, "test_terms_are_the_information_combined"),
    ),
    Mutation(
        "regulariser subtracted from the loss",
        "train_step",
        "L_sup + R_p + R_f",
        "L_sup - R_p - R_f",
        of(SCALE, "test_a_step_minimises_the_sum_of_eq_9"),
    ),
    Mutation(
        "weights of the two terms exchanged",
        "terms",
        "self.config.lambda_p * weight * R_p, self.config.lambda_f * weight * R_f",
        "self.config.lambda_f * weight * R_p, self.config.lambda_p * weight * R_f",
        of(REGULARIZER, "test_terms_are_the_information_combined"),
    ),
    Mutation(
        "sum for the mean of the modalities' predictions",
        "forward",
        "torch.stack(logits).mean(0)",
        "torch.stack(logits).sum(0)",
        of(SEGMENTATION, "test_fusion_is_the_mean_of_single_predictions"),
        NOTEBOOK_04,
    ),
    Mutation(
        "subsets added up for their weighted mean",
        "subset_cross_entropy",
        "total / sum(weights)",
        "total",
        of(SEGMENTATION, "test_all_subsets_is_the_weighted_mean_of_every_subsets_cross_entropy"),
        NOTEBOOK_04,
    ),
    Mutation(
        "upsampling shifted by half a pixel",
        "resample",
        "(ANY1 + 0.5) * ANY2 - 0.5",
        "ANY1 * ANY2",
        of(
            SEGMENTATION,
            "test_resample_is_bilinear_interpolation_at_some_pixels",
            "test_all_subsets_is_the_weighted_mean_of_every_subsets_cross_entropy",
        ),
    ),
    Mutation(
        "scalar product for the cosine",
        "cosine",
        "unit(a) @ unit(b).mT",
        "a @ b.mT",
        of(CORRESPONDENCE, "test_self_pairs_are_symmetric"),
    ),
    Mutation(
        "sign of the shift b",
        "_pair_loss",
        "f - offset - shift",
        "f - offset + shift",
        of(CORRESPONDENCE, BRUTE_FORCE, ALL_PAIRS, "test_more_alike_than_the_shift_attracts_less_repels"),
    ),
    Mutation(
        "similarity that is not clamped at 0",
        "_pair_loss",
        "s.clamp(low, high)",
        "s",
        of(CORRESPONDENCE, BRUTE_FORCE, "test_the_clamp_stops_gradients_of_dissimilar_codes"),
    ),
    Mutation(
        "codes taken for tokens",
        "_pair_loss",
        "f1 @ f2.mT",
        "c1 @ c2.mT",
        of(CORRESPONDENCE, BRUTE_FORCE, ALL_PAIRS),
    ),
    Mutation(
        "similarity without its sign",
        "_pair_loss",
        "c1 @ c2.mT",
        "c1 @ c2.mT.abs()",
        of(CORRESPONDENCE, BRUTE_FORCE, ALL_PAIRS),
    ),
    Mutation(
        "auxiliary modalities without their weight",
        "cmcs_loss",
        "lambdas[name] * weight * term",
        "weight * term",
        of(CORRESPONDENCE, ALL_PAIRS),
    ),
    Mutation(
        "centring that loses the mean",
        "centred",
        "correspondence - correspondence.mean(2, keepdim=True) + correspondence.mean()",
        "correspondence - correspondence.mean(2, keepdim=True)",
        of(CORRESPONDENCE, "test_centring_is_the_released_one"),
    ),
    Mutation(
        "a harmonizer that is linear",
        "two_layers",
        "nn.Sequential(pointwise(channels_in, hidden), nn.ReLU(), pointwise(hidden, channels))",
        "nn.Sequential(pointwise(channels_in, hidden), pointwise(hidden, channels))",
        of(NETWORKS, "test_anchor_placement"),
    ),
    Mutation(
        "union that counts the intersection twice",
        "iou",
        "true + predicted - hit",
        "true + predicted",
        of(EVALUATION, "test_counts_and_ratios_match_loops", "test_a_worked_example_and_absent_classes"),
    ),
    Mutation(
        "the worst matching of clusters",
        "hungarian",
        "linear_sum_assignment(counts, maximize=True)",
        "linear_sum_assignment(counts)",
        of(MATCHING, "test_hungarian_is_the_best_of_all_matchings"),
    ),
    Mutation(
        "present taken for absent",
        "subset_probabilities",
        "(1 - absent) ** present * absent ** (count - present)",
        "absent ** present * (1 - absent) ** (count - present)",
        of(EVALUATION, "test_subset_probabilities_are_those_of_independent_failures"),
    ),
    Mutation(
        "trust in who disagrees",
        "_agreement",
        "-TAU * disagreement(stack)",
        "TAU * disagreement(stack)",
        of(FUSION, "test_agreement_in_closed_form", "test_every_rule_equals_loops_over_pixels"),
    ),
    Mutation(
        "normal for Student's interval",
        "estimate",
        "stdtrit(n - 1, 0.975)",
        "stdtrit(1e9, 0.975)",
        of(EVALUATION, "test_interval_is_students"),
    ),
]


@pytest.fixture(scope="module")
def untouched_tests():
    """What the tests of all mutations say about the library as it is."""
    return attempt(None, tuple(sorted({name for mutation in MUTATIONS for name in mutation.tests})))


@pytest.fixture(scope="module")
def untouched_notebooks():
    """path -> that notebook on the library as it is, run as far as a mutation needs it."""
    running = {}

    def get(path: str) -> Notebook:
        if path not in running:
            running[path] = Notebook(None, path)
        return running[path]

    yield get
    for notebook in running.values():
        notebook.close()


def cases(name: str, ids: set[str]) -> set[str]:
    """The ids of one test: its own, or those of its parametrised cases."""
    return {full for full in ids if full == name or full.startswith(f"{name}[")}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_noticed(mutation, untouched_tests, untouched_notebooks):
    for name in mutation.tests:
        passed, failed = cases(name, untouched_tests.passed), cases(name, untouched_tests.failed)
        assert passed and not failed, f"{name} fails on the untouched library:\n{untouched_tests.printed}"
    change = (mutation.where, mutation.old, mutation.new)
    outcome = attempt(change, mutation.tests)
    silent = [name for name in mutation.tests if not cases(name, outcome.failed)]
    assert not silent, f"these tests let {mutation.name!r} pass: {silent}\n{outcome.printed}"
    if mutation.notebook:
        notebook = Notebook(change, mutation.notebook)
        try:
            wrong = notebook.run()
        finally:
            notebook.close()
        assert wrong, f"{mutation.notebook} does not notice {mutation.name!r}"
        # The same cells pass on the untouched library.
        assert untouched_notebooks(mutation.notebook).run(notebook.cell) == ""


def test_a_mutation_whose_expression_is_gone_says_which():
    with pytest.raises(
        ValueError, match=r"'no_such_name \+ 1' stands 0 times in entropy\(\) \(mmlib.*say in"
    ):
        mutate("entropy", "no_such_name + 1", "2")
    with pytest.raises(ValueError, match="stands 0 times in nothing.*no such function"):
        mutate("nothing", "1", "2")
    with pytest.raises(ValueError, match="stands [2-9] times in coupling"):
        mutate("coupling", "rest", "c")


def test_the_notebook_runner_sees_a_changed_output(tmp_path):
    notebook = json.loads((ROOT / NOTEBOOK_01).read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if c["cell_type"] == "code" and c["outputs"])
    cell["outputs"][0]["text"] = ["by hand: 0.2617\n"]
    (tmp_path / "changed.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    changed = Notebook(None, tmp_path / "changed.ipynb")
    try:
        assert "differs" in changed.run()
    finally:
        changed.close()
