"""What a server's counters have grown by over the last minutes, from scrape to scrape.

    history = History()
    history.add(time.monotonic(), scrape(url))      # every few seconds, while somebody looks
    growth = history.over(60)                       # None until there are two scrapes

A counter that has fallen says that the server began anew, and then all counters of that model count from nothing: no
rate is ever below zero. A series that appears between two scrapes has come from nothing too.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from serving.console.health.scrape import GAUGES, Counts, Series
from serving.metrics import PREFIX

KEPT_S = 600.0
GAP_S = 60.0  # without a scrape for so long, what was before tells nothing of now

BUCKET = "_bucket"
NOT_COUNTED = {f"{PREFIX}_{name}" for name in GAUGES}


@dataclass(frozen=True)
class Growth:
    """What counters have grown by.

    Attributes:
        until: when that was, in seconds of a steady clock.
        lasted_s: how long it took.
        counts: by series; those that have not grown are left out, but for the buckets of histograms.
    """

    until: float
    lasted_s: float
    counts: Counts


class History:
    """The last ten minutes of a server's counters.

    Attributes:
        steps: what they have grown by from scrape to scrape, the oldest first.
        latest: what the newest scrape has found; None before the first.
    """

    def __init__(self) -> None:
        self.steps: deque[Growth] = deque()
        self.latest: Counts | None = None
        self._at = 0.0
        self._before: dict[Series, float] = {}

    def add(self, at: float, found: Counts) -> None:
        """Take in a scrape.

        Args:
            at: when, in seconds of a steady clock.
            found: what it has found.
        """
        counted = {series: value for series, value in found.values.items() if series[0] not in NOT_COUNTED}
        if self.latest is None or at - self._at > GAP_S:
            self.steps.clear()
            self._before = counted
        else:
            begun_anew = {_owner(series) for series, value in counted.items() if value < self._before.get(series, 0)}
            before = {series: value for series, value in self._before.items() if _owner(series) not in begun_anew}
            growth = {series: value - before.get(series, 0) for series, value in counted.items()}
            grown = Counts({one: value for one, value in growth.items() if value or one[0].endswith(BUCKET)})
            self.steps.append(Growth(at, at - self._at, grown))
            self._before = before | counted
        while self.steps and self.steps[0].until <= at - KEPT_S:
            self.steps.popleft()
        self.latest, self._at = found, at

    def over(self, seconds: float) -> Growth | None:
        """What has grown over the last so many seconds, as far as is known; None before the second scrape."""
        recent = [step for step in self.steps if step.until > self._at - seconds]
        if not recent:
            return None
        lasted_s = sum(step.lasted_s for step in recent)
        return Growth(self._at, lasted_s, _added(step.counts for step in recent))


def _added(parts: Iterable[Counts]) -> Counts:
    sums: dict[Series, float] = {}
    for part in parts:
        for series, value in part.values.items():
            sums[series] = sums.get(series, 0) + value
    return Counts(sums)


def _owner(series: Series) -> str:
    """Whose counter it is: a version of a model's, as far as TorchServe tells versions apart, or the server's."""
    labels = dict(series[1])
    return " ".join(labels.get(name, "") for name in ("model", "version", "model_name"))
