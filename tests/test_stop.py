"""A stop that always stops, and never another server: real ones, with everything in its way that can be had."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT, until, workers_of

from serving.errors import ServerError
from serving.lock import locked
from serving.torchserve import launch, process
from serving.torchserve.door import is_draining
from serving.torchserve.drain import drain, stand_in_line
from serving.torchserve.state import Server, forget, is_recorded, load, save

WITHIN_S = 10  # Docker kills after that
ENDED = "Stopped the server at {}.\n"
DROPPED = "Stopped the server at {}; what was in flight was dropped: "


@pytest.fixture
def running(own_state: Path, model_store: Path) -> Server:
    """A server of its own."""
    return launch.start(["tiny-mda"], model_store=model_store, state=own_state, device="cpu", port=0)


def hung(server: Server) -> psutil.Process:
    """Stop the server's worker by a signal, and the keeper, which would replace it; it answers nothing more."""
    psutil.Process(server.keeper.pid).suspend()
    worker = next(member for member in process.members(server.java) if member.pid != server.pid)
    worker.suspend()
    return worker


def left(server: Server, state: Path) -> list[object]:
    """Whatever there still is of a server."""
    files = [path for path in (Path(server.tmp), state / "server.json") if path.exists()]
    leaders = [one for one in (server.java, server.keeper) if process.is_running(one)]
    return [*files, *leaders, *process.members(server.java), *process.members(server.keeper)]


def answers(server: Server, image: bytes) -> int:
    return httpx.post(f"{server.url}/predictions/tiny-mda", content=image, trust_env=False, timeout=60).status_code


def test_a_full_disk_keeps_no_server_from_stopping(running: Server, own_state: Path) -> None:
    stop = ["sh", "-c", 'ulimit -f 0 && exec "$0" "$@"', sys.executable, "-m", "serving", "stop", "--state", own_state]
    result = subprocess.run(stop, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S)

    assert (result.stdout, result.stderr) == (ENDED.format(running.url), "")
    assert left(running, own_state) == []


def test_a_worker_that_hangs_keeps_no_server_from_stopping_in_time(
    running: Server, own_state: Path, images: list[bytes]
) -> None:
    hung(running)
    ends: list[str] = []

    def ask() -> None:
        try:
            ends.append(str(answers(running, images[0])))
        except httpx.HTTPError as exc:
            ends.append(type(exc).__name__)

    asker = threading.Thread(target=ask)
    asker.start()
    stop = [sys.executable, "-m", "serving", "stop", "--state", own_state]
    result = subprocess.run(stop, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S)
    asker.join(WITHIN_S)

    assert result.stdout == DROPPED.format(running.url) + "tiny-mda/1 gave no answer in time.\n"
    assert ends in (["RemoteProtocolError"], ["ReadError"])
    assert left(running, own_state) == []


