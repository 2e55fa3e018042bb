"""A finished clustering on new images: the same backbone, statistics, network and clusters; label maps, and
scores where labels exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import tyro
from torch import Tensor, nn

from ..data.prepared import PreparedDataset
from ..evaluation.counts import ClusterScores, score_clusters
from ..runtime import (
    choose_device,
    limit_threads,
    load_into,
    provenance,
    read_json,
    read_tensors,
    reading,
    write_json,
)
from .backbone import load_backbone
from .baselines import Distillation
from .clustering import Refinement, count, load_clustering, write_label_maps
from .inference import codes_of
from .methods import DISTILLATIONS, TokenConfig, extracted, picture_forms
from .networks import load_cluster_net
from .tokens import TokenStatistics, extract_tokens


@dataclass(frozen=True)
class SegmentConfig:
    """Apply a finished 'cluster' run to the images of a split: label maps, and scores where there are labels."""

    run: tyro.conf.Positional[str]
    """Folder written by 'cluster'."""
    data: str
    """Folder of a prepared data set with the run's sensors."""
    out: str
    """Folder for the label maps and ids.json, which names and colours their ids."""
    split: str = "test"
    """Whose images."""
    guide: str = ""
    """Refine edges by this sensor's picture (guided filter); empty = off."""
    rematch: bool = False
    """Name clusters by Hungarian matching on this split instead of the run's own names: the custom of the
    field, and optimistic.
    """
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    progress: bool = True
    """Show progress bars."""


class Adapted(nn.Module):
    """A network behind the adapters that a distillation has trained."""

    def __init__(self, net: nn.Module, distillation: Distillation):
        super().__init__()
        self.net, self.distillation = net, distillation

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.net(self.distillation.adapt(tokens))


def segment(config: SegmentConfig) -> ClusterScores | None:
    """Write ``out/<id>.png`` for every image, ids.json, and scores.json where there are labels; returns the
    scores.

    Raises:
        ValueError: no finished run, another backbone than the run's, or data without its sensors or with
            other classes.
    """
    limit_threads()
    run, device = Path(config.run), choose_device(config.device)
    if not (run / "report.json").exists():
        raise ValueError(f"{run}: no report.json, so no finished run of 'cluster'")
    with reading(run / "report.json", "the report of 'cluster'"):
        report = read_json(run / "report.json", "the report of 'cluster'")
        plan, made_with = (
            {name: list(report["plan"][name]) for name in ("sensors", "read")},
            report["backbone"]["key"],
        )
    with reading(run / "config.json", "the settings of 'cluster'"):
        given = read_json(run / "config.json", "the settings of 'cluster'")["tokens"]
        settings = TokenConfig(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        )
    clusters = load_clustering(run / "clusters.safetensors")
    backbone = load_backbone(settings.backbone, settings.backbone_weights, device)
    if backbone.key != made_with:
        raise ValueError(
            f"{run} was made with other weights or another version of the backbone {backbone.name}; train it again, or give "
            "the weights it was made with at the same place"
        )
    data = PreparedDataset(config.data, config.split, plan["sensors"], cache=True)
    names = extracted(plan["read"])
    size = settings.eval_size if any(settings.eval_size) else settings.size
    tokens = extract_tokens(
        data,
        backbone,
        names,
        size,
        form=picture_forms(data, names, settings),
        batch_size=settings.extract_batch,
        device=device,
        progress=config.progress,
    )
    with reading(run / "tokens.safetensors", "the statistics of tokens"):
        found = read_tensors(run / "tokens.safetensors")
        statistics = TokenStatistics.from_tensors(found) if "none" not in found else None
    tokens = replace(tokens, statistics=statistics, **settings.processing)
    model: nn.Module | None = None
    if (run / "network.safetensors").exists():
        model = load_cluster_net(run / "network.safetensors", device)
        if (run / "adapters.safetensors").exists():
            distillation = Distillation(
                tokens.channels, plan["sensors"][1:], DISTILLATIONS[0], plan["sensors"][0]
            )
            load_into(
                distillation.adapters,
                read_tensors(run / "adapters.safetensors"),
                run / "adapters.safetensors",
            )
            model = Adapted(model, distillation.to(device))
    codes = codes_of(model, SimpleNamespace(read=plan["read"]), tokens)
    refinement, code_of = Refinement(config.guide), lambda indices: codes[indices]
    scores = None
    if data.labelled:
        classes = data.description.classes
        if clusters.classes and clusters.classes != classes:
            raise ValueError(
                f"{run} names its clusters by {', '.join(clusters.classes)}; {config.data} has {', '.join(classes)}"
            )
        mapping = None if config.rematch or clusters.mapping is None else clusters.mapping
        scores = score_clusters(
            count(code_of, data, clusters.centroids, refinement=refinement), classes, mapping=mapping
        )
        record = {
            "provenance": provenance(),
            "run": run.name,
            "split": config.split,
            "scores": scores.to_dict(),
        }
        write_json(Path(config.out) / "scores.json", record)
        clusters = replace(
            clusters, mapping=scores.mapping.tolist(), classes=classes, palette=data.description.palette
        )
    write_label_maps(config.out, code_of, data, clusters, refinement=refinement)
    return scores
