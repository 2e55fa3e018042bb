"""Recipes: every value says where it comes from, agrees with it, gives way to the command line, and nothing
in a file is ignored.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mmlib import cli
from mmlib.config import check_settings, settings
from mmlib.modalities import SENSORS
from mmlib.recipes import read_recipe
from mmlib.segmentation.step import TrainConfig
from mmlib.unsupervised.correspondence import cmcs_loss, derangement
from mmlib.unsupervised.methods import ClusterConfig, resolve_method

SCRIPTS = Path(__file__).resolve().parents[1] / "data_scripts"
FILES = sorted((SCRIPTS / "recipes").glob("*.json"))
KINDS = {"train": TrainConfig, "cluster": ClusterConfig}


def values(name: str, section: str) -> dict:
    return json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text())[section]


def configured(recipe, *flags):
    """The configuration that a recipe's words, and flags after them, make."""
    words = [*recipe.words, "--data=x", "--out=y", *flags]
    return tyro.cli(KINDS[recipe.section], args=words, config=(tyro.conf.OmitArgPrefixes,))


# ---- what the files say ----


def test_every_data_set_has_its_recipe():
    prepared = {path.stem.removeprefix("prepare_") for path in SCRIPTS.glob("prepare_*.py")} - {"folders"}
    assert {path.stem for path in FILES} >= prepared and len(FILES) == 5


@pytest.mark.parametrize("section", KINDS)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_recipes_are_valid_and_every_value_has_a_source(path, section):
    recipe = read_recipe(path, section, KINDS[section])
    config = configured(recipe)
    check_settings(config)
    values = {name: json.loads(json.dumps(value)) for name, _, value in settings(config)}
    assert len(recipe.entries) > 5
    assert all(values[name] == entry["value"] for name, entry in recipe.entries.items())
    found = json.loads(path.read_text())
    assert set(found) == {"about", *KINDS} and f"prepare_{path.stem}.py" in found["about"]
    if section == "train":
        assert (
            config.precision == "auto"
            and config.network.encoder.startswith("pvt_v2")
            and "licence" in recipe.entries["encoder"]["source"]
        )
    else:
        resolve_method(config, list(config.modalities) or ["rgb", "lidar"])


# Printed in the two papers; "released": read in the released code of the second.
PAPER_A = dict(lr=6e-5, epochs=200, power=0.9, lambda_p=0.3, lambda_f=0.02, subsets="dropout", stem="shared")
PAPER_B = dict(batch_size=32, crops=5)
# Weights of KNN, self and random pairs, b of random, KNN and self pairs, and the weight of the sensor.
RELEASED_PAIRS = {
    "nyu": {
        "rgb": (0.1671, 0.0957, 0.9005, 0.5664, 0.6222, 0.7199, 0.1356),
        "hha": (0.2995, 0.6550, 0.0550, 0.2440, 0.4318, 0.1328, 0.8889),
    },
    "mfnet": {
        "rgb": (0.3334, 0.0606, 0.9262, 0.7760, 0.7800, 0.9607, 0.0478),
        "thermal": (0.9124, 0.2388, 0.5064, 0.5540, 0.2864, 0.0096, 0.4922),
    },
    "mcubes": {
        "rgb": (0.0705, 0.2237, 0.7443, 0.6375, 0.2830, 0.7865, 0.4046),
        "aolp": (0.5528, 0.5756, 0.4637, 0.3037, 0.6230, 0.4694, 0.3052),
    },
}
RELEASED = {
    "nyu": dict(dim=70, lr=5e-4, steps=10000, fusion="conv", backbone="vit_small_patch16_dinov3"),
    "mfnet": dict(dim=90, lr=7.88e-5, steps=13000, fusion="conv", backbone="vit_base_patch16_dinov3"),
    "mcubes": dict(
        dim=320, lr=1.59e-5, steps=4000, fusion="progressive", backbone="vit_small_patch16_dinov3"
    ),
}


@pytest.mark.parametrize("name", ["deliver", "muses", "mcubes"])
def test_values_of_the_first_paper(name):
    found = values(name, "train")
    for key, value in PAPER_A.items():
        assert found[key]["value"] == value and found[key]["source"].startswith("paper"), key
    assert (
        found["weight_decay"]["value"] == 0.01 and found["warmup"]["value"] * found["epochs"]["value"] == 10
    )
    assert found["scale"]["value"] == [0.5, 2]


