"""Every numbered equation of the two papers is named in the source of the function that computes it."""

import importlib
import inspect
import re

import pytest

REGULARIZATION = {  # the paper on functional entropy
    1: ["theory.entropy:entropy", "theory.entropy:entropy_mc"],
    2: ["theory.entropy:log_sobolev_bound"],
    3: ["theory.entropy:conditional_entropies", "theory.entropy:marginal_entropies"],
    4: ["segmentation.information:input_information"],
    5: ["segmentation.network:Segmenter"],
    6: ["segmentation.information:input_information"],
    7: ["segmentation.information:feature_information", "segmentation.information:decoder_information"],
}
UNIM2 = {
    1: ["unsupervised.correspondence:cosine"],
    **{number: ["unsupervised.correspondence:_pair_loss"] for number in (2, 3, 4, 6, 8)},
    **{number: ["unsupervised.correspondence:cmcs_loss"] for number in (5, 9)},
    7: ["unsupervised.networks:ClusterNet"],
}


def numbers(source: str) -> set[int]:
    """Numbers of the equations that a source names: Eq. 4; Eq. 2 and 6; Eq. 1-3; Eq. 1 to 6, 8 and 9."""
    named = set()
    for text in re.findall(r"Eq\. (\d+(?:(?:, | and | to |-|–)\d+)*)", source):
        for first, last in re.findall(r"(\d+)(?:(?: to |-|–)(\d+))?", text):
            named |= set(range(int(first), int(last or first) + 1))
    return named


def test_numbers_are_read_from_text():
    assert numbers("R (Eq. 4), see Eq. 1-3 and Eq. 8, 9 and 11; Table 2") == {1, 2, 3, 4, 8, 9, 11}
    assert numbers("no equation") == set()


@pytest.mark.parametrize("equations", [REGULARIZATION, UNIM2], ids=["regularization", "unim2"])
def test_an_equation_stands_where_it_is_computed(equations):
    missing = []
    for number, functions in equations.items():
        for place in functions:
            module, name = place.split(":")
            computes = getattr(importlib.import_module(f"mmlib.{module}"), name)
            if number not in numbers(inspect.getsource(computes)):
                missing.append(f"Eq. {number} is not named in mmlib.{module}.{name}")
    assert not missing, "\n".join(missing)
