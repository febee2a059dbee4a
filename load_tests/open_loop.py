"""A load that comes whether or not the server keeps up, as that of many users does.

    offered = offer(server.url, Ask("PNG", "/predictions/mnist-mda", image), per_second=300, seconds=20)

Requests are due at seeded random times (a Poisson process) and latency counts from when one was due, not from when it
could be sent: a load generator that waits for answers before it asks again spares a slow server the requests that would
have shown how slow it is (coordinated omission).
"""

import http.client
import select
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np

from load_tests.asks import Ask
from load_tests.offered import Offered, Sample

__all__ = ["Offered", "Sample", "arrivals", "offer"]

SENDERS = 64  # requests that can be on their way at once; more are late, and count so
TIMEOUT_S = 30
LATE_MS = 5.0


def arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / per_second, int(2 * per_second * seconds) + 100))
    return [float(due) for due in times[times < seconds]]


def offer(url: str, asks: Sequence[Ask] | Ask, per_second: float, seconds: float, seed: int = 0) -> Offered:
    """Post to an HTTP server again and again; returns when all is answered.

    Args:
        url: of the server.
        asks: what is asked, drawn anew for each request, seeded.
        per_second: requests, on average.
        seconds: how long requests come.
        seed: of arrivals and draws.

    Returns:
        What came of each request.
    """
    due_times = arrivals(per_second, seconds, seed)
    choices = [asks] if isinstance(asks, Ask) else asks
    drawn = np.random.default_rng((seed, 1)).integers(len(choices), size=len(due_times))
    requests = iter([(due, choices[index]) for due, index in zip(due_times, drawn, strict=True)])
    lock, samples = threading.Lock(), list[Sample]()
    cpu, began = time.process_time(), time.perf_counter() + 0.1
    arguments = (url, began, requests, lock, samples)
    senders = [threading.Thread(target=_send, args=arguments, daemon=True) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    used = (time.process_time() - cpu) / max(seconds, time.perf_counter() - began)
    overdue = sum(sample.sent_late_ms > LATE_MS for sample in samples)
    return Offered(sorted(samples, key=lambda sample: sample.due_s), seconds, overdue, used, began)


def _send(
    url: str, began: float, requests: Iterator[tuple[float, Ask]], lock: threading.Lock, samples: list[Sample]
) -> None:
    """Take the next request, wait until it is due, send it, over and over."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)) as connection:
        while True:
            with lock:
                due, ask = next(requests, (0.0, None))
            if ask is None:
                return
            time.sleep(max(0.0, began + due - time.perf_counter()))
            late = 1000 * (time.perf_counter() - began - due)
            problem = _problem(connection, ask)
            latency = 1000 * (time.perf_counter() - began - due)
            samples.append(Sample(due, late, latency, ask.kind, problem))


def _problem(connection: http.client.HTTPConnection, ask: Ask) -> str | None:
    if connection.sock is not None and select.select([connection.sock], [], [], 0)[0]:
        connection.close()  # the server has closed it since its last answer, as any client notices
    try:
        connection.request("POST", ask.path, ask.body, dict(ask.headers))
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()  # the next request opens it again
        return f"{type(error).__name__}: {error}"
    return ask.check(response.status, body)
