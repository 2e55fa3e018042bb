"""Results as papers print them, and whether what a paper says about them follows from them.

``published_tables.json`` holds, for each paper, its tables cell by cell, the sentences that quote a number
together with the cells each should follow from, the sentences that compare without a number, and the rows
that report one setting twice. A printed number stands for an interval: 60.37 is any value in [60.365,
60.375]. All arithmetic is on intervals, so a number is called wrong only when no values behind the cells
could have led to it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from .drawings import inclusions

FILE = Path(__file__).with_name("published_tables.json")
# What may stand in the place of a column, computed from a row's cells; "with Mean" counts the printed mean as
# one cell more.
STATISTICS = ("mean", "sd", "sample sd", "mean with Mean", "sd with Mean")


@dataclass(frozen=True)
class Interval:
    """All values from ``low`` to ``high``, both included."""

    low: Fraction
    high: Fraction

    @property
    def middle(self) -> float:
        return float((self.low + self.high) / 2)

    @property
    def half(self) -> float:
        return float((self.high - self.low) / 2)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.low - other.high, self.high - other.low)

    def meets(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


def interval(number: Decimal | str) -> Interval:
    """What a printed number stands for: ± half a unit of its last digit. "47.80" and "47.8" are not the same.
    A float: TypeError.
    """
    if isinstance(number, float):
        raise TypeError(
            f"interval({number!r}): a float has lost its printed digits; "
            "pass the number as a string, as printed"
        )
    number = Decimal(number)
    half = Fraction(10) ** number.as_tuple().exponent / 2
    return Interval(Fraction(number) - half, Fraction(number) + half)


def mean(cells) -> Interval:
    """Mean of printed numbers. It is known no better than its cells: ± 0.005 for two decimals, however many
    there are.
    """
    parts = [interval(cell) for cell in cells]
    return Interval(sum(p.low for p in parts) / len(parts), sum(p.high for p in parts) / len(parts))


def deviation(cells, ddof: int = 0) -> Interval:
    """Standard deviation of n printed numbers: of a population (``ddof=0``) or of a sample (1). Too few
    cells: ValueError.

    Moving every cell by at most h moves it by at most h √(n / (n − ddof)), because it is a norm of the
    centred cells.
    """
    n, values = len(cells), [Fraction(Decimal(cell)) for cell in cells]
    if n <= ddof:
        raise ValueError(f"a standard deviation with ddof={ddof} of {n} cells; it needs at least {ddof + 1}")
    root = Fraction(math.sqrt(sum((value - sum(values) / n) ** 2 for value in values) / (n - ddof)))
    half = Fraction(max(interval(cell).half for cell in cells) * math.sqrt(n / (n - ddof)))
    return Interval(max(root - half, Fraction(0)), root + half)


# ---- what a paper printed ----


@dataclass(frozen=True)
class Table:
    """One block of cells with one unit: the cells of each row, and the mean printed beside them ({} where
    there is none).

    ``subsets``: the sensors that each column uses, one letter each ("FE"); () where columns are no subsets.
    ``sensors``: letter -> name of a modality of ``mmlib.modalities``, for colours.
    """

    name: str
    caption: str
    unit: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[Decimal, ...]]
    means: dict[str, Decimal]
    subsets: tuple[str, ...] = ()
    sensors: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def cells(self, row: str) -> tuple[Decimal, ...]:
        return _get(self.rows, row, f"{self.name}: row")

    def cell(self, row: str, column: str) -> Decimal:
        return _get(dict(zip(self.columns, self.cells(row))), column, f"{self.name}: column")

    def by_subset(self, row: str) -> dict[str, Decimal]:
        if not self.subsets:
            raise ValueError(
                f"the columns of {self.name} ({', '.join(self.columns)}) are no subsets of sensors"
            )
        return dict(zip(self.subsets, self.cells(row)))


@dataclass(frozen=True)
class Claim:
    """A number in the text. ``readings``: what the sentence can mean; none = no cell decides it. ``instead``:
    what else the number is.

    A reading is {"value": [table, row, column or statistic], "minus": the same, "percent": true}, the last
    two if needed.
    """

    id: str
    where: str
    says: str
    printed: Decimal
    readings: tuple[dict, ...]
    instead: tuple[dict, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Statement:
    """A sentence that compares without a number. ``positive``: the differences (readings with "minus") that
    are above zero if it is true of every case; none = no cell decides it.
    """

    id: str
    where: str
    says: str
    positive: tuple[dict, ...]
    note: str = ""


@dataclass(frozen=True)
class Repeat:
    """Two rows, [table, row] each, that should report the same setting; ``why`` says how we know."""

    first: list[str]
    second: list[str]
    why: str


@dataclass(frozen=True)
class Paper:
    name: str
    title: str
    source: str
    tables: dict[str, Table]
    claims: tuple[Claim, ...]
    repeats: tuple[Repeat, ...]
    statements: tuple[Statement, ...] = ()


def _get(mapping: dict, key: str, what: str):
    if key not in mapping:
        raise KeyError(f"{what} {key!r} is not there; known: {', '.join(mapping)}")
    return mapping[key]


def _table(name: str, columns: list, rows: list, **other) -> Table:
    wrong = [
        row[0]
        for row in rows
        if len(row) != len(columns) + 1 or [other[0] for other in rows].count(row[0]) > 1
    ]
    if wrong:
        raise ValueError(
            f"{name}: each row needs a name of its own and {len(columns)} numbers; look at {', '.join(wrong)}"
        )
    last = len(columns) - (columns[-1] == "Mean")
    cells = {row[0]: tuple(row[1 : last + 1]) for row in rows}
    means = {row[0]: row[-1] for row in rows} if last < len(columns) else {}
    subsets = tuple(other.pop("subsets", columns[:last] if "sensors" in other else ()))
    if subsets and len(set(map(frozenset, subsets))) != last:
        raise ValueError(
            f"{name}: expected {last} different subsets of sensors, one a column, got {', '.join(subsets)}"
        )
    return Table(name, columns=tuple(columns[:last]), rows=cells, means=means, subsets=subsets, **other)


def load_paper(name: str, file: Path = FILE) -> Paper:
    """The printed tables and claims of one paper.

    Raises:
        KeyError, ValueError: no such paper; a row of the wrong length; a claim that refers to a cell that is
            not there; a statement about something that is no difference.
    """
    papers = json.loads(Path(file).read_text(encoding="utf-8"), parse_float=Decimal, parse_int=Decimal)
    content = _get(papers, name, "paper")
    tables = {entry["name"]: _table(**entry) for entry in content["tables"]}
    repeats = tuple(Repeat(**entry) for entry in content["repeats"])
    claims = tuple(Claim(**entry) for entry in content["claims"])
    statements = tuple(Statement(**entry) for entry in content.get("statements", ()))
    paper = Paper(name, content["title"], content["source"], tables, claims, repeats, statements)
    # Everything is computed once, so that a wrong reference fails here and not in the middle of an audit.
    for claim in paper.claims:
        for reading in (*claim.readings, *claim.instead):
            value(paper, reading)
    for statement in statements:
        for reading in statement.positive:
            if "minus" not in reading:
                raise ValueError(
                    f"{statement.id}: {reading} is no difference; a statement says what is above what, "
                    "so give it a minus"
                )
            value(paper, reading)
    for repeat in repeats:
        repeat_gap(paper, repeat)
    return paper


# ---- what follows from it ----


def _look_up(paper: Paper, table: str, row: str, column: str, printed_means: bool) -> Interval:
    block = _get(paper.tables, table, "table")
    if column not in STATISTICS:
        return interval(block.cell(row, column))
    if printed_means and column == "mean" and row in block.means:
        return interval(block.means[row])
    cells = block.cells(row) + (
        (_get(block.means, row, f"{table}: printed mean of"),) if column.endswith("Mean") else ()
    )
    return mean(cells) if column.startswith("mean") else deviation(cells, ddof=int(column == "sample sd"))


def value(paper: Paper, reading: dict, printed_means: bool = False) -> Interval:
    """A cell or a statistic of a row, or a difference, possibly in per cent of what is subtracted.

    ``printed_means``: believe the printed means instead of computing them from the cells.
    """
    result = _look_up(paper, *reading["value"], printed_means)
    if "minus" not in reading:
        return result
    base = _look_up(paper, *reading["minus"], printed_means)
    if not reading.get("percent"):
        return result - base
    if base.low <= 0 or result.low < 0:
        raise ValueError(f"{reading}: a change in per cent needs positive numbers")
    return Interval(100 * (result.low / base.high - 1), 100 * (result.high / base.low - 1))


@dataclass(frozen=True)
class Verdict:
    """What the cells say about a printed number.

    ``kind``: "follows"; "off" (no reading gives it); "text wrong" (nor that, but it is something else of the
    tables than the sentence says); "not decidable" (no cell bears on it). ``recomputed``: the nearest
    reading, if any. ``by_printed_means``: whether the same arithmetic on the printed means gives the number;
    None where no printed mean is involved.
    """

    claim: Claim
    kind: str
    recomputed: Interval | None = None
    by_printed_means: bool | None = None

    @property
    def off(self) -> float:
        """Printed − recomputed."""
        return (
            math.nan
            if self.recomputed is None
            else interval(self.claim.printed).middle - self.recomputed.middle
        )

    def __str__(self) -> str:
        return f"off by {self.off:+.2f}" if self.kind == "off" else self.kind


def judge(paper: Paper, claim: Claim) -> Verdict:
    """Compare one printed number with the cells it should follow from."""
    if not claim.readings:
        return Verdict(claim, "not decidable")
    shown = interval(claim.printed)
    values = [value(paper, reading) for reading in claim.readings]
    nearest = min(values, key=lambda v: abs(v.middle - shown.middle))
    if any(v.meets(shown) for v in values):
        kind = "follows"
    elif any(value(paper, reading).meets(shown) for reading in claim.instead):
        kind = "text wrong"
    else:
        kind = "off"
    # The same arithmetic on the printed means, where a reading uses one.
    ends = [end for reading in claim.readings for end in (reading["value"], reading.get("minus")) if end]
    by_means = None
    if any(column == "mean" and row in paper.tables[table].means for table, row, column in ends):
        by_means = any(value(paper, reading, printed_means=True).meets(shown) for reading in claim.readings)
    return Verdict(claim, kind, nearest, by_means)


def tally(paper: Paper, statement: Statement) -> dict[str, list[dict]]:
    """The cases of a statement: "holds", "fails" (the difference is negative) and "open" (rounding hides its
    sign).
    """
    cases = {"holds": [], "open": [], "fails": []}
    for reading in statement.positive:
        difference = value(paper, reading)
        cases["holds" if difference.low > 0 else "fails" if difference.high < 0 else "open"].append(reading)
    return cases


def mean_claims(paper: Paper) -> list[Claim]:
    """Every printed mean as a claim about its row's cells."""
    return [
        Claim(f"{name} {row}", name, f"mean of {row}", printed, ({"value": [name, row, "mean"]},))
        for name, table in paper.tables.items()
        for row, printed in table.means.items()
    ]


