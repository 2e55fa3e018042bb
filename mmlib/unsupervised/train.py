"""The trainer of UniM2 and of every method it is compared with: same tokens, same schedule, same budget, no
label anywhere in it. ``cluster`` of the command line calls it, and so does ``search``.

A run is: tokens from the cache -> training of a small network on frozen tokens (none for k-means) -> cosine
k-means on its codes -> label maps. Where the data have labels they name the clusters at the very end and
score them; they decide nothing, unless ``select = "labels"`` asks for the papers' habit, and then the report
says so.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import asdict, replace
from math import isfinite, prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import loop
from ..config import check_settings
from ..modalities import IGNORE_INDEX
from ..runtime import derived_seed, limit_threads, save_tensors, seed_everything, write_json
from .baselines import Eagle, depth_guidance, distillation_loss, second_view
from .clustering import ClusterProbe, check_guide, save_clustering, write_label_maps
from .correspondence import CorrespondenceConfig, Points, cmcs_loss, take_points
from .diagnostics import collapse
from .inference import evaluate_clustering
from .methods import DISTILLATIONS, EXTRAS, ClusterConfig, Plan, Prepared, prepare, resolve_method
from .networks import ClusterNet

# Parameters that learn clusters of what the network makes, and their learning rate.
PROBES, PROBE_LR = ("probe.clusters", "extra.eagle.cue.centres"), 5e-3
# The depth term of depth guidance: its b, on the scale of ``depth_features``' cosines, and its weight.
DEPTH_SHIFT, DEPTH_WEIGHT = 0.1, 0.5


def entries(config: ClusterConfig, count: int, step: int) -> np.ndarray:
    """Which of ``count`` training entries a step takes: consecutive parts of a new permutation each epoch, a
    function of (seed, step) alone.
    """
    batch = min(config.batch_size, count)
    per_epoch = count // batch
    rng = np.random.default_rng(derived_seed(config.seed, "order", step // per_epoch))
    order = rng.permutation(count)
    return order[step % per_epoch * batch :][:batch]


class Model(nn.Module):
    """All that a run trains: the network, the online cluster probe, and what a baseline adds."""

    def __init__(self, config: ClusterConfig, plan: Plan, channels: int, clusters: int):
        super().__init__()
        self.config, self.plan = config, plan
        self.net = ClusterNet(channels, plan.read, plan.network)
        self.probe = ClusterProbe(plan.network.dim, clusters)
        self.extra = nn.ModuleDict({"eagle": Eagle(plan.network.dim)} if config.method == "eagle" else {})
        if config.method in DISTILLATIONS:
            self.net.add_adapters(plan.sensors[1:])

    def forward(self, tokens: Points) -> Tensor:
        """Tokens of all that is read -> code (B, D, h, w)."""
        return self.net(tokens)


def seeded(*parts) -> torch.Generator:
    """Random numbers of one purpose: they depend on ``parts`` alone."""
    return torch.Generator().manual_seed(derived_seed(*parts))


def draw_tokens(model: Model, prepared: Prepared, step: int, purpose: str) -> tuple:
    """The training entries of a step, and the tokens of these images, followed by those of one neighbour of
    each where the loss has KNN pairs.

    Also returns a function that samples the points of the loss, codes of the targets -> a list of (frozen
    tokens, codes) of the images, and of their neighbours; and the random generator of all that.
    """
    tokens, plan, generator = prepared.tokens, model.plan, seeded(model.config.seed, purpose, step)
    index = every = entries(model.config, len(tokens), step)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    if len(prepared.neighbours):
        near = prepared.neighbours.numpy()
        every = np.concatenate([index, near[index, rng.integers(near.shape[1], size=len(index))]])
    batch, points = tokens.batch(every, plan.names), plan.loss.points
    # Where the network and the losses beside it work on each location alone, they need sampled tokens only.
    whole = plan.network.fusion == "cbam" or model.config.method in EXTRAS
    if points and plan.loss.sampling == "tokens" and not whole:
        # Some locations of each image, drawn without repetition: what is not sampled is not computed either.
        order = torch.rand(len(every), prod(tokens.grid), generator=generator).argsort(1)[:, None, :points]
        sample = lambda x: x.flatten(2).take_along_dim(order.to(x.device), 2)[..., None]
        batch, points = {name: sample(x) for name, x in batch.items()}, 0
    frozen = {name: batch[name] for name in plan.targets}
    part = lambda maps, i: {name: x[i : i + len(index)] for name, x in maps.items()}

    def take(codes: Points) -> list:
        starts = range(0, len(every), len(index))
        return [take_points(part(frozen, i), part(codes, i), points, generator) for i in starts]

    return index, batch, take, generator


def measure_shifts(model: Model, prepared: Prepared) -> CorrespondenceConfig:
    """The loss with its shifts b measured on eight batches, where they are quantiles."""
    loss = model.plan.loss
    if loss.shifts.rule != "quantile":
        return loss

    def batches():
        for step in range(8):
            _, tokens, take, _ = draw_tokens(model, prepared, step, "shifts")
            groups = take({name: tokens[name] for name in model.plan.targets})
            yield groups[0][0], groups[-1][0]

    generator = seeded(model.config.seed, "shifts")
    return replace(loss, shifts=loss.shifts.measure(batches(), generator, loss.centre))


def step_loss(
    model: Model, prepared: Prepared, loss: CorrespondenceConfig, step: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step and its parts by name."""
    config, plan = model.config, model.plan
    # The correspondence loss of all methods: CMCS for UniM2, with one target that of STEGO.
    index, tokens, take, generator = draw_tokens(model, prepared, step, "points")
    code = model(tokens)
    # The code as each target supervises it: s, or s^X = CMH(s) (Eq. 7).
    images, *near = take({name: model.net.harmonized(code, name) for name in plan.targets})
    total, terms = cmcs_loss(*images, near[0] if near else None, loss, generator)
    parts = {f"{name}/{pair}": float(value) for name, pairs in terms.items() for pair, value in pairs.items()}
    # What a baseline adds, on the images alone.
    method, read = config.method, plan.read
    tokens, code = {name: x[: len(index)] for name, x in tokens.items()}, code[: len(index)]
    extras = {name: x[index] for name, x in prepared.extras.items()}
    generator = seeded(config.seed, "extra", step)
    if method == "eagle":
        view = second_view({name: tokens[name] for name in read}, generator=generator)
        views = [tokens[read[0]], view[read[0]]]
        objects, lookup = model.extra["eagle"]([code, model(view)], views, extras.get("rgb"))
        # Correspondence alone for the first 200 of EAGLE's some 10,000 steps, here at most a tenth of them.
        corresponding, contrasting = (1.0, 0.0) if step < min(200, config.steps // 10) else (0.1, 0.9)
        total = corresponding * total + contrasting * objects + lookup
        parts["objects"] = objects.item()
    if method == "depthg":
        guidance = depth_guidance(extras["depth"], code, DEPTH_SHIFT, generator=generator)
        total, parts["depth"] = total + DEPTH_WEIGHT * guidance, guidance.item()
    if method in DISTILLATIONS:
        adapted = model.net.adapted(tokens)
        students = [adapted[name] for name in model.net.adapters]
        distilled = distillation_loss(tokens[plan.sensors[0]], students, method, generator=generator)
        total, parts["distillation"] = total + distilled, distilled.item()
    parts["loss"] = total.item()
    if (step + 1) % loop.LOG_EVERY == 0:  # of this batch, with the online centroids: the loss never shows it
        parts |= collapse(code.detach().movedim(1, -1).flatten(0, -2), model.probe.centroids)
    return total + model.probe(code), parts


def refuse(config: ClusterConfig, prepared: Prepared, clusters: int) -> None:
    """Raise ValueError for what would otherwise fail, or mean nothing, only after training."""
    settings, data, scored = config.evaluation, prepared.data, prepared.scored
    check_guide(settings.guide, scored)
    if not 2 <= clusters <= IGNORE_INDEX:
        raise ValueError(f"{clusters} clusters: expected 2 to {IGNORE_INDEX}; give --clusters")
    if settings.kmeans_points < clusters:
        raise ValueError(f"--kmeans-points {settings.kmeans_points}: fewer than {clusters} clusters")
    if config.select != "last" and (config.method == "kmeans" or not config.eval_every):
        raise ValueError(
            f"--select {config.select} chooses among measured states of training: give --eval-every, or "
            "--select last"
        )
    if config.select == "labels" and not scored.labelled:
        raise ValueError(f"{config.data} has no labels, so they cannot choose; give --select last")
    if settings.linear_steps and not (data.labelled and len(prepared.tokens) == len(data)):
        raise ValueError("a linear probe (--linear-steps) needs a labelled training split and --crops 1")
    if settings.criterion == "agreement" and settings.restarts * settings.repeats < 2:
        raise ValueError("--criterion agreement compares two runs of k-means or more; give --repeats")


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
    limit_threads()
    check_settings(config)
    if prepared is None:
        plan, prepared = prepare(config)
    else:  # the tokens are shared, what is done with them is this run's own
        plan, prepared = resolve_method(config, prepared[0].sensors), prepared[1]
        missing = set(plan.extracted) - set(prepared.tokens.modalities)
        missing |= {EXTRAS.get(config.method)} & set(plan.sensors) - set(prepared.extras)
        if missing:
            raise ValueError(
                f"the prepared tokens lack {', '.join(sorted(missing))}; prepare them for this configuration"
            )
    clusters = config.evaluation.clusters or len(prepared.data.description.classes)
    refuse(config, prepared, clusters)
    out, tokens = Path(config.out), prepared.tokens
    if config.method == "kmeans":  # clusters of the tokens themselves; nothing is trained
        if (out / "resume.safetensors").exists():
            raise ValueError(f"{out}: holds a run of another configuration; choose another --out")
        write_json(out / "config.json", asdict(config))
        start, cpu_start = time.perf_counter(), time.process_time()
        evaluation = evaluate_clustering(None, plan, prepared, clusters, config)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        progress = loop.Progress(seconds=seconds, cpu_seconds=cpu_seconds)
        network, shifts, step = None, {}, 0
    else:
        evaluation, progress, network, shifts, step = train_network(config, plan, prepared, clusters, stop)
    # The clustering, its label maps and its report.
    reads = {"sensors": plan.sensors, "read": plan.read}
    backbone = prepared.backbone
    clustering = replace(
        evaluation.clustering,
        network=network,
        chain=prepared.chain,
        settings=reads | {"backbone": backbone.key, "tokens": asdict(config.tokens)},
    )
    save_clustering(out / "clustering.safetensors", clustering)
    # Label maps of the first images, as many as are asked for; of all where there are no labels.
    scored = copy(prepared.scored)
    if scored.labelled and config.evaluation.maps >= 0:
        scored.rows = scored.rows[: config.evaluation.maps]
    if scored.rows:
        code_of, guide = lambda indices: evaluation.codes[indices], config.evaluation.guide
        write_label_maps(out / "maps", code_of, scored, clustering, guide=guide)
    selected_by = {
        "last": "nothing: the state after the last step",
        "criterion": "a label-free criterion on training images",
        "labels": f"LABELS of the split {config.evaluation.split!r}, which is also scored",
    }
    weights = Path(config.tokens.backbone_weights).name  # names, no paths
    return loop.write_report(
        replace(config, tokens=replace(config.tokens, backbone_weights=weights)),
        progress,
        backbone={"name": backbone.name, "key": backbone.key, "channels": tokens.channels},
        tokens={"entries": len(tokens), "grid": tokens.grid, "bytes": prepared.cached},
        plan=reads | {"targets": plan.targets},
        **{"chosen by": selected_by[config.select]},
        step=step,
        parameters=sum(p.numel() for p in network.parameters()) if network else 0,
        shifts=shifts,
        **evaluation.report,
    )


def train_network(config: ClusterConfig, plan: Plan, prepared: Prepared, clusters: int, stop) -> tuple:
    """Train, from the state in ``out`` if there is one.

    Returns the state that the settings select, measured; progress, the network in this state, the shifts b
    and the state's step.
    """
    # The model, its optimizer and its loss, or those of the run that is resumed.
    out, seed = Path(config.out), config.seed
    seed_everything(derived_seed(seed, "weights"))
    model = Model(config, plan, prepared.tokens.channels, clusters).to(prepared.tokens.device)
    groups = [{"params": [], "lr": config.lr}, {"params": [], "lr": PROBE_LR}]
    for name, parameter in model.named_parameters():
        groups[name in PROBES]["params"].append(parameter)
    optimizer = torch.optim.Adam(groups)
    progress = loop.resume(config, model, optimizer, prepared.inputs)
    best = loop.read_kept(out / "kept.safetensors", progress.step)
    if best:  # a state of an earlier version does not know it
        progress.best = max(progress.best, best[0])
    loss = measure_shifts(model, prepared)
    model.train()
    evaluation = None

    def take_step(step: int):
        torch.manual_seed(derived_seed(seed, "step", step))  # dropout
        total, parts = step_loss(model, prepared, loss, step)
        optimizer.zero_grad()
        total.backward()
        if not all(map(isfinite, parts.values())):
            raise ValueError(
                f"step {step}: the loss is not finite ({parts}); lower --lr, or look for constant or NaN "
                "images"
            )
        optimizer.step()
        return True, lambda: parts

    def measure(done: int):
        nonlocal evaluation
        evaluation = evaluate_clustering(model, plan, prepared, clusters, config, loss)
        model.train()
        score = evaluation.miou if config.select == "labels" else evaluation.criterion
        return {"val": evaluation.line}, score

    def keep_best(done: int, line: dict, better: bool):
        if better and config.select != "last":
            header = {"kept": {"value": progress.best, "step": done}}
            save_tensors(out / "kept.safetensors", model.state_dict(), header)
        if stop:
            stop(done, evaluation)

    loop.run_steps(
        config,
        model,
        optimizer,
        progress,
        config.steps,
        take_step=take_step,
        measure=measure,
        after_measure=keep_best,
    )
    # The state that the settings select, measured unless it is the one measured last.
    step, best = config.steps, loop.read_kept(out / "kept.safetensors", config.steps)
    if best and best[2] != step:
        model.load_state_dict(best[1])
        evaluation, step = None, best[2]
    if not evaluation:
        measure(step)
    return evaluation, progress, model.net, loss.shifts.numbers, step
