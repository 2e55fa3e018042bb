"""From a network to numbers and pictures: codes of a split, clusters, scores where labels exist, label-free
criteria; and ``segment``, which applies a finished clustering to new images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ..config import AtLeast, check_settings, check_value
from ..data.missing import complete
from ..data.plausible import check_plausible, open_data
from ..evaluation.counts import score_clusters
from ..evaluation.statistics import rounded
from ..evaluation.subsets import count_pixels, upsampled
from ..modalities import IGNORE_INDEX, Modality
from ..outputs import claims
from ..runtime import choose_device, derived_seed, provenance, reading, write_json
from . import clustering, diagnostics
from .backbone import load_backbone
from .clustering import Clustering, check_guide, load_clustering, write_label_maps
from .correspondence import PAIRS, all_points, centred, cosine
from .extraction import TokenConfig, extract_tokens
from .kmeans import KMeans, kmeans, nearest_centroid
from .tokens import Tokens


@dataclass(frozen=True)
class EvaluationConfig:
    """Clusters, and how they are scored."""

    split: str = "val"
    """Split whose images are assigned to clusters and scored; use 'test' once, at the end."""
    clusters: Annotated[int, AtLeast(0)] = 0
    """Number of clusters; 0 = as many as the data set has classes."""
    restarts: Annotated[int, AtLeast(1)] = 5
    """Runs of k-means, of which the lowest inertia is kept."""
    repeats: Annotated[int, AtLeast(1)] = 3
    """How often all of that is repeated with other seeds: the spread that k-means alone causes."""
    kmeans_points: Annotated[int, AtLeast(1)] = 10_000
    """Training codes that k-means sees."""
    kmeans_seed: int = 0
    """Seed of k-means and of its points, apart from that of training."""
    guide: str = ""
    """Refine edges by this sensor's picture (guided filter); empty = off."""
    linear_steps: Annotated[int, AtLeast(0)] = 0
    """Steps of a supervised linear probe on the finished codes of the training split: what could be read with
    labels; 0 = off.
    """
    maps: Annotated[int, AtLeast(-1)] = 0
    """Label maps to write, of the first images of the split; -1 = all. Without labels all are written."""
    criterion: Literal["explained", "agreement", "silhouette"] = "explained"
    """Label-free criterion, on training images: correspondences that the clusters explain; agreement of
    k-means runs; silhouette.
    """


@dataclass
class Evaluation:
    """One state of a run, measured.

    Attributes:
        clustering: the clusters, named by the classes of the scored split where it has labels.
        codes: (n, D, h, w) of the scored split, on the CPU.
        score: what the settings select by: the label-free criterion that they name, or mIoU in per cent.
        line: the line of the history.
        report: the part of the report that is measured.
    """

    clustering: Clustering
    codes: Tensor
    score: float
    line: dict
    report: dict


