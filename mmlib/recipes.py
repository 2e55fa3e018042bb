"""Recipes: settings of a published or tried training as a small JSON file, each value with its source.

::

    {"about": "…", "train": {"lr": {"value": 6e-5, "source": "paper, section 5"}, …}, "cluster": {…}}

A key is a flag's name with underscores. A source begins with "paper" (the paper whose method it is),
"released code" (the paper's own or a relative's, named) or "ours". The command line puts a recipe's words
before the user's own, which therefore win.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from .config import check_value, flag, settings

SOURCES = ("paper", "released code", "ours")


@dataclass(frozen=True)
class Recipe:
    """One section of a file: value, as JSON has it, and source of each setting."""

    path: str
    section: str
    values: dict[str, object]
    sources: dict[str, str]

    @property
    def words(self) -> list[str]:
        """The values as words of the command line."""
        words = []
        for name, value in self.values.items():
            if isinstance(value, bool):
                words.append(flag(name) if value else flag(f"no-{name}"))
            elif isinstance(value, list | dict):
                words += [flag(name), *spelled(value)]
            else:
                words.append(f"{flag(name)}={value}")
        return words

    def described(self, config=None) -> str:
        """Each value and its source, and which of them ``config`` has overridden."""
        final = {name: value for name, _, value in settings(config)} if config else {}
        lines = [f"recipe {self.path}, {self.section}:"]
        for name, value in self.values.items():
            words = " ".join(spelled(value))
            line = f"{words}   ({self.sources[name]})"
            if name in final and json.loads(json.dumps(final[name])) != value:  # lists for tuples
                line = f"{' '.join(spelled(final[name]))}, on the command line, not {line}"
            lines.append(f"  {name} {line}")
        return "\n".join(lines)


def spelled(value) -> list[str]:
    """A value as the command line has it after its flag."""
    if isinstance(value, dict):
        return [word for key, inside in value.items() for word in (key, *spelled(inside))]
    return (
        [word for inside in value for word in spelled(inside)]
        if isinstance(value, list | tuple)
        else [str(value)]
    )


def read_recipe(path: str | Path, section: str, kind: type) -> Recipe:
    """Section ``section`` of the file, checked against the settings of the dataclass ``kind``; its folders
    ``data`` and ``out`` are none.

    Raises:
        ValueError: no such file or section, no JSON, an unknown or repeated key, a value of another type or
            out of bounds, a value without a source; names the file and the key.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such recipe; those of public data sets lie in data_scripts/recipes/"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a recipe ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(section), dict):
        sections = [key for key in content if key != "about"] if isinstance(content, dict) else []
        raise ValueError(f"{path}: no section {section!r}; it has {', '.join(sections) or 'none'}")
    kinds = {name: kind for name, kind, _ in settings(kind("", "")) if name not in ("data", "out")}
    for name, entry in content[section].items():
        where = f"{path}: {section}.{name}"
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, 1)
            hint = f"; do you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{path}: unknown key {name!r} in {section!r}{hint}")
        if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
            raise ValueError(f'{where}: expected {{"value": …, "source": …}}, found {json.dumps(entry)}')
        if not isinstance(entry["source"], str) or not entry["source"].startswith(SOURCES):
            beginnings = ", ".join(map(repr, SOURCES))
            raise ValueError(f"{where}: source {entry['source']!r} must begin with one of {beginnings}")
        check_value(where, entry["value"], kinds[name])
    values, sources = (
        {name: entry[part] for name, entry in content[section].items()} for part in ("value", "source")
    )
    return Recipe(str(path), section, values, sources)


def _unique(pairs: list[tuple]) -> dict:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return dict(pairs)
