"""Axes: where a value lies between the ends, and round values to mark."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log10

from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator


@dataclass(frozen=True)
class Scale:
    """From ``low`` at 0 to ``high`` at 1, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool = False, air: float = 0.08) -> "Scale":
        """From the lowest to the highest of ``values``, with a share ``air`` of that at each end."""
        known = [log10(value) if log else value for value in values]
        low, high = min(known), max(known)
        extra = air * (high - low) or 0.5
        ends = (10 ** (low - extra), 10 ** (high + extra)) if log else (low - extra, high + extra)
        return cls(*ends, log=log)

    def share(self, value: float) -> float:
        """Where ``value`` lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return log10(value / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values between the ends."""
        locator = LogLocator(numticks=most + 2) if self.log else MaxNLocator(most, steps=[1, 2, 2.5, 5, 10])
        return [float(tick) for tick in locator.tick_values(self.low, self.high) if self.low <= tick <= self.high]


def engineering(value: float) -> str:
    """A number in few characters: 133k, 1.5M, and 0.1."""
    return EngFormatter(sep="")(value) if value >= 1 else plain(value)


def plain(value: float) -> str:
    """A number without needless digits."""
    return f"{value:g}"