@pytest.mark.parametrize("name", ["nyu", "mfnet"])
def test_no_value_of_a_data_set_that_the_first_paper_lacks_is_called_its(name):
    found = values(name, "train")
    assert not any(entry["source"].startswith("paper") for entry in found.values())
    assert found["warmup"]["value"] * found["epochs"]["value"] == 10 and found["lr"]["value"] == 6e-5


@pytest.mark.parametrize("name", RELEASED)
def test_values_of_the_second_paper(name):
    found = values(name, "cluster")
    for key, value in PAPER_B.items():
        assert found[key]["value"] == value and found[key]["source"].startswith("paper"), key
    for key in ("numbers", "weights", "lambdas", "dim", "steps"):
        assert found[key]["source"].startswith("released code"), key
    config = configured(read_recipe(SCRIPTS / "recipes" / f"{name}.json", "cluster", ClusterConfig))
    released = RELEASED[name]
    assert (config.network.dim, config.network.fusion) == (released["dim"], released["fusion"])
    assert config.lr == released["lr"] and config.steps == released["steps"] // 3  # three optimizers
    # A bottleneck without a shortcut, maps of unit length, one harmonizer for what is not RGB, its anchor.
    network = config.network
    assert (network.msn, network.residual, network.normalize, network.dropout) == (True, False, True, 0.1)
    assert network.shared_cmh and network.anchor == "rgb"
    # Raw tokens of the last layer; 121 places, interpolated; centred, clamped, averaged.
    tokens, loss = config.tokens, config.loss
    assert tokens.backbone == released["backbone"] and (tokens.size, tokens.eval_size) == (
        (224,) * 2,
        (320,) * 2,
    )
    assert (tokens.standardize, tokens.smooth, tokens.centre_images, tokens.whiten) == ("auto", "auto", -1, 0)
    assert (loss.points, loss.sampling, loss.negatives) == (121, "bilinear", 5)
    assert (loss.centre, loss.clamp, loss.stabilize, loss.reduction) == (True, True, False, "mean")
    assert (config.neighbours, config.same_image, config.knn) == (7, True, "reference")


@pytest.mark.parametrize("name", RELEASED_PAIRS)
def test_the_fourteen_numbers_of_the_released_loss(name):
    """Seven of each sensor reach the loss, and the loss with them is the released sum, written plainly."""
    config = configured(read_recipe(SCRIPTS / "recipes" / f"{name}.json", "cluster", ClusterConfig))
    released, (rgb, other) = RELEASED_PAIRS[name], RELEASED_PAIRS[name]
    loss = resolve_method(config, [rgb, other]).loss
    for sensor, (w_knn, w_self, w_random, b_random, b_knn, b_self, w) in released.items():
        assert loss.pairs(sensor) == {"self": w_self, "knn": w_knn, "random": w_random}
        assert loss.shifts.numbers[sensor] == (b_self, b_knn, b_random) and loss.lambdas[sensor] == w
    assert loss.shifts.rule == "absolute" and set(loss.lambdas) == set(released)
    rng = np.random.default_rng(0)
    maps = lambda width: {sensor: rng.normal(size=(4, 6, width)) for sensor in released}
    f, f_near, c, c_near = maps(7), maps(7), maps(5), maps(5)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)

    def one(f1, f2, c1, c2, b):
        """Of a batch of pairs of images: cosines F without row means, S not below 0, −mean S(F − b)."""
        F = np.array([unit(x) @ unit(y).T for x, y in zip(f1, f2)])
        mean = F.mean()
        F = F - F.mean(2, keepdims=True)
        F = F - F.mean() + mean
        S = np.array([unit(x) @ unit(y).T for x, y in zip(c1, c2)])
        return -(np.maximum(S, 0) * (F - b)).mean()

    generator = torch.Generator().manual_seed(1)
    orders = [derangement(4, generator) for _ in range(5)]
    expected = 0.0
    for s, (w_knn, w_self, w_random, b_random, b_knn, b_self, w) in released.items():
        expected += w * w_self * one(f[s], f[s], c[s], c[s], b_self)
        expected += w * w_knn * one(f[s], f_near[s], c[s], c_near[s], b_knn)
        negatives = [one(f[s], f[s][order], c[s], c[s][order], b_random) for order in orders]
        expected += w * w_random * np.mean(negatives)
    tensors = [{s: torch.from_numpy(x) for s, x in group.items()} for group in (f, c, f_near, c_near)]
    found, _ = cmcs_loss(*tensors[:2], tensors[2:], loss, torch.Generator().manual_seed(1))
    assert abs(float(found) - expected) < 1e-12 and abs(expected) > 1e-3


