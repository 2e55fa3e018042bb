"""What lesson 11 needs around its code: files as data sets store them, a drive of one's own, a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from accelerate import notebook_launcher
from accelerate.state import AcceleratorState
from matplotlib import pyplot as plt
from PIL import Image

from mmlib import cli, world
from mmlib.runtime import read_tensors, save_tensors
from mmlib.segmentation.network import NetworkConfig
from mmlib.segmentation.objective import ObjectiveConfig
from mmlib.segmentation.step import TrainConfig, set_up, train_step
from mmlib.world import geometry, street, surfaces

from .world_source import physical_images

SCRIPTS = Path(__file__).resolve().parents[2] / "data_scripts"
sys.path.append(str(SCRIPTS))

import common  # noqa: E402
import projection  # noqa: E402

__all__ = ["common", "projection"]  # of data_scripts, which is no package

CLASSES = {  # of the drive, and the classes of the world that they join
    "ground": ("Road", "RoadLine", "SideWalk", "Terrain"),
    "sky": ("Sky",),
    "building": ("Building", "Wall", "Fence"),
    "plant": ("Vegetation",),
    "object": ("Cars", "Bus", "Pedestrian", "Pole", "TrafficSign"),
}
COLOURS = ("#804080", "#4682b4", "#b48c5a", "#6b8e23", "#dc143c")


@dataclass(frozen=True)
class Street:
    """One street of the sensor world, whose truth is known: ``images`` as stored, ``physical`` values (C, H,
    W), ``label`` and the ``depth`` of every pixel.
    """

    seed: int = 101
    size: tuple[int, int] = (120, 160)

    def __post_init__(self):
        frame = world.render_frame("street", seed=self.seed, condition="day", size=self.size)
        self.__dict__.update(images=frame.images, label=frame.label, depth=frame.depth)
        self.__dict__.update(physical=physical_images(frame))

    @property
    def half(self) -> tuple[int, int]:
        return self.size[0] // 2, self.size[1] // 2


def scratch_folder() -> Path:
    """A folder that goes when the kernel does; what libraries leave behind goes with it."""
    folder = tempfile.TemporaryDirectory()
    scratch_folder.kept = folder
    tempfile.tempdir = os.environ["TMPDIR"] = folder.name
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tiny runs, compared to the last bit: CPU only
    return Path(folder.name)


def fresh(folder: Path) -> Path:
    """An empty folder among the system's temporary files, also where its cell is changed and run again.

    Raises:
        ValueError: ``folder`` lies elsewhere, where it may hold somebody's files.
    """
    if not folder.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        raise ValueError(f"{folder}: is emptied only below {tempfile.gettempdir()}; name a folder there")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_png16(path: Path, array: np.ndarray) -> None:
    """A 16-bit colour PNG, which Pillow cannot write: header, rows (each behind a 0), end."""
    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        end = struct.pack(">I", zlib.crc32(kind + data))
        content += struct.pack(">I", len(data)) + kind + data + end
    path.write_bytes(content)


def write_events(path: Path, counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Write events x, y, t (µs, over 0.1 s) and polarity, in no order, that add up to an image of counts, and
    return them.
    """
    y, x, plane = np.repeat(np.argwhere(counts), counts[counts > 0], axis=0).T
    rng = np.random.default_rng(0)
    t = np.sort(rng.integers(0, 100_000, len(x)))
    order = rng.permutation(len(x))
    events = x[order], y[order], t, 1 - plane[order]
    with h5py.File(path, "w") as file:
        for key, values in zip("xytp", events):
            file[f"events/{key}"] = values
    return events