def test_a_signal_ends_the_drain_and_the_server(
    running: Server, own_state: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    hung(running)
    stop = begin("stop", "--drain", 100, "--state", own_state)
    until(lambda: is_draining(Path(running.tmp)))

    stop.send_signal(signal.SIGTERM)
    output, errors = stop.communicate(timeout=WITHIN_S)
    reasons = ("a signal came", "it was given no time")  # the second, if it came before the drain
    assert (output in [DROPPED.format(running.url) + f"{reason}.\n" for reason in reasons], errors) == (True, "")
    assert left(running, own_state) == []


def test_a_second_signal_ends_a_server_in_the_foreground(
    own_state: Path, model_store: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    here = ["--models", "tiny-mda", "--model-store", model_store, "--state", own_state, "--port", 0]
    start = begin("start", "--foreground", *here)
    assert start.stdout is not None
    start.stdout.readline()
    server = load(own_state)
    assert server is not None
    hung(server)

    start.send_signal(signal.SIGTERM)
    until(lambda: is_draining(Path(server.tmp)))
    start.send_signal(signal.SIGINT)
    output, errors = start.communicate(timeout=WITHIN_S)
    assert (output.startswith(DROPPED.format(server.url)), errors) == (True, "")
    assert left(server, own_state) == []


def test_a_stop_that_was_paused_harms_no_later_server(
    running: Server,
    own_state: Path,
    model_store: Path,
    images: list[bytes],
    begin: Callable[..., subprocess.Popen[str]],
) -> None:
    hung(running)
    paused = begin("stop", "--drain", 100, "--state", own_state)
    until(lambda: (own_state / "lock").read_text() == "stop")
    paused.send_signal(signal.SIGSTOP)
    dropped = DROPPED.format(running.url) + "it was given no time."
    assert launch.stop(own_state, grace_s=0, drain_s=0) == dropped
    start = {"model_store": model_store, "state": own_state, "device": "cpu", "port": 0}
    with pytest.raises(ServerError, match=r"^one command at a time must change .*, got `stop` under way: try again "):
        launch.start(["tiny-mda"], **start)  # type: ignore[arg-type]
    paused.send_signal(signal.SIGCONT)
    paused.communicate(timeout=WITHIN_S)

    later = launch.start(["tiny-mda"], **start)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"door"):  # its own, not that of the server that runs now
        drain(running, None, time.monotonic())
    forget(running, own_state)
    assert left(running, own_state) == [own_state / "server.json"]
    assert is_recorded(later, own_state)
    assert [one.is_ready for one in launch.status(own_state) or []] == [True]
    assert answers(later, images[0]) == 200


def test_a_stop_is_for_the_server_that_it_has_seen(
    server: Server, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_state.mkdir()
    save(replace(server, url="http://earlier", tmp=str(own_state / "tmp")), own_state)
    monkeypatch.setattr(launch, "mark_draining", lambda _: save(server, own_state))  # another comes in this moment

    assert launch.stop(own_state) == "The server at http://earlier had ended already."
    assert process.is_running(server.java)
    (own_state / "server.json").unlink()


def test_a_number_that_is_another_servers_now_is_left_alone(server: Server, own_state: Path) -> None:
    own_state.mkdir()
    earlier = process.Identity(server.pid, server.java.started - 1)
    keeper = process.Identity(server.keeper.pid, server.keeper.started - 1)
    save(replace(server, java=earlier, keeper=keeper, tmp=str(own_state / "tmp")), own_state)

    assert launch.status(own_state) is None
    assert launch.stop(own_state) == f"The server at {server.url} had ended already."
    assert process.is_running(server.java)
    assert process.is_running(server.keeper)


def test_a_keeper_that_cannot_begin_leaves_no_java(
    own_state: Path, model_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    with pytest.raises(FileNotFoundError, match=r"/nonexistent/python"):
        launch.start(["tiny-mda"], model_store=model_store, state=own_state, device="cpu", port=0)
    lines = [" ".join(one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if str(own_state) in line] == []
    assert not (own_state / "server.json").exists()


def test_a_stop_ends_a_start_that_is_under_way(
    own_state: Path, model_store: Path, begin: Callable[..., subprocess.Popen[str]]
) -> None:
    here = ["--models", "tiny-mda", "--model-store", model_store, "--state", own_state, "--port", 0]
    start = begin("start", *here)
    until(lambda: (own_state / "server.json").exists())
    server = load(own_state)
    assert server is not None

    stopped = launch.stop(own_state)
    _, errors = start.communicate(timeout=WITHIN_S)
    assert stopped == f"The server at {server.url} had ended already."
    assert (start.returncode, errors) == (
        1,
        f"error: {server.url} must run until its workers are ready, got a stop: start it again\n",
    )
    assert left(server, own_state) == []


def test_a_start_that_has_no_process_yet_cannot_be_stopped(own_state: Path) -> None:
    own_state.mkdir()

    with (
        locked(own_state, "start"),
        pytest.raises(ServerError, match=r"^one command at a time must change .*, got `start` under way: try again "),
    ):
        launch.stop(own_state, drain_s=0)
    assert launch.stop(own_state) == f"No server runs in {own_state}."


def test_a_ticket_that_no_worker_has_answered_is_no_answer(server: Server) -> None:
    deadline = time.monotonic() + 60
    (missing,) = stand_in_line(server, ["tiny-mda/9", "tiny-mda/1"], None, deadline)

    assert missing.startswith("tiny-mda/9 gave 404 {")


def test_a_ticket_outlasts_a_worker_that_dies(server: Server) -> None:
    for member in process.members(server.java):
        if member.pid != server.pid:
            member.kill()

    assert stand_in_line(server, ["tiny-mda/1"], None, time.monotonic() + 60) == []
    until(lambda: all(worker["status"] == "READY" for name in server.models for worker in workers_of(server, name)))


def test_a_process_is_told_by_its_start() -> None:
    own = process.started(os.getpid())

    assert own is not None
    assert time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") > own > 0
    assert process.started(2**22 + 1) is None
