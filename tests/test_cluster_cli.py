"""Clustering as a stranger meets it: help, from data to report in one command, and errors of one line."""

import json
import os
import subprocess
import sys

import pytest
import toy

from mmlib import cli

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = [
    "--backbone",
    "descriptors",
    "--dim",
    "8",
    "--neighbours",
    "3",
    "--batch-size",
    "4",
    "--repeats",
    "2",
    "--restarts",
    "2",
    "--points",
    "12",
    "--device",
    "cpu",
    "--no-progress",
]


def run(command, *arguments):
    cli.main([command, *map(str, arguments), *SMALL])


@pytest.mark.parametrize("command", ["cluster", "search"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert not end.value.code and f"usage: python -m mmlib {command}" in out
    flags = [
        "--method",
        "--lambda-x",
        "--backbone",
        "--anchor",
        "--quantiles",
        "--select",
        "--kmeans-seed",
        "--weights",
    ]
    flags += ["--trials", "--select-on-labels"] * (command == "search")
    assert all(flag in out for flag in flags)


def test_from_data_to_report(data, tmp_path, capsys):
    out = tmp_path / "run"
    run(
        "cluster",
        "--data",
        data,
        "--out",
        out,
        "--steps",
        3,
        "--modalities",
        "rgb",
        "depth",
        "--maps",
        1,
        "--lambdas",
        "depth",
        0.5,
    )
    shown = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    rows = [line.split() for line in shown.splitlines()]
    for name, key in (("mIoU", "miou"), ("accuracy", "accuracy")):
        (first,) = [row[1] for row in rows if row[:1] == [name]]
        assert first == f"{report['scores'][key]['all']:.1f}"
    assert (
        "in % on val, state chosen by nothing" in shown
        and "day" in shown
        and "square" in shown
        and f"{out}/report.json" in shown
    )
    assert report["config"]["loss"]["lambdas"] == {"depth": 0.5} and (out / "maps" / "val_000.png").exists()
    run(
        "cluster",
        "--data",
        data,
        "--out",
        tmp_path / "k",
        "--method",
        "kmeans",
        "--split",
        "val",
        "--modalities",
        "aolp",
    )
    assert "effective rank" in capsys.readouterr().out


def test_unlabelled_data_give_maps_and_no_scores(tmp_path, capsys):
    toy.make(tmp_path / "toy", labels=False)
    run("cluster", "--data", tmp_path / "toy", "--out", tmp_path / "run", "--steps", 2)
    shown = capsys.readouterr().out
    assert (
        "mIoU" not in shown
        and "effective rank" in shown
        and len(list((tmp_path / "run" / "maps").glob("*.png"))) == 5
    )


def test_search_from_the_command_line(data, tmp_path, capsys):
    run(
        "search",
        "--data",
        data,
        "--out",
        tmp_path / "s",
        "--steps",
        2,
        "--trials",
        3,
        "--modalities",
        "rgb",
        "depth",
    )
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (
        f"trial {report['best']['number']}: {report['best']['value']:.4f}" in shown
        and "3 trials of unim2" in shown
    )
    assert "label-free criterion 'explained'" in shown and "the best of any trial" in shown


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        ("cluster", ["--data", "nowhere"], "'nowhere' is not a prepared data set"),
        (
            "cluster",
            ["--data", "{toy}", "--modalities", "rgb", "sonar"],
            "unknown modality 'sonar'; {toy} has rgb, depth, aolp",
        ),
        ("cluster", ["--data", "{toy}", "--modalities", "rgb"], "--method unim2 needs two sensors or more"),
        (
            "cluster",
            ["--data", "{toy}", "--modalities", "rgb", "aolp", "--method", "depthg"],
            "needs 'depth' among its sensors",
        ),
        ("cluster", ["--data", "{toy}", "--method", "stego", "--lambda-x", "2"], "λ: a setting of unim2"),
        (
            "cluster",
            ["--data", "{toy}", "--method", "coral", "--combine", "image"],
            "--combine image is for kmeans, stego and eagle",
        ),
        ("cluster", ["--data", "{toy}", "--lambdas", "sonar", "1"], "sonar"),
        (
            "cluster",
            ["--data", "{toy}", "--size", "30", "40"],
            "30 x 40 pixels are not made of whole patches of 8 x 8; give size=(24, 40) or",
        ),
        ("cluster", ["--data", "{toy}", "--size", "4", "40"], "whole patches"),
        (
            "cluster",
            ["--data", "{toy}", "--split", "test"],
            "no sample in split 'test'; its splits are train, val",
        ),
        ("cluster", ["--data", "{toy}", "--clusters", "1"], "1 clusters: expected 2 to 255; give --clusters"),
        (
            "cluster",
            ["--data", "{toy}", "--clusters", "200", "--kmeans-points", "150", "--method", "kmeans"],
            "fewer than 200 clusters",
        ),
        (
            "cluster",
            ["--data", "{toy}", "--guide", "sonar"],
            "--guide sonar: expected one of rgb, depth, aolp",
        ),
        ("cluster", ["--data", "{toy}", "--steps", "0"], "--steps 0: expected 1 or more"),
        ("cluster", ["--data", "{toy}", "--save-every", "0"], "--save-every 0: expected 1 or more"),
        ("cluster", ["--data", "{toy}", "--lr", "0"], "--lr 0.0: expected"),
        (
            "cluster",
            ["--data", "{toy}", "--select", "labels"],
            "--select labels chooses among measured states",
        ),
        (
            "cluster",
            ["--data", "{toy}", "--linear-steps", "9", "--crops", "5"],
            "a linear probe (--linear-steps) needs a labelled",
        ),
        (
            "cluster",
            ["--data", "{toy}", "--backbone", "vit", "--backbone-weights", "no.safetensors"],
            "no.safetensors: no such file",
        ),
        (
            "cluster",
            [
                "--data",
                "{toy}",
                "--backbone",
                "dinov3-small",
                "--backbone-weights",
                "no.pth",
                "--size",
                "32",
                "48",
            ],
            "descriptors",
        ),
        (
            "search",
            ["--data", "{toy}", "--method", "kmeans"],
            "--method kmeans has none of the settings that are searched",
        ),
        ("search", ["--data", "{toy}", "--prune"], "give --eval-every"),
    ],
)
def test_errors_are_one_line(data, tmp_path, command, arguments, message):
    given = [a.format(toy=data) for a in arguments]
    options = (
        [o for o in SMALL if o != "descriptors" and o != "--backbone"] if "--backbone" in given else SMALL
    )
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--out", str(tmp_path / "run"), *given, *options])
    assert (
        end.value.code.startswith("error: ")
        and message.format(toy=data) in end.value.code
        and "\n" not in end.value.code
    )


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    run("cluster", "--data", data, "--out", tmp_path, "--steps", 1)
    with pytest.raises(SystemExit, match="error: .*another configuration .*steps was 1, is 2"):
        run("cluster", "--data", data, "--out", tmp_path, "--steps", 2)