@pytest.mark.parametrize("name", RELEASED_PAIRS)
def test_sensors_are_those_that_the_data_script_writes(name, monkeypatch):
    path = SCRIPTS / f"prepare_{name}.py"
    if not path.exists():
        pytest.skip("no such script")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # the one that other tests imported comes back after
    spec.loader.exec_module(module)
    found = values(name, "cluster")
    written = getattr(module, "MODALITIES", SENSORS)  # or under the names that the library uses
    assert set(RELEASED_PAIRS[name]) == set(found["modalities"]["value"]) <= set(written)


# ---- defaults, recipe, command line ----


def written(folder: Path, entries: dict, section: str = "train") -> str:
    path = folder / "recipe.json"
    path.write_text(
        json.dumps(
            {"about": "test", section: {k: {"value": v, "source": "ours"} for k, v in entries.items()}}
        )
    )
    return str(path)


def called(monkeypatch, *arguments) -> object:
    """The configuration that reaches ``train`` or ``cluster``."""
    seen = []

    def caught(config, *_):
        seen.append(config)
        raise ValueError("caught")

    monkeypatch.setattr(cli, "train", caught)
    monkeypatch.setattr(cli, "cluster", caught)
    with pytest.raises(SystemExit, match="caught"):
        cli.main([str(argument) for argument in arguments])
    return seen[0]


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(data, tmp_path, monkeypatch, capsys):
    recipe = written(
        tmp_path,
        {
            "epochs": 7,
            "crop": [32, 32],
            "lambda_p": 0.5,
            "prediction": "input",
            "cache": False,
            "dropout": 0.3,
        },
    )
    for form in (["--recipe", recipe], [f"--recipe={recipe}"]):
        config = called(
            monkeypatch,
            "train",
            "--data",
            data,
            *form,
            "--out",
            "x",
            "--epochs",
            "3",
            "--crop",
            "16",
            "24",
            "--cache",
        )
        assert (
            type(config) is TrainConfig
            and config.epochs == 3
            and config.crop == (16, 24)
            and config.cache is True
        )
        assert (
            config.regularizer.lambda_p == 0.5
            and config.regularizer.prediction == "input"
            and config.network.dropout == 0.3
        )
        assert config.batch_size == 4  # which nobody has set
        shown = capsys.readouterr().out
        assert f"recipe {recipe}, train:" in shown and "  lambda_p 0.5   (ours)" in shown
        for line in (
            "epochs 3.0, on the command line, not 7",
            "crop 16 24, on the command line, not 32 32",
            "cache True, on the command line, not False",
        ):
            assert f"  {line}   (ours)" in shown
        assert "batch_size" not in shown
    plain = called(monkeypatch, "train", "--data", data, "--out", "x")
    assert plain == TrainConfig(data, "x") and capsys.readouterr().out == ""


def settings_of(config):
    return ((name, value) for name, _, value in settings(config))


def test_tables_of_a_recipe_and_of_the_command_line(data, tmp_path, monkeypatch):
    numbers = {"rgb": [0.1, 0.2, 0.3], "depth": [0.4, 0.5, 0.6]}
    recipe = written(tmp_path, {"numbers": numbers, "rule": "absolute", "steps": 9}, "cluster")
    call = ["cluster", "--data", data, "--out", "x", "--recipe", recipe]
    config = called(monkeypatch, *call)
    assert config.loss.shifts.numbers == {n: tuple(v) for n, v in numbers.items()} and config.steps == 9
    config = called(monkeypatch, *call, "--numbers", "rgb", "1", "2", "3")
    assert config.loss.shifts.numbers == {"rgb": (1.0, 2.0, 3.0)}
    assert called(monkeypatch, *call[:-2], "--lambdas", "aolp", "2").loss.lambdas == {"aolp": 2.0}
    own = {"rgb": [0.1, 0.2, 0.3], "depth": [0.4, 0.0, 0.6]}
    recipe = written(tmp_path, {"weights": own, "quantiles": [0.5, 0.6, 0.7]}, "cluster")
    config = called(monkeypatch, *call)
    assert config.loss.weights == {n: tuple(v) for n, v in own.items()}
    assert config.loss.shifts.quantiles == (0.5, 0.6, 0.7)
    for name in ("weights", "quantiles"):  # one triple for all, or one for each
        for words, value in (
            ("0.1 0.2 0.3", (0.1, 0.2, 0.3)),
            ("rgb 0.1 0.2 0.3 nir 0 0 1", {"rgb": (0.1, 0.2, 0.3), "nir": (0.0, 0.0, 1.0)}),
        ):
            config = called(monkeypatch, *call, f"--{name}", *words.split())
            assert dict(settings_of(config))[name] == value


