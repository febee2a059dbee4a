"""Versions of a model on a running server: a new one made default, and the one before it again.

    python -m serving deploy model_store/mnist-mda/2     # registered, warmed up, default; version 1 stays beside it
    python -m serving rollback mnist-mda                 # version 1 is default again, version 2 is gone

A version becomes default when all of its workers can answer, so no request fails. The version before it stays, to roll
back to; one that is older is taken away once it has answered what it accepted.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from serving.bundle import Bundle
from serving.cores import workers
from serving.errors import ServerError
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed
from serving.torchserve import logs, process
from serving.torchserve.archive import Archive, package, read_settings
from serving.torchserve.drain import stand_in_line
from serving.torchserve.launch import STATE
from serving.torchserve.readiness import Management, inference_key
from serving.torchserve.state import LOGS, Server, load, locked, save

TIMEOUT_S = 120.0
POLL_S = 0.2
IN_HAND_S = 2.0  # for the last batch of a version that is taken away
KEPT = 2  # versions of a model: the default, and the one to go back to
ASIDE = ".rolled-back"  # behind the name of an archive that no start shall take


def deploy(
    bundle_dir: Path,
    state: Path = STATE,
    timeout_s: float = TIMEOUT_S,
    **changes: object,
) -> Archive:
    """Make a bundle the default version of its model, without a failed request.

    Args:
        bundle_dir: folder of the bundle.
        state: the server's folder.
        timeout_s: how long its workers may take.
        changes: settings that differ from those of the version that is the default now, or, for a model that the
            server does not have, from the defaults; see `serving.settings.changed`.

    Returns:
        What is served now.

    Raises:
        BundleError: if the bundle is not what its digests say, or has no graph in this precision.
        ServerError: if the server does not take it, with the reason; the old version goes on answering.
    """
    manifest = Bundle.load(bundle_dir).manifest
    new = Archive(manifest.name, manifest.version)
    with _changeable(state) as server:
        management, store = Management.of(server, state), Path(server.store)
        if management.status(new.name, new.version) is not None:
            raise ServerError(f"version of {new.name} must be a new one, got {new.version}, which is served already")
        package(bundle_dir, model_store=store, settings=changed(_present_settings(server, new.name), **changes))
        try:
            _register(management, server, new, state, timeout_s)
        except BaseException:
            _set_aside(store, new)
            raise
        history = [*server.history.get(new.name, []), new.version]
        models = tuple(dict.fromkeys([*server.models, new.name]))
        save(replace(server, models=models, history={**server.history, new.name: history[-KEPT:]}), state)
        for old in history[:-KEPT]:
            _retire(management, server, state, new.name, old)
    return new


def rollback(name: str, state: Path = STATE) -> tuple[int, int]:
    """Make the version before the present one the default again and take the present one away.

    Returns:
        The version that answers now, and the one that is gone.

    Raises:
        ServerError: if there is none to go back to.
    """
    with _changeable(state) as server:
        history = server.history.get(name, [])
        if len(history) < KEPT:
            raise ServerError(f"{name} must have had another version while the server ran, got {history or 'no model'}")
        before, present = history
        management = Management.of(server, state)
        management.call("PUT", f"/models/{name}/{before}/set-default")
        save(replace(server, history={**server.history, name: [before]}), state)
        _retire(management, server, state, name, present)
        _set_aside(Path(server.store), Archive(name, present))
    return before, present


def _present_settings(server: Server, name: str) -> WorkerSettings:
    """Those of a model's default version, or the defaults of a model that the server does not have."""
    history = server.history.get(name)
    return read_settings(Path(server.store, Archive(name, history[-1]).file)) if history else DEFAULT_SETTINGS


@contextmanager
def _changeable(state: Path) -> Iterator[Server]:
    """The running server of a folder, kept from other changes."""
    none = ServerError(f"a server must run in {state}, got none: start one")
    if not state.is_dir():
        raise none
    with locked(state):
        server = load(state)
        if server is None or not process.is_running(server.pid):
            raise none
        if not server.model_api:
            raise ServerError("the server must take new versions, got one that does not: start it with --model-api")
        yield server


def _set_aside(store: Path, archive: Archive) -> None:
    """Give an archive another name, so that no start takes it for the newest."""
    file = store / archive.file
    file.rename(file.with_name(file.name + ASIDE))


def _register(management: Management, server: Server, found: Archive, state: Path, timeout_s: float) -> None:
    """Have a version served and, once all of its workers can answer, make it default; if that fails, take it away."""
    path, old = f"/models/{found.name}/{found.version}", logs.sizes(state / LOGS)
    count = workers(read_settings(Path(server.store, found.file)), server.gpus)
    named = {"url": found.file, "model_name": found.name}
    management.call("POST", "/models", initial_workers=str(count), synchronous="false", **named)
    try:
        _wait_ready(management, found, state, old, timeout_s)
        management.call("PUT", f"{path}/set-default")
    except BaseException:
        management.call("DELETE", path)
        raise


def _wait_ready(management: Management, found: Archive, state: Path, old: logs.Sizes, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        status = management.status(found.name, found.version)
        if status is not None and status.is_ready:
            return
        dead = logs.failure(state / LOGS, old)
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
