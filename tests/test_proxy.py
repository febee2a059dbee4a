"""nginx before the server, by the configuration that the project ships."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
from conftest import ROOT, encoded, free_port, until

from serving.torchserve.state import Server

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")

STALLED, MOST = 40, 64
BODY = encoded(np.zeros((8, 8), dtype=np.uint8))


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a running nginx that waits for a silent client for one second instead of ten."""
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    text = (ROOT / "serving" / "nginx.conf").read_text()
    assert text.count("_timeout 10s;") == 3
    for old, new in (("listen 8000", f"listen 127.0.0.1:{port}"), ("_timeout 10s;", "_timeout 1s;")):
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text.replace("127.0.0.1:8080", urlsplit(server.url).netloc))
    nginx = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "nginx.conf"])
    until(lambda: answers(port), timeout_s=20)
    yield port
    nginx.terminate()
    nginx.wait(20)


def answers(port: int) -> bool:
    with closing(socket.socket()) as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def post(port: int, path: str = "/predictions/tiny-mda", content: bytes = BODY) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}{path}", content=content, trust_env=False, timeout=30)


def test_an_answer_through_the_proxy_is_the_servers(proxy: int, server: Server) -> None:
    direct = httpx.post(f"{server.url}/predictions/tiny-mda", content=BODY, trust_env=False)
    through = post(proxy)

    assert (through.status_code, through.content) == (200, direct.content)
    assert post(proxy, "/v2/models/tiny-mda/infer", b"{}").status_code == 400
    assert post(proxy, content=bytes(2**24 + 1)).status_code == 413
    assert [post(proxy, path).status_code for path in ("/models", "/ping", "/workflows/x")] == [404] * 3


def test_what_is_not_sent_to_the_end_never_reaches_the_server(proxy: int, server: Server) -> None:
    head = b"POST /predictions/tiny-mda HTTP/1.1\r\nHost: x\r\n"
    with ExitStack() as stack:
        stalled = [
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy), timeout=30)) for _ in range(STALLED)
        ]
        for index, connection in enumerate(stalled):
            connection.sendall(head + (b"Content-Length: 9\r\n\r\n12345678" if index % 2 else b""))

        assert post(proxy).status_code == 200
        port = urlsplit(server.url).port
        connections = [one for one in psutil.Process(server.java.pid).net_connections() if one.laddr.port == port]
        assert len([one for one in connections if one.raddr]) < STALLED / 2
        for connection in stalled:
            assert closed(connection)


def test_a_client_has_only_so_many_connections(proxy: int) -> None:
    head = b"POST /predictions/tiny-mda HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(MOST):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", proxy), timeout=30))
            connection.sendall(head)

        assert post(proxy).status_code == 503
    until(lambda: post(proxy).status_code == 200)


def closed(connection: socket.socket) -> bool:
    """Whether the other end closes it, after a refusal or without a word."""
    try:
        return connection.recv(4096) == b"" or closed(connection)
    except ConnectionResetError:
        return True