def test_a_recipe_of_one_command_does_not_reach_another(data, tmp_path, monkeypatch):
    recipe = written(tmp_path, {"epochs": 7})
    with pytest.raises(SystemExit, match="error: .*recipe.json: no section 'cluster'; it has train"):
        cli.main(["cluster", "--data", data, "--out", "x", "--recipe", recipe])


@pytest.mark.parametrize("command", ["train", "cluster"])
@pytest.mark.parametrize("recipe", [[], ["--recipe", str(SCRIPTS / "recipes" / "nyu.json")]])
def test_help_shows_the_recipe_and_its_values(command, recipe, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, *recipe, "--help"])
    out = capsys.readouterr().out
    assert not end.value.code and "--recipe STR" in out and "required" in out
    assert (f"  batch_size {values('nyu', command)['batch_size']['value']}   (" in out) == bool(recipe)
    assert "scripts.recipes" not in out


def test_the_same_command_resumes_and_another_recipe_is_refused(data, tmp_path, capsys):
    recipe = written(tmp_path, {"epochs": 1, "batch_size": 6, "eval_every": 0})
    command = [
        "train",
        "--data",
        data,
        "--out",
        str(tmp_path / "run"),
        "--no-progress",
        "--recipe",
        recipe,
        "--batch-size",
        "3",
    ]
    cli.main(command)
    stamp = (tmp_path / "run" / "resume.safetensors").stat().st_mtime_ns
    cli.main(command)
    assert (tmp_path / "run" / "resume.safetensors").stat().st_mtime_ns == stamp
    kept = json.loads((tmp_path / "run" / "config.json").read_text())
    assert kept["epochs"] == 1 and kept["batch_size"] == 3 and "recipe" not in kept and "dry_run" not in kept
    written(tmp_path, {"epochs": 2, "batch_size": 6, "eval_every": 0})
    with pytest.raises(SystemExit, match="another configuration .*epochs was 1.0, is 2.0"):
        cli.main(command)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "no such file; expected a recipe, such as those of public data sets in data_scripts/recipes/"),
        ('{"train": {', "it is not a recipe, such as"),
        ("[1]", "it is not a recipe, such as"),
        ('{"trian": {}}', "no section 'train'; it has trian"),
        ({"lamda_p": (0.3, "paper")}, "unknown key 'lamda_p' in 'train'; do you mean 'lambda_p'?"),
        ({"data": ("x", "ours")}, "unknown key 'data'"),
        ({"recipe": ("x", "ours")}, "unknown key 'recipe'"),
        ({"regularizer": ({}, "ours")}, "unknown key 'regularizer'"),
        (
            '{"train": {"epochs": {"value": 1, "source": "ours"}, "epochs": {"value": 2, "source": "ours"}}}',
            "the key 'epochs' stands twice",
        ),
        ('{"train": {"epochs": 5}}', 'train.epochs: expected {"value": …, "source": …}, found 5'),
        ('{"train": {"epochs": {"value": 5}}}', "train.epochs: expected"),
        (
            {"epochs": (5, "a friend")},
            "train.epochs: source 'a friend' must begin with one of 'paper', 'released code', 'ours'",
        ),
        ({"epochs": ("5", "ours")}, "train.epochs 5: expected a number"),
        (
            '{"train": {"epochs": {"value": NaN, "source": "ours"}}}',
            "train.epochs nan: expected a finite number",
        ),
        ({"epochs": (True, "ours")}, "train.epochs True: expected a number"),
        ({"batch_size": (4.0, "ours")}, "train.batch_size 4.0: expected a whole number"),
        ({"batch_size": (True, "ours")}, "train.batch_size True: expected a whole number"),
        ({"cache": (1, "ours")}, "train.cache 1: expected true or false"),
        ({"form": ("even", "ours")}, "train.form even: expected one of balance, share"),
        ({"crop": ([32], "ours")}, "train.crop 32: expected 2 values"),
        ({"crop": ([32, 32.5], "ours")}, "train.crop 32.5: expected a whole number"),
        ({"crop": (32, "ours")}, "train.crop 32: expected a list of values"),
        ({"batch_size": (0, "ours")}, "train.batch_size 0: expected 1 or more"),
        ({"pixels": (1.5, "ours")}, "train.pixels 1.5: expected above 0, at most 1"),
        ({"modalities": ("rgb", "ours")}, "train.modalities rgb: expected a list of values"),
    ],
)
@pytest.mark.parametrize("asked", [[], ["--help"]], ids=["run", "help"])
def test_mistakes_name_the_file_and_the_key(data, tmp_path, content, message, asked):
    path = tmp_path / "mine.json"
    if isinstance(content, dict):
        content = json.dumps({"train": {k: {"value": v, "source": s} for k, (v, s) in content.items()}})
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--data", data, "--out", str(tmp_path / "run"), "--recipe", str(path), *asked])
    assert (
        end.value.code.startswith(f"error: {path}: ")
        and message in end.value.code
        and "\n" not in end.value.code
    )
    assert not (tmp_path / "run").exists()


