"""The second paper's tables, read again from its text; sentences without numbers, counted by other means; and
what the figures of these tables draw.
"""

import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from course import unim2_table_figures
from course.charts import ORANGE
from course.published import (
    FILE,
    Statement,
    gains,
    judge,
    load_paper,
    lowered,
    mean,
    mean_claims,
    repeat_gap,
    tally,
)
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from scipy.integrate import quad
from scipy.stats import norm
from test_published import changed, kinds, tiny

from mmlib.modalities import SENSORS

ROOT = Path(__file__).resolve().parents[1]
PAPER = load_paper("unim2")
CLAIMS = {claim.id: claim for claim in PAPER.claims}
STATEMENTS = {statement.id: statement for statement in PAPER.statements}
TEXTS = [
    folder / "shared" / "papers" / "unim2-unsupervised-segmentation.txt" for folder in (ROOT, ROOT.parent)
]
SETTINGS = ("NYU-S", "MFNet-S", "NYU-B", "MFNet-B")
METHODS = ("DINOv3", "STEGO", "EAGLE")


# ---- the paper's text, parsed without mmlib ----


def paper_lines() -> list[str]:
    found = [path for path in TEXTS if path.exists()]
    if not found:
        pytest.skip(
            "the paper's text is not here (shared/papers/unim2-unsupervised-segmentation.txt); it cannot be redistributed"
        )
    lines = found[0].read_text(encoding="utf-8").splitlines()
    return lines[: lines.index("References")]


def printed_rows(number: int) -> list[tuple[list[str], list[str]]]:
    """(cells, changes in parentheses) of each line of numbers of one table, as printed; a dash is a cell."""
    lines = paper_lines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
    rows = []
    for line in lines[start + 1 :]:
        if line and "\t" not in line:  # a table ends where a line of prose or the next caption begins
            break
        changes = [
            ("-" if way == "down" else "") + size
            for way, size in re.findall(r"\(\\(up|down)arrow (\d+\.\d+)\)", line)
        ]
        fields = [re.sub(r"</?u>|\(.*\)", "", field).strip() for field in line.split("\t")]
        if cells := [field for field in fields if re.fullmatch(r"\d+\.\d|-", field)]:
            rows.append((cells, changes))
    return rows


def stored_rows(*names) -> list[list[str]]:
    """The rows of blocks that stand side by side, as strings, printed means included."""
    blocks = [PAPER.tables[name] for name in names]
    return [
        [str(c) for b in blocks for c in (*b.cells(row), *([b.means[row]] if b.means else []))]
        for row in blocks[0].rows
    ]


def test_every_cell_is_as_printed():
    printed = {number: [cells for cells, _ in printed_rows(number)] for number in range(1, 8)}
    columns = [[row[k] for row in printed[1] if row[k] != "-"] for k in (0, 1)]
    assert columns == [[row[0] for row in stored_rows(name)] for name in ("T1 NYU", "T1 MFNet")]
    assert printed[2] == stored_rows("T2 NYU-S", "T2 MFNet-S") + stored_rows("T2 NYU-B", "T2 MFNet-B")
    assert printed[3] == stored_rows("T3")
    for half, suffix in enumerate(("", " Acc")):
        alone = [*stored_rows("T4 I" + suffix), ["-"]]
        assert [row[half::2] for row in printed[4]] == [
            a + b for a, b in zip(alone, stored_rows("T4" + suffix), strict=True)
        ]
    for number in (5, 6, 7):
        assert printed[number] == stored_rows(f"T{number}")


def test_all_thirty_two_changes_are_claims_in_the_printed_order():
    with_changes = [changes for _, changes in printed_rows(2) if changes]
    stored = []
    for size in "SB":
        for method in ("dinov3", "stego", "eagle", "unim2"):
            keys = [
                f"t2-{data}-{size.lower()}-{method}-{what}"
                for data in ("nyu", "mfnet")
                for what in ("miou", "acc")
            ]
            stored.append([str(CLAIMS[key].printed) for key in keys])
    assert with_changes == stored and sum(map(len, stored)) == 32


