"""One trainer for UniM2 and everything it is compared with: same tokens, same schedule, same budget, no label
anywhere in it.

A run is: tokens from the cache -> training of a small network on frozen tokens (none for k-means) -> cosine
k-means on its codes -> label maps. Where the data have labels they name the clusters at the very end and
score them; they choose nothing, unless ``select = "labels"`` asks for the papers' habit, and then the report
says so.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..loop import append, read_kept, resume, save_state, trim_history
from ..modalities import IGNORE_INDEX
from ..runtime import (
    derived_seed,
    limit_threads,
    progress_bar,
    provenance,
    save_tensors,
    seed_everything,
    write_json,
)
from .baselines import Eagle, depth_guidance, distillation_loss, object_mix, second_view
from .clustering import ClusterProbe, save_clustering
from .correspondence import CorrespondenceConfig, cmcs_loss, take_points
from .diagnostics import collapse
from .inference import Evaluation, evaluate_clustering
from .methods import DISTILLATIONS, ClusterConfig, Plan, Prepared, prepare, resolve_method
from .networks import ClusterNet

LOG_EVERY = 20  # steps between lines of the history
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
        # Whether the network and the losses beside it work on each location alone, so that sampled tokens are
        # all they need.
        whole = plan.network.fusion == "cbam" or config.method in ("eagle", "depthg")
        self.pointwise = plan.loss.sampling == "tokens" and not whole
        self.extra = nn.ModuleDict()
        if config.method == "eagle":
            self.extra["eagle"] = Eagle(plan.network.dim, colour="paper" if "rgb" in plan.sensors else "none")
        if config.method in DISTILLATIONS:
            self.net.add_adapters(plan.sensors[1:])

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Tokens of all that is read -> code (B, D, h, w)."""
        return self.net({name: tokens[name] for name in self.plan.read})

    def supervised(self, code: Tensor) -> dict[str, Tensor]:
        """The code as each target supervises it (Eq. 7)."""
        return {
            name: self.net.harmonized(code, name) if name in self.net.modalities else code
            for name in self.plan.targets
        }

    def groups(self, lr: float) -> list[dict]:
        probes = [self.probe.clusters] + ([self.extra["eagle"].cue.centres] if "eagle" in self.extra else [])
        chosen = {id(p) for p in probes}
        return [
            {"params": [p for p in self.parameters() if id(p) not in chosen], "lr": lr},
            {"params": probes, "lr": 5e-3},
        ]


