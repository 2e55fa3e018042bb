"""A trained segmenter on image files: masks, overlays and confidence, from whichever of its sensors are
there, sample by sample.

The command ``predict`` calls it. What an output folder holds already is not predicted again, unless its
images have changed.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from torch import Tensor

from ..config import AtLeast, printable
from ..data.drawing import overlay, picture
from ..data.images import FORMATS, DataError, read_image, write_image
from ..data.plausible import check_plausible, open_data
from ..data.prepared import check_sample, physical_image, read_description
from ..data.transforms import resize
from ..evaluation.fusion import FUSIONS
from ..evaluation.subsets import largest
from ..modalities import Modality
from ..outputs import check_output, claims
from ..runtime import choose_device, digest_files, progress_bar, read_json, reading, write_json
from .network import Segmenter, load_segmenter
from .score import ApplyConfig, find_data, fusion_name

OUTPUTS = ("masks", "overlays", "confidence")
NOTES = {  # in classes.json, for its reader
    "masks": "class ids",
    "confidence": "value / 65535 = probability that the network gives the class in masks/",
    "protocol": "drop: absent sensors are left out",
    "digest": "of each image, its scale and offset: other images under the same names are predicted anew",
}


@dataclass(frozen=True)
class PredictConfig(ApplyConfig):
    """Segment images with a trained network, from any subset of its sensors."""

    checkpoint: tyro.conf.Positional[str]
    """A best.safetensors or last.safetensors written by 'train'."""
    out: str
    """Folder for masks/, overlays/, confidence/, classes.json and sheet.png. What it holds already is not
    predicted again, unless its images have changed.
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
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width to which images are resized for the network; masks have the size of the files in any
    case. 0 0 = as they are.
    """
    batch_size: Annotated[int, AtLeast(1)] = 4
    """Samples at a time."""
    sheet: Annotated[int, AtLeast(0)] = 4
    """Samples on the contact sheet."""
    overwrite: bool = False
    """Start over: remove the predictions that the folder holds."""


@dataclass(frozen=True)
class Source:
    """What to predict.

    Attributes:
        files: sample name -> sensor, in the network's order -> file of its image.
        modalities: name -> Modality: how its images are stored, and normalised for the network.
    """

    files: dict[str, dict[str, Path]]
    modalities: dict[str, Modality]

    def read(self, stem: str) -> dict[str, Tensor]:
        """A sample's physical images by sensor, (C, H, W) float32.

        Raises:
            DataError: an image is not stored as its modality says, or the sizes differ; names the files.
        """
        files, kinds = self.files[stem], self.modalities
        stored = {
            name: read_image(file, kinds[name].dtype, kinds[name].channels) for name, file in files.items()
        }
        check_sample({str(files[name]): image for name, image in stored.items()}, 0, stem)
        return {name: physical_image(kinds[name], image, str(files[name])) for name, image in stored.items()}

    def __str__(self) -> str:
        """One line for each set of sensors: how many samples have it, and which lack sensors that others
        have.
        """
        lines, groups = [], {}
        for stem, files in self.files.items():
            groups.setdefault(tuple(files), []).append(stem)
        for names, stems in groups.items():
            line = f"{len(stems)} sample{'s' * (len(stems) > 1)} from {', '.join(names)}"
            if lacking := dict.fromkeys(name for others in groups for name in others if name not in names):
                line += f"; no {', '.join(lacking)}: {', '.join(stems[:5])}{', …' * (len(stems) > 5)}"
            lines.append(line)
        return "\n".join(lines)


def images_at(path: Path) -> dict[str, Path]:
    """File name without its ending -> file, for the images of a folder, or for one file.

    Raises:
        DataError: no image, or two files of one name.
    """
    files = {}
    for file in [path] if path.is_file() else sorted(path.glob("*")):
        if file.suffix.lower() not in FORMATS or file.name.startswith("."):
            continue
        if printable(file.name) != file.name:
            raise DataError(
                f"{printable(file)}: a name that is no text, or has control characters; rename it"
            )
        if file.stem in files:
            raise DataError(
                f"{path}: {files[file.stem].name} and {file.name} are one sample's name twice; keep one"
            )
        files[file.stem] = file
    if not files:
        raise DataError(f"{path}: no image; expected a file, or a folder of files, of {' '.join(FORMATS)}")
    return files


def list_files(entries: tuple[str, ...], network: Segmenter) -> Source:
    """Samples of files named as SENSOR=PATH: the files of one stem, in folders; or one sample, if every path
    is a file.

    Raises:
        ValueError: not of that form, an unknown or repeated sensor.
        DataError: no such path, a folder without images or with two files of one stem, folders that share no
            stem.
    """
    paths = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if not path or name not in network.modalities or name in paths:
            sensors = ", ".join(network.modalities)
            raise ValueError(
                f"{entry!r}: expected SENSOR=PATH, once for each sensor that is there: {sensors}"
            )
        paths[name] = Path(path)

    files = {}
    single = all(path.is_file() for path in paths.values())
    for name in [name for name in network.modalities if name in paths]:
        for stem, file in images_at(paths[name]).items():
            files.setdefault(next(iter(files), stem) if single else stem, {})[name] = file
    if len(paths) > 1 and all(len(of) == 1 for of in files.values()):
        examples = {name: stem for stem, of in reversed(files.items()) for name in of}
        raise DataError(
            f"no two sensors share the name of a sample ({examples}); name the files of one sample alike"
        )
    return Source(dict(sorted(files.items())), network.modalities)


def list_data(root: str, split: str, network: Segmenter) -> Source:
    """Samples of a prepared data set, which may lack some of the network's sensors."""
    names = [name for name in network.modalities if name in read_description(root).modalities]
    if not names:
        raise DataError(f"{root}: has none of the network's sensors ({', '.join(network.modalities)})")
    dataset = open_data(network.modalities, (), root, split, names)
    dataset.labelled = False  # labels are not read
    files = {
        row["id"]: {name: path for name, (path, *_) in dataset.files(index).items()}
        for index, row in enumerate(dataset.rows)
    }
    return Source(files, dataset.modalities)


