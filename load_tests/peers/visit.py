"""One server, once: started, its answers compared, warmed up, asked by wrk and by an open loop, ended.

measured = visit(peer, job, rates={})
"""

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from load_tests import wrk
from load_tests.asked.asks import Ask
from load_tests.memory import PeakMemory, tree_bytes
from load_tests.open_loop.load import offer
from load_tests.peers.agreement import Question, require_agreement
from load_tests.peers.environments import environment
from load_tests.peers.peer import Launch, Peer
from load_tests.peers.running import PeerError, Server, free_port, running
from serving.bundle import Precision
from serving.cores import cores

START_TIMEOUT_S = 120.0
WARM_UP_S = 3
WARM_UP_CONNECTIONS = 32
SHARE = 0.5  # of what a server can answer, that the open loop offers
OPEN_LOOP_TIMES = 2  # as long as a measurement by wrk: it is the 99th percentile that counts
MEGABYTE = 1e6


@dataclass(frozen=True)
class Job:
    """What is measured of every server.

    Attributes:
        bundle: folder, absolute.
        precision: of its graph.
        image: that is sent.
        questions: to compare answers by.
        connections: of wrk.
        seconds: of each measurement.
    """

    bundle: Path
    precision: Precision
    image: bytes
    questions: Sequence[Question]
    connections: Sequence[int]
    seconds: int


def visit(peer: Peer, job: Job, rates: Mapping[str, float]) -> dict[str, Any]:
    """Measure a server.

    Args:
        peer: which.
        job: what.
        rates: of requests a second, by what they are of: open loops beside the one at half of its own best rate.

    Raises:
        PeerError: if it does not start, dies, fails requests or answers otherwise.
    """
    python = environment(peer)
    with tempfile.TemporaryDirectory(prefix="peer-") as scratch:
        launch = Launch(python, job.bundle, job.precision, free_port(), cores(), Path(scratch))
        with running(peer, launch, job.image, START_TIMEOUT_S) as server:
            require_agreement(job.questions, server, peer)
            return {"seconds_to_ready": round(server.seconds_to_ready, 2), **_loads(server, peer, job, rates)}


def _loads(server: Server, peer: Peer, job: Job, rates: Mapping[str, float]) -> dict[str, Any]:
    body, headers = peer.wrap(job.image)
    file = server.log.with_name("body")
    file.write_bytes(body)
    with PeakMemory(server.pid) as peak:
        _closed(server, file, WARM_UP_CONNECTIONS, WARM_UP_S, headers)
    closed = {str(count): _closed(server, file, count, job.seconds, headers) for count in job.connections}
    highest = max(peak.bytes, tree_bytes(psutil.Process(server.pid)))
    own = SHARE * max(row["per_second"] for row in closed.values())
    ask = Ask(peer.name, server.path, body, headers)
    opened = {
        of: _opened(server, ask, rate, OPEN_LOOP_TIMES * job.seconds) for of, rate in {peer.name: own, **rates}.items()
    }
    return {"memory_mb": round(highest / MEGABYTE), "closed": closed, "open": opened}


def _closed(server: Server, file: Path, connections: int, seconds: int, headers: Mapping[str, str]) -> dict[str, float]:
    try:
        load = wrk.ask(server.url, file, connections, seconds, headers)
    except subprocess.CalledProcessError as error:
        server.require_alive()
        raise PeerError(f"wrk must run, got exit code {error.returncode}: {error.stderr.strip()}") from error
    server.require_alive()
    if not load.per_second:
        raise PeerError(f"requests must be answered, got {load.failed} failures at {connections} connections")
    return {
        "per_second": round(load.per_second, 1),
        "p50_ms": round(load.p50, 2),
        "p99_ms": round(load.p99, 2),
        "failed": load.failed,
    }


def _opened(server: Server, ask: Ask, per_second: float, seconds: float) -> dict[str, float]:
    offered = offer(server.base, ask, per_second, seconds)
    server.require_alive()
    if offered.failed == len(offered.samples):
        raise PeerError(
            f"requests must be answered, got none answered of {offered.failed} at {per_second:.0f} a second"
        )
    return {
        "offered": round(per_second, 1),
        "p50_ms": round(offered.percentile(50), 2),
        "p99_ms": round(offered.percentile(99), 2),
        "failed": offered.failed,
        "overdue": offered.overdue,
        "generator_cpu": round(offered.generator_cpu, 3),
    }
