"""The prepared layout: what goes in comes out, and nothing damaged or half-written is taken for whole."""

import csv
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import in_a_process
from PIL import Image

from mmlib.data.images import read_image
from mmlib.data.prepared import (
    DataError,
    Description,
    PreparedDataset,
    Writer,
    collate,
    is_finished,
    read_description,
    read_index,
)
from mmlib.data.transforms import Augment
from mmlib.modalities import SENSORS, Modality, subsets
from mmlib.runtime import digest_files


def test_written_pixels_come_back(tmp_path):
    toy.make(tmp_path)
    data = PreparedDataset(tmp_path, "train")
    for i, row in enumerate(data.rows):
        images, label = toy.sample(int(row["id"][-3:]))
        stored, found = data.stored(i)
        assert np.array_equal(found, label)
        for name in images:
            assert stored[name].dtype == images[name].dtype and np.array_equal(stored[name], images[name])


@settings(max_examples=30)
@given(st.sampled_from(["uint8", "uint16", "float32"]), st.integers(1, 5), st.integers(0, 2**31))
def test_any_dtype_and_number_of_channels(tmp_path_factory, dtype, channels, seed):
    root = tmp_path_factory.mktemp("layout")
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 2**16 if dtype == "uint16" else 256, (5, 7, channels)).astype(dtype)
    modality = Modality("sensor", "S", channels, dtype=dtype, scale=0.5, offset=-1.0)
    with Writer(root, Description("any", ["a"], [(0, 0, 0)], {"sensor": modality})) as writer:
        writer.add("x", "train", {"sensor": array}, np.zeros((5, 7), np.uint8))
    data = PreparedDataset(root)
    assert np.array_equal(data.stored(0)[0]["sensor"], array)
    physical = array.astype(np.float64) * 0.5 - 1
    assert np.allclose(data.physical(0)[0]["sensor"].numpy(), physical.transpose(2, 0, 1))
    # statistics against numpy on the whole array
    found = data.modalities["sensor"]
    assert np.allclose(found.mean, physical.mean((0, 1)), atol=1e-5)
    assert np.allclose(
        found.std, np.where(physical.std((0, 1)) > 1e-6, physical.std((0, 1)), 1), rtol=1e-4, atol=1e-4
    )


def test_network_input_has_zero_mean_and_unit_variance(tmp_path):
    data = PreparedDataset(toy.make(tmp_path), "train")
    for name in data.modalities:
        values = torch.stack([data[i]["images"][name] for i in range(len(data))]).double()
        assert torch.allclose(
            values.mean((0, 2, 3)), torch.zeros(values.shape[1], dtype=torch.double), atol=1e-4
        )
        assert torch.allclose(
            values.std((0, 2, 3)), torch.ones(values.shape[1], dtype=torch.double), atol=1e-3
        )


def test_stored_and_physical_are_inverse():
    for modality in SENSORS.values():
        stored = np.arange(0, 256, 5).astype(modality.dtype)
        assert np.array_equal(modality.to_stored(modality.to_physical(stored)), stored)
    assert SENSORS["rgb"].to_stored(np.array([-1.0, 2.0])).tolist() == [0, 255]  # clipped, never wrapped


def test_subsets_are_ordered_and_complete():
    found = subsets("RDEL")
    assert len(set(found)) == 15 and found[0] == ("R",) and found[-1] == tuple("RDEL")


def test_a_killed_writer_goes_on_and_measures_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    toy.make(whole)
    with (
        pytest.raises(KeyboardInterrupt),
        Writer(broken, Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES)) as writer,
    ):
        for i in range(7):
            images, label = toy.sample(i)
            writer.add(
                f"train_{i:03d}", "train", images, label, ("day", "night")[i % 2], ("", "", "broken")[i % 3]
            )
        raise KeyboardInterrupt
    with open(broken / ".journal.jsonl", "a") as journal:  # the process died in the middle of a line
        journal.write('{"id": "train_007", "spl')
    with pytest.raises(DataError, match="goes on where it stopped"):
        PreparedDataset(broken)
    with Writer(broken, Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES)) as writer:
        assert len(writer.rows) == 7
        for split, start, count in (("train", 0, 12), ("val", 1000, 5)):
            for i in range(count):
                if f"{split}_{i:03d}" not in writer.rows:
                    images, label = toy.sample(start + i)
                    writer.add(
                        f"{split}_{i:03d}",
                        split,
                        images,
                        label,
                        ("day", "night")[i % 2],
                        ("", "", "broken")[i % 3],
                    )
    for name in ("index.csv", "dataset.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    with pytest.raises(DataError, match="already holds"):
        Writer(broken, Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES))


