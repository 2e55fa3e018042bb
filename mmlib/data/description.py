"""The description of a prepared data set: name, classes, palette, modalities, source and licence.

``prepared`` writes and reads it; figures, runs and reports take names and colours from it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import torch

from ..config import Between, check_settings
from ..modalities import IGNORE_INDEX, Modality
from ..runtime import reading
from .images import DataError

FORMAT = 1
Palette = tuple[Annotated[tuple[int, int, int], Between(0, 255)], ...]
JOURNAL = ".journal.jsonl"  # of the writer of a data set; gone when the data set is finished


@dataclass
class Description:
    """What a data set is: its name, its K class names with their colours (red, green, blue), its modalities
    by name, where it comes from. Lists will do for tuples.
    """

    name: str
    classes: tuple[str, ...]
    palette: Palette
    modalities: dict[str, Modality]
    source: str = ""
    licence: str = ""
    extra: dict = field(default_factory=dict)

    def __post_init__(self):
        where = f"data set {self.name!r}: "
        check_settings(self, where)
        self.palette = [tuple(map(int, colour)) for colour in self.palette]
        taken = ["label", *dir(torch.nn.ModuleDict())]
        reserved = ", ".join(name for name in self.modalities if name in taken)
        symbols = [modality.symbol for modality in self.modalities.values()]
        for unusable, problem in (
            (not self.modalities, "no modality"),
            (
                reserved,
                f"a modality cannot be called {reserved}: label/ holds the labels, and networks have "
                "attributes of the other names",
            ),
            (len(set(symbols)) < len(symbols), f"two modalities share a symbol ({' '.join(symbols)})"),
            (
                len(self.classes) != len(self.palette),
                f"{len(self.classes)} classes but {len(self.palette)} colours",
            ),
            (
                not all(self.classes) or len(set(self.classes)) < len(self.classes),
                f"classes {self.classes}; expected a list of names, each once",
            ),
            (
                len(self.classes) > IGNORE_INDEX,
                f"{len(self.classes)} classes; ids are uint8 and {IGNORE_INDEX} means ignore",
            ),
        ):
            if unusable:
                raise ValueError(where + problem)

    def to_dict(self) -> dict:
        """As ``dataset.json`` has it."""
        values = asdict(self)
        return {"format": FORMAT} | values | {"modalities": list(values["modalities"].values())}


def differences(before: dict, now: dict) -> str:
    """Which values of two descriptions differ, in words."""
    parts = []
    for name in before | now:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts.append(differences(old, new))
        elif old != new:
            parts.append(f"{name} {str(old)[:200]}, not {str(new)[:200]}")
    return "; ".join(filter(None, parts))


def is_finished(root: str | Path) -> bool:
    """Whether ``root`` holds a whole data set: a description, and no journal of a writer at work."""
    return (Path(root) / "dataset.json").exists() and not (Path(root) / JOURNAL).exists()


def read_description(root: str | Path) -> Description:
    """Read ``root/dataset.json``.

    Raises:
        DataError: the folder or the file is missing, unreadable, or of another format version.
    """
    path = Path(root) / "dataset.json"
    if not is_finished(root):
        raise DataError(
            f"{path}: {str(root)!r} is not a prepared data set, or an unfinished one, and the command that "
            "prepares it goes on where it stopped: 'python -m mmlib render' for the sensor world, a script "
            "of data_scripts/ for other data"
        )
    with reading(path, "a valid description of a prepared data set", DataError):
        values = json.loads(path.read_text(encoding="utf-8"))
        stored_format = values.pop("format", None)
        if stored_format != FORMAT:
            raise DataError(
                f"{path}: format {stored_format!r}; this version reads format {FORMAT}; prepare the data set "
                "again"
            )
        modalities = [Modality(**modality) for modality in values["modalities"]]
        values["modalities"] = {modality.name: modality for modality in modalities}
        if len(values["modalities"]) < len(modalities):
            names = ", ".join(modality.name for modality in modalities)
            raise ValueError(f"modalities {names}: one is there twice")
        return Description(**values)
