"""What strangers have tried: code in what is served, connections that never end, more bytes than there is memory."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import zipfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from conftest import encoded, serving, until, workers_of

from serving.errors import BundleError, ServerError
from serving.settings import WorkerSettings
from serving.torchserve import launch, process, spawn
from serving.torchserve.archive import package
from serving.torchserve.patches import classes

IMAGE = encoded(np.zeros((8, 8), dtype=np.uint8))
STALLED_HEADERS, STALLED_BODIES, BODY_BYTES = 60, 8, 2**20
STILL_S = 3
MEMORY_BYTES, MAX_REQUEST_BYTES, FLOOD = 2**30, 2**22, 160


@pytest.fixture
def code(tmp_path: Path) -> dict[str, bytes]:
    """Modules that any worker imports which finds them; they tell that they ran."""
    ran = f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\n".encode()
    return {"sitecustomize.py": ran, "orjson.py": ran}


def address(server: launch.Server) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def post(server: launch.Server) -> int:
    return httpx.post(f"{server.url}/predictions/tiny-mda", content=IMAGE, trust_env=False, timeout=30).status_code


def test_a_bundle_that_lists_code_is_neither_packaged_nor_started_nor_deployed(
    code: dict[str, bytes], bundle_dir: Path, own_state: Path, tmp_path: Path
) -> None:
    made = package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(workers=1, threads=1))
    launch.start(model_store=tmp_path / "store", state=own_state, device="cpu", port=0, model_api=True)
    bundle = Path(shutil.copytree(bundle_dir, tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    for name, content in code.items():
        (bundle / name).write_bytes(content)
        manifest["sha256"][name] = hashlib.sha256(content).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with zipfile.ZipFile(made) as file:
        entries = {name: file.read(name) for name in file.namelist()} | code
    with zipfile.ZipFile(made, "w") as file:
        for name, content in (entries | {"bundle.json": (bundle / "bundle.json").read_bytes()}).items():
            file.writestr(name, content)

    for command in (["package", bundle, "--model-store", tmp_path / "other"], ["deploy", bundle, "--state", own_state]):
        refused = serving(*command)
        assert refused.returncode == 1
        assert "sha256 must list the bundle's own files alone, got orjson.py, sitecustomize.py too" in refused.stderr
    launch.stop(own_state, drain_s=0)
    with pytest.raises((ServerError, BundleError), match=r"must be an archive made by `python -m serving package`"):
        launch.start(model_store=tmp_path / "store", state=own_state, device="cpu", port=0)
    assert not (tmp_path / "ran").exists()


def test_code_hidden_in_an_archive_is_not_served(
    code: dict[str, bytes], bundle_dir: Path, own_state: Path, tmp_path: Path
) -> None:
    made = package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(workers=1, threads=1))
    good, hidden = made.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as file:
        for name, content in code.items():
            file.writestr(name, content)
        directory = file.start_dir
    made.write_bytes(hidden.getvalue()[:directory] + good)  # found by whoever reads entry by entry, as Java does
    with zipfile.ZipFile(made) as file:
        assert not set(code) & set(file.namelist())

    server = launch.start(model_store=tmp_path / "store", state=own_state, device="cpu", port=0)
    assert post(server) == 200
    assert (own_state / "models" / made.name).read_bytes() == good
    assert not (tmp_path / "ran").exists()


def test_connections_on_which_nothing_comes_are_closed(
    model_store: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "STILL_S", STILL_S)
    server = launch.start(["tiny-mda"], model_store=model_store, state=own_state, device="cpu", port=0)
    head = b"POST /predictions/tiny-mda HTTP/1.1\r\nHost: x\r\n"
    body = b"Content-Length: %d\r\n\r\n" % BODY_BYTES + bytes(BODY_BYTES - 1)
    stalled = [socket.create_connection(address(server), timeout=60) for _ in range(STALLED_HEADERS + STALLED_BODIES)]
    for index, connection in enumerate(stalled):
        connection.sendall(head + (body if index < STALLED_BODIES else b""))

    assert post(server) == 200
    for connection in stalled:
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert post(server) == 200


def test_more_bytes_than_there_is_memory_are_refused_and_the_server_goes_on(
    bundle_dir: Path, own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "memory_bytes", lambda: MEMORY_BYTES)
    package(bundle_dir, model_store=tmp_path / "store", settings=WorkerSettings(workers=1, threads=1, batch_size=2))
    server = launch.start(
        model_store=tmp_path / "store", state=own_state, device="cpu", port=0, max_request_bytes=MAX_REQUEST_BYTES
    )
    (worker,) = workers_of(server, "tiny-mda")
    java, size = psutil.Process(server.java.pid), MAX_REQUEST_BYTES - 1
    os.kill(worker["pid"], signal.SIGSTOP)
    request = b"POST /predictions/tiny-mda HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    flood = [socket.create_connection(address(server), timeout=60) for _ in range(FLOOD)]
    for connection in flood:
        try:
            connection.sendall(request)
        except ConnectionError:  # no room for what is on its way
            connection.close()
    largest = java.memory_info().rss
    with suppress(ProcessLookupError):  # if it was replaced already
        os.kill(worker["pid"], signal.SIGCONT)

    ends = [end for connection in flood if connection.fileno() >= 0 and (end := first_line(connection))]
    assert {b"HTTP/1.1 503 Service Unavailable", b"HTTP/1.1 415 Unsupported Media Type"} <= set(ends)
    assert largest < MEMORY_BYTES
    assert process.is_running(server.java)
    until(lambda: post(server) == 200)


def first_line(connection: socket.socket) -> bytes:
    """Of the answer; empty if the connection is cut."""
    with connection:
        try:
            return connection.recv(4096).split(b"\r\n")[0]
        except ConnectionError:
            return b""
