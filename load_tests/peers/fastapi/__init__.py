"""FastAPI and ONNX Runtime, as one would write it by hand."""

from functools import partial

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="fastapi",
    title="FastAPI + ONNX Runtime",
    source="https://fastapi.tiangolo.com/deployment/server-workers/",
    tuning="one process on uvloop and httptools; what has come in while the graph ran is the next batch, up to 32, "
    "decoded, inferred with as many threads as there are cores and encoded by orjson in one thread beside the loop",
    command=partial(module_command, "load_tests.peers.fastapi.server"),
    path="/predict",
    ready="/health",
    variants={"2 processes of 1 thread": {"environment": {"PEER_WORKERS": "2"}}},
)
