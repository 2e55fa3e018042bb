"""Bounds of settings, written beside them, and the one check of a configuration.

A setting declares its bound in its type: ``lr: Annotated[float, Above(0)] = 1e-3``. Every command
(``outputs.claims``) calls ``check_settings`` first, so that the command line, a recipe and a caller in
Python get the same message.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from math import inf
from numbers import Integral, Real
from os import PathLike
from types import UnionType
from typing import Annotated, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``, both included, except those in ``without``. On a tuple or a
    dictionary it holds for every number inside.
    """

    low: float = -inf
    high: float = inf
    without: tuple[float, ...] = ()
    why: str = ""
    """Reason for the bound, where it is not plain; it ends the message."""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and number not in self.without

    def __str__(self) -> str:
        text = "a finite number" if self.low == -inf else f"{self.low:g} or more"
        if self.low in self.without:
            text = f"above {self.low:g}"
        if self.high < inf:
            text += f" and below {self.high:g}" if self.high in self.without else f", at most {self.high:g}"
        return text + f"; {self.why}" * bool(self.why)


AtLeast = Between  # with one bound alone, the lower one


def Above(low: float, why: str = "") -> Between:
    return Between(low, without=(low,), why=why)


def flag(name: str) -> str:
    """A setting's name as the command line spells it."""
    return "--" + name.replace("_", "-")


def spelled(value) -> list[str]:
    """A value as the command line has it after its flag."""
    if isinstance(value, dict):
        value = [word for pair in value.items() for word in pair]
    if isinstance(value, list | tuple):
        return [word for inside in value for word in spelled(inside)]
    return [str(value)]


def settings(config) -> Iterator[tuple[str, object, object]]:
    """(name, type, value) of every setting of a dataclass and of the dataclasses inside it."""
    kinds = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from settings(value)
        else:
            yield field.name, kinds[field.name], value


def check_settings(config, where: str = "") -> None:
    """Check type and bound of every setting of a dataclass; numbers without a bound must be finite.

    Raises:
        ValueError: names the flag, as the command line spells it, its value, and what was expected. With
            ``where``, for what is no command's, that and the field's name stand in place of the flag.
    """
    for name, kind, value in settings(config):
        check_value(where + name if where else flag(name), value, kind)


def printable(text) -> str:
    """Text without control characters, with which a file could write over what a terminal shows, and without
    bytes of names that are no UTF-8, which no terminal and no record can show.
    """
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", str(text))


SCALARS = {
    bool: (bool, "true or false"),
    str: (str | PathLike, "text"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
}


def check_value(name: str, value, kind, bound: Between = Between()) -> None:
    """Check one value against a type as configurations have them: numbers, text, booleans, choices, tuples
    and dictionaries, and ``X | None``. Where a float is expected a whole number will do; a boolean is no
    number.

    Raises:
        ValueError: begins with ``name``.
    """

    def require(condition: bool, expected) -> None:
        if not condition:
            shown = printable(" ".join(spelled(value)))[:200]
            raise ValueError(f"{name} {shown}: expected {expected}")

    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bound = next((extra for extra in inside[1:] if isinstance(extra, Between)), bound)
        check_value(name, value, inside[0], bound)
    elif origin is Literal:
        same = any(choice == value and type(choice) is type(value) for choice in inside)
        require(same, "one of " + ", ".join(map(str, inside)))
    elif origin is UnionType:
        if value is not None:  # X | None, or one value for all | a value for each name
            check_value(name, value, inside[isinstance(value, dict)], bound)
    elif origin is tuple:
        require(isinstance(value, tuple | list), "a list of values")
        kinds = inside[:1] * len(value) if inside[-1] is ... else inside
        require(len(value) == len(kinds), f"{len(kinds)} values")
        for element, its_kind in zip(value, kinds):
            check_value(name, element, its_kind, bound)
    elif origin is dict:
        require(isinstance(value, dict), "a value for each name")
        for key, element in value.items():
            check_value(f"{name} {key}", element, inside[1], bound)
    else:
        accepted, expected = SCALARS.get(kind, (kind, f"a {kind.__name__}"))
        number = kind in (int, float)
        require(isinstance(value, accepted) and not (number and isinstance(value, bool)), expected)
        if kind is str:
            require(printable(value) == str(value), "text without control characters")
        if number:
            require(abs(value) <= sys.float_info.max, "a finite number")
            require(value in bound, bound)
