"""Who answers the images of the console: a running server, or bundles in this process; a page cannot tell which.

    backend.models()                                          # [Served("mnist-mda", 1)]
    backend.answer(Served("mnist-mda", 1), image, {"coverage": 0.9})

Both give what `/predictions` gives: the answer, or `{"error": {"code": ..., "message": ...}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.respond import Answer


@dataclass(frozen=True)
class Served:
    """A version of a model that can be asked."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class Backend(Protocol):
    """Answers images."""

    def place(self) -> str:
        """Who answers, in words."""

    def models(self) -> Sequence[Served]:
        """What can be asked, a model's default version before its others.

        Raises:
            ServerError: if nobody knows, as when the server has stopped.
        """

    def answer(self, model: Served, image: bytes, parameters: Mapping[str, Any]) -> Answer:
        """The answer to one image, or its error.

        Args:
            model: one of `models`.
            image: encoded.
            parameters: as of a request.

        Raises:
            ServerError: if the server does not answer, or refuses the key.
        """
