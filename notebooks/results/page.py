"""Write the results page, ``README.md`` beside this file, from the records.

    python notebooks/results/page.py

Every number on the page is read from a record here, so that neither a table nor a sentence can differ from
what was measured. Which of two is higher, and whether the difference is clear, is said in words; such
sentences, also those of the README and of the notebooks, stand in ``sentences.json`` beside the records that
they come from, and a test evaluates each of them.
"""

import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import mean

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # the course's own package, and titles, are not installed

from course.record_figures import by_seed, grouped, paired, per_seed  # noqa: E402
from course.record_figures import read_record as read  # noqa: E402
from titles import ABLATION, FAILURES, FUSIONS, METHODS, OBJECTIVES, PRETRAINED, WAYS, WITHOUT_DROPOUT  # noqa: E402

from mmlib.evaluation.statistics import Estimate, estimate  # noqa: E402

PAIRS = ("room RT", "room RD", "street RT", "street RD", "room RNPA", "street RNPA")


def group_of(record: dict, name: str) -> dict:
    """A group of runs: its seeds, and one number a seed by key ("summary", "miou"), for ``per_seed``.

    Args:
        name: of a record of ``compare`` that of the group, of failures with a rule of fusion, "street-full
            agreement", or with a rule and a failure, "street-full mean dark gross"; of clusterings
            "SCENE SENSORS METHOD", such as "room RT unim2"; of frozen features "SCENE FEATURES DIRECTIONS
            SENSORS".

    Raises:
        KeyError: no such group.
    """
    if "rows" in record:
        scene, features, directions, sensors = name.split(" ", 3)
        wanted = {"scene": scene, "name": features, "whiten": int(directions), "sensors": sensors}
        (row,) = (row for row in record["rows"] if wanted.items() <= row.items())
        return {"seeds": range(len(row["miou"])), "summary": {"all": row}}
    if "runs" in record:
        scene, sensors, method = name.split(" ", 2)
        return grouped(record, scene, sensors)[method]
    name, rule, kind = [*name.split(" ", 2), "", ""][:3]
    group = record["groups"][name]
    if not rule:
        return group
    if kind:  # by the sensors that fail
        scores = [one["miou"][rule][kind] for one in group["failures"]]
        by_sensors = {key: [s[key] for s in scores] for key in scores[0]}
        return {"seeds": group["seeds"], "summary": {"all": {}}, "miou": {"all": by_sensors}}
    scores = [one["summary"][rule] for one in group["failures"]]
    return {"seeds": group["seeds"], "summary": {"all": {key: [s[key] for s in scores] for key in scores[0]}}}


def numbers(record: dict, name: str, key: str) -> list[float]:
    """One number a seed.

    Args:
        key: "full", "mean", "min", "gap" or a subset such as "RD"; "cpu_seconds"; of failures "double gross",
            or the sensors that fail; of clusterings "miou", "accuracy" or "miou_by_condition/night".

    Raises:
        KeyError: no such group or number.
    """
    group = group_of(record, name)
    return group[key] if key == "cpu_seconds" else per_seed(group, key)


def difference(record: dict, a: str, b: str, key: str, other: dict | None = None) -> Estimate:
    """a minus b, which is of the record ``other`` if there is one, paired by the seeds that both have."""
    return paired({"a": group_of(record, a), "b": group_of(other or record, b)}, "a", "b", key)


def average(record: dict, group: str, key: str) -> float:
    """Mean over seeds."""
    return mean(numbers(record, group, key))


def cost(record: dict, group: str) -> str:
    """CPU seconds of a run, of those that ran without a GPU; the others have no such number."""
    known = [seconds for seconds in numbers(record, group, "cpu_seconds") if seconds is not None]
    return f"{mean(known):.0f}" if known else "GPU"


def spread(record: dict, group: str, key: str) -> str:
    """Mean ± sd over seeds; the mean alone where there is one seed."""
    number = estimate(numbers(record, group, key))
    return f"{number.mean:.1f}" + f" ± {number.sd:.1f}" * (number.n > 1)


def gain(record: dict, a: str, b: str, key: str) -> str:
    """a minus b with its 95 % interval, bold where that excludes zero; one seed has no interval."""
    return interval_text(difference(record, a, b, key))


