"""The state folder of one server: server.json says which process it is and where it listens.

Whatever a command that stops a server changes lies in the server's private folder, which no other server ever has.
"""

import json
import os
import shutil
import ssl
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import ServerError
from serving.torchserve.process import Identity
from serving.torchserve.tls import trusting

STATE_VARIABLE = "DISCRIMINANT_STATE"  # how a worker knows its server's folder
TMP_VARIABLE = "DISCRIMINANT_TMP"  # likewise: its server's private folder
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # how prometheus-client knows where the workers share their values
LOGS = "logs"  # in the state folder
METRICS_FOLDER = "metrics"  # likewise: the workers' metrics
ARCHIVES = "models"  # likewise: the archives that are served
KEY_FILE = "key_file.json"  # likewise: TorchServe's own record of the keys, if it asks for them


@dataclass(frozen=True)
class Server:
    """A server that was started; the content of server.json.

    Attributes:
        java: which leads the process group.
        url: of the inference interface.
        management_url: of the management interface.
        keeper: which leads the group of the exporter.
        metrics_url: where Prometheus finds the metrics; the exporter's.
        torchserve_metrics_url: of TorchServe's own part of them.
        models: names of the models.
        gpus: how many its workers may use.
        store: folder that the archives were taken from.
        certificate: the server's copy of its own, if the inference interface is by TLS.
        model_api: whether versions can be deployed while it runs.
        history: of each model, the versions that were made default, the present one last.
        beside: of each model, the other versions that the start was told to serve.
        started: when, UTC, ISO 8601.
        tmp: its private folder: extracted archives, sockets, the workers' door, and what is changed of TorchServe.
        max_request_bytes: the largest request that it reads.
        max_response_bytes: the largest answer that it sends.
        queue: requests of a model that may wait.
        speedups: how many times as fast as float32 the models in int8 compute on this CPU, by `name:version`.
    """

    java: Identity
    url: str
    management_url: str
    keeper: Identity
    metrics_url: str
    torchserve_metrics_url: str
    models: tuple[str, ...]
    gpus: int
    store: str
    certificate: str | None
    model_api: bool
    history: dict[str, list[int]]
    beside: dict[str, list[int]]
    started: str
    tmp: str
    max_request_bytes: int
    max_response_bytes: int
    queue: int
    speedups: dict[str, float]

    @property
    def pid(self) -> int:
        """Java's number."""
        return self.java.pid

    @property
    def versions(self) -> list[tuple[str, int]]:
        """What it serves, by name and version."""
        return [(name, one) for served in (self.history, self.beside) for name, ones in served.items() for one in ones]

    @property
    def trusted(self) -> ssl.SSLContext | bool:
        """What a client on this machine believes of the server."""
        return True if self.certificate is None else trusting(Path(self.certificate))


def load(state: Path) -> Server | None:
    """The server that was started last in this folder and not stopped since; it may have died."""
    try:
        fields = json.loads((state / "server.json").read_bytes())
        processes = {name: Identity(**fields[name]) for name in ("java", "keeper")}
        return Server(**{**fields, **processes, "models": tuple(fields["models"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as exc:
        raise ServerError(f"{state / 'server.json'} must name a server, got {exc!r}: remove it") from exc


def save(server: Server, state: Path) -> None:
    """Write server.json."""
    partial = state / "server.json.partial"
    partial.write_text(json.dumps(asdict(server), indent=2) + "\n")
    partial.replace(state / "server.json")


def is_recorded(server: Server, state: Path) -> bool:
    """Whether the folder's record names this very server."""
    present = load(state)
    return present is not None and present.tmp == server.tmp


def forget(server: Server, state: Path) -> None:
    """Remove what a server that has ended leaves outside its logs; whoever does it must hold the folder."""
    if is_recorded(server, state):
        (state / "server.json").unlink()
    shutil.rmtree(server.tmp, ignore_errors=True)


def state_of_worker() -> Path | None:
    """The folder of the server that this process works for, if it is a worker's."""
    return _folder(STATE_VARIABLE)


def tmp_of_worker() -> Path | None:
    """The private folder of the server that this process works for, if it is a worker's."""
    return _folder(TMP_VARIABLE)


def _folder(variable: str) -> Path | None:
    folder = os.environ.get(variable)
    return Path(folder) if folder else None