def test_the_process_itself(data, tmp_path):
    command = [sys.executable, "-m", "mmlib", "cluster", "--data", data, *SMALL]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run", "--steps", "3"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and "mIoU" in done.stdout and not done.stderr
    done = subprocess.run(
        [*command, "--out", tmp_path / "no", "--modalities", "sonar"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert (
        done.returncode == 1
        and done.stderr.startswith("error: unknown modality")
        and done.stderr.count("\n") == 1
    )


def test_a_class_that_the_split_does_not_show_has_no_score(capsys):
    scores = {"miou": {"all": 40.0}, "accuracy": {"all": 60.0}, "iou": {"all": {"road": 40.4, "tram": None}}}
    found = {"effective_rank": 3.0, "mean_similarity": 0.1, "use_min": 0.2, "use_max": 0.8}
    report = {
        "scores": scores,
        "kmeans": [{"miou": 40.0}],
        "split": "val",
        "chosen by": "nothing",
        "collapse": found,
        "seconds": 1.0,
    }
    cli.print_clusters(report)
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines()[2:6])
    assert rows == {"mIoU": "40.0", "accuracy": "60.0", "road": "40.4", "tram": "–"}


@pytest.mark.parametrize("sensors", [("rgb", "lidar"), ("rgb", "thermal")])
def test_a_scene_is_segmented_with_the_sensors_of_the_run(tmp_path, monkeypatch, sensors):
    rendered = []
    monkeypatch.setattr(
        cli.world, "ensure", lambda scene, **options: rendered.append(options["modalities"]) or tmp_path
    )
    monkeypatch.setattr(cli, "segment", lambda config: None)
    (tmp_path / "report.json").write_text(json.dumps({"plan": {"sensors": sensors}}))
    clustered = cli.find_sensors(cli.ClusterConfig("street", "out", modalities=sensors))
    cli.main(["segment", str(tmp_path), "--data", "street", "--out", str(tmp_path / "maps")])
    assert clustered.modalities == sensors and clustered.data == str(tmp_path)
    assert rendered[0] == rendered[1] and set(sensors) <= set(rendered[0])
    with pytest.raises(SystemExit, match="nowhere/report.json: no such file"):
        cli.main(["segment", "nowhere", "--data", "street", "--out", "maps"])
