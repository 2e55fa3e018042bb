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
from .baselines import Eagle, depth_guidance, distillation_loss, object_mix, second_view
from .clustering import ClusterProbe, save_clustering, write_label_maps
from .correspondence import CorrespondenceConfig, cmcs_loss, take_points
from .diagnostics import collapse
from .inference import Evaluation, evaluate_clustering
from .methods import DISTILLATIONS, EXTRAS, ClusterConfig, Plan, Prepared, prepare, resolve_method
from .networks import ClusterNet

# Parameters that learn clusters of what the network makes, and their learning rate.
PROBES, PROBE_LR = ("probe.clusters", "extra.eagle.cue.centres"), 5e-3
# The depth term of depth guidance: its b, on the scale of ``depth_features``' cosines, and its weight.
DEPTH_SHIFT, DEPTH_WEIGHT = 0.1, 0.5


def entries(step: int, count: int, batch: int, seed: int) -> np.ndarray:
    """The training entries of a step: consecutive parts of a new permutation each epoch, a function of (seed,
    step) alone.
    """
    per_epoch = count // batch
    order = np.random.default_rng(derived_seed(seed, "order", step // per_epoch)).permutation(count)
    return order[step % per_epoch * batch :][:batch]


class Model(nn.Module):
    """All that a run trains: the network, the online cluster probe, and what a baseline adds."""

    def __init__(self, config: ClusterConfig, plan: Plan, channels: int, clusters: int):
        super().__init__()
        self.config, self.plan = config, plan
        self.net = ClusterNet(channels, plan.read, plan.network)
        self.probe = ClusterProbe(plan.network.dim, clusters)
        self.extra = nn.ModuleDict()
        if config.method == "eagle":
            self.extra["eagle"] = Eagle(plan.network.dim, colour="paper" if "rgb" in plan.sensors else "none")
        if config.method in DISTILLATIONS:
            self.net.add_adapters(plan.sensors[1:])
        # Whether the network and the losses beside it work on each location alone, so that sampled tokens are
        # all they need.
        whole = plan.network.fusion == "cbam" or config.method in EXTRAS
        self.pointwise = plan.loss.sampling == "tokens" and not whole

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens of all that is read -> code (B, D, h, w)."""
        return self.net({name: tokens[name] for name in self.plan.read})

    def supervised(self, code: Tensor) -> dict[str, Tensor]:
        """The code as each target supervises it: s, or s^X = CMH(s) (Eq. 7)."""
        return {
            name: self.net.harmonized(code, name) if name in self.net.modalities else code
            for name in self.plan.targets
        }

    def parameter_groups(self, lr: float) -> list[dict]:
        """The probe and EAGLE's lookup have a learning rate of their own."""
        groups = [{"params": [], "lr": lr}, {"params": [], "lr": PROBE_LR}]
        for name, parameter in self.named_parameters():
            groups[name in PROBES]["params"].append(parameter)
        return groups


def draw_tokens(
    model: Model, prepared: Prepared, index: np.ndarray, generator: torch.Generator
) -> tuple[dict[str, Tensor], int]:
    """Tokens of the images of a step, followed by those of one neighbour of each where the loss has KNN
    pairs; and the number of points still to be sampled from them (0 = they are the points).
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    if len(prepared.neighbours):
        near = prepared.neighbours.numpy()
        index = np.concatenate([index, near[index, rng.integers(near.shape[1], size=len(index))]])
    tokens = prepared.tokens.batch(index, model.plan.names)
    points = model.plan.loss.points
    if not (points and model.pointwise):
        return tokens, points
    # Some locations of each image, drawn without repetition: what is not sampled is not computed either.
    order = torch.rand(len(index), prod(prepared.tokens.grid), generator=generator).argsort(1)
    for name, x in tokens.items():
        place = order[:, None, :points].to(x.device).expand(-1, x.shape[1], -1)
        tokens[name] = x.flatten(2).gather(2, place)[..., None]
    return tokens, 0


def take_groups(
    batch: int, frozen: dict[str, Tensor], codes: dict[str, Tensor], points: int, generator: torch.Generator
) -> list:
    """``take_points`` of the images, and of their neighbours where ``draw_tokens`` has added them."""
    groups = []
    for start in range(0, len(next(iter(frozen.values()))), batch):
        part = [{name: x[start : start + batch] for name, x in maps.items()} for maps in (frozen, codes)]
        groups.append(take_points(*part, points, generator))
    return groups


def measure_shifts(model: Model, prepared: Prepared, batch: int, seed: int) -> CorrespondenceConfig:
    """The loss with its shifts b measured on eight batches, where they are quantiles."""
    loss = model.plan.loss
    if loss.shifts.rule != "quantile":
        return loss

    def batches():
        for step in range(8):
            generator = torch.Generator().manual_seed(derived_seed(seed, "shifts", step))
            index = entries(step, len(prepared.tokens), batch, seed)
            tokens, points = draw_tokens(model, prepared, index, generator)
            frozen = {name: tokens[name] for name in model.plan.targets}
            groups = take_groups(batch, frozen, {}, points, generator)
            yield groups[0][0], groups[-1][0]

    generator = torch.Generator().manual_seed(derived_seed(seed, "shifts"))
    return replace(loss, shifts=loss.shifts.measure(batches(), generator, centre=loss.centre))


def step_loss(
    model: Model, prepared: Prepared, loss: CorrespondenceConfig, index: np.ndarray, seed: int, step: int
) -> tuple[Tensor, dict[str, float]]:
    """Loss of one step and its parts by name."""
    # The correspondence loss of all methods: CMCS for UniM2, with one target that of STEGO.
    generator = torch.Generator().manual_seed(derived_seed(seed, "points", step))
    tokens, points = draw_tokens(model, prepared, index, generator)
    code = model(tokens)
    frozen = {name: tokens[name] for name in model.plan.targets}
    groups = take_groups(len(index), frozen, model.supervised(code), points, generator)
    neighbours = groups[1] if len(groups) > 1 else None
    total, terms = cmcs_loss(*groups[0], neighbours, loss, generator)
    parts = {f"{name}/{pair}": float(value) for name, pairs in terms.items() for pair, value in pairs.items()}
    # What a baseline adds, on the images alone.
    method, read = model.config.method, model.plan.read
    tokens, code = {name: x[: len(index)] for name, x in tokens.items()}, code[: len(index)]
    extras = {name: x[torch.from_numpy(index)] for name, x in prepared.extras.items()}
    generator = torch.Generator().manual_seed(derived_seed(seed, "extra", step))
    if method == "eagle":
        view = second_view({name: tokens[name] for name in read}, generator=generator)
        views = [tokens[read[0]], view[read[0]]]
        objects, lookup = model.extra["eagle"]([code, model(view)], views, extras.get("rgb"))
        corresponding, contrasting = object_mix(step, min(200, model.config.steps // 10))
        total = corresponding * total + contrasting * objects + lookup
        parts["objects"] = float(objects.detach())
    if method == "depthg":
        guidance = depth_guidance(extras["depth"], code, DEPTH_SHIFT, generator=generator)
        total, parts["depth"] = total + DEPTH_WEIGHT * guidance, float(guidance.detach())
    if method in DISTILLATIONS:
        adapted = model.net.adapted({name: tokens[name] for name in read})
        students = [adapted[name] for name in model.net.adapters]
        distilled = distillation_loss(tokens[model.plan.sensors[0]], students, method, generator=generator)
        total, parts["distillation"] = total + distilled, float(distilled.detach())
    parts["loss"] = float(total.detach())
    if (step + 1) % loop.LOG_EVERY == 0:  # of this batch, with the online centroids: the loss never shows it
        parts |= collapse(code.detach().movedim(1, -1).flatten(0, -2), model.probe.centroids)
    return total + model.probe.loss(code), parts


def refuse(config: ClusterConfig, prepared: Prepared, clusters: int) -> None:
    """Raise ValueError for what would otherwise fail, or mean nothing, only after training."""
    settings, data, scored = config.evaluation, prepared.data, prepared.scored
    if not 2 <= clusters <= IGNORE_INDEX:
        raise ValueError(
            f"{clusters} clusters: expected 2 to {IGNORE_INDEX}; give --clusters "
            f"(the data set names {len(data.description.classes)})"
        )
    if settings.kmeans_points < clusters:
        raise ValueError(
            f"--kmeans-points {settings.kmeans_points}: fewer than {clusters} clusters; give more"
        )
    if config.select != "last" and (config.method == "kmeans" or not config.eval_every):
        raise ValueError(
            f"--select {config.select} chooses among measured states of training: give --eval-every, or "
            "--select last"
        )
    if config.select == "labels" and not scored.labelled:
        raise ValueError(
            f"{config.data} has no labels, so they cannot choose; give --select last or criterion"
        )
    if settings.guide and settings.guide not in scored.modalities:
        raise ValueError(f"--guide {settings.guide}: expected one of {', '.join(scored.modalities)}")
    if settings.linear_steps and not (data.labelled and len(prepared.tokens) == len(data)):
        raise ValueError("a linear probe (--linear-steps) needs a labelled training split and --crops 1")
    if settings.criterion == "agreement" and settings.restarts * settings.repeats < 2:
        raise ValueError(
            f"--restarts {settings.restarts}, --repeats {settings.repeats}: agreement compares two runs or "
            "more"
        )


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
        plan, prepared = resolve_method(config, list(prepared[0].sensors)), prepared[1]
        missing = set(plan.extracted) - set(prepared.tokens.modalities)
        missing |= {EXTRAS.get(config.method)} & set(plan.sensors) - set(prepared.extras)
        if missing:
            raise ValueError(
                f"the prepared tokens lack {', '.join(sorted(missing))}; prepare them for this configuration"
            )
    clusters = config.evaluation.clusters or len(prepared.data.description.classes)
    refuse(config, prepared, clusters)
    if config.method == "kmeans":
        return cluster_tokens(config, plan, prepared, clusters)
    # The model, its optimizer and its loss, or those of the run that is resumed.
    out, samples = Path(config.out), len(prepared.tokens)
    batch = min(config.batch_size, samples)
    if batch < 2:
        raise ValueError(f"{config.data}: one training image; random pairs need two or more")
    seed_everything(derived_seed(config.seed, "weights"))
    model = Model(config, plan, prepared.tokens.channels, clusters).to(prepared.tokens.device)
    optimizer = torch.optim.Adam(model.parameter_groups(config.lr))
    progress = loop.resume(config, model, optimizer, samples, prepared.inputs)
    best = loop.read_kept(out / "kept.safetensors", progress.step)
    if best:  # a state of an earlier version does not know it
        progress.best = max(progress.best, best[0])
    loss = measure_shifts(model, prepared, batch, config.seed)
    model.train()
    evaluation: Evaluation | None = None

    def take_step(step: int):
        torch.manual_seed(derived_seed(config.seed, "step", step))  # dropout
        index = entries(step, samples, batch, config.seed)
        total, parts = step_loss(model, prepared, loss, index, config.seed, step)
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
        eval_every=config.eval_every,
        save_every=config.save_every,
    )
    # The state that the settings select, measured unless it is the one measured last.
    step = config.steps
    if (
        config.select != "last"
        and (best := loop.read_kept(out / "kept.safetensors", step))
        and best[2] != step
    ):
        model.load_state_dict(best[1])
        evaluation, step = None, best[2]
    evaluation = evaluation or evaluate_clustering(model, plan, prepared, clusters, config, loss)
    return write_results(config, plan, prepared, evaluation, progress, model, loss, step)


def cluster_tokens(config: ClusterConfig, plan: Plan, prepared: Prepared, clusters: int) -> dict:
    """The method "kmeans": clusters of the tokens themselves; nothing is trained."""
    out = Path(config.out)
    if (out / "resume.safetensors").exists():
        raise ValueError(f"{out}: holds a run of another configuration; choose another --out")
    write_json(out / "config.json", asdict(config))
    start, cpu_start = time.perf_counter(), time.process_time()
    evaluation = evaluate_clustering(None, plan, prepared, clusters, config)
    progress = loop.Progress(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - cpu_start)
    return write_results(config, plan, prepared, evaluation, progress)


def write_results(
    config: ClusterConfig,
    plan: Plan,
    prepared: Prepared,
    evaluation: Evaluation,
    progress: loop.Progress,
    model: Model | None = None,
    loss: CorrespondenceConfig | None = None,
    step: int = 0,
) -> dict:
    """The clustering, its label maps and its report; returns the report."""
    out, tokens = Path(config.out), prepared.tokens
    clusters = replace(
        evaluation.clustering,
        network=model.net if model else None,
        chain=prepared.chain,
        settings={
            "sensors": list(plan.sensors),
            "read": list(plan.read),
            "backbone": prepared.backbone.key,
            "tokens": asdict(config.tokens),
        },
    )
    save_clustering(out / "clustering.safetensors", clusters)
    # Label maps of the first images, as many as are asked for; of all where there are no labels.
    scored = copy(prepared.scored)
    if scored.labelled and config.evaluation.maps >= 0:
        scored.rows = scored.rows[: config.evaluation.maps]
    if scored.rows:
        code_of, guide = lambda indices: evaluation.codes[indices], config.evaluation.guide
        write_label_maps(out / "maps", code_of, scored, clusters, guide=guide)
    selected_by = {
        "last": "nothing: the state after the last step",
        "criterion": "a label-free criterion on training images",
        "labels": f"LABELS of the split {config.evaluation.split!r}, which is also scored",
    }
    weights = Path(config.tokens.backbone_weights).name  # names, no paths
    return loop.write_report(
        replace(config, tokens=replace(config.tokens, backbone_weights=weights)),
        progress,
        backbone={"name": prepared.backbone.name, "key": prepared.backbone.key, "channels": tokens.channels},
        tokens={"entries": len(tokens), "grid": list(tokens.grid), "bytes": prepared.cached},
        plan={"sensors": list(plan.sensors), "read": list(plan.read), "targets": list(plan.targets)},
        **{"chosen by": selected_by[config.select]},
        step=step,
        parameters=sum(p.numel() for p in model.net.parameters()) if model else 0,
        shifts=loss.shifts.numbers if loss else {},
        **evaluation.report,
    )