def test_names_of_columns_and_rows_are_in_the_printed_order():
    lines = paper_lines()
    header = next(line for line in lines if line.startswith("Method\tModality\tBed"))
    assert tuple(header.split()[2:-1]) == PAPER.tables["T3"].columns
    header = next(line for line in lines if line.startswith("Method\tI\t"))
    assert header.split()[1:] == ["I", *PAPER.tables["T4"].columns]
    for number in (6, 7):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"Table {number}:"))
        assert [line.split("\t")[0] for line in lines[start + 3 : start + 7]] == list(
            PAPER.tables[f"T{number}"].rows
        )


def test_every_result_in_the_text_is_judged():
    text = "\n".join(line for line in paper_lines() if "\t" not in line)
    results = set(re.findall(r"\d+\.\d+(?=%| mIoU)", text))
    assert results == {"6.4", "9.8", "25.0", "31.3", "28.8", "36.9", "34.2", "19.8", "27.6"}
    from_text = {str(claim.printed) for claim in PAPER.claims if not claim.where.startswith("Tab.")}
    assert results == from_text


def test_size_and_checksums():
    """Counted by hand in the paper: holds where its text is absent."""
    sizes = {name: (len(table.rows), len(table.columns)) for name, table in PAPER.tables.items()}
    assert sizes == {
        "T1 NYU": (6, 1),
        "T1 MFNet": (5, 1),
        "T2 NYU-S": (7, 2),
        "T2 MFNet-S": (7, 2),
        "T2 NYU-B": (7, 2),
        "T2 MFNet-B": (7, 2),
        "T3": (5, 13),
        "T4": (4, 5),
        "T4 I": (3, 1),
        "T4 Acc": (4, 5),
        "T4 I Acc": (3, 1),
        "T5": (4, 2),
        "T6": (4, 2),
        "T7": (4, 2),
    }
    assert sum(PAPER.tables["T3"].cells("UniM2 RGB+X")) == Decimal("495.3")
    assert sum(PAPER.tables["T3"].cells("STEGO RGB")) == Decimal("412.1")
    assert len(CLAIMS) == len(PAPER.claims) and len(STATEMENTS) == len(PAPER.statements), (
        "an id is used twice"
    )
    digits = Counter(
        c.as_tuple().exponent for t in PAPER.tables.values() for cells in t.rows.values() for c in cells
    )
    assert digits == {-1: sum(rows * columns for rows, columns in sizes.values())}
    assert set(PAPER.tables["T4"].sensors.values()) <= set(SENSORS)


# ---- verdicts ----


def cell(table, row, column) -> float:
    return float(PAPER.tables[table].cell(row, column))


def test_the_verdicts_by_hand():
    """One of 54 quoted numbers does not follow: 76.1 − 73.6 = 2.5. All five means do."""
    found = kinds(PAPER)
    assert {key: verdict for key, verdict in found.items() if verdict != "follows"} == {
        "t2-mfnet-b-unim2-acc": "off by +1.20"
    }
    assert (len(PAPER.claims), len(mean_claims(PAPER))) == (54, 5)
    for setting in SETTINGS:
        for method in (*METHODS, "UniM2"):
            base = "STEGO RGB" if method == "UniM2" else f"{method} RGB"
            for column in ("mIoU", "Acc"):
                key = f"t2-{setting}-{method}-{column}".lower()
                change = cell(f"T2 {setting}", f"{method} RGB+X", column) - cell(
                    f"T2 {setting}", base, column
                )
                assert judge(PAPER, CLAIMS[key]).recomputed.middle == pytest.approx(change)
                assert (abs(change - float(CLAIMS[key].printed)) < 0.151) == (key != "t2-mfnet-b-unim2-acc")


def test_changing_any_cell_a_claim_rests_on_changes_its_verdict():
    for claim in (*PAPER.claims, *mean_claims(PAPER)):
        if judge(PAPER, claim).kind != "follows":
            continue
        for table, row, column in {tuple(end) for reading in claim.readings for end in reading.values()}:
            for name in PAPER.tables[table].columns if column == "mean" else [column]:
                spoilt = changed(PAPER, table, row, name, PAPER.tables[table].cell(row, name) + 2)
                assert judge(spoilt, claim).kind != "follows", (
                    f"{claim.id} does not notice {table} {row} {name}"
                )
    mended = changed(PAPER, "T2 MFNet-B", "UniM2 RGB+X", "Acc", "77.3")
    assert kinds(mended)["t2-mfnet-b-unim2-acc"] == "follows"


