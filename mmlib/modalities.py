"""What a modality is: one description used by data, networks, figures and panels alike.

An image travels through three spaces, and this file is the only place that knows the way between them:

* **stored** — what lies on disk: uint8, uint16 or float32;
* **physical** — ``stored * scale + offset``, in ``unit`` (metres, degrees Celsius, a fraction, a count);
* **network** — physical values, log-compressed where ``compress`` is set, minus ``mean``, divided by ``std``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Literal

import numpy as np

from .config import Above, AtLeast, Between, check_value, settings

IGNORE_INDEX = 255  # label of a pixel that is neither trained nor scored


@dataclass(frozen=True)
class Modality:
    """One sensor's image.

    Attributes:
        name: lower-case identifier; also the name of the sensor's folder on disk.
        symbol: one capital letter, used in the names of modality subsets ("RDE").
        channels: number of channels C.
        unit: physical unit of the values.
        low, high: usual range of the physical values; used to picture them and to bound noise, never to clip
            data.
        colour: the modality's colour in every figure, slider and table.
        dtype: how values are stored ("uint8", "uint16" or "float32").
        scale, offset: physical = stored * scale + offset.
        compress: whether the network sees sign(x)·log(1 + |x|) instead of x (long-tailed ranges and counts).
        sparse: whether 0 means "no measurement": such images are resized by nearest neighbour, never
        interpolated. mean, std: per-channel statistics of the (compressed) values over the training split; ()
        = not measured yet.
        flip_negates: channels that change sign when the image is mirrored left-right (the sine of a doubled
            angle).
        picture: how to show it: "colour", "grey", "heat", "range", "events" or "angle".
        channel_names: one name per channel; () = none.
    """

    name: str
    symbol: str
    channels: Annotated[int, AtLeast(1)]
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    colour: str = "#444444"
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    scale: Annotated[float, Between(without=(0,))] = 1.0
    offset: float = 0.0
    compress: bool = False
    sparse: bool = False
    mean: tuple[float, ...] = ()
    std: Annotated[tuple[float, ...], Above(0)] = ()
    flip_negates: tuple[int, ...] = ()
    picture: Literal["colour", "grey", "heat", "range", "events", "angle"] = "grey"
    channel_names: tuple[str, ...] = ()

    def __post_init__(self):
        for field in ("mean", "std", "flip_negates", "channel_names"):  # JSON gives lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field, kind, value in settings(self):
            check_value(f"modality {self.name!r}: {field}", value, kind)
        if not self.name.isidentifier() or not self.name.islower():
            raise ValueError(
                f"modality name {self.name!r}: expected a lower-case identifier such as 'rgb' or 'depth'"
            )
        if len(self.symbol) != 1 or not self.symbol.isupper():
            raise ValueError(f"modality {self.name!r}: symbol {self.symbol!r} must be one capital letter")
        for field in ("mean", "std"):
            values = getattr(self, field)
            if values and len(values) != self.channels:
                raise ValueError(
                    f"modality {self.name!r}: {len(values)} values of {field} for {self.channels} channels"
                )
        if not self.low < self.high:
            raise ValueError(f"modality {self.name!r}: low {self.low} is not below high {self.high}")
        if not set(self.flip_negates) <= set(range(self.channels)):
            raise ValueError(
                f"modality {self.name!r}: flip_negates {self.flip_negates} names a channel outside 0 to "
                f"{self.channels - 1}"
            )

    def to_physical(self, stored: np.ndarray) -> np.ndarray:
        """Stored array of any shape -> float32 array of physical values."""
        return stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)

    def to_stored(self, physical: np.ndarray) -> np.ndarray:
        """Physical values -> the stored dtype, rounded to nearest and clipped to what the dtype holds."""
        values = (np.asarray(physical, np.float64) - self.offset) / self.scale
        if self.dtype == "float32":
            return values.astype(np.float32)
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(self.dtype)

    def compressed(self, physical):
        """Physical values as the network's statistics see them (numpy array or torch tensor in, the same
        out).
        """
        if not self.compress:
            return physical
        if isinstance(physical, np.ndarray):
            return np.sign(physical) * np.log1p(np.abs(physical))
        return physical.sign() * physical.abs().log1p()

    def to_network(self, physical):
        """Physical (..., C, H, W) -> normalised network input of the same shape and kind.

        Raises:
            ValueError: the statistics were never measured.
        """
        if not self.mean or not self.std:
            raise ValueError(
                f"modality {self.name!r} has no statistics; write its data set with mmlib.data.prepared, "
                "which measures them"
            )
        values = self.compressed(physical)
        if isinstance(values, np.ndarray):
            mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        else:
            mean, std = (values.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (values - mean) / std

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


# The sensors of the world, and good starting points for those of public data sets. Colours: Okabe and Ito's
# palette, which colour-blind readers can tell apart.
SENSORS: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality(
            "rgb",
            "R",
            3,
            "reflectance",
            colour="#D55E00",
            scale=1 / 255,
            picture="colour",
            channel_names=("red", "green", "blue"),
        ),
        Modality(
            "depth",
            "D",
            1,
            "m",
            0,
            80,
            "#0072B2",
            "uint16",
            1 / 256,
            compress=True,
            sparse=True,
            picture="range",
            channel_names=("depth",),
        ),
        Modality(
            "event",
            "E",
            2,
            "events",
            0,
            6,
            "#CC79A7",
            compress=True,
            sparse=True,
            picture="events",
            channel_names=("brighter", "darker"),
        ),
        Modality(
            "lidar",
            "L",
            3,
            "m",
            0,
            80,
            "#009E73",
            "uint16",
            1 / 200,
            compress=True,
            sparse=True,
            picture="range",
            channel_names=("range", "intensity", "height"),
        ),
        Modality(
            "thermal",
            "T",
            1,
            "°C",
            -5,
            45,
            "#E69F00",
            "uint16",
            0.01,
            -100.0,
            picture="heat",
            channel_names=("temperature",),
        ),
        Modality(
            "nir", "N", 1, "reflectance", colour="#56B4E9", scale=1 / 255, channel_names=("near infrared",)
        ),
        Modality(
            "dolp",
            "P",
            1,
            "fraction",
            colour="#B8A800",
            scale=1 / 255,
            channel_names=("degree of linear polarisation",),
        ),
        Modality(
            "aolp",
            "A",
            2,
            "cos, sin of 2·angle",
            -1,
            1,
            "#5E5E5E",
            scale=2 / 255,
            offset=-1.0,
            flip_negates=(1,),
            picture="angle",
            channel_names=("cos 2·angle", "sin 2·angle"),
        ),
    )
}


def subsets(names) -> list[tuple]:
    """All 2^M − 1 non-empty subsets of M names: single sensors first, the full set last."""
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
