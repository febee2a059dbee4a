"""What came of an open-loop load: each request's latency from when it was due, and what was wrong with its answer.

offered.percentile(99), offered.goodput, offered.failed, offered.overdue, offered.generator_cpu
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
        overdue: requests that had to wait for a free connection when they were due, and were sent later.
        generator_cpu: cores that the load generator used.
        began: when the start was, by `time.perf_counter`.
    """

    samples: Sequence[Sample]
    seconds: float
    overdue: int
    generator_cpu: float
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
    def per_second(self) -> float:
        """The rate that was offered, as it was drawn."""
        return len(self.samples) / self.seconds

    @property
    def goodput(self) -> float:
        """Right answers a second: all of them, over the time until the last request was answered or failed."""
        last = max((sample.due_s + sample.latency_ms / 1000 for sample in self.samples), default=0.0)
        return (len(self.samples) - self.failed) / max(self.seconds, last)

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that so many percent of the right answers did not exceed."""
        return float(np.percentile(self.latencies_ms, share))

    def sent_late_ms(self, share: float) -> float:
        """Likewise, how late the requests were sent; those that had to wait for a free connection are among them."""
        return float(np.percentile([sample.sent_late_ms for sample in self.samples], share))
