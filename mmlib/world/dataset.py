"""The world as a data set: which frames each split has, and rendering them into the prepared layout once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ..data.prepared import Description, Writer, is_finished
from ..modalities import SENSORS
from ..runtime import data_dir, exclusive, progress_bar
from .render import ALL, CLASSES, PALETTES, SCENE_CONDITIONS, check, render_row
from .sensors import CASE_SENSOR, FAILURES

# Seeds of the splits lie in ranges that cannot meet, so no split ever shows another's scene.
FIRST_SEED = {"train": 0, "val": 700_000, "test": 900_000}
LAST_SEED = {"train": 699_999, "val": 899_999, "test": 1_099_999}
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
        seed, condition = FIRST_SEED[split] + k, conditions[k % len(conditions)]
        case = cases[k // 5 % len(cases)] if k % 5 == 4 and cases else ""
        name = "_".join(filter(None, (scene, f"{seed:06d}", condition, case)))
        rows.append({"id": name, "split": split, "seed": seed, "condition": condition, "case": case})
    return rows


def _check(scene, counts, size, modalities):
    check(scene, modalities=modalities, size=size)
    for split, count in counts.items():
        most = LAST_SEED[split] - FIRST_SEED[split] + 1
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
            raise ValueError(f"{split}={count!r}: expected an integer number of frames from 0 to {most}")
    if not sum(counts.values()):
        raise ValueError("train, val and test are all 0; ask for at least one frame")


def render_dataset(
    root: str | Path,
    scene: str = "street",
    train: int = 400,
    val: int = 64,
    test: int = 128,
    size=(96, 128),
    modalities=("rgb", "depth", "event", "lidar"),
    progress: bool = True,
    workers: int = 1,
) -> Path:
    """Render a data set in the prepared layout (see ``mmlib.data.prepared``). Killed and called again, it
    goes on where it stopped.

    Args:
        root: folder to write; must not hold a finished data set.
        scene: "street" or "room"; train, val, test: number of frames; size: (height, width) in pixels.
        modalities: names of sensors; workers: processes that render.

    Returns:
        root.

    Raises:
        ValueError: an argument is not allowed. DataError: the folder holds another data set.
    """
    root, counts = Path(root), {"train": train, "val": val, "test": test}
    _check(scene, counts, size, modalities)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers={workers!r}: expected an integer of at least 1")
    size, modalities = tuple(size), tuple(modalities)
    description = Description(
        f"sensor world, {scene}",
        CLASSES[scene],
        PALETTES[scene],
        {name: SENSORS[name] for name in modalities},
        source="rendered by mmlib.world",
        licence="Apache-2.0",
        extra={"scene": scene, "size": list(size), "renderer": RENDERER},
    )
    rows = [row for split, count in counts.items() for row in samples(scene, split, count, modalities)]
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) if workers > 1 else None
    with pool or nullcontext(), Writer(root, description) as writer:
        todo = [row for row in rows if row["id"] not in writer.done]
        render = partial(render_row, scene=scene, size=size, modalities=modalities)
        with progress_bar(
            total=len(rows),
            initial=len(rows) - len(todo),
            desc=f"rendering {scene}",
            unit="frame",
            progress=progress,
        ) as bar:
            for row, images, label in pool.map(render, todo, chunksize=4) if pool else map(render, todo):
                writer.add(row["id"], row["split"], images, label, row["condition"], row["case"])
                bar.update()
    return root


def ensure(
    scene: str = "street",
    train: int = 400,
    val: int = 64,
    test: int = 128,
    size=(96, 128),
    modalities=("rgb", "depth", "event", "lidar"),
    progress: bool = True,
    workers: int = 1,
) -> Path:
    """The folder of this data set under ``runtime.data_dir()``, rendered first if it is not there yet;
    arguments as in ``render_dataset``.
    """
    _check(scene, {"train": train, "val": val, "test": test}, size, modalities)
    symbols = "".join(SENSORS[name].symbol for name in modalities)
    root = data_dir() / "world" / f"{scene}-{size[0]}x{size[1]}-{symbols}-{train}-{val}-{test}-{RENDERER}"
    if is_finished(root):  # also on a disk that can only be read
        return root
    # two notebooks that start together render it once: the second waits for the first
    with exclusive(f"{root}.lock"):
        if not is_finished(root):
            render_dataset(root, scene, train, val, test, size, modalities, progress, workers)
    return root
