"""The description of a sensor: from its name, from the user's settings and from measured values."""

from string import ascii_uppercase

import numpy as np
from folders import Folder, planes_of
from numpy import ndarray

from mmlib.data.images import DataError
from mmlib.modalities import SENSORS, Modality

FREE_COLOURS = ("#332288", "#117733", "#882255", "#999933", "#AA4499", "#661100", "#44AA99", "#DDCC77")
# Images of a sensor that are measured before it is described, and pixels of each.
LOOKED_AT, PIXELS = 40, 20_000


def measure(folder: Folder, stems: list[str]) -> ndarray:
    """Stored values (pixels, planes) float64 of images spread evenly over the names."""
    samples = []
    for i in np.unique(np.linspace(0, len(stems) - 1, min(LOOKED_AT, len(stems))).astype(int)):
        array = planes_of(folder, stems[i])
        pixels = array.reshape(-1, array.shape[2])
        samples.append(pixels[:: max(1, len(pixels) // PIXELS)].astype(np.float64))
    return np.concatenate(samples)


def describe(
    folder: Folder, values: ndarray, dtype: str, symbols: set[str], position: int
) -> tuple[Modality, str]:
    """The sensor's Modality from what is usual for its name, what the user says, and what was measured; and a
    line that tells which is which.

    Args:
        values: stored values (pixels, planes). symbols: letters taken by others. position: which sensor this
            is, for a free colour.

    Raises:
        DataError: settings that contradict the values or each other.
    """
    name, settings, usual = folder.name, folder.settings, SENSORS.get(folder.name)
    planes = values.shape[1]
    alike = usual if usual is not None and usual.channels == planes else None

    # Whether zeros mean "nothing measured": in doubt, zeros that stand apart from all other values do.
    empty = (values == 0).all(1)
    low, high = np.percentile(values if empty.all() else values[~empty], (1, 99))
    apart = bool(empty.mean() > 0.01 and low > 0.02 * high)
    sparse = settings.get("sparse", alike.sparse if alike else apart)

    # From stored to physical values.
    stated = {"scale", "offset", "unit"} & set(settings)
    scale, offset, unit = 1.0, 0.0, ""
    source = f"as stored, unit unknown: say {name}:scale=...,unit=... if it matters"
    if stated:
        scale, offset = settings.get("scale", 1.0), settings.get("offset", 0.0)
        unit, source = settings.get("unit", ""), "as you say"
    elif alike and alike.dtype == dtype == "uint8":
        scale, offset, unit, source = alike.scale, alike.offset, alike.unit, f"as usual for {name}"
    elif alike and alike.unit in ("reflectance", "fraction"):
        unit, source = alike.unit, f"as usual for {name}"
        if dtype != "float32":
            scale, source = 1 / np.iinfo(dtype).max, "as a share of the largest value"
    if not scale or (sparse and offset):
        problem = "not a scale"
        if scale:
            problem = (
                "a sparse sensor's 0 must stay 0: give a unit whose 0 is never measured (kelvin), no offset"
            )
        raise DataError(f"{name}:scale={scale:g},offset={offset:g}: {problem}")

    # How it is shown, and between which values. Ranges want metres.
    picture = alike.picture if alike and (alike.picture != "range" or unit == "m") else "grey"
    picture = settings.get("picture", picture)
    negated = settings.get("flip_negates", alike.flip_negates if alike else ())
    if (picture == "angle" and planes < 2) or not set(negated) <= set(range(planes)):
        raise DataError(
            f"{folder.path}: {planes} planes; an angle has two (cosine, sine), and flip_negates counts from 0"
        )
    bounds = sorted((low * scale + offset, high * scale + offset))
    if picture == "colour":
        bounds = [0.0, 1.0]
    elif alike and unit and not stated:
        bounds = [alike.low, alike.high]
    elif sparse:
        bounds[0] = min(0.0, bounds[0])
    bounds = [float(settings.get(key, bound)) for key, bound in zip(("low", "high"), bounds)]
    if bounds[0] >= bounds[1]:
        if {"low", "high"} & set(settings):
            raise DataError(f"{name}: low {bounds[0]:g} is not below high {bounds[1]:g}")
        bounds[1] = bounds[0] + 1.0  # an image that never changes
    ends = sorted(round(float(value) * scale + offset, 9) for value in (values.min(), values.max()))
    if picture == "colour" and (ends[0] < -0.001 or ends[1] > 1.001):
        top = next((top for top in (255, 4095) if ends[1] <= top), 65535)
        raise DataError(
            f"{folder.path}: colours from {ends[0]:g} to {ends[1]:g}; expected 0 to 1; give "
            f"{name}:scale=1/{top}, "
            f"or {name}:picture=grey"
        )

    # A letter: its usual one, or the first of its name or of the alphabet that no other sensor has.
    taken = symbols | {m.symbol for m in SENSORS.values()}
    free = (
        letter
        for letter in name.upper() + ascii_uppercase
        if letter in ascii_uppercase and letter not in taken
    )
    symbol = settings.get("symbol") or (
        usual.symbol if usual and usual.symbol not in symbols else next(free, "?")
    )
    modality = Modality(
        name,
        symbol,
        planes,
        unit,
        *bounds,
        settings.get("colour", usual.colour if usual else FREE_COLOURS[position % len(FREE_COLOURS)]),
        dtype,
        float(scale),
        float(offset),
        settings.get("compress", bool(alike and alike.compress)),
        bool(sparse),
        picture=picture,
        flip_negates=negated,
        channel_names=alike.channel_names if alike else (),
    )

    zeros = f"{100 * empty.mean():.1f} % zeros, which " + (
        "mean nothing measured" if sparse else "are values"
    )
    if "sparse" not in settings and not alike:
        zeros += f" (a guess from the values; say {name}:sparse{'=no' * sparse} if wrong)"
    notes = [
        f"{name} ({symbol}): {planes} × {dtype}",
        f"{ends[0]:.4g} to {ends[1]:.4g} {unit}".strip() + f" ({source})",
        zeros,
    ]
    if alike and alike.picture != picture and "picture" not in settings:
        notes.append(
            f"shown in grey, since ranges want metres: say {name}:scale=0.001,unit=m if these are millimetres"
        )
    if usual is not alike:
        notes.append(f"not the {usual.channels} planes of a usual {name}")
    if planes > 1 and (values == values[:, :1]).all():
        notes.append(f"its planes are equal: {name}:planes=0 keeps one")
    return modality, "; ".join(notes)
