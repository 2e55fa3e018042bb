"""Repeat the reference runs whose records lie beside this file. Resumable: what is finished is not run again.

    make results                                                     # the sensor world, all of it
    python notebooks/results/reproduce.py ablation --jobs 2          # one part, two runs at a time
    python notebooks/results/reproduce.py nyu --frames DIR           # real RGB-D frames, where you have them

    street    three objectives, 20 epochs, 5 seeds -> street_subsets.json, the two networks of the
              switchboard, the pictures of README and results page
    ablation  every baseline, reading and weight on a short schedule, 3 seeds; the objectives, and the terms
              without dropout, 5 -> street_ablation.json (two hours)
    pretrained  objectives and regularisers with an encoder that has ImageNet weights, 5 seeds
              -> street_pretrained.json (two hours)
    pvt       three objectives and R_p with a pyramid transformer, short schedule, 3 seeds, the
              objectives 5 -> street_pvt.json (an hour)
    curves    information and scores while training, 2 seeds -> fisher_curves.json
    failures  fusion rules under unannounced failures, networks of "street" -> failures.json
    search    settings of three methods chosen without labels, on rooms -> cluster_search.json (an hour)
    clusters  segmentation without labels: clusters.py, cluster_panel.py -> clusters.json,
              clusters_selected.json, cluster_panel.npz (two hours, of which EAGLE takes half)
    nyu       real frames: three objectives from scratch, 5 seeds -> nyu_subsets.json (two hours); objectives,
              regularisers and networks with pretrained weights, 5 seeds
              -> nyu_pretrained.json (four hours); without labels clusters_nyu.json, kmeans_features.json,
              second_sensor.json (half an hour)

Each training takes one to five minutes on one core, a clustering ten to twenty seconds. Networks and
histories go to runs/.
"""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from scipy.stats import spearmanr