def outputs(out: Path, stem: str) -> list[Path]:
    """The three files of a sample: mask, overlay, confidence."""
    return [out / folder / f"{stem}.png" for folder in OUTPUTS]


def plan_folder(
    config: PredictConfig, network: Segmenter, source: Source
) -> tuple[list[str], set[Path], dict]:
    """(samples that remain to be predicted, files to remove before that, the content of classes.json); writes
    nothing.

    Raises:
        ValueError: the folder holds predictions of other settings.
    """
    # What all predictions of a folder share, and what each sample was predicted from.
    out, checkpoint = Path(config.out), Path(config.checkpoint)
    settings = {
        "classes": [
            {"id": k, "name": name, "colour": list(colour)}
            for k, (name, colour) in enumerate(zip(network.classes, network.palette))
        ],
        "checkpoint": {
            "file": checkpoint.name,
            "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        },
        "fusion": fusion_name(network, config),
    }
    settings |= {name: list(getattr(config, name)) for name in ("window", "stride", "size")}
    scales = {name: (modality.scale, modality.offset) for name, modality in source.modalities.items()}
    samples = {
        stem: {
            "sensors": list(files),
            "absent": [name for name in network.modalities if name not in files],
            "digest": {n: [digest_files(file.parent, [file]), *scales[n]] for n, file in files.items()},
        }
        for stem, files in source.files.items()
    }

    # What the folder holds: nothing, or predictions of these settings; those of other images are stale.
    path, earlier, stale = out / "classes.json", {}, set()
    if not path.exists() and any((out / folder).exists() for folder in OUTPUTS):
        raise ValueError(
            f"{out}: has a folder {' or '.join(OUTPUTS)} that this command did not make; choose another --out"
        )
    if config.overwrite:
        stale = {file for folder in OUTPUTS for file in (out / folder).glob("*.png")}
    elif path.exists():
        what = "a record of predictions (choose another folder, or give --overwrite)"
        with reading(path, what):
            record = read_json(path, what)
            earlier = dict(record["samples"])
            changes = [key for key, value in settings.items() if record[key] != value]
        if changes:
            raise ValueError(
                f"{out}: holds predictions of another {changes[0]}; choose another folder, or give "
                "--overwrite to start over"
            )
        changed = [stem for stem in samples if earlier.get(stem, samples[stem]) != samples[stem]]
        stale = {file for stem in changed for file in outputs(out, stem)}
    remaining = [s for s in samples if any(f in stale or not f.exists() for f in outputs(out, s))]
    return remaining, stale, settings | NOTES | {"samples": earlier | samples}


def batches(stems: list[str], source: Source, size: int) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Consecutive samples with the same sensors and image size, at most ``size`` together: stem -> physical
    images.
    """
    samples = ((stem, source.read(stem)) for stem in stems)
    shapes = lambda sample: {name: image.shape for name, image in sample[1].items()}  # noqa: E731
    for _, alike in groupby(samples, shapes):
        while batch := dict(islice(alike, size)):
            yield batch


def network_input(
    batch: dict[str, dict[str, Tensor]], modalities: dict[str, Modality], size: tuple[int, int], device
) -> dict[str, Tensor]:
    """stem -> physical images, to sensor -> (B, C, H, W) as the network takes them, resized to ``size`` (0 0
    = not).
    """
    result = {}
    for name in next(iter(batch.values())):
        stack = [images[name] for images in batch.values()]
        if any(size):
            stack = [resize(image, size, modalities[name].sparse) for image in stack]
        result[name] = modalities[name].to_network(torch.stack(stack)).to(device)
    return result


@claims("checkpoint", "data")
@torch.no_grad()
def predict(config: PredictConfig) -> Source:
    """Predict every sample and write the folder ``config.out``; returns what was predicted.

    Files: masks/STEM.png (class ids, uint8), overlays/STEM.png (the first sensor's picture under the class
    colours), confidence/STEM.png (uint16, 65535 = 1: the largest softmax probability of the fused logits),
    classes.json. Each is written whole or not at all. Of logits at full size, those of one image exist at a
    time. The command adds sheet.png (``mmlib.figures.prediction_sheet``).

    Raises:
        ValueError: no images, wrong options, or an ``out`` folder of other settings. DataError: unreadable
            images; names the file.
    """
    check_output(config.out, [entry.partition("=")[2] for entry in config.sensors])
    if bool(config.sensors) == bool(config.data):
        raise ValueError("give images either as SENSOR=PATH or by --data, one of them")
    if any(config.size) and not all(config.size):
        raise ValueError(f"--size {config.size[0]} {config.size[1]}: expected two numbers above 0, or 0 0")
    device, out = choose_device(config.device), Path(config.out)
    network = load_segmenter(config.checkpoint, device)
    options = network.scoring(config.fusion, config.window, config.stride)
    fuse = options["fuse"] or FUSIONS["mean"]
    if config.sensors:
        source = list_files(config.sensors, network)
    else:
        source = list_data(find_data(config.data, config.progress), config.split, network)
    stems, stale, record = plan_folder(config, network, source)
    check_plausible(source.modalities, stems, source.read, config.strict)
    count = len(source.files)
    bar = progress_bar(
        total=count, initial=count - len(stems), desc="predict", progress=config.progress, leave=False
    )
    with bar:
        for batch in batches(stems, source, config.batch_size):
            try:
                images = network_input(batch, source.modalities, config.size, device)
                fused = fuse(options["encode"](images))
            except ValueError as error:
                raise ValueError(f"{', '.join(batch)}: {error}") from error
            # The folder changes only when there is something to write: a bad first image leaves it as it was.
            if record:
                for file in stale:
                    file.unlink(missing_ok=True)
                write_json(out / "classes.json", record)
                record = {}
            for logits, (stem, images) in zip(fused, batch.items()):
                name, image = next(iter(images.items()))
                logits, values, ids = largest(logits[None], image.shape[1:], stem)
                mask = ids.to(torch.uint8).cpu().numpy()
                blended = overlay(picture(source.modalities[name], image), mask, network.palette)
                probability = (values - logits.logsumexp(0)).double().exp()
                confidence = (65535 * probability).round().cpu().numpy().astype(np.uint16)
                for path, array in zip(outputs(out, stem), (mask, blended, confidence)):
                    write_image(path, np.atleast_3d(array))
                bar.update()
    return source
