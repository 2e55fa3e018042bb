"""The world as a data set: which frames each split has, and rendering them into the prepared layout once.

The command ``render`` and every command that is given ``--data street`` or ``room`` call it; notebooks call
``world.ensure``.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..config import AtLeast, Between
from ..data.prepared import Description, Writer, is_finished
from ..modalities import SENSORS
from ..outputs import claims
from ..runtime import data_dir, exclusive, progress_bar
from .props import CLASSES, PALETTES
from .render import ALL, SCENE_CONDITIONS, Size, render_row
from .sensors import CASE_SENSOR, FAILURES

# Seeds of the splits lie in ranges that cannot meet, so no split ever shows another's scene.
SEEDS = {"train": range(700_000), "val": range(700_000, 900_000), "test": range(900_000, 1_100_000)}
# Version of what the renderer draws. Raise it whenever an image or a label changes, so that a cache never
# serves an older world; tests/test_world.py compares frames with those of this version.
RENDERER = 1


def samples(scene: str, split: str, count: int, modalities=ALL) -> list[dict]:
    """The frames of a split, in order: dicts with id, split, seed, condition, case.

    Conditions take turns. Every fifth frame carries a failure of one of the sensors asked for, and these take
    turns too.
    """
    conditions = SCENE_CONDITIONS[scene]
    cases = [case for case in FAILURES if CASE_SENSOR[case] in modalities]
    rows = []
    for k in range(count):
        seed, condition = SEEDS[split][k], conditions[k % len(conditions)]
        case = cases[k // 5 % len(cases)] if k % 5 == 4 and cases else ""
        name = "_".join(filter(None, (scene, f"{seed:06d}", condition, case)))
        rows.append({"id": name, "split": split, "seed": seed, "condition": condition, "case": case})
    return rows


@dataclass(frozen=True)
class RenderConfig:
    """Render the sensor world as a prepared data set: street or room scenes, eight registered sensors,
    labels.
    """

    scene: tyro.conf.Positional[Literal[tuple(SCENE_CONDITIONS)]] = "street"
    """Which scenes."""
    train: Annotated[int, Between(0, len(SEEDS["train"]))] = 400
    """Number of training frames."""
    val: Annotated[int, Between(0, len(SEEDS["val"]))] = 64
    """Number of validation frames (for choosing)."""
    test: Annotated[int, Between(0, len(SEEDS["test"]))] = 128
    """Number of test frames (for reporting once). No split shares a scene with another."""
    size: Size = (96, 128)
    """Height and width in pixels."""
    modalities: tuple[Literal[ALL], ...] = ("rgb", "depth", "event", "lidar")
    """Sensors to render, by name."""
    progress: bool = True
    """Show a progress bar."""
    workers: Annotated[int, AtLeast(1)] = 1
    """Processes that render."""
    out: str = ""
    """Folder to write; empty = the cache ($MMLIB_DATA, else ~/.cache/mmlib), where 'train --data street'
    finds it.
    """


def render_dataset(root: str | Path, *settings, **named) -> Path:
    """Render a data set in the prepared layout (see ``mmlib.data.prepared``) into ``root``. Killed and called
    again, it goes on where it stopped.

    Args:
        root: folder to write; must not hold a finished data set.
        settings, named: those of ``RenderConfig``, in its order or by name.

    Returns:
        root.

    Raises:
        ValueError: a setting is not allowed. DataError: the folder holds another data set.
    """
    return ensure(*settings, **named, out=str(root))


def ensure(*settings, **named) -> Path:
    """The folder of a data set in the cache, ``runtime.data_dir()``, rendered first if it is not there yet;
    settings as for ``render_dataset``.
    """
    return render(RenderConfig(*settings, **named))


@claims()
def render(config: RenderConfig) -> Path:
    """Render ``config`` into its folder, or into the cache; returns the folder."""
    if not config.train + config.val + config.test or not config.modalities:
        raise ValueError("train, val and test are all 0, or no modality is named; ask for at least one frame")
    scene, size, names = config.scene, tuple(config.size), tuple(dict.fromkeys(config.modalities))
    if not config.out:
        symbols = "".join(SENSORS[name].symbol for name in names)
        counts = f"{config.train}-{config.val}-{config.test}"
        name = f"{scene}-{size[0]}x{size[1]}-{symbols}-{counts}-{RENDERER}"
        root = data_dir() / "world" / name
        if not is_finished(root):  # what is finished may lie on a disk that can only be read
            # Two notebooks that start together render it once: the second waits for the first.
            with exclusive(f"{root}.lock"):
                if not is_finished(root):
                    render(replace(config, out=str(root)))
        return root
    description = Description(
        f"sensor world, {scene}",
        CLASSES[scene],
        PALETTES[scene],
        {name: SENSORS[name] for name in names},
        source="rendered by mmlib.world",
        licence="Apache-2.0",
        extra={"scene": scene, "size": list(size), "renderer": RENDERER},
    )
    rows = [row for split in SEEDS for row in samples(scene, split, getattr(config, split), names)]
    workers = config.workers
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 1 else None
    with pool or nullcontext(), Writer(config.out, description) as writer:
        todo = [row for row in rows if row["id"] not in writer.rows]
        draw = partial(render_row, scene=scene, size=size, modalities=names)
        bar = progress_bar(
            pool.map(draw, todo, chunksize=4) if pool else map(draw, todo),
            progress=config.progress,
            desc=f"rendering {scene}",
            total=len(rows),
            initial=len(rows) - len(todo),
            unit="frame",
        )
        for row, images, label in bar:
            writer.add(row["id"], row["split"], images, label, row["condition"], row["case"])
    return Path(config.out)
