"""One table for every score: plain text for the terminal, Markdown and CSV in the layout of printed tables.

Its caption names what the numbers depend on: split, protocol, fusion, windows. The scores of ``subsets``,
``failures`` and ``counts`` and the commands that score print themselves through ``Sheet``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime import atomic_path


@dataclass(frozen=True)
class Sheet:
    """A table: row name -> one number a column (NaN prints as a dash). ``corner`` heads the row names."""

    caption: str
    columns: list[str]
    rows: dict[str, Sequence[float]]
    corner: str = ""

    def _lines(self, places: int) -> list[list[str]]:
        """The header and the rows as text, numbers with so many decimals."""
        numbers = {
            name: ["–" if math.isnan(v) else f"{v:.{places}f}" for v in values]
            for name, values in self.rows.items()
        }
        return [[self.corner, *self.columns], *([name, *values] for name, values in numbers.items())]

    def text(self) -> str:
        """Columns of equal width with one decimal."""
        lines = self._lines(1)
        widths = [max(8, 2 + max(map(len, column))) for column in zip(*lines)]
        table = [line[0].ljust(widths[0]) + "".join(map(str.rjust, line[1:], widths[1:])) for line in lines]
        return "\n".join([self.caption, *table])

    def markdown(self) -> str:
        """A Markdown table with two decimals."""
        head, *lines = self._lines(2)
        lines = [head, ["---"] + ["---:"] * len(self.columns), *lines]
        return f"{self.caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def group_heads(groups: Iterable[str]) -> list[str]:
    """Column heads of groups of images: "condition=night" -> "night"."""
    return [group.split("=")[-1] for group in groups]


def subset_sheet(rows: Mapping[str, Mapping[str, float]], caption: str) -> Sheet:
    """Row name -> subset -> per cent, with the mean and the population standard deviation over the subsets."""
    values = {name: list(row.values()) for name, row in rows.items()}
    full = {name: [*row, np.mean(row), np.std(row)] for name, row in values.items()}
    return Sheet(caption, [*next(iter(rows.values())), "Mean", "Std"], full)


def cluster_sheets(reports: Mapping[str, Mapping]) -> list[Sheet]:
    """Row name -> report of 'cluster': a table of mIoU and accuracy, and one of the IoU of each class.

    Raises:
        ValueError: a report without scores, or reports of different splits or classes.
    """
    for name, report in reports.items():
        if not report["scores"]:
            raise ValueError(f"{name}: clustered data without labels, so there is no score to print")
    kinds = {(report["split"], *report["scores"]["iou"]["all"]) for report in reports.values()}
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(reports)}: scored on different splits or classes; print them apart")
    split, *classes = next(iter(kinds))

    scores = {name: report["scores"] for name, report in reports.items()}
    rules = ", ".join(sorted({part["rule"] for part in scores.values()}))
    choices = ", ".join(sorted({report["chosen by"] for report in reports.values()}))
    how = f"on {split}; clusters named by: {rules}; state chosen by {choices}"
    both, by_class = {}, {}
    for name, part in scores.items():
        miou = part["miou"]["all"]
        both[name] = [miou, part["accuracy"]["all"]]
        by_class[name] = [*(math.nan if v is None else v for v in part["iou"]["all"].values()), miou]
    return [
        Sheet(f"In % {how}", ["mIoU", "Acc"], both),
        Sheet(f"IoU in % {how}", [*classes, "mIoU"], by_class),
    ]


def write_sheets(stem: str | Path, sheets: Sequence[Sheet]) -> list[Path]:
    """``stem``.md with all tables, ``stem``.csv with one line a number: table, row, column, value."""
    paths = [Path(f"{stem}.md"), Path(f"{stem}.csv")]
    with atomic_path(paths[0]) as temporary:
        temporary.write_text("\n\n".join(sheet.markdown() for sheet in sheets) + "\n", encoding="utf-8")
    with atomic_path(paths[1]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "row", "column", "value"])
        for sheet in sheets:
            for name, values in sheet.rows.items():
                for head, value in zip(sheet.columns, values):
                    text = "" if math.isnan(value) else f"{value:.4f}"
                    writer.writerow([sheet.caption, name, head, text])
    return paths
