"""Log-densities counted against the quantiles that a bundle has from its test split.

Their histogram is kept in narrow bins over a range so wide that what lies beyond no longer matters. When all are
counted it is made into one that can be seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LOW, HIGH = 0.01, 0.99  # images below the one quantile are atypical; as few are expected above the other
BINS_BETWEEN = 40  # the two quantiles
REACH = 20_000  # bins to either side of the lower one
BARS = 80  # about as many are drawn
TAIL = 0.01  # this share of the images at either end is drawn in the last bar

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the first and the last bin also hold what lies beyond."""

    edges: list[float]
    counts: list[int]
    beyond_left: int
    beyond_right: int


@dataclass
class DensityTally:
    """Counts over log-densities in nats.

    Attributes:
        shares: of the test split, ascending.
        quantiles: the log-densities that so many of its images are below.
        below: images below each of them.
        above: images above the quantile of share HIGH.
        bins: the fine histogram, (2 * REACH,).
    """

    shares: Floats
    quantiles: Floats
    below: NDArray[np.int64]
    bins: NDArray[np.int64]
    above: int = 0
    images: int = 0

    @classmethod
    def of(cls, quantiles: Mapping[str, float] | None) -> "DensityTally | None":
        """An empty tally for a bundle's quantiles by their shares; None if it has not those of LOW and HIGH."""
        if not quantiles or not {str(LOW), str(HIGH)} <= quantiles.keys():
            return None
        pairs = sorted((float(share), value) for share, value in quantiles.items())
        shares, values = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
        return cls(shares, values, np.zeros(len(pairs), np.int64), np.zeros(2 * REACH, np.int64))

    def add(self, density: Floats) -> None:
        """Count (N,) log-densities."""
        self.images += len(density)
        self.below += [np.count_nonzero(density < quantile) for quantile in self.quantiles]
        self.above += int(np.count_nonzero(density > self._quantile(HIGH)))
        places = np.floor((density - self._quantile(LOW)) / self._width).clip(-REACH, REACH - 1).astype(np.int64)
        self.bins += np.bincount(places + REACH, minlength=2 * REACH)

    def histogram(self) -> Histogram:
        """About BARS bins over all of the bundle's quantiles and nearly all images."""
        cumulated = np.cumsum(self.bins)
        first, last = np.searchsorted(cumulated, [TAIL * self.images, (1 - TAIL) * self.images])
        ends = (self.quantiles[[0, -1]] - self._quantile(LOW)) / self._width + REACH
        first, last = int(max(0, min(first, ends[0]))), int(min(2 * REACH - 1, max(last, ends[1])))
        merged = max(1, round((last - first + 1) / BARS))
        bars = -(-(last - first + 1) // merged)
        stop = min(2 * REACH, first + bars * merged)
        left, right = int(self.bins[:first].sum()), int(self.bins[stop:].sum())
        counts = np.add.reduceat(self.bins[first:stop], np.arange(0, stop - first, merged))
        counts[0] += left
        counts[-1] += right
        edges = (first - REACH + merged * np.arange(len(counts) + 1)) * self._width + self._quantile(LOW)
        return Histogram(edges.tolist(), counts.tolist(), left, right)

    @property
    def _width(self) -> float:
        return max(self._quantile(HIGH) - self._quantile(LOW), 1e-3) / BINS_BETWEEN

    def _quantile(self, share: float) -> float:
        return float(self.quantiles[np.searchsorted(self.shares, share)])
