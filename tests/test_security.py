"""No file can make the library run code, and the JupyterLab of ``make lab`` answers nobody but its user.

Two kinds of test: what the source may not contain, and what really happens, with files that would make a
folder if anything in them ran.
"""

import ast
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import toy
from course.cluster_grid import load_panel
from safetensors.torch import save_file

from mmlib import cli
from mmlib.data.prepared import PreparedDataset
from mmlib.loop import check_same
from mmlib.runtime import read_tensor_header
from mmlib.segmentation.network import load_segmenter, save_segmenter
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.clustering import Clustering, load_clustering, save_clustering

ROOT = Path(__file__).resolve().parents[1]

# ---- what the source may not contain ----

MODULES = {
    "pickle": {"UnpicklingError"},
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
    "cloudpickle": set(),
    "joblib": set(),
}
CALLS = {  # what is called -> the keyword argument that makes it safe; "" = nothing does
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "numpy.load": "allow_pickle=False",
    "eval": "",
    "exec": "",
    "compile": "",
    "__import__": "",
    "os.system": "",
    "os.popen": "",
    "yaml.load": "",
    "yaml.unsafe_load": "",
    "torch.hub.load": "",
    "torch.jit.load": "",
    "pd.read_pickle": "",
    "shutil.unpack_archive": "",
    "tempfile.mktemp": "",
}


def dangers(source: str) -> list[str]:
    """One sentence for each thing in ``source`` that could run code from a file, or write where an archive
    says.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom) and node.module in (*MODULES, "torch", "numpy", "os", "builtins"):
            allowed = MODULES.get(
                node.module, {a.name for a in node.names} - {"load", "system", "popen", "eval", "exec"}
            )
            found += [
                f"{where}: from {node.module} import {alias.name}"
                for alias in node.names
                if alias.name not in allowed
            ]
        elif isinstance(node, ast.Import):
            found += [
                f"{where}: import {a.name} as {a.asname}"
                for a in node.names
                if a.name in MODULES and a.asname
            ]
            found += [
                f"{where}: import {a.name}" for a in node.names if a.name in MODULES and not MODULES[a.name]
            ]
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in MODULES
        ):
            found += [f"{where}: {ast.unparse(node)}"] if node.attr not in MODULES[node.value.id] else []
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {ast.unparse(keyword) for keyword in node.keywords}
            safe = "" if name.endswith(".extractall") else CALLS.get(name)
            if safe is not None and safe not in given:
                found.append(f"{where}: {name}(…) {f'without {safe}' if safe else ''}")
            if "shell=True" in given:
                found.append(f"{where}: {name}(…, shell=True)")
    return found


FOLDERS = [ROOT / name for name in ("mmlib", "data_scripts", "notebooks")]
SOURCES = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))}
SOURCES |= {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("name", SOURCES)
def test_no_source_runs_code_from_files(name):
    text = SOURCES[name].read_text(encoding="utf-8")
    if name.endswith(".ipynb"):
        cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join(
            line for cell in cells for line in cell.splitlines() if not line.startswith(("%", "!"))
        )
    assert dangers(text) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x')",
        "np.load('x', allow_pickle=True)",
        "from torch import load",
        "import pickle\npickle.load(f)",
        "import pickle as p",
        "from pickle import loads",
        "import joblib",
        "import marshal",
        "eval('1')",
        "exec(code)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "yaml.load(f)",
        "torch.hub.load('a', 'b')",
        "torch.jit.load('x')",
        "tar.extractall('x')",
        "def late():\n    from os import system",
    ],
)
def test_the_checker_catches(source):
    assert dangers(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, map_location='cpu', weights_only=True)",
        "np.load(p, mmap_mode='r', allow_pickle=False)",
        "import pickle\nexcept_ = pickle.UnpicklingError",
        "model.eval()",
        "re.compile('x')",
        "json.load(f)",
        "subprocess.run(['ls'])",
    ],
)
def test_the_checker_lets_pass(source):
    assert dangers(source) == []


# ---- files that would make a folder ----


class Bomb:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def bombs(folder: Path) -> dict[str, bytes]:
    """Kind -> the bytes of a file which, read carelessly, makes ``folder``."""
    found = {
        f"pickle {protocol}": pickle.dumps(Bomb(folder), protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    for kind, zipped in (("torch zip", True), ("torch legacy", False)):
        torch.save(
            {"state_dict": {"a": Bomb(folder)}}, stream := io.BytesIO(), _use_new_zipfile_serialization=zipped
        )
        found[kind] = stream.getvalue()
    np.save(stream := io.BytesIO(), np.array([Bomb(folder)], object), allow_pickle=True)
    found["npy"] = stream.getvalue()
    np.savez(stream := io.BytesIO(), notes=np.array([Bomb(folder)], object), maps=np.zeros(3))
    found["npz"] = stream.getvalue()
    return found


KINDS = list(bombs(Path("x")))


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_armed(tmp_path, kind):
    """Without this the next test could not fail."""
    content = bombs(tmp_path / "sprung")[kind]
    if kind.startswith("pickle"):
        pickle.loads(content)
    elif kind.startswith("torch"):
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        found = np.load(io.BytesIO(content), allow_pickle=True)
        found["notes"] if kind == "npz" else None
    assert (tmp_path / "sprung").is_dir()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", KINDS)
def test_no_loader_sets_them_off(tmp_path, monkeypatch, kind):
    sprung, content = tmp_path / "sprung", bombs(tmp_path / "sprung")[kind]
    root = toy.make(tmp_path / "data", 1, 1)
    for name in (
        "x.safetensors",
        "x.pth",
        "x.bin",
        "x.npz",
        "data/aolp/train_000.npy",
        "data/rgb/train_000.png",
    ):
        (tmp_path / name).write_bytes(content)
    weights = str(tmp_path / "x.safetensors")
    loaders = [lambda load=load: load(weights) for load in (load_segmenter, load_clustering)]
    loaders += [lambda: load_panel(tmp_path / "x.npz")]
    loaders += [
        lambda path=path: load_backbone("test_vit", path)
        for path in (weights, tmp_path / "x.pth", tmp_path / "x.bin")
    ]
    loaders += [lambda name=name: PreparedDataset(root, "train", [name])[0] for name in ("aolp", "rgb")]
    for load in loaders:
        with pytest.raises(ValueError):
            load()
    with pytest.raises(SystemExit, match="error: "):
        cli.main(["evaluate", weights, "--data", str(root), "--no-progress"])
    assert not sprung.exists()


# ---- make lab ----


@pytest.fixture(scope="module")
def command() -> list[str]:
    """Words of the line of ``make lab`` that starts JupyterLab."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if "jupyter lab" in line]
    return line.split()