def test_threads_write_the_same_bytes(tmp_path):
    """And where two of them add one sample, one is told."""
    toy.make(tmp_path / "one")
    samples = [
        (split, start + i, f"{split}_{i:03d}", i)
        for split, start, n in (("train", 0, 12), ("val", 1000, 5))
        for i in range(n)
    ]
    told = []
    with Writer(tmp_path / "many", Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES)) as writer:

        def add(sample):
            split, seed, sample_id, i = sample
            try:
                writer.add(
                    sample_id, split, *toy.sample(seed), ("day", "night")[i % 2], ("", "", "broken")[i % 3]
                )
            except DataError as error:
                told.append(str(error))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add, samples[::-1]))
            list(pool.map(add, samples))
    assert len(told) == len(samples) and all("there already" in message for message in told)
    one, many = (
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (tmp_path / "one", tmp_path / "many")
    )
    assert one == many


def make_without_room(folder: str):
    """A real failing write: this process may not write files larger than 1,500 bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    toy.make(folder, size=(64, 96))


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    said = in_a_process(make_without_room, str(tmp_path / "full"))
    assert "nothing was written" in said and str(tmp_path / "full") in said
    assert not is_finished(tmp_path / "full")
    left = [p for p in (tmp_path / "full").rglob("*") if p.is_file() and p.name != ".journal.jsonl"]
    assert not [p for p in left if ".tmp" in p.name]
    toy.make(tmp_path / "full", size=(64, 96))  # with room again, the same command finishes
    assert len(PreparedDataset(tmp_path / "full")) == 12


def damage(root, what):
    image = root / "rgb" / "train_000.png"
    if what == "truncated":
        image.write_bytes(image.read_bytes()[:100])
    elif what == "not an image":
        image.write_bytes(b"hello")
    elif what == "missing file":
        image.unlink()
    elif what == "wrong channels":
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(image)
    elif what == "wrong size":
        Image.fromarray(np.zeros((30, 48, 3), np.uint8)).save(image)
    elif what == "wrong dtype":
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(root / "depth" / "train_000.png")
    elif what == "label id":
        Image.fromarray(np.full((32, 48), 3, np.uint8)).save(root / "label" / "train_000.png")
    elif what == "truncated npy":
        path = root / "aolp" / "train_000.npy"
        path.write_bytes(path.read_bytes()[:-10])
    elif what == "pickled npy":
        np.save(root / "aolp" / "train_000.npy", np.array([{}], dtype=object), allow_pickle=True)
    elif what == "npy that claims 10 TB":
        with open(root / "aolp" / "train_000.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 10**6, 1)}
            )


@pytest.mark.parametrize(
    "what, message",
    [
        ("truncated", "cannot be read"),
        ("not an image", "cannot be read"),
        ("missing file", "no such file"),
        ("wrong channels", "expected uint8 with 3 channels"),
        ("wrong size", "one size is expected"),
        ("wrong dtype", "expected uint16 with 1 channel"),
        ("label id", "label id 3 out of range; expected 0 to 2"),
        ("truncated npy", "cannot be read"),
        ("pickled npy", "cannot be read"),
        ("npy that claims 10 TB", "cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, what, message):
    data = PreparedDataset(toy.make(tmp_path))
    damage(tmp_path, what)
    with pytest.raises(DataError, match=message) as error:
        data[0]
    assert "train_000" in str(error.value)


def test_a_header_that_never_ends_is_named(tmp_path):
    """numpy's own error for it is neither a ValueError nor an OSError."""
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    with pytest.raises(DataError, match="x.npy: cannot be read"):
        read_image(path, "float32", 1)


