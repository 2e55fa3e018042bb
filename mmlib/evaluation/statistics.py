"""Means over seeds with their spread, paired differences, and the rounding of numbers in records.

Commands that compare runs and the figures of records call it.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Estimate:
    """Mean of n values, their sample standard deviation, and the 95 % interval of the mean by Student's t."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        spread = f" ± {self.sd:.1f} (n={self.n})" if self.n > 1 else " (n=1, no spread)"
        return f"{self.mean:.1f}{spread}"

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero; for a difference: whether it is larger than its spread."""
        return self.low > 0 or self.high < 0


def estimate(values) -> Estimate:
    """Mean, sample SD and 95 % t-interval of independent values (one per seed).

    Raises:
        ValueError: no value, or a NaN among them.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected one finite value per seed, got {values.tolist()}")
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Estimate(mean, math.nan, -math.inf, math.inf, 1)
    sd = float(values.std(ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return Estimate(mean, sd, mean - half, mean + half, n)


def paired_difference(a, b) -> Estimate:
    """a − b, paired by seed: the spread that seeds share cancels."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{a.size} against {b.size} values; paired runs need the same seeds")
    return estimate(a - b)


def numbers(values) -> list[float]:
    """The numbers among ``values`` that are not NaN or None; one NaN where there are none."""
    return [value for value in values if value is not None and not math.isnan(value)] or [math.nan]


def rounded(value, places: int = 4, significant: int = 0):
    """``value`` with every float in it, at any depth, at so many decimals or significant digits; NaN becomes
    None, which JSON has.
    """
    if isinstance(value, dict):
        return {key: rounded(entry, places, significant) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry, places, significant) for entry in value]
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    return float(f"{value:.{significant}g}") if significant else round(value, places)
