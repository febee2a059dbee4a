"""Quantiles of a histogram of Prometheus, as its `histogram_quantile` works them out.

quantile(0.99, {"0.005": 3.0, "0.01": 9.0, "+Inf": 10.0})     # 0.01
"""

import math
from collections.abc import Mapping


def quantile(share: float, buckets: Mapping[str, float]) -> float | None:
    """The value that a share of the observations does not exceed.

    It is interpolated within its bucket, as if the bucket's observations were spread evenly; one beyond the last bound
    is told as that bound.

    Args:
        share: from 0 to 1.
        buckets: how many observations are not above each bound, by the bound; all of them by `+Inf`.

    Returns:
        None without observations.
    """
    ascending = sorted((float(bound), count) for bound, count in buckets.items())
    if not ascending or not math.isinf(ascending[-1][0]) or ascending[-1][1] <= 0:
        return None
    rank = share * ascending[-1][1]
    place = next(n for n, (_, count) in enumerate(ascending) if count >= rank)
    upper, count = ascending[place]
    if math.isinf(upper):
        return ascending[-2][0] if len(ascending) > 1 else None
    lower, below = ascending[place - 1] if place else (0.0, 0.0)
    if place == 0 and upper <= 0:
        return upper
    return lower + (upper - lower) * (rank - below) / (count - below) if count > below else lower


def parts(buckets: Mapping[str, float]) -> list[tuple[float, float]]:
    """How many observations are in each bucket alone: its upper bound, and their number; without those beyond all."""
    ascending = sorted((float(bound), count) for bound, count in buckets.items() if bound != "+Inf")
    below = [0.0, *(count for _, count in ascending)]
    return [(bound, count - under) for (bound, count), under in zip(ascending, below, strict=False)]
