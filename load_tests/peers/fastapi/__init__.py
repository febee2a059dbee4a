"""FastAPI and ONNX Runtime, as one would write it by hand."""

from functools import partial

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="fastapi",
    title="FastAPI + ONNX Runtime",
    source="https://fastapi.tiangolo.com/deployment/server-workers/",
    tuning="TBD",
    command=partial(module_command, "load_tests.peers.fastapi.server"),
    path="/predict",
    ready="/health",
)
