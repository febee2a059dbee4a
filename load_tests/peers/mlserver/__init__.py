"""MLServer: a custom runtime with adaptive batching, asked by the Open Inference Protocol."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from load_tests.peers.peer import Peer, module_command


def wrap(image: bytes) -> tuple[bytes, Mapping[str, str]]:
    """A BYTES tensor of one element, base64: its REST server has no binary extension."""
    tensor = {"name": "images", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(image).decode()]}
    return json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"}


def unwrap(body: bytes) -> dict[str, Any]:
    """The one element of the answer's tensor."""
    answer: dict[str, Any] = json.loads(json.loads(body)["outputs"][0]["data"][0])
    return answer


PEER = Peer(
    name="mlserver",
    title="MLServer",
    source="https://mlserver.readthedocs.io/en/latest/user-guide/adaptive-batching.html",
    tuning=(
        "the model in the server's own process with 2 threads; adaptive batches of at most 32 that wait 0.1 ms; "
        "orjson, httptools; gzip and metrics off"
    ),
    command=lambda launch: module_command("load_tests.peers.mlserver.server", launch),
    path="/v2/models/images/infer",
    ready="/v2/models/images/ready",
    wrap=wrap,
    unwrap=unwrap,
    variants={
        "1 worker process of 2 threads": {"environment": {"PEER_WORKERS": "1"}},
        "2 worker processes of 1 thread": {"environment": {"PEER_WORKERS": "2"}},
        "batches that wait 2 ms": {"environment": {"PEER_WAIT_MS": "2"}},
    },
)
