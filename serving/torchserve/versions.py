"""Versions of a model on a running server: a new one made default, and the one before it again.

    python -m serving deploy model_store/mnist-mda/2     # registered, warmed up, default; version 1 stays beside it
    python -m serving rollback mnist-mda                 # version 1 is default again, version 2 is gone

A version becomes default when all of its workers can answer, so no request fails. The version before it stays, to roll
back to; one that is older is taken away once it has answered what it accepted.
"""

import time
from dataclasses import replace
from pathlib import Path

from serving.errors import ServerError
from serving.torchserve import process
from serving.torchserve.archive import Archive, archives, settings, verify
from serving.torchserve.drain import stand_in_line
from serving.torchserve.launch import STATE
from serving.torchserve.readiness import Management, failure, inference_key, log_size
from serving.torchserve.state import LOGS, Server, load, locked, save

TIMEOUT_S = 120.0
POLL_S = 0.2
IN_HAND_S = 2.0  # for the last batch of a version that is taken away
KEPT = 2  # versions of a model: the default, and the one to go back to
ASIDE = ".rolled-back"  # behind the name of an archive that no start shall take


def deploy(name: str, version: int, state: Path = STATE, timeout_s: float = TIMEOUT_S) -> None:
    """Make a packaged version the default one, without a failed request.

    Args:
        name: of the model.
        version: whose archive lies in the server's model store.
        state: the server's folder.
        timeout_s: how long its workers may take.

    Raises:
        ServerError: if the server does not take it, with the reason; the old version goes on answering.
    """
    with locked(state):
        server = _changeable(state)
        store = Path(server.store)
        found = next((one for one in archives(store) if (one.name, one.version) == (name, version)), None)
        if found is None:
            raise ServerError(f"{store} must hold {name}-{version}.mar, got none: package the bundle")
        verify(store, found)
        management = Management.of(server, state)
        if management.status(name, version) is not None:
            raise ServerError(f"version of {name} must be a new one, got {version}, which is served already")
        _register(management, store, found, state, timeout_s)
        history = [*server.history.get(name, []), version]
        models = tuple(dict.fromkeys([*server.models, name]))
        save(replace(server, models=models, history={**server.history, name: history[-KEPT:]}), state)
        for old in history[:-KEPT]:
            _retire(management, server, state, name, old)


def rollback(name: str, state: Path = STATE) -> tuple[int, int]:
    """Make the version before the present one the default again and take the present one away.

    Its archive gets another name, so that no start takes it for the newest.

    Returns:
        The version that answers now, and the one that is gone.

    Raises:
        ServerError: if there is none to go back to.
    """
    with locked(state):
        server = _changeable(state)
        history = server.history.get(name, [])
        if len(history) < KEPT:
            raise ServerError(f"{name} must have had another version while the server ran, got {history or 'no model'}")
        before, present = history
        management = Management.of(server, state)
        management.call("PUT", f"/models/{name}/{before}/set-default")
        save(replace(server, history={**server.history, name: [before]}), state)
        _retire(management, server, state, name, present)
        archive = Path(server.store, f"{name}-{present}.mar")
        archive.rename(archive.with_name(archive.name + ASIDE))
    return before, present


def _changeable(state: Path) -> Server:
    server = load(state)
    if server is None or not process.is_running(server.pid):
        raise ServerError(f"a server must run in {state}, got none: start one")
    if not server.model_api:
        raise ServerError("the server must take new versions, got one that does not: start it with --model-api")
    return server


def _register(management: Management, store: Path, found: Archive, state: Path, timeout_s: float) -> None:
    """Have a version served and, once all of its workers can answer, make it default; if that fails, take it away."""
    path, log = f"/models/{found.name}/{found.version}", log_size(state / LOGS)
    workers = str(settings(store / found.file)["minWorkers"])
    named = {"url": found.file, "model_name": found.name}
    management.call("POST", "/models", initial_workers=workers, synchronous="false", **named)
    try:
        _wait_ready(management, found, state, log, timeout_s)
        management.call("PUT", f"{path}/set-default")
    except BaseException:
        management.call("DELETE", path)
        raise


def _wait_ready(management: Management, found: Archive, state: Path, log: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        status = management.status(found.name, found.version)
        if status is not None and status.is_ready:
            return
        dead = failure(state / LOGS, log)
        if dead is not None and dead[0] == found.name:
            raise ServerError(f"{found} must load, got {dead[1]}; see {state / LOGS}")
        if time.monotonic() > deadline:
            raise ServerError(f"{found} must be ready within {timeout_s:g} s, got one that is not; see {state / LOGS}")
        time.sleep(POLL_S)


def _retire(management: Management, server: Server, state: Path, name: str, version: int) -> None:
    """Take a version away when it has answered what was asked of it by its number."""
    key = inference_key(state / "key_file.json")
    stand_in_line(server, f"{name}/{version}", key, time.monotonic() + IN_HAND_S)
    time.sleep(IN_HAND_S)
    management.call("DELETE", f"/models/{name}/{version}")
