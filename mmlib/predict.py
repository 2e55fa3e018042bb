"""A trained segmenter on image files: masks, overlays and confidence, from whichever of its sensors are
there, sample by sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from .config import AtLeast
from .data.images import DataError, map_npy
from .data.prepared import PreparedDataset, check_values, read_description
from .data.transforms import resize
from .evaluation.fusion import FUSIONS
from .evaluation.subsets import upsampled
from .modalities import Modality
from .runtime import atomic_path, choose_device, limit_threads, progress_bar, write_json
from .segmentation.network import Segmenter, load_segmenter
from .segmentation.score import find_data, fusing, normalised_as

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
OUTPUTS = ("masks", "overlays", "confidence")
# What Pillow calls the kinds of image that hold one number a channel, and how they are stored.
_MODES = {"L": ("uint8", 1), "RGB": ("uint8", 3), "RGBA": ("uint8", 4), "F": ("float32", 1)} | dict.fromkeys(
    ("I;16", "I;16L", "I;16B"), ("uint16", 1)
)


@dataclass(frozen=True)
class PredictConfig:
    """Segment images with a trained network, from any subset of its sensors."""

    checkpoint: tyro.conf.Positional[str]
    """A best.safetensors or last.safetensors written by 'train'."""
    out: str
    """Folder for masks/, overlays/, confidence/, classes.json and sheet.png. What it holds already is not
    predicted again.
    """
    sensors: tyro.conf.Positional[tuple[str, ...]] = ()
    """SENSOR=PATH for each sensor that is there: a file, or a folder whose files of one name belong to one
    sample (.png .jpg .tif .npy).
    """
    data: str = ""
    """Instead of files: folder of a prepared data set, or 'street' or 'room' for the sensor world. It may
    lack sensors, and labels.
    """
    split: str = "test"
    """With --data: whose images."""
    fusion: Literal["mean", "total", "agreement", "selection", "entropy"] = "mean"
    """How predictions are fused (mmlib.evaluation.fusion); total: the mean's classes, surer of themselves."""
    window: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of sliding windows, multiples of 32; 0 0 = whole images."""
    stride: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Largest step between windows; 0 0 = two thirds of the window."""
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width to which images are resized for the network; masks have the size of the files in any
    case. 0 0 = as they are.
    """
    batch_size: Annotated[int, AtLeast(1)] = 4
    """Images, or windows, at a time."""
    sheet: Annotated[int, AtLeast(0)] = 4
    """Samples on the contact sheet."""
    overwrite: bool = False
    """Start over: remove the predictions that the folder holds."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class Source:
    """What to predict: sample name -> the sensors that it has, in the network's order, and a reader name ->
    physical (C, H, W) images.
    """

    sensors: dict[str, tuple[str, ...]]
    read: Callable[[str], dict[str, Tensor]]
    modalities: dict[str, Modality]


def read_file(path: Path, modality: Modality) -> Tensor:
    """One sensor's image, stored as its modality says, as physical values (C, H, W) float32.

    Raises:
        DataError: names the file: unreadable, another type or number of channels, NaN or a negative range, or
            an image of which Pillow would silently make another (16 bits a colour channel, several pages, a
            photograph stored on its side).
    """
    expected = f"expected {modality.name} as {modality.dtype} with {modality.channels} channel{'s' * (modality.channels > 1)}"
    try:
        if path.suffix.lower() == ".npy":
            array = np.array(map_npy(path))
            found = array.dtype.name, array.shape[2] if array.ndim == 3 else 1
            if array.ndim not in (2, 3) or not array.size:
                raise DataError(f"{path}: {expected}, (H, W) or (H, W, C); found shape {array.shape}")
        else:
            with Image.open(path) as image:
                inside = image.tile[0][3] if image.tile else image.mode
                inside = inside if isinstance(inside, str) else str(inside[0])
                found = _MODES.get(image.mode, (image.mode, len(image.getbands())))
                if (
                    image.mode in ("L", "RGB", "RGBA") and inside != image.mode
                ):  # 16 or 4 bits a channel: Pillow would cut or stretch them
                    found = inside, len(image.getbands())
                if image.getexif().get(0x0112, 1) != 1 or getattr(image, "n_frames", 1) > 1:
                    raise DataError(
                        f"{path}: stored on its side (EXIF orientation), or several pages; save one upright image"
                    )
                array = np.array(image) if found == (modality.dtype, modality.channels) else np.empty((1, 1))
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); {expected}; damaged, or of another kind"
        ) from error
    if found != (modality.dtype, modality.channels):
        raise DataError(
            f"{path}: {expected}, found {found[0]} with {found[1]}; convert the file to what the network was trained on"
        )
    array = array.reshape(*array.shape[:2], modality.channels)
    check_values(modality, array, str(path))
    return torch.from_numpy(np.ascontiguousarray(modality.to_physical(array).transpose(2, 0, 1)))