@torch.no_grad()
def code_batches(model, names, tokens: Tokens) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (entries, their codes (B, D, h, w) on the CPU) of all tokens, in order. ``names`` are read.
    Without a model a code is what k-means sees of tokens: unit length per input, concatenated.
    """
    joined = lambda batch: torch.cat([F.normalize(maps, dim=1) for maps in batch.values()], 1)
    encode = model.eval() if model else joined
    for entries in np.array_split(np.arange(len(tokens)), -(-len(tokens) // 32)):
        yield entries, encode(tokens.batch(entries, names)).cpu()


def codes_of(model, names, tokens: Tokens) -> Tensor:
    """Codes (n, D, h, w) of all tokens on the CPU."""
    return torch.cat([codes for _, codes in code_batches(model, names, tokens)])


def sample_codes(model, names, tokens: Tokens, points: int, entries, seed: int) -> tuple[Tensor, Tensor]:
    """(points, D) codes drawn from all places of all entries, and the whole codes (len(entries), D, h, w) of
    some entries, numbers that increase. Nothing else is kept: the codes of all crops of a large data set do
    not fit into memory.
    """
    patches = prod(tokens.grid)
    places = np.random.default_rng(seed).permutation(len(tokens) * patches)[:points]
    ascending, samples, whole = np.sort(places), [], []
    for part, codes in code_batches(model, names, tokens):
        inside = ascending[np.isin(ascending // patches, part)] - part[0] * patches
        samples.append(codes.movedim(1, -1).flatten(0, -2)[inside])
        whole.append(codes[np.isin(part, entries)])
    # In the order of the draw.
    return torch.cat(samples)[np.searchsorted(ascending, places)], torch.cat(whole)


def summary(scores: dict) -> dict[str, float]:
    """mIoU and accuracy of all images."""
    return {name: scores[name]["all"] for name in ("miou", "accuracy")}


@torch.no_grad()
def evaluate_clustering(model, plan, prepared, clusters: int, config, loss=None) -> Evaluation:
    """Cluster the codes of the training split, assign the scored split, measure. Labels are read last, and
    only to score.
    """
    settings, tokens, scored = config.evaluation, prepared.tokens, prepared.scored
    net = model and model.net
    # Codes of the training split: points for k-means; entries for the criteria, or all for a linear probe.
    pairs = criteria_pairs(len(tokens))
    entries = np.arange(len(tokens)) if settings.linear_steps else np.unique(pairs)
    seed = derived_seed(settings.kmeans_seed, "points")
    points, codes = sample_codes(net, plan.read, tokens, settings.kmeans_points, entries, seed)
    seeds = (derived_seed(settings.kmeans_seed, "kmeans", r) % 2**31 for r in range(settings.repeats))
    runs = [kmeans(points, clusters, restarts=settings.restarts, seed=seed) for seed in seeds]
    repeats = [{"inertia": min(run.inertia)} for run in runs]
    best = min(range(len(runs)), key=lambda r: repeats[r]["inertia"])
    means = runs[best]
    criteria = label_free(codes[np.searchsorted(entries, pairs)], plan, prepared, means, runs)
    score, collapse = criteria[settings.criterion], diagnostics.collapse(points, means.centroids)
    line = {"criteria": criteria} | collapse
    report = {
        "split": settings.split,
        "scores": None,
        "kmeans": repeats,
        "use": [round(float(share), 5) for share in means.use],
        "criteria": criteria,
        "criterion": settings.criterion,
        "collapse": collapse,
        "histograms": histograms(tokens, plan, loss) if model else {},
    }
    # Codes of the scored split, which is assigned to clusters image by image, and scored where it has labels.
    scored_codes = codes_of(net, plan.read, prepared.scored_tokens)
    result = Clustering(means.centroids)
    if scored.labelled:
        classes = scored.description.classes

        count = partial(clustering.count, scored_codes, scored, guide=settings.guide)
        scores_of = lambda centroids: score_clusters(count(centroids), classes)
        scores_of_runs = [scores_of(run.centroids) for run in runs]
        for entry, scores in zip(repeats, scores_of_runs):
            entry |= summary(scores)
        scores = scores_of_runs[best]
        report["scores"] = rounded(scores)
        report["many_to_one"] = summary(score_clusters(scores["counts"], classes, "many-to-one"))
        if model:
            report["online_probe"] = summary(scores_of(model.probe.centroids.cpu()))
        if settings.linear_steps:
            report["linear_probe"] = summary(linear_probe(codes, scored_codes, prepared, settings))
        result = Clustering(means.centroids, scores["mapping"], classes, scored.description.palette)
        line = {name: round(value, 3) for name, value in summary(scores).items()} | line
        if config.select == "labels":
            score = scores["miou"]["all"]
    return Evaluation(result, scored_codes, score, line, report)


def criteria_pairs(count: int) -> np.ndarray:
    """(2, n) training entries whose pairs the criteria look at: at most 48 at random, and another one for
    each.
    """
    rng = np.random.default_rng(derived_seed(0, "criteria"))
    first = rng.choice(count, min(48, count), replace=False)
    return np.stack([first, (first + rng.integers(1, max(2, count), len(first))) % count])


def label_free(codes: Tensor, plan, prepared, means: KMeans, runs: list[KMeans]) -> dict[str, float]:
    """The criteria on training entries (``diagnostics`` says what fools each), explained correspondences also
    by input. ``codes`` (2, n, D, h, w) are those of ``criteria_pairs``.
    """
    entries = criteria_pairs(len(prepared.tokens)).ravel()
    # Centred frozen correspondences F' (Eq. 2) of each pair.
    F_ = {
        name: centred(cosine(*all_points(maps).chunk(2))).cpu()
        for name, maps in prepared.tokens.batch(entries, plan.extracted).items()
    }
    first, second = codes.movedim(2, -1).flatten(1, -2)
    ids = lambda points, centroids: nearest_centroid(points, centroids)[0].reshape(codes.shape[1], -1)
    explained, parts = diagnostics.explained_correspondence(
        F_, ids(first, means.centroids), ids(second, means.centroids)
    )
    values = {"explained": explained, "silhouette": diagnostics.silhouette(first, means.centroids)}
    restarts = [centroids for run in runs for centroids in run.restarts]
    if len(restarts) > 1:
        values["agreement"] = diagnostics.agreement([ids(first, c) for c in restarts[:10]])
    values |= {f"explained/{name}": value for name, value in parts.items()}
    return {name: round(float(value), 5) for name, value in values.items()}


def histograms(tokens: Tokens, plan, loss) -> dict[str, dict]:
    """Centred correspondences F' of self and random pairs of 16 training images at most, by target, with b
    and the share of pairs above it, which attract (adaptive b: none). One entry an image, another crop from
    image to image, so that a random pair is never two crops of one image.
    """
    images, result = np.arange(len(tokens) // tokens.crops)[:16], {}
    entries = images * tokens.crops + images % tokens.crops
    for name, maps in tokens.batch(entries, plan.targets).items():
        points = all_points(maps)
        for pair, other in (("self", points), ("random", points.roll(1, 0))):
            F_ = cosine(points, other)
            values = (centred(F_) if loss.centre else F_).flatten().cpu().double().numpy()
            shifts = loss.shifts.numbers.get(name)
            shift = shifts and shifts[PAIRS.index(pair)]
            counts, edges = np.histogram(values, 40)
            result[f"{name}/{pair}"] = {
                "counts": counts.tolist(),
                "low": round(float(edges[0]), 4),
                "high": round(float(edges[-1]), 4),
                "shift": shift and round(shift, 4),
                "attracted": round(float((values > shift).mean()), 4) if shifts else 0.0,
            }
    return result


def linear_probe(codes: Tensor, scored_codes: Tensor, prepared, settings: EvaluationConfig) -> dict:
    """Scores of a linear map from finished codes to classes, trained with the labels of the training split,
    whose images are whole: how much of the classes a linear map can read.

    The released code trains it beside the network instead; codes are detached either way.
    """
    classes = prepared.data.description.classes
    torch.manual_seed(derived_seed(settings.kmeans_seed, "linear") % 2**31)
    probe = nn.Conv2d(codes.shape[1], len(classes), 1)
    logits_of = lambda codes: probe(F.normalize(codes, dim=1))
    optimizer = torch.optim.Adam(probe.parameters(), lr=5e-3)
    rng = np.random.default_rng(settings.kmeans_seed)
    with torch.enable_grad():
        for _ in range(settings.linear_steps):
            index = rng.choice(len(codes), min(16, len(codes)), replace=False)
            label = torch.stack([prepared.data.physical(i)[1] for i in index])
            optimizer.zero_grad()
            logits = upsampled(logits_of(codes[index]), label.shape[-2:])
            loss = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
            (loss / (label != IGNORE_INDEX).sum().clamp(min=1)).backward()
            optimizer.step()
    counts = 0
    for index, code in enumerate(scored_codes):
        label, sample = prepared.scored.physical(index)[1], prepared.scored.rows[index]["id"]
        counts += count_pixels(logits_of(code[None]), label, len(classes), sample)
    return score_clusters(counts, classes, mapping=np.arange(len(classes)))


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
    backbone_weights: str = ""
    """Where the run's own weights of the backbone lie now; empty = where they lay."""
    guide: str = ""
    """Refine edges by this sensor's picture (guided filter); empty = off."""
    rematch: bool = False
    """Name clusters by Hungarian matching on this split instead of the run's own names: the custom of the
    field, and optimistic.
    """
    strict: bool = False
    """Stop, instead of a warning, where a sensor's values lie far from those of the run's training images."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    progress: bool = True
    """Show progress bars."""


@claims("run", "data")
def segment(config: SegmentConfig) -> dict | None:
    """Write ``out/<id>.png`` for every image of a sample that has all of the run's sensors, ids.json, and
    scores.json where there are labels; returns the scores.

    Raises:
        ValueError: no finished run, another backbone than the run's, or data without its sensors or with
            other classes.
    """
    run, out, device = Path(config.run), Path(config.out), choose_device(config.device)
    path = run / "clustering.safetensors"
    clusters = load_clustering(path, device)
    with reading(path, "a clustering that says how it was made"):
        sensors, read = (list(clusters.settings[name]) for name in ("sensors", "read"))
        modalities = clusters.settings.get("modalities", {})  # an earlier version did not save them
        modalities = {name: Modality(**fields) for name, fields in modalities.items()}
        key, settings = clusters.settings["backbone"], TokenConfig(**clusters.settings["tokens"])
        check_settings(settings)
        check_value("inputs", [*sensors, *read], tuple[str, ...])
        if clusters.network and not {*clusters.network.inputs} <= {*read}:
            raise ValueError("its network needs a sensor that it does not read")
    import timm  # imported late: it takes seconds

    if not timm.is_model(settings.backbone):
        raise ValueError(
            f"{run}: this clustering was made with {settings.backbone!r}, which this version does not have; "
            "cluster again"
        )
    weights = config.backbone_weights or settings.backbone_weights
    if weights not in ("", "random", "hub") and not Path(weights).exists():
        raise ValueError(f"{weights}: not found, the weights of this run's backbone; give --backbone-weights")
    backbone = load_backbone(settings.backbone, weights, device)
    if backbone.key != key:
        raise ValueError(
            f"{run} was made with other weights or another version of the backbone {backbone.name}; train "
            "it again, or give --backbone-weights that it was made with"
        )
    data = complete(open_data(modalities, clusters.classes, config.data, config.split, sensors, cache=True))
    check_guide(config.guide, data)
    if modalities and all(modality.mean for modality in modalities.values()):
        check_plausible(modalities, range(len(data)), lambda index: data.physical(index)[0], config.strict)
    tokens = extract_tokens(data, backbone, read, settings, train=False, progress=config.progress)
    codes = codes_of(clusters.network, read, replace(tokens, chain=clusters.chain))
    scores = None
    if data.labelled:
        classes = data.description.classes
        counts = clustering.count(codes, data, clusters.centroids, config.guide)
        scores = score_clusters(counts, classes, mapping=None if config.rematch else clusters.mapping)
        record = {"provenance": provenance(), "run": run.name, "split": config.split}
        write_json(out / "scores.json", record | {"scores": rounded(scores)})
        clusters = replace(
            clusters, mapping=scores["mapping"], classes=classes, palette=data.description.palette
        )
    write_label_maps(out, codes, data, clusters, config.guide)
    return scores
