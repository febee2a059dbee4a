"""Running servers: the one that was begun in a state folder here, or one elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from serving.client import ask, connect
from serving.console.backend import Served
from serving.console.health.figures import models_in
from serving.console.health.scrape import scrape
from serving.errors import ServerError
from serving.respond import Answer
from serving.torchserve.management import inference_key
from serving.torchserve.state import Server, load


class BegunHere:
    """The server of a state folder, whichever runs there now.

    Args:
        state: the folder.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._connected: tuple[Server, httpx.Client] | None = None

    def place(self) -> str:
        """Who answers, in words."""
        return f"the server at {self._server().url}"

    def models(self) -> Sequence[Served]:
        """What it serves."""
        server = self._server()
        defaults = [Served(name, versions[-1]) for name, versions in server.history.items()]
        others = [Served(name, version) for name, version in server.versions]
        return [*dict.fromkeys([*defaults, *others])]

    def answer(self, model: Served, image: bytes, parameters: Mapping[str, Any]) -> Answer:
        """The answer to one image, or its error."""
        return ask(self._connection(), f"{model.name}/{model.version}", image, parameters)

    def metrics_url(self) -> str | None:
        """Where its metrics are; None while none runs."""
        server = load(self._state)
        return None if server is None else server.metrics_url

    def _connection(self) -> httpx.Client:
        """A connection to the server that runs now; another one than before has another address or key."""
        server = self._server()
        if self._connected is None or self._connected[0] != server:
            self._connected = server, connect(server.url, inference_key(self._state), server.trusted)
        return self._connected[1]

    def _server(self) -> Server:
        server = load(self._state)
        if server is None:
            raise ServerError(f"no server runs in {self._state}: begin one with `python -m serving start`")
        return server


class Elsewhere:
    """A server at an address.

    Args:
        url: of its inference interface.
        key: its inference key, if it asks for one.
        models: says what it serves.
    """

    def __init__(self, url: str, key: str | None, models: Callable[[], Sequence[Served]]) -> None:
        self._url = url
        self._connection = connect(url, key)
        self._models = models

    def place(self) -> str:
        """Who answers, in words."""
        return f"the server at {self._url}"

    def models(self) -> Sequence[Served]:
        """What it serves, as far as that is known."""
        return self._models()

    def answer(self, model: Served, image: bytes, parameters: Mapping[str, Any]) -> Answer:
        """The answer to one image, or its error."""
        return ask(self._connection, f"{model.name}/{model.version}", image, parameters)


def models_by_metrics(metrics_url: str) -> list[Served]:
    """What a server serves, by its own metrics.

    Args:
        metrics_url: where they are.

    Raises:
        ServerError: if they are not there.
    """
    try:
        return models_in(scrape(metrics_url))
    except ServerError as exc:
        raise ServerError(f"--metrics-url must be where a server's metrics are: {exc}") from exc
