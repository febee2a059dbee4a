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
from serving.torchserve.archive import Archive, package, read_settings, rebuild
from serving.torchserve.drain import stand_in_line
from serving.torchserve.launch import STATE, speedups
from serving.torchserve.management import Management, inference_key
from serving.torchserve.readiness import wait_ready
from serving.torchserve.state import ARCHIVES, LOGS, Server, load, locked, save
from serving.torchserve.store import set_aside

DEPLOY_TIMEOUT_S = 120.0
IN_HAND_S = 2.0  # for the last batch of a version that is taken away
KEPT_VERSIONS = 2  # of a model: the default, and the one to go back to


def deploy(
    bundle_dir: Path, state: Path = STATE, ready_timeout_s: float = DEPLOY_TIMEOUT_S, **changes: object
) -> Archive:
    """Make a bundle the default version of its model, without a failed request.

    Args:
        bundle_dir: folder of the bundle.
        state: the server's folder.
        ready_timeout_s: how long its workers may take.
        changes: settings that differ from those of the version that is the default now, or, for a model that the
            server does not have, from the defaults; see `serving.settings.changed`.

    Returns:
        What is served now; the model store has it too.

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
        settings = _settings(server, new, state, changes)
        made = package(bundle_dir, model_store=store, settings=settings)
        try:
            rebuild(made, state / ARCHIVES)
            measured = speedups({new: settings}, state, server.gpus)
            _register(management, server, new, settings, state, ready_timeout_s)
        except BaseException:
            set_aside(store, new)
            (state / ARCHIVES / new.file).unlink(missing_ok=True)
            raise
        history = [*server.history.get(new.name, []), new.version]
        kept = server.history | {new.name: history[-KEPT_VERSIONS:]}
        models = tuple(dict.fromkeys([*server.models, new.name]))
        save(replace(server, models=models, history=kept, speedups=server.speedups | measured), state)
        for old in history[:-KEPT_VERSIONS]:
            _retire(management, server, state, Archive(new.name, old))
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
        if len(history) < KEPT_VERSIONS:
            raise ServerError(f"{name} must have had another version while the server ran, got {history or 'no model'}")
        before, present = history
        management = Management.of(server, state)
        management.call("PUT", f"/models/{name}/{before}/set-default")
        save(replace(server, history={**server.history, name: [before]}), state)
        _retire(management, server, state, Archive(name, present))
        set_aside(Path(server.store), Archive(name, present))
    return before, present


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


def _settings(server: Server, new: Archive, state: Path, changes: dict[str, object]) -> WorkerSettings:
    """Those of the model's default version, or the defaults for a model that the server does not have, changed."""
    history = server.history.get(new.name)
    present = read_settings(state / ARCHIVES / Archive(new.name, history[-1]).file) if history else DEFAULT_SETTINGS
    settings = changed(present, **changes)
    for name in ("max_request_bytes", "max_response_bytes"):
        wanted, most = getattr(settings.limits, name), getattr(server, name)
        if wanted > most:
            raise ServerError(f"{name} must be at most the server's {most}, got {wanted}: start it anew")
    return settings


def _register(
    management: Management, server: Server, new: Archive, settings: WorkerSettings, state: Path, timeout_s: float
) -> None:
    """Have a version served and, once all of its workers can answer, make it default; if that fails, take it away."""
    path, old = f"/models/{new.name}/{new.version}", logs.sizes(state / LOGS)
    count = workers(settings, server.gpus)
    named = {"url": new.file, "model_name": new.name}
    management.call("POST", "/models", initial_workers=str(count), synchronous="false", **named)
    try:
        wait_ready([new], server, state, timeout_s, old=old)
        management.call("PUT", f"{path}/set-default")
    except BaseException:
        management.call("DELETE", path)
        raise


def _retire(management: Management, server: Server, state: Path, old: Archive) -> None:
    """Take a version away when it has answered what was asked of it by its number."""
    path = f"{old.name}/{old.version}"
    stand_in_line(server, path, inference_key(state), time.monotonic() + IN_HAND_S)
    time.sleep(IN_HAND_S)
    management.call("DELETE", f"/models/{path}")
    (state / ARCHIVES / old.file).unlink()
