"""A real `tritonserver`, begun and ended, and what is put into its repositories."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tritonclient.grpc
import tritonclient.http
from conftest import ROOT, free_port, until
from prometheus_client.parser import text_string_to_metric_families

from serving.settings import DEFAULT_SETTINGS, changed
from serving.triton.repository import Entry
from serving.triton.served import Served

RUN = ROOT / "serving" / "triton" / "run.py"
START_S = 120
READY = "/v2/health/ready"


@dataclass(frozen=True)
class Triton:
    """A `tritonserver` that runs."""

    process: subprocess.Popen[bytes]
    repository: Path
    log: Path
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def http(self) -> tritonclient.http.InferenceServerClient:
        return tritonclient.http.InferenceServerClient(
            f"127.0.0.1:{self.http_port}", network_timeout=120, connection_timeout=120
        )

    @property
    def grpc(self) -> tritonclient.grpc.InferenceServerClient:
        return tritonclient.grpc.InferenceServerClient(
            f"127.0.0.1:{self.grpc_port}", channel_args=[("grpc.enable_http_proxy", 0)]
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.http_port}{path}", timeout=60, trust_env=False)

    def metrics(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60, trust_env=False).text
        return samples(text)

    def is_waited_for(self) -> bool:
        """Whether a request waits in a queue."""
        return sum(self.metrics()["nv_inference_pending_request_count"].values()) > 0


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value
    return found


def run(python: Path, repository: Path, folder: Path, *options: str) -> Triton:
    """Begin a `tritonserver`; nothing of the project is on its path."""
    ports, log = [free_port() for _ in range(3)], folder / "triton.log"
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    with log.open("wb") as output:
        command = [str(python), str(RUN), str(repository), *flags, *options]
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    return Triton(process, repository, log, *ports)


def wait_ready(server: Triton) -> None:
    def is_ready() -> bool:
        assert server.process.poll() is None, server.log.read_text(errors="replace")[-3000:]
        try:
            return server.get(READY).status_code == 200
        except httpx.TransportError:
            return False

    until(is_ready, START_S)


def end(server: Triton) -> None:
    server.process.terminate()
    try:
        server.process.wait(60)
    finally:
        server.process.kill()
        server.process.wait()


def entry(bundle: Path, device: Any = "cpu", instances: int = 1, **settings: Any) -> Entry:
    return Entry(
        bundle, Served(settings=changed(DEFAULT_SETTINGS, threads=1, **settings), device=device, instances=instances)
    )
