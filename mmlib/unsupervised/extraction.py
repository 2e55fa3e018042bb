"""From images to tokens: which frozen tokens a run reads, from the cache on disk or through the backbone.

Called by ``methods.prepare`` before training and by ``segment``. Images are not augmented before the
backbone, so their tokens never change, and a training step reads them instead of running a vision
transformer.
"""

import contextlib
import hashlib
import json
import shutil
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from ..config import AtLeast, Between, check_settings
from ..data.images import map_npy, write_image
from ..data.prepared import PreparedDataset
from ..runtime import (
    data_dir,
    digest_files,
    exclusive,
    progress_bar,
    read_json,
    reading,
    remove_strays,
    write_json,
)
from . import pictures
from .backbone import Backbone, check_size, whole_patches
from .pictures import DepthForm, as_picture, five_crop, resize_picture
from .tokens import CHUNK, TokenChain, Tokens, summands

LEAST = 240  # pixels that the height of a picture has at least, unless a size is given
HEADER = 128  # bytes before the numbers of a .npy file of one image
# The fields of a Modality on which its picture depends.
PICTURED = ("channels", "low", "high", "dtype", "scale", "offset", "compress", "picture")


@dataclass(frozen=True)
class TokenConfig:
    """Which frozen tokens, and what is done to them."""

    backbone: str = "tf_efficientnet_lite0"
    """Frozen feature extractor: any network of timm that gives feature maps, such as the papers'
    vit_small_patch16_dinov3.
    """
    backbone_weights: str = ""
    """Weights of the backbone: a file, 'hub' = timm's from the Hugging Face hub, 'random' = none, or empty =
    those of an installed package.
    """
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width to which training pictures are resized, multiples of the patch; 0 0 = their own, times
    the smallest whole number that makes them 240 pixels high or more.
    """
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
    centre_images: Annotated[float, Between(-1, 1)] = -1.0
    """Share of each image's mean token that is subtracted from its tokens; -1 = 0 for DINOv3, 1 for the
    others.
    """
    whiten: Annotated[int, AtLeast(0)] = 0
    """Principal directions, measured on the training tokens of each sensor, that replace the channels, all of
    the same variance; 0 = off.
    """
    extract_batch: Annotated[int, AtLeast(1)] = 1
    """Pictures that go through the backbone at once. On a CPU one is fastest; on a GPU more are faster, and
    may change the last bits of each other's tokens.
    """

    def chain(self, train: Tokens) -> TokenChain:
        """The chain that these settings ask for, its statistics measured on the tokens of the training split.

        Raises:
            ValueError: the tokens of a sensor are the same in all images, but for the rounding of float16,
                which a division by their std would enlarge.
        """
        automatic = "dinov3" not in self.backbone
        is_on = lambda setting: setting == "on" or (setting == "auto" and automatic)
        centre = self.centre_images if self.centre_images >= 0 else float(automatic)
        chain = TokenChain(smooth=is_on(self.smooth), centre=centre)
        for name, array in train.arrays.items():
            parts = (array[start : start + CHUNK] for start in range(0, len(train), CHUNK))
            if len(train) > 1 and all(np.allclose(part, array[:1], 2**-9, 1e-4) for part in parts):
                raise ValueError(
                    f"{name}: its images have constant features; leave it out with --modalities, or look at "
                    "its files and range"
                )
        if is_on(self.standardize):
            chain = chain.fit(train)
        return chain.whiten(train, self.whiten) if self.whiten else chain


class Shards:
    """The cached tokens of one modality, one .npy file (crops, C, h, w) float16 an image, read when they are
    indexed like an array (n, C, h, w).
    """

    def __init__(self, files: list[Path], shape: tuple[int, int, int, int]):
        self.files, self.of_image = files, shape
        self.shape = (len(files) * shape[0], *shape[1:])

    def __getitem__(self, index) -> np.ndarray:
        """Entries of some numbers. Raises ValueError: a file is missing or damaged; names it."""
        entries = np.arange(self.shape[0])[index]
        values = np.empty((len(entries), *self.shape[1:]), np.float16)
        for value, entry in zip(values, entries):
            image, crop = divmod(entry, self.of_image[0])
            path = self.files[image]
            with reading(path, f"tokens of shape {self.of_image} (delete it and run again)"):
                value[...] = map_npy(path)[crop]
        return values

    def missing(self) -> list[int]:
        """Images without a file of the right length: it was never written, or is damaged."""
        length = HEADER + 2 * prod(self.of_image)
        lengths = (path.stat().st_size if path.exists() else 0 for path in self.files)
        return [index for index, actual in enumerate(lengths) if actual != length]


def digests_of(data: PreparedDataset) -> list[dict[str, str]]:
    """For each sample, sensor -> digest of its file's name and content.

    A file is read only where its size or times differ from those that its digest was kept with. What changed
    less than two seconds ago is not kept: some disks count no finer, and would hide a second change.

    Raises:
        ValueError: a file is missing; names it.
    """
    place = hashlib.sha256(str(data.root.resolve()).encode()).hexdigest()[:16]
    path = data_dir() / "tokens" / f"{place}.json"
    memory, new, digests = {}, {}, []
    remove_strays(path.parent)
    with contextlib.suppress(ValueError):  # not there yet, or damaged
        memory = read_json(path, "digests of images")
    for index in range(len(data)):
        digests.append({})
        for sensor, (image, *_) in data.files(index).items():
            with reading(image, "an image"):
                status = image.stat()
            name, state = f"{sensor}/{image.name}", [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            *before, digest = memory.get(name, [""])
            if before != state:
                digest = digest_files(data.root, [image])
                if time.time() - status.st_ctime > 2:
                    new[name] = [*state, digest]
            digests[-1][sensor] = digest
    if new:
        with contextlib.suppress(OSError):  # of a cache that can only be read
            write_json(path, memory | new)
    return digests


def extract_tokens(
    dataset: PreparedDataset,
    backbone: Backbone,
    names=None,
    settings: TokenConfig = TokenConfig(),
    *,
    train: bool = True,
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

    Raises:
        ValueError: an unknown modality or form; a size that does not fit the patches; tokens that are not
            finite.
        OSError: the cache cannot be written or its disk is full; finished images are kept.
    """
    check_settings(settings)
    size = settings.size if train or not any(settings.eval_size) else settings.eval_size
    crops = settings.crops if train else 1
    names = summands(names or dataset.modalities)
    # Only the sensors that are needed are read, and no label.
    reader = PreparedDataset(dataset.root, dataset.split, list(dict.fromkeys("+".join(names).split("+"))))
    reader.rows, reader.labelled = dataset.rows, False
    reader.modalities = {sensor: dataset.modalities[sensor] for sensor in reader.modalities}
    native = reader.stored(0)[1].shape
    is_given = any(size)
    if not is_given:
        own = [side // (2 if crops == 5 else 1) for side in native]
        factor = max(1, -(-LEAST // own[0]))
        size = whole_patches([side * factor for side in own], backbone.patch)
    check_size(size, backbone.patch, "--size")
    height, width = size
    shape = (crops, backbone.channels, height // backbone.patch, width // backbone.patch)
    folder = data_dir() / "tokens" / f"{backbone.name}-{backbone.key}-{height}x{width}-{crops}"

    keys = {}  # sensor -> what its picture depends on: the digest of the file, and all that makes a picture
    for sensor, modality in reader.modalities.items():
        looks = {name: getattr(modality, name) for name in PICTURED}
        if modality.picture == "range" and modality.channels == 1:
            looks["form"] = settings.depth_form
        keys[sensor] = json.dumps(["DIGEST", pictures.VERSION, looks], sort_keys=True)

    def shard_path(name: str, digests: dict[str, str]) -> Path:
        """The file of one image's tokens."""
        key = " + ".join(keys[sensor].replace("DIGEST", digests[sensor]) for sensor in name.split("+"))
        return folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"

    def picture_of(index: int) -> Tensor:
        """(crops, 3, height, width) of one image: the mean picture of the sensors that are read."""
        images, label = reader.physical(index)
        if label.shape != native and not is_given:
            raise ValueError(
                f"sample {reader.rows[index]['id']!r}: {tuple(label.shape)} pixels, not {native} as the "
                "first; give one --size for all"
            )
        each = []
        for sensor, image in images.items():
            picture = as_picture(reader.modalities[sensor], image, settings.depth_form)
            each.append(resize_picture(five_crop(picture) if crops == 5 else picture[None], (height, width)))
        return sum(each) / len(each)

    arrays, digests, step = {}, digests_of(reader), max(1, settings.extract_batch // crops)
    for name in names:
        reader.modalities = {sensor: dataset.modalities[sensor] for sensor in name.split("+")}
        shards = arrays[name] = Shards([shard_path(name, each) for each in digests], shape)
        if not shards.missing():
            continue
        with exclusive(f"{folder}.lock"):  # the second of two processes waits for the first
            missing, title = shards.missing(), f"tokens of {name}"
            folder.mkdir(parents=True, exist_ok=True)
            needed = 2 * prod(shape) * len(missing)
            if needed > shutil.disk_usage(folder).free:
                raise OSError(
                    f"{folder}: no room for {needed / 1e6:.1f} MB of tokens; make room, ask for a smaller "
                    "size, or set MMLIB_DATA to a folder on a larger disk"
                )
            for start in progress_bar(range(0, len(missing), step), desc=title, progress=progress):
                indices = missing[start : start + step]
                tokens = backbone.extract(torch.cat([picture_of(index) for index in indices])).cpu().half()
                for index, own in zip(indices, tokens.split(crops)):
                    if not torch.isfinite(own).all():
                        raise ValueError(
                            f"{title}, image {reader.rows[index]['id']!r}: not finite in float16 (limit "
                            "65504); check the backbone's weights and that image"
                        )
                    write_image(shards.files[index], own.numpy())
    return Tokens(arrays, crops, device=backbone.device)
