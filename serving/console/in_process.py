"""Bundles that answer in this process, by the same data plane as any server's."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from serving.bundle import Bundle
from serving.console.backend import Served
from serving.data_plane import DataPlane
from serving.errors import ServerError
from serving.predictor import Predictor
from serving.request import Message
from serving.respond import Answer


class InProcess:
    """Answers with bundles.

    Args:
        bundles: each is loaded and must give its golden answers.

    Raises:
        BundleError: if one cannot be used.
    """

    def __init__(self, bundles: Iterable[Bundle]) -> None:
        self._planes = {_served(bundle): DataPlane(_warm(bundle)) for bundle in bundles}
        self._lock = threading.Lock()

    def place(self) -> str:
        """Who answers, in words."""
        return "bundles in the console's own process"

    def models(self) -> Sequence[Served]:
        """What can be asked."""
        return list(self._planes)

    def answer(self, model: Served, image: bytes, parameters: Mapping[str, Any]) -> Answer:
        """The answer to one image, or its error."""
        if model not in self._planes:
            raise ServerError(f"model must be one of {', '.join(map(str, self._planes))}, got {model}")
        message = Message(parts={"data": image, "parameters": json.dumps(parameters).encode()})
        with self._lock:  # a data plane answers one batch at a time
            (reply,) = self._planes[model].answer([message])
        answer: Answer = orjson.loads(reply.body)
        return answer


def _served(bundle: Bundle) -> Served:
    return Served(bundle.manifest.name, bundle.manifest.version)


def _warm(bundle: Bundle) -> Predictor:
    predictor = Predictor(bundle)
    predictor.warm_up()
    return predictor