from mmlib.evaluation.statistics import rounded
from mmlib.loop import read_history
from mmlib.runtime import write_json

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("notebooks/results")
# A dropout step encodes 32/15 of the 4 sensors on average: 15/8 as many epochs encode as many images as the
# other objectives.
STREET = {
    "full": "--subsets full --epochs 20",
    "dropout": "--subsets dropout --epochs 37.5",
    "all-subsets": "--epochs 20",
}
DROPOUT = "--subsets dropout --epochs 11.25"
SHORT = {
    "full": "--subsets full --epochs 6",
    "dropout": DROPOUT,
    "all-subsets": "--epochs 6",
    # baselines
    "singles": "--subsets singles --evidence mean --epochs 6",
    "selection": "--subsets selection --epochs 6",
    "centred": "--subsets full --fusion centred --epochs 6",
    "cmx": "--subsets full --fusion cmx --epochs 6",
    "shared-dropout": f"{DROPOUT} --stem shared",
    "shared-all": "--stem shared --epochs 6",
    "gat": f"{DROPOUT} --prediction gat --lambda-p 1e-10",
    # readings of R_p and R_f, on modality dropout as in the paper
    "input-0.03": f"{DROPOUT} --prediction input --lambda-p 0.03",
    "input-0.1": f"{DROPOUT} --prediction input --lambda-p 0.1",
    "input-0.3": f"{DROPOUT} --prediction input --lambda-p 0.3",
    "inverse": f"{DROPOUT} --prediction input --form inverse --lambda-p 0.3",
    "share": f"{DROPOUT} --prediction input --form share --lambda-p 0.1",
    "variance": f"{DROPOUT} --prediction input --variance --lambda-p 0.1",
    "consistency": f"{DROPOUT} --prediction consistency --lambda-p 0.1",
    "unimodal": f"{DROPOUT} --prediction unimodal-logit --form inverse --lambda-p 0.3",
    "kl-0.02": f"{DROPOUT} --features kl --lambda-f 0.02",
    "ce": f"{DROPOUT} --features ce --form inverse --lambda-f 0.02",
    "decoder": f"{DROPOUT} --features decoder --lambda-f 0.02",
    "paper": f"{DROPOUT} --prediction input --lambda-p 0.1 --features kl --lambda-f 0.02",
    # the paper's network and terms, in the closed forms that fit its Table 8
    "shared-paper": f"{DROPOUT} --stem shared --prediction unimodal-logit --features kl --form inverse",
    # the terms without modality dropout (the paper's Table 5), and a sweep of lambda_f (its Table 7)
    "full+input": "--subsets full --epochs 6 --prediction input --lambda-p 0.1",
    "full+kl": "--subsets full --epochs 6 --features kl --lambda-f 0.02",
    "full+paper": "--subsets full --epochs 6 --prediction input --lambda-p 0.1 --features kl --lambda-f 0.02",
    "kl-0.005": f"{DROPOUT} --features kl --lambda-f 0.005",
    "kl-0.1": f"{DROPOUT} --features kl --lambda-f 0.1",
    "kl-0.5": f"{DROPOUT} --features kl --lambda-f 0.5",
    # the ingredients of all-subsets, one taken out: sums of logits as evidence; the weight of the full set
    "all-mean": "--evidence mean --epochs 6",
    "all-w1": "--full-weight 1 --epochs 6",
    # a term on top of all subsets
    "all+input": "--epochs 6 --prediction input --lambda-p 0.1",
    # one network per sensor
    **{
        f"only-{name}": f"--subsets full --modalities {name} --epochs 6"
        for name in ("rgb", "depth", "event", "lidar")
    },
}
CURVES = {
    "full": SHORT["full"],
    "dropout": SHORT["dropout"],
    "input": SHORT["input-0.1"],
    "paper": SHORT["paper"],
}
# No criterion without labels compares between spaces of tokens: each has a search of its own.
SEARCHES = {
    f"{name}{ending}": f"--whiten {whiten} {flags}"
    for whiten, ending in ((64, ""), (32, "-32"))
    for name, flags in {
        "stego": "--method stego --modalities rgb",
        "stego-conv": "--method stego --modalities rgb thermal --fusion conv",
        "unim2": "--method unim2 --modalities rgb thermal",
    }.items()
}
# Two sensors: a dropout step encodes 4/3 of them on average, so half as many epochs again encode as many
# images.
NYU = {
    "full": "--subsets full --epochs 30",
    "dropout": "--subsets dropout --epochs 45",
    "all-subsets": "--epochs 30",
}
# An encoder with ImageNet weights, on real frames and on the street world. The learning rate was chosen on
# val (seed 0, 4 epochs, from 5e-4, 1e-3 and 2e-3).
PRETRAINED = "--encoder tf_efficientnet_lite0 --pretrained --lr 2e-3 --eval-every 0"
LONGER = "--subsets dropout --epochs 9"
NYU_PRETRAINED = {
    "full": "--subsets full --epochs 6",
    "dropout": LONGER,
    "all-subsets": "--epochs 6",
    "input-0.03": f"{LONGER} --prediction input --lambda-p 0.03",
    "input-0.1": f"{LONGER} --prediction input --lambda-p 0.1",
    "kl-0.02": f"{LONGER} --features kl --lambda-f 0.02",
    "paper": f"{LONGER} --prediction input --lambda-p 0.1 --features kl --lambda-f 0.02",
    "cmx": "--subsets full --fusion cmx --epochs 6",
    "shared-dropout": f"{LONGER} --stem shared",
    "shared-all": "--stem shared --epochs 6",
}
STREET_PRETRAINED = {
    kind: SHORT[kind] for kind in ("full", "dropout", "all-subsets", "input-0.1", "full+input", "full+paper")
}


Part = Literal[
    "world", "street", "ablation", "pretrained", "pvt", "curves", "failures", "search", "clusters", "nyu"
]


@dataclass(frozen=True)
class Options:
    """Repeat the reference runs."""

    which: tyro.conf.Positional[Part] = "world"
    """One part; world = all parts on the sensor world."""
    frames: str = ""
    """nyu: folder of frames (see data_scripts/prepare_nyu.py)."""
    jobs: int = 1
    """Runs at a time; each uses one CPU core."""


def call(*arguments: str) -> None:
    print("python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def runs(group: str, data: str, kinds: dict[str, str], extra: str, seeds: int, jobs: int) -> list[str]:
    """Train every kind with every seed -> the folders, by kind."""
    folders = [(f"runs/{group}-{kind}-{seed}", kind, seed) for seed in range(seeds) for kind in kinds]
    commands = [
        shlex.split(
            f"-m mmlib train --data {data} --out {folder} --seed {seed} {kinds[kind]} {extra} --no-progress"
        )
        for folder, kind, seed in folders
        if not (ROOT / folder / "report.json").exists()
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda command: call(*command), commands))
    return [folder for kind in kinds for folder, k, _ in folders if k == kind]


