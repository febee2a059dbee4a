"""What becomes of a server when one of its processes is stopped, stuck or killed."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT, exporter_of, serving, until, workers_of

from serving.errors import ServerError
from serving.settings import WorkerSettings
from serving.torchserve import launch, process
from serving.torchserve.archive import package
from serving.torchserve.heartbeat import HEARTBEATS, HUNG_S, hung
from serving.torchserve.keeper import Child, next_pause_s
from serving.torchserve.readiness import unwatched, wait_watched
from serving.torchserve.state import Server, load

REPLACED_S = 60  # half of TorchServe's response timeout, after which it would replace a worker itself
KILLED = (500, 507)  # what TorchServe answers for a worker that was killed: 507 if it has seen how


@pytest.fixture(scope="module")
def folder(bundle_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one model whose server has two workers; each takes one request at a time."""
    folder = tmp_path_factory.mktemp("keeper")
    package(bundle_dir, model_store=folder / "store", settings=WorkerSettings(batch_size=1, workers=2, threads=1))
    return folder


@pytest.fixture(scope="module")
def kept(folder: Path) -> Iterator[Server]:
    """A server that the tests do harm to."""
    yield launch.start(model_store=folder / "store", state=folder / "state", device="cpu", port=0)
    launch.stop(folder / "state", grace_s=0, drain_s=0)


def is_ready(server: Server) -> bool | None:
    """What /ready says; None if nobody answers."""
    try:
        response = httpx.get(server.metrics_url.replace("/metrics", "/ready"), timeout=2, trust_env=False)
    except httpx.TransportError:
        return None
    assert response.json()["ready"] is (response.status_code == 200)
    return response.status_code == 200