def test_nan_on_disk_is_an_error(tmp_path):
    modality = Modality("sensor", "S", 1, dtype="float32")
    with Writer(tmp_path, Description("f", ["a"], [(0, 0, 0)], {"sensor": modality})) as writer:
        with pytest.raises(DataError, match="NaN"):
            writer.add(
                "x", "train", {"sensor": np.full((4, 4, 1), np.nan, np.float32)}, np.zeros((4, 4), np.uint8)
            )
        writer.add("x", "train", {"sensor": np.zeros((4, 4, 1), np.float32)}, np.zeros((4, 4), np.uint8))
    np.save(tmp_path / "sensor" / "x.npy", np.full((4, 4, 1), np.inf, np.float32))
    with pytest.raises(DataError, match="NaN or infinite"):
        PreparedDataset(tmp_path)[0]


def test_wrong_folders_and_names(tmp_path):
    with pytest.raises(DataError, match="not a prepared data set"):
        PreparedDataset(tmp_path / "nothing")
    root = toy.make(tmp_path / "toy")
    with pytest.raises(ValueError, match="unknown modality 'radar'.*has rgb, depth, aolp"):
        PreparedDataset(root, "train", ["rgb", "radar"])
    with pytest.raises(ValueError, match="name each modality once, at least one"):
        PreparedDataset(root, "train", [])
    with pytest.raises(DataError, match="its splits are train, val"):
        PreparedDataset(root, "test")
    (root / "dataset.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        read_description(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not a valid description"):
        read_description(root)


def test_ids_can_not_leave_the_folder(tmp_path):
    root = toy.make(tmp_path / "toy")
    rows = (root / "index.csv").read_text()
    (root / "index.csv").write_text(rows.replace("train_003", "../train_003"))
    with pytest.raises(DataError, match="train_003.*a safe id"):
        read_index(root)
    (root / "index.csv").write_text(rows.replace("train_003", "train_004"))
    with pytest.raises(DataError, match="train_004.*that no other row has"):
        read_index(root)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda images, label: (images | {"radar": images["rgb"]}, label), "expected one or more of"),
        (lambda images, label: ({}, label), "expected one or more of"),
        (lambda images, label: (images | {"rgb": images["rgb"][:-1]}, label), "one size is expected"),
        (
            lambda images, label: (images | {"rgb": images["rgb"][..., :2]}, label),
            r"expected uint8 \(H, W, 3\)",
        ),
        (
            lambda images, label: (images | {"depth": images["depth"].astype(np.float32)}, label),
            "expected uint16",
        ),
        (lambda images, label: (images, label.astype(np.int64)), "expected uint8"),
        (lambda images, label: (images, np.where(label == 1, np.uint8(9), label)), "label id 9 out of range"),
    ],
)
def test_the_writer_refuses_what_breaks_the_contract(tmp_path, change, message):
    writer = Writer(tmp_path, Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES))
    with pytest.raises(DataError, match=message):
        writer.add("a", "train", *change(*toy.sample(0)))
    with pytest.raises(DataError, match="use letters"):
        writer.add("../a", "train", *toy.sample(0))
    writer.add("a", "train", *toy.sample(0))
    with pytest.raises(DataError, match="there already"):
        writer.add("a", "train", *toy.sample(0))


def test_unlabelled_data_read_as_ignored(tmp_path):
    data = PreparedDataset(toy.make(tmp_path, labels=False))
    assert not data.labelled and bool((data[0]["label"] == 255).all())


def test_descriptions_refuse_nonsense():
    with pytest.raises(ValueError, match="2 classes but 1 colours"):
        Description("d", ["a", "b"], [(0, 0, 0)], toy.MODALITIES)
    with pytest.raises(ValueError, match="share a symbol"):
        Description(
            "d", ["a"], [(0, 0, 0)], {"rgb": SENSORS["rgb"], "red": replace(SENSORS["rgb"], name="red")}
        )
    with pytest.raises(ValueError, match="one capital letter"):
        Modality("rgb", "RR", 3)
    with pytest.raises(ValueError, match="std 0.0: expected 1e-30 or more"):
        Modality("rgb", "R", 1, mean=(0.0,), std=(0.0,))
    with pytest.raises(ValueError, match="no statistics"):
        SENSORS["rgb"].to_network(torch.zeros(3, 2, 2))


