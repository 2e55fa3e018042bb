"""The checks must be able to fail: each mutation breaks one line of the library, and its tests and its
notebook must notice.

A mutated copy of the library, the tests and the notebooks is made in a temporary folder and run there in a
process of its own. To add a mutation, add a line to ``MUTATIONS``; to add a file, add what must pass on the
untouched copy to ``UNTOUCHED``.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTROPY, GAUSSIAN, THEORY_TESTS = (
    "mmlib/theory/entropy.py",
    "mmlib/theory/gaussian.py",
    "tests/test_theory.py",
)
INFORMATION, REGULARIZER = "mmlib/segmentation/information.py", "mmlib/segmentation/regularizer.py"
INFORMATION_TESTS, REGULARIZER_TESTS = "tests/test_information.py", "tests/test_regularizer.py"
NOTEBOOK_01, NOTEBOOK_02 = "notebooks/01_functional_entropy.ipynb", "notebooks/02_log_sobolev_bound.ipynb"
NOTEBOOK_03 = "notebooks/03_regularized_segmenter.ipynb"


@dataclass(frozen=True)
class Mutation:
    """``old`` (which must stand exactly once in ``file``) becomes ``new``; then each of ``tests`` and
    ``notebook`` must fail.

    tests: "file::name" ids; all of them are run, and each must fail on its own.
    notebook: its path, or "" where no notebook computes what is broken.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    notebook: str = ""


def theory(*names: str) -> tuple[str, ...]:
    return tuple(f"{THEORY_TESTS}::{name}" for name in names)


def information(*names: str) -> tuple[str, ...]:
    return tuple(f"{INFORMATION_TESTS}::{name}" for name in names)


def regularizer(*names: str) -> tuple[str, ...]:
    return tuple(f"{REGULARIZER_TESTS}::{name}" for name in names)


EXPONENTIAL = "test_exponential_meets_the_bound_with_equality"
TENSORISATION = "test_tensorisation_on_two_signs"
LINEAR = "test_linear_network_has_the_ratio_of_squared_weights"

