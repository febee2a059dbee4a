"""A load that comes whether or not the server keeps up, as that of many users does.

    offered = offer(server.url, Ask("PNG", "/predictions/mnist-mda", image), per_second=300, seconds=20)
    offered.percentile(99), offered.goodput, offered.failed, offered.overdue, offered.generator_cpu

Requests are due at seeded random times (a Poisson process) and latency counts from when one was due, not from when it
could be sent: a load generator that waits for answers before it asks again spares a slow server the requests that would
have shown how slow it is (coordinated omission). A process of its own sends (`generator.py`); answers are judged after
the load.
"""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from load_tests.asked.asks import Ask
from load_tests.open_loop.offered import Offered, Sample
from load_tests.open_loop.plan import Outcome, Plan, Sent

__all__ = ["Offered", "Sample", "arrivals", "offer"]

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 512  # requests that can be on their way at once; more are overdue: sent later, and count from when due
TIMEOUT_S = 30.0
NEEDED = ("uvloop", "httptools")


def arrivals(per_second: float, seconds: float, seed: int) -> list[float]:
    """When requests are due, in seconds from the start."""
    random = np.random.default_rng(seed)
    times = np.cumsum(random.exponential(1 / per_second, int(2 * per_second * seconds) + 100))
    return [float(due) for due in times[times < seconds]]


def draws(count: int, choices: int, seed: int) -> list[int]:
    """Which of so many choices each of `count` requests is."""
    return [int(index) for index in np.random.default_rng((seed, 1)).integers(choices, size=count)]


def offer(
    url: str,
    asks: Sequence[Ask] | Ask,
    per_second: float,
    seconds: float,
    seed: int = 0,
    connections: int = CONNECTIONS,
    timeout_s: float = TIMEOUT_S,
) -> Offered:
    """Post to an HTTP server again and again; returns when all is answered or given up.

    Args:
        url: of the server, `http://HOST:PORT`.
        asks: what is asked, drawn anew for each request; one that stands there twice is drawn twice as often.
        per_second: requests, on average.
        seconds: how long requests come.
        seed: of arrivals and draws.
        connections: at most.
        timeout_s: for an answer.

    Returns:
        What came of each request; refused, cut and silent connections are failures.

    Raises:
        ValueError: if there is nothing to ask, or nobody.
        RuntimeError: if the process that sends cannot be run.
    """
    choices = [asks] if isinstance(asks, Ask) else asks
    if not choices:
        raise ValueError("asks must hold at least one, got none")
    host, port = _address(url)
    due_s = arrivals(per_second, seconds, seed)
    drawn = draws(len(due_s), len(choices), seed)
    encoded = [_encoded(ask, f"{host}:{port}") for ask in choices]
    sent = _send(Plan(host, port, encoded, due_s, drawn, connections, timeout_s))
    return _offered(choices, due_s, drawn, sent, seconds)


def _address(url: str) -> tuple[str, int]:
    place = urlsplit(url)
    if place.scheme != "http" or place.hostname is None or place.path not in ("", "/"):
        raise ValueError(f"url must be http://HOST:PORT, got {url}")
    return place.hostname, place.port or 80


def _encoded(ask: Ask, host: str) -> bytes:
    """A request as it goes over the wire."""
    headers = {"Host": host, "Content-Length": str(len(ask.body)), **ask.headers}
    lines = [f"POST {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + ask.body


def _send(plan: Plan) -> Sent:
    """Have a process of its own do it."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise RuntimeError(
            f"the open loop must have {' and '.join(missing)}, got none: pip install {' '.join(missing)}"
        )
    command = [sys.executable, "-m", "load_tests.open_loop.generator"]
    ran = subprocess.run(command, input=pickle.dumps(plan), capture_output=True, cwd=ROOT)
    if ran.returncode != 0:
        raise RuntimeError(f"the load generator must end, got:\n{ran.stderr.decode(errors='replace')[-4000:]}")
    sent: Sent = pickle.loads(ran.stdout)
    return sent


def _offered(asks: Sequence[Ask], due_s: Sequence[float], drawn: Sequence[int], sent: Sent, seconds: float) -> Offered:
    """Judge each different answer once, and count latencies from when requests were due."""
    problems = [_problem(asks, outcome) for outcome in sent.outcomes]
    samples = [
        Sample(due, 1000 * (began - due), 1000 * (done - due), asks[index].kind, problems[outcome])
        for due, index, began, done, outcome in zip(due_s, drawn, sent.sent_s, sent.done_s, sent.outcome, strict=True)
    ]
    own_lateness = [sample.sent_late_ms for sample, waited in zip(samples, sent.waited, strict=True) if not waited]
    lasted = max(seconds, *sent.done_s, 0.0) if sent.done_s else seconds
    late = float(np.percentile(own_lateness, 99)) if own_lateness else 0.0
    return Offered(samples, seconds, sum(sent.waited), sent.cpu_s / lasted, late, sent.began)


def _problem(asks: Sequence[Ask], outcome: Outcome) -> str | None:
    index, status, body = outcome
    if isinstance(status, str):
        return status
    try:
        return asks[index].check(status, body)
    except (ValueError, LookupError, TypeError) as error:  # it is not of the form that the check reads
        return f"the answer must have the form that its check reads, got {type(error).__name__}: {error}"
