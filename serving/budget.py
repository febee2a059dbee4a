"""What a batch may take, so that nobody waits long for what others have sent.

    budget = Budget(batch_size=32)
    with budget.batch([len(body) for body in bodies]) as allowance:
        if allowance.grants(seconds, ahead_s): ...

A request waits for the batch in hand, for those of the requests accepted before it, and for its own. What is ahead of a
batch is estimated before it is done, and what has been done is charged by the clock, so that a busy machine takes less.
A batch that was not full has left nobody waiting; full ones are a run, and share what a request may wait. Some of it is
kept for small requests, as many as can wait at a time: for them there is always time, whatever came before.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

BATCH_S = 1.5  # a batch
REQUEST_S = 1.4  # one request, by the estimate, once it is read
WAIT_S = 2.6  # a request, in its own batch and those before; its way there and back comes on top: three seconds in all
SMALL_S = 0.8  # what all small requests take that may wait at a time; they are always answered
IDLE_S = 0.5  # after so long nobody has waited for what was before
QUEUE = 128  # requests that a server lets wait for a model, if there is memory for them

ARRIVE_S = 7e-9  # a byte on its way from TorchServe into the worker
READ_S = 4e-9  # a byte of a body: JSON and base64
CHECK_S = 2e-9  # a byte of an image: its parts and their checksums
OPEN_S = 0.1e-3  # the header of one image
IMAGE_S = 0.2e-3  # decoding one image, beside its pixels
PIXEL_S = 55e-9  # a counted pixel
NUMBER_S = 0.4e-6  # a number of an answer
LAST_RUNS, MANY_IMAGES = 4, 8  # of a graph: the last ones that ran so many images say how it is lately

Clock = Callable[[], float]


class Allowance:
    """What one batch may still take.

    Attributes:
        request_s: what one request may take at all.

    Args:
        seconds: from now on.
        small_s: what a request may take for which there is always time.
        is_fresh: whether the batch has all of its time: then the first request is granted whatever it takes, for no
            other batch could ever take it.
        request_s: what one request may take at all.
        clock: of the time.
    """

    def __init__(
        self,
        seconds: float,
        small_s: float = 0.0,
        is_fresh: bool = True,
        request_s: float = REQUEST_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.request_s = request_s
        self._clock = clock
        self._small_s = small_s
        self._reads_until, self._ends = clock() + seconds / 2, clock() + seconds
        self._may_read_any = self._may_grant_any = is_fresh

    def lets_read(self, seconds: float) -> bool:
        """Whether a request may be read, which must leave half of the time for computing."""
        is_allowed = self._may_read_any or seconds <= self._small_s or self._clock() + seconds <= self._reads_until
        self._may_read_any = False
        return is_allowed

    def grants(self, seconds: float, ahead_s: float) -> bool:
        """Whether a request may be computed.

        Args:
            seconds: that it takes.
            ahead_s: what has been granted and is still to be done.
        """
        if seconds <= self._small_s:
            return True
        is_granted = self._may_grant_any or self._clock() + ahead_s + seconds <= self._ends
        self._may_grant_any = False
        return is_granted


@dataclass(frozen=True)
class Pace:
    """What an image takes once it is decoded.

    Attributes:
        least_s: at best; what is refused by it would be too much at any time.
        lately_s: at best of the last runs, which other work on the machine may have made slower.
    """

    least_s: float = 0.0
    lately_s: float = 0.0

    def plus(self, seconds: float) -> "Pace":
        """With so much more."""
        return Pace(self.least_s + seconds, self.lately_s + seconds)


class PaceMeter:
    """Learns from each run of a graph what an image takes in it."""

    def __init__(self) -> None:
        self._least_s = math.inf
        self._last_s: deque[float] = deque(maxlen=LAST_RUNS)

    def learn(self, images: int, seconds: float) -> None:
        """Take a run into account; one of few images tells little of what many take."""
        self._least_s = min(self._least_s, seconds / images)
        if images >= MANY_IMAGES:
            self._last_s.append(seconds / images)

    @property
    def pace(self) -> Pace:
        """What is known; nothing takes nothing."""
        if math.isinf(self._least_s):
            return Pace()
        return Pace(self._least_s, min(self._last_s, default=self._least_s))


UNLIMITED = Allowance(math.inf, request_s=math.inf)


class Budget:
    """Shares the time that requests may wait among the batches of a worker.

    Args:
        batch_size: requests in a full batch.
        clock: of the time.
    """

    def __init__(self, batch_size: int, clock: Clock = time.perf_counter) -> None:
        self._batch_size = batch_size
        self._clock = clock
        depth = -(-QUEUE // batch_size)  # batches that requests may wait for: that in hand, and full ones
        self._small_s = SMALL_S / depth  # of a batch
        self._run: deque[float] = deque(maxlen=depth)  # seconds of batches that requests may have waited for
        self._ended = clock()

    @contextmanager
    def batch(self, sizes: Sequence[int]) -> Iterator[Allowance]:
        """What a batch may take; it is timed while the block runs.

        Args:
            sizes: bytes of its requests.
        """
        began, arriving_s = self._clock(), ARRIVE_S * sum(sizes)
        if began - self._ended > IDLE_S + arriving_s:
            self._run.clear()
        is_full = len(sizes) >= self._batch_size  # there may be others behind it, and their small ones must have time
        seconds = min(BATCH_S, WAIT_S - sum(self._run) - arriving_s - (SMALL_S if is_full else self._small_s))
        try:
            yield Allowance(seconds, self._small_s / self._batch_size, seconds >= REQUEST_S, clock=self._clock)
        finally:
            if not is_full:
                self._run.clear()
            self._ended = self._clock()
            self._run.append(self._ended - began + arriving_s)
