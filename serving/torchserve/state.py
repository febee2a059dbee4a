"""The state folder of one server: server.json says which process it is and where it listens."""

import fcntl
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ServerError

STATE_VARIABLE = "DISCRIMINANT_STATE"  # how a worker knows its server's folder
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # how prometheus-client knows where the workers share their values
LOGS = "logs"  # in the state folder
METRICS_FOLDER = "metrics"  # likewise: the workers' metrics
ARCHIVES = "models"  # likewise: the archives that are served
KEY_FILE = "key_file.json"  # likewise: TorchServe's own record of the keys, if it asks for them


@dataclass(frozen=True)
class Server:
    """A server that was started; the content of server.json.

    Attributes:
        pid: of Java, which leads the process group.
        url: of the inference interface.
        management_url: of the management interface.
        exporter: process id of the exporter.
        metrics_url: where Prometheus finds the metrics; the exporter's.
        torchserve_metrics_url: of TorchServe's own part of them.
        models: names of the models.
        gpus: how many its workers may use.
        store: folder that the archives were taken from.
        certificate: of the inference interface, if it is by TLS.
        model_api: whether versions can be deployed while it runs.
        history: of each model, the versions that were made default, the present one last.
        started: when, UTC, ISO 8601.
        tmp: folder of its extracted archives and sockets, and of what is changed of TorchServe.
        max_request_bytes: the largest request that it reads.
        max_response_bytes: the largest answer that it sends.
        speedups: how many times as fast as float32 the models in int8 compute on this CPU, by `name:version`.
        draining: whether it is about to stop and should get no more requests.
    """

    pid: int
    url: str
    management_url: str
    exporter: int
    metrics_url: str
    torchserve_metrics_url: str
    models: tuple[str, ...]
    gpus: int
    store: str
    certificate: str | None
    model_api: bool
    history: dict[str, list[int]]
    started: str
    tmp: str
    max_request_bytes: int
    max_response_bytes: int
    speedups: dict[str, float]
    draining: bool = False

    @property
    def trusted(self) -> ssl.SSLContext | bool:
        """What a client on this machine believes of the server: its own certificate, whatever host that names."""
        if self.certificate is None:
            return True
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False
        return context


def load(state: Path) -> Server | None:
    """The server that was started last in this folder and not stopped since; it may have died."""
    try:
        fields = json.loads((state / "server.json").read_bytes())
        return Server(**{**fields, "models": tuple(fields["models"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        raise ServerError(f"{state / 'server.json'} must name a server, got {exc!r}: remove it") from exc


def save(server: Server, state: Path) -> None:
    """Write server.json."""
    partial = state / "server.json.partial"
    partial.write_text(json.dumps(asdict(server), indent=2) + "\n")
    partial.replace(state / "server.json")


def forget(server: Server, state: Path) -> None:
    """Remove what a server that has ended leaves outside its logs."""
    shutil.rmtree(server.tmp, ignore_errors=True)
    (state / "server.json").unlink(missing_ok=True)


def state_of_worker() -> Path | None:
    """The folder of the server that this process works for, if it is a worker's."""
    state = os.environ.get(STATE_VARIABLE)
    return Path(state) if state else None


@contextmanager
def locked(state: Path) -> Iterator[None]:
    """Hold the state folder against a second start.

    Raises:
        ServerError: if another start holds it.
    """
    with (state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ServerError(f"one start at a time must use {state}, got another that is under way") from exc
        yield
