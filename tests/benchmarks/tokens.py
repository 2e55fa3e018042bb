"""What the token cache saves: the tokens of a training step read from disk against the backbone run anew,
measured in one run, in turn.

python tests/benchmarks/tokens.py                    the default backbone, CPU, one thread
python tests/benchmarks/tokens.py --backbone vit_small_patch16_dinov3 --weights random --size 224 224 --images 8
--crops 5 --batch 8
python tests/benchmarks/tokens.py --backbone vit_small_patch16_dinov3 --weights random --size 224 224
--crops 5 --batch 32 --device cuda

A step needs the tokens of a batch and of one neighbour of each of its entries, for every modality. Both ways
are timed for the same entries; reading includes standardising and smoothing, recomputing does not, nor
decoding and resizing the images, so the ratio of steps is a lower bound. A whole run is projected: the cached
one pays for its extraction once. The files are read from memory where the system keeps them there, as it does
when a training set fits.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro

from mmlib import world
from mmlib.data.prepared import PreparedDataset
from mmlib.runtime import limit_threads
from mmlib.unsupervised.backbone import load_backbone
from mmlib.unsupervised.extraction import TokenConfig, extract_tokens
from mmlib.unsupervised.tokens import TokenChain


@dataclass(frozen=True)
class Options:
    """Measure."""

    backbone: str = "tf_efficientnet_lite0"
    """Name of the backbone."""
    weights: str = ""
    """Its weights; "random" where they do not matter."""
    images: int = 32
    """Images of the training set that is rendered and extracted."""
    size: tuple[int, int] = (288, 384)
    """Height and width of what the backbone sees."""
    crops: int = 1
    """Entries per image: 1 or 5."""
    modalities: tuple[str, ...] = ("rgb", "depth")
    """Sensors."""
    batch: int = 16
    """Entries of a step, without their neighbours."""
    steps: int = 3333
    """Steps of the projected run; the default is about what the released code does."""
    repeats: int = 3
    """Measured steps."""
    device: str = "cpu"
    """cpu or cuda."""


def main(options: Options) -> None:
    limit_threads()
    cuda = options.device == "cuda"
    backbone = load_backbone(options.backbone, options.weights, options.device)
    rng = np.random.default_rng(0)

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    root = world.ensure(
        "room",
        train=options.images,
        val=1,
        test=1,
        size=(96, 128),
        modalities=options.modalities,
        progress=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MMLIB_DATA"] = folder
        data = PreparedDataset(root, "train")
        start = clock()
        settings = TokenConfig(size=tuple(options.size), crops=options.crops, extract_batch=16 if cuda else 1)
        tokens = extract_tokens(data, backbone, settings=settings)
        extraction = clock() - start
        start = clock()
        extract_tokens(data, backbone, settings=settings, progress=False)
        opening = clock() - start
        tokens = replace(tokens, chain=TokenChain(smooth=True).fit(tokens))
        pictures = torch.rand(2 * options.batch, 3, *options.size, device=options.device)
        cached, recomputed = [], []
        for repeat in range(options.repeats + 1):
            entries = rng.integers(0, len(tokens), 2 * options.batch)
            start = clock()
            tokens.batch(entries)
            middle = clock()
            for _ in options.modalities:
                for part in pictures.split(16 if cuda else 1):
                    backbone.extract(part)
            if repeat:  # the first round warms up
                cached.append(middle - start)
                recomputed.append(clock() - middle)
    read, run, n = statistics.median(cached), statistics.median(recomputed), options.steps
    per_image = 2 * math.prod(tokens.shape) / options.images
    on_disk = per_image * options.images * len(options.modalities) / 1e6
    where = torch.cuda.get_device_name(0) if cuda else "one thread"
    print(
        f"{options.backbone}, {options.size[0]} x {options.size[1]}, {options.images} images of {options.crops} crops, "
        f"{len(options.modalities)} modalities, 2 x {options.batch} entries a step, {where}"
    )
    print(
        f"  tokens of a step   read {1e3 * read:9.2f} ms   recomputed {1e3 * run:9.1f} ms   ratio {run / read:.0f}"
    )
    print(
        f"  extraction         {extraction:.2f} s once ({1e3 * extraction / options.images:.1f} ms an image), "
        f"then opened in {1e3 * opening:.1f} ms; the backbone alone "
        f"{2 * options.batch * len(options.modalities) / run:.1f} pictures/s"
    )
    print(
        f"  {n} steps         cached {extraction + n * read:.1f} s with extraction   recomputed {n * run:.1f} s   "
        f"ratio {n * run / (extraction + n * read):.0f}"
    )
    print(f"  on disk            {per_image / 2**20:.3f} MiB per image and modality, {on_disk:.1f} MB in all")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
