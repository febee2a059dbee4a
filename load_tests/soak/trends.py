"""Whether something grows over the time of a load, told by slopes that a few outliers do not move.

    line = flat("memory of java", seconds, megabytes, MEMORY)      # Line(asked, got, is_kept)
    line = steady("p99", seconds, milliseconds, LATENCY)

The slope is Theil and Sen's: the median of the slopes between all pairs of points. So neither where a series happens to
begin and end nor a burst in its middle decides. What a slope makes of the time that was looked at is the growth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONG_S = 600.0  # what was looked at for less is judged by the absolute tolerance for short times
CHANCE = 0.01  # of a rise that Mann and Kendall's test finds where there is none
MOST_POINTS = 400  # of which all pairs are compared
LEAST_POINTS = 5
PARTS = 24


@dataclass(frozen=True)
class Line:
    """What was asked of a run and what it gave.

    Attributes:
        asked: the rule.
        got: the value.
        is_kept: whether it keeps the rule.
    """

    asked: str
    got: str
    is_kept: bool


@dataclass(frozen=True)
class Tolerance:
    """How much a series may grow.

    Attributes:
        unit: of its values.
        share: of its median.
        least: in its unit, where the share is less.
        short: likewise, where it was looked at for less than `LONG_S`.
    """

    unit: str
    share: float
    least: float
    short: float

    def of(self, level: float, seconds: float) -> float:
        """What a series of this median may grow in this time."""
        return self.short if seconds < LONG_S else max(self.share * level, self.least)

    def in_words(self, seconds: float) -> str:
        """The rule."""
        if seconds < LONG_S:
            return f"{self.short:g} {self.unit}, as it was looked at for less than {LONG_S / 60:g} minutes"
        return f"{self.share:.0%} or {self.least:g} {self.unit}".replace("%", " %")


MEMORY = Tolerance("MB", share=0.05, least=4, short=64)
DESCRIPTORS = Tolerance("descriptors", share=0.05, least=6, short=128)
LATENCY = Tolerance("ms", share=0.25, least=2, short=1000)


def floors(times: Sequence[float], values: Sequence[float], parts: int = PARTS) -> tuple[list[float], list[float]]:
    """The least of each of so many parts of a series: what is left of a level that goes up and down with the load.

    A leak lifts the least, too; a crowd that goes again does not.
    """
    pieces = [piece for piece in np.array_split(np.arange(len(times)), parts) if len(piece)]
    lowest = [int(piece[np.argmin(np.asarray(values, float)[piece])]) for piece in pieces]
    return [times[one] for one in lowest], [values[one] for one in lowest]


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Theil and Sen's slope, in units of `values` a unit of `times`; 0 for fewer than two points."""
    from scipy.stats import theilslopes

    if len(times) < 2:
        return 0.0
    kept = _thinned(len(times))
    return float(theilslopes(np.asarray(values, float)[kept], np.asarray(times, float)[kept]).slope)


def chance_of_rise(times: Sequence[float], values: Sequence[float]) -> float:
    """How probable it is that a series without a trend rises as this one does (Mann and Kendall, one-sided)."""
    from scipy.stats import kendalltau

    if len(times) < LEAST_POINTS or min(values) == max(values):
        return 1.0
    return float(kendalltau(times, values, alternative="greater").pvalue)


def flat(what: str, times: Sequence[float], values: Sequence[float], tolerance: Tolerance) -> Line:
    """Judge a level that shall not grow, such as a process's memory.

    Args:
        what: the series is of.
        times: in seconds, in order.
        values: at these times.
        tolerance: what it may grow.
    """
    seconds, level, growth = _growth(times, values)
    return Line(
        f"{what} must not grow by more than {tolerance.in_words(seconds)}",
        f"{growth:+.1f} {tolerance.unit} in {seconds / 60:.1f} minutes, of {level:.0f} {tolerance.unit}",
        growth <= tolerance.of(level, seconds),
    )


def steady(what: str, times: Sequence[float], values: Sequence[float], tolerance: Tolerance) -> Line:
    """Judge a figure that goes up and down by itself, such as a percentile: a rise counts if it is no chance, too.

    Args:
        what: the series is of.
        times: in seconds, in order.
        values: at these times.
        tolerance: what it may grow.
    """
    seconds, level, growth = _growth(times, values)
    chance = chance_of_rise(times, values)
    got = f"{growth:+.1f} {tolerance.unit} in {seconds / 60:.1f} minutes, of {level:.1f} {tolerance.unit}"
    return Line(
        f"{what} must not rise, beyond chance (p < {CHANCE:g}), by more than {tolerance.in_words(seconds)}",
        f"{got}, p = {chance:.2g}",
        growth <= tolerance.of(level, seconds) or chance >= CHANCE,
    )


def _growth(times: Sequence[float], values: Sequence[float]) -> tuple[float, float, float]:
    """How long a series is, its median, and by how much it grows."""
    if len(times) == 0:
        return 0.0, 0.0, 0.0
    seconds = times[-1] - times[0]
    return seconds, float(np.median(values)), slope(times, values) * seconds


def _thinned(count: int) -> slice:
    return slice(None, None, -(-count // MOST_POINTS))
