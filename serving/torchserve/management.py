"""TorchServe's management interface: what each worker is doing, and changes of what is served."""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving.errors import ServerError
from serving.torchserve.heartbeat import HEARTBEATS, hung
from serving.torchserve.state import KEY_FILE, Server

_ANSWER_TIMEOUT_S = 5.0
_CHANGE_TIMEOUT_S = 30.0


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
    """TorchServe's management interface: its address, its key if it asks for one, where its workers' heartbeats are."""

    url: str
    key: str | None = None
    heartbeats: Path | None = None

    @classmethod
    def of(cls, server: Server, state: Path) -> "Management":
        """That of a server and its folder."""
        return cls(server.management_url, management_key(state), state / HEARTBEATS)

    def describe(self, *models: str) -> list[ModelStatus]:
        """Ask for the state of all versions of some models; a worker that has gone silent is not ready.

        Returns:
            One status per version; none for a model that is not registered.

        Raises:
            ServerError: if the server does not answer, or answers something else.
        """
        return [one for model in dict.fromkeys(models) for one in self._versions(model)]

    def _versions(self, model: str) -> list[ModelStatus]:
        url = f"{self.url}/models/{model}/all"
        try:
            response = httpx.get(url, headers=self._headers, timeout=_ANSWER_TIMEOUT_S, trust_env=False)
            if response.status_code == httpx.codes.NOT_FOUND:
                return []
            silent = hung(self.heartbeats) if self.heartbeats else ()
            return [_status(entry, silent) for entry in response.raise_for_status().json()]
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
                method, url, params=parameters, headers=self._headers, timeout=_CHANGE_TIMEOUT_S, trust_env=False
            )
        except httpx.HTTPError as exc:
            raise ServerError(f"{method} {url} must be answered, got {exc}") from exc
        if response.is_error:
            raise ServerError(f"{method} {url} must succeed, got {response.status_code}: {response.text.strip()}")

    def models(self) -> list[str]:
        """The names of all models that are registered.

        Raises:
            ServerError: if the server does not answer, or answers something else.
        """
        names: list[str] = []
        page: dict[str, str] = {"limit": "100"}
        while True:
            answer = self._read("/models", page)
            names += [one["modelName"] for one in answer["models"]]
            if "nextPageToken" not in answer:
                return names
            page["next_page_token"] = answer["nextPageToken"]

    def default(self, model: str) -> int:
        """The version that answers where none is named; raises as `models`."""
        return int(self._read(f"/models/{model}")[0]["modelVersion"])

    def _read(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        url = f"{self.url}{path}"
        try:
            response = httpx.get(
                url, params=parameters, headers=self._headers, timeout=_ANSWER_TIMEOUT_S, trust_env=False
            )
            return response.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as exc:
            raise ServerError(f"{url} must answer with what is registered, got {exc}") from exc

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def management_key(state: Path) -> str | None:
    """The key for the management interface of the server in a folder, if it asks for one."""
    return _key(state, "management")


def inference_key(state: Path) -> str | None:
    """The key for its inference interface, if it asks for one."""
    return _key(state, "inference")


def _status(entry: dict[str, Any], silent: Container[int]) -> ModelStatus:
    workers = entry["workers"]
    ready = [worker for worker in workers if worker["status"] == "READY" and worker["pid"] not in silent]
    on_gpu = bool(ready) and all(worker["gpu"] for worker in ready)
    return ModelStatus(entry["modelName"], entry["modelVersion"], len(workers), len(ready), on_gpu)


def _key(state: Path, name: str) -> str | None:
    """What TorchServe says that its key is; it writes the file at each start, if it asks for keys."""
    try:
        return str(json.loads((state / KEY_FILE).read_bytes())[name]["key"])
    except (OSError, ValueError, KeyError):
        return None