def test_batches_need_one_size(tmp_path):
    small, large = (PreparedDataset(toy.make(tmp_path / str(h), size=(h, 48)))[0] for h in (32, 40))
    with pytest.raises(DataError, match="different sizes"):
        collate([small, large])
    assert collate([small, small])["images"]["aolp"].shape == (2, 2, 32, 48)


def test_the_index_is_plain_csv(tmp_path):
    with open(toy.make(tmp_path) / "index.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["id", "split", "condition", "case"] and len(rows) == 18


def test_digests_say_what_changed(tmp_path):
    """Every file of the split counts, in the middle of the set as well; files that are not read do not."""
    root = toy.make(tmp_path / "toy")
    whole = PreparedDataset(root).digest()
    assert PreparedDataset(toy.make(tmp_path / "again")).digest() == whole  # another folder, other times

    def changed(change, *arguments) -> set[str]:
        copy = tmp_path / "copy"
        shutil.copytree(root, copy)
        change(copy)
        digest = PreparedDataset(copy, *arguments).digest()
        shutil.rmtree(copy)
        return {name for name in digest if digest[name] != PreparedDataset(root, *arguments).digest()[name]}

    def edit(name):
        return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"!")

    def swap(folder):
        one, two = folder / "rgb/train_004.png", folder / "rgb/train_005.png"
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)

    def replaced(name, old, new):
        return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))

    assert changed(lambda folder: None) == set()
    assert changed(edit("rgb/train_006.png")) == changed(edit("label/train_006.png")) == {"images of train"}
    assert changed(swap) == {"images of train"}
    assert changed(edit("rgb/val_001.png")) == changed(edit("rgb/train_006.png"), "train", ["depth"]) == set()
    assert changed(replaced("index.csv", "train_004,train,day", "train_004,train,dusk")) == {"index of train"}
    name = toy.CLASSES[1]
    assert changed(replaced("dataset.json", json.dumps(name), json.dumps(name + "s"))) == {"classes of train"}
    (root / "rgb/train_006.png").unlink()
    with pytest.raises(ValueError, match="rgb/train_006.png: no such file"):
        PreparedDataset(root).digest()


def test_digests_of_large_data_look_at_sizes_and_times(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(100))
    names = [tmp_path / "b", tmp_path / "a"]
    by_content, by_time = digest_files(tmp_path, names, 200), digest_files(tmp_path, names, 199)
    assert by_content == digest_files(tmp_path, names[::-1]) != by_time == digest_files(tmp_path, names, 199)
    os.utime(tmp_path / "a", ns=(1, 1))
    assert by_content == digest_files(tmp_path, names) and by_time != digest_files(tmp_path, names, 199)
    (tmp_path / "a").write_bytes(bytes(99) + b"!")
    assert by_content != digest_files(tmp_path, names)


