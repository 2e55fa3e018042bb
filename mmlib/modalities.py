"""What a modality is: one description used by data, networks, figures and panels alike.

An image travels through three spaces, and this file is the only place that knows the way between them:

* **stored** — what lies on disk: uint8, uint16 or float32;
* **physical** — ``stored * scale + offset``, in ``unit`` (metres, degrees Celsius, a fraction, a count);
* **network** — physical values, log-compressed where ``compress`` is set, minus ``mean``, divided by ``std``.
"""

import json
import re
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from .config import Between, check_settings

MOST_SENSORS = 14  # whose subsets are scored: 16,383 of them
IGNORE_INDEX = 255  # label of a pixel that is neither trained nor scored
FLOAT32 = Between(-1e30, 1e30)  # products of two such numbers with pixel values stay finite in float32


@dataclass(frozen=True)
class Modality:
    """One sensor's image.

    Attributes:
        name: lower-case identifier; also the name of the sensor's folder on disk.
        symbol: one capital letter, used in the names of modality subsets ("RDE").
        channels: number of channels C, 1 to 64.
        unit: physical unit of the values.
        low, high: usual range of the physical values; used to picture them and to bound noise, never to clip
            data.
        colour: the modality's colour in every figure, slider and table, as #rrggbb.
        dtype: how values are stored ("uint8", "uint16" or "float32").
        scale, offset: physical = stored * scale + offset.
        compress: whether the network sees sign(x)·log(1 + |x|) instead of x (long-tailed ranges and counts).
        sparse: whether 0 means "no measurement": such images are resized by nearest neighbour, never
            interpolated.
        mean, std: per-channel statistics of the (compressed) values over the training split; () = not
            measured yet.
        flip_negates: channels that change sign when the image is mirrored left-right (the sine of a doubled
            angle).
        picture: how to show it: "colour", "grey", "heat", "range", "events" or "angle".
        channel_names: one name per channel; () = none.
    """

    name: str
    symbol: str
    channels: Annotated[int, Between(1, 64)]
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    colour: str = "#444444"
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    scale: Annotated[float, FLOAT32] = 1.0
    offset: Annotated[float, FLOAT32] = 0.0
    compress: bool = False
    sparse: bool = False
    mean: Annotated[tuple[float, ...], FLOAT32] = ()
    std: Annotated[tuple[float, ...], Between(1e-30, 1e30)] = ()
    flip_negates: tuple[int, ...] = ()
    picture: Literal["colour", "grey", "heat", "range", "events", "angle"] = "grey"
    channel_names: tuple[str, ...] = ()

    def __post_init__(self):
        for field in ("mean", "std", "flip_negates", "channel_names"):  # JSON gives lists
            object.__setattr__(self, field, tuple(getattr(self, field)))
        where = f"modality {self.name!r}: "
        check_settings(self, where)
        lengths = {len(values) for values in (self.mean, self.std, self.channel_names) if values}
        for unusable, problem in (
            (
                not self.name.isidentifier() or not self.name.islower(),
                "expected a lower-case identifier such as 'rgb' or 'depth'",
            ),
            (
                len(self.symbol) != 1 or not self.symbol.isupper(),
                f"symbol {self.symbol!r}; expected one capital letter",
            ),
            (
                not re.fullmatch("#[0-9a-fA-F]{6}", self.colour),
                f"colour {self.colour!r}; expected #rrggbb, such as #0072b2",
            ),
            (abs(self.scale) < 1e-30, f"scale {self.scale}; expected a number that is not 0 in float32"),
            (
                lengths - {self.channels},
                f"mean, std and channel_names of {sorted(lengths)} values for {self.channels} channels",
            ),
            (not self.low < self.high, f"low {self.low} is not below high {self.high}"),
            (
                not set(self.flip_negates) <= set(range(self.channels)),
                f"flip_negates {self.flip_negates}; channels count from 0",
            ),
        ):
            if unusable:
                raise ValueError(where + problem)

    def to_physical(self, stored: np.ndarray) -> np.ndarray:
        """Stored array of any shape -> float32 array of physical values."""
        return stored.astype(np.float32) * np.float32(self.scale) + np.float32(self.offset)

    def to_stored(self, physical: np.ndarray) -> np.ndarray:
        """Physical values -> the stored dtype, rounded to nearest and clipped to what the dtype holds."""
        values = (np.asarray(physical, np.float64) - self.offset) / self.scale
        if self.dtype != "float32":
            limits = np.iinfo(self.dtype)
            values = np.rint(values).clip(limits.min, limits.max)
        return values.astype(self.dtype)

    def compressed(self, physical):
        """Physical values as the network's statistics see them (numpy array or torch tensor in, the same
        out).
        """
        if not self.compress:
            return physical
        if isinstance(physical, np.ndarray):
            return np.sign(physical) * np.log1p(np.abs(physical))
        return physical.sign() * physical.abs().log1p()

    def _statistics(self, values):
        """Mean and standard deviation, (C, 1, 1) each, of the kind that ``values`` is (numpy or torch)."""
        if not self.mean or not self.std:
            raise ValueError(
                f"modality {self.name!r} has no statistics; take the modality of a prepared data set, which "
                "measures them, or of a trained network"
            )
        kind = np.float32 if isinstance(values, np.ndarray) else values.new_tensor
        return kind(self.mean)[:, None, None], kind(self.std)[:, None, None]

    def to_network(self, physical):
        """Physical (..., C, H, W) -> normalised network input of the same shape and kind.

        Raises:
            ValueError: the statistics were never measured.
        """
        values = self.compressed(physical)
        mean, std = self._statistics(values)
        return (values - mean) / std

    def from_network(self, normalised):
        """The inverse of ``to_network``, for a torch tensor."""
        mean, std = self._statistics(normalised)
        values = normalised * std + mean
        return values.sign() * values.abs().expm1() if self.compress else values

    def to_dict(self) -> dict:
        return asdict(self)


# The sensors of the world, and good starting points for those of public data sets. What the file does not say
# is a field's default; a scale of 0.0039… is 1/255. Colours: Okabe and Ito's palette, which colour-blind
# readers can tell apart.
SENSORS: dict[str, Modality] = {
    fields["name"]: Modality(**fields)
    for fields in json.loads(Path(__file__).with_name("sensors.json").read_text(encoding="utf-8"))
}


def subsets(names) -> list[tuple]:
    """All 2^M − 1 non-empty subsets of M names: single sensors first, the full set last.

    Raises:
        ValueError: more names than have subsets that can be listed and scored in a reasonable time.
    """
    if len(names) > MOST_SENSORS:
        raise ValueError(
            f"{len(names)} sensors have {2 ** len(names) - 1} subsets, more than can be scored; name at most "
            f"{MOST_SENSORS} of them with --modalities"
        )
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]
