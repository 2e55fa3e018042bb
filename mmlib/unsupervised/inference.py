"""From a network to numbers and pictures: codes of a split, clusters, scores where labels exist, label-free
criteria, saved runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import AtLeast
from ..data.prepared import PreparedDataset
from ..evaluation.counts import ClusterScores, confusion_matrix, score_clusters
from ..runtime import derived_seed
from . import clustering, diagnostics
from .clustering import Clustering, LinearProbe, write_label_maps
from .correspondence import PAIRS, all_points, centred, cosine
from .kmeans import KMeans, kmeans, nearest_centroid
from .tokens import Tokens

CRITERIA = ("explained", "agreement", "silhouette")


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
    """One state of a run, measured. Scores are in per cent; None without labels."""

    means: KMeans
    scores: ClusterScores | None
    repeats: list[dict[str, float]]
    criteria: dict[str, float]
    criterion: float
    collapse: dict[str, float]
    histograms: dict[str, dict]
    others: dict
    settings: EvaluationConfig
    code_of: object = field(repr=False)

    @property
    def miou(self) -> float:
        return self.scores.miou() if self.scores else float("nan")

    def brief(self) -> dict:
        """The line of the history."""
        scores = (
            {"miou": round(self.miou, 3), "accuracy": round(self.scores.accuracy(), 3)} if self.scores else {}
        )
        return scores | {"criteria": self.criteria} | self.collapse

    def to_dict(self) -> dict:
        """The part of the report that is measured."""
        return {
            "split": self.settings.split,
            "scores": self.scores.to_dict() if self.scores else None,
            "kmeans": self.repeats,
            "use": [round(float(u), 5) for u in self.means.use],
            "criteria": self.criteria,
            "criterion": self.settings.criterion,
            "collapse": self.collapse,
            "histograms": self.histograms,
            **self.others,
        }

    def clustering(self, scored: PreparedDataset) -> Clustering:
        """The clusters, with the classes of the scored split where labels named them."""
        if not self.scores:
            return Clustering(self.means.centroids)
        described = scored.description
        mapping = self.scores.mapping.tolist()
        return Clustering(self.means.centroids, mapping, described.classes, described.palette)

    def write_maps(self, folder: Path, scored: PreparedDataset, clusters: Clustering) -> None:
        """Label maps of the images that the settings ask for; of all images where there are no labels."""
        count = self.settings.maps if scored.labelled else -1
        if count:
            rows = scored.rows
            try:
                scored.rows = rows if count < 0 else rows[:count]
                write_label_maps(folder, self.code_of, scored, clusters, guide=self.settings.guide)
            finally:
                scored.rows = rows


def code_batches(model, plan, tokens: Tokens, chunk: int = 32) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (entries, their codes (B, D, h, w) on the CPU) of all tokens, in order. Without a model a code is
    what k-means sees of tokens: unit length per input, concatenated.
    """
    if model is not None:
        model.eval()
    for entries in np.array_split(np.arange(len(tokens)), -(-len(tokens) // chunk)):
        batch = tokens.batch(entries, list(plan.read))
        with torch.no_grad():
            parts = [F.normalize(batch[name], dim=1) for name in plan.read]
            yield entries, (model(batch) if model is not None else torch.cat(parts, 1)).cpu()


def codes_of(model, plan, tokens: Tokens) -> Tensor:
    """Codes (n, D, h, w) of all tokens on the CPU."""
    return torch.cat([codes for _, codes in code_batches(model, plan, tokens)])


def sample_codes(model, plan, tokens: Tokens, points: int, entries, seed: int) -> tuple[Tensor, Tensor]:
    """(points, D) codes drawn from all places of all entries, and the whole codes (len(entries), D, h, w) of
    some entries, numbers that increase. Nothing else is kept: the codes of all crops of a large data set do
    not fit into memory.
    """
    patches = tokens.grid[0] * tokens.grid[1]
    places = np.random.default_rng(seed).permutation(len(tokens) * patches)[:points]
    order = np.argsort(places)
    drawn, whole = [], []
    for part, codes in code_batches(model, plan, tokens):
        # The places of this batch, in increasing order.
        start, stop = part[0] * patches, (part[-1] + 1) * patches
        low, high = np.searchsorted(places[order], [start, stop])
        own = torch.from_numpy(places[order][low:high] - start)
        drawn.append(codes.movedim(1, -1).flatten(0, -2)[own])
        whole.append(codes[torch.from_numpy(np.isin(part, entries))])
    return torch.cat(drawn)[torch.from_numpy(np.argsort(order))], torch.cat(whole)


@torch.no_grad()
def evaluate_clustering(model, plan, prepared, clusters: int, config, loss=None) -> Evaluation:
    """Cluster the codes of the training split, assign the scored split, measure. Labels are read last, and
    only to score.
    """
    settings, tokens = config.evaluation, prepared.tokens
    # Codes of the training split: points for k-means; entries for the criteria, or all for a linear probe.
    first, second = criteria_pairs(len(tokens))
    entries = np.arange(len(tokens)) if settings.linear_steps else np.unique([*first, *second])
    seed = derived_seed(settings.kmeans_seed, "points")
    points, codes = sample_codes(model, plan, tokens, settings.kmeans_points, entries, seed)
    runs = [
        kmeans(
            points,
            clusters,
            restarts=settings.restarts,
            seed=derived_seed(settings.kmeans_seed, "kmeans", r) % 2**31,
        )
        for r in range(settings.repeats)
    ]
    best = min(range(len(runs)), key=lambda r: min(runs[r].inertia))
    means = runs[best]
    # Codes of the scored split, which is assigned to clusters image by image.
    scored_codes = codes_of(model, plan, prepared.scored_tokens)
    code_of = lambda indices: scored_codes[indices]
    scores, repeats, others = None, [{"inertia": min(run.inertia)} for run in runs], {}
    if prepared.scored.labelled:
        classes = prepared.scored.description.classes
        summary = lambda result: {"miou": result.miou(), "accuracy": result.accuracy()}

        def scores_of(centroids: Tensor) -> ClusterScores:
            counts = clustering.count(code_of, prepared.scored, centroids, guide=settings.guide)
            return score_clusters(counts, classes)

        scores_of_runs = [scores_of(run.centroids) for run in runs]
        scores = scores_of_runs[best]
        for entry, result in zip(repeats, scores_of_runs):
            entry |= summary(result)
        others["many_to_one"] = summary(score_clusters(scores.counts, classes, "many-to-one"))
        if model is not None:
            others["online_probe"] = summary(scores_of(model.probe.centroids.cpu()))
        if settings.linear_steps:
            others["linear_probe"] = summary(linear_probe(codes, scored_codes, prepared, settings))
    criteria = label_free(
        lambda indices: codes[np.searchsorted(entries, indices)], plan, prepared, means, runs
    )
    return Evaluation(
        means,
        scores,
        repeats,
        criteria,
        criteria[settings.criterion],
        diagnostics.collapse(points, means.centroids),
        {} if loss is None else histograms(prepared, plan, loss),
        others,
        settings,
        code_of,
    )


def criteria_pairs(count: int, pairs: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """Training entries whose pairs the criteria look at: some at random, and another one for each."""
    rng = np.random.default_rng(derived_seed(0, "criteria"))
    first = rng.choice(count, min(pairs, count), replace=False)
    return first, (first + rng.integers(1, max(2, count), len(first))) % count


def label_free(code_of, plan, prepared, means: KMeans, runs: list[KMeans]) -> dict[str, float]:
    """The criteria on training entries (``diagnostics`` says what fools each), explained correspondences also
    by input. ``code_of`` maps entries of ``criteria_pairs`` to their codes (B, D, h, w).
    """
    first, second = criteria_pairs(len(prepared.tokens))
    tokens = prepared.tokens.batch(np.concatenate([first, second]), plan.extracted)
    n = len(first)
    # Centred frozen correspondences F' (Eq. 2) of each pair.
    F_ = {name: centred(cosine(all_points(t[:n]), all_points(t[n:]))).cpu() for name, t in tokens.items()}
    flat = {"first": code_of(first), "second": code_of(second)}
    flat = {name: codes.movedim(1, -1).flatten(0, -2) for name, codes in flat.items()}
    ids = lambda which, centroids: nearest_centroid(flat[which], centroids)[0].reshape(n, -1)
    explained, parts = diagnostics.explained_correspondence(
        F_, ids("first", means.centroids), ids("second", means.centroids)
    )
    values = {
        "explained": explained,
        "silhouette": diagnostics.silhouette(flat["first"], means.centroids),
    }
    restarts = [centroids for run in runs for centroids in run.restarts]
    if len(restarts) > 1:
        values["agreement"] = diagnostics.agreement([ids("first", c) for c in restarts[:10]])
    values |= {f"explained/{name}": value for name, value in parts.items()}
    return {name: round(float(value), 5) for name, value in values.items()}


def histograms(prepared, plan, loss, images: int = 16) -> dict[str, dict]:
    """Centred correspondences F' of self and random pairs of some training images, by target, with b marked
    (adaptive: none). One entry an image, another crop from image to image, so that a random pair is never
    two crops of one image.
    """
    _, start, crops = np.unique(prepared.tokens.image, return_index=True, return_counts=True)
    index = (start + np.arange(len(start)) % crops)[:images]
    tokens, result = prepared.tokens.batch(index, list(plan.targets)), {}
    for name, maps in tokens.items():
        points = all_points(maps)
        for pair, other in (("self", points), ("random", points.roll(1, 0))):
            F_ = cosine(points, other)
            b = loss.shifts.numbers.get(name, (float("nan"),) * 3)[PAIRS.index(pair)]
            counts, edges, attracted = diagnostics.correspondence_histogram(
                centred(F_) if loss.centre else F_, b, 40
            )
            result[f"{name}/{pair}"] = {
                "counts": counts.tolist(),
                "low": round(float(edges[0]), 4),
                "high": round(float(edges[-1]), 4),
                "shift": None if np.isnan(b) else round(b, 4),
                "attracted": round(attracted, 4),
            }
    return result


def linear_probe(codes: Tensor, scored_codes: Tensor, prepared, settings: EvaluationConfig) -> ClusterScores:
    """Scores of a linear map from finished codes to classes, trained with the training split's labels. Needs
    whole training images.

    The released code trains it beside the network instead; codes are detached either way.
    """
    if not prepared.data.labelled or len(codes) != len(prepared.data):
        raise ValueError("a linear probe needs a labelled training split and --crops 1")
    classes = prepared.data.description.classes
    label_of = lambda data, index: torch.from_numpy(data.stored(index)[1].astype(np.int64))
    torch.manual_seed(derived_seed(settings.kmeans_seed, "linear") % 2**31)
    probe = LinearProbe(codes.shape[1], len(classes))
    optimizer = torch.optim.Adam(probe.parameters(), lr=5e-3)
    rng = np.random.default_rng(settings.kmeans_seed)
    with torch.enable_grad():
        for _ in range(settings.linear_steps):
            index = rng.choice(len(codes), min(16, len(codes)), replace=False)
            label = torch.stack([label_of(prepared.data, i) for i in index])
            optimizer.zero_grad()
            probe.loss(F.normalize(codes[index], dim=1), label).backward()
            optimizer.step()
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for index in range(len(scored_codes)):
        label = label_of(prepared.scored, index)
        logits = probe(F.normalize(scored_codes[index][None], dim=1), tuple(label.shape))
        counts += confusion_matrix(logits.argmax(1)[0], label, len(classes)).cpu().numpy()
    return score_clusters(counts, classes, mapping=np.arange(len(classes)))