def test_a_dictionary_of_the_wrong_kind(tmp_path):
    for value, message in (
        ([1], " 1: expected a value for each name"),
        ({"rgb": [1, 2]}, " rgb 1 2: expected 3 values"),
        ({"rgb": [1, 2, "x"]}, " rgb x: expected a number"),
    ):
        with pytest.raises(ValueError, match=f"cluster.numbers{message}"):
            read_recipe(written(tmp_path, {"numbers": value}, "cluster"), "cluster", ClusterConfig)
    for value, message in (
        ({"rgb": [1, 2]}, " rgb 1 2: expected 3 values"),
        ({"rgb": [1, 2, -1]}, " rgb -1: expected 0 or more"),
        ([1, 2], " 1 2: expected 3 values"),
        ([1, -1, 2], " -1: expected 0 or more"),
        (1, " 1: expected a list of values"),
    ):
        with pytest.raises(ValueError, match=f"cluster.weights{message}"):
            read_recipe(written(tmp_path, {"weights": value}, "cluster"), "cluster", ClusterConfig)
    for value in (1.0, True, 2):  # a choice between the numbers 1 and 5
        with pytest.raises(ValueError, match="cluster.crops .*: expected one of 1, 5"):
            read_recipe(written(tmp_path, {"crops": value}, "cluster"), "cluster", ClusterConfig)


@given(st.sampled_from(sorted(KINDS)), st.data())
@hypothesis_settings(max_examples=40)
def test_a_configuration_written_as_a_recipe_is_read_back(tmp_path_factory, section, drawn):
    """Every setting that a configuration has can stand in a recipe, under its own name."""
    names = [name for name, *_ in settings(KINDS[section]("x", "y"))]
    assert len(set(names)) == len(names) and set(names) > {"data", "out", "lr"}
    changed = {name: value for name, _, value in settings(KINDS[section]("x", "y"))}
    del changed["data"], changed["out"]
    for name in drawn.draw(st.lists(st.sampled_from(sorted(changed)), max_size=8)):
        if type(changed[name]) in (int, float):
            changed[name] = type(changed[name])(drawn.draw(st.integers(2, 5)))
    shares = ("dropout", "pixels", "warmup", "jitter", "probe_crop", "delay", "centre_images")
    changed |= {name: 0.25 for name in shares if name in changed}
    tables = {"lambdas": {"rgb": -0.0, "depth": 2.5}, "numbers": {"rgb": (-1e-7, 1.0, 2.0)}, "crops": 5}
    tables |= {"weights": {"rgb": (0.0, 1.0, 0.5)}} if section == "cluster" else {}
    changed |= {name: value for name, value in tables.items() if name in changed}
    path = written(tmp_path_factory.mktemp("recipe"), changed, section)
    read = configured(read_recipe(path, section, KINDS[section]))
    assert {name: value for name, _, value in settings(read) if name in changed} == changed


def test_words_that_look_like_flags_are_values(tmp_path):
    path = written(tmp_path, {"backbone_weights": "--out=z -x", "centre_images": -1e-7}, "cluster")
    config = configured(read_recipe(path, "cluster", ClusterConfig))
    assert config.tokens.backbone_weights == "--out=z -x" and config.tokens.centre_images == -1e-7
    assert config.out == "y"
