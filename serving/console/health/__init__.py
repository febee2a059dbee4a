"""The page on the server's health: what its metrics say now, and over the last minutes.

The console scrapes the metrics while somebody looks; the page asks the console alone.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.console.context import Knowledge
from serving.console.health.figures import of_models, of_server
from serving.console.health.history import KEPT_S, History
from serving.console.health.scrape import Counts, is_ready, scrape
from serving.console.pages import page
from serving.errors import BadParameter, ServerError, shown

FRESH_S = 2.0  # for so long a scrape is good enough for another page
MOMENTS = ("start", "minutes")  # since when images are looked at: the server's start, or the last ten minutes


class Watch:
    """Scrapes a server when somebody looks, and remembers the last minutes of it.

    Args:
        metrics_url: says where its metrics are now; None where there are none.
        knowledge: of its models.
    """

    def __init__(self, metrics_url: Callable[[], str | None], knowledge: Knowledge) -> None:
        self._metrics_url = metrics_url
        self._knowledge = knowledge
        self._lock = threading.Lock()
        self._history = History()
        self._seen: tuple[str, float] | None = None
        self._is_ready = False

    def look(self, since: str) -> dict[str, Any]:
        """What the page shows now: the state of the server in one word, and figures if it answers."""
        with self._lock:
            url = self._metrics_url()
            if url is None:
                return {"state": "none"}
            try:
                self._scrape(url)
            except ServerError as error:
                return {"state": "silent", "problem": str(error)}
            return {"state": "ready" if self._is_ready else "unready", **self._figures(since)}

    def _scrape(self, url: str) -> None:
        """Scrape unless that was done a moment ago; another address is another server."""
        now = time.monotonic()
        if self._seen is not None and self._seen[0] != url:
            self._history, self._seen = History(), None
        if self._seen is None or now - self._seen[1] >= FRESH_S:
            self._history.add(now, scrape(url))
            self._is_ready = is_ready(url)
            self._seen = url, now

    def _figures(self, since: str) -> dict[str, Any]:
        images = self._history.latest
        if since == "minutes":
            growth = self._history.over(KEPT_S)
            images = None if growth is None else growth.counts
        models = of_models(self._history, images or Counts({}), self._knowledge)
        return {"server": of_server(self._history), "models": models}


def routes(metrics_url: Callable[[], str | None], knowledge: Knowledge) -> list[Route]:
    """The page and what it asks for.

    Args:
        metrics_url: says where the server's metrics are now; None where nobody knows, as of bundles without a server.
        knowledge: of the models.
    """
    watch = Watch(metrics_url, knowledge)

    def show(request: Request) -> Response:
        return page("health.html.jinja", "Health")

    def figures(request: Request) -> Response:
        since = request.query_params.get("since", MOMENTS[0])
        if since not in MOMENTS:
            raise BadParameter(f"since must be one of {', '.join(MOMENTS)}, got {shown(since)}")
        return JSONResponse(watch.look(since))

    return [Route("/health", show), Route("/health/figures", figures)]
