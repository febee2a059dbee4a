"""mosec."""

from collections.abc import Mapping
from functools import partial

from load_tests.peers.peer import Peer, module_command


def as_binary(image: bytes) -> tuple[bytes, Mapping[str, str]]:
    """A body that FastAPI does not take for JSON."""
    return image, {"Content-Type": "application/octet-stream"}


PEER = Peer(
    name="mosec",
    title="mosec",
    source="https://mosecorg.github.io/mosec/reference/concept.html",
    tuning="TBD",
    command=partial(module_command, "load_tests.peers.mosec.server"),
    path="/inference",
    ready="/metrics",
)
