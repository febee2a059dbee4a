"""mosec."""

from functools import partial

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="mosec",
    title="mosec",
    source="https://mosecorg.github.io/mosec/reference/concept.html",
    tuning="one worker process, which infers with as many threads as there are cores, batches of 32 that wait 1 ms, "
    "the least that there is (0 means 10)",
    command=partial(module_command, "load_tests.peers.mosec.server"),
    path="/inference",
    ready="/metrics",
    variants={
        "2 processes of 1 thread": {"environment": {"PEER_WORKERS": "2"}},
        "batches that wait 3 ms": {"environment": {"PEER_WAIT_MS": "3"}},
    },
)
