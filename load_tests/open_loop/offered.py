"""What came of an open-loop load: each request's latency from when it was due, and what was wrong with its answer.

offered.percentile(99), offered.goodput, offered.failed, offered.overdue, offered.generator_cpu
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST = 0.99  # of right answers, by which goodput is timed
BUSY_CORES = 0.8  # of the one that the generator can use, above which its own queue is in the latencies
LATE_MS = 10.0  # likewise, how late it may send
BUCKETS = 20  # of a histogram, from one power of ten to the next
PROBLEMS = 5  # that are kept in words


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        due_s: when it was due, in seconds from the start.
        sent_late_ms: how much later it was sent.
        latency_ms: from when it was due until its answer, or what came instead, was there.
        kind: of the request.
        problem: why it failed; None if it did not.
    """

    due_s: float
    sent_late_ms: float
    latency_ms: float
    kind: str
    problem: str | None


@dataclass(frozen=True)
class Offered:
    """What came of a load.

    Attributes:
        samples: of all requests, as they were due.
        seconds: in which they were due.
        overdue: requests that found no free connection when they were due, and were sent as soon as there was one.
        generator_cpu: cores that the load generator used.
        generator_late_ms: how late it sent the others, at most but for the latest 1 % of them.
        began: when the load started, by `time.monotonic`.
    """

    samples: Sequence[Sample]
    seconds: float
    overdue: int
    generator_cpu: float
    generator_late_ms: float = 0.0
    began: float = 0.0

    @property
    def latencies_ms(self) -> list[float]:
        """Of right answers."""
        return [sample.latency_ms for sample in self.samples if sample.problem is None]

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return sum(sample.problem is not None for sample in self.samples)

    @property
    def problems(self) -> Counter[str]:
        """Why requests failed, and how many of them."""
        return Counter(sample.problem for sample in self.samples if sample.problem is not None)

    @property
    def per_second(self) -> float:
        """The rate that was offered, as it was drawn."""
        return len(self.samples) / self.seconds

    @property
    def goodput(self) -> float:
        """Right answers a second, until all but the latest 1 % of them were there: a straggler does not count."""
        ends = sorted(sample.due_s + sample.latency_ms / 1000 for sample in self.samples if sample.problem is None)
        if not ends:
            return 0.0
        most = ends[: math.ceil(MOST * len(ends))]
        return MOST * len(ends) / max(MOST * self.seconds, most[-1])

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that so many percent of the right answers did not exceed; inf without any."""
        latencies = self.latencies_ms
        return float(np.percentile(latencies, share)) if latencies else math.inf

    def sent_late_ms(self, share: float) -> float:
        """Likewise, how late requests were sent, whether or not there was a free connection."""
        return float(np.percentile([sample.sent_late_ms for sample in self.samples], share)) if self.samples else 0.0

    @property
    def generator_limit(self) -> str | None:
        """In which respect the load generator, rather than the server, was slow; None if in none."""
        if self.generator_cpu > BUSY_CORES:
            return f"the load generator used {self.generator_cpu:.2f} of its one core"
        if self.generator_late_ms > LATE_MS:
            return f"1 % of the requests were sent more than {self.generator_late_ms:.0f} ms late"
        return None

    def histogram(self) -> dict[str, int]:
        """Right answers by the milliseconds that they took at most; more than an eighth less is the next bound."""
        steps = Counter(math.ceil(BUCKETS * math.log10(max(latency, 0.01))) for latency in self.latencies_ms)
        return {f"{10 ** (step / BUCKETS):.3g}": steps[step] for step in sorted(steps)}

    def figures(self) -> dict[str, Any]:
        """What is kept of it, as JSON; without right answers there are no latencies."""
        p50, p99 = (round(self.percentile(share), 2) if self.latencies_ms else None for share in (50, 99))
        return {
            "offered_per_second": round(self.per_second, 1),
            "goodput_per_second": round(self.goodput, 1),
            "p50_ms": p50,
            "p99_ms": p99,
            "failed": self.failed,
            "problems": dict(self.problems.most_common(PROBLEMS)),
            "overdue": self.overdue,
            "generator_cpu": round(self.generator_cpu, 3),
            "generator_late_ms": round(self.generator_late_ms, 2),
            "sent_late_p99_ms": round(self.sent_late_ms(99), 2),
            "histogram_ms": self.histogram(),
        }
