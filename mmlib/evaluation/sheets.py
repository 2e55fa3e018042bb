"""One table for every score: plain text for the terminal, Markdown and CSV in the layout of printed tables.

Its caption names what the numbers depend on: split, protocol, fusion, windows. The scores of ``subsets``,
``failures`` and ``counts`` and the commands that score print themselves through ``Sheet``.
"""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime import atomic_path, provenance
from .statistics import numbers


@dataclass(frozen=True)
class Sheet:
    """A table: row name -> column name -> number; NaN or None prints as a dash. All rows have the same
    columns. ``corner`` heads the row names.
    """

    caption: str
    rows: Mapping[str, Mapping[str, float | None]]
    corner: str = ""

    @property
    def columns(self) -> list[str]:
        """Column heads; those of groups of images are shortened: "condition=night" -> "night"."""
        return [re.sub("^(condition|case)=", "", column) for column in next(iter(self.rows.values()))]

    def lines(self, places: int, missing: str = "–") -> list[list[str]]:
        """The header and the rows as text, numbers with so many decimals."""
        lines = [[self.corner, *self.columns]]
        for name, row in self.rows.items():
            values = np.array([*row.values()], float)  # None becomes NaN
            lines.append([name, *(missing if math.isnan(v) else f"{v:.{places}f}" for v in values)])
        return lines

    def text(self) -> str:
        """Aligned columns with one decimal, for the terminal."""
        lines = self.lines(1)
        widths = [max(8, 2 + max(map(len, column))) for column in zip(*lines)]
        table = [line[0].ljust(widths[0]) + "".join(map(str.rjust, line[1:], widths[1:])) for line in lines]
        return "\n".join([self.caption, *table])

    def markdown(self) -> str:
        """A Markdown table with two decimals; what looks like a tag in a name is text."""
        head, *lines = self.lines(2)
        lines = [head, ["---"] + ["---:"] * len(self.columns), *lines]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"{self.caption}\n\n{table}".replace("<", "&lt;")


def transposed(columns: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Column -> row -> value, to row -> column -> value."""
    rows = next(iter(columns.values()))
    return {row: {head: values[row] for head, values in columns.items()} for row in rows}


def subset_sheet(rows: Mapping[str, Mapping[str, float]], caption: str) -> Sheet:
    """Row name -> subset -> per cent, with mean and population standard deviation over the subsets that have
    a score.
    """
    full = {}
    for name, row in rows.items():
        values = numbers(row.values())
        full[name] = {**row, "Mean": np.mean(values), "Std": np.std(values)}
    return Sheet(caption, full)


def cluster_sheet(scores: Mapping, caption: str) -> Sheet:
    """The scores of a clustering as a report holds them: mIoU, accuracy, each class; one column a group."""
    rows = {"mIoU": scores["miou"], "accuracy": scores["accuracy"], **transposed(scores["iou"])}
    return Sheet(caption, rows)


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

    listed = lambda values: ", ".join(sorted(set(values)))
    rules = listed(report["scores"]["rule"] for report in reports.values())
    choices = listed(report["chosen by"] for report in reports.values())
    how = f"on {next(iter(kinds))[0]}; clusters named by: {rules}; state chosen by {choices}"
    both, by_class = {}, {}
    for name, report in reports.items():
        miou, accuracy, iou = (report["scores"][key]["all"] for key in ("miou", "accuracy", "iou"))
        both[name] = {"mIoU": miou, "Acc": accuracy}
        by_class[name] = {**iou, "mIoU": miou}
    return [Sheet(f"In % {how}", both), Sheet(f"IoU in % {how}", by_class)]


def write_sheets(stem: str | Path, sheets: Sequence[Sheet]) -> list[Path]:
    """``stem``.md with all tables, ``stem``.csv with one line a number: table, row, column, value."""
    paths = [Path(f"{stem}.md"), Path(f"{stem}.csv")]
    with atomic_path(paths[0]) as temporary:
        origin = f"<!-- {json.dumps(provenance())} -->"
        tables = [sheet.markdown() for sheet in sheets]
        temporary.write_text("\n\n".join([*tables, origin]) + "\n", encoding="utf-8")
    with atomic_path(paths[1]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "row", "column", "value"])
        for sheet in sheets:
            (_, *heads), *lines = sheet.lines(4, missing="")
            for name, *cells in lines:
                writer.writerows([sheet.caption, name, head, cell] for head, cell in zip(heads, cells))
    return paths
