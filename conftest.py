"""Before notebooks are run, the embedded data set is rendered: quietly here, so that no progress bar lands in
a cell.
"""

import os

import pytest

# One thread, here and in the notebooks' kernels, which inherit the environment: more threads make small
# networks slower and change the order of additions. Set before anything imports torch.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Notebooks import mmlib from their own folder; this makes that work from a clone that was never installed,
# too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [os.path.dirname(os.path.abspath(__file__)), os.environ.get("PYTHONPATH")])
)
# ipykernel warns on stderr, hence in a cell's output, when a debugger finds frozen modules.
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")


def pytest_collection_finish(session):
    if session.config.option.collectonly or not any(
        item.path.suffix == ".ipynb" or item.get_closest_marker("browser") for item in session.items
    ):
        return
    from mmlib import world

    try:
        world.ensure(
            "street", progress=False
        )  # rooms are rendered frame by frame where a notebook looks at them
    except OSError as error:
        raise pytest.UsageError(f"the embedded data set could not be rendered: {error}") from error
