"""A server with default settings for one bundle, for as long as something is measured.

with served(Path("model_store/mnist-mda/1"), "int8") as server: offer(server.url, ...)
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.bundle import Precision
from serving.settings import WorkerSettings
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.gpus import DeviceChoice


@contextmanager
def served(
    bundle: Path, precision: Precision = "float32", device: DeviceChoice = "cpu", **options: Any
) -> Iterator[launch.Server]:
    """Start it on a free port, and stop it in the end; `options` are more of its settings."""
    with tempfile.TemporaryDirectory() as scratch:
        store, state = Path(scratch, "store"), Path(scratch, "state")
        package(bundle, model_store=store, settings=WorkerSettings(precision=precision, **options))
        try:
            yield launch.start(model_store=store, state=state, device=device, port=0)
        finally:
            launch.stop(state)
