"""From images to tokens: which frozen tokens a run reads, from the cache on disk or through the backbone.

Called by ``methods.prepare`` before training and by ``segment``. Images are not augmented before the
backbone, so their tokens never change, and a training step reads them instead of running a vision
transformer.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import AtLeast, check_settings
from ..data.images import map_npy, write_image
from ..data.prepared import PreparedDataset
from ..runtime import data_dir, digest_files, exclusive, progress_bar
from . import pictures
from .backbone import Backbone, BackboneName
from .pictures import DepthForm, as_picture, five_crop, resize_picture, working_size
from .tokens import TokenChain, Tokens

# The fields of a Modality on which its picture depends.
PICTURED = ("channels", "low", "high", "dtype", "scale", "offset", "compress", "picture")


@dataclass(frozen=True)
class TokenConfig:
    """Which frozen tokens, and what is done to them."""

    backbone: BackboneName = "descriptors+vit"
    """Frozen feature extractor; the first three need no download."""
    backbone_weights: str = ""
    """Weights of the backbone: a file, a folder, 'random', or empty = its own (DINOv3: from the hub)."""
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width to which training pictures are resized, multiples of the patch; 0 0 = as they are."""
    eval_size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """The same for the pictures that are scored, always whole; 0 0 = as for training."""
    crops: Literal[1, 5] = 1
    """Training entries of each image: 1 = all of it, 5 = its quadrants and its centre."""
    depth_form: DepthForm = "inverse"
    """How distances become a picture."""
    standardize: Literal["auto", "on", "off"] = "auto"
    """Divide each channel by its spread over the training tokens; auto = for all but DINOv3."""
    smooth: Literal["auto", "on", "off"] = "auto"
    """Average each token with its eight neighbours; auto = for all but DINOv3."""
    centre_images: Annotated[float, AtLeast(-1)] = -1.0
    """Share of each image's mean token that is subtracted from its tokens; -1 = 0 for DINOv3, 1 for the
    others.
    """
    extract_batch: Annotated[int, AtLeast(1)] = 16
    """Pictures that go through the backbone at once."""

    def chain(self, train: Tokens) -> TokenChain:
        """The chain that these settings ask for, its statistics measured on the tokens of the training split.

        Raises:
            ValueError: the tokens of a sensor vary by no more than the rounding of float16, which the
                division by their std would enlarge.
        """
        automatic = not self.backbone.startswith("dinov3")
        is_on = lambda setting: setting == "on" or (setting == "auto" and automatic)
        centre = self.centre_images if self.centre_images >= 0 else float(automatic)
        chain = TokenChain(smooth=is_on(self.smooth), centre=centre)
        if not is_on(self.standardize):
            return chain
        chain = chain.fit(train)
        for name, std in chain.std.items():
            # A std of exactly 1 marks a channel that is constant to the last bit.
            if ((std == 1) | (std <= 1e-4 + 2**-10 * chain.mean[name].abs())).all():
                raise ValueError(
                    f"{name}: its images have constant features; leave it out with --modalities, or look at "
                    "its files and range"
                )
        return chain


