"""An open loop that goes on for as long as it is let, and keeps what came of it window by window.

    with SteadyLoad(url, asks, per_second=500, window_s=10, began=time.monotonic()) as load: ...
    load.windows, load.failures

Each window is a load of its own (`open_loop.py`), which begins on time whether or not the one before has been answered.
"""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from load_tests.asked.asks import Ask
from load_tests.open_loop.load import Offered, Sample, offer
from load_tests.soak.outcomes import Outcome, outcome_of, told_apart

WINDOWS_AT_ONCE = 32  # that wait for their last answers
TIMEOUT_S = 90.0  # for an answer: several times what it takes to replace a worker that hangs


@dataclass(frozen=True)
class Window:
    """What came of the requests that were due in a part of the time.

    Attributes:
        at_s: its start, in seconds from the load's.
        seconds: how long it is.
        requests: how many were due.
        outcomes: how many of them had which.
        p50_ms: median latency of right answers, from when they were due; None without any.
        p99_ms: likewise, of the slowest hundredth.
        overdue: requests that had to wait for a free connection.
        generator_cpu: cores that the load generator used.
    """

    at_s: float
    seconds: float
    requests: int
    outcomes: dict[Outcome, int]
    p50_ms: float | None
    p99_ms: float | None
    overdue: int
    generator_cpu: float


@dataclass(frozen=True)
class Failure:
    """A request without a right answer.

    Attributes:
        sent_s: when it was sent, in seconds from the load's start.
        ended_s: when it was known to have failed.
        kind: of the request.
        outcome: what became of it.
        problem: in words.
    """

    sent_s: float
    ended_s: float
    kind: str
    outcome: Outcome
    problem: str


class SteadyLoad:
    """Asks from the beginning of the block to its end.

    Args:
        url: of the server.
        asks: what is asked, drawn anew for each request.
        per_second: requests, on average.
        window_s: length of a window.
        began: when the load's seconds begin, by `time.monotonic`.
    """

    def __init__(self, url: str, asks: Sequence[Ask], per_second: float, window_s: float, began: float) -> None:
        self.windows: list[Window] = []
        self.failures: list[Failure] = []
        self._load = (url, [told_apart(ask) for ask in asks], per_second, window_s)
        self._window_s, self._began = window_s, began
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(WINDOWS_AT_ONCE)
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=error is not None)
        if self._errors and error is None:
            raise self._errors[0]
        self.windows.sort(key=lambda window: window.at_s)
        self.failures.sort(key=lambda failure: failure.sent_s)

    def _ask(self) -> None:
        due, seed = time.monotonic(), 0
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            self._pool.submit(offer, *self._load, seed=seed, timeout_s=TIMEOUT_S).add_done_callback(self._note)
            due, seed = due + self._window_s, seed + 1

    def _note(self, part: "Future[Offered]") -> None:
        """Keep what matters of a window whose last answer has come."""
        if part.cancelled():
            return
        if (error := part.exception()) is not None:
            self._errors.append(error)
            return
        offered = part.result()
        start = offered.began - self._began
        self.windows.append(_window(start, offered))
        self.failures += [_failure(start, one) for one in offered.samples if one.problem is not None]


def _window(start: float, offered: Offered) -> Window:
    percentiles = [round(offered.percentile(share), 2) if offered.latencies_ms else None for share in (50, 99)]
    return Window(
        round(start, 2),
        offered.seconds,
        len(offered.samples),
        dict(Counter(outcome_of(one.problem) for one in offered.samples)),
        percentiles[0],
        percentiles[1],
        offered.overdue,
        round(offered.generator_cpu, 3),
    )


def _failure(start: float, one: Sample) -> Failure:
    sent, ended = one.due_s + one.sent_late_ms / 1000, one.due_s + one.latency_ms / 1000
    problem = one.problem or ""
    return Failure(round(start + sent, 3), round(start + ended, 3), one.kind, outcome_of(problem), problem)