def test_the_gain_depends_on_the_baseline():
    best = {s: max(cell(f"T2 {s}", f"{m} RGB", "mIoU") for m in METHODS) for s in SETTINGS}
    over = {s: round(cell(f"T2 {s}", "UniM2 RGB+X", "mIoU") - best[s], 1) for s in SETTINGS}
    assert over == {"NYU-S": 8.1, "MFNet-S": 0.5, "NYU-B": 6.4, "MFNet-B": 7.9}
    assert gains(PAPER.tables["T1 MFNet"], "UniM2") == {"mIoU": Decimal("6.6")}, (
        "Mask-DiFuser, 39.1, is the best of the others"
    )


def test_two_thirds_of_the_gain_are_one_class():
    table = PAPER.tables["T3"]
    gain = np.array(table.cells("UniM2 RGB+X"), float) - np.array(table.cells("STEGO RGB"), float)
    sofa = table.columns.index("Sofa")
    assert gain.sum() == pytest.approx(83.2) and gain[sofa] == pytest.approx(54.7) and gain.argmax() == sofa
    assert round(gain[sofa] / gain.sum(), 2) == 0.66 and np.delete(gain, sofa).mean() == pytest.approx(2.375)
    assert (mean(table.cells("UniM2 RGB+X")) - mean(table.cells("STEGO RGB"))).middle == pytest.approx(
        gain.mean()
    )


def test_rows_that_report_one_setting_twice():
    gaps = {(*r.first, r.second[0]): repeat_gap(PAPER, r)[0] for r in PAPER.repeats}
    differ = gaps.pop(("T5", "none", "T2 NYU-S"))
    assert differ == [Decimal("-0.3"), Decimal("2.2")]
    assert len(gaps) == 4 and all(gap == [0, 0] for gap in gaps.values())


# ---- the figures ----


def points(axis, marker) -> list[tuple[float, float]]:
    """Places of single marks of one kind."""
    return [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines if line.get_marker() == marker]


def test_gains_over_a_rival_start_alone_and_end_fused(displayed):
    over = {
        "one": {"STEGO": (8.5, 3.0), "EAGLE": (2.5, 1.5), "other": (None, 6.0)},
        "two": {"STEGO": (0.5, 3.5), "EAGLE": (4.0, 1.0)},
        "three": {"STEGO": (1.0, 2.0)},
        "four": {"STEGO": (3.0, 4.0)},
    }
    unim2_table_figures.show_gains_over(over)
    for axis, rivals in zip(displayed[0].axes, over.values()):
        full = [
            line for line in axis.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"
        ]
        alone = {y: pair[0] for y, pair in enumerate(rivals.values()) if pair[0] is not None}
        assert {line.get_ydata()[0]: line.get_xdata()[0] for line in full} == alone
        orange = [line.get_xdata()[0] for line in full if to_hex(line.get_color()) == ORANGE.lower()]
        assert orange == [min(alone.values())], "over the best row"
        rings = [place for place in points(axis, "o") if place not in {(x, y) for y, x in alone.items()}]
        assert rings == [(fused, y) for y, (_, fused) in enumerate(rivals.values())]
        joined = {
            (*line.get_xdata(), *line.get_ydata()) for line in axis.lines if line.get_marker() == "None"
        } - {(0, 0, 0, 1)}
        assert joined == {(x, fused, y, y) for y, (x, fused) in enumerate(rivals.values()) if x is not None}
        assert [0, 0] in [list(line.get_xdata()) for line in axis.lines]
        assert [t.get_text() for t in axis.texts] == [
            f"+{fused if x is None else x}" for x, fused in rivals.values()
        ]