def compare(folders: list[str], record: str, *extra: str) -> None:
    out = "--out", str(RESULTS / record), "--overwrite"
    call("-m", "mmlib", "compare", *folders, *out, "--no-progress", *extra)


def street(jobs: int) -> None:
    folders = runs("street", "street", STREET, "--batch-size 2", 5, jobs)
    compare(folders, "street_subsets.json", "--split", "test")
    from mmlib.segmentation.network import load_segmenter, read_header, save_segmenter

    for kind in (
        "full",
        "all-subsets",
    ):  # half precision: half the size, and the argmax of one pixel in some thousands differs
        source = ROOT / f"runs/street-{kind}-0/last.safetensors"
        save_segmenter(
            load_segmenter(source).half(),
            ROOT / RESULTS / f"street_{kind}.safetensors",
            **read_header(source)["notes"],
        )
    picture(ROOT / RESULTS / "street.png", load_segmenter(ROOT / RESULTS / "street_all-subsets.safetensors"))
    call(str(RESULTS / "moving_picture.py"))


def ablation(jobs: int) -> None:
    extra = "--batch-size 2 --crop 64 96 --eval-every 0"
    five = {kind: SHORT[kind] for kind in (*STREET, "full+input", "full+kl", "full+paper")}
    three = {kind: options for kind, options in SHORT.items() if kind not in five}
    folders = runs("short", "street", five, extra, 5, jobs) + runs("short", "street", three, extra, 3, jobs)
    compare(folders, "street_ablation.json", "--split", "test")


def pretrained(jobs: int) -> None:
    extra = f"{PRETRAINED} --batch-size 2 --crop 64 96"
    folders = runs("street-pretrained", "street", STREET_PRETRAINED, extra, 5, jobs)
    compare(folders, "street_pretrained.json", "--split", "test")


def pvt(jobs: int) -> None:
    extra = "--batch-size 2 --crop 64 96 --eval-every 0 --encoder pvt_v2_b0 --lr 5e-4"
    folders = runs("pvt", "street", {kind: SHORT[kind] for kind in STREET}, extra, 5, jobs)
    folders += runs("pvt", "street", {"input-0.1": SHORT["input-0.1"]}, extra, 3, jobs)
    compare(folders, "street_pvt.json", "--split", "test")


def curves(jobs: int) -> None:
    extra = "--batch-size 2 --crop 64 96 --eval-every 1"
    compare(runs("curve", "street", CURVES, extra, 2, jobs), "fisher_curves.json", "--split", "val")
    path = ROOT / RESULTS / "fisher_curves.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, group in record["groups"].items():  # and what was measured while they trained
        group["curves"] = [curve(ROOT / f"runs/{name}-{seed}") for seed in group["seeds"]]
    write_json(path, rounded(record, significant=5))


def curve(folder: Path) -> list[dict]:
    """The evaluations of a run: epoch, summary, mIoU of each subset, Fisher information of each sensor."""
    kept = ("epoch", "miou", "information")
    evaluations = read_history(folder / "history.jsonl")[1]
    return [line["val"] | {key: line[key] for key in kept} for line in evaluations]


def failures(jobs: int) -> None:
    folders = runs("street", "street", STREET, "--batch-size 2", 3, jobs)
    compare(folders, "failures.json", "--split", "test", "--failures", "24", "--information-samples", "0")


def rank_correlations(trials: list[dict]) -> dict[str, float]:
    """Spearman's, of each label-free criterion and of each setting with the trials' mIoU: would labels have
    chosen the same? What never changes has none.
    """
    miou = [trial["scores"]["miou"] for trial in trials]
    settings = trials[0].keys() - {"number", "value", "criteria", "scores"}
    columns = {name: [trial["criteria"][name] for trial in trials] for name in trials[0]["criteria"]}
    columns |= {name: [trial[name] for trial in trials] for name in sorted(settings)}
    return {
        name: round(float(spearmanr(values, miou).statistic), 3)
        for name, values in columns.items()
        if len(set(values)) > 1
    }