def interval_text(number: Estimate) -> str:
    """A difference with its 95 % interval, bold where that excludes zero; one seed has no interval."""
    interval = f" [{number.low:+.1f}, {number.high:+.1f}]" if number.n > 1 else " (one seed)"
    text = f"{number.mean:+.1f}{interval}".replace("-", "−")
    return f"**{text}**" if number.clear else text


def table(*rows) -> str:
    """A table of Markdown; the first row has its headings, the first column is text."""
    lines = [" | ".join(map(str, row)) for row in rows]
    rule = " | ".join(["---"] + ["---:"] * (len(rows[0]) - 1))
    return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]])


def source(name: str, command: str = "") -> str:
    """Where a table comes from: record, command, split, seeds, cost, machine and date."""
    record = read(name)
    about = record["provenance"]
    if "rows" in record:
        seeds, seconds = range(len(record["rows"][0]["miou"])), 0
    elif "runs" in record:
        seeds = {run["seed"] for run in record["runs"]}
        seconds = sum(run["cpu_seconds"] for run in record["runs"])
    else:
        seeds = {seed for group in record["groups"].values() for seed in group["seeds"]}
        seconds = sum(sum(filter(None, group["cpu_seconds"])) for group in record["groups"].values())
    time = f"{seconds / 3600:.1f} CPU hours" if seconds > 600 else f"{seconds / 60:.0f} CPU minutes"
    cost = f"{time} in all; " if seconds else ""
    made = f", made by `{command}`" if command else ""
    tokens = f"tokens whitened to {record['whiten']} directions; " if "whiten" in record else ""
    return (
        f"Record [`{name}.json`]({name}.json){made}; {tokens}split *{record['split']}*, "
        f"{f'seeds 0 to {max(seeds)}' if max(seeds) else 'seed 0'}; "
        f"{cost}{about['machine']}, torch {about['torch']}, {about['date']}."
    )


def subset_table(name: str, prefix: str) -> str:
    """Three objectives by subset."""
    record = read(name)
    subsets = list(record["groups"][f"{prefix}-full"]["miou"]["all"])
    single = [subset for subset in subsets if len(subset) == 1]
    rows = [["trained with", *single, subsets[-1], f"mean of {len(subsets)}", "worst", "gap", "CPU s"]]
    for kind, title in OBJECTIVES.items():
        group = f"{prefix}-{kind}"
        of = partial(spread, record, group)
        alone = [f"{average(record, group, key):.1f}" for key in single]
        rows.append([title, *alone, of("full"), of("mean"), of("min"), of("gap"), cost(record, group)])
    return table(*rows)


def ablation_table(name: str, prefix: str, titles: dict[str, str]) -> str:
    """Every objective that the record has, against the first one."""
    record, reference = read(name), f"{prefix}-{next(iter(titles))}"
    rows = [["objective", "all sensors", "Δ", "mean of 15", "Δ", "worst", "gap", "CPU s"]]
    for kind, title in titles.items():
        group, cells = f"{prefix}-{kind}", []
        if group not in record["groups"]:
            continue
        for key in ("full", "mean"):
            cells += [
                spread(record, group, key),
                gain(record, group, reference, key) if group != reference else "",
            ]
        cells += [spread(record, group, "min"), spread(record, group, "gap"), cost(record, group)]
        rows.append([title, *cells])
    return table(*rows)


def pretrained_table(name: str, prefix: str) -> str:
    """Objectives, terms and networks with a pretrained encoder, as far as the record has them."""
    record = read(name)
    subsets = list(record["groups"][f"{prefix}-dropout"]["miou"]["all"])
    single = [subset for subset in subsets if len(subset) == 1]
    head = ["trained with", "seeds", *single, "all sensors", f"mean of {len(subsets)}", "Δ mean", "worst"]
    rows = [[*head, "class acc.", "gap", "CPU s"]]
    for kind, title in PRETRAINED.items():
        group = f"{prefix}-{kind}"
        if group not in record["groups"]:
            continue
        of = partial(spread, record, group)
        alone = [f"{average(record, group, key):.1f}" for key in single]
        delta = "" if kind == "dropout" else gain(record, group, f"{prefix}-dropout", "mean")
        seeds = len(record["groups"][group]["seeds"])
        scores = [of("full"), of("mean"), delta, of("min"), of("class accuracy"), of("gap")]
        rows.append([title, seeds, *alone, *scores, cost(record, group)])
    return table(*rows)


