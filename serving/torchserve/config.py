"""TorchServe's configuration: `config.properties`, the command line and the environment. Pure text, no I/O."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.keys import KEY_VARIABLES
from serving.torchserve.archive import Archive
from serving.torchserve.memory import Memory
from serving.torchserve.patches.folder import CLASS_FOLDER, PYTHON, PYTHON_VARIABLE
from serving.torchserve.ports import LOOPBACK, Ports
from serving.torchserve.process import SERVER_CLASS
from serving.torchserve.state import LOGS, METRICS_FOLDER, METRICS_VARIABLE, STATE_VARIABLE, TMP_VARIABLE

FILE_NAME = "config.properties"
SECRET_VARIABLES = ".*(SECRET|TOKEN|PASSWORD|CREDENTIAL|ACCESS_KEY).*"
METRICS_CONFIG = Path(__file__).with_name("metrics.yaml")
MIN_RESPONSE_BYTES = 64 * 1024  # is always let through: TorchServe ends a worker for an error, too, that is longer
FEW_CORES = 4
TOKEN_LIFETIME_MIN = 500 * 10**12  # 950 million years; Java's clock ends soon after
PROJECT_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Access:
    """Who reaches the server, and how.

    Attributes:
        host: address of the inference listener.
        metrics_host: address of the exporter.
        token_auth: whether inference and management ask for keys.
        model_api: whether models can be added and removed while the server runs, from this machine.
        certificate: PEM file; with `private_key`, inference is by TLS.
        private_key: PEM file.
    """

    host: str = LOOPBACK
    metrics_host: str = LOOPBACK
    token_auth: bool = False
    model_api: bool = False
    certificate: Path | None = None
    private_key: Path | None = None

    @property
    def scheme(self) -> str:
        """`https` with a certificate, `http` without."""
        return "https" if self.certificate else "http"


def properties(
    models: Mapping[Archive, int],
    folder: Path,
    access: Access,
    ports: Ports,
    gpus: int,
    max_request_bytes: int,
    max_response_bytes: int,
    queue: int,
) -> str:
    """The text of `config.properties`.

    Args:
        models: the archives to load and the workers of each; of several versions of a model the first one answers where
            none is named.
        folder: the only one that archives may come from.
        access: who reaches the server.
        ports: of all listeners.
        gpus: how many to use.
        max_request_bytes: the largest request that is read.
        max_response_bytes: the largest answer that is sent.
        queue: requests of a model that may wait.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for model, workers in models.items():
        counts.setdefault(model.name, {})[str(model.version)] = {"minWorkers": workers, "maxWorkers": workers}
    values = {
        "inference_address": f"{access.scheme}://{access.host}:{ports.inference}",
        "management_address": f"http://{LOOPBACK}:{ports.management}",
        "metrics_address": f"http://{LOOPBACK}:{ports.torchserve_metrics}",
        "grpc_inference_address": LOOPBACK,
        "grpc_inference_port": ports.grpc_inference,
        "grpc_management_address": LOOPBACK,
        "grpc_management_port": ports.grpc_management,
        "model_store": folder,
        "load_models": ",".join(f"{model.name}={model.file}" for model in models),
        "allowed_urls": f"file://{re.escape(str(folder))}/.*",
        "enable_model_api": str(access.model_api).lower(),
        "disable_token_authorization": str(not access.token_auth).lower(),
        "token_expiration_min": TOKEN_LIFETIME_MIN,
        "blacklist_env_vars": SECRET_VARIABLES,
        "install_py_dep_per_model": "false",
        "models": json.dumps(counts),
        "decode_input_request": "false",  # the handler reads JSON itself, so that broken JSON gets a proper answer
        "max_request_size": max_request_bytes,
        "max_response_size": max(max_response_bytes, MIN_RESPONSE_BYTES),
        "job_queue_size": queue,
        "metrics_mode": "prometheus",
        "metrics_config": METRICS_CONFIG,
        "disable_system_metrics": "true",
        "number_of_gpu": gpus,
    }
    if access.certificate is not None and access.private_key is not None:
        values |= {"certificate_file": access.certificate, "private_key_file": access.private_key}
    return "".join(f"{name}={_escaped(str(value))}\n" for name, value in values.items())


def command(
    java: Path,
    java_version: tuple[int, ...],
    torchserve_home: Path,
    config: Path,
    log4j2: Path,
    tmp: Path,
    cores: int,
    memory: Memory,
    stock_python: str | None = None,
) -> list[str]:
    """The command line that runs TorchServe's Java part, which starts the workers.

    Args:
        java: the executable.
        java_version: of it, major version first.
        torchserve_home: folder that holds the package `ts`.
        config: `config.properties`.
        log4j2: the logging configuration.
        tmp: folder for extracted archives and the workers' sockets, and of what is changed of TorchServe.
        cores: how many there are. On a few, Java's optimising compiler takes a tenth of the answers from the first
            minute of full load; afterwards it would give back a twentieth at one connection and nothing at many.
        memory: what Java gets of the machine's.
        stock_python: the Python that runs the workers of a TorchServe of which nothing is changed; None has changes.
    """
    of_torchserve = str(torchserve_home / "ts" / "frontend" / "*")
    class_path = [of_torchserve] if stock_python else [str(tmp / CLASS_FOLDER), of_torchserve]
    quiet = ["--sun-misc-unsafe-memory-access=allow", "--enable-native-access=ALL-UNNAMED"]
    frugal = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    return [
        str(java),
        *(quiet if java_version >= (24,) else []),
        *(frugal if cores <= FEW_CORES else []),
        f"-Xmx{memory.heap_bytes}",
        f"-XX:MaxDirectMemorySize={memory.uploads_bytes}",
        "-XX:+ExitOnOutOfMemoryError",
        f"-Djava.io.tmpdir={tmp}",
        f"-Dmodel_server_home={torchserve_home}",
        f"-Dlog4j.configurationFile={log4j2.as_uri()}",
        "-cp",
        os.pathsep.join(class_path),
        SERVER_CLASS,
        "--python",
        stock_python or str(PYTHON),
        "--ts-config-file",
        str(config),
        "--no-config-snapshot",
    ]


def environment(base: Mapping[str, str], java_home: Path, python: str, state: Path, tmp: Path) -> dict[str, str]:
    """The environment of the server and its workers, which find the project on their PYTHONPATH.

    Args:
        base: what to start from.
        java_home: of the Java to use.
        python: which runs the workers.
        state: the server's folder.
        tmp: folder for extracted archives, the workers' sockets and their door.
    """
    logs = str(state / LOGS)
    paths = [str(PROJECT_ROOT), *filter(None, [base.get("PYTHONPATH")])]
    ours = {name: value for name, value in base.items() if not name.startswith("TS_") and name not in KEY_VARIABLES}
    return ours | {
        "JAVA_HOME": str(java_home),
        "PATH": os.pathsep.join([str(java_home / "bin"), base.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(paths),
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
        STATE_VARIABLE: str(state),
        METRICS_VARIABLE: str(state / METRICS_FOLDER),
        TMP_VARIABLE: str(tmp),
        PYTHON_VARIABLE: python,
        "TMPDIR": str(tmp),
        "TEMP": str(tmp),
    }


def _escaped(value: str) -> str:
    r"""A value as Java reads it from a properties file: ASCII, with JSON's escapes for backslash and \uXXXX."""
    return json.dumps(value)[1:-1]