def test_classes_stand_from_the_greatest_loss_to_the_greatest_gain(displayed):
    gain = {"Bed": 3.0, "Sofa": 54.7, "Wall": -2.0}
    naive = {"Bed": 1.0, "Sofa": -4.0, "Wall": 9.0}
    unim2_table_figures.show_classes(gain, naive, "Sofa")
    (axis,) = displayed[0].axes
    order = ["Wall", "Bed", "Sofa"]
    assert [label.get_text() for label in axis.get_yticklabels()] == order
    assert [bar.get_width() for bar in axis.patches] == [gain[name] for name in order]
    assert [bar.get_y() + bar.get_height() / 2 for bar in axis.patches] == pytest.approx([0, 1, 2])
    assert [0, 0] in [list(line.get_xdata()) for line in axis.lines]
    assert points(axis, "D") == [(naive[name], y) for y, name in enumerate(order)]
    assert [text.get_text() for text in axis.texts] == ["-2.0", "+3.0", "+54.7"]
    assert to_hex(axis.patches[2].get_facecolor()) == ORANGE.lower()


def test_the_best_of_many_looks_is_the_expected_maximum(displayed):
    counts = [2, 50, 200, 1000]
    density = lambda x, n: x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1)
    expected = [quad(density, -8, 8, args=(n,))[0] for n in counts]
    bound = [np.sqrt(2 * np.log(n)) for n in counts]
    unim2_table_figures.show_best_of(counts, expected, bound)
    left, right = displayed[0].axes
    above, curve, simulated = right.lines
    for line, values in ((above, bound), (curve, expected)):
        assert list(line.get_xdata()) == counts and list(line.get_ydata()) == values
    assert list(simulated.get_xdata()) == counts
    assert list(simulated.get_ydata()) == pytest.approx(expected, abs=0.06), (
        "2000 draws agree with the integral"
    )
    looks, kept, worth = (np.array(line.get_data(), float) for line in left.lines)
    assert looks.shape == (2, 200) and np.array_equal(kept[1], np.maximum.accumulate(looks[1]))
    assert list(looks[0]) == list(range(1, 201)) and set(worth[1]) == {0}
    assert abs(looks[1].mean()) < 0.2 and looks[1].std() == pytest.approx(1, abs=0.1)
    assert kept[1, -1] == pytest.approx(expected[2], abs=0.1), "one whose best is near the mean of all bests"


# ---- sentences without numbers ----

COUNTS = {  # (holds, open, fails), counted by hand in the paper
    "naive-miou": (11, 0, 1),
    "naive-acc": (8, 0, 4),
    "consistent": (24, 0, 0),
    "advantage": (9, 0, 0),
    "naive-classes": (5, 0, 1),
    "best-classes": (12, 0, 0),
    "no-sacrifice": (7, 0, 6),
    "i-to-in": (0, 0, 0),
    "one-more": (2, 0, 1),
    "above-rgb": (4, 0, 1),
    "modules": (3, 0, 0),
    "anchor-best": (6, 0, 0),
    "anchor-worst": (4, 1, 1),
    "fusion": (6, 0, 0),
}


def test_the_tallies_by_hand():
    assert {
        key: tuple(map(len, tally(PAPER, statement).values())) for key, statement in STATEMENTS.items()
    } == COUNTS


def pairs(statement_id) -> set[tuple]:
    """(table, higher row, higher column, lower table, lower row, lower column) of each case."""
    return {(*reading["value"], *reading["minus"]) for reading in STATEMENTS[statement_id].positive}


