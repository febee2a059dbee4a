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
    tuning="one worker process, which infers with as many threads as there are cores, batches of 32 that wait 1 ms, "
    "one HTTP process, raw bodies",
    command=partial(module_command, "load_tests.peers.litserve.server"),
    path="/predict",
    ready="/health",
    wrap=as_binary,
    variants={
        "2 processes of 1 thread": {"environment": {"PEER_WORKERS": "2"}},
        "batches that wait 3 ms": {"environment": {"PEER_WAIT_MS": "3"}},
        "fast_queue": {"environment": {"PEER_FAST_QUEUE": "1"}},
    },
)
