"""Recipes: settings of a published or tried training as a small JSON file, each value with its source.

::

    {"about": "…", "train": {"lr": {"value": 6e-5, "source": "paper, section 5"}, …}, "cluster": {…}}

A key is a flag's name with underscores. A source begins with "paper" (the paper whose method it is),
"released code" (the paper's own or a relative's, named) or "ours".
"""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

SOURCES = ("paper", "released code", "ours")


@dataclass(frozen=True)
class Recipe:
    """One section of a file: value and source of each setting, by the name of its flag."""

    path: str
    section: str
    values: dict[str, object]
    sources: dict[str, str]

    def applied(self, config, tables: bool = False):
        """``config`` with these values, wherever in it they stand; with ``tables`` instead those that are
        dictionaries, where ``config`` has an empty one: a parser that knew them beforehand would turn every
        entry into a flag.
        """
        return _applied(
            config, {name: value for name, value in self.values.items() if isinstance(value, dict) == tables}
        )

    def described(self, config) -> str:
        """Each value and its source, and which of them ``config`` has overridden."""
        lines = [f"recipe {self.path}, {self.section}:"]
        for name, where in settings(type(config)).items():
            if name in self.values:
                value = config
                for step in (*where[0], name):
                    value = getattr(value, step)
                given = f"{shown(self.values[name])}   ({self.sources[name]})"
                lines.append(
                    f"  {name} "
                    + (
                        given
                        if value == self.values[name]
                        else f"{shown(value)}, on the command line, not {given}"
                    )
                )
        return "\n".join(lines)


def shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings(kind: type, where: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], type]]:
    """Settings of a configuration and of those inside it that have a default: name -> (fields on the way to
    it, its type).
    """
    found, types = {}, get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(types[field.name]):
            found |= settings(types[field.name], (*where, field.name))
        elif field.default is not MISSING or field.default_factory is not MISSING:
            found[field.name] = where, types[field.name]
    return found


def _applied(config, values: dict[str, object]):
    changed = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changed[field.name] = _applied(value, values)
        elif field.name in values and not (isinstance(value, dict) and value):
            changed[field.name] = values[field.name]
    return replace(config, **changed)


def read_recipe(path: str | Path, section: str, kind: type) -> Recipe:
    """Section ``section`` of the file, checked against the settings of the dataclass ``kind``.

    Raises:
        ValueError: no such file or section, no JSON, an unknown or repeated key, a value of another type, a
            value without a source; names the file and the key.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such recipe; those of public data sets lie in data_scripts/recipes/"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a recipe ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get(section), dict):
        sections = [key for key in found if key != "about"] if isinstance(found, dict) else []
        raise ValueError(f"{path}: no section {section!r}; it has {', '.join(sections) or 'none'}")
    known, values, sources = settings(kind), {}, {}
    for name, entry in found[section].items():
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise ValueError(
                f"{path}: unknown key {name!r} in {section!r}"
                + (f"; do you mean {close[0]!r}?" if close else "")
            )
        if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
            raise ValueError(
                f'{path}: {section}.{name}: expected {{"value": …, "source": …}}, found {json.dumps(entry)}'
            )
        if not isinstance(entry["source"], str) or not entry["source"].startswith(SOURCES):
            raise ValueError(
                f"{path}: {section}.{name}: source {entry['source']!r} must begin with one of {', '.join(map(repr, SOURCES))}"
            )
        try:
            values[name] = fitted(entry["value"], known[name][1])
        except TypeError as error:
            raise ValueError(
                f"{path}: {section}.{name}: {json.dumps(entry['value'])} is not {error}"
            ) from error
        sources[name] = entry["source"]
    return Recipe(str(path), section, values, sources)


def _unique(pairs: list[tuple]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return dict(pairs)


def fitted(value, kind):
    """A value of JSON as the type ``kind``: numbers, strings, booleans, choices, tuples and dictionaries of
    them.

    Raises:
        TypeError: it is something else; the message is what was expected.
    """
    inside = get_args(kind)
    if get_origin(kind) is Literal:
        if any(value == choice and type(value) is type(choice) for choice in inside):
            return value
        raise TypeError(f"one of {', '.join(map(json.dumps, inside))}")
    if get_origin(kind) is tuple:
        if inside[-1] is ...:
            inside = inside[:1] * (len(value) if isinstance(value, list) else 0)
        if not isinstance(value, list) or len(value) != len(inside):
            raise TypeError(f"a list of {len(inside) or ''} values".replace("  ", " "))
        return tuple(fitted(v, k) for v, k in zip(value, inside))
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise TypeError("an object with a value for each name")
        return {key: fitted(v, inside[1]) for key, v in value.items()}
    if kind is float and type(value) in (int, float) and isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise TypeError({float: "a number", int: "a whole number", bool: "true or false", str: "a string"}[kind])