def test_the_cases_are_all_those_of_the_sentence():
    """Which cells a statement compares, spelled out once more from the names alone."""
    for column in ("mIoU", "Acc"):
        naive = {
            (f"T2 {s}", f"{m} RGB", column, f"T2 {s}", f"{m} RGB+X", column)
            for s in SETTINGS
            for m in METHODS
        }
        assert pairs(f"naive-{column.lower()}") == naive
    ours = "UniM2 RGB+X"
    best = {
        (f"T2 {s}", ours, c, f"T2 {s}", f"{m} RGB", c)
        for s in SETTINGS
        for m in METHODS
        for c in ("mIoU", "Acc")
    }
    assert pairs("consistent") == best
    every = {("T3", ours, c, "T3", "STEGO RGB", c) for c in PAPER.tables["T3"].columns}
    assert pairs("no-sacrifice") == every
    others = [row for row in PAPER.tables["T3"].rows if row != ours]
    assert pairs("best-classes") == {
        ("T3", ours, c, "T3", row, c) for c in ("Sofa", "Table", "TV") for row in others
    }
    assert pairs("above-rgb") == {
        ("T4", "UniM2", c, "T4 I", "STEGO", "I") for c in PAPER.tables["T4"].columns
    }
    fused = {
        (m, c): (("T3", f"{m} RGB+X", c), ("T3", f"{m} RGB", c))
        for m in ("STEGO", "EAGLE")
        for c in ("Sofa", "Floor", "Wall")
    }
    expected = {(*(cells if c == "Sofa" else cells[::-1]),) for (_, c), cells in fused.items()}
    assert pairs("naive-classes") == {(*high, *low) for high, low in expected}
    steps = {(small, large) for small, large in (("IN", "IND"), ("ID", "IND"), ("IND", "INAD"))}
    assert pairs("one-more") == {("T4", "UniM2", large, "T4", "UniM2", small) for small, large in steps}
    for name, key, table in (("anchor-best", "RGB only", "T6"), ("fusion", "Conv", "T7")):
        rest = [row for row in PAPER.tables[table].rows if row != key]
        assert pairs(name) == {(table, key, c, table, row, c) for row in rest for c in ("mIoU", "Acc")}
    rest = [row for row in PAPER.tables["T6"].rows if row != "No anchors"]
    assert pairs("anchor-worst") == {
        ("T6", row, c, "T6", "No anchors", c) for row in rest for c in ("mIoU", "Acc")
    }
    for table in ("T1 NYU", "T1 MFNet"):
        rest = {
            (table, "UniM2", "mIoU", table, row, "mIoU") for row in PAPER.tables[table].rows if row != "UniM2"
        }
        assert rest == {case for case in pairs("advantage") if case[0] == table}


def test_the_inclusions_agree_with_the_lattice():
    """`one-more` again by the function that walks the columns."""
    falling, count = lowered(PAPER.tables["T4"], "UniM2")
    assert count == 3 and falling == [("IND", "INAD")]
    assert [reading["value"][2] for reading in tally(PAPER, STATEMENTS["one-more"])["fails"]] == ["INAD"]


@given(st.floats(0, 100), st.floats(0, 100))
def test_rounding_never_turns_a_sign(higher, lower):
    """Whatever was rounded to the cells: a case that holds is true of the values behind them, one that fails
    is not.
    """
    statement = Statement("s", "", "", ({"value": ["T", "r", "a"], "minus": ["T", "r", "b"]},))
    found = tally(tiny(f"{higher:.1f}", f"{lower:.1f}"), statement)
    assert not (found["holds"] and higher <= lower) and not (found["fails"] and higher >= lower)
    assert sum(map(len, found.values())) == 1


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (("1.2", "1.0"), "holds"),
        (("1.1", "1.0"), "open"),
        (("1.0", "1.0"), "open"),
        (("1.0", "1.1"), "open"),
        (("1.0", "1.2"), "fails"),
        (("1.06", "1.00"), "holds"),
        (("1.0", "1.05"), "open"),
        (("1.0", "1.06"), "fails"),
    ],
)
def test_one_unit_in_the_last_place_is_open(cells, kind):
    """1.1 and 1.0 may both be 1.05."""
    statement = Statement("s", "", "", ({"value": ["T", "r", "a"], "minus": ["T", "r", "b"]},))
    assert [name for name, cases in tally(tiny(*cells), statement).items() if cases] == [kind]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda found: found[0]["positive"][0].pop("minus"),
            ValueError,
            "naive-miou: .* is no difference; .*give it a minus",
        ),
        (
            lambda found: found[1]["positive"][2].update(value=["T2 NYU-S", "SEAGLE", "Acc"]),
            KeyError,
            "'SEAGLE' is not there",
        ),
    ],
)
def test_a_broken_statement_is_named_when_it_is_loaded(tmp_path, spoil, error, message):
    papers = json.loads(FILE.read_text(encoding="utf-8"))
    spoil(papers["unim2"]["statements"])
    file = tmp_path / "tables.json"
    file.write_text(json.dumps(papers), encoding="utf-8")
    with pytest.raises(error, match=message):
        load_paper("unim2", file)
