"""What the regulariser costs: a training step with each reading against the plain step, measured in one run,
in turn.

python tests/benchmarks/regularizer.py           CPU, one thread
python tests/benchmarks/regularizer.py --device cuda --encoder pvt_v2_b2 --size 1024 1024 --batch 2
                                                 GPU, bf16

A probe runs every k-th step; its ratio is that of k steps of which one has the probe. With the Gat et al.
reading two samples are probed, with the others one. The first ratio is that of whole steps; on a machine with
other work it is good to a few per cent only. The second adds the term alone, forward and backward, to the
plain step: less is left out of it than that noise.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro

from mmlib.modalities import SENSORS
from mmlib.runtime import limit_threads
from mmlib.segmentation.network import NetworkConfig, Segmenter
from mmlib.segmentation.objective import ObjectiveConfig, subset_cross_entropy
from mmlib.segmentation.regularizer import PROBED, Regularizer, RegularizerConfig

NAMES, CLASSES = ("rgb", "depth", "event", "lidar"), 14
READINGS = {
    "plain step": RegularizerConfig(),
    "R_p of each modality's logits (closed form)": RegularizerConfig(prediction="unimodal-logit"),
    "R_f by KL, four scales (closed form)": RegularizerConfig(features="kl"),
    "both closed forms": RegularizerConfig(prediction="unimodal-logit", features="kl"),
    "R_p at the input (probe)": RegularizerConfig(prediction="input"),
    "Eq. 4 at the input (probe)": RegularizerConfig(prediction="consistency"),
    "Gat et al. (probe)": RegularizerConfig(prediction="gat", lambda_p=1e-10),
    "R_f through the head (probe)": RegularizerConfig(features="decoder"),
    "R_p at the input, R_f by KL": RegularizerConfig(prediction="input", features="kl"),
}


@dataclass(frozen=True)
class Options:
    """Measure."""

    size: tuple[int, int] = (96, 128)
    """Height and width."""
    encoder: str = "residual"
    """Network."""
    batch: int = 4
    """Samples."""
    repeats: int = 9
    """Counted rounds; each round runs every variant once."""
    probe_every: int = 8
    """Steps between probes."""
    probe_crop: float = 0.5
    """Height and width of a probe, as a share of the image's."""
    device: str = "cpu"
    """cpu or cuda."""


def main(options: Options) -> None:
    limit_threads()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    modalities = {
        n: replace(SENSORS[n], mean=(0.0,) * SENSORS[n].channels, std=(1.0,) * SENSORS[n].channels)
        for n in NAMES
    }
    classes = [str(k) for k in range(CLASSES)]
    net = Segmenter(modalities, classes, [(0, 0, 0)] * CLASSES, NetworkConfig(encoder=options.encoder))
    net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-6)
    images = {
        n: torch.randn(options.batch, m.channels, *options.size, device=device) for n, m in modalities.items()
    }
    images = {n: image.to(memory_format=torch.channels_last) for n, image in images.items()}
    label = torch.randint(0, CLASSES, (options.batch, *options.size), device=device)
    whole = {"images": images, "label": label, "present": torch.ones(options.batch, len(images)).bool()}
    valid = torch.tensor(label.numel(), device=device)
    k = options.probe_every

    def probe(term: Regularizer, number: int) -> torch.Tensor:
        return sum(term.probe(net, whole, number))

    def closed_form(term: Regularizer, logits, features) -> torch.Tensor | float:
        own = term.read(logits, features, label)
        return sum(term.terms(own, own))

    def step(term: Regularizer, number: int) -> None:
        optimizer.zero_grad()
        if term.due(number):
            probe(term, number).backward()
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            logits, features = net(images, fuse=False)
        loss = subset_cross_entropy(logits, label, ObjectiveConfig(), valid, np.random.default_rng(number))[
            "supervised"
        ]
        if term.config.readings - PROBED:
            loss = loss + closed_form(term, logits, features)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    with torch.no_grad():
        held_logits, held_features = net(images, fuse=False)
    held_logits = {name: value.float().requires_grad_() for name, value in held_logits.items()}
    held_features = [value.float().requires_grad_() for value in held_features]

    def alone(term: Regularizer) -> float:
        """Seconds per step of the term itself: its closed form on held logits and features, and its share of
        a probe.
        """
        start = clock()
        if term.config.readings - PROBED:
            closed_form(term, held_logits, held_features).backward()
        spent = clock() - start
        if term.due(0):
            start = clock()
            probe(term, 0).backward()
            spent += (clock() - start) / k
        return spent

    def clock() -> float:
        if cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    terms = {
        name: Regularizer(replace(config, delay=0.0, probe_every=k, probe_crop=options.probe_crop))
        for name, config in READINGS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in terms}
    alones: dict[str, list[float]] = {name: [] for name in terms}
    memory = dict.fromkeys(terms, 0.0)
    for round_number in range(options.repeats + 2):
        for name, term in terms.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            start = clock()
            step(term, 1)
            spent = clock() - start
            if term.due(0):  # this one has its probe
                start = clock()
                step(term, 0)
                spent = (clock() - start + (k - 1) * spent) / k
            if round_number > 1:
                times[name].append(spent)
                alones[name].append(alone(term))
            memory[name] = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    precision = "bf16" if cuda else "float32"
    where = torch.cuda.get_device_name(0) if cuda else "one thread"
    print(
        f"training step, {options.encoder}, {options.batch} x {len(NAMES)} images of {options.size[0]} x {options.size[1]}, {precision}, "
        f"{where}; probes every {k} steps on a crop of {options.probe_crop:g} x {options.probe_crop:g}"
    )
    first = times["plain step"]
    for name, values in times.items():
        ratio = statistics.median(v / f for v, f in zip(values, first))
        peak = f"   {memory[name]:.1f} GiB" if cuda else ""
        added = statistics.median(alones[name]) / statistics.median(first)
        print(
            f"  {name:45s} {1000 * statistics.median(values):8.1f} ms   x {ratio:.3f}   term alone: x {1 + added:.3f}{peak}"
        )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
