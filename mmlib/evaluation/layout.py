"""Scores in the layout of printed tables: one column a subset of sensors, then Mean and Std; one column a
condition; mIoU and accuracy.

A ``Sheet`` names in its caption what the numbers depend on: split, protocol, fusion, windows.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime import atomic_path
from .confusion import accuracy, miou
from .subsets import SubsetScores, subset_probabilities


@dataclass(frozen=True)
class Sheet:
    """A table: row name -> one number a column (NaN prints as a dash)."""

    caption: str
    columns: list[str]
    rows: dict[str, Sequence[float]]

    def markdown(self) -> str:
        lines = [["", *self.columns], ["---"] + ["---:"] * len(self.columns)]
        lines += [
            [name, *("–" if math.isnan(v) else f"{v:.2f}" for v in values)]
            for name, values in self.rows.items()
        ]
        return f"{self.caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def subset_sheet(rows: Mapping[str, Mapping[str, float]], caption: str) -> Sheet:
    """Row name -> subset -> per cent, with the mean and the population standard deviation over the subsets."""
    full = {
        name: [*row.values(), np.mean([*row.values()]), np.std([*row.values()])] for name, row in rows.items()
    }
    return Sheet(caption, [*next(iter(rows.values())), "Mean", "Std"], full)


def score_sheets(scores: SubsetScores, name: str, caption: str) -> list[Sheet]:
    """The tables of one network: every subset (mIoU and accuracy), and all sensors by condition and case.

    Conditions that are all named in two parts ("fog-night") become a table of two directions.
    """
    per_cent = dict(zip(scores.names, (100 * accuracy(scores.counts["all"])).tolist()))
    sheets = [
        subset_sheet(
            {f"{name} mIoU": scores.miou(), f"{name} accuracy": per_cent}, f"In % {caption}; Std: population"
        )
    ]
    full = {group: counts[-1] for group, counts in scores.counts.items()}
    if len(full) > 1:
        what = f"mIoU in %, all sensors ({scores.names[-1]}), {caption}"
        conditions = {
            g.removeprefix("condition="): counts for g, counts in full.items() if g.startswith("condition=")
        }
        cases = {g.removeprefix("case="): counts for g, counts in full.items() if g.startswith("case=")}
        parts = {tuple(re.split(r"[-_/ ]", name)): counts for name, counts in conditions.items()}
        firsts, seconds = (list(dict.fromkeys(part[i] for part in parts if len(part) == 2)) for i in (0, 1))
        if len(firsts) > 1 and len(seconds) > 1 and all(len(part) == 2 for part in parts):

            def total(first: set, second: set) -> float:
                return _score(
                    sum(counts for part, counts in parts.items() if part[0] in first and part[1] in second)
                )

            rows = {s: [*(total({f}, {s}) for f in firsts), total(set(firsts), {s})] for s in seconds}
            rows["all"] = [*(total({f}, set(seconds)) for f in firsts), total(set(firsts), set(seconds))]
            sheets.append(Sheet(what, [*firsts, "all"], rows))
            conditions = {}
        if columns := conditions | cases:
            sheets.append(
                Sheet(
                    what,
                    [*columns, "all"],
                    {name: [_score(counts) for counts in [*columns.values(), full["all"]]]},
                )
            )
    return sheets


def failure_sheet(scores: SubsetScores, probabilities: Sequence[float], caption: str) -> Sheet:
    """Each sensor of each sample absent independently, never all: mIoU of the expected counts, and the
    expected mIoU, by group.
    """
    rows = {}
    for p in probabilities:
        rows[f"p = {p:g}, mIoU of the expected counts"] = [
            _score(scores.failing(p, group)) for group in scores.counts
        ]
        chances = subset_probabilities(len(scores.modalities), p)
        rows[f"p = {p:g}, mean of the subsets' mIoU by chance"] = [
            100 * float(chances @ miou(counts)) for counts in scores.counts.values()
        ]
    heads = [group.split("=")[-1] for group in scores.counts]
    return Sheet(
        f"mIoU in %, each sensor of each sample absent with probability p, never all, {caption}", heads, rows
    )


def cluster_sheets(reports: Mapping[str, Mapping]) -> list[Sheet]:
    """Row name -> report of 'cluster': a table of mIoU and accuracy, and one of the IoU of each class.

    Raises:
        ValueError: a report without scores, or reports of different splits or classes.
    """
    unscored = [name for name, report in reports.items() if not report["scores"]]
    if unscored:
        raise ValueError(f"{unscored[0]}: clustered data without labels, so there is no score to print")
    kinds = {(report["split"], *report["scores"]["iou"]["all"]) for report in reports.values()}
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(reports)}: scored on different splits or classes; print them apart")
    split, *classes = next(iter(kinds))
    rules = ", ".join(sorted({report["scores"]["rule"] for report in reports.values()}))
    chosen = ", ".join(sorted({report["chosen by"] for report in reports.values()}))
    how = f"on {split}; clusters named by: {rules}; state chosen by {chosen}"
    scores = {name: report["scores"] for name, report in reports.items()}
    both = {name: [part["miou"]["all"], part["accuracy"]["all"]] for name, part in scores.items()}
    by_class = {
        name: [*(math.nan if v is None else v for v in part["iou"]["all"].values()), part["miou"]["all"]]
        for name, part in scores.items()
    }
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
                writer.writerows(
                    [sheet.caption, name, head, "" if math.isnan(v) else f"{v:.4f}"]
                    for head, v in zip(sheet.columns, values)
                )
    return paths


def _score(counts) -> float:
    """mIoU in per cent of (K, K) counts; NaN where there are none (the empty sum 0 too)."""
    return 100 * float(miou(counts)) if np.ndim(counts) else math.nan