def repeated(name: str) -> str:
    """How far runs lie from those with the same seed on another machine, and from other seeds on their own."""
    record = read(name)
    again, root_mean_square = record["repeated"], lambda values: mean(v * v for v in values) ** 0.5
    pairs = [(record["groups"][group], other) for group, other in again["groups"].items()]
    machines, seeds = [], []
    for key in ("full", "mean"):
        moved = [
            value - by_seed(one, key)[seed]
            for one, other in pairs
            for seed, value in by_seed(other, key).items()
        ]
        machines.append(f"{root_mean_square(moved):.1f}")
        spreads = [estimate(per_seed(one, key)).sd for one, _ in pairs]
        seeds.append(f"{2**0.5 * root_mean_square(spreads):.1f}")
    return (
        f"{len(moved)} runs were repeated with the same seed on an {again['machine']} in {again['precision']}. "
        f"They differ from these by {machines[0]} points with both and {machines[1]} on the mean (root mean "
        f"square); two seeds on one machine, by {seeds[0]} and {seeds[1]}."
    )


def elsewhere(name: str, a: str, b: str, key: str) -> str:
    """a minus b as ``gain``, with the runs of the other machine in the place of those with their seeds."""
    record, groups = read(name), {}
    for group in (a, b):
        mixed = by_seed(record["groups"][group], key) | by_seed(record["repeated"]["groups"][group], key)
        groups[group] = {"seeds": list(mixed), "summary": {"all": {key: list(mixed.values())}}}
    return gain({"groups": groups}, a, b, key)


def candidates_table(data: str) -> str:
    """What was tried for more than all subsets gain, each beside its control."""
    record = read("candidates")
    rows = [
        ["variant", "seeds", "CPU s", "all sensors", "mean", "worst", "Δ mean: all subsets", "Δ: dropout"]
    ]
    for name, variant in record["variants"].items():
        group = f"{data}-{name}"
        if group not in record["groups"]:
            continue
        cells = [spread(record, group, key) for key in ("full", "mean", "min")]
        for reference in (f"{data}-all-subsets", f"{data}-dropout"):
            same = group == reference or reference not in record["groups"]
            cells.append("" if same else gain(record, group, reference, "mean"))
        seeds = len(record["groups"][group]["seeds"])
        rows.append([variant["title"], seeds, cost(record, group), *cells])
    return table(*rows)


def candidates_list() -> str:
    """How each variant was built, and what came of it."""
    lines = []
    for variant in read("candidates")["variants"].values():
        if "verdict" in variant:
            title = variant["title"][0].upper() + variant["title"][1:]
            lines.append(f"* **{title}.** {variant['what']} {variant['verdict']}")
    return "\n".join(lines)


def failure_table() -> str:
    """Rules of fusion while sensors fail."""
    record = read("failures")
    rows = [["trained with, fused by", "sound", "one mild", "one gross", "two mild", "two gross"]]
    for kind in ("dropout", "all-subsets"):
        for rule, title in FUSIONS.items():
            cells = [spread(record, f"street-{kind} {rule}", failure) for failure in FAILURES]
            rows.append([f"{OBJECTIVES[kind].removesuffix(' (default)')}, {title}", *cells])
    return table(*rows)


def cluster_cell(record: dict, group: str) -> str:
    """mIoU ± sd, accuracy in brackets; empty where there is no run."""
    try:
        accuracy = average(record, group, "accuracy")
        return f"{spread(record, group, 'miou')} ({accuracy:.0f})"
    except KeyError:
        return ""


