"""Start, stop and status of a TorchServe of our own.

    server = start(["mnist-mda"])        # returns when every worker can answer
    status(), stop()

Everything about one server lies in its state folder: config.properties, the archives that it serves in models/, logs/,
key_file.json, and server.json, which names the process. Of all that, keys.json alone is read again by the next start. A
start that fails or is interrupted leaves no process behind.
"""

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from serving.cores import threads
from serving.errors import ServerError
from serving.keys import KEY_VARIABLES, Keys, server_keys
from serving.settings import WorkerSettings
from serving.speedup import measured_speedup
from serving.torchserve import config, process
from serving.torchserve.archive import Archive, extracted, rebuild
from serving.torchserve.door import open_door
from serving.torchserve.drain import drain
from serving.torchserve.gpus import DeviceChoice, count_gpus
from serving.torchserve.heartbeat import HEARTBEATS
from serving.torchserve.management import Management, ModelStatus, inference_key
from serving.torchserve.ports import LOOPBACK, choose_ports, is_loopback
from serving.torchserve.readiness import wait_ready, wait_watched
from serving.torchserve.spawn import Plan, spawn_server
from serving.torchserve.state import ARCHIVES, KEY_FILE, LOGS, METRICS_FOLDER, Server, forget, load, locked, save
from serving.torchserve.store import choose
from serving.torchserve.tls import check_tls

STATE = Path(".serving")
MODEL_STORE = Path("model_store")
OWN_KEY_FILE = "keys.json"  # in the state folder; it outlives the server
START_TIMEOUT_S = 120.0
STOP_GRACE_S = 15.0
DRAIN_S = 20.0  # Kubernetes kills after 30 s
_POLL_S = 0.2
_WATCHED_S = 10.0  # what the exporter may take beyond the workers
_CLEARING_S = 0.5  # what `stop` takes to clear up


def start(
    models: Sequence[str] | None = None,
    *,
    model_store: Path = MODEL_STORE,
    state: Path = STATE,
    device: DeviceChoice = "auto",
    host: str = LOOPBACK,
    port: int = 8080,
    metrics_host: str = LOOPBACK,
    ready_timeout_s: float = START_TIMEOUT_S,
    token_auth: bool | None = None,
    key_file: Path | None = None,
    model_api: bool = False,
    certificate: Path | None = None,
    private_key: Path | None = None,
    stock: bool = False,
    **changes: object,
) -> Server:
    """Start TorchServe and wait until every worker of every model can answer.

    Args:
        models: names of models in the model store, which means their newest versions, or `name:version`; of several
            versions of a model the first one answers where none is named. None and no name at all mean the newest of
            every model.
        model_store: folder of the `.mar` archives.
        state: the server's folder; made if missing.
        device: `auto` takes the GPUs that there are.
        host: address of the inference interface.
        port: of the inference interface; management, metrics and gRPC take the next five. 0 takes free ones.
        metrics_host: address of the exporter, which answers without a key; all else stays on the loopback address.
        ready_timeout_s: how long the workers may take.
        token_auth: whether requests need a key; None asks for it beyond the loopback, and where a key file is named.
        key_file: of the keys, see `serving.keys`; None means keys.json in the state folder.
        model_api: whether versions can be deployed while the server runs, from this machine.
        certificate: PEM file; with `private_key`, inference is by TLS.
        private_key: PEM file, unencrypted.
        stock: run TorchServe without any of `patches`.
        changes: settings of the models that are others on this server; see `serving.settings.changed`.

    Raises:
        ServerError: if the server cannot start, with the reason; nothing of it is left running.
        DeviceUnavailable: if a GPU is asked for and there is none.
    """
    state.mkdir(parents=True, exist_ok=True)
    state, store = state.resolve(), model_store.resolve()
    with locked(state):
        _refuse_second(state)
        chosen = choose(models, store)
        gpus = count_gpus(device, os.environ)
        ports = choose_ports(host, metrics_host, port)
        asks = not is_loopback(host) or key_file is not None if token_auth is None else token_auth
        access = config.Access(host, metrics_host, asks, model_api, *check_tls(certificate, private_key))
        keys = _keys(asks, key_file, state, stock)
        _clean(state)
        settings = {one: rebuild(store / one.file, state / ARCHIVES, **changes) for one in chosen}
        plan = Plan(settings, store, access, ports, gpus, keys, stock, speedups(settings, state, gpus))
        server = spawn_server(plan, state)
        try:
            save(server, state)
            wait_ready(chosen, server, state, ready_timeout_s, old={}, on_gpu=device == "gpu")
            wait_watched(server, state, _WATCHED_S)
        except BaseException:
            _end(server, state, grace_s=0)
            raise
    return server


