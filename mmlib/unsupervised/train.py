"""The trainer of UniM2 and of every method it is compared with: same tokens, same schedule, same budget, no
label anywhere in it. ``cluster`` of the command line calls it, and so does ``search``.

A run is: tokens from the cache -> training of a small network on frozen tokens (none for k-means) -> cosine
k-means on its codes -> label maps. Where the data have labels they name the clusters at the very end and
score them; they decide nothing, unless ``select = "labels"`` asks for the papers' habit, and then the report
says so.
"""

import time
from dataclasses import asdict, replace
from math import isfinite, prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import loop
from ..modalities import IGNORE_INDEX
from ..outputs import claims
from ..runtime import (
    derived_seed,
    load_into,
    read_tensor_header,
    read_tensors,
    reading,
    save_tensors,
    seed_everything,
)
from .baselines import DIVERGENCES, Eagle, depth_guidance, distillation_loss
from .clustering import ClusterProbe, check_guide, save_clustering, write_label_maps
from .correspondence import CorrespondenceConfig, Points, cmcs_loss, sample_points
from .diagnostics import collapse
from .inference import evaluate_clustering
from .methods import EXTRAS, ClusterConfig, Plan, Prepared, on_grid, prepare, resolve_method
from .networks import ClusterNet

# Learning rates of the parameters that learn clusters of what the network makes, as in the released codes.
RATES = {"probe.clusters": 5e-3, "eagle.centres": 5e-5}
DEPTH_WEIGHT = 0.5  # of the depth term of depth guidance


