"""LitServe."""

from collections.abc import Mapping
from functools import partial

from load_tests.peers.peer import Peer, module_command


def as_binary(image: bytes) -> tuple[bytes, Mapping[str, str]]:
    """A body that FastAPI does not take for JSON."""
    return image, {"Content-Type": "application/octet-stream"}


PEER = Peer(
    name="litserve",
    title="LitServe",
    source="https://lightning.ai/docs/litserve/features/batching",
    tuning="TBD",
    command=partial(module_command, "load_tests.peers.litserve.server"),
    path="/predict",
    ready="/health",
    wrap=as_binary,
)
