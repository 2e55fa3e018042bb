"""The methods that are compared: the settings of a run, what each method reads and must match, and the tokens
that all runs share. ``train``, ``search`` and ``segment`` call it.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..config import Above, AtLeast, flag
from ..data.missing import complete
from ..data.prepared import PreparedDataset
from ..runtime import choose_device
from .backbone import Backbone, load_backbone
from .baselines import DIVERGENCES, depth_on_grid
from .correspondence import CorrespondenceConfig, Shifts
from .extraction import TokenConfig, extract_tokens
from .inference import EvaluationConfig
from .networks import ClusterNetConfig
from .pictures import as_picture, five_crop, resize_picture
from .tokens import TokenChain, Tokens, image_means, nearest_neighbours, summands

COMBINABLE = ("kmeans", "stego", "eagle")  # methods of one sensor, for which several are joined
EXTRAS = {"eagle": "rgb", "depthg": "depth"}  # whose pictures a method looks at beside tokens
# EAGLE's released loss: a shift from each batch, bounded similarities, a second view for a KNN partner.
EAGLE_LOSS = CorrespondenceConfig(shifts=Shifts("adaptive"), weights=(0.0, 0.25, 0.63), stabilize=True)


@dataclass(frozen=True)
class ClusterConfig:
    """Segment without labels: cluster the frozen features of one or several sensors, by UniM2 or a method it
    is compared with.
    """

    data: str
    """Folder of a prepared data set, labelled or not, or 'street' or 'room' for the sensor world, rendered on
    first use.
    """
    out: str
    """Folder for network, clusters, history, report and maps. If it holds an unfinished run of the same
    settings, that run goes on.
    """
    method: Literal["unim2", "kmeans", "stego", "eagle", "depthg", "coral", "mmd", "cosine"] = "unim2"
    """unim2: CMCS and CMH; kmeans: clusters of the tokens; stego, and eagle in the manner of EAGLE: one
    sensor, or several by --combine and --fusion; depthg: RGB, guided by depth; coral, mmd, cosine:
    distillation of RGB into the others.
    """
    modalities: tuple[str, ...] = ()
    """Sensors by name; none given = all that the data set has. The reference is rgb, or the first where there
    is none.
    """
    combine: Literal["network", "image", "feature"] = "network"
    """How kmeans, stego and eagle join several sensors: by --fusion (kmeans: concatenation), by averaging
    pictures, by adding tokens.
    """
    tokens: TokenConfig = field(default_factory=TokenConfig)
    network: ClusterNetConfig = field(default_factory=ClusterNetConfig)
    loss: CorrespondenceConfig = field(default_factory=CorrespondenceConfig)
    lambda_x: Annotated[float, AtLeast(0)] = 1.0
    """λ of every auxiliary sensor (Eq. 5); --lambdas sets single ones; 0 = they are read but do not
    supervise.
    """
    steps: Annotated[int, AtLeast(1)] = 300
    """Optimizer steps."""
    batch_size: Annotated[int, AtLeast(2, why="each image is also compared with another one")] = 16
    """Images per step; each brings one neighbour (the papers: 32)."""
    lr: Annotated[float, Above(0)] = 1e-3
    """Learning rate of Adam, constant (the papers: 5e-4); the online probe has 5e-3."""
    knn: Literal["reference", "all"] = "reference"
    """Whose mean tokens say which images are neighbours: the reference's (released code) or all sensors'."""
    neighbours: Annotated[int, AtLeast(1)] = 7
    """Nearest images from which a step draws each image's partner."""
    same_image: bool = False
    """Whether crops of one image may be neighbours of each other, as in the released code."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    select: Literal["last", "criterion", "labels"] = "last"
    """Which state is kept: after the last step; with the best label-free criterion; or with the best mIoU on
    the scored split, which is the papers' habit and makes that score too good.
    """
    eval_every: Annotated[int, AtLeast(0)] = 0
    """Steps between measurements of diagnostics and criteria; 0 = only at the end."""
    save_every: Annotated[int, AtLeast(1)] = 100
    """Steps between saved states to resume from."""
    seed: int = 0
    """Seed of everything random in training; k-means has its own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    progress: bool = True
    """Show progress bars."""


@dataclass(frozen=True)
class Plan:
    """What a configuration means for given sensors: names of the tokens that the network reads, of those
    whose correspondences its codes must match, and its settings.
    """

    sensors: tuple[str, ...]
    read: tuple[str, ...]
    targets: tuple[str, ...]
    network: ClusterNetConfig
    loss: CorrespondenceConfig

    @property
    def extracted(self) -> list[str]:
        """Inputs that the backbone must see."""
        return summands(self.read + self.targets)


