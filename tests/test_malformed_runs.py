"""Malformed files of runs (checkpoints, states, histories, clusters, weights, searches) and command lines:
one clear error each.

As in test_malformed: a sound file, what is done to it, and an error of one line that names it, with nothing
changed on disk.
"""

import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
import toy
from safetensors import safe_open
from safetensors.torch import save_file
from small_runs import configured
from test_malformed import (
    becomes_a_folder,
    becomes_a_pipe,
    cut,
    goes,
    holds,
    listing,
    named,
    refused,
)

from mmlib import cli, world
from mmlib.data.prepared import PreparedDataset
from mmlib.loop import read_history
from mmlib.recipes import read_recipe
from mmlib.segmentation.compare import CompareConfig, compare
from mmlib.segmentation.network import load_segmenter
from mmlib.segmentation.train import TrainConfig, train
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.clustering import load_clustering
from mmlib.unsupervised.extraction import extract_tokens
from mmlib.unsupervised.inference import EvaluationConfig, SegmentConfig, segment
from mmlib.unsupervised.search import SearchConfig, search
from mmlib.unsupervised.train import cluster


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


ONCE = EvaluationConfig(restarts=2, repeats=1)
COMMANDS = {  # in the folder that holds data/, so that a copy of it is the same run
    "train": lambda: train(TrainConfig("data", "train", epochs=1, information_samples=0, progress=False)),
    "cluster": lambda: cluster(
        configured("data", "cluster", steps=2, eval_every=1, select="criterion", evaluation=ONCE)
    ),
    "coral": lambda: cluster(configured("data", "coral", "coral", steps=1, evaluation=ONCE)),
    "search": lambda: search(SearchConfig(configured("data", "search", steps=1, evaluation=ONCE), trials=1)),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """data/ and a small finished run of every command."""
    root = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMLIB_DATA", "cache")
        patch.chdir(root)
        toy.make(root / "data", 6, 2)
        for command in COMMANDS.values():
            command()
    return root


@pytest.fixture
def runs(sound, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the working folder. Its files are those of ``sound`` by another name: ``spoil``
    them, or move others there.
    """
    monkeypatch.setenv("MMLIB_DATA", "cache")
    shutil.copytree(sound, tmp_path / "runs", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "runs")
    return Path()


def spoil(file: str, change) -> None:
    path = Path(file)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    change(path)


# ---- every safetensors file ----


def framed(header, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return holds(struct.pack("<Q", len(text) if length is None else length) + text + data)


def resaved(change):
    """The tensors and the header of the library, changed."""

    def apply(path):
        with safe_open(path, "pt") as file:
            tensors, header = (
                {name: file.get_tensor(name) for name in file.keys()},
                json.loads(file.metadata()["mmlib"]),
            )
        tensors, header = change(tensors, header) or (tensors, header)
        save_file(tensors, path, {"mmlib": json.dumps(header)})

    return apply


def of_eight_bits(tensors):
    """Floats with a sign, four bits of exponent and three of fraction, all NaN."""
    return {
        name: torch.full_like(value, torch.nan, dtype=torch.float8_e4m3fn) for name, value in tensors.items()
    }


def pickled(path: Path):
    path.write_bytes(pickle.dumps(Bomb(path.with_name("sprung"))))


def saved_by_torch(path: Path):
    torch.save({"weights": Bomb(path.with_name("sprung"))}, path)


ONE = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
BYTES = [
    ("empty", holds(b""), "not a file"),
    ("four bytes", holds(b"1234"), "not a file"),
    ("half of its header", cut(0.01), "not a file"),
    ("half", cut(0.5), "not a file"),
    ("a byte short", cut(0.99999), "not a file"),
    ("text", holds(b"these are not the weights you are looking for"), "not a file"),
    ("a folder", becomes_a_folder, "not a file"),
    ("a header of 2^60 bytes, it says", framed(b"{}", length=2**60), "not a file"),
    ("a header that is no JSON", framed(b"{nothing"), "not a file"),
    ("a header in a list", framed([1, 2]), "not a file"),
    ("without the library's header", framed(ONE, bytes(4)), "not a file"),
    (
        "tensors beyond its end",
        framed({"x": ONE["x"] | {"data_offsets": [0, 2**40]}}, bytes(4)),
        "not a file",
    ),
    ("a shape of 2^62", framed({"x": ONE["x"] | {"shape": [2**62]}}, bytes(4)), "not a file"),
    ("a negative shape", framed({"x": ONE["x"] | {"shape": [-1]}}, bytes(4)), "not a file"),
    ("of an unknown dtype", framed({"x": ONE["x"] | {"dtype": "F31"}}, bytes(4)), "not a file"),
    ("tensors that overlap", framed({"x": ONE["x"], "y": ONE["x"]}, bytes(4)), "not a file"),
    ("words for a header", framed({"__metadata__": {"mmlib": "words"}} | ONE, bytes(4)), "not a file"),
    ("a list for a header", framed({"__metadata__": {"mmlib": "[]"}} | ONE, bytes(4)), "not a file"),
    (
        "a million brackets for a header",
        framed({"__metadata__": {"mmlib": "[" * 10**6}} | ONE, bytes(4)),
        "not a file",
    ),
    ("of another kind", resaved(lambda tensors, header: (tensors, {"other": 1})), "not|holds no"),
    ("a pickle", pickled, "not a file"),
    ("a pickle of torch", saved_by_torch, "not a file"),
    ("a pipe", becomes_a_pipe, "a pipe or a device"),
    ("of eight bits, not numbers", resaved(lambda tensors, header: (of_eight_bits(tensors), header)), "NaN"),
]


READERS = {
    "train/last.safetensors": load_segmenter,
    "train/resume.safetensors": lambda path: COMMANDS["train"](),
    "cluster/clustering.safetensors": load_clustering,
    "cluster/kept.safetensors": lambda path: COMMANDS["cluster"](),
}


# All of them open a file by the same function: every reader meets some kinds of damage, and every kind one
# reader.
BY_ALL = ("half", "of another kind", "a pickle", "a pipe", "of eight bits, not numbers")
DAMAGED = [
    (file, *damage)
    for number, damage in enumerate(BYTES)
    for place, file in enumerate(READERS)
    if damage[0] in BY_ALL or number % len(READERS) == place
]


@pytest.mark.parametrize("file, change, message", named(DAMAGED))
def test_bytes_of_safetensors(runs, file, change, message):
    spoil(file, change)
    refused(lambda: READERS[file](file), message, Path(file).parent, around=runs)
    assert not list(runs.rglob("sprung"))


# ---- what is in them ----


def tensor(name: str, value):
    """One tensor of the file; ... = without it; a function = of what it was."""

    def change(tensors, header):
        if value is ...:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name]) if callable(value) else value

    return resaved(change)


def header(*keys: str, value):
    """One entry of the library's header; ... = without it."""

    def change(tensors, header):
        for key in keys[:-1]:
            header = header[key]
        if value is ...:
            del header[keys[-1]]
        else:
            header[keys[-1]] = value

    return resaved(change)


def broken(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().fill_(float("nan"))


LAST, RESUME, HEAD, MOMENT = (
    "train/last.safetensors",
    "train/resume.safetensors",
    "head.classify.weight",
    "optimizer.0.exp_avg",
)
CLUSTERS, KEPT = "cluster/clustering.safetensors", "cluster/kept.safetensors"
MODALITY = {"name": "rgb", "symbol": "R", "channels": 3}
CONTENTS = [
    *(
        (file, what, tensor(name, value), message)
        for file, name in (
            (LAST, HEAD),
            (RESUME, f"model.{HEAD}"),
            (CLUSTERS, "network.head.linear.weight"),
        )
        for what, value, message in (
            ("without a tensor", ..., "do not fit"),
            ("of another shape", torch.zeros(2, 3), "do not fit"),
            ("of integers", lambda tensor: tensor.int(), "do not fit.*int32"),
            ("NaN", broken, "NaN or infinite"),
            ("infinite", lambda tensor: tensor.clone().fill_(float("inf")), "NaN or infinite"),
        )
    ),
    (LAST, "a tensor more", tensor("more", torch.zeros(2)), "do not fit"),
    *(
        (LAST, f"settings: {what}", header("segmenter", *keys, value=value), "not a segmenter")
        for what, keys, value in (
            ("none", ["config"], ...),
            ("a list", ["config"], [1]),
            ("an unknown one", ["config", "depth"], 3),
            ("no classes", ["classes"], ...),
            ("an encoder that timm does not have", ["config", "encoder"], "resnet5000"),
            ("an encoder from the network", ["config", "encoder"], "hf-hub:a/b"),
            ("an unknown stem", ["config", "stem"], "double"),
            ("an unknown fusion", ["config", "fusion"], "max"),
            ("a width in words", ["config", "embed_dim"], "wide"),
            ("a negative width", ["config", "embed_dim"], -8),
            ("a width beyond any memory", ["config", "embed_dim"], 2**50),
            ("no modality", ["modalities"], []),
            ("no palette", ["palette"], ...),
            ("modalities by name", ["modalities"], ["rgb"]),
            ("half a modality", ["modalities"], [{"name": "rgb"}]),
            ("scale 0", ["modalities"], [MODALITY | {"scale": 0}]),
            ("an unknown field", ["modalities"], [MODALITY | {"gamma": 1}]),
            ("a number for classes", ["classes"], 3),
            ("a class twice", ["classes"], ["a", "a", "b"]),
            ("a short palette", ["palette"], [[0, 0, 0]]),
        )
    ),
    (RESUME, "a moment of another shape", tensor(MOMENT, torch.zeros(3)), "optimizer state"),
    (RESUME, "a moment of integers", tensor(MOMENT, lambda tensor: tensor.int()), "optimizer state"),
    (RESUME, "a moment less", tensor(MOMENT, ...), "optimizer"),
    (RESUME, "a moment of nothing", tensor("optimizer.9999.exp_avg", torch.zeros(1)), "not a state"),
    (RESUME, "a tensor of no name", tensor("optimizer", torch.zeros(1)), "not a state"),
    (RESUME, "a word for a number", tensor("optimizer.first.step", torch.zeros(1)), "not a state"),
    (RESUME, "no settings", header("state", "config", value=...), "not a state"),
    (RESUME, "no progress", header("state", "progress", value=...), "not a state"),
    (RESUME, "other settings", header("state", "config", "lr", value=7), "another configuration.*lr was 7"),
    (RESUME, "an unknown count", header("state", "progress", "laps", value=7), "not a state"),
    (RESUME, "a step in words", header("state", "progress", "step", value="ten"), "not a state"),
    (RESUME, "a step before the first", header("state", "progress", "step", value=-1), "not a state"),
    (RESUME, "a state in a list", header("state", value=[1]), "not a state"),
    (KEPT, "no step", header("kept", "step", value=...), "not the best state"),
    (KEPT, "a step in words", header("kept", "step", value="ten"), "not the"),
    (KEPT, "NaN", tensor("net.head.linear.weight", broken), "NaN or infinite"),
    *(
        (
            CLUSTERS,
            f"network: {what}",
            header("clustering", "network", *keys, value=value),
            "not a clustering",
        )
        for what, keys, value in (
            ("no channels", ["channels"], ...),
            ("channels in words", ["channels"], "many"),
            ("channel -1", ["channels"], -1),
            ("an unknown one", ["config", "depth"], 3),
            ("an unknown fusion", ["config", "fusion"], "magic"),
            ("no modality", ["modalities"], []),
            ("a dropout of 2", ["config", "dropout"], 2),
        )
    ),
    (CLUSTERS, "other channels", header("clustering", "network", "channels", value=7), "do not fit"),
    (CLUSTERS, "a tensor more", tensor("network.more", torch.zeros(1)), "do not fit"),
    (CLUSTERS, "no centroid", tensor("centroids", ...), "not a clustering"),
    (CLUSTERS, "flat", tensor("centroids", torch.zeros(8)), "not a clustering"),
    (CLUSTERS, "of integers", tensor("centroids", torch.zeros(3, 8).int()), "not a clustering"),
    (CLUSTERS, "of another length", tensor("centroids", torch.zeros(3, 5)), "D of the codes"),
    (CLUSTERS, "NaN", tensor("centroids", broken), "NaN"),
    (CLUSTERS, "a class too many", header("clustering", "mapping", value=[0, 1, 2, 0]), "mapping"),
    (CLUSTERS, "of class 99", header("clustering", "mapping", value=[0, 1, 99]), "mapping"),
    (CLUSTERS, "a class in words", header("clustering", "mapping", value=[0, 1, "sky"]), "mapping"),
    (CLUSTERS, "no palette", header("clustering", "palette", value=...), "0 colours: expected"),
    (CLUSTERS, "a colour of 300", header("clustering", "palette", 0, 0, value=300), "palette 300"),
    (CLUSTERS, "an escape sequence", header("clustering", "classes", 0, value="\x1b[2J"), "control char"),
    (CLUSTERS, "colours of two", header("clustering", "palette", value=[[0, 0]] * 3), "not a clustering"),
    (CLUSTERS, "more", header("clustering", "more", value=1), "not a clustering"),
    (
        CLUSTERS,
        "a class in numbers",
        header("clustering", "classes", 0, value=5),
        "its classes 5: expected text",
    ),
    (
        CLUSTERS,
        "a share in words",
        header("clustering", "chain", "centre", value="x"),
        "its centre x: expected",
    ),
    (
        CLUSTERS,
        "a share of 1e30",
        header("clustering", "chain", "centre", value=10**30),
        "its centre .*at most 1",
    ),
    (
        CLUSTERS,
        "weights of no network",
        header("clustering", "network", value=None),
        "tensors of its tokens and",
    ),
]


@pytest.mark.parametrize("file, change, message", named(CONTENTS))
def test_contents_of_safetensors(runs, file, change, message):
    spoil(file, change)
    refused(lambda: READERS[file](file), message, Path(file).parent, around=runs)


GARBAGE, TEXT = holds(b"garbage " * 1000), holds(b"{}")
HISTORY = [
    ("a line that is no JSON", holds(b'{"step": 1}\nnonsense\n{"step": 2}\n'), "not a history"),
    ("not UTF-8", holds(b"\xff\xfe\n"), "not a history"),
    ("a list", holds(b"[1]\n"), "not a history"),
    ("a line without a step", holds(b'{"loss": 1}\n'), "not a history"),
    ("a step in words", holds(b'{"step": "ten"}\n'), "not a history"),
    ("a measurement in words", holds(b'{"step": 1, "val": "good"}\n'), "not a history"),
    ("a million brackets", holds(b"[" * 10**6 + b"\n"), "not a history"),
    ("a folder", becomes_a_folder, "not a history"),
]


@pytest.mark.parametrize(
    "file", [file for file in READERS if "kept" not in file]
)  # without a best state there is none to read
def test_files_that_are_gone(runs, file):
    Path(file).unlink()
    refused(
        lambda: READERS[file](file),
        "no such file|holds a trained network but no state",
        Path(file).parent,
        around=runs,
    )


@pytest.mark.parametrize("change, message", named(HISTORY))
def test_histories(runs, change, message):
    spoil("train/history.jsonl", change)
    for call in (COMMANDS["train"], lambda: read_history("train/history.jsonl")):
        refused(call, message, "train/history.jsonl", around=runs)


def test_a_history_that_a_kill_cut_short_is_read_up_to_there(tmp_path):
    (tmp_path / "history.jsonl").write_bytes(b'{"step": 1}\n{"step": 2, "val": {"full": 1}}\n{"step": 3, "lo')
    assert read_history(tmp_path / "history.jsonl") == ([{"step": 1}], [{"step": 2, "val": {"full": 1}}])
    with pytest.raises(ValueError, match="history.jsonl: no such file"):
        read_history(tmp_path / "nowhere" / "history.jsonl")


SEGMENTED = [
    *(
        (CLUSTERS, what, header("clustering", *keys, value=value), message)
        for what, keys, value, message in (
            ("no settings", ["settings"], ..., "says how it was made"),
            ("settings in a list", ["settings"], [1], "its settings 1: expected a dict"),
            ("no sensors", ["settings", "sensors"], ..., "says how it was made"),
            ("sensors in numbers", ["settings", "sensors"], 1, "says how it was made"),
            ("a sensor in a list", ["settings", "sensors"], [["rgb"]], "inputs .*: expected text"),
            ("an input in numbers", ["settings", "read", 0], 7, "inputs 7: expected text"),
            ("of another backbone", ["settings", "backbone"], "abc", "other weights or another version"),
            ("no backbone", ["settings", "backbone"], ..., "says how it was made"),
            ("no tokens", ["settings", "tokens"], ..., "says how it was made"),
            ("reads less", ["settings", "read"], ["rgb"], "needs a sensor that it does not read"),
            ("an unknown setting", ["settings", "tokens"], {"patches": 3}, "says how it was made"),
            (
                "an unknown backbone",
                ["settings", "tokens", "backbone"],
                "descriptors",
                "descriptors.*cluster again",
            ),
        )
    ),
    (CLUSTERS, "empty", holds(b""), "not a file"),
    (CLUSTERS, "gone", goes, "no such file"),
    (CLUSTERS, "std less", tensor("tokens.std.rgb", ...), "KeyError: 'tokens.std.rgb'.*not a clustering"),
    (CLUSTERS, "std 0", tensor("tokens.std.rgb", torch.zeros_like), "a positive std"),
    (CLUSTERS, "NaN", tensor("tokens.mean.rgb", broken), "NaN or infinite"),
    ("coral/clustering.safetensors", "half", cut(0.5), "not a file"),
    (
        "coral/clustering.safetensors",
        "a tensor of an MSN less",
        tensor("network.msn.depth.body.0.weight", ...),
        "do not fit",
    ),
]


@pytest.mark.parametrize("file, change, message", named(SEGMENTED))
def test_a_clustering_that_is_applied(runs, file, change, message):
    spoil(file, change)
    folder = str(Path(file).parent)
    refused(
        lambda: segment(SegmentConfig(folder, "data", "maps", "val", device="cpu", progress=False)),
        message,
        around=runs,
    )


def torch_saved(value):
    return lambda path: torch.save(value, path)


def zipped(**members: bytes):
    def change(path):
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(f"archive/{name.replace('_', '.')}", content)

    return change


PROTOCOL_0 = b"cos\nmkdir\n(S'sprung'\ntR."  # os.mkdir("sprung")
WEIGHTS = [
    ("x.pth", "empty", holds(b""), "not (weights of|a file of)"),
    ("x.pth", "text", holds(b"weights"), "not (weights of|a file of)"),
    ("x.pth", "a number", torch_saved(3), "not (weights of|a file of)"),
    ("x.pth", "a list", torch_saved([1]), "not (weights of|a file of)"),
    ("x.pth", "numbers by name", torch_saved({"a": 1}), "not (weights of|a file of)"),
    ("x.pth", "of no name", torch_saved({}), "it lacks cls_token"),
    ("x.pth", "of other names", torch_saved({"a": torch.zeros(1)}), "it also has a"),
    ("x.pth", "names of numbers", torch_saved({3: torch.zeros(1)}), "not"),
    (
        "x.pth",
        "half a checkpoint",
        lambda path: (torch_saved({"a": torch.zeros(10**4)})(path), cut(0.5)(path)),
        "not (weights of|a file of)",
    ),
    ("x.pth", "a pickle that makes a folder", pickled, "not (weights of|a file of)"),
    ("x.bin", "the same through torch", saved_by_torch, "not (weights of|a file of)"),
    ("x.bin", "a pickle in letters", holds(PROTOCOL_0), "not (weights of|a file of)"),
    ("x.pth", "a zip", zipped(a_txt=b"1"), "not (weights of|a file of)"),
    ("x.pth", "a zip with a bomb", zipped(data_pkl=PROTOCOL_0, version=b"3\n"), "not (weights of|a file of)"),
    ("x.safetensors", "a pickle", pickled, "not (weights of|a file of)"),
    ("x.safetensors", "empty", holds(b""), "not (weights of|a file of)"),
    ("x.safetensors", "a list for a header", framed([1]), "not (weights of|a file of)"),
    (
        "x.safetensors",
        "of other names",
        lambda path: save_file({"a": torch.zeros(1)}, path),
        "it also has a",
    ),
    ("x.safetensors", "a folder", lambda path: path.mkdir(), "weights of|a file of"),
]


@pytest.mark.parametrize("file, change, message", named(WEIGHTS))
def test_weights_of_a_backbone(tmp_path, monkeypatch, file, change, message):
    monkeypatch.chdir(tmp_path)
    change(Path(file))
    refused(
        lambda: load_backbone("test_vit", file),
        message,
        file,
        around=tmp_path,
    )
    assert not list(tmp_path.rglob("sprung"))


STORAGE = [
    ("garbage", GARBAGE, "study.db: .*not Optuna's storage"),
    ("half", cut(0.5), "study.db: .*not Optuna's storage"),
    ("a folder", becomes_a_folder, "study.db: .*not Optuna's storage"),
    (
        "SQLite and nothing else",
        holds(b"SQLite format 3\0" + bytes(4000)),
        "study.db: .*not Optuna's storage",
    ),
]


@pytest.mark.parametrize("change, message", named(STORAGE))
def test_storage_of_a_search(runs, change, message):
    spoil("search/study.db", change)
    refused(COMMANDS["search"], message, around=runs)


def test_caches_that_are_none(runs, monkeypatch):
    extract = lambda: extract_tokens(
        PreparedDataset("data", "val"), load_backbone("test_efficientnet", "random"), progress=False
    )
    folder = extract().arrays["rgb"].files[0].parent
    lock = Path(f"{folder}.lock")
    shutil.rmtree(folder)
    folder.mkdir()
    becomes_a_folder(lock)
    refused(extract, "cannot be locked", lock, around=runs)
    monkeypatch.setenv("MMLIB_DATA", "data/dataset.json")
    refused(extract, "Not a directory", "data/dataset.json", around=runs)


RECIPE = b'{"train": {"lr": {"value": %s, "source": "ours"}}}'
RECIPES = [
    ("empty", holds(b""), "cannot be read"),
    ("half", holds(RECIPE[:20]), "cannot be read"),
    ("not UTF-8", holds(b"\xff{}"), "cannot be read"),
    ("a folder", lambda path: path.mkdir(), "cannot be read"),
    ("a million brackets", holds(b"[" * 10**6), "cannot be read"),
    ("a list", holds(b"[]"), "it is not a recipe"),
    ("null", holds(b"null"), "it is not a recipe"),
    ("NaN", holds(RECIPE % b"NaN"), "nan"),
    ("1e999", holds(RECIPE % b"1e999"), "inf: expected a finite number"),
    ("a rate in words", holds(RECIPE % b'"fast"'), "expected a number"),
    ("gone", lambda path: None, "no such file"),
]


@pytest.mark.parametrize("change, message", named(RECIPES))
def test_recipes(tmp_path, change, message):
    change(tmp_path / "recipe.json")
    refused(
        lambda: read_recipe(tmp_path / "recipe.json", "train", TrainConfig),
        message,
        "recipe.json",
        around=tmp_path,
    )


# ---- the command line ----

SMALL = (
    "--device cpu --no-progress --steps 1 --neighbours 3 "
    "--backbone test_efficientnet --backbone-weights random --size 64 96"
).split()
RECORDS = [
    (f"train/{file}", *case)
    for file, what in (("report.json", "not the report"), ("config.json", "not the settings"))
    for case in (
        ("empty", holds(b""), what),
        ("half", cut(0.5), what),
        ("a list", holds(b"[]"), what),
        ("of nothing", TEXT, what),
        ("not UTF-8", holds(b"\xff{}"), what),
        ("a million brackets", holds(b"[" * 10**6), what),
    )
]


@pytest.mark.parametrize("file, change, message", named(RECORDS))
def test_a_run_that_is_compared(runs, file, change, message):
    spoil(file, change)
    refused(lambda: compare(CompareConfig(("train",), "val", progress=False)), message, file, around=runs)


def test_a_data_set_that_has_become_smaller(runs):
    shutil.rmtree("data")
    toy.make(Path("data"), 2, 2)
    refused(COMMANDS["train"], "changed: .*index of train, images of train", around=runs)


def test_a_lock_of_the_world_that_is_none(runs):
    root = world.ensure("room", 1, 0, 0, (32, 48), ("rgb",), progress=False)
    becomes_a_folder(Path(f"{root}.lock"))
    assert (
        world.ensure("room", 1, 0, 0, (32, 48), ("rgb",), progress=False) == root
    )  # what is there needs no lock
    shutil.rmtree(root)
    refused(
        lambda: world.ensure("room", 1, 0, 0, (32, 48), ("rgb",), progress=False),
        "cannot be locked",
        f"{root}.lock",
        around=runs,
    )


LINES = [
    ("train --data data --out new --clip 0", "clip 0"),
    ("train --data data --out new --warmup 2", "warmup 2"),
    ("train --data data --out new --pixels 0", "pixels 0"),
    ("train --data data --out new --pixels 7", "pixels 7"),
    ("train --data data --out new --epochs -1", "epochs -1.0"),
    ("train --data data --out new --epochs nan", "epochs"),
    ("train --data data --out new --epochs inf", "epochs"),
    ("train --data data --out new --epochs 1e308", "epochs 1e.308: expected above 0, at most 1e.06"),
    ("train --data data --out new --batch-size 0", "batch-size 0"),
    ("train --data data --out new --batch-size -4", "batch-size -4"),
    ("train --data data --out new --accumulate 0", "accumulate 0"),
    ("train --data data --out new --lr -1", "lr"),
    ("train --data data --out new --lr nan", "lr"),
    ("train --data data --out new --weight-decay -1", "weight.decay"),
    ("train --data data --out new --power nan", "power"),
    ("train --data data --out new --crop -8 -8", "crop"),
    ("train --data data --out new --crop 8 0", "crop"),
    ("train --data data --out new --scale 0 1", "scale"),
    ("train --data data --out new --jitter -1", "jitter"),
    ("train --data data --out new --workers -1", "workers"),
    ("train --data data --out new --eval-every -1", "eval.every"),
    ("train --data data --out new --lambda-p -1", "lambda.p"),
    ("train --data data --out new --lambda-p nan", "lambda-p nan"),
    ("train --data data --out new --sigma -1", "sigma"),
    ("train --data data --out new --embed-dim -1", "embed.dim"),
    ("train --data data --out new --dropout 2", "dropout"),
    ("train --data data --out new --modalities rgb rgb", "name each modality once"),
    ("train --data data --out new --modalities sonar", "'sonar'"),
    ("train --data nowhere --out new", "nowhere"),
    ("train --data data/index.csv --out new", "data/index.csv"),
    ("train --data data --out data/index.csv", "data/index.csv: is, holds or lies in the input data"),
    ("train --data data --out data/index.csv/new", "index.csv"),
    ("train --data data --out cluster", "cluster"),
    ("train --data runs --out new", "runs"),
    ("evaluate train/last.safetensors --data nowhere", "nowhere"),
    ("evaluate nowhere.safetensors --data data", "nowhere.safetensors: no such file"),
    ("evaluate train --data data", "train: .*not a file of this library"),
    ("evaluate data/index.csv --data data", "not a file of this library"),
    ("evaluate cluster/clustering.safetensors --data data", "not a segmenter checkpoint"),
    ("evaluate train/resume.safetensors --data data", "not a segm"),
    ("evaluate train/last.safetensors --data data --split test", "no sample in split 'test'"),
    ("evaluate train/last.safetensors --data data --batch-size 0", "batch.size"),
    ("evaluate train/last.safetensors --data data --device warp", "device 'warp' cannot be used"),
    ("evaluate train/last.safetensors --data data --device cuda:99", "device 'cuda:99' cannot be used"),
    ("evaluate train/last.safetensors --data data --workers -1", "workers"),
    ("evaluate train/last.safetensors --data data --out data", "--out data: is, holds or lies in the input"),
    ("compare nowhere", "nowhere/report.json: no such file"),
    ("compare train train --split val", "or a second one of seed 0"),
    ("compare data", "report.json: no such file"),
    ("render street --out data", "already holds a finished"),
    ("render street --out new --size 0 0", "size"),
    ("render street --out new --size 100000 100000", "size"),
    ("render street --out new --train -1", "train -1"),
    ("render street --out new --train 0 --val 0 --test 0", "all 0"),
    ("render street --out new --train 1000000", "--train 1000000"),
    ("render street --out data/index.csv --train 1 --val 0 --test 0", "index.csv"),
    *(
        (f"cluster --data data {flags} --out new {' '.join(SMALL)}", message)
        for flags, message in (
            ("--steps -1", "steps"),
            ("--lr -1", "lr"),
            ("--lr nan", "lr"),
            ("--lr inf", "lr"),
            ("--dim 0", "dim 0"),
            ("--dropout 1", "dropout 1.0"),
            ("--neighbours 99", "neighbours 99"),
            ("--neighbours 0", "neighbours 0"),
            ("--lambda-x nan", "lambda"),
            ("--lambda-x -1", "lambda"),
            ("--clusters 999", "999 clusters"),
            ("--restarts 0", "restarts 0"),
            ("--extract-batch 0", "extract-batch 0"),
            ("--eval-size -8 -8", "eval-size"),
            ("--weights -1 1 1", "weights"),
            ("--quantiles 2 2 2", "quantile"),
            ("--points -1", "points"),
            ("--kmeans-points 0", "kmeans-points 0"),
            ("--device warp", "device 'warp'"),
            ("--out data/index.csv", "index.csv"),
            ("--out train", "train"),
            ("--batch-size 1", "batch-size 1"),
        )
    ),
    ("compare train --out data", "--out data: is there already"),
    ("segment data --data data --out new", "data.clustering.safetensors: no such file"),
    ("segment cluster --data nowhere --out new", "nowhere"),
    ("segment cluster --data data --out data/index.csv --split val --device cpu --no-progress", "index.csv"),
    ("segment cluster --data data --out new --split val --guide sonar --device cpu --no-progress", "sonar"),
    ("search --data data --out new --trials 0 --no-progress", "trials"),
    (
        "search --data data --out data/index.csv --trials 1 --neighbours 3 --backbone test_efficientnet --backbone-weights random --no-progress",
        "index.csv",
    ),
]


@pytest.mark.parametrize("line, message", LINES, ids=[line[:90] for line, _ in LINES])
def test_command_lines(runs, capsys, line, message):
    words = line.split()
    for flag in {
        word for word in words if word.startswith("--") and words.count(word) > 1
    }:  # what a case says stands
        last = len(words) - 1 - words[::-1].index(flag)
        del words[last : last + 2]
    if words[0] == "train" and "--epochs" not in words:
        words += ["--epochs", "1"]
    if words[0] in ("train", "evaluate", "compare", "render"):
        words.append("--no-progress")
    before = listing(runs)
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    text = str(end.value.code)
    if end.value.code == 2:  # the parser's own words, in a box
        text = " ".join(capsys.readouterr().err.replace("│", " ").split())
    else:
        assert text.startswith("error: ") and "\n" not in text
    assert re.search(message, text), text
    assert listing(runs) == before