def scanned_drive(size: tuple[int, int] = (120, 160)):
    """LiDAR points (N, 6) of three moments of a drive, put together; the camera's matrix K, the LiDAR's place
    before the camera (4 × 4), the camera's image, and the truth: the distance of what it sees in each pixel.
    """
    shot = street.layout(106)
    view = world.render_frame("street", 106, "day", size=size, modalities=["rgb"])
    camera = shot.camera
    ahead, right, up = map(np.array, camera.axes())
    turn = np.array([[ahead[0], ahead[1], 0], [-ahead[1], ahead[0], 0], [0, 0, 1]])
    turn[:2] /= np.linalg.norm(ahead[:2])  # world -> LiDAR: x forward, y left, z up
    mount = np.array(camera.position) + [0, 0, 0.4]
    places = []
    elevations, azimuths = np.radians(np.linspace(12, -28, 64)), np.radians(np.arange(-60, 60.1, 0.3))
    for metres in (0, 6, 12):
        for yaw in (camera.yaw, camera.yaw + np.pi):  # half of a turn at a time
            where = mount + metres * turn[0]
            rays = geometry.ring_view(tuple(where), yaw, elevations, azimuths)
            hits = surfaces.look(shot, [rays])
            places.append((where[:, None] + hits.direction * hits.t)[:, hits.t < 80].T)
    points = np.zeros((sum(map(len, places)), 6))  # x, y, z, intensity, ring, time
    points[:, :3] = (np.concatenate(places) - mount) @ turn.T
    focal = camera.focal * size[1]
    matrix = np.array([[focal, 0, (size[1] - 1) / 2], [0, focal, (size[0] - 1) / 2], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = np.array([right, -up, ahead]) @ turn.T  # x right, y down, z ahead
    pose[:3, 3] = pose[:3, :3] @ turn @ (mount - np.array(camera.position))
    row, column = np.mgrid[: size[0], : size[1]]
    rays = np.linalg.inv(matrix) @ np.stack([column, row, np.ones(size)]).reshape(3, -1)
    back = np.linalg.inv(pose)
    surface = np.where(np.isfinite(view.depth), view.depth, 1e4).ravel() * rays
    truth = np.linalg.norm(back[:3, :3] @ surface + back[:3, 3:], axis=0).reshape(size)
    return points, matrix, pose, view, truth


def write_drive(folder: Path, spoil=None, frames: int = 60) -> None:
    """Folders as somebody may have them: camera, heat in raw counts, masks in ids of their own, a list of
    what was taken by night, and the classes. ``spoil`` takes and returns (colour, heat, ids) of a frame.
    """
    for name in ("camera", "heat", "masks"):
        fresh(folder / name)
    light, names = ["id,condition"], world.CLASSES["street"]
    for k in range(frames):
        condition = "day" if k // 2 % 2 == 0 else "night"
        frame = world.render_frame("street", 2000 + k, condition, modalities=("rgb", "thermal"))
        ids = frame.label + np.uint8(1)  # 0 is what nobody has annotated yet:
        ids[:, : 64 * (k % 4 == 1)] = 0  # half of every fourth image
        stored = frame.images["rgb"], frame.images["thermal"][..., 0], ids
        if spoil:
            stored = spoil(*stored)
        for name, array in zip(("camera", "heat", "masks"), stored):
            Image.fromarray(np.ascontiguousarray(array)).save(folder / f"{name}/{k:04d}.png")
        light.append(f"{k:04d},{condition}")
    (folder / "light.csv").write_text("\n".join(light) + "\n")
    table = ["name,ids,colours"]
    for (name, parts), colour in zip(CLASSES.items(), COLOURS):
        table.append(f"{name},{' '.join(str(names.index(part) + 1) for part in parts)},{colour}")
    (folder / "classes.csv").write_text("\n".join([*table, "ignore,0,"]) + "\n")


def drive_labels(label: np.ndarray) -> np.ndarray:
    """Classes of the world -> those of the drive."""
    names = world.CLASSES["street"]
    return np.array([next(k for k, parts in enumerate(CLASSES.values()) if n in parts) for n in names])[label]


@dataclass
class Terminal:
    """Command lines, run in one folder."""

    folder: Path

    def start(self, command: str) -> subprocess.Popen:
        """In a process of its own."""
        words = [sys.executable, *shlex.split(command)[1:]]
        words = [str(SCRIPTS / Path(w).name) if w.startswith("data_scripts/") else w for w in words]
        paths = os.pathsep.join([str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        environment = os.environ | {"PYTHONPATH": paths}
        return subprocess.Popen(words, cwd=self.folder, env=environment, **pipes)

    def __call__(self, command: str, show: Sequence[str] = (), quiet: bool = False) -> None:
        """Run a command line; print it, and the lines of its answer that begin as in ``show``.

        `python -m mmlib …` runs in this kernel, through the same entry point, to save the seconds in which
        Python starts.
        """
        if not quiet:
            print("$", " \\\n    ".join(textwrap.wrap(command, 92, break_on_hyphens=False)))
        if command.startswith("python -m mmlib "):
            answer = io.StringIO()
            with contextlib.chdir(self.folder), contextlib.redirect_stdout(answer):
                cli.main(shlex.split(command)[3:])
            plt.close("all")
            answer = answer.getvalue()
        else:
            running = self.start(command)
            answer = running.communicate()[0]
            assert running.returncode == 0, answer
        for line in answer.splitlines():
            if line.strip().startswith(tuple(show)):
                print(line)


def first_gradient(data: str, file: str, batch_size: int, accumulate: int = 1) -> None:
    """Write into a file what the first step of a training hands to the optimizer."""
    # Dropout masks and sampled pixels are drawn by each process for itself: without them, runs compare.
    exact = {"network": NetworkConfig(dropout=0.0), "objective": ObjectiveConfig(pixels=1)}
    run = set_up(TrainConfig(data, file + "-none", batch_size=batch_size, accumulate=accumulate, **exact))
    gradient, named = {}, dict(run.network.named_parameters())
    run.optimizer.step = lambda: gradient.update({n: p.grad.clone() for n, p in named.items()})
    batches = iter(run.loader(0))
    train_step(run, 0, [next(batches) for _ in range(accumulate)])
    if run.accelerator.is_main_process:
        save_tensors(file, gradient, {})
    run.accelerator.end_training()


def compared_gradients(data: Path, scratch: Path) -> dict[str, float]:
    """How a first step of four samples is spread -> largest difference of its gradient from that of one batch
    of four, as a share of the largest entry.
    """
    AcceleratorState._reset_state(True)  # of what ran in this kernel before
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    files = {name: str(scratch / f"{name}.safetensors") for name in ("one", "micro", "two")}
    with contextlib.redirect_stdout(io.StringIO()):  # where its processes run is not news
        notebook_launcher(first_gradient, (str(data), files["two"], 2), num_processes=2, use_port=port)
    first_gradient(str(data), files["one"], 4)
    first_gradient(str(data), files["micro"], 1, 4)
    gradients = {name: read_tensors(file) for name, file in files.items()}
    size = max(float(g.abs().max()) for g in gradients["one"].values())
    words = {"micro": "4 micro-batches of 1", "two": "2 processes with 2"}
    return {
        what: max(float((g - gradients[name][n]).abs().max()) for n, g in gradients["one"].items()) / size
        for name, what in words.items()
    }
