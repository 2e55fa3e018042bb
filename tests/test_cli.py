"""The command line as a stranger meets it: help, the whole path from rendering to comparison, and errors of
one line.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import toy

from mmlib import cli


def run(*arguments, **environment):
    command = [sys.executable, "-m", "mmlib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


EVERY_HELP = """
import sys
import psutil  # itself imports resource where there is one
sys.modules["resource"] = None  # as on Windows
from mmlib import cli
for words in [["--help"], *([name, "--help"] for name in cli.COMMANDS)]:
    try:
        cli.main(words)
    except SystemExit as end:
        assert not end.code, words
"""


def test_help_is_there_for_every_command_also_without_the_module_resource():
    done = subprocess.run([sys.executable, "-c", EVERY_HELP], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    for name in cli.COMMANDS:
        assert f"• {name} " in done.stdout
        assert f"usage: python -m mmlib {name} " in done.stdout


def test_from_rendering_to_comparison(tmp_path, capsys):
    world = tmp_path / "street"
    cli.main(
        [
            "render",
            "street",
            "--out",
            str(world),
            "--train",
            "6",
            "--val",
            "2",
            "--test",
            "2",
            "--size",
            "48",
            "64",
            "--no-progress",
        ]
    )
    quick = ["--data", str(world), "--epochs", "1", "--batch-size", "3", "--no-progress"]
    for seed in (0, 1):
        for kind in ("full", "all-subsets"):
            cli.main(
                [
                    "train",
                    *quick,
                    "--out",
                    str(tmp_path / f"{kind}-{seed}"),
                    "--subsets",
                    kind,
                    "--seed",
                    str(seed),
                ]
            )
    assert "mIoU in % on val, by subset: R " in capsys.readouterr().out

    cli.main(
        [
            "evaluate",
            str(tmp_path / "full-0" / "best.safetensors"),
            "--data",
            str(world),
            "--protocol",
            "black",
            "--out",
            str(tmp_path / "scores.json"),
            "--no-progress",
        ]
    )
    out = capsys.readouterr().out
    assert "absent sensors: black" in out and "RDEL" in out and "Pedestrian" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (
        scores["split"] == "val"
        and len(scores["scores"]["miou"]["all"]) == 15
        and scores["provenance"]["torch"]
    )

    options = [
        "--data",
        str(world),
        "--fusion",
        "agreement",
        "--failures",
        "2",
        "--out",
        str(tmp_path / "failures.json"),
        "--no-progress",
    ]
    cli.main(["evaluate", str(tmp_path / "full-0" / "best.safetensors"), *options])
    assert "fusion agreement" in capsys.readouterr().out
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert failures["fusion"] == "agreement" and failures["failures"]["samples"] == 2
    assert set(failures["failures"]["summary"]) == {"mean", "agreement", "selection", "entropy", "oracle"}

    folders = [str(tmp_path / f"{kind}-{seed}") for kind in ("full", "all-subsets") for seed in (0, 1)]
    cli.main(
        ["compare", *folders, "--split", "test", "--out", str(tmp_path / "compared.json"), "--no-progress"]
    )
    out = capsys.readouterr().out
    assert (
        "full  (seeds 0, 1" in out and "mean minus 'full'" in out and "95 % interval" in out and "gap" in out
    )
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert list(compared["groups"]) == ["full", "all-subsets"]
    with pytest.raises(SystemExit, match="a second run of 'full' with seed 0"):
        cli.main(["compare", folders[0], folders[0], "--no-progress"])
    group = compared["groups"]["full"]
    sensors = {"rgb", "depth", "event", "lidar"}
    assert set(group["information"]) == sensors and set(group["curves"][0][-1]["information"]) == sensors
    gaps = [max(v) / min(v) for v in zip(*group["information"].values())]
    assert group["summary"]["all"]["gap"] == pytest.approx(gaps, rel=1e-3)
    # A folder whose name does not end in its seed is known by what tells its settings from the others'.
    for folder, name in zip((folders[0], folders[2]), ("a", "b")):
        shutil.copytree(folder, tmp_path / name)
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--no-progress"])
    assert "\nsubsets full  (seeds 0" in capsys.readouterr().out
    shutil.copytree(folders[2], tmp_path / "full-7")
    with pytest.raises(SystemExit, match="full-7: other settings"):
        cli.main(["compare", folders[0], str(tmp_path / "full-7"), "--no-progress"])
    assert (
        group["seeds"] == [0, 1]
        and len(group["miou"]["all"]["RDEL"]) == 2
        and len(group["iou"]["R"]["Sky"]) == 2
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "--data", "nowhere", "--out", "{tmp}/run"], "'nowhere' is not a prepared data set"),
        (
            ["train", "--data", "{toy}", "--out", "{tmp}/run", "--modalities", "rgb", "sonar"],
            "unknown modality 'sonar'",
        ),
        (
            ["train", "--data", "{toy}", "--out", "{tmp}/run", "--epochs", "0"],
            "--epochs 0.0: expected above 0",
        ),
        (
            ["train", "--data", "{toy}", "--out", "{tmp}/run", "--lambda-p", "-1"],
            "--lambda-p -1.0: expected 0 or more; a negative one would reward imbalance",
        ),
        (
            ["train", "--data", "{toy}", "--out", "{tmp}/run", "--sigma", "0"],
            "--sigma 0.0: expected above 0; without noise there is no measure",
        ),
        (
            ["train", "--data", "{toy}", "--out", "{tmp}/run", "--fusion", "centred"],
            "give --subsets full or dropout",
        ),
        (
            [
                "train",
                "--data",
                "{toy}",
                "--out",
                "{tmp}/run",
                "--fusion",
                "centred",
                "--subsets",
                "full",
                "--features",
                "kl",
            ],
            "has no logits and features of single sensors",
        ),
        (
            [
                "train",
                "--data",
                "{toy}",
                "--out",
                "{tmp}/run",
                "--batch-size",
                "1",
                "--prediction",
                "gat",
                "--no-progress",
            ],
            "a batch of 2",
        ),
        (["evaluate", "none.safetensors", "--data", "{toy}"], "none.safetensors: no such file"),
        (["evaluate", "{toy}/dataset.json", "--data", "{toy}"], "not a file of this library, or damaged"),
        (["compare", "{tmp}"], "report.json: no such file"),
        (["render", "street", "--out", "{toy}", "--no-progress"], "already holds a finished data set"),
        (["render", "street", "--out", "{tmp}/w", "--size", "0", "10", "--no-progress"], "size"),
    ],
)
def test_errors_are_one_line(tmp_path, arguments, message):
    data = toy.make(tmp_path / "toy")
    with pytest.raises(SystemExit) as end:
        cli.main([a.format(tmp=tmp_path, toy=data) for a in arguments])
    assert end.value.code.startswith("error: ") and message in end.value.code and "\n" not in end.value.code


def test_a_checkpoint_of_other_classes_or_sensors_is_refused(tmp_path):
    data = toy.make(tmp_path / "toy")
    cli.main(["train", "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "1", "--no-progress"])
    world = tmp_path / "street"
    cli.main(
        [
            "render",
            "street",
            "--out",
            str(world),
            "--train",
            "1",
            "--val",
            "1",
            "--test",
            "1",
            "--size",
            "48",
            "64",
            "--no-progress",
        ]
    )
    with pytest.raises(SystemExit, match="unknown modality 'aolp'.*has rgb, depth, event, lidar"):
        cli.main(
            ["evaluate", str(tmp_path / "run" / "last.safetensors"), "--data", str(world), "--no-progress"]
        )
    cli.main(
        [
            "train",
            "--data",
            str(data),
            "--out",
            str(tmp_path / "rd"),
            "--modalities",
            "rgb",
            "depth",
            "--epochs",
            "1",
            "--no-progress",
        ]
    )
    with pytest.raises(SystemExit, match="predicts 3 classes"):
        cli.main(
            ["evaluate", str(tmp_path / "rd" / "last.safetensors"), "--data", str(world), "--no-progress"]
        )


def test_the_process_itself_ends_in_one_line_and_a_status(tmp_path):
    done = run("evaluate", "none.safetensors", "--data", "x")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: none.safetensors: no such file; expected a file of this library"
    )
    assert "Traceback" in run("evaluate", "none.safetensors", "--data", "x", MMLIB_DEBUG="1").stderr


def test_ctrl_c_ends_in_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with what it has begun\n"
