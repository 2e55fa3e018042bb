"""Clustering as a stranger meets it: help, from data to report in one command, and errors of one line."""

import json
import os
import subprocess
import sys

import pytest
import toy

from mmlib import cli
from mmlib.unsupervised import train

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = (
    "--dim 8 --neighbours 3 --batch-size 4 --repeats 2 --restarts 2 --points 12 --device cpu --no-progress"
).split()
PLAIN = "--backbone test_efficientnet --backbone-weights random --size 64 96".split()


def run(line, **names):
    """The command line ``line`` with small settings, in this process; ``{name}`` stands for a path."""
    words = [word.format(**names) for word in line.split()]
    cli.main(words[:1] + PLAIN * ("--backbone" not in words) + words[1:] + SMALL)


@pytest.mark.parametrize("command", ["cluster", "search"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert not end.value.code and f"usage: python -m mmlib {command}" in out
    flags = "--method --lambda-x --backbone --anchor --quantiles --select --kmeans-seed --weights".split()
    flags += ["--trials", "--select-on-labels"] * (command == "search")
    assert all(flag in out for flag in flags)


def test_from_data_to_report(data, tmp_path, capsys):
    out = tmp_path / "run"
    options = "--steps 3 --modalities rgb depth --maps 1 --lambdas depth 0.5"
    run("cluster --data {data} --out {out} " + options, data=data, out=out)
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
    options = "--method kmeans --split val --modalities aolp"
    run("cluster --data {data} --out {out} " + options, data=data, out=tmp_path / "k")
    assert "effective rank" in capsys.readouterr().out


def test_unlabelled_data_give_maps_and_no_scores(tmp_path, capsys):
    toy.make(tmp_path / "toy", labels=False)
    run("cluster --data {tmp}/toy --out {tmp}/run --steps 2", tmp=tmp_path)
    shown = capsys.readouterr().out
    assert (
        "mIoU" not in shown
        and "effective rank" in shown
        and len(list((tmp_path / "run" / "maps").glob("*.png"))) == 5
    )


def test_search_from_the_command_line(data, tmp_path, capsys):
    options = "--steps 2 --trials 3 --modalities rgb depth"
    run("search --data {data} --out {tmp}/s " + options, data=data, tmp=tmp_path)
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (
        f"trial {report['best']['number']}: {report['best']['value']:.4f}" in shown
        and "3 trials of unim2" in shown
    )
    assert "label-free criterion 'explained'" in shown


CLUSTER = "cluster --data {toy} "


@pytest.mark.parametrize(
    "line, message",
    [
        ("cluster --data nowhere", "'nowhere' is not a prepared data set"),
        (CLUSTER + "--modalities rgb sonar", "unknown modality 'sonar'; {toy} has rgb, depth, aolp"),
        (CLUSTER + "--modalities rgb", "--method unim2 needs two sensors or more"),
        (CLUSTER + "--modalities rgb aolp --method depthg", "needs 'depth' among its sensors"),
        (CLUSTER + "--method stego --lambda-x 2", "λ: stego has no such part"),
        (
            CLUSTER + "--method coral --combine image",
            "--combine image is for kmeans, stego and eagle",
        ),
        (CLUSTER + "--lambdas sonar 1", "sonar"),
        (
            CLUSTER + "--size 30 40",
            "30 x 40 pixels are not made of whole patches of 16 x 16; resize to 32 x 32",
        ),
        (CLUSTER + "--size 4 40", "whole patches"),
        (CLUSTER + "--split test", "no sample in split 'test'"),
        (CLUSTER + "--clusters 1", "1 clusters: expected 2 to 255"),
        (
            CLUSTER + "--clusters 200 --kmeans-points 150 --method kmeans",
            "200 clusters: expected 2 to 255, and not more than --kmeans-points 150",
        ),
        (CLUSTER + "--guide sonar", "--guide sonar: expected one of rgb, depth, aolp"),
        (CLUSTER + "--steps 0", "--steps 0: expected 1 or more"),
        (CLUSTER + "--save-every 0", "--save-every 0: expected 1 or more"),
        (CLUSTER + "--lr 0", "--lr 0.0: expected"),
        (CLUSTER + "--select labels", "--select labels chooses among measured states"),
        (
            CLUSTER + "--linear-steps 9 --crops 5",
            "a linear probe (--linear-steps) needs whole training images",
        ),
        (
            CLUSTER + "--backbone test_vit --backbone-weights no.safetensors",
            "no.safetensors: no such file",
        ),
        (
            CLUSTER + "--backbone descriptors",
            "'descriptors' is no model of timm",
        ),
        (
            "search --data {toy} --method kmeans",
            "--method kmeans has none of the settings that are searched",
        ),
        ("search --data {toy} --prune", "give --eval-every"),
    ],
)
def test_errors_are_one_line(data, tmp_path, line, message):
    with pytest.raises(SystemExit) as end:
        run(line + " --out {out}", toy=data, out=tmp_path / "run")
    assert (
        end.value.code.startswith("error: ")
        and message.format(toy=data) in end.value.code
        and "\n" not in end.value.code
    )


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    run("cluster --data {data} --out {out} --steps 1", data=data, out=tmp_path)
    with pytest.raises(SystemExit, match="error: .*another configuration .*steps was 1, is 2"):
        run("cluster --data {data} --out {out} --steps 2", data=data, out=tmp_path)


def test_the_process_itself_says_scores_and_nothing_on_stderr(data, tmp_path):
    command = [sys.executable, "-m", "mmlib", "cluster", "--data", data, *SMALL, *PLAIN]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run", "--steps", "3"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and "mIoU" in done.stdout and not done.stderr


def test_a_class_that_the_split_does_not_show_has_no_score(capsys):
    scores = {"miou": {"all": 40.0}, "accuracy": {"all": 60.0}, "iou": {"all": {"road": 40.4, "tram": None}}}
    found = {"effective_rank": 3.0, "mean_similarity": 0.1, "use_min": 0.2, "use_max": 0.8}
    report = {
        "scores": scores,
        "kmeans": [{"miou": 40.0}],
        "split": "val",
        "chosen by": "nothing",
        "collapse": found,
        "backbone": {"name": "resnet", "weights": "random", "licence": "", "sha256": ""},
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


@pytest.mark.parametrize(
    "command, last, repeated",
    [("cluster --save-every 2", 4, [2, 3]), ("search --trials 2", 7, [0, 1, 2, 0, 1, 2, 3])],
)
def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(
    data, tmp_path, monkeypatch, capfd, command, last, repeated
):
    command += " --data {data} --steps 4 --out {out}"
    run(command, data=data, out=tmp_path / "whole")
    genuine, steps = train.step_loss, []

    def interrupted(*args):
        steps.append(args[-1])
        if len(steps) == last:
            raise KeyboardInterrupt
        return genuine(*args)

    monkeypatch.setattr(train, "step_loss", interrupted)
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        run(command, data=data, out=tmp_path / "cut")
    error = capfd.readouterr().err
    assert end.value.code == 130 and error.count("\n") == 1 and "same command" in error
    run(command, data=data, out=tmp_path / "cut")
    assert steps[4:] == repeated  # from the saved state; of a search the trial that was interrupted
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "cut")]
    for key in ("trials", "best", "criteria", "scores"):
        assert reports[0].get(key) == reports[1].get(key)