MUTATIONS = [
    Mutation(
        "sign of the entropy",
        ENTROPY,
        "return float(weights @ kl_div(values, _mean(weights, values)))",
        "return -float(weights @ kl_div(values, _mean(weights, values)))",
        theory(EXPONENTIAL, TENSORISATION, "test_entropy_is_non_negative_and_bounded"),
        NOTEBOOK_01,
    ),
    Mutation(
        "arguments of the divergence",
        ENTROPY,
        "return float(weights @ kl_div(values, _mean(weights, values)))",
        "return float(weights @ kl_div(_mean(weights, values), values))",
        theory("test_bump"),
        NOTEBOOK_01,
    ),
    Mutation(
        "factor one half",
        ENTROPY,
        "return 0.5 * sum(information(",
        "return 1.0 * sum(information(",
        theory(EXPONENTIAL, "test_a_quadratic_potential_is_a_gaussian"),
        NOTEBOOK_02,
    ),
    Mutation(
        "gradient without covariance",
        ENTROPY,
        'np.einsum("ni,ij,nj->n", g, factor.covariance, g)',
        "np.square(g).sum(1)",
        theory(EXPONENTIAL, "test_rescaling_a_modality_with_its_noise_changes_nothing", "test_poincare"),
        NOTEBOOK_02,
    ),
    Mutation(
        "curvature multiplies",
        ENTROPY,
        ".sum(1) / rho for g in gradients",
        ".sum(1) * rho for g in gradients",
        theory("test_a_quadratic_potential_is_a_gaussian", "test_strongly_log_concave_densities"),
        NOTEBOOK_02,
    ),
    Mutation(
        "marginals for conditionals",
        ENTROPY,
        "held = np.moveaxis(values, i, -1)  # the others along the leading axes",
        "held = np.moveaxis(values, i, -1).mean(tuple(range(len(sizes) - 1)), keepdims=True)",
        theory(
            TENSORISATION,
            "test_tensorisation_of_a_coupling",
            "test_tensorisation_on_random_discrete_products",
        ),
        NOTEBOOK_01,
    ),
    Mutation(
        "conditionals for marginals",
        ENTROPY,
        "result[name] = float(own[i] @ kl_div(seen, mean))",
        "result[name] = conditional_entropies(f, measure, nodes)[name]",
        theory(TENSORISATION, "test_tensorisation_on_random_discrete_products"),
        NOTEBOOK_01,
    ),
    Mutation(
        "variance without the mean",
        ENTROPY,
        "float(weights @ (values - weights @ values) ** 2)",
        "float(weights @ values**2)",
        theory("test_poincare"),
        NOTEBOOK_02,
    ),
    Mutation(
        "plain estimate instead of the jackknife",
        ENTROPY,
        "value = mean * (count * whole - (count - 1) * centre)",
        "value = mean * whole",
        theory(
            "test_the_jackknife_removes_the_bias_of_the_plain_estimate",
            "test_the_jackknife_is_what_leaving_out_one_by_one_gives",
        ),
    ),
    Mutation(
        "error bars of half the width",
        ENTROPY,
        "error = mean * np.sqrt(",
        "error = 0.5 * mean * np.sqrt(",
        theory("test_error_bars_of_the_entropy_are_calibrated"),
        NOTEBOOK_01,
    ),
    Mutation(
        "zero log zero",
        ENTROPY,
        "term, rest = xlogy(share, share),",
        "term, rest = share * np.log(share),",
        theory("test_zero_times_log_zero_is_zero"),
    ),
    Mutation(
        "variance for standard deviation",
        GAUSSIAN,
        "np.diag(np.atleast_1d(sigma**2))",
        "np.diag(np.atleast_1d(sigma))",
        theory(EXPONENTIAL),
        NOTEBOOK_02,
    ),
    Mutation(
        "covariance transposed in sampling",
        GAUSSIAN,
        "np.linalg.cholesky(self.covariance).T)",
        "np.linalg.cholesky(self.covariance))",
        theory(
            "test_samples_have_the_covariance_that_was_asked_for",
            "test_exponential_with_a_covariance_and_a_mean",
        ),
    ),
    Mutation(
        "sign in a closed form",
        GAUSSIAN,
        "(-v / (2 * s) - np.log(v) / 2)",
        "(v / (2 * s) - np.log(v) / 2)",
        theory("test_bump"),
        NOTEBOOK_01,
    ),
    Mutation(
        "sign in a closed form of two",
        GAUSSIAN,
        "+ rest**-0.5 * np.log(rest) / 2",
        "- rest**-0.5 * np.log(rest) / 2",
        theory("test_tensorisation_of_a_coupling"),
        NOTEBOOK_01,
    ),
    Mutation(
        "standard deviation for variance in the network's information",
        INFORMATION,
        "energy = [sigma**2 * pixels *",
        "energy = [sigma * pixels *",
        information(LINEAR, "test_tiling_an_image_changes_nothing_and_units_cancel"),
        NOTEBOOK_03,
    ),
    Mutation(
        "information not divided by the loss",
        INFORMATION,
        "pixels > 0, energy if variance else energy / (f + EPS)",
        "pixels > 0, energy",
        information(LINEAR, "test_closed_forms_equal_autograd"),
    ),
    Mutation(
        "sign in the closed form of logits",
        INFORMATION,
        "- 2 * p_true + 1",
        "+ 2 * p_true + 1",
        information("test_closed_forms_equal_autograd", "test_logit_information_of_a_uniform_prediction"),
    ),
    Mutation(
        "cross-entropy for divergence",
        INFORMATION,
        'if reading == "ce" else (target * (log_mean - log_q)).sum(3)',
        'if reading == "ce" else -(target * log_q).sum(3)',
        information(
            "test_feature_information_equals_autograd[kl]",
            "test_where_features_agree_kl_tends_to_one_and_ce_to_zero",
        ),
    ),
    Mutation(
        "samples without labels taken for informative",
        INFORMATION,
        "where(pixels > 0, energy if",
        "where(pixels >= 0, energy if",
        information("test_bad_input_is_refused_or_marked"),
    ),
    Mutation(
        "information for the sum of its inverses",
        REGULARIZER,
        "return (1 / information).sum()",
        "return information.sum()",
        regularizer("test_forms", "test_every_form_pushes_the_weakest_modality_up_most[inverse]"),
        NOTEBOOK_03,
    ),
    Mutation(
        "sign of the balance",
        REGULARIZER,
        "return information.mean() * (1 / information).mean() - 1",
        "return 1 - information.mean() * (1 / information).mean()",
        regularizer(
            "test_forms",
            "test_every_form_pushes_the_weakest_modality_up_most[balance]",
            "test_three_lines_in_anybodys_loop",
        ),
    ),
    Mutation(
        "probes that are not amortised",
        REGULARIZER,
        "self.strength(progress) * config.probe_every",
        "self.strength(progress)",
        regularizer("test_the_probe_is_lazy_and_amortised"),
    ),
    Mutation(
        "a cap that stops the gradient",
        REGULARIZER,
        "value = value * (self.config.cap / value.detach().clamp_min(self.config.cap))",
        "value = value.clamp_max(self.config.cap)",
        regularizer("test_the_cap_is_counted_and_keeps_the_direction"),
    ),
]

