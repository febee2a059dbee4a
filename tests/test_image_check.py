"""What `python -m serving.deploy.image_check` does before it has an image, and that it finds what is lost."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import ROOT

from serving.deploy.image_check import promises
from serving.deploy.image_check.engine import Container
from serving.deploy.image_check.package_index import index_settings
from serving.deploy.image_check.runtime import configuration
from serving.deploy.image_check.shell import Failed

ANSWER_S = 0.1


class Lossy:
    """A service that forgets what it has accepted when it is told to stop, if it is told so when it is made."""

    def __init__(self, forgets: bool) -> None:
        stopped = self.stopped = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                late = stopped.is_set()
                time.sleep(ANSWER_S)
                if stopped.is_set() and forgets:
                    self.close_connection = True
                    return
                self.send_response(503 if late else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def network(self) -> AbstractContextManager[None]:
        return nullcontext()

    def terminate(self) -> None:
        self.stopped.set()

    def wait(self, timeout_s: float) -> int:
        time.sleep(3 * ANSWER_S)
        return 0


@pytest.fixture
def lossy(request: pytest.FixtureRequest) -> Iterator[Lossy]:
    service = Lossy(request.param)
    yield service
    service.http.shutdown()
    service.http.server_close()


@pytest.mark.parametrize("lossy", [False], indirect=True)
def test_a_service_that_answers_what_it_has_accepted_passes(lossy: Lossy) -> None:
    line = promises.stops_without_a_loss(cast(Container, lossy), b"image", "k" * 20)

    assert " requests answered, " in line


@pytest.mark.parametrize("lossy", [True], indirect=True)
def test_a_service_that_loses_a_request_fails(lossy: Lossy) -> None:
    with pytest.raises(Failed, match=r"^what was accepted must be answered, got .*refused.* before the stop"):
        promises.stops_without_a_loss(cast(Container, lossy), b"image", "k" * 20)


def test_an_image_that_grows_fails() -> None:
    assert promises.is_small("slim", 702_000_000) == "702 MB"
    assert promises.is_small("full", 5_920_000_000) == "5920 MB"
    with pytest.raises(Failed, match=r"^the image must have at most 900 MB, got 901$"):
        promises.is_small("slim", 901_000_000)


def test_the_build_reaches_the_package_index_as_this_machine_does(tmp_path: Path) -> None:
    certificates = tmp_path / "ours.pem"
    certificates.write_text("of our own authority")
    environment = {
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "PIP_EXTRA_INDEX_URL": "file:///here/simple https://more.example/simple",
        "UV_INDEX": "/only/here",
        "https_proxy": "http://proxy.example:3128",
        "SSL_CERT_FILE": str(certificates),
        "PIP_CERT": "/not/there.pem",
        "DISCRIMINANT_INFERENCE_KEY": "k" * 20,
    }

    assert index_settings(environment) == {
        "UV_DEFAULT_INDEX": "https://packages.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://more.example/simple",
        "https_proxy": "http://proxy.example:3128",
        "SSL_CERT_FILE": str(certificates),
    }
    assert index_settings({"PATH": "/bin"}) == {}


def test_a_check_locks_the_container_down() -> None:
    image: dict[str, Any] = {"Env": ["PATH=/bin", "DEVICE=gpu"], "Cmd": ["serve"], "WorkingDir": "/app"}

    written = configuration(image, Path("/root"), (10001, 10001), Path("/state"), {"DEVICE": "cpu"})

    process = written["process"]
    writable = [one["destination"] for one in written["mounts"] if one["type"] in ("bind", "tmpfs")]
    assert written["root"] == {"path": "/root", "readonly": True}
    assert (process["args"], process["env"]) == (["serve"], ["PATH=/bin", "DEVICE=cpu"])
    assert (process["user"]["uid"], process["capabilities"], process["noNewPrivileges"]) == (10001, {}, True)
    assert writable == ["/dev", "/dev/shm", "/tmp", "/app/.serving"]
    assert {"type": "network"} in written["linux"]["namespaces"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("docker", "--engine docker must find a daemon that answers, got none"),
        ("buildah", "a Docker daemon that answers, or buildah, must be there, got neither: apt-get install buildah"),
    ],
)
def test_a_check_that_cannot_build_says_so(engine: str, message: str, tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "serving.deploy.image_check", "--engine", engine]

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    (log,) = tmp_path.iterdir()  # alone is left
    assert (done.returncode, done.stderr) == (1, f"FAILED: {message}\nThe log is {log}\n")
