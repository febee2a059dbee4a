"""Triton Inference Server: the binary in `nvidia-pytriton`, its Python backend, dynamic batching."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from load_tests.peers.peer import Peer, Wrap, module_command

LOCK = Path("serving", "triton", "server.txt")


def binary_tensor(name: str, output: str) -> Wrap:
    """How an image is sent: a BYTES tensor of one element, by the Open Inference Protocol's binary extension.

    Args:
        name: of the tensor.
        output: the one that is wanted.
    """

    def wrap(image: bytes) -> tuple[bytes, Mapping[str, str]]:
        tensor = struct.pack("<I", len(image)) + image
        sent = {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
        wanted = {"name": output, "parameters": {"binary_data": True}}
        header = json.dumps({"inputs": [sent], "outputs": [wanted]}).encode()
        return header + tensor, {"Inference-Header-Content-Length": str(len(header))}

    return wrap


def unwrap(body: bytes) -> dict[str, Any]:
    """The one element of the answer's tensor, behind the JSON that says how long it is."""
    text = body.decode("latin-1")
    _, end = json.JSONDecoder().raw_decode(text)
    answer: dict[str, Any] = json.loads(body[end + 4 :])
    return answer


PEER = Peer(
    name="triton",
    lock=LOCK,
    title="Triton",
    source="https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/optimization.html",
    tuning=("1 instance of 2 threads, dynamic batches of at most 32 that wait for nothing, tensors in binary"),
    command=lambda launch: module_command("load_tests.peers.triton.server", launch),
    path="/v2/models/images/infer",
    ready="/v2/models/images/ready",
    wrap=binary_tensor("image", "answer"),
    unwrap=unwrap,
    variants={
        "2 instances of 1 thread": {"environment": {"PEER_WORKERS": "2"}},
        "batches that wait 1 ms": {"environment": {"PEER_WAIT_MS": "1"}},
    },
)