def search(jobs: int) -> None:
    """Trials are measured on val; their scores are looked at after the choice."""
    settings = "--data room --points 64 --steps 150 --restarts 3 --repeats 1 --kmeans-points 6000"
    commands = {name: f"-m mmlib search {settings} --trials 60 {SEARCHES[name]}" for name in SEARCHES}
    out = {name: f"runs/search/{name}" for name in SEARCHES}
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                lambda name: call(*commands[name].split(), "--out", out[name], "--no-progress"), SEARCHES
            )
        )
    found = {}
    for name, folder in out.items():
        report = json.loads((ROOT / folder / "report.json").read_text(encoding="utf-8"))
        for trial in [*report["trials"], report["best"]]:
            del trial["flags"]
        report["rank correlation with mIoU"] = rank_correlations(report["trials"])
        report["best mIoU of any trial"] = max(trial["scores"]["miou"] for trial in report["trials"])
        found[name] = {**report, "provenance": report["provenance"] | {"command": f"python {commands[name]}"}}
    note = "rooms; scores are on val and were looked at after the choice"
    write_json(
        ROOT / RESULTS / "cluster_search.json", rounded({"note": note, "searches": found}, significant=4)
    )


def clusters(jobs: int) -> None:
    script = str(RESULTS / "clusters.py")
    for arguments in ([], ["selected"]):
        parts = [[script, *arguments, "--parts", str(jobs), "--part", str(part)] for part in range(jobs)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda command: call(*command), parts))
        call(script, *arguments)  # nothing is left to run: this writes the whole record
    call(str(RESULTS / "cluster_panel.py"))


def picture(path: Path, network) -> None:
    """The README's picture: scenes by row, sensors by column, label and prediction last."""
    sys.path.insert(0, str(ROOT / "notebooks"))  # the course's own package, which is not installed
    from course.charts import small_png
    from course.world_source import physical_images

    from mmlib import world
    from mmlib.figures import label_picture, picture_grid, sensor_title, use_style
    from mmlib.figures import picture as draw
    from mmlib.modalities import SENSORS

    use_style()
    rows, conditions = [], ("day", "dusk", "night", "fog")
    for condition, seed in zip(
        conditions, (910_001, 910_004, 910_007, 910_010)
    ):  # beyond the rendered test scenes
        frame = world.render_frame("street", seed, condition)
        physical = physical_images(frame)
        images = {
            n: torch.from_numpy(m.to_network(physical[n]))[None].float()
            for n, m in network.modalities.items()
        }
        with torch.no_grad():
            prediction = network(images)[0].argmax(0).numpy()
        fine = world.render_frame(
            "street", seed, condition, size=(288, 384), modalities=[*network.modalities, "thermal"]
        )
        row = {
            sensor_title(SENSORS[n]): draw(SENSORS[n], image) for n, image in physical_images(fine).items()
        }
        rows.append(
            row
            | {
                "label": label_picture(fine.label, network.palette),
                "prediction": label_picture(prediction, network.palette),
            }
        )
    fig = picture_grid(rows, conditions, width=14)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    path.write_bytes(small_png(buffer.getvalue()))


def nyu(frames: str, jobs: int) -> None:
    def prepared(folder: str, size: str) -> str:
        if not (ROOT / folder / "index.csv").exists():
            if not frames:
                sys.exit("error: name the folder of frames with --frames (see data_scripts/prepare_nyu.py)")
            options = f"--out {folder} --size {size} --no-progress --frames"
            call("data_scripts/prepare_nyu.py", *options.split(), str(Path(frames).resolve()))
        return folder

    small = prepared("runs/nyu", "120 160")
    folders = runs("nyu", small, NYU, "--crop 120 160 --scale 0.75 1.6 --eval-every 10", 5, jobs)
    compare(folders, "nyu_subsets.json", "--split", "test")
    extra = f"{PRETRAINED} --crop 96 128 --scale 0.75 1.6"
    folders = runs("nyu-pretrained", small, NYU_PRETRAINED, extra, 5, jobs)
    compare(folders, "nyu_pretrained.json", "--split", "test")
    large = prepared("runs/nyu-240", "240 320")
    call(str(RESULTS / "clusters.py"), "nyu", "--data", large)
    call(str(RESULTS / "kmeans_features.py"), "--nyu", large)
    call(str(RESULTS / "second_sensor.py"), "--nyu", large)


def main(options: Options) -> None:
    if options.which == "nyu":
        return nyu(options.frames, options.jobs)
    call("-m", "mmlib", "render", "street", "--no-progress")
    if options.which == "pvt":
        return pvt(options.jobs)
    parts = {
        "street": street,
        "ablation": ablation,
        "pretrained": pretrained,
        "curves": curves,
        "failures": failures,
        "search": search,
        "clusters": clusters,
    }
    for name, part in parts.items():
        if options.which in (name, "world"):
            part(options.jobs)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"error: {shlex.join(map(str, error.cmd))} failed; mend the cause and run this again, it goes on where it stopped"
        )