def cluster_table(name: str, settings: tuple[str, ...]) -> str:
    """Methods by scene and sensors."""
    record, rows = read(name), [["method", *settings]]
    for method in ("kmeans", "kmeans-whitened", "stego", "eagle"):
        for which, sensor in (("colour", lambda pair: "R"), ("other sensor", lambda pair: pair[1:])):
            cells = []
            for setting in settings:
                scene, pair = setting.split()
                cells.append(cluster_cell(record, f"{scene} {sensor(pair)} {method}"))
            if any(cells):
                title = {
                    "kmeans": "k-means",
                    "kmeans-whitened": "k-means, 32 directions",
                    "stego": "STEGO",
                    "eagle": "in the manner of EAGLE",
                }[method]
                rows.append([f"{title}, {which}", *cells])
    for method, title in METHODS.items():
        cells = [cluster_cell(record, f"{setting} {method}") for setting in settings]
        if any(cells):
            rows.append([title, *cells])
    return table(*rows)


def gain_table(name: str, settings: tuple[str, ...], method: str, naive: tuple[str, ...]) -> str:
    """A method against the best method on colour alone, and against the best naive fusion."""
    record, rows = read(name), [["points of mIoU", *settings], ["mIoU"], ["over the best on colour alone"]]
    rows.append(["over the best naive fusion"])
    for setting in settings:
        scene = setting.split()[0]
        score = lambda group: average(record, group, "miou")
        alone = [
            f"{scene} R {one}" for one in ("kmeans", "stego") if cluster_cell(record, f"{scene} R {one}")
        ]
        fused = [f"{setting} {one}" for one in naive if cluster_cell(record, f"{setting} {one}")]
        own = f"{setting} {method}"
        rows[1].append(spread(record, own, "miou"))
        rows[2].append(gain(record, own, max(alone, key=score), "miou") if alone else "")
        rows[3].append(gain(record, own, max(fused, key=score), "miou") if fused else "")
    return table(*rows)


def seeds_of_rows(name: str) -> str:
    """How many training seeds the rows of a record of clusterings have."""
    runs = read(name)["runs"]
    counts = Counter(Counter((run["scene"], run["sensors"], run["method"]) for run in runs).values())
    most = max(counts)
    fewer = [f"{count} cells have {seeds}" for seeds, count in sorted(counts.items()) if seeds < most]
    return f"{most} seeds" + (f"; {', '.join(fewer)}." if fewer else ".")


def search_table() -> str:
    """What choosing without labels was worth, beside the mean trial and the choice by labels."""
    rows = [["searched on rooms", "mean of the trials", "chosen", "best by labels", *CRITERIA]]
    for name, found in read("cluster_search")["searches"].items():
        scores = [trial["scores"]["miou"] for trial in found["trials"]]
        ranks = [f"{found['rank correlation with mIoU'][key]:+.2f}".replace("-", "−") for key in CRITERIA]
        chosen = found["best"]["scores"]["miou"]
        rows.append([SEARCHES[name], f"{mean(scores):.1f}", f"{chosen:.1f}", f"{max(scores):.1f}", *ranks])
    return (
        table(*rows)
        + "\n\nThe last three columns: rank correlation of a criterion with mIoU over the trials. The "
        "sampler looks at *explained* as it goes, so that the mean of the trials already profits from it."
    )


def best(record: dict, setting: str, *prefixes: str) -> str:
    """The method with the highest mean mIoU among those whose name begins so."""
    names = {run["method"] for run in record["runs"] if run["method"].startswith(prefixes)}
    have = [name for name in sorted(names) if cluster_cell(record, f"{setting} {name}")]
    return max(have, key=lambda name: average(record, f"{setting} {name}", "miou"))


