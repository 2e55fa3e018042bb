"""Recipes: settings of a published or tried training as a small JSON file, each value with its source.

::

    {"about": "…", "train": {"lr": {"value": 6e-5, "source": "paper, section 5"}, …}, "cluster": {…}}

A key is a flag's name with underscores. A source begins with "paper" (the paper whose method it is),
"released code" (the paper's own or a relative's, named) or "ours". The command line puts a recipe's words
before the user's own, which therefore win.
"""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from .config import check_value, flag, settings, spelled
from .runtime import reading

SOURCES = ("paper", "released code", "ours")


@dataclass(frozen=True)
class Recipe:
    """One section of a file: the entry of each setting has its "value", as JSON has it, and its "source"."""

    path: str
    section: str
    entries: dict[str, dict]

    @property
    def words(self) -> list[str]:
        """The values as words of the command line."""
        words = []
        for name, entry in self.entries.items():
            value = entry["value"]
            if isinstance(value, bool):
                words.append(flag(name if value else f"no-{name}"))
            elif isinstance(value, list | dict):
                words += [flag(name), *spelled(value)]
            else:
                words.append(f"{flag(name)}={value}")
        return words

    def described(self, config=None) -> str:
        """Each value and its source, and which of them ``config`` has overridden."""
        final = {name: value for name, _, value in settings(config)} if config else {}
        lines = [f"recipe {self.path}, {self.section}:"]
        for name, entry in self.entries.items():
            line = f"{' '.join(spelled(entry['value']))}   ({entry['source']})"
            if name in final and json.loads(json.dumps(final[name])) != entry["value"]:  # lists for tuples
                line = f"{' '.join(spelled(final[name]))}, on the command line, not {line}"
            lines.append(f"  {name} {line}")
        return "\n".join(lines)


def read_recipe(path: str | Path, section: str, kind: type) -> Recipe:
    """Section ``section`` of the file, checked against the settings of the dataclass ``kind``; its folders
    ``data`` and ``out`` are none.

    Raises:
        ValueError: no such file or section, no JSON, an unknown or repeated key, a value of another type or
            out of bounds, a value without a source; names the file and the key.
    """
    with reading(path, "a recipe, such as those of public data sets in data_scripts/recipes/"):
        text = Path(path).read_text(encoding="utf-8")
        content = {**json.loads(text, object_pairs_hook=_unique)}  # a list, or a number, raises here
    entries = content.get(section)
    if not isinstance(entries, dict):
        sections = ", ".join(sorted(set(content) - {"about"}))
        raise ValueError(f"{path}: no section {section!r}; it has {sections or 'none'}")
    kinds = {name: kind for name, kind, _ in settings(kind("", "")) if name not in ("data", "out")}
    for name, entry in entries.items():
        where = f"{path}: {section}.{name}"
        if name not in kinds:
            close = difflib.get_close_matches(name, kinds, 1, cutoff=0)[0]
            raise ValueError(f"{path}: unknown key {name!r} in {section!r}; do you mean {close!r}?")
        if not isinstance(entry, dict) or set(entry) != {"value", "source"}:
            raise ValueError(f'{where}: expected {{"value": …, "source": …}}, found {json.dumps(entry)}')
        check_value(f"{where}: source", entry["source"], str)
        if not entry["source"].startswith(SOURCES):
            beginnings = ", ".join(map(repr, SOURCES))
            raise ValueError(f"{where}: source {entry['source']!r} must begin with one of {beginnings}")
        check_value(where, entry["value"], kinds[name])
    return Recipe(str(path), section, entries)


def _unique(pairs: list[tuple]) -> dict:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the key {twice[0]!r} stands twice")
    return dict(pairs)
