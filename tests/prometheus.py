"""The real Prometheus and its promtool, for the tests of what is asked of them."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT

from serving.torchserve.state import Server

LISTENS = re.compile(r"Listening on.*address=(127\.0\.0\.1:\d+)")
TIMEOUT_S = 30.0
POLL_S = 0.2

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not on the PATH",
)


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self._url}/{path}", params=parameters, timeout=30, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def known(self) -> set[str]:
        return set(self.get("label/__name__/values"))

    def value(self, expression: str) -> list[Any]:
        return list(self.get("query", query=expression)["result"])


@contextmanager
def running_prometheus(config: Path) -> Iterator[Prometheus]:
    """A Prometheus by this configuration; its log and its data lie beside it."""
    folder = config.parent
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, "--web.listen-address=127.0.0.1:0"], stdout=log, stderr=log)
    try:
        wait_out(lambda: not LISTENS.search((folder / "log").read_text()) and f"see {folder / 'log'}")
        yield Prometheus(LISTENS.findall((folder / "log").read_text())[0])
    finally:
        process.terminate()
        process.wait(timeout=30)


def aimed(config: dict[str, Any], server: Server, **labels: str) -> dict[str, Any]:
    """A configuration of one job, for this server, every second; what is scraped gets the labels."""
    (job,) = config["scrape_configs"]
    target = {"targets": [httpx.URL(server.metrics_url).netloc.decode()], "labels": labels}
    often = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    return config | {"global": often, "scrape_configs": [job | {"static_configs": [target]}]}


def promtool(*arguments: object, stdin: str = "") -> tuple[int, str]:
    """What promtool returns and says."""
    command = ["promtool", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=60)
    return result.returncode, result.stdout + result.stderr


def wait_out(what_is_missing: Callable[[], Any]) -> None:
    """Wait until nothing is missing any more."""
    deadline = time.monotonic() + TIMEOUT_S
    while missing := what_is_missing():
        assert time.monotonic() < deadline, missing
        time.sleep(POLL_S)