def test_make_lab_takes_away_no_lock(command):
    assert "--ip=127.0.0.1" in command
    words = " ".join(command).lower()
    for opener in (
        "token",
        "password",
        "0.0.0.0",
        "--ip=*",
        "--ip=''",
        "allow_remote",
        "allow_origin",
        "xsrf",
        "unauth",
        "identityprovider",
    ):
        assert opener not in words


def answer(url: str, token: str = "") -> tuple[int, str]:
    """(status, address in the end) of a request."""
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as page:
            return page.status, page.url
    except urllib.error.HTTPError as error:
        return error.code, error.url


def test_jupyterlab_keeps_its_token_and_listens_on_localhost_only(command, tmp_path):
    pytest.importorskip("jupyterlab")
    psutil = pytest.importorskip("psutil")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "RUNTIME")}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "JPY"))} | folders
    arguments = [sys.executable, "-m", *command[command.index("lab") - 1 :]]
    arguments[2] = "jupyter"
    with open(tmp_path / "log", "w") as log:
        lab = subprocess.Popen(
            [*arguments, "--no-browser", f"--port={port}", "--ServerApp.port_retries=0"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        site, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
        while (
            not (files := list(tmp_path.glob("runtime/jpserver-*.json")))
            and lab.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        assert files, (tmp_path / "log").read_text()
        time.sleep(0.2)
        token = json.loads(files[0].read_text())["token"]
        assert len(token) >= 32
        assert answer(f"{site}/api/contents", token)[0] == 200  # it works, for whoever has the token
        for guess in ("", "wrong", token[:-1]):
            assert answer(f"{site}/api/contents", guess)[0] == 403
        assert answer(f"{site}/api/kernels")[0] == 403 and answer(f"{site}/api/terminals")[0] == 403
        assert "/login" in answer(f"{site}/lab")[1]
        family = [psutil.Process(lab.pid), *psutil.Process(lab.pid).children(recursive=True)]
        listening = {
            c.laddr.ip
            for process in family
            for c in process.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        }
        assert listening and listening <= {"127.0.0.1", "::1"}
        for addresses in psutil.net_if_addrs().values():
            for address in (
                a.address
                for a in addresses
                if a.family == socket.AF_INET and not a.address.startswith("127.")
            ):
                with socket.socket() as other:
                    other.settimeout(2)
                    assert other.connect_ex((address, port)) != 0, address
    finally:
        lab.terminate()
        try:
            lab.wait(20)
        except subprocess.TimeoutExpired:
            lab.kill()
            lab.wait()


# ---- what a command leaves tells nothing of the machine ----


def test_no_file_that_a_command_leaves_holds_a_path_of_the_machine(tmp_path, monkeypatch):
    """Settings, provenance, states and checkpoints have names only; runs go on, and are compared, all the
    same.
    """
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "cache"))
    root, out, weights = (str(tmp_path / name) for name in ("data", "out", "weights.safetensors"))
    toy.make(root, 6, 3)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    cluster = (
        f"--data={root} --modalities rgb depth --backbone test_vit --backbone-weights {weights} --steps 2"
    )
    cluster += " --size 64 96"
    cluster += " --batch-size 2 --maps 1 --repeats 1 --restarts 1 --points 8 --neighbours 2 --no-progress"
    for command in (
        f"train --data {root} --out {out}/run --epochs 1 --batch-size 2 --embed-dim 8 --no-progress",
        f"train --data {root} --out {out}/run --epochs 1 --batch-size 2 --embed-dim 8 --no-progress",
        f"evaluate {out}/run/last.safetensors --data {root} --out={out}/scores.json --no-progress",
        f"predict {out}/run/last.safetensors --data {root} --split val --out {out}/masks --no-progress",
        f"cluster {cluster} --out {out}/clusters",
        f"cluster {cluster} --out {out}/clusters",
        f"segment {out}/clusters --data {root} --split val --out {out}/maps --backbone-weights {weights}",
        f"search {cluster} --out {out}/search --trials 1",
    ):
        monkeypatch.setattr(sys, "argv", ["mmlib", *command.split()])
        cli.main()
    (tmp_path / "data").rename(tmp_path / "out" / "data")  # beside the run
    cli.main(["compare", f"{out}/run", "--split", "val", "--out", f"{out}/compared.json"])
    with pytest.raises(SystemExit, match="weights.safetensors: not found.*give --backbone-weights"):
        cli.main(["segment", f"{out}/clusters", "--data", f"{out}/data", "--out", f"{out}/other"])
    files = [path for path in Path(out).rglob("*") if path.is_file()]
    assert len(files) > 25
    assert [path for path in files if str(tmp_path).encode() in path.read_bytes()] == []
    header = read_tensor_header(f"{out}/clusters/clustering.safetensors")["clustering"]
    assert header["settings"]["tokens"]["backbone_weights"] == "weights.safetensors"


def test_a_run_of_other_weights_of_one_name_is_refused_and_an_earlier_state_goes_on(tmp_path):
    settings = {"tokens": {"backbone_weights": "/a/x.safetensors", "crops": 1}}
    moved = {"tokens": {"backbone_weights": "/b/x.safetensors", "crops": 1}}
    check_same(tmp_path, settings, moved, {"weights of the backbone": "1"}, {"weights of the backbone": "1"})
    with pytest.raises(ValueError, match="changed: weights of the backbone"):
        check_same(
            tmp_path, settings, moved, {"weights of the backbone": "1"}, {"weights of the backbone": "2"}
        )
    with pytest.raises(ValueError, match="another configuration"):
        check_same(tmp_path, settings, {"tokens": {"backbone_weights": "y", "crops": 1}}, {}, {})


# ---- names that would steer a terminal ----

ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_no_control_character_of_a_file_reaches_the_terminal(tmp_path, capsys):
    """Refused where a file is read; an error that quotes one has it replaced."""
    root = toy.make(tmp_path / "data", 2, 1)
    network = toy.untrained(PreparedDataset(root, "val"))
    checkpoint, recipe = tmp_path / "last.safetensors", tmp_path / "recipe.json"
    evaluate = ["evaluate", str(checkpoint), "--data", str(root)]
    save_segmenter(network, checkpoint)
    cli.main(evaluate)
    capsys.readouterr()
    recipe.write_text(json.dumps({"train": {"lr": {"value": 1e-3, "source": f"ours{ESCAPE}"}}}))
    refused = [["train", "--data", "a", "--out", "b", "--recipe", str(recipe)]]
    for file, old in (("dataset.json", '"square"'), ("dataset.json", '"toy"'), ("index.csv", ",day,")):
        folder = shutil.copytree(root, tmp_path / str(len(refused)))
        text = (folder / file).read_text()
        new = json.dumps(old[1:-1] + ESCAPE) if file.endswith("json") else f",day{ESCAPE},"
        assert old in text
        (folder / file).write_text(text.replace(old, new))
        refused.append([*evaluate[:-1], str(folder)])
    network.classes = [name + ESCAPE for name in network.classes]
    save_segmenter(network, checkpoint)
    refused += [
        evaluate,
        ["segment", str(tmp_path / "run"), "--data", str(root), "--out", str(tmp_path / "x")],
    ]
    clustering = Clustering(torch.ones(1, 2), [0], [f"a{ESCAPE}"], [(1, 2, 3)])
    save_clustering(tmp_path / "run" / "clustering.safetensors", clustering)
    refused.append(["evaluate", str(tmp_path / f"none{ESCAPE}"), "--data", str(root)])
    for words in refused:
        with pytest.raises(SystemExit, match="error: ") as error:
            cli.main(words)
        said = capsys.readouterr()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", f"{error.value}{said.out}{said.err}"), words


# ---- names are only names ----


def test_file_names_with_formulas_and_of_any_length_are_predicted(tmp_path):
    root = toy.make(tmp_path / "data", 1, 1)
    save_segmenter(toy.untrained(PreparedDataset(root, "val")), tmp_path / "last.safetensors")
    names = ["a" * 250, "$x_1$", "$\\frac{", "%s {0} & <b>", "ä" * 100]
    (tmp_path / "rgb").mkdir()
    for name in names:
        shutil.copy(root / "rgb" / "val_000.png", tmp_path / "rgb" / f"{name}.png")
    words = ["predict", str(tmp_path / "last.safetensors"), f"rgb={tmp_path}/rgb", "--sheet", "9", "--out"]
    cli.main([*words, str(tmp_path / "out")])
    assert {path.stem for path in (tmp_path / "out" / "masks").iterdir()} == set(names)
    assert (tmp_path / "out" / "sheet.png").exists()
    try:
        shutil.copy(root / "rgb" / "val_000.png", os.fsencode(tmp_path / "rgb") + b"/caf\xe9.png")
    except OSError:
        return  # a disk that takes text only
    with pytest.raises(SystemExit, match="caf .png: a name that is no text"):
        cli.main([*words, str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_a_split_that_climbs_out_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "cache"))
    root = toy.make(tmp_path / "data", 2, 1)
    save_segmenter(toy.untrained(PreparedDataset(root, "val")), tmp_path / "last.safetensors")
    before = {path for path in tmp_path.rglob("*")}
    (tmp_path / "x").write_text("mine")
    for command in ("evaluate", "predict", "cluster"):
        words = [command] + [str(tmp_path / "last.safetensors")] * (command != "cluster")
        words += ["--data", str(root), "--split", "../../x", "--out", str(tmp_path / "out" / "deep")]
        with pytest.raises(SystemExit, match="no sample in split '../../x'"):
            cli.main(words)
    assert (tmp_path / "x").read_text() == "mine"
    left = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path not in before}
    assert left <= {"x", "out", "cache"}
