"""The description of a sensor: from its name, from the user's settings and from measured values."""

from string import ascii_uppercase

import numpy as np
from common import evenly_spaced
from folders import Folder, planes_of
from numpy import ndarray

from mmlib.data.images import DataError
from mmlib.modalities import SENSORS, Modality

FREE_COLOURS = ("#332288", "#117733", "#882255", "#999933", "#AA4499", "#661100", "#44AA99", "#DDCC77")
# Images of a sensor that are measured before it is described, and pixels of each.
LOOKED_AT, PIXELS = 40, 20_000


def measure(folder: Folder) -> ndarray:
    """Stored values (pixels, planes) float64 of images spread evenly over the names."""
    samples = []
    for stem in evenly_spaced([*folder.headers], LOOKED_AT):
        array = planes_of(folder, stem)
        pixels = array.reshape(-1, array.shape[2])
        samples.append(pixels[:: max(1, len(pixels) // PIXELS)].astype(np.float64))
    return np.concatenate(samples)


def describe(folder: Folder, symbols: set[str], position: int) -> tuple:
    """The sensor's Modality from what is usual for its name, what the user says, and what was measured; and a
    line that tells which is which.

    Args:
        symbols: letters taken by others. position: which sensor this is, for a free colour.

    Raises:
        ValueError: settings that contradict the values or each other, or that ``Modality`` refuses.
    """
    values, dtype = measure(folder), next(iter(folder.headers.values())).dtype
    name, settings, usual = folder.name, folder.settings, SENSORS.get(folder.name)
    planes = values.shape[1]
    alike = usual if usual and usual.channels == planes else None
    base = alike or Modality(name, "X", planes)

    # Whether zeros mean "nothing measured": in doubt, zeros that stand apart from all other values do.
    empty = (values == 0).all(1)
    low, high = np.percentile(values if empty.all() else values[~empty], (1, 99))
    apart = bool(empty.mean() > 0.01 and low > 0.02 * high)
    sparse = settings.get("sparse", alike.sparse if alike else apart)

    # From stored to physical values.
    stated = {"scale", "offset", "unit"} & set(settings)
    scale, offset, unit, source = 1.0, 0.0, base.unit, f"as usual for {name}"
    if stated:
        scale, offset = settings.get("scale", 1.0), settings.get("offset", 0.0)
        unit, source = settings.get("unit", ""), "as you say"
    elif alike and alike.dtype == dtype == "uint8":
        scale, offset = alike.scale, alike.offset
    elif unit not in ("reflectance", "fraction"):
        unit, source = "", f"as stored, unit unknown: say {name}:scale=...,unit=... if it matters"
    elif dtype != "float32":
        scale, source = 1 / np.iinfo(dtype).max, "as a share of the largest value"
    if sparse and offset:
        raise DataError(
            f"{name}:offset={offset:g}: a sparse sensor's 0 must stay 0: give a unit whose 0 is never "
            "measured (kelvin), no offset"
        )

    # How it is shown, and between which values. Ranges want metres.
    picture = "grey" if base.picture == "range" and unit != "m" else base.picture
    picture = settings.get("picture", picture)
    if picture == "angle" and planes < 2:
        raise DataError(f"{folder.path}: {planes} planes; an angle has two (cosine, sine)")
    bounds = sorted((low * scale + offset, high * scale + offset))
    if picture == "colour":
        bounds = [0.0, 1.0]
    elif alike and unit and not stated:
        bounds = [alike.low, alike.high]
    elif sparse:
        bounds[0] = min(0.0, bounds[0])
    bounds = [float(settings.get(key, bound)) for key, bound in zip(("low", "high"), bounds)]
    if bounds[0] >= bounds[1] and not {"low", "high"} & set(settings):
        bounds[1] = bounds[0] + 1.0  # an image that never changes
    ends = sorted(round(float(value) * scale + offset, 9) for value in (values.min(), values.max()))
    if picture == "colour" and (ends[0] < -0.001 or ends[1] > 1.001):
        raise DataError(
            f"{folder.path}: colours from {ends[0]:g} to {ends[1]:g}; expected 0 to 1; give "
            f"{name}:scale=1/255 (8 bits), 1/4095 (12 bits) or 1/65535 (16 bits), or {name}:picture=grey"
        )

    # A letter: its usual one, or the first of its name or of the alphabet that no other sensor has.
    free = set(ascii_uppercase) - symbols - {m.symbol for m in SENSORS.values()}
    symbol = next((letter for letter in name.upper() + ascii_uppercase if letter in free), "?")
    if usual and usual.symbol not in symbols:
        symbol = usual.symbol
    symbol = settings.get("symbol", symbol)
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
        settings.get("compress", base.compress),
        bool(sparse),
        picture=picture,
        flip_negates=settings.get("flip_negates", base.flip_negates),
        channel_names=base.channel_names,
    )

    notes = [
        f"{name} ({symbol}): {planes} × {dtype}",
        f"{ends[0]:.4g} to {ends[1]:.4g} {unit}".strip() + f" ({source})",
        f"{100 * empty.mean():.1f} % zeros, which {'mean nothing measured' if sparse else 'are values'}",
    ]
    if "sparse" not in settings and not alike:
        notes[-1] += f" (a guess from the values; say {name}:sparse{'=no' * sparse} if wrong)"
    if base.picture != picture and "picture" not in settings:
        notes.append(
            f"shown in grey, since ranges want metres: say {name}:scale=0.001,unit=m if these are millimetres"
        )
    if usual is not alike:
        notes.append(f"not the {usual.channels} planes of a usual {name}")
    if planes > 1 and (values == values[:, :1]).all():
        notes.append(f"its planes are equal: {name}:planes=0 keeps one")
    return modality, "; ".join(notes)
