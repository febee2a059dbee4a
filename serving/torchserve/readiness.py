"""Readiness: what each worker is doing, asked of TorchServe's management interface; and why one could not load.

`/ping` says Healthy while every worker is dead, so nothing here asks it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.errors import ServerError
from serving.torchserve.state import Server

TIMEOUT_S = 5.0
CHANGE_TIMEOUT_S = 30.0
WORKERS_LOG = "model_log.log"
WORKER_LINE = re.compile(r"\S+ \S+ +W-\d+-(?P<model>.+)_[^_]+-std(?:out|err) - (?P<text>.*)")
DIED = "Backend worker process died."
NOT_LOADED = re.compile(r"Load model failed: (?P<model>.+), error: ")
WITHOUT_A_WORD = "a worker that died without a word (killed, or out of memory)"
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: |$)")


@dataclass(frozen=True)
class ModelStatus:
    """One version of one model: its workers, how many of them are ready, and whether all of those are on a GPU.

    While the server drains, nothing of it is ready.
    """

    name: str
    version: str
    workers: int
    ready: int
    on_gpu: bool
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether every worker can answer, and will."""
        return 0 < self.workers == self.ready and not self.draining


@dataclass(frozen=True)
class Management:
    """TorchServe's management interface: its address, and its key if it asks for one."""

    url: str
    key: str | None = None

    @classmethod
    def of(cls, server: Server, state: Path) -> "Management":
        """That of a server and its folder."""
        return cls(server.management_url, management_key(state / "key_file.json"))

    def describe(self, model: str) -> list[ModelStatus]:
        """Ask for the state of all versions of a model.

        Returns:
            One status per version, or nothing if the model is not registered.

        Raises:
            ServerError: if the server does not answer, or answers something else.
        """
        url = f"{self.url}/models/{model}/all"
        try:
            response = httpx.get(url, headers=self._headers, timeout=TIMEOUT_S, trust_env=False)
            if response.status_code == httpx.codes.NOT_FOUND:
                return []
            return [_status(entry) for entry in response.raise_for_status().json()]
        except (httpx.HTTPError, ValueError) as exc:
            raise ServerError(f"{url} must answer with the state of the model, got {exc}") from exc

    def status(self, model: str, version: int) -> ModelStatus | None:
        """The state of one version, or None if it is not registered."""
        return next((one for one in self.describe(model) if one.version == str(version)), None)

    def call(self, method: str, path: str, **parameters: str) -> None:
        """Ask for a change.

        Raises:
            ServerError: if the server refuses it, with its reason.
        """
        url = f"{self.url}{path}"
        try:
            response = httpx.request(
                method, url, params=parameters, headers=self._headers, timeout=CHANGE_TIMEOUT_S, trust_env=False
            )
        except httpx.HTTPError as exc:
            raise ServerError(f"{method} {url} must be answered, got {exc}") from exc
        if response.is_error:
            raise ServerError(f"{method} {url} must succeed, got {response.status_code}: {response.text.strip()}")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def management_key(key_file: Path) -> str | None:
    """The key for the management interface, if the server asks for one."""
    return _key(key_file, "management")


def inference_key(key_file: Path) -> str | None:
    """The key for the inference interface, if the server asks for one."""
    return _key(key_file, "inference")


def failure(logs: Path, start: int = 0) -> tuple[str, str] | None:
    """The first model whose worker died, by TorchServe's logs, and the last exception that it printed.

    Args:
        logs: their folder.
        start: how much of the workers' log is old; see `log_size`.

    Returns:
        The model's name and the reason, or None if no worker died.
    """
    lines = [match for line in _lines(logs / WORKERS_LOG, start) if (match := WORKER_LINE.match(line))]
    for index, line in enumerate(lines):
        if DIED in line["text"]:
            texts = [later["text"] for later in lines[index + 1 :] if later["model"] == line["model"]]
            return line["model"], _last_exception(texts) or WITHOUT_A_WORD
    match = next(filter(None, map(NOT_LOADED.search, _lines(logs / "ts_log.log"))), None)
    return (match["model"], WITHOUT_A_WORD) if match else None


def log_size(logs: Path) -> int:
    """How many bytes the workers have logged so far."""
    log = logs / WORKERS_LOG
    return log.stat().st_size if log.is_file() else 0


def _lines(log: Path, start: int = 0) -> list[str]:
    return log.read_bytes()[start:].decode(errors="replace").splitlines() if log.is_file() else []


def _last_exception(texts: list[str]) -> str:
    """The message of the traceback that `texts` begins with; chained tracebacks end with the one that was raised."""
    start = None
    for index, text in enumerate(texts):
        if EXCEPTION.match(text) and not text.startswith("Traceback"):
            start = index
    return texts[start] if start is not None else ""


def _status(entry: dict[str, Any]) -> ModelStatus:
    workers = entry["workers"]
    ready = [worker for worker in workers if worker["status"] == "READY"]
    on_gpu = bool(ready) and all(worker["gpu"] for worker in ready)
    return ModelStatus(entry["modelName"], entry["modelVersion"], len(workers), len(ready), on_gpu)


def _key(key_file: Path, name: str) -> str | None:
    try:
        return str(json.loads(key_file.read_bytes())[name]["key"])
    except (OSError, ValueError, KeyError):
        return None