def repeat_gap(paper: Paper, repeat: Repeat) -> tuple[list[Decimal], float]:
    """(first − second cell by cell, the same of the means recomputed from the cells)."""
    first, second = (
        _get(paper.tables, table, "table").cells(row) for table, row in (repeat.first, repeat.second)
    )
    return [a - b for a, b in zip(first, second, strict=True)], (mean(first) - mean(second)).middle


# ---- what a mean hides ----


def lowered(table: Table, row: str) -> tuple[list[tuple[str, str]], int]:
    """(the inclusions, S and S with one sensor more, that lower the printed score; how many inclusions there
    are).
    """
    score = table.by_subset(row)
    pairs = inclusions(list(score))
    return [(small, large) for small, large in pairs if score[large] < score[small]], len(pairs)


def gains(table: Table, row: str) -> dict[str, Decimal]:
    """Column -> printed score minus the best printed score of the other rows."""
    others = [table.cells(name) for name in table.rows if name != row]
    return {
        column: cell - max(best) for column, cell, best in zip(table.columns, table.cells(row), zip(*others))
    }


def summary(table: Table, row: str) -> dict[str, float]:
    """full (all sensors), mean, min and sd (population) over the subsets, from the printed cells."""
    score, cells = table.by_subset(row), table.cells(row)
    return {
        "full": float(score[max(score, key=len)]),
        "mean": mean(cells).middle,
        "min": float(min(cells)),
        "sd": deviation(cells).middle,
    }
