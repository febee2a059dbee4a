"""A server of its own for one bundle or several, for as long as something is measured.

with served(Path("model_store/mnist-mda/1")) as up: ask(up.url(), ...)
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.settings import DEFAULT_SETTINGS, WorkerSettings
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.gpus import DeviceChoice
from serving.torchserve.signals import held_back
from serving.torchserve.state import Server

READY_S = 300.0  # that the workers of many models may take


@dataclass(frozen=True)
class Served:
    """A server that is up.

    Attributes:
        server: its record.
        ready_s: what its start took.
    """

    server: Server
    ready_s: float

    def url(self, model: str = "") -> str:
        """Where a model is asked; the only one, if none is named."""
        return f"{self.server.url}/predictions/{model or self.server.models[0]}"


@contextmanager
def served(
    *bundles: Path, settings: WorkerSettings = DEFAULT_SETTINGS, device: DeviceChoice = "cpu"
) -> Iterator[Served]:
    """Start it on a free port, and stop it in the end."""
    with tempfile.TemporaryDirectory(prefix="served-") as scratch:
        store, state = Path(scratch, "store"), Path(scratch, "state")
        for bundle in bundles:
            package(bundle, model_store=store, settings=settings)
        began = time.monotonic()
        server = launch.start(model_store=store, state=state, device=device, port=0, ready_timeout_s=READY_S)
        try:
            yield Served(server, time.monotonic() - began)
        finally:
            with held_back():
                launch.stop(state)
