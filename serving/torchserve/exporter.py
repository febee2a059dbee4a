"""The exporter: a small process beside TorchServe that says over HTTP how the server is.

    GET /metrics   the workers' metrics, added up; how many workers are ready; and TorchServe's own metrics
    GET /ready     200 if every worker of every model can answer and the server does not drain, else 503
    GET /live      200

The keeper begins it, and begins it again when it has ended or gone silent. It ends when its input does, which is when
the keeper has ended: python -m serving.torchserve.exporter STATE HOST PORT
"""

import json
import sys
import threading
from collections.abc import Iterable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from serving.metrics import PREFIX
from serving.torchserve import launch
from serving.torchserve.heartbeat import HEARTBEATS, Heartbeat
from serving.torchserve.management import ModelStatus
from serving.torchserve.state import METRICS_FOLDER, load

_TIMEOUT_S = 5.0  # of TorchServe, and of a client that says nothing


class Readiness(Collector):
    """Workers of each model, and how many of them are ready."""

    def __init__(self, statuses: Iterable[ModelStatus]) -> None:
        self._statuses = list(statuses)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The metrics; called at each scrape."""
        workers = GaugeMetricFamily(f"{PREFIX}_workers", "Workers that there should be.", labels=["model", "version"])
        ready = GaugeMetricFamily(f"{PREFIX}_workers_ready", "Workers that can answer.", labels=["model", "version"])
        for one in self._statuses:
            workers.add_metric([one.name, one.version], one.workers)
            ready.add_metric([one.name, one.version], 0 if one.draining else one.ready)
        return [workers, ready]


def metrics(state: Path) -> bytes:
    """All metrics of the server in `state`, as Prometheus reads them."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(state / METRICS_FOLDER))  # type: ignore[no-untyped-call]
    registry.register(Readiness(launch.status(state) or []))
    return generate_latest(registry) + _of_torchserve(state)


def readiness(state: Path) -> tuple[HTTPStatus, bytes]:
    """Status and body of /ready."""
    statuses = launch.status(state)
    is_ready = bool(statuses) and all(one.is_ready for one in statuses or [])
    body = {"ready": is_ready, "models": [asdict(one) for one in statuses or []]}
    return HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, json.dumps(body).encode()


def serve(state: Path, host: str, port: int) -> None:
    """Answer until the standard input ends."""

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            if self.path == "/metrics":
                self._send(HTTPStatus.OK, metrics(state), CONTENT_TYPE_PLAIN_0_0_4)
            elif self.path == "/ready":
                self._send(*readiness(state), "application/json")
            elif self.path == "/live":
                self._send(HTTPStatus.OK, b"{}", "application/json")
            else:
                self._send(HTTPStatus.NOT_FOUND, b'{"error": "only /metrics, /ready and /live"}', "application/json")

        def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing of every scrape."""

    with ThreadingHTTPServer((host, port), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        Heartbeat(state / HEARTBEATS)
        sys.stdin.buffer.read()
        http.shutdown()


def _of_torchserve(state: Path) -> bytes:
    server = load(state)
    if server is None:
        return b""
    try:
        response = httpx.get(server.torchserve_metrics_url, timeout=_TIMEOUT_S, trust_env=False)
    except httpx.HTTPError:
        return b""  # its workers' metrics are worth more than none
    return response.content if response.status_code == HTTPStatus.OK else b""


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