def open_files(given: tuple[str, ...], network: Segmenter) -> Source:
    """Samples of files given as SENSOR=PATH: the files of one stem, in folders; or one sample, if every path
    is a file.

    Raises:
        ValueError: not of that form, an unknown or repeated sensor.
        DataError: no such path, a folder without images or with two files of one stem, folders that share no
            stem.
    """
    paths: dict[str, Path] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or not path:
            raise ValueError(
                f"{entry!r}: expected SENSOR=PATH, such as {next(iter(network.modalities))}=images"
            )
        if name not in network.modalities or name in paths:
            problem = (
                "given twice"
                if name in paths
                else f"unknown sensor; this network knows {', '.join(network.modalities)}"
            )
            raise ValueError(f"{entry!r}: {problem}")
        paths[name] = Path(path)
        if not paths[name].exists():
            raise DataError(f"{path}: no such file or folder")
    files: dict[str, dict[str, Path]] = {}
    alone = all(path.is_file() for path in paths.values())
    for name in [name for name in network.modalities if name in paths]:
        path, found = paths[name], {}
        for file in [path] if path.is_file() else sorted(path.iterdir()):
            if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
                if path.is_file():
                    raise DataError(f"{path}: expected a file that ends in {' '.join(SUFFIXES)}")
                continue
            if file.stem in found:
                raise DataError(
                    f"{path}: {found[file.stem].name} and {file.name} are one sample's name twice; keep one"
                )
            found[file.stem] = file
        if not found:
            raise DataError(
                f"{path}: no image in this folder; expected files that end in {' '.join(SUFFIXES)}"
            )
        for stem, file in found.items():
            files.setdefault(next(iter(files), stem) if alone else stem, {})[name] = file
    if len(paths) > 1 and all(len(of) == 1 for of in files.values()):
        examples = ", ".join(
            f"{name} has {next(stem for stem, of in files.items() if name in of)}" for name in paths
        )
        raise DataError(
            f"no two sensors share the name of a sample ({examples}); name the files of one sample alike"
        )
    modalities = network.modalities

    def read(stem: str) -> dict[str, Tensor]:
        images = {name: read_file(file, modalities[name]) for name, file in files[stem].items()}
        sizes = {name: tuple(image.shape[1:]) for name, image in images.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(
                f"{files[stem][name]} is {height} × {width}" for name, (height, width) in sizes.items()
            )
            raise DataError(f"{stem}: sizes differ: {listed}; bring the sensors to one view and size first")
        return images

    return Source({stem: tuple(of) for stem, of in sorted(files.items())}, read, modalities)


def open_data(root: str, split: str, network: Segmenter) -> Source:
    """Samples of a prepared data set, which may lack some of the network's sensors."""
    names = [name for name in network.modalities if name in read_description(root).modalities]
    if not names:
        raise DataError(f"{root}: has none of the network's sensors ({', '.join(network.modalities)})")
    dataset = PreparedDataset(root, split, names)
    dataset.labelled = False  # labels are not read
    dataset.modalities = normalised_as(network, dataset)
    index = {row["id"]: i for i, row in enumerate(dataset.rows)}
    return Source(
        {stem: tuple(names) for stem in index},
        lambda stem: dataset.physical(index[stem])[0],
        dataset.modalities,
    )


def outputs(out: Path, stem: str) -> list[Path]:
    """The three files of a sample: mask, overlay, confidence."""
    return [out / folder / f"{stem}.png" for folder in OUTPUTS]


def plan_folder(
    config: PredictConfig, network: Segmenter, source: Source
) -> tuple[list[str], list[Path], dict]:
    """(samples that remain to be predicted, files to remove before that, the content of classes.json); writes
    nothing.

    Raises:
        ValueError: the folder holds predictions of other settings.
    """
    out = Path(config.out)
    with open(config.checkpoint, "rb") as file:
        checkpoint = {
            "file": Path(config.checkpoint).name,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
    settings = {
        "classes": [
            {"id": k, "name": n, "colour": list(c)}
            for k, (n, c) in enumerate(zip(network.classes, network.palette))
        ],
        "checkpoint": checkpoint,
        "fusion": "centred" if network.config.fusion == "centred" else config.fusion,
        "window": list(config.window),
        "stride": list(config.stride),
        "size": list(config.size),
    }
    notes = {
        "masks": "class ids",
        "confidence": "value / 65535 = probability that the network gives the class in masks/",
        "protocol": "drop: absent sensors are left out",
    }
    samples = {
        s: {"sensors": list(n), "absent": [m for m in network.modalities if m not in n]}
        for s, n in source.sensors.items()
    }
    path, earlier, stale = out / "classes.json", {}, []
    if not path.exists() and any((out / folder).exists() for folder in OUTPUTS):
        raise ValueError(
            f"{out}: has a folder {', '.join(OUTPUTS[:2])} or {OUTPUTS[2]} that this command did not make; choose another --out"
        )
    if config.overwrite:
        stale = [file for folder in OUTPUTS for file in (out / folder).glob("*.png")]
    elif path.exists():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            earlier, changed = (
                record["samples"],
                [key for key, value in settings.items() if record[key] != value],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: damaged, or not of this command ({error}); choose another folder, or give --overwrite"
            ) from error
        if changed:
            raise ValueError(
                f"{out}: holds predictions of another {changed[0]}; choose another folder, or give --overwrite to start over"
            )
        stale = [
            file for s in samples if s in earlier and earlier[s] != samples[s] for file in outputs(out, s)
        ]
    done = {
        stem for stem in samples if all(file.exists() and file not in stale for file in outputs(out, stem))
    }
    return (
        [stem for stem in samples if stem not in done],
        stale,
        settings | notes | {"samples": earlier | samples},
    )


def batches(stems: list[str], source: Source, size: int) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Consecutive samples with the same sensors and image size, at most ``size`` together: stem -> physical
    images.
    """
    batch: dict[str, dict[str, Tensor]] = {}
    for stem in stems:
        images = source.read(stem)
        first = next(iter(batch.values()), images)
        if len(batch) == size or {n: i.shape for n, i in first.items()} != {
            n: i.shape for n, i in images.items()
        }:
            yield batch
            batch = {}
        batch[stem] = images
    if batch:
        yield batch


@torch.no_grad()
def predict(config: PredictConfig) -> dict[str, tuple[str, ...]]:
    """Predict every sample and write the folder ``config.out``; returns which sensors each sample was
    predicted from.

    Files: masks/STEM.png (class ids, uint8), overlays/STEM.png (the first sensor's picture under the class
    colours), confidence/STEM.png (uint16, 65535 = 1: the largest softmax probability of the fused logits),
    classes.json, sheet.png. Each is written whole or not at all. Of logits at full size, those of one image
    exist at a time.

    Raises:
        ValueError: no images, wrong options, or an ``out`` folder of other settings. DataError: unreadable
            images; names the file.
    """
    from .figures import overlay, picture

    if bool(config.sensors) == bool(config.data):
        raise ValueError("give images either as SENSOR=PATH or by --data, one of them")
    if config.batch_size < 1 or (any(config.size) and min(config.size) < 1):
        raise ValueError(
            f"--batch-size {config.batch_size}, --size {config.size[0]} {config.size[1]}: expected positive numbers"
        )
    limit_threads()
    device, out = choose_device(config.device), Path(config.out)
    network = load_segmenter(config.checkpoint, device)
    options = fusing(network, config.fusion, config.window, config.stride, config.batch_size)
    fuse = options["fuse"] or FUSIONS["mean"]
    if config.sensors:
        source = open_files(config.sensors, network)
    else:
        source = open_data(find_data(config.data, config.progress), config.split, network)
    stems, stale, record = plan_folder(config, network, source)
    done, total = len(source.sensors) - len(stems), len(source.sensors)
    with progress_bar(
        total=total, initial=done, desc="predict", progress=config.progress, leave=False
    ) as bar:
        for batch in batches(stems, source, config.batch_size):
            try:
                fused = fuse(options["encode"](network_input(batch, source, config.size, device)))
            except ValueError as error:
                raise ValueError(f"{', '.join(batch)}: {error}") from error
            if (
                record
            ):  # not before there is something to write: a bad first image leaves the folder as it was
                for file in stale:
                    file.unlink(missing_ok=True)
                write_json(out / "classes.json", record)
                record = {}
            for b, (stem, images) in enumerate(batch.items()):
                name, image = next(iter(images.items()))
                logits = upsampled(fused[b : b + 1], image.shape[1:])[0]
                best = logits.max(0)
                mask = best.indices.to(torch.uint8).cpu().numpy()
                blended = overlay(picture(source.modalities[name], image), mask, network.palette)
                confidence = (
                    (65535 * (best.values - logits.logsumexp(0)).double().exp())
                    .round()
                    .cpu()
                    .numpy()
                    .astype(np.uint16)
                )
                for path, array in zip(outputs(out, stem), (mask, blended, confidence)):
                    with atomic_path(path) as temporary:
                        Image.fromarray(array).save(temporary)
                bar.update()
    write_sheet(config, network, source)
    return source.sensors


def network_input(
    batch: dict[str, dict[str, Tensor]], source: Source, size: tuple[int, int], device
) -> dict[str, Tensor]:
    """stem -> physical images, to sensor -> (B, C, H, W) as the network takes them, resized to ``size`` (0 0
    = not).
    """
    result = {}
    for name in next(iter(batch.values())):
        modality = source.modalities[name]
        stack = [
            resize(images[name], size, modality.sparse) if any(size) else images[name]
            for images in batch.values()
        ]
        result[name] = modality.to_network(torch.stack(stack)).to(device)
    return result


def write_sheet(config: PredictConfig, network: Segmenter, source: Source) -> None:
    """``sheet.png``: the sensors, overlay and confidence of the first samples."""
    from matplotlib import pyplot as plt

    from .figures import STYLE, class_legend, picture, picture_grid, sensor_title

    stems, rows, ids = list(source.sensors)[: config.sheet], [], set()
    given = {
        name: m
        for name, m in source.modalities.items()
        if any(name in names for names in source.sensors.values())
    }
    for stem in stems:
        mask, blended, confidence = (np.array(Image.open(path)) for path in outputs(Path(config.out), stem))
        images, blank = source.read(stem), np.full_like(blended, 217)
        row = {
            sensor_title(m): picture(m, images[name]) if name in images else blank
            for name, m in given.items()
        }
        row |= {
            "prediction": blended,
            "confidence, white = 1": np.repeat((confidence / 257).astype(np.uint8)[..., None], 3, 2),
        }
        step = -(-mask.shape[0] // 400)
        rows.append({title: image[::step, ::step] for title, image in row.items()})
        ids |= set(np.unique(mask).tolist())
    if not rows:
        return
    with plt.rc_context(STYLE):
        figure = picture_grid(rows, [stem[-22:] for stem in stems], width=2.4 * len(rows[0]))
        for axis in figure.axes:
            axis.yaxis.label.set_size(8)
        class_legend(figure, network.classes, network.palette, ids)
        with atomic_path(Path(config.out) / "sheet.png") as temporary:
            figure.savefig(temporary, dpi=144, bbox_inches="tight")
        plt.close(figure)


def run_predict(config: PredictConfig) -> None:
    sensors = predict(config)
    given = list(dict.fromkeys(name for names in sensors.values() for name in names))
    for names in dict.fromkeys(sensors.values()):
        stems = [stem for stem, of in sensors.items() if of == names]
        lacking = [name for name in given if name not in names]
        listed = (
            f"; no {', '.join(lacking)}: {', '.join(stems[:5])}{', …' * (len(stems) > 5)}" if lacking else ""
        )
        print(f"{len(stems)} sample{'s' * (len(stems) > 1)} from {', '.join(names)}{listed}")
    print(f"{config.out}: {', '.join(OUTPUTS)}, classes.json, sheet.png")
