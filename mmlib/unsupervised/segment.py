"""A finished clustering on new images: the same backbone, statistics, network and clusters; label maps, and
scores where labels exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ..config import check_settings
from ..data.prepared import PreparedDataset
from ..evaluation.counts import ClusterScores, score_clusters
from ..runtime import choose_device, limit_threads, provenance, reading, write_json
from .backbone import load_backbone
from .clustering import check_guide, count, load_clustering, write_label_maps
from .extraction import TokenConfig, extract_tokens
from .inference import codes_of


@dataclass(frozen=True)
class SegmentConfig:
    """Apply a finished 'cluster' run to the images of a split: label maps, and scores where there are
    labels."""

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


def segment(config: SegmentConfig) -> ClusterScores | None:
    """Write ``out/<id>.png`` for every image, ids.json, and scores.json where there are labels; returns the
    scores.

    Raises:
        ValueError: no finished run, another backbone than the run's, or data without its sensors or with
            other classes.
    """
    limit_threads()
    run, out, device = Path(config.run), Path(config.out), choose_device(config.device)
    clusters = load_clustering(run / "clustering.safetensors", device)
    with reading(run / "clustering.safetensors", "a clustering that says how it was made"):
        sensors, read = (list(clusters.settings[name]) for name in ("sensors", "read"))
        key, values = clusters.settings["backbone"], clusters.settings["tokens"]
        settings = TokenConfig(**values)
        check_settings(settings)
    backbone = load_backbone(settings.backbone, settings.backbone_weights, device)
    if backbone.key != key:
        raise ValueError(
            f"{run} was made with other weights or another version of the backbone {backbone.name}; train "
            "it again, or give the weights it was made with at the same place"
        )
    data = PreparedDataset(config.data, config.split, sensors, cache=True)
    check_guide(config.guide, data)
    options = {"train": False, "device": device, "progress": config.progress}
    tokens = extract_tokens(data, backbone, read, settings, **options)
    codes = codes_of(clusters.network, read, replace(tokens, chain=clusters.chain))
    scores = None
    if data.labelled:
        classes = data.description.classes
        if clusters.classes and clusters.classes != classes:
            raise ValueError(
                f"{run} names its clusters by {', '.join(clusters.classes)}; {config.data} has "
                f"{', '.join(classes)}"
            )
        counts = count(codes, data, clusters.centroids, config.guide)
        scores = score_clusters(counts, classes, mapping=None if config.rematch else clusters.mapping)
        record = {"provenance": provenance(), "run": run.name, "split": config.split}
        write_json(out / "scores.json", record | {"scores": scores.to_dict()})
        clusters = replace(
            clusters, mapping=scores.mapping.tolist(), classes=classes, palette=data.description.palette
        )
    write_label_maps(out, codes, data, clusters, config.guide)
    return scores
