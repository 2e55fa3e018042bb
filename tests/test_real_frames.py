"""Real RGB-D frames from the converter through every command. They may not be distributed: skipped where they
are absent.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmlib import cli

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "nyuv2-train"


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real NYU frames are not on this machine (they may not be distributed)"
)
def test_real_frames_are_prepared_trained_on_scored_segmented_and_clustered(tmp_path, capsys):
    source, data, run = tmp_path / "frames", tmp_path / "nyu", tmp_path / "run"
    for name in ("rgb", "depth", "label13"):
        (source / name).mkdir(parents=True)
        for path in sorted((REAL / name).iterdir())[
            :120
        ]:  # eight blocks of fifteen: six to train on, one to choose, one to report
            (source / name / path.name).symlink_to(path)
    script = [
        sys.executable,
        ROOT / "data_scripts" / "prepare_nyu.py",
        "--frames",
        source,
        "--out",
        data,
        "--size",
        "48",
        "64",
    ]
    done = subprocess.run([*map(str, script), "--no-progress"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: 90 samples" in done.stdout and (data / "contact_sheet.png").exists()

    cli.main(
        f"train --data {data} --out {run} --epochs 3 --batch-size 8 --lr 1e-3 --eval-every 0 --no-progress".split()
    )
    assert (
        json.loads((run / "report.json").read_text())["scores"]["summary"]["all"]["full"] > 3
    )  # of 13 classes, after seconds

    scores = tmp_path / "scores.json"
    command = (
        f"evaluate {run}/last.safetensors --data {data} --split test --failure-probability 0.3 --no-progress"
    )
    cli.main([*command.split(), "--layout", str(tmp_path / "table"), "--out", str(scores)])
    assert json.loads(scores.read_text())["samples"] == 15 and "RD" in (tmp_path / "table.md").read_text()

    cli.main(
        f"predict {run}/last.safetensors depth={data}/depth --out {tmp_path}/found --no-progress".split()
    )  # in the dark
    masks = sorted((tmp_path / "found" / "masks").iterdir())
    assert len(masks) == 120 and np.asarray(Image.open(masks[0])).shape == (48, 64)
    assert {np.asarray(Image.open(mask)).max() < 13 for mask in masks} == {True}

    cli.main(
        f"cluster --data {data} --out {tmp_path}/clusters --steps 5 --batch-size 8 --no-progress".split()
    )
    report = json.loads((tmp_path / "clusters" / "report.json").read_text())
    assert report["scores"]["miou"]["all"] > 3 and report["chosen by"] != "labels"
    capsys.readouterr()