class Shards:
    """The cached tokens of one modality, one .npy file (crops, C, h, w) float16 an image, read when they are
    indexed like an array (n, C, h, w).
    """

    def __init__(self, files: list[Path], shape: tuple[int, int, int, int]):
        self.files, self.crops = files, shape[0]
        self.shape = (len(files) * shape[0], *shape[1:])
        self.size = int(np.prod(self.shape))
        self.nbytes = 2 * self.size

    def __len__(self) -> int:
        return self.shape[0]

    def load(self, path: Path) -> np.ndarray:
        """One image's file, memory-mapped. ValueError: missing, damaged, or of another shape; names it."""
        array, shape = map_npy(path), (self.crops, *self.shape[1:])
        if array.dtype != np.float16 or array.shape != shape:
            raise ValueError(
                f"{path}: holds {array.dtype} {array.shape}, expected float16 {shape}; delete it and run "
                "again"
            )
        return array

    def __getitem__(self, index) -> np.ndarray:
        entries = np.arange(len(self))[index]
        values = np.empty((len(entries), *self.shape[1:]), np.float16)
        for value, entry in zip(values, entries):
            value[...] = self.load(self.files[entry // self.crops])[entry % self.crops]
        return values

    def missing(self) -> list[int]:
        """Images without a whole file: it was never written, or is damaged."""
        indices = []
        for index, path in enumerate(self.files):
            try:
                self.load(path)
            except ValueError:
                indices.append(index)
        return indices


def extract_tokens(
    dataset: PreparedDataset,
    backbone: Backbone,
    names=None,
    settings: TokenConfig = TokenConfig(),
    *,
    train: bool = True,
    device="cpu",
    progress: bool = True,
) -> Tokens:
    """Tokens of every image (or five crops of it) of ``dataset``, from the cache or through ``backbone``.

    The cache lies in ``runtime.data_dir()/tokens``: a folder for each backbone, size and number of crops, in
    it one file for each image and modality. A file's name is a digest of the image files and of all that
    makes a picture of them, so that a changed image gets tokens of its own and all others stay cached. Files
    appear whole or not at all: a killed extraction goes on where it stopped. Of two processes one waits.

    Args:
        names: sensors; None = the data set's. "rgb+thermal" = image addition: the mean of the two pictures.
        settings: size, crops (entry 5 i + k is crop k of image i), form of depth, pictures at once.
        train: as one trains on them; else as they are scored: whole images, of ``settings.eval_size``.
        device: of the batches of the result.

    Raises:
        ValueError: an unknown modality or form; a size that does not fit the patches; tokens that are not
            finite.
        OSError: the cache cannot be written or its disk is full; finished images are kept.
    """
    check_settings(settings)
    size = settings.size if train or not any(settings.eval_size) else settings.eval_size
    crops = settings.crops if train else 1
    names = list(dataset.modalities if names is None else names)
    parts = {name: name.split("+") for name in names}
    if unknown := {part for name in names for part in parts[name]} - set(dataset.modalities):
        raise ValueError(
            f"tokens: unknown modality {', '.join(map(repr, sorted(unknown)))}; the data set was opened with "
            f"{', '.join(dataset.modalities)}; a sum is written 'rgb+depth'"
        )
    # Only the sensors that are needed are read, and no label.
    sensors = [name for name in dataset.modalities if any(name in each for each in parts.values())]
    reader = PreparedDataset(dataset.root, dataset.split, sensors)
    reader.rows, reader.labelled = dataset.rows, False
    reader.modalities = {name: dataset.modalities[name] for name in sensors}
    ids = [row["id"] for row in reader.rows]
    native = reader.stored(0)[1].shape
    picture_size = working_size(native, size, crops, backbone.patch, ids[0])
    shape = (crops, backbone.channels, *(side // backbone.patch for side in picture_size))
    folder = (
        data_dir() / "tokens" / f"{backbone.name}-{backbone.key}-{picture_size[0]}x{picture_size[1]}-{crops}"
    )

    def picture_of(index: int) -> dict[str, Tensor]:
        """Sensor -> pictures (crops, 3, height, width) of one image."""
        images, label = reader.physical(index)
        if working_size(label.shape, size, crops, backbone.patch, ids[index]) != picture_size:
            raise ValueError(
                f"tokens: image {ids[index]!r} has {tuple(label.shape)} pixels, the first one {native}; "
                f"give one size for all, such as size={picture_size}"
            )
        result = {}
        for name, image in images.items():
            picture = as_picture(reader.modalities[name], image, settings.depth_form)
            result[name] = resize_picture(five_crop(picture) if crops == 5 else picture[None], picture_size)
        return result

    picture_keys = [_picture_keys(reader, index, settings.depth_form) for index in range(len(reader))]
    shards = {}
    for name in names:
        keys = [" + ".join(key[part] for part in parts[name]) for key in picture_keys]
        files = [folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy" for key in keys]
        shards[name] = Shards(files, shape)
    if any(shard.missing() for shard in shards.values()):
        with exclusive(f"{folder}.lock"):  # the second of two processes waits for the first
            _extract(
                shards, parts, picture_of, backbone, ids, max(1, settings.extract_batch // crops), progress
            )
    return Tokens(shards, np.repeat(np.arange(len(reader)), crops), device=device)


def _picture_keys(reader: PreparedDataset, index: int, depth_form: str) -> dict[str, str]:
    """Sensor -> what its picture of one image depends on: the file's content, and all that makes a picture of
    it.
    """
    keys, files = {}, reader.files(index)
    for name, modality in reader.modalities.items():
        settings = {key: value for key, value in asdict(modality).items() if key in PICTURED}
        if modality.picture == "range" and modality.channels == 1:
            settings["form"] = depth_form
        file = digest_files(reader.root, [files[name][0]])
        keys[name] = json.dumps([file, pictures.VERSION, settings], sort_keys=True)
    return keys


def _extract(shards: dict[str, Shards], parts, picture_of, backbone, ids, step: int, progress: bool) -> None:
    """Write the files that are missing, ``step`` images at a time.

    Raises:
        ValueError: a value that is not finite in float16.
        OSError: too little room.
    """
    missing = {name: set(shard.missing()) for name, shard in shards.items()}
    folder = next(iter(shards.values())).files[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(len(missing[name]) * shard.nbytes // len(shard.files) for name, shard in shards.items())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder}: the tokens need {needed / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free; make room, "
            "ask for a smaller size, or set MMLIB_DATA to a folder on a larger disk"
        )
    indices = torch.tensor(sorted(set().union(*missing.values())))
    title = f"tokens of {', '.join(shards)}"
    with progress_bar(total=len(indices), desc=title, unit="image", progress=progress) as bar:
        for chunk in map(Tensor.tolist, indices.split(step)):
            images = {index: picture_of(index) for index in chunk}
            for name, shard in shards.items():
                todo = [index for index in chunk if index in missing[name]]
                if not todo:
                    continue
                # The picture of "rgb+thermal" is the mean of the two.
                mixed = [sum(images[i][part] for part in parts[name]) / len(parts[name]) for i in todo]
                tokens = backbone.extract(torch.cat(mixed)).cpu()
                for index, own in zip(todo, tokens.half().split(shard.crops)):
                    if not torch.isfinite(own).all():
                        raise ValueError(
                            f"{name}, image {ids[index]!r}: tokens are not finite in float16 (limit 65504); "
                            "check the backbone's weights and that image"
                        )
                    write_image(shard.files[index], own.numpy())
            bar.update(len(chunk))