def entries(config: ClusterConfig, count: int, step: int) -> np.ndarray:
    """Which of ``count`` training entries a step takes: consecutive parts of a new permutation each epoch, a
    function of (seed, step) alone.
    """
    batch = min(config.batch_size, count)
    per_epoch = count // batch
    seed = derived_seed(config.seed, "order", step // per_epoch)
    order = np.random.default_rng(seed).permutation(count)
    return order[step % per_epoch * batch :][:batch]


class Model(nn.Module):
    """All that a run trains: the network (none for k-means), the online cluster probe, and what a baseline
    adds.
    """

    def __init__(self, config: ClusterConfig, plan: Plan, channels: int, clusters: int):
        super().__init__()
        self.config, self.plan = config, plan
        self.net = None if config.method == "kmeans" else ClusterNet(channels, plan.read, plan.network)
        self.probe = ClusterProbe(plan.network.dim, clusters)
        self.eagle = Eagle(plan.network.dim) if config.method == "eagle" else None


def seeded(*parts) -> torch.Generator:
    """Random numbers of one purpose: they depend on ``parts`` alone."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def draw_tokens(model: Model, prepared: Prepared, step: int, purpose: str) -> tuple:
    """The training entries of a step, and the tokens of these images, followed by those of one neighbour of
    each where the loss has KNN pairs; EAGLE's second view, of the same images, stands in the neighbours'
    place.

    Also returns the frozen tokens of the targets; the points of the loss, a function that takes them from
    maps -> [those of the images, those of the neighbours]; and the random generator of all that.
    Points are drawn once for all modalities, which then judge the same pairs of places: a difference between
    them is not one of the draw. The released code draws afresh for each; the expected loss is the same.
    """
    tokens, plan, generator = prepared.tokens, model.plan, seeded(model.config.seed, purpose, step)
    index = every = entries(model.config, len(tokens), step)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    if model.eagle:
        every = np.tile(index, 2)
    elif len(prepared.neighbours):
        near = prepared.neighbours.numpy()
        every = np.concatenate([index, near[index, rng.integers(near.shape[1], size=len(index))]])
    batch, points = tokens.batch(every, plan.read + plan.targets), plan.loss.points
    # Where the network and the losses beside it work on each location alone, they need sampled tokens only.
    whole = plan.network.fusion == "cbam" or model.config.method in EXTRAS
    if points and plan.loss.sampling == "tokens" and not whole:
        # Some locations of each image, drawn without repetition: what is not sampled is not computed either.
        order = torch.rand(len(every), prod(tokens.grid), generator=generator).argsort(1)[:, None, :points]
        sample = lambda x: x.flatten(2).take_along_dim(order.to(x.device), 2)[..., None]
        batch, points = {name: sample(x) for name, x in batch.items()}, 0
    coords = torch.rand(len(every), points, 2, generator=generator).to(tokens.device) * 2 - 1

    def take(maps: Points) -> list[Points]:
        parts = {name: sample_points(x, coords).split(len(index)) for name, x in maps.items()}
        return [dict(zip(parts, group)) for group in zip(*parts.values())]

    targets = {name: batch[name] for name in plan.targets}
    if model.eagle:  # whose loss sees features without a tenth of their channels
        targets = {name: F.dropout2d(x, 0.1) for name, x in targets.items()}
    return index, batch, targets, take, generator


def measure_shifts(model: Model, prepared: Prepared) -> CorrespondenceConfig:
    """The loss with its shifts b measured on eight batches, where they are quantiles."""
    loss = model.plan.loss
    if loss.shifts.rule != "quantile" or not model.net:
        return loss

    drawn = (draw_tokens(model, prepared, step, "shifts") for step in range(8))
    frozen = (take(targets) for _, _, targets, take, _ in drawn)
    pairs = ((points[0], points[-1]) for points in frozen)
    generator = seeded(model.config.seed, "shifts")
    return replace(loss, shifts=loss.shifts.measure(pairs, generator, loss.centre))


def step_loss(
    model: Model, prepared: Prepared, loss: CorrespondenceConfig, step: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step and its parts by name."""
    config, plan = model.config, model.plan
    # The correspondence loss of all methods: CMCS for UniM2, with one target that of STEGO.
    index, tokens, targets, take, generator = draw_tokens(model, prepared, step, "points")
    code = model.net(tokens)
    # The code as each target supervises it: s, or s^X = CMH(s) (Eq. 7).
    codes = take({name: model.net.harmonized(code, name) for name in plan.targets})
    images, *near = zip(take(targets), codes)
    total, terms = cmcs_loss(*images, *near or [None], loss, generator)
    parts = {f"{name}/{pair}": float(value) for name, pairs in terms.items() for pair, value in pairs.items()}
    # What a baseline adds, on the images alone.
    method, views = config.method, code.split(len(index))
    tokens, code = {name: x[: len(index)] for name, x in tokens.items()}, views[0]
    picture, generator = None, seeded(config.seed, "extra", step)
    if EXTRAS.get(method) in plan.sensors:
        pictures = on_grid(prepared.data, EXTRAS[method], config.tokens.crops, prepared.tokens.grid)
        picture = pictures[index].to(code.device)
    if model.eagle:
        matched = targets[plan.targets[0]].split(len(index))
        objects, lookup = model.eagle(views, matched, picture)
        # Correspondence alone for the first 200 of EAGLE's 10,000 steps: here, too, 2 % of all.
        corresponding, contrasting = (0.1, 0.9) if step > 0.02 * config.steps else (1.0, 0.0)
        total = corresponding * total + contrasting * objects + lookup
        parts["objects"] = objects.item()
    if method == "depthg":
        guidance = depth_guidance(picture, code, generator)
        total, parts["depth"] = total + DEPTH_WEIGHT * guidance, guidance.item()
    if method in DIVERGENCES:
        students = [model.net.msn[name](tokens[name]) for name in plan.sensors[1:]]
        distilled = distillation_loss(tokens[plan.sensors[0]], students, method, generator=generator)
        total, parts["distillation"] = total + distilled, distilled.item()
    parts["loss"] = total.item()
    if (step + 1) % loop.LOG_EVERY == 0:  # of this batch, with the online centroids: the loss never shows it
        parts |= collapse(code.detach().movedim(1, -1).flatten(0, -2), model.probe.centroids)
    return total + model.probe(code), parts


def count_clusters(config: ClusterConfig, prepared: Prepared) -> int:
    """The number of clusters. Raises ValueError for what would otherwise fail, or mean nothing, only after
    training.
    """
    settings, data, scored = config.evaluation, prepared.data, prepared.scored
    clusters = settings.clusters or len(data.description.classes)
    check_guide(settings.guide, scored)
    if not 2 <= clusters <= min(IGNORE_INDEX, settings.kmeans_points):
        raise ValueError(
            f"{clusters} clusters: expected 2 to {IGNORE_INDEX}, and not more than --kmeans-points "
            f"{settings.kmeans_points}; give --clusters"
        )
    if config.select != "last" and (config.method == "kmeans" or not config.eval_every):
        raise ValueError(
            f"--select {config.select} chooses among measured states of training: give --eval-every, or "
            "--select last"
        )
    if scored.labelled or config.select == "labels":
        scored.require_labels()
    if settings.linear_steps:
        data.require_labels()
        if len(prepared.tokens) != len(data):
            raise ValueError("a linear probe (--linear-steps) needs whole training images: give --crops 1")
    if settings.criterion == "agreement" and settings.restarts * settings.repeats < 2:
        raise ValueError("--criterion agreement compares two runs of k-means or more; give --repeats")
    return clusters


@claims("data", "tokens.backbone_weights")
def cluster(config: ClusterConfig, prepared: tuple[Plan, Prepared] | None = None, stop=None) -> dict:
    """Run or resume a clustering; returns its report (also ``out/report.json``).

    Writes to ``config.out``: config.json, history.jsonl, resume.safetensors, clustering.safetensors (all that
    ``segment`` needs), report.json, label maps where asked for or where there are no labels, and
    kept.safetensors while ``select`` chooses.

    Args:
        prepared: what ``prepare`` returned for the same data, tokens and sensors, to share it between runs.
        stop: called with (step, evaluation) after each measurement of ``eval_every``; may raise to end the
            run (a search that prunes).

    Raises:
        ValueError: settings that cannot work, an ``out`` of other settings, too few images, collapsed codes.
            DataError: unreadable data.
    """
    plan, prepared = prepared or prepare(config)
    # The tokens may be shared; what is done with them is this run's own.
    plan = resolve_method(config, plan.sensors)
    clusters = count_clusters(config, prepared)
    # The model, its optimizer and its loss, or those of the run that is resumed.
    out, scored, seed = Path(config.out), prepared.scored, config.seed
    begun, begun_cpu = time.perf_counter(), time.process_time()
    seed_everything(derived_seed(seed, "weights"))
    model = Model(config, plan, prepared.tokens.channels, clusters).to(prepared.tokens.device)
    optimizer = torch.optim.Adam(
        [{"params": p, "lr": RATES.get(name, config.lr)} for name, p in model.named_parameters()]
    )
    progress = loop.resume(config, model, optimizer, prepared.inputs)
    loss, evaluation = measure_shifts(model, prepared), None
    model.train()

    def take_step(step: int):
        torch.manual_seed(derived_seed(seed, "step", step))  # dropout
        total, parts = step_loss(model, prepared, loss, step)
        optimizer.zero_grad()
        total.backward()
        finite = all(map(isfinite, parts.values()))
        if finite:
            optimizer.step()
        return finite, lambda: parts

    def measure(done: int):
        nonlocal evaluation
        evaluation = evaluate_clustering(model.net and model, plan, prepared, clusters, config, loss)
        model.train()
        return {"val": evaluation.line}, evaluation.score

    def keep_best(done: int, line: dict, better: bool):
        if better and config.select != "last":
            save_tensors(best, model.state_dict(), {"kept": {"step": done}})
        if stop:
            stop(done, evaluation)

    # Training; k-means takes no step. A folder belongs to one run and its data from the first step on.
    steps, best = config.steps if model.net else 0, out / "kept.safetensors"
    if not progress.step:
        loop.save_state(out / "resume.safetensors", model, optimizer, config, 1, progress)
    loop.run_steps(
        config,
        model,
        optimizer,
        progress,
        steps,
        take_step=take_step,
        measure=measure,
        after_measure=keep_best,
    )
    # The state that the settings select, measured unless it is the one measured last.
    step = steps
    if best.exists():
        with reading(best, "the best state of a run"):
            step = int(read_tensor_header(best)["kept"]["step"])
            load_into(model, read_tensors(best), best)
    if not evaluation or step != steps:
        measure(step)
    if not steps:  # all that k-means computes
        progress.seconds = time.perf_counter() - begun
        progress.cpu_seconds = time.process_time() - begun_cpu
    # The clustering, its label maps and its report.
    reads = {"sensors": plan.sensors, "read": plan.read}
    modalities = {name: modality.to_dict() for name, modality in prepared.data.modalities.items()}
    settings = {"modalities": modalities, "backbone": prepared.backbone.key, "tokens": asdict(config.tokens)}
    clustering = replace(
        evaluation.clustering, network=model.net, chain=prepared.chain, settings=reads | settings
    )
    save_clustering(out / "clustering.safetensors", clustering)
    # Label maps of the first images, as many as are asked for; of all where there are no labels.
    maps = config.evaluation.maps if scored.labelled else -1
    codes = evaluation.codes[: maps if maps >= 0 else None]
    if len(codes):
        write_label_maps(out / "maps", codes, scored, clustering, config.evaluation.guide)
    selected_by = {
        "last": "nothing: the state after the last step",
        "criterion": "a label-free criterion on training images",
        "labels": f"LABELS of the split {config.evaluation.split!r}, which is also scored",
    }
    return loop.write_report(
        config,
        progress,
        plan=reads | {"targets": plan.targets},
        backbone={"name": prepared.backbone.name} | prepared.backbone.source,
        **{"chosen by": selected_by[config.select]},
        step=step,
        shifts=loss.shifts.numbers,
        images={data.split: len(data) for data in (prepared.data, scored)},
        **evaluation.report,
    )
