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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from serving.cores import threads
from serving.errors import ServerError
from serving.keys import KEY_VARIABLES, Keys, server_keys
from serving.lock import locked
from serving.settings import WorkerSettings
from serving.speedup import measured_speedup
from serving.torchserve import config, process
from serving.torchserve.archive import Archive, extracted, rebuild
from serving.torchserve.door import is_draining, mark_draining
from serving.torchserve.drain import drain
from serving.torchserve.gpus import DeviceChoice, count_gpus
from serving.torchserve.heartbeat import HEARTBEATS
from serving.torchserve.management import Management, ModelStatus, inference_key
from serving.torchserve.ports import LOOPBACK, choose_ports, is_loopback
from serving.torchserve.readiness import wait_ready, wait_watched
from serving.torchserve.signals import Interrupted, finishing, held_back
from serving.torchserve.spawn import Plan, spawn_server
from serving.torchserve.state import ARCHIVES, KEY_FILE, LOGS, METRICS_FOLDER, Server, forget, is_recorded, load
from serving.torchserve.store import choose
from serving.torchserve.tls import take_tls

STATE = Path(".serving")
MODEL_STORE = Path("model_store")
OWN_KEY_FILE = "keys.json"  # in the state folder; it outlives the server
START_TIMEOUT_S = 120.0
DRAIN_S = 6.0  # with what follows, less than the 10 s after which Docker kills
STOP_GRACE_S = 2.5  # Java takes 2.3 s with nothing in flight
LOCK_S = 2.0  # what `stop` gives a command under way to end
_POLL_S = 0.2
_WATCHED_S = 10.0  # what the exporter may take beyond the workers


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
    with locked(state, "start"):
        _refuse_second(state)
        chosen = choose(models, store)
        gpus = count_gpus(device, os.environ)
        ports = choose_ports(host, metrics_host, port)
        asks = not is_loopback(host) or key_file is not None if token_auth is None else token_auth
        access = config.Access(host, metrics_host, asks, model_api, *take_tls(certificate, private_key, state))
        keys = _keys(asks, key_file, state, stock)
        _clean(state)
        settings = {one: rebuild(store / one.file, state / ARCHIVES, **changes) for one in chosen}
        plan = Plan(settings, store, access, ports, gpus, keys, stock, speedups(settings, state, gpus))
        try:
            server = spawn_server(plan, state)
            wait_ready(chosen, server, state, ready_timeout_s, old={}, on_gpu=device == "gpu")
            wait_watched(server, state, _WATCHED_S)
        except BaseException:
            with held_back():
                _end_recorded(state)
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
    """Answer what the server has accepted, then stop it and all of its processes, whatever goes wrong on the way.

    Args:
        state: the server's folder.
        grace_s: how long Java may take to end once all is answered; 0 kills it, as it does where something was dropped.
        drain_s: how long the answers may take, and a command under way; 0 drops them.

    Returns:
        What was done, for people. Stopping a server that does not run is no error.

    Raises:
        ServerError: if a start is under way that has no process yet.
    """
    deadline = time.monotonic() + drain_s
    if (seen := load(state)) is not None:
        with suppress(OSError):  # then it is not called unready, but no request is lost
            mark_draining(Path(seen.tmp))  # a command under way gives up
    with _held(state, "stop", min(LOCK_S, drain_s)) as is_held:
        server = load(state)
        if server is None or (is_held and seen is not None and server.tmp != seen.tmp):  # it is another's already
            return _ended(seen, state)
        if not process.members(server.java):
            _end(server, state, grace_s, is_held)
            return _ended(server, state)
        dropped = _drain(server, state, deadline) if process.is_running(server.java) else None
        with finishing():
            _end(server, state, 0 if dropped else grace_s, is_held)
    return f"Stopped the server at {server.url}" + (f"; what was in flight was dropped: {dropped}." if dropped else ".")


def _ended(server: Server | None, state: Path) -> str:
    return f"The server at {server.url} had ended already." if server else f"No server runs in {state}."


def _drain(server: Server, state: Path, deadline: float) -> str | None:
    """Answer what was accepted; why some of it was not, if so."""
    if time.monotonic() >= deadline:
        return "it was given no time"
    try:
        return "; ".join(drain(server, inference_key(state), deadline))
    except BaseException as exc:
        return str(exc) if isinstance(exc, ServerError | Interrupted) else repr(exc)


@contextmanager
def _held(state: Path, command: str, wait_s: float) -> Iterator[bool]:
    """Hold the state folder if that can be; whether it is held. What belongs to one server needs no lock."""
    with ExitStack() as stack:
        is_held = True
        try:
            stack.enter_context(locked(state, command, wait_s))
        except OSError:
            is_held = False
        except ServerError:
            if load(state) is None:
                raise
            is_held = False
        yield is_held


def status(state: Path = STATE) -> list[ModelStatus] | None:
    """The state of each version of each model, or None if no server runs; not ready while it does not answer."""
    server = load(state)
    if server is None or not process.is_running(server.java):
        return None
    try:
        statuses = Management.of(server, state).describe(*server.models)
        return [replace(one, draining=is_draining(Path(server.tmp))) for one in statuses]
    except ServerError:
        return [ModelStatus(name, "-", 0, 0, False) for name in server.models]


def wait(server: Server, state: Path = STATE) -> None:
    """Wait until somebody stops the server.

    Raises:
        ServerError: if it ends by itself.
    """
    while process.is_running(server.java):
        time.sleep(_POLL_S)
    if is_draining(Path(server.tmp)) or not is_recorded(server, state):  # `stop` removes the record first
        return
    with _held(state, "start", LOCK_S) as is_held:
        _end(server, state, grace_s=0, forgets=is_held)
    raise ServerError(f"TorchServe must stay up, got its end; see {state / LOGS}")


def _end(server: Server, state: Path, grace_s: float, forgets: bool) -> None:
    try:
        process.end(server.java, grace_s)
    finally:
        process.end(server.keeper, grace_s=0)  # last, so that it says to the end that the server is not ready
    if forgets:
        forget(server, state)


def _end_recorded(state: Path) -> None:
    """End the server that the record names, if any; for who holds the folder."""
    server = load(state)
    if server is not None:
        _end(server, state, grace_s=0, forgets=True)


def _refuse_second(state: Path) -> None:
    server = load(state)
    if server is not None and process.is_running(server.java):
        raise ServerError(f"no server must run in {state} yet, got one at {server.url}: stop it, or choose --state")


def _clean(state: Path) -> None:
    """Clear what the last server has left; its logs stay for one more start, as logs.previous."""
    _end_recorded(state)
    (state / KEY_FILE).unlink(missing_ok=True)
    present, before = state / LOGS, state / f"{LOGS}.previous"
    if present.exists():
        shutil.rmtree(before, ignore_errors=True)
        present.rename(before)
    present.mkdir()
    for folder in (METRICS_FOLDER, HEARTBEATS, ARCHIVES):
        shutil.rmtree(state / folder, ignore_errors=True)
        (state / folder).mkdir()