def test_samples_may_lack_sensors(tmp_path):
    """Only what is there is written, read, digested and measured; also where the writing was interrupted."""
    whole, root = PreparedDataset(toy.make(tmp_path / "whole")), tmp_path / "some"
    assert whole.present(0) == list(toy.MODALITIES)
    lacking = {
        "train_001": {"rgb"},
        "train_004": {"rgb", "aolp"},
        "val_000": {"depth"},
        "val_003": {"rgb", "depth"},
    }

    def add_all(writer, stop=None):
        for row in read_index(tmp_path / "whole")[:stop]:
            if row["id"] not in writer.rows:
                images, label = toy.sample(int(row["id"][-3:]) + 1000 * (row["split"] == "val"))
                has = {n: x for n, x in images.items() if n not in lacking.get(row["id"], ())}
                writer.add(row["id"], row["split"], has, label, row["condition"], row["case"])

    description = Description("toy", toy.CLASSES, toy.PALETTE, toy.MODALITIES)
    with pytest.raises(KeyboardInterrupt), Writer(root, description) as writer:
        add_all(writer, 3)
        raise KeyboardInterrupt
    with Writer(root, description) as writer:
        add_all(writer)
    header, *lines = (root / "index.csv").read_text().splitlines()
    assert header == "id,split,condition,case,sensors"
    assert [line for line in lines if not line.endswith(",")] == [
        "train_001,train,night,,depth+aolp",
        "train_004,train,day,,depth",
        "val_000,val,day,,rgb+aolp",
        "val_003,val,night,,aolp",
    ]
    assert not (root / "rgb" / "train_001.png").exists()

    data = PreparedDataset(root, "train", ["aolp", "rgb"], Augment((16, 24), jitter=0.2))
    assert [row["id"] for row in data.rows] == [row["id"] for row in whole.rows if row["id"] != "train_004"]
    assert data.present(0) == ["aolp", "rgb"] and data.present(1) == ["aolp"]
    assert [*data.files(1)] == ["aolp", "label"] and [*data.stored(1)[0]] == [*data.physical(1)[0]] == [
        "aolp"
    ]
    # The draws of the augmentation do not depend on what a sample has.
    both = PreparedDataset(tmp_path / "whole", "train", ["aolp", "rgb"], data.augment)
    both.modalities = data.modalities
    assert torch.equal(data[1, 5]["images"]["aolp"], both[1, 5]["images"]["aolp"])
    for name, lacked in {"rgb": 2, "depth": 0, "aolp": 1}.items():
        pixels = [
            data.description.modalities[name].compressed(whole.physical(i)[0][name]).double().flatten(1)
            for i, row in enumerate(whole.rows)
            if name not in lacking.get(row["id"], ())
        ]
        assert len(pixels) == 12 - lacked
        measured = read_description(root).modalities[name]
        assert np.allclose(measured.mean, torch.cat(pixels, 1).mean(1), atol=1e-5)
        assert np.allclose(measured.std, torch.cat(pixels, 1).std(1, correction=0), atol=1e-5)

    batch = collate([data[1], data[0], data[2]])
    assert list(batch["images"]) == ["aolp", "rgb"] and batch["images"]["rgb"].shape == (3, 3, 32, 48)
    assert batch["present"].tolist() == [[True, False], [True, True], [True, True]]
    assert not batch["images"]["rgb"][0].any()
    assert torch.equal(batch["images"]["rgb"][1], data[0]["images"]["rgb"])

    # What the index leaves out is not read, whatever lies there, and a digest does not see it.
    before = data.digest()
    (root / "rgb" / "train_001.png").write_bytes(b"no image")
    assert data.digest() == before and list(data[1]["images"]) == ["aolp"]
    assert whole.digest()["index of train"] != before["index of train"]


def test_an_index_that_names_wrong_sensors(tmp_path):
    root, split = toy.make(tmp_path), lambda *names: PreparedDataset(root, "train", names)
    digest, text = split("rgb", "aolp").digest(), (root / "index.csv").read_text().splitlines()
    # An empty cell is all sensors.
    (root / "index.csv").write_text("\n".join([f"{text[0]},sensors", *(f"{line}," for line in text[1:])]))
    assert split("rgb", "aolp").present(0) == ["rgb", "aolp"]
    assert split("rgb", "aolp").digest()["images of train"] == digest["images of train"]
    (root / "index.csv").write_text(
        "\n".join([f"{text[0]},sensors", *(f"{line},depth" for line in text[1:])])
    )
    with pytest.raises(DataError, match="no sample in split 'train' that has rgb or aolp"):
        split("rgb", "aolp")
    (root / "index.csv").write_text(
        "\n".join([f"{text[0]},sensors", *(f"{line},rgb+radar" for line in text[1:])])
    )
    with pytest.raises(DataError, match="train_000.*'rgb\\+radar'; expected some of rgb, depth, aolp"):
        split("rgb")
