"""BentoML: a service with an adaptive batch in one process."""

import base64
import json
from collections.abc import Mapping

from load_tests.peers.peer import Peer, module_command


def wrap(image: bytes) -> tuple[bytes, Mapping[str, str]]:
    """A list of one image in base64, as its batched methods take it."""
    return json.dumps({"images": [base64.b64encode(image).decode()]}).encode(), {"Content-Type": "application/json"}


QUIET = {"BENTOML_DO_NOT_TRACK": "True"}
PEER = Peer(
    name="bentoml",
    title="BentoML",
    source="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
    tuning=(
        "1 process, a thread that infers by 2, adaptive batches of at most 32, uvloop and httptools; access log and "
        "metrics off. The body could be the image, which is slower"
    ),
    command=lambda launch: module_command("load_tests.peers.bentoml.server", launch),
    path="/classify",
    ready="/readyz",
    environment=QUIET,
    wrap=wrap,
    variants={"2 processes of 1 thread": {"environment": QUIET | {"PEER_WORKERS": "2"}}},
)
