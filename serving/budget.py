"""What a batch may take, so that nobody waits long for what others have sent.

    budget = Budget(batch_size=32)
    with budget.batch([len(body) for body in bodies]) as allowance:
        if allowance.grants(seconds): ...

A request waits for the batch in hand, for those of the requests accepted before it, and for its own. What is ahead of a
batch is estimated before it is done, and what has been done is charged by the clock, so that a busy machine takes less.
A batch that was not full has left nobody waiting; full ones are a run, and share what a request may wait.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

BATCH_S = 1.5  # a batch
REQUEST_S = 1.4  # one request, by the estimate, once it is read
WAIT_S = 3.0  # a request, from its acceptance to its answer
FLOORS_S = 0.8  # what the last batches of a run may take together, so that small requests are always answered
IDLE_S = 0.5  # after so long nobody has waited for what was before
QUEUE = 100  # requests that TorchServe lets wait for a model

ARRIVE_S = 7e-9  # a byte on its way from TorchServe into the worker
READ_S = 4e-9  # a byte of a body: JSON and base64
CHECK_S = 2e-9  # a byte of an image: its parts and their checksums
OPEN_S = 0.1e-3  # the header of one image
IMAGE_S = 0.2e-3  # decoding one image, beside its pixels
PIXEL_S = 55e-9  # a counted pixel
NUMBER_S = 0.4e-6  # a number of an answer

Clock = Callable[[], float]


class Allowance:
    """What one batch may still take.

    Attributes:
        request_s: what one request may take at all.

    Args:
        seconds: from now on.
        is_fresh: whether its requests have waited for nothing: then the first one is granted whatever it takes, for no
            other batch could ever take it.
        request_s: what one request may take at all.
        clock: of the time.
    """

    def __init__(
        self,
        seconds: float,
        is_fresh: bool = True,
        request_s: float = REQUEST_S,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.request_s = request_s
        self._clock = clock
        self._reads_until, self._ends = clock() + seconds / 2, clock() + seconds
        self._may_read_any = self._may_grant_any = is_fresh

    def lets_read(self, seconds: float) -> bool:
        """Whether a request may be read, which must leave half of the time for computing."""
        is_allowed = self._may_read_any or self._clock() + seconds <= self._reads_until
        self._may_read_any = False
        return is_allowed

    def grants(self, seconds: float) -> bool:
        """Whether there is time for so much; one that gets it has to take it."""
        is_granted = self._may_grant_any or self._clock() + seconds <= self._ends
        self._may_grant_any = False
        return is_granted


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
        depth = -(-QUEUE // batch_size)  # full batches ahead of a request at most
        self._floor_s = FLOORS_S / depth
        self._later_s = FLOORS_S - self._floor_s  # of the batches behind a full one
        self._run: deque[float] = deque(maxlen=depth)  # seconds of batches that requests may have waited for
        self._ended = clock()

    @contextmanager
    def batch(self, sizes: Sequence[int]) -> Iterator[Allowance]:
        """What a batch may take; it is timed while the block runs.

        Args:
            sizes: bytes of its requests.
        """
        began, is_full = self._clock(), len(sizes) >= self._batch_size
        if began - self._ended > IDLE_S:
            self._run.clear()
        waited_s = sum(self._run) + ARRIVE_S * sum(sizes)
        allowed_s = min(BATCH_S, WAIT_S - waited_s - (self._later_s if is_full else 0))
        yield Allowance(max(self._floor_s, allowed_s), allowed_s >= REQUEST_S, clock=self._clock)
        if not is_full:
            self._run.clear()
        self._ended = self._clock()
        self._run.append(self._ended - began + ARRIVE_S * sum(sizes))
