"""Repeat the reference runs whose records lie beside this file. Resumable: what is finished is not run again.

    make results                                                     # the sensor world, on one core about an hour
    python notebooks/results/reproduce.py --jobs 2                   # two runs at a time
    python notebooks/results/reproduce.py nyu --frames DIR           # real RGB-D frames, where you have them

Writes street_subsets.json, the two networks of the switchboard and the picture of the README; or nyu_subsets.json. Networks and histories
go to runs/.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("notebooks/results")
SEEDS = (0, 1, 2)
# A dropout step encodes 32/15 of the 4 sensors on average: 15/8 as many epochs encode as many images as the other two objectives.
STREET = {"full": "--epochs 20", "dropout": "--epochs 37.5", "all-subsets": "--epochs 20"}
NYU = {"full": "--epochs 30", "all-subsets": "--epochs 30"}


@dataclass(frozen=True)
class Options:
    """Repeat the reference runs."""

    which: tyro.conf.Positional[Literal["street", "nyu"]] = "street"
    """The sensor world, or real RGB-D frames."""
    frames: str = ""
    """nyu: folder of frames (see data_scripts/prepare_nyu.py)."""
    jobs: int = 1
    """Runs at a time; each uses one CPU core."""


def call(*arguments: str) -> None:
    print("python", *arguments, flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def runs(which: str, data: str, objectives: dict[str, str], extra: str, jobs: int) -> list[str]:
    """Train every objective with every seed -> the folders, by objective."""
    folders = [(f"runs/{which}-{kind}-{seed}", kind, seed) for seed in SEEDS for kind in objectives]
    commands = [
        shlex.split(f"-m mmlib train --data {data} --out {folder} --subsets {kind} --seed {seed} {objectives[kind]} {extra} --no-progress")
        for folder, kind, seed in folders if not (ROOT / folder / "report.json").exists()
    ]  # fmt: skip
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda command: call(*command), commands))
    return [folder for kind in objectives for folder, k, _ in folders if k == kind]


def street(jobs: int) -> None:
    call("-m", "mmlib", "render", "street", "--no-progress")
    folders = runs("street", "street", STREET, "--batch-size 2", jobs)
    call("-m", "mmlib", "compare", *folders, "--split", "test", "--out", str(RESULTS / "street_subsets.json"), "--no-progress")
    from mmlib.segmentation.network import load_segmenter, read_header, save_segmenter

    for kind in ("full", "all-subsets"):  # half precision: half the size, and the argmax of one pixel in some thousands differs
        source = ROOT / f"runs/street-{kind}-0/last.safetensors"
        save_segmenter(load_segmenter(source).half(), ROOT / RESULTS / f"street_{kind}.safetensors", **read_header(source)["notes"])
    picture(ROOT / RESULTS / "street.png", load_segmenter(ROOT / RESULTS / "street_all-subsets.safetensors"))


def picture(path: Path, network) -> None:
    """The README's picture: scenes by row, sensors by column, label and prediction last."""
    from mmlib.data import world
    from mmlib.modalities import SENSORS
    from mmlib.viz.figures import label_picture, physical_images, picture_grid, sensor_title, small_png, use_style
    from mmlib.viz.figures import picture as draw

    use_style()
    rows, conditions = [], ("day", "dusk", "night", "fog")
    for condition, seed in zip(conditions, (910_001, 910_004, 910_007, 910_010)):  # beyond the rendered test scenes
        frame = world.render_frame("street", seed, condition)
        physical = physical_images(frame)
        images = {n: torch.from_numpy(m.to_network(physical[n]))[None].float() for n, m in network.modalities.items()}
        with torch.no_grad():
            prediction = network(images)[0].argmax(0).numpy()
        fine = world.render_frame("street", seed, condition, size=(288, 384), modalities=[*network.modalities, "thermal"])
        row = {sensor_title(SENSORS[n]): draw(SENSORS[n], image) for n, image in physical_images(fine).items()}
        rows.append(row | {"label": label_picture(fine.label, network.palette), "prediction": label_picture(prediction, network.palette)})
    fig = picture_grid(rows, conditions, width=14)
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=110)
    path.write_bytes(small_png(buffer.getvalue()))


def nyu(frames: str, jobs: int) -> None:
    if not (ROOT / "runs/nyu/index.csv").exists():
        if not frames:
            sys.exit("error: name the folder of frames with --frames (see data_scripts/prepare_nyu.py)")
        call(
            "data_scripts/prepare_nyu.py",
            "--frames",
            str(Path(frames).resolve()),
            "--out",
            "runs/nyu",
            "--size",
            "120",
            "160",
            "--no-progress",
        )
    folders = runs("nyu", "runs/nyu", NYU, "--crop 120 160 --scale 0.75 1.6 --eval-every 10", jobs)
    call("-m", "mmlib", "compare", *folders, "--split", "val", "--out", str(RESULTS / "nyu_subsets.json"), "--no-progress")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        street(options.jobs) if options.which == "street" else nyu(options.frames, options.jobs)
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {shlex.join(map(str, error.cmd))} failed; mend the cause and run this again, it goes on where it stopped")
