"""Whether two means over seeds differ by more than the seeds do."""

import math

from scipy.special import stdtrit

from whtnet.tables.table import Cell, Column, Spread

LEVEL = 0.95

INTERVAL_COLUMNS = (Column("low", "95 % from", "+.2f"), Column("high", "to", "+.2f"))
ONE_SEED = "one seed"  # in the place of an interval
SINGLE_RUN = "a single run takes the other side's deviation"


def welch_interval(a: Spread, b: Spread) -> tuple[float, float] | None:
    """Interval at 95 % of the difference ``a.mean - b.mean`` by Welch's t, for unequal variances.

    A single value takes the other side's deviation; None where both are single.
    """
    parts = _variances_of_means(a, b)
    if parts is None:
        return None
    variance, freedom = parts
    half = float(stdtrit(freedom, 0.5 + LEVEL / 2)) * math.sqrt(variance) if variance else 0.0
    difference = a.mean - b.mean
    return difference - half, difference + half


def _variances_of_means(a: Spread, b: Spread) -> tuple[float, float] | None:
    """Variance of the difference of two means, and its degrees of freedom (Welch and Satterthwaite)."""
    if a.n == b.n == 1:
        return None
    if 1 in (a.n, b.n):
        known = a if a.n > 1 else b
        return known.sd**2 * (1 / a.n + 1 / b.n), known.n - 1
    u, v = a.sd**2 / a.n, b.sd**2 / b.n
    freedom = (u + v) ** 2 / (u**2 / (a.n - 1) + v**2 / (b.n - 1)) if u + v else 1.0
    return u + v, freedom


def interval_cells(a: Spread, b: Spread) -> dict[str, Cell]:
    """What stands in :data:`INTERVAL_COLUMNS` for :func:`welch_interval`."""
    low, high = welch_interval(a, b) or (ONE_SEED, ONE_SEED)
    return {"low": low, "high": high}


def mean_interval(values: Spread) -> tuple[float, float]:
    """Interval of a mean at 95 % by Student's t, of two values or more."""
    half = float(stdtrit(values.n - 1, 0.5 + LEVEL / 2)) * values.sd / math.sqrt(values.n)
    return values.mean - half, values.mean + half
