"""A load that comes whether or not the server keeps up, as that of many users does.

    offered = offer(f"{server.url}/predictions/mnist-mda", image, per_second=300, seconds=20)

Requests are due at seeded random times (a Poisson process) and latency counts from when one was due, not from when it
could be sent: a load generator that waits for answers before it asks again spares a slow server the requests that would
have shown how slow it is (coordinated omission).
"""

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

SENDERS = 64  # requests that can be on their way at once; more are late, and count so
TIMEOUT_S = 30


@dataclass(frozen=True)
class Offered:
    """What came of a load.

    Attributes:
        latencies_ms: of each request that was answered with 200, from when it was due.
        failed: requests that were not.
    """

    latencies_ms: Sequence[float]
    failed: int

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that so many percent of the answers did not exceed."""
        return float(np.percentile(self.latencies_ms, share))


def arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / per_second, int(2 * per_second * seconds) + 100))
    return [float(due) for due in times[times < seconds]]


def offer(url: str, body: bytes, per_second: float, seconds: float, seed: int = 0) -> Offered:
    """Post `body` to an HTTP server again and again; returns when all is answered."""
    lock, due_times = threading.Lock(), iter(arrivals(per_second, seconds, seed))
    latencies: list[float] = []
    failures: list[int] = []
    began = time.perf_counter() + 0.1
    arguments = (url, body, began, due_times, lock, latencies, failures)
    senders = [threading.Thread(target=_send, args=arguments, daemon=True) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return Offered(latencies, len(failures))


def _send(
    url: str,
    body: bytes,
    began: float,
    due_times: Iterator[float],
    lock: threading.Lock,
    latencies: list[float],
    failures: list[int],
) -> None:
    """Take the next request, wait until it is due, send it, over and over."""
    place = urlsplit(url)
    with closing(http.client.HTTPConnection(place.netloc, timeout=TIMEOUT_S)) as connection:
        while True:
            with lock:
                due = next(due_times, None)
            if due is None:
                return
            time.sleep(max(0.0, began + due - time.perf_counter()))
            if _answered(connection, place.path, body):
                latencies.append(1000 * (time.perf_counter() - began - due))
            else:
                failures.append(1)


def _answered(connection: http.client.HTTPConnection, path: str, body: bytes) -> bool:
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        response.read()
        return response.status == http.client.OK
    except (OSError, http.client.HTTPException):
        connection.close()  # the next request opens it again
        return False
