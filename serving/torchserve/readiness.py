"""Readiness: the one wait until every worker of some models can answer, or until it is clear that one never will.

`/ping` says Healthy while every worker is dead, so nothing here asks it. Likewise, whether anybody watches the server.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from serving.errors import DeviceUnavailable, ServerError
from serving.torchserve import logs, process
from serving.torchserve.archive import Archive
from serving.torchserve.door import is_draining
from serving.torchserve.management import Management
from serving.torchserve.state import LOGS, Server

_POLL_S = 0.2
_ANSWER_TIMEOUT_S = 5.0
_LAST_WORDS_S = 0.5  # what a dying worker takes to print them


def wait_ready(
    models: Sequence[Archive], server: Server, state: Path, timeout_s: float, *, old: logs.Sizes, on_gpu: bool = False
) -> None:
    """Wait until every worker of every one of `models`, which the server was told to load, can answer.

    Args:
        models: which versions of which models.
        server: which is to load them.
        state: its folder.
        timeout_s: how long the workers may take.
        old: how much of its logs tells of something else.
        on_gpu: whether all workers must be on a GPU.

    Raises:
        ServerError: if one cannot load, with the reason, or takes too long, or the server ends.
        DeviceUnavailable: if workers that must be on a GPU are not.
    """
    deadline = time.monotonic() + timeout_s
    while not _are_ready(models, server, state, old, on_gpu):
        if time.monotonic() > deadline:
            names = ", ".join(map(str, models))
            raise ServerError(
                f"workers of {names} must be ready within {timeout_s:g} s, got some that are not; {_see(state)}"
            )
        time.sleep(_POLL_S)


def wait_watched(server: Server, state: Path, timeout_s: float) -> None:
    """Wait until the exporter answers.

    Raises:
        ServerError: if it does not in time, or nobody is there to begin it again, with the reason.
    """
    deadline = time.monotonic() + timeout_s
    while (fault := unwatched(server)) is not None:
        if time.monotonic() > deadline or not process.is_running(server.keeper):
            raise ServerError(f"{fault}; {_see(state)}")
        time.sleep(_POLL_S)


def unwatched(server: Server) -> str | None:
    """What keeps `/ready` from being answered and hung workers from being replaced, if anything does."""
    if not process.is_running(server.keeper):
        return "the keeper must run, got its end: stop the server and start it again"
    url = server.metrics_url.replace("/metrics", "/live")
    try:
        httpx.get(url, timeout=_ANSWER_TIMEOUT_S, trust_env=False).raise_for_status()
    except httpx.HTTPError as exc:
        return f"{url} must be answered by the exporter, got {exc}: the keeper begins it again in a moment"
    return None


def _are_ready(models: Sequence[Archive], server: Server, state: Path, old: logs.Sizes, on_gpu: bool) -> bool:
    if is_draining(Path(server.tmp)):
        raise ServerError(f"{server.url} must run until its workers are ready, got a stop: start it again")
    if not process.is_running(server.java):
        raise ServerError(f"TorchServe must stay up, got an exit: {logs.last_line(state / LOGS)}; {_see(state)}")
    _raise_failure(models, state, old)
    try:
        statuses = Management.of(server, state).describe(*(model.name for model in models))
    except ServerError:
        return False  # its listeners come up after the models are registered
    found = {f"{one.name}:{one.version}": one for one in statuses}
    for one in map(str, models):
        if one not in found:
            raise ServerError(f"{one} must load, got a refusal: {logs.last_line(state / LOGS)}; {_see(state)}")
    asked = [found[str(one)] for one in models]
    if not all(status.is_ready for status in asked):
        return False
    if on_gpu and not all(status.on_gpu for status in asked):
        raise DeviceUnavailable("device gpu must serve every worker, got workers on the CPU: is nvidia-smi there?")
    return True


def _raise_failure(models: Sequence[Archive], state: Path, old: logs.Sizes) -> None:
    """Tell of a worker that died on loading, once it has said why."""
    names = [str(one) for one in models]
    if logs.failure(state / LOGS, names, old) is None:
        return
    time.sleep(_LAST_WORDS_S)
    if (dead := logs.failure(state / LOGS, names, old)) is not None:
        raise ServerError(f"{dead[0]} must load, got {dead[1]}; {_see(state)}")


def _see(state: Path) -> str:
    return f"see {state / LOGS}"
