"""What a console is about: who answers, what is known of the models, which table is looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from serving.bundle import Bundle
from serving.console.backend import Backend, Served
from serving.console.context import Knowledge
from serving.errors import ServerError
from serving.keys import client_key
from serving.torchserve.state import ARCHIVES, load


@dataclass(frozen=True)
class Setup:
    """What a console is about.

    Attributes:
        backend: who answers images; None if it is for a table alone.
        knowledge: of the models.
        metrics_url: says where the server's metrics are now; None where there are none.
        table: what score has written, if it is to be looked at.
        images: where its images are, if not where it says.
        marked: folder that marked images are written to.
    """

    backend: Backend | None
    knowledge: Knowledge
    metrics_url: Callable[[], str | None] = lambda: None
    table: str | None = None
    images: str | None = None
    marked: Path | None = None

    @classmethod
    def of_nothing(cls) -> "Setup":
        """That of a console without a model."""
        return cls(None, Knowledge({}))


@dataclass(frozen=True)
class Asked:
    """What the command line names of a server; see the command's options."""

    bundles: Sequence[Path]
    url: str | None
    metrics_url: str | None
    key_file: Path | None
    state: Path


def choose(asked: Asked, environment: Mapping[str, str]) -> Setup | None:
    """Who answers: a server elsewhere, bundles in this process, or the server begun here, in this order.

    Args:
        asked: by the command line.
        environment: may hold the key of a server elsewhere.

    Returns:
        None if no server was begun here and nothing was named.

    Raises:
        ServingError: if what was named cannot be used.
    """
    bundles = [Bundle.load(bundle) for bundle in asked.bundles]
    if asked.url is not None:
        return _elsewhere(asked, asked.url, bundles, environment)
    if bundles:
        return _in_process(asked, bundles)
    return _begun_here(asked)


def _elsewhere(asked: Asked, url: str, bundles: Sequence[Bundle], environment: Mapping[str, str]) -> Setup:
    from serving.console.remote import Elsewhere, models_by_metrics

    knowledge, metrics_url = Knowledge.of_bundles(bundles), asked.metrics_url
    if metrics_url is None and not bundles:
        raise ServerError("--url must come with --metrics-url or BUNDLEs, which say what it serves, got neither")

    def models() -> Sequence[Served]:
        return list(knowledge.bundles) if metrics_url is None else models_by_metrics(metrics_url)

    models()
    backend = Elsewhere(url, client_key(asked.key_file, environment), models)
    return Setup(backend, knowledge, lambda: metrics_url)


def _in_process(asked: Asked, bundles: Sequence[Bundle]) -> Setup:
    from serving.console.in_process import InProcess

    with Console(stderr=True).status("Loading the models"):
        backend = InProcess(bundles)
    return Setup(backend, Knowledge.of_bundles(bundles), lambda: asked.metrics_url)


def _begun_here(asked: Asked) -> Setup | None:
    from serving.console.remote import BegunHere

    if load(asked.state) is None:
        return None
    backend = BegunHere(asked.state)
    return Setup(backend, Knowledge({}, asked.state / ARCHIVES), lambda: asked.metrics_url or backend.metrics_url())