def resolve_method(config: ClusterConfig, sensors: list[str]) -> Plan:
    """What ``config`` means for these sensors, the reference first.

    Raises:
        ValueError: settings that do not go together; says which.
    """
    method, network, loss = config.method, config.network, config.loss
    combinable, several = method in COMBINABLE, len(sensors) > 1
    # Settings that this method, or this number of sensors, has no use for are refused.
    if not combinable and not several:
        raise ValueError(
            f"--method {method} needs two sensors or more, got {', '.join(sensors)}; "
            "name them with --modalities rgb thermal"
        )
    if method == "depthg" and "depth" not in sensors:
        raise ValueError(f"--method depthg needs 'depth' among its sensors, got {', '.join(sensors)}")
    if config.combine != "network" and not (combinable and several):
        raise ValueError(
            f"--combine {config.combine} is for kmeans, stego and eagle on several sensors, "
            f"not {method} on {len(sensors)}"
        )
    if method == "unim2":
        loss = replace(loss, lambdas=dict.fromkeys(sensors[1:], config.lambda_x) | loss.lambdas)
    else:
        usual, own = ClusterNetConfig(), ["anchor", "shared_cmh", "msn"] + ["fusion"] * (method == "kmeans")
        changed = [flag(name) for name in own if getattr(network, name) != getattr(usual, name)]
        if changed or config.lambda_x != 1.0 or loss.lambdas:
            raise ValueError(
                f"{', '.join(changed) or 'λ'}: {method} has no such part; leave it out, or choose unim2"
            )
        network = replace(network, msn=method in DIVERGENCES, anchor="both")
        if method == "eagle" and loss == CorrespondenceConfig():
            loss = EAGLE_LOSS
    # Tables 1 and 2 of the paper: what the network of a method reads, and what its codes must match. Methods
    # of one sensor join several by --combine. The papers do not say what the fused code of a baseline must
    # match: here the sum of all tokens.
    each, reference = tuple(sensors), tuple(sensors[:1])
    sum_of_tokens, mean_picture = ("&".join(sensors),), ("+".join(sensors),)
    read, targets = {
        "unim2": (each, each),
        "network": (each, sum_of_tokens),
        "image": (mean_picture, mean_picture),
        "feature": (sum_of_tokens, sum_of_tokens),
        "depthg": (reference, reference),
    }.get(config.combine if combinable else method, (each, reference))  # else a distillation
    return Plan(each, read, targets, network, loss)


@dataclass
class Prepared:
    """What all runs on one data set share: tokens of both splits, and neighbours."""

    data: PreparedDataset
    scored: PreparedDataset
    backbone: Backbone
    tokens: Tokens
    scored_tokens: Tokens
    neighbours: Tensor
    chain: TokenChain
    inputs: dict[str, str]  # digests of both splits and of the backbone


def prepare(config: ClusterConfig) -> tuple[Plan, Prepared]:
    """Open the data, extract or read tokens, find neighbours. No label is read. Samples that lack one of the
    sensors take no part, neither in training nor in scores.
    """
    settings, device = config.tokens, choose_device(config.device)
    data = complete(PreparedDataset(config.data, "train", config.modalities or None))
    sensors = sorted(data.modalities, key=lambda name: name != "rgb")  # the reference comes first
    plan = resolve_method(config, sensors)
    paired = set().union(*map(plan.loss.pairs, plan.targets))
    scored = complete(PreparedDataset(config.data, config.evaluation.split, sensors, cache=True))
    # Tokens of both splits, through one chain with the statistics of the training split.
    backbone = load_backbone(settings.backbone, settings.backbone_weights, device)
    extract = partial(
        extract_tokens,
        backbone=backbone,
        names=plan.extracted,
        settings=settings,
        progress=config.progress,
    )
    tokens, scored_tokens = extract(data), extract(scored, train=False)
    chain = settings.chain(tokens)
    tokens, scored_tokens = replace(tokens, chain=chain), replace(scored_tokens, chain=chain)
    # Neighbours by mean tokens, where the loss has KNN pairs.
    neighbours = torch.empty(0)
    if "knn" in paired and config.method not in ("kmeans", "eagle"):
        compared = plan.extracted if config.knn == "all" else plan.extracted[:1]
        groups = torch.arange(len(tokens)) // (1 if config.same_image else tokens.crops)
        neighbours = nearest_neighbours(image_means(tokens, compared), config.neighbours, groups).cpu()
    inputs = data.digest() | scored.digest() | {"weights of the backbone": backbone.key}
    in_memory = tokens.in_memory(), scored_tokens.in_memory()
    return plan, Prepared(data, scored, backbone, *in_memory, neighbours, chain, inputs)


@lru_cache(maxsize=2)
def on_grid(data: PreparedDataset, name: str, crops: int, grid: tuple[int, int]) -> Tensor:
    """(n, C, h, w): RGB as a picture, depth in metres, averaged over each token's patch, for every training
    entry. Kept for the next step, and for other runs on the same data.
    """
    entries = []
    for index in range(len(data)):
        image, is_depth = data.physical(index)[0][name], name == "depth"
        image = image if is_depth else as_picture(data.modalities[name], image)
        pictures = five_crop(image) if crops == 5 else image[None]
        entries.append((depth_on_grid if is_depth else resize_picture)(pictures, grid))
    return torch.cat(entries)
