"""Stopping under load: what the workers, the launcher and the clients see."""

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import encoded, serving

from serving.settings import WorkerSettings
from serving.torchserve import launch
from serving.torchserve.archive import package
from serving.torchserve.door import Door, open_door
from serving.torchserve.drain import drain
from serving.torchserve.process import Identity
from serving.torchserve.state import Server, load

CLIENTS = 16
NOWHERE = Server(
    java=Identity(2**22 + 1, 1), url="http://127.0.0.1:1", management_url="", keeper=Identity(2**22 + 2, 1), gpus=0,
    metrics_url="", torchserve_metrics_url="", models=(), store="", certificate=None, model_api=False, history={},
    beside={}, started="", tmp="", max_request_bytes=1, max_response_bytes=1, queue=1, speedups={},
)  # fmt: skip


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    open_door(tmp_path)
    return tmp_path


def drained(tmp: Path, seconds: float, **changes: Any) -> list[str]:
    return drain(replace(NOWHERE, tmp=str(tmp), **changes), None, time.monotonic() + seconds)


def test_a_door_without_a_server_is_open() -> None:
    with Door(None).entered() as is_open:
        assert is_open


def test_a_drain_closes_the_door(tmp: Path) -> None:
    door = Door(tmp)
    with door.entered() as is_open:
        assert is_open

    assert drained(tmp, 1) == []
    with door.entered() as is_open:
        assert not is_open


def test_a_drain_waits_for_the_batch_in_hand(tmp: Path) -> None:
    done: list[float] = []
    entered = threading.Event()

    def answer() -> None:
        with Door(tmp).entered() as is_open:
            assert is_open
            entered.set()
            time.sleep(0.5)
            done.append(time.monotonic())

    with ThreadPoolExecutor() as pool:
        worker = pool.submit(answer)
        assert entered.wait(5)
        assert drained(tmp, 10) == []
        assert done
        assert time.monotonic() > done[0]
        worker.result()


def test_a_drain_gives_up_in_time(tmp: Path) -> None:
    with Door(tmp).entered():
        assert drained(tmp, 0.2) == ["a worker has not finished its batch"]


def test_a_server_that_does_not_answer_is_not_drained(tmp: Path) -> None:
    refused = "gave [Errno 111] Connection refused"
    served = {"history": {"a": [1, 2]}, "beside": {"a": [3]}}

    assert drained(tmp, 5, **served) == [f"a/{version} {refused}" for version in (1, 2, 3)]


class Client(threading.Thread):
    """Sends one request after another over one connection as long as it can; notes when each began and its end."""

    def __init__(self, url: str, image: bytes) -> None:
        super().__init__(daemon=True)
        self.address, self.image = urlsplit(url).netloc, image
        self.ends: list[tuple[float, int | str]] = []
        self.finished = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        while not self.finished.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", "/predictions/tiny-mda", self.image)
                response = connection.getresponse()
                response.read()
                end: int | str = response.status
            except (OSError, http.client.HTTPException) as exc:
                connection.close()
                end = "hung" if isinstance(exc, TimeoutError) else "refused"
                time.sleep(0.01)
            self.ends.append((began, end))


@pytest.fixture
def served(bundle_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """The state folder of a server of its own, whose batches take a while."""
    state = tmp_path / "state"
    package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(batch_size=4, workers=2, threads=1))
    launch.start(model_store=tmp_path / "store", state=state, device="cpu", port=0)
    yield state
    launch.stop(state, grace_s=0, drain_s=0)


def test_a_stop_under_load_answers_what_was_accepted_and_refuses_the_rest(served: Path) -> None:
    server = load(served)
    assert server is not None
    image = encoded(np.zeros((600, 600), dtype=np.uint8))
    clients = [Client(server.url, image) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(2)

    stopped = time.monotonic()
    result = serving("stop", "--state", served)
    for client in clients:
        client.finished.set()
        client.join(30)
    ends = [end for client in clients for end in client.ends]
    before = [end for began, end in ends if began < stopped]
    after = [end for began, end in ends if began >= stopped]
    assert (result.returncode, result.stdout) == (0, f"Stopped the server at {server.url}.\n")
    assert len(before) >= CLIENTS
    assert set(before) == {200}
    assert {503, "refused"} <= set(after) <= {200, 503, "refused"}
