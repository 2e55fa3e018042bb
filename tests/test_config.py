"""Bounds beside settings: what is refused and under which name; the command line reads such types."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import tyro

from mmlib.config import Above, AtLeast, Between, check_settings, settings


@dataclass(frozen=True)
class Inner:
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Two weights by name."""
    warm_up: Annotated[float, Between(0, 1)] = 0.1
    """A share."""


@dataclass(frozen=True)
class Outer:
    out: str = "x"
    rate: Annotated[float, Above(0)] = 1e-3
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    powers: tuple[Annotated[float, AtLeast(1, why="a root would shrink it")], ...] = ()
    keep: Annotated[float, Between(0, 1, without=(1,))] = 0.0
    crops: Literal[1, 5] = 1
    names: tuple[str, ...] = ()
    cache: bool = False
    seed: int = 0
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("rate", 0, "--rate 0: expected above 0"),
        ("rate", -0.0, "--rate -0.0: expected above 0"),
        ("rate", float("nan"), "--rate nan: expected a finite number"),
        ("rate", 10**400, "expected a finite number"),
        ("rate", True, "--rate True: expected a number"),
        ("rate", "1", "--rate 1: expected a number"),
        ("size", (4, -1), "--size -1: expected 0 or more"),
        ("size", (4, 1.0), "--size 1.0: expected a whole number"),
        ("size", (4,), "--size 4: expected 2 values"),
        ("size", 4, "--size 4: expected a list of values"),
        ("inner", Inner({"rgb": (1.0, -float("inf"))}), "--weights rgb -inf: expected a finite number"),
        ("powers", (1, 2.5, 0.5), "--powers 0.5: expected 1 or more; a root would shrink it"),
        ("keep", 1, "--keep 1: expected 0 or more and below 1"),
        ("crops", 2, "--crops 2: expected one of 1, 5"),
        ("crops", True, "--crops True: expected one of 1, 5"),
        ("names", "rgb", "--names rgb: expected a list of values"),
        ("names", ("rgb", 2), "--names 2: expected text"),
        ("cache", 1, "--cache 1: expected true or false"),
        ("seed", float("inf"), "--seed inf: expected a whole number"),
        ("seed", 1.0, "--seed 1.0: expected a whole number"),
        ("out", None, "--out None: expected text"),
        ("out", "a\x1b[2J", "--out a [2J: expected text without control characters"),
        ("inner", None, "--inner None: expected a Inner"),
        ("inner", Inner(warm_up=1.5), "--warm-up 1.5: expected 0 or more, at most 1"),
        ("inner", Inner({"rgb": (1.0, float("inf"))}), "--weights rgb inf: expected a finite number"),
        ("inner", Inner({"rgb": (1.0,)}), "--weights rgb 1.0: expected 2 values"),
        ("inner", Inner([1]), "--weights 1: expected a value for each name"),
        ("size", (np.int64(4), 0), None),
        ("rate", np.float64(0.5), None),
        ("out", Path("x"), None),
        ("powers", [1, 2], None),
    ],
)
def test_a_value_is_checked_under_the_name_of_its_flag(name, value, message):
    config = replace(Outer(), **{name: value})
    if message is None:
        check_settings(config)
        return
    with pytest.raises(ValueError) as caught:
        check_settings(config)
    assert str(caught.value).endswith(message) and "\n" not in str(caught.value)


def test_settings_are_those_of_all_levels():
    assert [name for name, *_ in settings(Outer())][-2:] == ["weights", "warm_up"]
    assert dict((name, value) for name, _, value in settings(Outer(seed=3)))["seed"] == 3


def test_a_command_line_takes_bounded_types_without_noise(capsys):
    words = "--rate 2 --size 3 4 --powers 1 2 --weights rgb 1 2 --warm-up 0.5".split()
    config = tyro.cli(Outer, args=words, config=(tyro.conf.OmitArgPrefixes,))
    assert config == Outer(rate=2.0, size=(3, 4), powers=(1.0, 2.0), inner=Inner({"rgb": (1.0, 2.0)}, 0.5))
    with pytest.raises(SystemExit):
        tyro.cli(Outer, args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    assert "Between" not in capsys.readouterr().out
