"""What became of requests, from locust's own counts, which masters add up from their workers.

    locust.stats.bucket_response_time = bucket  # before the load
    print(figures_of(environment.stats.total).p99_ms)

Locust keeps a histogram, not each time. Its own buckets are whole milliseconds and, from 100 ms on, two digits, so that
5.5 ms becomes 6 and 149 ms 150. With `bucket` they have three digits: a percentile is right to half a percent.
"""

from dataclasses import asdict, dataclass
from typing import Any

DIGITS = 3


@dataclass(frozen=True)
class Figures:
    """Of some requests.

    Attributes:
        count: requests, failed ones among them.
        failed: those that were not answered, or not rightly.
        error_rate: their share.
        requests_per_second: right answers, over the time of the whole load.
        p50_ms: median latency of all answers; so are the others.
        p95_ms: of the slowest twentieth.
        p99_ms: of the slowest hundredth.
        max_ms: of the slowest.
        histogram: counts by latency in milliseconds, of three digits.
    """

    count: int
    failed: int
    error_rate: float
    requests_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    histogram: dict[float, int]

    def as_json(self) -> dict[str, Any]:
        """For a file; a histogram's keys are text there."""
        return asdict(self) | {"histogram": {f"{time:g}": count for time, count in self.histogram.items()}}


def bucket(response_time: float) -> float:
    """A time in milliseconds, to three digits."""
    return float(f"{response_time:.{DIGITS}g}")


def figures_of(entry: Any) -> Figures:
    """Figures of a `StatsEntry`."""
    p50, p95, p99 = (entry.get_response_time_percentile(share) or 0.0 for share in (0.50, 0.95, 0.99))
    return Figures(
        count=entry.num_requests,
        failed=entry.num_failures,
        error_rate=entry.fail_ratio,
        requests_per_second=round(entry.total_rps - entry.total_fail_per_sec, 3),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=round(entry.max_response_time, 2),
        histogram=dict(sorted(entry.response_times.items())),
    )
