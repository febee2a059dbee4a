"""BentoML: a service with an adaptive batch in one process."""

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="bentoml",
    title="BentoML",
    source="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
    tuning=(
        "1 process, a thread that infers by 2, adaptive batches of at most 32, uvloop and httptools; access log and "
        "metrics off. Tried besides: 2 processes of 1 thread"
    ),
    command=lambda launch: module_command("load_tests.peers.bentoml.server", launch),
    path="/classify",
    ready="/readyz",
    environment={"BENTOML_DO_NOT_TRACK": "True"},
)
