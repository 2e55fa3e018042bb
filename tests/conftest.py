"""What several test files set up in the same way; one that needs it otherwise has its own of that name."""

import sys

import pytest


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A prepared data set of small pictures (toy.py)."""
    import toy

    return str(toy.make(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """Tokens and rendered scenes of this file's tests go to a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMLIB_DATA", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def shared(data):
    """(method, changes of the configuration) -> (plan, prepared), measured once."""
    from small_runs import configured

    from mmlib.unsupervised.methods import prepare

    kept = {}

    def get(method="unim2", **changes):
        key = (method, str(changes))
        if key not in kept:
            kept[key] = prepare(configured(data, method=method, **changes))
        return kept[key]

    return get


@pytest.fixture
def no_figure_stays_open():
    import matplotlib.pyplot as plt

    plt.close("all")
    yield
    plt.close("all")


@pytest.fixture
def displayed(monkeypatch, no_figure_stays_open):
    """Figures that functions of the lessons would display, in order; of one to turn, it and its picture."""
    figures = []
    for name, module in list(sys.modules.items()):
        if name.startswith("course.") and hasattr(module, "show"):
            monkeypatch.setattr(module, "show", lambda fig, alt: figures.append(fig))
        if name.startswith("course.") and hasattr(module, "show_interactive"):
            monkeypatch.setattr(
                module, "show_interactive", lambda figure, fig, alt: figures.extend((figure, fig))
            )
    return figures
