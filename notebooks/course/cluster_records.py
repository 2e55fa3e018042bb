"""The records of clusterings (clusters*.json) as lessons 09 and 10 read them: groups of a setting, and
differences with what they may be called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from results.titles import METHODS, SINGLES

from mmlib.figures import INK

from .record_figures import grouped, method_bars, paired, per_seed, read_record, text_table, verdict

ROWS = (  # of the figures, from the top; "R": colour alone, "X": the other of two sensors alone
    *("kmeans R", "kmeans X", "kmeans-whitened R"),
    *("kmeans", "kmeans-whitened", "kmeans-image", "kmeans-feature"),
    *("stego R", "stego X", "stego-image", "stego-feature", "stego-conv", "stego-cbam", "stego-stitch"),
    *("eagle R", "eagle-conv", "depthg", "coral", "mmd", "cosine", "cmcs-1", "lambda-0", "unim2"),
)
LABELS = {name: (METHODS | SINGLES)[name] for name in ROWS}
SEVERAL = (  # what trains a network on several sensors
    *(name for name in ROWS if not name.startswith("kmeans") and not name.endswith((" R", " X"))),
    *("cmcs-0.3", "unim2-0.3"),
)
NAIVE = ("stego-image", "stego-feature", "stego-conv", "stego-cbam", "stego-stitch")  # Figure 1 of the paper
SWEEP = {
    "with CMH": {0: "lambda-0", 0.3: "unim2-0.3", 1: "unim2", 3: "unim2-3"},
    "without CMH": {0: "lambda-0", 0.3: "cmcs-0.3", 1: "cmcs-1", 3: "cmcs-3"},
}
ANCHORS = {  # Table 6
    "unim2": "anchor colour (UniM2)",
    "cmcs-1": "both (no CMH)",
    "anchor-auxiliary": "the other sensor",
    "anchor-none": "none",
}
VARIANTS = {"no-msn": "no MSN", "fusion-sum": "sum", "fusion-mean": "mean", "fusion-max": "max"}  # 5, 7
HEADINGS = {"unim2": "Table 6", "no-msn": "Table 5", "fusion-sum": "Table 7, fusion by"}


def about(record: Mapping) -> str:
    """Command, features, their directions, seeds and split of a record, in two lines."""
    seeds = ", ".join(map(str, sorted({run["seed"] for run in record["runs"]})))
    made = record["provenance"]
    return (
        f"{made['command']}, {made['date']}\nfeatures {record['features']}, whitened to {record['whiten']} "
        f"directions, split {record['split']}, {record['steps']} steps, seeds {seeds}"
    )


def settings_of(record: Mapping) -> list[tuple[str, str]]:
    """(scene, sensors) of all settings with several sensors: by scene, then by number of sensors."""
    found = {(run["scene"], run["sensors"]) for run in record["runs"] if len(run["sensors"]) > 1}
    return sorted(found, key=lambda s: (s[0], len(s[1]), s[1]))


def methods(record: Mapping, scene: str, sensors: str) -> dict[str, dict]:
    """Groups of a setting; those of its single sensors are "stego R" (colour) and "stego X" (the other)."""
    found = grouped(record, scene, sensors)
    for symbol in sensors:
        kind = "R" if symbol == "R" else "X"
        if kind == "R" or len(sensors) == 2:
            single = grouped(record, scene, symbol)
            found |= {f"{name} {kind}": group for name, group in single.items()}
    return found


def panels_of(record: Mapping, settings: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """ "room RT" -> its groups."""
    return {f"{scene} {sensors}": methods(record, scene, sensors) for scene, sensors in settings}


def stripes(scene: str, split: str = "test") -> float:
    """Mean IoU of horizontal stripes, which look at no image (stripes.json)."""
    rows = read_record("stripes")["rows"]
    return next(row["miou"] for row in rows if (row["scene"], row["split"]) == (scene, split))


def table_2(panels: Mapping[str, Mapping], control: float) -> tuple[Figure, str]:
    """All methods in some settings as bars with a dotted line at ``control``, and the words for them."""
    rows = {n: label for n, label in LABELS.items() if any(n in groups for groups in panels.values())}
    best = []
    for title, groups in panels.items():
        means = {n: np.mean(per_seed(groups[n], "miou")) for n in rows if n in groups}
        best.append(f"{title}: {LABELS[max(means, key=means.get)]}")
    alt = (
        f"Mean IoU of {len(rows)} methods, seeds as rings, with the spreads of training and of k-means. "
        f"Highest means: {'; '.join(best)}."
    )
    fig = method_bars(panels, rows)
    for axis in fig.axes:
        axis.axvline(control, color=INK, linewidth=1.4, linestyle=":")
        axis.annotate("stripes", (control, -0.55), (3, 0), textcoords="offset points", fontsize=7.5)
    return fig, alt + f" A dotted line at {control:.1f} marks stripes that look at no image."


def difference_table(panels: Mapping[str, Mapping], pairs: Sequence[tuple], key: str = "miou") -> str:
    """A line for each (group, reference, words) and a column for each setting: the paired difference
    in points, with * where its 95 % interval over seeds excludes zero; – where a setting lacks one of them.
    """

    def cell(groups, name, reference):
        if name not in groups or reference not in groups:
            return "–"
        d = paired(groups, name, reference, key)
        return f"{d.mean:+.1f}{'*' if d.n > 1 and d.clear else ' '}"

    rows = {words: [cell(groups, *pair) for groups in panels.values()] for *pair, words in pairs}
    return text_table("points of mIoU, * = clear", panels, rows, wide=7)


def in_words(
    title: str, panels: Mapping[str, Mapping], questions: Mapping[str, Sequence[tuple]], key: str = "miou"
) -> str:
    """What a record answers, a line a question: in how many comparisons there is a clear gain, a clear loss,
    or neither. A question is a list of pairs (group, reference); each setting that has both is a comparison.
    """
    rows = {}
    for question, pairs in questions.items():
        compared = [
            paired(groups, name, reference, key)
            for groups in panels.values()
            for name, reference in pairs
            if name in groups and reference in groups
        ]
        clear = [d.mean for d in compared if d.n > 1 and d.clear]
        gains, losses = sum(m > 0 for m in clear), sum(m < 0 for m in clear)
        rows[question] = [str(count) for count in (gains, losses, len(compared) - len(clear))]
    return text_table(title, ("clear gain", "clear loss", "neither"), rows, wide=8)


def share_of_stripes(panels: Mapping[str, Mapping]) -> str:
    """What stripes score on test in per cent of k-means on colour, on the other of two sensors and side by
    side, a column a setting.
    """
    rows = {LABELS[name]: [] for name in ("kmeans R", "kmeans X", "kmeans")}
    for title, groups in panels.items():
        control = stripes(title.split()[0].replace("real", "nyu"))
        for name in ("kmeans R", "kmeans X", "kmeans"):
            share = control / np.mean(per_seed(groups[name], "miou")) if name in groups else None
            rows[LABELS[name]].append(f"{share:.0%}" if share else "–")
    return text_table("stripes, as a share of", panels, rows, wide=7)


def together(panels: Mapping[str, Mapping], key: str = "miou") -> dict[str, dict]:
    """Groups with one number a setting, of the methods that all settings have with equal seeds."""
    found = {}
    for name in set.intersection(*map(set, panels.values())):
        inner = {title: groups[name] for title, groups in panels.items()}
        seeds = [group["seeds"] for group in inner.values()]
        if seeds.count(seeds[0]) == len(seeds):
            numbers = {title: per_seed(group, key) for title, group in inner.items()}
            found[name] = {"seeds": seeds[0], "summary": {"all": numbers}}
    return found


def healthy_trainings(record: Mapping, scene: str, sensors: str) -> list[dict]:
    """Runs of a setting that trained a network whose codes did not collapse: effective rank above 4."""
    runs = [run for run in record["runs"] if (run["scene"], run["sensors"]) == (scene, sensors)]
    return [run for run in runs if not run["method"].startswith("kmeans") and run["effective_rank"] > 4]


def contest(record: Mapping, rows: Mapping[str, str]) -> tuple[Figure, str, str]:
    """The last two rows against the best of the others, on rooms and streets with two sensors: figure, its
    words, and the differences as text.
    """
    panels, best, lines = {}, {}, []
    rivals, ours = list(rows)[:-2], list(rows)[-2:]
    for scene in ("room", "street"):
        colour = {f"colour {name}": group for name, group in grouped(record, scene, "R").items()}
        for sensors in ("RT", "RD"):
            title = f"{scene} {sensors}"
            groups = panels[title] = colour | grouped(record, scene, sensors)
            means = {name: np.mean(per_seed(groups[name], "miou")) for name in rows}
            best[title] = rows[max(means, key=means.get)]
            rival = max(rivals, key=means.get)
            lines.append(f"{title}, against {rows[rival]} (the best of the others)")
            for name in ours:
                d = paired(groups, name, rival, "miou")
                said = f"{d.mean:+5.1f}, [{d.low:+.1f}, {d.high:+.1f}]: {verdict(d)}"
                lines.append(f"   {rows[name]:18s}{said}")
    highest = "; ".join(f"{title}: {name}" for title, name in best.items())
    alt = (
        f"Mean IoU of {len(rows)} methods on rooms and streets, with thermal and with depth, seeds as "
        f"rings. Highest means: {highest}."
    )
    return method_bars(panels, rows), alt, "\n".join(lines)