def drawn(
    model: Model, prepared: Prepared, index: np.ndarray, generator: torch.Generator, train: bool = True
):
    """One batch of points: (frozen, codes) of the images, the same of their neighbours or None, tokens, code
    of the images.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    near = prepared.neighbours.numpy() if len(prepared.neighbours) else None
    both = (
        index
        if near is None
        else np.concatenate([index, near[index, rng.integers(near.shape[1], size=len(index))]])
    )
    tokens = prepared.tokens.batch(both, model.plan.names)
    count = model.plan.loss.points
    if count and model.pointwise:  # what is not sampled is not computed either
        chosen = torch.rand(len(both), prod(prepared.tokens.grid), generator=generator).argsort(1)[
            :, None, :count
        ]
        tokens = {
            n: t.flatten(2).gather(2, chosen.to(t.device).expand(-1, t.shape[1], -1))[..., None]
            for n, t in tokens.items()
        }
        count = 0
    code = model(tokens) if train else tokens[model.plan.names[0]]
    supervised = model.supervised(code) if train else {name: code for name in model.plan.targets}
    frozen = {name: tokens[name] for name in model.plan.targets}
    halves = [slice(0, len(index)), slice(len(index), None)][: 1 + (near is not None)]
    points = [
        take_points(
            {n: f[h] for n, f in frozen.items()}, {n: c[h] for n, c in supervised.items()}, count, generator
        )
        for h in halves
    ]
    own = {name: value[: len(index)] for name, value in tokens.items()}
    return points[0], points[1] if len(points) > 1 else None, own, code[: len(index)]


def calibrated(model: Model, prepared: Prepared, batch: int, seed: int) -> CorrespondenceConfig:
    """The loss with its shifts b measured on eight batches, where they are quantiles."""
    loss = model.plan.loss
    if loss.shifts.rule != "quantile":
        return loss

    def batches():
        for step in range(8):
            generator = torch.Generator().manual_seed(derived_seed(seed, "shifts", step))
            first, second, _, _ = drawn(
                model, prepared, entries(step, len(prepared.tokens), batch, seed), generator, train=False
            )
            yield first[0], (second or first)[0]

    generator = torch.Generator().manual_seed(derived_seed(seed, "shifts"))
    with torch.no_grad():
        return replace(loss, shifts=loss.shifts.measure(batches(), generator, centre=loss.centre))


def step_loss(
    model: Model, prepared: Prepared, loss: CorrespondenceConfig, index: np.ndarray, seed: int, step: int
):
    """Loss of one step and its parts by name."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "points", step))
    first, second, tokens, code = drawn(model, prepared, index, generator)
    total, terms = cmcs_loss(*first, second, loss, generator)
    parts = {f"{name}/{pair}": float(value) for name, pairs in terms.items() for pair, value in pairs.items()}
    where = torch.Generator().manual_seed(derived_seed(seed, "extra", step))
    if "eagle" in model.extra:
        views = [{n: tokens[n] for n in model.plan.read}]
        views.append(second_view(views[0], generator=where))
        codes, name = [code, model(views[1])], model.plan.read[0]
        rgb = prepared.extras["rgb"][torch.from_numpy(index)] if "rgb" in prepared.extras else None
        objects, lookup = model.extra["eagle"](codes, [view[name] for view in views], rgb)
        corresponding, contrasting = object_mix(step, min(200, model.config.steps // 10))
        total, parts["objects"] = (
            corresponding * total + contrasting * objects + lookup,
            float(objects.detach()),
        )
    if "depth" in prepared.extras:
        guidance = depth_guidance(
            prepared.extras["depth"][torch.from_numpy(index)], code, DEPTH_SHIFT, generator=where
        )
        total, parts["depth"] = total + DEPTH_WEIGHT * guidance, float(guidance.detach())
    if model.config.method in DISTILLATIONS:
        reference, *auxiliaries = model.plan.sensors
        students = [model.net.adapters[name](tokens[name]) for name in auxiliaries]
        pulled = distillation_loss(tokens[reference], students, model.config.method, generator=where)
        total, parts["distillation"] = total + pulled, float(pulled.detach())
    parts["loss"] = float(total.detach())
    if (step + 1) % LOG_EVERY == 0:  # of this batch, with the online centroids: what the loss never shows
        parts |= collapse(code.detach().movedim(1, -1).flatten(0, -2), model.probe.centroids)
    return total + model.probe.loss(code), parts


def refuse(config: ClusterConfig, prepared: Prepared, clusters: int) -> None:
    """Raise ValueError for what would otherwise fail, or mean nothing, only after training."""
    settings, data, scored = config.evaluation, prepared.data, prepared.scored
    if not 2 <= clusters <= IGNORE_INDEX:
        raise ValueError(
            f"{clusters} clusters: expected 2 to {IGNORE_INDEX}; give --clusters (the data set names "
            f"{len(data.description.classes)})"
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
    if min(settings.restarts, settings.repeats) < 1 or (
        settings.criterion == "agreement" and settings.restarts * settings.repeats < 2
    ):
        raise ValueError(
            f"{settings.restarts} restarts, {settings.repeats} repeats: expected 1 or more; agreement "
            "compares two runs or more"
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
    out = Path(config.out)
    if not config.lr > 0:
        raise ValueError(f"--lr {config.lr}: expected a learning rate above 0")
    if config.steps < 1 or config.batch_size < 2 or config.save_every < 1:
        raise ValueError(
            f"{config.steps} steps of {config.batch_size} images, saved every {config.save_every}: need 1 "
            "or more, 2 or more "
            "for random pairs, and 1 or more"
        )
    if prepared is None:
        found, prepared = prepare(config)
    else:  # the tokens are shared, what is done with them is this run's own
        found, prepared = resolve_method(config, list(prepared[0].sensors)), prepared[1]
        if missing := set(found.extracted) - set(prepared.tokens.modalities):
            raise ValueError(
                f"the prepared tokens lack {', '.join(sorted(missing))}; prepare them for this configuration"
            )
    tokens, device = prepared.tokens, torch.device(prepared.tokens.device)
    clusters = config.evaluation.clusters or len(prepared.data.description.classes)
    refuse(config, prepared, clusters)
    begun, begun_cpu = time.perf_counter(), time.process_time()
    if config.method == "kmeans":
        if (out / "resume.safetensors").exists():
            raise ValueError(f"{out}: holds a run of another configuration; choose another --out")
        write_json(out / "config.json", asdict(config))
        return _report(
            config,
            found,
            prepared,
            None,
            evaluate_clustering(None, found, prepared, clusters, config),
            0,
            begun,
            begun_cpu,
        )
    batch = min(config.batch_size, len(tokens))
    if batch < 2:
        raise ValueError(f"{config.data}: one training image; random pairs need two or more")
    seed_everything(derived_seed(config.seed, "weights"))
    model = Model(config, found, tokens.channels, clusters).to(device)
    optimizer = torch.optim.Adam(model.groups(config.lr))
    progress = resume(config, model, optimizer, len(tokens))
    write_json(out / "config.json", asdict(config))
    trim_history(out / "history.jsonl", progress.step)
    loss = calibrated(model, prepared, batch, config.seed)
    begun, begun_cpu = begun - progress.seconds, begun_cpu - progress.cpu_seconds
    kept = read_kept(out / "kept.safetensors", progress.step)
    every = config.eval_every or config.steps
    last: Evaluation | None = None
    model.train()
    with progress_bar(
        total=config.steps,
        initial=progress.step,
        desc=f"cluster {out.name}",
        progress=config.progress,
        leave=False,
    ) as bar:
        for step in range(progress.step, config.steps):
            torch.manual_seed(derived_seed(config.seed, "step", step))  # dropout
            value, parts = step_loss(
                model, prepared, loss, entries(step, len(tokens), batch, config.seed), config.seed, step
            )
            optimizer.zero_grad()
            value.backward()
            if not all(np.isfinite(v) for v in parts.values()):
                raise ValueError(
                    f"step {step}: the loss is not finite ({parts}); lower --lr, or look for constant or "
                    "NaN images"
                )
            optimizer.step()
            done = progress.step = step + 1
            progress.seconds, progress.cpu_seconds = (
                time.perf_counter() - begun,
                time.process_time() - begun_cpu,
            )
            bar.update()
            bar.set_postfix(loss=f"{parts['loss']:.3f}", refresh=False)
            if done % LOG_EVERY == 0 or done == config.steps:
                append(out / "history.jsonl", {"step": done, **parts, "seconds": round(progress.seconds, 2)})
            if done % every == 0 or done == config.steps:
                last = evaluate_clustering(model, found, prepared, clusters, config, loss)
                append(out / "history.jsonl", {"step": done, "val": last.brief()})
                better = last.miou if config.select == "labels" else last.criterion
                if config.select != "last" and (kept is None or better > kept[0] or np.isnan(kept[0])):
                    kept = better, {name: weight.clone() for name, weight in model.state_dict().items()}, done
                    save_tensors(out / "kept.safetensors", kept[1], {"kept": {"value": better, "step": done}})
                model.train()
                if stop:
                    stop(done, last)
            if done % config.save_every == 0 or done == config.steps:
                save_state(out / "resume.safetensors", model, optimizer, config, 1, progress)
    if kept and kept[2] != config.steps:
        model.load_state_dict(kept[1])
        last = None
    last = last or evaluate_clustering(model, found, prepared, clusters, config, loss)
    return _report(
        config, found, prepared, model, last, kept[2] if kept else config.steps, begun, begun_cpu, loss
    )


def _report(config, found, prepared, model, last: Evaluation, step, begun, begun_cpu, loss=None) -> dict:
    out = Path(config.out)
    chosen = {
        "last": "nothing: the state after the last step",
        "criterion": "a label-free criterion on training images",
        "labels": f"LABELS of the split {config.evaluation.split!r}, which is also scored",
    }[config.select]
    public = {k: v for k, v in asdict(config).items() if k not in ("out", "data", "progress", "device")}
    public["tokens"]["backbone_weights"] = Path(config.tokens.backbone_weights).name
    report = {
        "provenance": provenance(seed=config.seed),
        "config": public | {"data": Path(config.data).name},  # names, no paths
        "backbone": {
            "name": prepared.backbone.name,
            "key": prepared.backbone.key,
            "channels": prepared.tokens.channels,
        },
        "tokens": {
            "entries": len(prepared.tokens),
            "grid": list(prepared.tokens.grid),
            "bytes": prepared.cached,
        },
        "plan": {"sensors": list(found.sensors), "read": list(found.read), "targets": list(found.targets)},
        "chosen by": chosen,
        "step": step,
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - begun_cpu, 1),
        "parameters": sum(p.numel() for p in model.net.parameters()) if model else 0,
        "shifts": loss.shifts.numbers if loss else {},
        **last.to_dict(),
    }
    clusters = replace(
        last.clustering(prepared.scored),
        network=model.net if model else None,
        statistics=prepared.statistics,
        settings={
            "sensors": list(found.sensors),
            "read": list(found.read),
            "backbone": prepared.backbone.key,
            "tokens": asdict(config.tokens),
        },
    )
    save_clustering(out / "clustering.safetensors", clusters)
    last.write_maps(out / "maps", prepared.scored, clusters)
    write_json(out / "report.json", report)
    return report
