"""BentoML: a service with an adaptive batch in one process."""

from load_tests.peers.peer import Peer, module_command

PEER = Peer(
    name="bentoml",
    title="BentoML",
    source="https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html",
    tuning="",
    command=lambda launch: module_command("load_tests.peers.bentoml.server", launch),
    path="/classify",
    ready="/readyz",
    environment={"BENTOML_DO_NOT_TRACK": "True"},
)
