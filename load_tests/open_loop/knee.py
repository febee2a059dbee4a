"""The highest rate at which a server holds what is asked of it, found by trying.

    knee = find_knee(lambda rate, seed: offer(url, ask, rate, seconds=10, seed=seed), start=200)
    knee.per_second, knee.tried

The rate is doubled until an objective breaks, then the gap is halved until it is narrow. A run that holds is believed
at first. One that breaks may have been disturbed, so it is believed if the majority of three breaks, each with a seed
of its own. At the end the rate that held must hold in the majority too; if it does not, the gap moves. Where one run
in twenty says the opposite of the truth, 19 of 20 knees are right, with `confirmations=5` all but one in 200.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from load_tests.open_loop.offered import Offered

TryRate = Callable[[float, int], Offered]  # of requests a second, and seed
GROWTH = 2.0  # of the rate, until it breaks
SHOWN = 60  # characters of a problem
LEAST = 0.5  # requests a second, below which nobody looks for a knee


class NoKneeError(RuntimeError):
    """No rate at which the objectives hold, or none at which they break."""


@dataclass(frozen=True)
class Slo:
    """What is asked of a server.

    Attributes:
        p99_ms: most of the 99th percentile of right answers' latencies, from when the requests were due.
        goodput: least share of the offered rate that is answered right.
    """

    p99_ms: float = 100.0
    goodput: float = 0.97

    def broken(self, offered: Offered) -> str | None:
        """Which objective a load has broken, and how; None if none."""
        if not offered.samples:
            return None
        if (share := offered.goodput / offered.per_second) < self.goodput:
            why = "".join(f"; {count} x {words[:SHOWN]}" for words, count in offered.problems.most_common(1))
            return f"goodput must be at least {self.goodput:.0%} of the offered rate, got {share:.1%}{why}"
        if (p99 := offered.percentile(99)) > self.p99_ms:
            return f"p99 must be at most {self.p99_ms:g} ms, got {p99:.1f}"
        return None


@dataclass(frozen=True)
class Tried:
    """One run.

    Attributes:
        per_second: the rate that was asked for.
        seed: of its arrivals.
        offered: what came of it.
        broken: the objective that did not hold, and how.
    """

    per_second: float
    seed: int
    offered: Offered
    broken: str | None


@dataclass(frozen=True)
class Knee:
    """What was found.

    Attributes:
        per_second: the highest rate tried at which the majority of runs held.
        breaks_at: the lowest rate tried at which the majority broke.
        tried: all runs, as they were made.
    """

    per_second: float
    breaks_at: float
    tried: Sequence[Tried]

    @property
    def runs(self) -> Sequence[Tried]:
        """Those at the knee."""
        return [run for run in self.tried if run.per_second == self.per_second]


def find_knee(
    try_rate: TryRate,
    start: float,
    slo: Slo | None = None,
    *,
    gap: float = 1.06,
    confirmations: int = 3,
    most: float = 50_000,
) -> Knee:
    """Search for the knee.

    Args:
        try_rate: offers a rate, with a seed, and says what came of it.
        start: requests a second to begin with; the nearer, the fewer runs.
        slo: what must hold.
        gap: between the rate that holds and the one that breaks, as a ratio, when the search ends.
        confirmations: runs of which the majority decides, odd.
        most: requests a second that are tried.

    Returns:
        The knee, and every run.

    Raises:
        NoKneeError: if even next to no load breaks an objective, or `most` does not.
        ValueError: if an argument makes no sense.
    """
    if not (start > 0 and gap > 1 and confirmations % 2 == 1):
        raise ValueError(
            f"start must be above 0, gap above 1 and confirmations odd, got {start:g}, {gap:g}, {confirmations}"
        )
    search = _Search(try_rate, slo or Slo(), confirmations, most)
    low, high = search.bracket(min(start, most))
    while True:
        low, high = search.narrowed(low, high, gap)
        if not search.confirmed(low):  # it broke
            low, high = search.held_below(low), low
        elif search.confirmed(high):  # it held
            low, high = high, search.broke_above(high, gap)
        else:
            return Knee(low, high, search.tried)


@dataclass
class _Search:
    try_rate: TryRate
    slo: Slo
    confirmations: int
    most: float
    tried: list[Tried] = field(default_factory=list)

    def run(self, rate: float) -> None:
        seed = len(self.tried) + 1
        offered = self.try_rate(rate, seed)
        self.tried.append(Tried(rate, seed, offered, self.slo.broken(offered)))

    def holds(self, rate: float) -> bool:
        """By one run that holds, or by the majority if it breaks."""
        if not self.runs(rate):
            self.run(rate)
        held, broke = self.counts(rate)
        return held > 0 if not broke else self.confirmed(rate)

    def confirmed(self, rate: float) -> bool:
        """Whether the majority of `confirmations` runs holds; no more runs than it takes to know."""
        while max(self.counts(rate)) <= self.confirmations // 2:
            self.run(rate)
        held, broke = self.counts(rate)
        return held > broke

    def counts(self, rate: float) -> tuple[int, int]:
        """Runs that held, and that broke."""
        held = sum(run.broken is None for run in self.runs(rate))
        return held, len(self.runs(rate)) - held

    def runs(self, rate: float) -> list[Tried]:
        return [run for run in self.tried if run.per_second == rate]

    def bracket(self, start: float) -> tuple[float, float]:
        """A rate that holds, and one that breaks."""
        if self.holds(start):
            return start, self.broke_above(start, GROWTH)
        return self.held_below(start), start

    def held_below(self, rate: float) -> float:
        """The next rate below that holds, tried or found by going down."""
        if known := [run.per_second for run in self.tried if run.per_second < rate and self.holds(run.per_second)]:
            return max(known)
        while (rate := min([rate, *(run.per_second for run in self.tried)]) / GROWTH) >= LEAST:
            if self.holds(rate):
                return rate
        raise NoKneeError(f"some rate must hold, got none down to {LEAST:g} requests/s: {self.tried[-1].broken}")

    def broke_above(self, rate: float, growth: float) -> float:
        """The next rate above that breaks, tried or found by going up."""
        if known := [run.per_second for run in self.tried if run.per_second > rate and not self.holds(run.per_second)]:
            return min(known)
        while rate < self.most:
            rate = min(rate * growth, self.most)
            if not self.holds(rate):
                return rate
        raise NoKneeError(f"some rate must break an objective, got none up to {self.most:g} requests/s")

    def narrowed(self, low: float, high: float, gap: float) -> tuple[float, float]:
        """Halve the gap, as a ratio, until it is narrow."""
        while high / low > gap:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.holds(middle) else (low, middle)
        return low, high