def speedups(models: Mapping[Archive, WorkerSettings], state: Path, gpus: int) -> dict[str, float]:
    """How many times as fast as float32 the models in int8 are computed on this CPU, by `name:version`.

    Args:
        models: archives that the server in `state` has, and their settings.
        state: its folder.
        gpus: how many it uses; with one, the CPU computes nothing.
    """
    measured = {}
    for one, settings in models.items():
        if settings.precision == "int8" and gpus == 0:
            with extracted(state / ARCHIVES / one.file) as bundle_dir:
                measured[str(one)] = measured_speedup(bundle_dir, threads(settings))
    return measured


def _keys(asks: bool, key_file: Path | None, state: Path, stock: bool) -> Keys | None:
    """The keys that the server gets, if it asks for any and does not draw them itself."""
    if not asks:
        if key_file is not None:
            raise ServerError(f"a server that asks for no key must get no key file, got {key_file}: leave one out")
        return None
    if not stock:
        return server_keys(key_file or state / OWN_KEY_FILE, os.environ)
    given = [*filter(os.environ.get, KEY_VARIABLES), *([] if key_file is None else ["--key-file"])]
    if given:
        raise ServerError(f"a stock TorchServe must draw its keys itself, got {given[0]}: leave out that or --stock")
    return None


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
    key = inference_key(state)
    try:
        models = [f"{status.name}/{status.version}" for status in Management.of(server, state).describe(*server.models)]
    except ServerError:
        models = list(server.models)  # it does not answer; neither will they
    return drain(state, server, models, key, timeout_s)


def status(state: Path = STATE) -> list[ModelStatus] | None:
    """The state of each version of each model, or None if no server runs; not ready while it does not answer."""
    server = load(state)
    if server is None or not process.is_running(server.pid):
        return None
    try:
        return [replace(one, draining=server.draining) for one in Management.of(server, state).describe(*server.models)]
    except ServerError:
        return [ModelStatus(name, "-", 0, 0, False) for name in server.models]


def wait(server: Server, state: Path = STATE) -> None:
    """Wait until somebody stops the server.

    Raises:
        ServerError: if it ends by itself.
    """
    while process.is_running(server.pid):
        time.sleep(_POLL_S)
    time.sleep(_CLEARING_S)
    if load(state) is None:  # `stop` was here
        return
    _end(server, state, grace_s=0)
    raise ServerError(f"TorchServe must stay up, got its end; see {state / LOGS}")


def _end(server: Server, state: Path, grace_s: float) -> None:
    process.end(server.pid, grace_s)
    process.end(server.keeper, grace_s=0)  # last, so that it says to the end that the server is not ready
    forget(server, state)


def _refuse_second(state: Path) -> None:
    server = load(state)
    if server is not None and process.is_running(server.pid):
        raise ServerError(f"no server must run in {state} yet, got one at {server.url}: stop it, or choose --state")


def _clean(state: Path) -> None:
    """Clear what the last server has left; its logs stay for one more start, as logs.previous."""
    previous = load(state)
    if previous is not None:
        _end(previous, state, grace_s=0)
    (state / KEY_FILE).unlink(missing_ok=True)
    present, before = state / LOGS, state / f"{LOGS}.previous"
    if present.exists():
        shutil.rmtree(before, ignore_errors=True)
        present.rename(before)
    present.mkdir()
    for folder in (METRICS_FOLDER, HEARTBEATS, ARCHIVES):
        shutil.rmtree(state / folder, ignore_errors=True)
        (state / folder).mkdir()
    open_door(state)
