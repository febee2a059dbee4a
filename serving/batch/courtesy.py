"""Being nice: a worker that leaves the cores to whoever else wants them, such as a server beside it.

A low priority alone is not enough: it lets others go first, but what runs on a neighbouring hyperthread, or in the same
caches, still takes half of their speed. So a nice worker also rests after each batch, the longer the busier others are.
"""

import os
import time
from collections.abc import Callable

import psutil

from serving.cores import cores

RESTS = 10.0  # batches that are rested, where others keep all cores busy
MOST_S = 10.0  # of one rest


class Courtesy:
    """Rests of one worker.

    Args:
        workers: how many there are, who take as much as this one.
        clock: seconds.
        own: seconds of a core that this worker has taken.
        busy: seconds of all cores that were not idle.
        sleep: waits.
    """

    def __init__(
        self,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
        busy: Callable[[], float] = lambda: _busy_s(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._workers, self._clock, self._own, self._busy, self._sleep = workers, clock, own, busy, sleep
        self._last = self._now()
        self._woke = clock()

    def rest(self) -> None:
        """Wait, if others have wanted the cores since the last rest began."""
        (at, own, busy), now = self._last, self._now()
        self._last = now
        elapsed, mine = now[0] - at, self._workers * (now[1] - own)
        others = max(0.0, now[2] - busy - mine) / (elapsed * cores()) if elapsed else 0.0
        self._sleep(min(MOST_S, RESTS * min(others, 1.0) * (now[0] - self._woke)))
        self._woke = self._clock()

    def _now(self) -> tuple[float, float, float]:
        return self._clock(), self._own(), self._busy()


def lower_priority() -> None:
    """Run only where nobody else wants to."""
    os.nice(19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)
