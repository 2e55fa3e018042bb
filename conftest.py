"""How all tests and notebooks are run: one thread, the embedded data rendered first, long files before short
ones.
"""

import contextlib
import gc
import os
import random
import sys

import pytest

# One thread, here and in the notebooks' kernels, which inherit the environment: more threads make small
# networks slower and change the order of additions. Set before anything imports torch.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# On the CPU, also where there is a GPU: many tests ask for the same bits twice, which GPUs do not promise.
# ``make test-gpu`` runs the tests that are about a GPU.
if "MMLIB_TEST_GPU" not in os.environ:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}

# Notebooks import mmlib, and the course's own package from their folder. Tests and the processes that they
# start do so, too, also in a clone that was never installed.
_root = os.path.dirname(os.path.abspath(__file__))
_paths = [_root, os.path.join(_root, "notebooks")]
sys.path[:0] = [path for path in _paths if path not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*_paths, os.environ.get("PYTHONPATH")]))
# ipykernel warns on stderr, hence in a cell's output, when a debugger finds frozen modules.
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

# No example fails for being slow, on a busy machine; nbval alone runs without Hypothesis.
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("mmlib", deadline=None)
    settings.load_profile("mmlib")

# Seconds that the longest files take, roughly. A worker of pytest-xdist takes one file at a time, so the long
# ones start first, and all workers end together.
SECONDS = {
    "notebooks": 10,  # every notebook that is not listed
    "notebooks/03_from_bound_to_loss.ipynb": 17,
    "notebooks/04_segmenter_and_subsets.ipynb": 12,
    "notebooks/05_the_regularizer.ipynb": 12,
    "notebooks/06_fisher_gap.ipynb": 17,
    "notebooks/07_modality_switchboard.ipynb": 12,
    "notebooks/08_correspondences.ipynb": 26,
    "notebooks/09_unim2_clustering.ipynb": 35,
    "notebooks/10_choosing_without_labels.ipynb": 20,
    "notebooks/11_real_data_and_scale.ipynb": 40,
    "tests/browser/test_widgets.py": 90,
    "tests/test_book.py": 65,
    "tests/test_encoder.py": 31,
    "tests/test_missing_sensors.py": 20,
    "tests/test_prepare_nyu.py": 19,
    "tests/test_real_frames.py": 14,
    "tests/test_segmentation.py": 12,
    "tests/test_cluster_evaluation.py": 11,
    "tests/test_lesson_03.py": 12,
    "tests/test_mutations.py": 30,
    "tests/test_regularizer.py": 35,
    "tests/test_scale.py": 40,
    "tests/test_training.py": 25,
    "tests/test_killed.py": 30,
    "tests/test_export.py": 20,
    "tests/test_search.py": 20,
    "tests/test_cli.py": 15,
    "tests/test_cluster_cli.py": 15,
    "tests/test_cluster_training.py": 13,
}
SECONDS_PER_TEST = 0.1  # of a file that is not listed


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Order the files, longest first; with MMLIB_TEST_ORDER=<seed> at random: none may need another."""
    files = {}
    for item in items:
        files.setdefault(item.nodeid.split("::")[0], []).append(item)

    def weight(file: str) -> float:
        default = SECONDS["notebooks"] if file.endswith(".ipynb") else SECONDS_PER_TEST * len(files[file])
        return SECONDS.get(file, default)

    names = sorted(files, key=weight, reverse=True)
    if seed := os.environ.get("MMLIB_TEST_ORDER"):
        random.Random(int(seed)).shuffle(names)
    items[:] = [item for name in names for item in files[name]]


def pytest_collection_finish():
    """All modules are loaded now, and stay. Python need not search them for rubbish again after each
    training, which took a sixth of the time of tests that train.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    """The embedded data set is rendered before the first notebook, so that no progress bar lands in a cell.

    Parallel workers come here at once: one renders, the others wait for its lock.
    """
    if item.path.suffix == ".ipynb" or item.get_closest_marker("browser"):
        _render_embedded_data(item.session)


def _render_embedded_data(session):
    if hasattr(session, "embedded_data"):
        return
    from mmlib import world

    try:
        # Rooms are rendered frame by frame where a notebook looks at them.
        session.embedded_data = world.ensure("street", progress=False)
    except OSError as error:
        session.shouldstop = f"the embedded data set could not be rendered: {error}"
        pytest.fail(session.shouldstop, pytrace=False)
