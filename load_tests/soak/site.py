"""A server of its own for a load that does harm to it: its folders, its commands, what it says of itself.

with made_site(bundle, scratch, "float32", Bounds(5, 0.01, 60), workers=None) as site:
    site.command("deploy", site.path(GOOD))
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from load_tests.offline.commands import ROOT
from serving.bundle import MANIFEST, Bundle, Precision, write_manifest
from serving.errors import ServerError
from serving.settings import WorkerSettings
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.ports import LOOPBACK, choose_ports
from serving.torchserve.state import Server, load

COMMAND_S = 300
PORTS = range(20_000, 30_000)  # below those that outgoing connections get, which could take one while it is down
GOOD, BAD, DAMAGED = 1, 2, 3  # what is added to the version of the bundle, for those that are deployed
POLL_S = 0.02


@dataclass(frozen=True)
class Bounds:
    """What is asked of the server, and how long some of its clients hang.

    Attributes:
        ready_within_s: how long it may take to be ready again.
        most_refused: share of the requests that it may refuse while it is up.
        hold_s: how long clients hang.
    """

    ready_within_s: float
    most_refused: float
    hold_s: float


@dataclass(frozen=True)
class Site:
    """Where the server is and what is known of it.

    Attributes:
        bundle: that is served.
        folder: of everything of its own.
        settings: of its workers.
        port: its inference port, the same after each start.
        bounds: what is asked of it.
    """

    bundle: Bundle
    folder: Path
    settings: WorkerSettings
    port: int
    bounds: Bounds

    @property
    def name(self) -> str:
        """Of the model."""
        return self.bundle.manifest.name

    @property
    def state(self) -> Path:
        """The server's folder."""
        return self.folder / "state"

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def server(self) -> Server:
        """What the record says; there must be one."""
        if (server := load(self.state)) is None:
            raise ServerError(f"a server must run in {self.state}, got none")
        return server

    def start(self) -> "subprocess.CompletedProcess[str]":
        """Start the server by its command."""
        places = ["--model-store", self.folder / "store", "--port", self.port]
        return self.command("start", "--models", self.name, "--model-api", "--device", "cpu", *places)

    def command(self, *words: object) -> "subprocess.CompletedProcess[str]":
        """Run `python -m serving ...` on the server's folder, to its end."""
        begun = self.begin(*words)
        try:
            output, errors = begun.communicate(timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            begun.kill()
            begun.communicate()
            raise
        return subprocess.CompletedProcess(begun.args, begun.returncode, output, errors)

    def begin(self, *words: object) -> "subprocess.Popen[str]":
        """Likewise, without waiting for it."""
        command = [sys.executable, "-m", "serving", *map(str, words), "--state", str(self.state)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def first(self) -> int:
        """The version that is served from the start."""
        return self.bundle.manifest.version

    def path(self, after: int) -> Path:
        """Folder of a version that can be deployed: one that comes so many after the first."""
        return self.folder / "bundles" / self.name / str(self.first + after)

    def workers(self) -> dict[int, bool]:
        """The process of each worker of all versions, and whether it says that it is ready."""
        answer = httpx.get(f"{self.server.management_url}/models/{self.name}/all", trust_env=False, timeout=10)
        return {one["pid"]: one["status"] == "READY" for entry in answer.json() for one in entry["workers"]}

    def is_ready(self) -> bool:
        """What `/ready` says."""
        url = self.server.metrics_url.replace("/metrics", "/ready")
        try:
            return httpx.get(url, timeout=10, trust_env=False).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def version(self, image: bytes) -> str:
        """Which version answers where none is named."""
        answer = httpx.post(f"{self.url}/predictions/{self.name}", content=image, trust_env=False, timeout=30)
        return str(answer.json().get("model", {}).get("version", answer.text))


@contextmanager
def made_site(
    folder: Path, scratch: Path, precision: Precision, bounds: Bounds, workers: int | None = None
) -> Iterator[Site]:
    """A server that runs, and all that its faults need; it is ended with the block.

    Args:
        folder: of the bundle.
        scratch: an empty folder.
        precision: that it is served in.
        bounds: what is asked of it.
        workers: of the model; None leaves it to the machine.
    """
    settings = WorkerSettings(precision=precision, workers=workers)
    site = Site(Bundle.load(folder), scratch, settings, _free_port(), bounds)
    package(folder, model_store=scratch / "store", settings=settings)
    _write_versions(site, precision)
    try:
        began = site.start()
        if began.returncode != 0:
            raise ServerError(began.stderr.strip().removeprefix("error: "))
        yield site
    finally:
        launch.stop(site.state, grace_s=0, drain_s=0)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition; whether it came about in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _free_port() -> int:
    """The first of six ports in a row."""
    while True:
        port = random.choice(PORTS)
        try:
            return choose_ports(LOOPBACK, LOOPBACK, port).inference
        except ServerError:
            continue


def _write_versions(site: Site, precision: Precision) -> None:
    """A version that is as good as the first, one whose golden answers are wrong, and one with a damaged graph."""
    for version in (GOOD, BAD, DAMAGED):
        shutil.copytree(site.bundle.path, site.path(version), ignore=shutil.ignore_patterns("report"))
        manifest = json.loads((site.path(version) / MANIFEST).read_bytes())
        (site.path(version) / MANIFEST).write_text(json.dumps(manifest | {"version": site.first + version}))
    _spoil_answers(site, precision)
    graph = Bundle.load(site.path(DAMAGED)).onnx(precision)
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)


def _spoil_answers(site: Site, precision: Precision) -> None:
    """Give the bad version golden answers that its graph will not give, under digests that hold."""
    folder = site.path(BAD)
    bad = Bundle.load(folder)
    with np.load(bad.golden(precision), allow_pickle=False) as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["posterior"] = np.flip(arrays["posterior"], 1)
    np.savez(bad.golden(precision), **arrays)
    (folder / MANIFEST).unlink()
    write_manifest(folder, **bad.manifest.model_dump(exclude={"sha256"}))
