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
        "no worker processes, inference by 2 threads, adaptive batches of at most 32 or 0.1 ms, orjson, httptools; gzip "
        "and metrics off. "
        "Tried besides: 1 worker of 2 threads, 2 of 1; up to 2 ms; inference on a thread of its own"
    ),
    command=lambda launch: module_command("load_tests.peers.mlserver.server", launch),
    path="/v2/models/images/infer",
    ready="/v2/models/images/ready",
    wrap=wrap,
    unwrap=unwrap,
)