UNTOUCHED = {  # a test file, and the notebooks that must pass beside it
    THEORY_TESTS: (NOTEBOOK_01, NOTEBOOK_02),
    INFORMATION_TESTS: (NOTEBOOK_03,),
    REGULARIZER_TESTS: (),
}

# Runs a notebook's code cells in one namespace, as a kernel would, and compares what they print and what
# their figures say with what is stored. Much cheaper than a kernel for each mutation; the notebooks
# themselves are compared by nbval.
RUN_NOTEBOOK = """
import contextlib, io, json, os, sys
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot as plt
import mmlib
from mmlib import figures
assert os.path.realpath(mmlib.__file__).startswith(os.path.realpath(sys.argv[2])), "the mutated copy must be the one that is run"
def show(fig, alt):
    plt.close(fig)
    print("Figure: " + " ".join(alt.split()))
figures.show = show
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
os.chdir(os.path.dirname(sys.argv[1]))
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] != "code":
        continue
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    kinds = [output for output in cell["outputs"] if output["output_type"] in ("stream", "display_data")]
    stored = "\\n".join("".join(o["text"] if "text" in o else o["data"]["text/plain"]).strip() for o in kinds)
    if printed.getvalue().strip() != stored.strip():
        sys.exit(f"cell {number} differs\\nstored:  {stored}\\nprinted: {printed.getvalue()}")
"""


def mutated_copy(folder: Path, mutation: Mutation | None = None) -> Path:
    """The library, the tests and the notebooks below ``folder``, with one line changed."""
    for name in ("mmlib", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    shutil.copytree(
        ROOT / "notebooks" / "course",
        folder / "notebooks" / "course",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (folder / "notebooks" / "results").symlink_to(ROOT / "notebooks" / "results", target_is_directory=True)
    if mutation is not None:
        path = folder / mutation.file
        path.write_text(
            path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8"
        )
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder), str(folder / "notebooks")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess:
    return run(
        folder,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:nbval",
        "--rootdir",
        str(folder),
        "--tb=no",
        "-rfE",
        *tests,
    )


def run_notebook(folder: Path, notebook: str) -> subprocess.CompletedProcess:
    return run(folder, "-W", "ignore", "-c", RUN_NOTEBOOK, str(folder / notebook), str(folder))


@pytest.mark.parametrize("tests", UNTOUCHED)
def test_the_untouched_copy_passes(tests, tmp_path):
    folder = mutated_copy(tmp_path)
    ids = sorted({name for mutation in MUTATIONS for name in mutation.tests if name.startswith(tests)})
    done = run_tests(folder, *ids)
    assert done.returncode == 0, done.stdout + done.stderr
    for notebook in UNTOUCHED[tests]:
        done = run_notebook(folder, notebook)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_is_noticed(mutation, tmp_path):
    count = (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.old)
    assert count == 1, (
        f"{mutation.old!r} stands {count} times in {mutation.file}; say there what is to be broken now"
    )
    assert mutation.old != mutation.new
    folder = mutated_copy(tmp_path, mutation)
    done = run_tests(folder, *mutation.tests)
    assert done.returncode == 1, f"pytest did not run the tests:\n{done.stdout}{done.stderr}"
    silent = [name for name in mutation.tests if f"FAILED {name}" not in done.stdout]
    assert not silent, f"these tests let {mutation.name!r} pass: {silent}\n{done.stdout}"
    if mutation.notebook:
        done = run_notebook(folder, mutation.notebook)
        assert done.returncode == 1, f"{mutation.notebook} does not notice {mutation.name!r}"
        assert "differs" in done.stderr or "Error" in done.stderr, done.stderr


def test_every_notebook_of_a_mutation_is_also_run_untouched():
    ran = {notebook for notebooks in UNTOUCHED.values() for notebook in notebooks}
    assert {m.notebook for m in MUTATIONS if m.notebook} <= ran
    assert {name.split("::")[0] for m in MUTATIONS for name in m.tests} <= set(UNTOUCHED)


def test_the_notebook_runner_sees_a_changed_output(tmp_path):
    folder = mutated_copy(tmp_path)
    notebook = json.loads((folder / NOTEBOOK_01).read_text(encoding="utf-8"))
    cell = next(c for c in notebook["cells"] if c["cell_type"] == "code" and c["outputs"])
    cell["outputs"][0]["text"] = ["by hand: 0.2617\n"]
    (folder / NOTEBOOK_01).write_text(json.dumps(notebook), encoding="utf-8")
    done = run_notebook(folder, NOTEBOOK_01)
    assert done.returncode == 1 and "differs" in done.stderr
