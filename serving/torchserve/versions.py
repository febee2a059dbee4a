"""Versions of a model on a running server: a new one made default, and the one before it again.

    python -m serving deploy model_store/mnist-mda/2     # registered, warmed up, default; version 1 stays beside it
    python -m serving rollback mnist-mda                 # version 1 is default again, version 2 is gone

A version becomes default when all of its workers can answer, so no request fails. The version before it stays, to roll
back to; one that is older is taken away once it has answered what it accepted. A deploy that fails or is interrupted
leaves the server as it was; the model store gets the archive last.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from serving.bundle import Bundle
from serving.cores import workers
from serving.errors import ServerError
from serving.lock import locked
from serving.settings import DEFAULT_SETTINGS, WorkerSettings, changed
from serving.torchserve import logs, process
from serving.torchserve.archive import Archive, package, read_settings
from serving.torchserve.door import is_draining
from serving.torchserve.launch import STATE, speedups
from serving.torchserve.management import Management
from serving.torchserve.readiness import wait_ready
from serving.torchserve.settle import KEPT_VERSIONS, make_default, retire, roll_back, settle, with_default
from serving.torchserve.signals import finishing, held_back
from serving.torchserve.state import ARCHIVES, LOGS, Server, load, save
from serving.torchserve.store import is_aside, publish, set_aside

DEPLOY_TIMEOUT_S = 120.0


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
    with _changeable(state, "deploy") as (management, server):
        server = _rolled_back(management, server, state)
        if management.status(new.name, new.version) is not None:
            raise ServerError(f"version of {new.name} must be a new one, got {new.version}, which is served already")
        settings = _settings(server, new, state, changes)
        with _taken_away(management, server, state, new):
            package(bundle_dir, model_store=state / ARCHIVES, settings=settings)
            measured = speedups({new: settings}, state, server.gpus)
            _register(management, server, new, settings, state, ready_timeout_s)
        with finishing():
            with _taken_away(management, server, state, new):
                _commit(management, server, state, new, measured)
            for old in server.history.get(new.name, [])[: 1 - KEPT_VERSIONS]:
                retire(management, server, state, Archive(new.name, old))
    return new


def rollback(name: str, state: Path = STATE) -> tuple[int, int]:
    """Make the version before the present one the default again and take the present one away.

    Returns:
        The version that answers now, and the one that is gone.

    Raises:
        ServerError: if there is none to go back to.
    """
    with _changeable(state, "rollback") as (management, server):
        history = server.history.get(name, [])
        if len(history) < KEPT_VERSIONS:
            raise ServerError(f"{name} must have had another version while the server ran, got {history or 'no model'}")
        with finishing():
            roll_back(management, server, state, name)
    return history[0], history[1]


@contextmanager
def _changeable(state: Path, command: str) -> Iterator[tuple[Management, Server]]:
    """The running server of a folder, kept from other commands, as it should be after those before."""
    none = ServerError(f"a server must run in {state}, got none: start one")
    if not state.is_dir():
        raise none
    with locked(state, command):
        server = load(state)
        if server is None or not process.is_running(server.java):
            raise none
        if not server.model_api:
            raise ServerError("the server must take new versions, got one that does not: start it with --model-api")
        if is_draining(Path(server.tmp)):
            raise ServerError(f"{server.url} must run on, got a stop: start it again")
        management = Management.of(server, state)
        yield management, settle(management, server, state)


def _rolled_back(management: Management, server: Server, state: Path) -> Server:
    """Carry out each rollback that was begun."""
    for name, history in server.history.items():
        if len(history) == KEPT_VERSIONS and is_aside(Path(server.store), Archive(name, history[-1])):
            server = roll_back(management, server, state, name)
    return server


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
    """Have a version served, and wait until all of its workers can answer."""
    old, count = logs.sizes(state / LOGS), workers(settings, server.gpus)
    named = {"url": new.file, "model_name": new.name}
    with held_back():  # else it could be registered after it was taken away
        management.call("POST", "/models", initial_workers=str(count), synchronous="false", **named)
    wait_ready([new], server, state, timeout_s, old=old)


def _commit(management: Management, server: Server, state: Path, new: Archive, measured: dict[str, float]) -> None:
    """Make a version that is ready the default here, and what the next start takes."""
    store = Path(server.store)
    make_default(management, new)
    publish(state / ARCHIVES / new.file, store)
    try:
        save(replace(with_default(server, new), speedups=server.speedups | measured), state)
    except BaseException:
        set_aside(store, new)
        raise


@contextmanager
def _taken_away(management: Management, server: Server, state: Path, new: Archive) -> Iterator[None]:
    """If the block fails, take the new version away: the server is as it was."""
    try:
        yield
    except BaseException:
        with held_back():
            with suppress(ServerError):  # it has ended, or has not registered the version yet
                if server.history.get(new.name):
                    make_default(management, Archive(new.name, server.history[new.name][-1]))
                management.call("DELETE", f"/models/{new.name}/{new.version}")
            (state / ARCHIVES / new.file).unlink(missing_ok=True)
        raise
