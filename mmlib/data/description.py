"""The description of a prepared data set: name, classes, palette, modalities, source and licence.

``prepared`` writes and reads it; figures, runs and reports take names and colours from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..config import Between, check_value
from ..modalities import IGNORE_INDEX, Modality
from ..runtime import reading
from .images import DataError

FORMAT = 1


@dataclass
class Description:
    """What a data set is: its name, its K class names with their colours, its modalities by name, where it
    comes from.
    """

    name: str
    classes: list[str]
    palette: list[tuple[int, int, int]]
    modalities: dict[str, Modality]
    source: str = ""
    licence: str = ""
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        where = f"data set {self.name!r}"
        check_value(f"{where}: classes", self.classes, tuple[str, ...])
        check_value(
            f"{where}: palette", self.palette, tuple[Annotated[tuple[int, int, int], Between(0, 255)], ...]
        )
        if not self.modalities:
            raise ValueError(f"{where} has no modality")
        if "label" in self.modalities:
            raise ValueError(
                f"{where}: the folder label/ holds the labels; choose another name for the modality"
            )
        if len(self.classes) != len(self.palette):
            raise ValueError(f"{where}: {len(self.classes)} classes but {len(self.palette)} colours")
        if not all(self.classes) or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"{where}: classes {self.classes}; expected a list of names, each once")
        if len(self.classes) > IGNORE_INDEX:
            raise ValueError(
                f"{where}: {len(self.classes)} classes; ids are uint8 and {IGNORE_INDEX} means ignore"
            )
        symbols = [m.symbol for m in self.modalities.values()]
        if len(set(symbols)) != len(symbols):
            raise ValueError(f"{where}: two modalities share a symbol ({' '.join(symbols)})")

    def to_dict(self) -> dict:
        return {
            "format": FORMAT,
            "name": self.name,
            "classes": list(self.classes),
            "palette": [list(map(int, c)) for c in self.palette],
            "modalities": [m.to_dict() for m in self.modalities.values()],
            "source": self.source,
            "licence": self.licence,
            "extra": self.extra,
        }

    @classmethod
    def from_dict(cls, values: dict) -> Description:
        values = dict(values)
        values.pop("format")
        names = [modality["name"] for modality in values["modalities"]]
        if len(set(names)) != len(names):
            raise ValueError(f"modalities {', '.join(names)}: one is there twice")
        values["modalities"] = {modality["name"]: Modality(**modality) for modality in values["modalities"]}
        values["palette"] = [tuple(colour) for colour in values["palette"]]
        return cls(**values)


def read_description(root: str | Path) -> Description:
    """Read ``root/dataset.json``.

    Raises:
        DataError: the folder or the file is missing, unreadable, or of another format version.
    """
    path = Path(root) / "dataset.json"
    if (Path(root) / ".journal.jsonl").exists():
        raise DataError(
            f"{root}: an unfinished data set; run the command that prepares it again, it goes on where it "
            "stopped"
        )
    if not path.exists():
        hint = "run 'python -m mmlib render' for the sensor world, a script of data_scripts/ for other data"
        raise DataError(f"{path}: not found, so {str(root)!r} is not a prepared data set; {hint}")
    with reading(path, "a valid description of a prepared data set", DataError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise DataError(
                f"{path}: format {values.get('format')!r}; this version reads format {FORMAT}; prepare the "
                "data set again"
            )
        return Description.from_dict(values)