def lives(process: psutil.Process) -> bool:
    """Whether it is more than an exit status that its parent has not asked for."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(server: Server) -> set[int]:
    return {worker["pid"] for worker in workers_of(server, "tiny-mda")}


def ask(server: Server, image: bytes) -> int:
    url = f"{server.url}/predictions/tiny-mda"
    return httpx.post(url, content=image, timeout=REPLACED_S, trust_env=False).status_code


def statuses(answers: list[Future[int]]) -> list[int]:
    return sorted(answer.result() for answer in answers)


def replaced(server: Server, state: Path, lost: int) -> None:
    """See a worker counted as not ready, by all that can be asked, and then another one in its place."""
    until(lambda: is_ready(server) is False, REPLACED_S)
    (status,) = launch.status(state) or []
    assert (status.workers, status.ready) == (2, 1)
    assert 'workers_ready{model="tiny-mda",version="1"} 1.0' in httpx.get(server.metrics_url, trust_env=False).text
    until(lambda: is_ready(server), REPLACED_S)
    assert not psutil.pid_exists(lost)
    assert f" killed process {lost}, which had said nothing for " in (state / "logs" / "keeper.log").read_text()


def test_a_worker_that_is_stopped_is_not_ready_and_is_replaced(kept: Server, folder: Path, images: list[bytes]) -> None:
    stopped, other = sorted(pids(kept))

    with ThreadPoolExecutor() as pool:
        os.kill(stopped, signal.SIGSTOP)
        answers = [pool.submit(ask, kept, image) for image in images]
        replaced(kept, folder / "state", stopped)
        *answered, lost = statuses(answers)  # the request that the stopped worker was given
    assert answered == [200] * 7
    assert lost in (200, *KILLED)
    assert stopped not in pids(kept)
    assert other in pids(kept)
    assert ask(kept, images[0]) == 200


def test_a_worker_that_is_stuck_in_a_batch_is_replaced(kept: Server, folder: Path, images: list[bytes]) -> None:
    before = pids(kept)

    with ThreadPoolExecutor() as pool, (Path(kept.tmp) / "door").open() as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # which a batch waits for on its way in
        answer = pool.submit(ask, kept, images[0])
        until(lambda: is_ready(kept) is False, HUNG_S + REPLACED_S)
        assert serving("status", "--state", folder / "state").returncode == 1
        assert answer.result() in KILLED
        fcntl.flock(door, fcntl.LOCK_UN)
    until(lambda: is_ready(kept), REPLACED_S)
    assert len(before & pids(kept)) == 1


@pytest.mark.parametrize("harm", [signal.SIGKILL, signal.SIGSTOP])
def test_an_exporter_that_is_gone_or_stopped_is_begun_again(harm: int, kept: Server, folder: Path) -> None:
    lost = exporter_of(kept)

    os.kill(lost, harm)
    until(lambda: not psutil.pid_exists(lost))
    until(lambda: is_ready(kept))
    assert exporter_of(kept) != lost
    assert serving("status", "--state", folder / "state").returncode == 0


def test_a_pause_of_the_whole_server_harms_nobody(kept: Server, folder: Path) -> None:
    members, before = [*process.members(kept.java), *process.members(kept.keeper)], pids(kept)
    log = (folder / "state" / "logs" / "keeper.log").read_text()

    for one in members:
        one.suspend()
    until(lambda: before <= set(hung(folder / "state" / HEARTBEATS)))
    for one in reversed(members):  # the keeper first, which finds all workers silent
        one.resume()
    until(lambda: is_ready(kept))
    assert pids(kept) == before
    assert (folder / "state" / "logs" / "keeper.log").read_text() == log


def test_another_program_with_a_dead_workers_number_is_left_alone(kept: Server, folder: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as another:
        heartbeat = folder / "state" / HEARTBEATS / str(another.pid)
        heartbeat.write_bytes(struct.pack("d", 0))

        until(lambda: not heartbeat.exists())
        assert another.poll() is None
        another.kill()


def test_what_keeps_a_server_from_being_watched(kept: Server, folder: Path) -> None:
    deaf = replace(kept, metrics_url="http://127.0.0.1:1/metrics")
    fault = "http://127.0.0.1:1/live must be answered by the exporter, got "

    assert unwatched(kept) is None
    assert (unwatched(deaf) or "").startswith(fault)
    with pytest.raises(ServerError, match=rf"^{fault}.*: the keeper begins it again in a moment; see {folder}"):
        wait_watched(deaf, folder / "state", timeout_s=0)


def test_what_soon_ends_is_begun_again_after_pauses() -> None:
    pauses = [1.0]
    for lived_s in (0.5, 2, 4, 8, 16, 30, 30, 100, 1):
        pauses.append(next_pause_s(pauses[-1], lived_s))

    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30, 1, 2]


def test_a_child_that_cannot_be_begun_is_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program, aside, ran = (tmp_path / name for name in ("program", "aside", "ran"))
    program.write_text(f"#!/bin/sh\ntouch {ran}\nexit 3\n")
    program.chmod(0o700)
    log = []

    def says(what: str) -> bool:
        child.keep()
        log.append(capfd.readouterr().out)
        return what in "".join(log)

    child = Child([str(program)])
    until(ran.exists)
    program.rename(aside)
    until(lambda: says(f"{program} has ended with 3 and is begun again\n"))
    until(lambda: says(f" it cannot be begun: [Errno 2] No such file or directory: '{program}'\n"))
    ran.unlink()
    aside.rename(program)
    until(lambda: says("") and ran.exists())
    child.end()


def test_a_log_that_cannot_be_written_does_not_end_the_keeper() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "from serving.torchserve.keeper import say; say('something')"]
        subprocess.run(command, cwd=ROOT, stdout=full, check=True)


def test_without_a_keeper_nothing_is_ready_and_stop_stops_all(kept: Server, folder: Path) -> None:
    members = [*process.members(kept.java), *process.members(kept.keeper)]
    assert len(members) == 5

    os.kill(kept.keeper.pid, signal.SIGKILL)
    until(lambda: is_ready(kept) is None)
    shown = serving("status", "--state", folder / "state")
    assert shown.returncode == 1
    assert "the keeper must run, got its end: stop the server and start it again" in shown.stdout
    stopped = serving("stop", "--state", folder / "state", check=True)
    assert stopped.stdout == f"Stopped the server at {kept.url}.\n"
    assert [one for one in members if lives(one)] == []
    assert load(folder / "state") is None


def test_keeper_and_exporter_end_with_a_server_that_was_killed(folder: Path, tmp_path: Path) -> None:
    server = launch.start(model_store=folder / "store", state=tmp_path, device="cpu", port=0)
    try:
        assert len(process.members(server.keeper)) == 2

        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not process.members(server.keeper))
        assert is_ready(server) is None
    finally:
        launch.stop(tmp_path, grace_s=0)