def second_sensor_tables() -> str:
    """What the best single sensor and the best naive fusion have, and ways to do better than both."""
    record = read("second_sensor")
    settings = list(dict.fromkeys(f"{run['scene']} {run['sensors']}" for run in record["runs"]))
    bars = {title: [] for title in ("best single sensor", "best naive fusion")}
    for title, prefixes in zip(bars, (("first", "second"), ("beside", "added", "joint"))):
        for setting in settings:
            name = best(record, setting, *prefixes)
            bars[title].append((name, f"{spread(record, f'{setting} {name}', 'miou')} ({name})"))
    names = [[name for name, _ in bar] for bar in bars.values()]
    rows = [["mIoU (%)", *settings]] + [[title, *(cell for _, cell in bar)] for title, bar in bars.items()]
    ways = [["mIoU: over single, over naive, over shuffled", *settings, "won", "CPU s"]]
    for way, title in WAYS.items():
        cells, won, cpu = [], [], []
        for setting, *bar in zip(settings, *names):
            own = f"{setting} {way}"
            cells.append(cluster_cell(record, own).split(" (")[0])
            others = bar if "/" in way else [*bar, f"{way}/shuffled"]
            gains = [difference(record, own, f"{setting} {other}", "miou") for other in others]
            texts = [f"{gain.mean:+.1f}".replace("-", "−") for gain in gains]
            cells[-1] += ": " + ", ".join(f"**{t}**" if g.clear else t for t, g in zip(texts, gains))
            won.append(all(gain.low > 0 for gain in gains))
            cpu += per_seed(group_of(record, own), "cpu_seconds")
        verdict = "" if "/" in way else f"{sum(won)} of {len(won)}"
        ways.append([title, *cells, verdict, f"{mean(cpu):.1f}"])
    return table(*rows) + "\n\n" + table(*ways)


def features_table() -> str:
    """k-means by the frozen features that it clusters."""
    rows = read("kmeans_features")["rows"]
    settings = list(dict.fromkeys((row["scene"], row["sensors"]) for row in rows))
    cells = {}
    for row in rows:
        title = row["name"] + (f", whitened to {row['whiten']}" if row["whiten"] else "")
        number = estimate(row["miou"])
        cells.setdefault(title, {})[row["scene"], row["sensors"]] = f"{number.mean:.1f} ± {number.sd:.1f}"
    heading = ["features", *(f"{scene}: {sensors}" for scene, sensors in settings)]
    return table(heading, *([title, *map(own.get, settings)] for title, own in cells.items()))


def benchmarks() -> str:
    """What the benchmarks printed, with their commands."""
    text = (HERE / "benchmarks.txt").read_text(encoding="utf-8").strip()
    return f"```text\n{text}\n```"


CRITERIA = ("explained", "agreement", "silhouette")
SEARCHES = {"stego": "STEGO, colour", "stego-conv": "STEGO, conv fusion, RT", "unim2": "UniM2, RT"}
SEARCHES |= {f"{name}-32": f"{title}, whitened to 32" for name, title in SEARCHES.items()}
NAIVE = ("kmeans", "stego-feature", "stego-conv")
PVT = {"dropout": "modality dropout (reference)", "input-0.1": "+ R_p at the input, λ 0.1"} | {
    kind: OBJECTIVES[kind] for kind in ("full", "all-subsets")
}
# What stands in double braces in page.md: a name and its arguments, divided by "|".
PARTS = {
    "source": source,
    "subsets": subset_table,
    "ablation": lambda: ablation_table("street_ablation", "short", ABLATION),
    "without_dropout": lambda: ablation_table("street_ablation", "short", WITHOUT_DROPOUT),
    "pretrained": pretrained_table,
    "candidates": candidates_table,
    "variants": candidates_list,
    "note": lambda name: read(name)["note"],
    "repeated": repeated,
    "elsewhere": elsewhere,
    "transformer": lambda: ablation_table("street_pvt", "pvt", PVT),
    "failures": failure_table,
    "clusters": lambda: cluster_table("clusters", PAIRS),
    "features": features_table,
    "frames": lambda: cluster_table("clusters_nyu", ("real RD",)),
    "gains": lambda name, method: gain_table(name, PAIRS[:4], method, [n for n in NAIVE if n != method]),
    "seeds": seeds_of_rows,
    "searched": lambda group: interval_text(
        difference(read("clusters_selected"), group, group, "miou", read("clusters"))
    ),
    "search": search_table,
    "second": second_sensor_tables,
    "benchmarks": benchmarks,
    "gain": lambda name, *which: gain(read(name), *which),
    "spread": lambda name, *which: spread(read(name), *which),
}


def page() -> str:
    """The whole page: ``page.md`` with the tables and numbers in place."""

    def part(match: re.Match) -> str:
        name, *arguments = (word.strip() for word in match[1].split("|"))
        return PARTS[name](*arguments)

    text = (HERE / "page.md").read_text(encoding="utf-8")
    return re.sub(r"\{\{(.+?)\}\}", part, text)


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
    print(f"wrote {HERE.name}/README.md")
