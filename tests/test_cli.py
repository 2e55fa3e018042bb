"""The command line as a stranger meets it: help, the whole path from rendering to comparison, and errors of
one line.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmlib import cli
from mmlib.outputs import writing

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "notebooks/results"))
from reproduce import curve  # noqa: E402


def run(
    *arguments,
):
    command = [sys.executable, "-m", "mmlib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ)


def mmlib(line: str, **names):
    """The command line ``line``, in this process; ``{name}`` stands for a path."""
    cli.main([word.format(**names) for word in line.split()])


def render(folder, train=1, val=1, test=1):
    line = f"render street --out {{out}} --train {train} --val {val} --test {test} --size 48 64 --no-progress"
    mmlib(line, out=folder)


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
    world, run = tmp_path / "street", tmp_path / "full-0"
    render(world, train=6, val=2, test=2)
    for seed in (0, 1):
        for kind in ("full", "all-subsets"):
            mmlib(
                "train --data {data} --out {out} --epochs 1 --batch-size 3 --no-progress "
                f"--subsets {kind} --seed {seed}",
                data=world,
                out=tmp_path / f"{kind}-{seed}",
            )
    assert "mIoU in % on val, by subset: R " in capsys.readouterr().out

    evaluate = "evaluate {run}/best.safetensors --data {data} --no-progress --out {out} "
    mmlib(evaluate + "--protocol black", data=world, run=run, out=tmp_path / "scores.json")
    out = capsys.readouterr().out
    assert "absent sensors: black" in out and "RDEL" in out and "Pedestrian" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (
        scores["split"] == "val"
        and len(scores["scores"]["miou"]["all"]) == 15
        and scores["provenance"]["torch"]
    )

    options = "--fusion agreement --failures 2"
    mmlib(evaluate + options, data=world, run=run, out=tmp_path / "failures.json")
    assert "fusion agreement" in capsys.readouterr().out
    failures = json.loads((tmp_path / "failures.json").read_text())
    assert failures["fusion"] == "agreement" and failures["failures"]["samples"] == 2
    assert set(failures["failures"]["summary"]) == {"mean", "agreement", "selection", "entropy", "oracle"}

    folders = {
        f"{kind}-{seed}": tmp_path / f"{kind}-{seed}" for kind in ("full", "all-subsets") for seed in (0, 1)
    }
    compare = "compare --no-progress "
    mmlib(
        compare + "{full-0} {full-1} {all-subsets-0} {all-subsets-1} --split test --out {out}",
        out=tmp_path / "compared.json",
        **folders,
    )
    out = capsys.readouterr().out
    assert (
        "full  (seeds 0, 1" in out and "mean minus 'full'" in out and "95 % interval" in out and "gap" in out
    )
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert list(compared["groups"]) == ["full", "all-subsets"]
    with pytest.raises(SystemExit, match="of the name 'full', or a second one of seed 0"):
        mmlib(compare + "{run} {run}", run=run)
    group = compared["groups"]["full"]
    sensors = {"rgb", "depth", "event", "lidar"}
    assert set(group["information"]) == sensors
    evaluations = curve(tmp_path / "full-0")
    assert evaluations[-1]["epoch"] > 0 and set(evaluations[-1]["information"]) == sensors
    gaps = [max(v) / min(v) for v in zip(*group["information"].values())]
    assert group["summary"]["all"]["gap"] == pytest.approx(gaps, rel=1e-3)
    # A folder whose name does not end in its seed is known by what tells its settings from the others'.
    for folder, name in (("full-0", "a"), ("all-subsets-0", "b")):
        shutil.copytree(tmp_path / folder, tmp_path / name)
    mmlib(compare + "{tmp}/a {tmp}/b", tmp=tmp_path)
    assert "\nsubsets full  (seeds 0" in capsys.readouterr().out
    shutil.copytree(tmp_path / "all-subsets-0", tmp_path / "full-7")
    with pytest.raises(SystemExit, match="full-7: other settings"):
        mmlib(compare + "{tmp}/full-0 {tmp}/full-7", tmp=tmp_path)
    assert (
        group["seeds"] == [0, 1]
        and len(group["miou"]["all"]["RDEL"]) == 2
        and len(group["iou"]["R"]["Sky"]) == 2
    )


TRAIN = "train --data {toy} --out {tmp}/run "


@pytest.mark.parametrize(
    "line, message",
    [
        ("train --data nowhere --out {tmp}/run", "'nowhere' is not a prepared data set"),
        (TRAIN + "--modalities rgb sonar", "unknown modality 'sonar'"),
        (TRAIN + "--epochs 0", "--epochs 0.0: expected above 0"),
        (
            TRAIN + "--lambda-p -1",
            "--lambda-p -1.0: expected 0 or more; a negative one would reward imbalance",
        ),
        (TRAIN + "--sigma 0", "--sigma 0.0: expected above 0; without noise there is no measure"),
        (TRAIN + "--fusion centred", "give --subsets full or dropout"),
        (
            TRAIN + "--fusion centred --subsets full --features kl",
            "has no logits and features of single sensors",
        ),
        (TRAIN + "--batch-size 1 --prediction gat --no-progress", "a batch of 2"),
        ("evaluate none.safetensors --data {toy}", "none.safetensors: no such file"),
        ("evaluate {toy}/dataset.json --data {toy}", "not a file of this library, or damaged"),
        ("compare {tmp}", "report.json: no such file"),
        ("render street --out {toy} --no-progress", "already holds a finished data set"),
        ("render street --out {tmp}/w --size 0 10 --no-progress", "size"),
    ],
)
def test_errors_are_one_line(data, tmp_path, line, message):
    with pytest.raises(SystemExit) as end:
        mmlib(line, tmp=tmp_path, toy=data)
    assert end.value.code.startswith("error: ") and message in end.value.code and "\n" not in end.value.code


def test_a_checkpoint_of_other_classes_or_sensors_is_refused(data, tmp_path):
    """``data`` is the toy; the checkpoints meet a street."""
    render(tmp_path / "street")
    train = "train --data {toy} --out {tmp}/run --epochs 1 --no-progress "
    evaluate = "evaluate {tmp}/run/last.safetensors --data {tmp}/street --no-progress"
    mmlib(train, toy=data, tmp=tmp_path)
    with pytest.raises(SystemExit, match="unknown modality 'aolp'.*has rgb, depth, event, lidar"):
        mmlib(evaluate, tmp=tmp_path)
    shutil.rmtree(tmp_path / "run")
    mmlib(train + "--modalities rgb depth", toy=data, tmp=tmp_path)
    with pytest.raises(SystemExit, match=r"in training there were 3 \("):
        mmlib(evaluate, tmp=tmp_path)


def test_the_process_itself_ends_in_one_line_and_a_status(monkeypatch):
    done = run("evaluate", "none.safetensors", "--data", "x")
    assert done.returncode == 1 and done.stderr.startswith(
        "error: none.safetensors: no such file; expected a file of this library"
    )
    monkeypatch.setenv("MMLIB_DEBUG", "1")  # a traceback for who develops
    with pytest.raises(ValueError, match="none.safetensors: no such file"):
        mmlib("evaluate none.safetensors --data x")


COMMANDS = (
    ("train --data {input} --out {out}", True),
    ("cluster --data {input} --out {out}", True),
    ("search --data {input} --out {out}", True),
    ("segment {input} --data none --out {out}", True),
    ("segment none --data {input} --out {out}", True),
    ("predict none --data {input} --out {out}", True),
    ("predict {input}/a.safetensors --data none --out {out}", True),
    ("predict none rgb={input} --out {out}", True),
    ("evaluate {input}/a.safetensors --data none --out {out}", False),
    ("evaluate none --data {input} --out {out}", False),
    ("compare none {input} --out {out}", False),
    ("export {input}/a.safetensors --out {out}", False),
)


@pytest.mark.parametrize("line, folder", COMMANDS)
def test_no_command_overwrites_what_is_not_ours(tmp_path, monkeypatch, line, folder):
    """Outputs that are, hold or lie in an input, also by links, and outputs that another program made."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine/in/a.safetensors", "mine/in/b.png", "other/a.json", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"an original")
    (tmp_path / "link").symlink_to("mine/in")
    (tmp_path / "other/up").symlink_to("../mine")
    outs = ["mine/in/a.safetensors", "link/a.safetensors", "file", "other", "other/up/in/a.safetensors"]
    if folder:
        outs += ["mine/in", "mine", "link", "other/up", "mine/in/../in/"]
        outs += ["mine/in/new", "link/new", "other/up/in/new"] * ("a.safetensors" not in line)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for given in ("mine/in", "link"):
        for out in outs:
            with pytest.raises(SystemExit, match="error: --out .*(is, holds or lies in|is there already)"):
                mmlib(line, input=given, out=out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_process_waits_until_ctrl_c(tmp_path):
    out = tmp_path / "run"
    words = ["train", "--data", str(tmp_path / "none"), "--out", str(out)]
    with writing(out):
        (out / "history.jsonl").touch()
        second = subprocess.Popen([sys.executable, "-m", "mmlib", *words], stderr=subprocess.PIPE, text=True)
        said = second.stderr.readline()
        assert f"waits for process {os.getpid()}, which has {out} since 20" in said
        second.send_signal(signal.SIGINT)
        left = second.communicate(timeout=60)[1]
    assert second.returncode == 130 and left.startswith("interrupted;") and left.count("\n") == 1


def test_ctrl_c_ends_in_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupted)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "run")])
    assert end.value.code == 130
    assert (
        capsys.readouterr().err
        == "interrupted; what --out holds is whole, and the same command goes on from it\n"
    )
