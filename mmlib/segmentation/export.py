"""A trained segmenter as one ONNX graph that knows its sensors: physical images in, fused logits out, any
sensor may be absent.

The graph's inputs are each sensor's image in physical units (B, C, H, W), under the sensor's name, and
``present`` (M,), 1 for a sensor that is there and 0 for one that is not, in the order of the network's
modalities. Fusion is a mean, so masking the absent logits gives exactly the prediction from the rest. A graph
cannot leave a branch out, though: an absent sensor costs as much time as a present one.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ..config import AtLeast
from ..outputs import claims
from ..runtime import atomic_path, provenance
from .network import Segmenter, load_segmenter

TOLERANCE = 1e-4  # largest difference from torch that is passed, as a share of the largest logit (at least 1)


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained segmenter as an ONNX model, checked against torch."""

    checkpoint: tyro.conf.Positional[str]
    """A best.safetensors or last.safetensors written by 'train'."""
    out: str
    """File to write, such as model.onnx."""
    overwrite: bool = False
    """Replace the file, if this program made it."""
    size: Annotated[tuple[int, int], AtLeast(0)] = (0, 0)
    """Height and width of the images, fixed in the graph; 0 0 = any. The number of images is always free."""
    opset: Annotated[int, AtLeast(0)] = 0
    """ONNX operator set, 18 or more; 0 = the exporter's own choice."""


class PhysicalSegmenter(nn.Module):
    """What the graph computes: (physical images by name, present (M,)) -> fused logits (B, K, H, W) float32,
    class ids (B, H, W) uint8.

    Sensors meet nowhere before the sum, and an absent one's logits are replaced there, not multiplied by 0:
    not even its NaN gets through. With no sensor present the fused logits are NaN. All images must have one
    size; a graph does not ask.
    """

    def __init__(self, network: Segmenter):
        super().__init__()
        self.network = network

    def forward(self, images: dict[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        network = self.network
        inputs = {name: m.to_network(images[name]) for name, m in network.modalities.items()}
        features = network.encoder(network.stem_features(inputs))
        logits = network.head(features).unflatten(0, (len(inputs), -1))
        there = (present > 0.5)[:, None, None, None, None]
        fused = torch.where(there, logits, torch.zeros_like(logits)).sum(0) / there.sum()
        size = next(iter(images.values())).shape[-2:]
        fused = F.interpolate(fused, size, mode="bilinear", align_corners=False)
        return fused, fused.argmax(1).to(torch.uint8)


@claims("checkpoint", folder=False)
def export(config: ExportConfig) -> dict:
    """Write ``config.out`` if, and only if, onnxruntime computes what torch does; returns the comparison.

    Returns:
        {"difference": largest absolute difference of a logit, "logit": largest absolute logit, "tolerance":
        what was allowed, "subsets": how many were compared, "opset", "megabytes"}.

    Raises:
        ValueError: the extra ``export`` is not installed, fusion is not a mean, the exporter refuses, or the
            results differ.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'ONNX export lacks a package ({error}); run: pip install -e ".[export]"') from error
    network = load_segmenter(config.checkpoint)
    if network.config.fusion != "mean":
        raise ValueError(
            f"{config.checkpoint}: its fusion is {network.config.fusion}; only the mean can mask absent "
            "sensors in one graph"
        )
    fixed = any(config.size)
    if fixed:
        network.encoder.check_size(config.size, "--size")
    if config.opset and config.opset < 18:
        raise ValueError(f"--opset {config.opset}: expected 18 or more, or 0 for the exporter's choice")
    torch.manual_seed(0)
    size = config.size if fixed else (64, 96)
    free = {0: "batch"} if fixed else {0: "batch", 2: "height", 3: "width"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                PhysicalSegmenter(network).eval(),
                (_images(network, 2, size), torch.ones(len(network.modalities))),
                dynamo=True,
                opset_version=config.opset or None,
                input_names=[*network.modalities, "present"],
                output_names=["logits", "ids"],
                verbose=False,
                dynamic_shapes=({name: free for name in network.modalities}, None),
            )
    except Exception as error:  # the exporter has many kinds of its own
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(
            f"{config.checkpoint}: torch could not export it ({reason}); try --size HEIGHT WIDTH or another "
            "--opset"
        ) from error
    program.model.metadata_props.update(_metadata(network))
    with atomic_path(config.out) as temporary:
        program.save(temporary, external_data=False)
        result = compare(temporary, network, [size] if fixed else [size, (97, 131)])
        if not result["difference"] <= result["tolerance"]:
            raise ValueError(
                f"{config.out}: onnxruntime differs from torch by {result['difference']:.2g} of logits up to "
                f"{result['logit']:.2g}, by more than {result['tolerance']:.2g}; nothing was written. Try "
                "another --opset"
            )
    result["megabytes"] = Path(config.out).stat().st_size / 1e6
    return result | {"opset": program.model.opset_imports[""]}


def compare(path: str | Path, network: Segmenter, sizes: list[tuple[int, int]]) -> dict[str, float]:
    """onnxruntime on the file at ``path`` against ``network``: each sensor alone, a pair, all; one and two
    images; absent = NaN.
    """
    import onnxruntime

    onnxruntime.disable_telemetry_events()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names, gaps, largest = list(network.modalities), [], []
    subsets = dict.fromkeys([*((name,) for name in names), tuple(names[:2]), tuple(names)])
    for subset in subsets:
        for batch, size in zip((2, 1), sizes * 2):
            images = _images(network, batch, size)
            with torch.no_grad():
                expected = network({n: network.modalities[n].to_network(images[n]) for n in subset})
            inputs = {n: (image if n in subset else image * torch.nan).numpy() for n, image in images.items()}
            inputs["present"] = np.float32([name in subset for name in names])
            gaps.append(np.abs(session.run(["logits"], inputs)[0] - expected.numpy()).max())
            largest.append(expected.abs().max())
    logit = float(np.max(largest))
    return {
        "difference": float(np.max(gaps)),
        "logit": logit,
        "subsets": len(subsets),
        "tolerance": TOLERANCE * max(1.0, logit),
    }


def _images(network: Segmenter, batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Random physical images in each sensor's usual range."""
    return {
        n: m.low + (m.high - m.low) * torch.rand(batch, m.channels, *size)
        for n, m in network.modalities.items()
    }


def _metadata(network: Segmenter) -> dict[str, str]:
    """JSON texts that travel in the model: what ids, inputs and ``present`` mean."""
    values = {
        "classes": network.classes,
        "palette": network.palette,
        "present": list(network.modalities),
        "modalities": [modality.to_dict() for modality in network.modalities.values()],
        "provenance": provenance(),
        "note": "inputs: physical values = stored * scale + offset, (B, C, H, W); the graph normalises. "
        "present: 1 = the sensor is there",
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def run_export(config: ExportConfig) -> None:
    result = export(config)
    shape = f"images of {config.size[0]} × {config.size[1]}" if any(config.size) else "images of any size"
    print(f"{config.out}: {result['megabytes']:.1f} MB, opset {result['opset']}, {shape}")
    print(
        f"largest difference between onnxruntime and torch: {result['difference']:.1e} of logits up to "
        f"{result['logit']:.1f}, over {result['subsets']} subsets (allowed: {result['tolerance']:.1e})"
    )
